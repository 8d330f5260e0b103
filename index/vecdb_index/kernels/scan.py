"""A few queries over many rows: a stream at the speed of memory. Rows that are not allowed are never read."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np

from .bitmap import next_allowed
from .compile import brief, kernel
from .distances import key_of, pair
from .select import offer

AHEAD = 8192  # bytes by which rows are fetched before they are needed
# AMD's own prefetcher keeps up with float32, and ours is then in its way: 0.92 of the read bandwidth without it on a Zen 3,
# 0.75 with it. Narrower rows, which take longer to widen than to read, want it there too; so does every row on Intel.
_AHEAD_F32 = 0 if llvm.get_host_cpu_name().startswith("znver") else AHEAD
_BLOCK_BYTES = 256 << 10  # of rows that stay in a core's own cache while each query passes over them


@kernel
def scan(queries, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped, floors):
    """Offers rows start..stop to the heap of each query, but none below its floor. Returns rows scored.

    allowed: bitmap words, empty for all. floors: of each query, or one for all.
    """
    m, d = queries.shape
    step = max(64, _BLOCK_BYTES // (d * vectors.itemsize) // 64 * 64) if m > 1 else stop - start
    scored = 0
    for first in range(start, stop, step):
        last = min(stop, first + step)
        for q in range(m):
            if len(allowed):
                scored += _scan_allowed(queries, q, vectors, norms, metric, allowed, first, last, keys, rows, sizes, dropped)
            else:
                floor = floors[q % len(floors)]
                scored += _scan_all(queries, q, vectors, norms, metric, first, last, keys, rows, sizes, dropped, floor)
    return scored


@brief
def scan_briefly(*arguments):
    return scan(*arguments)


@kernel
def _scan_all(queries, q, vectors, norms, metric, start, stop, keys, rows, sizes, dropped, floor):
    d = np.int64(vectors.shape[1])
    ahead = (_AHEAD_F32 if vectors.itemsize == 4 else AHEAD) // vectors.itemsize
    row = start
    while row < stop:
        worst = _worst(keys, sizes, q, floor)
        missed = dropped[q]
        key = np.float32(0)
        # Nearly every row stays in this loop: the heap and its arrays are left alone.
        while row < stop:
            key = key_of(pair(queries, q * d, vectors, row * d, d, metric, ahead), norms[row], metric)
            if not key <= worst:
                break
            if not key <= missed:
                missed = key
            row += 1
        dropped[q] = missed
        if row < stop:
            offer(keys, rows, sizes, dropped, q, key, row)
            row += 1
    return stop - start


@kernel
def _worst(keys, sizes, q, floor):
    """A key that must be exceeded; NaN, which every key exceeds, while there is room and no floor."""
    if sizes[q] == keys.shape[1] and keys[q, 0] >= floor:
        return keys[q, 0]
    return np.nextafter(floor, np.float32(-np.inf)) if floor > -np.inf else np.float32(np.nan)


@kernel
def _scan_allowed(queries, q, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped):
    d, scored = vectors.shape[1], 0
    row = next_allowed(allowed, start, stop)
    while row < stop:
        key = key_of(pair(queries, q * d, vectors, row * d, d, metric, 0), norms[row], metric)
        offer(keys, rows, sizes, dropped, q, key, row)
        scored += 1
        row = next_allowed(allowed, row + 1, stop)
    return scored


@kernel
def with_key(queries, vectors, norms, metric, allowed, key, found):
    """Marks in `found` (n,) bool the allowed rows whose key for the first query is exactly `key`."""
    n, d = vectors.shape
    row = next_allowed(allowed, 0, n)
    while row < n:
        found[row] = key_of(pair(queries, 0, vectors, row * d, d, metric, 0), norms[row], metric) == key
        row = next_allowed(allowed, row + 1, n)
