"""A database on disk: the door through which the product writes, and takes the snapshots it reads.

    store = open_store(path)              # or open_store(path, read_only=True); shared within the process
    uuid = store.create_collection(name, schema)
    store.write(uuid, batch)              # returns when durable
    snapshot = store.snapshot(uuid)       # never blocks a writer, nor is blocked by one
    store.release()

One process writes (LOCK); any number read. Within a process all opens of a directory share one Store, counted.
Every method may be called from any thread. Locks, in the order in which they are taken: `flusher.lock` (one flush
at a time), `commit_lock` (the commit section; every change of memory happens under it), the queue's own.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid as uuid_module
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from . import growing, locks
from .ahead import Ahead
from .arrayfile import ArrayFile, Arrays, ArrayWriter, CheckedArrays
from .backup import Backup, backup
from .batch import LEVEL0_BYTES, Batch
from .commit import (
    ChangeCatalog,
    ChangePayloads,
    Checkpoints,
    CommitQueue,
    DeleteRows,
    Operation,
    Request,
    Section,
    WriteRows,
)
from .environment import Environment, Transaction
from .errors import (
    AlreadyExists,
    Closed,
    Corruption,
    DiskFull,
    NewerFormat,
    NotFound,
    ReadOnly,
    StorageError,
    VecdbError,
)
from .files import Files, Progress
from .flush import Flusher
from .garbage import Garbage
from .growing import SUFFIX as GROWING_SUFFIX
from .growing import GrowingFiles
from .ids import Id
from .load import Loader
from .locks import WriterLock
from .manifest import READABLE_BY, SUFFIX, Manifest
from .merge import Merger
from .metrics import Metrics, metrics_of
from .once import Kept, Once, Token, Tokens, delete_entries
from .segment import Segment
from .snapshot import Snapshot
from .state import CollectionState
from .ulid import ulid
from .vacuum import Vacuumed, clear_generations, generation_of, vacuum
from .verify import Also, Report, verify

FORMAT = 1
ATTACHMENT, INDEX = ".arr", ".idx"
_NO_CHECKPOINTS: Checkpoints = {}


class Store:
    def __init__(
        self,
        path: Path,
        *,
        read_only: bool,
        files: Files,
        temporary: bool = False,
        forget: Callable[[Store], None] = lambda store: None,
    ) -> None:
        self.path, self.files, self.temporary = path, files, temporary
        self.read_only = read_only
        self.references = 0
        self._forget = forget
        self.closed: str | None = None  # why it cannot be used any more
        self._shut = False  # its files and its lock were let go of
        self._pid = os.getpid()
        self._known: set[Path] = set()  # folders of collections whose names are surely on the disk
        self.commit_lock = threading.RLock()
        self.flusher = Flusher(self)
        self.growing = GrowingFiles(self)
        self.merger = Merger(self)
        self.garbage = Garbage(self)
        self.tokens = Tokens(self)
        self.generation_lock = threading.Lock()  # held while LMDB is copied, and taken before the commit lock
        self.listeners: list[Callable[[set[bytes]], None]] = []  # told under the commit lock what a commit changed; to be quick
        self._names: tuple[object, dict[str, bytes]] = (None, {})  # of the states that are there, and their uuids by name
        self._loader = Loader(self)
        self.states: dict[bytes, CollectionState] = {}
        self.seq = 0
        self.accepted = 0  # bytes of rows and deletes that commits took, for metrics
        self.snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()
        self._transaction = -1
        self._lock = None if read_only or temporary else WriterLock(path / "LOCK")
        try:
            self.uuid, self.environment = self._open_environment(read_only)
            try:
                self._load()
                if not read_only:
                    self._clear_up()
            except BaseException:
                self.environment.close()
                raise
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise
        self.queue = CommitQueue(self._commit)
        if not read_only:
            self.merger.wake(set(self.states))  # what was being merged when the last process ended
        self.writing = ThreadPoolExecutor(1, thread_name_prefix="vecdb-write")

    # -- opening ------------------------------------------------------------------------------------

    def _identify(self) -> tuple[bytes, str]:
        """The store's uuid and the name of its meta file, from VECDB."""
        text = self.files.read(self.path / "VECDB").decode(errors="replace")
        fields = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
        try:
            version, uuid, meta = int(fields["format"]), bytes.fromhex(fields["uuid"]), fields["meta"]
        except (KeyError, ValueError) as error:
            raise Corruption("it does not say format, uuid and meta", file=str(self.path / "VECDB")) from error
        if version > FORMAT:
            needs = fields.get("vecdb", f"format {version}")
            raise NewerFormat(f"{self.path} has format {version}; open it with vecdb {needs} or later", needs=needs)
        if not meta.startswith("meta-") or "/" in meta:
            raise Corruption(f"it names {meta!r} as its meta file", file=str(self.path / "VECDB"))
        return uuid, meta

    def _open_environment(self, read_only: bool) -> tuple[bytes, Environment]:
        """The store's uuid, and the generation that VECDB names; a reader may look while a vacuum goes to the next one."""
        while True:
            uuid, meta = self._identify()
            try:
                return uuid, Environment(self.files, self.path / meta, read_only=read_only, sync=not self.temporary)
            except VecdbError:
                if not read_only or self.meta_named() == meta:
                    raise

    def meta_named(self) -> str:
        """The meta file that VECDB names now."""
        return self._identify()[1]

    def name_meta(self, name: str) -> None:
        """VECDB names another meta file; see `vacuum.py`."""
        self.files.replace(self.path / "VECDB", described(self.uuid, name))

    def follow(self) -> None:
        """In a reader's process: on to the next generation, if the writer has gone there."""
        if self.read_only:
            with self.environment.read() as txn:
                superseded = self.environment.get(txn, "meta", b"superseded") is not None
            if superseded:
                _, self.environment = self._open_environment(True)

    def use(self, environment: Environment) -> None:
        """Commits go to another generation. Whoever reads the old one may finish: it is closed when nobody holds it."""
        environment.written += self.environment.written
        self.environment, self._transaction = environment, environment.last_transaction()

    def _clear_up(self) -> None:
        """What processes that died have left."""
        self.environment.reader_check()
        clear_generations(self)
        self.garbage.clear_up()
        self.tokens.purge_at_open()

    def _load(self) -> None:
        """Memory as the newest transaction says."""
        loaded = self._loader.load()
        for state in loaded.states.values():
            self.snapshots.add(state.publish(loaded.seq))
        self.states, self.seq, self._transaction = loaded.states, loaded.seq, loaded.transaction
        self._names = None, {}  # or it would keep the states before alive, with their rows and the files that they map
        self.flusher.note(None, self.states)

    def folder(self, uuid: bytes) -> Path:
        return self.path / "segments" / uuid.hex()

    def segment_path(self, uuid: bytes, name: str) -> Path:
        return self.folder(uuid) / (name + SUFFIX)

    def files_of(self, state: CollectionState) -> set[str]:
        """The names that files of a collection may have; a growing one may have been completed."""
        segments = {file for entry in state.manifest.segments for file in entry.files}
        growing = {name + suffix for name in state.extents for suffix in (GROWING_SUFFIX, SUFFIX)}
        return segments | growing | set(state.schema.get("attachments", {}).values())

    # -- collections --------------------------------------------------------------------------------

    def collections(self) -> dict[str, bytes]:
        """Name -> uuid, by name."""
        self.refresh()
        return {state.name: uuid for uuid, state in sorted(self.states.items(), key=lambda item: item[1].name)}

    def uuid_of(self, name: str) -> bytes | None:
        """The collection of that name."""
        self.refresh()
        states = self.states
        if self._names[0] is not states:
            self._names = states, {state.name: uuid for uuid, state in states.items()}
        return self._names[1].get(name)

    def create_collection(self, name: str, schema: dict[str, Any], token: Token | None = None) -> bytes:
        """Its uuid. schema: {"fields": {name: {"dim", "dtype", …}}, …}, JSON; kept as it is. Raises AlreadyExists.

        token, here and below: see `once.py`; a call that is a repetition changes nothing, and returns what the first one did.
        """
        uuid = uuid_module.uuid4().bytes
        schema = orjson.loads(orjson.dumps(schema))

        def create(section: Section) -> str:
            if any(state.name == name for state in section.states.values()):
                raise AlreadyExists(f"collection {name!r} exists")
            # Flushed means "up to here nothing of it is in the log", which is true of all commits so far.
            state = CollectionState(uuid, name, schema, Manifest(section.seq))
            section.states = {**section.states, uuid: state}
            section.put_catalog(state)
            section.put_manifest(state, state.manifest)
            return uuid.hex()

        return bytes.fromhex(self._submit(ChangeCatalog(create), token))

    def drop_collection(self, collection: str, token: Token | None = None) -> None:
        """Its rows, its log and its files; snapshots that readers hold stay readable. Raises NotFound."""
        dropped: list[CollectionState] = []

        def drop(section: Section) -> None:
            state = _by_name(section.states, collection)
            section.environment.delete(section.txn, "catalog", collection.encode())
            section.environment.delete(section.txn, "manifest", state.uuid)
            for table in ("log", "checkpoint"):
                section.environment.delete_prefix(section.txn, table, state.uuid)
            delete_entries(section.environment, section.txn, state.uuid)
            for entry in state.manifest.segments:
                section.environment.delete_prefix(section.txn, "tombstones", entry.name.encode())
            section.drop_files(f"segments/{state.uuid.hex()}/{name}" for name in sorted(self.files_of(state)))
            section.states = {key: kept for key, kept in section.states.items() if kept is not state}
            section.touched.add(state.uuid)
            dropped.append(state)

        self._submit(ChangeCatalog(drop), token)
        if not dropped:
            return
        uuid = dropped[0].uuid
        growing = self.growing.seal(uuid)
        if growing is not None:
            self.growing.delete_unnamed(uuid, {growing.name})
        with suppress(VecdbError):  # a file may be held, or not want to go: the next writer to open the store looks again
            if self.files.exists(self.folder(uuid)):
                self.files.remove_directory(self.folder(uuid))
        self.flusher.make_room()

    def rename_collection(self, old: str, new: str, token: Token | None = None) -> None:
        """Raises NotFound or AlreadyExists."""

        def rename(section: Section) -> None:
            state = _by_name(section.states, old)
            if any(other.name == new for other in section.states.values()):
                raise AlreadyExists(f"collection {new!r} exists")
            section.environment.delete(section.txn, "catalog", old.encode())
            state.name = new
            section.states = dict(section.states)  # another set of names
            section.put_catalog(state)

        self._submit(ChangeCatalog(rename), token)

    def alter_schema(
        self, uuid: bytes, change: Callable[[dict[str, Any]], dict[str, Any]], token: Token | None = None
    ) -> dict[str, Any]:
        """Replaces a collection's schema by change(schema), which may raise. Returns the new one; a repetition, the newest."""
        altered: list[dict[str, Any]] = []

        def alter(section: Section) -> None:
            state = section.state(uuid)
            state.set_schema(orjson.loads(orjson.dumps(change(state.schema))))
            section.put_catalog(state)
            altered.append(state.schema)

        self._submit(ChangeCatalog(alter), token)
        return altered[0] if altered else self.state(uuid).schema

    def attach(self, uuid: bytes, name: str, arrays: Arrays, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Keeps arrays with a collection, under `name`, and changes its schema in the same commit.

        Where change(schema) gives the schema back as it was, the arrays are not kept.
        """
        self.check_writable()
        file = ulid() + ATTACHMENT
        path = self.folder(uuid) / file
        self.ensure_folder(path.parent)
        writer = ArrayWriter(self.files, path, self.uuid, self.environment.last_transaction())
        kept = settled = False
        replaced: str | None = None

        def attached(schema: dict[str, Any]) -> dict[str, Any]:
            nonlocal kept, replaced
            changed = change(schema)
            kept = changed is not schema
            replaced = schema.get("attachments", {}).get(name) if kept else None
            return {**changed, "attachments": {**schema.get("attachments", {}), name: file}} if kept else schema

        try:
            for key, array in arrays.items():
                writer.add(key, array)
            writer.finish({"kind": "attachment"})
            self.alter_schema(uuid, attached)
            settled = True
        except VecdbError as error:
            settled = getattr(error, "outcome", None) != "unknown"
            raise
        finally:
            writer.abandon()
            state = self.states.get(uuid)
            # After an interrupt the commit may still be under way: the next open sees whether the file is named.
            if settled and (state is None or state.schema.get("attachments", {}).get(name) != file):
                self.garbage.remove(path)
        if replaced is not None:
            self.garbage.remove(self.folder(uuid) / replaced)

    def attachment(self, uuid: bytes, name: str) -> Arrays:
        """Arrays that `attach` kept, mapped, and checked as they are asked for. Raises NotFound or Corruption."""
        files = self.state(uuid).schema.get("attachments", {})
        if name not in files:
            raise NotFound(f"nothing is attached as {name!r}")
        return CheckedArrays(ArrayFile(self.files, self.folder(uuid) / files[name], self.uuid))

    def add_index(self, uuid: bytes, segment: str, name: str, arrays: Arrays, meta: dict[str, Any]) -> None:
        """Keeps arrays as the index of field `name` of a segment, in the place of one that is there. meta: JSON, kept with it.

        Raises NotFound when the segment has left the collection meanwhile; nothing is kept then.
        """
        self._set_index(uuid, segment, name, self.write_index(uuid, segment, name, arrays, meta))

    def write_index(self, uuid: bytes, segment: str, name: str, arrays: Arrays, meta: dict[str, Any]) -> str:
        """The file of an index that nothing names yet."""
        self.check_writable()
        file = f"{segment}.{name}.{ulid()}{INDEX}"
        writer = ArrayWriter(self.files, self.folder(uuid) / file, self.uuid, self.environment.last_transaction())
        try:
            for key, array in arrays.items():
                writer.add(key, array)
            writer.finish({"kind": "index", "field": name, **meta})
        except BaseException:
            writer.abandon()
            raise
        return file

    def drop_index(self, uuid: bytes, segment: str, name: str) -> None:
        """The field of this segment has no index any more. Raises NotFound as above."""
        self._set_index(uuid, segment, name, None)

    def _set_index(self, uuid: bytes, segment: str, name: str, file: str | None) -> None:
        def change(section: Section) -> None:
            state = section.state(uuid)
            entry = next((entry for entry in state.manifest.segments if entry.name == segment), None)
            if entry is None:
                raise NotFound(f"segment {segment} is no part of the collection any more")
            before = entry.indexes.get(name)
            section.put_manifest(state, state.manifest.with_index(segment, name, file))
            if before is not None:
                section.drop_files([f"segments/{uuid.hex()}/{before}"])

        settled = False
        try:
            self._submit(ChangeCatalog(change))
            settled = True
        except VecdbError as error:
            settled = getattr(error, "outcome", None) != "unknown"
            raise
        finally:
            if settled and file is not None:
                self._delete_unnamed(uuid, [file])

    # -- writing ------------------------------------------------------------------------------------

    def begin(self, uuid: bytes, *, later: bool = False) -> Ahead:
        """For a batch that may be large: its fields can be on their way to disk before the rest of it is ready.

        later: others are committed before it.
        """
        self.check_writable()
        return Ahead(self, uuid, later=later)

    def write(
        self,
        uuid: bytes,
        batch: Batch,
        *,
        insert: bool = False,
        ahead: Ahead | None = None,
        checkpoints: Checkpoints = _NO_CHECKPOINTS,
        token: Token | None = None,
    ) -> int:
        """Rows, all or none of them; returns how many they replaced. With insert: AlreadyExists if one would be.

        ahead: from `begin`, if some of the batch was handed to it; it is released. checkpoints: see `set_checkpoints`; they
        are durable when the rows are, and not otherwise. token: of a repetition nothing is left, as of a batch that is refused.
        """
        ahead = ahead or self.begin(uuid)
        try:
            if token is not None and (ahead.begun or batch.nbytes >= growing.GROWING_BYTES):
                kept = self.kept(token)  # most repetitions come when the first is done: no vectors are written for them
                if kept is not None:
                    return int(kept.result)
            if not batch.keys:
                if checkpoints or token is not None:
                    self.set_checkpoints(uuid, checkpoints, token)
                return 0
            if ahead.is_segment or batch.nbytes - ahead.placing_bytes >= LEVEL0_BYTES:
                batch = batch.packed_up()
                segment, length = ahead.finish(batch)
                operation = WriteRows(uuid, batch, insert, segment=segment, length=length, checkpoints=checkpoints)
                try:
                    if token is None:
                        return int(self._submit(operation))
                    kept = self._submit_once(operation, token)
                except BaseException:
                    self.discard(uuid, segment)
                    raise
                if kept.again:
                    self.discard(uuid, segment)
                return int(kept.result)
            ahead.take_turn(batch.fields)
            batch = ahead.place(batch)
            record = batch.to_record()
            operation = WriteRows(uuid, batch, insert, record=record, placing=ahead.placing, checkpoints=checkpoints)
            return int(self._submit(operation, token))
        finally:
            ahead.release()

    def checkpoints(self, uuid: bytes, prefix: bytes = b"") -> dict[bytes, bytes]:
        """Those of a collection whose tokens begin with `prefix`."""
        self.check_open()
        with self.commit_lock, self.environment.read() as txn:
            return {key[len(uuid) :]: value for key, value in self.environment.scan(txn, "checkpoint", uuid + prefix)}

    def set_checkpoints(self, uuid: bytes, checkpoints: Checkpoints, token: Token | None = None) -> None:
        """How far something is that feeds the collection, by a token of at most 400 bytes; None takes it away.

        They go with the collection. Raises NotFound, StorageError.
        """

        def change(section: Section) -> int:
            section.put_checkpoints(section.state(uuid).uuid, checkpoints)
            return 0

        self._submit(ChangeCatalog(change), token)

    def kept(self, token: Token) -> Kept | None:
        """What is known of the write that this token names, if it was applied; waits for a commit that is under way.

        Raises InvalidInput where the token was used for another call.
        """
        self.check_open()
        return self.tokens.kept(token)

    def discard(self, uuid: bytes, segment: Segment, indexes: Iterable[str] = ()) -> None:
        """Deletes the files of a segment that was not committed after all. indexes: its index files, if it has any."""
        self._delete_unnamed(uuid, [segment.file.path.name, *indexes])

    def _delete_unnamed(self, uuid: bytes, names: Iterable[str]) -> None:
        """Deletes those of a collection's files that it does not name."""
        state = self.states.get(uuid)
        named = self.files_of(state) if state is not None else set()
        for name in names:
            if name not in named:
                self.garbage.remove(self.folder(uuid) / name)

    def ensure_folder(self, folder: Path) -> None:
        if folder in self._known:
            return
        self.files.make_directory(folder)
        self.files.sync_directory(folder.parent)
        self.files.sync_directory(self.path)
        self._known.add(folder)

    def delete(self, uuid: bytes, keys: Sequence[Id], as_of: int | None = None, token: Token | None = None) -> int:
        """Deletes ids (only rows no newer than seq `as_of`, if given); returns how many there were."""
        # With a token also none: when it is repeated there may be some, which are not meant.
        return int(self._submit(DeleteRows(uuid, keys, as_of), token)) if keys or token is not None else 0

    def change_payloads(
        self,
        uuid: bytes,
        keys: Sequence[Id],
        change: Callable[[Id, bytes], bytes],
        as_of: int | None = None,
        token: Token | None = None,
    ) -> int:
        """Rewrites the payloads of existing ids by change(id, JSON) -> JSON; returns how many."""
        return int(self._submit(ChangePayloads(uuid, keys, change, as_of), token)) if keys or token is not None else 0

    def _submit_once(self, operation: Operation, token: Token) -> Kept:
        kept: Kept = self._submit(Once(operation, token, self.tokens))
        return kept

    def _submit(self, operation: Operation, token: Token | None = None) -> Any:
        """The operation's result, of now or of the first time."""
        if token is not None:  # not looked up before: that would wait for the commit that this could be part of
            try:
                return self._submit_once(operation, token).result
            except DiskFull:
                kept = self.kept(token)  # a repetition needs no room
                if kept is None:
                    raise
                return kept.result
        self.check_writable()
        if not operation.frees:
            self.flusher.wait_for_room()
        try:
            return self.queue.submit(operation)
        finally:
            self.garbage.sweep()

    def _commit(self, group: list[Request]) -> None:
        """The commit section: runs a group of operations in one transaction and publishes what they did."""
        with self.commit_lock:
            while group:
                self.check_writable()
                unwritten: list[Request] = []
                try:
                    self._commit_together(group, unwritten)
                except StorageError:
                    if not unwritten:
                        raise
                    group = [request for request in group if request not in unwritten]  # of whom each has its error
                    continue
                self.accepted += sum(request.operation.size for request in group if request.error is None)
                break
        self.flusher.flush_if_large()

    def _commit_together(self, group: list[Request], unwritten: list[Request]) -> None:
        """Raises StorageError. unwritten: gets those whose vectors did not reach the disk; they then have their error."""

        def run(txn: Transaction) -> Section:
            section = Section(self.environment, txn, self.states, self.seq)
            for request in group:
                request.error = None
                try:
                    request.result = request.operation.run(section)
                except (StorageError, Corruption):
                    raise
                except VecdbError as error:  # this one is refused, and has changed nothing
                    request.error = error
            self.environment.put(txn, "meta", b"seq", section.seq.to_bytes(8, "big"))
            for request in group:  # last, so that the disk has had all that time
                placing = request.operation.placing
                try:
                    if request.error is None and placing is not None:
                        placing.wait()
                except StorageError as error:
                    request.error = error
                    unwritten.append(request)
            if unwritten:
                raise StorageError("vectors of this group did not reach the disk")
            return section

        room = sum(request.operation.room for request in group)
        self.transact(room, run, frees=all(request.operation.frees for request in group))

    def transact(self, room: int, run: Callable[[Transaction], Section], *, frees: bool = True) -> None:
        """Commits and publishes; or, if that fails, puts memory back to what the disk says, and raises.

        frees: it is of a kind that gives space back in the end, as upkeep is.
        """
        before = self.environment.last_transaction()

        def within(txn: Transaction) -> Section:
            section = run(txn)
            self.garbage.unlist(self.environment, txn)
            return section

        try:
            section = self.environment.commit(room, within, frees=frees)
        except StorageError as error:
            self.recover(reopen=error.outcome == "unknown")
            if error.outcome == "unknown":
                found = "is there" if self.environment.last_transaction() != before else "is not there"
                raise type(error)(
                    f"{error}; the database was read again from disk, where the write {found}",
                    outcome="unknown", file=error.file,
                ) from error  # fmt: skip
            raise
        except BaseException:
            self.recover(reopen=False)
            raise
        self.seq = section.seq
        changed = bool(section.touched)
        self.flusher.note(section.touched, section.states)
        for uuid in section.touched & section.states.keys():
            self.snapshots.add(section.states[uuid].publish(self.seq))
        self.states = section.states
        self.garbage.add(section.dropped)
        if changed:
            self.merger.wake(section.touched)
            self.tell(section.touched)

    def tell(self, touched: set[bytes]) -> None:
        """Listeners learn which collections something has changed for. Under the commit lock."""
        for listener in list(self.listeners):
            listener(touched)

    def recover(self, *, reopen: bool) -> None:
        """Memory as the disk has it; where that cannot be read, the store is as good as closed."""
        try:
            if reopen:
                self.environment.close()
                written = self.environment.written
                _, self.environment = self._open_environment(False)
                self.environment.written += written
            self._load()
        except BaseException as error:
            self.closed = f"after a failure it could not be read again: {error}; open the database again"
            raise

    def last_transaction(self) -> int:
        """The id of the newest LMDB transaction."""
        return self.environment.last_transaction()

    # -- reading ------------------------------------------------------------------------------------

    def snapshot(self, uuid: bytes) -> Snapshot:
        """The collection as of the newest commit. Raises NotFound, or Corruption if it could not be opened."""
        self.refresh()
        state = self.states.get(uuid)
        if state is None:
            raise NotFound("the collection was dropped")
        if state.damage is not None:
            raise state.damage
        assert state.snapshot is not None
        return state.snapshot

    def state(self, uuid: bytes) -> CollectionState:
        """For figures about the collection. Raises NotFound."""
        self.refresh()
        if uuid not in self.states:
            raise NotFound("the collection was dropped")
        return self.states[uuid]

    def refresh(self) -> None:
        """A reader process follows the writer: when LMDB has a newer transaction, reads what changed."""
        self.check_open()
        if self.read_only and self.environment.last_transaction() != self._transaction:
            with self.commit_lock:
                if self.environment.last_transaction() != self._transaction:
                    self._load()

    # -- flushing and checking -----------------------------------------------------------------------------------

    def merge(self, uuid: bytes) -> None:
        """All segments of a collection become as few as may be; returns when that is on disk."""
        self.merger.merge(uuid)

    def vacuum(self, uuid: bytes | None = None, progress: Progress | None = None) -> Vacuumed:
        """What was deleted or replaced is in no file afterwards, and its space given back. uuid: of one collection only."""
        return vacuum(self, uuid, progress)

    def backup(
        self,
        where: str | Path,
        earlier: str | Path | None = None,
        *,
        link: bool = False,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Backup:
        """See `backup.py`."""
        return backup(self, where, earlier, link=link, options=options, progress=progress)

    def flush(self, uuid: bytes | None = None) -> None:
        """Moves memtables into segments; returns when they are on disk. uuid: of one collection only."""
        self.check_writable()
        if uuid is not None:
            self.snapshot(uuid)  # raises what is wrong with it
        for one in [uuid] if uuid is not None else list(self.states):
            self.flusher.flush(one)

    def verify(
        self,
        uuid: bytes | None = None,
        progress: Progress | None = None,
        repair: bool = False,
        also: Also | None = None,
    ) -> Report:
        """Reads everything of the database, or of one collection, and reports what is wrong; see `verify.py`."""
        return verify(self, uuid, progress, repair, also)

    @property
    def meta_bytes(self) -> int:
        """The length of the LMDB file."""
        return self.environment.size()

    @property
    def generation(self) -> int:
        """How many LMDB files there have been, this one included."""
        return generation_of(self.environment.path.name)

    def metrics(self) -> Metrics:
        """Figures for monitoring; see `metrics.py`."""
        self.check_open()
        return metrics_of(self)

    def bytes_on_disk(self) -> int:
        """The lengths of all files of the database, those that are on their way out included."""
        folders = [self.path, *(self.path / "segments" / name for name in self.files.names(self.path / "segments"))]
        return sum(self.files.size_if_there(folder / name) for folder in folders for name in self.files.names(folder))

    # -- closing ------------------------------------------------------------------------------------

    def check_open(self) -> None:
        """Raises Closed."""
        if self.closed is not None:
            raise Closed(f"{self.path} is not usable: {self.closed}")

    def check_writable(self) -> None:
        """Raises Closed or ReadOnly."""
        self.check_open()
        if self.read_only:
            raise ReadOnly(f"{self.path} is open read-only; open it without read_only to write")

    def retain(self) -> Store:
        self.references += 1
        return self

    def release(self) -> None:
        """One reference less; the last one closes the store."""
        with locks.opening:
            self.references -= 1
            if self.references <= 0:
                self.close()

    def close(self) -> None:
        """Nothing needs to be written: what was acknowledged is durable. Harmless when closed."""
        with locks.opening:
            self._forget(self)
        if self._shut:
            return
        self._shut = True
        self.merger.stop()
        with self.flusher.lock, self.commit_lock:
            self.closed = self.closed or "it was closed"
            self.growing.close()
            self.environment.close()
            self._names = None, {}
            self.states = {}  # and with them the mappings of files that may be gone; snapshots keep their own
            self._loader.forget()
            if self._lock is not None:
                self._lock.release()
        self.flusher.stop()
        self.writing.shutdown(wait=False)
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)

    def become_writer(self) -> None:
        """A store opened read-only in this process is now wanted for writing too. Raises Locked."""
        with self.flusher.lock, self.commit_lock:
            if not self.read_only:
                return
            lock = WriterLock(self.path / "LOCK")
            self.environment.close()
            try:
                _, self.environment = self._open_environment(False)
                self.read_only = False  # what is loaded now is no copy of another writer's
                self._load()
                self._clear_up()
            except BaseException as error:
                self.closed = f"it could not be reopened for writing: {error}"
                lock.release()
                raise
            self._lock = lock
            self._loader.forget()

    def after_fork(self) -> None:
        """In a forked child: its parent goes on with the store, and this process must not touch it."""
        self.closed = f"this process is a fork of process {self._pid}, which has it open; open it in each process after forking"
        self._shut = True
        if self._lock is not None:
            self._lock.release()


def described(uuid: bytes, meta: str) -> bytes:
    """The content of VECDB."""
    return f"format {FORMAT}\nvecdb {READABLE_BY}\nuuid {uuid.hex()}\nmeta {meta}\n".encode()


def _by_name(states: dict[bytes, CollectionState], name: str) -> CollectionState:
    for state in states.values():
        if state.name == name:
            return state
    raise NotFound(f"no collection {name!r}; there are: {', '.join(sorted(s.name for s in states.values())) or 'none'}")
