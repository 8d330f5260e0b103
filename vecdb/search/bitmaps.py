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
from vecdb_storage.payloads import parse, parse_all
from vecdb_storage.segment import Segment
from vecdb_storage.snapshot import BlockPart, Part, SegmentPart
from vecdb_storage.tombstones import Words

from ..errors import Corruption, VecdbError
from ..filters import Expression, evaluate, predicate_of

_KEPT = 64  # bitmaps of a segment or block
_FEW = 256  # rows of a block, up to which columns are not worth making
_NO_WORDS: Words = np.zeros(0, np.uint64)
_lock = threading.Lock()
_kept: WeakKeyDictionary[Segment | Block, OrderedDict[Expression, tuple[int, Words]]] = WeakKeyDictionary()  # of so many rows


def passing(part: Part, where: Expression) -> Words:
    """The rows of a part for which `where` is true, dead ones included. Not to be changed."""
    if isinstance(part, SegmentPart):
        found = _known(part.segment, where)
        return _of_segment(part.segment, where) if found is None else found[1]
    assert isinstance(part, BlockPart)
    return _of_block(part, where)


def _known(rows: Segment | Block, where: Expression) -> tuple[int, Words] | None:
    with _lock:
        kept = _kept.setdefault(rows, OrderedDict())
        found = kept.get(where)
        if found is not None:
            kept.move_to_end(where)
        return found


def _keep(rows: Segment | Block, where: Expression, count: int, words: Words) -> None:
    with _lock:
        kept = _kept.setdefault(rows, OrderedDict())
        if kept.get(where, (0,))[0] <= count:  # of a block, another thread may know more
            kept[where] = count, words
        while len(kept) > _KEPT:
            kept.popitem(last=False)


def _of_block(part: BlockPart, where: Expression) -> Words:
    """Only rows that nobody asked for yet are looked at."""
    count = part.rows
    known, found = _known(part.block, where) or (0, _NO_WORDS)
    if known >= count:
        return _first(found, count)
    words = np.zeros(-(-count // 64), np.uint64)
    words[: len(found)] = found
    few = count - known <= _FEW
    for start, stop, columns in [(known, count, None)] if few else part.column_sets(after=known):
        if columns is not None:
            here = evaluate(where, columns, lambda row, start=start: parse(part.payload(start + row)))  # type: ignore[misc]
            words[start // 64 : start // 64 + len(here)] = here
        else:
            start = max(start, known)
            here = _one_by_one(part, where, start, stop)
            words[start // 64 : start // 64 + len(here)] |= here
    words.flags.writeable = False
    _keep(part.block, where, count, words)
    return words


def _first(words: Words, count: int) -> Words:
    """Of more rows, the first: a snapshot may be older than what is known."""
    words = words[: -(-count // 64)]
    if count % 64 and int(words[-1]) >> count % 64:
        words = words.copy()
        words[-1] &= np.uint64((1 << count % 64) - 1)
    return words


def _one_by_one(part: BlockPart, where: Expression, start: int, stop: int) -> Words:
    """Words of the rows start..stop, the first being that of `start`."""
    holds, before = predicate_of(where), start % 64
    flags = np.zeros(before + stop - start, np.bool_)
    flags[before:] = [holds(payload) is True for payload in parse_all(part.payloads(start, stop))]
    words = np.zeros(-(-len(flags) // 64), np.uint64)
    packed = np.packbits(flags, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def _of_segment(segment: Segment, where: Expression) -> Words:
    try:
        words = evaluate(where, segment.columns, lambda row: parse(segment.payload(row)))
    except VecdbError:
        raise
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise Corruption(f"its columns contradict each other: {error!r}", file=str(segment.file.path)) from error
    _keep(segment, where, segment.rows, words)
    return words


def allowed(part: Part, where: Expression | None, without: Expression | None = None) -> Words | None:
    """Live rows that pass `where` and for which `without` is not true; None when that is all of them. Read-only."""
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
    if words is not None:
        words.flags.writeable = False
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
