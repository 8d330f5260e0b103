"""Merges segments: a few large ones are searched faster than many small ones, and rows that died give their space back.

What is merged, and when, is decided by `choose` alone. A merge writes the live rows of its segments as one, beside all
readers and writers; then whoever builds indexes may give it some (`finisher`), so that searches never find it without;
then the commit puts it in their place: rows that died meanwhile are dead in it from the start, and the files that it
replaces are garbage. A merge whose segments have left the manifest meanwhile is discarded, and one that was cut short
leaves nothing but a file without a name.

Memory: about 60 bytes a row beside the typed columns; vectors and payloads pass through in pieces. A Merger belongs to
one Store; everything may be called from any thread. `lock` is held while rows are read and written, one merge at a time,
and is taken before `flusher.lock` and the commit lock.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .column_merge import merge_columns
from .commit import Section
from .environment import Transaction
from .errors import Closed, Corruption, DiskFull, StorageError, VecdbError, without_trace
from .ids import IdTable, Rows, concat
from .manifest import Manifest, SegmentEntry
from .memtable import GatheredField
from .priority import give_way
from .segment import Segment, SegmentWriter
from .snapshot import SegmentPart, live_rows
from .tombstones import Tombstones
from .ulid import ulid
from .vectors import Form, Layout, Vectors

if TYPE_CHECKING:
    from .state import CollectionState
    from .store import Store

# -- the policy -------------------------------------------------------------------------------------------

FAN = 8  # segments in a merge
FAN_OF_SMALL = 4  # of segments that searches go through, while each holds less than a memtable does
SMALL = 64 << 20  # live bytes of a memtable
SPREAD = 4  # times that the largest of them may be as large as the smallest
SPREAD_OF_SMALL = 2  # likewise: where few are merged, a large one among them would be written again for little
SMALLEST = 1 << 20  # bytes that the smallest segments count for
LARGEST_BYTES, LARGEST_ROWS = 16 << 30, 8 << 20  # of what comes out; the rows bound the memory
MOST_DEAD = 0.5  # share of a segment's rows from which it is written anew
_AT_ONCE = 64 << 20  # live bytes that are written anew together in any case
_PAUSE = 0.25  # seconds between two looks at what has changed
_SEARCHED = 60.0  # seconds after a search in which a collection counts as searched


@dataclass(frozen=True)
class Candidate:
    """A segment as the policy sees it. bytes: of its file. dead: of its rows."""

    name: str
    rows: int
    dead: int
    bytes: int

    @property
    def live_bytes(self) -> int:
        return max(SMALLEST, self.bytes * (self.rows - self.dead) // max(1, self.rows))

    @property
    def share_dead(self) -> float:
        return self.dead / self.rows if self.rows else 1.0


def choose(segments: Sequence[Candidate], searched: bool = False) -> list[str]:
    """The segments to merge next, by name; none when all is well. searched: the collection is, at present.

    1. Those without a live row go, which writes nothing.
    2. Those of which half is dead are written anew, the worst first: the space in use stays below twice what the live
       rows take. A quarter of the collection at once, so that old and new together do not need much more.
    3. FAN neighbours by size become one, if they are no further apart than SPREAD, the smallest first: each time that a
       row is written again its segment is about eight times as large as before. Searches pay for every segment, and have
       rows in memory flushed before there are many (`upkeep/indexing.py`): of what they go through FAN_OF_SMALL become one,
       no further apart than SPREAD_OF_SMALL, until it is SMALL. Whoever only loads has every row written once less.
    """
    empty = [each.name for each in segments if each.dead == each.rows]
    if empty:
        return empty
    allowed = max(_AT_ONCE, sum(each.live_bytes for each in segments) // 4)
    worn: list[str] = []
    for each in sorted(segments, key=lambda each: each.share_dead, reverse=True):
        if each.share_dead < MOST_DEAD or len(worn) == FAN:
            break
        allowed -= each.live_bytes
        if worn and allowed < 0:
            break
        worn.append(each.name)
    if worn:
        return worn
    by_size = sorted(segments, key=lambda each: each.live_bytes)
    for start, smallest in enumerate(by_size):
        fan, spread = FAN, SPREAD
        if searched and smallest.live_bytes < SMALL:
            fan, spread = min(FAN, FAN_OF_SMALL), SPREAD_OF_SMALL
        window = by_size[start : start + fan]
        if len(window) == fan and window[-1].live_bytes <= spread * smallest.live_bytes and fits(window):
            return [each.name for each in window]
    return []


def fits(segments: Sequence[Candidate]) -> bool:
    """Whether what comes out is no larger than a segment may be."""
    live = sum(each.rows - each.dead for each in segments)
    return live <= LARGEST_ROWS and sum(each.live_bytes for each in segments) <= LARGEST_BYTES


def bins(segments: Sequence[Candidate]) -> list[list[str]]:
    """As few merges as make as few segments as there can be; what is alone and has no dead rows stays as it is."""
    empty = [each.name for each in segments if each.dead == each.rows]
    groups: list[list[Candidate]] = []
    for each in sorted(segments, key=lambda each: each.live_bytes, reverse=True):
        if each.dead == each.rows:
            continue
        group = next((group for group in groups if fits([*group, each])), None)
        if group is None:
            groups.append([each])
        else:
            group.append(each)
    some = [[each.name for each in group] for group in groups if len(group) > 1 or group[0].dead]
    return [empty, *some] if empty else some  # these first, as they need no room and give some


def candidates(state: CollectionState) -> list[Candidate]:
    """The segments of a collection, as they were published last."""
    parts = state.snapshot.parts if state.snapshot is not None else []
    segments = [part for part in parts if isinstance(part, SegmentPart)]
    return [Candidate(p.segment.name, p.rows, p.tombstones.count, p.segment.file.size) for p in segments]


# -- one merge ---------------------------------------------------------------------------------------------


@dataclass
class _Source:
    """A segment that is merged. part: it with its tombstones, when the merge began. into: (rows,) int32, the row that each row
    becomes, -1 for one that was dead.
    """

    part: SegmentPart
    into: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def name(self) -> str:
        return self.part.segment.name


@dataclass
class Merged:
    """A segment that is written and not yet committed; None when no row was left. schema: as it was then.

    done: set when it was committed or given up. error: why it was given up.
    """

    uuid: bytes
    sources: list[_Source]
    segment: Segment | None
    length: int
    schema: dict[str, Any]
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None

    @property
    def names(self) -> set[str]:
        return {source.name for source in self.sources}


class _Writer:
    """Writes the live rows of some segments as one, by ascending seq."""

    def __init__(self, sources: Sequence[_Source], layout: Layout, pause: Callable[[], None]) -> None:
        """pause: called between pieces; it may wait, or raise to give up."""
        self._sources, self._layout, self._pause = sources, layout, pause
        self._kept = [live_rows(source.part) for source in sources]
        counts = [len(kept) for kept in self._kept]
        self.rows = sum(counts)
        seqs = np.concatenate([np.zeros(0, np.uint64), *(s.part.seqs(k) for s, k in zip(sources, self._kept, strict=True))])
        self._order: Rows | None = None
        self._runs = list(enumerate(self._kept))
        if np.any(seqs[1:] < seqs[:-1]):
            self._order = np.argsort(seqs, kind="stable")
            seqs = seqs[self._order]
            owner = np.repeat(np.arange(len(sources)), counts)[self._order]
            rows = np.concatenate(self._kept)[self._order]
            edges = np.flatnonzero(np.diff(owner)) + 1
            owners = owner[np.concatenate([[0], edges])].tolist()
            self._runs = list(zip(owners, np.split(rows, edges), strict=True))
        self._seqs = seqs
        places = np.arange(self.rows)
        if self._order is not None:
            places[self._order] = np.arange(self.rows)
        for source, kept, part in zip(sources, self._kept, np.split(places, np.cumsum(counts)[:-1]), strict=True):
            source.into = np.full(source.part.rows, -1, np.int32)
            source.into[kept] = part

    def write(self, writer: SegmentWriter) -> int:
        """Returns the file's length."""
        segments = [source.part.segment for source in self._sources]
        writer.add_gathered({name: self._field(name, form) for name, form in self._layout.items()})
        ids = concat([segments[at].ids.take(rows) for at, rows in self._runs])
        self._pause()
        hashes, rows = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
        for source, segment in zip(self._sources, segments, strict=True):
            new = source.into[segment.table.row]
            hashes.append(segment.table.hash[new >= 0])
            rows.append(new[new >= 0])
        # Each source's hashes are sorted: a stable sort only merges them.
        order = np.argsort(np.concatenate(hashes), kind="stable")
        table = IdTable.of(ids, np.concatenate(hashes)[order], np.concatenate(rows)[order].astype(np.uint32))
        self._pause()
        parts = [(segment.columns, kept) for segment, kept in zip(segments, self._kept, strict=True)]
        columns = merge_columns(parts, self._order, self._pause)
        self._pause()
        lengths = [np.zeros(1, np.uint64), *(np.diff(segments[at].payload_offsets)[rows] for at, rows in self._runs)]
        offsets = np.cumsum(np.concatenate(lengths), dtype=np.uint64)
        return writer.close(ids, table, self._seqs, offsets, self._payloads(), columns)

    def _field(self, name: str, form: Form) -> GatheredField:
        norms, present = [np.zeros(0, np.float32)], [np.zeros(0, np.bool_)]
        for at, rows in self._runs:
            stored = self._sources[at].part.field(name)
            norms.append(np.zeros(len(rows), np.float32) if stored is None else stored.norms[rows])
            present.append(np.zeros(len(rows), np.bool_) if stored is None else stored.has(rows))
        pieces = lambda: self._vectors(name, form)  # noqa: E731
        return GatheredField(form, np.concatenate(norms), np.concatenate(present), pieces)

    def _vectors(self, name: str, form: Form) -> Iterator[Vectors]:
        step = form.rows_together
        for at, rows in self._runs:
            stored = self._sources[at].part.field(name)
            for start in range(0, len(rows), step):
                self._pause()
                some = rows[start : start + step]
                yield form.absent(len(some)) if stored is None else stored.vectors[some]

    def _payloads(self) -> Iterator[npt.NDArray[np.uint8]]:
        for at, rows in self._runs:
            for start in range(0, len(rows), 4096):
                self._pause()
                yield self._sources[at].part.segment.payload_bytes(rows[start : start + 4096])


class Merger:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.lock = threading.Lock()
        self._state = threading.Lock()  # guards `_busy`, for moments only
        self._busy: dict[str, int] = {}  # segments of merges that are not committed yet, and the rows of each merge
        self._written: set[Path] = set()  # their files
        self._damaged: set[str] = set()  # segments that could not be read
        self._searched: dict[bytes, float] = {}  # when collections were searched last, by the monotonic clock
        self.finisher: Callable[[Merged], bool] | None = None  # takes a merge over, to `commit` it later; see above
        self.error: VecdbError | None = None  # why the last one in the background failed
        self.seconds = 0.0  # spent on merges, indexes left out
        self.count = 0
        self._thread: threading.Thread | None = None
        self._wanted = threading.Event()
        self._touched: set[bytes] = set()  # collections that the thread has not looked at since they changed
        self._stopping = threading.Event()

    # -- on request -----------------------------------------------------------------------------------

    def merge(self, uuid: bytes) -> None:
        """All segments of a collection into as few as may be; returns when it is done."""
        self._all(uuid, bins)

    def rewrite(self, uuid: bytes) -> None:
        """Drops the dead rows of a collection's segments; returns when it is done."""
        self._all(uuid, lambda segments: bins([each for each in segments if each.dead]))

    def drop_empty(self, uuid: bytes) -> None:
        """Drops segments without a live row, for which nothing need be written."""
        self._all(uuid, lambda segments: bins([each for each in segments if each.dead == each.rows]))

    def _all(self, uuid: bytes, groups: Callable[[list[Candidate]], list[list[str]]]) -> None:
        begun: list[Merged | None] = [None]
        while None in begun:  # one in the background has taken a segment meanwhile, or the collection went
            begun = [self._begin(uuid, names) for names in groups(self._free(uuid, wait=True))]
        for merged in filter(None, begun):
            merged.done.wait()
            if merged.error is not None:
                raise copy(merged.error)

    def _free(self, uuid: bytes, *, wait: bool = False) -> list[Candidate]:
        """The segments of a collection that are in no merge. wait: until those that are have been committed."""
        while True:
            self._store.check_writable()
            state = self._store.states.get(uuid)
            if state is None or state.damage is not None:
                return []
            found = candidates(state)
            with self._state:
                busy = self._busy.keys() & {each.name for each in found}
            if not busy or not wait:
                return [each for each in found if each.name not in busy]
            time.sleep(0.01)

    # -- a merge, from beginning to end ------------------------------------------------------------------

    def _begin(self, uuid: bytes, names: Sequence[str]) -> Merged | None:
        """Writes a merge and commits it, or hands it to the finisher. None when its segments are gone."""
        store, started = self._store, time.perf_counter()
        with self.lock:
            with store.commit_lock:
                store.check_writable()
                state = store.states.get(uuid)
                if state is None or state.damage is not None:
                    return None
                parts = [SegmentPart(s, state.tombstones[s.name], {}) for s in state.segments if s.name in set(names)]
                schema, layout = state.schema, state.layout
                with self._state:
                    if len(parts) != len(set(names)) or self._busy.keys() & set(names):
                        return None
                    self._busy |= dict.fromkeys(names, sum(part.live_rows for part in parts))
            sources = [_Source(p) for p in sorted(parts, key=lambda p: (p.segment.min_seq, p.segment.max_seq))]
            merged = Merged(uuid, sources, None, 0, schema)
            try:
                self._write(merged, layout)
            except BaseException as error:
                self._settle(merged, error)
                raise
            self.seconds += time.perf_counter() - started
            self.count += 1
        if merged.segment is None or self.finisher is None or not self.finisher(merged):
            self.commit(merged, {})
        return merged

    def _write(self, merged: Merged, layout: Layout) -> None:
        store = self._store
        work = _Writer(merged.sources, layout, self._pause)
        if not work.rows:
            return
        path = store.segment_path(merged.uuid, ulid())
        needed = sum(s.part.segment.file.size * s.part.live_rows // max(1, s.part.rows) for s in merged.sources)
        free = store.files.free_bytes(path.parent)
        if free < needed:
            raise DiskFull(f"a merge may need {needed:,} bytes, and {free:,} are free; free some space", file=str(path))
        writer = SegmentWriter(store.files, path, store.uuid, store.last_transaction())
        try:
            merged.length = work.write(writer)
        except BaseException as error:
            writer.abandon()
            if isinstance(error, Corruption):
                with self._state:
                    self._damaged |= {name for name in merged.names if name in str(error)}
            raise
        merged.segment = Segment(store.files, path, store.uuid, None)
        with self._state:
            self._written.add(path)

    def _pause(self) -> None:
        """Between two pieces of work: waits while writers are being held back, and gives up when the store is closed."""
        flusher = self._store.flusher
        while flusher.is_full and flusher.error is None and not self._stopping.is_set():
            time.sleep(0.02)
        if self._stopping.is_set():
            raise Closed("the store was closed")

    def commit(self, merged: Merged, indexes: Mapping[str, str]) -> bool:
        """Puts a merge in the place of its segments. indexes: field -> file. False when they were no longer there."""
        store = self._store
        try:
            with store.commit_lock:
                store.check_writable()
                state = store.states.get(merged.uuid)
                there = state is not None and state.damage is None and merged.names <= state.tombstones.keys()
                if state is not None and there:
                    self._commit(state, merged, indexes)
        except BaseException as error:
            self._settle(merged, error, indexes)
            raise
        self._settle(merged, None, indexes)
        return there

    def _commit(self, state: CollectionState, merged: Merged, indexes: Mapping[str, str]) -> None:
        store, names = self._store, merged.names
        replaced = [entry for entry in state.manifest.segments if entry.name in names]
        entries = [entry for entry in state.manifest.segments if entry.name not in names]
        died = [np.zeros(0, np.int32)]
        for source in merged.sources:
            kept = np.flatnonzero(source.into >= 0)
            died.append(source.into[kept[state.tombstones[source.name].is_dead(kept)]])
            del state.tombstones[source.name]
            state.committed.pop(source.name, None)
        state.segments = [segment for segment in state.segments if segment.name not in names]
        segment = merged.segment
        if segment is not None:
            dead = np.concatenate(died)
            tombstones = Tombstones(segment.rows)
            state.attach(segment, tombstones.with_dead(dead.astype(np.int64)) if len(dead) else tombstones)
            entries.append(SegmentEntry(segment.name, segment.rows, None, merged.length, dict(indexes)))
        folder = f"segments/{state.uuid.hex()}"

        def run(txn: Transaction) -> Section:
            section = Section(store.environment, txn, store.states, store.seq)
            section.put_manifest(state, Manifest(state.manifest.flushed, tuple(entries)))
            for entry in replaced:
                store.environment.delete_prefix(txn, "tombstones", entry.name.encode())
                section.drop_files(f"{folder}/{file}" for file in entry.files)
            return section

        store.transact(1 << 20, run)

    def _settle(self, merged: Merged, error: BaseException | None, indexes: Mapping[str, str] | None = None) -> None:
        """The merge was committed, discarded or failed: its segments are free, and its file is deleted if nothing names it."""
        store = self._store
        store.garbage.sweep()  # whoever waits for the merge may rely on it that its files are gone
        if merged.segment is not None and getattr(error, "outcome", None) != "unknown" and store.closed is None:
            store.discard(merged.uuid, merged.segment, (indexes or {}).values())
        with self._state:
            for name in merged.names:
                self._busy.pop(name, None)
            if merged.segment is not None:
                self._written.discard(merged.segment.file.path)
        merged.error = copy(error)  # to be raised elsewhere, without the trace of this one, whose frames hold the merge
        merged.done.set()

    def give_up(self, merged: Merged, error: BaseException, indexes: Mapping[str, str]) -> None:
        """For a finisher that could not, or will not, commit it. Harmless when it has been settled."""
        if not merged.done.is_set():
            self._settle(merged, error, indexes)

    # -- in the background -----------------------------------------------------------------------------

    def planned(self, uuid: bytes, name: str) -> int:
        """The rows of the merge that a segment is in or is about to be; 0 where it is in none, and while merges fail.

        One that is about to be is begun, if it was not: a search may have made it worth its while since the last change.
        """
        with self._state:
            if name in self._busy:
                return self._busy[name]
        state = self._store.states.get(uuid)
        segments = [] if state is None or self.error is not None else candidates(state)
        chosen = self._choose(uuid, segments)
        if name not in chosen:
            return 0
        self.wake({uuid})
        return sum(each.rows - each.dead for each in segments if each.name in chosen)

    def searched(self, uuid: bytes) -> None:
        """A collection was searched: call it now and then while it is."""
        self._searched[uuid] = time.monotonic()

    def _choose(self, uuid: bytes, segments: list[Candidate]) -> list[str]:
        searched = time.monotonic() < self._searched.get(uuid, -math.inf) + _SEARCHED
        return choose([each for each in segments if each.name not in self._damaged], searched)

    @property
    def busy(self) -> int:
        """Segments that are in a merge."""
        with self._state:
            return len(self._busy)

    @property
    def files(self) -> set[Path]:
        """Files of merges that are written and not committed yet."""
        with self._state:
            return set(self._written)

    def wake(self, touched: set[bytes]) -> None:
        """Collections were changed. Also called under the commit lock, so it only takes note."""
        states = self._store.states
        worth = [uuid for uuid in touched if uuid in states and _may_need_a_merge(states[uuid])]
        if not worth:
            return
        with self._state:
            if self._stopping.is_set():
                return
            self._touched.update(worth)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vecdb-merge", daemon=True)
                self._thread.start()
        self._wanted.set()

    def _run(self) -> None:
        give_way()
        while not self._stopping.wait(_PAUSE):
            self._wanted.wait()
            self._wanted.clear()
            with self._state:
                touched, self._touched = self._touched, set()
            try:
                for uuid in touched:
                    self._merge_what_should_be(uuid)
                self.error = None
            except Exception as error:  # kept for `info`; nothing is lost, and the next change tries again
                if not self._stopping.is_set():
                    self.error = without_trace(
                        error if isinstance(error, VecdbError) else StorageError(f"merge failed: {error}")
                    )
                    with self._store.commit_lock:  # whoever builds indexes waits for these merges no longer
                        self._store.tell(touched)

    def _merge_what_should_be(self, uuid: bytes) -> None:
        while not self._stopping.is_set():
            names = self._choose(uuid, self._free(uuid))
            if not names or self._begin(uuid, names) is None:
                return

    def stop(self) -> None:
        """The store is about to be closed: what is being written is given up."""
        with self._state:
            self._stopping.set()
            thread = self._thread
        self._wanted.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()


def _may_need_a_merge(state: CollectionState) -> bool:
    """Whether it is worth while to ask the policy."""
    return len(state.segments) >= min(FAN, FAN_OF_SMALL) or any(
        t.count >= MOST_DEAD * t.rows for t in state.tombstones.values()
    )
