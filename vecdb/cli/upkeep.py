"""Upkeep: verify, vacuum, backup, restore, rebuild, calibrate."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from . import output
from .output import Db, Field, Json, Name

_One = Annotated[str | None, typer.Argument(help="One collection only.", show_default=False)]


def register(app: typer.Typer) -> None:
    for command in (verify, vacuum, backup, restore, rebuild, calibrate):
        app.command()(command)


def verify(
    db: Db,
    name: _One = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again what can be made again, and set aside what is damaged.")
    ] = False,
    json: Json = False,
) -> None:
    """Read every byte and compare it with its checksum, and every index with its rows. Exit code 1 if something is wrong."""
    with output.opened(db, write=repair) as database, output.progress("verifying") as report_progress:
        found = (database if name is None else database[name]).verify(repair=repair, progress=report_progress)
    if json:
        output.print_json({"ok": found.ok, **output.plain(found)})
    elif found.ok:
        output.say(f"all is well: {output.bytes_shown(found.bytes)} read")
    else:
        rows = [
            [each.file or "-", each.array or "-", each.block, each.problem, each.lost or "-", each.remedy]
            for each in found.damage
        ]
        output.table(["file", "array", "block", "what is wrong", "what is lost", "what to do"], rows)
    if not found.ok:
        raise typer.Exit(1)


def vacuum(db: Db, name: _One = None, json: Json = False) -> None:
    """Give back the space of what was deleted or replaced; afterwards it is in no file."""
    with output.opened(db, write=True) as database, output.progress("vacuuming") as report_progress:
        done = (database if name is None else database[name]).vacuum(report_progress)
    if json:
        output.print_json(done)
    else:
        output.say(f"{output.bytes_shown(done.before)} before, {output.bytes_shown(done.after)} after")


def backup(
    where: Annotated[str, typer.Argument(help="An empty directory, or a URL such as s3://bucket/folder.", show_default=False)],
    db: Db,
    earlier: Annotated[
        str | None,
        typer.Option("--earlier", help="A backup of the same database: only what is new is copied.", show_default=False),
    ] = None,
    link: Annotated[
        bool, typer.Option("--link", help="Hard links: done at once, no protection against a disk that fails.")
    ] = False,
    json: Json = False,
) -> None:
    """Copy the newest commit, while the database is in use."""
    with output.opened(db) as database, output.progress("copying") as report_progress:
        done = database.backup(where, earlier, link=link, progress=report_progress)
    if json:
        output.print_json(done)
    else:
        output.say(
            f"backed up to {where}: {', '.join(f'{key} {output.shown(value)}' for key, value in output.plain(done).items())}"
        )


def restore(
    where: Annotated[str, typer.Argument(help="A backup: a directory or URL.", show_default=False)],
    to: Annotated[str, typer.Argument(help="The new database: a directory that is empty or not there.", show_default=False)],
) -> None:
    """Make a database of a backup, and compare every file with its checksum."""
    import vecdb
    from vecdb.errors import Unsupported

    if output.is_server(to):
        raise Unsupported("a backup is restored to a directory, which `vecdb serve` can then serve")
    with output.progress("restoring") as report_progress:
        vecdb.restore(where, to, progress=report_progress)
    output.say(f"restored to {to}")


def rebuild(
    name: Name,
    db: Db,
    field: Field = None,
    index: Annotated[
        str | None, typer.Option("--index", help="Another backend: auto, flat, hnsw …", show_default=False)
    ] = None,
) -> None:
    """Build the indexes of a collection anew, or with another backend, and wait for them."""
    with output.opened(db, write=True) as database:
        collection = database[name]
        if index is not None:
            collection.set_index(index, field)
        else:
            collection.rebuild_index(field)
        wait_for_indexes(collection)
    output.say(f"the indexes of {name} are built anew")


def wait_for_indexes(collection: Any) -> None:
    """Until all segments have the indexes that they are to have, with progress."""
    import threading

    finished, failure = threading.Event(), []

    def wait() -> None:
        try:
            collection.flush()
        except Exception as error:
            failure.append(error)
        finally:
            finished.set()

    def share() -> tuple[float, float]:
        """Segments of all fields that have their indexes, the part that is done of one among them, and how many there are."""
        info = collection.info()
        done = sum(each.segments + (each.building or 0) for each in info.indexes.values())
        return done, info.segments * len(info.indexes)

    threading.Thread(target=wait, daemon=True).start()
    with output.waiting(f"indexing {collection.name}", share) as tick:
        while not finished.wait(0.2):
            tick()
    if failure:
        raise failure[0]
    for name, each in collection.info().indexes.items():
        if each.error:
            output.say(f"field {name!r} has no index: {each.error}; it is searched exactly")


def calibrate(
    name: Name,
    db: Db,
    queries: Annotated[
        str | None,
        typer.Option("--queries", help="A file of query vectors, of any format that `ingest` reads.", show_default=False),
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", help="Without --queries: so many of the collection's own points.", min=20)
    ] = 200,
    field: Field = None,
    picture: Annotated[
        str | None, typer.Option("--picture", help="Draw the curve to this PNG, too.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Measure recall against effort on your own queries, keep it, and draw the curve."""
    with output.opened(db, write=True) as database:
        collection = database[name]
        found = collection.calibrate(_queries(collection, queries, sample, field), field=field)
        if picture is not None:
            found.save(picture)
    if json:
        output.print_json(found)
    else:
        print(found)
    if picture is not None:
        output.say(f"drawn to {os.path.abspath(picture)}")


def _queries(collection: Any, path: str | None, sample: int, field: str | None) -> Any:
    import numpy as np

    if path is None:
        points = collection.sample(sample, with_payload=False)
        return np.stack(
            [vector for point in points if (vector := point.vector if field is None else point.vectors.get(field)) is not None]
        )
    from vecdb.ingest.mapping import Wanted, columns_of, settle
    from vecdb.ingest.readers import START, Options, open_reader
    from vecdb.ingest.sources import find

    (source,) = find([path])
    reader = open_reader(source, Options())
    try:
        parts, mapped = [], None
        for piece in reader.read(START):
            mapped = mapped or settle(columns_of(piece), Wanted(), None, source.name, embeds=False)
            parts.append(np.asarray(next(iter(mapped.apply(piece, 0, source.name).vectors.values())), np.float32))
        return np.concatenate(parts)
    finally:
        reader.close()
