"""Databases and index files of other projects, as new collections: ids, vectors and payloads are kept.

Each file here reads one kind and has a context manager `tables(path, only, metric)` that gives a list of `Table`s; what it
opened or copied for them is let go when the block ends. It uses that project's own library, behind an extra, unless the files
are better read without it: those of hnswlib, and of Qdrant's local mode, which its library only opens for writing, and whole.
The source is never written to, and nothing is made at a path where there is none.

A Table becomes a collection under a name with ".importing" added, which takes its own when it is complete: there is never a
half-filled one. Called in any thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import AlreadyExists, DuplicateId, InvalidFile, InvalidInput, NotFound, Unsupported, VecdbError
from ...schema import Dense, Field, Metric, checked_name, fields_of

if TYPE_CHECKING:
    from ...api import Collection, Database

# what --from says -> module, extra
PEERS = {
    "chroma": ("chroma", "import-chroma"),
    "lancedb": ("lancedb", "import-lancedb"),
    "qdrant": ("qdrant", ""),
    "faiss": ("faiss", "faiss"),
    "hnswlib": ("hnswlib", ""),
    "pgvector-csv": ("pgvector", ""),
}

BATCH_BYTES = 16 << 20  # of the vectors in a Rows, about
_MOST_ROWS = 20_000  # of one, so that short vectors with long payloads stay within bounds, too
_SPARSE_BYTES = 1000  # of a sparse vector, about


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
    fields: Mapping[str, Field]
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
    only: the table that is meant, of several. metric: needed where the source says none, and else instead of what it says.
    progress: called after each commit with name, points so far, and points in all if known. Of several tables, those that came
    before one that is refused stay. Raises NotFound, AlreadyExists, InvalidInput, InvalidFile, Unsupported, StorageError.
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
    with ExitStack() as opened:
        try:
            reader = import_module("." + module, __name__)
            tables = opened.enter_context(reader.tables(os.fspath(path), only, metric))
        except ImportError as error:
            raise Unsupported(f"importing from {source} needs its library: pip install 'vecdb[{extra}]' ({error})") from error
        names = _settled(database, path, tables, collection)
        return {name: _fill(database, name, path, table, progress) for name, table in names.items()}


def _settled(database: Database, path: str, tables: Sequence[Table], collection: str | None) -> dict[str, Table]:
    """The tables by the name of the new collection, all of which can be created: looked at before anything is written."""
    if collection is not None and len(tables) != 1:
        raise InvalidInput(
            f"{path} has {', '.join(table.name for table in tables) or 'no tables'}: say --only with --collection"
        )
    if not tables:
        raise NotFound(f"{path}: there is nothing in it that could be imported")
    (name, times), *_ = Counter(table.name for table in tables).most_common(1)
    if times > 1:
        raise InvalidInput(f"{path} has {times} tables called {name!r}: rename all but one of them there")
    names = {collection or table.name: table for table in tables}
    for name, table in names.items():
        try:
            checked_name(name)
        except InvalidInput as error:
            raise InvalidInput(f"{error}; say --only {name!r} --collection NEW") from None
        try:
            fields_of(table.fields)
        except InvalidInput as error:
            raise InvalidInput(f"{path}, {table.name!r}: {error}; rename it there") from None
        if name in database:
            raise AlreadyExists(f"collection {name!r} exists; say another with --collection, or drop it first")
    return names


# -- for the files here --------------------------------------------------------------------------------------


def chosen(path: str, names: Sequence[str], only: str | None) -> list[str]:
    """The names of tables that are meant. Raises NotFound."""
    if only is None:
        return list(names)
    if only not in names:
        raise NotFound(f"{path} has no {only!r}; it has {', '.join(names) or 'nothing'}")
    return [only]


def rows_at_once(fields: Mapping[str, Field], bytes: int = BATCH_BYTES) -> int:
    """How many points make a batch."""
    row = sum(4 * field.dim if isinstance(field, Dense) else _SPARSE_BYTES for field in fields.values())
    return max(1, min(_MOST_ROWS, bytes // row))


@contextmanager
def foreign(path: str, project: str) -> Iterator[None]:
    """Whatever another project's library raises over its files is one InvalidFile, in one line."""
    try:
        yield
    except (VecdbError, ImportError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        text = text if len(text) < 300 else text[:300] + " …"
        raise InvalidFile(f"{project} cannot read it: {type(error).__name__}: {text}", file=path) from error


# -- writing -------------------------------------------------------------------------------------------------


def _tell(progress: Callable[[str, int, int | None], None] | None, name: str, done: int, total: int | None) -> None:
    if progress is not None:
        progress(name, done, total)


def _fill(
    database: Database, name: str, path: str, table: Table, progress: Callable[[str, int, int | None], None] | None
) -> int:
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
            _insert(made, path, table.name, rows)
            done += len(rows.ids)
            _tell(progress, name, done, table.total)
        database.rename_collection(partial, name)
    except BaseException:
        with suppress(VecdbError):  # what went wrong matters more; the name says that it is incomplete
            database.drop_collection(partial)
        raise
    return done


def _insert(made: Collection, path: str, name: str, rows: Rows) -> None:
    """One commit. Errors say in which table of the source the point is."""
    try:
        made.insert(ids=rows.ids, vectors=dict(rows.vectors), payloads=rows.payloads)
    except (AlreadyExists, DuplicateId) as error:
        raise DuplicateId(
            f"{path}, {name!r}: the ids are not distinct, and here they must be ({error}); change or delete one of them there"
        ) from None
    except InvalidInput as error:
        raise type(error)(f"{error.reason} (in {name!r} of {path})", point=error.point, field=error.field) from None
