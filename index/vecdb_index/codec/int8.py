"""Rows as one byte a number: a quarter of what float32 takes, from which keys are estimated with a known error.

A row is taken relative to the *unit* (its own length for cosine, else about the greatest length of all), moved by the *centre*
(about the mean of the rows, in that unit), and rounded to whole multiples of its own step. A record of `codes` holds it all:

    float32 x 4  step s; w = |s c|^2, for ip minus centre.x; |x|^2 for l2, else 0; lost e = |x - s c|
    int8 x d     c, from -127 to 127, and zeros up to a multiple of 16

in the unit, so that one place in memory is all that a look at a row touches. Of a query q, moved likewise for l2, there are
16-bit words p and a step t, and the *estimate* of a row is

    t s (p.c)            for similarities, of a query
    2 t s (p.c) - w      for l2, of a query; for all but ip, of two rows: up to a constant minus the squared distance
    t s (p.c) - w        for ip, of two rows

It differs from the key by a constant of the query and by the unit. With |x|^2 in the place of w the rest is at most
f (|q| e + |q - t p| |s c|), f being 2 for l2, and what float32 rounds away: exact searches rely on that (Cauchy-Schwarz).
Graphs use w, whose error grows only with the distance. Products of bytes are exact: an estimate is the same bits everywhere.

A Codes may be filled by several threads, each its own rows, and read meanwhile where it is filled.
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
from ..kernels.distances import COSINE, IP, L2, METRICS, load, normalise, pair, pointer, read_only
from ..kernels.product import AVX2, magnitude, rounded, widen

HEAD = 16  # bytes before the codes of a record
_STEP = 16  # codes in one step of the kernels
_SAMPLE = 4096  # rows of which the centre is the mean
SCALARS = 6  # of a query: t, b, constant, weight of the lost, weight of the step, slack
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
Asked = tuple[npt.NDArray[np.float32], npt.NDArray[np.int16], npt.NDArray[np.float64]]


class Codes:
    """The codes of some rows.

    codes: (n, HEAD + d rounded up) int8. centre: (d,) float32. unit: what lengths are relative to; longest: of the rows.
    """

    def __init__(
        self, codes: npt.NDArray[np.int8], centre: npt.NDArray[np.float32], unit: float, longest: float, metric: str
    ) -> None:
        self.codes, self.centre, self._own = read_only(codes), read_only(centre), codes
        self.unit, self.longest = unit, longest
        self.metric = METRICS[metric]

    @staticmethod
    def of(rows: Rows, capacity: int = 0, room: Room = in_memory) -> Codes:
        """Codes with room for the rows, or for more; none filled in yet. The centre and the unit are those of these rows."""
        d = rows.vectors.shape[1]
        some = np.linspace(0, max(0, len(rows) - 1), min(len(rows), _SAMPLE)).astype(np.int64)
        there = some[rows.norms[some] > 0]
        longest = float(rows.norms.max(initial=0)) or 1.0
        unit = 1.0 if rows.metric == "cosine" else longest
        lengths = rows.norms[there].astype(np.float64) if rows.metric == "cosine" else np.full(len(there), unit)
        centre = np.zeros(d, np.float64)
        for start in range(0, len(there), 256):
            centre += (rows.vectors[there[start : start + 256]] / lengths[start : start + 256, None]).sum(axis=0)
        n, width = max(capacity, len(rows)), width_of(d)
        codes = room(n * width, True).view(np.int8).reshape(n, width)
        return Codes(codes, (centre / max(1, len(there))).astype(np.float32), unit, longest, rows.metric)

    def fill(self, rows: Rows, start: int, stop: int) -> None:
        """Codes of rows start..stop."""
        if self.metric != COSINE:
            self.longest = max(self.longest, float(rows.norms[start:stop].max(initial=0)))
        bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
        heads = np.zeros((stop - start, 4), np.float32)
        codes = self._own.view(np.uint8)
        about = read_only(bits), read_only(rows.norms), self.metric, self.centre, self.unit
        _fill(*about, codes, heads, start, stop)
        codes[start:stop, :HEAD] = heads.view(np.uint8)

    def arrays(self) -> Arrays:
        """To be stored; `opened` reads them."""
        return {"codes": self.codes, "centre": self.centre, "scale": np.array([self.unit, self.longest], np.float64)}

    @staticmethod
    def opened(arrays: Arrays, rows: Rows) -> Codes:
        """Raises Damaged."""
        codes, centre, scale = arrays["codes"], arrays["centre"], arrays["scale"]
        n, d = rows.vectors.shape
        if codes.shape != (n, width_of(d)) or codes.dtype != np.int8 or centre.shape != (d,) or scale.shape != (2,):
            raise Damaged(f"the codes are of other rows than the {n:,} of {d} numbers in the segment")
        if centre.dtype != np.float32 or not 0 < scale.min() <= scale.max() <= 2.0**62:
            raise Damaged("the codes have a scale that no rows have")
        return Codes(codes, centre, float(scale[0]), float(scale[1]), rows.metric)

    def part(self, first: int, last: int) -> Codes:
        """Of some of the rows."""
        part = object.__new__(Codes)
        part.codes, part.centre, part.metric = self.codes[first:last], self.centre, self.metric
        part.unit, part.longest = self.unit, self.longest
        return part

    def ask(self, queries: npt.NDArray[np.float32]) -> Asked:
        """(m, d) float32 queries as the kernels take them: prepared (see `distances`); (m, d rounded up) words; scalars."""
        m, d = queries.shape
        ready = np.empty((m, d), np.float32)
        words = np.empty((m, self.codes.shape[1] - HEAD), np.int16)
        scalars = np.empty((m, SCALARS), np.float64)
        longest = 1.0 if self.metric == COSINE else self.longest / self.unit
        given = read_only(np.ascontiguousarray(queries, np.float32))
        _ask(given, self.metric, self.centre, self.unit, longest, most_of(d), ready, words, scalars)
        return ready, words, scalars

    @property
    def key_unit(self) -> float:
        """What an estimate is to be multiplied with to be a key, but for the query's constant."""
        return self.unit**2 if self.metric == L2 else self.unit


def width_of(d: int) -> int:
    """Bytes of a record."""
    return HEAD - -d // _STEP * _STEP


def most_of(d: int) -> int:
    """The greatest word of a query: no sum of products leaves 32 bits."""
    return min(32767, (2**31 - 1) // (127 * (-(-d // _STEP) * _STEP)))


@intrinsic
def head(typing: Any, codes: Any, at: Any) -> Any:
    """The float32 at a byte of the codes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FloatType()
        return load(builder, pointer(context, builder, signature.args[0], arguments[0], arguments[1], kind), kind)

    return types.float32(codes, types.int64), codegen


@intrinsic
def dot(typing: Any, words: Any, words_at: Any, codes: Any, codes_at: Any, count: Any) -> Any:
    """The exact product of words[words_at:][:count] (int16) and codes[codes_at:][:count] (int8); count a multiple of 16.

    Both are flat arrays to it. x86 multiplies 16-bit numbers and adds neighbours in one instruction.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word_type, _, code_type, _, _ = signature.args
        words, words_at, codes, codes_at, count = arguments
        lanes = _STEP // 2 if AVX2 else _STEP
        sums = ir.VectorType(_I32, lanes)
        slots = [cgutils.alloca_once_value(builder, ir.Constant(sums, [0] * lanes)) for _ in range(2)]

        def step(at: Any, slot: Any) -> None:
            byte, short = ir.VectorType(ir.IntType(8), _STEP), ir.VectorType(_I16, _STEP)
            place = pointer(context, builder, code_type, codes, builder.add(codes_at, at), byte)
            code = builder.sext(load(builder, place, byte), short)
            word = load(builder, pointer(context, builder, word_type, words, builder.add(words_at, at), short), short)
            if AVX2:
                kind = ir.FunctionType(sums, [short, short])
                multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
                products = builder.call(multiply, [word, code])
            else:
                products = builder.mul(builder.sext(code, sums), builder.sext(word, sums))
            builder.store(builder.add(builder.load(slot), products), slot)

        by_32 = builder.and_(count, ir.Constant(_I64, -32))
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), by_32, ir.Constant(_I64, 32)) as (at, _):
            step(at, slots[0])
            step(builder.add(at, ir.Constant(_I64, _STEP)), slots[1])
        with cgutils.for_range_slice(builder, by_32, count, ir.Constant(_I64, _STEP)) as (at, _):
            step(at, slots[0])
        total = builder.add(builder.load(slots[0]), builder.load(slots[1]))
        kind = ir.FunctionType(_I32, [sums])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{lanes}i32"), [total]
        )

    return types.int32(words, types.int64, codes, types.int64, types.int64), codegen


@kernel
def estimate(words, at, t, b, codes, row):
    """See the module. words[at:] is the query; t: with its factor; b: the weight of w, 0 or 1."""
    stride = np.int64(codes.shape[1])
    place = row * stride
    product = np.float32(dot(words, at, codes, place + HEAD, stride - HEAD))
    return t * (head(codes, place) * product) - b * head(codes, place + 4)


@kernel
def _fill(vectors, norms, metric, centre, unit, codes, heads, start, stop):
    d, stride = np.int64(vectors.shape[1]), np.int64(codes.shape[1])
    moved = np.empty(d, np.float32)
    for row in range(start, stop):
        length = np.float64(norms[row]) if metric == COSINE else unit
        factor = 1 / length if length > 0 else np.float64(0)
        widen(vectors, row * d, d, moved, 0)
        for i in range(d):
            moved[i] = np.float32(moved[i] * factor) - centre[i]
        step = magnitude(moved, 0, d) / np.float32(127)
        lost = pair(moved, 0, moved, 0, d, IP, 0)
        square, coded = lost, np.float64(0)
        if step > np.float32(1e-30):
            lost = rounded(moved, 0, d, step, np.float32(0), codes, row * stride + HEAD)
            coded = np.float64(step) ** 2 * _squared(codes, row)
        else:
            step = np.float32(0)  # as good as the centre itself
            codes[row, HEAD:] = 0
        place = heads[row - start]
        place[0], place[2] = step, square if metric == L2 else np.float32(0)
        place[1] = -pair(centre, 0, moved, 0, d, IP, 0) if metric == IP else np.float32(coded)
        place[3] = np.sqrt(lost) * np.float32(1.001) + np.float32(1e-18)


@kernel
def _squared(codes, row):
    """The squared length of a row's codes, which lie as unsigned bytes here."""
    total = np.int64(0)
    for i in range(HEAD, codes.shape[1]):
        code = np.int32(np.int8(codes[row, i]))
        total += code * code
    return total


@brief
def _ask(given, metric, centre, unit, longest, most, queries, words, scalars):
    m, d = queries.shape
    if metric == COSINE:
        normalise(given, queries)
    else:
        queries[:] = given
    moved = np.empty(d, np.float64)
    middle = np.float64(0)
    for i in range(d):
        middle += np.float64(centre[i]) ** 2
    middle = np.sqrt(middle)
    g = np.float64(d + 64) * 2.0**-22  # see `tile`
    for q in range(m):
        peak, square, constant, length = np.float64(0), np.float64(0), np.float64(0), np.float64(0)
        for i in range(d):
            value = np.float64(queries[q, i])
            length += value * value
            if metric == L2:
                value = value / unit - centre[i]
            else:
                constant += value * centre[i]
            moved[i] = value
            square += value * value
            peak = max(peak, abs(value))
        step = peak / most
        for i in range(d):
            words[q, i] = np.int16(np.rint(moved[i] / step)) if step > 0 else np.int16(0)
        words[q, d:] = 0
        length = np.sqrt(length)
        twice = np.float64(2) if metric == L2 else np.float64(1)
        scalars[q, 0], scalars[q, 1] = twice * step, np.float64(metric == L2)
        scalars[q, 2] = -square if metric == L2 else constant
        scalars[q, 3] = twice * np.sqrt(square) * 1.001
        scalars[q, 4] = twice * 0.51 * step * np.float64(d) * 127  # |q - q'| is at most step / 2 sqrt d, |c| 127 sqrt d
        scalars[q, 5] = g * (length / unit + longest + 2 * middle) ** 2 if metric == L2 else g * length * (longest + 2 * middle)
