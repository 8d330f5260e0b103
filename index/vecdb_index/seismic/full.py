"""Exact search by whole lists, for segments that hold them: every row that has a component, with its weight rounded up.

    peaks   f32 (s,)          the greatest weight of each slot
    full    u64 (w s + 1,)    where the list of each slot begins, for each window of rows in turn
    locals  u16               rows, counted from their window's first
    bounds  u8                weights, in 255ths of the slot's peak, rounded up

Window by window, a query's lists are added up to a bound of each row's key. Rows whose bound reaches the k-th best key so far
are compared by their weights. The k-th best key is known about from the start, by a search of the pruned lists; so the lists
that together cannot lift a row by much are never read (MaxScore: Turtle and Flood, 1995), the windows and the accumulation
term by term are as in SINDI (arXiv 2509.08395). An ExactSearcher is safe in any thread.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from ..contract import Arrays, Bitmap, Budget, Control, Damaged, Hits, Keys, SparseRows
from ..flat.sparse import SparseSearcher
from ..kernels.bitmap import ALL, ones
from ..kernels.compile import intrinsic, kernel
from ..kernels.distances import load, pointer, read_only
from ..kernels.select import offer, settle
from ..kernels.sparse import lay_out, product, shift_of, slots_for
from .layout import lowest, term_of

if TYPE_CHECKING:
    from .search import SeismicSearcher

NAMES = ("peaks", "full", "locals", "bounds")
WINDOW = 1 << 16
_LANES = 32
_LEAST = 1e-30  # what a bound of a 255th is at least, so that no sum is lost as 0
_SAFE = 1 + 1e-5  # beyond the rounding of sums
_REST = 0.2  # of the key to be reached: what lists that are not read may add to it
_EFFORT = 0.3  # of the search that finds about where the k-th best key is
_SCRATCH = 8


def bytes_of(components: int) -> int:
    return 3 * components


def build(
    offsets: Any, weights: Any, terms: Any, present: Any, budget: Budget, pool: ThreadPoolExecutor
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of all rows; terms: see build._Terms."""
    n = len(present)
    count = (int(terms.slots.max()) + 1) if len(terms.slots) else terms.size
    windows = -(-n // WINDOW)
    sizes = np.zeros((windows, count), np.int64)
    peaks = np.zeros((windows, count), np.float32)

    def measure(w: int) -> None:
        budget.control.poll()
        last = min(n, (w + 1) * WINDOW)
        _measure(offsets, weights, terms.of, terms.slots, present, w * WINDOW, last, sizes[w], peaks[w])

    for _ in pool.map(measure, range(windows)):
        pass
    highest = peaks.max(axis=0, initial=0)
    full = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes.ravel(), dtype=np.uint64)])
    local, bounds = np.empty(int(full[-1]), np.uint16), np.empty(int(full[-1]), np.uint8)

    def fill(w: int) -> None:
        budget.control.poll()
        at = full[w * count : (w + 1) * count].astype(np.int64)
        last = min(n, (w + 1) * WINDOW)
        _fill(offsets, weights, terms.of, terms.slots, present, w * WINDOW, last, highest, at, local, bounds)

    for _ in pool.map(fill, range(windows)):
        pass
    return {"peaks": highest, "full": full, "locals": local, "bounds": bounds}


class ExactSearcher:
    """Searches `rows` exactly, by whole lists or, where few are allowed, row by row. Like a SparseSearcher."""

    divides: ClassVar[Literal["rows", "queries"]] = "queries"

    def __init__(self, arrays: Arrays, near: SeismicSearcher, slots: int) -> None:
        """near: the searcher of the same rows by pruned lists. Raises Damaged."""
        self.rows = near.rows
        self._near = near
        self._scan = SparseSearcher(near.rows)
        n = len(self.rows)
        for name, dtype in zip(NAMES, (np.float32, np.uint64, np.uint16, np.uint8), strict=True):
            if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != 1:
                raise Damaged(f"there is no array {name!r}, or it is of another kind")
        peaks, full, local, bounds = (read_only(arrays[name]) for name in NAMES)
        if len(peaks) != slots or len(full) != -(-n // WINDOW) * slots + 1 or len(local) != len(bounds):
            raise Damaged("whole lists are of other rows")
        if int(full[0]) != 0 or int(full[-1]) != len(local) or (full[1:] < full[:-1]).any() or not np.isfinite(peaks).all():
            raise Damaged("whole lists overlap")
        self._lists = peaks, full, local, bounds
        self._spare: deque[Any] = deque(maxlen=_SCRATCH)

    @property
    def exact(self) -> ExactSearcher:
        return self

    def part(self, first: int, last: int) -> ExactSearcher | SparseSearcher:
        """A searcher of some of the rows; first: a multiple of 64."""
        return self if (first, last) == (0, len(self.rows)) else self._scan.part(first, last)

    def rows_at(self, query: SparseRows, key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """See SparseSearcher."""
        return self._scan.rows_at(query, key, allowed)

    def spread(self, allowed: Bitmap) -> float:
        """See contract.Searcher."""
        return 1.0

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """By the rows that have a list's component, which are few of all."""
        return min(self._scan.cost(k, effort, selectivity, queries), 60e-6 + len(self.rows) * 1.1e-9 + k * 1e-6)

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
        n, m = len(self.rows), len(queries)
        count = n if allowed is None else ones(allowed)
        if not m or not k or not n or self._scan.cost(k, 1.0, count / n) <= self.cost(k, 1.0, 1.0):
            return self._scan.search(queries, k, allowed=allowed, floor=floor, control=control)
        guess = self._near.nearly(queries, k, _EFFORT, allowed, floor, control)
        keys, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        sizes, dropped, tied = np.zeros(m, np.int64), np.full(m, np.nan, np.float32), np.empty(m, np.bool_)
        lowest = read_only(np.full(m, -np.inf, np.float32) if floor is None else floor)
        known = np.where(guess.lengths == k, guess.keys[:, -1], -np.inf) if k else lowest
        known = read_only(np.maximum(known, lowest).astype(np.float32))
        present = self.rows.present
        if present is not None:
            allowed = present if allowed is None else allowed & present
        words = ALL if allowed is None else read_only(allowed)
        asked = read_only(queries.offsets), read_only(queries.indices), read_only(queries.weights)
        weights = read_only(self.rows.offsets), read_only(self.rows.indices), read_only(self.rows.weights)
        most = int(np.diff(queries.offsets).max(initial=0))
        try:
            sums = self._spare.pop()
        except IndexError:
            sums = np.zeros(WINDOW + _LANES, np.float32)
        table = np.empty(slots_for(most), np.uint32), np.empty(slots_for(most), np.float32)
        order, scales = np.empty(most + 1, np.int64), np.empty(most + 1, np.float32)
        scored, added = 0, 0
        windows = -(-n // WINDOW)
        step = windows if control is None else 16
        for q in range(m):
            one = slice(q, q + 1)
            for first in range(0, windows, step):
                if control is not None:
                    control.poll()
                more, postings = _search(
                    asked, q, first, min(windows, first + step), n, self._near.index, self._lists, weights, known[q], words,
                    keys[one], rows[one], sizes[one], dropped[one], sums, *table, order, scales,
                )  # fmt: skip
                scored, added = scored + max(0, more), added + postings
                if more < 0:  # a weight is negative, and too few rows have a key above 0
                    sizes[q], dropped[q] = -1, np.nan
                    break
        self._spare.append(sums)
        again = np.flatnonzero(sizes < 0)
        sizes[again] = 0
        settle(keys, rows, sizes, dropped, lowest, tied)
        lengths = sizes.astype(np.int32)
        for q in again.tolist():
            found = self._scan.search(queries[q], k, allowed=allowed, floor=lowest[q : q + 1], control=control)
            keys[q], rows[q], lengths[q], tied[q] = found.keys[0], found.rows[0], found.lengths[0], found.tied[0]
            scored += found.scored
        seen = {"postings": added, "rows compared by their weights": scored}
        return Hits(keys, rows, lengths, tied, m * count, 3 * added, seen)  # of every row there is a bound


# -- kernels -------------------------------------------------------------------------------------------------


@kernel
def _slot(slots, term):
    return np.uint64(term) if len(slots) == 0 else np.uint64(slots[np.uint64(term)])


@kernel
def _measure(offsets, weights, terms, slots, present, start, stop, sizes, peaks):
    """How many weights each slot has in some rows, and the greatest."""
    for row in range(start, stop):
        if present[row]:
            for j in range(np.uint64(offsets[row]), np.uint64(offsets[row + 1])):
                slot = _slot(slots, terms[j])
                sizes[slot] += 1
                peaks[slot] = max(peaks[slot], weights[j])


@kernel
def _fill(offsets, weights, terms, slots, present, start, stop, peaks, at, local, bounds):
    for row in range(start, stop):
        if present[row]:
            for j in range(np.uint64(offsets[row]), np.uint64(offsets[row + 1])):
                slot = _slot(slots, terms[j])
                code = np.int64(0)
                if weights[j] > 0:
                    code = np.int64(np.ceil(np.float64(weights[j]) * 255 / np.float64(peaks[slot])))
                place = np.uint64(at[slot])
                local[place], bounds[place] = np.uint16(row - start), np.uint8(min(np.int64(255), code))
                at[slot] += 1


@kernel
def _search(
    asked, q, first, last, n, index, lists, weights, known, allowed, keys, rows, sizes, dropped, sums, slots, values, order,
    scales,
):  # fmt: skip
    """Offers the rows of windows first..last to the heap of a query.

    Returns (rows scored, postings read); rows -1 where weights are negative and the heap does not tell what is best.
    """
    heap, table = (keys, rows, sizes, dropped), (slots, values, shift_of(slots))
    begin, end = np.int64(asked[0][q]), np.int64(asked[0][q + 1])
    negative = False
    for j in range(begin, end):
        negative |= asked[2][j] < 0
    lay_out(asked[1], asked[2], begin, end, *table)
    size = _order(asked, begin, end, index, lists[0], order, scales)
    scored, postings = 0, 0
    for w in range(first, last):
        reach = np.float64(known)
        if sizes[0] == keys.shape[1]:
            reach = max(reach, np.float64(keys[0, 0]))
        # Lists from the least on that together lift no row by much are left out.
        left, rest = 0, np.float64(0)
        while left < size and reach > 0:
            more = np.float64(scales[left]) * 255
            if rest + more > _REST * reach:
                break
            rest += more
            left += 1
        base, count = w * WINDOW, min(WINDOW, n - w * WINDOW)
        sums[: count + _LANES] = 0
        for i in range(size - 1, left - 1, -1):
            postings += _add(lists, w, order[i], scales[i], sums)
        bound = np.float32(np.inf)
        if sizes[0] < keys.shape[1] and not known > 0:  # nothing is known: the greatest bounds first
            level = np.float32(0)
            for r in range(np.uint64(count)):
                level = max(level, sums[r])
            for _ in range(24 if level < np.inf else 0):
                level *= np.float32(0.7)
                scored += _score(sums, count, base, level, bound, weights, allowed, heap, table)
                bound = level
                if sizes[0] == keys.shape[1]:
                    break
        reach = np.float64(known)
        if sizes[0] == keys.shape[1]:
            reach = max(reach, np.float64(keys[0, 0]))
        level = np.float32(max(reach / _SAFE - rest * _SAFE, 1e-45))
        if level < bound:
            scored += _score(sums, count, base, level, bound, weights, allowed, heap, table)
    if negative and not known > 0 and not (sizes[0] == keys.shape[1] and keys[0, 0] > 0):
        return -1, postings
    return scored, postings


@kernel
def _order(asked, begin, end, index, peaks, order, scales):
    """The slots of a query's positive weights, by what they may add to a key, least first; returns how many."""
    size = 0
    for j in range(begin, end):
        term = term_of(index.terms, len(index.lists) - 1, asked[1][j])
        if term >= 0 and asked[2][j] > 0:
            slot = np.int64(_slot(index.slots, term))
            scale = np.float32(max(np.float64(asked[2][j]) * np.float64(peaks[slot]) / 255, _LEAST))
            order[size], scales[size] = slot, scale
            size += 1
    if len(index.slots):  # terms that share a slot are one, with the greater weight
        _arrange(np.argsort(order[:size], kind="mergesort"), order, scales)
        kept = 0
        for i in range(size):
            if kept and order[kept - 1] == order[i]:
                scales[kept - 1] = max(scales[kept - 1], scales[i])
            else:
                order[kept], scales[kept] = order[i], scales[i]
                kept += 1
        size = kept
    _arrange(np.argsort(scales[:size], kind="mergesort"), order, scales)
    return size


@kernel
def _arrange(places, order, scales):
    slots, values = order[: len(places)].copy(), scales[: len(places)].copy()
    for i in range(len(places)):
        order[i], scales[i] = slots[places[i]], values[places[i]]


@kernel
def _add(lists, window, slot, scale, sums):
    """Adds a list to the sums of a window. Returns its length."""
    count = len(lists[0])
    begin, end = np.uint64(lists[1][window * count + slot]), np.uint64(lists[1][window * count + slot + 1])
    local, bounds = lists[2], lists[3]
    for p in range(begin, end):
        row = np.uint64(local[p])
        sums[row] += scale * np.float32(bounds[p])
    return np.int64(end - begin)


@kernel
def _score(sums, count, base, level, bound, weights, allowed, heap, table):
    """Offers the rows of a window whose sums are at least `level` and less than `bound`. Returns how many there are."""
    offsets, indices, numbers = weights
    keys, rows, sizes, dropped = heap
    slots, values, shift = table
    scored = 0
    one = np.uint32(1)
    for at in range(np.uint64(0), np.uint64(count), np.uint64(_LANES)):
        some = reaching(sums, at, level)
        while some:
            local = at + lowest(some)
            some &= some - one
            row = base + np.int64(local)
            if local >= np.uint64(count) or (sums[local] >= bound and bound < np.inf):
                continue
            if len(allowed) and not (allowed[np.uint64(row >> 6)] >> np.uint64(row & 63)) & np.uint64(1):
                continue
            key, common = product(slots, values, shift, indices, numbers, offsets[row], offsets[row + 1])
            scored += 1
            if common:
                offer(keys, rows, sizes, dropped, 0, key, row)
    return scored


@intrinsic
def reaching(typing: Any, sums: Any, at: Any, level: Any) -> Any:
    """Which of the 32 numbers from sums[at] on are at least `level`: a bit for each, the lowest for the first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, word = ir.VectorType(ir.FloatType(), _LANES), ir.IntType(32)
        sums, at, level = arguments
        numbers = load(builder, pointer(context, builder, signature.args[0], sums, at, vector), vector)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), level, ir.Constant(word, 0))
        zeros = ir.Constant(ir.VectorType(word, _LANES), [0] * _LANES)
        levels = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)
        return builder.bitcast(builder.fcmp_ordered(">=", numbers, levels), word)

    return types.uint32(sums, types.uint64, types.float32), codegen
