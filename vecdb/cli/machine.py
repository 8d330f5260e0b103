"""The machine: doctor, warmup, bench."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from . import output
from .output import Field, Json, Where

_FAR = 0.01  # seconds
_KERNELS = "kernels"


def register(app: typer.Typer) -> None:
    for command in (doctor, warmup, bench):
        app.command()(command)


def warmup(json: Json = False) -> None:
    """Compile all kernels ahead, so that the first search need not."""
    from vecdb.machine import warmup as compile_kernels

    began = time.monotonic()
    compile_kernels()
    seconds = time.monotonic() - began
    if json:
        output.print_json({"seconds": round(seconds, 3)})
    else:
        output.say(f"kernels are compiled; that took {seconds:.1f} s")


def doctor(
    db: Annotated[
        str | None,
        typer.Option(
            "--db",
            envvar="VECDB_DB",
            help="A database, whose disk is measured, or a server, to which the way is; default: the temporary folder.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """What this machine is: cores, instruction sets, compiler cache, memory and disk rates; what is slow, and why."""
    from vecdb.machine import examine

    server = db if db is not None and output.is_server(db) else None
    found = examine(None if server else db)
    if server:
        _way_to(server, found)
    if json:
        output.print_json(found)
        return
    output.facts({each.name: each.value for each in found.facts})
    for each in found.remarks:
        output.say(f"! {each}")
    if not found.remarks:
        output.say("nothing is out of order")


def _way_to(server: str, found: Any) -> None:
    """How long a question that costs the server nothing takes."""
    from vecdb.machine import Fact

    with output.opened(server) as database:
        times = []
        for _ in range(21):
            began = time.perf_counter()
            database.collections()
            times.append(time.perf_counter() - began)
    middle = sorted(times)[len(times) // 2]
    found.facts += [Fact("server", server), Fact("round trip", f"{1e3 * middle:.2f} ms")]
    if middle > _FAR:
        found.remarks.append(f"each call takes {1e3 * middle:.0f} ms on its way: search and write many at a time")


def bench(
    name: Annotated[
        str, typer.Argument(help="The collection; or `kernels`, and what this machine scans bits with is measured.")
    ],
    db: Annotated[
        str | None, typer.Option("--db", envvar="VECDB_DB", help="The database, as for other commands.", show_default=False)
    ] = None,
    queries: Annotated[int, typer.Option("--queries", help="So many of its own points are searched for.", min=20)] = 200,
    k: Annotated[int, typer.Option("-k", help="How many hits.", min=1)] = 10,
    where: Where = None,
    field: Field = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Of kernels.", min=1, show_default=False)] = None,
    widths: Annotated[
        list[int] | None, typer.Option("--width", help="Of kernels: bits of a row; may be repeated.", min=1, show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """How fast this collection is here: latency and throughput at several recalls, and what recall was delivered.

    `vecdb bench kernels`, without a database or where that has no such collection, tries the plans by which codes of bits are
    scanned, and keeps the fastest for this machine.
    """
    import numpy as np

    from vecdb.errors import InvalidInput

    if name == _KERNELS and (db is None or not _has(db, name)):
        _kernels(widths or [256, 384, 768, 1024, 1536], json)
        return
    if db is None:
        raise InvalidInput("which database? say --db, or set VECDB_DB")
    options: dict[str, Any] = {} if threads is None else {"threads": threads}
    with output.opened(db, **options) as database:
        collection = database[name]
        points = collection.sample(queries, with_payload=False)
        found = (each.vector if field is None else each.vectors.get(field) for each in points)
        asked = [each for each in found if each is not None]
        if not asked:
            raise InvalidInput("there is no point to search for")
        matrix = np.stack(asked)
        true = collection.search_batch(matrix, k, where=where, field=field, exact=True, with_payload=False)
        rows = []
        for recall in (0.9, 0.95, 0.99, None):
            how: dict[str, Any] = {"exact": True} if recall is None else {"recall": recall}
            collection.search(matrix[0], k, where=where, field=field, **how)
            times = []
            for query in matrix:
                began = time.perf_counter()
                collection.search(query, k, where=where, field=field, **how)
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
            batch = collection.search_batch(matrix, k, where=where, field=field, with_payload=False, **how)
            rate = len(matrix) / (time.perf_counter() - began)
            hits = sum(len(set(a) & set(b) - {None}) for a, b in zip(batch.ids.tolist(), true.ids.tolist(), strict=True))
            wanted = int(true.lengths.sum())
            rows.append(
                [
                    "exact" if recall is None else f"recall {recall:g}",
                    hits / wanted if wanted else 1.0,
                    1e3 * float(np.percentile(times, 50)),
                    1e3 * float(np.percentile(times, 99)),
                    1 / float(np.mean(times)),
                    rate,
                ]
            )
    columns = ["asked", "delivered", "p50 ms", "p99 ms", "one by one, a second", "in a batch, a second"]
    if json:
        output.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        output.table(columns, rows, f"{name}, {len(matrix)} of its points, k={k}")


def _has(db: str, name: str) -> bool:
    with output.opened(db) as database:
        return name in database.collections()


def _kernels(widths: list[int], json: bool) -> None:
    from vecdb_index.codec.bits import width_of
    from vecdb_index.mib.tuning import measure, plan_of

    columns = ["bits", "queries", "together", "KiB at a time", "asked for ahead, bytes", "million rows a second", "kept"]
    rows = []
    for width in dict.fromkeys(map(width_of, widths)):
        tried = measure(width)
        kept = plan_of(width)
        for each in tried:
            plan = each.plan
            mine = plan.ahead == kept.ahead if each.queries == 1 else plan[:2] == kept[:2]
            numbers = [width, each.queries, plan.together, plan.tile >> 10, plan.ahead, each.rate / 1e6]
            rows.append([*numbers, mine if json else "yes" if mine else ""])
    if json:
        output.print_json([dict(zip(columns, row, strict=True)) for row in rows])
    else:
        output.table(columns, rows, "how bits are scanned here, 0 ahead by two blocks at once; several queries count each")
