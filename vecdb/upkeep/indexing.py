"""Builds the indexes of segments in the background, one at a time.

An Indexer belongs to one Store, however many databases of this process share it. It looks at the manifests after each
commit: a segment that is to have an index and has none that can be used (new, lost, damaged, of other parameters) gets one,
largest segments first. Until then, and whatever fails, the segment is searched exactly. A merge is not committed before
its segment has its indexes, so that searches go on with the old ones until then. What failed is tried again after a minute,
then two, and so on up to an hour. Nothing is resumed half-way: a build that was cut short leaves no file, and begins again.
When no index is missing, recall of whole searches is measured where that is due (`search.whole`). Everything may be called
from any thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from vecdb_index import registry
from vecdb_index.contract import Arrays, Budget, Cancelled, Control, NeedsMemory, Part
from vecdb_storage import scratch
from vecdb_storage.merge import Merged
from vecdb_storage.priority import give_way
from vecdb_storage.segment import Segment
from vecdb_storage.snapshot import SegmentPart, Snapshot
from vecdb_storage.state import CollectionState
from vecdb_storage.store import Store

from ..errors import Closed, NotFound
from ..memory import available, give_back
from ..schema import Dense, Field, Unregistered, field_from_json
from ..search import whole
from ..search.calibrate import Calibrating
from ..search.executor import Executor
from ..search.indexes import AUTO_ROWS, TRAINED, is_current, rows_of, scan_seconds, stored, wanted

_AGAIN, _LONGEST = 60.0, 3600.0  # seconds after which what failed is tried again
_MOST_WAITING = 2  # merges that wait for their indexes
_SOONEST = 0.5  # that pass at least before it is looked for
_LONG_SCAN = 0.5e-3  # seconds that a search may spend on rows in memory
_SHORT = 8  # times as long as another one takes a build that lets it come between
_SEARCHING = 0.5  # seconds after a search in which the next one is expected
_log = logging.getLogger("vecdb")


class _Background(Control):
    """A Control whose polls wait while it is paused, and that leaves a core to searches while there are any."""

    __slots__ = ("going", "searched")

    def __init__(self) -> None:
        super().__init__()
        self.going = threading.Event()
        self.going.set()
        self.searched = -math.inf  # when there was a search

    def poll(self) -> None:
        self.going.wait()
        super().poll()

    def threads(self, most: int) -> int:
        return max(1, most - 1) if time.monotonic() < self.searched + _SEARCHING else most

    def cancel(self) -> None:
        super().cancel()
        self.going.set()


class _Unless(Control):
    """The Control of builds for merges: these do not wait while it is paused, but give up, for somebody may wait for them."""

    __slots__ = ("_background",)

    def __init__(self, background: _Background) -> None:
        super().__init__()
        self._background = background

    def poll(self) -> None:
        if not self._background.going.is_set():
            raise _Abandoned
        super().poll()

    def threads(self, most: int) -> int:
        return self._background.threads(most)


@dataclass(frozen=True)
class Job:
    """One index to build."""

    uuid: bytes
    segment: str
    field: str
    params: Any


_Known = tuple[SegmentPart, Arrays, Arrays]  # with the arrays of an index, and what was trained for it


class _Abandoned(Exception):
    """An index that is being built is not wanted any more."""


@dataclass(frozen=True)
class _Failure:
    """why: of the last time. times: that it failed. again: a time.monotonic() value."""

    why: str
    times: int
    again: float


class Indexer:
    def __init__(self, store: Store, threads: int, memory_limit: int | None) -> None:
        self._store, self._threads, self._memory_limit = store, threads, memory_limit
        self._users = 0
        self._lock = threading.Condition()  # held for moments only; never while the store is called
        self._woken = threading.Event()
        self._touched: set[bytes] = set()  # collections that have changed since they were looked at
        self._thread: threading.Thread | None = None
        self._control = _Background()
        self._merging = _Unless(self._control)
        self._stopped = False
        self._current: tuple[Job, float] | None = None
        self._failed: dict[Job, _Failure] = {}
        self._merged: deque[Merged] = deque()  # merges that wait for their indexes
        self._forced: set[tuple[bytes, str, str]] = set()
        self._looking: set[bytes] = set()  # collections in which something may be to be done; of the thread alone
        self._between = False  # a build that is short goes on inside of another one
        self._looked: dict[bytes, float] = {}  # when rows in memory were last thought about

    # -- life ---------------------------------------------------------------------------------------

    def wake(self, touched: set[bytes] | None = None) -> None:
        """Collections were changed; None: any may have been. Called under the store's commit lock, so it only takes note."""
        states = self._store.states
        worth = set(states) if touched is None else touched
        with self._lock:
            self._touched |= worth
        self._woken.set()
        if self._thread is None and not self._stopped and any(u in states and states[u].manifest.segments for u in worth):
            self._thread = threading.Thread(target=self._run, name="vecdb-index", daemon=True)
            self._thread.start()

    def release(self) -> None:
        """One user less; the last one stops it. A build that is under way is given up."""
        with _registry_lock:
            self._users -= 1
            if self._users:
                return
            _indexers.pop(self._store, None)
        self._stopped = True
        self._store.merger.finisher = None
        self._control.cancel()
        self._merging.cancel()
        self._woken.set()
        if self.wake in self._store.listeners:
            self._store.listeners.remove(self.wake)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread() and thread.is_alive():
            thread.join()
        self._give_merges_back()

    def pause(self) -> None:
        """Builds stand still, between two steps, until `resume`; merges go without indexes meanwhile."""
        self._control.going.clear()
        while self._merged:  # the thread that would see to them may be standing still
            with suppress(IndexError):
                self._store.merger.commit(self._merged.popleft(), {})

    def resume(self) -> None:
        self._control.going.set()

    @property
    def paused(self) -> bool:
        return not self._control.going.is_set()

    # -- work ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        give_way()
        while not self._stopped:
            self._woken.wait(self._until_again())
            self._woken.clear()
            self._looking = set()
            try:
                while not self._stopped:
                    self._looking |= self._take()
                    if self._merged:
                        self._finish(self._merged.popleft())
                    elif (job := self._next(self._looking)) is not None:
                        self._do(job)
                    else:
                        break
                # What is due and was not tried is of segments or parameters that are gone.
                now = time.monotonic()
                self._failed = {job: failure for job, failure in self._failed.items() if failure.again > now}
                self._measure(self._looking)
            except Cancelled:
                break
            except Exception as error:
                # The store was closed, the disk is in trouble, or a backend went: the next commit tries again.
                if not self._stopped:
                    _log.warning("indexing stopped, and goes on at the next commit: %s", error)
            with self._lock:
                self._lock.notify_all()

    def _until_again(self) -> float | None:
        """Seconds until something that failed is tried again; None when nothing did."""
        now = time.monotonic()
        return min((max(_SOONEST, failure.again - now) for failure in list(self._failed.values())), default=None)

    def _take(self) -> set[bytes]:
        """The collections that have changed, or of which something that failed is to be tried again."""
        now = time.monotonic()
        with self._lock:
            touched, self._touched = self._touched, set()
        return touched | {job.uuid for job, failure in self._failed.items() if failure.again <= now}

    def _measure(self, uuids: set[bytes]) -> None:
        """Recall of whole searches, where it was not measured yet or no longer fits the collection."""
        for uuid, state in self._states(uuids):
            if state.damage is not None or state.snapshot is None:
                continue
            for name in state.schema["fields"]:
                if not self._stopped and whole.is_due(state.snapshot, name):
                    with suppress(NotFound):  # the collection went
                        whole.renew(Executor(1), self._store, uuid, name, self._control)

    def _states(self, uuids: set[bytes]) -> list[tuple[bytes, CollectionState]]:
        states = self._store.states
        return [(uuid, states[uuid]) for uuid in uuids if uuid in states]

    def _next(self, uuids: set[bytes], most: int | None = None) -> Job | None:
        """The largest segment of these collections that lacks an index. most: rows that it has, at most."""
        jobs = [
            (part.rows, job)
            for part, job in self._lacking(uuids)
            if (most is None or part.rows <= most) and not self._goes(job.uuid, job.segment, part.rows)
        ]
        return max(jobs, key=lambda each: each[0])[1] if jobs else None

    def _lacking(self, uuids: set[bytes]) -> Iterator[tuple[SegmentPart, Job]]:
        """The indexes that segments of these collections lack."""
        for uuid, state in self._states(uuids):
            if state.damage is not None or state.snapshot is None:
                continue
            for part in state.snapshot.parts:
                if isinstance(part, SegmentPart):
                    yield from ((part, job) for job in self._missing(uuid, part, state.schema))

    def _missing(self, uuid: bytes, part: SegmentPart, schema: dict[str, Any]) -> list[Job]:
        missing = []
        for name, declared in ((name, field_from_json(field)) for name, field in schema["fields"].items()):
            if isinstance(declared.index, Unregistered):
                continue  # what is there is left for a process that knows the backend
            params = wanted(declared, part.rows)
            job = Job(uuid, part.segment.name, name, params)
            failure = self._failed.get(job)
            if failure is not None and failure.again > time.monotonic():
                continue
            if params is None:
                if name in part.indexes:
                    missing.append(job)
            elif part.field(name) is not None and (
                (uuid, part.segment.name, name) in self._forced or not is_current(part, name, params)
            ):
                missing.append(job)
        return missing

    def _do(self, job: Job) -> None:
        with self._lock:
            self._current = (job, 0.0)
        before = self._failed.get(job)
        try:
            self._build(job)
        except Cancelled:
            raise
        except (NotFound, _Abandoned):
            pass  # the segment went, or the collection, or other parameters were set
        except Exception as error:  # whatever a backend raises: the segment is searched exactly, and others have their turn
            why = str(error)
            if isinstance(error, NeedsMemory):
                why += "; open the database with a larger memory_limit=, or free memory"
            times = 1 if before is None else before.times + 1
            self._failed[job] = _Failure(why, times, time.monotonic() + min(_LONGEST, _AGAIN * 2 ** (times - 1)))
            _log.warning("index of field %r, segment %s: %s", job.field, job.segment, why)
        finally:
            self._forced.discard((job.uuid, job.segment, job.field))
            with self._lock:
                self._current = None
                self._lock.notify_all()
            give_back()

    def _build(self, job: Job) -> None:
        store = self._store
        snapshot = store.snapshot(job.uuid)
        part = next((p for p in snapshot.parts if isinstance(p, SegmentPart) and p.segment.name == job.segment), None)
        if part is None:
            raise NotFound(f"segment {job.segment} is gone")
        declared = field_from_json(snapshot.schema["fields"][job.field])
        built = None if job.params is None else self._built(job, part.segment, declared, self._control)
        self._failed.pop(job, None)  # so that nobody is told of it beside the index
        if job.params is None:
            store.drop_index(job.uuid, job.segment, job.field)
        elif built is not None:
            store.add_index(job.uuid, job.segment, job.field, *built)

    def _built(
        self, job: Job, segment: Segment, declared: Field, control: Control, merged: Merged | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """The arrays of an index and what is said of it; None when no row has the field. merged: that the segment is of."""
        vectors = segment.field(job.field)
        if vectors is None:
            return None
        rows = rows_of(vectors, declared.metric)
        backend = registry.backend(job.params.backend)
        memory = self._memory_limit or available() // 2
        room = partial(scratch.room, self._store.files, self._store.folder(job.uuid))
        budget = Budget(threads=self._threads, memory=memory, control=control, room=room)
        known = self._known(job)
        before = max(known, key=lambda each: each[0].rows, default=None)
        trained = backend.train(rows, job.params, budget, None if before is None else before[2])
        calibrating = Calibrating(rows, threads=self._threads, control=control)

        def progress(share: float) -> None:
            self._let_between(job.uuid, segment.rows)
            self._progress(job, share)
            if not self._is_wanted(job, segment.rows):
                raise _Abandoned

        parts = None if merged is None else _parts_of(merged, job, declared, known)
        arrays = None if parts is None else backend.merge(parts, rows, trained, job.params, budget, calibrating.trial)
        if arrays is None:
            arrays = backend.build(rows, trained, job.params, budget, progress, calibrating.trial)
        meta = {
            "backend": backend.name, "version": backend.version, "params": asdict(job.params),
            "metric": declared.metric, "calibration": calibrating.calibration.to_json(),
        }  # fmt: skip
        return {**arrays, **{TRAINED + name: array for name, array in trained.items()}}, meta

    def _let_between(self, uuid: bytes, rows: int) -> None:
        """A short build need not wait for a long one: until it is done searches scan its rows, and others wait in memory."""
        if self._between:
            return
        touched = self._take()
        self._looking |= touched
        job = self._next(touched | {uuid}, rows // _SHORT)  # and not of all collections, which may be many, at each step
        if job is not None:
            self._between = True
            try:
                self._do(job)
            finally:
                self._between = False

    def _known(self, job: Job) -> list[_Known]:
        """The indexes of the field that the collection has, built with the same parameters."""
        parts = [part for part in self._store.snapshot(job.uuid).parts if isinstance(part, SegmentPart)]
        some = ((part, stored(part, job.field, job.params)) for part in parts if part.segment.name != job.segment)
        return [(part, *arrays) for part, arrays in some if arrays is not None]

    def _is_wanted(self, job: Job, rows: int) -> bool:
        """Whether the collection is still there, its schema still asks for this index, and its segment is in no merge."""
        state = self._store.states.get(job.uuid)
        declared = None if state is None else state.schema["fields"].get(job.field)
        if declared is None or wanted(field_from_json(declared), rows) != job.params:
            return False
        return not self._goes(job.uuid, job.segment, rows)

    def _goes(self, uuid: bytes, segment: str, rows: int) -> bool:
        """Whether a segment is about to be merged, so soon that an index of it would be work for nothing."""
        return 0 < self._store.merger.planned(uuid, segment) < _SHORT * rows

    # -- merges ---------------------------------------------------------------------------------------

    def take(self, merged: Merged) -> bool:
        """A merge that is to have indexes is committed when it has them. False: commit it as it is.

        So it is where many wait already: indexes cannot keep up with what is written, and dead rows must not pile up.
        """
        if self._stopped or self.paused or len(self._merged) >= _MOST_WAITING or not self._jobs_of(merged):
            return False
        self._merged.append(merged)
        self.wake()
        return True

    def _jobs_of(self, merged: Merged) -> list[tuple[Job, Field]]:
        """The indexes that the segment of a merge is to have."""
        jobs: list[tuple[Job, Field]] = []
        if merged.segment is None:
            return jobs
        for name, field in merged.schema["fields"].items():
            declared = field_from_json(field)
            if not isinstance(declared.index, Unregistered):
                params = wanted(declared, merged.segment.rows)
                if params is not None:
                    jobs.append((Job(merged.uuid, merged.segment.name, name, params), declared))
        return jobs

    def _finish(self, merged: Merged) -> None:
        """Builds the indexes of a merge and commits it; one that cannot be built is left for later."""
        files: dict[str, str] = {}
        assert merged.segment is not None
        give_back()  # what writing it took
        try:
            for job, declared in self._jobs_of(merged):
                with self._lock:
                    self._current = (job, 0.0)
                try:
                    if (built := self._built(job, merged.segment, declared, self._merging, merged)) is not None:
                        files[job.field] = self._store.write_index(job.uuid, job.segment, job.field, *built)
                except (Cancelled, Closed):
                    raise
                except Exception as error:  # the merge is worth having without it, and the index is tried again
                    if not isinstance(error, _Abandoned):
                        _log.warning("index of field %r, merged segment %s: %s", job.field, job.segment, error)
            self._store.merger.commit(merged, files)
        except BaseException as error:
            self._store.merger.give_up(merged, error, files)
            raise
        finally:
            with self._lock:
                self._current = None
                self._lock.notify_all()
            give_back()

    def _give_merges_back(self) -> None:
        while self._merged:
            self._store.merger.give_up(self._merged.popleft(), Closed("the database was closed"), {})

    def _progress(self, job: Job, share: float) -> None:
        with self._lock:
            self._current = (job, share)

    # -- for the API --------------------------------------------------------------------------------

    def wait(self, uuid: bytes) -> None:
        """Returns when all rows that a collection's segments hold now are in the indexes that these are to have, or cannot get.

        For a segment that is about to be merged with others that is when the merge has its own. Segments of rows that are
        written meanwhile are not waited for: there may always be one.
        """
        seq = self._store.snapshot(uuid).seq
        self.wake()
        while not self._stopped and self._control.going.is_set():
            if all(part.segment.min_seq > seq for part, _ in self._lacking({uuid})):
                break
            self.wake()
            with self._lock:
                self._lock.wait(0.05)

    def rebuild(self, uuid: bytes, field: str) -> None:
        """Builds the indexes of a field anew; those that are there serve until then."""
        for part in self._store.snapshot(uuid).parts:
            if isinstance(part, SegmentPart):
                self._forced.add((uuid, part.segment.name, field))
        self._failed = {job: failure for job, failure in self._failed.items() if job.uuid != uuid}
        self.wake()

    def searched(self, uuid: bytes, snapshot: Snapshot, field: str, declared: Field) -> None:
        """Builds leave a core to searches. Rows in memory that these go through for long become a segment, to be indexed.

        One after the other: while a segment lacks its index, another one would not make searches quicker, unless its index is
        there sooner.
        """
        now = self._control.searched = time.monotonic()
        rows = snapshot.unflushed
        if not rows or now < self._looked.get(uuid, -math.inf) + _SOONEST:
            return
        self._looked[uuid] = now
        self._store.merger.searched(uuid)
        if not isinstance(declared, Dense) or isinstance(declared.index, Unregistered) or self.paused:
            return
        if rows < AUTO_ROWS or scan_seconds(declared, rows) < _LONG_SCAN or wanted(declared, rows) is None:
            return
        parts = snapshot.segments
        waiting = [part.rows for part in parts if field not in part.indexes and wanted(declared, part.rows) is not None]
        if not waiting or min(waiting) >= _SHORT * rows:
            self._store.flusher.flush_soon(uuid)

    def share_of(self, uuid: bytes, field: str) -> tuple[str, float] | None:
        """The segment of this field that is being indexed, and how much of it is done."""
        with self._lock:
            if self._current is not None and (self._current[0].uuid, self._current[0].field) == (uuid, field):
                return self._current[0].segment, self._current[1]
        return None

    def error_of(self, uuid: bytes, field: str) -> str | None:
        """Why some index of the field could not be built."""
        failures = list(self._failed.items())
        return next((failure.why for job, failure in failures if (job.uuid, job.field) == (uuid, field)), None)


def _parts_of(merged: Merged, job: Job, declared: Field, known: list[_Known]) -> list[Part] | None:
    """The segments of a merge with their indexes; None where one has none."""
    by_name = {part.segment.name: (part, arrays) for part, arrays, _ in known}
    parts = []
    for source in merged.sources:
        vectors = source.part.field(job.field)
        if source.name not in by_name or vectors is None:
            return None
        parts.append(Part(rows_of(vectors, declared.metric), by_name[source.name][1], source.into))
    return parts


_indexers: WeakKeyDictionary[Store, Indexer] = WeakKeyDictionary()
_registry_lock = threading.Lock()


def indexer_of(store: Store, threads: int, memory_limit: int | None = None) -> Indexer:
    """The one Indexer of a store; `release` it. memory_limit: of a build, in bytes; that of the first user counts."""
    with _registry_lock:
        indexer = _indexers.get(store)
        if indexer is None:
            indexer = _indexers[store] = Indexer(store, threads, memory_limit)
            store.listeners.append(indexer.wake)
            store.merger.finisher = indexer.take
        indexer._users += 1
    with store.commit_lock:
        indexer.wake()
    return indexer
