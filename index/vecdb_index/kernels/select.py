"""The best k of what streams by: one heap for each query, worst on top; or, of few, in order.

Order: key descending, then row ascending. `keys` and `rows` are (m, k), `sizes` (m,) int64, and `dropped` (m,) float32 is the
best key that was left out, by which ties at the last place are seen: NaN while there is none.

Where keys are estimates, what is kept is one uint64, an *entry*: rank of the estimate (32 bits, less is better) | row (31) | a
bit of the caller's. So comparing two entries compares estimates, then rows, without a float.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from .compile import brief, intrinsic, kernel
from .distances import read_only

MAX_ROWS = 1 << 31  # in one segment, where rows are in entries
_ROW = np.uint64(0x7FFF_FFFF)
NO_FLOOR = read_only(np.full(1, -np.inf, np.float32))  # of any query


@kernel
def worse(key, row, other_key, other_row):
    return key < other_key or (key == other_key and row > other_row)


@kernel
def offer(keys, rows, sizes, dropped, q, key, row):
    """Keeps (key, row) for query q if it is among its best so far."""
    k = keys.shape[1]
    size = sizes[q]
    if size < k:  # sift up
        at = size
        sizes[q] = size + 1
        while at > 0:
            parent = (at - 1) >> 1
            if not worse(key, row, keys[q, parent], rows[q, parent]):
                break
            keys[q, at], rows[q, at] = keys[q, parent], rows[q, parent]
            at = parent
        keys[q, at], rows[q, at] = key, row
        return
    if not worse(keys[q, 0], rows[q, 0], key, row):
        if not key <= dropped[q]:
            dropped[q] = key
        return
    if not keys[q, 0] <= dropped[q]:
        dropped[q] = keys[q, 0]
    _replace_worst(keys, rows, q, k, key, row)


@kernel
def insert(keys, rows, q, count, key, row):
    """Puts (key, row) in its place among the `count` best of query q, which lie best first. Returns how many there are then."""
    at = count
    if count == keys.shape[1]:
        if not worse(keys[q, count - 1], rows[q, count - 1], key, row):
            return count
        at -= 1
    else:
        count += 1
    while at > 0 and worse(keys[q, at - 1], rows[q, at - 1], key, row):
        keys[q, at], rows[q, at] = keys[q, at - 1], rows[q, at - 1]
        at -= 1
    keys[q, at], rows[q, at] = key, row
    return count


@kernel
def _replace_worst(keys, rows, q, size, key, row):
    """Puts (key, row) in the place of the top of a heap of `size`, and sifts it down."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and worse(keys[q, child + 1], rows[q, child + 1], keys[q, child], rows[q, child]):
            child += 1
        if not worse(keys[q, child], rows[q, child], key, row):
            break
        keys[q, at], rows[q, at] = keys[q, child], rows[q, child]
        at = child
    keys[q, at], rows[q, at] = key, row


@brief
def settle(keys, rows, sizes, dropped, floors, tied):
    """Sorts each heap in place, best first, and cuts what is below its floor. tied: see contract.Hits."""
    for q in range(keys.shape[0]):
        size = sizes[q]
        tied[q] = size > 0 and dropped[q] == keys[q, 0]
        for end in range(size - 1, 0, -1):
            key, row = keys[q, end], rows[q, end]
            keys[q, end], rows[q, end] = keys[q, 0], rows[q, 0]
            _replace_worst(keys, rows, q, end, key, row)
        while size > 0 and keys[q, size - 1] < floors[q % len(floors)]:
            size -= 1
            tied[q] = False
        sizes[q] = size
        for at in range(size, keys.shape[1]):
            keys[q, at] = np.float32(-np.inf)
            rows[q, at] = -1


@intrinsic
def _bits(typing: Any, value: Any) -> Any:
    """The bits of a float32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def _float(typing: Any, value: Any) -> Any:
    """The float32 of some bits."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@kernel
def packed(key, row):
    """An entry; the caller's bit is 0."""
    bits = _bits(np.float32(key + np.float32(0)))  # -0 and 0 are one key
    rank = bits if bits >> np.uint32(31) else np.uint32(~bits & np.uint32(0x7FFF_FFFF))
    return (np.uint64(rank) << np.uint64(32)) | (np.uint64(row) << np.uint64(1))


def read(entries: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(keys, rows) of entries of any shape: `key_in` and `row_in` of each."""
    rank = (entries >> np.uint64(32)).astype(np.uint32)
    bits = np.where(rank >> np.uint32(31), rank, ~rank & np.uint32(0x7FFF_FFFF))
    return bits.view(np.float32), ((entries >> np.uint64(1)) & _ROW).astype(np.int64)


@kernel
def key_in(entry):
    rank = np.uint32(entry >> np.uint64(32))
    bits = rank if rank >> np.uint32(31) else np.uint32(~rank & np.uint32(0x7FFF_FFFF))
    return _float(np.uint32(bits))


@kernel
def row_in(entry):
    return np.int64((entry >> np.uint64(1)) & _ROW)


@kernel
def keep_least(entries, size, count):
    """Puts the least `count` of entries[:size], in any order, before the others. All differ."""
    low, high, last = 0, size - 1, count - 1
    while low < high:
        middle = (low + high) >> 1
        a, b, c = entries[low], entries[middle], entries[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while entries[i] < pivot:
                i += 1
            while entries[j] > pivot:
                j -= 1
            if i <= j:
                entries[i], entries[j] = entries[j], entries[i]
                i += 1
                j -= 1
        if last <= j:
            high = j
        elif last >= i:
            low = i
        else:
            break
