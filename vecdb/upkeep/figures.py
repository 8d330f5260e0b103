"""What `info()` tells of a collection, gathered from those who know. Pure functions; safe in any thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vecdb_storage.snapshot import SegmentPart, Snapshot
from vecdb_storage.store import Store

from ..info import IndexInfo, Info
from ..schema import Field
from ..search.indexes import advice_of, figures_of, why_auto
from ..search.whole import Measured

if TYPE_CHECKING:
    from .indexing import Indexer
    from .probing import Prober


def info_of(
    store: Store,
    uuid: bytes,
    snapshot: Snapshot,
    fields: Mapping[str, Field],
    measured: Callable[[str], Measured | None],
    indexer: Indexer | None,
    prober: Prober | None,
) -> Info:
    """measured: what is known of whole searches of a field. indexer, prober: None where there is none."""
    segments = snapshot.segments
    memtable = [part for part in snapshot.parts if not isinstance(part, SegmentPart)]
    error = store.flusher.error
    return Info(
        name=store.state(uuid).name,
        rows=snapshot.count,
        dead=sum(part.rows for part in snapshot.parts) - snapshot.count,
        segments=len(segments),
        memtable_rows=sum(part.live_rows for part in memtable),
        bytes=sum(part.segment.file.size for part in segments),
        seq=snapshot.seq,
        fields=dict(fields),
        ids=snapshot.schema.get("ids"),
        encoder=(snapshot.schema.get("embed") or {}).get("name"),
        indexes={
            name: _index_info(uuid, snapshot, name, declared, measured(name), indexer, prober)
            for name, declared in fields.items()
        },
        flush_error=None if error is None else str(error),
    )


def _index_info(
    uuid: bytes,
    snapshot: Snapshot,
    name: str,
    declared: Field,
    measured: Measured | None,
    indexer: Indexer | None,
    prober: Prober | None,
) -> IndexInfo:
    segments = snapshot.segments
    indexed = [part for part in segments if name in part.indexes]
    files = [part.segment.index(part.indexes[name]) for part in indexed]
    arrays: Counter[str] = Counter()
    for file in files:
        arrays.update({each: file.unchecked(each).nbytes for each in file.names()})
    largest = max(indexed, key=lambda part: part.rows, default=None)
    building = None if indexer is None else indexer.share_of(uuid, name)
    return IndexInfo(
        why=why_auto(declared, max((part.rows for part in segments), default=0)),
        segments=len(indexed),
        rows=sum(part.rows for part in indexed),
        bytes=sum(file.size for file in files),
        building=None if building is None else round(building[1], 3),
        paused=indexer is not None and indexer.paused,
        error=None if indexer is None else indexer.error_of(uuid, name),
        calibrated=None if measured is None else measured.rows,
        outgrown=measured is not None and measured.outgrown_by(snapshot, name),
        probed=None if prober is None else prober.of(uuid, name),
        arrays=dict(arrays),
        figures={} if largest is None else figures_of(largest, name),
        advice="" if largest is None else advice_of(largest, name),
    )
