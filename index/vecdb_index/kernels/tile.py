"""Many queries over many rows: a register-blocked multiplication whose results never leave the cache.

A tile of LANES queries is packed transposed, (d, LANES), so that one step of the inner loop loads its lanes as vectors and
multiplies them with MR broadcast row elements into MR * VECTORS accumulators that live in registers. Its shape is chosen by
what the CPU has: 6 rows x 64 queries with AVX-512, 6 x 16 with AVX2, 6 x 16 elsewhere. A block of rows (widened to
float32, gathered when only some are allowed) gives a small table of approximate inner products; a row goes on to the pair
kernel only if its approximate key reaches the query's threshold: the k-th best key so far, minus a bound on the
error of both computations,

    |fl(q.x) - q.x| <= g |q| |x|,  g = (d + 16) 2^-23   (Higham, Accuracy and Stability, 3.1, twice over),

so that nothing that belongs to the answer is ever left out. Where a bound is not finite, every row goes on.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from .compile import intrinsic, kernel
from .distances import COSINE, L2, fma, key_of, load, pointer, widen
from .scan import lowest
from .select import offer

_FEATURES = llvm.get_host_cpu_features()
WIDTH, VECTORS = (16, 4) if _FEATURES.get("avx512f") else (8, 2) if _FEATURES.get("avx2") else (4, 4)
LANES = WIDTH * VECTORS
MR = 6
BLOCK_BYTES = 96 << 10  # of widened rows: with the tile of queries they fit a core's own cache
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, WIDTH)


def _product(rows_at_once: int) -> Any:
    """An intrinsic that multiplies that many rows with a tile of queries."""

    @intrinsic
    def product(typing: Any, rows: Any, row_at: Any, packed: Any, count: Any, out: Any, out_at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row_type, _, packed_type, _, out_type, _ = signature.args
            rows, row_at, packed, count, out, out_at = arguments
            zero = ir.Constant(_VECTOR, [0.0] * WIDTH)
            before = builder.block
            loop, after = builder.append_basic_block("tile"), builder.append_basic_block("tiled")
            builder.branch(loop)
            builder.position_at_end(loop)
            at = builder.phi(_I64)
            at.add_incoming(ir.Constant(_I64, 0), before)
            sums = [[builder.phi(_VECTOR) for _ in range(VECTORS)] for _ in range(rows_at_once)]
            for phi in (phi for row in sums for phi in row):
                phi.add_incoming(zero, before)
            lane = builder.mul(at, ir.Constant(_I64, LANES))
            queries = [
                load(
                    builder,
                    pointer(context, builder, packed_type, packed, builder.add(lane, ir.Constant(_I64, v * WIDTH)), _VECTOR),
                    _VECTOR,
                )
                for v in range(VECTORS)
            ]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
            undefined = ir.Constant(_VECTOR, ir.Undefined)
            for r, row in enumerate(sums):
                element = builder.add(builder.add(row_at, builder.mul(count, ir.Constant(_I64, r))), at)
                single = load(builder, pointer(context, builder, row_type, rows, element, _F32), _F32)
                splat = builder.shuffle_vector(
                    builder.insert_element(undefined, single, ir.Constant(ir.IntType(32), 0)), undefined, mask
                )
                for v, phi in enumerate(row):
                    phi.add_incoming(fma(builder, splat, queries[v], phi), loop)
            following = builder.add(at, ir.Constant(_I64, 1))
            at.add_incoming(following, loop)
            builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
            builder.position_at_end(after)
            for r, row in enumerate(sums):
                for v, phi in enumerate(row):
                    place = builder.add(out_at, ir.Constant(_I64, r * LANES + v * WIDTH))
                    final = next(value for value, block in phi.incomings if block is loop)
                    builder.store(final, pointer(context, builder, out_type, out, place, _VECTOR)).align = 4
            return context.get_dummy_value()

        return types.void(rows, types.int64, packed, types.int64, out, types.int64), codegen

    return product


product_of_many, product_of_one = _product(MR), _product(1)


@intrinsic
def reaching(typing: Any, table: Any, table_at: Any, scale: Any, shift: Any, thresholds: Any) -> Any:
    """Lanes of a row of the table whose scale * value + shift is not below its threshold, as bits; NaN reaches."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        table_type, _, _, _, threshold_type = signature.args
        table, table_at, scale, shift, thresholds = arguments
        mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        undefined = ir.Constant(_VECTOR, ir.Undefined)

        def splat(value: Any) -> Any:
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(first, undefined, mask)

        scales, shifts = splat(scale), splat(shift)
        bits = ir.Constant(_I64, 0)
        for v in range(VECTORS):
            place = builder.add(table_at, ir.Constant(_I64, v * WIDTH))
            values = load(builder, pointer(context, builder, table_type, table, place, _VECTOR), _VECTOR)
            limits_at = pointer(context, builder, threshold_type, thresholds, ir.Constant(_I64, v * WIDTH), _VECTOR)
            reached = builder.fcmp_unordered(">=", fma(builder, values, scales, shifts), load(builder, limits_at, _VECTOR))
            part = builder.zext(builder.bitcast(reached, ir.IntType(WIDTH)), _I64)
            bits = builder.or_(bits, builder.shl(part, ir.Constant(_I64, v * WIDTH)))
        return bits

    return types.uint64(table, types.int64, types.float32, types.float32, thresholds), codegen


def pack_queries(queries: npt.NDArray[np.float32], first: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The tile of queries from `first` on, transposed and padded with zeros, and their lengths (LANES,)."""
    tile = queries[first : first + LANES]
    packed = np.zeros((queries.shape[1], LANES), np.float32)
    packed[:, : len(tile)] = tile.T
    lengths = np.zeros(LANES, np.float32)
    with np.errstate(over="ignore"):
        lengths[: len(tile)] = np.sqrt(np.vecdot(tile.astype(np.float64), tile.astype(np.float64)))
    return packed, lengths


@kernel
def _threshold(key, length, largest, g, metric):
    """The least approximate key with which a row of norm up to `largest` could have a key of at least `key`."""
    if metric == COSINE:
        bound = np.float64(2.5) * g * length
    elif metric == L2:
        bound = np.float64(3) * g * (np.float64(length) + largest) * (np.float64(length) + largest)
    else:
        bound = np.float64(2.5) * g * np.float64(length) * largest
    limit = np.float64(key) - bound
    if metric == L2:
        limit += np.float64(length) * length
    if not bound < 1e37 or not limit < 1e37:
        return np.float32(-np.inf)
    return np.float32(limit - abs(limit) * 2.0**-22)  # rounding to float32 must not raise it


@kernel
def multiply(rows, row_at, count, packed, d, table):
    """table[i, lane] = the inner product of the i-th of `count` rows from element row_at on, and a lane's query."""
    whole = count // MR * MR
    for one in range(0, whole, MR):
        product_of_many(rows, row_at + one * d, packed, d, table, one * LANES)
    for one in range(whole, count):
        product_of_one(rows, row_at + one * d, packed, d, table, one * LANES)


@kernel
def search_tile(queries, first, packed, lengths, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped):
    """Offers rows start..stop to the heaps of queries first..first + LANES. Returns rows scored, times queries."""
    d = np.int64(vectors.shape[1])
    k = keys.shape[1]
    count = min(LANES, queries.shape[0] - first)
    g = np.float64(d + 16) * 2.0**-23
    size = max(MR, min(768, BLOCK_BYTES // (4 * d)) // MR * MR)
    picked = np.empty(size, np.int64)
    block = np.empty(size * d, np.float32)
    table = np.empty(size * LANES, np.float32)
    thresholds = np.empty(LANES, np.float32)
    row, scored = start, 0
    # Whole float32 blocks are multiplied where they lie; all others are brought together first.
    where_they_lie = vectors.itemsize == 4 and len(allowed) == 0
    while row < stop:
        taken = 0
        largest = np.float64(0)
        while row < stop and taken < size:
            if len(allowed) == 0 or (allowed[row >> 6] >> np.uint64(row & 63)) & np.uint64(1):
                picked[taken] = row
                largest = max(largest, np.float64(norms[row]))
                if not where_they_lie:
                    widen(vectors, row * d, d, block, taken * d)
                taken += 1
                row += 1
            elif allowed[row >> 6] >> np.uint64(row & 63) == 0:
                row = ((row >> 6) + 1) << 6
            else:
                row += 1
        if where_they_lie:
            multiply(vectors, picked[0] * d, taken, packed, d, table)
        else:
            multiply(block, 0, taken, packed, d, table)
        scored += taken * count
        for lane in range(LANES):
            q = first + lane
            if lane >= count:
                thresholds[lane] = np.inf
            elif sizes[q] < k:
                thresholds[lane] = -np.inf
            else:
                thresholds[lane] = _threshold(keys[q, 0], lengths[lane], largest, g, metric)
        for one in range(taken):
            r = picked[one]
            norm = norms[r]
            scale, shift = np.float32(1), np.float32(0)
            if metric == COSINE:
                scale = np.float32(1) / norm
            elif metric == L2:
                scale, shift = np.float32(2), -norm * norm
            bits = reaching(table, one * LANES, scale, shift, thresholds)
            while bits:
                lane = lowest(bits)
                bits &= bits - np.uint64(1)
                if lane >= count:
                    continue
                q = first + lane
                offer(keys, rows, sizes, dropped, q, key_of(queries, q, vectors, norms, r, metric), r)
                if sizes[q] == k:
                    thresholds[lane] = _threshold(keys[q, 0], lengths[lane], largest, g, metric)
    return scored
