"""Opens databases: one Store per process and directory, however often it is opened.

    store = open_store(path)              # or open_store(path, read_only=True)
    store.release()                       # the last release closes it

Safe in any thread. A forked child starts with an empty registry, and its parent's stores refuse to be used in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid as uuid_module
import weakref
from pathlib import Path

from . import locks
from .environment import Environment
from .errors import InvalidInput, NotFound
from .files import Files
from .locks import WriterLock
from .store import Store, described

_open: dict[tuple[int, int], Store] = {}  # by device and inode
_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def open_store(path: str | os.PathLike[str], *, read_only: bool = False, files: Files | None = None) -> Store:
    """The Store of a directory, made if it is not there; the same one for every open in this process.

    Raises NotFound (read_only and nothing there), Locked, Corruption, NewerFormat, InvalidInput, StorageError.
    """
    files = files or Files()
    folder = Path(path).absolute()
    with locks.opening:
        if not files.exists(folder / "VECDB"):
            if read_only:
                raise NotFound(f"no database at {folder}")
            _create(files, folder)
        elif not read_only:
            _check_local(files, folder)
        status = os.stat(folder)
        key = status.st_dev, status.st_ino
        store = _open.get(key)
        if store is None:
            if not read_only:  # what is there may be so only since a sync that failed
                files.sync_directory(folder)
                files.sync_directory(folder.parent)
            store = _open[key] = Store(folder, read_only=read_only, files=files, forget=_forget)
            _stores.add(store)
        elif not read_only:
            store.become_writer()
        return store.retain()


def _forget(store: Store) -> None:
    for key in [key for key, opened in _open.items() if opened is store]:
        del _open[key]


def temporary_store() -> Store:
    """A Store of its own that is gone when it is closed."""
    folder = Path(tempfile.mkdtemp(prefix="vecdb-"))
    _create(Files(), folder, sync=False)
    store = Store(folder, read_only=False, files=Files(), temporary=True).retain()
    _stores.add(store)
    weakref.finalize(store, _delete_temporary, folder, os.getpid())
    return store


def _delete_temporary(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # and not a forked child on its way out
        shutil.rmtree(folder, ignore_errors=True)


def _check_local(files: Files, folder: Path) -> None:
    if kind := files.on_network(folder):
        raise InvalidInput(f"{folder} is on a network file system ({kind}), where locks cannot be trusted; use a local disk")


def _create(files: Files, folder: Path, *, sync: bool = True) -> None:
    """An empty database. VECDB is written last: without it there is none, and a creation cut short begins again."""
    made = [each for each in (folder, *folder.parents) if not files.exists(each)]
    files.make_directory(folder)
    _check_local(files, folder)
    strangers = set(files.names(folder)) - {"LOCK", "segments", "meta-1.mdb", "meta-1.mdb-lock", "VECDB.tmp"}
    if strangers:
        raise InvalidInput(f"{folder} is not a database and not empty: it holds {sorted(strangers)[0]!r}")
    lock = WriterLock(folder / "LOCK")
    try:
        if files.exists(folder / "VECDB"):  # another process was faster
            return
        uuid = uuid_module.uuid4().bytes
        meta = folder / "meta-1.mdb"
        for leftover in (meta, folder / "meta-1.mdb-lock"):
            if files.exists(leftover):
                files.unlink(leftover)
        environment = Environment(files, meta, read_only=False, sync=sync, fresh=True)
        try:
            environment.commit(1 << 16, lambda txn: environment.put(txn, "meta", b"uuid", uuid))
        finally:
            environment.close()
        files.make_directory(folder / "segments")
        files.sync_directory(folder)
        files.replace(folder / "VECDB", described(uuid, meta.name))
        for each in made or [folder]:
            files.sync_directory(each.parent)
    finally:
        lock.release()


def _after_fork_in_child() -> None:
    locks.reset_after_fork()
    _open.clear()
    for store in list(_stores):
        store.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
