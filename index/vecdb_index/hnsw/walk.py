"""Best-first walks over a graph: the kernels that build and search share.

Rows are met by their int8 codes (`codec.int8`). What ranks are estimates; whoever wants keys looks at the rows themselves.

A *pool* holds the best nodes seen, as uint64, ascending: rank of the estimate (32 bits, less is better) | row (31) | done (1).
So comparing two entries compares estimates, then rows, without a float. `seen` marks the nodes that a walk has met, by the
number of the walk (*epoch*), so that it need not be cleared for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from ..codec.int8 import estimate
from ..kernels.compile import intrinsic, kernel
from ..kernels.distances import prefetch

MAX_ROWS = 1 << 31
AHEAD = 2  # records that are on their way while one is looked at
_DONE = np.uint64(1)
_ROW = np.uint64(0x7FFF_FFFF)


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
    """A pool entry, not done."""
    bits = _bits(np.float32(key + np.float32(0)))  # -0 and 0 are one key
    rank = bits if bits >> np.uint32(31) else np.uint32(~bits & np.uint32(0x7FFF_FFFF))
    return (np.uint64(rank) << np.uint64(32)) | (np.uint64(row) << np.uint64(1))


@kernel
def key_in(entry):
    rank = np.uint32(entry >> np.uint64(32))
    bits = rank if rank >> np.uint32(31) else np.uint32(~rank & np.uint32(0x7FFF_FFFF))
    return _float(np.uint32(bits))


@kernel
def row_in(entry):
    return np.int64((entry >> np.uint64(1)) & _ROW)


@kernel
def insert(pool, size, limit, entry):
    """Puts an entry in its place among the best `limit`; returns that place, or `limit` when it is not among them."""
    at = size
    if size == limit:
        if entry >= pool[limit - 1]:
            return limit
        at = limit - 1
    while at > 0 and pool[at - 1] > entry:
        pool[at] = pool[at - 1]
        at -= 1
    pool[at] = entry
    return at


@kernel
def walk(words, at, t, b, codes, adj, deg, entries, seen, epoch, pool, limit, ef, wanted, near):
    """Fills the pool with the best `limit` nodes that are found by going on from the best `ef`; returns (size, rows scored).

    words, at, t, b: the query, see `codec.int8.estimate`. wanted: nodes until which it goes on anyhow.
    """
    stride = np.int64(codes.shape[1])
    size, scored = 0, len(entries)
    for e in range(len(entries)):
        row = np.int64(entries[e])
        prefetch(codes, np.int64(entries[min(e + 1, len(entries) - 1)]) * stride, stride)
        seen[row] = epoch
        if insert(pool, size, limit, packed(estimate(words, at, t, b, codes, row), row)) < limit and size < limit:
            size += 1
    place = 0
    while place < size and (place < ef or size < wanted):
        entry = pool[place]
        if entry & _DONE:
            place += 1
            continue
        pool[place] = entry | _DONE
        count = unseen(adj, deg, row_in(entry), seen, epoch, near)
        begin(codes, stride, near, count)
        scored += count
        lowest = place + 1
        for i in range(count):
            row = near[i]
            prefetch(codes, near[min(count - 1, i + AHEAD)] * stride, stride)
            new = packed(estimate(words, at, t, b, codes, row), row)
            where = insert(pool, size, limit, new)
            if where < limit:
                lowest = min(lowest, where)
                size = min(size + 1, limit)
        place = lowest
    return size, scored


@kernel
def begin(codes, stride, near, count):
    """Asks for the first records that will be looked at."""
    for i in range(min(AHEAD, count)):
        prefetch(codes, near[i] * stride, stride)


@kernel
def unseen(adj, deg, row, seen, epoch, near):
    """The neighbours of a row that the walk has not met, to near[:count]."""
    count = 0
    for j in range(np.int64(deg[row])):
        other = np.int64(adj[row, j])
        near[count] = other
        count += seen[other] != epoch
        seen[other] = epoch
    return count


@kernel
def walk_allowed(words, at, t, b, codes, adj, deg, entries, seen, epoch, pool, limit, near, heap, allowed, most):
    """Like `walk`, but only allowed rows enter the pool; others are walked through.

    heap: (n,) uint64 scratch. Returns (size, rows scored), or size -1 when more than `most` rows would have to be scored.
    """
    stride = np.int64(codes.shape[1])
    size, scored, waiting = 0, len(entries), 0
    for e in range(len(entries)):
        row = np.int64(entries[e])
        seen[row] = epoch
        entry = packed(estimate(words, at, t, b, codes, row), row)
        waiting = _push(heap, waiting, entry)
        if is_allowed(allowed, row) and insert(pool, size, limit, entry) < limit and size < limit:
            size += 1
    while waiting:
        entry = heap[0]
        waiting = _pop(heap, waiting)
        if size == limit and entry > pool[size - 1]:
            break
        count = unseen(adj, deg, row_in(entry), seen, epoch, near)
        begin(codes, stride, near, count)
        scored += count
        if scored > most:
            return -1, scored
        for i in range(count):
            row = near[i]
            prefetch(codes, near[min(count - 1, i + AHEAD)] * stride, stride)
            new = packed(estimate(words, at, t, b, codes, row), row)
            if size == limit and new > pool[size - 1]:
                continue
            waiting = _push(heap, waiting, new)
            if is_allowed(allowed, row) and insert(pool, size, limit, new) < limit and size < limit:
                size += 1
    return size, scored


@kernel
def is_allowed(allowed, row):
    return (allowed[row >> 6] >> np.uint64(row & 63)) & np.uint64(1)


@kernel
def _push(heap, size, entry):
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if heap[parent] <= entry:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = entry
    return size + 1


@kernel
def _pop(heap, size):
    """Drops the least entry; returns the new size."""
    size -= 1
    entry, at = heap[size], 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry
    return size
