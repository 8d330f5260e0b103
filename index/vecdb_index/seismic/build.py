"""Builds the lists: the heaviest components of all rows, each list cut into blocks of rows that are alike.

After Seismic (Bruch, Nardini, Rulli and Venturini, arXiv 2404.18812): a row stands in the lists of few of its components,
chosen by one threshold for the whole segment; a list's rows go to the block of that of its rows, drawn at random, to which
they have the greatest inner product; a block's summary is the greatest weight of each component in it, less the smallest.
Lists of components that few rows have are kept whole.

`records` makes what stands for a row, `blocks` cuts lists; what is here decides which rows a list has. The arrays: see
`layout`. The same bytes come of any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ..contract import Arrays, Budget, NeedsMemory, Progress, SparseRows, Trial
from ..kernels.compile import kernel
from ..kernels.distances import read_only
from . import full
from .blocks import cluster, joined, mixed
from .layout import HEAD, MAX_ROWS, SLOTS
from .params import Seismic
from .records import CHUNK, Terms, records_of, terms_of

_LEAST = 16  # rows: no list is cut shorter
_BINS = 1 << 16  # of weights, by their upper bits
_TOP = 1e-4  # of all weights, which may be more than twice the greatest code and are cut to it
_NEAR = 8, 0.9, 0.5  # the settings by which the rows most like each are found: see search.Settings


def memory_of(n: int, components: int, largest: int, params: Seismic, threads: int) -> int:
    """About how many bytes a build takes beside its rows."""
    kept = min(components, params.kept(n) * n) + _LEAST * min(components, 1 << 16)
    records = n * HEAD + 3 * components + 4 * params.knn * n
    mapped = 16 * components if largest >= SLOTS else 0
    whole = full.bytes_of(components) if params.exact == "lists" else 0
    return records + whole + mapped + kept * 60 + threads * (24 << 20) + (4 << 20)


def build(rows: SparseRows, params: Seismic, budget: Budget, progress: Progress, trial: Trial | None = None) -> Arrays:
    """See the module. Raises NeedsMemory, Cancelled, ValueError for 2^31 rows or more."""
    n = len(rows)
    if n >= MAX_ROWS:
        raise ValueError(f"an index of sparse rows holds fewer than {MAX_ROWS:,}; this segment has {n:,}")
    first, last = int(rows.offsets[0]), int(rows.offsets[-1])
    largest = int(rows.indices[first:last].max(initial=0))
    needed = memory_of(n, last - first, largest, params, budget.threads)
    if budget.memory is not None and needed > budget.memory:
        raise NeedsMemory(needed, budget.memory)
    budget.control.poll()
    present = np.ones(n, np.bool_) if rows.present is None else _flags(rows.present, n)
    offsets, weights = read_only(rows.offsets), read_only(rows.weights)
    terms = terms_of(rows, first, last, largest, budget)
    progress(0.02)
    with ThreadPoolExecutor(budget.control.threads(budget.threads)) as pool:
        unit, threshold, share, negative, df = _weigh(offsets, weights, terms, present, params, budget)
        progress(0.05)
        records = records_of(offsets, weights, terms, present, unit, budget, pool)
        progress(0.15)
        chosen, members, whole = _prune(offsets, weights, terms, present, threshold, share, df, params, budget)
        progress(0.2)
        whole_lists = full.build(offsets, weights, terms, present, budget, pool) if params.exact == "lists" else {}
        until = 0.5 if params.knn else 0.98  # of all that is to be done, when lists are
        made = list(
            cluster(chosen, members, records, terms, params, budget, pool, lambda share: progress(0.2 + share * (until - 0.2)))
        )
    arrays: dict[str, npt.NDArray[Any]] = {"terms": terms.terms, "slots": terms.slots, **joined(made, whole, terms)}
    arrays |= {"heads": records.head8.reshape(n, HEAD), "tails": records.tail8}
    arrays["unit"] = np.array([unit, negative], np.float32)
    arrays |= whole_lists
    if params.knn and not negative:
        arrays["near"] = _neighbours(rows, arrays, params, budget, progress)
    if trial is not None:  # a row's place hardly depends on others
        from .search import SeismicSearcher

        others = trial.others(rows)
        trial.run(SeismicSearcher(arrays, others, params), others)
    progress(1.0)
    return arrays


def _neighbours(rows: SparseRows, arrays: Arrays, params: Seismic, budget: Budget, progress: Progress) -> Any:
    """The rows most like each, found by the index itself; best first, and the row's own number where there are fewer."""
    from .search import SeismicSearcher, Settings

    n, searcher = len(rows), SeismicSearcher(arrays, rows, params)
    near = np.repeat(np.arange(n, dtype=np.uint32)[:, None], params.knn, axis=1)

    def find(start: int) -> int:
        budget.control.poll()
        stop = min(n, start + CHUNK // 8)
        found = searcher.search_with(Settings(*_NEAR), rows[start:stop], params.knn + 1, repaired=False)
        _without_self(start, found.rows, near[start:stop])
        return stop

    with ThreadPoolExecutor(budget.control.threads(budget.threads)) as pool:
        for stop in pool.map(find, range(0, n, CHUNK // 8)):
            progress(0.5 + 0.48 * stop / n)
    return near


def _flags(words: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _chunks(n: int, budget: Budget) -> Iterator[tuple[int, int]]:
    for start in range(0, n, CHUNK):
        budget.control.poll()
        yield start, min(n, start + CHUNK)


def _weigh(
    offsets: Any, weights: Any, terms: Terms, present: Any, params: Seismic, budget: Budget
) -> tuple[Any, int, int, bool, Any]:
    """The unit of codes; the bin of the least weight that is kept, and how many 65,536ths of that bin; whether any is negative;
    in how many rows each term is."""
    bins, df = np.zeros(_BINS, np.int64), np.zeros(terms.size, np.int64)
    negative, largest = False, np.float32(0)
    for start, stop in _chunks(len(present), budget):
        below, most = _count(offsets, weights, terms.of, present, start, stop, bins, df)
        negative, largest = negative or below, max(largest, most)
    total = int(bins.sum())
    at_least = np.cumsum(bins[::-1])[::-1]  # how many weights are in a bin or above
    wanted = params.kept(len(present)) * int(present.sum())
    threshold = max(0, int(np.searchsorted(-at_least, -wanted, side="right")) - 1) if wanted < total else 0
    there = int(bins[threshold]) or 1
    share = min(65_536, max(0, 65_536 * (wanted - int(at_least[threshold]) + there) // there))
    common = int(np.searchsorted(-at_least, -max(1, int(total * _TOP)), side="right")) - 1
    reached = np.array([(max(0, common) + 1) << 15], np.uint32).view(np.float32)[0]  # the upper end of that bin
    top: Any = min(np.float64(largest), 2 * np.float64(reached)) if np.isfinite(reached) else np.float64(largest)
    unit = np.float32(max(top / 255, np.finfo(np.float32).tiny))
    return unit, threshold, share, negative, df


def _prune(
    offsets: Any,
    weights: Any,
    terms: Terms,
    present: Any,
    threshold: int,
    share: int,
    df: Any,
    params: Seismic,
    budget: Budget,
) -> tuple[Any, Any, Any]:
    """(where each list begins in members, rows by list, terms whose lists are whole as a bitmap)."""
    n = len(present)
    counts = np.zeros(terms.size, np.int64)
    rules = np.int64(threshold), np.int64(share), np.uint64(budget.seed & (1 << 64) - 1)
    for start, stop in _chunks(n, budget):
        _kept(offsets, weights, terms.of, present, df, *rules, start, stop, counts)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    packed = np.empty(int(starts[-1]), np.uint64)
    at = starts[:-1].copy()
    for start, stop in _chunks(n, budget):
        _fill_lists(offsets, weights, terms.of, present, df, *rules, start, stop, at, packed)
    used = max(1, int(np.count_nonzero(counts)))
    longest = max(_LEAST, int(params.max_fraction * len(packed) / used))
    kept = np.minimum(counts, longest)
    chosen = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    members = np.empty(int(chosen[-1]), np.uint32)
    budget.control.poll()
    _cap(starts, packed, chosen, members)
    padded = np.zeros(-(-terms.size // 64) * 64, np.bool_)
    padded[: terms.size] = kept == df
    return chosen, members, np.packbits(padded, bitorder="little").view(np.uint64)


# -- kernels -------------------------------------------------------------------------------------------------


@kernel
def _without_self(first, found, near):
    for i in range(len(found)):
        size = 0
        for j in range(found.shape[1]):
            if found[i, j] >= 0 and found[i, j] != first + i and size < near.shape[1]:
                near[i, size] = np.uint32(found[i, j])
                size += 1


@kernel
def _bin_of(weight):
    """Positive weights in order, in _BINS bins."""
    return np.int64(np.float32(weight).view(np.uint32) >> np.uint32(15))


@kernel
def _count(offsets, weights, terms, present, start, stop, bins, df):
    """Adds rows start..stop to the bins of weights and the rows of each term. Returns (a weight is negative, the greatest)."""
    negative, largest = False, np.float32(0)
    for row in range(start, stop):
        if not present[row]:
            continue
        for j in range(np.uint64(offsets[row]), np.uint64(offsets[row + 1])):
            weight = weights[j]
            df[np.uint64(terms[j])] += 1
            if weight > 0:
                bins[np.uint64(_bin_of(weight))] += 1
                largest = max(largest, weight)
            else:
                negative = True
    return negative, largest


@kernel
def _is_kept(weight, row, term, df, threshold, share, seed):
    """Whether a row stands in the list of a term."""
    if weight <= 0:
        return False
    if df[term] <= _LEAST:
        return True
    mine = _bin_of(weight)
    if mine != threshold:
        return mine > threshold
    return np.int64(mixed(seed ^ (np.uint64(row) << np.uint64(32) | np.uint64(term))) >> np.uint64(48)) < share


@kernel
def _kept(offsets, weights, terms, present, df, threshold, share, seed, start, stop, counts):
    for row in range(start, stop):
        if present[row]:
            for j in range(np.uint64(offsets[row]), np.uint64(offsets[row + 1])):
                term = np.uint64(terms[j])
                if _is_kept(weights[j], row, term, df, threshold, share, seed):
                    counts[term] += 1


@kernel
def _fill_lists(offsets, weights, terms, present, df, threshold, share, seed, start, stop, at, packed):
    """Puts rows into their lists, so that they sort by weight, greatest first, then row."""
    for row in range(start, stop):
        if present[row]:
            for j in range(np.uint64(offsets[row]), np.uint64(offsets[row + 1])):
                term = np.uint64(terms[j])
                if _is_kept(weights[j], row, term, df, threshold, share, seed):
                    bits = np.uint64(~np.float32(weights[j]).view(np.uint32))
                    packed[np.uint64(at[term])] = (bits << np.uint64(32)) | np.uint64(row)
                    at[term] += 1


@kernel
def _cap(starts, packed, chosen, members):
    """The rows of each list, ascending; of those that are too long, the heaviest."""
    for term in range(len(starts) - 1):
        first, size, kept = starts[term], starts[term + 1] - starts[term], chosen[term + 1] - chosen[term]
        if kept < size:
            mine = np.sort(packed[first : first + size])[:kept] & np.uint64(0xFFFF_FFFF)
            mine.sort()
            for i in range(kept):
                members[chosen[term] + i] = np.uint32(mine[i])
        else:
            for i in range(size):
                members[chosen[term] + i] = np.uint32(packed[first + i] & np.uint64(0xFFFF_FFFF))
