"""Point ids: a column of them, their hashes, and the table that finds an id's row in a segment.

A collection's ids are all int64 or all strings of at most 512 UTF-8 bytes. In a segment they are arrays:
`id.int` (n,) i64, or `id.offsets` (n+1,) u64 with `id.bytes`; beside them the table, `id.hash` (n,) u64 sorted
with `id.row` (n,) u32, and `id.filter`, a bitmap addressed by the hash's top bits, 16 to 32 bits a row, which turns
away most of the look-ups of ids that are not there. Values never change; safe in any thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from . import strings
from .arrayfile import check_ends
from .errors import Corruption
from .strings import Texts

Id = int | str
Kind = Literal["int", "str"]
Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

MAX_ID_BYTES = 512


class Ints(list[Id]):
    """Ids as plain values, which remember the array that they came from: (n,) int64, of our own. Not to be changed."""

    __slots__ = ("values",)

    def __init__(self, values: npt.NDArray[np.int64]) -> None:
        super().__init__(values.tolist())
        self.values = values


class Ids(Protocol):
    """A column of ids."""

    kind: Kind

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Any: ...
    def tolist(self) -> list[Any]: ...
    def hashes(self) -> Hashes: ...
    def arrays(self) -> dict[str, npt.NDArray[Any]]: ...


@dataclass(frozen=True)
class IntIds:
    values: npt.NDArray[np.int64]
    kind: Kind = "int"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, row: int) -> int:
        return int(self.values[row])

    def at(self, rows: Rows) -> list[int]:
        """The ids of some rows."""
        chosen: list[int] = self.values[rows].tolist()
        return chosen

    def take(self, rows: Rows) -> IntIds:
        """A column of some rows."""
        return IntIds(self.values[rows])

    def tolist(self) -> list[Any]:
        values: list[Any] = self.values.tolist()
        return values

    def hashes(self) -> Hashes:
        return hash_ints(self.values)

    @cached_property
    def span(self) -> tuple[int, int]:
        """The least and the greatest; there is at least one."""
        return int(self.values.min()), int(self.values.max())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"id.int": self.values}


@dataclass(frozen=True)
class StrIds:
    """offsets: (n+1,) u64 into data, (bytes,) u8."""

    offsets: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint8]
    kind: Kind = "str"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> str:
        try:
            return bytes(self.data[self.offsets[row] : self.offsets[row + 1]]).decode()
        except UnicodeDecodeError as error:
            raise _no_text(error) from error

    def at(self, rows: Rows) -> list[str]:
        """The ids of some rows."""
        starts, ends, text = self.offsets[rows].tolist(), self.offsets[rows + 1].tolist(), self._text
        try:
            return [text[a:b].tobytes().decode() for a, b in zip(starts, ends, strict=True)]
        except UnicodeDecodeError as error:
            raise _no_text(error) from error

    def take(self, rows: Rows) -> StrIds:
        """A column of some rows."""
        taken = Texts(self.offsets, self.data).take(rows)
        return StrIds(taken.offsets, taken.text)

    @cached_property
    def _text(self) -> memoryview:
        return self.data.data

    def tolist(self) -> list[Any]:
        text = self.data.tobytes()
        ends = self.offsets.tolist()
        if text.isascii():  # then byte offsets are character offsets, and one decode does for all
            whole = text.decode("ascii")
            return [whole[a:b] for a, b in itertools.pairwise(ends)]
        try:
            return [text[a:b].decode() for a, b in itertools.pairwise(ends)]
        except UnicodeDecodeError as error:
            raise _no_text(error) from error

    def hashes(self) -> Hashes:
        return hash_strings(self.tolist())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"id.offsets": self.offsets, "id.bytes": self.data}


def _no_text(error: UnicodeDecodeError) -> Corruption:
    return Corruption(f"an id is no UTF-8: {error}", array="id.bytes")


def hash_ints(values: npt.NDArray[np.int64]) -> Hashes:
    """The splitmix64 finaliser of each value: one to one, so that int ids never collide."""
    z = values.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: Hashes = z ^ (z >> np.uint64(31))
    return hashed


def hash_strings(values: Sequence[str]) -> Hashes:
    """xxh3-64 of each string's UTF-8 bytes."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, map(str.encode, values)), np.uint64, len(values))


def hashes_of(keys: Sequence[Id]) -> Hashes:
    """The hashes of ids of one kind."""
    if keys and isinstance(keys[0], str):
        return hash_strings(keys)  # type: ignore[arg-type]
    return hash_ints(_array_of(keys))


def _array_of(keys: Sequence[Id]) -> npt.NDArray[np.int64]:
    return keys.values if isinstance(keys, Ints) else np.array(keys, np.int64)


def from_list(values: Sequence[Id]) -> IntIds | StrIds:
    """A column from checked ids of one kind."""
    if values and isinstance(values[0], str):
        text = "".join(values)  # type: ignore[arg-type]
        data = text.encode()
        sizes = map(len, values) if len(data) == len(text) else (len(v.encode()) for v in values)  # type: ignore[union-attr, arg-type]
        offsets = np.fromiter(itertools.accumulate(sizes, initial=0), np.uint64, len(values) + 1)
        return StrIds(offsets, np.frombuffer(data, np.uint8))
    return IntIds(_array_of(values))


def from_arrays(arrays: Any) -> IntIds | StrIds:
    """The column that `arrays()` took apart. Raises Corruption."""
    if "id.int" in arrays:
        values = arrays["id.int"]
        if values.dtype != np.int64 or values.ndim != 1:
            raise Corruption("ids are one row of int64", array="id.int")
        return IntIds(values)
    if "id.offsets" not in arrays or "id.bytes" not in arrays:
        raise Corruption("there are no ids")
    check_ends(arrays["id.offsets"], arrays["id.bytes"], "id.offsets")
    return StrIds(arrays["id.offsets"], arrays["id.bytes"])


def concat(columns: Sequence[IntIds | StrIds]) -> IntIds | StrIds:
    """Columns of one kind, end to end; at least one."""
    ints = [column.values for column in columns if isinstance(column, IntIds)]
    if ints:
        return IntIds(np.concatenate(ints))
    together = strings.concat([Texts(column.offsets, column.data) for column in columns if isinstance(column, StrIds)])
    return StrIds(together.offsets, together.text)


_NONE: Rows = np.zeros(0, np.int64)


class Wanted:
    """Ids that are looked for in one segment after the other. hashes: (m,), of the keys. Belongs to one thread."""

    __slots__ = ("_bits", "_numbers", "hashes", "keys")

    def __init__(self, keys: Sequence[Id], hashes: Hashes) -> None:
        self.keys, self.hashes = keys, hashes
        self._bits: dict[int, tuple[Hashes, npt.NDArray[np.uint8]]] = {}
        self._numbers: npt.NDArray[np.int64] | None = None

    def numbers(self) -> npt.NDArray[np.int64]:
        """The keys, which are ints."""
        if self._numbers is None:
            self._numbers = _array_of(self.keys)
        return self._numbers

    def bits(self, width: int) -> tuple[Hashes, npt.NDArray[np.uint8]]:
        """Where they are in a filter of 2**width bits: byte (m,), and the bit in it. Filters of one size share this."""
        known = self._bits.get(width)
        if known is None:
            place = self.hashes >> np.uint64(64 - width)
            bit = np.uint8(1) << (place & np.uint64(7)).astype(np.uint8)
            known = self._bits[width] = place >> np.uint64(3), bit
        return known


@dataclass(frozen=True)
class IdTable:
    """Finds the row of an id in one segment. hash: (n,) u64 sorted; row: (n,) u32; bits: the filter, u8."""

    ids: IntIds | StrIds
    hash: Hashes
    row: npt.NDArray[np.uint32]
    bits: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        arrays: list[tuple[npt.NDArray[Any], Any]] = [(self.hash, np.uint64), (self.row, np.uint32), (self.bits, np.uint8)]
        right = all(array.dtype == dtype and array.ndim == 1 for array, dtype in arrays)
        if not right or len(self.bits).bit_count() != 1:  # a power of two
            raise Corruption("the table of ids is none", array="id.hash")

    @staticmethod
    def build(ids: IntIds | StrIds, hashes: Hashes) -> IdTable:
        order = np.argsort(hashes, kind="stable")
        return IdTable.of(ids, hashes[order], order.astype(np.uint32))

    @staticmethod
    def of(ids: IntIds | StrIds, hashes: Hashes, rows: npt.NDArray[np.uint32]) -> IdTable:
        """hashes (n,): sorted; rows (n,): the row of each."""
        width = max(3, (16 * max(1, len(hashes)) - 1).bit_length())
        bits = np.zeros(1 << width, np.bool_)
        bits[hashes >> np.uint64(64 - width)] = True
        return IdTable(ids, hashes, rows, np.packbits(bits, bitorder="little"))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"id.hash": self.hash, "id.row": self.row, "id.filter": self.bits}

    def find(self, wanted: Wanted) -> tuple[Rows, Rows]:
        """Which of the ids are here, as places in `wanted`, ascending, and in which rows: (found,) int64 both."""
        if not len(self.hash) or self._is_beyond(wanted.keys):
            return _NONE, _NONE
        byte, bit = wanted.bits((8 * len(self.bits) - 1).bit_length())
        passed = self.bits[byte] & bit
        if not passed.any():
            return _NONE, _NONE
        candidates = np.flatnonzero(passed)
        hashes = wanted.hashes[candidates]
        at = np.searchsorted(self.hash, hashes)
        inside = at < len(self.hash)
        candidates, hashes, at = candidates[inside], hashes[inside], at[inside]
        equal = self.hash[at] == hashes
        candidates, at = candidates[equal], at[equal]
        if isinstance(self.ids, IntIds) and type(wanted.keys[0]) is int:
            rows = self.row[at].astype(np.int64)
            if np.array_equal(self.ids.values[rows], wanted.numbers()[candidates]):
                return candidates, rows  # none shares its hash with another id
        slots = zip(candidates.tolist(), at.tolist(), strict=True)
        rows = np.array([self._confirm(wanted.keys[place], slot) for place, slot in slots], np.int64)
        here = rows >= 0
        return candidates[here], rows[here]

    def _is_beyond(self, keys: Sequence[Id]) -> bool:
        """Whether all keys are less or greater than all that is here, as numbers that are counted on are."""
        if not isinstance(keys, Ints) or not isinstance(self.ids, IntIds) or not keys:
            return False
        low, high = self.ids.span
        return int(keys.values.min()) > high or int(keys.values.max()) < low

    def _confirm(self, key: Id, slot: int) -> int:
        """The row of `key` among the rows that share its hash."""
        expected = self.hash[slot]
        while slot < len(self.hash) and self.hash[slot] == expected:
            row = int(self.row[slot])
            if self.ids[row] == key:
                return row
            slot += 1
        return -1
