"""A collection on a server, as coroutines. `vecdb.client.blocking` has the same without.

What is given is checked here as the embedded API does, by `vecdb.points`, so that mistakes are told at once and vectors
travel as they are stored; and again by the server, which believes nobody.
"""

from __future__ import annotations

import hashlib
import os
import uuid as uuids
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from vecdb_index.contract import Queries
from vecdb_storage.batch import Batch
from vecdb_storage.column_build import prepare

from ..arguments import (
    asked_ids,
    check_chosen,
    check_columns_alone,
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
from ..errors import InvalidInput, InvalidPayload, Unsupported, VecdbError
from ..hits import BatchHits, Group, Hit, Hits, band, check_places
from ..info import IndexInfo, Info
from ..points import CHUNK_BYTES, Chunk, Point, batch_from_arrays, checked_ids, checked_queries, chunks_of, only_field
from ..schema import Field
from ..sparse import one_of
from ..wire import convert, messages
from . import upkeep
from .channel import Channel
from .embedding import AsyncEmbedding

if TYPE_CHECKING:
    from vecdb_storage.vacuum import Vacuumed
    from vecdb_storage.verify import Report

    from ..arguments import Where
    from ..search.calibrate import Report as RecallReport
    from ..search.fuse import How
    from ..serverless.export import Exported

Id = int | str
_PIECE = 2 << 20  # bytes of a message, about, of a write that takes several
_PAGE = 1000  # points that are got in a call


def new_token() -> bytes:
    """By which a server knows a write again."""
    return uuids.uuid4().bytes


class Prepared:
    """Points that are ready to be sent."""

    def __init__(self, collection: AsyncCollection, batch: Batch) -> None:
        self._collection, self.batch = collection, batch

    async def commit(
        self, *, insert: bool = False, checkpoints: Mapping[bytes, bytes | None] | None = None, token: bytes | None = None
    ) -> int:
        return (await self._collection.send(self.batch, insert, token, checkpoints)).replaced  # type: ignore[no-any-return]

    async def release(self) -> None:
        """Nothing is held."""


class AsyncCollection:
    """Use `AsyncDatabase.create_collection` or `AsyncDatabase.collection`. Methods are those of `vecdb.Collection`."""

    def __init__(self, channel: Channel, described: Any, largest: int) -> None:
        """described: a CollectionInfo. largest: bytes of a message."""
        self._channel, self._largest = channel, largest
        self._uuid: bytes = described.uuid
        self._name: str = described.name
        self.known: dict[str, Field] = {}
        self._embedding = AsyncEmbedding(self)
        self._learn(described)

    def _learn(self, described: Any) -> Any:
        self._name = described.name
        self.known = {field.name: convert.from_stored_field(field) for field in described.fields}
        return described

    @property
    def target(self) -> Any:
        return messages.Target(uuid=self._uuid)

    @property
    def name(self) -> str:
        """As of the last call that said so."""
        return self._name

    @property
    def uuid(self) -> bytes:
        return self._uuid

    @property
    def embedding(self) -> AsyncEmbedding:
        return self._embedding

    async def described(self) -> Any:
        """A CollectionInfo, as of now."""
        return self._learn(await self._channel.call("Collections/Get", messages.GetCollectionRequest(target=self.target)))

    # -- writing ------------------------------------------------------------------------------------

    async def upsert(
        self, points: Any = None, *, ids: Any = None, vectors: Any = None, payloads: Any = None, texts: Any = None,
        token: bytes | None = None,
    ) -> list[Id]:  # fmt: skip
        """As `vecdb.Collection.upsert`; columns of more than a message (64 MiB) are committed in several parts."""
        return await self._write(points, ids, vectors, payloads, texts, insert=False, token=token)

    async def insert(
        self, points: Any = None, *, ids: Any = None, vectors: Any = None, payloads: Any = None, texts: Any = None,
        token: bytes | None = None,
    ) -> list[Id]:  # fmt: skip
        """As `vecdb.Collection.insert`."""
        return await self._write(points, ids, vectors, payloads, texts, insert=True, token=token)

    async def _write(
        self, points: Any, ids: Any, vectors: Any, payloads: Any, texts: Any, *, insert: bool, token: bytes | None
    ) -> list[Id]:
        if points is None:
            if texts is not None:
                if vectors is not None:
                    raise InvalidInput("give texts or vectors, not both")
                ids = ids if ids is None or isinstance(ids, np.ndarray) else checked_ids(ids)  # it may be read twice
                vectors, payloads = await self._embedding.of_points(texts, payloads, lambda v, p: self.check_known(ids, v, p))

            def columns(known: Mapping[str, Field]) -> tuple[Batch, list[Id]]:
                whole = _batch(known, ids, vectors, payloads)
                return whole, list(whole.keys) if ids is None else []

            chunks: Iterable[Chunk] = [columns]
        else:
            check_columns_alone(ids, vectors, payloads, texts)
            chunks = chunks_of(checked_points(points), self.known)
        written: list[Id] = []
        number = 0
        try:
            for chunk in chunks:
                batch, made = await self._checked(chunk)
                parts = _parts(batch, self._largest)
                if token is None and (len(parts) > 1 or batch.nbytes > 2 * _PIECE):
                    await self._stream(parts, insert)
                    written += batch.keys
                    continue
                # Ids that were made here would be others when the call is made again, so that the token would not fit: then the
                # server makes them.
                left_out = set() if token is None else set(made)
                for part in parts:
                    mine = None if token is None else _part_of(token, number)
                    reply = await self.send(part, insert, mine, None, [key for key in part.keys if key in left_out])
                    written += convert.from_ids(reply.ids) or part.keys
                    number += 1
        except VecdbError as error:
            error.applied += len(written)  # beside what the server says of a stream that it had begun
            raise
        return written

    async def _checked(self, make: Callable[[Mapping[str, Field]], Any]) -> Any:
        """What is made by the fields that are known; asked for anew where that fails, since they may have changed."""
        try:
            return make(self.known)
        except InvalidInput:
            before = self.known
            await self.described()
            if self.known == before:
                raise
            return make(self.known)

    async def _stream(self, parts: list[Batch], insert: bool) -> None:
        """A commit for each part, in messages that are made, sent and read at the same time.

        The server prepares one commit while it makes the one before; the tokens let it begin anew.
        """
        tokens = [new_token() for _ in parts]

        def requests() -> Iterator[Any]:
            for part, mine in zip(parts, tokens, strict=True):
                pieces = _pieces(part, -(-part.nbytes // _PIECE))
                for number, piece in enumerate(pieces, 1):
                    request = self._request(piece, insert, mine)
                    request.more = number < len(pieces)
                    yield request

        await self._channel.send("Points/UpsertStream", requests)

    async def send(
        self,
        batch: Batch,
        insert: bool,
        given: bytes | None,
        checkpoints: Mapping[bytes, bytes | None] | None,
        without: Sequence[Id] = (),
    ) -> Any:
        """One commit. without: ids that are left for the server to make."""
        request = self._request(batch, insert, given or new_token(), without)
        for each, value in (checkpoints or {}).items():
            request.checkpoints.append(messages.Checkpoint(token=each, value=value))
        return await self._channel.call("Points/Upsert", request)

    def _request(self, batch: Batch, insert: bool, token: bytes, without: Sequence[Id] = ()) -> Any:
        request = messages.UpsertRequest(target=self.target, insert=insert, token=token, quiet=not without)
        if without and len(without) < len(batch.keys):
            request.points.extend(_points(batch, set(without)))
            return request
        columns = request.columns
        if not without:
            convert.fill_ids(columns.ids, batch.keys)
        for name, rows in batch.fields.items():
            convert.fill_matrix(columns.vectors[name], rows.vectors, rows.present)
        if any(batch.payloads):
            columns.payloads.extend(batch.payloads)
        return request

    async def prepare(self, ids: Any, vectors: Any, payloads: Any) -> Prepared:
        """As `vecdb.Collection.prepare`; nothing is sent before it is committed."""
        return Prepared(self, await self._checked(lambda known: _batch(known, ids, vectors, payloads)))

    async def checkpoints(self, prefix: bytes = b"") -> dict[bytes, bytes]:
        request = messages.CheckpointsRequest(target=self.target, prefix=prefix)
        found = await self._channel.call("Points/Checkpoints", request)
        return {each.token: each.value for each in found.checkpoints}

    async def set_checkpoints(self, checkpoints: Mapping[bytes, bytes | None]) -> None:
        made = [messages.Checkpoint(token=each, value=value) for each, value in checkpoints.items()]
        request = messages.SetCheckpointsRequest(target=self.target, checkpoints=made)
        await self._channel.call("Points/SetCheckpoints", request, again=True)

    async def check(self, ids: Any, vectors: Any, payloads: Any) -> None:
        """As `vecdb.Collection.check`; done here, by the fields as they are known."""
        self.check_known(ids, vectors, payloads)

    def check_known(self, ids: Any, vectors: Any, payloads: Any) -> None:
        _batch(self.known, ids, vectors, payloads)

    async def delete(self, ids: Any = None, *, where: Where = None, token: bytes | None = None) -> int:
        """As `vecdb.Collection.delete`."""
        check_chosen(ids, where)
        request = messages.DeleteRequest(target=self.target, token=token or new_token())
        if ids is not None:
            request.ids.CopyFrom(convert.to_ids(asked_ids(ids)))
        else:
            request.where.CopyFrom(convert.to_filter(where))
        return int((await self._channel.call("Points/Delete", request)).count)

    async def update_payload(
        self, ids: Any = None, payload: Any = None, *, where: Where = None, replace: bool = False, remove: Iterable[str] = (),
        token: bytes | None = None,
    ) -> int:  # fmt: skip
        """As `vecdb.Collection.update_payload`."""
        check_chosen(ids, where)
        request = messages.UpdatePayloadRequest(
            target=self.target, replace=replace, remove=sorted(set(remove)), token=token or new_token()
        )
        patches, shared = checked_patches(payload, request.remove)
        keys = None if ids is None else asked_ids(ids)
        if not shared and keys is not None and len(patches) != len(keys):
            raise InvalidInput(f"{len(patches)} payloads for {len(keys)} points")
        try:
            request.payloads.extend([json or b"{}" for json in prepare(patches, columns=False).json])
        except InvalidPayload as error:
            point = None if shared or keys is None or not isinstance(error.point, int) else keys[error.point]
            raise InvalidPayload(error.reason, point=point, field=error.field) from None
        request.each = not shared
        if keys is not None:
            request.ids.CopyFrom(convert.to_ids(keys))
        else:
            request.where.CopyFrom(convert.to_filter(where))
        return int((await self._channel.call("Points/UpdatePayload", request)).count)

    async def flush(self, wait: bool = True) -> None:
        """As `vecdb.Collection.flush`."""
        await self._channel.call("Collections/Flush", messages.FlushRequest(target=self.target, wait=wait), again=True)

    async def merge(self, wait: bool = True) -> None:
        """As `vecdb.Collection.merge`."""
        await self._channel.call("Collections/Merge", messages.MergeRequest(target=self.target, wait=wait), again=True)

    async def vacuum(self, progress: Callable[[int, int], None] | None = None) -> Vacuumed:
        """As `vecdb.Collection.vacuum`."""
        return await upkeep.vacuum(self._channel, self.target, progress)

    async def verify(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """As `vecdb.Collection.verify`."""
        return await upkeep.verify(self._channel, self.target, repair, progress)

    async def set_index(self, index: Any, field: str | None = None, *, token: bytes | None = None) -> None:
        """As `vecdb.Collection.set_index`."""
        request = messages.SetIndexRequest(
            target=self.target, index=convert.to_index(index), field=field or "", token=token or new_token()
        )
        await self._channel.call("Collections/SetIndex", request)

    async def rebuild_index(self, field: str | None = None) -> None:
        """As `vecdb.Collection.rebuild_index`."""
        request = messages.RebuildIndexRequest(target=self.target, field=field or "")
        await self._channel.call("Collections/RebuildIndex", request, again=True)

    async def export_codes(
        self,
        folder: str | os.PathLike[str],
        *,
        field: str | None = None,
        overwrite: bool = False,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Exported:
        """Raises Unsupported: codes and rows are written from the files of the database, which are with its server."""
        raise Unsupported("codes are exported where the database is: open it there by its path, beside the server if need be")

    # -- reading ------------------------------------------------------------------------------------

    async def get(self, ids: Any, *, with_vectors: bool = True, with_payload: bool = True) -> list[Point | None]:
        """As `vecdb.Collection.get`."""
        keys, got = asked_ids(ids), []
        for start in range(0, max(1, len(keys)), _PAGE):
            some = keys[start : start + _PAGE]
            request = messages.GetRequest(target=self.target, ids=convert.to_ids(some), with_payload=with_payload)
            _want_vectors(request, with_vectors)
            found = await self._channel.call("Points/Get", request)
            points = (convert.from_point(point, with_payload=with_payload) for point in found.points)
            missing = set(found.missing)
            got += [None if position in missing else next(points) for position in range(len(some))]
        return got

    async def count(self, where: Where = None) -> int:
        """As `vecdb.Collection.count`."""
        request = messages.CountRequest(target=self.target, where=convert.to_filter(where))
        return int((await self._channel.call("Points/Count", request)).count)

    async def scroll(
        self, where: Where = None, *, with_vectors: bool = False, with_payload: bool = True, limit: int | None = None
    ) -> AsyncIterator[Point]:
        """As `vecdb.Collection.scroll`, as of the moment when the first point is asked for.

        The snapshot is the server's, and is let go when nothing is read for a minute: CursorExpired.
        """
        request = messages.ScrollRequest(
            target=self.target, where=convert.to_filter(where), with_payload=with_payload, limit=checked_limit(limit)
        )
        _want_vectors(request, with_vectors)
        async for reply in self._channel.stream("Points/Export", request):
            for point in convert.from_columns(reply.columns, with_payload=with_payload):
                yield point

    async def sample(
        self, count: int, *, where: Where = None, seed: int = 0, with_vectors: bool | Sequence[str] = True,
        with_payload: bool = True,
    ) -> list[Point]:  # fmt: skip
        """As `vecdb.Collection.sample`."""
        request = messages.SampleRequest(
            target=self.target, count=_k(count, "count"), where=convert.to_filter(where), seed=seed,
            with_payload=with_payload,
        )  # fmt: skip
        _want_vectors(request, with_vectors)
        found = await self._channel.call("Points/Sample", request)
        return convert.from_columns(found.columns, with_payload=with_payload)

    async def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Where = None,
        field: str | None = None,
        recall: float | None = None,
        exact: bool = False,
        with_payload: bool = True,
        with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None,
        score: str | None = None,
        group_by: str | None = None,
        group_size: int = 3,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """As `vecdb.Collection.search`."""
        field = await self._field_of(query, field)
        options = _options(where, field, recall, exact, with_payload, with_vectors, score_threshold, explain, score)
        request = messages.SearchRequest(target=self.target, k=_k(k), options=options)
        await self._ask(request, query, field)
        timeout = checked_timeout(timeout)
        if group_by is not None:
            check_ungrouped(score)
            grouped = messages.SearchGroupsRequest(
                search=request, group_by=checked_group_by(group_by), group_size=_k(group_size, "group_size")
            )
            found = await self._channel.call("Search/SearchGroups", grouped, timeout=timeout)
            return [Group(convert.from_literal(group.value), _hits(group.hits, with_payload)) for group in found.groups]
        return _of_reply(await self._channel.call("Search/Search", request, timeout=timeout), with_payload)

    async def _field_of(self, query: Any, field: str | None) -> str | None:
        """The field that is meant. Of texts that are embedded here it has to be said, where there are several."""
        texts = isinstance(query, str) or is_texts(query)
        if field is None and texts and self._embedding.here and len(self.known) > 1:
            return await self._embedding.field()
        return field

    async def _ask(self, request: Any, query: Any, field: str | None) -> None:
        """Puts a query, or a text, into a request."""
        if isinstance(query, str) and not self._embedding.here:
            request.text = _checked_text(query)
            return
        vectors = await self._query_vectors(query, field)
        if isinstance(vectors, np.ndarray):
            request.query.dtype, request.query.data = convert.F32, vectors[0].tobytes()
        else:
            request.query.CopyFrom(convert.to_vector(one_of(vectors, 0)))

    async def search_hybrid(
        self,
        queries: Mapping[str, Any],
        k: int = 10,
        *,
        fuse: How = "rrf",
        weights: Mapping[str, float] | None = None,
        where: Where = None,
        recall: float | None = None,
        exact: bool = False,
        with_payload: bool = True,
        with_vectors: bool | Sequence[str] = False,
        explain: bool = False,
        timeout: float | None = None,
    ) -> Hits:
        """As `vecdb.Collection.search_hybrid`."""
        options = _options(where, None, recall, exact, with_payload, with_vectors, None, explain)
        request = messages.SearchHybridRequest(target=self.target, k=_k(k), options=options)
        asked, shares = checked_fusion(queries, fuse, weights)
        request.fuse = fuse
        for name, query in asked.items():
            one = request.queries.add(field=name, weight=shares.get(name))
            await self._ask(one, query, name)
        reply = await self._channel.call("Search/SearchHybrid", request, timeout=checked_timeout(timeout))
        return _of_reply(reply, with_payload)

    async def search_batch(
        self,
        queries: Any,
        k: int = 10,
        *,
        where: Where = None,
        field: str | None = None,
        recall: float | None = None,
        exact: bool = False,
        with_payload: bool = True,
        with_vectors: bool | Sequence[str] = False,
        score_threshold: float | None = None,
        score: str | None = None,
        explain: bool = False,
        timeout: float | None = None,
    ) -> BatchHits:
        """As `vecdb.Collection.search_batch`; payloads come with the reply, so leave them out where they are not wanted."""
        if isinstance(queries, str):
            raise InvalidInput("give a list of texts; for a single one use search")
        field = await self._field_of(queries, field)
        options = _options(where, field, recall, exact, with_payload, with_vectors, score_threshold, explain, score)
        k = _k(k)
        request = messages.SearchBatchRequest(target=self.target, k=k, options=options)
        if is_texts(queries) and not self._embedding.here:
            request.texts.extend([_checked_text(text) for text in queries])
            count = len(queries)
        else:
            vectors = await self._query_vectors(queries, field, batch=True)
            request.queries.CopyFrom(convert.to_matrix(vectors))
            count = len(vectors)
        check_places(count, k)
        found = await self._channel.call("Search/SearchBatch", request, timeout=checked_timeout(timeout))
        return _batch_of(found, count, k, with_payload, score)

    async def calibrate(self, queries: Any, truth: Any = None, *, field: str | None = None) -> RecallReport:
        """As `vecdb.Collection.calibrate`."""
        from ..search.calibrate import Report

        vectors = await self._query_vectors(queries, field, batch=True)
        request = messages.CalibrateRequest(target=self.target, queries=convert.to_matrix(vectors), field=field or "")
        if truth is not None:
            request.truth.extend([convert.to_ids(row) for row in checked_truth(truth, len(vectors))])
        found: RecallReport = convert.from_figures(await self._channel.call("Search/Calibrate", request, again=True), Report)
        return found

    async def recommend(
        self,
        positive: Sequence[Any],
        negative: Sequence[Any] = (),
        k: int = 10,
        *,
        where: Where = None,
        field: str | None = None,
        **options: Any,
    ) -> Hits:
        """As `vecdb.Collection.recommend`."""
        positive, negative = checked_examples(positive, negative, options)
        timeout = checked_timeout(options.pop("timeout", None))
        told = {"recall": None, "exact": False, "with_payload": True, "with_vectors": False, "score_threshold": None,
                "explain": False, "score": None}  # fmt: skip
        if strangers := options.keys() - told.keys():
            raise TypeError(f"recommend() got an unexpected keyword argument {sorted(strangers)[0]!r}")
        told |= options
        request = messages.RecommendRequest(
            target=self.target,
            k=_k(k),
            options=_options(where, field, **told),  # type: ignore[arg-type]
        )
        for some, into in ((positive, request.positive), (negative, request.negative)):
            for example in some:
                if isinstance(example, int | str) and not isinstance(example, bool):
                    into.append(messages.Example(id=convert.to_id(asked_ids(example)[0])))
                else:
                    vectors = await self._query_vectors([example], field, batch=True)
                    into.append(messages.Example(vector=convert.to_vector(one_of(vectors, 0))))
        found = await self._channel.call("Search/Recommend", request, timeout=timeout)
        return _of_reply(found, bool(told["with_payload"]))

    async def info(self) -> Info:
        """As `vecdb.Collection.info`."""
        found = await self.described()
        return Info(
            name=found.name,
            rows=found.rows,
            dead=found.dead,
            segments=found.segments,
            memtable_rows=found.memtable_rows,
            bytes=found.bytes,
            seq=found.seq,
            fields=dict(self.known),
            ids=found.ids if found.HasField("ids") else None,
            encoder=found.encoder.name if found.HasField("encoder") else None,
            indexes={name: convert.from_figures(found.indexes[name], IndexInfo) for name in self.known},
            flush_error=found.flush_error if found.HasField("flush_error") else None,
        )

    async def embed_by_server(self, method: str, texts: Sequence[str]) -> Any:
        """The vectors of texts, not checked. method: "Points/Embed" or "Points/Fit"."""
        request = messages.EmbedRequest(target=self.target, texts=texts)
        return convert.from_matrix((await self._channel.call(method, request, again=True)).vectors)

    async def _query_vectors(self, queries: Any, field: str | None, *, batch: bool = False) -> Queries:
        if isinstance(queries, str):
            return await self._embedding.of_queries([queries], field)
        if batch and is_texts(queries):
            return await self._embedding.of_queries(queries, field)
        if not batch and isinstance(queries, np.ndarray) and queries.ndim == 1 and queries.dtype.kind in "fiu":
            queries, batch = queries[None, :], True

        def made(known: Mapping[str, Field]) -> Queries:
            name = only_field(known) if field is None else field
            if name not in known:
                raise InvalidInput(f"no such field; this collection has {', '.join(known)}", field=name)
            return checked_queries(queries if batch else [queries], known[name], name)

        found: Queries = await self._checked(made)
        return found

    def __repr__(self) -> str:
        return f"<vecdb.Collection {self._name!r} at {self._channel.address.target}>"


def _batch(known: Mapping[str, Field], ids: Any, vectors: Any, payloads: Any) -> Batch:
    """Checked as the server will; typed columns are its affair."""
    return batch_from_arrays(known, ids, vectors, payloads, columns=False)


def _part_of(token: bytes, number: int) -> bytes:
    """The token of a later part of a write that takes several."""
    return token if number == 0 else hashlib.sha256(token + number.to_bytes(8, "big")).digest()


def _parts(batch: Batch, largest: int) -> list[Batch]:
    """The batch; or, where it is more than a commit, in parts of half of one."""
    largest = min(CHUNK_BYTES, largest * 15 // 16)
    size = batch.nbytes
    if size <= largest or len(batch.keys) <= 1:
        return [batch]
    return [part for piece in _pieces(batch, -(-2 * size // largest)) for part in _parts(piece, largest)]


def _pieces(batch: Batch, count: int) -> list[Batch]:
    """The batch in about so many pieces, of as many points each."""
    step = max(1, -(-len(batch.keys) // max(1, count)))
    starts = range(0, len(batch.keys), step)
    return [
        Batch(
            batch.keys[at : at + step],
            {name: rows.slice(at, at + step) for name, rows in batch.fields.items()},
            batch.payloads[at : at + step],
        )
        for at in starts
    ]


def _points(batch: Batch, without: set[Id]) -> Iterator[Any]:
    """One by one, so that some have ids and some have none."""
    for at, key in enumerate(batch.keys):
        made = messages.Point(id=None if key in without else convert.to_id(key), payload=batch.payloads[at])
        for name, rows in batch.fields.items():
            if rows.present is None or rows.present[at]:
                made.vectors[name].CopyFrom(convert.to_vector(one_of(rows.vectors, at)))
        yield made


def _k(k: Any, name: str = "k") -> int:
    return min(checked_k(k, name), 2**32 - 1)  # as a message has room for; there are no more points


def _checked_text(text: str) -> str:
    from ..embed import checked_texts

    return checked_texts([text])[0]


def _want_vectors(request: Any, names: Any) -> None:
    wanted = convert.to_with_vectors(names)
    if wanted is not None:
        request.with_vectors.CopyFrom(wanted)


def _options(
    where: Where, field: str | None, recall: float | None, exact: bool, with_payload: bool, with_vectors: Any,
    score_threshold: Any, explain: bool, score: str | None = None,
) -> Any:  # fmt: skip
    check_threshold(score_threshold)
    recall = None if recall is None else checked_recall(recall)
    made = messages.Options(
        field=field or "", recall=recall, exact=bool(exact), with_payload=bool(with_payload),
        score_threshold=score_threshold, explain=bool(explain), score=checked_score(score) or "",
    )  # fmt: skip
    if where is not None:
        made.where.CopyFrom(convert.to_filter(where) or messages.Filter())
    _want_vectors(made, with_vectors)
    return made


def _hits(found: Any, with_payload: bool) -> Hits:
    return Hits([convert.from_hit(hit, with_payload=with_payload) for hit in found])


def _of_reply(found: Any, with_payload: bool) -> Hits:
    hits = _hits(found.hits, with_payload)
    if found.HasField("plan"):
        hits.plan = plan_of(found.plan)
    if found.HasField("hybrid_plan"):
        from ..search.plan import HybridPlan

        hits.plan = convert.from_figures(found.hybrid_plan, HybridPlan)
    return hits


def plan_of(message: Any) -> Any:
    from ..search.plan import Plan

    return convert.from_figures(message, Plan)


def _batch_of(found: Any, count: int, k: int, with_payload: bool, score: str | None = None) -> BatchHits:
    lengths = np.array(found.lengths, np.int64)
    ids, scores = np.full((count, k), None, object), np.full((count, k), np.nan, np.float32)
    kept = np.arange(k) < lengths[:, None]
    flat = convert.from_ids(found.ids)
    ids[kept] = np.array(flat, object) if flat else []
    scores[kept] = np.frombuffer(found.scores, "<f4")
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    vectors = {name: convert.rows_of_reply(rows, name) for name, rows in found.vectors.items()}

    def hits_of(at: int) -> Hits:
        places = range(starts[at], starts[at + 1])
        payloads: Sequence[Any] = [None] * len(places)
        if with_payload:
            payloads = convert.from_payloads(found.payloads[places.start : places.stop]) or [{}] * len(places)
        hits = [
            Hit(key, score, payload if payload is not None or not with_payload else {})
            for key, score, payload in zip(flat[places.start : places.stop], scores[at].tolist(), payloads, strict=False)
        ]
        for name, rows in vectors.items():
            for hit, place in zip(hits, places, strict=True):
                if rows[place] is not None:
                    hit.vectors[name] = convert.row_of(rows, place)
        for hit in hits if score == "its" else ():
            hit.label = band(hit.score)
        return Hits(hits)

    return BatchHits(
        ids, scores, lengths, hits_of, lambda: found.payloads, plan_of(found.plan) if found.HasField("plan") else None
    )
