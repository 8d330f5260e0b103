"""The graph beside hnswlib's, at equal ef: it finds as many of the true neighbours, up to two in a hundred.

At equal ef both keep as many candidates, so this compares the graphs and the walks alone; what they cost is for `bench/`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from vecdb_index.contract import Budget, Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.hnsw.backend import BACKEND
from vecdb_index.hnsw.params import HNSW
from vecdb_index.hnsw.search import LEAST_EF, MOST_EF

hnswlib = pytest.importorskip("hnswlib", reason="hnswlib, the oracle, is not installed: it needs a C++ compiler")

K, N, D, QUERIES = 10, 5_000, 32, 500
EFS = (16, 32, 64)


def clustered(seed: int, n: int) -> Any:
    """Points around 50 centres, which are those of every seed."""
    centres = 2 * np.random.default_rng(0).standard_normal((50, D))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 50, n)] + rng.standard_normal((n, D))).astype(np.float32)


def of_varied_norms(seed: int, n: int) -> Any:
    """The same directions, with lengths over more than an order of magnitude: what inner products make of a graph."""
    spread = np.random.default_rng(seed + 100).lognormal(0, 0.7, (n, 1))
    return (clustered(seed, n) * spread).astype(np.float32)


@pytest.mark.parametrize(
    ("metric", "drawn"),
    [("l2", clustered), ("cosine", clustered), ("ip", clustered), ("ip", of_varied_norms)],
    ids=["l2", "cosine", "ip", "ip-of-varied-norms"],
)
def test_at_equal_ef_the_graph_finds_what_hnswlib_finds(metric: Any, drawn: Any) -> None:
    base, queries = drawn(1, N), clustered(2, QUERIES)
    rows = Rows(base, np.linalg.norm(base, axis=1).astype(np.float32), metric)
    true = FlatSearcher(rows).search(queries, K).rows

    def recall(found: Any) -> float:
        return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), true.tolist(), strict=True)]))

    ours = BACKEND.open(BACKEND.build(rows, {}, HNSW(), Budget(threads=1), lambda share: None), {}, rows, HNSW())
    theirs = hnswlib.Index(metric, D)
    theirs.init_index(N, M=16, ef_construction=200, random_seed=1)
    theirs.set_num_threads(1)  # with more, the graph is another one each time
    theirs.add_items(base)
    for ef in EFS:
        effort = math.log(ef / LEAST_EF) / math.log(MOST_EF / LEAST_EF)
        theirs.set_ef(ef)
        mine, other = recall(ours.search(queries, K, effort).rows), recall(theirs.knn_query(queries, K)[0].astype(np.int64))
        assert mine >= other - 0.02, f"ef {ef}: {mine:.3f} and {other:.3f}"
