"""What every index backend must do, as cases that any backend can be put through.

    from vecdb_index.conformance import CASES
    for case in CASES:
        case(backend)                      # raises AssertionError where the backend breaks the contract

Backends of sparse vectors have SPARSE_CASES; most are the same on rows of the other kind. `tests/contract` runs them on all
registered backends, `docs/backends.md` on one written there. The oracle is float64 brute force here, which shares nothing with
the engine. Whatever chance there is, is seeded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import (
    Backend,
    Bitmap,
    Budget,
    Cancelled,
    Control,
    Damaged,
    DeadlineReached,
    Hits,
    Metric,
    NeedsMemory,
    Rows,
    Searcher,
    SparseRows,
    Trial,
)

CASES: list[Callable[[Backend], None]] = []
SPARSE_CASES: list[Callable[[Backend], None]] = []
METRICS: tuple[Metric, ...] = ("cosine", "ip", "l2")
DTYPES: tuple[type[Any], ...] = (np.float32, np.float16, np.int8)


def _case(function: Callable[[Backend], None]) -> Callable[[Backend], None]:
    CASES.append(function)
    return function


def _both(function: Callable[[Backend, Made], None]) -> Callable[[Backend, Made], None]:
    """A case for rows of both kinds."""
    for cases, made in ((CASES, DENSE), (SPARSE_CASES, SPARSE)):
        case: Any = partial(function, made=made)  # type: ignore[call-arg]
        case.__name__ = function.__name__
        cases.append(case)
    return function


def _sparse(function: Callable[[Backend], None]) -> Callable[[Backend], None]:
    SPARSE_CASES.append(function)
    return function


# -- the oracle and what cases are made of ---------------------------------------------------------------------


def stored(vectors: Any, metric: Metric = "l2", dtype: Any = np.float32, present: Any = None) -> Rows:
    """Rows as a segment would hold them. present: (n,) flags, None for all."""
    vectors = np.ascontiguousarray(np.asarray(vectors, np.float32).astype(dtype))
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(1)).astype(np.float32)
    return Rows(vectors, norms, metric, None if present is None else bitmap(present))


def drawn(n: int, d: int, seed: int = 0, dtype: Any = np.float32) -> npt.NDArray[np.float32]:
    """Vectors in a few clusters, none of them zero; whole numbers for int8."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 200), d)) * 2
    vectors = centres[rng.integers(0, len(centres), n)] + rng.standard_normal((n, d))
    if dtype == np.int8:
        vectors = np.rint(vectors * 12).clip(-127, 127)
        vectors[~vectors.any(1), 0] = 1
    return vectors.astype(np.float32)


@dataclass(frozen=True)
class Made:
    """What cases are made of. rows: n, seed, present -> Rows. queries: m, seed -> queries for such rows."""

    rows: Callable[..., Any]
    queries: Callable[..., Any]


def sparse(n: int, seed: int = 0, present: Any = None, *, width: int = 3000, length: float = 40.0) -> SparseRows:
    """Like what encoders of texts make: a few topics, terms as rare as Zipf has them, weights that concentrate; some empty."""
    rng = np.random.default_rng(seed)
    chance = 1 / (20 + np.arange(width))
    topics = np.random.default_rng(99).random((max(1, width // 60), width)) < 0.05
    lengths, indices, weights = [0], [np.zeros(0, np.uint32)], [np.zeros(0, np.float32)]
    for row in range(n):
        share = chance * np.where(topics[rng.integers(len(topics))], 30, 1)
        count = 0 if row % 101 == 100 or (present is not None and not present[row]) else rng.poisson(length) + 1
        terms = np.unique(rng.choice(width, min(count, width), p=share / share.sum()))
        lengths.append(len(terms))
        indices.append(terms.astype(np.uint32))
        weights.append(rng.gamma(1.2, 0.5, len(terms)).astype(np.float32) + np.float32(0.01))
    flags = None if present is None else bitmap(present)
    return SparseRows(np.cumsum(lengths).astype(np.uint64), np.concatenate(indices), np.concatenate(weights), flags)


def _dense_rows(n: int, seed: int = 0, present: Any = None) -> Rows:
    vectors = drawn(n, 16, seed)
    if present is not None:
        vectors[~np.asarray(present)] = 0
    return stored(vectors, "l2", present=present)


DENSE = Made(_dense_rows, lambda m, seed=1: drawn(m, 16, seed))
SPARSE = Made(sparse, lambda m, seed=1: sparse(m, seed, length=12.0))


def bitmap(flags: Any) -> Bitmap:
    padded = np.zeros(-(-len(flags) // 64) * 64, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)


def true_keys(rows: Any, queries: Any) -> npt.NDArray[np.float64]:
    """(m, n) keys in float64; -inf where a row has no component of a sparse query."""
    if isinstance(rows, SparseRows):
        return np.array([_sparse_keys(rows, queries[at]) for at in range(len(queries))]).reshape(len(queries), len(rows))
    q, x = np.asarray(queries, np.float64), rows.vectors.astype(np.float64)
    if rows.metric == "l2":
        return -np.stack([((x - one) ** 2).sum(1) for one in q]) if len(q) else np.zeros((0, len(x)))
    if rows.metric == "cosine":
        q = q / np.sqrt((q**2).sum(1))[:, None]
        x = x / np.sqrt((x**2).sum(1))[:, None]
    keys: npt.NDArray[np.float64] = q @ x.T
    return keys


def _sparse_keys(rows: SparseRows, query: SparseRows) -> npt.NDArray[np.float64]:
    first, last = query.offsets.tolist()
    weight = dict(zip(query.indices[first:last].tolist(), query.weights[first:last].tolist(), strict=True))
    keys = np.full(len(rows), -np.inf)
    for row, (start, stop) in enumerate(itertools.pairwise(rows.offsets.tolist())):
        terms = rows.indices[start:stop].tolist()
        if not weight.keys().isdisjoint(terms):
            products = zip(terms, rows.weights[start:stop].tolist(), strict=True)
            keys[row] = sum(weight.get(term, 0.0) * other for term, other in products)
    return keys


def check(hits: Hits, rows: Any, queries: Any, k: int, allowed: Any = None) -> None:
    """What holds of every answer, exact or not: how many, which, their keys, their order."""
    keys = true_keys(rows, queries)
    permitted = np.ones(len(rows), np.bool_) if allowed is None else np.asarray(allowed).copy()
    if rows.present is not None:
        permitted &= np.unpackbits(rows.present.view(np.uint8), count=len(rows), bitorder="little").view(np.bool_)
    assert hits.keys.shape == hits.rows.shape == (len(queries), k)
    assert hits.keys.dtype == np.float32 and hits.rows.dtype == np.int64
    there = np.minimum(k, (permitted & (keys > -np.inf)).sum(axis=1))
    assert np.array_equal(hits.lengths, there), "as many as there are"
    for q in range(len(queries)):
        length = int(hits.lengths[q])
        found = hits.rows[q, :length]
        assert len(set(found.tolist())) == length, "a row came twice"
        assert permitted[found].all(), "a row that is not allowed came"
        finite = keys[q][keys[q] > -np.inf]
        scale = np.abs(keys[q, found]) + np.sqrt(np.abs(finite).max(initial=0)) * 1e-3 + 1e-6
        assert (np.abs(hits.keys[q, :length] - keys[q, found]) <= 1e-3 * scale).all(), "a key is not the row's"
        order = list(zip((-hits.keys[q, :length]).tolist(), found.tolist(), strict=True))
        assert order == sorted(order), "not by key, then row"
        assert (hits.rows[q, length:] == -1).all()
        assert (hits.keys[q, length:] == -np.inf).all()


def recall(hits: Hits, rows: Any, queries: Any, k: int, allowed: Any = None) -> float:
    """The share of the true k best that came; of equal keys any will do."""
    keys = true_keys(rows, queries)
    if allowed is not None:
        keys[:, ~np.asarray(allowed)] = -np.inf
    if rows.present is not None:
        keys[:, ~np.unpackbits(rows.present.view(np.uint8), count=len(rows), bitorder="little").view(np.bool_)] = -np.inf
    shares = []
    for q, mine in enumerate(keys):
        best = -np.sort(-mine[mine > -np.inf])[:k]
        if len(best):
            found = mine[hits.rows[q, : hits.lengths[q]]]
            shares.append(min(1.0, np.count_nonzero(found >= best[-1] - 1e-5 * abs(best[-1])) / len(best)))
    return float(np.mean(shares)) if shares else 1.0


def opened(backend: Backend, rows: Any, threads: int = 1, params: Any = None, seed: int = 0) -> Searcher:
    """Trained, built and opened."""
    params = params or backend.params()
    budget = Budget(threads=threads, seed=seed)
    trained = backend.train(rows, params, budget)
    return backend.open(backend.build(rows, trained, params, budget, lambda share: None), trained, rows, params)


def _kinds() -> Iterator[tuple[Metric, Any]]:
    yield from itertools.product(METRICS, DTYPES)


def same(a: Hits, b: Hits) -> bool:
    return np.array_equal(a.keys, b.keys) and np.array_equal(a.rows, b.rows) and np.array_equal(a.lengths, b.lengths)


# -- cases ---------------------------------------------------------------------------------------------------


@_case
def finds_what_brute_force_finds(backend: Backend) -> None:
    """At full effort nearly all, for every metric and dtype; at any effort what comes is right."""
    for metric, dtype in _kinds():
        rows = stored(drawn(3000, 24, dtype=dtype), metric, dtype)
        queries = drawn(40, 24, seed=1, dtype=dtype)
        searcher = opened(backend, rows)
        for effort in (0.0, 0.3, 1.0):
            check(searcher.search(queries, 10, effort), rows, queries, 10)
        best = searcher.search(queries, 10, 1.0)
        assert recall(best, rows, queries, 10) >= 0.99, f"{metric} {np.dtype(dtype)}: {recall(best, rows, queries, 10)}"


@_sparse
def sparse_rows_are_found_as_brute_force_finds_them(backend: Backend) -> None:
    """At full effort nearly all; at any effort what comes is right. Weights below zero, components of 32 bits, too."""
    rows, queries = SPARSE.rows(2000), SPARSE.queries(40)
    some = np.random.default_rng(8)
    signs, asked = (np.where(some.random(len(each.weights)) < 0.2, -1, 1).astype(np.float32) for each in (rows, queries))
    pairs = [
        (rows, queries),
        (replace(rows, weights=rows.weights * signs), queries),
        (replace(rows, weights=rows.weights * signs), replace(queries, weights=queries.weights * asked)),
        (
            replace(rows, indices=rows.indices * np.uint32(1_431_655)),
            replace(queries, indices=queries.indices * np.uint32(1_431_655)),
        ),
    ]
    for known, wanted in pairs:
        searcher = opened(backend, known)
        for effort in (0.0, 0.3, 1.0):
            check(searcher.search(wanted, 10, effort), known, wanted, 10)
        found = recall(searcher.search(wanted, 10, 1.0), known, wanted, 10)
        assert found >= 0.99, found


@_sparse
def odd_sparse_rows(backend: Backend) -> None:
    """None, one, fewer than k; empty ones; all equal; one component in all; a long one; queries that know nothing of them."""
    for n in (0, 1, 2, 5, 33):
        rows, queries = SPARSE.rows(n), SPARSE.queries(3)
        check(opened(backend, rows).search(queries, 10, 0.5), rows, queries, 10)
    ends = np.arange(0, 2101, 3).astype(np.uint64)
    equal = SparseRows(ends, np.tile(np.array([3, 5, 9], np.uint32), 700), np.ones(2100, np.float32))
    single = SparseRows(np.arange(701).astype(np.uint64), np.full(700, 7, np.uint32), np.arange(1, 701).astype(np.float32))
    long = SparseRows(
        np.array([0, 60_000, 60_003], np.uint64),
        np.r_[np.arange(60_000), [1, 2, 3]].astype(np.uint32),
        np.ones(60_003, np.float32),
    )
    none = SparseRows(np.zeros(6, np.uint64), np.zeros(0, np.uint32), np.zeros(0, np.float32))
    asked = SparseRows(np.array([0, 2, 3, 3], np.uint64), np.array([3, 7, 4_000_000_000], np.uint32), np.ones(3, np.float32))
    for rows in (equal, single, long, none):
        searcher = opened(backend, rows)
        for effort in (0.0, 0.5, 1.0):
            check(searcher.search(asked, 20, effort), rows, asked, 20)


@_both
def more_effort_finds_no_less(backend: Backend, made: Made) -> None:
    rows, queries = made.rows(4000), made.queries(60)
    searcher = opened(backend, rows)
    curve = [recall(searcher.search(queries, 10, effort), rows, queries, 10) for effort in (0, 0.25, 0.5, 0.75, 1)]
    work = [searcher.search(queries, 10, effort).scored for effort in (0, 0.25, 0.5, 0.75, 1)]
    assert all(b >= a - 0.02 for a, b in itertools.pairwise(curve)), curve
    assert work == sorted(work)
    assert curve[-1] >= 0.99


@_case
def obeys_filters_of_every_selectivity(backend: Backend) -> None:
    """k hits come back whenever k are allowed, whether what is allowed is spread, a cluster, or far from the query."""
    vectors, queries = drawn(4000, 16), drawn(20, 16, seed=1)
    rng = np.random.default_rng(2)
    for metric in METRICS:
        rows = stored(vectors, metric)
        searcher = opened(backend, rows)
        far = np.argsort(true_keys(rows, queries[:1])[0])
        for share in (1.0, 0.5, 0.1, 0.01, 0.001, 0.0):
            count = round(share * len(rows))
            for flags in (rng.permutation(len(rows)) < count, np.isin(np.arange(len(rows)), far[:count])):
                for k in (1, 10, 50):
                    hits = searcher.search(queries, k, 0.4, bitmap(flags))
                    check(hits, rows, queries, k, flags)
                full = searcher.search(queries, 10, 1.0, bitmap(flags))
                if count >= 10:
                    assert recall(full, rows, queries, 10, flags) >= 0.99, (metric, share)


@_sparse
def sparse_rows_obey_filters_of_every_selectivity(backend: Backend) -> None:
    rows, queries = SPARSE.rows(3000), SPARSE.queries(20)
    rng, searcher = np.random.default_rng(2), opened(backend, rows)
    far = np.argsort(true_keys(rows, queries[:1])[0], kind="stable")
    for share in (1.0, 0.5, 0.1, 0.01, 0.001, 0.0):
        count = round(share * len(rows))
        for flags in (rng.permutation(len(rows)) < count, np.isin(np.arange(len(rows)), far[:count])):
            for k in (1, 10, 50):
                check(searcher.search(queries, k, 0.4, bitmap(flags)), rows, queries, k, flags)
            assert recall(searcher.search(queries, 10, 1.0, bitmap(flags)), rows, queries, 10, flags) >= 0.99, share


@_both
def an_all_true_bitmap_changes_no_row_that_comes(backend: Backend, made: Made) -> None:
    rows, queries = made.rows(2000), made.queries(30)
    searcher = opened(backend, rows)
    plain, every = searcher.search(queries, 10, 1.0), searcher.search(queries, 10, 1.0, bitmap(np.ones(2000, np.bool_)))
    check(every, rows, queries, 10)
    assert recall(every, rows, queries, 10) >= recall(plain, rows, queries, 10) - 0.01


@_both
def rows_without_a_vector_never_come(backend: Backend, made: Made) -> None:
    present = np.random.default_rng(3).random(1500) < 0.7
    rows, queries = made.rows(1500, present=present), made.queries(20)
    searcher = opened(backend, rows)
    check(searcher.search(queries, 10, 0.5), rows, queries, 10)
    assert recall(searcher.search(queries, 10, 1.0), rows, queries, 10) >= 0.99
    check(searcher.search(queries, 10, 0.5, bitmap(~present)), rows, queries, 10, ~present)


@_case
def few_and_odd_rows(backend: Backend) -> None:
    """None, one, fewer than k; all equal; all on one line; vectors of one number; long ones."""
    for n in (0, 1, 2, 5, 33):
        rows, queries = stored(drawn(max(n, 1), 7)[:n]), drawn(3, 7, seed=1)
        check(opened(backend, rows).search(queries, 10, 0.5), rows, queries, 10)
    equal, queries = stored(np.ones((700, 6)), "l2"), drawn(3, 6, seed=1)
    hits = opened(backend, equal).search(queries, 20, 0.5)
    check(hits, equal, queries, 20)
    for metric in METRICS:
        line = stored(np.arange(1, 501)[:, None] * np.ones((1, 3)), metric)
        check(opened(backend, line).search(np.ones((1, 3), np.float32), 9, 0.6), line, np.ones((1, 3)), 9)
        single = stored(drawn(300, 1) + 0.01, metric)
        check(opened(backend, single).search(np.ones((2, 1), np.float32), 5, 0.6), single, np.ones((2, 1)), 5)
    wide, asked = stored(drawn(40, 65_535), "cosine"), drawn(2, 65_535, seed=1)
    check(opened(backend, wide).search(asked, 5, 1.0), wide, asked, 5)


@_case
def norms_of_any_size(backend: Backend) -> None:
    """Lengths from 1e-15 to 1e15 side by side."""
    vectors = drawn(800, 10) * 10.0 ** np.random.default_rng(4).integers(-15, 15, (800, 1))
    queries = drawn(10, 10, seed=1)
    for metric in ("cosine", "ip"):
        rows = stored(vectors, metric)
        hits = opened(backend, rows).search(queries, 5, 1.0)
        assert (hits.lengths == 5).all()
        assert np.isfinite(hits.keys).all()
        keys = true_keys(rows, queries)
        found = np.take_along_axis(keys, hits.rows, 1)
        assert np.allclose(hits.keys, found, rtol=1e-3, atol=1e-5 * np.abs(found).max() if metric == "cosine" else 0)


@_both
def a_batch_is_its_queries_one_by_one(backend: Backend, made: Made) -> None:
    rows, queries = made.rows(2500), made.queries(90)
    searcher = opened(backend, rows)
    flags = bitmap(np.arange(2500) % 3 == 0)
    for allowed in (None, flags):
        batch = searcher.search(queries, 7, 0.3, allowed)
        for q in range(0, 90, 11):
            one = searcher.search(queries[q : q + 1], 7, 0.3, allowed)
            assert np.array_equal(one.keys[0], batch.keys[q]) and np.array_equal(one.rows[0], batch.rows[q])


@_both
def threads_change_nothing(backend: Backend, made: Made) -> None:
    """Neither those that build nor those that search."""
    rows, queries = made.rows(5000), made.queries(200)
    params = backend.params()
    built = []
    for threads in (1, 2):
        budget = Budget(threads=threads, seed=7)
        trained = backend.train(rows, params, budget)
        built.append(backend.build(rows, trained, params, budget, lambda share: None))
    assert built[0].keys() == built[1].keys()
    for name, array in built[0].items():
        assert array.tobytes() == built[1][name].tobytes(), f"{name} depends on the number of threads"
    searcher = backend.open(built[0], trained, rows, params)
    expected = searcher.search(queries, 10, 0.4)
    with ThreadPoolExecutor(4) as pool:
        for hits in pool.map(lambda _: searcher.search(queries, 10, 0.4), range(12)):
            assert same(hits, expected)


@_both
def what_is_saved_answers_the_same(backend: Backend, made: Made) -> None:
    """Arrays are searched where they lie: read-only, and as bytes that came back from somewhere else."""
    rows, queries = made.rows(2000), made.queries(30)
    params, budget = backend.params(), Budget()
    trained = backend.train(rows, params, budget)
    arrays = backend.build(rows, trained, params, budget, lambda share: None)
    copies = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in arrays.items()}
    here, there = (backend.open(a, trained, rows, params).search(queries, 10, 0.5) for a in (arrays, copies))
    assert same(here, there)


@_case
def other_seeds_find_as_much(backend: Backend) -> None:
    rows, queries = stored(drawn(3000, 32), "l2"), drawn(60, 32, seed=1)
    for seed in range(3):
        found = opened(backend, rows, seed=seed).search(queries, 10, 1.0)
        assert recall(found, rows, queries, 10) >= 0.99


@_case
def splitting_rows_loses_nothing(backend: Backend) -> None:
    """The merged answer of three segments is as good as that of one; permuting rows permutes the answer."""
    vectors, queries = drawn(3000, 16), drawn(40, 16, seed=1)
    whole = stored(vectors, "cosine")
    parts = [opened(backend, stored(vectors[a : a + 1000], "cosine")) for a in (0, 1000, 2000)]
    found = [part.search(queries, 10, 1.0) for part in parts]
    keys = np.concatenate([f.keys for f in found], axis=1)
    rows = np.concatenate([f.rows + 1000 * i for i, f in enumerate(found)], axis=1)
    order = np.lexsort((rows, -keys), axis=1)[:, :10]
    merged = Hits(
        np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order, 1),
        np.full(40, 10, np.int32), np.zeros(40, np.bool_), 0, 0,
    )  # fmt: skip
    check(merged, whole, queries, 10)
    assert recall(merged, whole, queries, 10) >= 0.99
    order = np.random.default_rng(5).permutation(3000)
    turned = stored(vectors[order], "cosine")
    hits = opened(backend, turned).search(queries, 10, 1.0)
    assert recall(hits, turned, queries, 10) >= 0.99


@_both
def dead_rows_change_little(backend: Backend, made: Made) -> None:
    """Rows that are not allowed, as many as those that are, in the midst of them."""
    alive = np.random.default_rng(6).random(4000) < 0.5
    rows, queries = made.rows(4000), made.queries(40)
    hits = opened(backend, rows).search(queries, 10, 1.0, bitmap(alive))
    check(hits, rows, queries, 10, alive)
    assert recall(hits, rows, queries, 10, alive) >= 0.99


@_both
def a_few_dead_rows_cost_little(backend: Backend, made: Made) -> None:
    """Less than half as much again, at any effort: nothing is scanned in the place of what a search would have found."""
    alive = np.random.default_rng(6).random(8000) < 0.97
    rows, queries = made.rows(8000), made.queries(40)
    searcher = opened(backend, rows)
    for effort in (0.0, 0.2, 0.4):
        all_alive, few_dead = (searcher.search(queries, 10, effort, words).scored for words in (None, bitmap(alive)))
        assert few_dead <= 1.5 * all_alive, f"{few_dead:,} beside {all_alive:,} at effort {effort}"


@_both
def a_floor_only_takes_away(backend: Backend, made: Made) -> None:
    rows, queries = made.rows(1000), made.queries(20)
    searcher = opened(backend, rows)
    plain = searcher.search(queries, 10, 1.0)
    floor = plain.keys[:, 4].copy()
    cut = searcher.search(queries, 10, 1.0, floor=floor)
    for q in range(20):
        length, least = int(cut.lengths[q]), min(5, int(plain.lengths[q]))
        assert length >= least, "what reaches the floor is not left out"
        kept = plain.keys[q, : plain.lengths[q]]
        assert np.array_equal(cut.keys[q, :least], kept[:least])
        assert set(cut.rows[q, :length]) <= set(plain.rows[q])


@_case
def asked_together_they_find_what_each_finds(backend: Backend) -> None:
    """Searchers that can be asked together give the same hits as one by one, but for some below what others found."""
    for metric, dtype in _kinds():
        vectors, queries = drawn(2600, 16, dtype=dtype), drawn(70, 16, seed=1, dtype=dtype)
        stored_parts = [stored(vectors[a:b], metric, dtype) for a, b in ((0, 2100), (2100, 2100), (2100, 2130), (2130, 2600))]
        searchers = [opened(backend, rows) for rows in stored_parts]
        together: Any = getattr(type(searchers[0]), "search_all", None)
        if together is None:
            return
        rng = np.random.default_rng(7)
        for share in (None, 0.95, 0.2, 0.0):
            words = [None if share is None else bitmap(rng.random(len(rows)) < share) for rows in stored_parts]
            parts = list(zip(searchers, (0.3, 0.0, 0.2, 0.4), words, strict=True))
            alone = [searcher.search(queries, 10, effort, allowed) for searcher, effort, allowed in parts]
            floor = np.full(len(queries), -np.inf, np.float32)
            for mine, hits in zip(alone, together(parts, queries, 10, None, Control()), strict=True):
                for q in range(len(queries)):
                    kept = mine.keys[q, : mine.lengths[q]] >= floor[q]
                    found = hits.rows[q, : hits.lengths[q]].tolist()
                    assert found[: kept.sum()] == mine.rows[q, : mine.lengths[q]][kept].tolist(), (metric, dtype, share)
                    assert (hits.keys[q, : kept.sum()] == mine.keys[q, : mine.lengths[q]][kept]).all()
                floor = np.maximum(floor, mine.keys[:, -1])
        cancelled = Control()
        cancelled.cancel()
        together = partial(together, [(each, 0.3, None) for each in searchers], queries, 10, None, cancelled)
        _raises(Cancelled, together)


@_both
def a_trial_is_run_on_rows_that_are_held_out(backend: Backend, made: Made) -> None:
    """Once, over all other rows; the index that comes of it holds them all."""
    seen: list[Hits] = []
    rows, held, queries = made.rows(2000), np.arange(0, 2000, 40), made.queries(50)
    flags = np.ones(2000, np.bool_)
    flags[held] = False

    def run(searcher: Searcher, others: Any) -> None:
        seen.append(searcher.search(queries, 10, 1.0))
        check(seen[0], rows, queries, 10, flags)
        assert others.present is not None and np.array_equal(others.present, bitmap(flags))

    params, budget = backend.params(), Budget()
    trained = backend.train(rows, params, budget)
    arrays = backend.build(rows, trained, params, budget, lambda share: None, Trial(held, run))
    assert len(seen) == 1
    assert recall(seen[0], rows, queries, 10, flags) >= 0.98
    hits = backend.open(arrays, trained, rows, params).search(queries, 10, 1.0)
    check(hits, rows, queries, 10)
    assert recall(hits, rows, queries, 10) >= 0.99


@_case
def a_trial_of_many_copies(backend: Backend) -> None:
    """Most rows are one of ten, a thousand times, so that few are led to by others; those held out come back to these."""
    vectors = np.concatenate([drawn(1000, 16), np.repeat(drawn(10, 16, seed=3), 1000, axis=0)])
    rows, held, queries = stored(vectors), np.arange(0, len(vectors), 40), drawn(50, 16, seed=1)
    flags = np.ones(len(rows), np.bool_)
    flags[held] = False
    params, budget, seen = backend.params(), Budget(), []
    trained = backend.train(rows, params, budget)
    trial = Trial(held, lambda searcher, others: seen.append(searcher.search(queries, 10, 1.0)))
    arrays = backend.build(rows, trained, params, budget, lambda share: None, trial)
    check(seen[0], rows, queries, 10, flags)
    for effort in (0.0, 0.4, 1.0):
        check(backend.open(arrays, trained, rows, params).search(queries, 10, effort), rows, queries, 10)


@_both
def stops_when_told(backend: Backend, made: Made) -> None:
    rows, queries = made.rows(2000), made.queries(20)
    searcher = opened(backend, rows)
    stopped = Control()
    stopped.cancel()
    _raises(Cancelled, lambda: searcher.search(queries, 10, control=stopped))
    _raises(DeadlineReached, lambda: searcher.search(queries, 10, control=Control(time.monotonic() - 1)))
    assert searcher.search(queries, 10, control=Control(time.monotonic() + 60)).lengths.all()
    params = backend.params()
    _raises(Cancelled, lambda: backend.build(rows, {}, params, Budget(control=stopped), lambda share: None))


@_both
def progress_rises_to_one(backend: Backend, made: Made) -> None:
    said: list[float] = []
    backend.build(made.rows(3000), {}, backend.params(), Budget(), said.append)
    assert said == sorted(said) and said[-1] == 1.0


@_both
def a_memory_limit_is_refused_or_kept(backend: Backend, made: Made) -> None:
    rows = made.rows(3000)
    try:
        backend.build(rows, {}, backend.params(), Budget(memory=1), lambda share: None)
    except NeedsMemory as refusal:
        needed = refusal.needed
    else:
        return
    assert needed > 1
    backend.build(rows, {}, backend.params(), Budget(memory=needed), lambda share: None)


@_both
def damage_is_refused_or_harmless(backend: Backend, made: Made) -> None:
    """Arrays of other shapes or with wild values are refused when opened, or still lead to a right answer."""
    rows, queries = made.rows(500), made.queries(5)
    params = backend.params()
    arrays = dict(backend.build(rows, {}, params, Budget(), lambda share: None))
    for name, array in arrays.items():
        worst = np.full_like(array, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else np.nan)
        for damaged in (worst, array[:-1], array[:0]):
            try:
                searcher = backend.open({**arrays, name: damaged}, {}, rows, params)
            except (Damaged, ValueError, KeyError):
                continue
            check(searcher.search(queries, 5, 0.5), rows, queries, 5)


@_both
def its_cost_is_a_time_that_grows_with_work(backend: Backend, made: Made) -> None:
    searcher = opened(backend, made.rows(4000))
    costs = [searcher.cost(10, effort, 1.0) for effort in (0.0, 0.5, 1.0)]
    assert all(0 < cost < 10 for cost in costs)
    assert costs == sorted(costs)
    assert 0 < searcher.cost(10, 0.5, 0.01) < 10
    spreads = [searcher.spread(bitmap(np.arange(4000) % 100 == 0)), searcher.spread(bitmap(np.arange(4000) < 40))]
    assert all(0 < spread <= 1 for spread in spreads) and spreads[1] <= spreads[0]
    assert 0 < searcher.cost(10, 0.5, 0.01, 1, spreads[1]) <= searcher.cost(10, 0.5, 0.01, 1, spreads[0])


def _raises(kind: type[Exception], act: Callable[[], Any]) -> None:
    try:
        act()
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was expected")
