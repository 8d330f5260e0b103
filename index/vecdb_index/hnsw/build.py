"""Builds the graph: rows are inserted in batches, in a random order, by many threads, with one outcome.

    adj      u32 (n, 2 m)   the links of each row; what lies beyond its degree means nothing
    deg      u16 (n,)       how many links a row has; 0 for rows without a vector
    entries  u32 (e,)       rows from which walks begin: at first a few at random, the cube root of n
    codes, centre, scale    the rows in a byte a number, which is all that is read to build it and to walk it: see `codec.int8`

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
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec.int8 import HEAD, Codes, estimate, head, width_of
from ..contract import Arrays, Budget, NeedsMemory, Progress, Rows, Trial
from ..kernels.compile import kernel
from ..kernels.distances import read_only
from .params import HNSW
from .search import HNSWSearcher
from .walk import MAX_ROWS, insert, key_in, packed, row_in, walk

_SLACK = np.float32(1.2)  # on squared distances
_ROOM = 1.3  # links that a row may gather, of its degree, before they are pruned
_TASK = 64  # rows to a task


class Graph:
    """A graph while it is built."""

    def __init__(self, rows: Rows, params: HNSW) -> None:
        n = len(rows)
        self.codes = Codes.of(rows)
        self.factor, self.slack = (np.float32(1), np.float32(1)) if rows.metric == "ip" else (np.float32(2), _SLACK)
        self.degree = min(params.degree, max(1, n - 1))
        self.width = max(params.ef_construction, self.degree)
        self.adj = np.zeros((n, int(self.degree * _ROOM) + 1), np.uint32)
        self.deg = np.zeros(n, np.uint16)
        self.entries = np.zeros(0, np.uint32)

    def scratch(self) -> tuple[npt.NDArray[Any], ...]:
        """What one task works in: seen, epoch, pool, near, chosen; words and scalars of the query and of chosen rows."""
        n, stride = self.codes.codes.shape
        room = self.adj.shape[1] + 1
        return (
            np.zeros(n, np.uint16), np.zeros(1, np.uint16), np.empty(max(self.width, 2 * room) + 1, np.uint64),
            np.empty(room + 1, np.int64), np.empty(room, np.int64), np.empty((self.degree + 1, stride - HEAD), np.int16),
            np.empty((self.degree + 1, 2), np.float32),
        )  # fmt: skip


def memory_of(n: int, d: int, params: HNSW, threads: int) -> int:
    """About how many bytes a build takes beside its rows."""
    row = (int(params.degree * _ROOM) + 1 + params.degree) * 4 + width_of(d) + 24
    return n * row + threads * (2 * n + params.degree * d * 2) + (1 << 20)


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
    graph = Graph(rows, params)
    with _Team(budget, graph) as team:
        team.run(n, lambda a, b, s: graph.codes.fill(rows, a, b), 1024)
        progress(0.02)
        first = order[: len(order) - held]
        graph.entries = first[: _entries(len(first)) * (2 if rows.metric == "ip" else 1)].astype(np.uint32)
        for start, stop in _batches(len(first)):
            _insert(graph, order[:start], order[start:stop], team)
            progress(0.02 + 0.93 * stop / len(order))
        if trial is not None:
            _finish(graph, first, team)
            trial.run(HNSWSearcher(_arrays(graph), trial.others(rows), params), trial.others(rows))
            _insert(graph, first, order[len(first) :], team)
        _finish(graph, order, team)
    progress(1.0)
    return _arrays(graph)


def _entries(n: int) -> int:
    return round(n ** (1 / 3))


def _finish(graph: Graph, order: npt.NDArray[np.int64], team: _Team) -> None:
    """No row keeps more links than it may, and every row can be reached."""
    team.run(len(order), lambda a, b, s: _shorten(*_about(graph), order[a:b], graph.degree, *s))
    _connect(graph, order, team)


def _arrays(graph: Graph) -> Arrays:
    adj = np.ascontiguousarray(graph.adj[:, : graph.degree])
    return {"adj": adj, "deg": graph.deg.copy(), "entries": graph.entries, **graph.codes.arrays()}


def _flags(words: npt.NDArray[np.uint64], n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _batches(n: int) -> Iterator[tuple[int, int]]:
    """Half of what is there while that is little; then a quarter, but never more than a twentieth of all."""
    start = 0
    while start < n:
        size = max(1, start // 2) if start < 4000 else min(start // 4, max(2000, n // 20))
        yield start, min(n, start + size)
        start += size


class _Team:
    """Threads that share out a range, each with scratch of its own. Kernels release the interpreter."""

    def __init__(self, budget: Budget, graph: Graph) -> None:
        self._pool = ThreadPoolExecutor(budget.threads) if budget.threads > 1 else None
        self._scratch = [graph.scratch() for _ in range(budget.threads)]
        self._control = budget.control

    def run(self, count: int, work: Callable[[int, int, tuple[Any, ...]], Any], task: int = _TASK) -> None:
        """work(start, stop, scratch) over 0..count, `task` at a time. Raises Cancelled."""
        steps = iter(range(0, count, task))

        def share(scratch: tuple[Any, ...]) -> None:
            for start in steps:  # one iterator for all: whoever is free takes the next
                self._control.poll()
                work(start, min(count, start + task), scratch)

        if self._pool is None or count <= task:
            share(self._scratch[0])
        else:
            for _ in self._pool.map(share, self._scratch):
                pass

    def __enter__(self) -> _Team:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _about(graph: Graph) -> tuple[Any, ...]:
    """The arguments that all kernels below begin with."""
    return graph.codes.codes, graph.factor, graph.slack, graph.adj, graph.deg


def _insert(graph: Graph, before: npt.NDArray[np.int64], batch: npt.NDArray[np.int64], team: _Team) -> None:
    if not len(before) or not len(batch):
        return
    entries = graph.entries[: len(before)]  # they were the first rows of all
    team.run(len(batch), lambda a, b, s: _link(*_about(graph), read_only(entries), batch[a:b], graph.degree, graph.width, *s))
    degrees = graph.deg[batch].astype(np.int64)
    source = np.repeat(batch, degrees)
    target = graph.adj[batch][np.arange(graph.adj.shape[1]) < degrees[:, None]].astype(np.int64)
    by_target = np.argsort(target, kind="stable")
    source, target = source[by_target], target[by_target]
    first = np.flatnonzero(np.diff(target, prepend=-1))
    ends = np.append(first, len(target))
    team.run(
        len(first), lambda a, b, s: _link_back(*_about(graph), target[first[a:b]], ends[a : b + 1], source, graph.degree, *s)
    )


def _connect(graph: Graph, order: npt.NDArray[np.int64], team: _Team) -> None:
    """Links rows that no walk from an entry could reach."""
    reached = np.zeros(len(graph.deg), np.bool_)
    stack = np.empty(len(graph.deg), np.int64)
    entries = list(graph.entries)
    _reach(graph.adj, graph.deg, graph.entries.astype(np.int64), reached, stack)
    while True:
        lost = order[~reached[order]]
        if not len(lost):
            break
        row = lost[:1]
        if not _adopt(*_about(graph), read_only(graph.entries), row, graph.degree, graph.width, reached, *team._scratch[0]):
            entries.append(np.uint32(row[0]))
        _reach(graph.adj, graph.deg, row, reached, stack)
    graph.entries = np.array(entries, np.uint32)


# -- kernels -------------------------------------------------------------------------------------------------


@kernel
def _next(seen, epoch):
    """The number of the next walk; marks are cleared when numbers run out."""
    if epoch[0] == np.uint16(65535):
        seen[:] = 0
        epoch[0] = 0
    epoch[0] += np.uint16(1)
    return epoch[0]


@kernel
def _take(codes, factor, row, kept, about, place):
    """A row as a query, at kept[place]; about[place]: what its products are multiplied with, and its w."""
    for i in range(kept.shape[1]):
        kept[place, i] = np.int16(codes[row, HEAD + i])
    at = row * np.int64(codes.shape[1])
    about[place, 0], about[place, 1] = factor * head(codes, at), head(codes, at + 4)


@kernel
def _apart(kept, about, place, codes, row):
    """How far the row at kept[place] and another are from each other."""
    return about[place, 1] - estimate(kept, place * kept.shape[1], about[place, 0], np.float32(1), codes, row)


@kernel
def _prune(codes, factor, slack, row, pool, size, degree, chosen, kept, about):
    """Chooses links of `row`, which is at kept[0], from the pool, best first: chosen[:count]. kept[1:] is scratch."""
    count = 0
    for i in range(size):
        other = row_in(pool[i])
        if other == row:
            continue
        mine = about[0, 1] - key_in(pool[i])
        near = False
        for j in range(count):
            if slack * _apart(kept, about, 1 + j, codes, other) < mine:
                near = True
                break
        if not near:
            chosen[count] = other
            count += 1
            _take(codes, factor, other, kept, about, count)
            if count == degree:
                break
    # Products are no distance: a few long rows hide all others. So half of the links are the nearest rows, hidden or not.
    for i in range(size if factor == 1 else 0):
        other = row_in(pool[i])
        if count >= degree // 2:
            break
        known = other == row
        for j in range(count):
            known |= chosen[j] == other
        if not known:
            chosen[count] = other
            count += 1
    return count


@kernel
def _search(codes, adj, deg, entries, width, seen, epoch, pool, near, kept, about):
    """Walks from the row at kept[0]; returns the size of the pool."""
    mark = _next(seen, epoch)
    size, _ = walk(kept, 0, about[0, 0], np.float32(1), codes, adj, deg, entries, seen, mark, pool, width, width, 0, near)
    return size


@kernel
def _link(codes, factor, slack, adj, deg, entries, batch, degree, width, seen, epoch, pool, near, chosen, kept, about):
    """The links of each row of a batch."""
    for i in range(len(batch)):
        row = batch[i]
        _take(codes, factor, row, kept, about, 0)
        size = _search(codes, adj, deg, entries, width, seen, epoch, pool, near, kept, about)
        count = _prune(codes, factor, slack, row, pool, size, degree, chosen, kept, about)
        for j in range(count):
            adj[row, j] = np.uint32(chosen[j])
        deg[row] = np.uint16(count)


@kernel
def _link_back(codes, factor, slack, adj, deg, targets, ends, source, degree, seen, epoch, pool, near, chosen, kept, about):
    """Adds to each target the rows that link to it: source[ends[i]:ends[i + 1]]."""
    for i in range(len(targets)):
        row = targets[i]
        for j in range(ends[i], ends[i + 1]):
            if np.int64(deg[row]) == adj.shape[1]:
                _repick(codes, factor, slack, adj, deg, row, degree, pool, chosen, kept, about)
            count = np.int64(deg[row])
            adj[row, count] = np.uint32(source[j])
            deg[row] = np.uint16(count + 1)


@kernel
def _repick(codes, factor, slack, adj, deg, row, degree, pool, chosen, kept, about):
    """Prunes a row's links to its degree."""
    _take(codes, factor, row, kept, about, 0)
    for j in range(np.int64(deg[row])):
        other = np.int64(adj[row, j])
        insert(pool, j, len(pool), packed(estimate(kept, 0, about[0, 0], np.float32(1), codes, other), other))
    count = _prune(codes, factor, slack, row, pool, np.int64(deg[row]), degree, chosen, kept, about)
    for j in range(count):
        adj[row, j] = np.uint32(chosen[j])
    deg[row] = np.uint16(count)


@kernel
def _shorten(codes, factor, slack, adj, deg, some, degree, seen, epoch, pool, near, chosen, kept, about):
    """Prunes the rows that have more links than they may keep."""
    for i in range(len(some)):
        if np.int64(deg[some[i]]) > degree:
            _repick(codes, factor, slack, adj, deg, some[i], degree, pool, chosen, kept, about)


@kernel
def _reach(adj, deg, start, reached, stack):
    """Marks what can be reached from some rows."""
    size = 0
    for i in range(len(start)):
        if not reached[start[i]]:
            reached[start[i]] = True
            stack[size] = start[i]
            size += 1
    while size:
        size -= 1
        row = stack[size]
        for j in range(np.int64(deg[row])):
            other = np.int64(adj[row, j])
            if not reached[other]:
                reached[other] = True
                stack[size] = other
                size += 1


@kernel
def _adopt(codes, factor, slack, adj, deg, entries, lost, degree, width, reached, seen, epoch, pool, near, chosen, kept, about):
    """Links the nearest reached row that has room to a lost one. False when there is none."""
    _take(codes, factor, lost[0], kept, about, 0)
    size = _search(codes, adj, deg, entries, width, seen, epoch, pool, near, kept, about)
    for i in range(size):
        row = row_in(pool[i])
        if reached[row] and np.int64(deg[row]) < degree:
            adj[row, np.int64(deg[row])] = np.uint32(lost[0])
            deg[row] += np.uint16(1)
            return True
    return False
