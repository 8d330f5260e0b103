"""Which rows of a part a search may return: live rows, and those that pass the filter.

A filter is evaluated once per segment over its typed columns; the bitmap is kept with the segment, whose rows never
change, so that the next search with the same filter finds it. So it is with the blocks of a memtable, which only grow:
rows are evaluated once, few of them payload by payload, many by columns, which are made for stripes of them. Bitmaps are
uint64 words, bit i % 64 of word i // 64. Safe in any thread.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from weakref import WeakKeyDictionary

import numpy as np
from vecdb_index.kernels.bitmap import both, ones
from vecdb_storage.memtable import Block
from vecdb_storage.payloads import parse
from vecdb_storage.segment import Segment
from vecdb_storage.snapshot import BlockPart, Part, SegmentPart
from vecdb_storage.tombstones import Words

from ..errors import Corruption, VecdbError
from ..filters import Expression, evaluate, matches

_KEPT = 64  # bitmaps of a segment or block
_FEW = 256  # rows of a block, up to which columns are not worth making
_lock = threading.Lock()
_kept: WeakKeyDictionary[Segment | Block, OrderedDict[Expression, Words]] = WeakKeyDictionary()


def passing(part: Part, where: Expression) -> Words:
    """The rows of a part for which `where` is true, dead ones included. Not to be changed."""
    if isinstance(part, SegmentPart):
        found = _known(part.segment, where)
        return _of_segment(part.segment, where) if found is None else found
    assert isinstance(part, BlockPart)
    return _of_block(part, where)


def _known(rows: Segment | Block, where: Expression) -> Words | None:
    with _lock:
        kept = _kept.setdefault(rows, OrderedDict())
        found = kept.get(where)
        if found is not None:
            kept.move_to_end(where)
        return found


def _keep(rows: Segment | Block, where: Expression, words: Words) -> None:
    with _lock:
        kept = _kept.setdefault(rows, OrderedDict())
        if len(kept.get(where, ())) <= len(words):  # of a block, another thread may know more
            kept[where] = words
        while len(kept) > _KEPT:
            kept.popitem(last=False)


def _of_block(part: BlockPart, where: Expression) -> Words:
    """What is kept are words of which all rows are there."""
    words = np.zeros(-(-part.rows // 64), np.uint64)
    whole = len(words) if part.rows == part.block.capacity else part.rows // 64
    found = _known(part.block, where)
    known = 0 if found is None else min(len(found), whole)
    if found is not None:
        words[:known] = found[:known]
    first = 64 * known
    few = part.rows - first <= _FEW
    for start, stop, columns in [(first, part.rows, None)] if few else part.column_sets(after=first):
        if columns is not None:
            here = evaluate(where, columns, lambda row, start=start: parse(part.payload(start + row)))  # type: ignore[misc]
        else:
            here = _one_by_one(part, where, start, stop)
        words[start // 64 : start // 64 + len(here)] = here
    if whole > known:
        _keep(part.block, where, words[:whole].copy())
    return words


def _one_by_one(part: Part, where: Expression, start: int, stop: int) -> Words:
    flags = np.zeros(-(-(stop - start) // 64) * 64, np.bool_)
    for row in range(start, stop):
        flags[row - start] = matches(where, parse(part.payload(row))) is True
    return np.packbits(flags, bitorder="little").view(np.uint64)


def _of_segment(segment: Segment, where: Expression) -> Words:
    try:
        words = evaluate(where, segment.columns, lambda row: parse(segment.payload(row)))
    except VecdbError:
        raise
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Corruption(f"its columns contradict each other: {error!r}", file=str(segment.file.path)) from error
    _keep(segment, where, words)
    return words


def allowed(part: Part, where: Expression | None, without: Expression | None = None) -> Words | None:
    """Live rows that pass `where` and for which `without` is not true; None when that is all of them."""
    words = part.live
    if where is not None:
        passed = passing(part, where)
        words = passed if words is None else both(words, passed)
    if without is not None:
        excluded = ~passing(part, without)
        words = excluded if words is None else both(words, excluded)
        if part.rows % 64:
            words = words.copy()
            words[-1] &= np.uint64((1 << part.rows % 64) - 1)
    return words


def count(words: Words | None, rows: int) -> int:
    """How many rows a bitmap allows, of `rows`."""
    return rows if words is None else ones(words)


def flags(words: Words, rows: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """A bitmap as (rows,) bool."""
    return np.unpackbits(words.view(np.uint8), count=rows, bitorder="little").view(np.bool_)


def rows_of(words: Words | None, rows: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The allowed rows, ascending int64."""
    if words is None:
        return np.arange(rows)
    return np.flatnonzero(flags(words, rows))
