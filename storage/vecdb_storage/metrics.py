"""Figures about a store, for `info()` and for monitoring: what it wrote, how long that took, and who still reads what.

Counters run from the moment when the store was opened. Values; safe in any thread.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .state import CollectionState

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True)
class Metrics:
    """bytes_accepted: of ids, vectors and payloads that commits took. bytes_written: to segments, indexes and LMDB for them.

    write_amplification: the second by the first; None before anything was written. bytes_on_disk: of all files. bytes_live:
    of segments, as far as their rows are alive, and of the log. space_amplification: the first by the second. log_records,
    log_bytes: not flushed yet. flushes, merges, flush_seconds, merge_seconds: done, and the time that they took. merging:
    segments that are in a merge. commits, operations: LMDB transactions, and writes that shared them. readers: slots of
    LMDB's reader table that are taken now, of this process too. oldest_snapshot_seconds: age of the oldest one that this
    process holds and that is no longer the newest; 0 when there is none. garbage_files: waiting to be deleted. generation:
    of the LMDB file. flush_error, merge_error: why the last one in the background failed.
    """

    bytes_accepted: int
    bytes_written: int
    write_amplification: float | None
    bytes_on_disk: int
    bytes_live: int
    space_amplification: float | None
    log_records: int
    log_bytes: int
    segments: int
    dead_rows: int
    flushes: int
    flush_seconds: float
    merges: int
    merge_seconds: float
    merging: int
    commits: int
    operations: int
    readers: int
    oldest_snapshot_seconds: float
    garbage_files: int
    generation: int
    flush_error: str | None
    merge_error: str | None

    def flat(self) -> dict[str, float | int]:
        """The numbers by their names in monitoring: "vecdb.storage.write_amplification" and so on."""
        return {f"vecdb.storage.{name}": value for name, value in asdict(self).items() if isinstance(value, int | float)}


def metrics_of(store: Store) -> Metrics:
    states = list(store.states.values())
    on_disk, live = store.bytes_on_disk(), sum(map(_live_bytes, states))
    accepted, written = store.accepted, store.files.written + store.environment.written
    flusher, merger, queue = store.flusher, store.merger, store.queue
    return Metrics(
        bytes_accepted=accepted,
        bytes_written=written,
        write_amplification=written / accepted if accepted else None,
        bytes_on_disk=on_disk,
        bytes_live=live,
        space_amplification=on_disk / live if live else None,
        log_records=sum(memtable.records for state in states for memtable in state.memtables),
        log_bytes=sum(memtable.bytes for state in states for memtable in state.memtables),
        segments=sum(len(state.segments) for state in states),
        dead_rows=sum(tombstones.count for state in states for tombstones in list(state.tombstones.values())),
        flushes=flusher.count,
        flush_seconds=flusher.seconds,
        merges=merger.count,
        merge_seconds=merger.seconds,
        merging=merger.busy,
        commits=queue.groups,
        operations=queue.operations,
        readers=store.environment.readers(),
        oldest_snapshot_seconds=_oldest(store),
        garbage_files=len(store.garbage.waiting),
        generation=store.generation,
        flush_error=None if flusher.error is None else str(flusher.error),
        merge_error=None if merger.error is None else str(merger.error),
    )


def _live_bytes(state: CollectionState) -> int:
    entries = {entry.name: entry.bytes for entry in state.manifest.segments}
    live = sum(memtable.bytes for memtable in state.memtables)
    for segment in list(state.segments):
        dead = state.tombstones.get(segment.name)
        alive = segment.rows - (dead.count if dead is not None else 0)
        live += entries.get(segment.name, segment.file.size) * alive // max(1, segment.rows)
    return live


def _oldest(store: Store) -> float:
    newest = {id(state.snapshot) for state in list(store.states.values())}
    held = [snapshot.published for snapshot in list(store.snapshots) if id(snapshot) not in newest]
    return time.monotonic() - min(held) if held else 0.0
