"""Files in and out: ingest, import, export."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import output
from .output import Db, Field, Json, Name, Where

if TYPE_CHECKING:
    from ..ingest.load import Progress, Summary
    from ..ingest.plan import Plan

_Many = list[str] | None


def register(app: typer.Typer) -> None:
    app.command()(ingest)
    app.command(name="import")(import_)
    app.command()(export)


def ingest(
    files: Annotated[
        list[str],
        typer.Argument(help="Files, folders, globs, URLs (s3://, gs://, http://), or - for stdin.", show_default=False),
    ],
    db: Db,
    collection: Annotated[
        str, typer.Option("--collection", "-c", help="The collection; made if there is none.", show_default=False)
    ],
    id: Annotated[
        str | None, typer.Option("--id", help="Column of ids; :row for row numbers, :ulid for new ones.", show_default=False)
    ] = None,
    vector: Annotated[
        _Many,
        typer.Option(
            "--vector",
            help="Column of vectors, or FIELD=COLUMN; 'v*' for numbered columns; may be repeated.",
            show_default=False,
        ),
    ] = None,
    payload: Annotated[
        str | None,
        typer.Option(
            "--payload", help="Columns to keep, separated by commas; '' for none; default: all others.", show_default=False
        ),
    ] = None,
    without: Annotated[
        _Many, typer.Option("--without", help="A column to leave out; may be repeated.", show_default=False)
    ] = None,
    rename: Annotated[
        _Many, typer.Option("--rename", help="COLUMN=KEY: another name in the payload; may be repeated.", show_default=False)
    ] = None,
    type: Annotated[
        _Many,
        typer.Option("--type", help="COLUMN=string|int|float|bool|time, of CSV files; may be repeated.", show_default=False),
    ] = None,
    embed: Annotated[
        str | None,
        typer.Option("--embed", help="Make vectors of a text column by this encoder, such as tfidf.", show_default=False),
    ] = None,
    text: Annotated[str | None, typer.Option("--text", help="The column that is embedded.", show_default=False)] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            help="Of sparse vectors written by tokens: a JSON file {token: component}, or a vocabulary of a token per line.",
            show_default=False,
        ),
    ] = None,
    chunk: Annotated[
        int | None,
        typer.Option("--chunk", help="Split texts into parts of at most so many characters.", min=1, show_default=False),
    ] = None,
    overlap: Annotated[int, typer.Option("--overlap", help="Characters that parts share with those before.", min=0)] = 0,
    create: Annotated[bool, typer.Option("--create/--no-create", help="Make the collection if there is none.")] = True,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Of a new collection: cosine, ip or l2.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of a new collection: f32, f16 or i8.", show_default=False)
    ] = None,
    index: Annotated[str, typer.Option("--index", help="Of a new collection: auto, flat, hnsw …")] = "auto",
    format: Annotated[
        str | None, typer.Option("--format", help="Of all files, where their names do not say it.", show_default=False)
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="Of CSV files whose columns no comma divides.", show_default=False)
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Of HDF5 files; default: train.", show_default=False)] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="An NPY file of the ids of an NPY file.", show_default=False)] = None,
    first_id: Annotated[
        int | None, typer.Option("--first-id", help="Where ids that are row numbers begin.", show_default=False)
    ] = None,
    insert: Annotated[
        bool, typer.Option("--insert", help="An id that is there already is an error, and not replaced.")
    ] = False,
    on_error: Annotated[str, typer.Option("--on-error", help="stop or skip, at a row that cannot be stored.")] = "stop",
    rejects: Annotated[
        str | None,
        typer.Option(
            "--rejects", help="Where skipped rows are written to; default: COLLECTION.rejects.jsonl.", show_default=False
        ),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew what was cut short, instead of going on.")] = False,
    batch_mib: Annotated[
        float | None,
        typer.Option(
            "--batch-mib",
            help="MiB of a commit; memory is a few of these. Default: by size, up to 16.",
            min=0.01,
            show_default=False,
        ),
    ] = None,
    max_line_mib: Annotated[
        float, typer.Option("--max-line-mib", help="The longest line or record of a text file.", min=0.01)
    ] = 64,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until indexes are built.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done, with the first rows as they would be stored.")
    ] = False,
    json: Json = False,
) -> None:
    """Load files into a collection. A run that is cut short goes on where it ended when the same is said again."""
    from vecdb.errors import InvalidInput
    from vecdb.ingest.plan import plan_of
    from vecdb.sparse import tokens_of

    if on_error not in ("stop", "skip"):
        raise InvalidInput(f"--on-error is stop or skip, not {on_error!r}")
    said: dict[str, Any] = {
        "id": id,
        "vectors": _vectors(vector),
        "payload": None if payload is None else [each for each in payload.split(",") if each],
        "without": without or (),
        "rename": _pairs(rename, "--rename"),
        "types": _pairs(type, "--type"),
        "text": text,
        "tokens": None if tokens is None else tokens_of(tokens),
        "chunk": chunk,
        "overlap": overlap,
        "create": create,
        "metric": metric,
        "dtype": dtype,
        "index": index,
        "format": format,
        "delimiter": delimiter,
        "dataset": dataset,
        "ids": ids,
        "first_id": first_id,
        "insert": insert,
        "on_error": on_error,
        "rejects": rejects,
        "restart": restart,
        "batch_bytes": None if batch_mib is None else round(batch_mib * (1 << 20)),
        "line": round(max_line_mib * (1 << 20)),
    }
    if embed is not None:
        from vecdb.embed.encoders import encoder_of

        said["embed"] = encoder_of(embed)
    if dry_run and not _is_database(db):
        import vecdb

        with vecdb.open(":memory:") as database:
            _show(plan_of(database, collection, files, **said), json=json, points=True)
        return
    with output.opened(db, write=not dry_run, create=True) as database:
        plan = plan_of(database, collection, files, **said)
        _show(plan, json=json and dry_run, points=dry_run, quiet=json and not dry_run)
        if dry_run:
            return
        here = not output.is_server(db)  # a server is others' too, and would stay paused if this were killed
        if here:
            database.pause_indexing()  # disk and cores are for the load; graphs of what is merged later would go
        began = time.monotonic()
        with _progress(plan) as report:
            summary = plan.run(report)
        seconds = time.monotonic() - began
        _say_summary(summary, seconds, json)
        if here:
            database.resume_indexing()
        if wait and any(not each.is_flat for each in database[collection].info().fields.values()) and not json:
            output.say("all rows are in; indexes are built now, or, if this is stopped, by the next process that writes here")
        if wait:
            from .upkeep import wait_for_indexes

            wait_for_indexes(database[collection])


def _is_database(path: str) -> bool:
    return output.is_server(path) or os.path.exists(os.path.join(path, "VECDB"))


def _pairs(given: _Many, option: str) -> dict[str, str]:
    from vecdb.errors import InvalidInput

    pairs = {}
    for each in given or ():
        old, equals, new = each.partition("=")
        if not (old and equals and new):
            raise InvalidInput(f"{option} {each}: say COLUMN=…")
        pairs[old] = new
    return pairs


def _vectors(given: _Many) -> dict[str, str] | None:
    from vecdb.schema import DEFAULT_FIELD

    if not given:
        return None
    named = [each.partition("=") for each in given]
    return {field if equals else DEFAULT_FIELD: column if equals else field for field, equals, column in named}


def _length(dim: int | None) -> str:
    return "" if dim is None else f", {dim} numbers"


def _show(plan: Plan, *, json: bool, points: bool, quiet: bool = False) -> None:
    """What was understood of the files."""
    mapped = plan.mapped
    keys = [mapped.rename.get(name, name) for name in mapped.payload_of(plan.columns)]
    looked_up, there = plan.first_known() if points or json else (0, 0)
    if json:
        output.print_json(
            {
                "files": [source.name for source in plan.sources],
                "bytes": plan.total_bytes,
                "id": mapped.id,
                "vectors": mapped.vectors,
                "text": mapped.text,
                "payload": keys,
                "creates": None if plan.created is None else {n: d.to_json() for n, d in plan.created.items()},
                "known_rows": plan.known_rows,
                "looked_up": looked_up,
                "there_already": there,
                "points": plan.first_points(),
            }
        )
        return
    if quiet:
        return
    files = plan.sources[0].name if len(plan.sources) == 1 else f"{len(plan.sources)} files, from {plan.sources[0].name} on"
    output.say(f"{files}; {output.bytes_shown(plan.total_bytes)}")
    said_ids = {":row": "the numbers of rows", ":ulid": "new ULIDs"}.get(mapped.id, f"column {mapped.id!r}")
    output.say(f"  id        {said_ids}")
    for field, column in mapped.vectors.items():
        output.say(f"  vector    {field!r}: column {column!r}, {plan.columns[column].said}{_length(mapped.dims[field])}")
    if mapped.text is not None:
        encoder = plan.embed if isinstance(plan.embed, str) or plan.embed is None else plan.embed.name
        output.say(f"  text      column {mapped.text!r}, embedded by {encoder}")
    output.say(f"  payload   {', '.join(keys) or 'nothing'}")
    for column, why in mapped.left_out.items():
        output.say(f"  left out  column {column!r}: {why}")
    if plan.created is None:
        output.say(f"into {plan.collection!r}, which is there")
    else:
        fields = ", ".join(
            f"{name}: {output.field_shown(each)}, index {getattr(each.index, 'backend', each.index)}"
            for name, each in plan.created.items()
        )
        output.say(f"into {plan.collection!r}, a new collection{f' ({fields})' if fields else ''}")
    if plan.known_rows:
        output.say(f"an earlier run was cut short: going on after {plan.known_rows:,} rows")
    if there:
        fate = "an error for each" if plan.how.insert else "these points are replaced"
        output.say(f"of the first {looked_up:,} ids {there:,} are there already: {fate}")
    if points:
        for point in plan.first_points():
            print(
                output.json_of(
                    {key: output.vector_shown(value) if key in mapped.vectors else value for key, value in point.items()}
                )
            )


@contextmanager
def _progress(plan: Plan) -> Iterator[Callable[[Progress], None]]:
    began = last = time.monotonic()
    first = None

    def line(now: Progress) -> str:
        seconds = max(1e-9, time.monotonic() - began)
        start = first or now
        rows, read = now.rows - plan.known_rows, now.bytes - (start.bytes if start is not now else 0)
        total = now.total_bytes
        left = (total - now.bytes) / (read / seconds) if total and read > 0 else None
        share = f"{min(1.0, now.bytes / total):.0%}, " if total else ""
        return (
            f"{now.file} ({now.files_done + 1} of {now.files}): {share}{now.rows:,} rows, {rows / seconds:,.0f} rows/s, "
            f"{read / seconds / 1e6:,.1f} MB/s{f', {output.seconds_shown(left)} left' if left is not None else ''}"
        )

    if sys.stderr.isatty():
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        with Bars(TextColumn("{task.description}"), BarColumn(20), console=output.console(error=True), transient=True) as bars:
            whole = bars.add_task("all files", total=plan.total_bytes)

            def draw(now: Progress) -> None:
                nonlocal first
                first = first or now
                bars.update(whole, description=line(now), completed=now.bytes)

            yield draw
        return

    def plain(now: Progress) -> None:
        nonlocal last, first
        first = first or now
        if time.monotonic() - last >= output.EVERY:
            last = time.monotonic()
            output.say(line(now))

    yield plain


def _say_summary(summary: Summary, seconds: float, json: bool) -> None:
    if json:
        output.print_json({**output.plain(summary), "seconds": round(seconds, 3)})
        return
    new = summary.rows - summary.known
    output.say(
        f"{summary.points:,} points of {summary.rows:,} rows in {summary.files} files are in {summary.collection!r}; "
        f"{new:,} rows in {seconds:,.1f} s, {new / max(seconds, 1e-9):,.0f} rows/s"
    )
    if summary.replaced:
        output.say(f"{summary.replaced:,} of them had an id that was there already, or came again: the last one stayed")
    for file, columns in summary.missing.items():
        output.say(
            f"{file} has no {', '.join(map(repr, columns))}, as others do: its points "
            f"lack {'it' if len(columns) == 1 else 'them'}"
        )
    if summary.bare:
        output.say(f"{summary.bare:,} of them have no vector, and are found by filters and ids only")
    if summary.skipped:
        output.say(f"{summary.skipped:,} rows were skipped: see {summary.rejects}")


def import_(
    path: Annotated[str, typer.Argument(help="A database or index file of another project.", show_default=False)],
    db: Db,
    source: Annotated[
        str, typer.Option("--from", help="chroma, lancedb, qdrant, faiss, hnswlib or pgvector-csv.", show_default=False)
    ],
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="The new collection; default: the name that it has there.", show_default=False),
    ] = None,
    only: Annotated[
        str | None, typer.Option("--only", help="Of a database with several collections or tables: which.", show_default=False)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric", help="cosine, ip or l2: where the file does not say it, or instead of what it says.", show_default=False
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until indexes are built.")] = True,
    json: Json = False,
) -> None:
    """Take over a local database or index file of another project, with ids, vectors and payloads."""
    from vecdb.errors import NotFound
    from vecdb.ingest.peers import import_from
    from vecdb.schema import checked_metric

    if not os.path.exists(path):
        raise NotFound(f"{path}: there is nothing")
    with output.opened(db, write=True, create=True) as database:
        done = import_from(
            database, source, path, collection=collection, only=only, metric=checked_metric(metric), progress=_counted()
        )
        for name, count in done.items():
            output.say(f"{count:,} points in {name!r}")
        if json:
            output.print_json(done)
        if wait:
            from .upkeep import wait_for_indexes

            for name in done:
                wait_for_indexes(database[name])


def _counted() -> Callable[[str, int, int | None], None]:
    last = time.monotonic()

    def report(name: str, done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= (1 if sys.stderr.isatty() else output.EVERY):
            last = time.monotonic()
            output.say(f"{name}: {done:,}{f' of {total:,}' if total else ''} points")

    return report


def export(
    name: Name,
    db: Db,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="A file that ends in .parquet, .jsonl or .npy; - for JSON lines on stdout.", show_default=False
        ),
    ] = None,
    codes: Annotated[
        str | None,
        typer.Option(
            "--codes", help="A folder or URL, for an index of bits: search it from any web server by --db https://…",
            show_default=False,
        ),
    ] = None,
    where: Where = None,
    field: Field = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file or the codes, if they are there.")] = False,
    json: Json = False,
) -> None:  # fmt: skip
    """Write points to a file: Parquet or JSON lines with ids, vectors and payloads; NPY with vectors, and ids beside them. Or
    their codes to a folder, to be searched where it lies."""
    from vecdb.errors import InvalidInput
    from vecdb.ingest.export import export as write

    if (out is None) == (codes is None):
        raise InvalidInput("say --out FILE, or --codes FOLDER, one of them")
    if codes is not None:
        if where is not None:
            raise InvalidInput("--codes has all points: --where goes with --out")
        return _export_codes(name, db, codes, field, overwrite, json)
    assert out is not None
    with output.opened(db) as database:
        written = write(database[name], out, where=where, field=field, overwrite=overwrite)
    if json:
        output.print_json({"points": written, "file": out})
    elif out != "-":
        output.say(f"{written:,} points in {out}")


def _export_codes(name: str, db: str, folder: str, field: str | None, overwrite: bool, json: bool) -> None:
    from vecdb.errors import Locked

    def run(write: bool) -> Any:
        with output.opened(db, write=write) as database, output.progress("export") as report:
            return database[name].export_codes(folder, field=field, overwrite=overwrite, progress=report)

    try:
        done = run(write=True)  # so that rows in memory get their codes
    except Locked:
        done = run(write=False)
    if json:
        output.print_json(done)
        return
    output.say(
        f"{done.points:,} points in {done.objects:,} objects and a manifest, {output.bytes_shown(done.bytes)}, are in "
        f"{done.folder}: upload the folder whole, the manifest last"
    )
