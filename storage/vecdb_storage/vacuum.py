"""Gives back the space of what was deleted or replaced, so that afterwards it is in no file.

    vacuum(store)            # or of one collection: vacuum(store, uuid)

Memtables are flushed and segments that have dead rows are written anew (`merge.py`). Then LMDB, whose freed pages still
hold old log records, is copied into the next generation, `meta-<n + 1>.mdb`; VECDB names it from then on; and the last
commit of the old one says that it was superseded, for readers of other processes, who move over at their next call.
Whatever is interrupted is cleared away by the next writer to open the store (`clear_generations`).

Safe in any thread, beside readers and writers; these wait while LMDB is copied.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .environment import Environment
from .errors import Corruption, DiskFull, StorageError, VecdbError
from .files import Progress

if TYPE_CHECKING:
    from .store import Store

_META = re.compile(r"meta-(\d+)\.mdb")


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum did. before, after: bytes of the database's files."""

    before: int
    after: int


def vacuum(store: Store, uuid: bytes | None = None, progress: Progress | None = None) -> Vacuumed:
    """See above. Raises StorageError, DiskFull: then what was not done is as it was."""
    store.check_writable()
    before = store.bytes_on_disk()
    chosen = [uuid] if uuid is not None else list(store.states)
    sizes = {one: sum(entry.bytes for entry in store.states[one].manifest.segments) for one in chosen if one in store.states}
    done, total = 0, sum(sizes.values()) + store.meta_bytes
    for one, size in sizes.items():
        store.merger.drop_empty(one)
        store.garbage.sweep()
        store.flush(one)
        store.merger.rewrite(one)
        done += size
        if progress is not None:
            progress(done, total)
    _next_generation(store)
    store.garbage.sweep()
    if progress is not None:
        progress(total, total)
    return Vacuumed(before, store.bytes_on_disk())


def _next_generation(store: Store) -> None:
    with store.generation_lock, store.commit_lock:
        store.check_writable()
        old = store.environment
        name = f"meta-{generation_of(old.path.name) + 1}.mdb"
        path = store.path / name
        temporary = store.path / (name + ".tmp")
        try:
            try:
                old.copy(temporary)
            except DiskFull:
                old.trim()
                old.copy(temporary)
            store.files.rename(temporary, path)
        except BaseException:
            with suppress(VecdbError):
                store.files.unlink(temporary)
            raise
        try:
            new = Environment(store.files, path, read_only=False, sync=not store.temporary)
        except BaseException:
            with suppress(VecdbError):
                _unlink(store, path)
            raise
        try:
            store.files.sync_directory(store.path)
            store.name_meta(name)
        except BaseException as error:
            if store.meta_named() == name:
                # The new name is there, and nobody can say for how long: neither generation may take a commit now.
                new.close()
                store.closed = f"VECDB could not be synced: {error}; open the database again"
                raise StorageError(store.closed, outcome="unknown", file=str(store.path / "VECDB")) from error
            new.close()
            with suppress(VecdbError):
                _unlink(store, path)
            raise
        store.use(new)
        # From here on nothing can go wrong that matters: the next writer would do it again.
        with suppress(VecdbError):
            supersede(old, name)
            for file in _files(old.path):
                store.garbage.remove(file)


def supersede(environment: Environment, name: str) -> None:
    """The last commit of a generation, which says where its readers go."""
    environment.commit(1 << 12, lambda txn: environment.put(txn, "meta", b"superseded", name.encode()), frees=True)


def clear_generations(store: Store) -> None:
    """Deletes what an interrupted vacuum left: an older generation, or a copy that never got a name.

    A newer generation that has been written to was in use: somebody has put an older one back by hand, and it stays, for
    `verify` to report.
    """
    unnamed = store.path / "VECDB.tmp"
    if store.files.exists(unnamed):
        store.files.unlink(unnamed)
    current = store.environment
    others = other_generations(store)
    if not others:
        return
    store.files.sync_directory(store.path)  # the name that was found may not have been synced
    for name in others:
        path = store.path / name
        with suppress(VecdbError):
            if name.endswith(".tmp"):
                store.files.unlink(path)
            elif generation_of(name) < generation_of(current.path.name):
                with suppress(Corruption):
                    old = Environment(store.files, path, read_only=False)
                    supersede(old, current.path.name)
                    old.close()
                _unlink(store, path)
            elif _is_unused_copy(store, path):
                _unlink(store, path)


def other_generations(store: Store) -> list[str]:
    """Meta files, finished or not, that are not in use."""
    names = (name for name in store.files.names(store.path) if _META.fullmatch(name.removesuffix(".tmp")))
    return [name for name in names if name != store.environment.path.name]


def _is_unused_copy(store: Store, path: Path) -> bool:
    try:
        copy = Environment(store.files, path, read_only=True)
    except Corruption:
        return False
    # Of a copy that was never written to, all is in the generation that it was made from, which has gone on since.
    unused = copy.base <= store.environment.last_transaction() and copy.last_transaction() <= copy.base + COPIED
    copy.close()
    return unused


COPIED = 2  # transactions of a copy: LMDB's own, and the one that stamps it


def generation_of(name: str) -> int:
    """The number in the name of a meta file."""
    match = _META.fullmatch(name)
    return int(match[1]) if match else 0


def _files(path: Path) -> list[Path]:
    return [path, path.with_name(path.name + "-lock")]


def _unlink(store: Store, path: Path) -> None:
    for file in _files(path):
        if store.files.exists(file):
            store.files.unlink(file)
