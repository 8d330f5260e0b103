"""The only door to the file system: every byte the engine writes or reads outside LMDB passes through here.

`Files` is the real one. Tests hand the store a subclass that fails, cuts short, delays or loses the n-th
call; so each method is one system call, or a loop of one, and nothing else in this package imports `os` for
input or output. An OSError leaves as a typed error that names the file. Safe in any thread.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

from .errors import DiskFull, NotFound, StorageError

Buffer = bytes | bytearray | memoryview
Progress = Callable[[int, int], None]  # of long work: bytes done, of all

_NETWORK_FILE_SYSTEMS = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "9p",
    "ceph",
    "glusterfs",
    "lustre",
    "fuse.sshfs",
}


_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap = _libc.mmap, _libc.munmap
_mmap.restype, _MAP_FAILED = ctypes.c_void_p, ctypes.c_void_p(-1).value
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class typed:  # noqa: N801 (it reads as a verb; a class, since each small commit passes here several times)
    """Turns an OSError met in the block into StorageError, DiskFull or NotFound, naming `path`."""

    __slots__ = ("_path", "_verb")

    def __init__(self, path: str | Path, verb: str) -> None:
        self._path, self._verb = path, verb

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        path = self._path
        message = f"cannot {self._verb} {path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{message}; free some space and try again", file=str(path)) from error
        if error.errno == errno.ENOENT:
            raise NotFound(message) from error
        raise StorageError(message, file=str(path)) from error


def _allocate(fd: int, length: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, length)
    elif os.fstat(fd).st_size < length:
        os.ftruncate(fd, length)


def _mapped(fd: int, length: int, protection: int, offset: int) -> ctypes.Array[ctypes.c_ubyte]:
    address = _mmap(None, length, protection, mmap.MAP_SHARED, fd, offset)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    memory = (ctypes.c_ubyte * length).from_address(address)
    weakref.finalize(memory, _munmap, address, length).atexit = False  # at the end, threads may still read it
    return memory


class Files:
    """The operating system's files. Methods raise StorageError, DiskFull or NotFound. written: bytes so far, for metrics."""

    written = 0

    def create(self, path: Path) -> int:
        """A descriptor on a new empty file; an old one of that name is a leftover and is replaced."""
        with typed(path, "create"):
            return os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o644)

    def open(self, path: Path) -> int:
        with typed(path, "open"):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: Buffer, path: Path) -> None:
        """All of `data` at the end of what was written."""
        view = memoryview(data).cast("B")
        self.written += len(view)
        with typed(path, "write"):
            while len(view):
                view = view[os.write(fd, view) :]

    def write_through(self, fd: int, data: Buffer, path: Path) -> None:
        """`write` and `sync` in one, without the interpreter between them where the system can."""
        view = memoryview(data).cast("B")
        if not hasattr(os, "RWF_DSYNC"):
            self.write(fd, view, path)
            self.sync(fd, path)
            return
        self.written += len(view)
        with typed(path, "write"):
            while len(view):
                view = view[os.pwritev(fd, [view], -1, os.RWF_DSYNC) :]  # -1: at the end of what was written

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        """Asks the kernel to begin writing a finished range, so that the sync at the end has less to wait for."""
        if hasattr(os, "posix_fadvise"):
            # DONTNEED on dirty pages starts their write-out and leaves them cached until it is done.
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    def sync(self, fd: int, path: Path) -> None:
        """Returns when the file's bytes and length would survive a power cut."""
        with typed(path, "sync"):
            if sys.platform == "darwin":
                import fcntl

                fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            else:
                os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        """Makes renames and new names in `path` survive a power cut."""
        with typed(path, "sync"):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        with typed(old, "rename"):
            os.rename(old, new)

    def link(self, old: Path, new: Path) -> bool:
        """Another name for a file, in the place of any old one. False where the file system, or a limit of it, forbids that."""
        with typed(old, "link"):
            try:
                if os.path.lexists(new):
                    os.unlink(new)
                os.link(old, new)
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                    return False
                raise
            return True

    def unlink(self, path: Path) -> None:
        with typed(path, "delete"):
            os.unlink(path)

    def remove_directory(self, path: Path) -> None:
        with typed(path, "delete"):
            os.rmdir(path)

    def make_directory(self, path: Path) -> None:
        with typed(path, "create"):
            os.makedirs(path, exist_ok=True)

    def names(self, path: Path) -> list[str]:
        """What a directory holds, sorted; nothing when it is not there."""
        with typed(path, "list"):
            try:
                return sorted(os.listdir(path))
            except FileNotFoundError:
                return []

    def exists(self, path: Path) -> bool:
        return os.path.exists(path)

    def size(self, path: Path) -> int:
        with typed(path, "read"):
            return os.stat(path).st_size

    def size_if_there(self, path: Path) -> int:
        """The length of a file; 0 for what is none, or is gone."""
        try:
            status = os.stat(path)
        except OSError:
            return 0
        return status.st_size if stat.S_ISREG(status.st_mode) else 0

    def extend(self, path: Path, length: int) -> None:
        """Makes a file at least `length` bytes long, never shorter, with space on the disk where the system can promise it."""
        with typed(path, "extend"):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_size < length:
                    _allocate(fd, length)
            finally:
                os.close(fd)

    def reserve(self, path: Path, length: int) -> None:
        """Space on the disk for the first bytes of a file that may be long enough, or not be there, and whose bytes stay."""
        with typed(path, "extend"):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _allocate(fd, length)
            finally:
                os.close(fd)

    def truncate(self, path: Path, length: int) -> None:
        with typed(path, "shorten"):
            os.truncate(path, length)

    def free_bytes(self, path: Path) -> int:
        """What an ordinary user may still write to the file system of `path`."""
        with typed(path, "look at"):
            status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def read_at(self, fd: int, offset: int, length: int, path: Path) -> bytes:
        """`length` bytes from `offset`, fewer only at the end of the file."""
        parts = []
        with typed(path, "read"):
            while length:
                part = os.pread(fd, length, offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def map(self, fd: int, length: int, path: Path, offset: int = 0) -> memoryview:
        """Bytes of a file as memory that cannot be written to; unmapped when nobody refers to it any more.

        offset: a multiple of mmap.ALLOCATIONGRANULARITY. Python's own mmap keeps a descriptor for each mapping, of which a
        process may have no more than 1,024; this one keeps none.
        """
        if not length:
            return memoryview(b"")
        with typed(path, "map"):
            return memoryview(_mapped(fd, length, mmap.PROT_READ, offset)).toreadonly()

    def scratch(self, folder: Path, length: int) -> memoryview:
        """Zeros that may be written to, in a file without a name; gone when nobody refers to them any more.

        A StorageError where the system has no such files.
        """
        with typed(folder, "make room in"):
            if not hasattr(os, "O_TMPFILE"):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                _allocate(fd, length)  # and not as it is written, where a full disk would end the process
                return memoryview(_mapped(fd, length, mmap.PROT_READ | mmap.PROT_WRITE, 0))
            finally:
                os.close(fd)

    def read(self, path: Path) -> bytes:
        fd = self.open(path)
        try:
            return self.read_at(fd, 0, os.fstat(fd).st_size, path)
        finally:
            self.close(fd)

    def patch(self, path: Path, offset: int, data: bytes) -> None:
        """Changes bytes in the middle of a file, and syncs them."""
        with typed(path, "write"):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                view = memoryview(data)
                while len(view):
                    done = os.pwrite(fd, view, offset)
                    view, offset = view[done:], offset + done
                os.fsync(fd)
            finally:
                os.close(fd)

    def replace(self, path: Path, data: Buffer) -> None:
        """The whole file anew: after a crash either the old bytes are there or the new."""
        temporary = path.with_name(path.name + ".tmp")
        fd = self.create(temporary)
        try:
            self.write(fd, data, temporary)
            self.sync(fd, temporary)
        finally:
            self.close(fd)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def on_network(self, path: Path) -> str | None:
        """The file system's name if `path` lies on a network, where flock and LMDB cannot be trusted."""
        try:
            mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
        except OSError:  # not Linux
            return None
        best, kind = "", ""
        real = os.path.realpath(path)
        for line in mounts:
            fields = line.split(" ")
            point = fields[1].replace("\\040", " ")
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, fields[2]
        return kind if kind in _NETWORK_FILE_SYSTEMS else None
