"""Compiles every kernel ahead, or loads it from the cache: searches and indexes, and how they are built. Any thread."""

from __future__ import annotations

import numpy as np

from .codec.int8 import Codes
from .contract import Budget, Rows, SparseRows
from .flat.search import STREAMED, FlatSearcher
from .flat.sparse import SparseSearcher
from .hnsw.backend import BACKEND
from .hnsw.build import LEAST_IN_HALF_BYTES
from .hnsw.params import HNSW
from .kernels.bitmap import both
from .kernels.distances import read_only
from .mib.backend import BACKEND as BITS
from .mib.params import MIB
from .mib.search import MIBSearcher
from .seismic.backend import BACKEND as SEISMIC
from .seismic.params import Seismic
from .seismic.search import settings_of

_LONG = 1 << 18  # numbers of a row, of which a few are a long search


def warmup() -> None:
    """So that no search or build has to wait for it: about a minute the first time on a machine, then a second."""
    params = HNSW(m=4, ef_construction=8)
    allowed = np.full(1, 7, np.uint64)
    for dtype in (np.float32, np.float16, np.int8):
        few = Rows(np.ones((8, 4), dtype), np.full(8, 2, np.float32), "cosine")
        for rows in (few, Rows(np.ones((8, _LONG), dtype), np.full(8, _LONG**0.5, np.float32), "cosine")):
            codes = Codes.of(rows)
            codes.fill(rows, 0, len(rows))
            for queries in (1, STREAMED + 1):
                for searcher in (FlatSearcher(rows), FlatSearcher(rows, codes)):
                    searcher.search(np.ones((queries, rows.vectors.shape[1]), np.float32), 2)
        FlatSearcher(few).rows_at(np.ones(4, np.float32), 1.0)
        graph = BACKEND.open(BACKEND.build(few, {}, params, Budget(), lambda share: None), {}, few, params)
        for each in (None, allowed):
            graph.search(np.ones((1, 4), np.float32), 2, allowed=each)
        _bits(few)
    both(allowed, allowed)
    # Rows that differ, and enough of them to be walked by codes in half bytes.
    vectors = np.random.default_rng(0).standard_normal((LEAST_IN_HALF_BYTES, 64), np.float32)
    many = Rows(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32), "l2")
    BACKEND.open(BACKEND.build(many, {}, params, Budget(), lambda share: None), {}, many, params).search(vectors[:1], 2)
    _sparse()


def _bits(few: Rows) -> None:
    """By its parts: so few rows would be searched exactly."""
    for rotation, bits in (("none", 1), ("itq", 2)):
        params = MIB(rotation, bits)
        searcher = MIBSearcher(BITS.build(few, {}, params, Budget(), lambda share: None), {}, few, params)
        searcher.look(read_only(np.ones((1, 4), np.float32)), 2, 8)


def _sparse() -> None:
    n = 3000  # so many that an exact search goes by lists
    ends, terms = np.arange(0, 4 * n + 1, 4).astype(np.uint64), np.arange(4 * n) % 37 * 3
    rows = SparseRows(ends, np.sort(terms.reshape(-1, 4), axis=1).astype(np.uint32).ravel(), np.ones(4 * n, np.float32))
    params, words = Seismic(), np.full(-(-n // 64), 7, np.uint64)
    searcher = SEISMIC.open(SEISMIC.build(rows, {}, params, Budget(), lambda share: None), {}, rows, params)
    for each in (None, words):
        searcher.search_with(settings_of(0.3), rows[:1], 2, each)
        searcher.exact.search(rows[:1], 2, allowed=each)
        SparseSearcher(rows).search(rows[:1], 2, allowed=each)
    searcher.rows_at(rows[0], 4.0)
