"""Collections: create, list, info, stats, drop."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..schema import Dense, Sparse
from . import output
from .output import Db, Json, Name, Yes

_Dim = Annotated[int | None, typer.Option("--dim", help="Numbers per vector.", show_default=False)]
_Metric = Annotated[str, typer.Option("--metric", help="cosine, ip or l2.")]
_Dtype = Annotated[str, typer.Option("--dtype", help="f32, f16 or i8.")]
_Index = Annotated[str, typer.Option("--index", help="auto, flat, hnsw, or another backend's name.")]
_Fields = Annotated[
    list[str] | None,
    typer.Option("--field", help="A named field, NAME:DIM[:METRIC[:DTYPE[:INDEX]]]; may be repeated.", show_default=False),
]

_WIDTH = 30  # of a bar of all


def register(app: typer.Typer) -> None:
    for command in (create, list_collections, info, stats, drop):
        app.command(name="list" if command is list_collections else None)(command)


def create(
    name: Name,
    db: Db,
    dim: _Dim = None,
    metric: _Metric = "cosine",
    dtype: _Dtype = "f32",
    index: _Index = "auto",
    field: _Fields = None,
    embed: Annotated[
        str | None, typer.Option("--embed", help="An encoder of texts, such as tfidf.", show_default=False)
    ] = None,
) -> None:
    """Make a collection, and the database if there is none."""
    from vecdb.errors import InvalidInput

    schema: Any = None
    if dim is None and not field and index != "auto" and embed == "bm25":
        schema = Sparse(index)
    if field:
        if dim is not None:
            raise InvalidInput("say --dim for an unnamed field, or --field for named ones, not both")
        schema = dict(_declared(each) for each in field)
    elif dim is not None:
        schema = Dense(dim, metric, dtype, index)  # type: ignore[arg-type]
    elif embed is None:
        raise InvalidInput("say how many numbers a vector has: --dim 384; or --embed tfidf, to make vectors of texts")
    from vecdb.embed.encoders import encoder_of

    with output.opened(db, write=True, create=True) as database:
        database.create_collection(name, schema, embed=None if embed is None else encoder_of(embed))
    output.say(f"created {name}")


def _declared(text: str) -> tuple[str, Any]:
    from vecdb.errors import InvalidInput

    name, *rest = text.split(":")
    if rest[:1] == ["sparse"] and len(rest) <= 2:
        return name, Sparse(*rest[1:])
    if not 1 <= len(rest) <= 4 or not rest[0].isdigit():
        raise InvalidInput(
            f"--field {text}: say NAME:DIM[:METRIC[:DTYPE[:INDEX]]], as in body:384:cosine, or NAME:sparse[:INDEX]"
        )
    given = dict(zip(("metric", "dtype", "index"), rest[1:], strict=False))
    return name, Dense(int(rest[0]), **given)  # type: ignore[arg-type]


def list_collections(db: Db, json: Json = False) -> None:
    """The collections of a database."""
    with output.opened(db) as database:
        infos = [database[name].info() for name in database.collections()]
    if json:
        output.print_json([_facts(each) for each in infos])
        return
    rows = [
        [
            each.name,
            each.rows,
            ", ".join(f"{name}: {output.field_shown(field)}" for name, field in each.fields.items()),
            output.bytes_shown(each.bytes),
            _state(each),
        ]
        for each in infos
    ]
    output.table(["collection", "points", "fields", "disk", "index"], rows)


def _state(info: Any) -> str:
    return ", ".join(_index_state(index, info.rows) for index in info.indexes.values())


def _index_state(index: Any, rows: int) -> str:
    if index.error:
        return f"failed: {output.cut(index.error, 60)}"
    if index.building is not None:
        return f"building, {index.building:.0%}"
    if index.segments == 0:
        return "none, exact" if not rows or "flat" in index.why or "auto" in index.why or not index.rows else "waiting"
    return f"{index.rows / max(1, rows):.0%} of points" if index.rows < rows else "all points"


def _facts(info: Any) -> dict[str, Any]:
    said = {key: getattr(info, key) for key in info.__dataclass_fields__ if key not in ("fields", "indexes")}
    said["fields"] = {name: declared.to_json() for name, declared in info.fields.items()}
    said["indexes"] = {name: asdict(index) for name, index in info.indexes.items()}
    return said


def info(
    db: Db,
    name: Annotated[str | None, typer.Argument(help="The collection; left out, the database.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Figures about a collection: points, segments, disk, indexes and their progress, calibrated recall."""
    if name is None:
        stats(db, None, None, 1, json)
        return
    with output.opened(db) as database:
        recall = {field: _expected(database[name], field) for field in database[name].fields}
        found = database[name].info()  # searches have opened the indexes, which now can tell of themselves
    if json:
        output.print_json({**_facts(found), "recall": recall})
        return
    output.facts(
        {
            "collection": found.name,
            "points": found.rows,
            "dead rows": found.dead,
            "segments": found.segments,
            "in memory": found.memtable_rows,
            "disk": output.bytes_shown(found.bytes),
            "ids": found.ids,
            "encoder": found.encoder,
            "last flush failed": found.flush_error,
        }
    )
    rows = []
    for field, declared in found.fields.items():
        index = found.indexes[field]
        measured = (
            "-" if index.calibrated is None else f"at {index.calibrated:,} points{', outgrown' if index.outgrown else ''}"
        )
        expected = recall[field]
        rows.append(
            [
                field,
                *((declared.dim, declared.dtype) if isinstance(declared, Dense) else ("sparse", "f32")),
                declared.metric,
                index.why,
                _index_state(index, found.rows),
                output.bytes_shown(index.bytes),
                "-" if expected is None else f"{expected:.3f}",
                measured,
            ]
        )
    output.table(["field", "dim", "dtype", "metric", "backend", "indexed", "index size", "recall of 0.95", "measured"], rows)
    for field, index in found.indexes.items():
        if index.figures:
            shown = {what: _figure(what, number) for what, number in index.figures.items()}
            output.facts({**shown, "advice": index.advice or None}, f"{field}, its index")


def _expected(collection: Any, field: str) -> float | None:
    """The recall that a search which asks for 0.95 can expect now, by the calibration."""
    from vecdb.errors import Unsupported

    try:
        some = [point.vectors[field] for point in collection.sample(1, with_payload=False) if field in point.vectors]
    except Unsupported:  # of exported codes, which would be read for it
        return None
    if not some:
        return None
    expected: float | None = collection.search(some[0], field=field, explain=True, with_payload=False).plan.recall_expected
    return expected


def stats(
    db: Db,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Figures about its sparse vectors instead.", show_default=False)
    ] = None,
    field: Annotated[str | None, typer.Option("--field", help="Which, where it has several.", show_default=False)] = None,
    sample: Annotated[int, typer.Option("--sample", help="Points that are looked at.", min=1)] = 2000,
    json: Json = False,
) -> None:
    """Figures about the database's files: amplification, log, flushes, merges, readers; or about sparse vectors."""
    with output.opened(db) as database:
        if collection is not None:
            return _sparse_stats(database[collection], field, sample, json)
        flat = database.info().flat()
    if json:
        output.print_json(flat)
        return None
    output.facts({
        name.removeprefix("vecdb.storage."): output.bytes_shown(value) if ".bytes" in name or name.endswith("_bytes") else value
        for name, value in flat.items()
    })  # fmt: skip


def _sparse_stats(collection: Any, field: str | None, sample: int, json: bool) -> None:
    from ..errors import InvalidInput
    from ..sparse import statistics_of

    fields = [name for name, each in collection.info().fields.items() if isinstance(each, Sparse)]
    name = field or (fields[0] if len(fields) == 1 else None)
    if name is None or name not in fields:
        raise InvalidInput(f"say which sparse field: {', '.join(fields) or 'there is none'}")
    points = collection.sample(sample, with_vectors=[name], with_payload=False)
    found = statistics_of([point.vectors[name] for point in points if name in point.vectors])
    _expected(collection, name)  # a search opens the index, which then can tell of itself
    index = collection.info().indexes[name]
    if json:
        output.print_json({**asdict(found), "index": {"bytes": index.bytes, "arrays": index.arrays, **index.figures}})
        return
    mean, low, high = found.components
    output.facts({
        "vectors looked at": found.vectors,
        "components of one": f"{mean:g} (5 % have at most {low:,}, 95 % at most {high:,})",
        "distinct components": found.distinct,
        **{f"weight in the heaviest {top}": f"{share:.1%}" for top, share in found.mass.items()},
        **{f"vectors that have common component {rank}": f"{share:.1%}" for rank, share in found.common.items()},
        "index": output.bytes_shown(index.bytes),
        **{f"  {array}": output.bytes_shown(size) for array, size in sorted(index.arrays.items(), key=lambda each: -each[1])},
        **{f"index, {what}": f"{number:,.0f}" for what, number in index.figures.items()},
    })  # fmt: skip


def _figure(what: str, number: float) -> str:
    """A figure of an index; shares, which belong together, as bars, too."""
    if what.startswith("share of "):
        return f"{'█' * round(_WIDTH * number):·<{_WIDTH}} {number:.3f}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.3f}"


def drop(name: Name, db: Db, yes: Yes = False) -> None:
    """Delete a collection and all that is in it. Asks first."""
    with output.opened(db, write=True) as database:
        count = database[name].count()
        if not yes:
            typer.confirm(f"delete collection {name} with {count:,} points?", abort=True, err=True)
        database.drop_collection(name)
    output.say(f"dropped {name}")
