"""Many queries over many rows: a register-blocked multiplication whose results never leave the registers.

A tile of LANES queries is packed transposed, so that one step of the inner loop loads its lanes as vectors and multiplies
them with MR broadcast row elements into MR x VECTORS accumulators. What it computes only decides which rows the pair
kernel looks at: those whose approximate key, plus a rigorous bound on its error, reaches the query's k-th best key so far.
So nothing that belongs to the answer is left out, and every key in it is the pair kernel's.

Two forms share all this. The exact one multiplies float32. The coarse one, for CPUs that multiply bytes four at a time
(VNNI), multiplies queries and rows rounded to a byte per element, q' and x', each with a scale of its own; by
Cauchy-Schwarz, with what was rounded away known exactly,

    |q.x - q'.x'| <= |q| |x - x'| + |q - q'| |x'|                      (0 in the exact form)
    |fl(q.x) - q.x| <= g |q| |x|,  g = (d + 64) 2^-22                 (Higham, Accuracy and Stability, 3.1, generously)

A block where the coarse form lets too many rows through is followed by exact ones. Rows and queries whose length is not
within 2^-30 .. 2^30 (zero, overflowing, NaN) always go on to the pair kernel: no bound here has to think of them.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import intrinsic, kernel
from .distances import COSINE, L2, fma, key_of, load, loaded, pair, pointer, prefetch, reduced
from .scan import AHEAD, lowest, next_allowed
from .select import offer

_FEATURES = {} if numba.config.CPU_NAME or numba.config.CPU_FEATURES else llvm.get_host_cpu_features()
WIDTH, VECTORS = (16, 4) if _FEATURES.get("avx512f") else (8, 2) if _FEATURES.get("avx2") else (4, 4)
LANES = WIDTH * VECTORS
COARSE = bool(_FEATURES.get("avx512vnni") if WIDTH == 16 else WIDTH == 8 and _FEATURES.get("avxvnni"))
MR = 6
BLOCK_BYTES = 128 << 10  # of widened or rounded rows: with a tile of queries they fit a core's own cache
_SAFE = 2.0**30
_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(_F32, WIDTH), ir.VectorType(_I32, WIDTH)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * WIDTH))


def _dot4(builder: Any, rows: Any, queries: Any, sums: Any) -> Any:
    """sums + the four products of unsigned bytes of `rows` and signed ones of `queries`, in each 32-bit lane."""
    signature = ir.FunctionType(_INTS, [_INTS] * 3)
    name = f"llvm.x86.avx512.vpdpbusd.{32 * WIDTH}"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [sums, rows, queries])


def _product(many: int, coarse: bool) -> Any:
    """An intrinsic that multiplies `many` rows with a tile of queries and says which lanes each row may concern."""
    item, vector = (_I32, _INTS) if coarse else (_F32, _FLOATS)

    @intrinsic
    def product(
        typing: Any, rows: Any, row_at: Any, stride: Any, packed: Any, packed_at: Any, steps: Any, lanes: Any, lanes_at: Any,
        terms: Any, one: Any, reached: Any,
    ) -> Any:  # fmt: skip
        """reached[one + r] = lanes, as bits, whose limit the approximate key of row r may reach; NaN does."""

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row_type, _, _, packed_type, _, _, lane_type, _, term_type, _, reached_type = signature.args
            rows, row_at, stride, packed, packed_at, steps, lanes, lanes_at, terms, one, reached = arguments

            def const(value: int) -> Any:
                return ir.Constant(_I64, value)

            def vectors(array_type: Any, array: Any, at: Any, kind: Any) -> list[Any]:
                places = [builder.add(at, const(v * WIDTH)) for v in range(VECTORS)]
                return [load(builder, pointer(context, builder, array_type, array, p, kind), kind) for p in places]

            starts = vectors(packed_type, packed, packed_at, vector)
            bases = [builder.add(row_at, builder.mul(stride, const(r))) for r in range(many)]
            before = builder.block
            loop, after = builder.append_basic_block("tile"), builder.append_basic_block("tiled")
            builder.cbranch(builder.icmp_signed("<", const(0), steps), loop, after)
            builder.position_at_end(loop)
            at = builder.phi(_I64)
            sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(many)]
            following = builder.add(at, const(1))
            queries = vectors(packed_type, packed, builder.add(packed_at, builder.mul(following, const(LANES))), vector)
            offset = builder.mul(at, const(4 if coarse else 1))
            results = []
            for base, row in zip(bases, sums, strict=True):
                place = pointer(context, builder, row_type, rows, builder.add(base, offset), item)
                element = _splat(builder, load(builder, place, item))
                if coarse:
                    results.append([_dot4(builder, element, q, s) for q, s in zip(queries, row, strict=True)])
                else:
                    results.append([fma(builder, element, q, s) for q, s in zip(queries, row, strict=True)])
            builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
            at.add_incoming(const(0), before)
            at.add_incoming(following, loop)
            finals = []
            builder.position_at_end(after)
            for row, result in zip(sums, results, strict=True):
                for v in range(VECTORS):
                    row[v].add_incoming(starts[v], before)
                    row[v].add_incoming(result[v], loop)
                    final = builder.phi(vector)
                    final.add_incoming(starts[v], before)
                    final.add_incoming(result[v], loop)
                    finals.append(final)
            lane = [vectors(lane_type, lanes, builder.add(lanes_at, const(i * LANES)), _FLOATS) for i in range(4)]
            for r in range(many):
                first = builder.mul(builder.add(one, const(r)), const(4))
                term = [
                    _splat(builder, load(builder, pointer(context, builder, term_type, terms, builder.add(first, const(i)), _F32), _F32))
                    for i in range(4)
                ]
                bits = const(0)
                for v in range(VECTORS):
                    value = finals[r * VECTORS + v]
                    key = builder.fmul(lane[3][v], term[3])
                    for a, b in ((lane[2][v], term[2]), (lane[1][v], term[1])):
                        key = fma(builder, a, b, key)
                    key = fma(builder, builder.sitofp(value, _FLOATS) if coarse else value, term[0], key)
                    may = builder.fcmp_unordered(">=", key, lane[0][v])
                    part = builder.zext(builder.bitcast(may, ir.IntType(WIDTH)), _I64)
                    bits = builder.or_(bits, builder.shl(part, const(v * WIDTH)))
                builder.store(bits, pointer(context, builder, reached_type, reached, builder.add(one, const(r)), _I64))
            return context.get_dummy_value()

        whole = types.int64
        return types.void(rows, whole, whole, packed, whole, whole, lanes, whole, terms, whole, reached), codegen

    return product


exact_many, exact_one = _product(MR, False), _product(1, False)
if COARSE:
    coarse_many, coarse_one = _product(MR, True), _product(1, True)
else:
    coarse_many, coarse_one = exact_many, exact_one  # never called


@intrinsic
def magnitude(typing: Any, rows: Any, row_at: Any, count: Any) -> Any:
    """The largest absolute value in rows[row_at:][:count]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, row_at, count = arguments

        def larger(a: Any, b: Any) -> Any:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def step(at: Any, accumulator: Any) -> Any:
            kind = accumulator.type
            name = f"llvm.fabs.{'f32' if kind == _F32 else f'v{kind.count}f32'}"
            fabs = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), name)
            value = loaded(context, builder, signature.args[0], rows, builder.add(row_at, at), kind)
            return larger(builder.call(fabs, [value]), accumulator)

        return reduced(builder, count, step, larger)

    return types.float32(rows, types.int64, types.int64), codegen


@intrinsic
def rounded(typing: Any, rows: Any, row_at: Any, count: Any, scale: Any, codes: Any, code_at: Any) -> Any:
    """codes[code_at:][:count] = 128 + the nearest integers to rows / scale. Returns the squared length of what was lost.

    The integer is read off the low byte of a float32 that has no room for a fraction: NaN is no special case.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row_type, _, _, _, code_type, _ = signature.args
        rows, row_at, count, scale, codes, code_at = arguments
        inverse = builder.fdiv(ir.Constant(_F32, 1.0), scale)

        def step(at: Any, accumulator: Any) -> Any:
            kind = accumulator.type
            wide = isinstance(kind, ir.VectorType)

            def every(value: Any) -> Any:
                if not wide:
                    return value
                first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
                return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(_I32, kind.count), [0] * kind.count))

            byte, word = ir.IntType(8), _I32
            if wide:
                byte, word = ir.VectorType(byte, kind.count), ir.VectorType(word, kind.count)
            if row_type.dtype == types.int8:  # a byte already: nothing is lost
                place = pointer(context, builder, row_type, rows, builder.add(row_at, at), byte)
                sign = ir.Constant(byte, [-128] * kind.count if wide else -128)
                value = builder.xor(load(builder, place, byte), sign)
                builder.store(value, pointer(context, builder, code_type, codes, builder.add(code_at, at), byte)).align = 1
                return accumulator
            magic = every(ir.Constant(_F32, 1.5 * 2**23 + 128))
            value = loaded(context, builder, row_type, rows, builder.add(row_at, at), kind)
            near = fma(builder, value, every(inverse), magic)
            place = pointer(context, builder, code_type, codes, builder.add(code_at, at), byte)
            builder.store(builder.trunc(builder.bitcast(near, word), byte), place).align = 1
            lost = fma(builder, builder.fneg(builder.fsub(near, magic)), every(scale), value)
            return fma(builder, lost, lost, accumulator)

        return reduced(builder, count, step, builder.fadd)

    return types.float32(rows, types.int64, types.int64, types.float32, codes, types.int64), codegen


@intrinsic
def widen(typing: Any, rows: Any, row_at: Any, count: Any, out: Any, out_at: Any) -> Any:
    """out[out_at:][:count] = rows[row_at:][:count] as float32, both as flat arrays."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row_type, _, _, out_type, _ = signature.args
        rows, row_at, count, out, out_at = arguments

        def step(at: Any, accumulator: Any) -> Any:
            value = loaded(context, builder, row_type, rows, builder.add(row_at, at), accumulator.type)
            place = pointer(context, builder, out_type, out, builder.add(out_at, at), accumulator.type)
            builder.store(value, place).align = 4
            return accumulator

        reduced(builder, count, step, builder.fadd)
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.int64, out, types.int64), codegen


@kernel
def pack(queries, exact, exact_lanes, coarse, coarse_lanes):
    """Fills the tiles of queries. Of a tile, step 0 is what its sums start from; `lanes` are (limit, |q|, |q - q'|, 1) / scale.

    exact: (tiles, d + 1, LANES) float32 zeros. coarse: (tiles, d' + 1, LANES) int32 zeros, four elements a step, or empty.
    lanes: (tiles, 4, LANES) float32; empty lanes have a limit that is never reached.
    """
    m, d = queries.shape
    codes = np.zeros(d, np.uint8)
    for q in range(exact.shape[0] * LANES):
        tile, lane = q // LANES, q % LANES
        if q >= m:
            exact_lanes[tile, :, lane] = 0
            exact_lanes[tile, 0, lane] = np.inf
            if len(coarse):
                coarse_lanes[tile, :, lane] = 0
                coarse_lanes[tile, 0, lane] = np.inf
            continue
        square = np.float64(0)
        for i in range(d):
            exact[tile, i + 1, lane] = queries[q, i]
            square += np.float64(queries[q, i]) * np.float64(queries[q, i])
        length = np.sqrt(square)
        safe = 1 / _SAFE < length < _SAFE
        exact_lanes[tile, 1, lane] = length if safe else np.inf
        exact_lanes[tile, 2, lane] = 0
        exact_lanes[tile, 3, lane] = 1
        if len(coarse):
            scale = magnitude(queries, q * d, d) / np.float32(127) if safe else np.float32(1)
            lost = np.sqrt(np.float64(rounded(queries, q * d, d, scale, codes, 0)))
            start = np.int32(0)
            for i in range(d):
                code = np.int32(codes[i]) - np.int32(128)
                coarse[tile, 1 + i // 4, lane] |= (code & np.int32(255)) << np.int32(8 * (i % 4))
                start -= np.int32(128) * code  # what the rows' 128s add up to
            coarse[tile, 0, lane] = start
            coarse_lanes[tile, 1, lane] = length / scale if safe else np.inf
            coarse_lanes[tile, 2, lane] = lost / scale * 1.001
            coarse_lanes[tile, 3, lane] = 1 / scale


@kernel
def _limit(key, length, unit, g, metric):
    """What a lane's approximate key must reach for its row to be able to have at least `key`."""
    limit = np.float64(key)
    if metric == L2:
        square = np.float64(length) * length
        limit += square - g * (abs(limit) + square)
    return np.float32((limit - g * abs(limit)) * unit)


@kernel
def search_tiles(queries, exact, exact_lanes, coarse, coarse_lanes, vectors, norms, metric, allowed, start, stop, keys, rows, sizes, dropped):
    """Offers rows start..stop to the heaps of all queries. Returns rows scored, times queries."""
    n, d = vectors.shape
    m, k = keys.shape
    g = np.float64(d + 64) * 2.0**-22
    stride = (d + 3) // 4 * 4
    size = max(MR, min(64 * MR, BLOCK_BYTES // stride) // MR * MR)
    picked = np.empty(size, np.int64)
    terms = np.empty((size, 4), np.float32)
    reached = np.empty(size, np.uint64)
    codes = np.empty(size * stride if COARSE else 0, np.uint8)
    block = np.empty(0, np.float32)
    is_coarse = COARSE
    ahead = AHEAD // (d * vectors.itemsize) + 1
    row, scored = start, 0
    while row < stop:
        taken = 0
        row = next_allowed(allowed, row, stop)
        while row < stop and taken < size:
            picked[taken] = row
            taken += 1
            row = next_allowed(allowed, row + 1, stop)
        if not is_coarse and len(block) == 0:
            block = np.empty(size * d, np.float32)
        for one in range(taken):
            r = picked[one]
            prefetch(vectors, picked[min(taken - 1, one + ahead)] * d, d)
            norm = norms[r]
            lost, scale = np.float32(0), np.float32(1)
            safe = 1 / _SAFE < norm < _SAFE
            if not is_coarse:
                widen(vectors, r * d, d, block, one * d)
            else:
                if vectors.itemsize > 1 and safe:
                    scale = magnitude(vectors, r * d, d) / np.float32(127)
                lost = np.sqrt(rounded(vectors, r * d, d, scale, codes, one * stride)) * np.float32(1.001)
            unit = np.float32(1)
            if metric == COSINE:
                unit = np.float32(1) / norm
            elif metric == L2:
                unit = np.float32(2)
            terms[one, 0] = scale * unit
            terms[one, 1] = (lost + np.float32(g) * norm) * unit if safe else np.float32(np.inf)
            terms[one, 2] = (norm + lost) * np.float32(1.001) * unit if is_coarse else np.float32(0)
            terms[one, 3] = -norm * norm * np.float32(1 - g) if metric == L2 else np.float32(0)
        scored += taken * m
        offered = 0
        for tile in range(len(exact)):
            first, lanes = tile * LANES, coarse_lanes[tile] if is_coarse else exact_lanes[tile]
            count = min(LANES, m - first)
            for lane in range(count):
                q = first + lane
                lanes[0, lane] = _limit(keys[q, 0], exact_lanes[tile, 1, lane], lanes[3, lane], g, metric) if sizes[q] == k else -np.inf
            one = 0
            while one < taken:
                many = one + MR <= taken
                if is_coarse:
                    if many:
                        coarse_many(codes, one * stride, stride, coarse, tile * coarse.shape[1] * LANES, stride // 4, lanes, 0, terms, one, reached)
                    else:
                        coarse_one(codes, one * stride, stride, coarse, tile * coarse.shape[1] * LANES, stride // 4, lanes, 0, terms, one, reached)
                elif many:
                    exact_many(block, one * d, d, exact, tile * exact.shape[1] * LANES, d, lanes, 0, terms, one, reached)
                else:
                    exact_one(block, one * d, d, exact, tile * exact.shape[1] * LANES, d, lanes, 0, terms, one, reached)
                for this in range(one, one + MR if many else one + 1):
                    bits = reached[this]
                    while bits:
                        lane = lowest(bits)
                        bits &= bits - np.uint64(1)
                        q = first + lane
                        if lane >= count:
                            continue
                        offered += 1
                        offer(keys, rows, sizes, dropped, q, key_of(pair(queries, q * d, vectors, picked[this] * d, d, metric), norms[picked[this]], metric), picked[this])
                        if sizes[q] == k:
                            lanes[0, lane] = _limit(keys[q, 0], exact_lanes[tile, 1, lane], lanes[3, lane], g, metric)
                one += MR if many else 1
        if offered > taken * m // 8 + 8 * k * m:
            is_coarse = False
    return scored
