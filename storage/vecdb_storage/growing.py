"""A segment's file from its first vectors on: vectors of a steady load are written to disk once, where they will stay.

A batch of some size puts its vectors at the end of the collection's growing file and syncs them; its log record holds the
rest, and an *extent* that says where the vectors are. Replay and readers map extents. A flush whose rows are just those of the
file, all alive and in order, completes it: ids, payloads, columns and directory follow the vectors, and the file is renamed
from `<ulid>.growing` to `<ulid>.seg`. Any other flush copies, and the file goes when no record names it any more.

Appended to from any thread. A Growing that failed to write or sync takes no more rows, and is not completed.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .arrayfile import ArrayWriter, checksum, mapped
from .errors import Corruption, NotFound
from .files import Files
from .ulid import ulid

if TYPE_CHECKING:
    from .ahead import Ahead
    from .store import Store

SUFFIX = ".growing"
GROWING_BYTES = 1 << 20  # of vectors, from which a batch is written this way


@dataclass(frozen=True)
class Extent:
    """Vectors in a growing file. name: ULID of the file. offset: in bytes. xxh3: of the vectors' bytes."""

    name: str
    offset: int
    dtype: str
    rows: int
    dim: int
    xxh3: int

    @property
    def end(self) -> int:
        return self.offset + self.rows * self.dim * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Extent:
        return Extent(**value)

    def read(self, files: Files, folder: Path) -> npt.NDArray[Any]:
        """The vectors, checked and mapped. Raises NotFound when the file is gone, or Corruption."""
        path = folder / (self.name + SUFFIX)
        try:
            fd = files.open(path)
        except NotFound as gone:
            path = folder / (self.name + ".seg")  # it may have been completed
            try:
                fd = files.open(path)
            except NotFound:
                raise gone from None
        try:
            length = self.end - self.offset
            data = files.read_at(fd, self.offset, length, path)
            if len(data) != length or checksum(data) != self.xxh3:
                raise Corruption("vectors of a log record are not what was written; restore a backup", file=str(path))
            return mapped(files, fd, path, self.offset, np.dtype(self.dtype), (self.rows, self.dim))
        finally:
            files.close(fd)


DONE: Future[None] = Future()
DONE.set_result(None)


class Placing:
    """Vectors (n, d) on their way to a growing file, which one thread writes while another does what it can without them.

    The vectors must not change before they are there.
    """

    def __init__(self, vectors: npt.NDArray[Any]) -> None:
        self.vectors = vectors
        self.growing: Growing | None = None  # and the offset in it, once `reached`
        self.offset = 0
        self.reached = threading.Event()
        self.written: Future[None] = Future()

    def reach(self, growing: Growing, offset: int) -> None:
        """They are about to be written there."""
        self.growing, self.offset = growing, offset
        self.reached.set()

    def place(self) -> tuple[Extent, npt.NDArray[Any]]:
        """Where they will be, and mapped from there; nothing is to be read of it before `wait`. Raises StorageError."""
        self.reached.wait()
        if self.growing is None:
            self.wait()
        assert self.growing is not None
        rows, dim = self.vectors.shape
        dtype = self.vectors.dtype
        extent = Extent(self.growing.name, self.offset, dtype.str, rows, dim, checksum(self.vectors))
        there = self.growing.map(self.offset, dtype, (rows, dim))
        if self.written.done():  # a full disk says so at once; a batch need not get as far as the commit section for it
            self.wait()
        return extent, there

    def wait(self) -> None:
        """Returns when they are on disk. Raises StorageError."""
        self.written.result()


class Growing:
    """One growing file of this process."""

    def __init__(self, files: Files, folder: Path, name: str, store: bytes, begun: int, *, sync: bool) -> None:
        self.name, self._sync = name, sync
        self._lock = threading.Lock()
        self._open, self._broken = True, False
        self._pinned = 0  # extents whose batches are not committed yet
        self._rows = 0
        self.path = folder / (name + SUFFIX)
        self._writer = ArrayWriter(files, folder / (name + ".seg"), store, begun, temporary=self.path)
        self._writer.begin()
        files.sync_directory(folder)

    def append(self, placing: Placing) -> bool:
        """Writes vectors at the end. False when the file takes no more; else whoever placed them must `unpin` it.

        Raises StorageError; what it wrote then belongs to nobody.
        """
        vectors = placing.vectors
        with self._lock:
            if not self._open:
                return False
            self._pinned += 1
            try:
                placing.reach(self, self._writer.offset)
                if self._sync:
                    self._writer.write_through(vectors)
                    placing.written.set_result(None)  # nobody need wait for what follows
                    self._writer.count(vectors)
                else:
                    self._writer.extend(vectors)
                    placing.written.set_result(None)
            except BaseException:
                self._open, self._broken = False, True  # who knows what it holds beyond its extents
                raise
            self._rows += len(vectors)
        return True

    def map(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
        """See ArrayWriter.map. While it is pinned."""
        return self._writer.map(offset, dtype, shape)

    def unpin(self) -> None:
        """The batch of an extent was committed or refused."""
        with self._lock:
            self._pinned -= 1

    @property
    def pinned(self) -> bool:
        return self._pinned > 0

    def seal(self) -> None:
        """No more rows from now on."""
        with self._lock:
            self._open = False

    @property
    def open(self) -> bool:
        return self._open

    def complete(self, field: str, extents: list[Extent | None]) -> ArrayWriter | None:
        """When the file holds the vectors of these extents, in order, and nothing else: its writer, ready for further arrays.

        The Growing is then done with. Call `seal` first.
        """
        place = None
        for extent in extents:
            if extent is None or extent.name != self.name or (place is not None and extent.offset != place):
                return None
            place = extent.end
        total = sum(extent.rows for extent in extents if extent)
        if self._broken or not extents or total != self._rows or place != self._writer.offset:
            return None
        first = extents[0]
        assert first is not None
        self._writer.end(f"field.{field}.vectors", np.dtype(first.dtype), (total, first.dim))
        return self._writer

    def close(self) -> None:
        self.seal()
        self._writer.close()


class GrowingFiles:
    """All growing files of one Store: of each collection the one that takes vectors, and those that take no more."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()  # the last one to be taken
        self._taking: dict[bytes, Growing] = {}  # by collection
        self._sealed: dict[str, Growing] = {}  # by name; a record may still name them, or a batch that is on its way
        self._turns = threading.Lock()  # the first one to be taken
        self._waiting: defaultdict[bytes, list[Ahead]] = defaultdict(list)  # by collection, in their order

    def accepts(self, uuid: bytes) -> bool:
        """Whether the collection's vectors can go there: those of one dense field, end to end."""
        state = self._store.states.get(uuid)
        return state is not None and [field["kind"] for field in state.schema["fields"].values()] == ["dense"]

    def enter(self, uuid: bytes, ahead: Ahead) -> None:
        """Sends a batch's vectors to the collection's growing file, unless it is early, or behind one that waits."""
        with self._turns:
            waiting = self._waiting[uuid]
            if ahead.later and (waiting or ahead.is_early()):
                waiting.append(ahead)
            else:
                ahead.send()

    def proceed(self, uuid: bytes, ahead: Ahead) -> None:
        """It waits no longer, and those behind it follow if they may."""
        with self._turns:
            waiting = self._waiting[uuid]
            if ahead in waiting:
                waiting.remove(ahead)
                ahead.send()
            while waiting and not waiting[0].is_early():
                waiting.pop(0).send()

    def leave(self, uuid: bytes, ahead: Ahead) -> None:
        """It waits no longer, and will not come."""
        with self._turns:
            if ahead in self._waiting[uuid]:
                self._waiting[uuid].remove(ahead)

    def append(self, uuid: bytes, placing: Placing) -> None:
        """Vectors at the end of the collection's growing file. `placing` says how it went; `release` it later."""
        try:
            while not self._that_takes(uuid).append(placing):
                pass  # it was sealed a moment ago
        except BaseException as error:
            if not placing.written.done():
                placing.written.set_exception(error)
            placing.reached.set()

    def _that_takes(self, uuid: bytes) -> Growing:
        """The collection's growing file; a new one where there is none."""
        store = self._store
        with self._lock:
            growing = self._taking.get(uuid)
            if growing is None or not growing.open:
                if growing is not None:
                    self._sealed[growing.name] = growing
                folder = store.folder(uuid)
                store.ensure_folder(folder)
                sync = not store.temporary
                growing = Growing(store.files, folder, ulid(), store.uuid, store.last_transaction(), sync=sync)
                self._taking[uuid] = growing
            return growing

    def release(self, uuid: bytes, placing: Placing) -> None:
        """The batch of an extent was committed or refused."""
        placing.written.exception()
        placing.written = DONE  # an error that it told is not to be held by frames of its own trace
        growing = placing.growing
        if growing is None:
            return
        growing.unpin()
        if not growing.open:
            self.delete_unnamed(uuid, {growing.name})

    def seal(self, uuid: bytes) -> Growing | None:
        """The collection's growing file takes no more rows. Returns it."""
        with self._lock:
            growing = self._taking.pop(uuid, None)
            if growing is not None:
                self._sealed[growing.name] = growing
        if growing is not None:
            growing.seal()
        return growing

    def delete_unnamed(self, uuid: bytes, names: set[str]) -> None:
        """Of these files, deletes those that no record names, nor one that is about to be committed."""
        store = self._store
        with store.commit_lock:
            state = store.states.get(uuid)
            for name in names - (state.extents if state is not None else set()):
                with self._lock:
                    growing = self._sealed.get(name)
                    if growing is not None and growing.pinned:
                        continue
                    self._sealed.pop(name, None)
                if growing is not None:
                    growing.close()
                if state is None or all(entry.name != name for entry in state.manifest.segments):
                    for suffix in (SUFFIX, ".seg"):
                        store.garbage.remove(store.folder(uuid) / (name + suffix))

    def close(self) -> None:
        with self._lock:
            for growing in (*self._taking.values(), *self._sealed.values()):
                growing.close()
