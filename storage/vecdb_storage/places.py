"""Where backups lie: a directory, or anything that fsspec has a URL for (`s3://bucket/path`, `memory://x`).

A Place holds files by path relative to it. Local files are synced before a call returns; of a remote store that is the
store's own promise. Safe in any thread.
"""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from .errors import InvalidInput, NotFound, StorageError, Unsupported
from .files import Buffer, Files

PIECE = 4 << 20


class Place(Protocol):
    location: str

    def names(self) -> list[str]:
        """What it holds at its top, sorted; nothing when it is not there."""

    def read(self, path: str) -> Iterator[bytes]:
        """The bytes of a file, in pieces. Raises NotFound, StorageError."""

    def size(self, path: str) -> int:
        """Bytes of a file. Raises NotFound, StorageError."""

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Bytes start..stop of a file; fewer where it ends before. Raises NotFound, StorageError."""

    def write(self, path: str, pieces: Iterable[Buffer]) -> None:
        """A whole file anew."""

    def finish(self, path: str, data: bytes) -> None:
        """The file that makes the rest count: it is there as a whole or not at all, and after everything else."""

    def remove(self, path: str) -> None:
        """Deletes a file."""

    def scratch(self) -> Path:
        """A local folder for a file on its way here, to `leave` afterwards."""

    def leave(self, scratch: Path) -> None: ...

    def sibling(self, location: str) -> Place:
        """Another place of this kind; its location may be relative to this one's."""


class Folder:
    """A directory of this machine."""

    def __init__(self, files: Files, path: Path) -> None:
        self._files, self.path = files, path
        self.location = str(path)
        self._made: set[Path] = set()

    def names(self) -> list[str]:
        return self._files.names(self.path)

    def read(self, path: str) -> Iterator[bytes]:
        file = self.path / path
        fd = self._files.open(file)
        try:
            offset = 0
            while piece := self._files.read_at(fd, offset, PIECE, file):
                yield piece
                offset += len(piece)
        finally:
            self._files.close(fd)

    def size(self, path: str) -> int:
        return self._files.size(self.path / path)

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        file = self.path / path
        fd = self._files.open(file)
        try:
            return self._files.read_at(fd, start, stop - start, file)
        finally:
            self._files.close(fd)

    def make(self, path: str) -> None:
        """A directory."""
        self._make(self.path / path)

    def _make(self, folder: Path) -> None:
        """A directory and those above it, each made known to the one that holds it."""
        if folder in self._made:
            return
        if not self._files.exists(folder):
            self._make(folder.parent)
            self._files.make_directory(folder)
            self._files.sync_directory(folder.parent)
        self._made.add(folder)

    def write(self, path: str, pieces: Iterable[Buffer]) -> None:
        file = self.path / path
        self._make(file.parent)
        fd = self._files.create(file)
        try:
            for piece in pieces:
                self._files.write(fd, piece, file)
            self._files.sync(fd, file)
        finally:
            self._files.close(fd)

    def link(self, path: str, source: Path) -> bool:
        """A hard link to a file that will never change. False where the file system cannot do that."""
        self._make((self.path / path).parent)
        return self._files.link(source, self.path / path)

    def finish(self, path: str, data: bytes) -> None:
        self._make((self.path / path).parent)
        for folder in sorted(self._made):
            if folder == self.path or self.path in folder.parents:
                self._files.sync_directory(folder)
        self._files.replace(self.path / path, data)

    def remove(self, path: str) -> None:
        self._files.unlink(self.path / path)

    def scratch(self) -> Path:
        self._make(self.path)
        return self.path

    def leave(self, scratch: Path) -> None: ...

    def sibling(self, location: str) -> Folder:
        return Folder(self._files, Path(posixpath.normpath(self.path / location)))


class Remote:
    """A URL, by fsspec."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise Unsupported(f"{url} needs fsspec: pip install 'vecdb[cloud]'") from error
        self.location, self._options = url.rstrip("/"), options
        try:
            self._system, self._root = fsspec.core.url_to_fs(self.location, **options)
        except ImportError as error:
            raise Unsupported(f"{url}: {error}; pip install 'vecdb[cloud]' brings what buckets need") from error
        except ValueError as error:
            raise InvalidInput(f"{url}: {error}") from error
        except Exception as error:  # some connect at once, and raise whatever their library does
            raise StorageError(f"cannot reach {url}: {error}", file=url) from error

    def names(self) -> list[str]:
        with _typed(self.location, "list"):
            if not self._system.exists(self._root):
                return []
            return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in self._system.ls(self._root, detail=False))

    def read(self, path: str) -> Iterator[bytes]:
        with _typed(f"{self.location}/{path}", "read"), self._system.open(f"{self._root}/{path}", "rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def size(self, path: str) -> int:
        with _typed(f"{self.location}/{path}", "read"):
            self._system.invalidate_cache()
            return int(self._system.size(f"{self._root}/{path}"))

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        with _typed(f"{self.location}/{path}", "read"):
            return bytes(self._system.cat_file(f"{self._root}/{path}", start=start, end=stop))

    def write(self, path: str, pieces: Iterable[Buffer]) -> None:
        with _typed(f"{self.location}/{path}", "write"):
            self._system.makedirs(f"{self._root}/{path}".rsplit("/", 1)[0], exist_ok=True)
            with self._system.open(f"{self._root}/{path}", "wb") as file:
                for piece in pieces:
                    file.write(piece)

    def finish(self, path: str, data: bytes) -> None:
        self.write(path, [data])

    def remove(self, path: str) -> None:
        with _typed(f"{self.location}/{path}", "delete"):
            self._system.rm(f"{self._root}/{path}")

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="vecdb-"))

    def leave(self, scratch: Path) -> None:
        shutil.rmtree(scratch, ignore_errors=True)

    def sibling(self, location: str) -> Remote:
        if "://" not in location:
            scheme, _, path = self.location.partition("://")
            location = f"{scheme}://{posixpath.normpath(f'{path}/{location}')}"
        return Remote(location, self._options)


class _typed:  # noqa: N801 (it reads as a verb)
    """Whatever a remote store raises becomes NotFound or StorageError."""

    def __init__(self, name: str, verb: str) -> None:
        self._name, self._verb = name, verb

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"cannot {self._verb} {self._name}: it is not there") from error
        if isinstance(error, Exception) and not isinstance(error, StorageError):
            raise StorageError(f"cannot {self._verb} {self._name}: {error}", file=self._name) from error


def place_of(files: Files, where: str | Path, options: Mapping[str, Any] | None = None) -> Place:
    """A directory, or a URL. options: for fsspec."""
    text = str(where)
    if not text:
        raise InvalidInput("the path of the backup is empty")
    if "://" in text:
        return Remote(text, options or {})
    return Folder(files, Path(text).absolute())
