"""int8 copies of rows that no index holds, so that an exact search of them reads a quarter of the bytes.

A copy serves the rows of a memtable block, or of a segment whose index is not built yet. It is made by the second search that
would use it, which takes about as long as that search itself, and goes with its rows, or when their index is there. Answers do
not change by it (see `vecdb_index.flat.coded`). All copies together take at most a quarter of the free memory. Any thread.
"""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

import numpy as np
from vecdb_index.codec.int8 import Codes, width_of
from vecdb_index.contract import AnyRows, ExactSearcher, Rows, SparseRows
from vecdb_index.flat.backend import exactly
from vecdb_index.flat.search import FlatSearcher
from vecdb_storage.memtable import Block
from vecdb_storage.segment import Segment
from vecdb_storage.snapshot import Part, SegmentPart

from ..memory import available

_LEAST_BYTES = 1 << 20  # of vectors; below, the rows themselves are as quick
_lock = threading.Lock()


class _Copy:
    """filled: how many rows, from the first on, have their codes. searcher: that was asked for last."""

    __slots__ = ("codes", "filled", "lock", "searcher")

    def __init__(self) -> None:
        self.codes: Codes | None = None
        self.filled = 0
        self.lock = threading.Lock()
        self.searcher: FlatSearcher | None = None


_kept: WeakKeyDictionary[Segment | Block, dict[str, _Copy]] = WeakKeyDictionary()


def searcher_of(part: Part, field: str, rows: AnyRows) -> ExactSearcher:
    """An exact searcher of a part's field, over its copy if it has one or is to get one."""
    if isinstance(rows, SparseRows):
        return exactly(rows)
    if not _is_worth(rows):
        return FlatSearcher(rows)
    owner: Segment | Block = part.segment if isinstance(part, SegmentPart) else part.block  # type: ignore[attr-defined]
    with _lock:
        fields = _kept.setdefault(owner, {})
        copy = fields.get(field)
        if copy is None:
            fields[field] = _Copy()
            return FlatSearcher(rows)
    last = copy.searcher
    if last is not None and len(last.rows) == len(rows) and last.rows.present is rows.present is None:
        return last
    with copy.lock:
        if copy.codes is None:
            capacity = owner.capacity if isinstance(owner, Block) else part.rows
            if (size() + capacity * width_of(rows.vectors.shape[1])) * 4 > available():
                return FlatSearcher(rows)
            copy.codes = Codes.of(rows, capacity)
        if copy.filled < len(rows):
            copy.codes.fill(rows, copy.filled, len(rows))
            copy.filled = len(rows)
        found = copy.searcher = FlatSearcher(rows, copy.codes.part(0, len(rows)))
    return found


def is_due(searcher: ExactSearcher) -> bool:
    """Whether the next to ask for a searcher of these rows may get another one, over their copy."""
    return isinstance(searcher, FlatSearcher) and searcher.codes is None and _is_worth(searcher.rows)


def _is_worth(rows: Rows) -> bool:
    """Whether rows get a copy at all."""
    return rows.vectors.nbytes >= _LEAST_BYTES and rows.vectors.dtype != np.int8


def drop(segment: Segment, field: str) -> None:
    """The index of a segment's field is there."""
    if segment in _kept:
        with _lock:
            _kept.get(segment, {}).pop(field, None)


def size() -> int:
    """Bytes that all copies take."""
    with _lock:
        copies = [copy for fields in _kept.values() for copy in fields.values()]
    return sum(copy.codes.codes.nbytes for copy in copies if copy.codes is not None)
