"""The arithmetic of tiles: rows times a tile of LANES queries in registers, in float32 or in bytes.

One step of the inner loop loads the tile's lanes as vectors and multiplies them with broadcast elements of MR rows into
MR x VECTORS accumulators. The shape is chosen by what the CPU has: 6 rows x 64 queries with AVX-512, 6 x 16 elsewhere. With
VNNI a step takes four bytes of each row and query. Nothing here is compared bit for bit: see `tile` for what it decides.
"""

from __future__ import annotations

import os
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import intrinsic
from .distances import fetch, fma, load, loaded, pointer, reduced

_TOLD = os.environ.get("NUMBA_CPU_NAME") or os.environ.get("NUMBA_CPU_FEATURES")  # what to compile for is not this CPU
_FEATURES = {} if _TOLD else llvm.get_host_cpu_features()
WIDTH, VECTORS = (16, 4) if _FEATURES.get("avx512f") else (8, 2) if _FEATURES.get("avx2") else (4, 4)
LANES = WIDTH * VECTORS
AVX2 = bool(_FEATURES.get("avx2"))
COARSE = bool(_FEATURES.get("avx512vnni") if WIDTH == 16 else WIDTH == 8 and _FEATURES.get("avxvnni"))
MR = 6
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


def _product(coarse: bool) -> Any:
    """The intrinsic that multiplies MR rows with a tile of queries and says which lanes each row may concern."""
    item, vector = (_I32, _INTS) if coarse else (_F32, _FLOATS)

    @intrinsic
    def product(
        typing: Any, rows: Any, stride: Any, packed: Any, tile: Any, steps: Any, lanes: Any,
        terms: Any, one: Any, reached: Any, coming: Any, coming_at: Any, pace: Any,
    ) -> Any:  # fmt: skip
        """reached[one + r] = lanes, as bits, whose limit the largest key of row one + r may reach; NaN does.

        rows: of `stride` elements each; packed, lanes, terms: see `tile`. Meanwhile coming[coming_at:], `pace` elements a
        step, is on its way to the cache.
        """

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            row_type, _, packed_type, _, _, lane_type, term_type, _, reached_type, coming_type, _, _ = signature.args
            rows, stride, packed, tile, steps, lanes, terms, one, reached, coming, coming_at, pace = arguments

            def const(value: int) -> Any:
                return ir.Constant(_I64, value)

            def vectors(array_type: Any, array: Any, at: Any, kind: Any) -> list[Any]:
                places = [builder.add(at, const(v * WIDTH)) for v in range(VECTORS)]
                return [load(builder, pointer(context, builder, array_type, array, p, kind), kind) for p in places]

            packed_at = builder.mul(builder.mul(tile, builder.add(steps, const(1))), const(LANES))
            starts = vectors(packed_type, packed, packed_at, vector)
            bases = [builder.mul(stride, builder.add(one, const(r))) for r in range(MR)]
            before = builder.block
            loop, after = builder.append_basic_block("tile"), builder.append_basic_block("tiled")
            builder.cbranch(builder.icmp_signed("<", const(0), steps), loop, after)
            builder.position_at_end(loop)
            at = builder.phi(_I64)
            sums = [[builder.phi(vector) for _ in range(VECTORS)] for _ in range(MR)]
            following = builder.add(at, const(1))
            queries = vectors(packed_type, packed, builder.add(packed_at, builder.mul(following, const(LANES))), vector)
            offset = builder.mul(at, const(4 if coarse else 1))
            fetched = builder.add(coming_at, builder.mul(at, pace))
            fetch(builder, pointer(context, builder, coming_type, coming, fetched, ir.IntType(8)), 64)
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
            lane = [vectors(lane_type, lanes, const(i * LANES), _FLOATS) for i in range(4)]
            for r in range(MR):
                first = builder.mul(builder.add(one, const(r)), const(4))
                places = [pointer(context, builder, term_type, terms, builder.add(first, const(i)), _F32) for i in range(4)]
                term = [_splat(builder, load(builder, place, _F32)) for place in places]
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
        return types.void(rows, whole, packed, whole, whole, lanes, terms, whole, reached, coming, whole, whole), codegen

    return product


exact_product = _product(coarse=False)
coarse_product = _product(coarse=True) if COARSE else exact_product  # not called where it is not coarse


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
def rounded(typing: Any, rows: Any, row_at: Any, count: Any, scale: Any, shift: Any, codes: Any, code_at: Any) -> Any:
    """codes[code_at:][:count] = shift + the nearest integers to rows / scale. Returns the squared length of what was lost.

    shift: 128, or 0 for bytes with a sign (not from int8 rows).

    The integer is read off the low byte of a float32 that has no room for a fraction: NaN is no special case.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row_type, _, _, _, _, code_type, _ = signature.args
        rows, row_at, count, scale, shift, codes, code_at = arguments
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
            magic = every(builder.fadd(shift, ir.Constant(_F32, 1.5 * 2**23)))
            value = loaded(context, builder, row_type, rows, builder.add(row_at, at), kind)
            near = fma(builder, value, every(inverse), magic)
            place = pointer(context, builder, code_type, codes, builder.add(code_at, at), byte)
            builder.store(builder.trunc(builder.bitcast(near, word), byte), place).align = 1
            lost = fma(builder, builder.fneg(builder.fsub(near, magic)), every(scale), value)
            return fma(builder, lost, lost, accumulator)

        return reduced(builder, count, step, builder.fadd)

    return types.float32(rows, types.int64, types.int64, types.float32, types.float32, codes, types.int64), codegen


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
