"""Ranges of published objects on this machine, so that they are read over the network once.

A folder of files, `ranges` under $VECDB_CACHE_DIR, $XDG_CACHE_HOME/vecdb or ~/.cache/vecdb, that all processes share. An entry
is named by a digest of its key: the object, which has the name and the check of its content and so never changes, and the
range. It is

    magic b"VECDBRNG", the 16 bytes of the key's digest, u64 xxh3 of the rest, then the bytes

written under another name, and renamed: whoever is killed leaves at most a file that nobody reads, and what does not match its
checksum counts as not there, and is deleted. No lock is taken: readers read files that may be deleted meanwhile, writers write
the same bytes. What was used longest ago goes when the limit is reached. Each process counts what it adds and looks at the
whole folder after every sixteenth of the limit, which leaves room for one other process doing so; more of them may overstep it
by a sixteenth each. A folder that cannot be written, or a full disk, is told of once, and then nothing is kept.

Safe in any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import threading
import time
from pathlib import Path

import xxhash
from vecdb_storage.arrayfile import checksum

_MAGIC = b"VECDBRNG"
_HEAD = len(_MAGIC) + 16 + 8
_PAGE = 4096  # what a file takes is counted in
_LEFT_OVER = 3600  # seconds, after which a file that was not renamed is nobody's
LIMIT = 1 << 30  # bytes, unless it is said otherwise
_log = logging.getLogger("vecdb")


def cache_folder() -> Path:
    """Where ranges are kept, unless it is said otherwise."""
    root = os.environ.get("VECDB_CACHE_DIR")
    if root is None:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vecdb")
    return Path(root) / "ranges"


class RangeCache:
    """limit: bytes that all entries may take; 0 keeps nothing."""

    def __init__(self, folder: Path, limit: int = LIMIT) -> None:
        self.folder, self.limit = folder, limit
        self._lock = threading.Lock()
        self._broken = limit <= 0
        self._added = limit  # since the folder was last looked at: all that may be there, at first
        self._number = itertools.count()

    def get(self, key: str) -> bytes | None:
        """What is kept under a key, whole and as it was written; else None."""
        digest = xxhash.xxh3_128_digest(key.encode())
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        body = data[_HEAD:]
        if data[:_HEAD] != _MAGIC + digest + checksum(body).to_bytes(8, "little"):
            self.drop(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # it was used now
        return body

    def put(self, key: str, body: bytes) -> None:
        """Keeps some bytes, if that can be."""
        size = _taken(_HEAD + len(body))
        if self._broken or size > self.limit // 2:
            return
        digest = xxhash.xxh3_128_digest(key.encode())
        path = self._path(digest)
        partial = path.with_name(f"{path.name}.{os.getpid()}.{next(self._number)}.partial")
        try:
            self._make_room(size)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # what is published may be for few eyes
            with open(partial, "wb") as file:
                file.write(_MAGIC + digest + checksum(body).to_bytes(8, "little"))
                file.write(body)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            with self._lock:
                told, self._broken = self._broken, True
            if not told:
                _log.warning("nothing is kept of what is read: %s: %s", self.folder, error.strerror or error)

    def drop(self, key: str) -> None:
        """What is kept under a key is not right."""
        with contextlib.suppress(OSError):
            self._path(xxhash.xxh3_128_digest(key.encode())).unlink()

    def _path(self, digest: bytes) -> Path:
        name = digest.hex()
        return self.folder / name[:2] / name

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._added += size
            if self._added <= self.limit // 16:
                return
            self._added = size
            self._evict(self.limit - self.limit // 8 - size)

    def _evict(self, most: int) -> None:
        """Deletes what was used longest ago until so many bytes are left."""
        entries, taken, now = [], 0, time.time()
        for folder in _entries(self.folder):
            for entry in _entries(folder.path) if folder.is_dir() else ():
                with contextlib.suppress(OSError):  # another process deleted it
                    status = entry.stat()
                    if entry.name.endswith(".partial") and now - status.st_mtime > _LEFT_OVER:
                        os.unlink(entry.path)
                        continue
                    entries.append((status.st_mtime, _taken(status.st_size), entry.path))
                    taken += _taken(status.st_size)
        for _, size, path in sorted(entries):
            if taken <= most:
                break
            with contextlib.suppress(OSError):
                os.unlink(path)
            taken -= size


def _taken(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []
