"""The components of a segment as terms and slots, and the records of its rows: heads and tails. See `layout`.

Records are filled a chunk of rows at a time, by as many threads as there are: each row's bytes depend on it alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec.int4 import by_lines
from ..contract import Budget, SparseRows
from ..kernels.compile import kernel
from ..kernels.distances import read_only
from .layout import HEAD, HEAVIEST, SLOTS

CHUNK = 1 << 13  # rows between two looks at whether to go on
_OWN_SLOTS = SLOTS // 2  # for the most frequent of more terms than there are slots
_TAIL = 4  # bytes: tails begin at multiples


class Terms(NamedTuple):
    """The components of a segment: see `layout`. of: (nnz,) uint32, the term of each component of each row."""

    terms: npt.NDArray[np.uint32]
    slots: npt.NDArray[np.uint16]
    of: npt.NDArray[np.uint32]
    size: int


class Records(NamedTuple):
    head8: npt.NDArray[np.uint8]
    head16: npt.NDArray[np.uint16]
    head32: npt.NDArray[np.uint32]
    tail8: npt.NDArray[np.uint8]
    tail16: npt.NDArray[np.uint16]


def terms_of(rows: SparseRows, first: int, last: int, largest: int, budget: Budget) -> Terms:
    none = np.zeros(0, np.uint32), np.zeros(0, np.uint16)
    if largest < SLOTS:
        return Terms(*none, read_only(rows.indices), largest + 1 if last > first else 0)
    step = 1 << 22
    found = none[0]
    for start in range(first, last, step):
        budget.control.poll()
        found = np.union1d(found, rows.indices[start : min(last, start + step)])
    of = np.zeros(last, np.uint32)
    for start in range(first, last, step):
        budget.control.poll()
        part = slice(start, min(last, start + step))
        of[part] = np.searchsorted(found, rows.indices[part])
    slots = none[1]
    if len(found) > SLOTS:
        order = np.argsort(-np.bincount(of[first:], minlength=len(found)), kind="stable")
        scattered = (np.arange(len(found)) * 2_654_435_761 >> 8) % (SLOTS - _OWN_SLOTS) + _OWN_SLOTS
        slots = scattered.astype(np.uint16)
        slots[order[:_OWN_SLOTS]] = np.arange(_OWN_SLOTS)
    return Terms(found, slots, read_only(of), len(found))


def records_of(
    offsets: Any, weights: Any, terms: Terms, present: Any, unit: np.float32, budget: Budget, pool: ThreadPoolExecutor
) -> Records:
    n = len(present)
    sizes = np.where(present, np.diff(offsets).astype(np.int64), 0)
    tails = (3 * np.maximum(0, sizes - HEAVIEST) + _TAIL - 1) // _TAIL
    starts = np.cumsum(tails) - tails
    if n and int(starts[-1]) >= 1 << 32:
        raise ValueError(f"an index of sparse rows holds 16 GiB of them; this segment has {4 * int(starts[-1]):,} bytes")
    heads = by_lines((n, HEAD), np.uint8)
    heads[:] = 0
    tail8 = np.zeros(_TAIL * int(tails.sum()), np.uint8)
    flat = heads.reshape(-1)
    records = Records(flat, flat.view(np.uint16), flat.view(np.uint32), tail8, tail8.view(np.uint16))

    def fill(start: int) -> None:
        budget.control.poll()
        stop = min(n, start + CHUNK)
        _fill_records(offsets, weights, terms.of, terms.slots, sizes, starts, unit, start, stop, records)

    for _ in pool.map(fill, range(0, n, CHUNK)):
        pass
    return Records(*(read_only(each) for each in records))


# -- kernels -------------------------------------------------------------------------------------------------


@kernel
def code_of(weight, unit):
    """1 to 255; 0 for a weight that is negative."""
    if weight <= 0:
        return np.uint8(0)
    return np.uint8(min(np.float64(255), max(np.float64(1), np.rint(np.float64(weight) / np.float64(unit)))))


@kernel
def _fill_records(offsets, weights, terms, slots, sizes, starts, unit, start, stop, records):
    """The heads and tails of rows start..stop: a counting sort of their codes, greatest first."""
    places = np.empty(257, np.int64)
    for row in range(start, stop):
        size = sizes[row]
        if size == 0:
            continue
        first = np.uint64(offsets[row])
        places[:] = 0
        for j in range(first, first + np.uint64(size)):
            places[np.uint64(256 - np.int64(code_of(weights[j], unit)))] += 1
        for code in range(1, 257):
            places[code] += places[code - 1]
        records.head32[row * (HEAD // 4)] = np.uint32(starts[row])
        records.head32[row * (HEAD // 4) + 1] = np.uint32(size)
        rest = max(0, size - HEAVIEST)
        head16, head8 = row * (HEAD // 2) + 4, row * HEAD + 8 + 2 * HEAVIEST
        tail16, tail8 = starts[row] * 2, starts[row] * 4 + 2 * rest
        for j in range(first, first + np.uint64(size)):
            code = code_of(weights[j], unit)
            at = places[np.uint64(255 - np.int64(code))]
            places[np.uint64(255 - np.int64(code))] += 1
            slot = np.uint16(terms[j]) if len(slots) == 0 else slots[np.uint64(terms[j])]
            if at < HEAVIEST:
                records.head16[head16 + at], records.head8[head8 + at] = slot, code
            else:
                records.tail16[tail16 + at - HEAVIEST], records.tail8[tail8 + at - HEAVIEST] = slot, code
