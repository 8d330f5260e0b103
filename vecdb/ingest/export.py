"""A collection as a file, in the order in which points were last written, as of one commit: Parquet, JSON lines, NPY, or of
sparse vectors a CSR matrix (NPZ).

What `ingest` reads back is the same collection. Payload keys become columns; in Parquet, a key whose values are not all of
one simple type is written as JSON text, and its column says so (`mapping.JSON_COLUMN`). Points that lack a vector have a null
there; NPY and NPZ have only points that have one. A file takes its name when it is complete. Called in any thread.
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
from ..schema import Dense
from ..sparse import SparseVector
from .mapping import JSON_COLUMN

if TYPE_CHECKING:
    from ..api import Collection, Where
    from ..info import Info
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
    """Writes the points that match to `out`, which ends in .parquet, .jsonl, .npy or .npz, or is "-" (JSON lines).

    field: of several vector fields, the one that an NPY or NPZ file has. Returns how many points were written. Raises
    AlreadyExists, InvalidInput, InvalidFilter, StorageError.
    """
    path = os.fspath(out)
    if path == "-":
        return _json_lines(collection, sys.stdout.buffer, where)
    ending = os.path.splitext(path)[1].lower()
    writers = {".parquet": _parquet, ".jsonl": _json_lines, ".ndjson": _json_lines}
    arrays = {".npy": _npy, ".npz": _csr}
    if ending not in writers and ending not in arrays:
        raise InvalidInput(f"{path}: its name is to end in .parquet, .jsonl, .npy or .npz")
    for made in (path, _ids_beside(path)) if ending in arrays else (path,):
        if os.path.exists(made) and not overwrite:
            raise AlreadyExists(f"{made} exists; --overwrite replaces it")
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as file:
            if ending in writers:
                count = writers[ending](collection, file, where)
            else:
                count = arrays[ending](collection, file, where, field, path)
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
        lines = [orjson.dumps({"id": point.id, **_plain(point), **(point.payload or {})}, option=_JSON) for point in batch]
        file.write(b"\n".join(lines) + b"\n")
        count += len(batch)
    return count


def _plain(point: Point) -> dict[str, Any]:
    """Vectors as JSON has them."""
    plain: dict[str, Any] = dict(point.vectors)
    for name, vector in plain.items():
        if isinstance(vector, SparseVector):
            plain[name] = {str(component): value for component, value in vector.to_dict().items()}
    return plain


def _chosen(info: Info, field: str | None) -> str:
    if field is None and len(info.fields) > 1:
        raise InvalidInput(f"say which field: {', '.join(info.fields)}")
    name = field or next(iter(info.fields))
    if name not in info.fields:
        raise InvalidInput(f"there is no field {name!r}; there are: {', '.join(info.fields)}")
    return name


def _save_ids(path: str, info: Info, ids: list[Any]) -> None:
    np.save(_ids_beside(path), np.array(ids, np.int64) if info.ids == "int" else np.array(ids, np.str_))


def _csr(collection: Collection, file: BinaryIO, where: Where, field: str | None, path: str) -> int:
    """As scipy.sparse.save_npz writes it."""
    info = collection.info()
    name = _chosen(info, field)
    if isinstance(info.fields[name], Dense):
        raise InvalidInput(f"field {name!r} has dense vectors; a name that ends in .npy writes them")
    ids: list[Any] = []
    rows: list[SparseVector] = []
    for batch in _batches(collection, where, vectors=True):
        with_it = [point for point in batch if name in point.vectors]
        ids += [point.id for point in with_it]
        rows += [point.vectors[name] for point in with_it]
    pointer = np.cumsum([0, *map(len, rows)])
    indices = np.concatenate([np.zeros(0, np.uint32), *(row.indices for row in rows)])
    width = int(indices.max(initial=0)) + 1
    kind = np.int32 if max(width, int(pointer[-1])) < 2**31 else np.int64
    np.savez_compressed(
        file, format=np.array(b"csr"), shape=np.array((len(rows), width)), indptr=pointer.astype(kind),
        indices=indices.astype(kind), data=np.concatenate([np.zeros(0, np.float32), *(row.values for row in rows)]),
    )  # fmt: skip
    _save_ids(path, info, ids)
    return len(ids)


def _npy(collection: Collection, file: BinaryIO, where: Where, field: str | None, path: str) -> int:
    info = collection.info()
    name = _chosen(info, field)
    declared = info.fields[name]
    if not isinstance(declared, Dense):
        raise InvalidInput(f"field {name!r} has sparse vectors; a name that ends in .npz writes them")
    dtype = {"f32": np.float32, "f16": np.float16, "i8": np.int8}[declared.dtype]
    ids: list[Any] = []
    header_at = file.tell()
    _npy_header(file, 0, declared.dim, dtype)
    for batch in _batches(collection, where, vectors=True):
        with_it = [point for point in batch if name in point.vectors]
        ids += [point.id for point in with_it]
        if with_it:
            file.write(np.stack([np.asarray(point.vectors[name], dtype) for point in with_it]).tobytes())
    file.seek(header_at)
    _npy_header(file, len(ids), declared.dim, dtype)
    file.seek(0, os.SEEK_END)
    _save_ids(path, info, ids)
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
    sparse = pa.struct({"indices": pa.list_(pa.uint32()), "values": pa.list_(pa.float32())})
    columns += [
        pa.field(name, pa.list_(inner[each.dtype], each.dim) if isinstance(each, Dense) else sparse)
        for name, each in info.fields.items()
    ]
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
    if pa.types.is_struct(kind):
        rows = [None if each is None else {"indices": each.indices, "values": each.values} for each in found]
        return pa.array(rows, kind)
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
