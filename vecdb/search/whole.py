"""Recall of whole searches, over all segments together: on a user's own queries, or on rows that other segments hold.

An index knows what it delivers by itself; what of that is needed depends on the other segments. So where there are several,
some rows of each are searched for in all others, which have never met them. Efforts are those of the index with most rows
(`planner.Asked`). A user's own queries (`Collection.calibrate`) are
better still and take the place of that. The curves lie in the schema, a user's queries beside it. When the collection has
outgrown them, they are measured again (`upkeep.indexing`); until then the greater of this effort and that of the index is
given. Any thread.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import AnyRows, Control, Queries, SparseRows
from vecdb_storage.ids import Id
from vecdb_storage.snapshot import Part, SegmentPart, Snapshot, live_rows
from vecdb_storage.store import Store

from ..schema import field_from_json
from .calibrate import KS, Calibration, Curve, as_queries, at_a_point, at_the_next, curve
from .indexes import index_of, rows_of
from .planner import Asked, led

if TYPE_CHECKING:
    from .executor import Answer, Executor

KEPT, GONE, ROWS = "kept", "gone", "rows"  # a user's queries, with answers that can be found again or not; rows of others
SAMPLE = 2000  # rows that are searched for in other segments, at most
VERSION = 3  # of what is kept: since 2 an effort is that of the index with most rows, since 3 it says how rows are spread
_FEW = 100  # of these, by which it is told how long one takes
_GROWTH = 1.25  # in rows, either way, that outgrows a calibration
_SPREAD = 1.5  # likewise in how they are spread
_HOPELESS = 1.0  # times as long as an exact search, beyond which no more effort is tried

Keys = npt.NDArray[np.float32]
Recalls = npt.NDArray[np.float64]
Search = Callable[[int, float | None], Keys]  # for k, with an effort or exactly: (m, k) keys


@dataclass(frozen=True, eq=False)  # and the curves are read when a search first needs them, not at each commit
class Measured:
    """What was measured for a field when the collection had so many rows, so spread, and so many of them had an index.

    spread: see `spread_of`. index: its parameters, as declared then.
    """

    version: int
    curves: Mapping[str, Any]
    queries: str
    rows: int
    spread: float
    indexed: int
    index: Any

    @cached_property
    def calibration(self) -> Calibration:
        return Calibration.from_json(self.curves)

    def outgrown_by(self, snapshot: Snapshot, name: str) -> bool:
        """Whether so much was added, removed or built otherwise since that it may not hold any more."""
        pairs = (
            (snapshot.count, self.rows, _GROWTH), (indexed_by(snapshot, name), self.indexed, _GROWTH),
            (spread_of(snapshot), self.spread, _SPREAD),
        )  # fmt: skip
        grown = any(max(now, then, 1) > most * max(1, min(now, then)) for now, then, most in pairs)
        return grown or self.version != VERSION or bool(snapshot.schema["fields"][name]["index"] != self.index)


def measured(schema: dict[str, Any]) -> dict[str, Measured]:
    """What a schema holds, by field."""
    return {
        name: Measured(
            each.get("version", 1), each, each["queries"], each["rows"], each.get("spread", 1.0), each["indexed"], each["index"]
        )
        for name, each in schema.get("calibration", {}).items()
        if name in schema["fields"]
    }


def spread_of(snapshot: Snapshot) -> float:
    """Of how many segments two live rows, drawn at random, are as rarely in the same one as here, were these of one size.

    So a small segment beside a large one, which holds few of anybody's best rows, counts for little.
    """
    rows = [part.live_rows for part in snapshot.segments]
    return sum(rows) ** 2 / max(1, sum(each * each for each in rows))


def indexed_by(snapshot: Snapshot, name: str) -> int:
    """How many rows lie in segments that have an index of a field."""
    return sum(part.rows for part in snapshot.segments if name in part.indexes)


def of_queries(
    executor: Executor,
    snapshot: Snapshot,
    name: str,
    queries: Queries,
    truth: Sequence[Sequence[Id]] | None = None,
    control: Control | None = None,
) -> tuple[Curve, ...]:
    """Curves for a user's queries. truth: ids; None to find them exactly."""
    if truth is None:
        return _curves(lambda k, effort: _search(executor, snapshot, name, queries, k, effort, control).keys, snapshot.count)

    def curve_of(k: int) -> Curve:
        def at(effort: float) -> tuple[npt.NDArray[np.float64], float]:
            started = time.perf_counter()
            found = _search(executor, snapshot, name, queries, k, effort, control)
            shared = [len(set(row[:k]) & set(mine)) for row, mine in zip(truth, found.ids.tolist(), strict=True)]
            return np.array(shared, np.float64) / k, (time.perf_counter() - started) / len(queries)

        return curve(k, 1.0, at)

    return tuple(curve_of(k) for k in KS if k <= min(map(len, truth)))


@dataclass
class _Drawn:
    """Some rows of a segment, as queries.

    others: the snapshot without it. own, best: (m, k) the best keys of its other rows, and of all.
    """

    part: SegmentPart
    queries: Queries
    others: Snapshot
    own: Keys
    best: Keys

    def few(self, share: float) -> _Drawn:
        """That share of them, and one at least."""
        count = max(1, round(share * len(self.own)))
        return replace(self, queries=self.queries[:count], own=self.own[:count], best=self.best[:count])


def of_rows(executor: Executor, snapshot: Snapshot, name: str, control: Control | None = None) -> tuple[Curve, ...]:
    """Curves for rows of each segment, as many as it has of all.

    What of the best rows is in other segments, which have never met the query, is searched for; what is in the query's own is
    taken to be found as its index finds what it has not met: that was measured when it was built. So it does not matter whether
    segments are alike, or one holds most rows, or rows that nobody else is like.
    """
    declared = field_from_json(snapshot.schema["fields"][name])
    rng, total = np.random.default_rng(0), sum(part.live_rows for part in snapshot.segments)
    chosen: list[tuple[SegmentPart, AnyRows, npt.NDArray[np.int64]]] = []
    for part in snapshot.segments:
        if (stored := part.field(name)) is None:
            continue
        rows = live_rows(part)
        if stored.present is not None:
            rows = rows[np.unpackbits(stored.present.view(np.uint8), count=part.rows, bitorder="little")[rows] > 0]
        some = rng.permutation(rows)[: max(1, round(SAMPLE * part.live_rows / max(1, total)))]
        if len(some):
            chosen.append((part, rows_of(stored, declared.metric), some))
    count = sum(len(some) for _, _, some in chosen)
    if count < 20:
        return ()
    part, stored_rows, some = max(chosen, key=lambda each: len(each[2]))
    few = as_queries(stored_rows, some[:_FEW])
    for _ in range(2):  # what is compiled or read for the first time takes longer
        started = time.perf_counter()
        _search(executor, _without(snapshot, part), name, few, KS[0], 0.0, control)
    share = min(1.0, at_a_point((time.perf_counter() - started) / len(few)) / count)
    started, drawn = time.perf_counter(), []
    ks = [k for k in KS if k <= min(_without(snapshot, part).count for part, _, _ in chosen)]
    if not ks:
        return ()
    for part, stored_rows, some in chosen:
        some = some[: max(1, round(share * len(some)))]
        queries, others = as_queries(stored_rows, some), _without(snapshot, part)
        own = _own(executor, snapshot, part, name, queries, some, control)
        beside = _wide(_search(executor, others, name, queries, ks[-1], None, control, snapshot).keys, ks[-1])
        drawn.append(_Drawn(part, queries, others, own, -np.sort(-np.concatenate([own, beside], axis=1), axis=1)))
    count = sum(len(each.own) for each in drawn)
    most = (time.perf_counter() - started) / count

    def recalls(k: int, effort: float, queries: int) -> Recalls:
        asked = executor.with_lead(Asked(name, declared, k, 0.5, effort=effort), snapshot)
        found = []
        for each in (each.few(min(1.0, queries / count)) for each in drawn):
            kth = each.best[:, k - 1 : k]
            beside = _search(executor, each.others, name, each.queries, k, effort, control, snapshot).keys
            of_own = np.minimum(1.0, np.count_nonzero(each.own >= kth, axis=1) / k)
            low = _low(each.part, asked, each.part.live_rows / max(1, snapshot.count))
            found.append(np.count_nonzero(beside >= kth, axis=1) / k + low * of_own)
        return np.concatenate(found)

    return tuple(_curve(k, count, partial(recalls, k), most) for k in ks)


def _own(
    executor: Executor, snapshot: Snapshot, part: SegmentPart, name: str, queries: Queries, rows: npt.NDArray[np.int64],
    control: Control | None,
) -> Keys:  # fmt: skip
    """(m, k) the best keys of a segment's rows for some of them, each without itself."""
    alone, k = _of(snapshot, [part]), KS[-1]
    found = _search(executor, alone, name, queries, min(k + 1, max(1, alone.count)), None, control)
    mine = np.array(part.keys(rows), object)[:, None] == found.ids
    return _wide(-np.sort(-np.where(mine, -np.inf, found.keys), axis=1)[:, :k], k)


def _wide(keys: Keys, k: int) -> Keys:
    return np.pad(keys, ((0, 0), (0, k - keys.shape[1])), constant_values=-np.inf)


def _low(part: SegmentPart, asked: Asked, share: float) -> float:
    """The recall at least of a segment's own index, at the effort that it is given; 1 where it is searched exactly."""
    assert asked.effort is not None
    index = index_of(part, asked.field, None)
    curve = next((each for each in index.calibration.curves if (each.k, each.selectivity) == (asked.k, 1.0)), None)
    return 1.0 if curve is None else curve.low_at(led(asked, index.calibration, asked.effort, share))


def _without(snapshot: Snapshot, part: SegmentPart) -> Snapshot:
    return _of(snapshot, [each for each in snapshot.parts if each is not part])


def _of(snapshot: Snapshot, parts: list[Part]) -> Snapshot:
    """The snapshot, were these all its parts."""
    some = copy.copy(snapshot)
    some.__dict__.pop("count", None)
    some.parts, some.segments = parts, [part for part in parts if isinstance(part, SegmentPart)]
    return some


def _search(
    executor: Executor, snapshot: Snapshot, name: str, queries: Any, k: int, effort: float | None, control: Control | None,
    all_parts: Snapshot | None = None,
) -> Answer:  # fmt: skip
    """all_parts: of which `snapshot` lacks some, and whose lead is the lead."""
    declared = field_from_json(snapshot.schema["fields"][name])
    asked = Asked(name, declared, k, 1.0 if effort is None else 0.5, control=control, effort=effort)
    return executor.search(snapshot, executor.with_lead(asked, all_parts or snapshot), queries, batch=True)


def _curves(search: Search, rows: int) -> tuple[Curve, ...]:
    """For each k up to `rows`, of all queries at each effort."""
    ks = [k for k in KS if k <= rows]
    if not ks:
        return ()
    started = time.perf_counter()
    true = search(ks[-1], None)
    most = (time.perf_counter() - started) / len(true)

    def recalls(k: int, effort: float, queries: int) -> Recalls:
        found: Recalls = np.count_nonzero(search(k, effort) >= true[:, k - 1 : k], axis=1) / k
        return found

    return tuple(_curve(k, len(true), partial(recalls, k), most) for k in ks)


def _curve(k: int, count: int, recalls: Callable[[float, int], Recalls], most: float) -> Curve:
    """Up to the effort at which an exact search is as quick: `most` seconds.

    recalls: an effort, and of how many of the `count` queries it is worth while to know -> (m,) the recall of each.
    """
    per, queries = 0.0, count

    def at(effort: float) -> tuple[Recalls, float] | None:
        nonlocal per, queries
        if per > _HOPELESS * most:
            return None
        started = time.perf_counter()
        queries = at_the_next(queries, per, count)
        found = recalls(effort, queries)
        per = (time.perf_counter() - started) / len(found)
        return np.minimum(1.0, found), per

    return curve(k, 1.0, at)


def keep(
    store: Store, uuid: bytes, name: str, curves: tuple[Curve, ...], snapshot: Snapshot, how: str, queries: Any = None
) -> None:
    """With the collection, from now on. how: KEPT, with the queries; GONE or ROWS."""
    entry = {
        **Calibration(curves).to_json(), "version": VERSION, "queries": how, "rows": snapshot.count,
        "spread": spread_of(snapshot), "indexed": indexed_by(snapshot, name),
        "index": snapshot.schema["fields"][name]["index"],
    }  # fmt: skip

    def change(schema: dict[str, Any]) -> dict[str, Any]:
        before = schema.get("calibration", {})
        if queries is None and how != GONE and before.get(name, {}).get("queries", how) != how:
            return schema  # meanwhile the user gave queries
        return {**schema, "calibration": {**before, name: entry}}

    if queries is None:
        store.alter_schema(uuid, change)
    else:
        store.attach(uuid, f"queries.{name}", _kept(queries), change)


def _kept(queries: Queries) -> dict[str, npt.NDArray[Any]]:
    """Queries as arrays, to be kept beside the schema."""
    if isinstance(queries, SparseRows):
        return {"offsets": queries.offsets, "indices": queries.indices, "weights": queries.weights}
    return {"queries": queries}


def _as_given(arrays: Mapping[str, npt.NDArray[Any]]) -> Queries:
    """The inverse of `_kept`."""
    if "queries" in arrays:
        return np.array(arrays["queries"], np.float32)
    return SparseRows(*(np.array(arrays[name]) for name in ("offsets", "indices", "weights")))


def renew(executor: Executor, store: Store, uuid: bytes, name: str, control: Control) -> None:
    """Measures a field for the first time, or again. Raises NotFound when the collection is gone, Cancelled."""
    snapshot = store.snapshot(uuid)
    before = measured(snapshot.schema).get(name)
    if before is not None and before.queries == KEPT:
        queries = _as_given(store.attachment(uuid, f"queries.{name}"))
        keep(store, uuid, name, of_queries(executor, snapshot, name, queries, control=control), snapshot, KEPT)
    else:
        keep(store, uuid, name, of_rows(executor, snapshot, name, control), snapshot, ROWS)


def is_due(snapshot: Snapshot, name: str) -> bool:
    """Whether a field is to be measured, all its indexes being built."""
    before = measured(snapshot.schema).get(name)
    if before is not None and before.queries == GONE:
        return False
    several = sum(name in part.indexes for part in snapshot.segments) > 1
    if before is None:
        return several
    return before.outgrown_by(snapshot, name) and (several or before.queries == KEPT)
