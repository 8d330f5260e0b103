"""int8 codes: their bound holds, and an exact search over them is the exact search over the rows, bit for bit."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vecdb_index.codec import int8
from vecdb_index.codec.int8 import HEAD, Codes
from vecdb_index.contract import Damaged, Hits, Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.kernels.distances import METRICS

METRIC = pytest.mark.parametrize("metric", METRICS)


@numba.njit
def _dots(words, codes, out):
    for row in range(len(codes)):
        out[row] = int8.dot(words, 0, codes, row * codes.shape[1], codes.shape[1])


def rows_of(vectors: Any, metric: Any, dtype: Any = np.float32) -> Rows:
    vectors = np.ascontiguousarray(np.asarray(vectors).astype(dtype))
    with np.errstate(over="ignore"):
        return Rows(vectors, np.sqrt((vectors.astype(np.float64) ** 2).sum(1)).astype(np.float32), metric)


def coded(rows: Rows) -> Codes:
    codes = Codes.of(rows)
    codes.fill(rows, 0, len(rows))
    return codes


def same(a: Hits, b: Hits) -> None:
    for name in ("rows", "lengths", "tied"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.keys.view(np.uint32), b.keys.view(np.uint32))


@pytest.mark.parametrize("d", [16, 32, 48, 400, 65_536])
def test_products_are_exact_up_to_the_greatest_words_and_codes(d: int) -> None:
    rng, most = np.random.default_rng(d), int8.most_of(d)
    words = np.stack([rng.integers(-most, most + 1, d), np.full(d, most), np.full(d, -most)]).astype(np.int16)
    codes = np.stack([rng.integers(-127, 128, d), np.full(d, 127), np.full(d, -127)]).astype(np.int8)
    out = np.zeros(3, np.int64)
    for word in words:
        _dots(word, codes, out)
        np.testing.assert_array_equal(out, codes.astype(np.int64) @ word.astype(np.int64))


@METRIC
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    d=st.integers(1, 70),
    scale=st.sampled_from((1e-12, 1.0, 1e9)),
    shift=st.sampled_from((0, 3, 50)),
)
def test_no_key_is_further_from_its_estimate_than_the_bound(metric: Any, seed: int, d: int, scale: float, shift: int) -> None:
    """Against float64, for rows of very different lengths, far from the origin, and queries of other lengths."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((40, d)) * rng.lognormal(0, 2, (40, 1)) + shift) * scale
    rows = rows_of(x, metric)
    codes = coded(rows)
    given = (rng.standard_normal((5, d)) * rng.lognormal(0, 2, (5, 1)) * scale).astype(np.float32)
    q, words, scalars = codes.ask(given)
    heads = codes.codes[:, :HEAD].copy().view(np.float32).astype(np.float64)
    exact = rows.vectors.astype(np.float64)
    if metric == "cosine":
        exact /= np.sqrt((exact**2).sum(1))[:, None]
    for query, word, (t, b, constant, lost, rough, slack) in zip(q.astype(np.float64), words, scalars, strict=True):
        product = codes.codes[:, HEAD:].astype(np.float64) @ word.astype(np.float64)
        estimate = t * heads[:, 0] * product - b * heads[:, 2] + constant
        key = -((exact - query) ** 2).sum(1) if metric == "l2" else exact @ query
        bound = lost * heads[:, 3] + rough * heads[:, 0] + slack
        assert (np.abs(key / codes.key_unit - estimate) <= bound).all()


@METRIC
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
@pytest.mark.parametrize("d", [1, 5, 64, 100])
def test_an_exact_search_over_codes_is_the_one_over_rows(metric: Any, dtype: Any, d: int) -> None:
    """With ties, filters, floors, any k and number of queries, and over parts."""
    rng = np.random.default_rng(d)
    x = rng.integers(1, 5, (900, d)) if dtype == np.int8 or d == 5 else rng.standard_normal((900, d)) + 1
    rows = rows_of(x, metric, dtype)
    plain, over = FlatSearcher(rows), FlatSearcher(rows, coded(rows))
    q = rng.standard_normal((9, d)).astype(np.float32)
    flags = rng.random(15 * 64) < 0.1
    flags[900:] = False
    some = np.packbits(flags, bitorder="little").view(np.uint64)
    for m in (1, 2, 8, 9):
        for k in (1, 7, 2000):
            for allowed in (None, some):
                same(over.search(q[:m], k, allowed=allowed), plain.search(q[:m], k, allowed=allowed))
    floor = plain.search(q[:3], 10).keys[:, 4].copy()
    same(over.search(q[:3], 10, floor=floor), plain.search(q[:3], 10, floor=floor))
    same(over.part(64, 400).search(q[:1], 5), plain.part(64, 400).search(q[:1], 5))


@METRIC
def test_rows_that_codes_cannot_tell_apart_are_told_apart(metric: Any) -> None:
    """A number a thousand times as large as the others takes all the codes; equal rows; no length at all."""
    rng = np.random.default_rng(1)
    odd = rng.standard_normal((500, 32))
    odd[:, 3] *= 1e5
    near = 1 + 1e-4 * rng.standard_normal((500, 32))
    huge = rng.standard_normal((500, 32)) * 10.0 ** rng.integers(-15, 15, (500, 1))
    for x in (odd, near, huge, np.ones((500, 32))):
        rows = rows_of(x, metric)
        for q in (x[:3].astype(np.float32), rng.standard_normal((3, 32)).astype(np.float32)):
            same(FlatSearcher(rows, coded(rows)).search(q, 10), FlatSearcher(rows).search(q, 10))


def test_codes_that_grow_are_those_made_at_once() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((700, 24)).astype(np.float32) * np.linspace(1, 30, 700, dtype=np.float32)[:, None]
    rows = rows_of(x, "ip")
    codes = Codes.of(rows_of(x[:100], "ip"), 700)
    for stop in (100, 101, 350, 700):
        part = rows_of(x[:stop], "ip")
        codes.fill(part, stop - 1 if stop == 101 else max(0, {350: 101, 700: 350}.get(stop, 0)), stop)
        q = rng.standard_normal((1, 24)).astype(np.float32)
        same(FlatSearcher(part, codes.part(0, stop)).search(q, 5), FlatSearcher(part).search(q, 5))
    assert codes.longest == pytest.approx(float(rows.norms.max()))


def test_stored_codes_of_other_rows_are_refused() -> None:
    rows = rows_of(np.random.default_rng(3).standard_normal((50, 20)), "cosine")
    arrays = dict(coded(rows).arrays())
    same(
        FlatSearcher(rows, Codes.opened(arrays, rows)).search(rows.vectors[:1], 5),
        FlatSearcher(rows).search(rows.vectors[:1], 5),
    )
    for name, wrong in (("codes", arrays["codes"][1:]), ("centre", arrays["centre"][1:]), ("scale", arrays["scale"][1:])):
        with pytest.raises(Damaged):
            Codes.opened({**arrays, name: wrong}, rows)
