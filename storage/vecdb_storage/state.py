"""One collection as the store knows it: manifest, segments, tombstones, memtable.

The same code serves the commit section, the replay of the log at open, and reader processes that follow a
writer, because all of it rests on one rule: *a row is live iff no row or delete of its id has a higher seq.*

Changed only under the store's commit lock. Readers get the `snapshot` published last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .batch import Batch
from .errors import VecdbError
from .growing import Extent
from .ids import Hashes, Id, Wanted, hashes_of
from .manifest import Manifest
from .memtable import Memtable
from .segment import Segment
from .snapshot import SegmentPart, Snapshot
from .tombstones import Tombstones
from .vectors import DenseForm, Form, SparseForm

_DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "i8": np.dtype(np.int8)}


class CollectionState:
    def __init__(self, uuid: bytes, name: str, schema: dict[str, Any], manifest: Manifest) -> None:
        self.uuid, self.name, self.schema, self.manifest = uuid, name, schema, manifest
        self.segments: list[Segment] = []
        self.tombstones: dict[str, Tombstones] = {}
        self.committed: dict[str, Tombstones] = {}  # as the tombstones table has them
        self.frozen: Memtable | None = None  # being flushed
        self.active = Memtable(self.layout)
        self.last_seq = manifest.flushed
        self.snapshot: Snapshot | None = None
        self.damage: VecdbError | None = None  # what kept this collection from being opened
        self.broken: dict[str, VecdbError] = {}  # segments that could not be opened

    @property
    def layout(self) -> dict[str, Form]:
        """What each field's vectors are."""
        return {name: _form(field) for name, field in self.schema["fields"].items()}

    @property
    def memtables(self) -> list[Memtable]:
        return [self.active] if self.frozen is None else [self.frozen, self.active]

    @property
    def memtable_bytes(self) -> int:
        return sum(memtable.bytes for memtable in self.memtables)

    @property
    def located(self) -> list[Extent]:
        """The vectors of log records that lie in growing files."""
        return [block.extent for memtable in self.memtables for block in memtable.blocks if block.extent]

    @property
    def extents(self) -> set[str]:
        """The growing files that log records name."""
        return {extent.name for extent in self.located}

    def set_schema(self, schema: dict[str, Any]) -> None:
        self.schema = schema
        self.active.set_layout(self.layout)

    def attach(self, segment: Segment, tombstones: Tombstones) -> None:
        self.segments.append(segment)
        self.tombstones[segment.name] = tombstones

    def publish(self, seq: int) -> Snapshot:
        """From now on readers see everything up to `seq`. A segment of which nothing changed is the same part as before."""
        indexes = {entry.name: entry.indexes for entry in self.manifest.segments}
        before = {} if self.snapshot is None else {part.segment.name: part for part in self.snapshot.segments}
        parts = []
        for segment in self.segments:
            part = SegmentPart(segment, self.tombstones[segment.name], indexes.get(segment.name, {}))
            kept = before.get(segment.name)
            parts.append(kept if kept is not None and kept.is_as(part) else part)
        self.snapshot = Snapshot(seq, self.schema, parts, self.memtables)
        return self.snapshot

    # -- the rule -----------------------------------------------------------------------------------

    def alive(self, keys: Sequence[Id], hashes: Hashes | None = None) -> list[tuple[Segment | Memtable, int] | None]:
        """Where the live row of each id is: a memtable and address, a segment and row, or None."""
        found: list[tuple[Segment | Memtable, int] | None] = [None] * len(keys)
        missing = list(range(len(keys)))
        for memtable in self._that_know(keys):
            known = memtable.rows_of
            for position in [p for p in missing if keys[p] in known]:
                address = memtable.live_address(keys[position])
                if address >= 0:
                    found[position] = (memtable, address)
            missing = [p for p in missing if found[p] is None]
        if not self.segments or not missing:
            return found
        if hashes is None:
            hashes = hashes_of(keys)
        whole = len(missing) == len(keys)
        wanted = Wanted(keys if whole else [keys[p] for p in missing], hashes if whole else hashes[missing])
        for segment in self.segments:
            places, rows = segment.find(wanted)
            if len(rows):
                alive = ~self.tombstones[segment.name].is_dead(rows)
                for place, row in zip(places[alive].tolist(), rows[alive].tolist(), strict=True):
                    found[missing[place]] = (segment, row)
        return found

    def kill(self, keys: Sequence[Id], seq: int, hashes: Hashes | None = None, known: Sequence[Memtable] | None = None) -> int:
        """Marks the live rows of `keys` that are older than `seq` dead as of `seq`; returns how many. known: `_that_know`."""
        dead = 0
        for memtable in self._that_know(keys) if known is None else known:
            for key in keys:
                address = memtable.live_address(key)
                if address >= 0 and memtable.seq_of(address) < seq:
                    memtable.kill(address, seq)
                    dead += 1
        if not self.segments or not keys:
            return dead
        wanted = Wanted(keys, hashes_of(keys) if hashes is None else hashes)
        for segment in self.segments:
            _, rows = segment.find(wanted)
            if len(rows):
                rows = rows[~self.tombstones[segment.name].is_dead(rows)]
                rows = rows[segment.seqs(rows) < seq]
            if len(rows):
                self.tombstones[segment.name] = self.tombstones[segment.name].with_dead(rows)
                dead += len(rows)
        return dead

    def _that_know(self, keys: Sequence[Id]) -> list[Memtable]:
        """The memtables that have, or had, a row of one of `keys`."""
        return [memtable for memtable in self.memtables if not memtable.rows_of.keys().isdisjoint(keys)]

    def apply(self, batch: Batch, seq: int) -> int:
        """A committed batch, in the order of commits: kills what it replaces or deletes, then adds its rows."""
        dead = self.kill(batch.deletes, seq) if batch.deletes else 0
        known = self._that_know(batch.keys)
        if batch.keys:
            dead += self.kill(batch.keys, seq, batch.hashes, known)
        self.active.append(batch, seq, new=self.active not in known)
        self.last_seq = seq
        return dead

    def replay(self, batch: Batch, seq: int) -> None:
        """A batch read from the log. Segments may already hold later rows of its ids: then its own arrive dead."""
        self.apply(batch, seq)
        later = [segment for segment in self.segments if segment.max_seq > seq]
        if not later or not batch.keys:
            return
        wanted = Wanted(batch.keys, hashes_of(batch.keys) if batch.hashes is None else batch.hashes)
        for segment in later:
            places, rows = segment.find(wanted)
            for place, newer in zip(places.tolist(), segment.seqs(rows).tolist(), strict=True):
                if newer > seq:
                    address = self.active.live_address(batch.keys[place])
                    if address >= 0:
                        self.active.kill(address, newer)


def _form(field: dict[str, Any]) -> Form:
    """Of the vectors of a field, as the schema declares it."""
    return SparseForm() if field["kind"] == "sparse" else DenseForm(field["dim"], _DTYPES[field["dtype"]])
