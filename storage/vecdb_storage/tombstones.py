"""Which rows of one segment are dead: an immutable bitmap in chunks, copied where it changes.

Death is for ever: a row is dead once a row or delete of its id has a higher seq, and nothing takes that back.
So writing a tombstone twice, early or in another order does no harm. A value here never changes; `with_dead`
returns another that shares the untouched chunks, and a snapshot keeps the one it saw. Safe in any thread.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

CHUNK_ROWS = 65_536
_CHUNK_WORDS = CHUNK_ROWS // 64

Words = npt.NDArray[np.uint64]
_NONE_DEAD: Words = np.zeros(_CHUNK_WORDS, np.uint64)
_NONE_DEAD.flags.writeable = False


@dataclass(frozen=True)
class Tombstones:
    """rows: rows of the segment. chunks: chunk number -> uint64 (1024,), bit set = dead. count: dead rows."""

    rows: int
    chunks: dict[int, Words] = field(default_factory=dict)
    count: int = 0

    def is_dead(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For each of `rows` (m,) int64, whether it is dead."""
        out = np.zeros(len(rows), np.bool_)
        if not self.count:
            return out
        order = np.argsort(rows)
        rows = rows[order]
        words, bits = _places(rows)
        found = np.zeros(len(rows), np.uint64)
        for number, run in _by_chunk(rows):
            chunk = self.chunks.get(number)
            if chunk is not None:
                found[run] = chunk[words[run]] & bits[run]
        out[order] = found
        return out

    def with_dead(self, rows: npt.NDArray[np.int64]) -> Tombstones:
        """A bitmap in which `rows` (m,) int64 are dead too."""
        chunks, count = dict(self.chunks), self.count
        rows = np.unique(rows)
        words, bits = _places(rows)
        for number, run in _by_chunk(rows):
            old = chunks.get(number)
            chunk = chunks[number] = np.zeros(_CHUNK_WORDS, np.uint64) if old is None else old.copy()
            places, here = words[run], bits[run]
            count += len(here) - int(np.count_nonzero(chunk[places] & here))
            np.bitwise_or.at(chunk, places, here)
        return Tombstones(self.rows, chunks, count)

    def changed_since(self, old: Tombstones | None) -> dict[int, Words]:
        """The chunks that differ from `old`, for the transaction that commits them."""
        known = old.chunks if old else {}
        return {number: chunk for number, chunk in self.chunks.items() if known.get(number) is not chunk}

    @cached_property
    def live(self) -> Words | None:
        """uint64 words with a bit for each live row, padding bits zero; None when every row is live."""
        if not self.count:
            return None
        # Joined as bytes: put together by NumPy, each chunk would be a moment at which the interpreter is lost to a writer.
        chunks = (self.chunks.get(number, _NONE_DEAD) for number in range(-(-self.rows // CHUNK_ROWS)))
        dead = b"".join(chunk.data for chunk in chunks)
        words = ~np.frombuffer(dead, np.uint64)[: -(-self.rows // 64)]
        if self.rows % 64:
            words[-1] &= np.uint64((1 << self.rows % 64) - 1)
        return words


def _by_chunk(rows: npt.NDArray[np.int64]) -> list[tuple[int, slice]]:
    """The chunks of rows that ascend, and where those of each are."""
    numbers = rows // CHUNK_ROWS
    edges = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(rows)]
    return [(int(numbers[first]), slice(first, last)) for first, last in itertools.pairwise(edges) if first < last]


def _places(rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Words]:
    """The word within its chunk that each row is in, and its bit there."""
    return rows % CHUNK_ROWS >> 6, np.uint64(1) << (rows & 63).astype(np.uint64)


def from_chunks(rows: int, chunks: dict[int, Words]) -> Tombstones:
    """The bitmap whose chunks were read from disk."""
    return Tombstones(rows, chunks, sum(int(np.bitwise_count(c).sum()) for c in chunks.values()))
