"""A directory of `chromadb.PersistentClient`: its collections, those of all tenants and databases.

    id            the id, a string
    embedding     field "vector", with the metric of the collection's index (hnsw or spann), as Chroma gives it back: under
                  cosine that may differ from what was added in the last bits, since its index scales vectors there and back
    metadata      the payload; the document is its key "document", a URI its key "uri"

Not kept: metadata and configuration of the collection itself, and its embedding function. Chroma writes to a directory when it
opens it: migrations, the housekeeping of its log. So it is given a copy in the temporary directory, of SQLite's file and of the
indexes that are meant: there must be room for it, and nobody may write to the original while it is copied.

Called by `import_from`, in any thread.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidFile, InvalidInput, NotFound, StorageError, Unsupported
from ...schema import DEFAULT_FIELD, Dense, Metric, checked_metric
from ..reading import reading
from . import Rows, Table, chosen, foreign, rows_at_once

_FILE = "chroma.sqlite3"
_BATCH_BYTES = 2 << 20  # of vectors; Chroma makes each number a Python object, of ten times the size, on its way
_KEEPING = 1.1  # room for the copy, and for what Chroma adds to it

_log = logging.getLogger("vecdb")


@contextmanager
def tables(path: str, only: str | None, metric: Metric | None) -> Iterator[list[Table]]:
    """Raises NotFound, InvalidFile, InvalidInput, Unsupported, StorageError."""
    _check(path)
    with foreign(path, "chromadb"):
        import chromadb
        from chromadb.config import Settings
    with tempfile.TemporaryDirectory(prefix="vecdb-chroma-") as copy:
        _copy(path, copy, only)
        with foreign(path, "chromadb"):
            client: Any = chromadb.PersistentClient(copy, settings=Settings(anonymized_telemetry=False))
        try:
            found = []
            old = dict(_query(path, copy, _OLD))
            for tenant, database in _query(path, copy, _DATABASES):
                with foreign(path, "chromadb"):
                    client.set_tenant(tenant, database)
                    collections = client.list_collections()
                found += [
                    _table(path, each, only, metric, _space(path, each, old))
                    for each in collections
                    if only in (None, each.name)
                ]
            yield [table for table in found if table is not None]
        finally:
            client.close()


# -- the copy ------------------------------------------------------------------------------------------------

_NAMES = "SELECT name FROM collections ORDER BY name"
_SEGMENTS = "SELECT s.id FROM segments s JOIN collections c ON c.id = s.collection WHERE ?1 IS NULL OR c.name = ?1"
_OLD = (
    "SELECT s.collection, m.str_value FROM segment_metadata m JOIN segments s ON s.id = m.segment_id "
    "WHERE m.key = 'hnsw:space' AND m.str_value IS NOT NULL"
)
_DATABASES = "SELECT DISTINCT d.tenant_id, d.name FROM databases d JOIN collections c ON c.database_id = d.id ORDER BY 1, 2"


def _check(path: str) -> None:
    if not os.path.exists(path):
        raise NotFound(f"{path}: there is no such directory")
    if not os.path.isfile(os.path.join(path, _FILE)):
        if os.path.exists(os.path.join(path, "chroma-collections.parquet")):
            raise InvalidFile("it was written by chromadb before 0.4: convert it by chroma-migrate first", file=path)
        raise InvalidFile(f"it is no directory of chromadb.PersistentClient: there is no {_FILE} in it", file=path)


def _copy(path: str, copy: str, only: str | None) -> None:
    """SQLite's file with its journals, and the indexes of the collections that are meant."""
    sources = [each for each in Path(path).glob(_FILE + "*") if each.is_file()]
    before = _state(path, sources)
    _copy_files(path, sources, copy)
    chosen(path, [name for (name,) in _query(path, copy, _NAMES)], only)
    segments = [Path(path, segment) for (segment,) in _query(path, copy, _SEGMENTS, only)]
    files = [each for segment in segments if segment.is_dir() for each in segment.iterdir() if each.is_file()]
    before |= _state(path, files)
    _copy_files(path, files, copy)
    if before != _state(path, [*sources, *files]):
        raise InvalidFile("it was written to while it was copied; close it in other programs, and import it again", file=path)


def _copy_files(path: str, files: list[Path], copy: str) -> None:
    size, free = sum(size for size, _ in _state(path, files).values()), shutil.disk_usage(copy).free
    if size * _KEEPING > free:
        raise StorageError(
            f"{path}: {size:,} bytes are copied before they are read, since Chroma writes to what it opens, and there is room "
            f"for {free:,} in {copy}; set TMPDIR to a directory on a disk with more",
            file=copy,
        )
    with reading(path):
        for file in files:
            to = Path(copy, file.relative_to(path))
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, to)


def _state(path: str, files: list[Path]) -> dict[Path, tuple[int, int]]:
    with reading(path):
        return {file: (status.st_size, status.st_mtime_ns) for file in files for status in (file.stat(),)}


def _query(path: str, copy: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(os.path.join(copy, _FILE))) as database:
            return database.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise InvalidFile(f"{_FILE} cannot be read as Chroma's: {error}", file=path) from error


# -- collections -----------------------------------------------------------------------------------------------


def _table(path: str, collection: Any, only: str | None, metric: Metric | None, said: str) -> Table | None:
    with foreign(path, "chromadb"):
        count = collection.count()
        dim = _dim(collection, count)
    if dim is None:
        if only is not None:
            raise InvalidInput(
                f"{path}, {collection.name!r}: it is empty and was never given a vector, so that nobody knows of how many "
                f"numbers they are; create the collection instead"
            )
        _log.warning("%s: %r is left out: it is empty, and of no dimension yet", path, collection.name)
        return None
    if metric is None and said not in ("cosine", "ip", "l2"):
        raise InvalidInput(f"{path}, {collection.name!r}: its distance is {said!r}; say --metric cosine, ip or l2")
    fields = {DEFAULT_FIELD: Dense(dim, metric or checked_metric(said) or "l2")}
    return Table(collection.name, fields, count, _batches(path, collection, fields, count))


def _dim(collection: Any, count: int) -> int | None:
    dim = getattr(getattr(collection, "_model", None), "dimension", None)
    if dim is None and count:
        dim = len(collection.get(limit=1, include=["embeddings"])["embeddings"][0])
    return None if dim is None else int(dim)


def _space(path: str, collection: Any, old: dict[str, str]) -> str:
    """The distance by which Chroma searches.

    Up to 0.6 it was among the metadata of the index (`old`), with a configuration of defaults beside that. Chroma still shows
    the latter, and goes by the former.
    """
    with foreign(path, "chromadb"):
        configuration = collection.configuration_json
        index = configuration.get("hnsw") or configuration.get("spann") or {}
        said = str(index.get("space") or "l2")
        return old.get(str(collection.id), said) if said == "l2" else said


def _batches(path: str, collection: Any, fields: dict[str, Dense], count: int) -> Iterator[Rows]:
    step, done = rows_at_once(fields, _BATCH_BYTES), 0
    include = ["embeddings", "metadatas", "documents", "uris"]
    while done < count:
        with foreign(path, "chromadb"):
            some = collection.get(limit=step, offset=done, include=include)
            ids = some["ids"]
            given = some["embeddings"]
            vectors = [None if each is None else np.asarray(each, np.float32) for each in given]
        if not ids or len(vectors) != len(ids):
            raise InvalidFile(
                f"{collection.name!r} has {count:,} points and {done:,} with {len(vectors):,} vectors could be read", file=path
            )
        payloads = [
            _payload(path, collection.name, key, *(None if column is None else column[at] for column in columns))
            for columns in ((some["metadatas"], some["documents"], some["uris"]),)
            for at, key in enumerate(ids)
        ]
        done += len(ids)
        yield Rows(ids, {DEFAULT_FIELD: vectors if any(each is None for each in vectors) else np.stack(vectors)}, payloads)  # type: ignore[arg-type]


def _payload(path: str, name: str, key: str, metadata: Any, document: str | None, uri: str | None) -> dict[str, Any]:
    payload = dict(metadata or {})
    for added, text in (("document", document), ("uri", uri)):
        if text is None:
            continue
        if added in payload:
            raise InvalidInput(
                f"it has a {added}, and its metadata have a key {added!r}, too, which is where the {added} goes; rename that "
                f"key in Chroma (in {name!r} of {path})",
                point=key,
            )
        payload[added] = text
    for added, value in payload.items():
        if not isinstance(value, str | int | float | list | None):
            raise Unsupported(
                f"{path}, {name!r}: the metadata {added!r} of point {key!r} are a {type(value).__name__}, which cannot be in "
                f"a payload; delete that key in Chroma"
            )
    return payload
