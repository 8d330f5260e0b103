"""Typed columns over payloads: what filters are evaluated on instead of JSON.

A path is the chain of keys that leads to a value, written "author.name" (a dot or backslash inside a key is escaped by
a backslash); arrays are not descended into. Each path of a segment becomes one column:

    col.<i>.kinds          u8 (n,)     kind of the value in each row; left out when all rows share one, then in the meta
    col.<i>.bools          u8          the values of the rows of that kind, in row order
    col.<i>.ints           i64
    col.<i>.floats         f64
    col.<i>.codes          u32         strings, as positions in the dictionary
    col.<i>.text.offsets   u64         dictionary: distinct strings sorted by their UTF-8 bytes, end to end
    col.<i>.text.bytes     u8
    col.<i>.text.times     i64         microseconds since 1970 UTC of entries that are RFC 3339 dates or date-times,
                                       the least int64 for others; left out when there are none
    col.<i>.item.offsets   u64         arrays that are not inside another: where each one's elements begin
    col.<i>.item.*                     a column over all their elements; of nested ones only the kind is kept

Kinds: 0 missing, 1 null, 2 bool, 3 int, 4 float, 5 string, 6 array, 7 object. Meta, JSON: {"columns": [{"path", "kind",
"rows", "item"}, …], "wide": [paths of long distinct texts that have no column], "complete": false when there were
more than 256 paths}. What has no column is found by a pass over the JSON.

Made by `column_build`, and of other columns by `column_merge`. Values never change; safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import Corruption
from .strings import Texts

MISSING, NULL, BOOL, INT, FLOAT, STRING, ARRAY, OBJECT = range(8)
MAX_PATHS = 256
NARROW = 64  # characters, of texts that are handled as NumPy's bytes
NO_TIME = np.iinfo(np.int64).min

Array = npt.NDArray[Any]
Columns = tuple[dict[str, Array], dict[str, Any]]  # arrays, and the meta that describes them


class Column:
    """One column, reading its arrays when they are first asked for. rows: of the part, or elements of its arrays."""

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, Array], prefix: str) -> None:
        self._meta, self._arrays, self._prefix = meta, arrays, prefix
        self.rows: int = meta["rows"]
        self.kind: int | None = meta["kind"]

    def array(self, name: str) -> Array:
        return self._arrays[self._prefix + name]

    @property
    def kinds(self) -> Array:
        """u8 (rows,); only where `kind` is None."""
        return self.array("kinds")

    def has(self, kind: int) -> bool:
        """Whether some row may be of this kind."""
        if self.kind is not None:
            return self.kind == kind
        name = {BOOL: "bools", INT: "ints", FLOAT: "floats", STRING: "codes", ARRAY: "item.offsets"}.get(kind)
        return name is None or self._prefix + name in self._arrays

    @cached_property
    def text(self) -> Dictionary:
        times = self._prefix + "text.times"
        return Dictionary(self.array("text.offsets"), self.array("text.bytes"), self._arrays.get(times, None))

    @cached_property
    def item(self) -> Column | None:
        """The column over the elements of arrays, None when its arrays hold nested ones only."""
        return Column(self._meta["item"], self._arrays, self._prefix + "item.") if self._meta.get("item") else None


class Dictionary:
    """Distinct strings in the order of their UTF-8 bytes."""

    def __init__(self, offsets: Array, data: Array, times: Array | None) -> None:
        self._offsets, self._data, self.times = offsets, data, times

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, code: int) -> bytes:
        return self._data[self._offsets[code] : self._offsets[code + 1]].tobytes()

    def at(self, codes: npt.NDArray[np.int64]) -> Iterator[bytes]:
        """The strings of some codes, as UTF-8."""
        text = self._data.data
        for start, end in zip(self._offsets[codes].tolist(), self._offsets[codes + 1].tolist(), strict=True):
            yield bytes(text[start:end])

    def narrow(self, codes: npt.NDArray[np.int64]) -> Array | None:
        """The strings of some codes as NumPy's bytes, (m,) S; None where one is long or has a zero, which would be lost."""
        chosen = Texts(self._offsets, self._data).take(codes)
        lengths = np.diff(chosen.offsets)
        width = max(1, int(lengths.max(initial=0)))
        if width > NARROW or not chosen.text.all():
            return None
        letters = np.zeros((len(codes), width), np.uint8)
        letters[np.arange(width, dtype=np.uint64) < lengths[:, None]] = chosen.text
        return letters.view(f"S{width}")[:, 0]

    def find(self, text: str) -> tuple[int, bool]:
        """The first code whose string is not below `text`, and whether it is `text`."""
        return self.place(text.encode())

    def place(self, wanted: bytes) -> tuple[int, bool]:
        """`find`, of a string as UTF-8."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        return low, low < len(self) and self[low] == wanted

    def prefixed(self, prefix: str) -> tuple[int, int]:
        """The range of codes whose strings begin with `prefix`."""
        wanted = prefix.encode()
        start, _ = self.find(prefix)
        low, high = start, len(self)
        while low < high:
            middle = (low + high) // 2
            if self[middle].startswith(wanted):
                low = middle + 1
            else:
                high = middle
        return start, low

    def containing(self, needle: str) -> npt.NDArray[np.bool_]:
        """For each string, whether `needle` is part of it. One pass over the bytes."""
        found = np.zeros(len(self), np.bool_)
        data, wanted = self._data.tobytes(), needle.encode()
        if not wanted:
            found[:] = True
            return found
        offsets = self._offsets.astype(np.int64)
        at = data.find(wanted)
        while at >= 0:
            code = int(np.searchsorted(offsets, at, "right")) - 1
            end = int(offsets[code + 1])
            if at + len(wanted) <= end:
                found[code] = True
                at = data.find(wanted, end)
            else:
                at = data.find(wanted, at + 1)
        return found


class ColumnSet:
    """The columns of n rows, by path."""

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, Array], rows: int) -> None:
        self.rows = rows
        self._arrays = arrays
        self._metas = {each["path"]: (i, each) for i, each in enumerate(meta["columns"])}
        self.wide = frozenset(meta["wide"])
        self.complete: bool = meta["complete"]
        self._open: dict[str, Column] = {}

    def column(self, path: str) -> Column | None:
        """The column of a path; None when there is none (see `covers`)."""
        found = self._open.get(path)
        if found is None and path in self._metas:
            number, meta = self._metas[path]
            found = Column(meta, self._arrays, f"col.{number}.")
            if found.rows != self.rows:
                raise Corruption(f"its column of {path!r} has {found.rows} rows of {self.rows}")
            self._open[path] = found
        return found

    def covers(self, path: str) -> bool:
        """Whether the columns know all about `path`: without a column it is then missing in every row."""
        return path in self._metas or (self.complete and path not in self.wide)

    def paths(self) -> Iterator[str]:
        return iter(self._metas)


def open_columns(meta: Mapping[str, Any], arrays: Mapping[str, Array], rows: int) -> ColumnSet:
    """The inverse of `build`; arrays may be mapped from a file, and are touched when a filter needs them."""
    return ColumnSet(meta, arrays, rows)


def widen(narrow: Array) -> Texts:
    """Texts as NumPy's bytes, (n,) S, without zeros in them, end to end."""
    letters = narrow.view(np.uint8).reshape(len(narrow), -1)
    there = letters != 0
    offsets = np.zeros(len(narrow) + 1, np.uint64)
    np.cumsum(there.sum(axis=1, dtype=np.uint64), out=offsets[1:])
    return Texts(offsets, letters[there])
