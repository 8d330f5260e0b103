"""Reads a database from end to end and reports what is not as it was written, and, if asked, repairs what can be repaired.

What is compared: every byte of every file with its checksums; every value of LMDB; manifests with the files that they
name; tombstones and the log with manifests; ids with their hashes; and, over all rows of a collection, the rule of
visibility. Files are read by pread, several at a time. Runs beside writers and readers, on the snapshots published when it
comes to each collection; what `repair.py` does is done after all has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from .arrayfile import ArrayFile, begun_at
from .environment import TABLES
from .errors import Corruption, NotFound, ReadOnly, VecdbError
from .files import Progress
from .growing import SUFFIX as GROWING_SUFFIX
from .ids import Id, hashes_of
from .manifest import Manifest
from .segment import Segment
from .snapshot import SegmentPart, Snapshot, live_rows
from .vacuum import other_generations

if TYPE_CHECKING:
    from .state import CollectionState
    from .store import Store

_THREADS = 4  # that read segments; a disk with several queues is read faster so
_PARTITION = 4 << 20  # rows whose hashes are compared at once


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written.

    problem: what was found. file, array, block: where, as far as that can be said. collection: its name. lost: what cannot
    be read any more. remedy: what to do. kind: "index", "segment", "log", "attachment", "table", "stranger" or "rule". ids:
    points that are lost, as far as they are known, and unknown: how many more there may be whose ids are lost, too; both are
    filled in by a repair. repaired: what a repair did, None where it did nothing.
    """

    problem: str
    kind: str
    remedy: str
    lost: str = "nothing"
    file: str | None = None
    array: str | None = None
    block: int | None = None
    collection: str | None = None
    segment: str | None = None
    ids: tuple[Id, ...] = ()
    unknown: int = 0
    repaired: str | None = None

    def __str__(self) -> str:
        done = f" Repaired: {self.repaired}." if self.repaired is not None else f" To do: {self.remedy}."
        where = f"collection {self.collection!r}: " if self.collection is not None else ""
        return f"{where}{self.problem}. Lost: {self.lost}.{done}"


@dataclass(frozen=True)
class Report:
    """What `verify` found. ok: nothing is damaged, or everything that was has been repaired."""

    files: int
    bytes: int
    damage: list[Damage] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(found.repaired is not None for found in self.damage)


_REPAIR = "verify(repair=True), or restore a backup"
_BACKUP = "restore a backup"


def verify(
    store: Store, uuid: bytes | None = None, progress: Progress | None = None, repair: bool = False, also: Also | None = None
) -> Report:
    """Everything of the database, or of one collection. also: further checks of a segment's indexes; see `Verifier`."""
    if repair and store.read_only:
        raise ReadOnly(f"{store.path} is open read-only; open it without read_only to repair it")
    with store.garbage.hold():
        verifier = Verifier(store, uuid, progress, also)
        report = verifier.run()
    if repair and report.damage:
        from .repair import repaired

        report = replace(report, damage=repaired(store, report.damage))
    return report


Also = Callable[[Any, SegmentPart, str, ArrayFile], Iterable[str]]  # schema, part, field, index -> problems


class Verifier:
    """One run. The product, which knows what indexes mean, adds `also`, called for each index whose bytes are right."""

    def __init__(self, store: Store, uuid: bytes | None, progress: Progress | None, also: Also | None) -> None:
        self._store, self._uuid, self._progress, self._also = store, uuid, progress, also
        self._done = self._total = self._files = 0

    def run(self) -> Report:
        store = self._store
        store.refresh()
        damage = list(self._tables())
        states = [state for state in list(store.states.values()) if self._uuid in (None, state.uuid)]
        self._total = sum(entry.bytes for state in states for entry in state.manifest.segments) + store.meta_bytes
        self._advance(store.meta_bytes)
        with ThreadPoolExecutor(_THREADS) as pool:
            for state in states:
                damage += self._collection(state, pool)
        if self._uuid is None:
            damage += _strangers(store)
        if self._progress is not None:
            self._progress(self._total, self._total)
        return Report(self._files, self._done, damage)

    def _advance(self, length: int) -> None:
        self._done += length
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)

    def _tables(self) -> Iterator[Damage]:
        """Every value of LMDB, and whether the tables fit each other."""
        environment = self._store.environment
        file = str(environment.path)
        for table in TABLES:
            with environment.read() as txn:
                for key, problem in environment.damaged(txn, table):
                    kind = "log" if table == "log" else "table"
                    lost = "what this commit wrote and deleted" if kind == "log" else f"what the table says of {key!r}"
                    of = self._name_of(key[:16]) if table in ("log", "manifest") else None
                    remedy = _REPAIR if kind == "log" else _BACKUP
                    yield Damage(problem, kind, remedy, lost, file, table, collection=of)
        with environment.read() as txn:
            uuids = {}
            for name, value in environment.intact(txn, "catalog"):
                uuids[bytes.fromhex(orjson.loads(value)["uuid"])] = name.decode()
            flushed, segments = {}, set()
            for uuid, value in environment.intact(txn, "manifest"):
                manifest = Manifest.from_json(value)
                flushed[uuid] = manifest.flushed
                segments |= {entry.name.encode() for entry in manifest.segments}
                if uuid not in uuids:
                    yield Damage(f"the manifest of {uuid.hex()} belongs to no collection", "table", _BACKUP, file=file)
            for key, _ in environment.intact(txn, "tombstones"):
                if key[:-4] not in segments:
                    yield Damage(f"tombstones of {key[:-4]!r}, which is no segment", "table", _BACKUP, file=file)
            for key, _ in environment.intact(txn, "log"):
                if int.from_bytes(key[16:24], "big") <= flushed.get(key[:16], -1):
                    problem = f"a log record of commit {int.from_bytes(key[16:24], 'big')}, which was flushed"
                    yield Damage(problem, "table", _BACKUP, file=file, collection=uuids.get(key[:16]))

    def _name_of(self, uuid: bytes) -> str | None:
        state = self._store.states.get(uuid)
        return state.name if state is not None else None

    def _collection(self, state: CollectionState, pool: ThreadPoolExecutor) -> Iterator[Damage]:
        name = state.name
        for segment, error in state.broken.items():
            yield replace(_of(error, "segment", _REPAIR, "points of this segment"), collection=name, segment=segment)
        if state.damage is not None:
            if state.damage not in state.broken.values():
                yield replace(_of(state.damage, "table", _BACKUP, "the collection cannot be read"), collection=name)
            parts = [SegmentPart(segment, state.tombstones[segment.name], {}) for segment in state.segments]
        else:
            assert state.snapshot is not None
            parts = [part for part in state.snapshot.parts if isinstance(part, SegmentPart)]
        entries = {entry.name: entry for entry in state.manifest.segments}
        for part, damage in zip(parts, pool.map(_segment, parts), strict=True):
            self._files += 1
            self._advance(part.segment.file.size)
            entry = entries.get(part.segment.name)
            if entry is not None and entry.bytes != part.segment.file.size:
                problem = f"it has {part.segment.file.size} bytes; its manifest says {entry.bytes}"
                yield Damage(f"{part.segment.file.path}: {problem}", "segment", _BACKUP, file=str(part.segment.file.path))
            for found in (*damage, *self._indexes(state, part, whole=not damage)):
                if not self._is_replaced(state, found):
                    yield replace(found, collection=name, segment=part.segment.name)
        if state.damage is not None:
            return
        assert state.snapshot is not None
        for extent in state.located:
            try:
                extent.read(self._store.files, self._store.folder(state.uuid))
            except (Corruption, NotFound) as error:
                yield replace(_of(error, "log", _BACKUP, "vectors of a log record"), collection=name)
        for label, file in state.schema.get("attachments", {}).items():
            self._files += 1
            try:
                attached = ArrayFile(self._store.files, self._store.folder(state.uuid) / file, self._store.uuid)
                problems: Iterable[VecdbError] = attached.verify()
            except (Corruption, NotFound) as error:
                problems = [error]
            yield from (replace(_of(each, "attachment", _BACKUP, f"the {label}"), collection=name) for each in problems)
        yield from _against_the_rule(state.snapshot, name)

    def _is_replaced(self, state: CollectionState, found: Damage) -> bool:
        """In a reader's process, which cannot hold files: whether the writer has deleted this one since it was looked up."""
        store = self._store
        if not store.read_only or found.file is None or store.files.exists(Path(found.file)):
            return False
        store.refresh()
        now = store.states.get(state.uuid)
        return now is None or Path(found.file).name not in store.files_of(now)

    def _indexes(self, state: CollectionState, part: SegmentPart, *, whole: bool) -> Iterator[Damage]:
        """The index files of one segment. whole: its rows are as they were written, so that they can be compared."""
        remedy = "verify(repair=True) or rebuild_index(); until then the segment is searched exactly"
        for name, file in part.indexes.items():
            self._files += 1
            try:
                index = part.segment.index(file)
                problems: list[VecdbError] = list(index.verify())
                self._advance(index.size)
                if whole and not problems and self._also is not None:
                    path = str(index.path)
                    problems = [Corruption(text, file=path) for text in self._also(state.schema, part, name, index)]
            except (Corruption, NotFound) as error:
                problems = [error]
            path = str(part.segment.file.path.with_name(file))
            yield from (replace(_of(problem, "index", remedy), file=path) for problem in problems)


def _of(error: VecdbError, kind: str, remedy: str, lost: str = "nothing") -> Damage:
    """An error as a finding."""
    file, array, block = (getattr(error, name, None) for name in ("file", "array", "block"))
    return Damage(str(error), kind, remedy, lost, file, array, block)


def _segment(part: SegmentPart) -> list[Damage]:
    """Every byte of a segment, and its ids."""
    try:
        return [_of(error, "segment", _REPAIR, _what_is_lost(part.segment, error)) for error in part.segment.verify()]
    except VecdbError as error:
        found = _of(error, "segment", _REPAIR, "points of this segment")
        return [replace(found, file=found.file or str(part.segment.file.path))]


def _what_is_lost(segment: Segment, error: Corruption) -> str:
    array = error.array or ""
    if array.startswith("col.") or array in ("id.hash", "id.row", "id.filter") or array.endswith(".norms"):
        return "nothing that cannot be made again"
    return f"points whose {array} lies in block {error.block}"


def _strangers(store: Store) -> Iterator[Damage]:
    """Files that nothing names and that were too strange to delete."""
    remedy = "look at it, and delete it if it is nobody's"
    with store.generation_lock:
        strange = [name for name in other_generations(store) if not name.endswith(".tmp")]
    if store.meta_named() == store.environment.path.name:  # else this reader is about to move over
        for name in strange:
            file = str(store.path / name)
            yield Damage(f"{file}: VECDB does not name this file", "stranger", remedy, file=file)
    root = store.path / "segments"
    names = [(folder, name) for folder in store.files.names(root) for name in store.files.names(root / folder)]
    named = {store.folder(s.uuid) / name for s in list(store.states.values()) for name in store.files_of(s)}
    known = named | {store.path / path for path in store.garbage.waiting} | store.merger.files
    for folder, name in names:
        path = root / folder / name
        if path in known or name.endswith(".tmp") or _is_young(store, path):
            continue
        yield Damage(f"{path}: no manifest names this file", "stranger", remedy, file=str(path))


def _is_young(store: Store, path: Path) -> bool:
    """A file of this store that a writer may be about to name, or, if it never does, the next writer deletes."""
    try:
        begun = begun_at(store.files, path, store.uuid)
    except VecdbError:  # it went meanwhile
        return True
    return begun is not None and (path.suffix == GROWING_SUFFIX or begun > 0)


def _against_the_rule(snapshot: Snapshot, name: str) -> Iterator[Damage]:
    """Ids with two live rows, or with a live row that is older than another row of the same id."""
    hashes, seqs, alive = [], [], []
    for part in snapshot.parts:
        rows = np.arange(part.rows)
        live = np.zeros(part.rows, np.bool_)
        live[live_rows(part)] = True
        if isinstance(part, SegmentPart):
            at = part.segment.table.row.astype(np.int64)
            hashes.append(part.segment.table.hash)
            seqs.append(part.seqs(at))
            alive.append(live[at])
        elif part.rows:
            hashes.append(hashes_of(part.keys(rows)))
            seqs.append(part.seqs(rows))
            alive.append(live)
    if not hashes:
        return
    total = sum(map(len, hashes))
    parts = max(1, -(-total // _PARTITION))
    for number in range(parts):
        first, last = np.uint64(number * (1 << 64) // parts), np.uint64((number + 1) * (1 << 64) // parts - 1)
        chosen = [(each >= first) & (each <= last) for each in hashes]
        some = np.concatenate([each[c] for each, c in zip(hashes, chosen, strict=True)])
        order = np.lexsort((np.concatenate([each[c] for each, c in zip(seqs, chosen, strict=True)]), some))
        some = some[order]
        living = np.concatenate([each[c] for each, c in zip(alive, chosen, strict=True)])[order]
        # Within one hash rows ascend by seq, so only the last of them may be alive.
        for twice in some[:-1][(some[1:] == some[:-1]) & living[:-1]].tolist():
            if not _is_collision(snapshot, np.uint64(twice)):
                problem = f"an id (of hash {twice:016x}) has a live row that is older than another row of it"
                yield Damage(problem, "rule", _BACKUP, collection=name)


def _is_collision(snapshot: Snapshot, wanted: np.uint64) -> bool:
    """Whether rows that share a hash are those of different ids, each of them right."""
    newest: dict[Id, tuple[int, bool]] = {}
    for part in snapshot.parts:
        live = set(live_rows(part).tolist())
        if isinstance(part, SegmentPart):
            table = part.segment.table
            rows = table.row[np.searchsorted(table.hash, wanted) : np.searchsorted(table.hash, wanted, "right")].astype(
                np.int64
            )
        else:
            rows = np.flatnonzero(hashes_of(part.keys(np.arange(part.rows))) == wanted) if part.rows else np.zeros(0, np.int64)
        for key, row, seq in zip(part.keys(rows), rows.tolist(), part.seqs(rows).tolist(), strict=True):
            if key in newest and (newest[key][1] if seq > newest[key][0] else row in live):
                return False
            if key not in newest or seq > newest[key][0]:
                newest[key] = (seq, row in live)
    return True
