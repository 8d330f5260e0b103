"""Searches the lists of one segment.

The lists of the heaviest components of a query are looked into, as many as `effort` says. The summaries of all their blocks are
scored first, so blocks are visited best first, whichever list they are of, until one is not likely to hold a row that counts. A
row is scored by its head, and where that is promising by its tail; both are on their way from memory before they are needed.
Where the index knows the rows most like each, those of the best rows are scored too (arXiv 2408.04443). What is best by codes
is then compared by its weights: keys are exact. `effort` 1 is the exact search.

A SeismicSearcher is safe in any thread: each search borrows scratch (64 KB, a bit for each row, and what it visits).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..contract import Arrays, Bitmap, Control, Hits, Keys, SparseRows
from ..flat.sparse import SparseSearcher
from ..kernels.bitmap import ALL, ones
from ..kernels.compile import kernel
from ..kernels.distances import prefetch, read_only
from ..kernels.select import NO_FLOOR, insert
from ..kernels.sparse import LEAST_SLOTS, lay_out, product, shift_of, slots_for
from .full import ExactSearcher
from .layout import HEAD, NONE, SLOTS, Index, alike, has_tail, head_score, lowest, opened, tail_score, term_of
from .params import Seismic

_POLL = 64  # queries between two looks at the deadline
_SCRATCH = 8  # kept for later searches
_MOST_ASKED = 33_025  # components of a query by codes, so that scores are 32 bits
_BATCH = 8  # rows that are on their way while as many are looked at
_TELLING = 24  # components of a query by which blocks are scored; the others hardly change their order
_FEW = 20_000  # allowed rows: of more, an exact search is never the quicker one
_RARE = 0.05  # share of rows that are allowed, below which pruned lists are not asked
_SPREAD = 0.4  # the power of the selectivity by which more lists are looked into
_COMING = 4  # rows that are on their way while one is looked at
_BUCKETS = 512  # of the scores of blocks
_FIRST = np.int32(1 << 30)  # the score of a block without a summary
_ROUNDING = 0.97  # by which scores in codes may be too low
_SHARES = {"median": 50, "95 %": 95, "longest": 100}
_NONE = read_only(np.zeros(0, np.int64))


class Settings(NamedTuple):
    """How much a search does.

    cut: lists looked into. factor: of the least score that counts, what a block's must be. head: what a row's head must have
    of it. near: the rows most like the best ones that are scored, of each so many.
    """

    cut: int
    factor: float
    head: float
    near: int = 0


_EVERYTHING = Settings(1 << 30, 0.0, 0.0)
_EXPANDED = np.uint64(1 << 31)  # of a row in the pool: those most like it were scored
_DEAR = 1e-3  # seconds of an exact search: before one that takes longer, all lists are looked into


def settings_of(effort: float, selectivity: float = 1.0, near: int = 0) -> Settings:
    """By sweeps over rows like those of encoders: each is near the best for the recall that it gives. Fewer allowed rows lie in
    more lists; where the rows most like each are known, fewer lists do."""
    effort = min(1.0, max(0.0, effort))
    cut = 2 * (12 if near else 16) ** effort * max(selectivity, 1e-6) ** -_SPREAD
    return Settings(round(cut), 1.2 - 0.4 * effort if near else 1.1 - 0.5 * effort, 0.75 - 0.45 * effort, near)


def looked_at(k: int) -> int:
    """How many rows are compared by their weights: some that seem beyond the k best by codes are not."""
    return k + 6 + k // 8


class _Scratch(NamedTuple):
    table: npt.NDArray[np.uint8]  # by slot: the query's codes; 0 between queries
    seen: npt.NDArray[np.uint64]  # rows, as bits; 0 between queries
    met: npt.NDArray[np.uint32]  # the rows that are set in it
    sums: npt.NDArray[np.int32]  # by block, as they are looked into
    order: npt.NDArray[np.uint64]  # score | block
    buckets: npt.NDArray[np.int64]
    batch: npt.NDArray[np.int64]  # 4 x _BATCH: two batches of rows by their heads, two by their tails
    partial: npt.NDArray[np.int64]  # the scores of the latter's heads
    pool: npt.NDArray[np.uint64]  # score, inverted | row; ascending
    terms: npt.NDArray[np.int64]  # of the query: its terms, slots, codes
    slots: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    heaviest: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]  # by slot: the query's weights, where the table is not 0
    hashed: npt.NDArray[np.uint32]  # see kernels.sparse
    values: npt.NDArray[np.float32]


class SeismicSearcher:
    def __init__(self, arrays: Arrays, rows: SparseRows, params: Seismic) -> None:
        """Raises Damaged."""
        self.rows = rows
        self.index, self._unit, self._signed = opened(arrays, len(rows))
        self._weights = read_only(rows.offsets), read_only(rows.indices), read_only(rows.weights)
        self._mean = (int(rows.offsets[-1]) - int(rows.offsets[0])) / max(1, len(rows))
        self._block = len(self.index.posts) / max(1, len(self.index.blocks) - 1)
        self._near = self.index.near.shape[1]
        self._present = _missing(self.index.head32, rows.present)
        self.figures = _figures(self.index)
        self._spare: deque[_Scratch] = deque(maxlen=_SCRATCH)
        self.exact: SparseSearcher | ExactSearcher = SparseSearcher(rows)
        if params.exact == "lists" and not self._signed:
            slots = int(self.index.slots.max()) + 1 if len(self.index.slots) else len(self.index.lists) - 1
            self.exact = ExactSearcher(arrays, self, slots)

    def search(
        self,
        queries: SparseRows,
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """See contract.Searcher."""
        n = len(self.rows)
        share = 1.0 if allowed is None else ones(allowed) / max(1, n)
        few = share * n < _FEW and self.exact.cost(k, 1.0, share) <= self._cost(k, effort, share)
        if effort >= 1 or self._signed or few or self._is_rare(share):
            return self.exact.search(queries, k, allowed=allowed, floor=floor, control=control)
        return self.search_with(settings_of(effort, share, self._near), queries, k, allowed, floor, control)

    def _is_rare(self, share: float) -> bool:
        """Whether so few rows are allowed that pruned lists miss what counts, where whole ones are at hand."""
        return share < _RARE and isinstance(self.exact, ExactSearcher)

    def nearly(
        self, queries: SparseRows, k: int, effort: float, allowed: Bitmap | None, floor: Keys | None, control: Control | None
    ) -> Hits:
        """Like `search`, but where fewer hits are found than there are, so be it."""
        share = 1.0 if allowed is None else ones(allowed) / max(1, len(self.rows))
        return self.search_with(settings_of(effort, share, self._near), queries, k, allowed, floor, control, repaired=False)

    def search_with(
        self,
        settings: Settings,
        queries: SparseRows,
        k: int,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
        repaired: bool = True,
    ) -> Hits:
        """A search by lists, with its settings as they are; `repaired` by an exact one for queries with too few hits."""
        n, m = len(self.rows), len(queries)
        if allowed is not None and self.rows.present is not None:
            allowed = allowed & self.rows.present
        allowed = self._present if allowed is None else allowed
        count = n if allowed is None else ones(allowed)
        wanted, share = min(k, count), count / max(1, n)
        keys, rows, sizes = np.empty((m, k), np.float32), np.empty((m, k), np.int64), np.zeros(m, np.int32)
        keys.fill(-np.inf)
        rows.fill(-1)
        scored, read, fewer, lists, blocks, visited = 0, 0, 0, 0, 0, 0
        if n and m and wanted:
            scratch = self._borrow(queries, looked_at(k))
            words = ALL if allowed is None else read_only(allowed)
            lowest = NO_FLOOR if floor is None else read_only(floor)
            asked = read_only(queries.offsets), read_only(queries.indices), read_only(queries.weights)
            step = m if control is None else _POLL
            for start in range(0, m, step):
                if control is not None:
                    control.poll()
                heads, tails, looked, more, *met = _search(
                    asked, start, min(m, start + step), self.index, self._weights, self._unit, *settings, wanted, looked_at(k),
                    words, lowest, keys, rows, sizes, scratch,
                )  # fmt: skip
                scored, fewer = scored + heads, fewer + more
                lists, blocks, visited = lists + met[0], blocks + met[1], visited + met[2]
                read += heads * HEAD + int(tails * 3 * self._mean + looked * 8 * self._mean)
            self._spare.append(scratch)
            short = np.flatnonzero(sizes < 0) if fewer else _NONE
            sizes[short] = 0
            if fewer and repaired:
                lower, those = None if floor is None else floor[short], _some(queries, short)
                if settings == _EVERYTHING or self.exact.cost(k, 1.0, share) < _DEAR:
                    found = self.exact.search(those, k, allowed=allowed, floor=lower, control=control)
                else:
                    found = self.search_with(_EVERYTHING, those, k, allowed, lower, control)
                keys[short], rows[short], sizes[short] = found.keys, found.rows, found.lengths
                scored, read = scored + found.scored, read + found.bytes
        seen = {"lists": lists, "of their blocks": blocks, "blocks visited": visited, "queries searched exactly": fewer}
        return Hits(keys, rows, sizes, np.zeros(m, np.bool_), scored, read, seen)

    def _borrow(self, queries: SparseRows, limit: int) -> _Scratch:
        """Scratch of an earlier search, where that is large enough."""
        ends = queries.offsets
        most = int(ends[1]) - int(ends[0]) if len(ends) == 2 else int(np.diff(ends).max(initial=0))
        n, blocks = len(self.rows), len(self.index.blocks) - 1
        try:
            scratch = self._spare.pop()
        except IndexError:
            none = np.empty(0, np.int64)
            scratch = _Scratch(
                np.zeros(SLOTS, np.uint8), np.zeros(-(-n // 64), np.uint64), np.empty(n, np.uint32),
                np.empty(blocks + 256, np.int32), np.empty(blocks, np.uint64), np.empty(_BUCKETS + 1, np.int64),
                np.empty(4 * _BATCH, np.int64), np.empty(2 * _BATCH, np.int64), np.empty(0, np.uint64), none, none, none, none,
                np.empty(SLOTS, np.float32), np.empty(0, np.uint32), np.empty(0, np.float32),
            )  # fmt: skip
        if len(scratch.pool) < limit + 1:
            scratch = scratch._replace(pool=np.empty(limit + 1, np.uint64))
        if len(scratch.terms) < most:
            terms, slots, codes, heaviest = (np.empty(max(128, most), np.int64) for _ in range(4))
            scratch = scratch._replace(terms=terms, slots=slots, codes=codes, heaviest=heaviest)
        size = slots_for(max(16, most)) if len(self.index.terms) else LEAST_SLOTS
        if len(scratch.hashed) != size:
            scratch = scratch._replace(hashed=np.empty(size, np.uint32), values=np.empty(size, np.float32))
        return scratch

    def rows_at(self, query: SparseRows, key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """See SparseSearcher."""
        return self.exact.rows_at(query, key, allowed)

    def spread(self, allowed: Bitmap) -> float:
        """See contract.Searcher."""
        return 1.0

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """By the lists that are looked into, the rows that are scored, and those that are looked at."""
        exact = self.exact.cost(k, 1.0, selectivity, queries)
        if effort >= 1 or self._signed or self._is_rare(selectivity):
            return exact
        return min(exact, self._cost(k, effort, selectivity))

    def _cost(self, k: int, effort: float, selectivity: float) -> float:
        far = max(1.0, len(self.rows) / 300_000) ** 0.4  # more rows, fewer of them near in memory
        return 15e-6 + far * (6.5e-6 * settings_of(effort, selectivity, self._near).cut ** 0.85 + 1e-6 * k)


def _figures(index: Index) -> dict[str, int]:
    """How long lists are, and their blocks."""
    rows = index.blocks[index.sections[index.lists, 0]].astype(np.int64)
    sizes = np.diff(rows)[np.diff(rows) > 0]
    some = {f"list length, {name}": int(np.percentile(sizes, p)) for name, p in _SHARES.items()} if len(sizes) else {}
    return {"lists": len(sizes), "postings": int(sizes.sum()), "blocks": len(index.blocks) - 1, **some}


def _some(rows: SparseRows, which: npt.NDArray[np.int64]) -> SparseRows:
    """Some queries."""
    sizes = np.diff(rows.offsets)[which]
    offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
    parts = [slice(int(rows.offsets[i]), int(rows.offsets[i + 1])) for i in which.tolist()]
    return SparseRows(offsets, *(np.concatenate([each[part] for part in parts]) for each in (rows.indices, rows.weights)))


def _missing(heads: npt.NDArray[np.uint32], present: Bitmap | None) -> Bitmap | None:
    """The rows that are present, where some that the index has are not; else None."""
    if present is None:
        return None
    there = np.zeros(len(present) * 64, np.bool_)
    counts = heads[1 :: HEAD // 4]
    there[: len(counts)] = counts > 0
    return present if (np.packbits(there, bitorder="little").view(np.uint64) & ~present).any() else None


# -- kernels -------------------------------------------------------------------------------------------------


@kernel
def _search(
    asked, start, stop, index, weights, unit, cut, factor, head, near, wanted, enough, allowed, floors, keys, rows, sizes,
    scratch,
):  # fmt: skip
    """Fills keys, rows and sizes of queries start..stop; -1 where an exact search has to.

    Returns how many rows were scored by their heads, by their tails, and looked at; for how many queries it has to; and how
    many lists were looked into, blocks they have, and of these were visited.
    """
    heads, tails, looked, fewer, looked_into, all_blocks, visited = 0, 0, 0, 0, 0, 0, 0
    for q in range(start, stop):
        floor = np.float64(floors[q % len(floors)])
        first, last = np.int64(asked[0][q]), np.int64(asked[0][q + 1])
        step = _ask(asked[1], asked[2], first, last, index, scratch)
        if step <= 0:
            if step < 0:
                sizes[q] = -1
                fewer += 1
            continue
        told = _heaviest(asked[2], first, last - first, index, max(cut, _TELLING), scratch)
        lists = min(cut, told)
        least = np.int64(0)
        if floor > 0:
            least = np.int64(min(np.float64(1 << 31), _ROUNDING * floor / (step * unit)))
        blocks = _look_into(lists, told, index, scratch)
        size, more, deep, all_of, some = _visit(blocks, index, factor, head, near, wanted, enough, least, allowed, scratch)
        looked_into += lists
        all_blocks += blocks
        visited += some
        heads += more
        tails += deep
        found, more = _rank(asked, first, last, weights, size, wanted, floor, q, index, keys, rows, scratch)
        looked += more
        for j in range(last - first):
            if scratch.terms[j] >= 0:
                scratch.table[np.uint64(scratch.slots[j])] = np.uint8(0)
        sizes[q] = found
        # Fewer than there should be: unless every row that shares a component was seen, or all that are left out are too low.
        if found < wanted and not floor > 0 and not (all_of and _is_whole(last - first, lists, index, scratch)):
            sizes[q] = -1
            fewer += 1
    return heads, tails, looked, fewer, looked_into, all_blocks, visited


@kernel
def _ask(indices, weights, first, last, index, scratch):
    """Lays out a query: terms, slots and codes of its components, and the table. Returns the weight of a code of 1.

    0 when no component is known; -1 where codes are not for it: a weight is negative, or there are too many.
    """
    most = np.float32(0)
    for j in range(first, last):
        if weights[j] < 0:
            return np.float64(-1)
        most = max(most, weights[j])
    if last - first > _MOST_ASKED:
        return np.float64(-1)
    step, known = np.float64(most) / 255, 0
    count = len(index.lists) - 1
    for j in range(last - first):
        term = term_of(index.terms, count, indices[first + j])
        scratch.terms[j] = term
        if term < 0:
            continue
        known += 1
        slot = np.int64(index.slots[term]) if len(index.slots) else term
        code = np.uint8(max(np.float64(1), np.rint(np.float64(weights[first + j]) / step)))
        scratch.slots[j], scratch.codes[j] = slot, np.int64(code)
        scratch.table[np.uint64(slot)] = max(scratch.table[np.uint64(slot)], code)
        scratch.weights[np.uint64(slot)] = weights[first + j]
    return step if known else np.float64(0)


@kernel
def _heaviest(weights, first, count, index, cut, scratch):
    """The places of the heaviest components whose lists hold rows, best first, to scratch.heaviest; returns how many."""
    chosen, size = scratch.heaviest, 0
    for j in range(count):
        term = scratch.terms[j]
        if term < 0 or index.lists[term] == index.lists[term + 1]:
            continue
        weight = weights[first + j]
        if size == cut:
            if weight <= weights[first + chosen[size - 1]]:
                continue
            size -= 1
        at = size
        while at > 0 and weights[first + chosen[at - 1]] < weight:
            chosen[at] = chosen[at - 1]
            at -= 1
        chosen[at] = j
        size += 1
    return size


@kernel
def _look_into(lists, count, index, scratch):
    """Scores the blocks of the lists of the first `lists` of the `count` heaviest components, by all of these.

    Puts them in order, best first: scratch.order. Returns how many there are.
    """
    sums, width = scratch.sums, np.int64(index.directory.shape[1])
    total = np.int64(0)
    for i in range(lists):  # what is read first comes first
        term = np.uint64(scratch.terms[scratch.heaviest[i]])
        for s in range(np.int64(index.lists[term]), np.int64(index.lists[term + np.uint64(1)])):
            prefetch(index.directory, np.int64(index.sections[s, 1] if index.sections[s, 1] != NONE else 0) * width, width)
            total += np.int64(index.sections[s + 1, 0]) - np.int64(index.sections[s, 0])
    sums[: total + 256] = 0
    for i in range(lists):
        term = np.uint64(scratch.terms[scratch.heaviest[i]])
        for s in range(np.int64(index.lists[term]), np.int64(index.lists[term + np.uint64(1)])):
            _fetch_entries(s, count, index, scratch)
    at = np.int64(0)
    for i in range(lists):
        term = np.uint64(scratch.terms[scratch.heaviest[i]])
        for s in range(np.int64(index.lists[term]), np.int64(index.lists[term + np.uint64(1)])):
            blocks = np.int64(index.sections[s + 1, 0]) - np.int64(index.sections[s, 0])
            if index.sections[s, 1] == NONE:
                for b in range(blocks):
                    sums[at + b] = _FIRST
            else:
                _add_entries(s, count, at, index, scratch)
            at += blocks
    _sort(lists, total, index, scratch)
    return total


@kernel
def _fetch_entries(section, count, index, scratch):
    if index.sections[section, 1] == NONE:
        return
    row, first = np.uint64(index.sections[section, 1]), np.int64(index.first[section])
    flat = index.directory
    for i in range(np.uint64(count)):
        bucket = np.uint64(scratch.slots[scratch.heaviest[i]] >> 8)
        begin = np.int64(flat[row, bucket])
        size = np.int64(flat[row, bucket + np.uint64(1)]) - begin
        prefetch(index.entries, 3 * (first + begin), 3 * size)


@kernel
def _add_entries(section, count, at, index, scratch):
    """Adds to the sums of a section's blocks, which begin at `at`, what the query has in common with their summaries."""
    row, first = np.uint64(index.sections[section, 1]), np.int64(index.first[section])
    sums, entries, flat, base = scratch.sums, index.entries, index.directory, np.uint64(at)
    one = np.uint32(1)
    for h in range(np.uint64(count)):
        j = np.uint64(scratch.heaviest[h])
        slot = np.uint64(scratch.slots[j])
        low, bucket, code = np.uint8(slot & np.uint64(255)), slot >> np.uint64(8), np.int32(scratch.codes[j])
        begin = np.int64(flat[row, bucket])
        size = np.uint64(np.int64(flat[row, bucket + np.uint64(1)]) - begin)
        where = np.uint64(3 * (first + begin))
        for i in range(np.uint64(0), size, np.uint64(32)):
            same = alike(entries, where + i, low)
            if size - i < np.uint64(32):
                same &= (one << np.uint32(size - i)) - one
            while same:
                place = where + size + i + lowest(same)
                same &= same - one
                b = base + np.uint64(entries[place])
                sums[b] += code * np.int32(entries[place + size])


@kernel
def _sort(lists, total, index, scratch):
    """A counting sort of the blocks by their sums, greatest first."""
    sums, buckets, order = scratch.sums, scratch.buckets, scratch.order
    most = np.int32(1)
    for b in range(np.uint64(total)):
        if sums[b] != _FIRST:
            most = max(most, sums[b])
    scale = np.float32((_BUCKETS - 1) / np.float64(most))
    buckets[:] = 0
    for b in range(np.uint64(total)):
        buckets[_bucket(sums[b], scale)] += 1
    count = np.int64(0)
    for c in range(_BUCKETS):
        mine = buckets[c]
        buckets[c] = count
        count += mine
    at = np.uint64(0)
    for i in range(lists):
        term = np.uint64(scratch.terms[scratch.heaviest[i]])
        s, t = np.int64(index.lists[term]), np.int64(index.lists[term + np.uint64(1)])
        for block in range(np.uint64(index.sections[s, 0]), np.uint64(index.sections[t, 0])):
            bucket = _bucket(sums[at], scale)
            order[np.uint64(buckets[bucket])] = (np.uint64(sums[at]) << np.uint64(32)) | block
            buckets[bucket] += 1
            at += np.uint64(1)


@kernel
def _bucket(value, scale):
    return np.uint64(np.int64(_BUCKETS - 1) - min(np.int64(_BUCKETS - 1), np.int64(np.float32(value) * scale)))


@kernel
def _visit(blocks, index, factor, head, near, wanted, enough, least, allowed, scratch):
    """Scores the rows of blocks in order: the best `enough` to scratch.pool.

    Returns (size, rows by head, rows by tail, whether every row of every block was scored in full, blocks visited).
    """
    order, seen, met, pool = scratch.order, scratch.seen, scratch.met, scratch.pool
    batch, partial = scratch.batch, scratch.partial
    size, count, tails, waiting, coming, side, all_of = 0, np.uint64(0), 0, 0, 0, 0, True
    last_waiting, last_coming = 0, 0
    bound, visited = np.int64(least), 0
    for i in range(blocks + 2):
        begin, end = np.uint64(0), np.uint64(0)
        if i < blocks:
            entry = order[i]
            score = np.int64(entry >> np.uint64(32))
            if score < factor * bound:
                all_of = False
                continue
            visited += 1
            block = np.uint64(entry & np.uint64(0xFFFF_FFFF))
            ahead = np.uint64(order[min(blocks - 1, i + 8)] & np.uint64(0xFFFF_FFFF))
            prefetch(index.blocks, np.int64(ahead), 2)
            ahead = np.uint64(order[min(blocks - 1, i + 4)] & np.uint64(0xFFFF_FFFF))
            prefetch(index.posts, np.int64(index.blocks[ahead]), 8)
            begin, end = np.uint64(index.blocks[block]), np.uint64(index.blocks[block + np.uint64(1)])
        p = begin
        while p < end or i >= blocks:
            if p < end:
                row = np.uint64(index.posts[p])
                p += np.uint64(1)
                word, bit = row >> np.uint64(6), np.uint64(1) << (row & np.uint64(63))
                if seen[word] & bit:
                    continue
                seen[word] |= bit
                met[count] = np.uint32(row)
                count += np.uint64(1)
                if len(allowed) and not allowed[word] & bit:
                    continue
                prefetch(index.head8, np.int64(row) * HEAD, HEAD)
                batch[side * _BATCH + waiting] = np.int64(row)
                waiting += 1
                if waiting < _BATCH:
                    continue
            # A batch is full: the one before has come.
            other = 1 - side
            coming = 0
            for j in range(last_waiting):
                row = np.uint64(batch[other * _BATCH + j])
                mine = head_score(scratch.table, index, np.int64(row))
                if not has_tail(index, np.int64(row)):
                    if mine > bound or (size < enough and mine > 0):
                        size = _offer(pool, size, enough, mine, row)
                elif mine >= head * bound:
                    at = np.int64(index.head32[row * np.uint64(HEAD // 4)])
                    rest = np.int64(index.head32[row * np.uint64(HEAD // 4) + np.uint64(1)])
                    prefetch(index.tail8, 4 * at, min(3 * rest, 512))
                    batch[(2 + side) * _BATCH + coming] = np.int64(row)
                    partial[side * _BATCH + coming] = mine
                    coming += 1
                else:
                    all_of = False
            for j in range(last_coming):
                row = np.uint64(batch[(2 + other) * _BATCH + j])
                mine = partial[other * _BATCH + j] + tail_score(scratch.table, index, np.int64(row))
                tails += 1
                if mine > bound or (size < enough and mine > 0):
                    size = _offer(pool, size, enough, mine, row)
            if size >= wanted:
                bound = max(bound, _score(pool[wanted - 1]))
            last_waiting, last_coming, side, waiting = waiting, coming, other, 0
            if i >= blocks:
                break
    # Two more turns than there are blocks empty the batches; then a third for the last tails.
    for j in range(last_coming):
        row = np.uint64(batch[(2 + 1 - side) * _BATCH + j])
        mine = partial[(1 - side) * _BATCH + j] + tail_score(scratch.table, index, np.int64(row))
        tails += 1
        if mine > bound or (size < enough and mine > 0):
            size = _offer(pool, size, enough, mine, row)
    if near:
        size, count, more = _expand(size, count, index, head, near, wanted, enough, least, allowed, scratch)
        tails += more
    for j in range(count):
        seen[np.uint64(met[j] >> np.uint32(6))] = np.uint64(0)
    return size, np.int64(count), tails, all_of, visited


@kernel
def _expand(size, count, index, head, near, wanted, enough, least, allowed, scratch):
    """Scores the rows most like the best `wanted`, and like those that come among them, until none does.

    Returns (size of the pool, rows seen, rows by tail).
    """
    pool, seen, met, batch, width = scratch.pool, scratch.seen, scratch.met, scratch.batch, index.near.shape[1]
    tails, at, low = 0, 0, np.uint64(0x7FFF_FFFF)
    for i in range(min(size, wanted)):
        prefetch(index.near.reshape(-1), np.int64(pool[i] & low) * width, width)
    while at < min(size, wanted):
        if pool[at] & _EXPANDED:
            at += 1
            continue
        source, coming, best = pool[at] & low, 0, pool[at]
        pool[at] |= _EXPANDED
        for j in range(min(near, width)):
            row = np.uint64(index.near[source, j])
            word, bit = row >> np.uint64(6), np.uint64(1) << (row & np.uint64(63))
            if seen[word] & bit:
                continue
            seen[word] |= bit
            met[count] = np.uint32(row)
            count += np.uint64(1)
            if len(allowed) and not allowed[word] & bit:
                continue
            prefetch(index.head8, np.int64(row) * HEAD, HEAD)
            batch[coming] = np.int64(row)
            coming += 1
        bound = least
        if size >= wanted:
            bound = max(bound, _score(pool[wanted - 1]))
        for j in range(coming):
            row = np.uint64(batch[j])
            mine = head_score(scratch.table, index, np.int64(row))
            if has_tail(index, np.int64(row)):
                if mine < head * bound:
                    continue
                mine += tail_score(scratch.table, index, np.int64(row))
                tails += 1
            if mine > bound or (size < enough and mine > 0):
                size = _offer(pool, size, enough, mine, row)
                best = min(best, _entry(mine, row))
        while at > 0 and pool[at - 1] >= best:
            at -= 1
    for i in range(size):
        pool[i] &= ~_EXPANDED
    return size, count, tails


@kernel
def _entry(score, row):
    """Of the pool: the better, the smaller."""
    return (np.uint64(np.uint32(~np.uint32(score))) << np.uint64(32)) | row


@kernel
def _score(entry):
    return np.int64(np.uint32(~np.uint32(entry >> np.uint64(32))))


@kernel
def _offer(pool, size, limit, score, row):
    """Puts a row into the pool; returns its new size."""
    entry = _entry(score, row)
    at, one = np.uint64(size), np.uint64(1)
    if size == limit:
        at -= one
        if entry >= pool[at]:
            return size
        size -= 1
    while at > 0 and pool[at - one] > entry:
        pool[at] = pool[at - one]
        at -= one
    pool[at] = entry
    return size + 1


@kernel
def _is_whole(count, lists, index, scratch):
    """Whether every row that has a term of the query is in a list that was looked into."""
    looked = 0
    for j in range(count):
        term = scratch.terms[j]
        if term >= 0:
            if not (index.whole[term >> 6] >> np.uint64(term & 63)) & np.uint64(1):
                return False
            looked += index.lists[term] != index.lists[term + 1]
    return looked == lists


@kernel
def _rank(asked, first, last, weights, size, wanted, floor, q, index, keys, rows, scratch):
    """Keys of the pool, best first, to keys[q] and rows[q]. Returns how many there are, and how many were looked at."""
    pool = scratch.pool
    offsets, indices, values = weights
    if size > wanted:
        lowest_of = _ROUNDING * _score(pool[wanted - 1])
        while size > wanted and _score(pool[size - 1]) < lowest_of:
            size -= 1
    plain = len(index.terms) == 0
    shift = shift_of(scratch.hashed)
    if not plain:
        lay_out(asked[1], asked[2], first, last, scratch.hashed, scratch.values, shift)
    for i in range(min(_COMING, size)):
        _fetch_row(offsets, indices, values, pool[i])
    count = 0
    for i in range(size):
        if i + _COMING < size:
            _fetch_row(offsets, indices, values, pool[i + _COMING])
        row = np.int64(pool[i] & np.uint64(0xFFFF_FFFF))
        if plain:
            key, common = _product(scratch, indices, values, offsets[row], offsets[row + 1])
        else:
            key, common = product(scratch.hashed, scratch.values, shift, indices, values, offsets[row], offsets[row + 1])
        if common == 0 or key < floor:
            continue
        count = insert(keys, rows, q, count, key, row)
    return count, size


@kernel
def _fetch_row(offsets, indices, values, entry):
    row = np.int64(entry & np.uint64(0xFFFF_FFFF))
    begin = np.int64(offsets[row])
    count = min(np.int64(offsets[row + 1]) - begin, 256)
    prefetch(indices, begin, count)
    prefetch(values, begin, count)


@kernel
def _product(scratch, indices, values, start, stop):
    """What kernels.sparse.product gives, to the bit, where slots are components."""
    table, weights = scratch.table, scratch.weights
    total, common = np.float64(0), 0
    for j in range(np.uint64(start), np.uint64(stop)):
        component = np.uint64(indices[j] & np.uint32(SLOTS - 1))
        if table[component]:
            total += np.float64(weights[component]) * np.float64(values[j])
            common += 1
    return np.float32(total), common
