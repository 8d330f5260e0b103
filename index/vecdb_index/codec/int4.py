"""Rows as half a byte a number in fewer dimensions: what a graph is walked by, in two or three cache lines a row.

A row as `codec.int8` has it, relative to the unit and moved by the centre, is projected: onto the first principal directions of
a sample, turned by a random rotation so that all numbers are of one kind and four bits serve each of them equally well. What
lies beside those directions is kept as a length. A record of `codes` is a whole number of cache lines:

    float32 x 2  step s; w = |s (u - 7.5)|^2 + BESIDE |what lies beside|^2, for ip minus centre.x
    4 bits x m   u, from 0 to 15: the first half of the numbers in the low halves of the bytes, the others in the high ones

Of a query, projected likewise, there are bytes p, a step t and the sum f = 7.5 sum p, and the *estimate* of a row is

    2 t s (p.u - f) - w    for l2 and cosine: up to a constant minus the squared distance
    t s (p.u - f) - b w    for ip: of a query b is 0, of two rows 1

Two neighbours share a part of what lies beside the directions, two strangers do not; so some of it counts (BESIDE). Unlike
those of `codec.int8`, these estimates have no bound on their error: they say where to walk and what to look at, not the keys.
Projections are products of whole numbers: an estimate is the same bits for any number of threads or queries.

The layout follows LVQ (Aguerrebere et al., VLDB 2023), the projection LeanVec (Tepper et al., 2024). An Int4 may be filled by
several threads, each its own rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..contract import Arrays, Damaged, Room, Rows, in_memory
from ..kernels.compile import brief, intrinsic, kernel
from ..kernels.distances import COSINE, IP, L2, fetch, load, normalise, pointer, read_only
from ..kernels.product import AVX2, magnitude
from .int8 import HEAD, SCALARS, Asked, Codes, head, width_of

LINE = 64  # bytes of a cache line
BESIDE = np.float32(0.4)
_HEAD = 8
_SAMPLE, _SAMPLED = 4096, 1 << 24  # rows whose directions are the principal ones, and their numbers, at most
_TURNS = 3  # of the power iteration that finds them
_WIDEST = 6  # lines of a record
_CHUNK = 32  # bytes that are multiplied in one step
_TINY = np.float32(1.2e-38)  # the least step whose inverse is a float32
_FEW = 8  # queries that are asked before another thread would get the interpreter
_MIDDLE = 64  # of the seven bits of a direction: with seven, no product of the kernels is cut
_I8, _I16, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


def numbers_in(stride: int) -> int:
    """How many numbers a record holds."""
    return 2 * (stride - _HEAD)


def strides_of(d: int) -> list[int]:
    """The lengths that a record may have: up to that which holds all dimensions, but shorter than a record in whole bytes."""
    lengths = [LINE * lines for lines in range(1, _WIDEST + 1) if lines == 1 or numbers_in(LINE * (lines - 1)) < d]
    return [length for length in lengths if length < width_of(d)]


def memory_of(d: int) -> int:
    """Bytes that finding the directions takes."""
    return 5 * d * _sampled(d) + 12 * d * min(d, 2 * numbers_in(LINE * _WIDEST))


def _sampled(d: int) -> int:
    """Of how many rows the principal directions are found: fewer where a row is long."""
    return min(_SAMPLE, max(512, _SAMPLED // d))


class Int4:
    """The codes of some rows.

    codes: (n, stride) uint8. directions: (m rounded up to 4, d rounded up to 32) uint8, seven bits around 64, and steps: (m,)
    float32: what a row is multiplied with.
    """

    def __init__(
        self, codes: npt.NDArray[np.uint8], directions: npt.NDArray[np.uint8], steps: npt.NDArray[np.float32], full: Codes
    ) -> None:
        self._own = codes
        self.codes, self.directions, self.steps = read_only(codes), read_only(directions), read_only(steps)
        self._centre, self._unit, self._metric = full.centre, full.unit, full.metric

    @staticmethod
    def of(
        full: Codes, stride: int, axes: npt.NDArray[np.float32], seed: int, rows: int | None = None, room: Room = in_memory
    ) -> Int4:
        """Codes with room for all rows of `full`, or as many as said; none filled in yet.

        axes: (d, m) from `principal`, m at most `numbers_in(stride)`.
        """
        n, d = len(full.codes) if rows is None else rows, len(full.centre)
        m = axes.shape[1]
        turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((m, m)))
        turned = (axes @ turn).T
        steps = np.maximum(np.abs(turned).max(axis=1), 1e-9) / (_MIDDLE - 1)
        directions = np.full((-(-m // 4) * 4, -(-d // _CHUNK) * _CHUNK), _MIDDLE, np.uint8)
        directions[:m, :d] = _MIDDLE + np.rint(turned / steps[:, None])
        return Int4(by_lines((n, stride), np.uint8, room, once=True), directions, steps.astype(np.float32), full)

    def fill(self, full: Codes, start: int, stop: int, rows: npt.NDArray[np.int64] | None = None) -> None:
        """Codes of rows start..stop of `full`, or of rows[start:stop] there."""
        some = np.arange(start, stop) if rows is None else rows[start:stop]
        heads = np.zeros((len(some), 2), np.float32)
        _fill(full.codes, some, self.directions, self.steps, self._metric, self._own, start, heads)
        self._own[start:stop, :_HEAD] = heads.view(np.uint8)

    def arrays(self) -> Arrays:
        """To be stored; `opened` reads them."""
        return {"near": self.codes, "directions": self.directions, "steps": self.steps}

    @staticmethod
    def opened(arrays: Arrays, rows: Rows, full: Codes) -> Int4 | None:
        """None where there are none. Raises Damaged."""
        codes, directions, steps = arrays["near"], arrays["directions"], arrays["steps"]
        if codes.dtype != np.uint8 or codes.ndim != 2 or len(codes) != len(rows) or codes.shape[1] % LINE:
            raise Damaged(f"the codes to walk by are of other rows than the {len(rows):,} of the segment")
        if not codes.shape[1]:
            return None
        m, d = len(steps), len(full.centre)
        if steps.ndim != 1 or steps.dtype != np.float32 or m > numbers_in(codes.shape[1]) or not np.isfinite(steps).all():
            raise Damaged("there are more directions than numbers in a record, or they have steps that are no numbers")
        if directions.dtype != np.uint8 or directions.shape != (-(-m // 4) * 4, -(-d // _CHUNK) * _CHUNK):
            raise Damaged("the directions have other dimensions than the rows")
        return Int4(codes, directions, steps, full)

    @staticmethod
    def none(n: int, full: Codes) -> Int4:
        """No codes: rows are walked by `full`."""
        return Int4(np.zeros((n, 0), np.uint8), np.zeros((0, 0), np.uint8), np.zeros(0, np.float32), full)

    def ask(self, queries: npt.NDArray[np.float32]) -> Asked:
        """(m, d) float32 queries as kernels take them: prepared; words, whose bytes are p; scalars t, b, f."""
        count, d = queries.shape
        ready = np.empty((count, d), np.float32)
        words = np.zeros((count, self.codes.shape[1]), np.int16)
        scalars = np.zeros((count, SCALARS), np.float64)
        given = read_only(np.ascontiguousarray(queries, np.float32))
        about = self._metric, self._centre, self._unit, self.directions, self.steps
        (_ask_briefly if count <= _FEW else _ask)(given, *about, ready, words.view(np.int8), scalars)
        return ready, words, scalars

    @property
    def key_unit(self) -> float:
        """What an estimate is to be multiplied with to be a key, but for the query's constant."""
        return {L2: self._unit**2, COSINE: 0.5, IP: self._unit}[self._metric]


def by_lines(shape: tuple[int, int], dtype: npt.DTypeLike, room: Room = in_memory, once: bool = False) -> npt.NDArray[Any]:
    """Zeros that begin with a cache line, as arrays in files do: a record that straddles one more costs a miss more.

    room, once: see `contract.Budget`.
    """
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    zeros = room(size + LINE, once)
    first = -zeros.ctypes.data % LINE
    return zeros[first : first + size].view(dtype).reshape(shape)


def principal(full: Codes, rows: npt.NDArray[np.int64], widest: int, seed: int) -> npt.NDArray[np.float32]:
    """(d, m) orthonormal axes in which these rows of `full` vary most, the most important first; m at most `widest`.

    By power iteration from random directions (Halko, Martinsson and Tropp, 2011).
    """
    d = len(full.centre)
    some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _sampled(d))).astype(np.int64)]
    records = full.codes[some]
    sample = records[:, HEAD : HEAD + d] * np.ascontiguousarray(records[:, :4]).view(np.float32)
    if 2 * widest >= d:
        axes = np.eye(d, dtype=np.float32)
    else:
        axes = np.random.default_rng(seed).standard_normal((d, widest + 16), np.float32)
        for _ in range(_TURNS):
            axes, _ = np.linalg.qr(sample.T @ (sample @ axes))
    inside = (sample @ axes).astype(np.float64)
    _, within = np.linalg.eigh(inside.T @ inside)
    return np.ascontiguousarray((axes @ within[:, ::-1].astype(np.float32))[:, :widest])


@intrinsic
def estimate4(typing: Any, words: Any, at: Any, t: Any, b: Any, f: Any, codes: Any, near: Any, first: Any, out: Any) -> Any:
    """Estimates of the four rows near[first:][:4] to out[first:][:4]. words[at:] is the query: 2 bytes for each of a record.

    Four together share the loads of the query, and the processor has the records of all on their way.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_type, _, _, _, _, code_type, near_type, _, out_type = signature.args
        words, at, t, b, f, codes, near, first, out = arguments
        stride = builder.extract_value(context.make_array(code_type)(context, builder, codes).shape, 1)
        query = builder.bitcast(pointer(context, builder, word_type, words, at, _I16), _I8.as_pointer())
        records = []
        for j in range(4):
            place = pointer(context, builder, near_type, near, builder.add(first, ir.Constant(_I64, j)), _I64)
            offset = builder.mul(load(builder, place, _I64), stride)
            records.append(pointer(context, builder, code_type, codes, offset, _I8))
        products = _products(builder, query, records, stride)
        kind = ir.VectorType(_F32, 4)

        def four(*values: Any) -> Any:
            vector = ir.Constant(kind, ir.Undefined)
            for j, value in enumerate(values):
                vector = builder.insert_element(vector, value, ir.Constant(_I32, j))
            return vector

        def heads(offset: int) -> Any:
            return four(*(_at(builder, record, ir.Constant(_I64, offset), _F32) for record in records))

        moved = builder.fsub(builder.sitofp(products, kind), four(*[f] * 4))
        found = builder.fmul(four(*[t] * 4), builder.fmul(heads(0), moved))
        found = builder.fsub(found, builder.fmul(four(*[b] * 4), heads(4)))
        builder.store(found, pointer(context, builder, out_type, out, first, kind)).align = 4
        return context.get_dummy_value()

    whole, real = types.int64, types.float32
    return types.void(words, whole, real, real, real, codes, near, whole, out), codegen


def _at(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    return load(builder, builder.bitcast(builder.gep(address, [offset]), kind.as_pointer()), kind)


def _products(builder: Any, query: Any, records: list[Any], stride: Any) -> Any:
    """p.u of each of four records, as a vector of 32-bit numbers."""
    bytes_, shorts, ints = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(ints, [0] * 8)) for _ in records]
    low, four = ir.Constant(bytes_, [15] * 32), ir.Constant(shorts, [4] * 16)

    with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), stride, ir.Constant(_I64, LINE)) as (byte, _):
        place = builder.mul(byte, ir.Constant(_I64, 2))
        asked = [_at(builder, query, builder.add(place, ir.Constant(_I64, 32 * part)), bytes_) for part in range(4)]
        for record, slot in zip(records, sums, strict=True):
            total = None
            for half in range(2):
                code = _at(builder, record, builder.add(byte, ir.Constant(_I64, 32 * half)), bytes_)
                high = builder.bitcast(builder.lshr(builder.bitcast(code, shorts), four), bytes_)
                for values, part in ((builder.and_(code, low), 2 * half), (builder.and_(high, low), 2 * half + 1)):
                    more = _byte_pairs(builder, values, asked[part])
                    total = more if total is None else builder.add(total, more)  # four of them still are 16 bits
            builder.store(builder.add(builder.load(slot), _pairs(builder, total, ir.Constant(shorts, [1] * 16))), slot)
    return _folded(builder, sums)


def _byte_pairs(builder: Any, unsigned: Any, signed: Any) -> Any:
    """Products of two vectors of 32 bytes, neighbours added: sixteen of 16 bits, which is enough for 2 x 127 x 127."""
    bytes_, shorts, wide = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16), ir.VectorType(_I16, 32)
    if AVX2:
        kind = ir.FunctionType(shorts, [bytes_, bytes_])
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.ub.sw")
        return builder.call(multiply, [unsigned, signed])
    both = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    even, odd = (ir.Constant(ir.VectorType(_I32, 16), list(range(first, 32, 2))) for first in (0, 1))
    return builder.add(builder.shuffle_vector(both, both, even), builder.shuffle_vector(both, both, odd))


def _pairs(builder: Any, a: Any, b: Any) -> Any:
    """Products of two vectors of sixteen 16-bit numbers, neighbours added: eight of 32 bits."""
    shorts, ints = ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
    if AVX2:
        kind = ir.FunctionType(ints, [shorts, shorts])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd"), [a, b])
    wide = ir.VectorType(_I32, 16)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    even, odd = (ir.Constant(ints, list(range(first, 16, 2))) for first in (0, 1))
    return builder.add(builder.shuffle_vector(products, products, even), builder.shuffle_vector(products, products, odd))


def _folded(builder: Any, slots: list[Any]) -> Any:
    """The sums of four vectors of eight, as a vector."""
    ints = ir.VectorType(_I32, 8)

    def neighbours(a: Any, b: Any) -> Any:
        """Added: those of a, then of b, in each half."""
        even = [0, 2, 8, 10, 4, 6, 12, 14]
        masks = (ir.Constant(ints, [place + odd for place in even]) for odd in (0, 1))
        return builder.add(*(builder.shuffle_vector(a, b, mask) for mask in masks))

    a, b, c, d = (builder.load(slot) for slot in slots)
    both = neighbours(neighbours(a, b), neighbours(c, d))
    halves = (ir.Constant(ir.VectorType(_I32, 4), list(range(first, first + 4))) for first in (0, 4))
    return builder.add(*(builder.shuffle_vector(both, both, half) for half in halves))


@intrinsic
def coming(typing: Any, codes: Any, row: Any) -> Any:
    """Asks for the record of a row."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, row = arguments
        stride = builder.extract_value(context.make_array(signature.args[0])(context, builder, codes).shape, 1)
        first = pointer(context, builder, signature.args[0], codes, builder.mul(row, stride), _I8)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), stride, ir.Constant(_I64, LINE)) as (byte, _):
            fetch(builder, builder.gep(first, [byte]))
        return context.get_dummy_value()

    return types.void(codes, types.int64), codegen


@kernel
def byte_of(number, stride):
    """Which byte of a record holds a number, and whether its high half."""
    half = stride - _HEAD
    high = np.int64(number >= half)
    return _HEAD + number - high * half, high


@kernel
def word_of(byte, high):
    """Which byte of a query is multiplied with that half: 32 for the low halves of 32 bytes, then 32 for the high ones."""
    return 64 * (byte >> 5) + (byte & 31) + 32 * high


@kernel
def query_of(codes, row, m, words, at):
    """A row as a query: words[at:], as in `ask`. Returns f; t is the step of the record, halved, with the metric's factor."""
    stride = np.int64(codes.shape[1])
    total = np.int64(0)
    words[at : at + 2 * stride] = 0
    for number in range(m):
        byte, high = byte_of(number, stride)
        value = (np.int64(codes[row, byte]) >> (4 * high)) & 15
        words[at + word_of(byte, high)] = np.int8(2 * value - 15)
        total += 2 * value - 15
    return np.float32(7.5 * total)


@intrinsic
def _products_of_four(typing: Any, words: Any, directions: Any, first: Any, out: Any) -> Any:
    """out[first:][:4] = the exact products of words (int8) and four directions (uint8, below 128), which share its loads."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_type, direction_type, _, out_type = signature.args
        words, directions, first, out = arguments
        width = builder.extract_value(context.make_array(direction_type)(context, builder, directions).shape, 1)
        bytes_, shorts, ints = ir.VectorType(_I8, 32), ir.VectorType(_I16, 16), ir.VectorType(_I32, 8)
        offsets = [builder.mul(builder.add(first, ir.Constant(_I64, j)), width) for j in range(4)]
        starts = [pointer(context, builder, direction_type, directions, offset, _I8) for offset in offsets]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(ints, [0] * 8)) for _ in range(4)]
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), width, ir.Constant(_I64, _CHUNK)) as (at, _):
            word = load(builder, pointer(context, builder, word_type, words, at, bytes_), bytes_)
            for start, slot in zip(starts, sums, strict=True):
                products = _byte_pairs(builder, _at(builder, start, at, bytes_), word)
                products = _pairs(builder, products, ir.Constant(shorts, [1] * 16))
                builder.store(builder.add(builder.load(slot), products), slot)
        kind = ir.VectorType(_I32, 4)
        builder.store(_folded(builder, sums), pointer(context, builder, out_type, out, first, kind)).align = 4
        return context.get_dummy_value()

    return types.void(words, directions, types.int64, out), codegen


@kernel
def _project(words, directions, whole, out, factor, steps):
    """out = factor times the projection of words, of which there are as many as a direction has. whole: scratch, int32."""
    total = np.int64(0)
    for word in words:
        total += np.int64(word)
    for j in range(0, len(directions), 4):
        _products_of_four(words, directions, j, whole)
    for j in range(len(out)):
        out[j] = np.float32(factor * steps[j] * np.float64(whole[j] - _MIDDLE * total))


@kernel
def _fill(full, rows, directions, steps, metric, codes, start, heads):
    m, width, stride = len(steps), full.shape[1] - HEAD, np.int64(codes.shape[1])
    words, whole = np.zeros(directions.shape[1], np.int8), np.empty(len(directions), np.int32)
    projected = np.empty(m, np.float32)
    for i in range(len(rows)):
        row, into = rows[i], start + i
        for j in range(width):
            words[j] = full[row, HEAD + j]
        place = row * np.int64(full.shape[1])
        scale = np.float64(head(full, place))
        _project(words, directions, whole, projected, scale, steps)
        inside = np.float64(0)
        for j in range(m):
            inside += np.float64(projected[j]) ** 2
        step, square = _step(projected, magnitude(projected, 0, m))
        codes[into, :] = 0x88
        for j in range(m):
            byte, high = byte_of(j, stride)
            code = np.int64(codes[into, byte]) & (15 if high else 240)
            codes[into, byte] = np.uint8(code | (_rounded(projected[j], step) << (4 * high)))
        heads[i, 0] = step
        if metric == IP:
            heads[i, 1] = head(full, place + 4)
        else:
            beside = max(np.float64(0), np.float64(head(full, place + 4)) - inside)
            heads[i, 1] = np.float32(square + BESIDE * beside)


@kernel
def _rounded(value, step):
    return min(np.int64(15), max(np.int64(0), np.int64(np.floor(value / step)) + 8)) if step > 0 else np.int64(8)


@kernel
def _step(values, peak):
    """The step that loses least, of a few: the greatest numbers may be cut. Returns it, and the squared length that is kept."""
    best, least, kept = np.float32(0), np.float64(np.inf), np.float64(0)
    if not peak > np.float32(1e-30):
        return best, kept
    for share in (1.0, 0.85, 0.75, 0.65, 0.55):
        step = np.float32(peak * share / 7.5)
        lost, square = np.float64(0), np.float64(0)
        for j in range(len(values)):
            near = (np.float64(_rounded(values[j], step)) - 7.5) * step
            lost += (values[j] - near) ** 2
            square += near * near
        if lost < least:
            best, least, kept = step, lost, square
    return best, kept


@brief
def _ask_briefly(*arguments):
    _ask(*arguments)


@kernel
def _ask(given, metric, centre, unit, directions, steps, queries, words, scalars):
    count, d = queries.shape
    m, stride = len(steps), np.int64(words.shape[1] // 2)
    if metric == COSINE:
        normalise(given, queries)
    else:
        queries[:] = given
    moved, fine = np.empty(d, np.float32), np.zeros(directions.shape[1], np.int8)
    whole, projected = np.empty(len(directions), np.int32), np.empty(m, np.float32)
    for q in range(count):
        inverse = np.float32(1 / unit)
        for i in range(d):
            value = queries[q, i]
            if metric == L2:
                value = value * inverse - centre[i]
            elif metric == COSINE:
                value -= centre[i]
            moved[i] = value
        step = magnitude(moved, 0, d) / np.float32(127)
        many = np.float32(1) / step if step > _TINY else np.float32(0)
        for i in range(d):  # to the nearest whole number, with no branch and no call
            fine[i] = np.int8(np.int32(moved[i] * many + np.float32(128.5)) - 128)
        _project(fine, directions, whole, projected, step, steps)
        scale, total = magnitude(projected, 0, m) / np.float32(127), np.int64(0)
        many = np.float32(1) / scale if scale > _TINY else np.float32(0)
        for j in range(m):
            code = np.int64(projected[j] * many + np.float32(128.5)) - 128
            byte, high = byte_of(j, stride)
            words[q, word_of(byte, high)] = np.int8(code)
            total += code
        scalars[q, 0] = (1 if metric == IP else 2) * np.float64(scale)
        scalars[q, 1] = np.float64(metric != IP)
        scalars[q, 2] = 7.5 * total
