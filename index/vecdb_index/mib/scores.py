"""What bits tell of a hit beside its key: how much two codes say of each other, how rare the row is, how likely it is near.

Of an index of more bits a dimension, the first ones are what they go by.

*Its*, of a query's code and a row's: with a, b, c and d of D dimensions in which both bits are set, the query's alone, the
row's alone, and neither, their mutual information is

    (a log2(a D / ((a + b)(a + c))) + b log2(b D / ((a + b)(b + d))) + c … + d …) / D,    0 log2 0 = 0

and its is the root of that over the entropy of the query's bits, H2((a + b) / D): 1 where the codes are the same, 0 where they
say nothing of each other, are rather opposites (a d <= b c), or the query's bits are all one. For codes with as many bits set
as not it is sqrt(1 - H2(h / D)), h being the bits that differ; otherwise it does not go by h alone. Padding is not counted.

*Surprise*, of an estimated key, in bits: -log2(n P0), where P0 is the chance that a row that has nothing to do with the query
is estimated as high, and n how many rows there are: 0 means as good as the best of so many such rows may be, 10 a thousand
times rarer. Every query has its own P0 (`Null`): of estimates of a fixed sixteenth of the blocks the share that are as high,
as long as these are 30 or more; beyond, that share goes on as the tail of a normal distribution of their mean and deviation.
It rises with the estimate. Rows that do belong to the query are in the sample, too, so that surprise errs to the low side.

*Likelihood*, of an estimated key: how likely the row is one of the ten nearest, going by its *margin*: its estimate less the
tenth best of all, over |q'|, which errors go by (see `codec.bits`). Some rows of the segment are queries to all others;
isotonic regression (pool adjacent violators: Ayer et al., 1955) of what was true on the margin is the *curve* that is stored,
and read between its points. Where a segment is half of all rows, about five of the ten nearest are to be expected there, and
the tenth best of all is about its fifth: so there are curves of the five and of the three nearest, too; what is between them is
read between them, and of less than three tenths the likelihood is somewhat too high.

Plain functions and values that do not change: safe in any thread. The same numbers for any batch, threads, and either kernel
of `scan`: each query is asked by itself, and sums are in one order.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from ..codec.bits import BLOCK, LENGTH, TERMS, Encoder, apart, copy_rows
from ..contract import Bitmap, Budget, Damaged, Metric, Rows
from ..flat.search import FlatSearcher
from ..kernels.bitmap import ones
from ..kernels.distances import read_only
from ..kernels.select import read
from .gate import NEAREST
from .margin import Decline
from .sample import evenly
from .scan import Bits, Lists, scan
from .tuning import plan_of

SHARE = 16  # of the blocks of a segment, one is in the null model
BLOCKS = 64  # of a segment, that are, if there are so many
FEWEST = 64  # rows that a null model is made of, at least
COUNTED = 30  # rows of it, of which a share can be told
LEAST_ROWS = 2000  # of a segment, of which a likelihood is measured
_ASKED, _LISTED = 256, 512  # rows that are queries then, and rows that are looked at for each
_FURTHER = 2000  # for the decline of estimates
_TASK = 32  # of these queries, whose number is a multiple of it
_FAR = 30.0  # deviations beyond which a tail is that of its series
_EVERY = np.zeros(0, np.uint64)
PLACES = (3, 5, NEAREST)  # of a segment, which is all, the half or less of what there is
NO_CURVE = np.zeros((0, 3), np.float64)


class Question:
    """A query, (1, d) float32, as an encoder takes it. length: |q'| times what makes an estimate a key. Of one thread."""

    def __init__(self, encoder: Encoder, query: npt.NDArray[np.float32]) -> None:
        self.encoder = encoder
        self._ready, self._tables, self._terms, _ = encoder.ask(query)
        self.length = float(self._terms[0, LENGTH] * self._terms[0, 3])

    @cached_property
    def code(self) -> npt.NDArray[np.uint8]:
        """(D / 8,): the bits that the query has as a row.

        For inner products its length means nothing: it is taken such that it lies as far along the centre as the centre itself.
        """
        encoder = self.encoder
        query = self._ready[:, : len(encoder.centre)].astype(np.float64)
        length = math.sqrt(float(np.square(query[0]).sum()))
        if encoder.metric == "ip":
            query = encoder.unit * (query / (length or 1.0) + (1 - self._terms[0, 2]) * encoder.centre)
        row = Rows(query.astype(np.float32), np.array([length], np.float32), cast("Metric", encoder.metric))
        found: npt.NDArray[np.uint8] = apart(encoder.coded(row)[0], 1)[0]
        return found

    def estimated(
        self, bits: Bits, words: Bitmap = _EVERY, count: int | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """(keys, rows) of the best estimates, best first: of `count` rows, or all. words: of allowed rows, empty for all."""
        blocks, most = len(bits.codes), ones(words) if len(words) else bits.n
        if most == 0:
            return np.zeros(0, np.float64), np.zeros(0, np.int64)
        count = most if count is None else min(count, most)
        lists, plan = Lists.of(1, count), plan_of(self.encoder.width, bits.codes.nbytes)
        scan(self._tables, self._terms, *bits, read_only(words), 0, blocks, plan, *lists)
        keys, rows = read(np.sort(lists.entries[0, : lists.sizes[0]])[:count])
        return keys * self._terms[0, 3] + self._terms[0, 4], rows


def taken(bits: Bits, rows: npt.NDArray[np.int64]) -> Bits:
    """The codes of some rows, in that order."""
    blocks, (_, bytes_, _) = -(-len(rows) // BLOCK), bits.codes.shape
    codes, factors = np.zeros((blocks, bytes_, BLOCK), np.uint8), np.zeros((blocks, 2, BLOCK), np.float32)
    copy_rows(bits.codes, bits.factors, rows, codes, factors, np.arange(len(rows)))
    return Bits(read_only(codes), read_only(factors), len(rows))


def its(question: Question, bits: Bits) -> npt.NDArray[np.float64]:
    """(n,) of some rows; in [0, 1]. See the module."""
    rows, width = apart(bits.codes, bits.n), question.encoder.dimensions
    both = np.bitwise_count(rows & question.code).sum(axis=1, dtype=np.int64)
    set_, asked = np.bitwise_count(rows).sum(axis=1, dtype=np.int64), int(np.bitwise_count(question.code).sum(dtype=np.int64))
    a, b, c, d = both, asked - both, set_ - both, width - asked - set_ + both
    counts = np.arange(width + 1, dtype=np.float64)
    t = counts * np.log2(np.maximum(counts, 1))
    shared = t[a] + t[b] + t[c] + t[d] + t[width] - t[asked] - t[width - asked] - t[set_] - t[width - set_]
    entropy = t[width] - t[asked] - t[width - asked]
    if not 0 < asked < width:
        return np.zeros(bits.n, np.float64)
    return np.where(a * d > b * c, np.sqrt(np.clip(shared / entropy, 0, 1)), 0.0)


def sampled(bits: Bits) -> Bitmap:
    """The rows that a null model is made of, dead ones and those without a vector included: of a fixed part of the blocks."""
    blocks = len(bits.codes)
    flags = np.zeros((-(-bits.n // 64) * 64 // BLOCK, BLOCK), np.bool_)
    flags[: blocks : min(SHARE, max(1, blocks // BLOCKS))] = True
    flags.reshape(-1)[bits.n :] = False
    return np.packbits(flags.reshape(-1), bitorder="little").view(np.uint64)


@dataclass(frozen=True)
class Null:
    """What estimated keys of a query are like where rows have nothing to do with it. keys: of a sample, ascending."""

    keys: npt.NDArray[np.float64]

    @cached_property
    def _normal(self) -> tuple[float, float]:
        """Mean and deviation; no less than float32 tells apart."""
        least = np.spacing(np.float32(np.abs(self.keys[[0, -1]]).max()))
        return float(self.keys.mean()), max(float(self.keys.std()), float(least))

    def surprise(self, keys: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.float64]:
        """(n,) bits; rows: of how many these are the best. See the module."""
        n = len(self.keys)
        higher = n - np.searchsorted(self.keys, keys, side="left")
        last = self.keys[n - COUNTED]  # above which too few are left to count
        known = n - int(np.searchsorted(self.keys, last, side="left"))
        mean, deviation = self._normal
        said = np.empty(len(keys), np.float64)
        for i, key in enumerate(keys):
            rare = math.log2(max(int(higher[i]), known) / n)
            if key > last:
                rare += _log2_tail((float(key) - mean) / deviation) - _log2_tail((float(last) - mean) / deviation)
            said[i] = -math.log2(rows) - rare
        return said


def _log2_tail(z: float) -> float:
    """log2 of the chance that a standard normal number is above z."""
    if z < _FAR:
        return math.log2(math.erfc(z / math.sqrt(2)) / 2)
    square = z * z
    series = 1 - 1 / square + 3 / square**2 - 15 / square**3
    return (math.log(series / (z * math.sqrt(2 * math.pi))) - square / 2) / math.log(2)


def likelihood(
    curve: npt.NDArray[np.float64], question: Question, keys: npt.NDArray[np.float64], tenth: float, share: float = 1.0
) -> npt.NDArray[np.float64]:
    """(n,) in [0, 1], of estimated keys. tenth: the tenth best of all that may be found; share: of these, how many the curve
    was measured among. curve: see `fitted`; not empty.
    """
    margins = (keys - tenth) / _positive(question.length)
    said = [np.interp(margins, *curve[curve[:, 0] == each, 1:].T) for each in PLACES]
    place = math.log(min(NEAREST, max(PLACES[0], NEAREST * share)))
    for i in range(1, len(PLACES)):
        low, high = math.log(PLACES[i - 1]), math.log(PLACES[i])
        if place <= high:
            part = (place - low) / (high - low)
            return np.clip((1 - part) * said[i - 1] + part * said[i], 0, 1)
    return np.clip(said[-1], 0, 1)


def fitted(encoder: Encoder, bits: Bits, rows: Rows, budget: Budget) -> tuple[npt.NDArray[np.float64], Decline]:
    """(s, 3): for each of PLACES, margins, ascending, and likelihoods; and how estimates fall off. Both are empty where there
    are too few rows.

    Each query is left out of what it is searched in: where a row lies depends on no other. Raises Cancelled.
    """
    asked, count = evenly(rows, _ASKED)
    if count < LEAST_ROWS:
        return NO_CURVE, Decline()
    words = _EVERY if rows.present is None else rows.present
    exact, listed = FlatSearcher(rows), min(count - 1, _FURTHER)
    best = np.empty((_ASKED, listed), np.float32)  # estimates over |q'|, the best first
    places = np.full((_ASKED, NEAREST), listed, np.int64)  # of the nearest in these

    def look(start: int) -> None:
        some = asked[start : start + _TASK]
        queries = np.ascontiguousarray(rows.vectors[some], np.float32)
        near = exact.search(queries, NEAREST + 1, control=budget.control).rows
        for i, me in enumerate(some):
            question = Question(encoder, queries[i : i + 1])
            keys, found = question.estimated(bits, words, listed + 1)
            keys, found = keys[found != me][:listed], found[found != me][:listed]
            best[start + i] = keys / _positive(question.length)
            for place, row in enumerate(near[i][near[i] != me][:NEAREST]):
                places[start + i, place] = next(iter(np.flatnonzero(found == row)), listed)

    with ThreadPoolExecutor(budget.control.threads(budget.threads)) as pool:
        list(pool.map(look, range(0, _ASKED, _TASK)))
    curves = [_curve_of(each, best[:, :_LISTED], places[:, :each]) for each in PLACES]
    below = np.subtract(best[:, NEAREST - 1 : NEAREST].copy(), best, out=best)  # in its place: a build is to take little memory
    return np.concatenate(curves), Decline.measured(below, places)


def _curve_of(place: int, best: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """One of the curves of `fitted`: of margins to the `place`-th best, and of so many nearest."""
    margins = best - best[:, place - 1 : place]
    queries, column = np.nonzero(places < best.shape[1])
    true = np.sort(margins[queries, places[queries, column]])
    margins = margins.reshape(-1)
    margins.sort()
    # Equal margins share what is true of them; those between two of which something is, of which nothing is, are one already.
    edges = np.unique(np.concatenate([[0], *(np.searchsorted(margins, true, side) for side in ("left", "right"))]))
    starts = edges[edges < len(margins)]
    many = np.diff(np.append(starts, len(margins)))
    shares = np.diff(np.append(np.searchsorted(true, margins[starts]), len(true))) / many
    levels, sizes = isotonic(shares, many)
    starts = starts[np.cumsum(sizes) - sizes]
    means = np.add.reduceat(margins, starts, dtype=np.float64) / np.diff(np.append(starts, len(margins)))
    means = np.maximum.accumulate(means)  # rounded, they may be a last bit off
    return np.column_stack([np.full(len(means), place), means, levels])


def fitting(n: int, width: int, threads: int) -> int:
    """About how many bytes `fitted` takes, of n rows."""
    if n < LEAST_ROWS:
        return 0
    question = 64 * _FURTHER + 4 * (TERMS + 3) * width
    return _ASKED * (4 * _FURTHER + 16 * _LISTED) + threads * (question + _TASK * (8 * width + 32 * NEAREST))


def isotonic(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The ascending steps that are nearest to values, by weighted squares: the level of each, and how many values it is of."""
    levels: list[float] = []
    shares: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        size = 1
        while levels and levels[-1] >= value:
            value = (levels[-1] * shares[-1] + value * weight) / (shares[-1] + weight)
            levels.pop()
            weight, size = weight + shares.pop(), size + sizes.pop()
        levels.append(value)
        shares.append(weight)
        sizes.append(size)
    return np.array(levels, np.float64), np.array(sizes, np.int64)


def checked(curve: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A stored curve. Raises Damaged."""
    if curve.dtype != np.float64 or curve.ndim != 2 or curve.shape[1] != 3 or not np.isfinite(curve).all():
        raise Damaged("the likelihoods of rows are no table of them")
    if len(curve) and tuple(np.unique(curve[:, 0])) != PLACES:
        raise Damaged("the likelihoods of rows are of other places")
    for place in PLACES:
        if not (np.diff(curve[curve[:, 0] == place], axis=0) >= 0).all():
            raise Damaged("the likelihoods of rows do not rise with their margins")
    if ((curve[:, 2] < 0) | (curve[:, 2] > 1)).any():
        raise Damaged("the likelihoods of rows are no shares")
    return curve


def _positive(length: float) -> float:
    """A query that lies at the centre is as far from nothing."""
    return max(length, 1e-30)
