"""One query over many rows: a stream at the speed of memory. Rows that are not allowed are never read."""

from __future__ import annotations

import numpy as np

from .compile import kernel
from .distances import key_of, prefetch
from .select import offer

_AHEAD = 8192  # bytes by which rows are fetched before they are needed


@kernel
def scan(queries, q, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped):
    """Offers rows start..stop to the heap of query q. allowed: bitmap words, empty for all. Returns rows scored."""
    if len(allowed):
        return _scan_allowed(queries, q, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped)
    n, d = vectors.shape
    ahead, line = _AHEAD // (d * vectors.itemsize) + 1, 64 // vectors.itemsize
    row = start
    while row < stop:
        worst = _worst(keys, sizes, q)
        missed = dropped[q]
        key = np.float32(0)
        # Nearly every row stays in this loop: the heap and its arrays are left alone.
        while row < stop:
            coming = min(n - 1, row + ahead) * d
            for element in range(0, d, line):
                prefetch(vectors, coming + element)
            key = key_of(queries, q, vectors, norms, row, metric)
            if not key <= worst:
                break
            if key > missed:
                missed = key
            row += 1
        dropped[q] = missed
        if row < stop:
            offer(keys, rows, sizes, dropped, q, key, row)
            row += 1
    return stop - start


@kernel
def _worst(keys, sizes, q):
    """A key that must be exceeded; NaN, which every key exceeds, while there is room."""
    return keys[q, 0] if sizes[q] == keys.shape[1] else np.float32(np.nan)


@kernel
def _scan_allowed(queries, q, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped):
    scored = 0
    worst = _worst(keys, sizes, q)
    row = start
    while row < stop:
        bits = allowed[row >> 6] >> np.uint64(row & 63)
        if bits == 0:
            row = ((row >> 6) + 1) << 6
            continue
        row += lowest(bits)
        if row >= stop:
            break
        key = key_of(queries, q, vectors, norms, row, metric)
        scored += 1
        if key <= worst:
            dropped[q] = max(dropped[q], key)
        else:
            offer(keys, rows, sizes, dropped, q, key, row)
            worst = _worst(keys, sizes, q)
        row += 1
    return scored


@kernel
def lowest(bits):
    """Position of the lowest set bit of a word that has one: the count of ones below it."""
    below = (bits & (~bits + np.uint64(1))) - np.uint64(1)
    below = below - ((below >> np.uint64(1)) & np.uint64(0x5555555555555555))
    below = (below & np.uint64(0x3333333333333333)) + ((below >> np.uint64(2)) & np.uint64(0x3333333333333333))
    below = (below + (below >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((below * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def with_key(queries, q, vectors, norms, metric, allowed, key, found):
    """Marks in `found` (n,) bool the allowed rows whose key is exactly `key`."""
    for row in range(vectors.shape[0]):
        if len(allowed) == 0 or (allowed[row >> 6] >> np.uint64(row & 63)) & np.uint64(1):
            found[row] = key_of(queries, q, vectors, norms, row, metric) == key
