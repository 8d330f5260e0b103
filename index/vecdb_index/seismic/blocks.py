"""Cuts lists into blocks of rows that are alike, with a summary of each. See `build` and `layout`.

A task is some lists that follow each other; chance depends on the seed and the component alone, and tasks do not depend on
threads, so neither do the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..contract import Arrays, Budget, Progress
from ..kernels.compile import kernel
from ..kernels.distances import prefetch
from .layout import BLOCKS, ENTRIES, HEAD, HEAVIEST, NONE, PAD, SLOTS
from .params import Seismic
from .records import Records, Terms

_TASK = 1 << 14  # postings to a task, about
_SCORED = 8  # rows: of a single block so small there is no summary, its rows are looked at instead
_ALIKE = 15  # components by which a row finds its block
_CENTROIDS = 4096  # of a list, at most
_COMMON = 64  # centroids: a component that more have, and half of all, tells them little apart
_AT_POST, _AT_BLOCK, _AT_SECTION, _AT_LIST, _AT_DIRECTORY, _AT_ENTRY = range(6)


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


def cluster(
    chosen: Any, members: Any, records: Records, terms: Terms, params: Seismic, budget: Budget, pool: ThreadPoolExecutor,
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


def joined(made: list[_Made], whole: Any, terms: Terms) -> Arrays:
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
def mixed(value):
    """SplitMix64 (Steele, Lea and Flood, 2014): a number that looks like chance, of another."""
    value = np.uint64(value) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


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
    state = mixed(rules.seed ^ mixed(term))
    for i in range(size):
        drawn[i] = np.uint32(i)
    for i in range(count):  # the first of a shuffle
        state = mixed(state)
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
