"""Whether bits serve the rows of a field: how long short lists have to be, and what to do where that is too long.

Of queries that are held out it is known where their ten nearest rows lie in the order of estimates: in a sample, and in its
halves and fourths. The length that reaches a recall grows with the rows by a power of their number: by the number itself where
rows that lie between are found in any part of the sample alike, and slower, since of more rows the ten nearest are nearer. That
power is the greater one of those between a fourth and a half and between a half and all, and tells the length for all rows of
the segment, and for ten times as many.

Bits serve where a short list is no more than a hundredth of the rows (or so short that it does not matter), and less is read
than an exact search of int8 would read. Where that holds for a recall of 0.99, all is well; where it holds for 0.95 alone, it
wants more bits of each dimension; and where not even for that, another backend. With more bits, the rows in short lists of one
bit are looked at by all bits, and the rows that are compared themselves are those in short lists of all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

RECALLS = (0.95, 0.99)
PARTS = (4, 2, 1)  # into how many the sample is divided
NEAREST = 10
KNOWN = 12 * NEAREST  # of the sample, among which the ten nearest of every fourth of it are, but for chance
_SHARE = 0.01  # of the rows, that a short list may be
_SLOWEST = 0.5  # power: where clusters have few rows in a sample, slower growth, or none, is of the sample
_SHORT = 200  # rows, of which a list always may be
LATER = 10  # times the rows
Gate = dict[int, npt.NDArray[np.float64]]  # by bits a dimension: see `measured`; empty where nothing was measured


@dataclass(frozen=True)
class Verdict:
    """bits: a dimension. says: "ok", "more bits" or "other backend". lists: rows that are compared themselves for each of
    RECALLS, and later: of LATER times the rows. passed: rows that their first bits let through. read: bytes for a query.
    exact: those that an exact search of int8 reads.
    """

    bits: int
    says: Literal["ok", "more bits", "other backend"]
    rows: int
    lists: tuple[int, ...]
    later: tuple[int, ...]
    passed: tuple[int, ...]
    read: tuple[int, ...]
    exact: int

    def advice(self, better: int | None) -> str:
        """What to do, and why; nothing where all is well. better: bits that would do."""
        if self.says == "ok":
            return ""
        at = 0 if self.says == "other backend" else 1
        instead = "hnsw or flat" if better is None else f"MIB(bits={better}), hnsw or flat"
        mine = "one bit" if self.bits == 1 else f"{self.bits} bits"
        if at == 0:
            said = f"{mine} of each number {'serves' if self.bits == 1 else 'serve'} these vectors badly"
        else:
            said = f"{mine} of each number {'is' if self.bits == 1 else 'are'} too little for a recall above {RECALLS[0]}"
        share = self.lists[at] / self.rows
        return (
            f"{said}, {instead} would do better: {RECALLS[at]} takes short lists of {self.lists[at]:,} rows ({share:.1%}), and "
            f"{self.read[at]:,} bytes where an exact search of int8 reads {self.exact:,}"
        )


def measured(near: npt.NDArray[np.int64], listed: npt.NDArray[np.int64], rows: int) -> npt.NDArray[np.float64]:
    """How long short lists had to be, (3, 3): see `layout`.

    near: (m, KNOWN), the nearest of so many rows; listed: rows by estimate; best first.

    A row that is not listed counts as the last of all.
    """
    found = np.empty((len(PARTS), 1 + len(RECALLS)), np.float64)
    place = np.empty(rows, np.int64)
    for i, parts in enumerate(PARTS):
        places: list[npt.NDArray[np.int64]] = []
        for mine, best in zip(near, listed, strict=True):
            for part in range(parts):
                inside = best[best % parts == part]
                place[part::parts] = -(-rows // parts) - 1
                place[inside] = np.arange(len(inside))
                places.append(place[mine[mine % parts == part][:NEAREST]])
        ranks = np.sort(np.concatenate(places))
        lengths = [max(NEAREST, int(ranks[min(len(ranks), math.ceil(recall * len(ranks))) - 1]) + 1) for recall in RECALLS]
        found[i] = rows / parts, *lengths
    return found


def lists_of(gate: npt.NDArray[np.float64], rows: int) -> tuple[int, ...]:
    """How long short lists of so many rows have to be."""
    if rows <= 0:
        return (0,) * len(RECALLS)
    of, lengths = np.log(gate[:, 0]), np.log(gate[:, 1:])
    powers = np.clip((np.diff(lengths, axis=0) / np.diff(of)[:, None]).max(axis=0), _SLOWEST, 1)
    grown = np.exp(lengths[-1] + powers * (math.log(rows) - of[-1]))
    return tuple(min(rows, max(NEAREST, math.ceil(each - 1e-6))) for each in grown)


def verdict_of(gate: Gate, bits: int, rows: int, width: int, d: int, row_bytes: int) -> Verdict | None:
    """Of an index of so many bits; None where nothing was measured. width: D. row_bytes: of one vector as it is stored."""
    if bits not in gate or rows < 1:
        return None
    lists, later, passed = lists_of(gate[bits], rows), lists_of(gate[bits], LATER * rows), lists_of(gate[1], rows)
    code = width // 8
    between = code * bits + 4 if bits > 1 else 0
    read = tuple(rows * (code + 8) + first * between + last * row_bytes for first, last in zip(passed, lists, strict=True))
    exact = rows * d
    serves = [each <= max(_SHORT, _SHARE * rows) and mine < exact for each, mine in zip(lists, read, strict=True)]
    says: Literal["ok", "more bits", "other backend"] = "ok" if all(serves) else "more bits" if serves[0] else "other backend"
    return Verdict(bits, says, rows, lists, later, passed, read, exact)


def best_of(verdicts: Iterable[Verdict | None]) -> Verdict | None:
    """The first that serves, or serves most."""
    order = ("ok", "more bits", "other backend")
    return min(filter(None, verdicts), key=lambda each: order.index(each.says), default=None)
