"""A collection as a file: Parquet, JSON lines or NPY, in the order in which points were last written, as of one commit.

What `ingest` reads back is the same collection. Payload keys become columns; in Parquet, a key whose values are not all of
one simple type is written as JSON text, and its column says so (`mapping.JSON_COLUMN`). Points that lack a vector have a null
there; NPY has only points that have one. A file takes its name when it is complete. Called in any thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson

from ..errors import AlreadyExists, InvalidInput, StorageError
from .mapping import JSON_COLUMN

if TYPE_CHECKING:
    from ..api import Collection, Where
    from ..points import Point

_ROWS = 4096  # of a row group, or written at once
_JSON = orjson.OPT_SERIALIZE_NUMPY


def export(
    collection: Collection,
    out: str | os.PathLike[str],
    *,
    where: Where = None,
    field: str | None = None,
    overwrite: bool = False,
) -> int:
    """Writes the points that match to `out`, which ends in .parquet, .jsonl or .npy, or is "-" for JSON lines on stdout.

    field: of several vector fields, the one that an NPY file has. Returns how many points were written. Raises AlreadyExists,
    InvalidInput, InvalidFilter, StorageError.
    """
    path = os.fspath(out)
    if path == "-":
        return _json_lines(collection, sys.stdout.buffer, where)
    ending = os.path.splitext(path)[1].lower()
    writers = {".parquet": _parquet, ".jsonl": _json_lines, ".ndjson": _json_lines}
    if ending not in writers and ending != ".npy":
        raise InvalidInput(f"{path}: its name is to end in .parquet, .jsonl or .npy")
    for made in (path, _ids_beside(path)) if ending == ".npy" else (path,):
        if os.path.exists(made) and not overwrite:
            raise AlreadyExists(f"{made} exists; --overwrite replaces it")
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            count = (
                writers[ending](collection, file, where) if ending in writers else _npy(collection, file, where, field, path)
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", file=path) from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return int(count)


def _batches(collection: Collection, where: Where, *, vectors: bool) -> Iterator[list[Point]]:
    points = collection.scroll(where, with_vectors=vectors)
    while batch := list(islice(points, _ROWS)):
        yield batch


def _check_keys(payload: dict[str, Any], fields: Any) -> None:
    for key in ("id", *fields):
        if key in payload:
            raise InvalidInput(
                f"a payload has the key {key!r}, which would be taken for the point's own; rename it by update_payload first"
            )


def _json_lines(collection: Collection, file: BinaryIO, where: Where) -> int:
    fields, count = list(collection.info().fields), 0
    for batch in _batches(collection, where, vectors=True):
        for point in batch:
            _check_keys(point.payload or {}, fields)
        lines = [orjson.dumps({"id": point.id, **point.vectors, **(point.payload or {})}, option=_JSON) for point in batch]
        file.write(b"\n".join(lines) + b"\n")
        count += len(batch)
    return count


def _npy(collection: Collection, file: BinaryIO, where: Where, field: str | None, path: str) -> int:
    info = collection.info()
    if field is None and len(info.fields) > 1:
        raise InvalidInput(f"say which field: {', '.join(info.fields)}")
    name = field or next(iter(info.fields))
    if name not in info.fields:
        raise InvalidInput(f"there is no field {name!r}; there are: {', '.join(info.fields)}")
    dtype = {"f32": np.float32, "f16": np.float16, "i8": np.int8}[info.fields[name].dtype]
    ids: list[Any] = []
    header_at = file.tell()
    _npy_header(file, 0, info.fields[name].dim, dtype)
    for batch in _batches(collection, where, vectors=True):
        with_it = [point for point in batch if name in point.vectors]
        ids += [point.id for point in with_it]
        if with_it:
            file.write(np.stack([np.asarray(point.vectors[name], dtype) for point in with_it]).tobytes())
    file.seek(header_at)
    _npy_header(file, len(ids), info.fields[name].dim, dtype)
    file.seek(0, os.SEEK_END)
    kept = np.array(ids, np.int64) if info.ids == "int" else np.array(ids, np.str_)
    np.save(_ids_beside(path), kept)
    return len(ids)


def _ids_beside(path: str) -> str:
    return f"{os.path.splitext(path)[0]}.ids.npy"


def _npy_header(file: BinaryIO, rows: int, dim: int, dtype: Any) -> None:
    """Of one length whatever the number of rows, for it is known only in the end."""
    described = f"{{'descr': '{np.dtype(dtype).str}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}"
    file.write(b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + described.ljust(117).encode() + b"\n")


# -- Parquet -------------------------------------------------------------------------------------------------


def _parquet(collection: Collection, file: BinaryIO, where: Where) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    info = collection.info()
    types, points = _types(collection, where, list(info.fields)), 0
    inner = {"f32": pa.float32(), "f16": pa.float16(), "i8": pa.int8()}
    columns = [pa.field("id", pa.int64() if info.ids == "int" else pa.string())]
    columns += [pa.field(name, pa.list_(inner[each.dtype], each.dim)) for name, each in info.fields.items()]
    columns += [pa.field(key, kind or pa.string(), metadata=None if kind else JSON_COLUMN) for key, kind in types.items()]
    schema = pa.schema(columns)
    # Dictionaries and statistics of vectors cost time and space and help nobody.
    with pq.ParquetWriter(
        file, schema, compression="zstd", use_dictionary=[key for key, kind in types.items() if kind == pa.string()]
    ) as writer:
        for batch in _batches(collection, where, vectors=True):
            arrays = [pa.array([point.id for point in batch], schema.field("id").type)]
            arrays += [_vectors(batch, name, schema.field(name).type) for name in info.fields]
            for key, kind in types.items():
                values = [(point.payload or {}).get(key) for point in batch]
                if kind is None:
                    values = [None if value is None else orjson.dumps(value).decode() for value in values]
                arrays.append(pa.array(values, kind or pa.string()))
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            points += len(batch)
    return points


def _vectors(batch: list[Point], name: str, kind: Any) -> Any:
    import pyarrow as pa

    found = [point.vectors.get(name) for point in batch]
    if any(vector is None for vector in found):
        return pa.array([None if vector is None else vector.tolist() for vector in found], kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.stack(found).reshape(-1)), type=kind)  # type: ignore[arg-type]


def _types(collection: Collection, where: Where, fields: list[str]) -> dict[str, Any]:
    """The columns of payload keys: an Arrow type, or None for JSON text."""
    import pyarrow as pa

    kinds: dict[str, set[type]] = {}
    for batch in _batches(collection, where, vectors=False):
        for point in batch:
            payload = point.payload or {}
            _check_keys(payload, fields)
            for key, value in payload.items():
                if value is not None:
                    kinds.setdefault(key, set()).add(type(value))
                else:
                    kinds.setdefault(key, set())
    simple = {
        frozenset({int}): pa.int64(),
        frozenset({float}): pa.float64(),
        frozenset({str}): pa.string(),
        frozenset({bool}): pa.bool_(),
    }
    return {key: simple.get(frozenset(found)) for key, found in kinds.items()}
