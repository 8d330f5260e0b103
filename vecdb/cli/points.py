"""Points: search, hybrid, explain, get, scroll, delete, embed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import output
from .output import Db, Field, Json, Name, Where, Yes

if TYPE_CHECKING:
    from ..api import Collection, Database

_Query = Annotated[str | None, typer.Argument(help="A text, in a collection with an encoder.", show_default=False)]
_Vector = Annotated[
    str | None,
    typer.Option(
        "--vector", help="A vector: JSON numbers, or @FILE.npy (its first row), or - for JSON on stdin.", show_default=False
    ),
]
_Like = Annotated[str | None, typer.Option("--like", help="The id of a point whose neighbours are wanted.", show_default=False)]
_K = Annotated[int, typer.Option("-k", help="How many hits.", min=1)]
_Recall = Annotated[
    float | None, typer.Option("--recall", help="Share of the true k nearest to find; default 0.95.", show_default=False)
]
_Exact = Annotated[bool, typer.Option("--exact", help="Find all of the true k nearest.")]
_Encoder = Annotated[
    str | None, typer.Option("--embed", help="The encoder that the collection's texts were embedded by.", show_default=False)
]
_Timeout = Annotated[float | None, typer.Option("--timeout", help="Seconds after which to give up.", show_default=False)]


def register(app: typer.Typer) -> None:
    for command in (search, hybrid, explain, get, scroll, delete, embed):
        app.command()(command)


def _collection(database: Database, name: str, encoder: str | None) -> Collection:
    if encoder is None:
        return database[name]
    from vecdb.embed.encoders import encoder_of

    made = encoder_of(encoder)
    return database[name] if isinstance(made, str) else database.collection(name, embed=made)


def _vector(text: str) -> Any:
    import orjson

    from vecdb.errors import InvalidVector
    from vecdb.sparse import from_json

    if text.startswith("@"):
        import numpy as np

        loaded = np.load(text[1:], mmap_mode="r", allow_pickle=False)
        return loaded if loaded.ndim == 1 else loaded[0]
    try:
        found = orjson.loads(sys.stdin.buffer.read() if text == "-" else text)
    except orjson.JSONDecodeError as error:
        raise InvalidVector(f"--vector is a JSON array of numbers, or an object of weights, @FILE.npy or -: {error}") from None
    return from_json(found) if isinstance(found, dict) else found


def _asked(
    collection: Collection, query: str | None, vector: str | None, like: str | None, field: str | None
) -> tuple[Any, Any]:
    """What to search by, and the id that is to be left out of the answer."""
    from vecdb.errors import InvalidInput, NotFound

    if sum(each is not None for each in (query, vector, like)) != 1:
        raise InvalidInput("say what to search by: a text, --vector or --like ID, one of them")
    if like is None:
        return (query if query is not None else _vector(vector or "")), None
    (key,) = output.ids_of(collection, [like])
    point = collection.get([key], with_payload=False)[0]
    if point is None:
        raise NotFound(f"there is no point {key!r}")
    found = point.vector if field is None else point.vectors.get(field)
    if found is None:
        raise InvalidInput(f"point {key!r} has {', '.join(point.vectors) or 'no vector'}; say --field")
    return found, key


def search(
    name: Name,
    db: Db,
    query: _Query = None,
    vector: _Vector = None,
    like: _Like = None,
    k: _K = 10,
    where: Where = None,
    field: Field = None,
    recall: _Recall = None,
    exact: _Exact = False,
    score_threshold: Annotated[
        float | None, typer.Option("--score-threshold", help="Least similarity; greatest distance for l2.", show_default=False)
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            "--score", help="its, surprise or likelihood instead of the metric's own score; of an index of bits.",
            show_default=False,
        ),
    ] = None,
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="Print vectors, too.")] = False,
    explained: Annotated[
        bool, typer.Option("--explain", help="Say on stderr how the search was done, and of exported codes what was read.")
    ] = False,
    encoder: _Encoder = None,
    timeout: _Timeout = None,
    json: Json = False,
) -> None:  # fmt: skip
    """The nearest points to a text, a vector, or another point."""
    with output.opened(db) as database:
        collection = _collection(database, name, encoder)
        asked, left_out = _asked(collection, query, vector, like, field)
        hits = collection.search(
            asked, k if left_out is None else k + 1, where=where, field=field, recall=recall, exact=exact,
            score_threshold=score_threshold, score=score, with_vectors=with_vectors, explain=explained, timeout=timeout,
        )  # fmt: skip
        found = [hit for hit in hits if left_out is None or hit.id != left_out][:k]
        _print_hits(found, with_vectors, json)
        if not found:
            _say_unknown(collection, where)
        if explained:
            output.say(str(hits.plan))


def _say_unknown(collection: Collection, where: str | None) -> None:
    """Nothing was found: on stderr, keys of the filter that no point has. They may be misspelt."""
    from vecdb import F
    from vecdb.filters import parse, paths_of

    expression = None if where is None else parse(where)
    for path in [] if expression is None else paths_of(expression):
        if not collection.count(F(path).exists()):
            output.say(f"nothing found: no point has a key {path!r} (`vecdb scroll {collection.name} --limit 1` shows one)")


def _print_hits(hits: Any, with_vectors: bool, json: bool) -> None:
    labelled = any(hit.label for hit in hits)
    if json:
        shown = ["id", "score", *(["label"] if labelled else []), "payload", *(["vectors"] if with_vectors else [])]
        output.print_json([{name: getattr(hit, name) for name in shown} for hit in hits])
    else:
        labels = ["label"] if labelled else []
        rows = [[str(hit.id), hit.score, *(hit.label for _ in labels), _payload(hit.payload)] for hit in hits]
        output.table(["id", "score", *labels, "payload"], rows)


def hybrid(
    name: Name,
    db: Db,
    by: Annotated[
        list[str],
        typer.Option(
            "--by", help="FIELD=QUERY, once for each field: JSON as for search --vector, @FILE.npy, or a text.",
            show_default=False,
        ),
    ],
    k: _K = 10,
    weight: Annotated[
        list[str] | None, typer.Option("--weight", help="FIELD=NUMBER: of a field's hits; 1 if not given.", show_default=False)
    ] = None,
    fuse: Annotated[str, typer.Option("--fuse", help='"rrf", by ranks, or "relative", by scaled scores.')] = "rrf",
    where: Where = None,
    recall: _Recall = None,
    exact: _Exact = False,
    explained: Annotated[bool, typer.Option("--explain", help="Print how the search was done instead.")] = False,
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="Print vectors, too.")] = False,
    encoder: _Encoder = None,
    timeout: _Timeout = None,
    json: Json = False,
) -> None:  # fmt: skip
    """Several fields searched at once, as dense and sparse vectors, and their hits ranked together."""
    from vecdb.errors import InvalidInput

    queries = {field: _by(query) for field, query in _pairs("--by", by)}
    try:
        weights = {field: float(number) for field, number in _pairs("--weight", weight or [])}
    except ValueError:
        raise InvalidInput(f"--weight is FIELD=NUMBER, as in terms=2, not {' '.join(weight or [])}") from None
    with output.opened(db) as database:
        collection = _collection(database, name, encoder)
        hits = collection.search_hybrid(
            queries, k, fuse=cast("Any", fuse), weights=weights, where=where, recall=recall, exact=exact,
            with_vectors=with_vectors, explain=explained, timeout=timeout,
        )  # fmt: skip
        if explained and json:
            output.print_json(output.plain(hits.plan))
        elif explained:
            print(hits.plan)
        else:
            _print_hits(hits, with_vectors, json)
        if not hits:
            _say_unknown(collection, where)


def _pairs(option: str, given: list[str]) -> list[tuple[str, str]]:
    from vecdb.errors import InvalidInput

    pairs = [(field, value) for field, _, value in (each.partition("=") for each in given)]
    for (field, value), each in zip(pairs, given, strict=True):
        if not field or not value:
            raise InvalidInput(f"{option} {each}: say FIELD=…")
    if len(dict(pairs)) < len(pairs):
        raise InvalidInput(f"{option} names a field twice")
    return pairs


def _by(text: str) -> Any:
    """What one field is searched by: a vector where the text is one, else the text."""
    return _vector(text) if text == "-" or text[:1] in ("[", "{", "@") else text


def _payload(payload: Any) -> str:
    return output.cut(
        ", ".join(
            f"{key}: {value if isinstance(value, str) else output.json_of(value)}" for key, value in (payload or {}).items()
        ),
        120,
    )


def explain(
    name: Name,
    db: Db,
    query: _Query = None,
    vector: _Vector = None,
    like: _Like = None,
    k: _K = 10,
    where: Where = None,
    field: Field = None,
    recall: _Recall = None,
    exact: _Exact = False,
    encoder: _Encoder = None,
    json: Json = False,
) -> None:
    """How such a search is done: which parts, by index or exactly and why, expected recall, and the time of each."""
    with output.opened(db) as database:
        collection = _collection(database, name, encoder)
        asked, _ = _asked(collection, query, vector, like, field)
        plan = collection.search(asked, k, where=where, field=field, recall=recall, exact=exact, explain=True).plan
    if json:
        output.print_json({**output.plain(plan), "recall_expected": plan.recall_expected})
    else:
        print(plan)


def get(
    name: Name,
    ids: Annotated[list[str], typer.Argument(help="Ids of points.", show_default=False)],
    db: Db,
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="Print vectors, too.")] = False,
    json: Json = False,
) -> None:
    """Points by their ids. Exit code 1 if one of them is not there."""
    with output.opened(db) as database:
        collection = database[name]
        points = collection.get(output.ids_of(collection, ids), with_vectors=with_vectors or not json)
    for asked, point in zip(ids, points, strict=True):
        if point is None:
            output.say(f"vecdb: there is no point {asked!r}")
            if json:
                output.print_json(None)
        else:
            _print_point(point, with_vectors, json)
    if None in points:
        raise typer.Exit(1)


def _print_point(point: Any, with_vectors: bool, json: bool) -> None:
    if json:
        output.print_json({"id": point.id, **({"vectors": point.vectors} if with_vectors else {}), "payload": point.payload})
        return
    vectors = {
        f"vector {name}": (output.plain(vector) if with_vectors else output.vector_shown(vector))
        for name, vector in point.vectors.items()
    }
    output.facts({"id": str(point.id), **vectors, **(point.payload or {})})


def scroll(
    name: Name,
    db: Db,
    where: Where = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many.", min=0, show_default=False)] = None,
    with_vectors: Annotated[bool, typer.Option("--with-vectors", help="Print vectors, too.")] = False,
    json: Json = True,  # it prints nothing else; scripts that say it everywhere may say it here
) -> None:
    """All points that match, as JSON lines, in the order in which they were last written."""
    with output.opened(db) as database:
        collection, nothing = database[name], True
        for point in collection.scroll(where, with_vectors=with_vectors, limit=limit):
            line = {"id": point.id, **({"vectors": point.vectors} if with_vectors else {}), "payload": point.payload}
            print(output.json_of(line))
            nothing = False
        if nothing:
            _say_unknown(collection, where)


def delete(
    name: Name,
    db: Db,
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of points.", show_default=False)] = None,
    where: Where = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Delete points by id, or all that match a filter. Asks first."""
    from vecdb.errors import InvalidInput

    if bool(ids) == (where is not None):
        raise InvalidInput("give ids, or --where, one of them")
    with output.opened(db, write=True) as database:
        collection = database[name]
        keys = output.ids_of(collection, ids) if ids else None
        if not yes:
            count = (
                sum(point is not None for point in collection.get(keys, with_vectors=False, with_payload=False))
                if keys
                else collection.count(where)
            )
            typer.confirm(f"delete {count:,} points of {name}?", abort=True, err=True)
        deleted = collection.delete(keys) if keys else collection.delete(where=where)
        if not deleted:
            _say_unknown(collection, where)
    if json:
        output.print_json({"deleted": deleted})
    else:
        output.say(f"deleted {deleted:,} points")


def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; left out, the lines of stdin.", show_default=False)] = None,
    encoder: Annotated[
        str, typer.Option("--embed", help="An encoder, or the name of a collection's own with --db and --collection.")
    ] = "tfidf",
    db: Annotated[
        str | None, typer.Option("--db", envvar="VECDB_DB", help="The database of --collection.", show_default=False)
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", help="A collection whose encoder is used.", show_default=False)
    ] = None,
    sparse: Annotated[
        str | None,
        typer.Option("--sparse", help="A folder with a SPLADE model: as --embed splade:FOLDER.", show_default=False),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", help="An .npy file, instead of JSON lines on stdout.", show_default=False)
    ] = None,
) -> None:
    """Turn texts into vectors, by an encoder or by that of a collection."""
    import numpy as np

    from vecdb.embed import BUILT_IN, encoded
    from vecdb.embed.encoders import encoder_of
    from vecdb.errors import InvalidInput
    from vecdb.sparse import one_of

    if sparse is not None:
        encoder = f"splade:{sparse}"
    some = list(texts) if texts else [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not some:
        raise InvalidInput("no texts were given, neither as arguments nor on stdin")
    if collection is not None:
        if db is None:
            raise InvalidInput("--collection needs --db")
        with output.opened(db) as database:
            found = _collection(database, collection, None if encoder in BUILT_IN else encoder).embedding.of_queries(some)
    else:
        made = encoder_of(encoder)
        if isinstance(made, str):
            raise InvalidInput(
                f'"{made}" is fitted on the texts of a collection: say --db and --collection, or another --embed'
            )
        found = encoded(made, some)
    if out is not None:
        if not isinstance(found, np.ndarray):
            raise InvalidInput("--out has room for dense vectors; sparse ones go to stdout as JSON lines, which ingest reads")
        np.save(out, found)
        output.say(f"{len(found):,} vectors of {found.shape[1]} numbers in {out}")
        return
    for text, vector in zip(some, (one_of(found, at) for at in range(len(some))), strict=True):
        print(output.json_of({"text": text, "vector": vector}))
