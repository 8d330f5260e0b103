"""Builds the graph: rows are inserted in batches, in a random order, by many threads, with one outcome.

    adj      u32 (n, 2 m)   the links of each row; what lies beyond its degree means nothing
    deg      u16 (n,)       how many links a row has; 0 for rows without a vector
    entries  u32 (e,)       rows from which walks begin: at first a few at random, the cube root of n
    near, directions, steps    the rows in half a byte a number, by which it is walked: see `codec.int4`; may be empty
    codes, centre, scale    the rows in a byte a number, by which links are chosen and allowed rows scanned: see `codec.int8`

For a batch: each of its rows walks the graph as it was before the batch and prunes what it found to its links; then these are
turned round, and each row that gained links keeps the best. A row's links are written by one task only, and rows of one
batch never see each other, so the bytes do not depend on threads. Pruning is that of HNSW (Malkov and Yashunin, 2016,
algorithm 4) with the slack of Vamana (Subramanya et al., NeurIPS 2019): a candidate stays unless it is by a factor nearer to a
link already chosen. There are no upper layers: on vectors of many dimensions they do not pay (Munyampirwa et al., 2024), and
more than one entry does their work on the others. At the end every row can be reached from an entry.

Near means: by the squared Euclidean distance of the coded rows (of their directions, for cosine). For inner product it means a
large product (Morozov and Babenko, NeurIPS 2018), with no slack, since that is no distance. (Rows lifted to equal length by one
more coordinate, after which distances and products agree, made a far worse graph: 0.39 of the best ten where this finds 0.98.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..codec import int4
from ..codec.int4 import Int4, by_lines, numbers_in, principal, query_of, strides_of
from ..codec.int8 import HEAD, Codes, estimate, head, width_of
from ..contract import Arrays, Budget, NeedsMemory, Progress, Room, Rows, Trial
from ..flat.search import FlatSearcher
from ..kernels.compile import kernel
from ..kernels.distances import prefetch, read_only
from ..kernels.select import MAX_ROWS, key_in, packed, row_in
from .params import HNSW
from .search import HNSWSearcher
from .walk import insert, look, next_epoch, room_of, walk

_SLACK = np.float32(1.1)  # on squared distances
_ROOM = 1.3  # links that a row may gather, of its degree, before they are pruned
_TASK = 64  # rows to a task
LEAST_IN_HALF_BYTES = 2000  # rows; fewer are walked by their codes in a byte
_PROBES, _NEAREST, _AMONG, _AROUND = 128, 10, 20, 200  # see _half_bytes
_TOLD_APART = 0.98


class _Lists(NamedTuple):
    """The graph as kernels take it: its arrays, how many numbers `small` holds of a row, and what its links are chosen by."""

    codes: npt.NDArray[np.int8]
    small: npt.NDArray[np.uint8]
    numbers: int
    adj: npt.NDArray[np.uint32]
    deg: npt.NDArray[np.uint16]
    walked: tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint16]]  # the same two as searches have them: read-only
    degree: int
    width: int
    factor: np.float32
    slack: np.float32


class _Scratch(NamedTuple):
    """What one task works in."""

    seen: npt.NDArray[np.uint16]  # by rows, and the number of the walk: see `walk`
    epoch: npt.NDArray[np.uint16]
    met: npt.NDArray[np.uint64]  # the pool as it is walked
    near: npt.NDArray[np.int64]
    guess: npt.NDArray[np.float32]
    asked: npt.NDArray[np.int16]  # a row as a query in half bytes, and the same as bytes
    asked_bytes: npt.NDArray[np.int8]
    pool: npt.NDArray[np.uint64]  # candidates, ranked by whole bytes
    chosen: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int16]  # a row as a query, and those that are chosen
    about: npt.NDArray[np.float32]  # of each: what its products are multiplied with, and its w


class Graph:
    """A graph while it is built."""

    def __init__(self, rows: Rows, params: HNSW, room: Room) -> None:
        n = len(rows)
        self.codes = Codes.of(rows, room=room)
        self.small = Int4.none(n, self.codes)
        self.factor, self.slack = (np.float32(1), np.float32(1)) if rows.metric == "ip" else (np.float32(2), _SLACK)
        self.degree = min(params.degree, max(1, n - 1))
        self.width = max(params.ef_construction, self.degree)
        self.adj = by_lines((n, int(self.degree * _ROOM) + 1), np.uint32, room)
        self.deg = np.zeros(n, np.uint16)
        self.entries = np.zeros(0, np.uint32)  # from which walks begin while it is built; scratch has room for as many
        self.islands = np.zeros(0, np.uint32)  # rows to which no walk from them leads, and so entries of searches, too

    @property
    def lists(self) -> _Lists:
        numbers = len(self.small.steps)
        coded, walked = (self.codes.codes, self.small.codes, numbers), (read_only(self.adj), read_only(self.deg))
        return _Lists(*coded, self.adj, self.deg, walked, self.degree, self.width, self.factor, self.slack)

    def pack(self) -> None:
        """Gives back the room that rows had for more links than they keep; they move up where they are."""
        links = self.adj.reshape(-1)
        _pack(links, len(self.adj), self.adj.shape[1], self.degree)
        self.adj = links[: len(self.adj) * self.degree].reshape(-1, self.degree)

    def arrays(self) -> Arrays:
        """To be stored, or to be searched as they are."""
        entries = np.concatenate([self.entries, self.islands])
        return {"adj": self.adj, "deg": self.deg, "entries": entries, **self.small.arrays(), **self.codes.arrays()}

    def scratch(self) -> _Scratch:
        n, stride = self.codes.codes.shape
        links = self.adj.shape[1]
        room = room_of(self.adj, range(2 * _entries(n)))
        asked = np.zeros((1, self.small.codes.shape[1]), np.int16)
        return _Scratch(
            np.zeros(n, np.uint16), np.zeros(1, np.uint16), np.empty(self.width + 1, np.uint64), np.empty(room, np.int64),
            np.empty(room, np.float32), asked, asked[0].view(np.int8), np.empty(max(self.width, 2 * links) + 3, np.uint64),
            np.empty(links + 1, np.int64), np.empty((self.degree + 1, stride - HEAD), np.int16),
            np.empty((self.degree + 1, 2), np.float32),
        )  # fmt: skip


def memory_of(n: int, d: int, params: HNSW, threads: int) -> int:
    """About how many bytes a build takes beside its rows."""
    row = (int(params.degree * _ROOM) + 1) * 4 + width_of(d) + max(strides_of(d), default=0) + 18
    before = int4.memory_of(d) if n >= LEAST_IN_HALF_BYTES else 0  # and given back
    turned = min(n, _most_together(n)) * params.degree * 8
    return max(before, n * row + turned + threads * (2 * n + params.degree * d * 2)) + (1 << 20)


def build(rows: Rows, params: HNSW, budget: Budget, progress: Progress, trial: Trial | None = None) -> Arrays:
    """See the module. Raises NeedsMemory, Cancelled, ValueError for 2^31 rows or more."""
    n, d = rows.vectors.shape
    if n >= MAX_ROWS:
        raise ValueError(f"a graph holds fewer than {MAX_ROWS:,} rows; this segment has {n:,}")
    needed = memory_of(n, d, params, budget.threads)
    if budget.memory is not None and needed > budget.memory:
        raise NeedsMemory(needed, budget.memory)
    order = np.arange(n) if rows.present is None else np.flatnonzero(_flags(rows.present, n))
    order = np.random.default_rng(budget.seed).permutation(order)
    if rows.metric == "ip":  # half of the entries are the longest rows, to which most queries are near
        longest = np.argsort(-rows.norms[order], kind="stable")[: _entries(len(order))]
        order = np.concatenate([order[longest], np.delete(order, longest)])
    held = 0
    if trial is not None:  # its rows come last, when the trial is over
        last = np.isin(order, trial.rows)
        order, held = np.concatenate([order[~last], order[last]]), int(last.sum())
    budget.control.poll()
    graph = Graph(rows, params, budget.room)
    with _Team(budget) as team:
        team.run(n, lambda a, b, s: graph.codes.fill(rows, a, b), 1024)
        progress(0.01)
        graph.small = _half_bytes(graph.codes, rows, np.sort(order), budget)
        if graph.small.codes.shape[1]:
            team.run(n, lambda a, b, s: graph.small.fill(graph.codes, a, b), 1024)
        team.scratch = [graph.scratch() for _ in range(budget.threads)]
        progress(0.02)
        first = order[: len(order) - held]
        graph.entries = first[: _entries(len(first)) * (2 if rows.metric == "ip" else 1)].astype(np.uint32)
        for start, stop in _batches(len(first)):
            _insert(graph, order[:start], order[start:stop], team)
            progress(0.02 + 0.93 * stop / len(order))
        if trial is not None:
            _finish(graph, first, team)
            trial.run(HNSWSearcher(graph.arrays(), trial.others(rows), params), trial.others(rows))
            _insert(graph, first, order[len(first) :], team)
        _finish(graph, order, team)
    graph.pack()
    progress(1.0)
    return graph.arrays()


def _half_bytes(full: Codes, rows: Rows, there: npt.NDArray[np.int64], budget: Budget) -> Int4:
    """Codes in half a byte a number, yet to be filled: in the least record that tells neighbours apart; in none if none does.

    It does if of rows that are taken as queries the nearest ten are among the best twenty by estimates, of the nearest 200.
    """
    if len(there) < LEAST_IN_HALF_BYTES:
        return Int4.none(len(rows), full)
    probes = there[np.linspace(0, len(there) - 1, _PROBES).astype(np.int64)]
    queries = np.ascontiguousarray(rows.vectors[probes], np.float32)
    found = FlatSearcher(rows, full).search(queries, _AROUND + 1, control=budget.control).rows
    others = np.array(
        [[each for each in mine if each != own][:_AROUND] for mine, own in zip(found.tolist(), probes.tolist(), strict=True)]
    )
    d, near, guess = rows.vectors.shape[1], np.empty(_AROUND + 3, np.int64), np.empty(_AROUND + 3, np.float32)
    for stride in strides_of(d):
        budget.control.poll()
        axes = principal(full, there, min(d, numbers_in(stride)), budget.seed)
        tried = Int4.of(full, stride, axes, budget.seed, others.size)
        tried.fill(full, 0, others.size, others.ravel())
        _, words, scalars = tried.ask(queries)
        hits = 0
        for q in range(_PROBES):
            near[:_AROUND] = np.arange(q * _AROUND, (q + 1) * _AROUND)
            t, b, f = (np.float32(value) for value in scalars[q, :3])
            look(read_only(words), q * words.shape[1], t, b, f, full.codes, tried.codes, near, _AROUND, guess)
            hits += int((np.argsort(-guess[:_AROUND], kind="stable")[:_AMONG] < _NEAREST).sum())
        if hits >= _TOLD_APART * _PROBES * _NEAREST:
            return Int4.of(full, stride, axes, budget.seed, room=budget.room)
    return Int4.none(len(rows), full)


def _entries(n: int) -> int:
    return round(n ** (1 / 3))


def _finish(graph: Graph, order: npt.NDArray[np.int64], team: _Team) -> None:
    """No row keeps more links than it may, and every row can be reached."""
    team.run(len(order), lambda a, b, s: _shorten(graph.lists, order[a:b], s))
    _connect(graph, order, team)


def _flags(words: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _most_together(n: int) -> int:
    """Rows of a batch."""
    return max(2000, n // 20)


def _batches(n: int) -> Iterator[tuple[int, int]]:
    """Half of what is there while that is little; then a quarter, but never more than a twentieth of all."""
    start = 0
    while start < n:
        size = max(1, start // 2) if start < 4000 else min(start // 4, _most_together(n))
        yield start, min(n, start + size)
        start += size


class _Team:
    """Threads that share out a range, each with scratch of its own. Kernels release the interpreter."""

    def __init__(self, budget: Budget) -> None:
        self._pool = ThreadPoolExecutor(budget.threads) if budget.threads > 1 else None
        self._control = budget.control
        self.scratch: list[Any] = [None] * budget.threads

    def run(self, count: int, work: Callable[[int, int, Any], Any], task: int = _TASK) -> None:
        """work(start, stop, scratch) over 0..count, `task` at a time. Raises Cancelled."""
        steps = iter(range(0, count, task))

        def share(number: int) -> None:
            for start in steps:  # one iterator for all: whoever is free takes the next
                self._control.poll()
                work(start, min(count, start + task), self.scratch[number])
                if number >= self._control.threads(most):
                    break  # others go on

        most = len(self.scratch)
        if self._pool is None or count <= task:
            share(0)
        else:
            for _ in self._pool.map(share, range(self._control.threads(most))):
                pass

    def __enter__(self) -> _Team:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _insert(graph: Graph, before: npt.NDArray[np.int64], batch: npt.NDArray[np.int64], team: _Team) -> None:
    if not len(before) or not len(batch):
        return
    entries = graph.entries[: len(before)]  # they were the first rows of all
    team.run(len(batch), lambda a, b, s: _link(graph.lists, read_only(entries), batch[a:b], s))
    turned = np.empty(int(graph.deg[batch].sum()), np.uint64)
    _turn(graph.adj, graph.deg, batch, turned)
    turned.sort()
    team.run(len(turned), lambda a, b, s: _link_back(graph.lists, turned, a, b, s), _TASK * graph.degree)


def _connect(graph: Graph, order: npt.NDArray[np.int64], team: _Team) -> None:
    """Links rows that no walk from an entry could reach."""
    through = np.full(len(graph.deg), -1, np.int32)  # by which row each was reached first, an entry by itself
    stack = np.empty(len(graph.deg), np.int32)
    islands: list[np.int64] = []
    _reach(graph.adj, graph.deg, graph.entries.astype(np.int64), through, stack)
    for row in order[through[order] < 0]:
        if through[row] >= 0:
            continue
        if not _adopt(graph.lists, read_only(graph.entries), row, through, team.scratch[0]):
            islands.append(row)
        _reach(graph.adj, graph.deg, np.array([row]), through, stack)
    graph.islands = np.array(islands, np.uint32)


# -- kernels -------------------------------------------------------------------------------------------------


@kernel
def _take(graph, row, scratch, place):
    """A row as a query, at kept[place]."""
    kept, about = scratch.kept, scratch.about
    for i in range(kept.shape[1]):
        kept[place, i] = np.int16(graph.codes[row, HEAD + i])
    at = row * np.int64(graph.codes.shape[1])
    about[place, 0], about[place, 1] = graph.factor * head(graph.codes, at), head(graph.codes, at + 4)


@kernel
def _near(graph, scratch, place, row):
    """The estimate of a row for the one at kept[place]."""
    return estimate(
        scratch.kept, place * scratch.kept.shape[1], scratch.about[place, 0], np.float32(1), graph.codes, row
    )  # fmt: skip


@kernel
def _prune(graph, row, size, scratch):
    """Chooses links of `row`, which is at kept[0], from the pool, best first: chosen[:count]. kept[1:] is scratch."""
    pool, chosen, about = scratch.pool, scratch.chosen, scratch.about
    count = 0
    for i in range(size):
        other = row_in(pool[i])
        if other == row:
            continue
        mine = about[0, 1] - key_in(pool[i])
        hidden = False
        for j in range(count):
            if graph.slack * (about[1 + j, 1] - _near(graph, scratch, 1 + j, other)) < mine:
                hidden = True
                break
        if not hidden:
            chosen[count] = other
            count += 1
            _take(graph, other, scratch, count)
            if count == graph.degree:
                break
    # Products are no distance: a few long rows hide all others. So half of the links are the nearest rows, hidden or not.
    for i in range(size if graph.factor == 1 else 0):
        other = row_in(pool[i])
        if count >= graph.degree // 2:
            break
        known = other == row
        for j in range(count):
            known |= chosen[j] == other
        if not known:
            chosen[count] = other
            count += 1
    for j in range(count):
        graph.adj[row, j] = np.uint32(chosen[j])
    graph.deg[row] = np.uint16(count)


@kernel
def _search(graph, entries, row, scratch):
    """Walks from a row, which is put at kept[0]; returns the size of the pool, ranked by codes in a byte."""
    _take(graph, row, scratch, 0)
    one, width, small, met, pool = np.float32(1), graph.width, graph.small, scratch.met, scratch.pool
    marks = scratch.seen, next_epoch(scratch.seen, scratch.epoch)
    lists, looked = (*graph.walked, entries), (scratch.near, scratch.guess)
    if not small.shape[1]:
        t, none = scratch.about[0, 0], np.float32(0)
        size, _ = walk(scratch.kept, 0, t, one, none, graph.codes, small, *lists, *marks, pool, width, width, 0, *looked)
        return size
    f = query_of(small, row, graph.numbers, scratch.asked_bytes, 0)
    half = graph.factor * head(small, row * np.int64(small.shape[1])) / np.float32(2)
    size, _ = walk(scratch.asked, 0, half, one, f, graph.codes, small, *lists, *marks, met, width, width, 0, *looked)
    stride = np.int64(graph.codes.shape[1])
    for i in range(size):
        prefetch(graph.codes, row_in(met[min(size - 1, i + 3)]) * stride, stride)
        other = row_in(met[i])
        insert(pool, i, len(pool), packed(_near(graph, scratch, 0, other), other))
    return size


@kernel
def _link(graph, entries, batch, scratch):
    """The links of each row of a batch."""
    for i in range(len(batch)):
        size = _search(graph, entries, batch[i], scratch)
        _prune(graph, batch[i], size, scratch)


@kernel
def _turn(adj, deg, batch, turned):
    """The links of some rows, each as where it leads << 32 | where it comes from."""
    at = 0
    for i in range(len(batch)):
        row = np.int64(batch[i])
        for j in range(np.int64(deg[row])):
            turned[at] = np.uint64(adj[row, j]) << np.uint64(32) | np.uint64(row)
            at += 1


@kernel
def _link_back(graph, turned, start, stop, scratch):
    """Links each row to those that chose it, see `_turn`, if the first of them is among turned[start:stop]."""
    half = np.uint64(32)
    while 0 < start < stop and turned[start] >> half == turned[start - 1] >> half:
        start += 1
    if start == stop:
        return
    while start < len(turned) and (start < stop or turned[start] >> half == turned[start - 1] >> half):
        row = np.int64(turned[start] >> half)
        if np.int64(graph.deg[row]) == graph.adj.shape[1]:
            _repick(graph, row, scratch)
        count = np.int64(graph.deg[row])
        graph.adj[row, count] = np.uint32(turned[start])
        graph.deg[row] = np.uint16(count + 1)
        start += 1


@kernel
def _repick(graph, row, scratch):
    """Prunes a row's links to its degree."""
    _take(graph, row, scratch, 0)
    pool, size = scratch.pool, np.int64(graph.deg[row])
    for j in range(size):
        other = np.int64(graph.adj[row, j])
        insert(pool, j, len(pool), packed(_near(graph, scratch, 0, other), other))
    _prune(graph, row, size, scratch)


@kernel
def _shorten(graph, some, scratch):
    """Prunes the rows that have more links than they may keep."""
    for i in range(len(some)):
        if np.int64(graph.deg[some[i]]) > graph.degree:
            _repick(graph, some[i], scratch)


@kernel
def _pack(links, n, room, degree):
    """The first `degree` links of each row, which had `room`, to follow each other."""
    for row in range(1, n):
        for j in range(degree):
            links[row * degree + j] = links[row * room + j]


@kernel
def _reach(adj, deg, start, through, stack):
    """Notes through which row each is reached first, from some rows on."""
    size = 0
    for i in range(len(start)):
        if through[start[i]] < 0:
            through[start[i]] = start[i]
        stack[size] = start[i]
        size += 1
    while size:
        size -= 1
        row = stack[size]
        for j in range(np.int64(deg[row])):
            other = np.int64(adj[row, j])
            if through[other] < 0:
                through[other] = row
                stack[size] = other
                size += 1


@kernel
def _adopt(graph, entries, lost, through, scratch):
    """Links the nearest reached row that has room to a lost one, or that can do without a link. False when there is none."""
    size = _search(graph, entries, lost, scratch)
    for i in range(size):
        row = row_in(scratch.pool[i])
        count = np.int64(graph.deg[row])
        if through[row] >= 0 and count < graph.degree:
            graph.adj[row, count] = np.uint32(lost)
            graph.deg[row] += np.uint16(1)
            through[lost] = row
            return True
    for i in range(size):
        row = row_in(scratch.pool[i])
        if through[row] < 0:
            continue
        for j in range(np.int64(graph.deg[row]) - 1, -1, -1):
            if through[np.int64(graph.adj[row, j])] != row:  # that one is reached without it
                graph.adj[row, j] = np.uint32(lost)
                through[lost] = row
                return True
    return False
