"""Databases and index files of other projects, as new collections: ids, vectors and payloads are kept.

Each file here reads one kind with that project's own library, behind an extra, and yields `Table`s. A Table becomes a
collection under a name with ".importing" added, which takes its own when it is complete: there is never a half-filled one.
hnswlib files are parsed by ourselves (`hnswlib.py`). Called in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import AlreadyExists, InvalidInput, Unsupported, VecdbError
from ...schema import Dense, Metric, checked_name

if TYPE_CHECKING:
    from ...database import Database

# what --from says -> module, extra; each module has `tables(path, only, metric) -> Iterator[Table]`
PEERS = {
    "chroma": ("chroma", "import-chroma"),
    "lancedb": ("lancedb", "import-lancedb"),
    "qdrant": ("qdrant", "import-qdrant"),
    "faiss": ("faiss", "faiss"),
    "hnswlib": ("hnswlib", ""),
    "pgvector-csv": ("pgvector", ""),
}


@dataclass(frozen=True)
class Rows:
    """Some points of a Table. ids: n ints or strings. vectors: field -> n vectors or None. payloads: n dicts or None."""

    ids: Any
    vectors: Mapping[str, Any]
    payloads: Any


@dataclass(frozen=True)
class Table:
    """A collection, table or index of another project. total: its points, where known. batches: all of them, once."""

    name: str
    fields: Mapping[str, Dense]
    total: int | None
    batches: Iterator[Rows]


def import_from(
    database: Database,
    source: str,
    path: str,
    *,
    collection: str | None = None,
    only: str | None = None,
    metric: Metric | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, int]:
    """Takes over what is at `path`. Returns the points of each new collection.

    source: one of PEERS. collection: the name of the new one, where there is one table; default: the name that it has there.
    only: the table that is meant, of several. metric: where the source does not say it. progress: called after each commit with
    name, points so far, and points in all if known. Raises NotFound, AlreadyExists, InvalidInput, Unsupported, StorageError.
    """
    if source not in PEERS:
        raise InvalidInput(f"no importer is called {source!r}; there are: {', '.join(PEERS)}")
    if source == "hnswlib":
        if metric is None:
            raise InvalidInput(f"{path}: an hnswlib file does not say its metric: --metric cosine, ip or l2")
        name = collection or Path(path).stem
        made = database.import_hnswlib(
            name, path, metric=metric, progress=lambda now: _tell(progress, name, now.imported, now.total)
        )
        return {name: made.count()}
    module, extra = PEERS[source]
    try:
        reader = import_module("." + module, __name__)
        tables = list(reader.tables(path, only, metric))
    except ImportError as error:
        raise Unsupported(f"importing from {source} needs its library: pip install 'vecdb[{extra}]' ({error})") from error
    if collection is not None and len(tables) != 1:
        raise InvalidInput(
            f"{path} has {', '.join(table.name for table in tables) or 'no tables'}: say --only with --collection"
        )
    names = {collection or table.name: table for table in tables}
    for name in names:
        if checked_name(name) in database:
            raise AlreadyExists(f"collection {name!r} exists; say another with --collection, or drop it first")
    return {name: _fill(database, name, table, progress) for name, table in names.items()}


def _tell(progress: Callable[[str, int, int | None], None] | None, name: str, done: int, total: int | None) -> None:
    if progress is not None:
        progress(name, done, total)


def _fill(database: Database, name: str, table: Table, progress: Callable[[str, int, int | None], None] | None) -> int:
    partial = f"{name[:118]}.importing"  # a name has 128 characters
    try:
        made = database.create_collection(partial, dict(table.fields))
    except AlreadyExists:
        raise AlreadyExists(
            f"collection {partial!r} exists: {name!r} is being imported now, or that was cut short; if it was, drop it"
        ) from None
    try:
        done = 0
        for rows in table.batches:
            made.insert(ids=rows.ids, vectors=dict(rows.vectors), payloads=rows.payloads)
            done += len(rows.ids)
            _tell(progress, name, done, table.total)
        database.rename_collection(partial, name)
    except BaseException:
        with suppress(VecdbError):  # what went wrong matters more; the name says that it is incomplete
            database.drop_collection(partial)
        raise
    return done
