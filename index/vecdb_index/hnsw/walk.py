"""Best-first walks over a graph: the kernels that build and search share.

Rows are met by their codes in four bits (`codec.int4`), or where those cannot tell neighbours apart in eight (`codec.int8`).
What ranks are estimates; whoever wants keys looks at the rows themselves. A walk waits for memory more than it computes: so
it takes the best few nodes at a time, asks for the records of all their neighbours while it reads their links, and for links as
soon as a node enters the pool.

A *pool* holds the best nodes seen, ascending, as entries of `kernels.select`, whose last bit says that a node is done. `seen`
marks the nodes that a walk has met, by the number of the walk (*epoch*), so that it need not be cleared for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..codec.int4 import coming, estimate4
from ..codec.int8 import estimate
from ..kernels.bitmap import is_allowed
from ..kernels.compile import kernel
from ..kernels.distances import prefetch
from ..kernels.select import packed, row_in

TOGETHER = 8  # nodes whose neighbours are looked at together at most, so that more of memory is on its way at once
_AHEAD = 2  # records of `codec.int8` that are on their way while one is looked at
_DONE = np.uint64(1)


@kernel
def insert(pool, size, limit, entry):
    """Puts an entry in its place among the best `limit`; returns that place, or `limit` when it is not among them."""
    at, one = np.uint64(size), np.uint64(1)  # unsigned: a signed index would be asked each time whether it counts from the end
    if size == limit:
        at -= one
        if entry >= pool[at]:
            return np.int64(limit)
    while at > 0 and pool[at - one] > entry:
        pool[at] = pool[at - one]
        at -= one
    pool[at] = entry
    return np.int64(at)


@kernel
def next_epoch(seen, epoch):
    """The number of the next walk, after epoch[0]; `seen` is cleared when numbers run out."""
    if epoch[0] == np.uint16(65535):
        seen[:] = 0
        epoch[0] = 0
    epoch[0] += np.uint16(1)
    return epoch[0]


@kernel
def walk(words, at, t, b, f, codes, small, adj, deg, entries, seen, epoch, pool, limit, ef, wanted, near, guess):
    """Fills the pool with the best `limit` nodes that are found by going on from the best `ef`; returns (size, rows scored).

    words, at, t, b, f: the query, see `look`. wanted: nodes until which it goes on anyhow. near, guess: scratch, see `room_of`.
    """
    count = np.int64(0)
    for e in range(len(entries)):
        near[count] = entries[e]
        coming(small, near[count])
        seen[near[count]] = epoch
        count += 1
    together = _together(small, ef)
    scored = count
    look(words, at, t, b, f, codes, small, near, count, guess)
    size, place = _join(pool, 0, limit, near, guess, count, 0, adj)
    while True:
        count, taken = np.int64(0), 0
        while taken < together and place < size and (place < ef or size < wanted):
            entry = pool[place]
            if not entry & _DONE:
                pool[place] = entry | _DONE
                count = _unseen(adj, deg, row_in(entry), seen, epoch, small, near, count)
                taken += 1
            place += 1
        if not taken:
            return size, scored
        if count:
            scored += count
            look(words, at, t, b, f, codes, small, near, count, guess)
            size, place = _join(pool, size, limit, near, guess, count, place, adj)


@kernel
def _together(small, ef):
    """How many nodes are gone on from at once. More have more of memory on its way; but of few the last is not worth it."""
    return min(TOGETHER, 2 + ef // 16) if small.shape[1] else 1


@kernel
def look(words, at, t, b, f, codes, small, near, count, guess):
    """Estimates of the rows near[:count], to guess[:count]; both have room for three more.

    words[at:], t, b, f: the query as the codes want it that rows are met by: `small` (`codec.int4`), or `codes` (`codec.int8`,
    without f) where small has no bytes.
    """
    if small.shape[1]:
        for i in range(3 if count else 0):
            near[np.uint64(count + i)] = near[np.uint64(count - 1)]
        for i in range(0, count, 4):
            estimate4(words, at, t, b, f, small, near, i, guess)
        return
    stride = np.int64(codes.shape[1])
    for i in range(min(_AHEAD, count)):
        prefetch(codes, near[i] * stride, stride)
    for i in range(count):
        prefetch(codes, near[min(count - 1, i + _AHEAD)] * stride, stride)
        guess[i] = estimate(words, at, t, b, codes, near[i])


@kernel
def _join(pool, size, limit, near, guess, count, place, adj):
    """Puts rows into the pool; returns its size, and the lesser of `place` and the first place that is new."""
    links = np.int64(adj.shape[1])
    for i in range(np.uint64(count)):
        where = insert(pool, size, limit, packed(guess[i], near[i]))
        if where < limit:
            prefetch(adj, near[i] * links, links)
            place = min(place, where)
            size = min(size + 1, limit)
    return size, place


@kernel
def _unseen(adj, deg, row, seen, epoch, small, near, count):
    """Adds the neighbours of a row that the walk has not met to near[:count], with their records on the way; returns count."""
    place, last = np.uint64(row), np.uint64(count)
    for j in range(np.uint64(deg[row])):
        other = np.uint64(adj[place, j])
        coming(small, np.int64(other))  # also of those that were met, whose records are near already: no branch
        near[last] = np.int64(other)
        last += np.uint64(seen[other] != epoch)
        seen[other] = epoch
    return np.int64(last)


def room_of(adj: Any, entries: Any) -> int:
    """How many rows one look may be at, and the three beyond."""
    return int(max(len(entries), TOGETHER * adj.shape[1])) + 4


@kernel
def walk_allowed(
    words, at, t, b, f, codes, small, adj, deg, entries, seen, epoch, pool, limit, ef, wanted, near, guess, heap, allowed, most
):
    """Like `walk`, but only allowed rows enter the pool; others are walked through.

    heap: (n,) uint64 scratch. Returns (size, rows scored), or size -1 when more than `most` rows beside the entries would
    have to be scored.
    """
    count = np.int64(0)
    for e in range(len(entries)):
        near[count] = entries[e]
        coming(small, near[count])
        seen[near[count]] = epoch
        count += 1
    together, enough = _together(small, ef), max(ef, wanted)
    size, scored, waiting = 0, np.int64(0), 0
    while count:
        scored += count
        if scored > most + len(entries):
            return -1, scored
        look(words, at, t, b, f, codes, small, near, count, guess)
        for i in range(count):
            entry = packed(guess[i], near[i])
            if size < enough or entry < pool[ef - 1]:
                waiting = _push(heap, waiting, entry)
            elif size == limit and entry > pool[size - 1]:
                continue
            if is_allowed(allowed, near[i]) and insert(pool, size, limit, entry) < limit and size < limit:
                size += 1
        count, taken = np.int64(0), 0
        while waiting and (taken < together or not count) and (size < enough or heap[0] < pool[ef - 1]):
            row = row_in(heap[0])
            waiting = _pop(heap, waiting)
            count = _unseen(adj, deg, row, seen, epoch, small, near, count)
            taken += 1
    return size, scored


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
