"""The graph under bitmaps that leave most rows, as deletes do."""

from __future__ import annotations

import numpy as np
from vecdb_index import conformance
from vecdb_index.hnsw.backend import BACKEND


def test_rows_that_died_around_a_query_cost_no_recall() -> None:
    """Most rows are alive, so that they are dropped in the end; but where the query is, many are dead."""
    rows, queries = conformance.stored(conformance.drawn(6000, 16), "l2"), conformance.drawn(40, 16, seed=1)
    searcher = conformance.opened(BACKEND, rows)
    keys = conformance.true_keys(rows, queries)
    usual = conformance.recall(searcher.search(queries, 10, 0.3), rows, queries, 10)
    for dead in (15, 60, 1500):
        found = []
        for q in range(len(queries)):
            alive = np.ones(len(rows), np.bool_)
            alive[np.argsort(-keys[q])[:dead]] = False
            one = queries[q : q + 1]
            hits = searcher.search(one, 10, 0.3, conformance.bitmap(alive))
            conformance.check(hits, rows, one, 10, alive)
            found.append(conformance.recall(hits, rows, one, 10, alive))
        assert np.mean(found) >= usual - 0.02, dead
