"""Runs a search over the parts of a snapshot and merges what they find.

Segments, or row ranges of large ones, are spread over the database's thread pool (kernels release the GIL). Each
gives its best k by exact keys from one fixed-order kernel, so the merge is exact and the answer does not depend on
threads, on how rows are spread over segments, or on the size of the batch. Equal keys are ordered by id: where rows
with the key of the k-th place were left out by a part, they are fetched and take part. Stateless apart from the
searchers kept with their segments; safe in any thread.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import Hits as FoundRows
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_storage.ids import Id
from vecdb_storage.segment import Segment, StoredField
from vecdb_storage.snapshot import Part, SegmentPart, Snapshot
from vecdb_storage.tombstones import Words

from ..filters import Expression
from ..schema import Dense
from . import bitmaps
from .plan import PartPlan

_SMALLEST_TASK = 4 << 20  # bytes of vectors for which another thread is worth waking
_searchers: WeakKeyDictionary[Segment, dict[tuple[str, int, int], FlatSearcher]] = WeakKeyDictionary()


@dataclass(slots=True)
class Found:
    """A hit before it is shown: its key (larger is better), id, and where its row is."""

    key: float
    id: Id
    part: Part
    row: int


@dataclass
class _Task:
    """A range of rows of one part. first: its first row."""

    part: Part
    first: int
    searcher: FlatSearcher
    allowed: Words | None
    result: FoundRows | None = None
    seconds: float = 0.0


class Executor:
    """The thread pool of one database. threads: of kernels, at least 1."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="vecdb-search") if threads > 1 else None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def search(
        self,
        snapshot: Snapshot,
        name: str,
        declared: Dense,
        queries: npt.NDArray[np.float32],
        k: int,
        where: Expression | None,
        without: Expression | None = None,
        explain: list[PartPlan] | None = None,
    ) -> list[list[Found]]:
        """The best k of each of the (m, d) queries. explain: a list to which each part adds what it did."""
        tasks = []
        for part in snapshot.parts:
            stored = part.field(name) if part.rows else None
            if stored is None:
                continue
            words = bitmaps.allowed(part, where, without)
            if words is None or words.any():
                tasks += self._split(part, name, declared, stored, words)
        self._run(tasks, lambda task: task.searcher.search(queries, k, allowed=task.allowed))
        if explain is not None:
            explain += [_explained(part, [t for t in tasks if t.part is part]) for part in snapshot.parts if part.rows]
        return [_merge(tasks, query, queries, k) for query in range(len(queries))]

    def _split(self, part: Part, name: str, declared: Dense, stored: StoredField, words: Words | None) -> list[_Task]:
        """A part as one task, or as about as many row ranges as there are threads."""
        pieces = min(self.threads, max(1, stored.vectors.nbytes // _SMALLEST_TASK))
        step = -(-part.rows // pieces // 64) * 64 or 64
        tasks = []
        for first in range(0, part.rows, step):
            last = min(first + step, part.rows)
            mine = None if words is None else words[first // 64 : -(-last // 64)]
            if mine is None or mine.any():
                tasks.append(_Task(part, first, _searcher(part, name, declared, stored, first, last), mine))
        return tasks

    def _run(self, tasks: list[_Task], work: Callable[[_Task], FoundRows]) -> None:
        def run(task: _Task) -> None:
            started = time.perf_counter()
            task.result = work(task)
            task.seconds = time.perf_counter() - started

        if self._pool is None or len(tasks) < 2:
            for task in tasks:
                run(task)
        else:
            list(self._pool.map(run, tasks))


def _searcher(part: Part, name: str, declared: Dense, stored: StoredField, first: int, last: int) -> FlatSearcher:
    kept = _searchers.setdefault(part.segment, {}) if isinstance(part, SegmentPart) else {}
    searcher = kept.get((name, first, last))
    if searcher is None:
        present = None if stored.present is None else stored.present[first // 64 : -(-last // 64)]
        rows = Rows(stored.vectors[first:last], stored.norms[first:last], declared.metric, present)
        searcher = kept[name, first, last] = FlatSearcher(rows)
    return searcher


def _merge(tasks: Sequence[_Task], query: int, queries: npt.NDArray[np.float32], k: int) -> list[Found]:
    """The best k of one query over all tasks, by (key, id)."""
    if len(tasks) == 1:
        result = tasks[0].result
        assert result is not None
        length = int(result.lengths[query])
        keys, at = result.keys[query, :length], result.rows[query, :length]
        if not result.tied[query] and not (keys[1:] == keys[:-1]).any():  # then rows are in their final order
            part = tasks[0].part
            at = at + tasks[0].first
            hits = zip(keys.tolist(), part.keys(at), at.tolist(), strict=True)
            return [Found(key, name, part, row) for key, name, row in hits]
    candidates: list[tuple[float, _Task, int]] = []
    tied = []
    for task in tasks:
        result = task.result
        assert result is not None
        count = int(result.lengths[query])
        keys = result.keys[query, :count].tolist()
        candidates += [(key, task, row) for key, row in zip(keys, result.rows[query, :count].tolist(), strict=True)]
        if result.tied[query]:
            tied.append((keys[-1], task))
    if len(tasks) > 1:
        candidates.sort(key=_by_key)
    if len(candidates) > k:
        last = candidates[k - 1][0]
        candidates = [candidate for candidate in candidates if candidate[0] >= last]
    for key, task in tied:
        if len(candidates) <= k - 1 or key < candidates[k - 1][0]:
            continue
        known = {row for other_key, other, row in candidates if other is task and other_key == key}
        rows = task.searcher.rows_at(queries[query], key, task.allowed)
        candidates += [(key, task, row) for row in rows.tolist() if row not in known]
    found = [Found(key, task.part.key(task.first + row), task.part, task.first + row) for key, task, row in candidates]
    if any(a.key == b.key for a, b in itertools.pairwise(found)) or tied:
        found.sort(key=lambda hit: (-hit.key, hit.id))
    return found[:k]


def _by_key(candidate: tuple[float, Any, int]) -> float:
    return -candidate[0]


def _explained(part: Part, tasks: Sequence[_Task]) -> PartPlan:
    results = [task.result for task in tasks if task.result is not None]
    return PartPlan(
        kind="segment" if isinstance(part, SegmentPart) else "memtable",
        rows=part.rows,
        allowed=sum(bitmaps.count(t.allowed, t.searcher.rows.vectors.shape[0]) for t in tasks),
        way="exact scan" if tasks else "skipped: nothing allowed",
        scored=sum(result.scored for result in results),
        bytes=sum(result.bytes for result in results),
        milliseconds=1000 * sum(task.seconds for task in tasks),
    )
