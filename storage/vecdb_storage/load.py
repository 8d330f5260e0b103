"""Reads a store from disk: at open, after a failure, and, in a reader's process, whenever the writer has committed.

What is already open and unchanged is kept. Damage is kept with its collection, so that the others stay usable; what damages
more than one (the catalogue, LMDB itself) raises. Belongs to one Store, and runs under its commit lock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .batch import Batch
from .environment import Transaction
from .errors import Corruption, NotFound
from .manifest import Manifest, SegmentEntry
from .segment import Segment
from .state import CollectionState
from .tombstones import Tombstones, from_chunks

if TYPE_CHECKING:
    from .store import Store

_LOOKS = 20  # at manifests whose files vanish meanwhile


@dataclass(frozen=True)
class Loaded:
    """What a store holds as of one transaction."""

    states: dict[bytes, CollectionState]
    seq: int
    transaction: int


class _Vanished(Exception):
    """A file that a manifest named was replaced before it could be opened."""


class Loader:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._decoded: dict[tuple[bytes, int], Batch] = {}  # log records a reader has seen, by key

    def forget(self) -> None:
        """The batches that were kept for a reader are not needed any more."""
        self._decoded.clear()

    def load(self) -> Loaded:
        """The newest transaction. Raises Corruption, StorageError."""
        for look in range(_LOOKS):
            self._store.follow()
            environment = self._store.environment
            with environment.read() as txn:
                if environment.get(txn, "meta", b"uuid") != self._store.uuid:
                    raise Corruption("it belongs to another store than VECDB says", file=str(environment.path))
                states, replays = self._read_catalog(txn)
                seq = int.from_bytes(environment.get(txn, "meta", b"seq") or bytes(8), "big")
                transaction = environment.transaction_of(txn)
            try:
                self._open_segments(states, last_try=look + 1 == _LOOKS)
                for state, _, records in replays:
                    if state.damage is None:
                        self._decode(state, records, last_try=look + 1 == _LOOKS)
            except _Vanished:
                time.sleep(0.01)  # a flush or merge replaced a file between our two looks: look again
                continue
            break
        for state, tombstones, records in replays:
            if state.damage is None:
                self._restore(state, tombstones, records)
        return Loaded(states, seq, transaction)

    def _read_catalog(self, txn: Transaction) -> tuple[dict[bytes, CollectionState], list[Any]]:
        states: dict[bytes, CollectionState] = {}
        replays = []
        seen = set()
        for name, value in list(self._store.environment.scan(txn, "catalog", b"")):
            try:
                parsed = orjson.loads(value)
                uuid, schema = bytes.fromhex(parsed["uuid"]), parsed["schema"]
                CollectionState(uuid, name.decode(), schema, Manifest())  # its layout can be read
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                file = str(self._store.environment.path)
                raise _as_corruption(error, f"collection {name!r} cannot be read", file, "catalog") from error
            try:
                manifest = Manifest.from_json(self._store.environment.get(txn, "manifest", uuid) or b"")
            except (Corruption, ValueError, KeyError, TypeError) as error:
                states[uuid] = CollectionState(uuid, name.decode(), schema, Manifest())
                states[uuid].damage = _as_corruption(
                    error, "the manifest cannot be read", str(self._store.environment.path), "manifest"
                )
                continue
            state, applied = self._followed(uuid, name.decode(), schema, manifest)
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
        for key, chunk in self._store.environment.scan(txn, "tombstones", entry.name.encode()):
            chunks[int.from_bytes(key[-4:], "big")] = np.frombuffer(chunk, np.uint64)
        return from_chunks(entry.rows, chunks)

    def _read_log(self, txn: Transaction, state: CollectionState, records: dict[int, list[bytes] | Batch]) -> None:
        """The parts of each record that is newer than the state, or the batch that a reader has made of it before."""
        for key, part in self._store.environment.scan(txn, "log", state.uuid, (state.last_seq + 1).to_bytes(8, "big")):
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
        known = self._store.states.get(uuid) if self._store.read_only else None
        if known is None or known.damage is not None or known.manifest != manifest or known.schema != schema:
            return CollectionState(uuid, name, schema, manifest), False
        known.name = name
        return known, True

    def _open_segments(self, states: dict[bytes, CollectionState], *, last_try: bool) -> None:
        """Opens what the manifests name. Damage is kept with its collection: the others stay usable."""
        for uuid, state in states.items():
            old = self._store.states.get(uuid)
            if old is state:
                continue
            known = {segment.name: segment for segment in old.segments} if old else {}
            for entry in state.manifest.segments:
                try:
                    segment = known.get(entry.name) or self._open_segment(uuid, entry)
                    segment.check_layout(state.layout)
                    state.attach(segment, Tombstones(entry.rows))
                except NotFound as error:
                    if not last_try and self._store.read_only:
                        raise _Vanished from error
                    path = str(self._store.segment_path(uuid, entry.name))
                    state.broken[entry.name] = Corruption(f"the manifest names it, but it is gone: {error}", file=path)
                except Corruption as error:
                    state.broken[entry.name] = error
            state.damage = state.damage or next(iter(state.broken.values()), None)

    def _open_segment(self, uuid: bytes, entry: SegmentEntry) -> Segment:
        segment = Segment(self._store.files, self._store.segment_path(uuid, entry.name), self._store.uuid, entry.seq)
        if segment.rows != entry.rows:
            raise Corruption(f"it has {segment.rows} rows; its manifest says {entry.rows}", file=str(segment.file.path))
        return segment

    def _decode(self, state: CollectionState, records: dict[int, Any], *, last_try: bool) -> None:
        """Log records as batches, in place, with the vectors that lie in growing files."""
        folder = self._store.folder(state.uuid)
        for seq, record in records.items():
            try:
                if not isinstance(record, Batch):
                    batch = Batch.from_record(b"".join(record), lambda extent: extent.read(self._store.files, folder))
                    batch.check_layout(state.layout, state.schema["ids"])
                    records[seq] = batch
            except NotFound as error:
                if not last_try and self._store.read_only:
                    raise _Vanished from error
                state.damage = Corruption(f"log record {seq} names a file that is gone: {error}; restore it from a backup")
                return
            except Corruption as error:
                state.damage = error
                return
            except (ValueError, KeyError, IndexError, TypeError) as error:
                state.damage = Corruption(
                    f"log record {seq} cannot be read: {error}", file=str(self._store.environment.path), array="log"
                )
                return
            if self._store.read_only:
                self._decoded[state.uuid, seq] = records[seq]

    def _restore(self, state: CollectionState, tombstones: dict[str, Tombstones], records: dict[int, Batch]) -> None:
        """Tombstones as committed, then the log on top of the segments, in the order of commits."""
        state.tombstones |= tombstones
        state.committed |= tombstones
        for seq, batch in records.items():
            state.replay(batch, seq)


def _as_corruption(error: Exception, message: str, file: str, array: str) -> Corruption:
    return error if isinstance(error, Corruption) else Corruption(f"{message}: {error!r}", file=file, array=array)
