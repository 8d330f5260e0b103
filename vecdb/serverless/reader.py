"""Reads the parts of one published object: from the cache or from afar, and checked before anybody sees them.

What does not match its checksum is read once more, past the cache; then it is Corruption, which names file and section. All
reads of an object go through `ranges`, so that what is read, and how often, is counted in one place. Safe in any thread.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from vecdb_index.codec.bits import Encoder
from vecdb_index.contract import Control, Damaged, Rows
from vecdb_storage.arrayfile import unpack

from ..errors import Closed, Corruption
from .cache import RangeCache
from .layout import PREFIX, FieldLayout, Header, Object, Section, digest, header_length, read_header, seeded, words_of
from .transport import Folder, Tally

RANGE = 8 << 20  # bytes that are read together, at most
GAP = 64 << 10  # bytes between two rows that are rather read than asked around
THREADS = 8  # reads at a time
_SPARE = 25  # of the bytes that a search reads, one for so many may be read between rows, and as many between texts
_WAITING = THREADS + 2  # ranges that are read ahead of their use, or being used

T = TypeVar("T")
Wrong = Callable[[bytes], str | None]  # what of some bytes is not right, or None


class ObjectReader:
    """One object of a folder. pool: of threads that read."""

    def __init__(self, folder: Folder, object_: Object, cache: RangeCache | None, pool: ThreadPoolExecutor) -> None:
        self.object, self._folder, self._cache, self._pool = object_, folder, cache, pool
        self.file = f"{folder.url}/{object_.name}"
        self._lock = threading.Lock()
        self._header: Header | None = None
        self._prefix = b""
        self._encoders: dict[str, Encoder] = {}
        self._live: dict[str, npt.NDArray[np.uint64]] = {}

    def header(self, tally: Tally, control: Control | None) -> Header:
        """Read by the first who asks, with what follows it in the first bytes of the object."""
        with self._lock:
            if self._header is None:
                said = self.object
                length = min(said.length, max(PREFIX, said.header))

                def wrong(data: bytes) -> str | None:
                    if digest(data[: said.header]) != said.check or header_length(data, self.file) != said.header:
                        return "it is not the object that the manifest names; upload both again"
                    return None

                found = self._read(0, length, "header", wrong, tally, control)
                header = read_header(found[: said.header], self.file)
                if (header.rows, header.length) != (said.rows, said.length):
                    raise Corruption("it is of other rows than the manifest says", file=self.file, array="header")
                self._prefix, self._header = found, header
            return self._header

    def encoder(self, field: FieldLayout, tally: Tally, control: Control | None) -> Encoder:
        """Raises Corruption where it is not the one that made the codes."""
        with self._lock:
            found = self._encoders.get(field.name)
        if found is None:
            section = self._section(f"encoder:{field.name}")
            data = b"".join(self._pieces(section, 0, section.length, tally, control))
            none = Rows(np.zeros((0, field.declared.dim), np.float32), np.zeros(0, np.float32), field.declared.metric)
            try:
                found = Encoder.opened(unpack(data)[1], none)
            except (Damaged, KeyError, Corruption) as error:
                raise Corruption(f"the encoder cannot be used: {error}", file=self.file, array=section.name) from error
            if found.check != field.encoder or found.width != field.width:
                raise Corruption("the codes were made by another encoder", file=self.file, array=section.name)
            with self._lock:
                self._encoders[field.name] = found
        return found

    def live(self, field: FieldLayout, tally: Tally, control: Control | None) -> npt.NDArray[np.uint64]:
        """The bitmap of the rows that count; empty for all."""
        with self._lock:
            words = self._live.get(field.name)
        if words is None:
            section = self._section(f"live:{field.name}")
            words = words_of(b"".join(self._pieces(section, 0, section.length, tally, control)))
            if len(words) and int(np.bitwise_count(words).sum()) != field.allowed:
                raise Corruption("the bitmap has another number of rows", file=self.file, array=section.name)
            with self._lock:
                self._live[field.name] = words
        return words

    def pieces(
        self, name: str, first: int, last: int, tally: Tally, control: Control | None, use: Callable[[int, bytes], T]
    ) -> Iterator[T]:
        """use(piece, bytes of it and of those after it) for pieces first..last of a section, some at a time, as they arrive.

        `use` runs in the threads that read. What it returns comes in any order.
        """
        section = self._section(name)
        together = max(1, RANGE // section.piece)

        def get(start: int) -> T:
            at, end = start * section.piece, min(section.length, min(last, start + together) * section.piece)
            return use(start, self._checked(section, at, end, tally, control))

        yield from self._ahead(range(first, last, together), get)

    def _ahead(self, starts: Iterable[int], get: Callable[[int], T]) -> Iterator[T]:
        """get(start) of each, by the threads of the pool, some ahead of what is taken."""
        rest, running = iter(starts), set[Future[T]]()
        try:
            while True:
                try:
                    running |= {self._pool.submit(get, start) for start in itertools.islice(rest, _WAITING - len(running))}
                except RuntimeError:  # its threads are gone
                    raise Closed(f"{self._folder.url} was closed; open it again") from None
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            for each in running:
                each.cancel()

    def records(
        self, name: str, dtype: np.dtype[Any], rows: npt.NDArray[np.int64], tally: Tally, control: Control | None
    ) -> npt.NDArray[Any]:
        """Some rows of a section of records, ascending, each compared with its checksum, which is its last eight bytes."""
        section, seed = self._section(name), self._known.seed
        size = dtype.itemsize
        found = np.empty(len(rows), dtype)

        def use(first: int, last: int, data: bytes, start: int) -> None:
            there = np.frombuffer(data, np.uint8).reshape(-1, size)
            found[first:last] = there[rows[first:last] - start // size].view(dtype)[:, 0]

        def wrong(first: int, last: int, data: bytes, start: int) -> str | None:
            for row in rows[first:last].tolist():
                at = row * size - start
                if int.from_bytes(data[at + size - 8 : at + size], "little") != seeded(data[at : at + size - 8], seed + row):
                    return f"row {row:,} is not what was written; upload the object again"
            return None

        self._runs(section, rows * size, rows * size + size, use, wrong, tally, control)
        return found

    def texts(
        self, records: npt.NDArray[Any], rows: npt.NDArray[np.int64], tally: Tally, control: Control | None
    ) -> list[bytes]:  # fmt: skip
        """Ids and payloads of rows, whose records these are; rows ascend, and so do the places of their texts."""
        section, seed = self._section("texts"), self._known.seed
        starts = records["offset"].astype(np.int64)
        ends = starts + records["length"].astype(np.int64)
        if len(rows) and (
            starts.min() < 0 or ends.max() > section.length or (ends < starts).any() or (starts[1:] < ends[:-1]).any()
        ):
            raise Corruption("rows have their texts where there are none", file=self.file, array=section.name)
        found = [b""] * len(rows)

        def use(first: int, last: int, data: bytes, start: int) -> None:
            for at in range(first, last):
                found[at] = data[int(starts[at]) - start : int(ends[at]) - start]

        def wrong(first: int, last: int, data: bytes, start: int) -> str | None:
            for at in range(first, last):
                text = data[int(starts[at]) - start : int(ends[at]) - start]
                if seeded(text, seed + int(rows[at])) != int(records["text"][at]):
                    return f"id and payload of row {int(rows[at]):,} are not what was written; upload the object again"
            return None

        self._runs(section, starts, ends, use, wrong, tally, control)
        return found

    def _runs(
        self, section: Section, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64],
        use: Callable[[int, int, bytes, int], None], wrong: Callable[[int, int, bytes, int], str | None],
        tally: Tally, control: Control | None,
    ) -> None:  # fmt: skip
        """Reads some places of a section, which ascend, in as few ranges as is worth it. See `records`."""
        read = PREFIX + min(each.length for name, each in self._known.sections.items() if name.startswith("codes:"))
        cuts = runs_of(starts, ends, (read + int((ends - starts).sum())) // _SPARE)

        def get(number: int) -> None:
            first, last = cuts[number]
            start, end = int(starts[first]), int(ends[last - 1])
            if end == start:
                return use(first, last, b"", start)
            data = self._read(
                section.offset + start, end - start, section.name, lambda data: wrong(first, last, data, start), tally, control
            )
            return use(first, last, data, start)

        for _ in self._ahead(range(len(cuts)), get):
            pass

    @property
    def _known(self) -> Header:
        assert self._header is not None
        return self._header

    def _section(self, name: str) -> Section:
        return self._known.sections[name]

    def _pieces(self, section: Section, start: int, end: int, tally: Tally, control: Control | None) -> Iterator[bytes]:
        step = max(1, RANGE // section.piece) * section.piece
        for at in range(start, end, step):
            yield self._checked(section, at, min(end, at + step), tally, control)

    def _checked(self, section: Section, start: int, end: int, tally: Tally, control: Control | None) -> bytes:
        """Bytes of a section, from where a piece begins to where one ends."""

        def wrong(data: bytes) -> str | None:
            piece = section.wrong_in(data, start)
            return None if piece is None else f"piece {piece:,} is not what was written; upload the object again"

        return self._read(section.offset + start, end - start, section.name, wrong, tally, control)

    def _read(self, start: int, length: int, part: str, wrong: Wrong, tally: Tally, control: Control | None) -> bytes:
        """Bytes of the object that are right."""
        if start + length <= len(self._prefix):
            data = self._prefix[start : start + length]
            if wrong(data) is None:
                return data
        key = f"{self.object.name} {self.object.check} {start} {length}"
        if self._cache is not None:
            kept = self._cache.get(key)
            if kept is not None and len(kept) == length and wrong(kept) is None:
                tally.add(hits=1, hit_bytes=length)
                return kept
        why: str | None = None
        for _ in range(2):  # what is wrong once may have been so on the way only
            data = self._folder.read(self.object.name, start, start + length, self.object.length, part, tally, control)
            why = wrong(data)
            if why is None:
                if self._cache is not None:
                    self._cache.put(key, data)
                return data
        raise Corruption(str(why), file=self.file, array=part)


def runs_of(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64], spare: int) -> Sequence[tuple[int, int]]:
    """Places in ranges: (first, last) for each. Over gaps of less than GAP it is read, the least first, up to `spare` bytes in
    all.

    So requests are few, and bytes that nobody wants a small share of what is wanted. No range is longer than RANGE, but for a
    place that is.
    """
    if not len(starts):
        return []
    gaps = starts[1:] - ends[:-1]
    order = np.argsort(gaps, kind="stable")
    joined = order[(np.cumsum(gaps[order]) <= spare) & (gaps[order] < GAP)]
    apart = np.ones(len(gaps), np.bool_)
    apart[joined] = False
    found, first = [], 0
    for at in range(1, len(starts)):
        if apart[at - 1] or ends[at] - starts[first] > RANGE:
            found.append((first, at))
            first = at
    found.append((first, len(starts)))
    return found
