"""The LMDB environment: the one transaction on which everything that changes is decided.

Tables and keys (all integers big-endian, so that keys sort by them):

    meta        name                          "seq" (last commit, u64), "txn" (own transaction id, u64), "uuid"; of a later
                                              generation "base" (u64), of one that was left "superseded" (by which file)
    catalog     collection name               JSON: uuid, schema
    manifest    collection uuid (16)          JSON: see manifest.py
    tombstones  segment (26) chunk (u32)      8 KiB bitmap, see tombstones.py
    log         uuid (16) seq (u64) part (u32)   a slice of a log record
    garbage     file path relative to the store  the transaction id that dropped it
    checkpoint  uuid (16) token               how far an ingest is; under 16 zeros writes that are applied once, see once.py

Every value begins with the xxh3 of key and rest. LMDB itself has no checksums and, when its newest meta page is
damaged, falls back to the commit before without a word: `check_before_open` refuses that. It also follows damaged pages
wherever they lead: `pages.check_tree` has looked at all of them before LMDB does. One writer thread at a time (the commit
section); readers open short transactions and never hold one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from .arrayfile import checksum
from .errors import Corruption, DiskFull, StorageError, VecdbError
from .files import Files
from .pages import check_tree, parse_meta

TABLES = ("meta", "catalog", "manifest", "tombstones", "log", "garbage", "checkpoint")
MAP_SIZE = 1 << 40
PART = 65_520 - 8  # with its checksum and LMDB's page header, a part fills sixteen pages exactly
_MOST_SLACK = 16 << 20
_READERS = 1024
_LOCK_BYTES = 64 * (_READERS - 1) + 192  # of the reader table: a slot is a cache line, and the first is in the header
_RESERVE = 1 << 20  # bytes of the file that only commits that give space back may use
_LEAST = _RESERVE // 16  # that is left even by those
_PAGE = 4096
_TREES = 8 * _PAGE  # that a commit writes anew: about a path in each of the trees that it changes, and a meta page
_LOOKS = 10  # at a file that a writer changes meanwhile
Transaction = Any
_T = TypeVar("_T")


def check_before_open(files: Files, path: Path) -> int:
    """The newest transaction. Refuses an LMDB file from which LMDB would silently show an older commit, or crash.

    Both meta pages must be sane and one transaction apart, and the file must cover the last page they name. A reader may
    look while a writer turns from one page to the other, so a bad look is repeated. Raises Corruption.
    """
    for _ in range(2):
        try:
            return _check_metas(files, path)
        except Corruption:
            time.sleep(0.002)
    return _check_metas(files, path)


def _check_metas(files: Files, path: Path) -> int:
    name = str(path)
    if not files.exists(path) or files.size(path) == 0:
        raise Corruption("VECDB names this file, but it is missing or empty; restore a backup", file=name)
    page = os.sysconf("SC_PAGE_SIZE")
    fd = files.open(path)
    try:
        head = files.read_at(fd, 0, 2 * page, path)
        length = files.size(path)
    finally:
        files.close(fd)
    transactions = []
    for number in (0, 1):
        meta = parse_meta(head[number * page : (number + 1) * page], number, name)
        transactions.append(meta.transaction)
        if (meta.last_page + 1) * page > length:
            raise Corruption(f"it was cut short: {length} bytes, but page {meta.last_page} is in use", file=name)
    if abs(transactions[0] - transactions[1]) != 1:
        raise Corruption(f"its meta pages are of transactions {transactions}, not of successive ones", file=name)
    return max(transactions)


class _Typed:
    """Turns an error of LMDB met in the block into Corruption, DiskFull or StorageError."""

    __slots__ = ("_path",)

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, lmdb.Error):
            return
        path, text = str(self._path), str(error)
        if isinstance(error, lmdb.CorruptedError | lmdb.NotFoundError):
            raise Corruption(f"LMDB: {error}", file=path) from error
        if "No space left" in text or "quota" in text or isinstance(error, lmdb.MapFullError):
            raise DiskFull(f"{path}: {text}; free some space and try again", file=path) from error
        raise StorageError(f"{path}: {text}", file=path) from error


class Environment:
    """One open LMDB environment. `sync=False` is for temporary databases only."""

    def __init__(
        self, files: Files, path: Path, *, read_only: bool, sync: bool = True, fresh: bool = False, copy_of: int | None = None
    ) -> None:
        """fresh: the file is new. copy_of: it is a copy that LMDB has just made, as of this transaction."""
        self._files, self.path, self.read_only = files, path, read_only
        self.written = 0  # bytes, about: of what was put, and of the pages of the trees above it
        self.base = 0  # LMDB numbers the transactions of a copy from 1; ours go on from those of the generation before
        if not fresh:
            newest = check_before_open(files, path)
            if not read_only:  # nobody else writes
                check_tree(files, path, newest)
        self._env = self._open(read_only, sync, lock=copy_of is None)
        self._tables: dict[str, Any] = {}
        try:
            if not read_only:
                with self._typed(), self._env.begin(write=True) as txn:
                    # Names have no checksum: a table is not made again, empty, where a damaged one has another name now.
                    self._tables = {t: self._env.open_db(t.encode(), txn=txn, create=fresh) for t in TABLES}
                    if fresh:
                        self.put(txn, "meta", b"txn", txn.id().to_bytes(8, "big"))
            else:
                self._check_beside_writer()
                with self._typed():
                    self._tables = {t: self._env.open_db(t.encode(), create=False) for t in TABLES}
            if copy_of is not None:
                self.base = copy_of
            else:
                self._check_transaction()
        except BaseException:
            self._env.close()
            raise
        self._page = os.sysconf("SC_PAGE_SIZE")

    def _check_transaction(self) -> None:
        with self.read() as txn:
            self.base = int.from_bytes(self.get(txn, "meta", b"base") or b"", "big")
            stored, expected = self.get(txn, "meta", b"txn"), self.transaction_of(txn)
            if stored is None or int.from_bytes(stored, "big") != expected:
                says = None if stored is None else int.from_bytes(stored, "big")
                raise Corruption(f"the tree of transaction {expected} says it is {says}", file=str(self.path))

    def copy(self, path: Path, txn: Transaction | None = None) -> None:
        """A compact copy, synced: the next generation. txn: the read transaction that it shows; default: the newest."""
        fd = self._files.create(path)
        try:
            with self._typed():
                self._env.copyfd(fd, compact=True, txn=txn)
        finally:
            self._files.close(fd)
        newest = self.last_transaction() if txn is None else self.transaction_of(txn)
        copied = Environment(self._files, path, read_only=False, copy_of=newest)
        try:
            copied.commit(1 << 12, lambda new: copied.put(new, "meta", b"base", newest.to_bytes(8, "big")), frees=True)
            copied.trim()
        finally:
            copied.close()

    def _open(self, read_only: bool, sync: bool, *, lock: bool = True) -> Any:
        size, lock = MAP_SIZE, lock and (not read_only or os.access(self.path.parent, os.W_OK))
        if lock:
            # LMDB maps this file and writes to the map; without blocks on a full disk, that would be a SIGBUS.
            self._files.reserve(self.path.with_name(self.path.name + "-lock"), _LOCK_BYTES)
        while True:  # meminit: what this process had in memory before must not get into unused room of pages
            try:
                with self._typed():
                    return lmdb.open(
                        str(self.path), map_size=size, subdir=False, readonly=read_only, create=not read_only,
                        max_dbs=16, max_readers=_READERS, sync=sync, metasync=sync, meminit=True,
                        readahead=False, lock=lock,
                    )  # fmt: skip
            except StorageError as error:
                if "Cannot allocate memory" not in str(error) or size <= 1 << 28:
                    raise
                size //= 2  # a limit on address space: a smaller reservation will do

    def _check_beside_writer(self) -> None:
        """The newest transaction's trees: what it reads stays as it is while it lasts.

        Two commits later its meta page is gone, and in a folder where no slot can be taken so may be its pages: look again.
        """
        for look in range(_LOOKS):
            with self.read() as txn:
                try:
                    return check_tree(self._files, self.path, txn.id())
                except Corruption:
                    if look + 1 == _LOOKS or self.last_transaction() <= self.transaction_of(txn) + 1:
                        raise

    def _typed(self) -> _Typed:
        return _Typed(self.path)

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A short read transaction."""
        with self._typed():
            try:
                txn = self._env.begin()
            except lmdb.MapResizedError:
                self._env.set_mapsize(0)
                txn = self._env.begin()
            with txn:
                yield txn

    def commit(self, room: int, write: Callable[[Transaction], _T], *, frees: bool = False) -> _T:
        """Runs `write` in one durable transaction; room: about how many bytes it will put.

        frees: it is to give space back, and may go into the reserve that other commits leave. An error before LMDB's own commit
        leaves the disk as it was. One during it has an unknown outcome: StorageError or DiskFull with outcome="unknown", after
        which the caller must reopen and look.
        """
        # The file is kept longer than its last page, so that a file that is shorter has been cut. Its space is taken ahead: a
        # full disk is then met before the commit, and syncs need not wait for the allocation of blocks.
        used = (self._env.info()["last_pgno"] + 1) * self._page
        needed, size = used + 2 * room + _RESERVE, self._files.size(self.path)
        if size < needed:
            try:
                self._files.extend(self.path, needed + min(_MOST_SLACK, needed // 2))
            except DiskFull:
                least = used + 2 * min(room, _RESERVE // 8) + _LEAST
                if not frees:
                    raise
                if size < least:
                    self._files.extend(self.path, least)
        try:
            with self._typed():
                txn = self._env.begin(write=True)
        except StorageError as error:  # LMDB gives up for good after some failures
            raise type(error)(str(error), outcome="unknown", file=str(self.path)) from error
        try:
            with self._typed():
                result = write(txn)
                self.put(txn, "meta", b"txn", self.transaction_of(txn).to_bytes(8, "big"))
        except BaseException:
            txn.abort()
            raise
        self.written += _TREES
        before = b""
        try:
            before = self._meta_pages()
            with self._typed():
                txn.commit()
        except StorageError as error:
            with suppress(VecdbError):  # if that fails, too, it is refused when it is opened again
                self._put_back(before)
            raise type(error)(f"commit failed: {error}", outcome="unknown", file=str(self.path)) from error
        finally:
            txn.abort()  # does nothing after a commit; after an interrupt before it, lets the next one begin
        return result

    def trim(self) -> None:
        """Gives back what was reserved ahead of need. For the commit section."""
        self._files.truncate(self.path, (self._env.info()["last_pgno"] + 1) * self._page + _LEAST)

    def _meta_pages(self) -> bytes:
        fd = self._files.open(self.path)
        try:
            return self._files.read_at(fd, 0, 2 * self._page, self.path)
        finally:
            self._files.close(fd)

    def _put_back(self, before: bytes) -> None:
        """After a failed commit: a meta page that is not of this commit is again what it was.

        Where its new meta page cannot be written, LMDB writes the number of the old one back, and not its roots.
        """
        now = self._meta_pages()
        for number in (0, 1):
            page = slice(number * self._page, (number + 1) * self._page)
            same = [parse_meta(pages[page], number, str(self.path)).transaction for pages in (before, now)]
            if same[0] == same[1] and before[page] != now[page]:
                self._files.patch(self.path, page.start, before[page])

    def last_transaction(self) -> int:
        """The id of the newest commit, by any process."""
        return self.base + int(self._env.info()["last_txnid"])

    def transaction_of(self, txn: Transaction) -> int:
        return self.base + int(txn.id())

    def reader_check(self) -> int:
        """Frees the reader slots of processes that died; returns how many."""
        return int(self._env.reader_check())

    def readers(self) -> int:
        """Slots of the reader table that are taken, by all processes; between two reads a process may have none."""
        return sum(line.split()[0].isdigit() for line in self._env.readers().splitlines() if line.strip())

    def get(self, txn: Transaction, table: str, key: bytes) -> bytes | None:
        value = txn.get(key, db=self._tables[table])
        return None if value is None else self._checked(table, key, value)

    def put(self, txn: Transaction, table: str, key: bytes, value: bytes | memoryview) -> None:
        """Within `commit`, which types LMDB's errors."""
        txn.put(key, b"".join([_sum(key, value), value]), db=self._tables[table])
        size = len(key) + len(value) + 24
        self.written += size if size < _PAGE // 2 else -(-size // _PAGE) * _PAGE  # what is larger has pages of its own

    def delete(self, txn: Transaction, table: str, key: bytes) -> None:
        txn.delete(key, db=self._tables[table])

    def scan(self, txn: Transaction, table: str, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with `prefix`, from prefix + start on, in order, with their values."""
        with txn.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(prefix + start):
                return
            for key, value in cursor:
                if not key.startswith(prefix):
                    return
                yield key, self._checked(table, key, value)

    def keys(
        self, txn: Transaction, table: str, prefix: bytes, most: int, *, start: bytes = b"", until: bytes | None = None
    ) -> list[bytes]:
        """Up to `most` keys that begin with `prefix`, from prefix + start on, before `until`; values are not looked at."""
        found: list[bytes] = []
        with txn.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(prefix + start):
                return found
            for key in cursor.iternext(keys=True, values=False):
                if len(found) >= most or not key.startswith(prefix) or (until is not None and key >= until):
                    break
                found.append(key)
        return found

    def records(self, txn: Transaction, table: str, prefix: bytes) -> Iterator[bytes]:
        """What `put_parts` has put, whole, by key."""
        parts: list[bytes] = []
        last = b""
        for key, part in self.scan(txn, table, prefix):
            if key[:-4] != last and parts:
                yield b"".join(parts)
                parts = []
            last = key[:-4]
            parts.append(part)
        if parts:
            yield b"".join(parts)

    def damaged(self, txn: Transaction, table: str) -> Iterator[tuple[bytes, str]]:
        """Keys whose values are not what was written, with what is wrong."""
        with txn.cursor(db=self._tables[table]) as cursor:
            for key, value in cursor:
                try:
                    self._checked(table, key, value)
                except Corruption as error:
                    yield key, str(error)

    def intact(self, txn: Transaction, table: str) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values that are what was written."""
        with txn.cursor(db=self._tables[table]) as cursor:
            for key, value in cursor:
                with suppress(Corruption):
                    yield key, self._checked(table, key, value)

    def raw(self, txn: Transaction, table: str, prefix: bytes) -> bytes:
        """Values as they lie, damaged or not, end to end."""
        parts = []
        with txn.cursor(db=self._tables[table]) as cursor:
            if cursor.set_range(prefix):
                for key, value in cursor:
                    if not key.startswith(prefix):
                        break
                    parts.append(value)
        return b"".join(parts)

    def delete_prefix(self, txn: Transaction, table: str, prefix: bytes, until: bytes | None = None) -> int:
        """Deletes the keys that begin with `prefix` (and sort before `until`, if given); returns how many."""
        count = 0
        with txn.cursor(db=self._tables[table]) as cursor:
            found = cursor.set_range(prefix)
            while found:
                key = cursor.key()
                if not key.startswith(prefix) or (until is not None and key >= until):
                    break
                cursor.delete()
                count += 1
                found = bool(cursor.key())
        return count

    def put_parts(self, txn: Transaction, table: str, key: bytes, record: bytes) -> None:
        """A record of any length, in parts of `PART` bytes under key + part number."""
        view = memoryview(record)
        for number, start in enumerate(range(0, len(record), PART)):
            self.put(txn, table, key + number.to_bytes(4, "big"), view[start : start + PART])

    def _checked(self, table: str, key: bytes, value: bytes) -> bytes:
        body = value[8:]
        if value[:8] != _sum(key, body):
            raise Corruption(f"the value of {key!r} is damaged", file=str(self.path), array=table)
        return body

    def size(self) -> int:
        return self._files.size(self.path)

    def close(self) -> None:
        self._env.close()


def _sum(key: bytes, value: bytes | memoryview) -> bytes:
    """The checksum that guards a pair. The key seeds it, so that a value under another key is noticed."""
    return checksum(key + checksum(value).to_bytes(8, "little")).to_bytes(8, "little")
