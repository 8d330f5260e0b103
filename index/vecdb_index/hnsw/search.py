"""Searches the graph of one segment, or those of several by one call.

`effort` is how many rows a walk keeps in view and goes on from, *ef*, on a logarithmic scale from 2 to 4,096; where that is
less than k, the walk goes on from the best ef of k rows that it keeps. Under a bitmap that leaves most rows, as where some are
deleted, it keeps as many more, and drops those that are not allowed in the end. Under another it goes through rows that are not
allowed and keeps those that are, until none that is left is nearer than the best ef of these; where that would score more than
half of the allowed rows, or several times as many as usual, or finds fewer hits than it should, the allowed rows are scanned
instead: k hits come back whenever k are allowed.

A kernel is given a record of each graph (`_GRAPH`). So it walks all those that a query is asked of before its thread needs the
interpreter again, for which it may have to wait while others write.

A HNSWSearcher is safe in any thread: each search borrows scratch (2 bytes a row, and 8 with a bitmap).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec.int4 import Int4
from ..codec.int8 import SCALARS, Codes
from ..contract import Arrays, Bitmap, Control, Damaged, Hits, Keys, Rows
from ..flat.search import FlatSearcher
from ..kernels.bitmap import both, is_allowed, ones
from ..kernels.compile import kernel
from ..kernels.distances import METRICS, key_of, pair, prefetch, read_only
from ..kernels.select import insert, key_in, row_in
from ..kernels.view import address_of, room, view
from .params import HNSW
from .walk import next_epoch, room_of, walk, walk_allowed

LEAST_EF, MOST_EF = 2, 4096
_POLL = 64  # queries between two looks at the deadline
_SCRATCH = 8  # kept for later searches
_WAY, _FRESH = 350, 17  # rows scored on the way to the query's neighbours, and for each row that a walk goes on from there
_DEARER = 2  # a row that is walked to costs up to so many that are scanned
_PATIENCE = 6  # times the usual number of rows that a walk may score
_MOST = 0.7  # of the rows: a bitmap that leaves so many is asked in the end
_DOUBT = 0.5  # beyond the most that an estimate was too low, as a share of how far they are apart
_COMING = 3  # rows that are on their way while one is looked at

# What the kernel is told of a graph: where it lies, what to work in, and what is asked. Names of arrays stand for addresses.
_LIES = ("n", "codes", "code_bytes", "small", "small_bytes", "vectors", "norms", "adj", "links", "deg", "entries", "entered")
_WORKS = ("seen", "epoch", "near", "guess", "room", "pool", "places", "heap")
_ASKS = ("words", "width", "scalars", "first", "limit", "ef", "wide", "wanted", "most", "allowed", "allowed_words")
_GRAPH = np.dtype([("key_unit", np.float64), *((name, np.int64) for name in (*_LIES, *_WORKS, *_ASKS))])


def ef_of(effort: float) -> int:
    """How many rows a walk goes on from."""
    return round(LEAST_EF * (MOST_EF / LEAST_EF) ** min(1.0, max(0.0, effort)))


def _check(adj: npt.NDArray[Any], deg: npt.NDArray[Any], entries: npt.NDArray[Any], n: int) -> None:
    """No link or degree leads a kernel outside its arrays. Raises Damaged."""
    if [each.dtype.str for each in (adj, deg, entries)] != ["<u4", "<u2", "<u4"]:
        raise Damaged("its links are no row numbers")
    if adj.ndim != 2 or len(adj) != n or deg.shape != (n,) or entries.ndim != 1:
        raise Damaged(f"the graph is of {len(adj)} rows, the segment of {n}")
    if n and (int(deg.max()) > adj.shape[1] or int(adj.max(initial=0)) >= n):
        raise Damaged("a row has more links than there is room for, or one that leads nowhere")
    if len(entries) and int(entries.max()) >= n:
        raise Damaged("an entry is no row")


def looked_at(k: int) -> int:
    """How many of the rows that a walk found are looked at themselves, at least: some that seem beyond the k best are not."""
    return k + 6 + k // 8


class _Scratch:
    """What a walk works in. place: of its arrays, in a record."""

    __slots__ = ("_fixed", "_heap", "_pool", "place")

    def __init__(self, n: int, room: int) -> None:
        self._fixed = np.zeros(n, np.uint16), np.zeros(1, np.uint16), np.empty(room, np.int64), np.empty(room, np.float32)
        self._pool = self._heap = np.empty(0, np.uint64)

    def fit(self, limit: int, heap: int) -> None:
        """There is room for one row more than `limit` in the pool, and for so many in the heap."""
        if len(self._pool) > limit and len(self._heap) >= heap:
            return
        if len(self._pool) <= limit:
            self._pool = np.empty(max(256, limit + 1), np.uint64)
        if len(self._heap) < heap:
            self._heap = np.empty(heap, np.uint64)
        fixed, pool = [address_of(array) for array in self._fixed], address_of(self._pool)
        self.place = *fixed, len(self._fixed[2]), pool, len(self._pool), address_of(self._heap)


class _Walk(NamedTuple):
    """A walk that is to be made. held: what the addresses in the record are of. queries: as the kernels take them."""

    searcher: HNSWSearcher
    record: tuple[float | int, ...]
    scratch: _Scratch
    queries: npt.NDArray[np.float32]
    held: Any


class HNSWSearcher:
    def __init__(self, arrays: Arrays, rows: Rows, params: HNSW) -> None:
        """Raises Damaged."""
        self.rows = rows
        adj, deg, entries = (np.ascontiguousarray(arrays[name]) for name in ("adj", "deg", "entries"))
        _check(adj, deg, entries, len(rows))
        codes = Codes.opened(arrays, rows)
        small = Int4.opened(arrays, rows, codes)
        self.exact = FlatSearcher(rows, codes)
        self.vectors = read_only(rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors)
        self.metric = METRICS[rows.metric]
        self.row_bytes = rows.vectors[:1].nbytes
        self._met: Int4 | Codes = small or codes  # by which rows are met
        self.met_bytes = self._met.codes.shape[1]
        near = codes.codes[:, :0] if small is None else small.codes
        self._lie = codes.codes, near, self.vectors, rows.norms, adj, deg, entries
        at = [address_of(array) for array in self._lie]
        widths = codes.codes.shape[1], near.shape[1], adj.shape[1], len(entries)
        self._place = (
            self._met.key_unit, len(rows), at[0], widths[0], at[1], widths[1], *at[2:5], widths[2], *at[5:], widths[3],
        )  # fmt: skip
        self._entered, self._room = len(entries), room_of(adj, entries)
        self._count = len(rows) if rows.present is None else ones(rows.present)
        self.spare: deque[_Scratch] = deque(maxlen=_SCRATCH)
        self._known: tuple[Bitmap | None, Bitmap | None, int] = None, None, 0

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """See contract.Searcher."""
        return self.search_all([(self, effort, allowed)], queries, k, floor, control)[0]

    @staticmethod
    def search_all(
        parts: Sequence[tuple[HNSWSearcher, float, Bitmap | None]],
        queries: npt.NDArray[np.float32],
        k: int,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> list[Hits]:
        """See contract.Searcher."""
        m = len(queries)
        keys, rows = np.empty((len(parts) * m, k), np.float32), np.empty((len(parts) * m, k), np.int64)
        sizes, counts = np.empty(len(parts) * m, np.int32), np.zeros((len(parts), 3), np.int64)
        floors = np.full(m, -np.inf, np.float32) if floor is None else np.array(floor, np.float32)
        walks, bitmaps = [], []
        for number, (searcher, effort, allowed) in enumerate(parts):
            allowed, count = searcher._allowed(allowed)
            bitmaps.append(allowed)
            if m and k and count and searcher._entered:
                walks.append(searcher._walk(queries, k, effort, allowed, count, number))
                continue
            mine = slice(number * m, number * m + m)
            keys[mine], rows[mine], sizes[mine] = -np.inf, -1, 0
            if m and k and count:
                sizes[mine], counts[number, 2] = -1, m
        if walks:
            _walk_all(walks, k, floors, control, keys, rows, sizes, counts)
        found, tied = [], np.zeros(m, np.bool_)
        for number, (scored, looked, short) in enumerate(counts.tolist()):
            searcher, mine = parts[number][0], slice(number * m, number * m + m)
            hits = Hits(
                keys[mine], rows[mine], sizes[mine], tied, scored, scored * searcher.met_bytes + looked * searcher.row_bytes
            )
            found.append(searcher._scanned(hits, queries, k, bitmaps[number], floor, control) if short else hits)
        return found

    def _walk(
        self, queries: npt.NDArray[np.float32], k: int, effort: float, allowed: Bitmap | None, count: int, number: int
    ) -> _Walk:
        """Of the part with this number, of which `count` rows are allowed."""
        n, m = len(self.rows), len(queries)
        ready, words, scalars = self._met.ask(queries)
        ef, keep = min(ef_of(effort), n), max(ef_of(effort), looked_at(k))
        wide, most, bitmap = 0, 0, (0, 0)
        if allowed is not None:
            allowed, share = np.ascontiguousarray(allowed), count / n
            most, bitmap = self._most(k, ef, share), (address_of(allowed), len(allowed))
            if share >= _MOST:
                wide, keep = min(n, _among(ef, share)), _among(keep, share)
        limit = min(n, keep)
        try:
            scratch = self.spare.pop()
        except IndexError:
            scratch = _Scratch(n, self._room)
        scratch.fit(limit, n if bitmap[1] else 0)
        asks = address_of(words), words.shape[1], address_of(scalars), number * m, limit, ef, wide, min(k, count), most
        return _Walk(self, (*self._place, *scratch.place, *asks, *bitmap), scratch, ready, (words, scalars, allowed))

    def _scanned(
        self,
        hits: Hits,
        queries: npt.NDArray[np.float32],
        k: int,
        allowed: Bitmap | None,
        floor: Keys | None,
        control: Control | None,
    ) -> Hits:
        """The hits, when the allowed rows were scanned for those queries of which a walk found too few."""
        those = np.flatnonzero(hits.lengths < 0)
        lower = None if floor is None else floor[those]
        found = self.exact.search(queries[those], k, allowed=allowed, floor=lower, control=control)
        hits.keys[those], hits.rows[those], hits.lengths[those] = found.keys, found.rows, found.lengths
        return replace(hits, scored=hits.scored + found.scored, bytes=hits.bytes + found.bytes)

    def _allowed(self, words: Bitmap | None) -> tuple[Bitmap | None, int]:
        """Those that are there, and how many: known, of the bitmap that was given last, if it cannot change."""
        if words is None:
            return None, self._count
        given, allowed, count = self._known
        if given is not words:
            allowed = words if self.rows.present is None else both(words, self.rows.present)
            count = ones(allowed)
            if not words.flags.writeable:
                self._known = words, allowed, count
        return allowed, count

    def rows_at(self, query: npt.NDArray[np.float32], key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """See FlatSearcher."""
        return self.exact.rows_at(query, key, allowed)

    def spread(self, allowed: Bitmap) -> float:
        """See contract.Searcher."""
        return 1.0

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """By the records that a walk reads, each a miss of the cache, and the rows that are looked at in the end."""
        ef = min(ef_of(effort), len(self.rows))
        scored = self._walked(k, ef, selectivity)
        looked = looked_at(k)
        seconds = 10e-6 + looked * (60e-9 + self.row_bytes / 12e9)
        one = 25e-9 + self.met_bytes / 12e9
        if selectivity >= 1:
            return seconds + min(scored, len(self.rows)) * one
        most = self._most(k, ef, selectivity)
        in_vain = min(1.0, max(0.0, 2 * scored / max(1, most) - 1))  # how likely it is that rows are scanned after all
        return seconds + min(scored, most) * one + in_vain * self.exact.cost(k, 1.0, selectivity, queries)

    def _walked(self, k: int, ef: int, selectivity: float) -> float:
        """About how many rows a walk scores, where those that are allowed lie anywhere."""
        return self._entered + _WAY + _FRESH * max(ef, k / 12) / max(selectivity, 1 / max(1, len(self.rows)))

    def _most(self, k: int, ef: int, selectivity: float) -> int:
        """How many rows a filtered walk may score. Beyond, allowed rows are not where the query is, or too few to walk for."""
        return int(min(selectivity * len(self.rows) / _DEARER, _PATIENCE * self._walked(k, ef, selectivity)))


def _among(count: int, share: float) -> int:
    """Of how many rows that many are allowed, almost always, where these lie anywhere."""
    return math.ceil((count + 2 * math.sqrt(count * (1 - share))) / share)


def _walk_all(
    walks: Sequence[_Walk],
    k: int,
    floors: Keys,
    control: Control | None,
    keys: Keys,
    rows: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
) -> None:
    """Fills what `_search` does."""
    graphs = np.array([made.record for made in walks], _GRAPH)
    one, queries = walks[0].searcher, read_only(walks[0].queries)
    step = len(queries) if control is None else _POLL
    for start in range(0, len(queries), step):
        if control is not None:
            control.poll()
        stop = min(len(queries), start + step)
        _search(queries, start, stop, graphs, one.vectors, one.metric, looked_at(k), floors, keys, rows, sizes, counts)
    for made in walks:
        made.searcher.spare.append(made.scratch)


@kernel
def _search(queries, start, stop, graphs, like, metric, enough, floors, keys, rows, sizes, counts):
    """Fills keys, rows and sizes of queries start..stop in each graph; a size of -1 where a walk found too few.

    counts: (parts, 3), to which is added how many rows were scored, and looked at, and of how many queries too few were found.
    like: vectors of one of them. floors: of each query, raised by what is found.
    """
    m, d = queries.shape
    for g in range(len(graphs)):
        of = graphs[g]
        n = of.n
        codes, small = view(of.codes, (n, of.code_bytes), np.int8), view(of.small, (n, of.small_bytes), np.uint8)
        vectors, norms = view(of.vectors, (n, d), like), view(of.norms, (n,), np.float32)
        adj, deg = view(of.adj, (n, of.links), np.uint32), view(of.deg, (n,), np.uint16)
        entries, allowed = view(of.entries, (of.entered,), np.uint32), view(of.allowed, (of.allowed_words,), np.uint64)
        seen, epoch = room(of.seen, (n,), np.uint16), room(of.epoch, (1,), np.uint16)
        near, guess = room(of.near, (of.room,), np.int64), room(of.guess, (of.room,), np.float32)
        pool, heap = room(of.pool, (of.places,), np.uint64), room(of.heap, (n,), np.uint64)
        words, scalars = room(of.words, (m, of.width), np.int16), view(of.scalars, (m, SCALARS), np.float64)
        scored, looked, fewer, ef, wide, wanted = 0, 0, 0, of.ef, of.wide, of.wanted
        for q in range(start, stop):
            t, b, f = np.float32(scalars[q, 0]), np.float32(scalars[q, 1]), np.float32(scalars[q, 2])
            at, out, size = q * of.width, of.first + q, np.int64(-1)
            if wide or not of.allowed_words:
                size, more = walk(
                    words, at, t, b, f, codes, small, adj, deg, entries, seen, next_epoch(seen, epoch), pool, of.limit,
                    max(ef, wide), wanted, near, guess,
                )  # fmt: skip
                scored += more
                if wide:
                    size = _only(allowed, pool, size, ef, wide, wanted)
            if size < 0:
                size, more = walk_allowed(
                    words, at, t, b, f, codes, small, adj, deg, entries, seen, next_epoch(seen, epoch), pool, of.limit,
                    ef, wanted, near, guess, heap, allowed, of.most,
                )  # fmt: skip
                scored += more
            if size < wanted:
                sizes[out] = -1
                fewer += 1
                continue
            found, more = _rank(
                queries, q, out, of.key_unit, vectors, norms, metric, pool, size, enough, np.float64(floors[q]), keys, rows
            )
            looked += more
            sizes[out] = found
            for i in range(found, keys.shape[1]):
                keys[out, i], rows[out, i] = np.float32(-np.inf), -1
            floors[q] = max(floors[q], keys[out, keys.shape[1] - 1])
        part = of.first // m
        counts[part, 0] += scored
        counts[part, 1] += looked
        counts[part, 2] += fewer


@kernel
def _only(allowed, pool, size, ef, wide, wanted):
    """Drops rows that are not allowed from the pool of a walk that went on from the best `wide`; returns its size.

    -1 where fewer than `ef` of these were allowed though there were more to find, or fewer than `wanted` are left.
    """
    kept, inside = np.int64(0), 0
    for i in range(size):
        if is_allowed(allowed, row_in(pool[i])):
            pool[kept] = pool[i]
            kept += 1
            inside += i < wide
    return kept if kept >= wanted and (inside >= ef or size < wide) else np.int64(-1)


@kernel
def _rank(queries, q, out, key_unit, vectors, norms, metric, pool, size, enough, floor, keys, rows):
    """Keys of what a walk found, best first, to keys[out] and rows[out]. Returns their number, and how many were looked at.

    By how much keys and estimates differ is seen on the way. Where by that no row that is left can be among the best, or reach
    the floor, it ends.
    """
    k, d = keys.shape[1], np.int64(vectors.shape[1])
    least, most = np.float64(np.inf), np.float64(-np.inf)
    count, looked = 0, 0
    for i in range(min(_COMING, size)):
        prefetch(vectors, row_in(pool[i]) * d, d)
    for i in range(size):
        row = row_in(pool[i])
        guess = np.float64(key_in(pool[i]))
        if looked >= enough:
            lowest = max(floor, np.float64(keys[out, k - 1]) if count == k else floor)
            if guess + most + (most - least) * _DOUBT < lowest / key_unit:
                break
        following = row_in(pool[min(size - 1, i + _COMING)])
        key = key_of(pair(queries, q * d, vectors, row * d, d, metric, (following - row) * d), norms[row], metric)
        looked += 1
        off = np.float64(key) / key_unit - guess
        least, most = min(least, off), max(most, off)
        if key < floor:
            continue
        count = insert(keys, rows, out, count, key, row)
    return count, looked
