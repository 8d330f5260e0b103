"""The graph under bitmaps that leave most rows, as deletes do."""

from __future__ import annotations

import itertools

import numpy as np
from vecdb_index import conformance
from vecdb_index.hnsw.backend import BACKEND


def test_rows_that_died_around_a_query_cost_no_recall() -> None:
    """Most rows are alive, so that dead ones are dropped in the end; but where the query is, too few of the best may be left."""
    rows, queries = conformance.stored(conformance.drawn(6000, 16), "l2"), conformance.drawn(400, 16, seed=1)
    searcher = conformance.opened(BACKEND, rows)
    nearest = np.argsort(-conformance.true_keys(rows, queries), axis=1)
    for effort, dead in itertools.product((0.1, 0.2, 0.3), (5, 8, 20)):
        usual = conformance.recall(searcher.search(queries, 10, effort), rows, queries, 10)
        found = []
        for q, mine in enumerate(nearest):
            alive = np.ones(len(rows), np.bool_)
            alive[mine[:dead]] = False
            hits = searcher.search(queries[q : q + 1], 10, effort, conformance.bitmap(alive))
            assert hits.lengths[0] == 10 and alive[hits.rows[0]].all()
            found.append(np.isin(hits.rows[0], mine[dead : dead + 10]).mean())
        assert np.mean(found) >= usual - 0.02, (effort, dead)
