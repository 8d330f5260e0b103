"""Exact search: against float64 brute force, against itself, and at the edges of numbers, shapes and bitmaps."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import numpy as np
import pytest
from vecdb_index.contract import Bitmap, Cancelled, Control, DeadlineReached, Hits, Rows, scores_of
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.warmup import warmup

DTYPES = (np.float32, np.float16, np.int8)
METRICS = ("cosine", "ip", "l2")
BATCH = 70  # more than a tile of queries, and not a multiple of one


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warmup()


def stored(vectors: Any, dtype: Any = np.float32, metric: Any = "ip", present: Bitmap | None = None) -> Rows:
    vectors = np.ascontiguousarray(np.asarray(vectors).astype(dtype))
    with np.errstate(over="ignore"):
        norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(1)).astype(np.float32)
    return Rows(vectors, norms, metric, present)


def drawn(rng: np.random.Generator, n: int, d: int, dtype: Any = np.float32) -> Any:
    return rng.integers(1, 100, (n, d)) * rng.choice((-1, 1), (n, d)) if dtype == np.int8 else rng.standard_normal((n, d))


def bitmap(flags: Any) -> Bitmap:
    padded = np.zeros(-(-len(flags) // 64) * 64, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)


def true_keys(rows: Rows, queries: Any) -> Any:
    """(m, n) keys in float64."""
    q, x = np.asarray(queries, np.float64), rows.vectors.astype(np.float64)
    if rows.metric == "l2":
        return -np.stack([((x - one) ** 2).sum(1) for one in q]) if len(q) else np.zeros((0, len(x)))
    if rows.metric == "cosine":
        q = q / np.sqrt((q**2).sum(1))[:, None]
        x = x / np.sqrt((x**2).sum(1))[:, None]
    return q @ x.T


def check(hits: Hits, rows: Rows, queries: Any, k: int, allowed: Any = None) -> None:
    """The hits are in order, allowed, as many as can be, and no better row was left out (up to float32 rounding)."""
    keys = true_keys(rows, queries)
    permitted = np.ones(len(rows.vectors), np.bool_) if allowed is None else np.asarray(allowed)
    d = rows.vectors.shape[1]
    np.testing.assert_array_equal(hits.lengths, min(k, permitted.sum()))
    for q in range(len(keys)):
        length = int(hits.lengths[q])
        if not length:
            continue
        found, theirs = hits.rows[q, :length], hits.keys[q, :length]
        assert len(set(found.tolist())) == length
        assert permitted[found].all()
        order = list(zip((-theirs).tolist(), found.tolist(), strict=True))
        assert order == sorted(order)
        size = np.abs(keys[q]).max() if rows.metric == "l2" else rows.norms.max() * np.linalg.norm(queries[q])
        slack = (d + 64) * 2.0**-23 * max(1.0 if rows.metric == "cosine" else size, 1e-30)
        np.testing.assert_allclose(theirs, keys[q, found], rtol=0, atol=slack)
        best = np.sort(keys[q, permitted])[::-1][:length]
        np.testing.assert_allclose(theirs, best, rtol=0, atol=slack)
        assert (hits.rows[q, length:] == -1).all()
        assert np.isneginf(hits.keys[q, length:]).all()


def same(a: Hits, b: Hits) -> None:
    np.testing.assert_array_equal(a.keys.view(np.uint32), b.keys.view(np.uint32))
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    np.testing.assert_array_equal(a.tied, b.tied)


def singly(searcher: FlatSearcher, queries: Any, k: int, **more: Any) -> Hits:
    each = [searcher.search(queries[q : q + 1], k, **more) for q in range(len(queries))]
    return Hits(
        *(np.concatenate([getattr(h, name) for h in each]) for name in ("keys", "rows", "lengths", "tied")),
        sum(h.scored for h in each),
        sum(h.bytes for h in each),
    )


@pytest.mark.parametrize(("dtype", "metric"), list(itertools.product(DTYPES, METRICS)))
@pytest.mark.parametrize(("n", "d"), [(700, 1), (300, 15), (300, 16), (501, 17), (900, 63), (400, 65), (1500, 384), (7, 1000)])
def test_finds_the_best_alone_and_in_a_batch_with_the_same_bits(rng: Any, dtype: Any, metric: Any, n: int, d: int) -> None:
    rows = stored(drawn(rng, n, d, dtype), dtype, metric)
    queries = drawn(rng, BATCH, d).astype(np.float32)
    searcher = FlatSearcher(rows)
    batch = searcher.search(queries, 10)
    check(batch, rows, queries, 10)
    same(batch, singly(searcher, queries, 10))
    same(searcher.search(queries[:3], 10), singly(searcher, queries[:3], 10))


@pytest.mark.parametrize(("dtype", "metric"), list(itertools.product(DTYPES, METRICS)))
def test_the_widest_vectors(rng: Any, dtype: Any, metric: Any) -> None:
    rows = stored(drawn(rng, 20, 65_535, dtype), dtype, metric)
    queries = drawn(rng, 9, 65_535).astype(np.float32)
    batch = FlatSearcher(rows).search(queries, 4)
    check(batch, rows, queries, 4)
    same(batch, singly(FlatSearcher(rows), queries, 4))


def test_the_widest_bytes_do_not_overflow_the_coarse_sums() -> None:
    extreme = np.full((20, 65_535), 127, np.int8)
    extreme[::2] = -128
    rows = stored(extreme, np.int8)
    queries = np.repeat(np.array([[1.0], [-1.0], [1e-3], [2.0], [-2.0], [5.0], [6.0], [7.0]], np.float32), 65_535, axis=1)
    batch = FlatSearcher(rows).search(queries, 12)
    same(batch, singly(FlatSearcher(rows), queries, 12))
    assert batch.rows[0, :10].tolist() == list(range(1, 20, 2))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 15, 16, 17, 63, 64, 65, 129])
def test_any_number_of_queries(rng: Any, count: int) -> None:
    rows = stored(drawn(rng, 333, 20))
    queries = drawn(rng, count, 20).astype(np.float32)
    batch = FlatSearcher(rows).search(queries, 5)
    check(batch, rows, queries, 5)
    same(batch, singly(FlatSearcher(rows), queries, 5))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 70])
def test_duplicates_come_in_row_order_and_ties_are_told(rng: Any, metric: Any, count: int) -> None:
    distinct = drawn(rng, 50, 24)
    rows = stored(np.tile(distinct, (12, 1)), metric=metric)
    queries = drawn(rng, count, 24).astype(np.float32)
    searcher = FlatSearcher(rows)
    hits = searcher.search(queries, 10)
    check(hits, rows, queries, 10)
    same(hits, singly(searcher, queries, 10))
    assert hits.tied.all()
    for q in range(count):
        found = hits.rows[q]
        assert (np.diff(found) == 50).all()
        everywhere = searcher.rows_at(queries[q], float(hits.keys[q, -1]), None)
        np.testing.assert_array_equal(everywhere, np.arange(found[0], 600, 50))
    assert not searcher.search(queries, 12).tied.any()
    assert not searcher.search(queries, 600).tied.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.003, 0.1, 0.9, 1.0])
def test_only_allowed_and_present_rows_are_found(rng: Any, dtype: Any, share: float) -> None:
    flags, there = rng.random(1003) < share, rng.random(1003) < 0.8
    vectors = drawn(rng, 1003, 33, dtype)
    queries = drawn(rng, BATCH, 33).astype(np.float32)
    for present in (None, there):
        rows = stored(vectors, dtype, "cosine", None if present is None else bitmap(present))
        both = flags if present is None else flags & present
        hits = FlatSearcher(rows).search(queries, 10, allowed=bitmap(flags))
        check(hits, rows, queries, 10, both)
        assert hits.scored == both.sum() * BATCH
        same(hits, singly(FlatSearcher(rows), queries, 10, allowed=bitmap(flags)))
    hits = FlatSearcher(rows).search(queries, 10)
    check(hits, rows, queries, 10, there)


def test_bits_past_the_last_row_mean_nothing(rng: Any) -> None:
    rows = stored(drawn(rng, 65, 8))
    everything = np.full(2, ~np.uint64(0))
    queries = drawn(rng, BATCH, 8).astype(np.float32)
    for m in (1, BATCH):
        hits = FlatSearcher(rows).search(queries[:m], 100, allowed=everything)
        check(hits, rows, queries[:m], 100)
        assert FlatSearcher(rows).rows_at(queries[0], float(hits.keys[0, 0]), everything).tolist() == [hits.rows[0, 0]]


@pytest.mark.parametrize(("n", "k"), [(0, 5), (1, 5), (5, 0), (3, 100), (100, 100)])
@pytest.mark.parametrize("m", [0, 1, 70])
def test_few_rows_few_queries_and_large_k(rng: Any, n: int, k: int, m: int) -> None:
    rows = stored(drawn(rng, n, 6))
    queries = drawn(rng, m, 6).astype(np.float32)
    hits = FlatSearcher(rows).search(queries, k)
    assert hits.keys.shape == hits.rows.shape == (m, k)
    assert not hits.tied.any()
    check(hits, rows, queries, k)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-38, 1e-25, 1e-15, 1e12, 1e19, 3e37])
@pytest.mark.parametrize("mixed", [False, True])
def test_huge_and_tiny_values_give_the_same_alone_and_in_a_batch(rng: Any, metric: Any, scale: float, mixed: bool) -> None:
    vectors = drawn(rng, 500, 40).astype(np.float32)
    vectors[:: 3 if mixed else 1] *= np.float32(scale)
    vectors[5] = 0
    vectors[6:9, 3] = np.inf, -np.inf, np.nan
    rows = stored(vectors, np.float32, metric)
    queries = drawn(rng, BATCH, 40).astype(np.float32)
    queries[1] *= np.float32(scale)
    queries[2] = 0
    queries[3, :2] = 3e38
    same(FlatSearcher(rows).search(queries, 10), singly(FlatSearcher(rows), queries, 10))


@pytest.mark.parametrize("metric", METRICS)
def test_near_copies_and_outlying_dimensions_are_told_apart(rng: Any, metric: Any) -> None:
    """What a byte per element cannot tell apart, and what one huge element drowns."""
    vectors = 1 + 1e-4 * drawn(rng, 4000, 48)
    vectors[2000:, 7] = 1000
    rows = stored(vectors, np.float32, metric)
    queries = (1 + 1e-4 * drawn(rng, BATCH, 48)).astype(np.float32)
    batch = FlatSearcher(rows).search(queries, 10)
    check(batch, rows, queries, 10)
    same(batch, singly(FlatSearcher(rows), queries, 10))


def test_not_a_number_ranks_last(rng: Any) -> None:
    vectors = drawn(rng, 5, 4).astype(np.float32)
    vectors[2] = np.nan
    for m in (1, 9):
        hits = FlatSearcher(stored(vectors)).search(np.ones((m, 4), np.float32), 5)
        assert (hits.rows[:, -1] == 2).all()
        assert np.isneginf(hits.keys[:, -1]).all()


@pytest.mark.parametrize(("dtype", "metric"), list(itertools.product(DTYPES, METRICS)))
def test_ranges_searched_apart_give_the_same_bits(rng: Any, dtype: Any, metric: Any) -> None:
    rows = stored(drawn(rng, 800, 50, dtype), dtype, metric)
    queries = drawn(rng, BATCH, 50).astype(np.float32)
    whole = FlatSearcher(rows).search(queries, 800)
    keys = np.full((BATCH, 800), np.nan, np.float32)
    for start, stop in itertools.pairwise((0, 1, 130, 517, 800)):
        # A slice starts wherever its row does, and cannot be written: as a mapped file.
        part = Rows(rows.vectors[start:stop], rows.norms[start:stop], metric)
        part.vectors.flags.writeable = part.norms.flags.writeable = False
        hits = FlatSearcher(part).search(queries, 800)
        for q in range(BATCH):
            keys[q, start + hits.rows[q, : hits.lengths[q]]] = hits.keys[q, : hits.lengths[q]]
    np.testing.assert_array_equal(np.take_along_axis(keys, whole.rows, 1), whole.keys)


def test_vectors_at_any_address(rng: Any) -> None:
    raw = np.zeros(100 * 21 * 4 + 4, np.uint8)
    vectors = raw[4:].view(np.float32).reshape(100, 21)
    vectors[:] = drawn(rng, 100, 21)
    rows, queries = stored(vectors), drawn(rng, BATCH, 21).astype(np.float32)
    shifted = Rows(vectors, rows.norms, "ip")
    same(FlatSearcher(shifted).search(queries, 7), FlatSearcher(rows).search(queries, 7))


@pytest.mark.parametrize("m", [1, 70])
def test_a_floor_takes_away_only_what_is_below_it(rng: Any, m: int) -> None:
    rows, queries = stored(drawn(rng, 400, 12)), drawn(rng, m, 12).astype(np.float32)
    free = FlatSearcher(rows).search(queries, 20)
    floor = free.keys[:, 7].copy()
    cut = FlatSearcher(rows).search(queries, 20, floor=floor)
    assert (cut.lengths == 8).all()
    np.testing.assert_array_equal(cut.rows[:, :8], free.rows[:, :8])
    np.testing.assert_array_equal(cut.keys[:, :8], free.keys[:, :8])


def test_two_threads_get_what_one_gets(rng: Any) -> None:
    rows, queries = stored(drawn(rng, 3000, 64)), drawn(rng, 80, 64).astype(np.float32)
    searcher = FlatSearcher(rows)
    expected, got = searcher.search(queries, 10), {}

    def work(name: int) -> None:
        got[name] = [searcher.search(queries, 10) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hits in itertools.chain(*got.values()):
        same(hits, expected)


@pytest.mark.parametrize("m", [1, 70])
def test_a_search_can_be_stopped(rng: Any, m: int) -> None:
    searcher, queries = FlatSearcher(stored(drawn(rng, 200, 8))), drawn(rng, m, 8).astype(np.float32)
    same(searcher.search(queries, 5, control=Control()), searcher.search(queries, 5))
    with pytest.raises(DeadlineReached):
        searcher.search(queries, 5, control=Control(deadline=0.0))
    cancelled = Control()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        searcher.search(queries, 5, control=cancelled)


def test_blocks_between_polls_give_the_same(rng: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vecdb_index.flat.search._POLL_BYTES", 100 * 8 * 4)
    searcher = FlatSearcher(stored(drawn(rng, 1000, 8)))
    queries, flags = drawn(rng, 70, 8).astype(np.float32), bitmap(rng.random(1000) < 0.3)
    for m in (1, 70):
        for allowed in (None, flags):
            polled = searcher.search(queries[:m], 5, allowed=allowed, control=Control())
            same(polled, searcher.search(queries[:m], 5, allowed=allowed))


def test_scores_are_the_metrics_own_values(rng: Any) -> None:
    rows, queries = stored(drawn(rng, 50, 9), metric="l2"), drawn(rng, 1, 9).astype(np.float32)
    hits = FlatSearcher(rows).search(queries, 50)
    distances = np.linalg.norm(rows.vectors[hits.rows[0]] - queries[0], axis=1)
    np.testing.assert_allclose(scores_of(hits.keys, "l2")[0], distances, rtol=1e-5)
    assert scores_of(hits.keys, "ip") is hits.keys
