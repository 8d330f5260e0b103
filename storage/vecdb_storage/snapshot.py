"""What a reader holds: a collection as it was after one commit, for as long as the reader likes.

A Snapshot is a tuple of parts, segments first in manifest order, then the memtable's blocks. Nothing in it changes:
segments are immutable, tombstones are versions, and of a memtable block only the rows and deaths up to the
snapshot's seq count. Safe in any thread; it blocks nobody. Files deleted meanwhile stay readable through their maps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .batch import pack_bits
from .column_build import of_stored
from .columns import ColumnSet, open_columns
from .ids import Id, Rows, Wanted, hashes_of
from .memtable import Block, Memtable
from .segment import Segment, StoredField
from .tombstones import Tombstones, Words


class Part(Protocol):
    """Some rows of a collection, addressed 0..rows-1."""

    rows: int

    @property
    def live(self) -> Words | None:
        """Bitmap of the rows that count, None when all do."""

    @property
    def live_rows(self) -> int: ...
    def field(self, name: str) -> StoredField | None: ...
    def key(self, row: int) -> Id: ...
    def keys(self, rows: Rows) -> list[Id]: ...
    def payload(self, row: int) -> bytes: ...
    def seqs(self, rows: Rows) -> npt.NDArray[np.uint64]: ...
    def column_sets(self, after: int = 0) -> Iterator[tuple[int, int, ColumnSet | None]]:
        """(start, stop, columns) for runs of rows of which some are >= after; None where no columns were built yet."""


class SegmentPart:
    def __init__(self, segment: Segment, tombstones: Tombstones, indexes: Mapping[str, str]) -> None:
        """indexes: field -> name of its index file, which `segment.index` opens."""
        self.segment, self.tombstones, self.indexes = segment, tombstones, indexes
        self.rows = segment.rows
        self.key, self.keys = segment.ids.__getitem__, segment.keys
        self.field, self.payload, self.seqs = segment.field, segment.payload, segment.seqs

    def is_as(self, other: SegmentPart) -> bool:
        """Whether it says the same of the same segment."""
        same = self.segment is other.segment and self.tombstones is other.tombstones
        return same and self.indexes == other.indexes

    @property
    def live(self) -> Words | None:
        return self.tombstones.live

    @property
    def live_rows(self) -> int:
        return self.rows - self.tombstones.count

    def column_sets(self, after: int = 0) -> Iterator[tuple[int, int, ColumnSet | None]]:
        if after < self.rows:
            yield 0, self.rows, self.segment.columns


_STRIPES = (1024, 64)  # rows of memory that have columns together


class BlockPart:
    """The first `rows` rows of a memtable block, as a snapshot at `seq` sees them."""

    def __init__(self, block: Block, rows: int, seq: int) -> None:
        self.block, self.rows, self._seq = block, rows, seq

    @cached_property
    def live(self) -> Words | None:
        return self.block.live(self.rows, self._seq)

    @cached_property
    def live_rows(self) -> int:
        return self.rows - self.block.deaths(self._seq)

    def field(self, name: str) -> StoredField | None:
        stored = self.block.fields.get(name)
        if stored is None or stored.present is None:
            return None
        words = None
        if name not in self.block.full:
            present = stored.present[: self.rows]
            words = None if present.all() else pack_bits(present)
        return StoredField(stored.vectors[: self.rows], stored.norms[: self.rows], words)

    def key(self, row: int) -> Id:
        return self.block.keys[row]

    def keys(self, rows: Rows) -> list[Id]:
        return [self.block.keys[row] for row in rows.tolist()]

    def payload(self, row: int) -> bytes:
        return self.block.payloads[row]

    def payloads(self, start: int, stop: int) -> Sequence[bytes]:
        return self.block.payloads[start:stop]

    def seqs(self, rows: Rows) -> npt.NDArray[np.uint64]:
        return self.block.seq[rows]

    def column_sets(self, after: int = 0) -> Iterator[tuple[int, int, ColumnSet | None]]:
        # Full stripes of a block never change again, so their columns are built once and kept on the block. The rest goes in
        # smaller ones, until it is a stripe itself, so that few rows are left to be looked at one by one.
        start = 0
        for size in _STRIPES:
            while start + size <= self.rows:
                if start + size > after:
                    yield start, start + size, self._stripe(start, size)
                start += size
        if max(start, after) < self.rows:
            columns = self._stripe(start, self.rows - start) if self.rows == self.block.capacity else None
            yield start, self.rows, columns

    def _stripe(self, start: int, size: int) -> ColumnSet:
        kept = self.block.stripes
        columns = kept.get((start, size))
        if columns is None:
            arrays, meta = of_stored(self.block.payloads[start : start + size])
            columns = kept[start, size] = open_columns(meta, arrays, size)
            for smaller in range(start, start + size, _STRIPES[-1]):
                if size > _STRIPES[-1]:
                    kept.pop((smaller, _STRIPES[-1]), None)
        return columns


class Snapshot:
    """A collection at `seq`. count: live rows. schema: as it was then. A segment's part is the same object in all snapshots in
    which it says the same.
    """

    def __init__(
        self,
        seq: int,
        schema: dict[str, Any],
        segments: Sequence[SegmentPart],
        memtables: Sequence[Memtable],
    ) -> None:
        self.seq, self.schema = seq, schema
        self.published = time.monotonic()
        self.segments = segments
        self._memtables: list[tuple[int, Memtable]] = []
        self.parts: list[Part] = list(segments)
        for memtable in memtables:
            self._memtables.append((len(self.parts), memtable))
            self.parts += [BlockPart(block, block.rows, seq) for block in memtable.blocks]

    @cached_property
    def count(self) -> int:
        return sum(part.live_rows for part in self.parts)

    @cached_property
    def unflushed(self) -> int:
        """Rows that are in no segment yet."""
        return sum(part.rows for part in self.parts if isinstance(part, BlockPart))

    def find(self, keys: Sequence[Id]) -> list[tuple[Part, int] | None]:
        """Where each id is: its part and row, or None when it does not exist at this seq."""
        found: list[tuple[Part, int] | None] = [None] * len(keys)
        missing = []
        for position, key in enumerate(keys):
            for base, memtable in self._memtables:
                address = memtable.address_at(key, self.seq)
                if address >= 0:
                    found[position] = (self.parts[base + (address >> 32)], address & 0xFFFF_FFFF)
                    break
            else:
                missing.append(position)
        if not missing or not self.segments:
            return found
        asked = [keys[p] for p in missing]
        wanted = Wanted(asked, hashes_of(asked))
        for part in self.segments:
            places, rows = part.segment.find(wanted)
            if len(rows):
                alive = ~part.tombstones.is_dead(rows)
                for place, row in zip(places[alive].tolist(), rows[alive].tolist(), strict=True):
                    found[missing[place]] = (part, row)
        return found

    def in_order(self) -> Iterator[tuple[Part, Rows]]:
        """Live rows by ascending seq, in runs of rows of one part."""
        spans: list[tuple[int, int, Part]] = []
        for part in self.parts:
            if not part.live_rows:
                continue
            if isinstance(part, SegmentPart):
                spans.append((part.segment.min_seq, part.segment.max_seq, part))
            elif part.rows:
                first, last = part.seqs(np.array([0, part.rows - 1]))
                spans.append((int(first), int(last), part))
        spans.sort(key=lambda span: span[:2])
        while spans:
            end, together = spans[0][1], 1
            while together < len(spans) and spans[together][0] < end:
                end = max(end, spans[together][1])
                together += 1
            yield from _merged([part for _, _, part in spans[:together]])
            del spans[:together]


def live_rows(part: Part) -> Rows:
    """The rows of a part that count, ascending int64."""
    if part.live is None:
        return np.arange(part.rows)
    return np.flatnonzero(np.unpackbits(part.live.view(np.uint8), count=part.rows, bitorder="little"))


def _merged(parts: Sequence[Part]) -> Iterator[tuple[Part, Rows]]:
    """Rows of parts whose seqs interleave, by seq; a run ends where the part changes."""
    rows = [live_rows(part) for part in parts]
    if len(parts) == 1:
        yield parts[0], rows[0]
        return
    seqs = np.concatenate([part.seqs(r) for part, r in zip(parts, rows, strict=True)])
    owner = np.repeat(np.arange(len(parts)), [len(r) for r in rows])
    order = np.argsort(seqs, kind="stable")
    owner, flat = owner[order], np.concatenate(rows)[order]
    edges = np.flatnonzero(np.diff(owner)) + 1
    for run, of in zip(np.split(flat, edges), np.split(owner, edges), strict=True):
        if len(run):
            yield parts[int(of[0])], run
