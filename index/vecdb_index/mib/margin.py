"""How far estimates fall behind the tenth best: the margin that makes short lists so long on the mean.

Measured on rows of the segment that are searched for among all others (`scores.fitted`), for lists of 10 to 500 rows; between
these it is read on a logarithmic scale of their lengths. Longer lists are told by their length alone, and so are shorter ones
up to where that finds as many of the ten nearest: where all rows have neighbours in like distances, a margin is worth nothing,
and an estimate that happens to be high makes a list short. Plain values: safe in any thread.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..contract import Damaged
from .gate import NEAREST

LENGTHS = (NEAREST, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500)
MOST = 4  # times the mean length, that a list may have
_HALVINGS = 30  # until a margin is known


@dataclass(frozen=True)
class Decline:
    """falls: by how much the last estimates of lists of each of LENGTHS may be below the tenth best, over |q'|, ascending from
    0; none of them where nothing was measured. least: from which length on a margin finds more than a length.
    """

    falls: tuple[float, ...] = ()
    least: int = LENGTHS[-1] + 1

    @staticmethod
    def of(table: npt.NDArray[np.float64]) -> Decline:
        """Of an array as it is stored. Raises Damaged."""
        if table.dtype != np.float64 or table.shape not in ((0,), (len(LENGTHS) + 1,)) or not np.isfinite(table).all():
            raise Damaged("the decline of estimates is no table of it")
        if not len(table):
            return Decline()
        falls, least = table[:-1], float(table[-1])
        if falls[0] != 0 or (np.diff(falls) < 0).any() or least not in (*LENGTHS, Decline.least):
            raise Damaged("the decline of estimates cannot be right")
        return Decline(tuple(falls.tolist()), int(least))

    @staticmethod
    def measured(below: npt.NDArray[np.float32], places: npt.NDArray[np.int64]) -> Decline:
        """below: (m, c), by how much the best estimates of some queries are below the tenth best, over |q'|, ascending; c is
        2,000, or all rows. places: (m, 10) of the ten nearest among these, c of those that are not.
        """
        m, c = below.shape
        true = np.where(places < c, np.take_along_axis(below, np.minimum(places, c - 1), 1), np.inf)
        falls, least = [0.0], Decline.least
        for length in LENGTHS[1:]:
            most = min(c, MOST * length)
            low, high = falls[-1], float(below[:, most - 1].max())
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                if np.count_nonzero(below[:, :most] <= middle) < length * m:
                    low = middle
                else:
                    high = middle
            falls.append(low)
            by_margin, by_length = ((true <= low) & (places < MOST * length)).sum(), (places < length).sum()
            if by_margin < by_length:
                least = Decline.least
            elif by_margin > by_length and least == Decline.least:
                least = length
        return Decline(tuple(falls), least)

    def table(self) -> npt.NDArray[np.float64]:
        """To be stored; `of` reads it."""
        return np.array([*self.falls, self.least] if self.falls else [], np.float64)

    def between(self, near: int, length: int) -> float | None:
        """By how much estimates may be below the `near`-th best, over |q'|, for lists of so many rows on the mean.

        None where lists are told by their length.
        """
        if not self.falls or not self.least <= length <= LENGTHS[-1] or not NEAREST <= near < length:
            return None
        return self._at(length) - self._at(near)

    def _at(self, length: int) -> float:
        after = min(bisect_right(LENGTHS, length), len(LENGTHS) - 1)  # of the longest it is the last
        (a, b), (low, high) = LENGTHS[after - 1 : after + 1], self.falls[after - 1 : after + 1]
        return low + (high - low) * math.log(length / a) / math.log(b / a)
