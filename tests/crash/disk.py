"""The simulated disk: files whose n-th call fails, and files that remember enough to be cut off from power at any moment.

`Faulty` does what `Files` does until its n-th call, which fails as a `Fault` says.

`Recorder` does what `Files` does, and keeps a journal of every change: bytes written, names made, moved and deleted, syncs,
and, by looking at the file after each commit, what LMDB wrote. A `Disk` replays the journal up to any entry and then says
what may be found there after a power cut: all that was synced, and of the rest whatever one likes.

    bytes        of each write any of its 4 KiB blocks may be there; the others are as before, or zeros
    names        a directory has the names of its last `sync_directory`, and any of the later creations, deletions and
                 renames, where a rename is there as a whole or not at all; a synced file whose name is not there is lost
    LMDB         it writes pages, syncs, writes its meta page, and syncs: the same rules, from one commit to the next
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from vecdb_storage.environment import Environment
from vecdb_storage.errors import DiskFull, StorageError
from vecdb_storage.files import Files

BLOCK = 4096
READING = ("open", "map", "read_at", "size", "names")
WRITING = ("write", "write_through")
TAKING_SPACE = ("create", *WRITING, "sync", "sync_directory", "rename", "link", "make_directory", "extend", "scratch")
FREEING = ("unlink", "remove_directory")
FAILING = (*READING, *TAKING_SPACE, *FREEING)


class Fault(Enum):
    EIO = "the call fails"
    ENOSPC = "the disk is full"
    SHORT = "half of the bytes are written, and then the call fails"
    DELAYED = "the call takes its time"
    BURST = "the call and the next two fail"

    @property
    def failures(self) -> int:
        """How many calls fail."""
        return {Fault.DELAYED: 0, Fault.BURST: 3}.get(self, 1)

    def may_befall(self, method: str) -> bool:
        match self:
            case Fault.ENOSPC:
                return method in TAKING_SPACE
            case Fault.SHORT:
                return method in WRITING
        return True


class Faulty(Files):
    """Fails in the n-th call of those that can fail. calls: their names, so far."""

    def __init__(self, fails_at: int = 0, fault: Fault = Fault.EIO) -> None:
        self.calls: list[str] = []
        self.fails_at, self.fault = fails_at, fault
        self._counting = threading.Lock()

    @property
    def reached(self) -> bool:
        return 0 < self.fails_at <= len(self.calls)

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        return self._failing(name, method) if name in FAILING else method

    def _failing(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with self._counting:
                self.calls.append(name)
                number = len(self.calls)
            if self.fails_at <= number < self.fails_at + max(1, self.fault.failures) and self.fails_at:
                if self.fault is Fault.SHORT and name in WRITING:
                    fd, data, path = arguments
                    method(fd, memoryview(data).cast("B")[: len(data) // 2], path)
                if self.fault is Fault.DELAYED:
                    time.sleep(0.005)
                elif self.fault is Fault.ENOSPC:
                    raise DiskFull(f"injected into {name}")
                else:
                    raise StorageError(f"injected into {name}")
            return method(*arguments, **named)

        return call


class Unsynced(Files):
    """Files of a disk that nobody will cut off from power."""

    def sync(self, fd: int, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None: ...


# -- the journal -----------------------------------------------------------------------------------------

ROOT = 0
Place = tuple[int, str]  # inode of a directory, and a name in it


@dataclass(frozen=True)
class Write:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Extend:
    """The file is at least so long."""

    inode: int
    length: int


@dataclass(frozen=True)
class Names:
    """Names that come and go together. gone, made: place -> inode."""

    made: dict[Place, int] = field(default_factory=dict)
    gone: tuple[Place, ...] = ()

    @property
    def directories(self) -> set[int]:
        return {directory for directory, _ in (*self.made, *self.gone)}


@dataclass(frozen=True)
class Sync:
    """Of a file or a directory."""

    inode: int


@dataclass(frozen=True)
class Lost:
    """A sync of the file failed: what it was to write may never get there, whatever later syncs say."""

    inode: int


@dataclass(frozen=True)
class Note:
    """What the test wants to know later: that something had happened by then."""

    what: Any


Effect = Write | Extend | Names
Entry = Effect | Sync | Lost | Note


class Recorder(Files):
    """Real files under `root`, an existing empty folder, and a journal of what happened to them."""

    def __init__(self, root: Path, patched: pytest.MonkeyPatch) -> None:
        self.journal: list[Entry] = []
        self.directories = {ROOT}
        self._root = root
        self._lock = threading.RLock()
        self._numbers = itertools.count(ROOT + 1)
        self._inodes: dict[Path, int] = {root: ROOT}
        self._opened: dict[int, int] = {}  # descriptor -> inode
        self._ends: dict[int, int] = {}  # descriptor -> offset of the next write
        self._foreign: dict[int, bytes] = {}  # what others than `Files` write: the bytes seen last
        self._follow_lmdb(patched)

    def note(self, what: Any) -> None:
        with self._lock:
            self.journal.append(Note(what))

    # -- names --------------------------------------------------------------------------------------

    def _place(self, path: Path) -> Place:
        return self._inodes[path.parent], path.name

    def _new(self, path: Path) -> int:
        inode = self._inodes[path] = next(self._numbers)
        if path.is_dir():
            self.directories.add(inode)
        self.journal.append(Names({self._place(path): inode}))
        return inode

    def create(self, path: Path) -> int:
        with self._lock:
            fd = super().create(path)
            # A leftover of that name was emptied; as its name is not synced anew, that is no more than a new file can be.
            self._opened[fd], self._ends[fd] = self._new(path), 0
            return fd

    def open(self, path: Path) -> int:
        with self._lock:
            fd = super().open(path)
            self._look()
            self._opened[fd] = self._inodes[path]
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._opened.pop(fd, None)
            self._ends.pop(fd, None)
            super().close(fd)

    def rename(self, old: Path, new: Path) -> None:
        with self._lock:
            self._look()
            super().rename(old, new)
            inode = self._inodes.pop(old)
            self.journal.append(Names({self._place(new): inode}, (self._place(old),)))
            self._inodes[new] = inode
            for path in [path for path in self._inodes if old in path.parents]:
                self._inodes[new / path.relative_to(old)] = self._inodes.pop(path)

    def link(self, old: Path, new: Path) -> bool:
        with self._lock:
            linked = super().link(old, new)
            if linked:
                self.journal.append(Names({self._place(new): self._inodes[old]}))
                self._inodes[new] = self._inodes[old]
            return linked

    def unlink(self, path: Path) -> None:
        with self._lock:
            super().unlink(path)
            self._gone(path)

    def remove_directory(self, path: Path) -> None:
        with self._lock:
            super().remove_directory(path)
            self._gone(path)

    def _gone(self, path: Path) -> None:
        if path in self._inodes:  # lock files are nobody's concern
            self.journal.append(Names(gone=(self._place(path),)))
            del self._inodes[path]

    def make_directory(self, path: Path) -> None:
        with self._lock:
            missing = [each for each in (path, *path.parents) if self._root in each.parents and each not in self._inodes]
            super().make_directory(path)
            for each in reversed(missing):
                self._new(each)

    # -- bytes --------------------------------------------------------------------------------------

    def write(self, fd: int, data: Any, path: Path) -> None:
        with self._lock:
            super().write(fd, data, path)
            self._written(fd, bytes(memoryview(data).cast("B")))

    def write_through(self, fd: int, data: Any, path: Path) -> None:
        with self._lock:
            super().write_through(fd, data, path)
            self._written(fd, bytes(memoryview(data).cast("B")))
            self.journal.append(Sync(self._opened[fd]))

    def _written(self, fd: int, data: bytes) -> None:
        self.journal.append(Write(self._opened[fd], self._ends[fd], data))
        self._ends[fd] += len(data)

    def extend(self, path: Path, length: int) -> None:
        with self._lock:
            self._look()
            before = path.stat().st_size
            super().extend(path, length)
            length = path.stat().st_size
            if length > before:
                inode = self._inodes[path]
                self._foreign[inode] = self._foreign[inode].ljust(length, b"\0")
                self.journal.append(Extend(inode, length))

    def sync(self, fd: int, path: Path) -> None:
        with self._lock:
            self._look()
            super().sync(fd, path)
            self.journal.append(Sync(self._opened[fd]))

    def sync_directory(self, path: Path) -> None:
        with self._lock:
            self._look()
            super().sync_directory(path)
            if path in self._inodes:
                self.journal.append(Sync(self._inodes[path]))

    # -- what LMDB does -----------------------------------------------------------------------------

    def _follow_lmdb(self, patched: pytest.MonkeyPatch) -> None:
        make, commit = Environment.__init__, Environment.commit

        def made(environment: Environment, files: Files, path: Path, **named: Any) -> None:
            if files is self and path in self._inodes:  # a copy: made by `create`, and written by LMDB
                self._foreign.setdefault(self._inodes[path], b"")
            make(environment, files, path, **named)
            if files is self:
                self._committed(path)

        def committed(environment: Environment, *arguments: Any, **named: Any) -> Any:
            try:
                return commit(environment, *arguments, **named)
            finally:
                if environment._files is self:
                    self._committed(environment.path)

        patched.setattr(Environment, "__init__", made)
        patched.setattr(Environment, "commit", committed)

    def _committed(self, path: Path) -> None:
        with self._lock:
            self._look(but=path)
            effects = list(self._differences(path))
            if not effects:
                return
            meta = [each for each in effects if isinstance(each, Write) and each.offset < 2 * BLOCK]
            sync = Sync(self._inodes[path])
            self.journal += [*(each for each in effects if each not in meta), sync]
            for page in meta:
                self.journal += [page, sync]

    def _look(self, but: Path | None = None) -> None:
        """Takes down what others than `Files` made and wrote meanwhile."""
        for folder, names, files in os.walk(self._root):
            for name in (*names, *files):
                path = Path(folder, name)
                if path.name == "LOCK" or path.name.endswith("-lock"):
                    continue
                if path not in self._inodes:
                    inode = self._new(path)
                    if path.is_file():
                        self._foreign[inode] = b""
                if path != but and self._inodes[path] in self._foreign:
                    self.journal += self._differences(path)

    def _differences(self, path: Path) -> Iterator[Effect]:
        """What was written to a foreign file since the last look, page by page."""
        inode = self._inodes[path]
        old, new = self._foreign[inode], path.read_bytes()
        if old == new:
            return
        self._foreign[inode] = new
        if len(new) > len(old):
            yield Extend(inode, len(new))
            old = old.ljust(len(new), b"\0")
        for offset in range(0, len(new), BLOCK):
            if old[offset : offset + BLOCK] != new[offset : offset + BLOCK]:
                yield Write(inode, offset, new[offset : offset + BLOCK])


class FailingSync(Recorder):
    """A Recorder whose n-th sync fails, of a file or a directory. syncs: how many there were."""

    def __init__(self, root: Path, patched: pytest.MonkeyPatch, fails_at: int) -> None:
        super().__init__(root, patched)
        self.syncs, self._fails_at = 0, fails_at

    def sync(self, fd: int, path: Path) -> None:
        self.syncs += 1
        if self.syncs == self._fails_at:
            with self._lock:
                self.journal.append(Lost(self._opened[fd]))
            raise StorageError(f"injected into sync of {path.name}")
        super().sync(fd, path)

    def sync_directory(self, path: Path) -> None:
        self.syncs += 1
        if self.syncs == self._fails_at:
            raise StorageError(f"injected into sync of {path.name}")
        super().sync_directory(path)


# -- power cuts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One effect that the disk was asked for and has not promised, and how much of it is there after all.

    blocks: of a write, those that are there; None for all.
    """

    effect: Effect
    blocks: frozenset[int] | None = None


class Disk:
    """What is durable after a part of the journal, and what is on its way."""

    def __init__(self, directories: set[int]) -> None:
        self._directories = directories
        self._files: dict[int, bytearray] = {}
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self.pending: list[Effect] = []
        self._syncs = 0  # that made something durable

    def follow(self, entry: Entry) -> None:
        """The next entry of the journal."""
        if isinstance(entry, Sync):
            pending, self.pending = self.pending, []
            self._syncs += 1
            for effect in pending:
                if self._concerns(effect, entry.inode):
                    self._apply(Found(effect), self._files, self._names)
                else:
                    self.pending.append(effect)
        elif isinstance(entry, Lost):
            self.pending = [each for each in self.pending if isinstance(each, Names) or each.inode != entry.inode]
        elif not isinstance(entry, Note):
            self.pending.append(entry)

    @staticmethod
    def _concerns(effect: Effect, inode: int) -> bool:
        return inode in effect.directories if isinstance(effect, Names) else effect.inode == inode

    @staticmethod
    def _apply(found: Found, files: dict[int, bytearray], names: dict[int, dict[str, int]]) -> None:
        match found.effect:
            case Names(made, gone):
                for directory, name in gone:
                    names.setdefault(directory, {}).pop(name, None)
                for (directory, name), inode in made.items():
                    names.setdefault(directory, {})[name] = inode
            case Extend(inode, length):
                content = files.setdefault(inode, bytearray())
                content.extend(bytes(max(0, length - len(content))))
            case Write(inode, offset, data):
                content = files.setdefault(inode, bytearray())
                for block in range(offset // BLOCK, -(-(offset + len(data)) // BLOCK)):
                    if found.blocks is None or block in found.blocks:
                        start, stop = max(offset, block * BLOCK), min(offset + len(data), (block + 1) * BLOCK)
                        content.extend(bytes(max(0, stop - len(content))))
                        content[start:stop] = data[start - offset : stop - offset]

    def outcomes(self, chance: random.Random, several: int) -> Iterator[list[Found]]:
        """Some of the ways in which a power cut may leave the disk: least and most, each effect alone, and random ones."""
        yield []
        if not self.pending:
            return
        yield [Found(effect) for effect in self.pending]
        if len(self.pending) > 1:
            alone = self.pending if len(self.pending) <= several else chance.sample(self.pending, several)
            yield from ([Found(effect)] for effect in alone)
        for _ in range(several):
            likely = chance.random()
            yield [self._torn(effect, chance, likely) for effect in self.pending if chance.random() < likely]

    @staticmethod
    def _torn(effect: Effect, chance: random.Random, likely: float) -> Found:
        if not isinstance(effect, Write) or chance.random() < 0.3:
            return Found(effect)
        blocks = range(effect.offset // BLOCK, -(-(effect.offset + len(effect.data)) // BLOCK))
        return Found(effect, frozenset(block for block in blocks if chance.random() < likely))

    def key(self, found: list[Found]) -> object:
        """Equal for equal outcomes, now and later."""
        return self._syncs, tuple((id(each.effect), each.blocks) for each in found)

    def image(self, found: list[Found]) -> Image:
        """The directory tree that is there."""
        files = dict(self._files)
        names = {inode: dict(entries) for inode, entries in self._names.items()}
        for each in found:
            if not isinstance(each.effect, Names) and each.effect.inode in files:
                files[each.effect.inode] = bytearray(files[each.effect.inode])
            self._apply(each, files, names)
        image = Image()
        pending = [(ROOT, Path())]
        while pending:
            directory, path = pending.pop()
            image.folders.append(path)
            for name, inode in names.get(directory, {}).items():
                if inode in self._directories:
                    pending.append((inode, path / name))
                else:
                    image.files[path / name] = bytes(files.get(inode, b""))
        return image


@dataclass
class Image:
    """A directory tree, below a root."""

    folders: list[Path] = field(default_factory=list)
    files: dict[Path, bytes] = field(default_factory=dict)

    def put(self, root: Path) -> None:
        for folder in self.folders:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for path, content in self.files.items():
            (root / path).write_bytes(content)
