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
import time
import uuid as uuid_module
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from . import locks
from .ahead import Ahead
from .arrayfile import ArrayFile, Arrays, ArrayWriter, CheckedArrays, begun_at
from .backup import Backup, backup
from .batch import LEVEL0_BYTES, Batch
from .commit import (
    ChangeCatalog,
    ChangePayloads,
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
    NewerFormat,
    NotFound,
    ReadOnly,
    StorageError,
    VecdbError,
)
from .files import Files
from .flush import Flusher
from .garbage import Garbage
from .growing import SUFFIX as GROWING_SUFFIX
from .growing import GrowingFiles
from .ids import Id, hashes_of
from .locks import WriterLock
from .manifest import SUFFIX, Manifest, SegmentEntry
from .merge import Merger
from .metrics import Metrics, metrics_of
from .segment import Segment
from .snapshot import Snapshot
from .state import CollectionState
from .tombstones import Tombstones, from_chunks
from .ulid import ulid
from .vacuum import Progress, Vacuumed, clear_generations, generation_of, vacuum
from .verify import Also, Report, verify

FORMAT = 1
ATTACHMENT, INDEX = ".arr", ".idx"
_FREEING = (DeleteRows, ChangeCatalog)  # operations that may be what makes room


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
        self.generation_lock = threading.Lock()  # held while LMDB is copied, and taken before the commit lock
        self.listeners: list[Callable[[set[bytes]], None]] = []  # told under the commit lock what a commit changed; to be quick
        self._names: tuple[object, dict[str, bytes]] = (None, {})  # of the states that are there, and their uuids by name
        self._decoded: dict[tuple[bytes, int], Batch] = {}  # log records a reader has seen, by key
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

    def use(self, environment: Environment) -> None:
        """Commits go to another generation. Whoever reads the old one may finish: it is closed when nobody holds it."""
        environment.written += self.environment.written
        self.environment, self._transaction = environment, environment.last_transaction()

    def _clear_up(self) -> None:
        """What processes that died have left."""
        self.environment.reader_check()
        clear_generations(self)
        self._delete_leftovers()

    def _load(self) -> None:
        """Memory as the newest transaction says; what is already open and unchanged is kept."""
        for attempt in range(20):
            with self.environment.read() as txn:
                superseded = self.read_only and self.environment.get(txn, "meta", b"superseded") is not None
            if superseded:
                _, self.environment = self._open_environment(True)
            with self.environment.read() as txn:
                stored = self.environment.get(txn, "meta", b"uuid")
                if stored != self.uuid:
                    raise Corruption("it belongs to another store than VECDB says", file=str(self.environment.path))
                states, replays = self._read_catalog(txn)
                seq = int.from_bytes(self.environment.get(txn, "meta", b"seq") or bytes(8), "big")
                transaction = self.environment.transaction_of(txn)
            try:
                self._open_segments(states, last_try=attempt == 19)
                for state, _, records in replays:
                    if state.damage is None:
                        self._decode(state, records, last_try=attempt == 19)
            except _Vanished:
                time.sleep(0.01)  # a flush or merge replaced a file between our two looks: look again
                continue
            break
        for state, tombstones, records in replays:
            if state.damage is None:
                self._restore(state, tombstones, records)
        for state in states.values():
            self.snapshots.add(state.publish(seq))
        self.states, self.seq, self._transaction = states, seq, transaction
        self.flusher.note(None, states)

    def _read_catalog(self, txn: Transaction) -> tuple[dict[bytes, CollectionState], list[Any]]:
        states: dict[bytes, CollectionState] = {}
        replays = []
        seen = set()
        for name, value in list(self.environment.scan(txn, "catalog", b"")):
            parsed = orjson.loads(value)
            uuid = bytes.fromhex(parsed["uuid"])
            try:
                manifest = Manifest.from_json(self.environment.get(txn, "manifest", uuid) or b"")
            except (Corruption, ValueError, KeyError, TypeError) as error:
                states[uuid] = CollectionState(uuid, name.decode(), parsed["schema"], Manifest())
                states[uuid].damage = _as_corruption(
                    error, "the manifest cannot be read", str(self.environment.path), "manifest"
                )
                continue
            state, applied = self._followed(uuid, name.decode(), parsed["schema"], manifest)
            tombstones: dict[str, Tombstones] = {}
            records: dict[int, list[bytes] | Batch] = {}
            states[uuid] = state
            try:
                for entry in () if applied else manifest.segments:
                    tombstones[entry.name] = self._read_tombstones(txn, entry)
                self._read_log(txn, state, records)
            except Corruption as error:
                state.damage = error
            seen |= {(uuid, seq) for seq in records}
            replays.append((state, tombstones, records))
            if applied:
                seen |= {key for key in self._decoded if key[0] == uuid}
        self._decoded = {key: batch for key, batch in self._decoded.items() if key in seen}
        return states, replays

    def _read_tombstones(self, txn: Transaction, entry: SegmentEntry) -> Tombstones:
        chunks = {}
        for key, chunk in self.environment.scan(txn, "tombstones", entry.name.encode()):
            chunks[int.from_bytes(key[-4:], "big")] = np.frombuffer(chunk, np.uint64)
        return from_chunks(entry.rows, chunks)

    def _read_log(self, txn: Transaction, state: CollectionState, records: dict[int, list[bytes] | Batch]) -> None:
        """The parts of each record that is newer than the state, or the batch that a reader has made of it before."""
        for key, part in self.environment.scan(txn, "log", state.uuid, (state.last_seq + 1).to_bytes(8, "big")):
            seq = int.from_bytes(key[16:24], "big")
            known = self._decoded.get((state.uuid, seq))
            if known is not None:
                records[seq] = known
            else:
                parts = records.setdefault(seq, [])
                assert isinstance(parts, list)
                parts.append(part)

    def _followed(self, uuid: bytes, name: str, schema: dict[str, Any], manifest: Manifest) -> tuple[CollectionState, bool]:
        """The state to bring up to date, and whether it is one that a reader has, and that only lacks the newest log."""
        known = self.states.get(uuid) if self.read_only else None
        if known is None or known.damage is not None or known.manifest != manifest or known.schema != schema:
            return CollectionState(uuid, name, schema, manifest), False
        known.name = name
        return known, True

    def _open_segments(self, states: dict[bytes, CollectionState], *, last_try: bool) -> None:
        """Opens what the manifests name. Damage is kept with its collection: the others stay usable."""
        for uuid, state in states.items():
            old = self.states.get(uuid)
            if old is state:
                continue
            known = {segment.name: segment for segment in old.segments} if old else {}
            for entry in state.manifest.segments:
                try:
                    segment = known.get(entry.name) or self._open_segment(uuid, entry)
                    segment.check_layout(state.layout)
                    state.attach(segment, Tombstones(entry.rows))
                except NotFound as error:
                    if not last_try and self.read_only:
                        raise _Vanished from error
                    path = str(self.segment_path(uuid, entry.name))
                    state.broken[entry.name] = Corruption(f"the manifest names it, but it is gone: {error}", file=path)
                except Corruption as error:
                    state.broken[entry.name] = error
            state.damage = state.damage or next(iter(state.broken.values()), None)

    def _open_segment(self, uuid: bytes, entry: SegmentEntry) -> Segment:
        segment = Segment(self.files, self.segment_path(uuid, entry.name), self.uuid, entry.seq)
        if segment.rows != entry.rows:
            raise Corruption(f"it has {segment.rows} rows; its manifest says {entry.rows}", file=str(segment.file.path))
        return segment

    def _decode(self, state: CollectionState, records: dict[int, Any], *, last_try: bool) -> None:
        """Log records as batches, in place, with the vectors that lie in growing files."""
        folder = self.folder(state.uuid)
        for seq, record in records.items():
            try:
                if not isinstance(record, Batch):
                    batch = Batch.from_record(b"".join(record), lambda extent: extent.read(self.files, folder))
                    batch.check_layout(state.layout, state.schema["ids"])
                    records[seq] = batch
            except NotFound as error:
                if not last_try and self.read_only:
                    raise _Vanished from error
                state.damage = Corruption(f"log record {seq} names a file that is gone: {error}; restore it from a backup")
                return
            except Corruption as error:
                state.damage = error
                return
            except (ValueError, KeyError, IndexError, TypeError) as error:
                state.damage = Corruption(
                    f"log record {seq} cannot be read: {error}", file=str(self.environment.path), array="log"
                )
                return
            if self.read_only:
                self._decoded[state.uuid, seq] = records[seq]

    def _restore(self, state: CollectionState, tombstones: dict[str, Tombstones], records: dict[int, Batch]) -> None:
        """Tombstones as committed, then the log on top of the segments, in the order of commits."""
        state.tombstones |= tombstones
        state.committed |= tombstones
        for seq, batch in records.items():
            state.replay(batch, seq)

    def folder(self, uuid: bytes) -> Path:
        return self.path / "segments" / uuid.hex()

    def segment_path(self, uuid: bytes, name: str) -> Path:
        return self.folder(uuid) / (name + SUFFIX)

    def files_of(self, state: CollectionState) -> set[str]:
        """The names that files of a collection may have; a growing one may have been completed."""
        segments = {file for entry in state.manifest.segments for file in entry.files}
        growing = {name + suffix for name in state.extents for suffix in (GROWING_SUFFIX, SUFFIX)}
        return segments | growing | set(state.schema.get("attachments", {}).values())

    def _delete_leftovers(self) -> None:
        """Files that no manifest names: half-written ones, and those of transactions that did not commit.

        A file is deleted only when it is of this store and was begun before the current transaction, so that a meta
        file put back by hand never eats newer segments. Anything else is left for `verify` to report.
        """
        with self.environment.read() as txn:
            self.garbage.load(key.decode() for key, _ in self.environment.scan(txn, "garbage", b""))
        self.garbage.sweep()
        current = self.environment.last_transaction()
        root = self.path / "segments"
        folders = {uuid.hex(): state for uuid, state in self.states.items()}
        for folder in self.files.names(root):
            state = folders.get(folder)
            if state is not None and state.damage is not None:
                continue
            named = self.files_of(state) if state else set()
            for name in self.files.names(root / folder):
                if name not in named and (name.endswith(".tmp") or self._is_leftover(root / folder / name, current)):
                    self.files.unlink(root / folder / name)
            if state is None and not self.files.names(root / folder):
                self.files.remove_directory(root / folder)

    def _is_leftover(self, path: Path, current: int) -> bool:
        try:
            begun = begun_at(self.files, path, self.uuid)
        except VecdbError:
            return False
        # What has no header holds nothing; it can only be a growing file, as segments appear under their names when finished.
        return begun is not None and begun <= current and (begun > 0 or path.suffix == GROWING_SUFFIX)

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

    def create_collection(self, name: str, schema: dict[str, Any]) -> bytes:
        """schema: {"fields": {name: {"dim", "dtype", …}}, …}, JSON; kept as it is. Raises AlreadyExists."""
        uuid = uuid_module.uuid4().bytes
        schema = orjson.loads(orjson.dumps(schema))

        def create(section: Section) -> None:
            if any(state.name == name for state in section.states.values()):
                raise AlreadyExists(f"collection {name!r} exists")
            # Flushed means "up to here nothing of it is in the log", which is true of all commits so far.
            state = CollectionState(uuid, name, schema, Manifest(section.seq))
            section.states = {**section.states, uuid: state}
            section.put_catalog(state)
            section.put_manifest(state, state.manifest)

        self._submit(ChangeCatalog(create))
        return uuid

    def drop_collection(self, collection: str) -> None:
        """Its rows, its log and its files; snapshots that readers hold stay readable. Raises NotFound."""
        dropped: list[CollectionState] = []

        def drop(section: Section) -> None:
            state = _by_name(section.states, collection)
            section.environment.delete(section.txn, "catalog", collection.encode())
            section.environment.delete(section.txn, "manifest", state.uuid)
            section.environment.delete_prefix(section.txn, "log", state.uuid)
            for entry in state.manifest.segments:
                section.environment.delete_prefix(section.txn, "tombstones", entry.name.encode())
            section.drop_files(f"segments/{state.uuid.hex()}/{name}" for name in sorted(self.files_of(state)))
            section.states = {key: kept for key, kept in section.states.items() if kept is not state}
            section.touched.add(state.uuid)
            dropped.append(state)

        self._submit(ChangeCatalog(drop))
        uuid = dropped[0].uuid
        growing = self.growing.seal(uuid)
        if growing is not None:
            self.growing.delete_unnamed(uuid, {growing.name})
        with suppress(VecdbError):  # a file may be held, or not want to go: the next writer to open the store looks again
            if self.files.exists(self.folder(uuid)):
                self.files.remove_directory(self.folder(uuid))
        self.flusher.make_room()

    def rename_collection(self, old: str, new: str) -> None:
        """Raises NotFound or AlreadyExists."""

        def rename(section: Section) -> None:
            state = _by_name(section.states, old)
            if any(other.name == new for other in section.states.values()):
                raise AlreadyExists(f"collection {new!r} exists")
            section.environment.delete(section.txn, "catalog", old.encode())
            state.name = new
            section.states = dict(section.states)  # another set of names
            section.put_catalog(state)

        self._submit(ChangeCatalog(rename))

    def alter_schema(self, uuid: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Replaces a collection's schema by change(schema), which may raise. Returns the new one."""

        def alter(section: Section) -> dict[str, Any]:
            state = section.state(uuid)
            state.set_schema(orjson.loads(orjson.dumps(change(state.schema))))
            section.put_catalog(state)
            return state.schema

        altered: dict[str, Any] = self._submit(ChangeCatalog(alter))
        return altered

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

    def begin(self, uuid: bytes) -> Ahead:
        """For a batch that may be large: its fields can be on their way to disk before the rest of it is ready."""
        self.check_writable()
        return Ahead(self, uuid)

    def write(self, uuid: bytes, batch: Batch, *, insert: bool = False, ahead: Ahead | None = None) -> int:
        """Rows, all or none of them; returns how many they replaced. With insert: AlreadyExists if one would be.

        ahead: from `begin`, if some of the batch was handed to it; it is released.
        """
        ahead = ahead or self.begin(uuid)
        try:
            if not batch.keys:
                return 0
            if ahead.is_segment or batch.nbytes >= LEVEL0_BYTES:
                hashes = hashes_of(batch.keys)
                segment, length = ahead.finish(batch, hashes)
                try:
                    return int(self._submit(WriteRows(uuid, batch, insert, None, segment, length, hashes)))
                except BaseException:
                    self.discard(uuid, segment)
                    raise
            if not ahead.begun:
                ahead.add_fields(batch.fields)
            batch = ahead.place(batch)
            return int(self._submit(WriteRows(uuid, batch, insert, record=batch.to_record())))
        finally:
            ahead.release()

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

    def delete(self, uuid: bytes, keys: Sequence[Id], as_of: int | None = None) -> int:
        """Deletes ids (only rows no newer than seq `as_of`, if given); returns how many there were."""
        return int(self._submit(DeleteRows(uuid, keys, as_of))) if keys else 0

    def change_payloads(
        self, uuid: bytes, keys: Sequence[Id], change: Callable[[Id, bytes], bytes], as_of: int | None = None
    ) -> int:
        """Rewrites the payloads of existing ids by change(id, JSON) -> JSON; returns how many."""
        return int(self._submit(ChangePayloads(uuid, keys, change, as_of))) if keys else 0

    def _submit(self, operation: Operation) -> Any:
        self.check_writable()
        if not isinstance(operation, _FREEING):  # these may be what gives room
            self.flusher.wait_for_room()
        try:
            return self.queue.submit(operation)
        finally:
            self.garbage.sweep()

    def _commit(self, group: list[Request]) -> None:
        """The commit section: runs a group of operations in one transaction and publishes what they did."""
        with self.commit_lock:
            self.check_writable()

            def run(txn: Transaction) -> Section:
                section = Section(self.environment, txn, self.states, self.seq)
                for request in group:
                    try:
                        request.result = request.operation.run(section)
                    except (StorageError, Corruption):
                        raise
                    except VecdbError as error:  # this one is refused, and has changed nothing
                        request.error = error
                self.environment.put(txn, "meta", b"seq", section.seq.to_bytes(8, "big"))
                return section

            room = sum(request.operation.room for request in group)
            self.transact(room, run, frees=all(isinstance(request.operation, _FREEING) for request in group))
            self.accepted += sum(request.operation.size for request in group if request.error is None)
        self.flusher.flush_if_large()

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
            for listener in list(self.listeners):
                listener(section.touched)

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
            self.states = {}  # and with them the mappings of files that may be gone; snapshots keep their own
            self._decoded.clear()
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
            self._decoded.clear()

    def after_fork(self) -> None:
        """In a forked child: its parent goes on with the store, and this process must not touch it."""
        self.closed = f"this process is a fork of process {self._pid}, which has it open; open it in each process after forking"
        self._shut = True
        if self._lock is not None:
            self._lock.release()


def _as_corruption(error: Exception, message: str, file: str, array: str) -> Corruption:
    return error if isinstance(error, Corruption) else Corruption(f"{message}: {error!r}", file=file, array=array)


def described(uuid: bytes, meta: str) -> bytes:
    """The content of VECDB."""
    return f"format {FORMAT}\nvecdb 0.1.0\nuuid {uuid.hex()}\nmeta {meta}\n".encode()


class _Vanished(Exception):
    """A file that a manifest named was replaced before it could be opened."""


def _by_name(states: dict[bytes, CollectionState], name: str) -> CollectionState:
    for state in states.values():
        if state.name == name:
            return state
    raise NotFound(f"no collection {name!r}; there are: {', '.join(sorted(s.name for s in states.values())) or 'none'}")
