"""Rows in B bits a dimension, 2 to 8, a row after the other: what few rows are compared by that one bit has let through.

With o = P(x - c) as in `bits`, a row is rounded to the grid of odd multiples of a half, as close to its direction as a few
scales of the grid come: dimension i has the code u_i, 0 to 2^B - 1, and the value v_i = u_i - (2^B - 1) / 2, whose sign is the
bit of `bits`. `planes`, (n, B D / 8) uint8, hold the bits of u a plane after the other, the lowest first, and in each the
dimensions in their order, the lowest bit first; `scales`, (n,) float32, hold r^2 / <v, o>, for l2 twice that. With q', t and
`add` as in `bits`, the estimate is

    scale (<u, q'> - (2^B - 1) / 2 sum q') + t add

(extended RaBitQ: Gao et al., SIGMOD 2025; there the best of all scales is sought, here the best of nine about that which is
best for normally distributed numbers: the cosine of v and o is less by under a two-hundredth). Any thread; the same bits for
any number of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..contract import Rows
from ..kernels.compile import intrinsic, kernel
from ..kernels.distances import L2, METRICS, fma, load, pointer, prefetch, read_only
from ..kernels.select import keep_least, packed, row_in
from .bits import BLOCK, HADAMARD, ROTATIONS, Encoder, turn, within
from .int4 import by_lines

DEPTHS = range(2, 9)
_STEPS = (0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)  # the best grid for normal numbers: Max, IRE Trans. 1960
_TRIED, _APART = 9, 1.16  # scales, and how they differ
_COMING = 6  # rows that are on their way while one is looked at
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_GROUP = 32  # dimensions whose codes are put together at once


def room(encoder: Encoder, n: int, depth: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """(planes, scales) of n rows in so many bits, yet to be filled."""
    return by_lines((n, depth * encoder.width // 8), np.uint8), np.zeros(n, np.float32)


def fill(
    encoder: Encoder, rows: Rows, start: int, stop: int, planes: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]
) -> None:
    """Codes and scales of rows start..stop; start: a multiple of 32."""
    bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
    about = read_only(bits), read_only(rows.norms), METRICS[encoder.metric], encoder.unit, encoder.centre
    depth = 8 * planes.shape[1] // encoder.width
    _fill(*about, min(2, ROTATIONS.index(encoder.rotation)), encoder.signs, encoder.matrix, planes, scales, start, stop,
          depth, _STEPS[depth - DEPTHS[0]])  # fmt: skip


def values(planes: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.int64]:
    """(n, D): the codes u."""
    depth = 8 * planes.shape[1] // width
    bits = np.unpackbits(planes, axis=1, bitorder="little").reshape(len(planes), depth, width).astype(np.int64)
    found: npt.NDArray[np.int64] = (bits << np.arange(depth)[:, None]).sum(axis=1)
    return found


# -- kernels ---------------------------------------------------------------------------------------------------


@kernel
def _fill(vectors, norms, metric, unit, centre, rotation, signs, matrix, planes, scales, start, stop, depth, step):
    d, width = len(centre), 8 * planes.shape[1] // depth
    row, tile = np.empty(d, np.float32), np.zeros((width, BLOCK), np.float32)
    turned = tile if rotation <= HADAMARD else np.zeros((width, BLOCK), np.float32)
    square, along = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    first, at = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    dot, length = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    best, chosen, product = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    half = 1 << (depth - 1)
    most = np.float32(half - 1)
    for block in range(start // BLOCK, (stop + BLOCK - 1) // BLOCK):
        turn(vectors, norms, metric, unit, centre, rotation, signs, matrix, block, stop, row, tile, turned, square, along)
        for lane in range(BLOCK):
            there = square[lane] > 0
            first[lane] = np.float32(np.sqrt(width / square[lane]) / step) if there else np.float32(0)
        best[:], product[:], chosen[:] = 0, 0, first
        for tried in range(_TRIED):
            ratio = np.float32(_APART ** (tried - _TRIED // 2))
            for lane in range(BLOCK):
                at[lane] = first[lane] * ratio
            dot[:], length[:] = 0, 0
            for i in range(width):
                for lane in range(BLOCK):
                    size = abs(turned[i, lane])
                    value = np.float32(min(most, np.floor(size * at[lane]))) + np.float32(0.5)
                    dot[lane] += value * size
                    length[lane] += value * value
            for lane in range(BLOCK):
                cosine = dot[lane] / np.sqrt(length[lane])
                if cosine > best[lane]:
                    best[lane], chosen[lane], product[lane] = cosine, at[lane], dot[lane]
        for lane in range(BLOCK):
            one = block * BLOCK + lane
            if one >= stop:
                break
            mine = planes[one]
            mine[:] = 0
            for i in range(width):
                value = turned[i, lane]
                level = np.int64(min(most, np.floor(abs(value) * chosen[lane])))
                code = half + level if value > 0 else half - 1 - level
                for plane in range(depth):
                    mine[plane * (width // 8) + (i >> 3)] |= np.uint8(((code >> plane) & 1) << (i & 7))
            scale = square[lane] / np.float64(product[lane]) if product[lane] > 0 else np.float64(0)
            scales[one] = within(scale * (2 if metric == L2 else 1))


@intrinsic
def weigh(typing: Any, planes: Any, row: Any, depth: Any, query: Any, q: Any) -> Any:
    """<u, q'> of one row's codes and the q-th of (m, D) float32, in one order of summation."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        plane_type, _, _, query_type, _ = signature.args
        planes, row, depth, query, q = arguments
        bytes_ = builder.extract_value(context.make_array(plane_type)(context, builder, planes).shape, 1)
        width = builder.extract_value(context.make_array(query_type)(context, builder, query).shape, 1)
        plane_bytes = builder.lshr(width, ir.Constant(_I64, 3))
        start = pointer(context, builder, plane_type, planes, builder.mul(row, bytes_), ir.IntType(8))
        begin = builder.mul(q, width)
        word, flags = ir.IntType(32), ir.VectorType(ir.IntType(1), _GROUP)
        bytes32, floats, whole = (ir.VectorType(item, n) for item, n in ((ir.IntType(8), _GROUP), (_F32, 8), (word, 8)))
        zero = ir.Constant(bytes32, [0] * _GROUP)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(floats, [0.0] * 8)) for _ in range(4)]
        codes, weight = cgutils.alloca_once_value(builder, zero), cgutils.alloca_once(builder, ir.IntType(8))
        for slot in sums:
            builder.store(ir.Constant(floats, [0.0] * 8), slot)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), width, ir.Constant(_I64, _GROUP)) as (at, _):
            builder.store(zero, codes)
            builder.store(ir.Constant(ir.IntType(8), 1), weight)
            here = builder.gep(start, [builder.lshr(at, ir.Constant(_I64, 3))])
            with cgutils.for_range(builder, depth) as loop:
                place = builder.gep(here, [builder.mul(loop.index, plane_bytes)])
                bits = builder.bitcast(load(builder, builder.bitcast(place, word.as_pointer()), word), flags)
                one = builder.load(weight)
                each = builder.insert_element(ir.Constant(bytes32, ir.Undefined), one, ir.Constant(word, 0))
                each = builder.shuffle_vector(each, each, ir.Constant(ir.VectorType(word, _GROUP), [0] * _GROUP))
                builder.store(builder.or_(builder.load(codes), builder.and_(builder.sext(bits, bytes32), each)), codes)
                builder.store(builder.shl(one, ir.Constant(ir.IntType(8), 1)), weight)
            found = builder.load(codes)
            for j, slot in enumerate(sums):
                some = ir.Constant(whole, list(range(8 * j, 8 * j + 8)))
                value = builder.sitofp(builder.zext(builder.shuffle_vector(found, found, some), whole), floats)
                place = builder.add(begin, builder.add(at, ir.Constant(_I64, 8 * j)))
                line = load(builder, pointer(context, builder, query_type, query, place, floats), floats)
                builder.store(fma(builder, value, line, builder.load(slot)), slot)
        a, b, c, e = (builder.load(slot) for slot in sums)
        folded, lanes = builder.fadd(builder.fadd(a, b), builder.fadd(c, e)), 8
        while lanes > 1:
            lanes //= 2
            low, high = (ir.Constant(ir.VectorType(word, lanes), list(range(s, s + lanes))) for s in (0, lanes))
            folded = builder.fadd(builder.shuffle_vector(folded, folded, low), builder.shuffle_vector(folded, folded, high))
        return builder.extract_element(folded, ir.Constant(word, 0))

    return types.float32(planes, types.int64, types.int64, query, types.int64), codegen


@kernel
def refine(turned, terms, planes, scales, factors, last, lists, sizes):
    """Orders each list by the estimates of all bits, and leaves the `last` best.

    Returns how many rows were looked at. turned: (m, D) q'. factors: those of `bits`, for add. lists: entries, which get the
    new estimate; sizes: of the lists.
    """
    m, width = turned.shape
    bytes_ = planes.shape[1]
    depth = 8 * bytes_ // width
    middle = np.float32(((1 << depth) - 1) / 2)
    looked = 0
    for q in range(m):
        size = sizes[q]
        total = np.float32(0)
        for i in range(width):
            total += turned[q, i]
        mine = np.empty(size, np.int64)
        for i in range(size):
            mine[i] = row_in(lists[q, i])
        mine.sort()
        for i in range(min(_COMING, size)):
            prefetch(planes, mine[i] * bytes_, bytes_)
        for i in range(size):
            row = mine[i]
            if i + _COMING < size:
                prefetch(planes, mine[i + _COMING] * bytes_, bytes_)
            found = weigh(planes, row, depth, turned, q) - middle * total
            add = factors[row // BLOCK, 1, row % BLOCK]
            lists[q, i] = packed(np.float32(scales[row] * found + np.float32(terms[q, 2]) * add), row)
        looked += size
        if size > last:
            keep_least(lists[q], size, last)
            sizes[q] = last
    return looked
