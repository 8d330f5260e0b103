"""A bulk load: a large batch goes to disk once, as a segment, and is committed by reference.

A Level0 belongs to one writing call. Its vectors are written and synced in the store's writing thread while the caller
checks the rest of the batch; ids, payloads and columns follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING

from .batch import LEVEL0_BYTES, Batch, FieldRows
from .ids import Hashes
from .segment import Segment, SegmentWriter
from .ulid import ulid

if TYPE_CHECKING:
    from .store import Store


class Level0:
    """A large batch on its way to disk, where it will stay. Belongs to one writing call.

    The order is: `add_fields` as soon as vectors are checked (they go to disk in another thread), then `finish`.
    """

    def __init__(self, store: Store, uuid: bytes) -> None:
        self._store, self._uuid = store, uuid
        self._writer: SegmentWriter | None = None
        self._path = Path()
        self._on_its_way: Future[None] | None = None

    @property
    def begun(self) -> bool:
        return self._writer is not None

    def add_fields(self, fields: Mapping[str, FieldRows]) -> None:
        """Begins with a batch's fields, if they are large enough for a segment of their own."""
        if sum(rows.vectors.nbytes for rows in fields.values()) >= LEVEL0_BYTES:
            self._begin(fields)

    def _begin(self, fields: Mapping[str, FieldRows]) -> None:
        store = self._store
        self._path = store.segment_path(self._uuid, ulid())
        store.ensure_folder(self._path.parent)
        self._writer = SegmentWriter(store.files, self._path, store.uuid, store.last_transaction())
        self._on_its_way = store.writing.submit(self._writer.add_and_sync_fields, fields)

    def finish(self, batch: Batch, hashes: Hashes) -> tuple[Segment, int]:
        """The segment, synced under its name and not yet committed, and its length. Raises StorageError."""
        try:
            if self._writer is None:
                self._begin(batch.fields)
            assert self._writer is not None and self._on_its_way is not None
            self._on_its_way.result()
            length = self._writer.finish(batch, hashes, None)
            return Segment(self._store.files, self._path, self._store.uuid, 0), length
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """The batch was refused: leaves no trace of it. Harmless after `finish`."""
        if self._writer is not None:
            if self._on_its_way is not None:
                self._on_its_way.exception()
            self._writer.abandon()
