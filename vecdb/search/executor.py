"""Runs a search over the parts of a snapshot and merges what they find.

Each part is searched the way the planner chose. Exact searches of large parts are split into row ranges, searches of an
index by queries, and shared by the database's threads (kernels release the GIL); where that leaves threads idle, an index that
can divides what a query takes. All keys come from one fixed-order
kernel, so the merge is exact, and an exact answer does not depend on threads, on how rows are spread over segments, or on
the size of the batch. Equal keys are ordered by id: where rows with the key of the k-th place were left out by an exact
part, they are fetched and take part. Stateless apart from the searchers kept with their segments; safe in any thread.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import ExactSearcher, Metric, Queries, Searcher, scores_of
from vecdb_index.contract import Hits as FoundRows
from vecdb_index.crew import Crew
from vecdb_index.flat.backend import exactly
from vecdb_storage.ids import Id
from vecdb_storage.segment import Segment, StoredField
from vecdb_storage.snapshot import Part, SegmentPart, Snapshot
from vecdb_storage.tombstones import Words

from ..schema import Field
from . import bitmaps, copies
from .indexes import NOT_INDEXED, Index, index_of, rows_of, wanted
from .plan import Explained, PartPlan
from .planner import Asked, Way, lead_of, rounded, way_of

_Means = tuple[Index, ExactSearcher]
_FEWEST_QUERIES = 8  # of an index, for which another thread is worth waking
_LONG = 200e-6  # seconds of a task that another thread may take
_SETTLED, _QUESTIONS = 2, 64  # times that a question is planned anew at most; questions of a snapshot that are kept
_CHECKED = 0.25  # seconds that a check of an explained search may take
_settled: WeakKeyDictionary[Segment, dict[str, tuple[str | None, _Means]]] = WeakKeyDictionary()  # by field, for an index file
_plans: WeakKeyDictionary[Snapshot, _Plans] = WeakKeyDictionary()
_segment_plans: WeakKeyDictionary[Part, dict[str, tuple[Field, dict[Any, _Planned]]]] = WeakKeyDictionary()  # by field


@dataclass(slots=True)
class Found:
    """A hit before it is shown: its key (larger is better), id, and where its row is. reported, label: see `scores`."""

    key: float
    id: Id
    part: Part
    row: int
    reported: float | None = None
    label: str | None = None


@dataclass
class Task:
    """Some queries over some rows of one part. first: the first row. cost: seconds that it may take."""

    part: Part
    first: int
    searcher: Searcher
    exact: ExactSearcher | None
    allowed: Words | None
    effort: float
    queries: slice
    cost: float
    result: FoundRows | None = None
    seconds: float = 0.0


class Answer:
    """The hits of some queries: as arrays, or, where ties had to be settled one by one, as lists.

    keys: (m, k) float32, -inf where there is none. ids: (m, k) object, None there. reported: (m, k) float32, NaN there; of
    another score than the metric's, which is beside each hit, too.
    """

    keys: npt.NDArray[np.float32]
    ids: npt.NDArray[np.object_]
    _rows: npt.NDArray[np.int64]
    _owner: npt.NDArray[np.int64]
    reported: npt.NDArray[np.float32] | None = None

    def __init__(self) -> None:
        self.keys, self.ids = np.empty((0, 0), np.float32), np.empty((0, 0), object)
        self._parts: list[Part] = []
        self._lists: dict[int, list[Found]] = {}

    @staticmethod
    def of_one(tasks: list[Task], queries: Queries, k: int) -> Answer:
        """Of a single query, without the arrays."""
        answer = Answer()
        answer._lists[0] = _merge(tasks, 0, queries, k)
        return answer

    @staticmethod
    def of_many(tasks: list[Task], queries: Queries, k: int) -> Answer:
        m = len(queries)
        answer = Answer()
        answer.keys, answer.ids = np.full((m, k), -np.inf, np.float32), np.full((m, k), None, object)
        answer._rows = answer._owner = np.zeros((m, k), np.int64)
        groups: dict[tuple[int, int], list[Task]] = {}
        for task in tasks:
            groups.setdefault((id(task.part), task.first), []).append(task)
        if not groups:
            return answer
        keys = np.full((m, len(groups) * k), -np.inf, np.float32)
        rows = np.zeros((m, len(groups) * k), np.int64)
        settle = np.zeros(m, np.bool_)  # queries with ties, which ids decide
        for number, group in enumerate(groups.values()):
            columns = slice(number * k, number * k + k)
            for task in group:
                assert task.result is not None
                keys[task.queries, columns] = task.result.keys
                rows[task.queries, columns] = task.result.rows + task.first
                settle[task.queries] |= task.result.tied
            answer._parts.append(group[0].part)
        best, owner = keys, np.zeros((m, k), np.int64)  # of one part, in their order already
        if len(groups) > 1:
            order = np.argsort(-keys, axis=1, kind="stable")[:, : k + 1]
            best, rows = np.take_along_axis(keys, order, 1), np.take_along_axis(rows, order[:, :k], 1)
            owner = order[:, :k] // k
        settle |= ((best[:, 1:] == best[:, :-1]) & (best[:, 1:] > -np.inf)).any(axis=1)
        answer.keys, answer._owner, answer._rows = best[:, :k], owner, rows
        for number, part in enumerate(answer._parts):
            here = (answer._owner == number) & (answer.keys > -np.inf)
            if here.any():
                answer.ids[here] = np.array(part.keys(answer._rows[here]), object)
        for query in np.flatnonzero(settle).tolist():
            mine = [task for task in tasks if task.queries.start <= query < task.queries.stop]
            found = answer._lists[query] = _merge(mine, query, queries, k)
            answer.ids[query, : len(found)] = [hit.id for hit in found]
            answer.keys[query, : len(found)] = [hit.key for hit in found]
        return answer

    def __getitem__(self, query: int) -> list[Found]:
        found = self._lists.get(query)
        if found is None:
            length = int(np.count_nonzero(self.keys[query] > -np.inf))
            columns = (a[query, :length].tolist() for a in (self.keys, self.ids, self._owner, self._rows))
            found = [Found(key, name, self._parts[owner], row) for key, name, owner, row in zip(*columns, strict=True)]
            self._lists[query] = found
        return found

    def keep(self, least: float) -> None:
        """Leaves only hits of which no less is reported."""
        assert self.reported is not None
        for query in range(len(self.reported)):
            hits = [hit for hit in self[query] if hit.reported is not None and hit.reported >= least]
            self._lists[query] = hits
            for array, kept, none in (
                (self.keys, [hit.key for hit in hits], -np.inf),
                (self.ids, [hit.id for hit in hits], None),
                (self.reported, [hit.reported for hit in hits], np.nan),
            ):
                if len(array):  # of a single query there may be none
                    array[query] = none
                    array[query, : len(hits)] = kept

    def payloads(self, lengths: Sequence[int]) -> list[bytes]:
        """The stored JSON of the first hits of each query, so many as `lengths` says, query after query."""
        found: list[bytes] = []
        for query, length in enumerate(lengths):
            settled = self._lists.get(query)
            if settled is not None:
                found += [hit.part.payload(hit.row) for hit in settled[:length]]
                continue
            rows, owners = self._rows[query, :length].tolist(), self._owner[query, :length].tolist()
            found += [self._parts[owner].payload(row) for owner, row in zip(owners, rows, strict=True)]
        return found


@dataclass(frozen=True, slots=True)
class _Planned:
    """How a part is searched. way: None where nothing is. words: its allowed rows, None for all. settled: it stays so."""

    way: Way | None
    whole: ExactSearcher | None = None
    words: Words | None = None
    settled: bool = True


_PartPlans = list[tuple[Part, _Planned]]


class _Plans:
    """Plans of one snapshot, by question: so that what is asked again is planned once, however many parts there are.

    None is kept before copies of rows (`copies`) are there, which come with the second search.
    """

    __slots__ = ("_asked", "known")

    def __init__(self) -> None:
        self._asked: Counter[Any] = Counter()
        self.known: dict[Any, _PartPlans] = {}

    def add(self, question: Any, plan: _PartPlans) -> None:
        self._asked[question] += 1
        if self._asked[question] > _SETTLED or all(planned.settled for _, planned in plan):
            _keep(self.known, question, plan)
        if len(self._asked) > _QUESTIONS:
            self._asked.clear()


def _keep(plans: dict[Any, Any], question: Any, plan: Any) -> None:
    if len(plans) >= _QUESTIONS:
        plans.clear()
    plans[question] = plan


class Executor:
    """The searches of one database. threads: of kernels, at least 1."""

    def __init__(self, threads: int) -> None:
        self._crew = Crew(threads)
        self._filtered: dict[Any, None] = {}  # questions with filters that were asked

    def close(self) -> None:
        self._crew.close()

    def search(
        self,
        snapshot: Snapshot,
        asked: Asked,
        queries: Queries,
        *,
        batch: bool,
        explain: Explained | None = None,
    ) -> Answer:
        """The best k of each of the (m, d) queries. explain: is filled.

        batch: false for a single query, whose answer is then made without the arrays.
        Raises Cancelled, DeadlineReached.
        """
        self._check(snapshot, asked.field)
        planned = self._planned(snapshot, asked, len(queries))
        tasks = [task for part, how in planned for task in self._tasks(part, how, len(queries))]
        floors = _Floors(len(queries), asked.k) if len(tasks) > 1 else None
        if len(tasks) < self._crew.threads:
            for task in tasks:
                task.searcher = self._helped(task)

        def work(task: Task) -> FoundRows:
            floor = None if floors is None else floors.of(task.queries)
            found = task.searcher.search(queries[task.queries], asked.k, task.effort, task.allowed, floor, asked.control)
            if floors is not None:
                floors.offer(task.queries, found)
            return found

        threads = self._threads(tasks)
        if threads == 1 and floors is not None and explain is None:
            _search_together(tasks, queries, asked, floors)
        self._run([task for task in tasks if task.result is None], work, threads)
        answer = Answer.of_many(tasks, queries, asked.k) if batch else Answer.of_one(tasks, queries, asked.k)
        if explain is not None:
            explain.parts = [
                _explained(part, how.way, asked, [task for task in tasks if task.part is part]) for part, how in planned
            ]
            started = time.perf_counter()
            explain.certified = _certified(tasks, asked, queries, answer)
            explain.checking = time.perf_counter() - started
        return answer

    def _check(self, snapshot: Snapshot, name: str) -> None:
        """Vectors are compared with their checksums before their first use: of many segments, by all threads."""
        fresh = [p.segment for p in snapshot.parts if isinstance(p, SegmentPart) and not p.segment.is_checked(name)]
        if len(fresh) < 2:
            return
        waiting = iter(fresh)

        def check() -> None:
            for segment in waiting:
                segment.field(name)

        self._crew.run(check, min(self._crew.threads, len(fresh)))

    def _planned(self, snapshot: Snapshot, asked: Asked, queries: int) -> _PartPlans:
        """How each part is searched. After a write only parts of which something changed are planned anew."""
        plans = _plans.get(snapshot)
        if plans is None:
            plans = _plans.setdefault(snapshot, _Plans())
        filters = asked.where, asked.without
        known = asked.whole, asked.outgrown, asked.lead
        question = asked.field, asked.k, asked.recall, asked.effort, queries, *known, *filters
        plan = plans.known.get(question)
        if plan is None:
            asked = self.with_lead(asked, snapshot)
            keep = filters == (None, None) or self._is_asked_again(question)
            plan = [(part, _plan(part, asked, snapshot.count, queries, question, keep)) for part in snapshot.parts if part.rows]
            if keep:
                plans.add(question, plan)
        return plan

    def with_lead(self, asked: Asked, snapshot: Snapshot) -> Asked:
        """With the lead of a snapshot's indexes, where efforts go by it."""
        if asked.lead is not None or (asked.whole is None and asked.effort is None):
            return asked
        indexed = [part for part in snapshot.segments if asked.field in part.indexes and part.live_rows]
        if len(indexed) < 2:
            return asked
        largest = max(indexed, key=_live_rows)
        stored = largest.field(asked.field)
        index = NOT_INDEXED if stored is None else _means(largest, asked, stored)[0]
        if index.searcher is None:
            return asked
        return replace(asked, lead=lead_of(index.calibration, asked.k, largest.live_rows / max(1, snapshot.count)))

    def _is_asked_again(self, question: Any) -> bool:
        """Plans with filters are kept when they are asked again, for their bitmaps take room."""
        if question in self._filtered:
            return True
        _keep(self._filtered, question, None)
        return False

    def _tasks(self, part: Part, planned: _Planned, queries: int) -> list[Task]:
        way, whole = planned.way, planned.whole
        if way is None or whole is None:
            return []
        split = self._split_rows if way.searcher is None and whole.divides == "rows" else self._split_queries
        return split(part, way, whole, planned.words, queries)

    def _split_rows(self, part: Part, way: Way, whole: ExactSearcher, words: Words | None, queries: int) -> list[Task]:
        """An exact search as several row ranges, if it takes so long that threads are worth it."""
        pieces = self._crew.pieces(way.seconds * queries)
        step = -(-part.rows // pieces // 64) * 64 or 64
        if step >= part.rows:
            return [Task(part, 0, whole, whole, words, 1.0, slice(0, queries), way.seconds * queries)]
        tasks = []
        for first in range(0, part.rows, step):
            last = min(first + step, part.rows)
            mine = None if words is None else words[first // 64 : -(-last // 64)]
            if mine is None or mine.any():
                searcher = whole.part(first, last)
                cost = way.seconds * queries * (last - first) / part.rows
                tasks.append(Task(part, first, searcher, searcher, mine, 1.0, slice(0, queries), cost))
        return tasks

    def _split_queries(self, part: Part, way: Way, whole: ExactSearcher, words: Words | None, queries: int) -> list[Task]:
        searcher, exact = (whole, whole) if way.searcher is None else (way.searcher, None)
        per = way.seconds
        if queries == 1:
            return [Task(part, 0, searcher, exact, words, way.effort, slice(0, 1), per)]
        pieces = min(self._crew.pieces(per * queries), max(1, queries // _FEWEST_QUERIES))
        step = -(-queries // pieces)
        ranges = [slice(start, min(queries, start + step)) for start in range(0, queries, step)]
        return [Task(part, 0, searcher, exact, words, way.effort, some, per * (some.stop - some.start)) for some in ranges]

    def _helped(self, task: Task) -> Searcher:
        """The searcher of a task, which divides it among threads where it can."""
        over = getattr(task.searcher, "over", None)
        return task.searcher if over is None or self._crew.pieces(task.cost) < 2 else over(self._crew)

    def _threads(self, tasks: list[Task]) -> int:
        """By how many threads they are best done."""
        # Threads that come back for the interpreter from one short kernel after the other are in each other's way.
        long = [task.cost for task in tasks if task.cost >= _LONG]
        return max(1, min(len(long), self._crew.pieces(sum(long))))

    def _run(self, tasks: list[Task], work: Callable[[Task], FoundRows], threads: int) -> None:
        """All tasks, by this thread and as many others as are asked for."""
        if threads > 1:
            tasks = sorted(tasks, key=_by_cost)
        waiting = iter(tasks)  # one for all: whoever is free takes the next

        def run() -> None:
            for task in waiting:
                started = time.perf_counter()
                task.result = work(task)
                task.seconds = time.perf_counter() - started

        self._crew.run(run, threads)


def _search_together(tasks: list[Task], queries: Queries, asked: Asked, floors: _Floors) -> None:
    """The tasks whose searchers can be asked together: by one call for all of a kind, in the place of one for each segment."""
    kinds: dict[Any, list[Task]] = {}
    for task in tasks:
        if hasattr(task.searcher, "search_all"):
            kinds.setdefault((type(task.searcher), task.queries.start), []).append(task)
    for (kind, _), mine in kinds.items():
        some = mine[0].queries
        parts = [(task.searcher, task.effort, task.allowed) for task in mine]
        found = kind.search_all(parts, queries[some], asked.k, floors.of(some), asked.control)
        for task, task.result in zip(mine, found, strict=True):
            floors.offer(some, task.result)


def _plan(part: Part, asked: Asked, total: int, queries: int, question: Any, keep: bool) -> _Planned:
    """What was planned for a segment's part is kept with it. keep: the question is worth that."""
    # Of the k best of all parts about so many are in this one, and these have to be found.
    share = part.live_rows / max(1, total)
    if not keep or not isinstance(part, SegmentPart):
        return _planned_anew(part, asked, share, queries)
    of_fields = _segment_plans.setdefault(part, {})
    declared, kept = of_fields.get(asked.field, (None, {}))
    if declared != asked.declared:
        _, kept = of_fields[asked.field] = asked.declared, {}
    question = rounded(share), asked.lead, question
    planned = kept.get(question)
    if planned is None:
        planned = _planned_anew(part, asked, share, queries)
        if planned.settled:
            _keep(kept, question, planned)
    return planned


def _planned_anew(part: Part, asked: Asked, share: float, queries: int) -> _Planned:
    stored = part.field(asked.field)
    words = None if stored is None else bitmaps.allowed(part, asked.where, asked.without)
    allowed = part.live_rows if asked.where is None and asked.without is None else bitmaps.count(words, part.rows)
    if stored is None or not allowed:
        return _Planned(None)
    index, whole = _means(part, asked, stored)
    way = way_of(part, asked, index, whole, allowed, words, share, queries)
    settled = way.searcher is not None or asked.declared.is_flat or not copies.is_due(whole)
    return _Planned(way, whole, words, settled)


def _means(part: Part, asked: Asked, stored: StoredField) -> _Means:
    """The index of a part's field as it can be used now, and the quickest exact searcher that there is."""
    name = asked.field
    if not isinstance(part, SegmentPart):
        rows = rows_of(stored, asked.declared.metric)
        return NOT_INDEXED, exactly(rows) if asked.declared.is_flat else copies.searcher_of(part, name, rows)
    file = part.indexes.get(name)
    kept = _settled.get(part.segment, {}).get(name)
    if kept is not None and kept[0] == file and (file is not None or wanted(asked.declared, part.rows) is None):
        return kept[1]
    rows = rows_of(stored, asked.declared.metric)
    index = index_of(part, name, rows)
    if index.searcher is not None:
        copies.drop(part.segment, name)
        means = index, index.searcher.exact
    elif wanted(asked.declared, part.rows) is not None:
        return index, copies.searcher_of(part, name, rows)  # for as long as it lacks its index
    else:
        means = index, exactly(rows)
    _settled.setdefault(part.segment, {})[name] = file, means
    return means


class _Floors:
    """The k-th best keys of each query so far: what parts that are searched later need not return hits below."""

    def __init__(self, queries: int, k: int) -> None:
        self._k, self._lock = k, threading.Lock()
        self._lowest = np.full(queries, -np.inf, np.float32)
        self._best = np.full((queries, k), -np.inf, np.float32) if queries > 1 else None

    def of(self, queries: slice) -> npt.NDArray[np.float32]:
        return self._lowest[queries].copy()

    def offer(self, queries: slice, found: FoundRows) -> None:
        if self._k == 0:
            return
        with self._lock:
            if self._best is None:  # of one query: its parts one by one, which takes no time
                self._lowest[0] = max(self._lowest[0], found.keys[0, -1])
                return
            both = np.concatenate([self._best[queries], found.keys], axis=1)
            both.partition(self._k, axis=1)
            self._best[queries] = both[:, self._k :]
            self._lowest[queries] = both[:, self._k]


def _merge(tasks: Sequence[Task], query: int, queries: Queries, k: int) -> list[Found]:
    """The best k of one query over all tasks that it was in, by (key, id)."""
    if len(tasks) == 1:
        result, at = tasks[0].result, query - tasks[0].queries.start
        assert result is not None
        length = int(result.lengths[at])
        keys = result.keys[at, :length].tolist()
        if not result.tied[at] and len(set(keys)) == length:  # then rows are in their final order
            part, rows = tasks[0].part, result.rows[at, :length]
            if tasks[0].first:
                rows = rows + tasks[0].first
            hits = zip(keys, part.keys(rows), rows.tolist(), strict=True)
            return [Found(key, name, part, row) for key, name, row in hits]
    candidates: list[tuple[float, Task, int]] = []
    tied = []
    results = [(task, task.result, query - task.queries.start) for task in tasks if task.result is not None]
    least = max((float(result.keys[at, -1]) for _, result, at in results), default=-np.inf) if k else -np.inf  # k are no less
    for task, result, at in results:
        count = int(result.lengths[at])
        found_keys = result.keys[at, :count].tolist()
        rows_found = result.rows[at, :count].tolist()
        candidates += [(key, task, row) for key, row in zip(found_keys, rows_found, strict=True) if key >= least]
        if result.tied[at]:
            tied.append((found_keys[-1], task))
    if len(tasks) > 1:
        candidates.sort(key=_by_key)
    if len(candidates) > k:
        last = candidates[k - 1][0]
        candidates = [candidate for candidate in candidates if candidate[0] >= last]
    for key, task in tied:
        if task.exact is None or len(candidates) <= k - 1 or key < candidates[k - 1][0]:
            continue
        known = {row for other_key, other, row in candidates if other is task and other_key == key}
        rows = task.exact.rows_at(queries[query], key, task.allowed)
        candidates += [(key, task, row) for row in rows.tolist() if row not in known]
    found = [Found(key, task.part.key(task.first + row), task.part, task.first + row) for key, task, row in candidates]
    if any(a.key == b.key for a, b in itertools.pairwise(found)) or tied:
        found.sort(key=lambda hit: (-hit.key, hit.id))
    return found[:k]


def _live_rows(part: Part) -> int:
    return part.live_rows


def _by_cost(task: Task) -> float:
    return -task.cost


def _by_key(candidate: tuple[float, Any, int]) -> float:
    return -candidate[0]


def _certified(tasks: Sequence[Task], asked: Asked, queries: Queries, answer: Answer) -> int | None:
    """Of how many queries no row that was left out has a greater key than the last hit; None where that would take long."""
    guessed = [task for task in tasks if task.exact is None]
    cost = 0.0
    for task in guessed:
        share = bitmaps.count(task.allowed, task.part.rows) / max(1, task.part.rows)
        some = task.queries.stop - task.queries.start
        cost += some * task.searcher.exact.cost(asked.k, 1.0, share, some)
    if cost > _CHECKED:
        return None
    wrong: set[int] = set()
    for task in guessed:
        for query in range(task.queries.start, task.queries.stop):
            hits = answer[query]
            last = np.float32(hits[-1].key if len(hits) == asked.k else -np.inf)
            floor = np.full(1, last, np.float32)
            one = queries[query : query + 1]
            found = task.searcher.exact.search(one, asked.k, allowed=task.allowed, floor=floor, control=asked.control)
            known = {hit.row for hit in hits if hit.part is task.part}
            better = found.rows[0, : int(found.lengths[0])][found.keys[0, : int(found.lengths[0])] > last]
            if not known.issuperset((better + task.first).tolist()):
                wrong.add(query)
    return len(queries) - len(wrong)


def _explained(part: Part, way: Way | None, asked: Asked, tasks: Sequence[Task]) -> PartPlan:
    results = [task.result for task in tasks if task.result is not None]
    return PartPlan(
        kind="segment" if isinstance(part, SegmentPart) else "memtable",
        rows=part.rows,
        allowed=0 if way is None else way.allowed,
        way="skipped: nothing allowed" if way is None else way.name,
        why="" if way is None else way.why,
        expected=1.0 if way is None else way.expected,
        scored=sum(result.scored for result in results),
        bytes=sum(result.bytes for result in results),
        milliseconds=1000 * sum(task.seconds for task in tasks),
        seen=dict(sum((Counter(result.seen) for result in results), Counter())),
        stages=_spent(results),
        bound=bound_of(results, asked.declared.metric),
    )


def _spent(results: Sequence[FoundRows]) -> dict[str, float]:
    """Milliseconds of each stage."""
    stages: dict[str, float] = {}
    for result in results:
        for stage, seconds in result.spent.items():
            stages[stage] = stages.get(stage, 0.0) + 1000 * seconds
    return stages


def bound_of(results: Sequence[FoundRows], metric: Metric) -> float | None:
    """See PartPlan."""
    bounds = [result.bound for result in results if result.bound is not None]
    return float(scores_of(np.array([max(bounds)], np.float32), metric)[0]) if bounds else None
