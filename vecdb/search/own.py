"""Recall on a user's own queries: measured through `Collection.calibrate`, kept with the collection, and outgrown in time.

The curves lie in the schema; the queries, where the right answers can be found again, beside it, so that they can be asked
again when the collection has grown (`upkeep.indexing` does). Until then the greater of their effort and that of the index is
given. Any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import Control
from vecdb_storage.ids import Id
from vecdb_storage.snapshot import SegmentPart, Snapshot
from vecdb_storage.store import Store

from ..schema import Dense
from .calibrate import KS, Calibration, Curve, curve
from .planner import Asked

if TYPE_CHECKING:
    from .executor import Answer, Executor

_GROWTH = 1.25  # in rows, either way, that outgrows a calibration
_SPREAD = 1.5  # likewise in segments


@dataclass(frozen=True, eq=False)
class Own:
    """What was measured for a field when the collection had so many rows and segments. again: its queries were kept."""

    calibration: Calibration
    rows: int
    segments: int
    again: bool

    def outgrown_by(self, snapshot: Snapshot) -> bool:
        """Whether so much was added or removed since that it may not hold any more."""
        rows, segments = (max(1, snapshot.count), max(1, self.rows)), (max(1, segments_of(snapshot)), max(1, self.segments))
        return max(rows) > _GROWTH * min(rows) or max(segments) > _SPREAD * min(segments)


def owns(schema: dict[str, Any]) -> dict[str, Own]:
    """The calibrations on own queries that a schema holds, by field."""
    return {
        name: Own(Calibration.from_json(each), each["rows"], each["segments"], each["again"])
        for name, each in schema.get("calibration", {}).items()
    }


def segments_of(snapshot: Snapshot) -> int:
    return sum(isinstance(part, SegmentPart) for part in snapshot.parts)


def measure(
    executor: Executor,
    snapshot: Snapshot,
    name: str,
    declared: Dense,
    queries: npt.NDArray[np.float32],
    truth: Sequence[Sequence[Id]] | None = None,
    control: Control | None = None,
) -> tuple[Curve, ...]:
    """Recall of the whole search, all segments together, at rising efforts. truth: ids; None to find them exactly."""
    most = snapshot.count if truth is None else min(map(len, truth))

    def search(k: int, effort: float | None) -> Answer:
        asked = Asked(name, declared, k, 1.0 if effort is None else 0.5, control=control, effort=effort)
        return executor.search(snapshot, asked, queries, batch=True)

    return tuple(_curve(search, k, truth) for k in KS if k <= most)


def _curve(search: Callable[[int, float | None], Answer], k: int, truth: Sequence[Sequence[Id]] | None) -> Curve:
    """search: for k, with an effort or exactly."""
    kth = search(k, None).keys[:, -1:] if truth is None else None

    def at(effort: float) -> tuple[npt.NDArray[np.float64], float]:
        started = time.perf_counter()
        found = search(k, effort)
        spent = (time.perf_counter() - started) / len(found.keys)
        if kth is not None:
            return np.count_nonzero(found.keys >= kth, axis=1) / k, spent
        assert truth is not None
        shared = [len(set(row[:k]) & set(mine)) for row, mine in zip(truth, found.ids.tolist(), strict=True)]
        return np.array(shared, np.float64) / k, spent

    return curve(k, 1.0, at)


def keep(
    store: Store, uuid: bytes, name: str, curves: tuple[Curve, ...], snapshot: Snapshot, queries: npt.NDArray[np.float32] | None
) -> None:
    """With the collection, from now on. queries: to be asked again when it has grown; None if that cannot be done."""
    entry = {**Calibration(curves).to_json(), **_when(snapshot), "again": queries is not None}

    def change(schema: dict[str, Any]) -> dict[str, Any]:
        return {**schema, "calibration": {**schema.get("calibration", {}), name: entry}}

    if queries is None:
        store.alter_schema(uuid, change)
    else:
        store.attach(uuid, _attached(name), {"queries": queries}, change)


def measure_again(executor: Executor, store: Store, uuid: bytes, name: str, control: Control) -> None:
    """Asks the queries that were kept once more. Raises NotFound when the collection is gone."""
    snapshot = store.snapshot(uuid)
    queries = np.array(store.attachment(uuid, _attached(name))["queries"], np.float32)
    declared = Dense.from_json(snapshot.schema["fields"][name])
    curves = measure(executor, snapshot, name, declared, queries, control=control)

    def change(schema: dict[str, Any]) -> dict[str, Any]:
        was = schema["calibration"][name]
        now = {**was, **Calibration(curves).to_json(), **_when(snapshot)}
        return {**schema, "calibration": {**schema["calibration"], name: now}}

    store.alter_schema(uuid, change)


def _when(snapshot: Snapshot) -> dict[str, int]:
    return {"rows": snapshot.count, "segments": segments_of(snapshot)}


def _attached(name: str) -> str:
    return f"queries.{name}"
