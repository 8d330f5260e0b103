"""Codes in half bytes: estimates are what the formula says, on every processor; and they are used where they serve."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vecdb_index.codec.int4 import BESIDE, Int4, estimate4, numbers_in, principal, query_of, strides_of
from vecdb_index.codec.int8 import HEAD, Codes, width_of
from vecdb_index.contract import Budget, Damaged, Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.hnsw.backend import BACKEND
from vecdb_index.hnsw.params import HNSW
from vecdb_index.kernels.distances import METRICS, read_only
from vecdb_index.kernels.product import AVX2

PARAMS = HNSW(ef_construction=60)
METRIC = pytest.mark.parametrize("metric", METRICS)


@numba.njit
def _estimates(words, t, b, f, codes, near, out):
    for i in range(0, len(out), 4):
        estimate4(words, 0, t, b, f, codes, near, i, out)


def rows_of(vectors: Any, metric: Any) -> Rows:
    vectors = np.ascontiguousarray(vectors, np.float32)
    return Rows(vectors, np.sqrt((vectors.astype(np.float64) ** 2).sum(1)).astype(np.float32), metric)


def coded(rows: Rows, stride: int, seed: int = 0) -> tuple[Codes, Int4]:
    full = Codes.of(rows)
    full.fill(rows, 0, len(rows))
    small = Int4.of(
        full, stride, principal(full, np.arange(len(rows)), min(rows.vectors.shape[1], numbers_in(stride)), seed), seed
    )
    small.fill(full, 0, len(rows))
    return full, small


def unpacked(small: Int4) -> np.ndarray:
    """(n, m): the codes, as the module says they lie."""
    body = small.codes[:, 8:]
    return np.concatenate([body & 15, body >> 4], axis=1)[:, : len(small.steps)].astype(np.int64)


def estimates(words: Any, t: float, b: float, f: float, small: Int4) -> np.ndarray:
    n = len(small.codes)
    near = np.concatenate([np.arange(n), np.zeros(-n % 4, np.int64)])
    out = np.empty(len(near), np.float32)
    _estimates(read_only(words), np.float32(t), np.float32(b), np.float32(f), small.codes, near, out)
    return out[:n]


@METRIC
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), d=st.integers(49, 300), n=st.integers(1, 40), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_estimates_are_what_the_module_says(metric: Any, seed: int, d: int, n: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rows_of(rng.standard_normal((n, d)) * scale * rng.lognormal(0, 1, (n, 1)), metric)
    _, small = coded(rows, int(rng.choice(strides_of(d))), seed)
    step, w = (small.codes[:, :8].copy().view(np.float32)[:, i] for i in (0, 1))
    u = unpacked(small)
    query = rng.standard_normal(d).astype(np.float32)
    _, words, scalars = small.ask(query[None])
    t, b, f = scalars[0, :3]
    # The query's bytes, taken out of the places where the kernel meets each half.
    asked = words[0].view(np.int8).reshape(-1, 2, 32).astype(np.int64)
    of_low, of_high = asked[:, 0].ravel()[8:], asked[:, 1].ravel()[8:]
    p = np.concatenate([of_low, of_high])[: u.shape[1]]
    assert not asked[:, :, :8][0].any(), "the head of a record is multiplied by nothing"
    assert f == 7.5 * p.sum()
    expected = np.float32(t) * (step * ((u @ p).astype(np.float32) - np.float32(f))) - np.float32(b) * w
    np.testing.assert_array_equal(estimates(words[0], t, b, f, small), expected)
    assert (b == 0) == (metric == "ip")


@METRIC
def test_estimates_go_by_distances_in_the_directions_that_are_kept(metric: Any) -> None:
    """With all dimensions kept, what four bits lose is all that is lost: about a tenth of the length, in any direction."""
    rng = np.random.default_rng(1)
    rows = rows_of(rng.standard_normal((500, 100)) + 0.5, metric)
    full, small = coded(rows, 64)
    x = rows.vectors / (rows.norms[:, None] if metric == "cosine" else full.unit)
    query = rng.standard_normal(100).astype(np.float32)
    _, words, scalars = small.ask(query[None])
    found = estimates(words[0], *scalars[0, :3], small)
    q = query / np.linalg.norm(query) if metric == "cosine" else query / full.unit if metric == "l2" else query
    true = x @ q if metric == "ip" else -((x - q) ** 2).sum(1)
    off = found - true
    assert np.std(off) < 0.15 * np.std(true)
    assert small.key_unit == pytest.approx({"cosine": 0.5, "l2": full.unit**2, "ip": full.unit}[metric])


def test_a_row_as_a_query_is_what_its_codes_say() -> None:
    rng = np.random.default_rng(2)
    _, small = coded(rows_of(rng.standard_normal((50, 150)), "l2"), 128)
    u, m = unpacked(small), len(small.steps)
    words = np.zeros(128, np.int16)
    f = query_of(small.codes, 7, m, words.view(np.int8), 0)
    found = estimates(words, 1.0, 0.0, f, small)
    step = small.codes[:, :4].copy().view(np.float32)[:, 0]
    np.testing.assert_allclose(found, step * ((u - 7.5) @ (2 * u[7] - 15)), rtol=1e-5, atol=1e-4)


def test_what_lies_beside_the_directions_is_kept_as_a_length() -> None:
    rng = np.random.default_rng(3)
    wide = np.concatenate([10 * rng.standard_normal((400, 100)), rng.standard_normal((400, 200))], axis=1)
    full, small = coded(rows_of(wide, "l2"), 64)
    decoded = full.codes[:, HEAD : HEAD + 300] * full.codes[:, :4].copy().view(np.float32)
    step, w = (small.codes[:, :8].copy().view(np.float32)[:, i] for i in (0, 1))
    within = (((unpacked(small) - 7.5) * step[:, None]) ** 2).sum(1)
    beside = (w - within) / BESIDE
    assert (beside > 0).all()
    assert np.mean(beside / (decoded**2).sum(1)) == pytest.approx(200 / (100 * 100 + 200), rel=0.4)


def test_records_are_whole_cache_lines_and_begin_with_one() -> None:
    for d in (1, 32, 48, 64, 112, 113, 768, 4096, 65_535):
        for stride in strides_of(d):
            assert stride % 64 == 0
            assert stride < width_of(d)
    assert all(strides_of(d) for d in (64, 768, 65_535))
    _, small = coded(rows_of(np.random.default_rng(4).standard_normal((30, 200)), "l2"), 128)
    assert small.codes.ctypes.data % 64 == 0


def build(rows: Rows, threads: int = 1) -> Any:
    return BACKEND.build(rows, {}, PARAMS, Budget(threads=threads), lambda share: None)


def test_a_graph_is_walked_by_them_where_they_tell_neighbours_apart_and_else_by_whole_bytes() -> None:
    rng = np.random.default_rng(5)
    spread = rng.standard_normal((2500, 96))
    centres = 10 * rng.standard_normal((5, 96))
    tight = centres[rng.integers(0, 5, 2500)] + 0.5 * rng.standard_normal((2500, 96))
    lines = []
    for vectors in (spread, tight, np.ones((2500, 96))):
        rows = rows_of(vectors, "l2")
        arrays = build(rows)
        lines.append(arrays["near"].shape[1])
        queries = rows.vectors[::50] + np.float32(0.001)
        true = FlatSearcher(rows).search(queries, 10)
        found = BACKEND.open(arrays, {}, rows, PARAMS).search(queries, 10, 0.7)
        assert np.mean(found.keys >= true.keys[:, 9:] - 1e-6) > 0.97
    assert lines[0] == 64
    assert lines[1] == 0, "rows of one cluster are nearer to each other than the step of four bits"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("near", np.zeros((2500, 100), np.uint8)), ("near", np.zeros((2499, 64), np.uint8)), ("near", np.zeros((2500, 64), np.int8)),
        ("directions", np.zeros((96, 95), np.uint8)), ("directions", np.zeros((96, 96), np.int8)),
        ("directions", np.zeros((92, 96), np.uint8)), ("steps", np.full(96, np.nan, np.float32)),
        ("steps", np.ones((96, 1), np.float32)), ("steps", np.ones(200, np.float32)),
    ],
)  # fmt: skip
def test_damaged_codes_are_refused(name: str, value: Any) -> None:
    rows = rows_of(np.random.default_rng(5).standard_normal((2500, 96)), "l2")
    arrays = dict(_built(rows))
    assert arrays["near"].shape == (2500, 64)
    with pytest.raises(Damaged):
        BACKEND.open({**arrays, name: value}, {}, rows, PARAMS)


_kept: dict[int, Any] = {}


def _built(rows: Rows) -> Any:
    return _kept.setdefault(0, build(rows))


PROGRAM = """
import hashlib, sys
import numpy as np
from vecdb_index.contract import Budget, Rows
from vecdb_index.hnsw.backend import BACKEND
from vecdb_index.hnsw.params import HNSW
from vecdb_index.kernels.product import AVX2
from vecdb_index.codec.int4 import Int4

x = np.random.default_rng(0).standard_normal((2200, 130)).astype(np.float32)
rows = Rows(x, np.linalg.norm(x, axis=1).astype(np.float32), "cosine")
params = HNSW(m=8, ef_construction=40)
arrays = BACKEND.build(rows, {}, params, Budget(threads=int(sys.argv[1])), lambda share: None)
assert arrays["near"].shape[1], "the test is of half bytes"
found = BACKEND.open(arrays, {}, rows, params).search(x[:50] + np.float32(0.1), 10, 0.5)
sums = [hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for _, array in sorted(arrays.items())]
print(AVX2, *sums, hashlib.sha256(found.rows).hexdigest())
"""


@pytest.mark.skipif(not AVX2, reason="without AVX2 all tests run on the plain kernels anyway")
def test_without_avx2_and_with_two_threads_bytes_and_answers_are_the_same() -> None:
    told = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+fma,+f16c"}
    runs = []
    for threads, environment in ((1, {}), (2, {}), (1, told)):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(threads)], env={**os.environ, **environment, "PYTHONWARNINGS": "ignore"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        runs.append(done.stdout.split())
    assert [run[0] for run in runs] == ["True", "True", "False"]
    assert runs[0][1:] == runs[1][1:], "threads"
    assert runs[0][1:] == runs[2][1:], "processors"
