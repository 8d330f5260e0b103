"""Named arrays in one immutable file: the container of segments, and, in memory, of log records.

A file is a 64-byte header, the arrays one after another (each at a 64-byte boundary, so that kernels read them
where they lie), a JSON directory of them, and a 64-byte footer that says where the directory is. FORMAT.md
gives every byte. Arrays carry an xxh3 for each 4 MiB block. A file is written once, front to back, under a
temporary name, synced, and renamed; after that nobody writes to it, so an open `ArrayFile` may be read from
any thread.
"""

from __future__ import annotations

import math
import mmap
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from .errors import Corruption, NewerFormat, NotFound
from .files import Buffer, Files

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

VERSION = 1
BLOCK = 4 << 20
ALIGNMENT = 64
_HEADER = struct.Struct("<8sI4x16sQ16xQ")  # magic, version, store uuid, transaction at which it was begun, xxh3
_FOOTER = struct.Struct("<8sIIQQQ16sQ")  # magic, version, zero, offset, length, xxh3 of directory, store uuid, xxh3
_MAGIC, _END = b"VECDBARR", b"VECDBEND"
_DTYPES = {
    np.dtype(kind).str: np.dtype(kind) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "f2", "f4", "f8")
}
_STRANGE = (ValueError, KeyError, TypeError)  # what reading a directory that is none raises


def checksum(data: Any) -> int:
    """The 64-bit xxh3 of some bytes."""
    return int(xxhash.xxh3_64_intdigest(data))


def _padding(length: int, alignment: int = ALIGNMENT) -> int:
    return -length % alignment


def _entry(name: str, array: Array, offset: int) -> dict[str, Any]:
    return {"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "offset": offset, "bytes": array.nbytes}


def _bytes_of(array: Array) -> memoryview:
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def pack(meta: dict[str, Any], arrays: Arrays) -> bytes:
    """Arrays as one string of bytes, for a log record; whoever stores it adds the checksum."""
    entries: list[dict[str, Any]] = []
    parts: list[Buffer] = []
    offset = 0
    for name, array in arrays.items():
        entries.append(_entry(name, array, offset))
        pad = _padding(array.nbytes, 8)
        parts += [np.ascontiguousarray(array).data, bytes(pad)]
        offset += array.nbytes + pad
    head = orjson.dumps({"meta": meta, "arrays": entries})
    head += b" " * _padding(8 + len(head), 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The inverse of `pack`; the arrays are views of `data`. Raises Corruption."""
    length = int.from_bytes(data[:8], "little")
    start = 8 + length
    try:
        directory = _directory(data[8:start])
        return directory["meta"], {e["name"]: _view(data, e, start) for e in directory["arrays"]}
    except _STRANGE as error:
        raise Corruption(f"a record has a directory of arrays that cannot be right: {error!r}") from error


def _directory(text: bytes) -> dict[str, Any]:
    """A directory's JSON. Raises ValueError, KeyError or TypeError if it is none; `_view` looks at its entries."""
    parsed: dict[str, Any] = orjson.loads(text)
    names = [entry["name"] for entry in parsed["arrays"]]
    if not isinstance(parsed["meta"], dict) or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError("it has no meta, or arrays without names of their own")
    return parsed


def _view(data: Any, entry: dict[str, Any], start: int = 0) -> Array:
    """The array that an entry describes. Raises ValueError, KeyError or TypeError where it does not fit itself or the data."""
    dtype, shape, length, offset = _DTYPES[entry["dtype"]], entry["shape"], entry["bytes"], entry["offset"]
    if not all(type(number) is int and number >= 0 for number in (*shape, length, offset)):
        raise ValueError(f"{entry['name']} has strange numbers")
    if math.prod(shape) * dtype.itemsize != length or start + offset + length > len(data):
        raise ValueError(f"{entry['name']} has no room for its shape")
    if length == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype, length // dtype.itemsize, start + offset).reshape(shape)


def check_ends(offsets: Array, data: Array, name: str) -> None:
    """Strings end to end: offsets (n + 1,) u64, from the beginning of data, (bytes,) u8, to its end. Raises Corruption."""
    right = offsets.dtype == np.uint64 and offsets.ndim == 1 and len(offsets) and data.dtype == np.uint8 and data.ndim == 1
    if not right or offsets[0] or int(offsets[-1]) != len(data) or np.any(offsets[1:] < offsets[:-1]):
        raise Corruption("the places of its strings do not fit them", array=name)


class ArrayWriter:
    """Writes one file front to back. Nothing of it can be seen under its own name until `finish` returns.

    Not thread-safe, but may be handed from one thread to another between calls.
    """

    def __init__(self, files: Files, path: Path, store: bytes, begun: int, temporary: Path | None = None) -> None:
        """begun: the newest LMDB transaction, by which a leftover is told from a newer file. temporary: its name till then."""
        self._files, self._path, self._store = files, path, store
        self._temporary = temporary or path.with_name(path.name + ".tmp")
        self._fd = files.create(self._temporary)
        self._entries: list[dict[str, Any]] = []
        self._offset = 0
        self._hasher = xxhash.xxh3_64()
        self._sums: list[int] = []
        self._filled = self._start = 0  # bytes of the block, and offset of the array, that are being written
        try:
            self._put(_header(store, begun))
        except BaseException:
            self.abandon()
            raise

    @property
    def path(self) -> Path:
        """The name it will have."""
        return self._path

    @property
    def offset(self) -> int:
        """Bytes written so far."""
        return self._offset

    def _put(self, data: Buffer) -> None:
        self._files.write(self._fd, data, self._temporary)
        self._offset += len(data)

    def add(self, name: str, array: Array) -> None:
        """Appends an array; its blocks are checksummed while they are in cache."""
        self.add_parts(name, array.dtype, array.shape, [array])

    def add_parts(self, name: str, dtype: np.dtype[Any], shape: Sequence[int], parts: Iterable[Array]) -> None:
        """Appends an array whose rows come in several, so that they need never be in memory together."""
        self.begin()
        for part in parts:
            self.extend(part)
        self.end(name, dtype, shape)

    def begin(self) -> None:
        """The bytes that follow, up to `end`, are one array."""
        self._put(bytes(_padding(self._offset)))
        self._start, self._sums = self._offset, []

    def extend(self, part: Array) -> None:
        """More of the array that was begun."""
        view = _bytes_of(part)
        while len(view):
            piece = view[: BLOCK - self._filled]
            view = view[len(piece) :]
            self._hasher.update(piece)
            self._put(piece)
            self._filled += len(piece)
            if self._filled == BLOCK:
                self._end_block()
                self._files.start_writeback(self._fd, self._offset - BLOCK, BLOCK)

    def extend_through(self, part: Array) -> None:
        """`extend` and `sync`, as one call of the system."""
        self.write_through(part)
        self.count(part)

    def write_through(self, part: Array) -> None:
        """The first half of `extend_through`, after which the part is on disk. The other half is `count`."""
        view = _bytes_of(part)
        self._files.write_through(self._fd, view, self._temporary)
        self._offset += len(view)

    def count(self, part: Array) -> None:
        """The checksums of what `write_through` has written."""
        view = _bytes_of(part)
        while len(view):
            piece = view[: BLOCK - self._filled]
            view = view[len(piece) :]
            self._hasher.update(piece)
            self._filled += len(piece)
            if self._filled == BLOCK:
                self._end_block()

    def _end_block(self) -> None:
        self._sums.append(self._hasher.intdigest())
        self._hasher.reset()
        self._filled = 0

    def end(self, name: str, dtype: np.dtype[Any], shape: Sequence[int]) -> None:
        """The array that was begun is complete."""
        if self._filled:
            self._end_block()
        length = self._offset - self._start
        entry = {"name": name, "dtype": dtype.str, "shape": list(shape), "offset": self._start, "bytes": length}
        self._entries.append({**entry, "xxh3": self._sums})

    def map(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> Array:
        """What is written from `offset` on, or will have been when somebody reads it, mapped from the unfinished file."""
        return mapped(self._files, self._fd, self._temporary, offset, dtype, shape)

    def sync(self) -> None:
        """Sends what was added so far to the disk, so that less is left for `finish`."""
        self._files.sync(self._fd, self._temporary)

    def finish(self, meta: dict[str, Any]) -> int:
        """Directory, footer, sync, rename, sync of the folder. Returns the file's length in bytes."""
        self._put(bytes(_padding(self._offset)))
        directory = orjson.dumps({"meta": meta, "arrays": self._entries})
        offset = self._offset
        self._put(directory)
        self._put(bytes(_padding(self._offset)))
        footer = _FOOTER.pack(_END, VERSION, 0, offset, len(directory), checksum(directory), self._store, 0)[:-8]
        self._put(footer + checksum(footer).to_bytes(8, "little"))
        self._files.sync(self._fd, self._temporary)
        self._files.close(self._fd)
        self._fd = -1
        self._files.rename(self._temporary, self._path)
        self._files.sync_directory(self._path.parent)
        return self._offset

    def close(self) -> None:
        """Leaves an unfinished file as it is; harmless after `finish`."""
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def abandon(self) -> None:
        """Leaves no trace of an unfinished file; harmless after `finish`."""
        if self._fd >= 0:
            self.close()
            with suppress(Exception):  # the next writer to open the store deletes it
                self._files.unlink(self._temporary)


def _header(store: bytes, begun: int) -> bytes:
    head = _HEADER.pack(_MAGIC, VERSION, store, begun, 0)[:-8]
    return head + checksum(head).to_bytes(8, "little")


def begun_at(files: Files, path: Path, store: bytes) -> int | None:
    """The transaction at which a file of this store was begun, finished or not; None for any other file.

    0 when not even the header got to the disk.
    """
    fd = files.open(path)
    try:
        head = files.read_at(fd, 0, _HEADER.size, path)
    finally:
        files.close(fd)
    if len(head) < _HEADER.size or not any(head):
        return 0
    _, _, _, begun, _ = _HEADER.unpack(head)
    return int(begun) if head == _header(store, begun) else None


def mapped(files: Files, fd: int, path: Path, offset: int, dtype: np.dtype[Any], shape: tuple[int, int]) -> Array:
    """Some rows in the middle of a file, mapped read-only."""
    length = shape[0] * shape[1] * dtype.itemsize
    lead = offset % mmap.ALLOCATIONGRANULARITY
    view = files.map(fd, lead + length, path, offset - lead)
    return np.frombuffer(view, dtype, shape[0] * shape[1], lead).reshape(shape)


@dataclass
class _Checked:
    """Which blocks of one array have been compared with their checksums."""

    entry: dict[str, Any]
    done: npt.NDArray[np.bool_]
    complete: bool = False  # all are, so that nobody need look


class ArrayFile:
    """An array file mapped into memory. Blocks are checked against their xxh3 before their first use."""

    def __init__(self, files: Files, path: Path, store: bytes | None = None, *, check_header: bool = True) -> None:
        """store: the uuid the footer must carry. check_header: false to save what can be saved without it.

        Raises NotFound, Corruption, NewerFormat or StorageError.
        """
        self.path, self._files = path, files
        self._lock = threading.Lock()
        fd = files.open(path)
        try:
            self.size = files.size(path)
            directory = self._read_directory(fd, store, check_header)
            self.meta: dict[str, Any] = directory["meta"]
            self._map = files.map(fd, self.size, path)
        finally:
            files.close(fd)
        self._arrays: dict[str, Array] = {}
        self._checked: dict[str, _Checked] = {}
        try:
            for entry in directory["arrays"]:
                self._arrays[entry["name"]] = _view(self._map, entry)
                blocks = _blocks(entry)
                self._checked[entry["name"]] = _Checked(entry, np.zeros(blocks, np.bool_), complete=blocks == 0)
        except _STRANGE as error:
            raise Corruption(f"the directory of arrays cannot be right: {error!r}", file=str(path)) from error

    def _read_directory(self, fd: int, store: bytes | None, check_header: bool) -> dict[str, Any]:
        name = str(self.path)
        if self.size < _HEADER.size + _FOOTER.size:
            raise Corruption(f"{self.size} bytes are too few for an array file; it was cut short", file=name)
        footer = self._files.read_at(fd, self.size - _FOOTER.size, _FOOTER.size, self.path)
        magic, version, _, offset, length, expected, uuid, own = _FOOTER.unpack(footer)
        if magic != _END or own != checksum(footer[:-8]):
            raise Corruption("the footer is damaged or missing; the file was cut short or overwritten", file=name)
        if version > VERSION:
            raise NewerFormat(f"{name} has format {version}; this vecdb reads up to {VERSION}", needs=f"format {version}")
        header = self._files.read_at(fd, 0, _HEADER.size, self.path)
        if check_header and header != _header(uuid, _HEADER.unpack(header)[3]):
            raise Corruption("the header is damaged", file=name)
        if store is not None and uuid != store:
            raise Corruption(f"it belongs to another store ({uuid.hex()})", file=name)
        if offset + length > self.size:
            raise Corruption("the directory of arrays reaches past the end of the file", file=name)
        directory = self._files.read_at(fd, offset, length, self.path)
        if checksum(directory) != expected:
            raise Corruption("the directory of arrays is damaged", file=name)
        try:
            return _directory(directory)
        except _STRANGE as error:
            raise Corruption(f"the directory of arrays cannot be right: {error!r}", file=name) from error

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def names(self) -> Iterator[str]:
        return iter(self._arrays)

    def entry(self, name: str) -> dict[str, Any]:
        """What the directory says of an array."""
        return self._checked[name].entry

    def unchecked(self, name: str) -> Array:
        """The array as it lies on disk; for arrays whose blocks the caller checks as it goes."""
        if name not in self._arrays:
            raise _Absent("the file has no such array", file=str(self.path), array=name)
        return self._arrays[name]

    def array(self, name: str) -> Array:
        """The array, all of its blocks checked. Raises Corruption naming file, array and block."""
        array = self.unchecked(name)
        self.check(name, 0, array.nbytes)
        return array

    def check(self, name: str, start: int, stop: int) -> None:
        """Compares the blocks under bytes start..stop of an array with their checksums, once each."""
        checked = self._checked[name]
        if checked.complete:
            return
        first, last = start // BLOCK, -(-stop // BLOCK)
        if checked.done[first:last].all():
            return
        with self._lock:
            for block in range(first, last):
                if not checked.done[block]:
                    self._check_block(checked.entry, block)
                    checked.done[block] = True
            checked.complete = bool(checked.done.all())

    def _check_block(self, entry: dict[str, Any], block: int) -> None:
        start = block * BLOCK
        length = min(BLOCK, entry["bytes"] - start)
        data = self._read(entry["offset"] + start, length)
        if len(data) != length or checksum(data) != entry["xxh3"][block]:
            raise Corruption(
                "the bytes are not what was written; restore this file from a backup, or quarantine the segment",
                file=str(self.path), array=entry["name"], block=block,
            )  # fmt: skip

    def verify(self) -> Iterator[Corruption]:
        """Reads every block from disk again and yields what does not match."""
        fd = self._files.open(self.path)
        try:
            for name, checked in self._checked.items():
                for block in range(len(checked.entry["xxh3"])):
                    start = block * BLOCK
                    length = min(BLOCK, checked.entry["bytes"] - start)
                    data = self._files.read_at(fd, checked.entry["offset"] + start, length, self.path)
                    if checksum(data) != checked.entry["xxh3"][block]:
                        yield Corruption("checksum mismatch", file=str(self.path), array=name, block=block)
        finally:
            self._files.close(fd)

    def _read(self, offset: int, length: int) -> bytes:
        """By pread and not through the mapping, as a read error is then an error and not a SIGBUS."""
        try:
            fd = self._files.open(self.path)
        except NotFound:  # it was deleted, and whoever holds it reads on
            return bytes(self._map[offset : offset + length])
        try:
            return self._files.read_at(fd, offset, length, self.path)
        finally:
            self._files.close(fd)


def _blocks(entry: dict[str, Any]) -> int:
    """How many blocks an array in a file has; each has a checksum, and kernels read arrays where they lie."""
    sums = entry["xxh3"]
    if len(sums) != -(-entry["bytes"] // BLOCK) or not all(type(one) is int for one in sums) or entry["offset"] % ALIGNMENT:
        raise ValueError(f"{entry['name']} has another number of checksums than of blocks, or lies across")
    return len(sums)


class _Absent(Corruption, KeyError):
    """For whoever wants an array that belongs to every such file, damage; for a Mapping, a key that is not there."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0])


class CheckedArrays(Mapping[str, Array]):
    """The file's arrays by name, each checked against its checksums when it is first asked for."""

    def __init__(self, file: ArrayFile) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Array:
        return self._file.array(name)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __iter__(self) -> Iterator[str]:
        return self._file.names()

    def __len__(self) -> int:
        return sum(1 for _ in self._file.names())
