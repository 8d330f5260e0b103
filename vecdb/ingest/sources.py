"""The files of an ingest: what paths, folders, globs, URLs and "-" stand for, and what tells whether a file has changed.

A Source names one file. It is opened by `open` (bytes as they are) or `open_text` (decompressed), any number of times,
except for standard input, which is opened twice: its beginning to look at, and then the whole. Local files are opened
directly, URLs by fsspec. Immutable; safe in any thread.
"""

from __future__ import annotations

import glob
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..errors import InvalidFile, InvalidInput, NotFound, Unsupported
from .reading import reading

STDIN = "-"
FORMATS = {
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow", ".arrows": "arrow",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "tsv",
    ".npy": "npy", ".npz": "npz", ".seismic": "seismic",
    ".fvecs": "fvecs", ".bvecs": "bvecs", ".ivecs": "ivecs",
    ".fbin": "fbin", ".u8bin": "u8bin", ".i8bin": "i8bin",
    ".hdf5": "hdf5", ".h5": "hdf5",
}  # fmt: skip
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_TEXTS = ("jsonl", "csv", "tsv")  # what may be compressed as a whole
_LOOKED_AT = 1 << 20  # bytes of standard input
_BLOCK = 8 << 20  # that fsspec reads ahead


class _Stdin:
    """Standard input, of which the first bytes are looked at before it is read."""

    def __init__(self) -> None:
        self._head: bytes | None = None

    def open(self) -> BinaryIO:
        if self._head is None:
            stdin: Any = sys.stdin.buffer
            self._head = stdin.read1(_LOOKED_AT)  # what has come, so that a slow pipe is not waited for
            while b"\n" not in self._head and len(self._head) < _LOOKED_AT and (more := stdin.read1(_LOOKED_AT)):
                self._head += more
            return io.BytesIO(self._head)
        head, self._head = self._head, b""
        return _Chained(head)  # type: ignore[return-value]


class _Chained:
    """What was looked at, and then the rest."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        if self._head:
            data, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
            data += sys.stdin.buffer.read() if size < 0 else b""
        else:
            data = sys.stdin.buffer.read(size)
        self._told += len(data)
        return data

    def tell(self) -> int:
        return self._told

    def readable(self) -> bool:
        return True

    def close(self) -> None: ...


@dataclass(frozen=True)
class Source:
    """One file. url: an absolute path, a URL, or "-". identity: equal as long as the file is the same. size: in bytes."""

    url: str
    format: str
    compression: str | None = None
    size: int | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)  # for fsspec
    stdin: _Stdin | None = None

    @cached_property
    def name(self) -> str:
        """For people: the path as seen from here, or the URL."""
        if self.url == STDIN:
            return "standard input"
        if self.is_remote:
            return self.url
        relative = os.path.relpath(self.url)
        return self.url if relative.startswith("..") else relative

    @property
    def is_remote(self) -> bool:
        return "://" in self.url

    @property
    def can_be_resumed(self) -> bool:
        return self.url != STDIN

    def open(self) -> BinaryIO:
        """The bytes of the file. Raises NotFound, InvalidFile."""
        if self.stdin is not None:
            return self.stdin.open()
        with reading(self.name):
            if self.is_remote:
                remote, path = _remote(self.url, self.options)
                opened: BinaryIO = remote.open(path, "rb", block_size=_BLOCK)
                return opened
            return open(self.url, "rb", buffering=0)

    def open_text(self) -> tuple[Any, BinaryIO]:
        """A stream of the decompressed bytes, and the file beneath, of which `tell` says how far it is."""
        file = self.open()
        if self.compression is None:
            return file, file
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(_Uninterrupted(file), "r"), self.compression), file

    def check_unchanged(self) -> None:
        """Raises InvalidFile if the file is not the one that it was when it was found."""
        if self.url == STDIN:
            return
        with reading(self.name):
            now = _remote_identity(self.url, self.options)[1] if self.is_remote else _identity(os.stat(self.url))
        if now != dict(self.identity):
            raise InvalidFile(
                "it was changed while it was read; what was read before is in the collection. When it is complete, say "
                "--restart to read it again from its beginning",
                file=self.name,
            )


class _Uninterrupted:
    """A file whose `read` gives all that is asked for, as decompressors expect of one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.closed = False

    def read(self, size: int = -1) -> bytes:
        return read_fully(self._file, size) if size >= 0 else self._file.read()

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self.closed = True


def read_fully(file: Any, size: int) -> bytes:
    """`size` bytes, or all that there are."""
    parts, left = [], size
    while left > 0:
        part = file.read(left)
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def find(
    patterns: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Source]:
    """The files that paths, folders, globs, URLs or "-" stand for: each once, those of a folder or glob by name.

    format: of all of them, if their names do not say it. options: for fsspec. Raises NotFound, InvalidInput, Unsupported.
    """
    if isinstance(patterns, str | os.PathLike):
        patterns = [patterns]
    if format is not None and format not in FORMATS.values():
        raise InvalidInput(f"no format is called {format!r}; there are: {', '.join(sorted(set(FORMATS.values())))}")
    found: dict[str, Source] = {}
    for pattern in patterns:
        for source in _find(os.fspath(pattern), format, options or {}):
            found.setdefault(source.url, source)
    if not found:
        raise NotFound("no files were given")
    return list(found.values())


def _find(pattern: str, format: str | None, options: Mapping[str, Any]) -> Iterator[Source]:
    if pattern == STDIN:
        if format is not None and format not in _TEXTS:
            raise InvalidInput(
                f"standard input can be {', '.join(_TEXTS)}; {format} files are read from any place: give a file"
            )
        yield Source(STDIN, format or "jsonl", stdin=_Stdin())
    elif "://" in pattern:
        yield from _find_remote(pattern, format, options)
    elif os.path.isdir(pattern):
        files = sorted(str(path) for path in Path(pattern).rglob("*") if path.is_file() and _is_data(path.relative_to(pattern)))
        if not files:
            raise NotFound(f"{pattern}: no file in this folder has a name that ends as one that can be read: {_endings()}")
        yield from (_local(file, format) for file in files)
    elif os.path.exists(pattern):
        yield _local(pattern, format)
    elif glob.has_magic(pattern):
        files = sorted(file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file))
        if not files:
            raise NotFound(f"{pattern}: no file has such a name")
        yield from (_local(file, format) for file in files)
    else:
        raise NotFound(f"{pattern}: there is no such file")


def _is_data(path: Path) -> bool:
    """Whether a file of a folder is meant: markers and hidden files, as Spark and editors leave them, are not."""
    return not any(part.startswith((".", "_")) for part in path.parts) and _format_of(path.name)[0] is not None


def _endings() -> str:
    return ", ".join(FORMATS)


def _format_of(name: str) -> tuple[str | None, str | None]:
    """Format and compression that a file's name says."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    if compression is not None:
        path = path.with_suffix("")
    return FORMATS.get(path.suffix), compression


def _settled(name: str, format: str | None) -> tuple[str, str | None]:
    said, compression = _format_of(name.split("?")[0])
    settled = format or said
    if settled is None:
        raise InvalidInput(f"{name}: its name does not say what it is; say --format, or end it in one of {_endings()}")
    if compression is not None and settled not in _TEXTS:
        raise InvalidInput(
            f"{name}: {settled} files are read from any place, so they cannot be compressed as a whole; unpack it first"
        )
    return settled, compression


def _local(path: str, format: str | None) -> Source:
    settled, compression = _settled(path, format)
    with reading(path):
        status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # to open a pipe would wait for ever
        raise InvalidInput(f"{path} is no regular file; to read a pipe, give - and --format")
    return Source(os.path.abspath(path), settled, compression, status.st_size, _identity(status))


def _identity(status: os.stat_result) -> dict[str, Any]:
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _remote(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise Unsupported(f"{url}: reading URLs needs fsspec; pip install 'vecdb[cloud]'") from None
    try:
        remote, path = url_to_fs(url, **options)
    except ImportError as error:
        raise Unsupported(f"{url}: {error}") from None
    except ValueError as error:
        raise InvalidInput(f"{url}: {error}") from None
    return remote, path


def _find_remote(pattern: str, format: str | None, options: Mapping[str, Any]) -> Iterator[Source]:
    with reading(pattern):
        remote, path = _remote(pattern, options)
        if glob.has_magic(path.split("?")[0] if pattern.startswith("http") else path):
            paths = sorted(remote.glob(path))
        elif not pattern.startswith("http") and remote.isdir(path):
            paths = sorted(each for each in remote.find(path) if _is_data(Path(each[len(path) :].lstrip("/"))))
        else:
            paths = [path]
    if not paths:
        raise NotFound(f"{pattern}: there is no file of that name that can be read")
    for each in paths:
        url = each if "://" in each else remote.unstrip_protocol(each)
        settled, compression = _settled(url, format)
        size, identity = _remote_identity(url, options)
        yield Source(url, settled, compression, size, identity, options)


def _remote_identity(url: str, options: Mapping[str, Any]) -> tuple[int | None, dict[str, Any]]:
    with reading(url):
        remote, path = _remote(url, options)
        remote.invalidate_cache()
        info = remote.info(path)
    said = {
        key: info[key]
        for key in ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "md5Hash", "generation")
        if key in info
    }
    return info.get("size"), {key: value if isinstance(value, int | float | str) else str(value) for key, value in said.items()}
