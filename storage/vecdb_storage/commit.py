"""The commit section: where writes are put in order, made durable in one transaction, and applied.

Writers that arrive while a commit is being synced join the next one (`CommitQueue`): the first of them leads,
runs every waiting operation in one LMDB transaction, and when it is on disk wakes the next of them, who wakes the next:
were all woken at once, they would only fight for the interpreter. An operation's `run` reads the collection as the
operations before it in the group left it, refuses or writes, and applies itself to memory; readers see none of it
until the whole group is durable. If the transaction fails, memory is rebuilt from disk (`Store`), so no operation
needs an undo.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar, Protocol

import numpy as np
import orjson

from .batch import Batch, FieldRows
from .environment import Environment, Transaction
from .errors import AlreadyExists, InvalidInput, NotFound, StorageError, VecdbError
from .growing import Placing
from .ids import Id
from .manifest import Manifest, SegmentEntry
from .memtable import ADOPTED_BYTES, Memtable
from .segment import Segment
from .state import CollectionState
from .tombstones import Tombstones
from .vectors import Vectors

Checkpoints = Mapping[bytes, bytes | None]


@dataclass
class Section:
    """What an operation may use while it runs. seq: of the last operation so far. states: replaced, never changed."""

    environment: Environment
    txn: Transaction
    states: dict[bytes, CollectionState]
    seq: int
    touched: set[bytes] = field(default_factory=set)
    dropped: list[str] = field(default_factory=list)

    def state(self, uuid: bytes) -> CollectionState:
        state = self.states.get(uuid)
        if state is None:
            raise NotFound("the collection was dropped")
        if state.damage is not None:
            raise state.damage
        return state

    def next_seq(self, state: CollectionState) -> int:
        self.seq += 1
        self.touched.add(state.uuid)
        return self.seq

    def put_log(self, state: CollectionState, seq: int, record: bytes) -> None:
        self.environment.put_parts(self.txn, "log", log_key(state.uuid, seq), record)

    def put_manifest(self, state: CollectionState, manifest: Manifest) -> None:
        """The manifest and every tombstone that the tombstones table lacks."""
        state.manifest = manifest
        self.environment.put(self.txn, "manifest", state.uuid, manifest.to_json())
        for name, tombstones in state.tombstones.items():
            for number, chunk in tombstones.changed_since(state.committed.get(name)).items():
                key = name.encode() + number.to_bytes(4, "big")
                self.environment.put(self.txn, "tombstones", key, chunk.tobytes())
            state.committed[name] = tombstones
        self.touched.add(state.uuid)

    def put_checkpoints(self, uuid: bytes, checkpoints: Checkpoints) -> None:
        """How far something is that feeds the collection, by its token; None: it is not needed any more."""
        for token, value in checkpoints.items():
            if value is None:
                self.environment.delete(self.txn, "checkpoint", uuid + token)
            else:
                self.environment.put(self.txn, "checkpoint", uuid + token, value)

    def drop_files(self, paths: Iterable[str]) -> None:
        """Files, relative to the database, that nothing names once this transaction is committed."""
        for path in paths:
            self.environment.put(self.txn, "garbage", path.encode(), b"")
            self.dropped.append(path)

    def put_catalog(self, state: CollectionState) -> None:
        value = {"uuid": state.uuid.hex(), "schema": state.schema}
        self.environment.put(self.txn, "catalog", state.name.encode(), orjson.dumps(value))
        self.touched.add(state.uuid)


def log_key(uuid: bytes, seq: int) -> bytes:
    return uuid + seq.to_bytes(8, "big")


class Operation(Protocol):
    @property
    def room(self) -> int:
        """About how many bytes `run` will put."""

    @property
    def size(self) -> int:
        """About how many bytes of the user's it writes."""

    @property
    def frees(self) -> bool:
        """Whether it may be what makes room, so that it is let through where there is none."""

    @property
    def placing(self) -> Placing | None:
        """Vectors that must have reached the disk before the transaction does."""

    def run(self, section: Section) -> Any:
        """Raises a VecdbError before it has changed anything, or returns the caller's result."""


def _settle_kind(section: Section, state: CollectionState, key: Id) -> None:
    """The first id decides whether a collection's ids are ints or strings."""
    kind = "str" if isinstance(key, str) else "int"
    settled = state.schema.get("ids")
    if settled is None:
        state.set_schema({**state.schema, "ids": kind})
        section.put_catalog(state)
    elif settled != kind:
        raise InvalidInput(f"this collection's ids are {settled}, not {kind}; use one kind in a collection", point=key)


@dataclass
class WriteRows:
    """Rows that replace those of the same ids, or with `insert` refuse to.

    record: the batch as a log record, made outside the section, with its vectors in placing if they are not in the record;
    or segment and length: the batch was written as a level-0 segment, to be committed by reference. checkpoints: kept in
    the same transaction. Result: how many rows were replaced.
    """

    uuid: bytes
    batch: Batch
    insert: bool
    record: bytes | None = None
    placing: Placing | None = None
    segment: Segment | None = None
    length: int = 0
    checkpoints: Checkpoints = field(default_factory=dict)
    frees: ClassVar[bool] = False

    @property
    def room(self) -> int:
        return (len(self.record) if self.record is not None else 1 << 16) + sum(
            len(v or b"") for v in self.checkpoints.values()
        )

    @property
    def size(self) -> int:
        return self.batch.nbytes

    def run(self, section: Section) -> int:
        state = section.state(self.uuid)
        keys = self.batch.keys
        _settle_kind(section, state, keys[0])
        if self.insert:
            for key, place in zip(keys, state.alive(keys, self.batch.hashes), strict=True):
                if place is not None:
                    raise AlreadyExists(f"point {key!r} exists in {state.name!r}; use upsert to replace it")
        section.put_checkpoints(self.uuid, self.checkpoints)
        seq = section.next_seq(state)
        if self.segment is None:
            assert self.record is not None
            section.put_log(state, seq, self.record)
            large = self.batch.extent is None and len(self.record) >= ADOPTED_BYTES
            return state.apply(self.batch.kept_in(self.record) if large else self.batch, seq)
        replaced = state.kill(keys, seq, self.batch.hashes)
        segment = self.segment
        segment.min_seq = segment.max_seq = seq  # decided only now; its file does not hold it
        state.attach(segment, Tombstones(segment.rows))
        entry = SegmentEntry(segment.name, segment.rows, seq, self.length)
        section.put_manifest(state, Manifest(state.manifest.flushed, (*state.manifest.segments, entry)))
        return replaced


@dataclass
class DeleteRows:
    """Deletes by id. as_of: only rows no newer than this seq, for deletes by filter. Result: how many died."""

    uuid: bytes
    keys: Sequence[Id]
    as_of: int | None = None
    frees: ClassVar[bool] = True
    placing: ClassVar[Placing | None] = None

    @property
    def room(self) -> int:
        return 64 * len(self.keys)

    size = room

    def run(self, section: Section) -> int:
        state = section.state(self.uuid)
        keys = [key for key, _ in _chosen(state, self.keys, self.as_of)]
        if not keys:
            return 0
        batch = Batch(deletes=keys)
        seq = section.next_seq(state)
        section.put_log(state, seq, batch.to_record())
        return state.apply(batch, seq)


@dataclass
class ChangePayloads:
    """New payloads for existing rows; vectors stay. change(id, old JSON) -> new JSON. Result: how many changed.

    Ids that do not exist are left out, as are rows newer than `as_of`, for updates by filter.
    """

    uuid: bytes
    keys: Sequence[Id]
    change: Callable[[Id, bytes], bytes]
    as_of: int | None = None
    frees: ClassVar[bool] = False
    placing: ClassVar[Placing | None] = None

    @property
    def room(self) -> int:
        return 8192 * len(self.keys)

    @property
    def size(self) -> int:
        return 64 * len(self.keys)

    def run(self, section: Section) -> int:
        state = section.state(self.uuid)
        chosen = _chosen(state, self.keys, self.as_of)
        if not chosen:
            return 0
        batch = _rows_at(state, chosen)
        payloads = [self.change(k, old) for k, old in zip(batch.keys, batch.payloads, strict=True)]
        changed = Batch(batch.keys, batch.fields, payloads)
        seq = section.next_seq(state)
        section.put_log(state, seq, changed.to_record())
        return state.apply(changed, seq)


@dataclass
class ChangeCatalog:
    """Creates, drops, renames or alters a collection: whatever `change` does with the section."""

    change: Callable[[Section], Any]
    room: int = 1 << 16
    size: int = 0
    frees: ClassVar[bool] = True
    placing: ClassVar[Placing | None] = None

    def run(self, section: Section) -> Any:
        return self.change(section)


Place = tuple[Segment | Memtable, int]


def _chosen(state: CollectionState, keys: Sequence[Id], as_of: int | None) -> list[tuple[Id, Place]]:
    """The ids among `keys` that are alive, once each, with their places."""
    kind = state.schema.get("ids")
    keys = [k for k in dict.fromkeys(keys) if ("str" if isinstance(k, str) else "int") == kind]
    chosen = []
    for key, place in zip(keys, state.alive(keys), strict=True):
        if place is not None and (as_of is None or _seq_at(place) <= as_of):
            chosen.append((key, place))
    return chosen


def _seq_at(place: Place) -> int:
    where, row = place
    return where.seq_of(row) if isinstance(where, Memtable) else int(where.seqs(np.array([row]))[0])


def _rows_at(state: CollectionState, chosen: Sequence[tuple[Id, Place]]) -> Batch:
    """Copies of stored rows."""
    payloads = []
    layout = state.layout
    norms = {name: np.zeros(len(chosen), np.float32) for name in layout}
    vectors: dict[str, list[Vectors | None]] = {name: [None] * len(chosen) for name in layout}
    for at, (_, (where, row)) in enumerate(chosen):
        if isinstance(where, Memtable):
            block, row = where.blocks[row >> 32], row & 0xFFFF_FFFF
            payloads.append(block.payloads[row])
        else:
            payloads.append(where.payload(row))
        for name in layout:
            if isinstance(where, Memtable):
                stored = block.fields.get(name)
                if stored is None or stored.present is None or not stored.present[row]:
                    continue
                vectors[name][at], norms[name][at] = stored.vectors[row], stored.norms[row]
            else:
                kept = where.field(name)
                if kept is None or (kept.present is not None and not kept.present[row >> 6] >> np.uint64(row & 63) & 1):
                    continue
                vectors[name][at], norms[name][at] = kept.vectors[row], kept.norms[row]
    fields = {
        name: FieldRows(form.joined(vectors[name]), norms[name], np.array([each is not None for each in vectors[name]]))
        for name, form in layout.items()
    }
    return Batch([key for key, _ in chosen], fields, payloads)


# -- group commit ----------------------------------------------------------------------------------------


class Request:
    """One operation on its way through the queue. Its thread waits on `turn`."""

    __slots__ = ("error", "finished", "leads", "next", "operation", "result", "turn")

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.result: Any = None
        self.error: BaseException | None = None
        self.finished = False
        self.leads = False
        self.next: Request | None = None  # whom this one's thread wakes, once it is awake itself
        self.turn = threading.Lock()
        self.turn.acquire()


def _interrupted(cause: BaseException) -> StorageError:
    error = StorageError(f"the thread that committed was stopped: {cause!r}; read again what is there", outcome="unknown")
    error.__cause__ = cause
    return error


class CommitQueue:
    """Gathers operations into groups and runs each group by `commit`, in the thread of one of their callers."""

    LONGEST_WAIT = 0.002  # seconds

    def __init__(self, commit: Callable[[list[Request]], None]) -> None:
        self._commit = commit
        self._lock = threading.Lock()
        self._waiting: deque[Request] = deque()
        self._led = False
        self._wanted = 0  # how many the leader waits for, if it does
        self._together = threading.Lock()  # it waits for this one to be released, by whoever makes them so many
        self._together.acquire()
        self._company = 1.0  # how many writers came together lately
        self._duration = 0.0  # seconds of a commit lately
        self.groups = 0
        self.operations = 0

    def submit(self, operation: Operation) -> Any:
        """Returns the operation's result once it is durable. Raises what it raised."""
        request = Request(operation)
        with self._lock:
            self._waiting.append(request)
            lead, self._led = not self._led, True
            if 0 < self._wanted <= len(self._waiting):
                self._wanted = 0
                self._together.release()
        try:
            if not lead:
                try:
                    request.turn.acquire()
                except BaseException:  # an interrupt: what was not begun is not done
                    self._withdraw(request)
                    raise
            if not request.finished:
                self._lead()
        finally:
            if request.next is not None:
                request.next.turn.release()
        if request.error is not None:
            error, request.error = request.error, None
            try:
                raise error
            finally:
                del error  # its trace holds this frame: see `errors.without_trace`
        return request.result

    def _withdraw(self, request: Request) -> None:
        """After an interrupt: takes the request back; or, if its group has begun, waits until its outcome is certain."""
        with self._lock:
            waiting = request in self._waiting
            if waiting:
                self._waiting.remove(request)
            successor = self._promote() if waiting and request.leads else None
        if successor is not None:
            successor.turn.release()
        while not waiting and not request.finished:
            with suppress(KeyboardInterrupt):
                request.turn.acquire()

    def _promote(self) -> Request | None:
        """Under the lock: who leads next."""
        successor = self._waiting[0] if self._waiting else None
        self._led = successor is not None
        if successor is not None:
            successor.leads = True
        return successor

    def _lead(self) -> None:
        """Runs the waiting group. Whatever happens here, the others learn their outcome and somebody leads next."""
        group: list[Request] = []
        failure: BaseException | None = None
        started = time.perf_counter()
        try:
            try:
                self._gather()
            finally:
                with self._lock:
                    group = list(self._waiting)
                    self._waiting.clear()
                started = time.perf_counter()
            self._commit(group)
        except BaseException as error:
            failure = error
        for request in group:
            if failure is not None and request.error is None:
                request.error = failure if isinstance(failure, VecdbError) else _interrupted(failure)
        self._duration = 0.8 * self._duration + 0.2 * (time.perf_counter() - started)
        self._company = max(float(len(group)), 0.9 * self._company)
        self.groups += 1
        self.operations += len(group)
        with self._lock:
            successor = self._promote()
        for request, after in zip_longest(group, group[1:]):
            request.finished, request.next = True, after
        if successor is not None:
            successor.turn.release()
        try:
            if failure is not None and not isinstance(failure, VecdbError):
                raise failure
        finally:
            del failure  # as in `submit`

    def _gather(self) -> None:
        """When writers have been coming together, waits a moment for those that are on their way.

        Those whose commit has just ended are about to return with their next write; a leader that does not wait for
        them would commit alone, and every second group would be nearly empty. A lone writer never waits.
        """
        if self._company < 1.5:
            return
        with self._lock:
            wanted = math.ceil(0.95 * self._company)
            if len(self._waiting) >= wanted:
                return
            self._wanted = wanted
        try:
            self._together.acquire(timeout=min(self.LONGEST_WAIT, self._duration))
        finally:
            with self._lock:
                self._wanted = 0
                self._together.acquire(blocking=False)  # it may have been released since
