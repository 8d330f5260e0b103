"""User input -> checked batches: the one place where ids, vectors, payloads and tokens are validated.

Whatever form points arrive in (arrays, an iterable of points or dicts, an Arrow table, a pandas or polars frame), they
leave as `vecdb_storage` batches: ids of one kind, finite vectors in the stored dtype with their norms, payloads
as JSON with their typed columns. The first thing wrong raises one typed error that names point, field and remedy.
Plain functions, safe in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from vecdb_index.contract import Queries
from vecdb_storage.arrayfile import checksum
from vecdb_storage.batch import LEVEL0_BYTES, Batch, FieldRows
from vecdb_storage.column_build import NO_COLUMNS, Prepared, prepare, prepare_by_key
from vecdb_storage.ids import MAX_ID_BYTES, Id, Ints
from vecdb_storage.once import DATABASE, Kept, Token
from vecdb_storage.ulid import series, ulids

from . import sparse
from .errors import DimensionMismatch, DuplicateId, InvalidId, InvalidInput, InvalidPayload, InvalidVector
from .schema import DEFAULT_FIELD, Dense, Field, Sparse

CHUNK_BYTES = 64 << 20  # of an iterable, until a commit
_CHUNK_POINTS = 20_000
_MAX_TOKEN_BYTES = 64
_MAX_CHECKPOINT_BYTES = 400
_SMALLEST_NORM = float(np.finfo(np.float32).tiny)
_LARGEST_NORM = 2.0**62  # products and squared distances of such vectors stay finite in float32


@dataclass(slots=True)
class Point:
    """One point. vectors: field -> (dim,) array or SparseVector, only fields that it has; payload: {} when it has none."""

    id: Id
    vectors: dict[str, Any] = field(default_factory=dict)
    payload: dict[str, Any] | None = field(default_factory=dict)

    @property
    def vector(self) -> Any:
        """The vector of the unnamed field, or of the only one; None when it was not asked for or is absent."""
        if DEFAULT_FIELD in self.vectors or len(self.vectors) != 1:
            return self.vectors.get(DEFAULT_FIELD)
        return next(iter(self.vectors.values()))


# -- ids -------------------------------------------------------------------------------------------------


def checked_ids(ids: Any) -> list[Id]:
    """ids as Python ints or strings of one kind. Raises InvalidId."""
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise InvalidId(f"ids must be one-dimensional; got shape {ids.shape}")
        if ids.dtype.kind == "u" and len(ids) and int(ids.max()) > np.iinfo(np.int64).max:
            raise InvalidId("ids must fit int64", point=int(ids.max()))
        if ids.dtype.kind in "iu":
            return Ints(np.array(ids, np.int64))
        ids = ids.tolist()
    elif isinstance(ids, str | bytes | int):
        raise InvalidId(f"ids must be a sequence of ids; got a single {type(ids).__name__}, wrap it: [{ids!r}]")
    else:
        ids = list(ids)
    kinds = set(map(type, ids))
    if kinds == {str}:
        if 4 * max(map(len, ids)) > MAX_ID_BYTES or not all(ids) or not "".join(ids).isascii():
            for key in ids:
                _check_string_id(key)
    elif kinds == {int}:
        try:
            np.array(ids, np.int64)
        except OverflowError:
            wrong = next(key for key in ids if not -(2**63) <= key < 2**63)
            raise InvalidId("ids must fit int64", point=wrong) from None
    elif kinds:
        return _plain_ids(ids)
    checked: list[Id] = ids
    return checked


def _plain_ids(ids: list[Any]) -> list[Id]:
    """NumPy scalars as Python values; anything else that is no id is refused."""
    plain: list[Any] = []
    for key in ids:
        if isinstance(key, np.integer):
            key = int(key)
        elif isinstance(key, np.str_):
            key = str(key)
        elif isinstance(key, bool) or not isinstance(key, int | str):
            raise InvalidId(f"an id is an int or a str, not {type(key).__name__}", point=key)
        plain.append(key if type(key) in (int, str) else (int(key) if isinstance(key, int) else str(key)))
    if len(set(map(type, plain))) > 1:
        first = type(plain[0])
        wrong = next(key for key in plain if type(key) is not first)
        raise InvalidId(f"ids are of one kind in a collection; the first here is {first.__name__}", point=wrong)
    return checked_ids(plain)


def _check_string_id(key: str) -> None:
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidId("an id must be valid Unicode", point=key) from None
    if not 1 <= length <= MAX_ID_BYTES:
        raise InvalidId(f"an id has 1 to {MAX_ID_BYTES} UTF-8 bytes; this one has {length}", point=key[:64])


def _check_distinct(ids: Sequence[Id]) -> None:
    if isinstance(ids, Ints) and bool((ids.values[1:] > ids.values[:-1]).all()):
        return
    if len(set(ids)) != len(ids):
        seen: set[Id] = set()
        for key in ids:
            if key in seen:
                raise DuplicateId("it occurs twice in this batch; keep one of them", point=key)
            seen.add(key)


# -- tokens ------------------------------------------------------------------------------------------------


def checked_token(token: Any, call: str, place: bytes = DATABASE) -> Token | None:
    """The caller's token for one call, in a collection (place: its uuid) or the database. None: none is given."""
    if token is None:
        return None
    if not isinstance(token, bytes):
        raise InvalidInput(f"a token is bytes, not {type(token).__name__}")
    if not 1 <= len(token) <= _MAX_TOKEN_BYTES:
        raise InvalidInput(f"a token has 1 to {_MAX_TOKEN_BYTES} bytes; this one has {len(token)}")
    return Token(token, call, place)


def checked_checkpoints(checkpoints: Mapping[bytes, bytes | None]) -> Mapping[bytes, bytes | None]:
    """Raises InvalidInput where a token has no room in a key."""
    for token in checkpoints:
        if not isinstance(token, bytes) or len(token) > _MAX_CHECKPOINT_BYTES:
            what = f"{len(token):,}" if isinstance(token, bytes) else type(token).__name__
            raise InvalidInput(f"the token of a checkpoint is at most {_MAX_CHECKPOINT_BYTES} bytes, not {what}")
    return checkpoints


def token_of(token: Token, keys: Sequence[Id], made: Sequence[Id], part: int = 0) -> Token:
    """A token for a batch of these points. made: those of their ids that were made for them and not given.

    Ids that are given are the same in a repetition, so a checksum of them will do. Those that were made are not. They follow
    each other, so the first says all; to derive them from the token would give a token that is used again after
    a day the ids of other points.
    """
    new = set(made)
    told = checksum(orjson.dumps([None if key in new else key for key in keys] if new else keys))
    return replace(token, part=part, of=told, made=(str(made[0]), len(made)) if made else None)


def ids_of_first(token: Token, kept: Kept | None, keys: Sequence[Id], made: Sequence[Id]) -> list[Id]:
    """The ids that a batch has got: in a repetition, where ids were made for it, those of the first time."""
    if not made or kept is None or kept.made == (made[0], len(made)):
        return list(keys)
    if kept.made is None:
        raise token.refused(f"{token.call} of points with ids")
    again = dict(zip(made, series(kept.made[0], len(made)), strict=True))
    return [again.get(key, key) for key in keys]


# -- vectors -----------------------------------------------------------------------------------------------


def checked_vectors(
    values: Any, declared: Dense, name: str, ids: Sequence[Any], present: npt.NDArray[np.bool_] | None = None
) -> FieldRows:
    """(n, d) numbers as stored: in the field's dtype, with norms. present: rows that have this field; None for all.

    Raises DimensionMismatch or InvalidVector, naming the first point that is wrong.
    """
    given = _as_matrix(values, declared, name, ids)
    with np.errstate(over="ignore", invalid="ignore"):
        if declared.dtype == "f32":
            stored: npt.NDArray[Any] = np.ascontiguousarray(given, np.float32)
            exact = stored
        elif declared.dtype == "f16":
            stored = np.ascontiguousarray(given, np.float16)
            exact = stored.astype(np.float32)
        else:
            stored = _as_int8(given, name, ids)
            exact = stored.astype(np.float32)
        norms = np.sqrt(np.vecdot(exact, exact)).astype(np.float32)
        _settle_norms(norms, exact, given, declared, name, ids, present)
    return FieldRows(stored, norms, present)


def _settle_norms(
    norms: npt.NDArray[np.float32], exact: Any, given: Any, declared: Dense, name: str, ids: Sequence[Any], present: Any
) -> None:
    """Any NaN or infinity makes its row's norm not finite, so only suspicious rows need a second look."""
    if not len(norms) or (norms.min() > 1e-15 and norms.max() < 1e15):
        return
    suspicious = np.flatnonzero(~((norms > 1e-15) & (norms < 1e15)))
    for row in suspicious.tolist():
        if present is not None and not present[row]:
            continue
        if not np.isfinite(exact[row]).all():
            at = int(np.flatnonzero(~np.isfinite(exact[row]))[0])
            if declared.dtype == "f16" and np.isfinite(given[row, at]):
                raise InvalidVector(
                    f"{given[row, at]} at {at} overflows f16 (65,504); store the field as f32",
                    point=ids[row],
                    field=name,
                )
            value = given[row, at]
            why = f"{value} at {at}" if not np.isfinite(value) else f"{value} at {at} overflows f32"
            raise InvalidVector(f"{why}; every number must be finite", point=ids[row], field=name)
        norms[row] = np.sqrt(np.vecdot(exact[row].astype(np.float64), exact[row].astype(np.float64)))
        if declared.metric == "cosine" and norms[row] < _SMALLEST_NORM:
            raise InvalidVector(
                "a zero vector (or one shorter than 1.2e-38) has no direction under cosine; "
                "leave it out, or use metric='ip' or 'l2'",
                point=ids[row], field=name,
            )  # fmt: skip
        if not norms[row] <= (_LARGEST_NORM if declared.metric != "cosine" else np.finfo(np.float32).max):
            why = f"its length, {norms[row]:.3g}, makes products or distances overflow f32; scale it down"
            raise InvalidVector(why, point=ids[row], field=name)


def _as_matrix(values: Any, declared: Dense, name: str, ids: Sequence[Any]) -> npt.NDArray[Any]:
    try:
        given = np.asarray(values)
    except ValueError:
        given = np.empty(0, object)
    if given.dtype.kind not in "fiu" or given.ndim != 2:
        if given.ndim == 2 and given.dtype.kind == "b":
            raise InvalidVector("numbers are needed, not booleans", field=name)
        if len(ids) == 0 and given.size == 0:
            return np.zeros((0, declared.dim), np.float32)
        _diagnose(values, declared, name, ids)
    if len(given) != len(ids):
        raise InvalidInput(f"{len(given)} vectors for {len(ids)} ids", field=name)
    if given.shape[1] != declared.dim:
        raise _wrong_length(given.shape[1], declared, name, ids[0] if len(ids) else None)
    return given


def _diagnose(values: Any, declared: Dense, name: str, ids: Sequence[Any]) -> None:
    """Finds the row that keeps `values` from being a matrix of numbers, and raises."""
    if not isinstance(values, Sequence | np.ndarray) or (isinstance(values, np.ndarray) and values.ndim == 1):
        raise InvalidInput(f"vectors must be a matrix, one row per id; got {_shape(values)}", field=name)
    for key, row in zip(ids, values, strict=False):
        try:
            vector = np.asarray(row)
        except ValueError:
            vector = np.empty(0, object)
        if vector.dtype.kind not in "fiu":
            strange = [(i, v) for i, v in enumerate(row) if not isinstance(v, int | float)] if isinstance(row, list) else []
            which = f"; at {strange[0][0]} it holds {strange[0][1]!r}" if strange else ""
            raise InvalidVector(f"it is not a list of numbers: {_shape(row)}{which}", point=key, field=name)
        if vector.ndim != 1 or len(vector) != declared.dim:
            raise _wrong_length(vector.size if vector.ndim == 1 else vector.shape, declared, name, key)
    raise InvalidInput(f"vectors must be a matrix, one row per id; got {_shape(values)}", field=name)


def _wrong_length(got: Any, declared: Dense, name: str, key: Any) -> DimensionMismatch:
    return DimensionMismatch(f"got {got} numbers, the field has {declared.dim}", point=key, field=name)


def _shape(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {shape}" if shape is not None else type(value).__name__


def _as_int8(given: npt.NDArray[Any], name: str, ids: Sequence[Any]) -> npt.NDArray[np.int8]:
    right = (given >= -128) & (given <= 127)
    if given.dtype.kind == "f":
        right &= given == np.trunc(given)
    if not right.all():
        row, at = map(int, np.argwhere(~right)[0])
        raise InvalidVector(
            f"{given[row, at]} at {at} is not a whole number from -128 to 127; i8 fields are never rescaled, "
            f"so quantise first or use f32",
            point=ids[row], field=name,
        )  # fmt: skip
    return np.ascontiguousarray(given, np.int8)


def checked_queries(queries: Any, declared: Field, name: str) -> Queries:
    """(m, d) float32 queries, or sparse ones. Raises DimensionMismatch or InvalidVector naming the query by its position."""
    if isinstance(declared, Sparse):
        return sparse.checked_queries(queries, name)
    if isinstance(queries, np.ndarray) and queries.dtype == np.float32 and queries.shape == (1, declared.dim):
        with np.errstate(over="ignore"):  # and not `dot`, which lets go of the interpreter, even for a microsecond
            square = np.vecdot(queries, queries)[0]
        if 1e-30 < square < 1e30:  # the common case
            return np.ascontiguousarray(queries)
    try:
        given = _as_matrix(queries, declared, name, _Positions(len(queries)))
    except InvalidInput as error:
        raise type(error)(error.reason, query=error.point, field=error.field) from None
    with np.errstate(over="ignore"):
        checked = np.ascontiguousarray(given, np.float32)
        total = float(np.vecdot(checked.reshape(-1), checked.reshape(-1))) if len(checked) == 1 else np.nan
    if 1e-30 < total < 1e30:  # the common case, in one pass
        return checked
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.vecdot(checked, checked)
    doubtful = np.flatnonzero(~((squares > 1e-30) & (squares < 1e30)))
    for position, query in zip(doubtful.tolist(), checked[doubtful], strict=True):
        if not np.isfinite(query).all():
            raise InvalidVector("every number of a query must be finite", query=position, field=name)
        length = float(np.linalg.norm(query.astype(np.float64)))
        if declared.metric == "cosine" and length < _SMALLEST_NORM:
            raise InvalidVector("a zero query has no direction under cosine", query=position, field=name)
        if declared.metric != "cosine" and length > _LARGEST_NORM:
            why = f"its length, {length:.3g}, makes products or distances overflow f32; scale it down"
            raise InvalidVector(why, query=position, field=name)
    return checked


class _Positions(Sequence[int]):
    """Stands for the ids of queries, which have none."""

    def __init__(self, count: int) -> None:
        self._range = range(count)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, at: Any) -> Any:
        return self._range[at]


# -- batches -----------------------------------------------------------------------------------------------


def batch_from_arrays(
    fields: Mapping[str, Field],
    ids: Any,
    vectors: Any,
    payloads: Any,
    *,
    count: int | None = None,
    early: Callable[[dict[str, FieldRows]], None] | None = None,
    columns: bool = True,
) -> Batch:
    """One batch from columns: ids (n) or None for new ULIDs; vectors (n, d), or field -> (n, d) in which a row may be
    None where the point lacks the field; payloads: n dicts (or None), a dict of columns, or None. early: told the checked
    vectors before payloads are looked at, so that it can begin to write them. columns: false where it is not stored here.
    """
    by_field = _by_field(fields, vectors)
    if ids is None:
        sizes = [_count(v) for v in by_field.values()]
        count = sizes[0] if sizes else count
        if count is None:
            raise InvalidInput("nothing to write: give vectors=, texts= or points")
        keys: list[Id] = [*ulids(count)]
    else:
        keys = checked_ids(ids)
        _check_distinct(keys)
    stored = {}
    for name, values in by_field.items():
        if _count(values) != len(keys):
            raise InvalidInput(f"{_count(values)} vectors for {len(keys)} ids", field=name)
        declared = fields[name]
        if isinstance(declared, Sparse):
            given, present = (values, None) if hasattr(values, "tocsr") else _fill_absent(values, dict)
            stored[name] = sparse.checked_rows(given, name, keys, present)
        else:
            given, present = _fill_absent(values, partial(np.zeros, declared.dim, np.float32))
            stored[name] = checked_vectors(given, declared, name, keys, present)
    if not stored and keys:
        raise InvalidInput(f"points need a vector; this collection's fields are {', '.join(fields)}")
    if early is not None:
        early(stored)
    large = sum(rows.vectors.nbytes for rows in stored.values()) >= LEVEL0_BYTES
    if payloads is None:  # nothing to walk
        return Batch(keys, stored, [b""] * len(keys), (), NO_COLUMNS if large else None)
    prepared = _prepared(payloads, keys, columns=large and columns)
    return Batch(keys, stored, prepared.json, (), prepared.columns, raw=prepared.raw)


def _prepared(payloads: Any, keys: Sequence[Id], *, columns: bool) -> Prepared:
    """payloads: n dicts or None, or a dict of columns."""
    try:
        if isinstance(payloads, Mapping):
            return prepare_by_key(_as_columns(payloads, len(keys)), len(keys), columns=columns)
        return prepare(_as_rows(payloads, len(keys)), columns=columns)
    except InvalidPayload as error:  # it knows the row; the user knows the id
        if isinstance(error.point, int) and error.reason:
            raise InvalidPayload(error.reason, point=keys[error.point], field=error.field) from None
        raise


def _by_field(fields: Mapping[str, Field], vectors: Any) -> dict[str, Any]:
    if vectors is None:
        return {}
    if isinstance(vectors, Mapping):
        for name in vectors:
            if name not in fields:
                raise InvalidInput(f"no such field; this collection has {', '.join(fields)}", field=str(name))
        return dict(vectors)
    return {only_field(fields): vectors}


def only_field(fields: Mapping[str, Field]) -> str:
    """The field that is meant when none is named. Raises InvalidInput when that is not clear."""
    if DEFAULT_FIELD in fields:
        return DEFAULT_FIELD
    if len(fields) == 1:
        return next(iter(fields))
    raise InvalidInput(f"name the field, one of {', '.join(fields)}")


def field_named(fields: Mapping[str, Field], name: str | None) -> str:
    """The field that is meant; None for the only one. Raises InvalidInput."""
    if name is None:
        return only_field(fields)
    if name not in fields:
        raise InvalidInput(f"no such field; this collection has {', '.join(fields)}", field=name)
    return name


def _count(values: Any) -> int:
    """How many rows there are; SciPy's sparse matrices have no length."""
    return int(values.shape[0]) if hasattr(values, "tocsr") else len(values)


def _fill_absent(values: Any, nothing: Callable[[], Any]) -> tuple[Any, npt.NDArray[np.bool_] | None]:
    """With something in the place of rows that are None, and which rows are not."""
    if not isinstance(values, Sequence) or not any(v is None for v in values):
        return values, None
    present = np.array([v is not None for v in values])
    absent = nothing()
    return [absent if v is None else v for v in values], present


def _as_columns(payloads: Mapping[Any, Any], count: int) -> dict[str, list[Any]]:
    columns = {str(key): _as_list(column) for key, column in payloads.items()}
    for key, column in columns.items():
        if len(column) != count:
            raise InvalidInput(f"payload column {key!r} has {len(column)} values for {count} points")
    return columns


def _as_rows(payloads: Any, count: int) -> list[dict[str, Any] | None]:
    if not isinstance(payloads, Iterable):
        raise InvalidInput(f"payloads are a list of dicts, one for each point, or a dict of columns; not {payloads!r}")
    rows = payloads if isinstance(payloads, list) else list(payloads)
    if len(rows) != count:
        raise InvalidInput(f"{len(rows)} payloads for {count} points")
    return rows


def _as_list(column: Any) -> list[Any]:
    if hasattr(column, "to_pylist"):
        return list(column.to_pylist())
    if isinstance(column, str | bytes) or not isinstance(column, Iterable):
        raise InvalidInput(f"a payload column is a list with a value for each point, not {column!r}")
    return list(column.tolist() if hasattr(column, "tolist") else column)


Chunk = Callable[[Mapping[str, Field]], tuple[Batch, list[Id]]]


def chunks_of(source: Any, fields: Mapping[str, Field]) -> Iterator[Chunk]:
    """An Arrow table or a frame (one chunk), or an iterable of points or dicts, chunk by chunk.

    Each gives its batch for fields as they are then, and those of its ids that were made for points that had none. It may be
    asked again, for other fields. fields: by which the size of chunks is chosen.
    """
    if hasattr(source, "__arrow_c_stream__"):
        yield lambda known: _batch_from_table(known, source)
        return
    if isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable):
        raise InvalidInput(
            f"cannot read points from {type(source).__name__}: give ids= and vectors=, an iterable of points or dicts, "
            f"an Arrow table or a data frame"
        )
    points = iter(source)
    row_bytes = 1000 + sum(4 * declared.dim if isinstance(declared, Dense) else 1000 for declared in fields.values())
    size = max(1, min(_CHUNK_POINTS, CHUNK_BYTES // row_bytes))
    while some := list(islice(points, size)):
        yield partial(_batch_from_points, points=some)


_POINT_KEYS = {"id", "vector", "vectors", "payload"}


def _batch_from_points(fields: Mapping[str, Field], points: list[Any]) -> tuple[Batch, list[Id]]:
    ids: list[Any] = []
    payloads = []
    without: list[int] = []  # an id
    columns: dict[str, list[Any]] = {}
    key: Any
    for position, point in enumerate(points):
        if isinstance(point, Point):
            key, given, payload = point.id, point.vectors, point.payload
            if not isinstance(given, Mapping):
                raise InvalidInput(f"Point.vectors maps fields to vectors, as in {{'{DEFAULT_FIELD}': [1, 2]}}", point=key)
        elif isinstance(point, Mapping):
            strangers = point.keys() - _POINT_KEYS
            if strangers:
                raise InvalidInput(
                    f"unknown key {sorted(map(str, strangers))[0]!r}; a point has id, vector or vectors, payload",
                    point=point.get("id", position),
                )
            key, payload = point.get("id"), point.get("payload")
            given = dict(point.get("vectors") or {})
            if point.get("vector") is not None:
                given[only_field(fields)] = point["vector"]
        else:
            raise InvalidInput(f"it is a {type(point).__name__}; give Point or dict", point=position)
        if not given:
            raise InvalidInput("it has no vector", point=key if key is not None else position)
        if key is None:
            without.append(position)
        ids.append(key)
        payloads.append(payload)
        for name, vector in given.items():
            if name not in columns:
                columns[name] = [None] * position
            columns[name].append(vector)
        for column in columns.values():
            if len(column) <= position:
                column.append(None)
    made: list[Id] = [*ulids(len(without))]
    for position, key in zip(without, made, strict=True):
        ids[position] = key
    return batch_from_arrays(fields, ids, columns, payloads), made


def _batch_from_table(fields: Mapping[str, Field], source: Any) -> tuple[Batch, list[Id]]:
    """One batch from anything that speaks Arrow's C stream: column `id`, one column per field (lists of numbers, or for sparse
    ones structs of two lists or maps; `vector` for an unnamed one), and all other columns as payload. Null payload values are
    left out.
    """
    import pyarrow as pa

    table = pa.table(source)
    vectors = {}
    for name in fields:
        if name in table.column_names:
            vectors[name] = rows_of_column(table.column(name), name, fields[name])
    if not vectors and "vector" in table.column_names:
        name = only_field(fields)
        vectors[name] = rows_of_column(table.column("vector"), "vector", fields[name])
    if not vectors:
        raise InvalidInput(
            f"the table has no vector column: name one {' or '.join(fields)}; it has {', '.join(table.column_names)}"
        )
    ids = table.column("id").to_pylist() if "id" in table.column_names else None
    if ids is not None and None in ids:
        raise InvalidId("the id column has nulls; drop the column to have ids generated", point=ids.index(None))
    rest = table.drop_columns([n for n in table.column_names if n in vectors or n in ("id", "vector")])
    payloads = [_without_nulls(row) for row in rest.to_pylist()] if rest.num_columns else None
    batch = batch_from_arrays(fields, ids, vectors, payloads, count=table.num_rows)
    return batch, list(batch.keys) if ids is None else []


def rows_of_column(column: Any, name: str, declared: Field) -> Any:
    """A column of a table as the vectors of a field."""
    return sparse.rows_of_column(column, name) if isinstance(declared, Sparse) else vectors_of_column(column, name)


def vectors_of_column(column: Any, name: str) -> Any:
    """A list column as a matrix, without a copy of its numbers when its rows are all there and of one length."""
    import pyarrow as pa

    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type)):
        raise InvalidVector(f"the column has type {column.type}; lists of numbers are needed", field=name)
    if column.null_count or not len(column):
        return column.to_pylist()
    flat = column.flatten()
    if len(flat) % len(column) or flat.null_count:
        return column.to_pylist()
    width = len(flat) // len(column)
    if not pa.types.is_fixed_size_list(column.type):
        lengths = np.diff(np.asarray(column.offsets))
        if np.any(lengths != width):
            return column.to_pylist()
    numbers = pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)  # to_numpy would import pandas for them
    return (np.from_dlpack(flat) if numbers else flat.to_numpy(zero_copy_only=False)).reshape(len(column), width)


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}
