"""Many queries over many rows: blocks of rows are multiplied with tiles of queries, and few rows are looked at closely.

What the multiplication (`product`) gives only decides which rows the pair kernel looks at: those whose approximate key, plus
a rigorous bound on its error, reaches the query's k-th best key so far. So nothing that belongs to the answer is left
out, and every key in it is the pair kernel's.

Two forms share all this. The exact one multiplies float32. The coarse one, for CPUs that multiply bytes four at a time,
multiplies queries and rows rounded to a byte per element, q' and x', each with a scale of its own. What rounding takes
away is known, so by Cauchy-Schwarz, and Higham, Accuracy and Stability, 3.1, with a generous constant,

    |q.x - q'.x'| <= |q| |x - x'| + |q - q'| |x'|                      (0 in the exact form)
    |fl(q.x) - q.x| <= g |q| |x|,  g = (d + 64) 2^-22

Where the coarse form lets too many rows through, the exact one takes over. Rows and queries whose length is not
within 2^-30 .. 2^30 (zero, overflowing, NaN) always go on to the pair kernel: no bound here has to think of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .bitmap import lowest, next_allowed
from .compile import kernel
from .distances import COSINE, L2, key_of, pair, prefetch
from .product import COARSE, LANES, MR, coarse_product, exact_product, magnitude, rounded, widen
from .scan import AHEAD
from .select import offer

_BLOCK_BYTES = 64 << 10  # of rounded rows: with a tile of queries they fit a core's own cache
_SAFE = 2.0**30
Tiles = tuple[npt.NDArray[Any], ...]


def tiles_of(queries: npt.NDArray[np.float32]) -> Tiles:
    """Prepared queries, and with them transposed and padded to whole tiles: (queries, exact, its lanes, coarse, its lanes).

    exact: (tiles, 1 + d, LANES) float32; coarse: (tiles, 1 + d / 4, LANES) int32, four elements a step; step 0 is what the
    sums start from. lanes: (tiles, 4, LANES) float32, a query's limit, |q|, |q - q'| and 1, all divided by its scale.
    """
    m, d = queries.shape
    tiles = -(-m // LANES)
    exact, exact_lanes = np.zeros((tiles, 1 + d, LANES), np.float32), np.zeros((tiles, 4, LANES), np.float32)
    coarse = np.zeros((tiles if COARSE else 0, 1 - -d // 4, LANES), np.int32)
    coarse_lanes = np.zeros((len(coarse), 4, LANES), np.float32)
    exact_lanes[:, 0], coarse_lanes[:, 0] = np.inf, np.inf  # a lane without a query is never reached
    _pack(queries, exact, exact_lanes, coarse, coarse_lanes)
    return queries, exact, exact_lanes, coarse, coarse_lanes


@kernel
def _pack(queries, exact, exact_lanes, coarse, coarse_lanes):
    m, d = queries.shape
    codes = np.empty(d, np.uint8)
    for q in range(m):
        tile, lane = q // LANES, q % LANES
        square = np.float64(0)
        for i in range(d):
            exact[tile, 1 + i, lane] = queries[q, i]
            square += np.float64(queries[q, i]) * np.float64(queries[q, i])
        length = np.sqrt(square)
        safe = 1 / _SAFE < length < _SAFE
        exact_lanes[tile, 1, lane] = length if safe else np.inf
        exact_lanes[tile, 3, lane] = 1
        if COARSE:
            scale = magnitude(queries, q * d, d) / np.float32(127) if safe else np.float32(1)
            lost = np.sqrt(np.float64(rounded(queries, q * d, d, scale, np.float32(128), codes, 0)))
            start = np.int32(0)
            for i in range(d):
                code = np.int32(codes[i]) - np.int32(128)
                coarse[tile, 1 + i // 4, lane] |= (code & np.int32(255)) << np.int32(8 * (i % 4))
                start -= np.int32(128) * code  # what the 128 in every code of a row adds up to
            coarse[tile, 0, lane] = start
            coarse_lanes[tile, 1, lane] = length / scale if safe else np.inf
            coarse_lanes[tile, 2, lane] = lost / scale * 1.001
            coarse_lanes[tile, 3, lane] = 1 / scale


@kernel
def _worst(keys, sizes, q, floors):
    """The key that a row must have at least."""
    floor = floors[q % len(floors)]
    return max(keys[q, 0], floor) if sizes[q] == keys.shape[1] else floor


@kernel
def _limit(key, length, unit, g, metric):
    """What the approximate key must reach for its row to be able to have at least `key`, in a lane's own unit."""
    limit = np.float64(key)
    if metric == L2:  # -|q - x|^2 >= key where 2 q.x - |x|^2 >= key + |q|^2
        square = np.float64(length) * length
        limit += square - g * (abs(limit) + square)
    return np.float32((limit - g * abs(limit)) * unit)


@kernel
def _fill(vectors, norms, metric, picked, taken, coarse, g, stride, codes, block, terms):
    """Rounds the `taken` rows `picked` to `codes`, or widens them to `block`.

    terms: of each row, what the product, |q|, |q - q'| and 1 are multiplied with to give the largest key it could have.
    """
    d = np.int64(vectors.shape[1])
    ahead = AHEAD // (d * vectors.itemsize) + 1
    for one in range(taken):
        row = picked[one]
        prefetch(vectors, picked[min(taken - 1, one + ahead)] * d, d)
        norm = norms[row]
        safe = 1 / _SAFE < norm < _SAFE
        lost, scale, unit = np.float32(0), np.float32(1), np.float32(1)
        if not coarse:
            widen(vectors, row * d, d, block, one * d)
        else:
            if safe and vectors.itemsize > 1:
                scale = magnitude(vectors, row * d, d) / np.float32(127)
            lost = np.sqrt(rounded(vectors, row * d, d, scale, np.float32(128), codes, one * stride)) * np.float32(1.001)
        if metric == COSINE:
            unit = np.float32(1) / norm
        elif metric == L2:
            unit = np.float32(2)
        terms[one, 0] = scale * unit
        terms[one, 1] = (lost + np.float32(g) * norm) * unit if safe else np.float32(np.inf)
        terms[one, 2] = (norm + lost) * np.float32(1.001) * unit
        terms[one, 3] = -norm * norm * np.float32(1 - g) if metric == L2 else np.float32(0)


@kernel
def search_tiles(tiles, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped, floors):
    """Offers rows start..stop to the heaps of all queries, but none below its floor. Returns rows scored, times queries."""
    queries, exact, exact_lanes, coarse, coarse_lanes = tiles
    n, d = vectors.shape
    m, k = keys.shape
    g = np.float64(d + 64) * 2.0**-22
    stride = (d + 3) // 4 * 4
    size = max(MR, _BLOCK_BYTES // stride // MR * MR)
    picked, reached = np.empty(size, np.int64), np.empty(size, np.uint64)
    terms = np.empty((size, 4), np.float32)
    codes = np.empty(size * stride if COARSE else 0, np.uint8)
    block = np.empty(0 if COARSE else size * d, np.float32)
    in_bytes = COARSE
    row, scored, offered = next_allowed(allowed, start, stop), 0, 0
    while row < stop:
        taken = 0
        while row < stop and taken < size:
            picked[taken] = row
            taken += 1
            row = next_allowed(allowed, row + 1, stop)
        _fill(vectors, norms, metric, picked, taken, in_bytes, g, stride, codes, block, terms)
        for first in range(0, m, LANES):
            tile, count = first // LANES, min(LANES, m - first)
            lanes, lengths = coarse_lanes[tile] if in_bytes else exact_lanes[tile], exact_lanes[tile, 1]
            for lane in range(count):
                q = first + lane
                worst = _worst(keys, sizes, q, floors)
                lanes[0, lane] = _limit(worst, lengths[lane], lanes[3, lane], g, metric) if worst > -np.inf else -np.inf
            for one in range(0, taken, MR):
                # While the first tile is multiplied, the rows of the next block come in.
                coming, pace = (min(n, row + one) * d, MR * (4 if in_bytes else 1)) if first == 0 else (0, 0)
                if in_bytes:
                    coarse_product(codes, stride, coarse, tile, stride // 4, lanes, terms, one, reached, vectors, coming, pace)
                else:
                    exact_product(block, d, exact, tile, d, lanes, terms, one, reached, vectors, coming, pace)
                for this in range(one, min(taken, one + MR)):
                    bits, r = reached[this], picked[this]
                    while bits:
                        lane = lowest(bits)
                        bits &= bits - np.uint64(1)
                        q = first + lane
                        if lane < count:
                            offered += 1
                            key = key_of(pair(queries, q * d, vectors, r * d, d, metric, 0), norms[r], metric)
                            offer(keys, rows, sizes, dropped, q, key, r)
                            worst = _worst(keys, sizes, q, floors)
                            if worst > -np.inf:
                                lanes[0, lane] = _limit(worst, lengths[lane], lanes[3, lane], g, metric)
        scored += taken * m
        # Beside the rows that fill the heaps, one in eight looked at closely costs as much as the exact form.
        if in_bytes and offered > scored // 8 + 8 * k * m:
            in_bytes = False
            block = np.empty(size * d, np.float32)
    return scored
