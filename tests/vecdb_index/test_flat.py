"""Flat search by its contract: brute force in float64, and the same bits whatever the batch, the split or the thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vecdb_index.contract import Cancelled, Control, DeadlineReached, Hits, Rows, scores_of
from vecdb_index.flat.search import FlatSearcher

METRICS = ["cosine", "ip", "l2"]
DTYPES = [np.float32, np.float16, np.int8]


def rows_of(rng: np.random.Generator, n: int, d: int, dtype: Any, metric: Any, **options: Any) -> Rows:
    vectors = (rng.integers(-128, 128, (n, d)) if dtype == np.int8 else rng.standard_normal((n, d))).astype(dtype)
    vectors[~vectors.any(axis=1)] = 1
    return Rows(vectors, np.linalg.norm(vectors.astype(np.float64), axis=1).astype(np.float32), metric, **options)


def true_keys(rows: Rows, queries: np.ndarray) -> np.ndarray:
    q, x = queries.astype(np.float64), rows.vectors.astype(np.float64)
    if rows.metric == "l2":
        return -((q[:, None] - x[None]) ** 2).sum(-1)
    products = q @ x.T
    if rows.metric == "cosine":
        products /= np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
    return products


def bitmap(flags: np.ndarray) -> np.ndarray:
    words = np.zeros(-(-len(flags) // 64), np.uint64)
    packed = np.packbits(flags, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def check(hits: Hits, rows: Rows, queries: np.ndarray, k: int, flags: np.ndarray | None = None) -> None:
    keys = true_keys(rows, queries)
    allowed = np.ones(len(rows.vectors), bool) if flags is None else flags
    scale = float(np.abs(keys).max(initial=1.0))
    for q in range(len(queries)):
        length = int(hits.lengths[q])
        assert length == min(k, int(allowed.sum()))
        found, got = hits.rows[q, :length], hits.keys[q, :length]
        assert len(set(found.tolist())) == length
        assert allowed[found].all()
        best = -np.sort(-keys[q][allowed])[:length]
        np.testing.assert_allclose(got, best, rtol=2e-5, atol=2e-6 * scale)
        np.testing.assert_allclose(got, keys[q, found], rtol=2e-5, atol=2e-6 * scale)
        order = list(zip(-got, found, strict=True))
        assert order == sorted(order)
        assert (hits.rows[q, length:] == -1).all()


def same(one: Hits, other: Hits, q: int, other_q: int) -> None:
    np.testing.assert_array_equal(one.keys[q], other.keys[other_q])
    np.testing.assert_array_equal(one.rows[q], other.rows[other_q])
    assert (one.lengths[q], one.tied[q]) == (other.lengths[other_q], other.tied[other_q])


@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 63, 64, 65, 100, 384])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_the_best_rows_are_found_and_a_batch_is_its_singles(rng: np.random.Generator, d: int, dtype: Any, metric: str) -> None:
    rows = rows_of(rng, 413, d, dtype, metric)
    searcher = FlatSearcher(rows)
    queries = rng.standard_normal((130, d)).astype(np.float32)
    queries[queries == 0] = 1
    for m in (1, 2, 3, 64, 65, 130):
        hits = searcher.search(queries[:m], 7)
        check(hits, rows, queries[:m], 7)
        for q in {0, m // 2, m - 1}:
            same(hits, searcher.search(queries[q : q + 1], 7), q, 0)


@pytest.mark.parametrize("metric", METRICS)
def test_the_widest_dimension(rng: np.random.Generator, metric: str) -> None:
    rows = rows_of(rng, 40, 65_535, np.float32, metric)
    queries = rng.standard_normal((5, 65_535)).astype(np.float32)
    hits = FlatSearcher(rows).search(queries, 6)
    check(hits, rows, queries, 6)
    same(hits, FlatSearcher(rows).search(queries[3:4], 6), 3, 0)


@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bitmaps_at_every_selectivity(rng: np.random.Generator, m: int, dtype: Any) -> None:
    n = 1000
    queries = rng.standard_normal((m, 20)).astype(np.float32)
    for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.99, 1.0):
        for present_share in (None, 0.7):
            flags = rng.random(n) < share
            present = None if present_share is None else rng.random(n) < present_share
            rows = rows_of(rng, n, 20, dtype, "cosine", present=None if present is None else bitmap(present))
            effective = flags if present is None else flags & present
            hits = FlatSearcher(rows).search(queries, 10, allowed=bitmap(flags))
            check(hits, rows, queries, 10, effective)
            assert hits.scored == m * effective.sum()
            if present is not None:
                check(FlatSearcher(rows).search(queries, 10), rows, queries, 10, present)


def test_ties_are_by_row_and_told(rng: np.random.Generator) -> None:
    rows = rows_of(rng, 200, 9, np.float32, "l2")
    rows.vectors[:] = np.repeat(rows.vectors[:20], 10, axis=0)
    rows.norms[:] = np.repeat(rows.norms[:20], 10)
    searcher = FlatSearcher(rows)
    for queries in (rows.vectors[55:56], np.repeat(rows.vectors[55:56], 4, axis=0)):
        hits = searcher.search(queries, 4)
        assert hits.rows[0].tolist() == [50, 51, 52, 53]
        assert hits.tied.all()
        assert not searcher.search(queries, 10).tied.any()
        assert searcher.search(queries, 13).tied.all()
    assert searcher.rows_at(rows.vectors[55], float(hits.keys[0, 3])).tolist() == list(range(50, 60))
    odd = bitmap(np.arange(200) % 2 == 1)
    assert searcher.rows_at(rows.vectors[55], float(hits.keys[0, 3]), odd).tolist() == [51, 53, 55, 57, 59]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("m", [1, 6])
def test_a_split_of_the_rows_gives_the_same_keys(rng: np.random.Generator, metric: str, m: int) -> None:
    rows = rows_of(rng, 997, 50, np.float32, metric)
    queries = rng.standard_normal((m, 50)).astype(np.float32)
    whole = FlatSearcher(rows).search(queries, 997)
    keys = np.full((m, 997), np.nan, np.float32)
    for first, last in ((0, 1), (1, 64), (64, 500), (500, 997)):
        part = Rows(rows.vectors[first:last], rows.norms[first:last], rows.metric)
        hits = FlatSearcher(part).search(queries, 997)
        for q in range(m):
            keys[q, hits.rows[q] + first] = hits.keys[q]
    for q in range(m):
        np.testing.assert_array_equal(keys[q, whole.rows[q]], whole.keys[q])


def test_edges(rng: np.random.Generator) -> None:
    queries = np.ones((3, 4), np.float32)
    empty = FlatSearcher(Rows(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), "ip"))
    assert empty.search(queries, 5).lengths.tolist() == [0, 0, 0]
    one = FlatSearcher(Rows(np.ones((1, 4), np.float32), np.full(1, 2, np.float32), "ip"))
    assert one.search(queries, 5).rows.tolist() == [[0]] * 3
    assert one.search(queries[:0], 5).rows.shape == (0, 1)
    rows = rows_of(rng, 100, 4, np.float32, "cosine")
    floor = np.array([0.5, 2.0, -2.0], np.float32)
    all_hits, hits = FlatSearcher(rows).search(queries, 100), FlatSearcher(rows).search(queries, 100, floor=floor)
    assert hits.lengths.tolist() == [(all_hits.keys[0] >= 0.5).sum(), 0, 100]
    np.testing.assert_allclose(scores_of(np.array([-4.0, 0.0], np.float32), "l2"), [2.0, 0.0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e17, 1e30])
def test_extreme_lengths_are_the_same_alone_and_in_a_batch(rng: np.random.Generator, metric: str, size: float) -> None:
    rows = rows_of(rng, 300, 30, np.float32, metric)
    rows = Rows((rows.vectors * size).astype(np.float32), (rows.norms * size).astype(np.float32), rows.metric)
    queries = (rng.standard_normal((9, 30)) * size).astype(np.float32)
    batch = FlatSearcher(rows).search(queries, 8)
    assert not np.isnan(batch.keys).any()
    for q in range(9):
        same(batch, FlatSearcher(rows).search(queries[q : q + 1], 8), q, 0)
    if metric == "cosine":
        check(batch, rows, queries, 8)


def test_read_only_and_shifted_views_give_the_same_bits(rng: np.random.Generator) -> None:
    rows = rows_of(rng, 200, 33, np.float16, "cosine")
    frozen = rows.vectors.copy()
    frozen.flags.writeable = False
    room = np.zeros(200 * 33 + 1, np.float16)
    shifted = room[1:].reshape(200, 33)
    shifted[:] = rows.vectors
    queries = rng.standard_normal((4, 33)).astype(np.float32)
    expected = FlatSearcher(rows).search(queries, 9)
    for vectors in (frozen, shifted):
        hits = FlatSearcher(Rows(vectors, rows.norms, "cosine")).search(queries, 9)
        for q in range(4):
            same(hits, expected, q, q)


def test_threads_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    rows = rows_of(rng, 3000, 64, np.float32, "ip")
    searcher = FlatSearcher(rows)
    queries = rng.standard_normal((40, 64)).astype(np.float32)
    expected = searcher.search(queries, 10)
    wrong: list[int] = []

    def work(first: int) -> None:
        for _ in range(10):
            hits = searcher.search(queries[first : first + 20], 10)
            if not (hits.rows == expected.rows[first : first + 20]).all():
                wrong.append(first)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 20, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_control_stops_a_search(rng: np.random.Generator) -> None:
    searcher = FlatSearcher(rows_of(rng, 100, 8, np.float32, "ip"))
    queries = np.ones((1, 8), np.float32)
    assert searcher.search(queries, 3, control=Control()).lengths[0] == 3
    cancelled = Control()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        searcher.search(queries, 3, control=cancelled)
    with pytest.raises(DeadlineReached):
        searcher.search(queries, 3, control=Control(deadline=0.0))


SEARCH = """
import numpy as np
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
print(FlatSearcher(Rows(np.eye(3, dtype=np.float32), np.ones(3, np.float32), "ip")).search(np.eye(3, dtype=np.float32)[1:2], 1).rows)
"""


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SEARCH], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "VECDB_CACHE_DIR": str(blocked)},
    )  # fmt: skip
    assert done.stdout.strip() == "[[1]]"


def test_the_users_numba_settings_are_left_alone() -> None:
    import numba

    import vecdb_index.flat.search  # noqa: F401

    assert "vecdb" not in str(numba.config.CACHE_DIR)


def test_the_contract_loads_no_numba() -> None:
    code = "import sys, vecdb_index.contract; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bounds_are_kept(tmp_path: Path) -> None:
    """Once with every index checked: single, batch, bitmap, tails."""
    code = """
import numpy as np
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
rng = np.random.default_rng(0)
for n in (1, 63, 65, 130):
    s = FlatSearcher(Rows(rng.standard_normal((n, 9)).astype(np.float32), np.ones(n, np.float32), "cosine"))
    words = np.full(-(-n // 64), ~np.uint64(0), np.uint64)
    if n % 64: words[-1] = np.uint64((1 << n % 64) - 1)
    for m in (1, 3, 70):
        q = rng.standard_normal((m, 9)).astype(np.float32)
        assert (s.search(q, 5).rows == s.search(q, 5, allowed=words).rows).all()
        s.rows_at(q[0], 0.5)
"""
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "VECDB_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
