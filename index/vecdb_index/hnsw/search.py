"""Searches the graph of one segment.

`effort` is how many rows a walk keeps in view and goes on from, *ef*, on a logarithmic scale from 2 to 4,096; where that is
less than k, the walk goes on from the best ef of k rows that it keeps. With a bitmap it goes through rows that are not allowed
and keeps those that are, until none that is left is nearer than the best ef of these; where that would score more than half of
the allowed rows, or several times as many as usual, or finds fewer hits than it should, the allowed rows are scanned instead: k
hits come back whenever k are allowed.

A HNSWSearcher is safe in any thread: each search borrows scratch (2 bytes a row, and 8 with a bitmap).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec.int4 import Int4
from ..codec.int8 import Codes
from ..contract import Arrays, Bitmap, Control, Damaged, Hits, Keys, Rows
from ..flat.search import FlatSearcher
from ..kernels.bitmap import both, ones
from ..kernels.compile import kernel
from ..kernels.distances import METRICS, key_of, pair, prefetch, read_only
from ..kernels.select import insert, key_in, row_in
from .params import HNSW
from .walk import room_of, walk, walk_allowed

LEAST_EF, MOST_EF = 2, 4096
_POLL = 64  # queries between two looks at the deadline
_SCRATCH = 8  # kept for later searches
_NO_BITMAP = read_only(np.zeros(0, np.uint64))
_NO_FLOOR = read_only(np.full(1, -np.inf, np.float32))
_WAY, _FRESH = 350, 17  # rows scored on the way to the query's neighbours, and for each row that a walk goes on from there
_DEARER = 2  # a row that is walked to costs up to so many that are scanned
_PATIENCE = 6  # times the usual number of rows that a walk may score
_DOUBT = 0.5  # beyond the most that an estimate was too low, as a share of how far they are apart
_COMING = 3  # rows that are on their way while one is looked at


def ef_of(effort: float) -> int:
    """How many rows a walk goes on from."""
    return round(LEAST_EF * (MOST_EF / LEAST_EF) ** min(1.0, max(0.0, effort)))


def looked_at(k: int) -> int:
    """How many of the rows that a walk found are looked at themselves, at least: some that seem beyond the k best are not."""
    return k + 6 + k // 8


class HNSWSearcher:
    def __init__(self, arrays: Arrays, rows: Rows, params: HNSW) -> None:
        """Raises Damaged."""
        self.rows = rows
        self._adj, self._deg, self._entries = (read_only(arrays[name]) for name in ("adj", "deg", "entries"))
        codes = Codes.opened(arrays, rows)
        small = Int4.opened(arrays, rows, codes)
        self._check()
        self._metric = METRICS[rows.metric]
        bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
        self._vectors, self._norms = read_only(bits), read_only(rows.norms)
        self.exact = FlatSearcher(rows, codes)
        self._row_bytes = rows.vectors[:1].nbytes
        self._met: Int4 | Codes = small or codes  # by which rows are met
        self._met_bytes = self._met.codes.shape[1]
        coded = codes.codes, (small or Int4.none(len(rows), codes)).codes, self._met.key_unit
        self._about = *coded, self._vectors, self._norms, self._metric, self._adj, self._deg, self._entries
        self._count = len(rows) if rows.present is None else ones(rows.present)
        self._spare: deque[tuple[Any, ...]] = deque(maxlen=_SCRATCH)
        self._known: tuple[Bitmap | None, Bitmap | None, int] = None, None, 0

    def _check(self) -> None:
        """No link or degree leads a kernel outside its arrays."""
        n = len(self.rows)
        if any(array.dtype.kind != "u" for array in (self._adj, self._deg, self._entries)):
            raise Damaged("its links are no row numbers")
        if self._adj.ndim != 2 or len(self._adj) != n or self._deg.shape != (n,) or self._entries.ndim != 1:
            raise Damaged(f"the graph is of {len(self._adj)} rows, the segment of {n}")
        if n and (int(self._deg.max()) > self._adj.shape[1] or int(self._adj.max(initial=0)) >= n):
            raise Damaged("a row has more links than there is room for, or one that leads nowhere")
        if len(self._entries) and int(self._entries.max()) >= n:
            raise Damaged("an entry is no row")

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
        m = len(queries)
        allowed, count = self._allowed(allowed)
        wanted = min(k, count)
        keys, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        sizes = np.zeros(m, np.int32)
        scored, read, short = 0, 0, 0
        if m and k and wanted and len(self._entries):
            asked = self._met.ask(queries)
            ef, closely = min(ef_of(effort), len(self.rows)), looked_at(k)
            limit = min(len(self.rows), max(ef, closely))
            scratch = self._borrow(limit, allowed is not None)
            words = _NO_BITMAP if allowed is None else read_only(allowed)
            share = 1.0 if allowed is None else count / len(self.rows)
            most = 0 if allowed is None else self._most(k, ef, share)
            lowest = _NO_FLOOR if floor is None else read_only(floor)
            step = m if control is None else _POLL
            for start in range(0, m, step):
                if control is not None:
                    control.poll()
                more, looked, fewer = _search(
                    *asked, start, min(m, start + step), *self._about, limit, ef, closely, words, most, wanted, lowest,
                    keys, rows, sizes, *scratch,
                )  # fmt: skip
                scored += more
                read += more * self._met_bytes + looked * self._row_bytes
                short += fewer
            self._spare.append(scratch)
        else:
            keys.fill(-np.inf)
            rows.fill(-1)
            if wanted:
                sizes[:], short = -1, m
        if short:
            those = np.flatnonzero(sizes < 0)
            lower = None if floor is None else floor[those]
            found = self.exact.search(queries[those], k, allowed=allowed, floor=lower, control=control)
            keys[those], rows[those], sizes[those] = found.keys, found.rows, found.lengths
            scored, read = scored + found.scored, read + found.bytes
        return Hits(keys, rows, sizes, np.zeros(m, np.bool_), scored, read)

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

    def _borrow(self, limit: int, filtered: bool) -> tuple[Any, ...]:
        """seen, epoch, pool, near, guess, heap: of an earlier search where they are large enough."""
        n = len(self.rows)
        try:
            seen, epoch, pool, near, guess, heap = self._spare.pop()
        except IndexError:
            room, heap = room_of(self._adj, self._entries), np.empty(0, np.uint64)
            seen, epoch, pool = np.zeros(n, np.uint16), np.zeros(1, np.uint16), np.empty(0, np.uint64)
            near, guess = np.empty(room, np.int64), np.empty(room, np.float32)
        if len(pool) < limit + 1:
            pool = np.empty(max(256, limit + 1), np.uint64)
        if filtered and len(heap) < n:
            heap = np.empty(n, np.uint64)
        return seen, epoch, pool, near, guess, heap

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
        seconds = 10e-6 + looked * (60e-9 + self._row_bytes / 12e9)
        one = 25e-9 + self._met_bytes / 12e9
        if selectivity >= 1:
            return seconds + min(scored, len(self.rows)) * one
        most = self._most(k, ef, selectivity)
        if scored <= most:
            return seconds + scored * one
        return seconds + most * one + self.exact.cost(k, 1.0, selectivity, queries)

    def _walked(self, k: int, ef: int, selectivity: float) -> float:
        """About how many rows a walk scores, where those that are allowed lie anywhere."""
        return len(self._entries) + _WAY + _FRESH * max(ef, k / 12) / max(selectivity, 1 / max(1, len(self.rows)))

    def _most(self, k: int, ef: int, selectivity: float) -> int:
        """How many rows a filtered walk may score. Beyond, allowed rows are not where the query is, or too few to walk for."""
        return int(min(selectivity * len(self.rows) / _DEARER, _PATIENCE * self._walked(k, ef, selectivity)))


@kernel
def _search(
    queries, words, scalars, start, stop, codes, small, key_unit, vectors, norms, metric, adj, deg, entries, limit, ef, enough,
    allowed, most, wanted, floors, keys, rows, sizes, seen, epoch, pool, near, guess, heap,
):  # fmt: skip
    """Fills keys, rows and sizes of queries start..stop; -1 where fewer than `wanted` were found.

    Returns how many rows were scored, and looked at, and for how many queries fewer were found.
    """
    scored, looked, fewer, width = 0, 0, 0, np.int64(words.shape[1])
    for q in range(start, stop):
        if epoch[0] == np.uint16(65535):
            seen[:] = 0
            epoch[0] = 0
        epoch[0] += np.uint16(1)
        t, b, f = np.float32(scalars[q, 0]), np.float32(scalars[q, 1]), np.float32(scalars[q, 2])
        if len(allowed):
            size, more = walk_allowed(
                words, q * width, t, b, f, codes, small, adj, deg, entries, seen, epoch[0], pool, limit, ef, wanted, near,
                guess, heap, allowed, most,
            )  # fmt: skip
        else:
            size, more = walk(
                words, q * width, t, b, f, codes, small, adj, deg, entries, seen, epoch[0], pool, limit, ef, wanted, near, guess
            )
        scored += more
        if size < wanted:
            sizes[q] = -1
            fewer += 1
            continue
        floor = np.float64(floors[q % len(floors)])
        found, more = _rank(queries, q, key_unit, vectors, norms, metric, pool, size, enough, floor, keys, rows)
        looked += more
        sizes[q] = found
        for i in range(found, keys.shape[1]):
            keys[q, i], rows[q, i] = np.float32(-np.inf), -1
    return scored, looked, fewer


@kernel
def _rank(queries, q, key_unit, vectors, norms, metric, pool, size, enough, floor, keys, rows):
    """Keys of what a walk found, best first, to keys[q] and rows[q]. Returns how many there are, and how many were looked at.

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
            lowest = max(floor, np.float64(keys[q, k - 1]) if count == k else floor)
            if guess + most + (most - least) * _DOUBT < lowest / key_unit:
                break
        following = row_in(pool[min(size - 1, i + _COMING)])
        key = key_of(pair(queries, q * d, vectors, row * d, d, metric, (following - row) * d), norms[row], metric)
        looked += 1
        off = np.float64(key) / key_unit - guess
        least, most = min(least, off), max(most, off)
        if key < floor:
            continue
        count = insert(keys, rows, q, count, key, row)
    return count, looked
