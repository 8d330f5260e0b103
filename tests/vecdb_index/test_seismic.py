"""Lists of sparse rows against plain products in float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index.contract import Budget, Cancelled, Control, Damaged, NeedsMemory, SparseRows, Trial
from vecdb_index.flat.sparse import SparseSearcher
from vecdb_index.seismic import search
from vecdb_index.seismic.backend import BACKEND
from vecdb_index.seismic.layout import HEAVIEST, SLOTS
from vecdb_index.seismic.params import Seismic
from vecdb_index.seismic.search import SeismicSearcher, Settings

ALL = Settings(cut=10_000, factor=0.0, head=0.0)  # every list, every block, every row to its end
UNPRUNED = Seismic(postings=65_535, max_fraction=1e9)


def rows_of(rows: Sequence[dict[int, float]], present: Any = None) -> SparseRows:
    offsets = np.cumsum([0, *(len(row) for row in rows)]).astype(np.uint64)
    indices = np.array([each for row in rows for each in sorted(row)], np.uint32)
    weights = np.array([row[each] for row in rows for each in sorted(row)], np.float32)
    return SparseRows(offsets, indices, weights, present)


def bitmap(flags: Any) -> Any:
    padded = np.zeros(-(-len(flags) // 64) * 64, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)


def made(rows: SparseRows, params: Seismic | None = None, **budget: Any) -> SeismicSearcher:
    params = params or Seismic()
    return BACKEND.open(BACKEND.build(rows, {}, params, Budget(**budget), lambda share: None), {}, rows, params)


def products(rows: SparseRows, queries: SparseRows) -> tuple[Any, Any]:
    """(m, n) products in float64, and how many components each pair has in common."""
    terms = {int(each): place for place, each in enumerate(np.union1d(rows.indices, queries.indices))}
    a, b = (np.zeros((len(each), len(terms) + 1)) for each in (queries, rows))
    for dense, sparse in ((a, queries), (b, rows)):
        for row in range(len(sparse)):
            for at in range(int(sparse.offsets[row]), int(sparse.offsets[row + 1])):
                dense[row, terms[int(sparse.indices[at])]] = sparse.weights[at]
    return a @ b.T, (a != 0).astype(np.int64) @ (b != 0).T


def learned(rng: np.random.Generator, n: int, vocabulary: int = 600, mean: int = 60, topics: int = 12) -> SparseRows:
    """Rows that are like those of an encoder: topics, few heavy components and many light ones."""
    own = rng.integers(0, vocabulary, (topics, 80))
    rows = []
    for _ in range(n):
        size = int(rng.integers(mean // 3, mean * 5 // 3))
        terms = np.unique(
            np.concatenate([rng.choice(own[rng.integers(topics)], size * 2 // 3), rng.integers(0, vocabulary, size // 3)])
        )
        rng.shuffle(terms)
        weights = 2.5 * np.exp(-3 * np.arange(len(terms)) / len(terms)) * rng.uniform(0.8, 1.2, len(terms))
        rows.append(dict(zip(terms.tolist(), weights.tolist(), strict=True)))
    return rows_of(rows)


def asked_of(rng: np.random.Generator, rows: SparseRows, m: int) -> SparseRows:
    """Queries that are parts of rows, with noise."""
    queries = []
    for row in rng.integers(0, len(rows), m):
        part = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
        size = min(20, part.stop - part.start)
        chosen = rng.choice(np.arange(part.start, part.stop), size, replace=False)
        queries.append({int(rows.indices[i]): float(rows.weights[i] * rng.uniform(0.5, 1.5)) for i in chosen})
    return rows_of(queries)


def recall(found: Any, scores: Any, k: int) -> float:
    best = np.sort(scores, axis=1)[:, -k]
    return float(
        np.mean([np.sum(scores[q, found[q][found[q] >= 0]] >= best[q] - 1e-6 * abs(best[q])) / k for q in range(len(scores))])
    )


def check(
    searcher: SeismicSearcher, queries: SparseRows, k: int, hits: Any, allowed: Any = None, *, all_of: bool = True
) -> None:
    """Hits are in order, once each, allowed, with exact keys; `all_of`: min(k, allowed rows that match) of them."""
    scores, common = products(searcher.rows, queries)
    for q in range(len(queries)):
        size = int(hits.lengths[q])
        keys, rows = hits.keys[q, :size], hits.rows[q, :size]
        assert (hits.rows[q, size:] == -1).all() and np.isneginf(hits.keys[q, size:]).all()
        assert len(set(rows.tolist())) == size and (common[q, rows] > 0).all()
        assert sorted(zip((-keys).tolist(), rows.tolist(), strict=True)) == list(
            zip((-keys).tolist(), rows.tolist(), strict=True)
        )
        np.testing.assert_allclose(keys, scores[q, rows], rtol=1e-5, atol=1e-30)
        there = common[q] > 0
        if allowed is not None:
            there &= allowed
        assert there[rows].all()
        if all_of:
            assert size == min(k, int(there.sum()))


@pytest.fixture(scope="module")
def some() -> tuple[SparseRows, SparseRows, SeismicSearcher]:
    rng = np.random.default_rng(3)
    rows = learned(rng, 3000)
    return rows, asked_of(rng, rows, 60), made(rows)


LISTS = Seismic(exact="lists")


def same(hits: Any, exact: Any) -> None:
    assert (hits.rows == exact.rows).all() and hits.keys.tobytes() == exact.keys.tobytes()
    assert (hits.lengths == exact.lengths).all()


def turned(rng: np.random.Generator, rows: SparseRows) -> SparseRows:
    """With the first weight of every row, and some others, negative."""
    signs = np.where(rng.random(len(rows.weights)) < 0.3, -1, 1).astype(np.float32)
    signs[rows.offsets[:-1][np.diff(rows.offsets) > 0].astype(np.int64)] = -1
    return SparseRows(rows.offsets, rows.indices, rows.weights * signs)


@pytest.mark.parametrize("k", [1, 10, 400, 5000])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_whole_lists_find_what_a_scan_finds(some: Any, k: int, share: float) -> None:
    rows, queries, _ = some
    rng = np.random.default_rng(20)
    searcher, scan = made(rows, LISTS), SparseSearcher(rows)
    allowed = None if share == 1 else bitmap(rng.random(len(rows)) < share)
    for asked in (queries, turned(rng, queries), rows_of([{}, {2**31: 1.0}, {int(rows.indices[5]): 1.0}])):
        same(searcher.search(asked, k, 1.0, allowed=allowed), scan.search(asked, k, allowed=allowed))
    first = scan.search(queries, 10, allowed=allowed)
    floor = np.ascontiguousarray(first.keys[:, 3])
    same(searcher.search(queries, k, 1.0, allowed=allowed, floor=floor), scan.search(queries, k, allowed=allowed, floor=floor))


def test_whole_lists_of_several_windows_and_shared_slots() -> None:
    rng = np.random.default_rng(21)
    n = 140_000
    indices = np.sort(rng.integers(0, 2**17, (n, 6)).astype(np.uint32) * np.uint32(9999), axis=1) + np.arange(
        6, dtype=np.uint32
    )
    rows = SparseRows(np.arange(n + 1, dtype=np.uint64) * 6, indices.ravel(), rng.uniform(0.1, 3, 6 * n).astype(np.float32))
    queries = rows[70_000:70_020]
    searcher, scan = made(rows, LISTS, threads=2), SparseSearcher(rows)
    assert len(searcher.index.slots) > SLOTS
    for k in (1, 5):
        same(searcher.search(queries, k, 1.0), scan.search(queries, k))


def test_queries_of_very_many_components(some: Any) -> None:
    rows, _, _ = some
    rng = np.random.default_rng(22)
    wide = SparseRows(rows.offsets, rows.indices * np.uint32(9_999), rows.weights)
    spread = learned(rng, 3000, vocabulary=90_000)
    for mine in (wide, spread):
        searcher, scan = made(mine), SparseSearcher(mine)
        terms = np.union1d(mine.indices, rng.integers(0, 2**32, 40_000, np.uint64).astype(np.uint32))
        long = SparseRows(np.array([0, len(terms)], np.uint64), terms, rng.uniform(0.1, 1, len(terms)).astype(np.float32))
        assert len(terms) > 33_025
        for effort in (0.5, 1.0):
            same(searcher.search(long, 20, effort), scan.search(long, 20))


def test_without_pruning_it_is_exact() -> None:
    rng = np.random.default_rng(1)
    rows = learned(rng, 700)
    queries, searcher = asked_of(rng, rows, 50), made(rows, UNPRUNED)
    hits, exact = searcher.search_with(ALL, queries, 10), searcher.exact.search(queries, 10)
    assert (hits.rows == exact.rows).all() and hits.keys.tobytes() == exact.keys.tobytes()


def test_rows_most_like_each_are_kept_and_help(some: Any) -> None:
    rows, queries, plain = some
    searcher = made(rows, Seismic(knn=6))
    near, (scores, common) = np.asarray(searcher.index.near), products(rows, rows)
    own = np.arange(len(rows))[:, None]
    assert near.shape == (len(rows), 6)
    np.fill_diagonal(scores, -np.inf)
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :6]
    assert np.mean([len(set(a) & set(b)) / 6 for a, b in zip(near.tolist(), nearest.tolist(), strict=True)]) > 0.8
    with_common = (near == own) | (common[own, near] > 0)
    assert with_common.all()
    for row, mine in enumerate(near.tolist()):
        others = [each for each in mine if each != row]
        assert len(set(others)) == len(others)  # each once; the row itself stands where there are no more
    exact, _ = products(rows, queries)
    few = Settings(1, 1.1, 0.7)
    before, after = (recall(plain.search_with(few, queries, 10).rows, exact, 10),
                     recall(searcher.search_with(few._replace(near=6), queries, 10).rows, exact, 10))  # fmt: skip
    assert after > before + 0.05
    flags = np.arange(len(rows)) % 3 > 0
    for effort in (0.0, 0.3, 0.8):
        check(searcher, queries, 10, searcher.search(queries, 10, effort))
        check(searcher, queries, 10, searcher.search(queries, 10, effort, bitmap(flags)), flags)
    one, two = (BACKEND.build(rows, {}, Seismic(knn=6), Budget(threads=t), lambda share: None) for t in (1, 2))
    assert one["near"].tobytes() == two["near"].tobytes()


def test_neighbours_that_are_no_rows_are_damage(some: Any) -> None:
    rows, _, _ = some
    arrays = dict(BACKEND.build(rows, {}, Seismic(knn=2), Budget(), lambda share: None))
    for near in (arrays["near"] + np.uint32(len(rows)), arrays["near"][1:], arrays["near"].astype(np.int32)):
        with pytest.raises(Damaged):
            BACKEND.open({**arrays, "near": np.ascontiguousarray(near)}, {}, rows, Seismic(knn=2))


def test_effort_one_is_exact(some: Any) -> None:
    _, queries, searcher = some
    hits, exact = searcher.search(queries, 10, 1.0), searcher.exact.search(queries, 10)
    assert (hits.rows == exact.rows).all() and hits.keys.tobytes() == exact.keys.tobytes()
    check(searcher, queries, 10, hits)


def test_an_index_without_whole_lists_answers_the_same(some: Any) -> None:
    rows, queries, searcher = some
    scanned, rare = made(rows, Seismic(exact="scan")), bitmap(np.arange(len(rows)) % 40 == 0)
    assert isinstance(scanned.exact, SparseSearcher)
    for effort in (0.4, 1.0):
        same(scanned.search(queries, 10, effort), searcher.search(queries, 10, effort))
    check(scanned, queries, 10, scanned.search(queries, 10, 0.4, rare), np.arange(len(rows)) % 40 == 0)


def test_keys_are_those_of_the_exact_search(some: Any) -> None:
    _, queries, searcher = some
    everything = searcher.exact.search(queries, len(searcher.rows))
    hits = searcher.search(queries, 10, 0.5)
    check(searcher, queries, 10, hits)
    for q in range(len(queries)):
        known = dict(zip(everything.rows[q].tolist(), everything.keys[q].tolist(), strict=True))
        assert [known[row] for row in hits.rows[q].tolist()] == hits.keys[q].tolist()


def test_recall_grows_with_effort(some: Any) -> None:
    rows, queries, searcher = some
    scores, _ = products(rows, queries)
    found = [searcher.search(queries, 10, effort) for effort in (0.0, 0.25, 0.5, 0.75, 1.0)]
    recalls = [recall(each.rows, scores, 10) for each in found]
    assert all(b >= a - 0.01 for a, b in zip(recalls, recalls[1:], strict=False)) and recalls[-1] == 1.0
    assert recalls[2] > 0.9 and recalls[0] > 0.4, recalls
    scored = [each.scored for each in found]
    assert scored == sorted(scored)


def test_a_scaled_query_finds_the_same_rows(some: Any) -> None:
    _, queries, searcher = some
    first = searcher.search(queries, 10, 0.4)
    for factor in (2.0**-40, 0.25, 2.0**30):
        scaled = SparseRows(queries.offsets, queries.indices, (queries.weights * np.float32(factor)).astype(np.float32))
        assert (searcher.search(scaled, 10, 0.4).rows == first.rows).all()


def test_a_batch_is_its_queries_and_threads_do_not_matter(some: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    _, queries, searcher = some
    together = searcher.search(queries, 10, 0.3)
    ones = [SparseRows(queries.offsets[q : q + 2], queries.indices, queries.weights) for q in range(len(queries))]
    with ThreadPoolExecutor(4) as pool:
        for q, hits in enumerate(pool.map(lambda one: searcher.search(one, 10, 0.3), ones)):
            assert (hits.rows[0] == together.rows[q]).all() and hits.keys[0].tobytes() == together.keys[q].tobytes()


def test_the_bytes_do_not_depend_on_threads() -> None:
    rows = learned(np.random.default_rng(5), 6000)
    one, two = (BACKEND.build(rows, {}, Seismic(), Budget(threads=t, seed=7), lambda share: None) for t in (1, 2))
    assert list(one) == list(two)
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name
    other = BACKEND.build(rows, {}, Seismic(), Budget(seed=8), lambda share: None)
    assert other["posts"].tobytes() != one["posts"].tobytes()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("effort", [0.0, 0.5])
def test_filters_find_all_that_they_can(some: Any, share: float, effort: float) -> None:
    rows, queries, searcher = some
    flags = np.random.default_rng(int(share * 1000)).random(len(rows)) < share
    for k in (1, 10, 100):
        check(searcher, queries, k, searcher.search(queries, k, effort, allowed=bitmap(flags)), flags)


def test_filters_keep_their_recall(some: Any) -> None:
    rows, queries, searcher = some
    for share in (0.5, 0.1, 0.02):
        flags = np.random.default_rng(8).random(len(rows)) < share
        scores, _ = products(rows, queries)
        scores[:, ~flags] = -1
        assert recall(searcher.search(queries, 10, 0.5, allowed=bitmap(flags)).rows, scores, 10) > 0.9


def test_too_few_hits_are_sought_in_all_lists_first(some: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries, searcher = some
    monkeypatch.setattr(search, "_DEAR", 0.0)
    for share in (0.3, 0.05, 0.004):
        flags = np.random.default_rng(22).random(len(rows)) < share
        hits = searcher.search_with(Settings(1, 1.0, 0.9), queries, 20, allowed=bitmap(flags))
        check(searcher, queries, 20, hits, flags)


def test_more_hits_than_rows(some: Any) -> None:
    rows, queries, searcher = some
    few = SparseRows(queries.offsets[:4], queries.indices, queries.weights)
    check(searcher, few, len(rows) + 5, searcher.search(few, len(rows) + 5, 0.2))


def test_a_floor_leaves_out_what_is_below(some: Any) -> None:
    _, queries, searcher = some
    free = searcher.search(queries, 10, 0.6)
    floor = np.ascontiguousarray(free.keys[:, 4])
    hits = searcher.search(queries, 10, 0.6, floor=floor)
    assert (hits.keys[np.arange(10) < hits.lengths[:, None]] >= np.repeat(floor, hits.lengths)).all()
    kept = np.mean([len(set(a[:5]) & set(b)) / 5 for a, b in zip(free.rows.tolist(), hits.rows.tolist(), strict=True)])
    assert kept > 0.97


def test_unknown_terms_and_empty_queries_find_nothing(some: Any) -> None:
    _, _, searcher = some
    queries = rows_of([{}, {10**9: 1.0}, {2**32 - 1: 1.0, 70_000: 3.0}])
    for effort in (0.0, 0.5, 1.0):
        hits = searcher.search(queries, 5, effort)
        assert (hits.lengths == 0).all() and (hits.rows == -1).all()


def test_unknown_terms_beside_known_ones_change_nothing(some: Any) -> None:
    rows, _, searcher = some
    term = int(rows.indices[0])
    hits = searcher.search(rows_of([{term: 1.0}, {term: 1.0, 2**32 - 1: 0.5}]), 10, 0.5)
    assert (hits.rows[0] == hits.rows[1]).all() and hits.lengths[0] == 10


@pytest.mark.parametrize(
    "rows", [rows_of([]), rows_of([{}, {}, {}]), SparseRows(*(np.zeros(s, t) for s, t in ((1, "u8"), (0, "u4"), (0, "f4"))))]
)
def test_empty_segments(rows: SparseRows) -> None:
    hits = made(rows).search(rows_of([{1: 1.0}, {}]), 3, 0.5)
    assert (hits.lengths == 0).all() and hits.rows.shape == (2, 3)


def test_empty_and_absent_rows_are_never_found() -> None:
    rng = np.random.default_rng(4)
    full = learned(rng, 300)
    rows = [
        {}
        if i % 3 == 0
        else {int(full.indices[j]): float(full.weights[j]) for j in range(int(full.offsets[i]), int(full.offsets[i + 1]))}
        for i in range(300)
    ]
    flags = np.arange(300) % 5 != 1
    sparse = rows_of(rows, bitmap(flags))
    searcher = made(sparse)
    queries = asked_of(rng, full, 20)
    for effort in (0.0, 0.5, 1.0):
        check(searcher, queries, 20, searcher.search(queries, 20, effort), flags)


def test_a_trial_never_meets_its_rows() -> None:
    rows = learned(np.random.default_rng(6), 500)
    held, seen = np.arange(0, 500, 50), []

    def run(searcher: Any, others: Any) -> None:
        queries = SparseRows(rows.offsets, rows.indices, rows.weights)
        hits = searcher.search(queries, 10, 0.5)
        seen.append(np.isin(hits.rows, held).any())

    BACKEND.build(rows, {}, Seismic(), Budget(), lambda share: None, Trial(held, run))
    assert seen == [False]


def test_negative_weights_are_legal(some: Any) -> None:
    rng = np.random.default_rng(9)
    base, queries, searcher = some
    asked = turned(rng, queries)
    hits = searcher.search(asked, 10, 0.5)
    check(searcher, asked, 10, hits)
    same(hits, SparseSearcher(base).search(asked, 10))
    signed = turned(rng, learned(rng, 400))
    asked = asked_of(rng, signed, 20)
    for params in (Seismic(), LISTS):
        same(made(signed, params).search(asked, 10, 0.5), SparseSearcher(signed).search(asked, 10))


# -- what is unlike an encoder's ---------------------------------------------------------------------------------


def test_one_list_with_all_rows_and_equal_weights() -> None:
    rows = rows_of([{7: 1.0, 100 + i % 50: 1.0} for i in range(3000)])
    searcher = made(rows)
    queries = rows_of([{7: 1.0}, {7: 1.0, 103: 1.0}, {149: 2.0}])
    for effort in (0.0, 0.5, 1.0):
        hits = searcher.search(queries, 10, effort)
        check(searcher, queries, 10, hits)
    assert (searcher.search(queries, 10, 0.5).rows[1] % 50 == 3).all()


def test_very_many_equal_rows() -> None:
    one = {i * 3: 1.0 + i / 100 for i in range(30)}
    n = 100_000
    rows = SparseRows(
        np.arange(n + 1, dtype=np.uint64) * 30, np.tile(np.array(sorted(one), np.uint32), n),
        np.tile(np.array([one[each] for each in sorted(one)], np.float32), n),
    )  # fmt: skip
    searcher = made(rows, Seismic(postings=4))
    queries = rows_of([one, {0: 1.0}])
    hits = searcher.search(queries, 20, 0.5)
    assert (hits.lengths == 20).all() and (hits.keys[0] == hits.keys[0, 0]).all()


def test_a_row_with_very_many_components() -> None:
    rng = np.random.default_rng(2)
    rows = [{int(t): float(w) for t, w in zip(np.arange(60_000), rng.uniform(0.1, 2, 60_000), strict=True)}]
    rows += [{int(t): 1.0 for t in rng.choice(60_000, 30, replace=False)} for _ in range(500)]
    sparse = rows_of(rows)
    searcher = made(sparse)
    queries = rows_of([{int(t): 1.0 for t in rng.choice(60_000, 40, replace=False)} for _ in range(10)] + [rows[0]])
    for effort in (0.3, 0.9):
        hits = searcher.search(queries, 3, effort)
        assert (hits.rows[:, 0] == 0).all() or effort < 0.9


def test_more_components_than_slots() -> None:
    rng = np.random.default_rng(10)
    vocabulary = np.unique(rng.integers(0, 2**32, 2 * SLOTS, dtype=np.uint64))
    rows = []
    for _ in range(4000):
        terms = rng.choice(vocabulary, 30, replace=False)
        rows.append({int(t): float(w) for t, w in zip(terms, rng.uniform(0.1, 2, 30), strict=True)})
    rows.append({2**32 - 1: 1.0, 5: 1.0})
    sparse = rows_of(rows)
    searcher = made(sparse)
    queries = rows_of([rows[i] for i in range(0, 4000, 200)] + [{2**32 - 1: 1.0}])
    hits, exact = searcher.search(queries, 3, 0.6), searcher.exact.search(queries, 3)
    assert (hits.rows[:, 0] == exact.rows[:, 0]).all() and hits.rows[-1].tolist() == [4000, -1, -1]


def test_components_beyond_sixteen_bits() -> None:
    rng = np.random.default_rng(11)
    rows = learned(rng, 800)
    far = SparseRows(rows.offsets, rows.indices * np.uint32(7_000_000), rows.weights)
    queries = asked_of(rng, rows, 30)
    asked = SparseRows(queries.offsets, queries.indices * np.uint32(7_000_000), queries.weights)
    near_hits, far_hits = made(rows, UNPRUNED).search_with(ALL, queries, 10), made(far, UNPRUNED).search_with(ALL, asked, 10)
    assert (near_hits.rows == far_hits.rows).all() and near_hits.keys.tobytes() == far_hits.keys.tobytes()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e15])
def test_weights_of_any_size(scale: float) -> None:
    rng = np.random.default_rng(12)
    rows = learned(rng, 300)
    scaled = SparseRows(rows.offsets, rows.indices, (rows.weights * np.float32(scale)).astype(np.float32))
    queries, searcher = asked_of(rng, rows, 10), made(scaled, LISTS)
    assert (searcher.search(queries, 5, 0.7).lengths == 5).all()
    for factor in (1.0, scale):
        asked = SparseRows(queries.offsets, queries.indices, (queries.weights * np.float32(factor)).astype(np.float32))
        same(searcher.exact.search(asked, 5), SparseSearcher(scaled).search(asked, 5))


def test_one_weight_that_dwarfs_all_others() -> None:
    rng = np.random.default_rng(13)
    rows = learned(rng, 1000)
    weights = rows.weights.copy()
    weights[17] = 1e30
    dwarfed = SparseRows(rows.offsets, rows.indices, weights)
    queries, searcher = asked_of(rng, rows, 30), made(dwarfed)
    scores, _ = products(dwarfed, queries)
    assert recall(searcher.search(queries, 10, 0.7).rows, scores, 10) > 0.9


def test_rows_at_a_place_of_their_arrays() -> None:
    rng = np.random.default_rng(14)
    rows = learned(rng, 512)
    part = rows[128:448]
    queries, searcher = asked_of(rng, rows, 20), made(part, UNPRUNED)
    check(searcher, queries, 5, searcher.search(queries, 5, 0.9))


# -- arrays ------------------------------------------------------------------------------------------------------


def test_mapped_arrays_are_searched_where_they_lie(some: Any, tmp_path: Path) -> None:
    rows, queries, searcher = some
    arrays = {}
    for name, array in BACKEND.build(rows, {}, Seismic(), Budget(), lambda share: None).items():
        np.save(tmp_path / f"{name}.npy", array)
        arrays[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r") if array.size else array
    mapped = BACKEND.open(arrays, {}, rows, Seismic())
    assert (mapped.search(queries, 10, 0.4).rows == searcher.search(queries, 10, 0.4).rows).all()


def test_damaged_arrays_are_refused_or_searched_within_bounds(some: Any) -> None:
    rng = np.random.default_rng(15)
    rows = learned(rng, 400)
    queries = asked_of(rng, rows, 8)
    good = BACKEND.build(rows, {}, LISTS, Budget(), lambda share: None)
    refused = 0
    for turn in range(600):
        name = sorted(good)[turn % len(good)]
        bad = good[name].copy()
        if not bad.size:
            continue
        flat = bad.reshape(-1).view(np.uint8)
        for _ in range(int(rng.integers(1, 4))):
            flat[rng.integers(len(flat))] = rng.integers(256)
        try:
            searcher = BACKEND.open({**good, name: bad}, {}, rows, LISTS)
        except Damaged:
            refused += 1
            continue
        for settings in (ALL, Settings(4, 0.9, 0.6)):
            hits = searcher.search_with(settings, queries, 10)
            assert (hits.rows < len(rows)).all()
        assert (searcher.search(queries, 10, 1.0).rows < len(rows)).all()
    assert refused > 100
    for name in good:
        lacking = {key: value for key, value in good.items() if key != name}
        with pytest.raises(Damaged):
            BACKEND.open(lacking, {}, rows, LISTS)
        if good[name].size > 1:
            with pytest.raises(Damaged):
                BACKEND.open({**good, name: good[name][:-1]}, {}, rows, LISTS)


def test_a_build_keeps_to_its_budget(some: Any) -> None:
    rows, _, _ = some
    with pytest.raises(NeedsMemory):
        BACKEND.build(rows, {}, Seismic(), Budget(memory=1000), lambda share: None)
    control = Control()
    control.cancel()
    with pytest.raises(Cancelled):
        BACKEND.build(rows, {}, Seismic(), Budget(control=control), lambda share: None)
    shares: list[float] = []
    BACKEND.build(rows, {}, Seismic(), Budget(), shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_search_is_stopped(some: Any) -> None:
    _, queries, searcher = some
    control = Control()
    control.cancel()
    for effort in (0.3, 1.0):
        with pytest.raises(Cancelled):
            searcher.search(queries, 10, effort, control=control)


def test_records_of_rows_with_and_without_a_tail() -> None:
    for size in (1, HEAVIEST - 1, HEAVIEST, HEAVIEST + 1, 3 * HEAVIEST):
        rows = rows_of([{i * 2: 1.0 + (i * 7 + r) % 11 for i in range(size)} for r in range(50)])
        searcher = made(rows, UNPRUNED)
        queries = rows_of([{i * 2: 1.0 for i in range(size)}])
        exact = searcher.exact.search(queries, 5)
        assert (searcher.search_with(ALL, queries, 5).rows == exact.rows).all()


@pytest.mark.parametrize(
    "values",
    [
        {"postings": -1},
        {"postings": 1.5},
        {"max_fraction": 0.5},
        {"centroids": 0},
        {"centroids": 2},
        {"energy": float("nan")},
        {"min_cluster": -1},
    ],
)
def test_parameters_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Seismic(**values)
