"""Builds the lists: the heaviest components of all rows, each list cut into blocks of rows that are alike.

After Seismic (Bruch, Nardini, Rulli and Venturini, arXiv 2404.18812): a row stands in the lists of few of its components,
chosen by one threshold for the whole segment; a list's rows go to the block of that of its rows, drawn at random, to which
they have the greatest inner product; a block's summary is the greatest weight of each component in it, less the smallest.
Lists of components that few rows have are kept whole.

A task is some lists that follow each other; chance depends on the seed and the component alone, and tasks do not depend on
threads, so neither do the bytes. The arrays: see `layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec.int4 import by_lines
from ..contract import Arrays, Budget, NeedsMemory, Progress, SparseRows, Trial
from ..kernels.compile import kernel
from ..kernels.distances import prefetch, read_only
from . import full
from .layout import BLOCKS, ENTRIES, HEAD, HEAVIEST, MAX_ROWS, NONE, PAD, SLOTS
from .params import Seismic

_CHUNK = 1 << 13  # rows between two looks at whether to go on
_TASK = 1 << 14  # postings to a task, about
_LEAST = 16  # rows: no list is cut shorter
_SCORED = 8  # rows: of a single block so small there is no summary, its rows are looked at instead
_ALIKE = 15  # components by which a row finds its block
_CENTROIDS = 4096  # of a list, at most
_COMMON = 64  # centroids: a component that more have, and half of all, tells them little apart
_BINS = 1 << 16  # of weights, by their upper bits
_TOP = 1e-4  # of all weights, which may be more than twice the greatest code and are cut to it
_OWN_SLOTS = SLOTS // 2  # for the most frequent of more terms than there are slots
_NEAR = 8, 0.9, 0.5  # the settings by which the rows most like each are found: see search.Settings
_TAIL = 4  # bytes: tails begin at multiples


class _Records(NamedTuple):
    head8: npt.NDArray[np.uint8]
    head16: npt.NDArray[np.uint16]
    head32: npt.NDArray[np.uint32]
    tail8: npt.NDArray[np.uint8]
    tail16: npt.NDArray[np.uint16]


class _Rules(NamedTuple):
    """The parameters as kernels take them."""

    seed: np.uint64
    centroids: float
    least: int
    energy: float


class _Scratch(NamedTuple):
    """What one task works in, by slots or, where it says so, by the rows of the longest list."""

    starts: npt.NDArray[np.int32]
    shares: npt.NDArray[np.int32]
    touched: npt.NDArray[np.int32]
    peaks: npt.NDArray[np.uint8]
    of: npt.NDArray[np.int32]  # rows: the block of each
    sums: npt.NDArray[np.int32]  # rows
    sizes: npt.NDArray[np.int32]  # rows
    drawn: npt.NDArray[np.uint32]  # rows
    places: npt.NDArray[np.int32]  # rows x HEAVIEST: an inverted index of the centroids
    codes: npt.NDArray[np.uint8]  # rows x HEAVIEST
    bins: npt.NDArray[np.int64]  # 256, of codes; then by slot // 256
    waiting: npt.NDArray[np.uint32]  # ENTRIES: the entries of the section that is being made


class _Made(NamedTuple):
    """What a task has made so far; `at` counts it, in the order of the _AT constants."""

    posts: npt.NDArray[np.uint32]
    blocks: npt.NDArray[np.uint32]  # one past the last posting of each
    sections: npt.NDArray[np.uint32]  # one past the last block of each, and its row in the directory
    ends: npt.NDArray[np.int64]  # one past the last entry of each section
    lists: npt.NDArray[np.uint32]  # one past the last section of each
    directory: npt.NDArray[np.uint16]
    entries: npt.NDArray[np.uint8]
    at: npt.NDArray[np.int64]


_AT_POST, _AT_BLOCK, _AT_SECTION, _AT_LIST, _AT_DIRECTORY, _AT_ENTRY = range(6)


class _Terms(NamedTuple):
    """The components of a segment: see `layout`. of: (nnz,) uint32, the term of each component of each row."""

    terms: npt.NDArray[np.uint32]
    slots: npt.NDArray[np.uint16]
    of: npt.NDArray[np.uint32]
    size: int


def memory_of(n: int, components: int, largest: int, params: Seismic, threads: int) -> int:
    """About how many bytes a build takes beside its rows."""
    kept = min(components, params.kept(n) * n) + _LEAST * min(components, 1 << 16)
    records = n * HEAD + 3 * components
    mapped = 16 * components if largest >= SLOTS else 0
    whole = full.bytes_of(components) if params.exact == "lists" else 0
    records += 4 * params.knn * n
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
    terms = _terms(rows, first, last, largest, budget)
    progress(0.02)
    with ThreadPoolExecutor(budget.threads) as pool:
        unit, threshold, share, negative, df = _weigh(offsets, weights, terms, present, params, budget)
        progress(0.05)
        records = _records(offsets, weights, terms, present, unit, budget, pool)
        progress(0.15)
        chosen, members, whole = _prune(offsets, weights, terms, present, threshold, share, df, params, budget)
        progress(0.2)
        whole_lists = full.build(offsets, weights, terms, present, budget, pool) if params.exact == "lists" else {}
        until = 0.5 if params.knn else 0.98  # of all that is to be done, when lists are
        made = list(
            _cluster(chosen, members, records, terms, params, budget, pool, lambda share: progress(0.2 + share * (until - 0.2)))
        )
    arrays: dict[str, npt.NDArray[Any]] = {"terms": terms.terms, "slots": terms.slots, **_joined(made, whole, terms)}
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
        stop = min(n, start + _CHUNK // 8)
        found = searcher.search_with(Settings(*_NEAR), rows[start:stop], params.knn + 1, repaired=False)
        _without_self(start, found.rows, near[start:stop])
        return stop

    with ThreadPoolExecutor(budget.threads) as pool:
        for stop in pool.map(find, range(0, n, _CHUNK // 8)):
            progress(0.5 + 0.48 * stop / n)
    return near


def _flags(words: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _chunks(n: int, budget: Budget) -> Iterator[tuple[int, int]]:
    for start in range(0, n, _CHUNK):
        budget.control.poll()
        yield start, min(n, start + _CHUNK)


def _terms(rows: SparseRows, first: int, last: int, largest: int, budget: Budget) -> _Terms:
    none = np.zeros(0, np.uint32), np.zeros(0, np.uint16)
    if largest < SLOTS:
        return _Terms(*none, read_only(rows.indices), largest + 1 if last > first else 0)
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
    return _Terms(found, slots, read_only(of), len(found))


def _weigh(
    offsets: Any, weights: Any, terms: _Terms, present: Any, params: Seismic, budget: Budget
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


def _records(
    offsets: Any, weights: Any, terms: _Terms, present: Any, unit: np.float32, budget: Budget, pool: ThreadPoolExecutor
) -> _Records:
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
    records = _Records(flat, flat.view(np.uint16), flat.view(np.uint32), tail8, tail8.view(np.uint16))

    def fill(start: int) -> None:
        budget.control.poll()
        stop = min(n, start + _CHUNK)
        _fill_records(offsets, weights, terms.of, terms.slots, sizes, starts, unit, start, stop, records)

    for _ in pool.map(fill, range(0, n, _CHUNK)):
        pass
    return _Records(*(read_only(each) for each in records))


def _prune(
    offsets: Any,
    weights: Any,
    terms: _Terms,
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


def _cluster(
    chosen: Any, members: Any, records: _Records, terms: _Terms, params: Seismic, budget: Budget, pool: ThreadPoolExecutor,
    progress: Progress,
) -> Iterator[_Made]:  # fmt: skip
    """What each task made, in order."""
    if not terms.size:
        return
    count, longest = terms.size, int(np.diff(chosen).max())
    rules = _Rules(np.uint64(budget.seed & (1 << 64) - 1), float(params.centroids), params.min_cluster, float(params.energy))
    cuts = np.searchsorted(chosen, np.arange(0, int(chosen[-1]) + 1, _TASK), side="right") - 1
    bounds = np.unique(np.concatenate([[0], cuts, [count]]))
    width = ((int(terms.slots.max()) if len(terms.slots) else count - 1) >> 8) + 2
    spare: list[_Scratch] = []

    def task(first: int, last: int) -> _Made:
        budget.control.poll()
        scratch = spare.pop() if spare else _scratch(longest, params)
        size, lists = int(chosen[last] - chosen[first]), last - first
        made = _Made(
            np.empty(size, np.uint32), np.empty(size, np.uint32), np.empty((size, 2), np.uint32), np.empty(size, np.int64),
            np.empty(lists, np.uint32), np.empty((lists + size // 64 + 8, width), np.uint16),
            np.empty(24 * size + (1 << 12), np.uint8), np.zeros(6, np.int64),
        )  # fmt: skip
        while first + int(made.at[_AT_LIST]) < last:
            _make_lists(first, last, chosen, members, records, rules, scratch, made)
            if first + int(made.at[_AT_LIST]) < last:  # it ran out of room
                more = [np.concatenate([each, np.empty_like(each)]) for each in (made.directory, made.entries)]
                made = made._replace(directory=more[0], entries=more[1])
        spare.append(scratch)
        sections, directories, entries = (int(made.at[each]) for each in (_AT_SECTION, _AT_DIRECTORY, _AT_ENTRY))
        return made._replace(
            blocks=made.blocks[: made.at[_AT_BLOCK]].copy(), sections=made.sections[:sections].copy(),
            ends=made.ends[:sections].copy(), directory=made.directory[:directories].copy(),
            entries=made.entries[: 3 * entries].copy(),
        )  # fmt: skip

    for done, made in enumerate(pool.map(task, bounds[:-1].tolist(), bounds[1:].tolist()), 1):
        progress(done / (len(bounds) - 1))
        yield made


def _scratch(longest: int, params: Seismic) -> _Scratch:
    drawn = min(_CENTROIDS, max(1, int(np.ceil(longest * params.centroids)) + 1))
    return _Scratch(
        np.zeros(SLOTS, np.int32), np.zeros(SLOTS, np.int32), np.empty(SLOTS + 1, np.int32), np.zeros(SLOTS, np.uint8),
        np.empty(longest, np.int32), np.empty(drawn, np.int32), np.empty(longest + 1, np.int32), np.empty(longest, np.uint32),
        np.empty(drawn * HEAVIEST, np.int32), np.empty(drawn * HEAVIEST, np.uint8), np.zeros(257, np.int64),
        np.empty(ENTRIES, np.uint32),
    )  # fmt: skip


def _joined(made: list[_Made], whole: Any, terms: _Terms) -> Arrays:
    """The arrays of all tasks one after another, each counted on from those before."""
    posts, blocks, sections, directories, entries = 0, 0, 0, 0, 0
    columns: tuple[list[Any], ...] = ([], [], [], [], [])
    for each in made:
        part = each.sections.copy()
        part[:, 0] += np.uint32(blocks)
        part[part[:, 1] != NONE, 1] += np.uint32(directories)
        moved = each.blocks + np.uint32(posts), part, (each.ends + entries).astype(np.uint64), each.lists + np.uint32(sections)
        for column, values in zip(columns, moved, strict=False):
            column.append(values)
        posts, blocks, sections = posts + len(each.posts), blocks + len(each.blocks), sections + len(each.sections)
        directories, entries = directories + len(each.directory), entries + len(each.entries) // 3
    width = made[0].directory.shape[1] if made else 2
    zero = np.zeros(1, np.uint32)
    # A section tells where its blocks begin, and its own directory: the ends shift by one, the directories do not.
    ends = np.concatenate([np.zeros((0, 2), np.uint32), *columns[1]])
    parts = np.full((sections + 1, 2), NONE, np.uint32)
    parts[0, 0], parts[1:, 0], parts[:-1, 1] = 0, ends[:, 0], ends[:, 1]
    return {
        "lists": np.concatenate([zero, *columns[3]]),
        "whole": whole,
        "sections": parts,
        "first": np.concatenate([zero.astype(np.uint64), *columns[2]]),
        "directory": np.concatenate([np.zeros((0, width), np.uint16), *(each.directory for each in made)]),
        "entries": np.concatenate([*(each.entries for each in made), np.zeros(PAD, np.uint8)]),
        "blocks": np.concatenate([zero, *columns[0]]),
        "posts": np.concatenate([zero[:0], *(each.posts for each in made)]),
    }


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
    return np.int64(_mixed(seed ^ (np.uint64(row) << np.uint64(32) | np.uint64(term))) >> np.uint64(48)) < share


@kernel
def _mixed(value):
    """SplitMix64 (Steele, Lea and Flood, 2014): a number that looks like chance, of another."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


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


@kernel
def _make_lists(first, last, chosen, members, records, rules, scratch, made):
    """Goes on with lists first..last where `made` ended, until all are made or there is no more room."""
    at = made.at
    for term in range(first + at[_AT_LIST], last):
        start, size = chosen[term], chosen[term + 1] - chosen[term]
        post, block, section, done, directory, entry = at[0], at[1], at[2], at[3], at[4], at[5]
        if size:
            blocks = _assign(members, start, size, np.uint64(term), records, rules, scratch)
            if not _emit(members, start, size, blocks, records, rules, scratch, made):
                at[0], at[1], at[2], at[3], at[4], at[5] = post, block, section, done, directory, entry
                return
        made.lists[done] = np.uint32(at[_AT_SECTION])
        at[_AT_LIST] = done + 1


@kernel
def _assign(members, start, size, term, records, rules, scratch):
    """Gives each row of a list its block, to scratch.of; returns how many blocks there are, of scratch.sizes rows each."""
    of, sizes, drawn = scratch.of, scratch.sizes, scratch.drawn
    count: Any = min(_CENTROIDS, max(1, np.int64(rules.centroids * size)))
    if count == 1:
        of[:size] = 0
        sizes[0] = size
        return 1
    state = _mixed(rules.seed ^ _mixed(term))
    for i in range(size):
        drawn[i] = np.uint32(i)
    for i in range(count):  # the first of a shuffle
        state = _mixed(state)
        other = i + np.int64(state % np.uint64(size - i))
        drawn[i], drawn[other] = drawn[other], drawn[i]
    for i in range(count):
        drawn[i] = members[start + np.int64(drawn[i])]
    touched = _invert(drawn, count, records, scratch)
    sizes[:count] = 0
    for i in range(size):
        prefetch(records.head8, np.int64(members[start + min(size - 1, i + 8)]) * HEAD, HEAD)
        of[i] = _nearest(np.int64(members[start + i]), count, records, scratch, sizes, 0)
        sizes[of[i]] += 1
    alive = 0
    for c in range(count):
        alive += sizes[c] > rules.least
    if alive == 0:
        of[:size] = 0
        sizes[0], count = size, 1
    elif alive < count:
        for i in range(size):
            if sizes[of[i]] <= rules.least:
                of[i] = -1 - _nearest(np.int64(members[start + i]), count, records, scratch, sizes, rules.least)
        for c in range(count):
            if sizes[c] <= rules.least:
                sizes[c] = 0
        for i in range(size):
            if of[i] < 0:
                of[i] = -1 - of[i]
                sizes[of[i]] += 1
    for i in range(touched):
        scratch.shares[scratch.touched[i]] = 0
    return count


@kernel
def _invert(drawn, count, records, scratch):
    """An inverted index of the heads of the centroids; returns how many slots are in it."""
    counts, starts, touched = scratch.shares, scratch.starts, 0
    for c in range(count):
        row = np.int64(drawn[c])
        for j in range(_in_head(records, row)):
            slot = np.uint64(records.head16[row * (HEAD // 2) + 4 + j])
            if counts[slot] == 0:
                scratch.touched[touched] = np.int32(slot)
                touched += 1
            counts[slot] += 1
    total = 0
    for i in range(touched):
        slot = scratch.touched[i]
        starts[slot] = total
        total += counts[slot]
        counts[slot] = 0
    for c in range(count):
        row = np.int64(drawn[c])
        for j in range(_in_head(records, row)):
            slot = np.uint64(records.head16[row * (HEAD // 2) + 4 + j])
            place = np.uint64(starts[slot] + counts[slot])
            scratch.places[place], scratch.codes[place] = c, records.head8[row * HEAD + 8 + 2 * HEAVIEST + j]
            counts[slot] += 1
    return touched


@kernel
def _in_head(records, row):
    return min(HEAVIEST, np.int64(records.head32[row * (HEAD // 4) + 1]))


@kernel
def _nearest(row, count, records, scratch, sizes, least):
    """The centroid with the greatest inner product; with `least`, of those with more rows than that."""
    sums = scratch.sums
    for c in range(count):
        sums[np.uint64(c)] = 0
    best, where, common = np.int32(-1), np.int64(0), max(_COMMON, count // 2)
    if least:
        for c in range(count):
            if sizes[c] > least:
                where = np.int64(c)
                break
    for j in range(min(_ALIKE, _in_head(records, row))):
        slot = np.uint64(records.head16[row * (HEAD // 2) + 4 + j])
        code = np.int32(records.head8[row * HEAD + 8 + 2 * HEAVIEST + j])
        start = np.uint64(scratch.starts[slot])
        if scratch.shares[slot] > common:
            continue
        for p in range(start, start + np.uint64(scratch.shares[slot])):
            place = np.uint64(scratch.places[p])
            mine = np.int32(sums[place] + code * np.int32(scratch.codes[p]))
            sums[place] = mine
            if mine > best and (least == 0 or sizes[place] > least):
                best, where = mine, np.int64(place)
    return where


@kernel
def _emit(members, start, size, blocks, records, rules, scratch, made):
    """Appends a list: its rows by block, and the summaries of its sections. False when there is no room for them."""
    at, sizes, of = made.at, scratch.sizes, scratch.of
    post, block = at[_AT_POST], at[_AT_BLOCK]
    total = 0
    for c in range(blocks):  # sizes become the ends of blocks, then, as rows are put there, their starts
        total += sizes[c]
        if sizes[c]:
            made.blocks[at[_AT_BLOCK]] = np.uint32(post + total)
            at[_AT_BLOCK] += 1
        sizes[c] = total
    for i in range(size - 1, -1, -1):
        sizes[of[i]] -= 1
        made.posts[post + sizes[of[i]]] = members[start + i]
    at[_AT_POST] += size
    if at[_AT_BLOCK] == block + 1 and size <= _SCORED:
        _close(made, at[_AT_BLOCK], False)
        return True
    waiting, first = 0, block
    for b in range(block, at[_AT_BLOCK]):
        begin = post if b == block else np.int64(made.blocks[b - 1])
        found = _gather(made.posts, begin, np.int64(made.blocks[b]), records, scratch)
        found = min(_shorten(found, rules.energy, scratch), ENTRIES)
        if b - first == BLOCKS or waiting + found > ENTRIES:
            if not _section(made, b, waiting, scratch):
                return False
            waiting, first = 0, b
        for i in range(found):
            slot = np.uint64(scratch.touched[i])
            where = np.uint64((b - first) << 8) | np.uint64(scratch.starts[i])  # block | code, below the slot
            scratch.waiting[waiting] = np.uint32((slot << np.uint64(16)) | where)
            waiting += 1
    return _section(made, at[_AT_BLOCK], waiting, scratch)


@kernel
def _gather(posts, begin, end, records, scratch):
    """The greatest code of each slot in some rows, to scratch.peaks; the slots to scratch.touched. Returns how many."""
    peaks, touched, count = scratch.peaks, scratch.touched, np.uint64(0)
    for p in range(begin, end):
        row = np.int64(posts[p])
        for j in range(_in_head(records, row)):
            slot = np.uint64(records.head16[np.uint64(row * (HEAD // 2) + 4 + j)])
            code = records.head8[np.uint64(row * HEAD + 8 + 2 * HEAVIEST + j)]
            touched[count] = np.int32(slot)
            count += np.uint64(peaks[slot] == 0 and code > 0)
            peaks[slot] = max(peaks[slot], code)
        rest = np.uint64(max(np.int64(0), np.int64(records.head32[row * (HEAD // 4) + 1]) - HEAVIEST))
        at16 = np.uint64(np.int64(records.head32[row * (HEAD // 4)]) * 2)
        at8 = at16 * np.uint64(2) + rest * np.uint64(2)
        for j in range(rest):
            slot = np.uint64(records.tail16[at16 + j])
            code = records.tail8[at8 + j]
            if code > peaks[slot]:
                touched[count] = np.int32(slot)
                count += np.uint64(peaks[slot] == 0)
                peaks[slot] = code
    return np.int64(count)


@kernel
def _shorten(count, energy, scratch):
    """Keeps the heaviest slots with this share of the weight: slots in touched[:kept], codes in starts[:kept]; clears peaks."""
    bins, peaks, touched = scratch.bins, scratch.peaks, scratch.touched
    bins[:256] = 0
    total = np.int64(0)
    for i in range(count):
        code = np.int64(peaks[np.uint64(touched[i])])
        bins[np.uint64(code)] += 1
        total += code
    wanted, code = np.int64(np.ceil(energy * total)), np.int64(255)
    while code > 1 and wanted > bins[code] * code:
        wanted -= bins[code] * code
        code -= 1
    equal = -(-wanted // code)  # of the least code that is kept, so many
    kept = 0
    for i in range(count):
        slot = np.uint64(touched[i])
        mine = np.int64(peaks[slot])
        peaks[slot] = 0
        if mine > code or (mine == code and equal > 0):
            equal -= mine == code
            touched[kept] = np.int32(slot)
            scratch.starts[kept] = np.int32(mine)
            kept += 1
    return kept


@kernel
def _section(made, end, count, scratch):
    """Writes the entries that wait, by bucket, as a section whose blocks end at `end`. False when there is no room."""
    at, width, bins = made.at, made.directory.shape[1], scratch.bins
    directory, entry = at[_AT_DIRECTORY], at[_AT_ENTRY]
    if directory == len(made.directory) or 3 * (entry + count) > len(made.entries):
        return False
    bins[:width] = 0
    for i in range(count):
        bins[np.uint64(scratch.waiting[i] >> np.uint32(24)) + np.uint64(1)] += 1
    for b in range(1, width):
        bins[b] += bins[b - 1]
    for b in range(width):
        made.directory[directory, b] = np.uint16(bins[b])
    for i in range(count):
        value = scratch.waiting[i]
        bucket = np.uint64(value >> np.uint32(24))
        first = np.int64(made.directory[directory, bucket])
        size = np.int64(made.directory[directory, bucket + np.uint64(1)]) - first
        place = 3 * (entry + first) + bins[bucket] - first
        bins[bucket] += 1
        made.entries[place] = np.uint8((value >> np.uint32(16)) & np.uint32(255))
        made.entries[place + size] = np.uint8((value >> np.uint32(8)) & np.uint32(255))
        made.entries[place + 2 * size] = np.uint8(value & np.uint32(255))
    at[_AT_ENTRY] += count
    _close(made, end, True)
    return True


@kernel
def _close(made, end, summaries):
    at = made.at
    made.sections[at[_AT_SECTION], 0] = np.uint32(end)
    made.sections[at[_AT_SECTION], 1] = np.uint32(at[_AT_DIRECTORY]) if summaries else NONE
    made.ends[at[_AT_SECTION]] = at[_AT_ENTRY]
    at[_AT_DIRECTORY] += 1 if summaries else 0
    at[_AT_SECTION] += 1
