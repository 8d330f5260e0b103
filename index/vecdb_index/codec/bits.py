"""Rows as one bit a dimension: which side of the centre they lie on, after a rotation; a thirty-second of what float32 takes.

A row x, or the first m of its numbers where these say most of it (Matryoshka prefixes), relative to the *unit* (its own whole
length for cosine, else about the greatest length of all), is moved by the *centre* c (about the mean of the rows, or what makes
each bit one in half of them: the median), padded with zeros to D, a multiple of 64, and rotated by P. Its bits are the signs s
of P(x - c), of which zero counts as negative. With r = |x - c| and L the sum of |P(x - c)|, two numbers say how signs become an
estimate:

    scale   r^2 / L, for l2 twice that          add   <x - c, c>, for l2 -r^2

The bits of 32 rows lie together, so that one instruction looks up four bits of each, in `codes`, (blocks, D / 8, 32) uint8:
byte j of the block holds bits 8 j to 8 j + 7 of each row, the lowest first; those of its first 16 rows in the even places, of
the others in the odd ones. `factors`, (blocks, 2, 32) float32, hold scale and add, in the order of rows. Rows beyond the last
are 0.

Of a query, q' = P(q - c) for l2; for similarities q is taken at length one, and what of it lies along c is known exactly:
q' = P(q - t c) with t = <q, c> / |c|^2 (1 for l2). Its *table* has, for each four dimensions, the 16 sums that their signs can
have, less the least, as whole multiples of a step: at most 15, so that sixteen add up in a byte, and 65,535 in all. With U the
sum that a row's bits find there, and the bias B the sum of what was taken away, the estimate is

    scale (step U + B) + t add

which is the key up to a factor and a constant of the query. <s, q'> r^2 / L estimates <x - c, q'> without bias over random
rotations (RaBitQ: Gao and Long, SIGMOD 2024). With a = L / (r sqrt(D)) it is wrong by more than the bound

    e0 |q'| r sqrt((1 - a^2) / a^2) / sqrt(D - 1),    e0 = 1.9

in less than one case of a hundred where x - c and q' are at most 45 degrees apart; where they have nothing to do with each
other, in one of seventeen. Under rotations that are learned, or none, it ranks as well, but nothing is promised.

Rotations: none; hadamard (four rounds of random signs, Walsh-Hadamard transforms of the first or last power of two, and sums
and differences of the halves: as in the RaBitQ library); dense (a random one); pca; itq (pca, turned so that its signs lose
least: Gong and Lazebnik, CVPR 2011). Codes are computed a block at a time, rows side by side in the lanes of registers,
each number summed in one order: they are the same bits for any number of threads. An Encoder is immutable; blocks may be filled
by several threads.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ..contract import Arrays, Damaged, Rows
from ..kernels.compile import intrinsic, kernel
from ..kernels.distances import COSINE, IP, L2, METRICS, fma, load, pair, pointer, prepared, read_only
from ..kernels.product import widen
from .int4 import by_lines

BLOCK = 32  # rows
WORD = 64  # dimensions are padded to multiples of it
LEVELS = 15  # the greatest number in a table
MOST = 65_535  # and the greatest sum
WIDEST = 1 << 18  # dimensions for which a sum of rounded numbers is surely no greater
TERMS = 6  # of a query: step, B, t; factor and constant that make an estimate a key; |q'|
LENGTH = 5  # of these, the last
ROTATIONS = ("none", "hadamard", "dense", "pca", "itq")
CENTRES = ("mean", "median")
E0 = 1.9
HADAMARD = 1  # the last rotation that has no matrix
_CORRELATED = 2048  # dimensions
_ROUNDS = 4
_MEDIANS = 1 << 23  # numbers of which medians are taken, about
_TURNS = 30  # of itq
_LONGEST = 1e15  # of a query of l2, in units: rows are ranked likewise by all that are as far
_GREATEST = np.float32(1e30)  # of factors: no estimate overflows
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_LANES = 16
_VECTOR = ir.VectorType(_F32, _LANES)


@dataclass(frozen=True)
class Report:
    """How much the bits of some rows say. entropy, least: of a bit, mean and minimum. correlation: mean, of two bits, absolute.

    effective: how many independent fair bits would make the distances of two rows vary as little.
    """

    entropy: float
    least: float
    correlation: float
    effective: float


@dataclass(frozen=True)
class Encoder:
    """What rows of a field are turned into bits with. See the module.

    dim: numbers of a row. centre: (m,) float32, of rows of m numbers or more. signs: (4, D) float32, 1 or -1, for hadamard.
    matrix: (D, m) float32, for others than none.
    """

    rotation: str
    metric: str
    dim: int
    unit: float
    centre: npt.NDArray[np.float32]
    signs: npt.NDArray[np.float32]
    matrix: npt.NDArray[np.float32]

    @staticmethod
    def of(
        rows: Rows, sample: npt.NDArray[np.int64], rotation: str, seed: int = 0, centre: str = "mean", prefix: int = 0
    ) -> Encoder:
        """Learned from some of the rows, of which there may be none. centre: one of CENTRES. prefix: m; 0: all of a row."""
        dim = rows.vectors.shape[1]
        d = prefix or dim
        if not 0 < d <= dim:
            raise ValueError(f"a prefix of {prefix:,} is none of rows of {dim:,} numbers")
        if d > WIDEST:
            raise ValueError(f"rows of {d:,} numbers are too long for bits; the most is {WIDEST:,}")
        width = width_of(d)
        longest = float(rows.norms[np.isfinite(rows.norms)].max(initial=0)) or 1.0
        unit = 1.0 if rows.metric == "cosine" else 2.0 ** math.frexp(longest)[1]
        middle = np.zeros(d, np.float64)
        for start in range(0, len(sample), 256):
            middle += _relative(rows, sample[start : start + 256], unit)[:, :d].sum(axis=0)
        middle /= max(1, len(sample))
        rng = np.random.default_rng(seed)
        signs, matrix = np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)
        if rotation == "hadamard":
            signs = np.where(rng.random((_ROUNDS, width)) < 0.5, -1, 1).astype(np.float32)
        elif rotation == "dense":
            matrix = _orthogonal(rng, width)[:, :d].astype(np.float32)
        elif rotation in ("pca", "itq"):
            matrix = np.zeros((width, d), np.float32)
            matrix[:d] = _learned(_relative(rows, sample, unit)[:, :d] - middle, rotation == "itq", rng)
        elif rotation != "none":
            raise ValueError(f"no rotation {rotation!r}; there are {', '.join(ROTATIONS)}")
        about = rotation, rows.metric, dim, unit
        found = Encoder(*about, read_only(middle.astype(np.float32)), read_only(signs), read_only(matrix))
        if centre == "mean" or not len(sample):
            return found
        if centre != "median":
            raise ValueError(f"no centre {centre!r}; there are {', '.join(CENTRES)}")
        some = sample[:: max(1, -(-len(sample) * found.width // _MEDIANS))]
        middle += found.turned_back(np.median(found.turned(_relative(rows, some, unit)[:, :d] - middle), axis=0))
        return replace(found, centre=read_only(middle.astype(np.float32)))

    def turned(self, moved: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(n, D): P of rows that were moved by the centre, (n, m), by NumPy's sums, whose last bits are those of no kernel."""
        if self.rotation not in ("none", "hadamard"):
            return np.asarray(moved.astype(np.float32) @ self.matrix.T, np.float32)
        found = np.zeros((len(moved), self.width), np.float32)
        found[:, : moved.shape[1]] = moved
        if self.rotation == "hadamard":
            turn_all(found, self.signs)
        return found

    def turned_back(self, place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(m,): what is turned to `place`, (D,), as nearly as rows of m numbers can be."""
        d = len(self.centre)
        if self.rotation == "none":
            return place[:d]
        if self.rotation != "hadamard":
            return np.asarray(place @ self.matrix.astype(np.float64), np.float64)
        found = np.empty(d, np.float64)
        for start in range(0, d, 256):
            axes = np.eye(min(256, d - start), d, start)
            found[start : start + len(axes)] = self.turned(axes) @ place
        return found

    @property
    def width(self) -> int:
        """D: bits of a row."""
        return width_of(len(self.centre))

    @property
    def dimensions(self) -> int:
        """How many of the bits say something of a row: the others are padding, of which only random rotations make anything."""
        return self.width if self.rotation in ("hadamard", "dense") else len(self.centre)

    @property
    def check(self) -> int:
        """A number that other encoders do not have."""
        said = f"{self.rotation} {self.metric} {self.dim} {self.unit!r} {self.signs.shape} {self.matrix.shape}".encode()
        for array in (self.centre, self.signs, self.matrix):
            said += zlib.crc32(array.tobytes()).to_bytes(4, "little")
        return zlib.crc32(said)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """To be stored; `opened` reads them."""
        return {
            "encoder": np.array([ROTATIONS.index(self.rotation), self.check, self.dim], np.uint32),
            "unit": np.array([self.unit], np.float64),
            "centre": self.centre,
            "signs": self.signs > 0,
            "matrix": self.matrix,
        }

    @staticmethod
    def opened(arrays: Arrays, rows: Rows) -> Encoder:
        """Raises Damaged."""
        about, unit, centre, signs, matrix = (arrays[name] for name in ("encoder", "unit", "centre", "signs", "matrix"))
        if about.shape != (3,) or about.dtype != np.uint32 or int(about[0]) >= len(ROTATIONS) or unit.shape != (1,):
            raise Damaged("its encoder is of no rotation that there is")
        rotation = ROTATIONS[int(about[0])]
        dim = rows.vectors.shape[1]
        d = len(centre) if centre.ndim == 1 and 0 < len(centre) <= dim else -1
        turned = {"none": ((0, 0), (0, 0)), "hadamard": ((_ROUNDS, width_of(d)), (0, 0))}
        shapes = turned.get(rotation, ((0, 0), (width_of(d), d)))
        kinds = [array.dtype for array in (centre, signs, matrix, unit)] == ["f4", "?", "f4", "f8"]
        if not kinds or int(about[2]) != dim or centre.shape != (d,) or (signs.shape, matrix.shape) != shapes:
            raise Damaged(f"its encoder is of other rows than those of {dim:,} numbers in the segment")
        turns = np.where(signs, 1, -1).astype(np.float32)
        found = Encoder(rotation, rows.metric, dim, float(unit[0]), read_only(centre), read_only(turns), read_only(matrix))
        if found.check != int(about[1]):
            raise Damaged("its encoder is not the one that was stored")
        return found

    def room(self, n: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """(codes, factors) of n rows, yet to be filled."""
        blocks = -(-n // BLOCK)
        codes = by_lines((blocks, self.width // 8 * BLOCK), np.uint8).reshape(blocks, self.width // 8, BLOCK)
        return codes, by_lines((blocks, 2 * BLOCK), np.float32).reshape(blocks, 2, BLOCK)

    def coded(self, rows: Rows) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """(codes, factors) of all of some rows."""
        codes, factors = self.room(len(rows))
        self.fill(rows, 0, len(rows), codes, factors)
        return read_only(codes), read_only(factors)

    def fill(self, rows: Rows, start: int, stop: int, codes: npt.NDArray[np.uint8], factors: npt.NDArray[np.float32]) -> None:
        """Codes and factors of rows start..stop; start: a multiple of 32, and stop too where it is not the number of rows."""
        bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
        about = read_only(bits), read_only(rows.norms), METRICS[self.metric], self.unit, self.centre
        _fill(*about, min(2, ROTATIONS.index(self.rotation)), self.signs, self.matrix, codes, factors, start, stop)

    def ask(
        self, queries: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """Queries as kernels take them: prepared (see `distances`); (m, D / 4, 16) tables; (m, TERMS) terms; (m, D) q'."""
        m, width = len(queries), self.width
        ready = prepared(queries, self.metric)
        tables, terms = np.empty((m, width // 4, 16), np.uint8), np.empty((m, TERMS), np.float64)
        turned = np.zeros((m, width), np.float32)
        about = METRICS[self.metric], self.unit, self.centre, min(2, ROTATIONS.index(self.rotation)), self.signs, self.matrix
        _ask(ready, *about, turned, tables, terms)
        return ready, tables, terms, turned


def width_of(d: int) -> int:
    """D of rows of d numbers."""
    return -(-d // WORD) * WORD


def apart(codes: npt.NDArray[np.uint8], rows: int) -> npt.NDArray[np.uint8]:
    """(rows, D / 8): the bytes of the first rows, each row's together."""
    blocks, bytes_, _ = codes.shape
    return codes.reshape(blocks, bytes_, BLOCK // 2, 2).transpose(0, 3, 2, 1).reshape(blocks * BLOCK, bytes_)[:rows]


def unpacked(codes: npt.NDArray[np.uint8], rows: int) -> npt.NDArray[np.bool_]:
    """(rows, D): the bits of the first rows."""
    return np.unpackbits(apart(codes, rows), axis=1, bitorder="little").view(np.bool_)


def copy_rows(
    codes: npt.NDArray[np.uint8], factors: npt.NDArray[np.float32], old: npt.NDArray[np.int64],
    to_codes: npt.NDArray[np.uint8], to_factors: npt.NDArray[np.float32], new: npt.NDArray[np.int64],
) -> None:  # fmt: skip
    """What is known of the rows `old`, to the places `new` of other blocks."""
    a, b = old % BLOCK, new % BLOCK
    to_factors[new // BLOCK, :, b] = factors[old // BLOCK, :, a]
    to_codes[new // BLOCK, :, _place(b)] = codes[old // BLOCK, :, _place(a)]


def _place(row: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the bytes of a row of a block lie."""
    return 2 * (row % (BLOCK // 2)) + row // (BLOCK // 2)


def error_of(scale: Any, length: Any, distance: Any, width: int) -> Any:
    """By how much an estimate may be wrong. scale: of the row, without the 2 of l2; length: |q'|; distance: r."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(np.maximum(np.square(np.asarray(scale, np.float64)) * width - np.square(distance), 0))
    return length * spread * E0 / math.sqrt(max(1, width - 1))


def entropies(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of each bit, of (rows, dimensions) bits: 1 at most."""
    share = bits.mean(axis=0, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.nan_to_num(share * np.log2(share)) + np.nan_to_num((1 - share) * np.log2(1 - share))
    return np.asarray(-found, np.float64)


def report(bits: npt.NDArray[np.bool_], seed: int = 0, pairs: int = 20_000) -> Report:
    """Of (rows, dimensions) bits, without padding; two rows or more. pairs: of rows, whose distances are looked at.

    Of more than 2,048 dimensions, correlation is that of 2,048 from all over.
    """
    n, entropy = len(bits), entropies(bits)
    some = np.flatnonzero(entropy > 0)
    some = some[np.linspace(0, len(some) - 1, _CORRELATED).astype(np.int64)] if len(some) > _CORRELATED else some
    moved = bits[:, some].astype(np.float32)
    moved -= moved.mean(axis=0)
    correlation = 0.0
    if moved.shape[1] > 1:
        moved /= moved.std(axis=0)
        between = np.abs(moved.T @ moved / n)
        correlation = float((between.sum() - np.trace(between)) / (between.size - len(between)))
    rng = np.random.default_rng(seed)
    first = rng.integers(0, n, pairs)
    second = (first + rng.integers(1, n, pairs)) % n
    varies = float((bits[first] ^ bits[second]).mean(axis=1).var())
    return Report(float(entropy.mean()), float(entropy.min()), correlation, 1 / (4 * varies) if varies else 0.0)


def _relative(rows: Rows, some: npt.NDArray[np.int64], unit: float) -> npt.NDArray[np.float64]:
    """Rows in the unit."""
    lengths = rows.norms[some].astype(np.float64) if rows.metric == "cosine" else np.full(len(some), unit)
    found: npt.NDArray[np.float64] = rows.vectors[some] / np.where(lengths > 0, lengths, np.inf)[:, None]
    return found


def _orthogonal(rng: np.random.Generator, d: int) -> npt.NDArray[np.float64]:
    q, r = np.linalg.qr(rng.standard_normal((d, d)))
    found: npt.NDArray[np.float64] = q * np.where(np.diag(r) < 0, -1, 1)
    return found


def _learned(residuals: npt.NDArray[np.float64], turn: bool, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """(d, d): the principal directions, or these turned so that signs lose least (itq)."""
    d = residuals.shape[1]
    lengths = np.sqrt((residuals**2).sum(axis=1))[:, None]
    x = (residuals / np.where(lengths > 0, lengths, np.inf)).astype(np.float32)
    _, axes = np.linalg.eigh((x.T @ x).astype(np.float64))
    axes = np.ascontiguousarray(axes[:, ::-1], np.float32)
    if turn:
        inside = x @ axes
        turned = _orthogonal(rng, d).astype(np.float32)
        for _ in range(_TURNS):
            signs = np.where(inside @ turned > 0, np.float32(1), np.float32(-1))
            left, _, right = np.linalg.svd(inside.T @ signs)
            turned = left @ right
        axes = axes @ turned
    return np.ascontiguousarray(axes.T, np.float32)


# -- kernels ---------------------------------------------------------------------------------------------------


@kernel
def _walsh(flat, first, count, lanes):
    """The Walsh-Hadamard transform of `count` numbers, a power of two, from the one at `first` on, of each lane; not scaled."""
    half = lanes
    while half < count * lanes:
        for base in range(first * lanes, (first + count) * lanes, 2 * half):
            low, high = flat[base : base + half], flat[base + half : base + 2 * half]
            for i in range(half):
                a, b = low[i], high[i]
                low[i] = a + b
                high[i] = a - b
        half *= 2


@kernel
def _hadamard(flat, width, lanes, signs):
    """Rotates (width, lanes) numbers in place."""
    count = 64
    while 2 * count <= width:
        count *= 2
    whole = count == width
    factor = np.float32(1 / np.sqrt(np.float64(count) * (1 if whole else 2)))
    for turn in range(_ROUNDS):
        for i in range(width):
            sign = signs[turn, i]
            line = flat[i * lanes : (i + 1) * lanes]
            for lane in range(lanes):
                line[lane] *= sign
        _walsh(flat, (width - count) * (turn & 1), count, lanes)
        if whole:
            for i in range(width * lanes):
                flat[i] *= factor
        else:
            # What the transform did not touch is as long as before it.
            rest = np.float32(1 / np.sqrt(np.float64(2)))
            first, last = (0, width - count) if turn & 1 else (count, width)
            for i in range(first * lanes, last * lanes):
                flat[i] *= rest
            first, last = (width - count, width) if turn & 1 else (0, count)
            for i in range(first * lanes, last * lanes):
                flat[i] *= factor
            half = width // 2 * lanes
            for i in range(half):
                a, b = flat[i], flat[i + half]
                flat[i] = a + b
                flat[i + half] = a - b


@intrinsic
def _times_four(typing: Any, matrix: Any, row: Any, flat: Any, lane: Any, out: Any) -> Any:
    """out[row + r, lane + l] = the sums over i of matrix[row + r, i] flat[i, lane + l]: four rows, sixteen lanes of 32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        matrix_type, _, flat_type, _, out_type = signature.args
        matrix, row, flat, lane, out = arguments
        d = builder.extract_value(context.make_array(matrix_type)(context, builder, matrix).shape, 1)
        rows = [builder.add(row, ir.Constant(_I64, r)) for r in range(4)]
        bases = [builder.mul(each, d) for each in rows]
        slots = [cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * _LANES)) for _ in rows]
        for slot in slots:
            builder.store(ir.Constant(_VECTOR, [0.0] * _LANES), slot)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), d, ir.Constant(_I64, 1)) as (i, _):
            at = builder.add(builder.mul(i, ir.Constant(_I64, BLOCK)), lane)
            values = load(builder, pointer(context, builder, flat_type, flat, at, _VECTOR), _VECTOR)
            for base, slot in zip(bases, slots, strict=True):
                one = load(builder, pointer(context, builder, matrix_type, matrix, builder.add(base, i), _F32), _F32)
                first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), one, ir.Constant(ir.IntType(32), 0))
                builder.store(fma(builder, builder.shuffle_vector(first, first, zeros), values, builder.load(slot)), slot)
        for each, slot in zip(rows, slots, strict=True):
            at = builder.add(builder.mul(each, ir.Constant(_I64, BLOCK)), lane)
            builder.store(builder.load(slot), pointer(context, builder, out_type, out, at, _VECTOR)).align = 4
        return context.get_dummy_value()

    return types.void(matrix, types.int64, flat, types.int64, out), codegen


@kernel
def turn(vectors, norms, metric, unit, centre, rotation, signs, matrix, block, stop, row, tile, turned, square, along):
    """turned = P(x - c) of the rows of a block, side by side; square = |x - c|^2, along = <x - c, c>.

    row: (d,) float32, tile: (D, 32) float32, room to work in; under no rotation and hadamard `turned` is the tile.
    """
    d, stride = len(centre), np.int64(vectors.shape[1])
    width = len(tile)
    tile[d:] = 0
    for lane in range(BLOCK):
        at = block * BLOCK + lane
        if at >= stop:
            tile[:, lane] = 0
            continue
        length = np.float64(norms[at]) if metric == COSINE else np.float64(unit)
        factor = 1 / length if length > 0 else np.float64(0)
        widen(vectors, at * stride, d, row, 0)
        for i in range(d):
            tile[i, lane] = np.float32(row[i] * factor) - centre[i]
    square[:], along[:] = 0, 0
    for i in range(d):
        middle = np.float64(centre[i])
        for lane in range(BLOCK):
            value = np.float64(tile[i, lane])
            square[lane] += value * value
            along[lane] += value * middle
    if rotation == HADAMARD:
        _hadamard(tile.reshape(width * BLOCK), width, BLOCK, signs)
    elif rotation > HADAMARD:
        for j in range(0, width, 4):
            _times_four(matrix, j, tile, 0, turned)
            _times_four(matrix, j, tile, BLOCK // 2, turned)


@kernel
def _fill(vectors, norms, metric, unit, centre, rotation, signs, matrix, codes, factors, start, stop):
    d, width = len(centre), codes.shape[1] * 8
    row, tile = np.empty(d, np.float32), np.zeros((width, BLOCK), np.float32)
    turned = tile if rotation <= HADAMARD else np.zeros((width, BLOCK), np.float32)
    square, along, size = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    byte = np.empty(BLOCK, np.uint8)
    for block in range(start // BLOCK, (stop + BLOCK - 1) // BLOCK):
        turn(vectors, norms, metric, unit, centre, rotation, signs, matrix, block, stop, row, tile, turned, square, along)
        size[:] = 0
        for j in range(width // 8):
            byte[:] = 0
            for bit in range(8):
                one = np.uint8(1 << bit)
                for lane in range(BLOCK):
                    value = turned[8 * j + bit, lane]
                    byte[lane] |= one if value > 0 else np.uint8(0)
                    size[lane] += np.float64(abs(value))
            for lane in range(BLOCK // 2):
                codes[block, j, 2 * lane] = byte[lane]
                codes[block, j, 2 * lane + 1] = byte[lane + BLOCK // 2]
        for lane in range(BLOCK):
            there = block * BLOCK + lane < stop
            scale = square[lane] / size[lane] * (2 if metric == L2 else 1) if size[lane] > 0 else np.float64(0)
            add = -square[lane] if metric == L2 else along[lane]
            factors[block, 0, lane] = within(scale) if there else np.float32(0)
            factors[block, 1, lane] = within(add) if there else np.float32(0)


@kernel
def within(value):
    """A factor as it is stored: no estimate overflows."""
    return np.float32(min(np.float64(_GREATEST), max(-np.float64(_GREATEST), value)))


@kernel
def _ask(queries, metric, unit, centre, rotation, signs, matrix, turned, tables, terms):
    m, d = len(queries), len(centre)
    width = turned.shape[1]
    moved = np.empty(d, np.float32)
    for q in range(m):
        square, along, middle = np.float64(0), np.float64(0), np.float64(0)
        for i in range(d):
            value = np.float64(queries[q, i]) / unit if metric == L2 else np.float64(queries[q, i])
            square += (value - centre[i]) ** 2 if metric == L2 else value * value
            along += value * np.float64(centre[i])
            middle += np.float64(centre[i]) ** 2
        length = np.sqrt(square)
        share, t = np.float64(1), np.float64(1)
        if metric == L2:
            share = _LONGEST / length if length > _LONGEST else np.float64(1)
            t = share
            terms[q, 3] = unit * unit / share
            terms[q, 4] = -unit * unit * square
        else:
            share = 1 / length if length > 0 else np.float64(0)
            t = along * share / middle if middle > 0 else np.float64(0)
            terms[q, 3] = unit * length
            terms[q, 4] = unit * along
        for i in range(d):
            value = np.float64(queries[q, i])
            moved[i] = np.float32((value / unit - centre[i]) * share if metric == L2 else value * share - t * centre[i])
        mine = turned[q]
        if rotation <= HADAMARD:
            mine[:d] = moved
            if rotation == HADAMARD:
                _hadamard(mine, width, 1, signs)
        else:
            for j in range(width):
                mine[j] = pair(matrix, j * d, moved, 0, d, IP, 0)
        terms[q, 0], terms[q, 1] = _table(mine, tables, q)
        terms[q, 2] = t
        square = np.float64(0)
        for j in range(width):
            square += np.float64(mine[j]) ** 2
        terms[q, LENGTH] = np.sqrt(square)


@kernel
def turn_all(rows, signs):
    """Rotates (n, D) numbers in place by the random rotation."""
    for row in range(len(rows)):
        _hadamard(rows[row], rows.shape[1], 1, signs)


@kernel
def _table(turned, tables, q):
    """Fills the table of a query; returns its step and bias. See the module."""
    columns = len(turned) // 4
    widest, total = np.float64(0), np.float64(0)
    for column in range(columns):
        size = np.float64(0)
        for j in range(4):
            size += 2 * abs(np.float64(turned[4 * column + j]))
        widest = max(widest, size)
        total += size
    # Each number is rounded: by half a step more at most.
    step = np.float64(np.float32(max(widest / LEVELS, total / (MOST - columns)) * 1.0000002))
    inverse = 1 / step if step > 1e-37 else np.float64(0)
    sums = np.empty(16, np.float64)
    for column in range(columns):
        sums[0] = np.float64(0.5)
        for j in range(4):
            sums[0] += 2 * max(np.float64(0), -np.float64(turned[4 * column + j])) * inverse
        for j in range(4):
            more = 2 * np.float64(turned[4 * column + j]) * inverse
            for n in range(1 << j):
                sums[n | 1 << j] = sums[n] + more
        for n in range(16):
            tables[q, column, n] = np.uint8(np.int64(sums[n]))
    return step, -total / 2
