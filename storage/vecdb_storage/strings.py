"""Strings that lie end to end: bytes, and n + 1 offsets that say where in them each begins and ends.

So payloads and string ids are stored, and so they are handed from the writing call through log and memtable to a segment,
without an object for each. Values never change; safe in any thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import final, overload

import numpy as np
import numpy.typing as npt

Ends = npt.NDArray[np.uint64]  # (n + 1,)
Text = npt.NDArray[np.uint8]
_Rows = npt.NDArray[np.int64]


@final
class Texts(Sequence[bytes]):
    """n strings, each made when it is asked for. offsets: (n + 1,), from 0 on, into text, (bytes,) u8."""

    __slots__ = ("offsets", "text")

    def __init__(self, offsets: Ends, text: Text) -> None:
        self.offsets, self.text = offsets, text

    @staticmethod
    def of(strings: Sequence[bytes]) -> Texts:
        if type(strings) is Texts:
            return strings
        offsets = np.fromiter(itertools.accumulate(map(len, strings), initial=0), np.uint64, len(strings) + 1)
        return Texts(offsets, np.frombuffer(b"".join(strings), np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        at = at if at >= 0 else at + len(self)
        return self.text[self.offsets[at] : self.offsets[at + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        text, ends = self.text.tobytes(), self.offsets.tolist()
        return (text[a:b] for a, b in itertools.pairwise(ends))

    @property
    def nbytes(self) -> int:
        return len(self.text)

    def take(self, rows: _Rows) -> Texts:
        """Some of them."""
        starts = self.offsets[rows].astype(np.int64)
        lengths = self.offsets[rows + 1].astype(np.int64) - starts
        offsets = np.zeros(len(rows) + 1, np.uint64)
        np.cumsum(lengths.astype(np.uint64), out=offsets[1:])
        return Texts(offsets, self.text[ranges(starts, lengths)])


def concat(parts: Sequence[Texts]) -> Texts:
    """Part after part."""
    lengths = np.concatenate([np.zeros(1, np.uint64), *(np.diff(part.offsets) for part in parts)])
    return Texts(np.cumsum(lengths, dtype=np.uint64), np.concatenate([np.zeros(0, np.uint8), *(part.text for part in parts)]))


def bytes_of(strings: Sequence[bytes]) -> int:
    """How many bytes they have together."""
    return strings.nbytes if type(strings) is Texts else sum(map(len, strings))


def ranges(starts: _Rows, lengths: _Rows) -> _Rows:
    """start, start + 1, … for each length, end to end: (sum of lengths,) int64."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    found: _Rows = np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)
    return found
