"""A batch whose vectors go to disk ahead of the rest of it, while the caller is still checking ids and payloads.

An Ahead belongs to one writing call. By the size of the vectors, they become

    the beginning of a level-0 segment    from LEVEL0_BYTES on: the whole batch will be one file, committed by reference
    an extent of the growing segment      from GROWING_BYTES on, in collections of one dense field; the rest goes to the log
    nothing yet                           below: they go to the log with the rest
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import growing
from .batch import LEVEL0_BYTES, Batch, FieldRows
from .growing import DONE, Placing
from .segment import Segment, SegmentWriter
from .ulid import ulid

if TYPE_CHECKING:
    from .store import Store

_BEFORE = 3  # batches, one of which is being committed, and one ready: so much may come before the one that is prepared
_ROW = 256  # bytes of a row beside its vector, about
_LONGEST_WAIT = 0.002  # seconds, for the disk to be given something to do


class Ahead:
    """The order is: `add_fields` as soon as vectors are checked; then `place` or `finish`; `release` in any case."""

    def __init__(self, store: Store, uuid: bytes, *, later: bool = False) -> None:
        self._store, self._uuid = store, uuid
        self.later = later  # others are committed before it
        self._writer: SegmentWriter | None = None
        self._path = Path()
        self._writing: Future[None] | None = None
        self._vectors: npt.NDArray[Any] | None = None  # for a growing segment
        self.placing: Placing | None = None

    @property
    def begun(self) -> bool:
        return self._writing is not None or self.placing is not None

    @property
    def placing_bytes(self) -> int:
        return 0 if self.placing is None else self.placing.vectors.nbytes

    @property
    def is_segment(self) -> bool:
        return self._writing is not None

    def add_fields(self, fields: Mapping[str, FieldRows]) -> None:
        """Sets a batch's fields on their way, if they are large enough."""
        size = sum(rows.vectors.nbytes for rows in fields.values())
        if size >= LEVEL0_BYTES:
            self._begin_segment(fields)
        elif 0 < size >= growing.GROWING_BYTES and self._store.growing.accepts(self._uuid):
            (rows,) = fields.values()
            assert isinstance(rows.vectors, np.ndarray)
            # A copy: were the caller to change them now, what is on disk would not be what its checksum is of. Nobody changes
            # what loaders have from Arrow or a message.
            fixed = self.later and not rows.vectors.flags.writeable
            self._vectors = rows.vectors if fixed else rows.vectors.copy()
            self._store.growing.enter(self._uuid, self)
            if self.placing is not None:
                # This thread holds the interpreter; until it lets go, the other cannot even begin to write.
                self.placing.reached.wait(_LONGEST_WAIT)

    def is_early(self) -> bool:
        """Whether its place is better taken when those before it are committed, as there may be a new growing segment by then.

        A flush takes one as it is only where all that is in it was committed, in the order of its places.
        """
        assert self._vectors is not None
        size = self._vectors.nbytes + _ROW * len(self._vectors)
        return self.later and self._store.flusher.is_near(_BEFORE * size)

    def send(self) -> None:
        """Sets the vectors on their way to the growing segment, behind those that were sent before."""
        assert self._vectors is not None
        self.placing = Placing(self._vectors)
        self._store.writing.submit(self._store.growing.append, self._uuid, self.placing)

    def take_turn(self, fields: Mapping[str, FieldRows]) -> None:
        """Its batch is the next to be committed: its fields wait no longer."""
        self.later = False
        if self._vectors is not None:
            self._store.growing.proceed(self._uuid, self)
        elif not self.begun:
            self.add_fields(fields)

    def _begin_segment(self, fields: Mapping[str, FieldRows]) -> None:
        store = self._store
        self._path = store.segment_path(self._uuid, ulid())
        store.ensure_folder(self._path.parent)
        self._writer = SegmentWriter(store.files, self._path, store.uuid, store.last_transaction())
        self._writing = store.writing.submit(self._writer.add_and_sync_fields, fields)

    def place(self, batch: Batch) -> Batch:
        """The batch for the log, with its vectors in the growing file if they were sent there; they need not be there yet.

        Raises StorageError.
        """
        if self.placing is None or batch.extent is not None:
            return batch
        extent, vectors = self.placing.place()
        ((name, rows),) = batch.fields.items()
        return replace(batch, fields={name: replace(rows, vectors=vectors)}, extent=extent, owned=True).packed_up()

    def finish(self, batch: Batch) -> tuple[Segment, int]:
        """The segment, synced under its name and not yet committed, and its length. Raises StorageError."""
        if not self.is_segment:
            self._begin_segment(batch.fields)
        assert self._writer is not None and self._writing is not None
        self._writing.result()
        assert batch.packed is not None
        length = self._writer.finish(batch.packed, None, batch.columns)
        return Segment(self._store.files, self._path, self._store.uuid, 0), length

    def release(self) -> None:
        """The batch was committed or refused; of a refused one no trace is left. Harmless when called again."""
        if self._vectors is not None:
            self._store.growing.leave(self._uuid, self)
        if self.placing is not None:
            placing, self.placing = self.placing, None
            self._store.growing.release(self._uuid, placing)
        if self._writer is not None and self._writing is not None:
            self._writing.exception()
            self._writing = DONE  # as in `growing.release`
            self._writer.abandon()
