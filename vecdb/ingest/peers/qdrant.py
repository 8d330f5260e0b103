"""A directory of `QdrantClient(path=…)`, Qdrant's local mode. qdrant-client is not needed.

    meta.json                         {"collections": {name: its configuration}, "aliases": {alias: name}}
    collection/NAME/storage.sqlite    table points: id, base64 of a pickled int or string; point, a pickled PointStruct

The library only opens the directory for writing, and all collections of it in memory at once. So it is read here: SQLite
read-only, a batch at a time. Pickles are read by an unpickler that makes nothing but plain values, arrays, dates and UUIDs, and
of classes of the library just keeps the attributes: no code that a file names is run.

    ids          numbers or UUIDs; in a collection with both kinds, or with numbers beyond int64, all of them as strings
    vectors      field "vector", or the named ones, in f32, as Qdrant has them; as they were given, also under cosine, where
                 Qdrant itself gives them back with length 1; sparse ones become sparse fields
    payload      as it is

Refused are multivectors, and Manhattan distances unless another metric is said. Not kept: aliases, indexes of the payload,
quantization, the extra weight of rare components ("idf", of which the log warns), and other configuration. Where older versions
have stored a point twice, the later row counts, as it does for the library.

Called by `import_from`, in any thread.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import logging
import os
import pickle
import re
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidFile, InvalidInput, NotFound, Unsupported
from ...schema import DEFAULT_FIELD, Dense, Field, Metric, Sparse
from ..reading import reading
from . import BATCH_BYTES, Rows, Table, chosen, foreign

_METRICS: dict[str, Metric] = {"Cosine": "cosine", "Dot": "ip", "Euclid": "l2"}
_UUID = re.compile(r"(urn:uuid:)?\{?[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}\}?")
_MOST_ROWS = 20_000

_log = logging.getLogger("vecdb")


@contextmanager
def tables(path: str, only: str | None, metric: Metric | None) -> Iterator[list[Table]]:
    """Raises NotFound, InvalidFile, InvalidInput, Unsupported, StorageError."""
    if not os.path.exists(path):
        raise NotFound(f"{path}: there is no such directory")
    meta = Path(path, "meta.json")
    if not meta.is_file():
        raise InvalidFile("it is no directory of QdrantClient(path=…): there is no meta.json in it", file=path)
    with reading(str(meta)):
        said = json.loads(meta.read_bytes())
        collections = dict(said["collections"])
        aliases = dict(said.get("aliases") or {})
    names = chosen(path, list(collections), aliases.get(only, only) if only not in collections else only)
    yield [_table(path, name, _fields(path, name, collections[name], metric)) for name in names]


# -- configuration -------------------------------------------------------------------------------------------


def _fields(path: str, name: str, said: Any, metric: Metric | None) -> dict[str, Field]:
    where = f"{path}, {name!r}"
    with foreign(where, "the importer"):
        vectors, sparse = said.get("vectors") or {}, said.get("sparse_vectors") or {}
        named: dict[str, Any] = {DEFAULT_FIELD: vectors} if "size" in vectors else dict(vectors)
        if not named and not sparse:
            raise Unsupported(f"{where}: it has no vectors, and points here have some; say --only to import other collections")
        fields: dict[str, Field] = {}
        for field, each in sparse.items():
            if (each or {}).get("modifier") not in (None, "none"):
                _log.warning(
                    "%s, %r: Qdrant weighs its components by how rare they are, and here they count as given", where, field
                )
            fields[field] = Sparse()
        for field, each in named.items():
            if each.get("multivector_config"):
                raise Unsupported(
                    f"{where}: vector {field!r} is a multivector, for which there are no fields yet; copy the points to a "
                    f"collection without it in Qdrant and import that, or say --only to import others"
                )
            if metric is None and each["distance"] not in _METRICS:
                raise InvalidInput(
                    f"{where}: the distance of vector {field!r} is {each['distance']}, which there is not here; say --metric "
                    f"cosine, ip or l2 to search by another"
                )
            fields[field] = Dense(each["size"], metric or _METRICS[each["distance"]])
        return fields


# -- points ----------------------------------------------------------------------------------------------------


def _table(path: str, name: str, fields: dict[str, Field]) -> Table:
    file = Path(path, "collection", name, "storage.sqlite")
    if not file.is_file():
        if Path(file.parent, "storage.dbm").exists():
            raise InvalidFile("it was written by qdrant-client before 1.1.7; open it once by 1.7, which converts it", file=path)
        raise InvalidFile(f"{name!r} has no {file.relative_to(path)}: a part of the directory is missing", file=path)
    with _opened(file) as database:
        (count,) = database.execute("SELECT count(*) FROM points").fetchone()
        latest, twice = _latest(database, file)
    if twice:
        _log.warning("%s, %r: older copies of points are left out, %s in all", path, name, f"{twice:,}")
    kinds = {type(key) for key in latest}
    as_text = len(kinds) > 1 or any(isinstance(key, int) and key >= 1 << 63 for key in latest)
    if as_text:
        _log.warning("%s, %r: its ids are numbers and UUIDs, or too large; all become strings", path, name)
    chosen_rows = set(latest.values()) if twice else None
    return Table(name, fields, count - twice, _batches(path, name, file, fields, chosen_rows, as_text))


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    with foreign(str(file), "SQLite"), closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
        yield database


def _latest(database: sqlite3.Connection, file: Path) -> tuple[dict[int | str, int], int]:
    """The row of each id that counts, and how many others there are."""
    latest: dict[int | str, int] = {}
    rows = 0
    for row, key in database.execute("SELECT rowid, id FROM points ORDER BY rowid"):
        latest[_id(_loaded(base64.b64decode(key), file, row), file, row)] = row
        rows += 1
    return latest, rows - len(latest)


def _batches(
    path: str, name: str, file: Path, fields: Mapping[str, Field], counted: set[int] | None, as_text: bool
) -> Iterator[Rows]:
    ids: list[int | str] = []
    vectors: dict[str, list[Any]] = {field: [] for field in fields}
    payloads: list[dict[str, Any]] = []
    size = 0
    with _opened(file) as database:
        for row, stored in database.execute("SELECT rowid, point FROM points ORDER BY rowid"):
            if counted is not None and row not in counted:
                continue
            point = _loaded(stored, file, row)
            with foreign(f"{file}, row {row}", "the importer"):
                key = _id(point.id, file, row)
                given = _named(point.vector)
                strange = given.keys() - fields.keys()
                if strange:
                    raise InvalidFile(
                        f"point {key!r} of {name!r} has a vector {min(strange)!r}, which is not declared", file=path
                    )
                for field in fields:
                    each = given.get(field)
                    vectors[field].append(None if each is None else _as_given(each))
                payloads.append(dict(point.payload or {}))
            ids.append(str(key) if as_text else key)
            size += len(stored)
            if size >= BATCH_BYTES or len(ids) >= _MOST_ROWS:
                yield Rows(ids, vectors, payloads)
                ids, vectors, payloads, size = [], {field: [] for field in fields}, [], 0
    if ids:
        yield Rows(ids, vectors, payloads)


def _named(vector: Any) -> dict[str, Any]:
    if vector is None:
        return {}
    if isinstance(vector, Mapping):
        return {name or DEFAULT_FIELD: each for name, each in vector.items()}
    return {DEFAULT_FIELD: vector}


def _as_given(vector: Any) -> Any:
    """float32, as Qdrant has them: users give Python's numbers, of twice that width. A sparse vector as a pair."""
    if isinstance(vector, _Model):
        return np.asarray(vector.__dict__["indices"], np.int64), np.asarray(vector.__dict__["values"], np.float32)
    with np.errstate(over="ignore"):
        return np.asarray(vector, np.float32)


def _id(key: Any, file: Path, row: int) -> int | str:
    """Numbers as they are, UUIDs in their one spelling: older versions kept the user's."""
    if isinstance(key, uuid.UUID):
        return str(key)
    if isinstance(key, str):
        return str(uuid.UUID(key)) if _UUID.fullmatch(key) else key
    if isinstance(key, int):
        return key
    raise InvalidFile(f"an id is a number or a UUID, and not a {type(key).__name__}", file=f"{file}, row {row}")


# -- pickles ---------------------------------------------------------------------------------------------------


class _Model:
    """Any class of the library: an object with the attributes that were stored."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state.get("__dict__", state))


_PLAIN = {
    ("uuid", "UUID"): uuid.UUID,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "date"): datetime.date,
    ("datetime", "timezone"): datetime.timezone,
    ("datetime", "timedelta"): datetime.timedelta,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
_OF_NUMPY = ("_reconstruct", "scalar", "_frombuffer")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module.startswith("qdrant_client."):
            return _Model
        if module.startswith(("numpy.core.", "numpy._core.")) and name in _OF_NUMPY:
            return super().find_class(module.replace("numpy.core.", "numpy._core."), name)
        raise pickle.UnpicklingError(f"an object of class {module}.{name} is none that Qdrant stores, and is not loaded")


def _loaded(stored: bytes, file: Path, row: int) -> Any:
    with foreign(f"{file}, row {row}", "pickle"):
        return _Unpickler(io.BytesIO(stored)).load()
