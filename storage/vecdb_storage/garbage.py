"""Files that no manifest names any more, until they are gone from the disk.

The transaction that takes the last name from a file lists it in the `garbage` table, so that a crash right after it
leaves no orphan: the next writer deletes what is listed. While somebody `hold`s the garbage (a backup that is copying),
nothing is deleted. Snapshots do not need to hold it, since a file that was mapped stays readable.

Belongs to one Store; safe in any thread. Nothing of the store's is taken under its locks.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .arrayfile import begun_at
from .errors import NotFound, VecdbError
from .growing import SUFFIX as GROWING_SUFFIX

if TYPE_CHECKING:
    from .environment import Environment, Transaction
    from .store import Store


class Garbage:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._sweeping = threading.Lock()  # whoever sweeps may rely on it that nothing is left, by another thread neither
        self._waiting: set[str] = set()  # paths relative to the database
        self._gone: set[str] = set()  # deleted, and still listed in the table
        self._holders = 0

    def add(self, paths: Iterable[str]) -> None:
        """A transaction has listed these."""
        with self._lock:
            self._waiting |= set(paths)

    def remove(self, path: Path) -> None:
        """Deletes a file that is in no table, or remembers to. What cannot be deleted is found by the next writer."""
        self.add([str(path.relative_to(self._store.path))])
        self.sweep()

    def sweep(self) -> None:
        """Deletes what may be deleted. Errors are left for the next time."""
        with self._sweeping:
            with self._lock:
                if self._holders:
                    return
                waiting, self._waiting = self._waiting, set()
            for path in sorted(waiting):
                try:
                    self._store.files.unlink(self._store.path / path)
                except NotFound:
                    pass
                except VecdbError:
                    self.add([path])
                    continue
                with self._lock:
                    self._gone.add(path)

    def unlist(self, environment: Environment, txn: Transaction) -> None:
        """Takes deleted files off the table. If the transaction fails they stay listed, which does no harm."""
        with self._lock:
            gone, self._gone = self._gone, set()
        for path in gone:
            environment.delete(txn, "garbage", path.encode())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Nothing is deleted in this block; what piles up goes at its end."""
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
            self.sweep()

    @property
    def waiting(self) -> set[str]:
        """Files that will be deleted."""
        with self._lock:
            return set(self._waiting)

    def clear_up(self) -> None:
        """Files that no manifest names: half-written ones, and those of transactions that did not commit.

        A file is deleted only when it is of this store and was begun before the current transaction, so that a meta
        file put back by hand never eats newer segments. Anything else is left for `verify` to report.
        """
        store = self._store
        with store.environment.read() as txn:
            self.add(key.decode() for key, _ in store.environment.scan(txn, "garbage", b""))
        self.sweep()
        current = store.environment.last_transaction()
        root = store.path / "segments"
        folders = {uuid.hex(): state for uuid, state in store.states.items()}
        for folder in store.files.names(root):
            state = folders.get(folder)
            if state is not None and state.damage is not None:
                continue
            named = store.files_of(state) if state else set()
            for name in store.files.names(root / folder):
                if name not in named and (name.endswith(".tmp") or self._is_leftover(root / folder / name, current)):
                    store.files.unlink(root / folder / name)
            if state is None and not store.files.names(root / folder):
                store.files.remove_directory(root / folder)

    def _is_leftover(self, path: Path, current: int) -> bool:
        store = self._store
        try:
            begun = begun_at(store.files, path, store.uuid)
        except VecdbError:
            return False
        # What has no header holds nothing; it can only be a growing file, as segments appear under their names when finished.
        return begun is not None and begun <= current and (begun > 0 or path.suffix == GROWING_SUFFIX)
