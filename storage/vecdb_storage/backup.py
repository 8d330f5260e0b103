"""Backups of a database that is in use, and their way back.

A backup is as of one commit. It holds the files that this commit names, by the same paths, and is complete when it has

    BACKUP     JSON: {"format": 1, "vecdb", "uuid", "made", "transaction", "meta",
                      "files": [{"path", "bytes", "xxh3", "in"?}, …]}

`xxh3` is of the whole file; `in` is the location of an earlier backup that holds it, relative to this one where both lie
side by side. Segments never change, so an incremental backup takes those that an earlier one has from there: by hard links
in directories, by name elsewhere. A backup is no database until it is restored, so that nobody writes to it by accident.

Everything may be called from any thread, beside readers, writers, merges and vacuums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import orjson
import xxhash

from .arrayfile import ArrayFile
from .batch import extent_of
from .errors import AlreadyExists, Corruption, InvalidInput, NewerFormat, NotFound, VecdbError
from .files import Buffer, Files, Progress
from .growing import SUFFIX as GROWING_SUFFIX
from .manifest import READABLE_BY, SUFFIX, Manifest
from .places import Folder, Place, place_of
from .ulid import ulid

if TYPE_CHECKING:
    from .store import Store

NAME = "BACKUP"
_FORMAT = 1
_ATTEMPTS = 10


@dataclass(frozen=True)
class Backup:
    """What a backup holds. bytes: of all its files; copied: of those that were written now, the others are an earlier one's."""

    location: str
    transaction: int
    files: int
    bytes: int
    copied: int


@dataclass
class _Wanted:
    """A file that a backup needs. path: relative. source: where it lies. length: how much of it, None for all."""

    path: str
    source: Path
    length: int | None = None
    changes: bool = False  # whether a file of this name may have been another one before


def backup(
    store: Store,
    where: str | Path,
    earlier: str | Path | None = None,
    *,
    link: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Backup:
    """Copies the newest commit to a directory or URL that holds nothing yet. earlier: a backup to take unchanged files from.

    link: hard links to the database's own segments instead of copies, where that can be: done at once, and no protection
    against a disk that fails. options: for fsspec. Each file is compared with its checksums while it is read. Raises
    AlreadyExists, Corruption, NotFound, DiskFull, StorageError; what was copied is then no backup, and may be deleted.
    """
    store.check_open()
    place = place_of(store.files, where, options)
    _check_empty(place, NAME)
    known = _read(place_of(store.files, earlier, options)) if earlier is not None else None
    if known is not None and known.uuid != store.uuid.hex():
        raise InvalidInput(f"{known.place.location} is a backup of another database")
    copying = _Copying(store, place, known, link, progress)
    with store.garbage.hold():
        for attempt in range(_ATTEMPTS):
            try:
                transaction, meta = copying.run()
                break
            except NotFound:
                # In a reader's process nothing holds the writer's garbage: what is named now is there now.
                if not store.read_only or attempt + 1 == _ATTEMPTS:
                    raise
    made = datetime.now(UTC).isoformat(timespec="seconds")
    described = {
        "format": _FORMAT, "vecdb": READABLE_BY, "uuid": store.uuid.hex(), "made": made,
        "transaction": transaction, "meta": meta, "files": list(copying.entries.values()),
    }  # fmt: skip
    place.finish(NAME, orjson.dumps(described, option=orjson.OPT_INDENT_2))
    total = sum(entry["bytes"] for entry in copying.entries.values())
    return Backup(place.location, transaction, len(copying.entries), total, copying.copied)


def _commit_of(store: Store, copy: Path) -> tuple[list[_Wanted], int]:
    """The files of the newest commit, LMDB's first, of which a copy is made; and its transaction."""
    with store.generation_lock:
        environment = store.environment
        with environment.read() as txn:
            environment.copy(copy, txn)
            wanted = [_Wanted(environment.path.name, copy, changes=True)]
            for _, value in environment.scan(txn, "catalog", b""):
                parsed = orjson.loads(value)
                uuid = bytes.fromhex(parsed["uuid"])
                manifest = Manifest.from_json(environment.get(txn, "manifest", uuid) or b"")
                names = [file for entry in manifest.segments for file in entry.files]
                names += parsed["schema"].get("attachments", {}).values()
                folder = store.folder(uuid)
                wanted += [_Wanted(f"segments/{uuid.hex()}/{name}", folder / name) for name in names]
                ends: dict[str, int] = {}
                for record in environment.records(txn, "log", uuid):
                    extent = extent_of(record)
                    if extent is not None:
                        ends[extent.name] = max(ends.get(extent.name, 0), extent.end)
                for name in (name + GROWING_SUFFIX for name in ends):
                    end = ends[name.removesuffix(GROWING_SUFFIX)]
                    wanted.append(_Wanted(f"segments/{uuid.hex()}/{name}", folder / name, end, changes=True))
            return wanted, environment.transaction_of(txn)


class _Copying:
    """Files on their way into a backup; what was copied before a new attempt is not copied again."""

    def __init__(self, store: Store, place: Place, known: _Manifest | None, link: bool, progress: Progress | None) -> None:
        self._store, self._place, self._known, self._link, self._progress = store, place, known, link, progress
        self.entries: dict[str, dict[str, Any]] = {}  # by path
        self.copied = 0

    def run(self) -> tuple[int, str]:
        """All files of the newest commit; returns its transaction, and the name of its LMDB file."""
        store = self._store
        store.refresh()
        scratch = self._place.scratch()
        copy = scratch / f"{ulid()}.tmp"
        try:
            wanted, transaction = _commit_of(store, copy)
            sizes = [file.length if file.length is not None else store.files.size(file.source) for file in wanted]
            for path in self.entries.keys() - {file.path for file in wanted}:
                self._place.remove(path)
                del self.entries[path]
            done = 0
            for file, size in zip(wanted, sizes, strict=True):
                if file.changes or file.path not in self.entries:
                    self.entries[file.path] = self._reused(file, size) or self._copy(file)
                done += size
                if self._progress is not None:
                    self._progress(done, sum(sizes))
            return transaction, wanted[0].path
        finally:
            with suppress(VecdbError):
                store.files.unlink(copy)
            self._place.leave(scratch)

    def _reused(self, file: _Wanted, size: int) -> dict[str, Any] | None:
        """A file that never changes, from the earlier backup."""
        known, place = self._known, self._place
        entry = None if known is None or file.changes else known.entries.get(file.path)
        if known is None or entry is None or entry["bytes"] != size:
            return None
        holder = known.holder(entry)
        if isinstance(place, Folder) and isinstance(holder, Folder):
            with suppress(NotFound):  # somebody has thinned the earlier one out
                if place.link(file.path, holder.path / file.path):
                    return {key: value for key, value in entry.items() if key != "in"}
            return None
        if isinstance(place, Folder) or isinstance(holder, Folder):
            return None
        return {**entry, "in": _relative(holder.location, place.location)}

    def _copy(self, file: _Wanted) -> dict[str, Any]:
        """One file. Its own checksums are compared first, so that no backup holds damage that nobody knows of."""
        store, place, source = self._store, self._place, file.source
        if not file.changes:
            for damage in ArrayFile(store.files, source, store.uuid).verify():
                raise damage
        elif file.length is not None and not store.files.exists(source):
            source = source.with_suffix(SUFFIX)  # it was completed meanwhile
        hasher, length = xxhash.xxh3_64(), 0

        def pieces() -> Iterator[bytes]:
            nonlocal length
            for piece in Folder(store.files, source.parent).read(source.name):
                some = piece if file.length is None else piece[: file.length - length]
                hasher.update(some)
                length += len(some)
                yield some
                if length == file.length:
                    return

        if self._link and not file.changes and isinstance(place, Folder) and place.link(file.path, source):
            for _ in pieces():
                pass
        else:
            place.write(file.path, pieces())
            self.copied += length
        if file.length is not None and length < file.length:
            raise Corruption(f"it was cut short: {length} bytes, but a log record names {file.length}", file=str(source))
        return {"path": file.path, "bytes": length, "xxh3": hasher.intdigest()}


# -- the way back --------------------------------------------------------------------------------------------


@dataclass
class _Manifest:
    """A BACKUP file that was read. entries: by path."""

    place: Place
    uuid: str
    meta: str
    entries: dict[str, dict[str, Any]]

    def holder(self, entry: Mapping[str, Any]) -> Place:
        """The backup that holds a file."""
        return self.place.sibling(entry["in"]) if "in" in entry else self.place


def _read(place: Place) -> _Manifest:
    """Raises NotFound, Corruption, NewerFormat."""
    name = f"{place.location}/{NAME}"
    try:
        data = b"".join(place.read(NAME))
    except NotFound as error:
        raise NotFound(f"there is no backup at {place.location}: it has no {NAME}, or was not completed") from error
    try:
        parsed = orjson.loads(data)
        if parsed["format"] > _FORMAT:
            raise NewerFormat(f"{name} has format {parsed['format']}", needs=str(parsed["vecdb"]))
        entries = {entry["path"]: entry for entry in parsed["files"]}
        for path, entry in entries.items():
            parts = PurePosixPath(path).parts
            if not parts or path.startswith("/") or ".." in parts or not (entry["bytes"] >= 0 and entry["xxh3"] >= 0):
                raise ValueError(f"a file {path!r}")
        meta = parsed["meta"]
        if meta not in entries or not meta.startswith("meta-"):
            raise ValueError(f"meta {meta!r}")
        return _Manifest(place, bytes.fromhex(parsed["uuid"]).hex(), meta, entries)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corruption(f"it is damaged: {error}", file=name) from error


def restore(
    where: str | Path,
    path: str | Path,
    *,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    files: Files | None = None,
) -> Path:
    """Makes a database of a backup, in a directory that is empty or not there; returns it.

    Each file is compared with its checksum; the database is there when all were right, and not before. Raises NotFound,
    AlreadyExists, Corruption, NewerFormat, DiskFull, StorageError; a restoration that was cut short may be begun again.
    """
    files = files or Files()
    found = _read(place_of(files, where, options))
    target = Folder(files, Path(path).absolute())
    if kind := files.on_network(target.path):
        raise InvalidInput(
            f"{target.path} is on a network file system ({kind}), where locks cannot be trusted; use a local disk"
        )
    _check_empty(target, "VECDB")
    total, done = sum(entry["bytes"] for entry in found.entries.values()), 0
    for name, entry in found.entries.items():
        hasher, length = xxhash.xxh3_64(), 0
        holder = found.holder(entry)

        def pieces(name: str = name, hasher: Any = hasher, holder: Place = holder) -> Iterable[Buffer]:
            nonlocal length
            for piece in holder.read(name):
                hasher.update(piece)
                length += len(piece)
                yield piece

        target.write(name, pieces())
        if (length, hasher.intdigest()) != (entry["bytes"], entry["xxh3"]):
            raise Corruption("it is not what was backed up; restore another backup", file=f"{holder.location}/{name}")
        done += length
        if progress is not None:
            progress(done, total)
    from .registry import open_store
    from .store import described

    target.make("segments")
    target.finish("VECDB", described(bytes.fromhex(found.uuid), found.meta))
    files.sync_directory(target.path.parent)
    open_store(target.path, read_only=True, files=files).release()
    return target.path


def _check_empty(place: Place, complete: str) -> None:
    """What was cut short before may be done again; all else is somebody's."""
    names = set(place.names())
    if complete in names:
        what = "holds a backup" if complete == NAME else "holds a database"
        raise AlreadyExists(f"{place.location} {what} already; choose an empty directory")
    strangers = {n for n in names if n not in ("segments", f"{complete}.tmp", "LOCK") and not n.startswith("meta-")}
    if strangers:
        raise AlreadyExists(f"{place.location} is not empty: it holds {sorted(strangers)[0]!r}; choose an empty directory")


def _relative(location: str, to: str) -> str:
    """A location as seen from another one beside it, or as it is."""
    parent, _, name = location.rpartition("/")
    return f"../{name}" if parent == to.rpartition("/")[0] else location
