"""Moves memtables into segments: on request, and in a background thread when they have grown or somebody asks for it.

A flush freezes the memtable under the commit lock, writes its live rows as a segment beside the writers, and then takes the
lock again to commit: the segment joins the manifest, the log records go, and rows that died meanwhile become tombstones.
When the rows are those of a growing file, that file is completed; else everything is copied.

Belongs to one Store. `flush` and `wait_for_room` may be called from any thread; one flush at a time runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .batch import FieldRows
from .commit import Section, log_key
from .environment import Transaction
from .errors import StorageError, VecdbError, without_trace
from .growing import Growing
from .manifest import Manifest, SegmentEntry
from .memtable import ALIVE, Memtable, gather
from .segment import Segment, SegmentWriter
from .state import CollectionState
from .tombstones import Tombstones
from .ulid import ulid

if TYPE_CHECKING:
    from .store import Store

MEMTABLE_BYTES = 64 << 20  # of the whole database, until a flush begins
_LONGEST_WAIT = 0.05  # seconds, for the background thread to begin


@dataclass
class _Flushed:
    """A segment file written from a memtable, and which rows of each of its blocks it holds."""

    segment: Segment
    length: int
    rows: list[Any]


class Flusher:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.lock = threading.Lock()  # one flush at a time; taken before the commit lock
        self.error: VecdbError | None = None  # why the last one in the background failed
        self._sizes: dict[bytes, int] = {}  # bytes of each collection's memtables
        self._total = 0  # their sum, kept, since there may be thousands of collections
        self._frozen = 0  # bytes of the one being flushed
        self._room = threading.Condition()  # writers wait here while the memtables are over their bound
        self.count, self.seconds = 0, 0.0  # flushes done, and the time that they took
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._frozen_one = threading.Event()  # a memtable was taken, and will be flushed
        self._asked: set[bytes] = set()  # collections to flush however small they are

    def flush(self, uuid: bytes) -> None:
        """One collection's memtable; returns when it is on disk."""
        self._flush(uuid)
        self.make_room()

    def _flush(self, uuid: bytes) -> None:
        store, started = self._store, time.perf_counter()
        with self.lock:
            with store.commit_lock:
                state = store.states.get(uuid)
                if state is None or state.damage is not None or not state.active.records:
                    return
                frozen, until, seen = state.active, state.last_seq, store.seq
                growing = store.growing.seal(uuid)
                extents = state.extents | ({growing.name} if growing is not None else set())
                state.frozen, state.active = frozen, Memtable(state.layout)
                self._frozen = frozen.bytes
                state.publish(store.seq)
            self._frozen_one.set()
            try:
                written = self._write(state, frozen, seen, growing)
            except BaseException:
                with store.commit_lock:
                    self._frozen = 0
                    if store.states.get(uuid) is state:
                        store.recover(reopen=False)  # one memtable again, from the log
                raise
            with store.commit_lock:
                try:
                    if store.states.get(uuid) is state and state.frozen is frozen:
                        self._commit(state, written, until)
                finally:
                    self._frozen = 0
                    if written is not None:
                        store.discard(uuid, written.segment)
                store.growing.delete_unnamed(uuid, extents)
            self.count += 1
            self.seconds += time.perf_counter() - started

    def _write(self, state: CollectionState, memtable: Memtable, seq: int, growing: Growing | None) -> _Flushed | None:
        """The rows alive at `seq` as a segment file, or None if there are none."""
        store, layout = self._store, state.layout
        gathered = gather(memtable.blocks, seq, layout)
        if not len(gathered.packed):
            return None
        writer = completes = None
        if growing is not None and len(layout) == 1 and len(gathered.packed) == memtable.rows:
            ((field, stored),) = gathered.fields.items()
            completes = growing.complete(field, [block.extent for block in memtable.blocks])
        try:
            if completes is not None:
                path = completes.path
                writer = SegmentWriter.after(completes, field, FieldRows(stored.norms[:0], stored.norms, stored.present))
            else:
                path = store.segment_path(state.uuid, ulid())
                store.ensure_folder(path.parent)
                writer = SegmentWriter(store.files, path, store.uuid, store.last_transaction())
                writer.add_gathered(gathered.fields)
            length = writer.finish(gathered.packed, gathered.seqs, gathered.columns)
        except BaseException:
            if completes is not None:
                completes.close()  # and not deleted: log records name it
            elif writer is not None:
                writer.abandon()
            raise
        return _Flushed(Segment(store.files, path, store.uuid, None), length, gathered.rows)

    def _commit(self, state: CollectionState, written: _Flushed | None, until: int) -> None:
        """Under the commit lock: the segment takes the place of the frozen memtable and of its log records."""
        store, frozen, entries = self._store, state.frozen, state.manifest.segments
        assert frozen is not None
        if written is not None:
            # Rows that died while the file was being written are dead in it from the start.
            died = np.concatenate([b.death[rows] != ALIVE for b, rows in zip(frozen.blocks, written.rows, strict=True)])
            tombstones = Tombstones(written.segment.rows)
            state.attach(written.segment, tombstones.with_dead(np.flatnonzero(died)) if died.any() else tombstones)
            entries = (*entries, SegmentEntry(written.segment.name, written.segment.rows, None, written.length))
        state.frozen = None

        def run(txn: Transaction) -> Section:
            section = Section(store.environment, txn, store.states, store.seq)
            section.put_manifest(state, Manifest(until, entries))
            store.environment.delete_prefix(txn, "log", state.uuid, until=log_key(state.uuid, until + 1))
            return section

        store.transact(1 << 20, run)
        store.environment.reader_check()

    # -- in the background --------------------------------------------------------------------------

    def flush_if_large(self) -> None:
        """After a commit: wakes the background thread when it is time.

        It takes the memtable before the caller can write on, if it is free: so a growing segment ends with a commit, and can
        be completed as it is.
        """
        if self._active_bytes() >= MEMTABLE_BYTES:
            free = not self.lock.locked()
            self._frozen_one.clear()
            self._wake()
            if free:
                self._frozen_one.wait(_LONGEST_WAIT)

    def is_near(self, size: int) -> bool:
        """Whether so many bytes more would begin a flush."""
        return self._active_bytes() + size >= MEMTABLE_BYTES

    def flush_soon(self, uuid: bytes) -> None:
        """One collection's memtable, in the background."""
        self._asked.add(uuid)
        self._wake()

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vecdb-flush", daemon=True)
            self._thread.start()
        self._wanted.set()

    def note(self, touched: set[bytes] | None, states: Mapping[bytes, CollectionState]) -> None:
        """Memtables of these collections, or of all, have changed. Called under the commit lock."""
        if touched is None:
            self._sizes, self._total = {}, 0
            touched = set(states)
        for uuid in touched:
            before = self._sizes.pop(uuid, 0)
            now = states[uuid].memtable_bytes if uuid in states else 0
            if now:
                self._sizes[uuid] = now
            self._total += now - before

    def _active_bytes(self) -> int:
        return self._total - self._frozen

    def _run(self) -> None:
        store = self._store
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if store.closed:
                return
            try:
                least = MEMTABLE_BYTES // 2 if self._active_bytes() >= MEMTABLE_BYTES else MEMTABLE_BYTES
                while self._active_bytes() >= least:
                    largest = max(store.states.values(), key=lambda state: state.active.bytes)
                    self.flush(largest.uuid)
                while self._asked:
                    self.flush(self._asked.pop())
                self.error = None
            except Exception as error:  # kept for `info`; the rows are safe in the log, and the next commit tries again
                self.error = without_trace(error if isinstance(error, VecdbError) else StorageError(f"flush failed: {error}"))
            self.make_room()

    def wait_for_room(self) -> None:
        """Holds a writer back while a flush is behind by a whole memtable, so that memory stays bounded."""
        if not self.is_full:
            return
        self.flush_if_large()  # after an open nobody may have begun one
        with self._room:
            self._room.wait_for(lambda: self._store.closed or self.error is not None or not self.is_full)
        if self.error is not None and not self._store.closed:
            self._store.flush()  # in this thread, so that its writer learns why

    @property
    def is_full(self) -> bool:
        """Whether writers are being held back."""
        return self._total >= 2 * MEMTABLE_BYTES

    def make_room(self) -> None:
        """Something became smaller, or the store was closed: waiting writers look again."""
        with self._room:
            self._room.notify_all()

    def stop(self) -> None:
        """The store was closed."""
        self._wanted.set()
        self.make_room()
