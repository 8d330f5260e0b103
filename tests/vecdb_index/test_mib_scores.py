"""What bits report of hits, beside explicit sums, and beside what is so on queries that nothing was fitted to."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vecdb_index.codec.bits import unpacked
from vecdb_index.conformance import drawn, stored
from vecdb_index.contract import Budget, Damaged, Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.kernels.distances import METRICS
from vecdb_index.mib import sample, scores
from vecdb_index.mib.backend import BACKEND
from vecdb_index.mib.params import MIB
from vecdb_index.mib.sample import evenly
from vecdb_index.mib.scan import Bits, plain_scan
from vecdb_index.mib.scores import Null, Question, isotonic, its, likelihood, sampled, taken
from vecdb_index.mib.search import MIBSearcher

METRIC = pytest.mark.parametrize("metric", METRICS)


def opened(rows: Any, rotation: str = "hadamard") -> MIBSearcher:
    params = MIB(rotation)
    return MIBSearcher(BACKEND.build(rows, {}, params, Budget(), lambda share: None), {}, rows, params)


def entropy(p: float) -> float:
    return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)


def its_of(query: np.ndarray, row: np.ndarray) -> float:
    """Of two strings of bits, cell by cell of their table."""
    n, found = len(query), 0.0
    for x in (0, 1):
        for y in (0, 1):
            both = sum(int(p == x and q == y) for p, q in zip(query, row, strict=True))
            if both:
                expected = sum(int(p == x) for p in query) * sum(int(q == y) for q in row) / n
                found += both / n * math.log2(both / expected)
    ones = sum(int(p) for p in query) / n
    agree = sum(int(p == q) for p, q in zip(query, row, strict=True)) / n
    chance = ones * np.mean(row) + (1 - ones) * (1 - np.mean(row))
    if not 0 < ones < 1 or agree <= chance + 1e-12:  # a d > b c says that they agree more often than by chance
        return 0.0
    return math.sqrt(min(1.0, max(0.0, found / entropy(ones))))


# -- its ---------------------------------------------------------------------------------------------------------


def coded(bits: np.ndarray) -> tuple[MIBSearcher, Bits]:
    """Codes that are these bits: signs of the rows themselves, about no centre."""
    signs = np.where(bits, 1, -1).astype(np.float32)
    searcher = opened(stored(np.r_[signs, -signs], "l2"), "none")
    return searcher, taken(searcher.bits, np.arange(len(bits)))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), d=st.sampled_from([1, 2, 7, 63, 64, 65, 130]), n=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.03, 0.3, 0.5, 0.9, 1.0]), alike=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
)  # fmt: skip
def test_its_is_that_of_the_table_of_both_codes(seed: int, d: int, n: int, share: float, alike: float) -> None:
    rng = np.random.default_rng(seed)
    query = rng.random(d) < share
    bits = np.where(rng.random((n, d)) < alike, query, rng.random((n, d)) < share)
    searcher, codes = coded(bits)
    question = Question(searcher.encoder, np.where(query, 1, -1).astype(np.float32)[None])
    assert np.array_equal(unpacked(codes.codes, n)[:, :d], bits)
    found = its(question, codes)
    assert ((found >= 0) & (found <= 1)).all()
    assert found == pytest.approx([its_of(query, row) for row in bits], abs=1e-7)


def test_its_of_balanced_codes_is_what_differing_bits_leave() -> None:
    d = 256
    query, rows = np.arange(d) % 2 == 0, []
    for swapped in range(d // 2 + 1):  # as many of either kind, so that the row has as many bits set
        row = query.copy()
        row[: 2 * swapped] = ~row[: 2 * swapped]
        rows.append(row)
    searcher, codes = coded(np.array(rows))
    found = its(Question(searcher.encoder, np.where(query, 1, -1).astype(np.float32)[None]), codes)
    differ = 2 * np.arange(len(rows)) / d
    expected = [math.sqrt(1 - entropy(p)) if p < 0.5 else 0.0 for p in differ]
    assert found == pytest.approx(expected, abs=1e-7)
    assert found[0] == pytest.approx(1, abs=1e-12) and (np.diff(found) <= 0).all() and found[-1] == 0


def test_its_of_random_signs_is_known_for_angles() -> None:
    """The mean over many rows at a cosine of 0.5, 0.8 and 0.95."""
    rng, d, n = np.random.default_rng(0), 1024, 400
    query = rng.standard_normal(d)
    for cosine, expected in ((0.5, 0.29), (0.8, 0.52), (0.95, 0.73)):
        noise = rng.standard_normal((n, d))
        noise -= (noise @ query)[:, None] / (query @ query) * query
        noise *= np.linalg.norm(query) / np.linalg.norm(noise, axis=1)[:, None]
        rows = cosine * query + math.sqrt(1 - cosine**2) * noise
        searcher, codes = coded(rows > 0)
        found = its(Question(searcher.encoder, np.where(query > 0, 1, -1).astype(np.float32)[None]), codes)
        assert found.mean() == pytest.approx(expected, abs=0.01)


@METRIC
@pytest.mark.parametrize("rotation", ["none", "hadamard", "pca"])
def test_a_query_that_is_a_row_has_its_code(metric: Any, rotation: str) -> None:
    """Of inner products the query's length means nothing: there it is the same for all lengths instead."""
    rows = stored(drawn(300, 70) + 0.2, metric)
    searcher = opened(rows, rotation)
    for at in (0, 31, 32, 299):
        query = rows.vectors[at : at + 1].astype(np.float32)
        mine = its(Question(searcher.encoder, query), taken(searcher.bits, np.array([at])))
        if metric == "ip":
            assert np.array_equal(Question(searcher.encoder, query).code, Question(searcher.encoder, 4 * query).code)
            assert mine[0] > 0.5
        else:
            assert mine[0] == pytest.approx(1, abs=0.1), "a bit may lie on the other side by the last bit of a sum"


# -- estimates ---------------------------------------------------------------------------------------------------


@METRIC
def test_estimates_are_of_the_keys(metric: Any) -> None:
    """Without bias: right in the mean, and as far as they may be off; the best first, and others than the allowed left out."""
    rows, queries = stored(drawn(3000, 128) + 0.1, metric), drawn(5, 128, seed=1)
    searcher = opened(rows)
    exact = FlatSearcher(rows).search(queries, 3000)
    words = sampled(searcher.bits)
    for q in range(5):
        question = Question(searcher.encoder, queries[q : q + 1])
        keys, found = question.estimated(searcher.bits)
        assert sorted(found) == list(range(3000)) and (np.diff(keys) <= 0).all()
        true = exact.keys[q][np.argsort(exact.rows[q])][found]
        assert np.corrcoef(keys, true)[0, 1] > 0.7 and abs((keys - true).mean()) < 0.2 * true.std()
        best, at = question.estimated(searcher.bits, count=10)
        assert np.array_equal(best, keys[:10]) and np.array_equal(at, found[:10])
        some, of = question.estimated(searcher.bits, words)
        flags = np.unpackbits(words.view(np.uint8), bitorder="little")[:3000].view(np.bool_)
        assert np.array_equal(of, found[flags[found]]) and np.array_equal(some, keys[flags[found]])
        few = np.array([2999, 5, 31, 32, 1700])
        mine, places = question.estimated(taken(searcher.bits, few))
        assert dict(zip(few[places].tolist(), mine.tolist(), strict=True)) == {r: keys[found == r][0] for r in few.tolist()}


def test_a_sixteenth_of_the_blocks_is_sampled_and_of_small_segments_more() -> None:
    for n, blocks in ((1, 1), (64, 2), (2048, 64), (4096, 64), (100_000, 196), (100_001, 196)):
        words = sampled(Bits(np.zeros((-(-n // 32), 8, 32), np.uint8), np.zeros((-(-n // 32), 2, 32), np.float32), n))
        assert len(words) == -(-n // 64)
        assert min(n, 32 * (blocks - 1)) < np.bitwise_count(words).sum() <= 32 * blocks


def test_the_plain_kernel_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = stored(drawn(2500, 65) + 0.1, "cosine"), drawn(4, 65, seed=1)
    searcher = opened(rows)
    told = [Question(searcher.encoder, queries[q : q + 1]).estimated(searcher.bits) for q in range(4)]
    monkeypatch.setattr(scores, "scan", plain_scan)
    again = [Question(searcher.encoder, queries[q : q + 1]).estimated(searcher.bits) for q in range(4)]
    assert all(np.array_equal(a, b) for one, two in zip(told, again, strict=True) for a, b in zip(one, two, strict=True))
    assert np.array_equal(opened(rows).likelihood, searcher.likelihood)


# -- surprise ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(st.floats(-100, 100, width=32), min_size=64, max_size=300), at=st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=30),
    rows=st.integers(1, 10**9),
)  # fmt: skip
def test_surprise_rises_with_the_estimate(keys: list[float], at: list[float], rows: int) -> None:
    """And is finite, whatever the sample is like; no less than what any row has."""
    null = Null(np.sort(np.array(keys)))
    ascending = np.sort(np.array([*at, *keys]))
    found = null.surprise(ascending, rows)
    assert np.isfinite(found).all() and (np.diff(found) >= -1e-9 * np.abs(found[1:])).all()
    assert found[0] >= -math.log2(rows) - 1e-9


def test_surprise_is_the_share_that_is_as_high_and_beyond_that_a_normal_tail() -> None:
    sample = np.sort(np.random.default_rng(0).standard_normal(20_000))
    null = Null(sample)
    for key in (-1.0, 0.0, 1.5):
        share = (sample >= key).mean()
        assert null.surprise(np.array([key]), 1000)[0] == pytest.approx(-math.log2(1000 * share))
    for key in (3.5, 5.0, 8.0):
        tail = math.erfc(key / math.sqrt(2)) / 2
        assert null.surprise(np.array([key]), 1000)[0] == pytest.approx(-math.log2(1000 * tail), abs=0.7)
    last = sample[-30]
    before, after = null.surprise(np.array([last, np.nextafter(last, 9)]), 1000)
    assert before == pytest.approx(after, abs=1e-9), "where the two meet they are one"


def test_tails_are_those_of_the_normal_distribution() -> None:
    for z in (-8.0, -1.0, 0.0, 1.0, 5.0, 29.9):
        assert scores._log2_tail(z) == pytest.approx(math.log2(math.erfc(z / math.sqrt(2)) / 2), rel=1e-12)
    assert scores._log2_tail(30.0) == pytest.approx(math.log2(math.erfc(30 / math.sqrt(2)) / 2), rel=1e-9)
    steps = [scores._log2_tail(z) for z in np.linspace(25, 35, 1000)]
    assert steps == sorted(steps, reverse=True) and scores._log2_tail(1e6) < -1e11


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def clustered(n: int, d: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(9).standard_normal((40, d)) * 1.5
    rng = np.random.default_rng(seed)
    found: np.ndarray = (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, d))).astype(np.float32)
    return found


def skewed(n: int, d: int, seed: int) -> np.ndarray:
    found: np.ndarray = (normal(n, d, seed) * np.linspace(2, 0.2, d) + 0.3).astype(np.float32)
    return found


@METRIC
@pytest.mark.parametrize("made", [normal, clustered, skewed])
def test_of_independent_queries_few_are_surprising(metric: Any, made: Any) -> None:
    """The best estimate of all rows is above t bits in no more than 2^-t of them, within three standard errors."""
    n, m, d = 16_000, 400, 96
    rng = np.random.default_rng(3)
    searcher = opened(stored(made(n, d, 1), metric))
    queries = np.stack([rng.permutation(query) for query in made(m, d, 2)])
    words, best = sampled(searcher.bits), np.empty(m)
    for q in range(m):
        question = Question(searcher.encoder, queries[q : q + 1])
        null = Null(question.estimated(searcher.bits, words)[0][::-1])
        best[q] = null.surprise(question.estimated(searcher.bits, count=1)[0], n)[0]
    for bits in range(7):
        most = 2.0**-bits
        assert (best > bits).mean() <= most + 3 * math.sqrt(most * (1 - most) / m)
    if metric == "cosine":  # where estimates are about normal, it is not by being too modest
        assert np.median(best) > -2.5


def test_a_row_that_belongs_to_the_query_is_surprising() -> None:
    vectors, rng = normal(16_000, 96, 1), np.random.default_rng(4)
    searcher = opened(stored(vectors, "cosine"))
    for at in (3, 777, 15_999):
        query = (vectors[at] + 0.5 * rng.standard_normal(96)).astype(np.float32)[None]
        question = Question(searcher.encoder, query)
        null = Null(question.estimated(searcher.bits, sampled(searcher.bits))[0][::-1])
        keys, rows = question.estimated(searcher.bits)
        assert rows[0] == at
        found = null.surprise(keys[:2], len(vectors))
        assert found[0] > 12 and found[1] < 8


# -- likelihood --------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=12))
def test_isotonic_steps_are_those_of_the_formula(pairs: list[tuple[int, int]]) -> None:
    """Of maxima and minima over means: Barlow et al. 1972, 1.3."""
    values, weights = np.array([v for v, _ in pairs], np.float64), np.array([w for _, w in pairs])
    levels, sizes = isotonic(values, weights)

    def mean(j: int, k: int) -> float:
        return float(np.average(values[j : k + 1], weights=weights[j : k + 1]))

    n = len(values)
    expected = [max(min(mean(j, k) for k in range(i, n)) for j in range(i + 1)) for i in range(n)]
    assert np.repeat(levels, sizes) == pytest.approx(expected)
    assert sizes.sum() == n and (np.diff(levels) > 0).all()


@pytest.mark.parametrize(("metric", "made"), [("cosine", clustered), ("l2", skewed), ("ip", normal)])
def test_likelihoods_are_those_of_queries_that_nobody_has_seen(metric: Any, made: Any) -> None:
    """In bins of what was said, what was so; and better than to say of each row how likely any of them is."""
    n, m, d, looked = 12_000, 600, 96, 300
    vectors = made(n + m, d, 1)
    rows, queries = stored(vectors[:n], metric), vectors[n:].astype(np.float32)
    searcher = opened(rows)
    near = FlatSearcher(rows).search(queries, 10).rows
    said, true = np.empty((m, looked)), np.empty((m, looked), np.bool_)
    for q in range(m):
        question = Question(searcher.encoder, queries[q : q + 1])
        keys, found = question.estimated(searcher.bits, count=looked)
        said[q], true[q] = likelihood(searcher.likelihood, question, keys, float(keys[9])), np.isin(found, near[q])
    assert ((said >= 0) & (said <= 1)).all() and (np.diff(said, axis=1) <= 0).all(), "it falls with the estimate"
    share = true.mean()
    assert np.square(said - true).mean() < 0.95 * share * (1 - share)
    told = 0
    for low in np.arange(0, 1, 0.1):
        mine = (said >= low) & (said < low + 0.1 + (low > 0.85))
        if mine.sum() < 300:
            continue
        told += 1
        # Rows of one query are not independent: the error is that of sums by query, and of the curve, which is of fewer queries.
        off = np.where(mine, true - said, 0).sum(axis=1)
        error = off.std() * math.sqrt(m) / mine.sum() * math.sqrt(1 + m / 256)
        assert abs(off.sum() / mine.sum()) <= 3 * error + 0.01
    assert told >= 3


def test_few_rows_have_no_curve_and_damaged_ones_are_refused() -> None:
    few = opened(stored(drawn(scores.LEAST_ROWS - 1, 32), "l2"))
    assert few.likelihood.shape == (0, 3)
    rows = stored(drawn(2500, 32), "l2")
    arrays = BACKEND.build(rows, {}, MIB(), Budget(), lambda share: None)
    curve = arrays["likelihood"]
    assert curve.dtype == np.float64 and curve.shape[1] == 3 and np.unique(curve[:, 0]).tolist() == [3, 5, 10]
    for place in (3, 5, 10):
        mine = curve[curve[:, 0] == place]
        assert len(mine) > 3 and (np.diff(mine, axis=0) >= 0).all() and mine[0, 2] >= 0 and mine[-1, 2] <= 1
        assert mine[0, 1] < 0 <= mine[-1, 1], "margins below that place, and at it or above"
    one = curve[curve[:, 0] == 5]
    shifts = np.array([0, 0, 1.5])
    for wrong in (
        curve[::-1], curve[:, :2], curve * np.nan, curve.astype(np.float32), curve + shifts, curve - shifts, one, curve[1:, None],
        curve + np.array([1, 0, 0]), np.r_[one, one[:1] - [0, 1, 0], curve[curve[:, 0] != 5]],
    ):  # fmt: skip
        with pytest.raises(Damaged, match="likelihoods"):
            BACKEND.open({**arrays, "likelihood": wrong}, {}, rows, MIB())


def test_rows_without_a_vector_take_no_part() -> None:
    vectors, flags = drawn(5000, 48), np.random.default_rng(0).random(5000) < 0.6
    holes = np.where(flags[:, None], vectors, 0)
    with_holes = opened(stored(holes, "l2", present=flags), "none")
    dense = stored(vectors[flags], "l2")
    encoder = with_holes.encoder
    codes, factors = encoder.coded(dense)
    curve, decline = scores.fitted(encoder, Bits(codes, factors, len(dense)), dense, Budget(threads=2))
    assert np.array_equal(curve, with_holes.likelihood) and decline == with_holes.lists.decline


def test_a_query_at_the_centre_has_scores() -> None:
    """It is as far from all: no division by nothing."""
    rows = stored(drawn(2500, 64), "l2")
    searcher = opened(rows, "none")
    centre = (searcher.encoder.centre * np.float32(searcher.encoder.unit))[None]
    question = Question(searcher.encoder, centre)
    keys, _ = question.estimated(searcher.bits)
    few = taken(searcher.bits, np.arange(40))
    assert (its(question, few) <= 1).all() and np.isfinite(likelihood(searcher.likelihood, question, keys, keys[9])).all()
    assert np.isfinite(Null(np.sort(keys)).surprise(keys, 2500)).all()
    still = replace(searcher.encoder)
    assert np.array_equal(Question(still, centre).code, question.code)


def test_rows_of_few_bytes_a_number_are_coded_alike() -> None:
    whole = np.rint(10 * drawn(2100, 40)).clip(-127, 127).astype(np.float32)
    norms = np.linalg.norm(whole, axis=1).astype(np.float32)
    curves = [opened(Rows(whole.astype(dtype), norms, "l2"), "none").likelihood for dtype in (np.float32, np.float16, np.int8)]
    assert all(np.array_equal(curve, curves[0]) for curve in curves)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 300), piece=st.sampled_from([64, 128, 1024]), most=st.integers(1, 40), seed=st.integers(0, 1000),
    holes=st.booleans(),
)  # fmt: skip
def test_rows_are_taken_evenly_from_those_with_a_vector(n: int, piece: int, most: int, seed: int, holes: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors = np.where(rng.random(n) < 0.8, rng.random(n), 0).astype(np.float32)[:, None]
    present = rng.random(n) < 0.5 if holes else np.ones(n, np.bool_)
    rows = stored(np.ascontiguousarray(vectors), "l2", present=present if holes else None)
    there = np.flatnonzero(present & (vectors[:, 0] > 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_PIECE", piece)
        taken_, count = evenly(rows, most)
    expected = there if len(there) <= most else there[np.linspace(0, len(there) - 1, most).astype(np.int64)]
    assert count == len(there) and np.array_equal(taken_, expected)


def test_a_build_takes_a_block_of_rows_beside_what_it_makes() -> None:
    """Whatever the rows. What is learned of a sample before is not in it."""
    beside = []
    for n in (20_000, 60_000):
        rows = stored(drawn(n, 256), "l2")
        learned = BACKEND.train(rows, MIB("hadamard", 1), Budget())
        BACKEND.build(rows, learned, MIB("hadamard", 1), Budget(), lambda share: None)  # what is made but once
        tracemalloc.start()
        arrays = BACKEND.build(rows, learned, MIB("hadamard", 1), Budget(), lambda share: None)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        beside.append(most - sum(array.nbytes for array in arrays.values()))
    assert max(beside) <= 4096 * 256 * 4 and beside[1] <= beside[0] + 200_000
