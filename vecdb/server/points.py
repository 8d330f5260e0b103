"""The service `Points`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from ..collection import Collection
from ..errors import InvalidInput, VecdbError
from ..pipeline import Ahead
from ..points import Point
from ..sparse import Unchecked
from ..wire import convert, messages
from .gate import Call
from .services import Answer, Served, bytes_of_a_point, check_reply

_PAGE_POINTS = 500
_PAGE_BYTES = 1 << 20


@dataclass
class _Ready:
    """What is asked to be written, checked and on its way to disk. commit: returns the ids, and how many were replaced."""

    collection: Collection
    quiet: bool
    commit: Callable[[], tuple[list[Any], int | None]]
    release: Callable[[], None] = lambda: None


def upsert(served: Served, call: Call, request: Any) -> Any:
    if request.more:
        raise InvalidInput("a commit of several messages goes with UpsertStream")
    keys, replaced = _ready(served.collection(call, request.target), request, []).commit()
    made = messages.UpsertReply(applied=len(keys), replaced=replaced)
    if not request.quiet:
        made.ids.CopyFrom(convert.to_ids(keys))
    return made


@dataclass
class _Columns:
    """The columns of one message, or of several that are one commit. Views of their bytes where that can be."""

    ids: list[Any]
    vectors: dict[str, Any]
    payloads: list[Any]
    texts: list[str]

    @staticmethod
    def of(message: Any) -> _Columns:
        vectors = {name: convert.from_matrix(rows, name) for name, rows in message.vectors.items()}
        return _Columns(
            convert.from_ids(message.ids), vectors, convert.from_payloads(message.payloads) or [], list(message.texts)
        )

    @staticmethod
    def joined(parts: list[_Columns]) -> _Columns:
        """Raises InvalidInput where they are not of one kind."""
        if len(parts) == 1:
            return parts[0]
        if len({(frozenset(p.vectors), bool(p.ids), bool(p.payloads), bool(p.texts)) for p in parts}) > 1:
            raise InvalidInput("the messages of one commit all have ids, payloads, texts and the same fields, or all have none")
        vectors = {name: _rows([part.vectors[name] for part in parts]) for name in parts[0].vectors}
        ids, payloads, texts = ([each for part in parts for each in column(part)] for column in (_ids, _payloads, _texts))
        return _Columns(ids, vectors, payloads, texts)


_ids, _payloads, _texts = attrgetter("ids"), attrgetter("payloads"), attrgetter("texts")


def _rows(parts: list[Any]) -> Any:
    if any(isinstance(part, list) for part in parts):
        return [row for part in parts for row in part]
    if len(set(map(type, parts))) == 1 and isinstance(parts[0], Unchecked):
        return Unchecked.concat(parts)
    if len({(part.shape[1], part.dtype) for part in parts}) > 1:
        raise InvalidInput("the messages of one commit have rows of one length and dtype")
    return np.concatenate(parts)


def _ready(collection: Collection, request: Any, before: list[_Columns]) -> _Ready:
    """before: columns of earlier messages of the same commit."""
    token = request.token or None
    checkpoints = {each.token: each.value if each.HasField("value") else None for each in request.checkpoints}
    if request.points:
        if request.HasField("columns") or checkpoints or before:
            raise InvalidInput("give columns or points, not both; checkpoints and several messages go with columns")
        return _Ready(collection, request.quiet, lambda: (_write_points(collection, request, token), None))
    columns = _Columns.joined([*before, _Columns.of(request.columns)])
    ids, payloads, vectors = columns.ids or None, columns.payloads or None, columns.vectors
    if "" in vectors and len(vectors) == 1:
        vectors = vectors[""]
    if columns.texts:
        if vectors:
            raise InvalidInput("give texts or vectors, not both")
        vectors, payloads = collection.embedding.of_points(columns.texts, payloads, lambda v, p: collection.check(ids, v, p))
    prepared = collection.prepare(ids, vectors, payloads)

    def commit() -> tuple[list[Any], int]:
        replaced = prepared.commit(insert=request.insert, checkpoints=checkpoints, token=token)
        return prepared.ids, replaced

    return _Ready(collection, request.quiet, commit, prepared.release)


def _write_points(collection: Collection, request: Any, token: bytes | None) -> list[Any]:
    write = collection.insert if request.insert else collection.upsert
    if any(point.text for point in request.points):
        if not all(point.text and not point.vectors for point in request.points):
            raise InvalidInput("points of a request have texts or vectors, all the same")
        ids = [convert.from_id(point.id) for point in request.points]
        if None in ids and any(each is not None for each in ids):
            raise InvalidInput("give ids to all points of a request, or to none")
        payloads = [convert.from_payload(point.payload) for point in request.points]
        texts = [point.text for point in request.points]
        return write(ids=None if None in ids else ids, texts=texts, payloads=payloads, token=token)
    return write([convert.point_to_write(point) for point in request.points], token=token)


def upsert_stream(served: Served, call: Call, requests: Iterator[Any]) -> Any:
    """Each message a commit, in their order. The next one is read and checked while the one before is committed."""
    applied = 0
    replaced: int | None = 0
    keys: list[Any] = []

    def ready() -> Iterator[_Ready]:
        target: Any = None
        before: list[_Columns] = []
        size = 0
        for request in requests:
            if request.HasField("target"):
                target = request.target
            elif target is None:
                raise InvalidInput("the first message names the collection")
            if request.more or before:
                size += request.ByteSize()
                if size > served.config.largest_message:
                    raise InvalidInput(
                        f"the messages of one commit have more than {served.config.max_message_mib} MiB together "
                        f"(max_message_mib): make several commits of them"
                    )
            if request.more:
                if request.points:
                    raise InvalidInput("messages of which more follows have columns")
                before.append(_Columns.of(request.columns))
                continue
            yield _ready(served.collection(call, target), request, before)
            before, size = [], 0
        if before:
            raise InvalidInput("the stream ended in the middle of a commit")

    ahead = Ahead(ready(), lambda each: each.release())
    try:
        for each in ahead:
            some, fewer = each.commit()
            applied += len(some)
            replaced = None if replaced is None or fewer is None else replaced + fewer
            if not each.quiet:
                keys += some
                check_reply(each.collection, len(keys), with_vectors=False)
    except VecdbError as error:
        error.applied = applied
        raise
    finally:
        ahead.close(wait=False)  # the caller may send nothing until it is told of an error
    return messages.UpsertReply(ids=convert.to_ids(keys), applied=applied, replaced=replaced)


def delete(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    ids, where = _chosen(request)
    return messages.Changed(count=collection.delete(ids, where=where, token=request.token or None))


def _chosen(request: Any) -> tuple[list[Any] | None, Any]:
    """By ids or by a filter, whichever is there."""
    ids = convert.from_ids(request.ids) if request.HasField("ids") else None
    where = convert.from_filter(request.where) if request.HasField("where") else None
    if request.HasField("where") and where is None:
        raise InvalidInput("the filter is empty, which means every point; say so with ids, or drop the collection")
    return ids, where


def update_payload(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    ids, where = _chosen(request)
    payloads = [convert.from_payload(each) or {} for each in request.payloads]
    payload: Any = payloads if request.each else payloads[0] if payloads else None
    if len(payloads) > 1 and not request.each:
        raise InvalidInput("one payload for all, or each")
    changed = collection.update_payload(
        ids, payload, where=where, replace=request.replace, remove=list(request.remove), token=request.token or None
    )
    return messages.Changed(count=changed)


def get(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    ids, shape = convert.from_ids(request.ids), _shape(request)
    check_reply(collection, len(ids), shape["with_vectors"])
    found = collection.get(ids, **shape)
    return messages.GetReply(
        points=[convert.to_point(point) for point in found if point is not None],
        missing=[position for position, point in enumerate(found) if point is None],
    )


def _shape(request: Any) -> dict[str, Any]:
    return {
        "with_vectors": convert.from_with_vectors(request.with_vectors),
        "with_payload": "json" if request.with_payload or not request.HasField("with_payload") else False,
    }


def count(served: Served, call: Call, request: Any) -> Any:
    where = convert.from_filter(request.where)
    return messages.CountReply(count=served.collection(call, request.target).count(where))


def sample(served: Served, call: Call, request: Any) -> Any:
    collection, shape = served.collection(call, request.target), _shape(request)
    check_reply(collection, min(request.count, collection.count()), shape["with_vectors"])
    points = collection.sample(request.count, where=convert.from_filter(request.where), seed=request.seed, **shape)
    return messages.ExportReply(columns=convert.to_columns(points, with_payload=bool(shape["with_payload"])))


def scroll(served: Served, call: Call, request: Any) -> Iterator[Any]:
    for page in _pages(served, call, request):
        yield messages.ScrollReply(points=[convert.to_point(point) for point in page])


def export(served: Served, call: Call, request: Any) -> Iterator[Any]:
    with_payload = request.with_payload if request.HasField("with_payload") else True
    for page in _pages(served, call, request):
        yield messages.ExportReply(columns=convert.to_columns(page, with_payload=with_payload))


def _pages(served: Served, call: Call, request: Any) -> Iterator[list[Point]]:
    """Points in order, some at a time; the snapshot is taken before anything is sent."""
    collection = served.collection(call, request.target)
    limit = request.limit if request.HasField("limit") else None
    points = collection.scroll(convert.from_filter(request.where), limit=limit, **_shape(request))
    call.context.send_initial_metadata(())
    size = max(1, min(_PAGE_POINTS, _PAGE_BYTES // bytes_of_a_point(collection, request.HasField("with_vectors"))))
    page: list[Point] = []
    for point in points:
        page.append(point)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


def embed(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    embedding = collection.embedding
    vectors = embedding.of_queries(list(request.texts))
    return messages.EmbedReply(vectors=convert.to_matrix(vectors), field=embedding.field)


def fit(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    made, _ = collection.embedding.of_points(list(request.texts), None, lambda v, p: collection.check(None, v, p))
    ((field, vectors),) = made.items()
    return messages.EmbedReply(vectors=convert.to_matrix(vectors), field=field)


def checkpoints(served: Served, call: Call, request: Any) -> Any:
    found = served.collection(call, request.target).checkpoints(request.prefix)
    made = [messages.Checkpoint(token=token, value=value) for token, value in found.items()]
    return messages.CheckpointsReply(checkpoints=made)


def set_checkpoints(served: Served, call: Call, request: Any) -> Any:
    given = {each.token: each.value if each.HasField("value") else None for each in request.checkpoints}
    served.collection(call, request.target).set_checkpoints(given)
    return messages.CheckpointsReply()


ANSWERS: dict[str, Answer] = {
    "Points/Upsert": upsert,
    "Points/UpsertStream": upsert_stream,
    "Points/Delete": delete,
    "Points/UpdatePayload": update_payload,
    "Points/Get": get,
    "Points/Count": count,
    "Points/Sample": sample,
    "Points/Scroll": scroll,
    "Points/Export": export,
    "Points/Embed": embed,
    "Points/Fit": fit,
    "Points/Checkpoints": checkpoints,
    "Points/SetCheckpoints": set_checkpoints,
}
