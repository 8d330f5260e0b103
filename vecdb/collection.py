"""A collection: points with vectors and payloads, written, read and searched.

Every method is the same four steps: validate, take a snapshot or commit, execute, shape the answer. Reads see one
commit and never wait for writers; a write has reached the disk when its call returns. Safe in any thread.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from vecdb_index.contract import Cancelled, DeadlineReached, Queries
from vecdb_index.contract import Overloaded as TooMany
from vecdb_storage.column_build import prepare
from vecdb_storage.ids import Id
from vecdb_storage.payloads import parse
from vecdb_storage.snapshot import SegmentPart, Snapshot
from vecdb_storage.store import Store
from vecdb_storage.vacuum import Vacuumed
from vecdb_storage.verify import Report

from . import errors
from .arguments import (
    Where,
    asked_ids,
    check_chosen,
    check_columns_alone,
    check_embedded,
    check_threshold,
    check_ungrouped,
    checked_examples,
    checked_fusion,
    checked_group_by,
    checked_k,
    checked_limit,
    checked_patches,
    checked_points,
    checked_recall,
    checked_score,
    checked_timeout,
    checked_truth,
    is_texts,
)
from .errors import Closed, DeadlineExceeded, InvalidInput, InvalidPayload, NotFound, PoorlyServed, ReadOnly, VecdbError
from .filters import Expression
from .filters import parse as parse_filter
from .hits import BatchHits, Group, Hit, Hits, check_places
from .info import Info
from .points import (
    Point,
    batch_from_arrays,
    checked_checkpoints,
    checked_ids,
    checked_queries,
    checked_token,
    field_named,
)
from .schema import Field, checked_field, checked_index, field_from_json
from .search import bitmaps, stopping, whole
from .search.calibrate import Calibration
from .search.calibrate import Report as RecallReport
from .search.fuse import How, depth, fused
from .search.grouping import grouped
from .search.indexes import advice_of
from .search.keys import scores_of
from .search.plan import Explained, HybridPlan, Plan
from .search.planner import Asked
from .shape import Shape, WithPayload, WithVectors, vector_at
from .sparse import centred, one_of
from .upkeep.figures import info_of
from .upkeep.verifying import index_problems
from .writes import Prepared, call_of, write_chunks, written_before

if TYPE_CHECKING:
    from .embed import Embedding
    from .search.executor import Answer, Executor, Found
    from .serverless.export import Exported
    from .upkeep.indexing import Indexer
    from .upkeep.probing import Prober

DEFAULT_RECALL = 0.95
_FEWEST_QUERIES = 20  # that a calibration can be made of


class Collection:
    """Use `Database.create_collection` or `Database.collection`."""

    def __init__(
        self, store: Store, uuid: bytes, executor: Executor, indexer: Indexer | None, prober: Prober | None = None
    ) -> None:
        """indexer: None for a database that is open read-only."""
        self._store, self._uuid, self._executor, self._indexer, self._prober = store, uuid, executor, indexer, prober
        self._closed = False
        self._parsed: tuple[Any, dict[str, Field]] | None = None
        self._calibrated: tuple[Any, dict[str, whole.Measured]] | None = None
        self._of_wholes: WeakKeyDictionary[Snapshot, dict[str, tuple[Calibration | None, bool]]] = WeakKeyDictionary()
        self._advised: set[str] = set()  # index files of which the user was told

    # -- writing ------------------------------------------------------------------------------------

    def upsert(
        self,
        points: Any = None,
        *,
        ids: Any = None,
        vectors: Any = None,
        payloads: Any = None,
        texts: Any = None,
        token: bytes | None = None,
    ) -> list[Id]:
        """Writes points, replacing those whose ids exist. Returns their ids in order; durable when it returns.

        points: an iterable of `Point` or of dicts with id, vector (or vectors, by field) and payload; an Arrow table; a pandas
        or polars frame with columns id, vector and payload columns. Or columns: ids (n,), of int or str, left out to have
        ULIDs made; vectors (n, d), or of a sparse field a SciPy sparse matrix, or rows {component: weight} or (components,
        weights), or field -> such; payloads: n dicts, or a dict of columns. Or texts, in a
        collection with an encoder; they are kept in the payload as "text".
        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.

        A call with columns, a table or a frame is one commit: all or nothing. An iterable commits about every 64 MiB; an
        error then carries `applied`, the number of points that are in. Raises InvalidInput and what is below it
        (DimensionMismatch, InvalidVector, InvalidPayload, InvalidId, DuplicateId), StorageError, ReadOnly.
        """
        return self._write(points, ids, vectors, payloads, texts, token, insert=False)

    def insert(
        self,
        points: Any = None,
        *,
        ids: Any = None,
        vectors: Any = None,
        payloads: Any = None,
        texts: Any = None,
        token: bytes | None = None,
    ) -> list[Id]:
        """Like `upsert`, but raises AlreadyExists, and writes nothing, if one of the ids exists."""
        return self._write(points, ids, vectors, payloads, texts, token, insert=True)

    def _write(
        self, points: Any, ids: Any, vectors: Any, payloads: Any, texts: Any, token: bytes | None, *, insert: bool
    ) -> list[Id]:
        store = self._writable()
        once = checked_token(token, call_of(insert), self._uuid)
        fields = self._fields(store.state(self._uuid).schema)
        if points is None:
            if once is not None:
                given = None if ids is None else checked_ids(ids)
                first = written_before(store, once, given)
                if first is not None:  # neither embedded nor checked again
                    return first
                ids = ids if isinstance(ids, np.ndarray) else given
            if texts is not None:
                if vectors is not None:
                    raise InvalidInput("give texts or vectors, not both")
                ids = ids if ids is None or isinstance(ids, np.ndarray) else checked_ids(ids)  # it may be read twice
                vectors, payloads = self.embedding.of_points(texts, payloads, lambda v, p: batch_from_arrays(fields, ids, v, p))
            prepared = self._prepare(ids, vectors, payloads)
            prepared.commit(insert=insert, token=token)
            return prepared.ids
        check_columns_alone(ids, vectors, payloads, texts)
        written: list[Id] = []
        try:
            for ids in write_chunks(store, self._uuid, fields, checked_points(points), once, insert=insert):
                written += ids
        except VecdbError as error:
            error.applied = len(written)
            raise
        return written

    def prepare(self, ids: Any, vectors: Any, payloads: Any) -> Prepared:
        """Columns as in `upsert`, checked and if large on their way to disk, to be committed or released. For loaders.

        So the next batch can be prepared in one thread while another commits the one before. The vectors must not change
        meanwhile. Raises as `upsert`.
        """
        return self._prepare(ids, vectors, payloads, later=True)

    def _prepare(self, ids: Any, vectors: Any, payloads: Any, *, later: bool = False) -> Prepared:
        """later: others are committed before it."""
        store = self._writable()
        ahead = store.begin(self._uuid, later=later)
        try:
            fields = self._fields(store.state(self._uuid).schema)
            batch = batch_from_arrays(fields, ids, vectors, payloads, early=ahead.add_fields)
            batch = ahead.place(batch).packed_up() if later else batch
        except BaseException:
            ahead.release()
            raise
        return Prepared(store, self._uuid, batch, ahead, made=ids is None)

    def checkpoints(self, prefix: bytes = b"") -> dict[bytes, bytes]:
        """What `Prepared.commit` and `set_checkpoints` have kept under tokens that begin with `prefix`."""
        return self._open_store().checkpoints(self._uuid, prefix)

    def set_checkpoints(self, checkpoints: Mapping[bytes, bytes | None]) -> None:
        """As in `Prepared.commit`, without points. Raises InvalidInput."""
        self._writable().set_checkpoints(self._uuid, checked_checkpoints(checkpoints))

    def check(self, ids: Any, vectors: Any, payloads: Any) -> None:
        """Raises what `upsert` of these columns would raise of them, and writes nothing."""
        batch_from_arrays(self._fields(self._open_store().state(self._uuid).schema), ids, vectors, payloads)

    def delete(self, ids: Any = None, *, where: Where = None, token: bytes | None = None) -> int:
        """Deletes points by id, or all that match a filter. Returns how many there were.

        A delete by filter deletes what matched when it was called; a point that is written meanwhile stays.
        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        store = self._writable()
        once = checked_token(token, "delete", self._uuid)
        check_chosen(ids, where)
        if where is None:
            return store.delete(self._uuid, asked_ids(ids), token=once)
        kept = None if once is None else store.kept(once)
        if kept is not None:  # the filter need not be asked what it matches now
            return int(kept.result)
        snapshot = store.snapshot(self._uuid)
        return store.delete(self._uuid, self._matching(snapshot, where), as_of=snapshot.seq, token=once)

    def update_payload(
        self,
        ids: Any = None,
        payload: Any = None,
        *,
        where: Where = None,
        replace: bool = False,
        remove: Iterable[str] = (),
        token: bytes | None = None,
    ) -> int:
        """Changes payloads; vectors stay. Returns how many points changed; ids that do not exist are left out.

        payload: a dict whose keys are set in each point's payload (with replace=True it becomes the payload), or one dict for
        each of `ids`. remove: top-level keys to delete. where: all points that match, instead of ids.
        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        store = self._writable()
        once = checked_token(token, "update_payload", self._uuid)
        check_chosen(ids, where)
        removed = set(remove)
        patches, shared = checked_patches(payload, removed)
        kept = None if once is None else store.kept(once)
        if kept is not None:  # nothing need be asked or checked now
            return int(kept.result)
        snapshot = store.snapshot(self._uuid)
        keys = asked_ids(ids) if where is None else self._matching(snapshot, where)
        if not shared and len(patches) != len(keys):
            raise InvalidInput(f"{len(patches)} payloads for {len(keys)} points")
        try:
            prepare(patches)  # the patch itself must be sound before any point is touched
        except InvalidPayload as error:
            point = None if shared or not isinstance(error.point, int) else keys[error.point]
            raise InvalidPayload(error.reason, point=point, field=error.field) from None
        by_id = dict(zip(keys, patches, strict=True)) if not shared else {}

        def change(key: Id, old: bytes) -> bytes:
            kept = {} if replace else {k: v for k, v in (parse(old) or {}).items() if k not in removed}
            changed: bytes = prepare([{**kept, **(patches[0] if shared else by_id[key])}]).json[0]
            return changed

        as_of = None if where is None else snapshot.seq
        return store.change_payloads(self._uuid, keys, change, as_of, once)

    def flush(self, wait: bool = True) -> None:
        """Moves rows that are only in memory and in the log into a segment. Never needed for durability.

        wait: also until these rows, and those before, are in the indexes that segments are to have; but not while indexing is
        paused, nor for one that failed (`info().indexes` says so).
        """
        self._writable().flush(self._uuid)
        if wait and self._indexer is not None:
            self._indexer.wait(self._uuid)
            self._advise()

    def _advise(self) -> None:
        """Warns where an index serves its rows badly, once: it was built in a thread whose warnings nobody sees."""
        snapshot = self._snapshot()
        for name in self._fields(snapshot.schema):
            mine = [part for part in snapshot.parts if isinstance(part, SegmentPart) and name in part.indexes]
            largest = max(mine, key=lambda part: part.rows, default=None)
            if largest is None or largest.indexes[name] in self._advised:
                continue
            self._advised.add(largest.indexes[name])
            if advice := advice_of(largest, name):
                warnings.warn(f"field {name!r}: {advice}", PoorlyServed, stacklevel=3)

    def merge(self, wait: bool = True) -> None:
        """All segments become as few as may be, which makes searches faster. Never needed: merges happen in the background.

        Worth its while after a large load, when little will be written later. wait: also until it has its indexes.
        """
        self._writable().merge(self._uuid)
        if wait and self._indexer is not None:
            self._indexer.wait(self._uuid)
            self._advise()

    def vacuum(self, progress: Callable[[int, int], None] | None = None) -> Vacuumed:
        """As `Database.vacuum`, but only this collection's segments are rewritten."""
        store = self._writable()
        store.snapshot(self._uuid)  # raises what is wrong with it
        return store.vacuum(self._uuid, progress)

    def set_index(self, index: Any, field: str | None = None, *, token: bytes | None = None) -> None:
        """Another backend or other parameters for a field: `HNSW(m=24)`, "flat", "auto". Searches go on meanwhile.

        The indexes that are there serve until new ones are built, in the background; `flush()` waits for them.
        token: 1 to 64 bytes of the caller's choice; a call with a token that was seen in the last 24 hours changes nothing and
        returns what the first one returned.
        """
        once = checked_token(token, "set_index" if field is None else f"set_index of {field!r}", self._uuid)
        if once is not None and self._writable().kept(once) is not None:
            return
        name = field_named(self._fields(self._writable().state(self._uuid).schema), field)
        chosen = checked_index(index)

        def change(schema: dict[str, Any]) -> dict[str, Any]:
            declared = checked_field(name, replace(field_from_json(schema["fields"][name]), index=chosen))
            return {**schema, "fields": {**schema["fields"], name: declared.to_json()}}

        self._writable().alter_schema(self._uuid, change, once)

    def rebuild_index(self, field: str | None = None) -> None:
        """Builds the indexes of a field anew, in the background; those that are there serve until then."""
        name = field_named(self._fields(self._writable().state(self._uuid).schema), field)
        assert self._indexer is not None
        self._indexer.rebuild(self._uuid, name)

    def export_codes(
        self,
        folder: str | os.PathLike[str],
        *,
        field: str | None = None,
        overwrite: bool = False,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Exported:
        """Writes the codes, vectors and payloads of all points to a folder that any web server or bucket can hold; search it
        there by `vecdb.open_codes(url)`.

        folder: a directory, or a URL for fsspec, as in `Database.backup`. field: left out, all that have an index of bits. Rows
        in memory are flushed first and indexes waited for; in a database opened read-only they must have been. overwrite:
        replace an export that is there; what both have is kept. options: for fsspec. progress: called with bytes of segments
        done, of all.

        Raises InvalidInput (no such index), Unsupported (an index is not there, or a server is asked), AlreadyExists, DiskFull,
        StorageError, Corruption.
        """
        from .serverless.export import export_codes

        store = self._open_store()
        if self._indexer is not None:
            self.flush()
        snapshot = self._snapshot()
        return export_codes(
            snapshot, store.state(self._uuid).name, self._uuid, self._fields(snapshot.schema),
            lambda name: self._measured(snapshot, name), folder,
            field=field, overwrite=overwrite, options=options, progress=progress,
        )  # fmt: skip

    # -- reading ------------------------------------------------------------------------------------

    def get(self, ids: Any, *, with_vectors: bool = True, with_payload: WithPayload = True) -> list[Point | None]:
        """The points of `ids`, in the order asked, None where there is none."""
        snapshot = self._snapshot()
        single = isinstance(ids, int | str)
        keys = asked_ids([ids] if single else ids)
        shape = self._shape(snapshot, with_payload, with_vectors)
        return [
            None if place is None else shape.point(key, *place) for key, place in zip(keys, snapshot.find(keys), strict=True)
        ]

    def count(self, where: Where = None) -> int:
        """How many points there are, or match a filter."""
        snapshot = self._snapshot()
        expression = parse_filter(where)
        if expression is None:
            return snapshot.count
        return sum(bitmaps.count(bitmaps.allowed(part, expression), part.rows) for part in snapshot.parts if part.rows)

    def scroll(
        self, where: Where = None, *, with_vectors: bool = False, with_payload: WithPayload = True, limit: int | None = None
    ) -> Iterator[Point]:
        """All points that match, in the order in which they were last written, as of the moment of the call."""
        limit = checked_limit(limit)
        snapshot, expression = self._snapshot(), parse_filter(where)
        return self._shape(snapshot, with_payload, with_vectors).scroll(snapshot, expression, limit)

    def sample(
        self,
        count: int,
        *,
        where: Where = None,
        seed: int = 0,
        with_vectors: bool | Sequence[str] = True,
        with_payload: WithPayload = True,
    ) -> list[Point]:
        """`count` points at random, or all where there are fewer; the same ones for the same seed and commit."""
        count = checked_k(count, "count")
        snapshot, expression = self._snapshot(), parse_filter(where)
        return self._shape(snapshot, with_payload, with_vectors).sample(snapshot, expression, count, seed)

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Where = None,
        field: str | None = None,
        recall: float | None = None,
        exact: bool = False,
        with_payload: WithPayload = True,
        with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None,
        score: str | None = None,
        group_by: str | None = None,
        group_size: int = 3,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """The k points nearest to `query`: Hits, best first, ties by id; fewer only when fewer match.

        query: (d,) numbers; of a sparse field {component: weight}, (components, weights) or a SparseVector; or a text in a
        collection with an encoder. where: a filter, as expression, dict or text. field:
        which vector, when there are several. recall: the share of the true k nearest to deliver (default 0.95); exact: all of
        them. with_payload: "json" leaves payloads the bytes that are stored. score_threshold: least score, or greatest
        distance for l2. score: what is reported, of a field with an index of bits, in the place of the metric's own score:
        "its", 0 to 1 and with a `label`, "surprise", in bits, or "likelihood", 0 to 1 (docs/mib.md); hits stay in their order.
        group_by: a payload path; the answer is then a list of the k best `Group`s of up to group_size hits. explain: fills
        `hits.plan`. timeout: seconds. Raises DimensionMismatch, InvalidVector, InvalidFilter, InvalidInput, Corruption,
        DeadlineExceeded.
        """
        shape = self._shape(self._snapshot(), with_payload, with_vectors)
        check_threshold(score_threshold)
        if group_by is not None:
            check_ungrouped(score)
            return self._grouped(query, k, where, field, score_threshold, group_by, group_size, shape)
        started = time.perf_counter()
        if field is None and isinstance(query, str):
            field = self.embedding.field
        vector = self._query_vectors(query, field)
        found, declared, plan = self._search(
            vector, k, where, field, recall, exact, explain, started, timeout=timeout, score=score, least=score_threshold
        )
        hits = shape.hits(found[0], declared, score_threshold)
        hits.plan = plan
        if plan is not None:
            plan.stages["payloads"] = 1000 * (time.perf_counter() - started) - sum(plan.stages.values())
        return hits

    def search_batch(
        self,
        queries: Any,
        k: int = 10,
        *,
        where: Where = None,
        field: str | None = None,
        recall: float | None = None,
        exact: bool = False,
        with_payload: WithPayload = True,
        with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None,
        score: str | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> BatchHits:
        """Like `search` for many queries at once, (m, d), a list of texts, or sparse ones (see `upsert`), on one snapshot.

        See `BatchHits`.
        """
        started = time.perf_counter()
        if isinstance(queries, str):
            raise InvalidInput("give a list of texts; for a single one use search")
        shape = self._shape(self._snapshot(), with_payload, with_vectors)
        check_threshold(score_threshold)
        if field is None and is_texts(queries):
            field = self.embedding.field
        vectors, k = self._query_vectors(queries, field, batch=True), checked_k(k)
        check_places(len(vectors), k)
        found, declared, plan = self._search(
            vectors, k, where, field, recall, exact, explain, started, timeout=timeout, batch=True, score=score,
            least=score_threshold,
        )  # fmt: skip
        ids, scores = np.full((len(vectors), k), None, object), np.full((len(vectors), k), np.nan, np.float32)
        width = found.keys.shape[1]
        kept = found.keys > -np.inf
        scores[:, :width][kept] = scores_of(found.keys[kept], declared) if found.reported is None else found.reported[kept]
        if score_threshold is not None and found.reported is None:
            kept &= scores[:, :width] <= score_threshold if declared.metric == "l2" else scores[:, :width] >= score_threshold
            scores[:, :width][~kept] = np.nan
        ids[:, :width][kept] = found.ids[kept]

        def hits_of(at: int) -> Hits:
            return shape.hits(found[at], declared, score_threshold)

        lengths = kept.sum(axis=1)
        return BatchHits(ids, scores, lengths, hits_of, lambda: found.payloads(lengths.tolist()), plan)

    def search_hybrid(
        self,
        queries: Mapping[str, Any],
        k: int = 10,
        *,
        fuse: How = "rrf",
        weights: Mapping[str, float] | None = None,
        where: Where = None,
        recall: float | None = None,
        exact: bool = False,
        with_payload: WithPayload = True,
        with_vectors: bool | Sequence[str] = False,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Hits:
        """Several fields searched on one snapshot, their hits ranked together: Hits by the fused score, ties by id.

        queries: field -> query, as `search` takes them; a field whose query is None or empty is left out. fuse: "rrf", by ranks
        (reciprocal rank fusion), or "relative", by scores that are scaled for each field. weights: of fields, 1 if not given.
        The best 100 hits of each field, or three times k, take part. explain: fills `hits.plan`, a HybridPlan. Raises as
        `search`.
        """
        asked, shares = checked_fusion(queries, fuse, weights)
        k, started, snapshot = checked_k(k), time.perf_counter(), self._snapshot()
        shape = self._shape(snapshot, with_payload, with_vectors)
        ready = {name: self._query_vectors(query, name) for name, query in asked.items()}
        found = {
            name: self._search(
                vector, depth(k), where, name, recall, exact, explain, started, timeout=timeout, snapshot=snapshot
            )
            for name, vector in ready.items()
        }  # fmt: skip
        lists = {name: answer[0] for name, (answer, _, _) in found.items()}
        plans = [plan for _, _, plan in found.values() if plan is not None]
        return Hits(
            [shape.hit(Hit(one.id, score), one) for score, one in fused(lists, fuse, shares, k)],
            HybridPlan(fuse, dict(shares), plans) if explain else None,
        )

    def calibrate(self, queries: Any, truth: Any = None, *, field: str | None = None) -> RecallReport:
        """Measures what searches deliver on queries of your own, and goes by that from now on. Print the answer.

        queries: (m, d), at least 20, or texts; better some hundreds, like those that will come. truth: (m, k) ids of the true
        nearest points of each, best first; left out, they are found exactly. Recall without a filter is measured for k of 1,
        10 and 100, as far as there are points and true ids. Raises InvalidInput, ReadOnly.
        """
        vectors = self._query_vectors(queries, field, batch=True)
        if len(vectors) < _FEWEST_QUERIES:
            raise InvalidInput(f"give at least {_FEWEST_QUERIES} queries; {len(vectors)} say too little")
        store, snapshot = self._writable(), self._snapshot()
        fields = self._fields(snapshot.schema)
        name = field_named(fields, field)
        ids = None if truth is None else self._checked_truth(truth, len(vectors), snapshot)
        curves = whole.of_queries(self._executor, snapshot, name, vectors, ids)
        if ids is None:
            whole.keep(store, self._uuid, name, curves, snapshot, whole.KEPT, vectors)
        else:
            whole.keep(store, self._uuid, name, curves, snapshot, whole.GONE)
        return RecallReport(name, curves, snapshot.count, len(snapshot.segments))

    def _checked_truth(self, truth: Any, queries: int, snapshot: Snapshot) -> list[list[Id]]:
        """A row of true ids for each query: ids that there are, no one twice."""
        rows = checked_truth(truth, queries)
        for position, ids in enumerate(rows):
            for key, place in zip(ids, snapshot.find(ids), strict=True):
                if place is None:
                    raise InvalidInput(f"its row of truth names {key!r}, which is not in this collection", query=position)
        return rows

    def _measured(self, snapshot: Snapshot, name: str) -> whole.Measured | None:
        """What is known of whole searches, read once for each version of the schema."""
        schema = snapshot.schema
        if "calibration" not in schema:
            return None
        kept = self._calibrated
        if kept is None or kept[0] is not schema:
            kept = self._calibrated = (schema, whole.measured(schema))
        found = kept[1].get(name)
        if found is not None and found.queries == whole.ROWS and len(snapshot.segments) < 2:
            return None  # then the index itself knows better
        return found

    def _known_of_whole(self, snapshot: Snapshot, name: str) -> tuple[Calibration | None, bool]:
        """The calibration of whole searches, and whether it is outgrown: found out once for each snapshot."""
        known = self._of_wholes.get(snapshot)
        if known is None:
            known = self._of_wholes[snapshot] = {}
        if name not in known:
            mine = self._measured(snapshot, name)
            known[name] = (None, False) if mine is None else (mine.calibration, mine.outgrown_by(snapshot, name))
        return known[name]

    def recommend(
        self,
        positive: Sequence[Any],
        negative: Sequence[Any] = (),
        k: int = 10,
        *,
        where: Where = None,
        field: str | None = None,
        **options: Any,
    ) -> Hits:
        """Points like the positive examples and unlike the negative ones, which themselves are left out.

        Examples are ids or vectors. The query is the mean of the positive ones, moved away from the mean of the negative
        ones by their difference. options: as for `search`. Raises NotFound for an id that does not exist or lacks the field.
        """
        positive, negative = checked_examples(positive, negative, options)
        snapshot = self._snapshot()
        fields = self._fields(snapshot.schema)
        name = field_named(fields, field)
        wanted = self._examples(snapshot, fields[name], name, positive)
        query = centred(wanted, self._examples(snapshot, fields[name], name, negative))
        examples = {e for e in (*positive, *negative) if isinstance(e, int | str)}
        hits = self.search(query, k + len(examples), where=where, field=name, **options)
        return Hits([hit for hit in hits if hit.id not in examples][:k], hits.plan)

    def _examples(self, snapshot: Snapshot, declared: Field, name: str, examples: Sequence[Any]) -> list[Any]:
        """Their vectors: (d,) float32, of length one for cosine; of a sparse field SparseVectors."""
        vectors: list[Any] = []
        for example in examples:
            if isinstance(example, int | str) and not isinstance(example, bool):
                place = snapshot.find(asked_ids([example]))[0]
                vector = None if place is None else vector_at(*place, name)
                if vector is None:
                    raise NotFound(f"example {example!r} does not exist or has no vector in field {name!r}")
            else:
                vector = one_of(checked_queries([example], declared, name), 0)
            if isinstance(vector, np.ndarray):
                vector = vector.astype(np.float32)
                vector = vector / np.linalg.norm(vector) if declared.metric == "cosine" else vector
            vectors.append(vector)
        return vectors

    def info(self) -> Info:
        """Figures about the collection, as of now."""
        snapshot = self._snapshot()
        fields = self._fields(snapshot.schema)
        return info_of(
            self._store, self._uuid, snapshot, fields, lambda name: self._measured(snapshot, name), self._indexer, self._prober
        )

    def verify(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """As `Database.verify`, of this collection alone."""
        return self._open_store().verify(self._uuid, progress, repair, index_problems)

    @property
    def name(self) -> str:
        return self._open_store().state(self._uuid).name

    @property
    def uuid(self) -> bytes:
        """16 bytes that are its own, whatever it is called."""
        return self._uuid

    @property
    def fields(self) -> dict[str, Field]:
        """What it is declared to hold."""
        return dict(self._fields(self._open_store().state(self._uuid).schema))

    @cached_property
    def embedding(self) -> Embedding:
        """The collection's encoder. Raises InvalidInput when it was created without one."""
        from .embed import Embedding

        return Embedding(self._open_store(), self._uuid)

    def detach(self) -> None:
        """The database was closed."""
        self._closed = True

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int | str) and not isinstance(key, bool) and self._snapshot().find([key])[0] is not None

    def __repr__(self) -> str:
        try:
            return f"<vecdb.Collection {self.name!r}, {self.count():,} points>"
        except VecdbError as error:
            return f"<vecdb.Collection ({'closed' if self._closed else error})>"

    # -- shared steps ---------------------------------------------------------------------------------

    def _open_store(self) -> Store:
        if self._closed:
            raise Closed(f"{self._store.path} was closed; open it again")
        return self._store

    def _writable(self) -> Store:
        store = self._open_store()
        if self._indexer is None:
            raise ReadOnly(f"{store.path} was opened with read_only=True; open it without to write")
        return store

    def _snapshot(self) -> Snapshot:
        return self._open_store().snapshot(self._uuid)

    def _fields(self, schema: dict[str, Any]) -> dict[str, Field]:
        """The declared fields; parsed once for each version of the schema."""
        kept = self._parsed
        if kept is None or kept[0] is not schema:
            kept = (schema, {name: field_from_json(field) for name, field in schema["fields"].items()})
            self._parsed = kept
        return kept[1]

    def _shape(self, snapshot: Snapshot, with_payload: WithPayload, with_vectors: WithVectors) -> Shape:
        return Shape.of(self._fields(snapshot.schema), with_payload, with_vectors)

    def _matching(self, snapshot: Snapshot, where: Where) -> list[Id]:
        expression = parse_filter(where)
        keys: list[Id] = []
        for part in snapshot.parts:
            if part.rows:
                keys += part.keys(bitmaps.rows_of(bitmaps.allowed(part, expression), part.rows))
        return keys

    def _query_vectors(self, queries: Any, field: str | None, *, batch: bool = False) -> Queries:
        """(m, d) float32, or sparse ones, from what the caller gave; m is 1 unless `batch`."""
        texts = [queries] if isinstance(queries, str) else queries if batch and is_texts(queries) else None
        if texts is not None:
            check_embedded(self.embedding.field, field)
            return self.embedding.of_queries(texts)
        if not batch and isinstance(queries, np.ndarray) and queries.ndim == 1 and queries.dtype.kind in "fiu":
            queries, batch = queries[None, :], True
        fields = self._fields(self._snapshot().schema)
        name = field_named(fields, field)
        return checked_queries(queries if batch else [queries], fields[name], name)

    def _search(
        self,
        vectors: Queries,
        k: int,
        where: Where,
        field: str | None,
        recall: float | None,
        exact: bool,
        explain: bool,
        started: float,
        without: Expression | None = None,
        timeout: float | None = None,
        batch: bool = False,
        snapshot: Snapshot | None = None,
        score: str | None = None,
        least: float | None = None,
    ) -> tuple[Answer, Field, Plan | None]:
        """Plan and execute. snapshot: None for one as of now. score: what is reported; least: of that, where it is given."""
        k, timeout, score = checked_k(k), checked_timeout(timeout), checked_score(score)
        asked = 1.0 if exact else DEFAULT_RECALL if recall is None else checked_recall(recall)
        expression = parse_filter(where)
        snapshot = self._snapshot() if snapshot is None else snapshot
        fields = self._fields(snapshot.schema)
        name = field_named(fields, field)
        told = Explained() if explain else None
        planned = time.perf_counter()
        # No more than there are, so that buffers fit the answer and not the wish.
        best = min(k, max(1, snapshot.count))
        control = stopping.control_for(timeout)
        of_whole, outgrown = (None, False) if asked >= 1 else self._known_of_whole(snapshot, name)
        wanted = Asked(name, fields[name], best, asked, expression, without, control, of_whole, outgrown)
        try:
            found = self._executor.search(snapshot, wanted, vectors, batch=batch, explain=told)
            searched = time.perf_counter()
            if score is not None:
                from .search.scores import report

                report(snapshot, wanted, vectors, found, score)
        except DeadlineReached:
            after = "" if timeout is None else f" than {timeout:g} s"
            raise DeadlineExceeded(f"the search took longer{after}; give it more time, or ask for less recall") from None
        except Cancelled:
            raise errors.Cancelled("the search was cancelled") from None
        except TooMany as error:
            raise errors.Overloaded(f"{error}; search from fewer threads, or ask for several queries together") from None
        if self._prober is not None:
            self._prober.offer(self._uuid, snapshot, wanted, vectors, found)
        if self._indexer is not None:
            self._indexer.searched(self._uuid, snapshot, name, fields[name])
        if score is not None and least is not None:
            found.keep(least)
        if told is None:
            return found, fields[name], None
        spent = {"search": searched - planned - told.checking, "check": told.checking}
        if score is not None:
            spent["score"] = time.perf_counter() - searched
        plan = Plan(
            field=name, metric=fields[name].metric, queries=len(vectors), k=k,
            where=None if expression is None else str(expression),
            recall_asked=asked, seq=snapshot.seq, parts=told.parts, certified=told.certified,
            stages={"plan": 1000 * (planned - started), **{stage: 1000 * seconds for stage, seconds in spent.items()}},
        )  # fmt: skip
        return found, fields[name], plan

    def _grouped(
        self, query: Any, k: int, where: Where, field: str | None, threshold: float | None, path: str, size: int, shape: Shape
    ) -> list[Group]:
        """See `search.grouping`."""
        k, size = checked_k(k), checked_k(size, "group_size")
        path = checked_group_by(path)
        vector, expression = self._query_vectors(query, field), parse_filter(where)
        fields = self._fields(self._snapshot().schema)
        declared = fields[field_named(fields, field)]

        def search(k: int, where: Expression | None, without: Expression | None) -> list[Found]:
            return self._search(vector, k, where, field, None, True, False, 0.0, without)[0][0]

        return grouped(
            search, lambda found: shape.hits(found, declared, threshold), k, size, path, expression, self.count(expression)
        )
