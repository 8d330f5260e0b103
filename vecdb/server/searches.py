"""The service `Search`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from vecdb_index.coalesce import Shared
from vecdb_index.contract import Control

from ..collection import Collection
from ..errors import InvalidInput, VecdbError
from ..hits import Hits
from ..search.plan import HybridPlan
from ..search.stopping import stopped_by
from ..sparse import SparseVector
from ..wire import convert, failures, messages
from .gate import Call
from .services import Answer, Served, check_reply

_K = 10
_GROUP_SIZE = 3
_FEW = 10_000  # hits that need no second look


def _options(options: Any) -> dict[str, Any]:
    """As the arguments of a search."""
    return {
        "where": convert.from_filter(options.where) if options.HasField("where") else None,
        "field": options.field or None,
        "recall": options.recall if options.HasField("recall") else None,
        "exact": options.exact,
        "with_payload": "json" if options.with_payload or not options.HasField("with_payload") else False,
        "with_vectors": convert.from_with_vectors(options.with_vectors) if options.HasField("with_vectors") else False,
        "score_threshold": options.score_threshold if options.HasField("score_threshold") else None,
        "explain": options.explain,
    }


def _k(collection: Collection, asked: int, options: Any, queries: int = 1) -> int:
    """No more than there are, so that nobody makes room for hits that cannot come. Raises InvalidInput."""
    k = asked or _K
    if k * queries > _FEW:
        k = min(k, max(1, collection.count()))
        check_reply(collection, k * queries, options.HasField("with_vectors"))
    return k


def _query(request: Any) -> Any:
    if request.HasField("query"):
        if request.text:
            raise InvalidInput("give a query or a text, not both")
        found = convert.from_vector(request.query)
        if found is not None:
            return found
    if not request.text:
        raise InvalidInput("the request has neither a query nor a text")
    return request.text


def search(served: Served, call: Call, request: Any) -> Any:
    hits = _search(served, call, request)
    call.stage("search")
    return _reply(hits)


def _reply(hits: Hits) -> Any:
    made = messages.SearchReply()
    convert.add_hits(hits, made.hits)
    if isinstance(hits.plan, HybridPlan):
        made.hybrid_plan.CopyFrom(convert.to_figures(hits.plan, messages.HybridPlan))
    elif hits.plan is not None:
        made.plan.CopyFrom(convert.to_figures(hits.plan, messages.Plan))
    return made


def _search(served: Served, call: Call, request: Any) -> Hits:
    collection = served.collection(call, request.target)
    query, k = _query(request), _k(collection, request.k, request.options)
    if isinstance(query, str) or request.options.explain:
        alone: Hits = collection.search(query, k, **_options(request.options))
        return alone
    # What must be equal for searches to go together: everything but the query.
    same = (
        collection.uuid,
        k,
        -1 if isinstance(query, SparseVector) else len(query),
        request.options.SerializeToString(deterministic=True),
    )

    def run(together: list[tuple[Any, Control]]) -> list[Hits | VecdbError]:
        options = _options(request.options)
        if len(together) == 1:
            return [collection.search(together[0][0], k, **options)]
        with stopped_by(Shared([control for _, control in together])):
            return _together(collection, [each for each, _ in together], k, options)

    found: Hits | VecdbError = served.coalescer.search(same, (query, call.control), call.deadline, run)
    if isinstance(found, VecdbError):
        raise found
    return found


def _together(collection: Collection, queries: list[Any], k: int, options: dict[str, Any]) -> list[Hits | VecdbError]:
    try:
        some = queries if isinstance(queries[0], SparseVector) else np.stack(queries)
        batch = collection.search_batch(some, k, **options)
    except InvalidInput:
        # One that is wrong must not take the others with it; each is told what is wrong with its own.
        return [_alone(collection, query, k, options) for query in queries]
    return [batch[at] for at in range(len(queries))]


def _alone(collection: Collection, query: Any, k: int, options: dict[str, Any]) -> Any:
    try:
        return collection.search(query, k, **options)
    except VecdbError as error:
        return error


def search_batch(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    if request.HasField("queries") == bool(request.texts):
        raise InvalidInput("give queries or texts, one of them")
    queries = convert.from_matrix(request.queries) if request.HasField("queries") else list(request.texts)
    options, k = _options(request.options), _k(collection, request.k, request.options, len(queries))
    batch = collection.search_batch(queries, k, **options)
    call.stage("search")
    lengths = batch.lengths
    kept = np.arange(batch.ids.shape[1]) < lengths[:, None]
    made = messages.SearchBatchReply(
        ids=convert.to_ids(batch.ids[kept].tolist()),
        scores=np.ascontiguousarray(batch.scores[kept], "<f4").tobytes(),
        lengths=lengths.tolist(),
    )
    with_vectors = options["with_vectors"]
    if options["with_payload"]:
        made.payloads.extend(batch.payloads())
    if with_vectors:
        hits = [hit for at in range(len(batch)) for hit in batch[at]]
        for name in {name for hit in hits for name in hit.vectors}:
            convert.fill_rows(made.vectors[name], [hit.vectors.get(name) for hit in hits])
    if batch.plan is not None:
        made.plan.CopyFrom(convert.to_figures(batch.plan, messages.Plan))
    return made


def search_hybrid(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    for name in ("field", "score_threshold"):
        if request.options.HasField(name) if name == "score_threshold" else getattr(request.options, name):
            raise InvalidInput(f"a hybrid search has no {name}")
    options = _options(request.options)
    for name in ("field", "score_threshold"):
        del options[name]
    queries = {each.field: _query(each) for each in request.queries}
    weights = {each.field: each.weight for each in request.queries if each.HasField("weight")}
    if len(queries) < len(request.queries):
        raise InvalidInput("a field has one query")
    k = _k(collection, request.k, request.options)
    return _reply(collection.search_hybrid(queries, k, fuse=request.fuse or "rrf", weights=weights, **options))


def search_stream(served: Served, call: Call, requests: Iterator[Any]) -> Iterator[Any]:
    for request in requests:
        try:
            yield messages.SearchStreamReply(reply=_reply(_search(served, call, request)))
        except VecdbError as error:
            yield messages.SearchStreamReply(error=failures.to_error(error, call.request_id))


def search_groups(served: Served, call: Call, request: Any) -> Any:
    asked = request.search
    collection = served.collection(call, asked.target)
    groups = collection.search(
        _query(asked), _k(collection, asked.k, asked.options, request.group_size or _GROUP_SIZE), group_by=request.group_by,
        group_size=request.group_size or _GROUP_SIZE,
        **_options(asked.options),
    )  # fmt: skip
    return messages.SearchGroupsReply(groups=[convert.to_group(group) for group in groups])


def recommend(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    options = _options(request.options)
    positive, negative = (list(map(_example, some)) for some in (request.positive, request.negative))
    hits = collection.recommend(positive, negative, _k(collection, request.k, request.options), **options)
    return _reply(hits)


def _example(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    found = None if kind is None else convert.from_id(message.id) if kind == "id" else convert.from_vector(message.vector)
    if found is None:
        raise InvalidInput("an example is an id or a vector")
    return found


def calibrate(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    queries = convert.from_matrix(request.queries) if request.HasField("queries") else list(request.texts)
    truth = [convert.from_ids(row) for row in request.truth] or None
    report = collection.calibrate(queries, truth, field=request.field or None)
    return convert.to_figures(report, messages.RecallReport)


ANSWERS: dict[str, Answer] = {
    "Search/Search": search,
    "Search/SearchBatch": search_batch,
    "Search/SearchHybrid": search_hybrid,
    "Search/SearchStream": search_stream,
    "Search/SearchGroups": search_groups,
    "Search/Recommend": recommend,
    "Search/Calibrate": calibrate,
}
