"""A few queries over many rows by their int8 codes: a quarter of the bytes, and the same answer.

Only rows whose estimate, plus the bound on its error (see `codec.int8`), reaches the k-th best key so far are looked at
themselves, by the pair kernel. So nothing that belongs to the answer is left out, and every key in it is the pair kernel's.
"""

from __future__ import annotations

import numpy as np

from ..codec.int8 import HEAD, dot, head
from ..kernels.bitmap import next_allowed
from ..kernels.compile import brief, kernel
from ..kernels.distances import key_of, pair, prefetch
from ..kernels.scan import AHEAD
from ..kernels.select import offer

_BLOCK_BYTES = 128 << 10  # of codes that stay in a core's own cache while each query passes over them


@kernel
def scan_codes(
    queries, words, scalars, key_unit, codes, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped, floors
):
    """Offers rows start..stop to the heap of each query. allowed: bitmap words, empty for all. Returns (seen, looked at)."""
    m, stride = len(words), np.int64(codes.shape[1])
    step = stop - start
    if m > 1:
        step = max(np.int64(64), _BLOCK_BYTES // stride // 64 * 64)
    seen, looked = 0, 0
    for first in range(start, stop, step):
        last = min(stop, first + step)
        for q in range(m):
            a, b = _scan(
                queries, q, words, scalars, key_unit, codes, vectors, norms, metric, allowed, first, last, keys, rows, sizes,
                dropped, floors[q % len(floors)],
            )  # fmt: skip
            seen += a
            looked += b
    return seen, looked


@brief
def scan_codes_briefly(*arguments):
    return scan_codes(*arguments)


@kernel
def _scan(
    queries, q, words, scalars, key_unit, codes, vectors, norms, metric, allowed, first, last, keys, rows, sizes, dropped, floor
):
    d, stride = np.int64(vectors.shape[1]), np.int64(codes.shape[1])
    t, b = np.float32(scalars[q, 0]), np.float32(scalars[q, 1])
    lost, rough = np.float32(scalars[q, 3]), np.float32(scalars[q, 4])
    limit = _limit(keys, sizes, scalars, q, floor, key_unit)
    seen, looked = 0, 0
    row = next_allowed(allowed, first, last)
    while row < last:
        following = row + 1 if len(allowed) == 0 else next_allowed(allowed, row + 1, last)
        place = row * stride
        if len(allowed):
            prefetch(codes, following * stride, stride)
        else:
            prefetch(codes, place + AHEAD, stride)
        s = head(codes, place)
        product = np.float32(dot(words, q * (stride - HEAD), codes, place + HEAD, stride - HEAD))
        best = t * (s * product) - b * head(codes, place + 8) + lost * head(codes, place + 12) + rough * s
        seen += 1
        if not best < limit:
            key = key_of(pair(queries, q * d, vectors, row * d, d, metric, 0), norms[row], metric)
            offer(keys, rows, sizes, dropped, q, key, row)
            looked += 1
            limit = _limit(keys, sizes, scalars, q, floor, key_unit)
        row = following
    return seen, looked


@kernel
def _limit(keys, sizes, scalars, q, floor, key_unit):
    """What an estimate and its bound must reach for the row to have the key of the k-th place, or the floor."""
    worst = max(np.float64(keys[q, 0]), np.float64(floor)) if sizes[q] == keys.shape[1] else np.float64(floor)
    limit = worst / key_unit - scalars[q, 2]
    return np.float32(limit - scalars[q, 5] - 2.0**-21 * abs(limit))
