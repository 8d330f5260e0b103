"""A published collection, read-only, where it lies: `vecdb.open_codes(url)`. See the package.

It has of `vecdb.Collection` what can be had from afar: searches, and what the manifest says. Everything else raises ReadOnly or
Unsupported, which say what to do. What is read is of the manifest that was there when it was opened; open it again to see
another export. Safe in any thread.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from vecdb_index.codec.bits import BLOCK, width_of
from vecdb_index.contract import Cancelled, Control, DeadlineReached, Queries
from vecdb_storage.payloads import parse

from .. import errors
from ..arguments import Where, check_threshold, checked_k, checked_recall, checked_timeout, is_texts
from ..collection import DEFAULT_RECALL
from ..errors import Closed, Corruption, DeadlineExceeded, InvalidInput, NotFound, ReadOnly, Unsupported
from ..filters import parse as parse_filter
from ..hits import BatchHits, Hit, Hits, check_places
from ..info import IndexInfo, Info
from ..points import checked_queries, only_field
from ..schema import Dense, Field
from ..search import stopping
from ..search.calibrate import Calibration
from ..search.executor import Answer, Found, Task
from ..search.keys import score_of, scores_of, within
from ..search.plan import PartPlan, Plan, Transfer
from ..search.planner import Asked, effort_of, lead_of
from ..shape import WithPayload
from .cache import LIMIT, RangeCache, cache_folder
from .layout import MANIFEST, block_bytes, read_manifest
from .reader import THREADS, ObjectReader
from .segment import SegmentSearch
from .transport import Folder, Tally, folder_of

_LARGEST_MANIFEST = 256 << 20
_NOTHING = None, False  # known of whole searches
_WRITES = frozenset(
    [
        "upsert",
        "insert",
        "prepare",
        "delete",
        "update_payload",
        "flush",
        "merge",
        "vacuum",
        "set_index",
        "rebuild_index",
        "calibrate",
        "set_checkpoints",
    ]
)
_FROM_AFAR = frozenset(
    ["get", "scroll", "sample", "search_hybrid", "recommend", "verify", "checkpoints", "check", "embedding", "export_codes"]
)


def open_codes(
    where: str | os.PathLike[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = LIMIT,
    options: Mapping[str, Any] | None = None,
) -> CodesCollection:
    """Opens what `Collection.export_codes` wrote, wherever it lies now, to be searched. Only its manifest is read.

    where: the folder: http(s)://…; s3://…, gs://…, memory://… by fsspec (`pip install 'vecdb[cloud]'`); or a directory. cache:
    a folder for what was read from afar, which processes share; default: `ranges` under $VECDB_CACHE_DIR or the user's cache
    folder. cache_bytes: the most that it may hold, 1 GiB; 0 keeps nothing. options: for fsspec; for http(s) `headers` (such as
    {"Authorization": …}) and `timeout` in seconds.

    Raises NotFound, Corruption, NewerFormat, Unavailable, Overloaded, Unauthenticated, PermissionDenied, StorageError,
    InvalidInput, Unsupported.
    """
    text = os.fspath(where)
    if not text:
        raise InvalidInput("give the URL of a folder with codes")
    if isinstance(cache_bytes, bool) or not isinstance(cache_bytes, int) or cache_bytes < 0:
        raise InvalidInput(f"cache_bytes must be a whole number of bytes from 0 up, not {cache_bytes!r}")
    folder = folder_of(text, options)
    kept = None if folder.is_local else RangeCache(cache_folder() if cache is None else Path(cache), cache_bytes)
    try:
        return CodesCollection(folder, kept)
    except BaseException:
        folder.close()
        raise


@dataclass
class _Asked:
    """A search. tally: of what it reads. started: in seconds, by the clock and of CPU."""

    name: str
    declared: Dense
    k: int
    recall: float
    batch: bool
    control: Control | None
    tally: Tally
    started: tuple[float, float]


class CodesCollection:
    """Use `vecdb.open_codes`. A context manager: leaving the block closes it."""

    def __init__(self, folder: Folder, cache: RangeCache | None) -> None:
        self._folder = folder
        self._opening = Tally()
        self._file = f"{folder.url}/{MANIFEST}"
        self._manifest = read_manifest(folder.whole(MANIFEST, _LARGEST_MANIFEST, self._opening), self._file)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="vecdb-read")
        self._readers = [ObjectReader(folder, each, cache, self._pool) for each in self._manifest.objects]
        try:
            self._calibrations = {
                (each.name, name): _sound(Calibration.from_json(curves))
                for each in self._manifest.objects
                for name, curves in each.calibration.items()
            }
            self._whole = {
                name: (_sound(Calibration.from_json(each["curves"])), bool(each["outgrown"]))
                for name, each in self._manifest.whole.items()
                if each is not None
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Corruption(f"the calibration cannot be right: {error!r}", file=self._file) from error
        self._closed = False

    # -- what the manifest says ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._manifest.collection

    @property
    def uuid(self) -> bytes:
        """16 bytes, those of the collection that was exported."""
        return self._manifest.uuid

    @property
    def fields(self) -> dict[str, Field]:
        """The fields whose codes were exported."""
        return dict(self._manifest.fields)

    def count(self, where: Where = None) -> int:
        """How many points there are. Raises Unsupported for a filter."""
        _check_where(where)
        return self._manifest.count

    def info(self) -> Info:
        """What the manifest says, as figures."""
        said = self._manifest
        return Info(
            name=said.collection, rows=said.count, dead=sum(each.rows for each in said.objects) - said.count,
            segments=len(said.objects), memtable_rows=0, bytes=sum(each.length for each in said.objects), seq=said.seq,
            fields=self.fields, ids=said.ids, encoder=None, indexes={name: self._index_info(name) for name in said.fields},
            flush_error=None,
        )  # fmt: skip

    def _index_info(self, name: str) -> IndexInfo:
        mine = [each.rows for each in self._manifest.objects if name in each.calibration]
        index = self._manifest.fields[name].index
        one = block_bytes(width_of(getattr(index, "prefix", 0) or self._manifest.fields[name].dim))
        return IndexInfo(
            why="mib, exported", segments=len(mine), rows=sum(mine), bytes=sum(-(-rows // BLOCK) * one for rows in mine),
            building=None, paused=False, error=None, calibrated=None, outgrown=self._whole.get(name, _NOTHING)[1],
            probed=None,
        )  # fmt: skip

    def __len__(self) -> int:
        return self._manifest.count

    def __repr__(self) -> str:
        return f"<vecdb.CodesCollection {self.name!r} at {self._folder.url}, {len(self):,} points>"

    def close(self) -> None:
        """Lets go of connections and threads."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._folder.close()

    def __enter__(self) -> CodesCollection:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        if name in _WRITES:
            raise ReadOnly(
                f"{self.__dict__['_folder'].url} holds exported codes, not to be written to: {name} works where they are from"
            )
        if name in _FROM_AFAR:
            raise Unsupported(f"exported codes are for searches; {name} works on the database that they are from")
        raise AttributeError(f"'CodesCollection' object has no attribute {name!r}")

    # -- searches --------------------------------------------------------------------------------------------------

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
    ) -> Hits:
        """The k points nearest to `query`, (d,) numbers: as `Collection.search`, with the ids and scores of a search by its
        index.

        All codes are read, then the rows of the short list and the hits' payloads. exact=True, and a recall above what the
        index was seen to reach, read all rows. with_vectors: of fields that were exported. explain: `hits.plan.transfer` says
        what was read. Raises Unsupported for `where`, `group_by`, `score` and texts; DimensionMismatch, InvalidVector,
        InvalidInput, DeadlineExceeded; and as `vecdb.open_codes`, Corruption naming file and section.
        """
        if group_by is not None:
            raise Unsupported("group_by needs all payloads; search the database itself")
        _check_score(score)
        asked = self._asked(k, where, field, recall, exact, with_vectors, score_threshold, timeout, batch=False)
        if isinstance(query, str):
            raise Unsupported("exported codes have no encoder: give the text's vector")
        vectors = checked_queries(
            query[None, :] if isinstance(query, np.ndarray) and query.ndim == 1 else [query], asked.declared, asked.name
        )
        answer, parts, stages = self._found(asked, vectors)
        hits = self._hits(answer[0], asked, score_threshold, with_payload, with_vectors)
        stages["payloads"] = 1000 * (time.perf_counter() - asked.started[0]) - sum(stages.values())
        hits.plan = self._plan(asked, 1, parts, stages) if explain else None
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
        """Like `search` for many queries at once, (m, d), which pass over the codes together. Payloads are read when a query's
        hits are asked for. Raises as `search`.
        """
        _check_score(score)
        asked = self._asked(k, where, field, recall, exact, with_vectors, score_threshold, timeout, batch=True)
        if isinstance(queries, str) or is_texts(queries):
            raise Unsupported("exported codes have no encoder: give the texts' vectors")
        vectors = checked_queries(queries, asked.declared, asked.name)
        check_places(len(vectors), asked.k)
        answer, parts, stages = self._found(asked, vectors)
        declared, m = asked.declared, len(vectors)
        ids, scores = np.full((m, asked.k), None, object), np.full((m, asked.k), np.nan, np.float32)
        width = answer.keys.shape[1]
        kept = answer.keys > -np.inf
        scores[:, :width][kept] = scores_of(answer.keys[kept], declared)
        if score_threshold is not None:
            kept &= scores[:, :width] <= score_threshold if declared.metric == "l2" else scores[:, :width] >= score_threshold
            scores[:, :width][~kept] = np.nan
        ids[:, :width][kept] = answer.ids[kept]
        lengths = kept.sum(axis=1)

        def hits_of(at: int) -> Hits:
            return self._hits(answer[at], asked, score_threshold, with_payload, with_vectors)

        def payloads() -> list[bytes]:
            _fetch([hit for at in range(m) for hit in answer[at][: int(lengths[at])]])
            return answer.payloads(lengths.tolist())

        plan = self._plan(asked, m, parts, stages) if explain else None
        return BatchHits(ids, scores, lengths, hits_of, payloads, plan)

    def _asked(
        self, k: Any, where: Where, field: str | None, recall: Any, exact: bool, with_vectors: bool | Sequence[str],
        threshold: Any, timeout: Any, *, batch: bool,
    ) -> _Asked:  # fmt: skip
        """Arguments, checked."""
        started = time.perf_counter(), time.process_time()
        if self._closed:
            raise Closed(f"{self._folder.url} was closed; open it again")
        _check_where(where)
        check_threshold(threshold)
        fields = self._manifest.fields
        wanted = [] if isinstance(with_vectors, bool) else [with_vectors] if isinstance(with_vectors, str) else with_vectors
        for name in (*wanted, *([] if field is None else [field])):
            if name not in fields:
                raise InvalidInput(f"no such field among those that were exported: {', '.join(fields)}", field=name)
        name = only_field(fields) if field is None else field
        asked = 1.0 if exact else DEFAULT_RECALL if recall is None else checked_recall(recall)
        control, tally = stopping.control_for(checked_timeout(timeout)), Tally()
        opened, self._opening = self._opening, Tally()  # is a part of what the first search reads
        tally.add(bytes=opened.bytes, requests=opened.requests, retries=opened.retries)
        return _Asked(name, fields[name], checked_k(k), asked, batch, control, tally, started)

    def _found(self, asked: _Asked, vectors: Queries) -> tuple[Answer, list[PartPlan], dict[str, float]]:
        """The answer, how each object was searched, and the time that it took."""
        planned = time.perf_counter()
        try:
            tasks, parts = self._tasks(asked, vectors)
            k = min(asked.k, max(1, self._manifest.count))
            if self._manifest.ids == "str":
                _fetch_best(tasks, len(vectors), k)
            answer = Answer.of_many(tasks, vectors, k) if asked.batch else Answer.of_one(tasks, vectors, k)
        except DeadlineReached:
            raise DeadlineExceeded("the search took longer than its time; give it more, or ask for less recall") from None
        except Cancelled:
            raise errors.Cancelled("the search was cancelled") from None
        for task in tasks:
            _of(task.part).end()
        now = time.perf_counter()
        return answer, parts, {"plan": 1000 * (planned - asked.started[0]), "search": 1000 * (now - planned)}

    def _tasks(self, asked: _Asked, vectors: Any) -> tuple[list[Task], list[PartPlan]]:
        """Searches the objects, one after the other; threads of the pool read ahead."""
        tasks, parts = [], []
        list(self._pool.map(lambda reader: reader.header(asked.tally, asked.control), self._readers))
        calibration, outgrown = self._whole.get(asked.name, _NOTHING)
        k = min(asked.k, max(1, self._manifest.count))
        question = Asked(
            asked.name, asked.declared, k, asked.recall, control=asked.control, whole=calibration, outgrown=outgrown,
            lead=self._lead(asked.name, k),
        )  # fmt: skip
        for reader in self._readers:
            began, before = time.perf_counter(), (asked.tally.bytes, asked.tally.hit_bytes)
            part = SegmentSearch(reader, asked.name, asked.tally, asked.control)
            if not part.allowed:
                parts.append(PartPlan("object", part.rows, 0, "skipped: nothing allowed", "", 1.0, 0, 0, 0.0))
                continue
            if part.declared != (asked.declared.dim, asked.declared.metric, asked.declared.dtype):
                raise Corruption(f"field {asked.name!r} is another one than in the manifest", file=reader.file, array="header")
            effort, expected, why = self._effort(question, reader, part)
            result = part.search(vectors, k, effort)
            exactly = effort >= 1
            tasks.append(
                Task(
                    _any(part),
                    0,
                    _any(part),
                    _any(part) if exactly else None,
                    None,
                    effort,
                    slice(0, len(vectors)),
                    0.0,
                    result,
                )
            )
            read = {"bytes read": asked.tally.bytes - before[0], "bytes from the cache": asked.tally.hit_bytes - before[1]}
            parts.append(
                PartPlan(
                    "object", part.rows, part.allowed, "all rows" if exactly else f"codes, effort {effort:.2f}", why, expected,
                    result.scored, result.bytes, 1000 * (time.perf_counter() - began), {**result.seen, **read},
                )
            )  # fmt: skip
        return tasks, parts

    def _lead(self, name: str, k: int) -> float | None:
        """See `Asked.lead`."""
        if len(self._manifest.objects) < 2:
            return None
        largest = max(self._manifest.objects, key=lambda each: each.live)
        calibration = self._calibrations.get((largest.name, name))
        return None if calibration is None else lead_of(calibration, k, largest.live / max(1, self._manifest.count))

    def _effort(self, question: Asked, reader: ObjectReader, part: SegmentSearch) -> tuple[float, float | None, str]:
        """The effort to give an object, the recall to expect, and why all rows are read where that is so."""
        if question.recall >= 1:
            return 1.0, 1.0, "exact was asked"
        calibration = self._calibrations.get((reader.object.name, question.field), Calibration(()))
        share = part.live_rows / max(1, self._manifest.count)
        effort, expected = effort_of(question, calibration, part.live_rows / part.rows, share)
        if expected is not None and expected < question.recall:
            return 1.0, 1.0, f"codes were never seen to reach that recall; at most {expected:.3f}"
        return effort, expected, ""

    def _plan(self, asked: _Asked, queries: int, parts: list[PartPlan], stages: dict[str, float]) -> Plan:
        tally = asked.tally
        spent = 1000 * (time.process_time() - asked.started[1]) / max(1, queries)
        transfer = Transfer(tally.bytes, tally.requests, tally.retries, tally.hits, tally.hit_bytes, spent)
        return Plan(
            field=asked.name, metric=asked.declared.metric, queries=queries, k=asked.k, where=None, recall_asked=asked.recall,
            seq=self._manifest.seq, parts=parts, stages=stages, transfer=transfer,
        )  # fmt: skip

    def _hits(
        self, found: list[Found], asked: _Asked, threshold: float | None, with_payload: WithPayload,
        with_vectors: bool | Sequence[str],
    ) -> Hits:  # fmt: skip
        if threshold is not None:
            found = within(found, asked.declared, threshold)
        hits = [Hit(each.id, score_of(each.key, asked.declared)) for each in found]
        if with_payload:
            _fetch(found)
        fields = self._manifest.fields
        wanted = fields if with_vectors is True else [with_vectors] if isinstance(with_vectors, str) else with_vectors or ()
        for hit, each in zip(hits, found, strict=True):
            if with_payload:
                stored = each.part.payload(each.row)
                hit.payload = stored if with_payload == "json" else parse(stored) or {}  # type: ignore[assignment]
            vectors = {name: _of(each.part).vector(each.row, name) for name in wanted}
            hit.vectors = {name: vector for name, vector in vectors.items() if vector is not None}
        return Hits(hits)


def _sound(calibration: Calibration) -> Calibration:
    """What efforts are read from. Raises ValueError where that would not be possible."""
    for curve in calibration.curves:
        lists = np.array([curve.efforts, curve.recalls, curve.lows], np.float64)
        if not lists.size or not np.isfinite(lists).all() or not curve.k >= 1 or not curve.selectivity > 0:
            raise ValueError("a curve has no effort that could be given")
    return calibration


def _any(part: SegmentSearch) -> Any:
    """As a part and a searcher of those that executors take, of which it has what answers are made of."""
    return part


def _of(part: Any) -> SegmentSearch:
    assert isinstance(part, SegmentSearch)
    return part


def _check_where(where: Where) -> None:
    if parse_filter(where) is not None:
        raise Unsupported("filters need all payloads: export a collection of what passes, or search the database itself")


def _fetch(found: Sequence[Found]) -> None:
    """Reads ids and payloads of hits, those of an object at once."""
    rows: dict[int, tuple[SegmentSearch, list[int]]] = {}
    for each in found:
        part = _of(each.part)
        rows.setdefault(id(part), (part, []))[1].append(each.row)
    for part, mine in rows.values():
        part.fetch(mine)


def _fetch_best(tasks: Sequence[Task], queries: int, k: int) -> None:
    """Reads the ids that answers will have, so that they need not be asked for one by one while answers are merged."""
    wanted: dict[int, Counter[int]] = {at: Counter() for at in range(len(tasks))}
    for query in range(queries):
        keys = [task.result.keys[query] for task in tasks if task.result is not None]
        all_keys = np.sort(np.concatenate([np.full(k, -np.inf, np.float32), *keys]))
        for at, task in enumerate(tasks):
            assert task.result is not None
            there = (task.result.keys[query] >= all_keys[-k]) & (task.result.rows[query] >= 0)
            wanted[at].update(task.result.rows[query][there].tolist())
    for at, task in enumerate(tasks):
        _of(task.part).fetch(list(wanted[at]))


class CodesDatabase:
    """Exported codes as a database of one collection: what commands take. Raises NotFound for any other name."""

    def __init__(self, only: CodesCollection) -> None:
        self._only = only

    def collections(self) -> list[str]:
        return [self._only.name]

    def collection(self, name: str, *, embed: Any = None) -> CodesCollection:
        if embed is not None:
            raise Unsupported("exported codes have no encoder: give vectors")
        if name != self._only.name:
            raise NotFound(f"no collection {name!r}; there are: {self._only.name}")
        return self._only

    def __getitem__(self, name: str) -> CodesCollection:
        return self.collection(name)

    def close(self) -> None:
        self._only.close()

    def __getattr__(self, name: str) -> Any:
        raise ReadOnly("exported codes are read-only, and for searches: use the database that they are from")


def _check_score(score: str | None) -> None:
    if score is not None:
        raise Unsupported("exported codes report the metric's own score; search the database itself for another")
