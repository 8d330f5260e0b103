"""Points, vectors, filters and figures <-> messages. Each pair of functions is the other's inverse.

What a message says is read as what a user said: it is checked where everything is, in `vecdb/points.py`, or by the functions
that it is handed to. Only what these could not see is refused here (numbers that do not fill rows, a filter of no kind).
Arrays are views of the message's bytes, not copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields as fields_of_class
from dataclasses import is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import orjson
from vecdb_storage.vectors import SparseVectors

from ..errors import InvalidFilter, InvalidInput, InvalidPayload, InvalidVector
from ..filters import Expression, F
from ..filters import parse as parse_filter
from ..filters.expression import And, Compare, Contains, Exists, In, IsNull, Not, Or, StartsWith
from ..hits import Group, Hit
from ..points import Point
from ..schema import AUTO, Dense, Field, Sparse, checked_index, field_from_json, index_to_json
from ..sparse import SparseVector, Unchecked, checked_rows
from . import messages

Id = int | str
_DTYPES: dict[int, np.dtype[Any]] = {number: np.dtype(name) for number, name in enumerate(("<f4", "<f4", "<f2", "i1", "<f8"))}
F32 = 1  # of Dtype
_NUMBERS = {"f32": F32, "f16": 2, "i8": 3}
_DTYPE_NAMES = {0: "f32", **{number: name for name, number in _NUMBERS.items()}}
_METRICS = {"cosine": 1, "ip": 2, "l2": 3}
_METRIC_NAMES = {0: "cosine", **{number: name for name, number in _METRICS.items()}}
_OPS = {"==": 1, "!=": 2, "<": 3, "<=": 4, ">": 5, ">=": 6}
_OP_NAMES = {number: op for op, number in _OPS.items()}

# -- ids -----------------------------------------------------------------------------------------------------


def to_id(key: Id) -> Any:
    return messages.Id(text=key) if isinstance(key, str) else messages.Id(number=key)


def from_id(message: Any) -> Id | None:
    """None where it is left out."""
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    found: Id = message.text if kind == "text" else message.number
    return found


def to_ids(keys: Sequence[Id]) -> Any:
    made = messages.Ids()
    fill_ids(made, keys)
    return made


def fill_ids(message: Any, keys: Sequence[Id]) -> None:
    if len(keys) and isinstance(keys[0], str):
        message.texts.extend(keys)
    else:
        message.numbers.extend(keys)


def from_ids(message: Any) -> list[Id]:
    if message.numbers and message.texts:
        raise InvalidInput("ids are of one kind: numbers or texts")
    return list(message.texts) if message.texts else list(message.numbers)


# -- vectors -------------------------------------------------------------------------------------------------


def to_vector(vector: Any) -> Any:
    """Of an ndarray, or a SparseVector."""
    if isinstance(vector, SparseVector):
        return messages.Vector(sparse=messages.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist()))
    packed = _packed(vector)
    return messages.Vector(dtype=_number_of(packed), data=packed.tobytes())


def from_vector(message: Any, field: str | None = None) -> Any:
    """An array or a SparseVector, or None where nothing is given."""
    if message.HasField("sparse"):
        return SparseVector.checked((np.array(message.sparse.indices, np.uint32), np.array(message.sparse.values)), field)
    if message.values and message.data:
        raise InvalidVector("give data or values, not both", field=field)
    if message.values:
        return np.array(message.values, np.float32)
    return _numbers(message, field) if message.data else None


def to_matrix(rows: Any, present: npt.NDArray[np.bool_] | None = None) -> Any:
    made = messages.Matrix()
    fill_matrix(made, rows, present)
    return made


def fill_matrix(message: Any, rows: Any, present: npt.NDArray[np.bool_] | None = None) -> None:
    """rows: (n, dim), or sparse ones."""
    if isinstance(rows, np.ndarray):
        packed = _packed(rows)
        message.dtype, message.dim, message.data = _number_of(packed), rows.shape[1], packed.tobytes()
    else:
        tight = SparseVectors(rows.offsets, rows.indices, rows.weights).tight()
        message.sparse.lengths.extend(tight.lengths.tolist())
        message.sparse.indices, message.sparse.values = tight.indices.tobytes(), tight.weights.tobytes()
    if present is not None:
        message.present = np.packbits(present, bitorder="little").tobytes()


def fill_rows(message: Any, rows: Sequence[Any]) -> None:
    """Rows of which some may not be there, and one is: arrays, or SparseVectors."""
    some = next(row for row in rows if row is not None)
    present = np.array([row is not None for row in rows])
    whole: Any
    if isinstance(some, SparseVector):
        whole = checked_rows([{} if row is None else row for row in rows], "", range(len(rows))).vectors
        return fill_matrix(message, whole, None if present.all() else present)
    whole = np.stack([np.zeros_like(some) if row is None else row for row in rows])
    fill_matrix(message, whole, None if present.all() else present)


def from_matrix(message: Any, field: str | None = None) -> Any:
    """(n, dim) numbers, or sparse rows, not checked; or a list of rows with None where a point lacks the field."""
    if message.HasField("sparse"):
        return _with_absent(message, _sparse_rows(message.sparse, field), field)
    if message.values and message.data:
        raise InvalidVector("give data or values, not both", field=field)
    flat = np.array(message.values, np.float32) if message.values else _numbers(message, field)
    if message.dim == 0 or len(flat) % message.dim:
        raise InvalidVector(f"{len(flat)} numbers do not fill rows of dim={message.dim}", field=field)
    return _with_absent(message, flat.reshape(-1, message.dim), field)


def _sparse_rows(message: Any, field: str | None) -> Unchecked:
    lengths = np.array(message.lengths, np.int64)
    if len(message.indices) != 4 * int(lengths.sum()) or len(message.values) != len(message.indices):
        raise InvalidVector(
            f"{len(message.indices)} bytes of components and {len(message.values)} of weights do not fill rows of "
            f"{int(lengths.sum())} components, in 4 bytes each", field=field,
        )  # fmt: skip
    return Unchecked(lengths, np.frombuffer(message.indices, "<u4"), np.frombuffer(message.values, "<f4"))


def row_of(rows: Any, at: int) -> Any:
    """One of the rows of a reply, in an array of its own or as a SparseVector; None where it is not there."""
    row = rows[at]
    if row is None or isinstance(row, SparseVector):
        return row
    return row.copy()


def rows_of_reply(message: Any, field: str | None = None) -> Any:
    """As `from_matrix`, of rows that a server has checked: those of a sparse field as SparseVectors."""
    found = from_matrix(message, field)
    if not message.HasField("sparse"):
        return found
    return [None if row is None else SparseVector(*row) for row in (found if isinstance(found, list) else found.rows())]


def _with_absent(message: Any, rows: Any, field: str | None) -> Any:
    """The rows, or a list of them with None for those that are not there."""
    if not message.present:
        return rows
    if len(message.present) != -(-len(rows) // 8):
        raise InvalidInput(f"present has {len(message.present)} bytes for {len(rows)} rows, a bit for each", field=field)
    bits = np.unpackbits(np.frombuffer(message.present, np.uint8), count=len(rows), bitorder="little")
    single = rows.rows() if isinstance(rows, Unchecked) else rows
    return [row if there else None for row, there in zip(single, bits.tolist(), strict=True)]


def _numbers(message: Any, field: str | None) -> npt.NDArray[Any]:
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise InvalidVector(f"there is no dtype {message.dtype}; this server knows f32, f16, i8 and f64", field=field)
    if len(message.data) % dtype.itemsize:
        raise InvalidVector(f"{len(message.data)} bytes do not fill numbers of {dtype.itemsize} bytes", field=field)
    return np.frombuffer(message.data, dtype)


def _packed(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if numbers.dtype not in (np.float32, np.float16, np.int8, np.float64):
        numbers = numbers.astype(np.float32)
    return np.ascontiguousarray(numbers)


def _number_of(numbers: npt.NDArray[Any]) -> int:
    return {"f4": 1, "f2": 2, "i1": 3, "f8": 4}[numbers.dtype.str[1:]]


def to_with_vectors(names: bool | str | Sequence[str] | None) -> Any:
    """None where no vectors are wanted."""
    if names is True:
        return messages.WithVectors(all=True)
    if not names:
        return None
    return messages.WithVectors(fields=[names] if isinstance(names, str) else names)


def from_with_vectors(message: Any) -> bool | list[str]:
    return True if message.all else list(message.fields) or False


# -- payloads, points ----------------------------------------------------------------------------------------


def from_payload(data: bytes, point: object = None) -> dict[str, Any] | None:
    if not data:
        return None
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidPayload(f"it is no JSON: {error}", point=point) from None
    if not isinstance(found, dict):
        raise InvalidPayload(f"it is a JSON object, not {type(found).__name__}", point=point)
    return found


def from_payloads(data: Sequence[bytes]) -> list[dict[str, Any] | None] | None:
    """None where there is no element at all."""
    if not data:
        return None
    try:  # all in one, which is quicker; an empty one fails, as does one that is no JSON
        found: list[Any] = orjson.loads(b"[" + b",".join(data) + b"]")
    except orjson.JSONDecodeError:
        found = []
    if len(found) == len(data) and set(map(type, found)) == {dict}:
        return found
    return [from_payload(each, position) for position, each in enumerate(data)]


def to_payload(payload: Any) -> bytes:
    """Of a dict, or of JSON as it is stored."""
    return payload if isinstance(payload, bytes) else orjson.dumps(payload) if payload else b""


def to_point(point: Point) -> Any:
    made = messages.Point(id=to_id(point.id), payload=to_payload(point.payload))
    for name, vector in point.vectors.items():
        made.vectors[name].CopyFrom(to_vector(vector))
    return made


def from_point(message: Any, *, with_payload: bool = True) -> Point:
    """A point of a reply, which has an id."""
    key = from_id(message.id)
    assert key is not None
    payload = (from_payload(message.payload) or {}) if with_payload else None
    return Point(key, _vectors(message.vectors), payload)


def point_to_write(message: Any) -> dict[str, Any]:
    """A point of a request, as the dict that `upsert` takes."""
    made: dict[str, Any] = {"id": from_id(message.id), "payload": from_payload(message.payload, from_id(message.id))}
    vectors = {name: from_vector(vector, name) for name, vector in message.vectors.items()}
    if "" in vectors:
        made["vector"] = vectors.pop("")
    return {**made, "vectors": vectors}


def _vectors(found: Any) -> dict[str, Any]:
    vectors = {name: from_vector(vector) for name, vector in found.items()}
    return {name: vector if isinstance(vector, SparseVector) else vector.copy() for name, vector in vectors.items()}


def to_columns(points: Sequence[Point], *, with_payload: bool) -> Any:
    """Points of a collection, by columns."""
    made = messages.Columns(ids=to_ids([point.id for point in points]))
    if with_payload:
        made.payloads.extend([to_payload(point.payload) for point in points])
    for name in {name for point in points for name in point.vectors}:
        fill_rows(made.vectors[name], [point.vectors.get(name) for point in points])
    return made


def from_columns(message: Any, *, with_payload: bool) -> list[Point]:
    keys = from_ids(message.ids)
    vectors = {name: rows_of_reply(rows, name) for name, rows in message.vectors.items()}
    payloads = (from_payloads(message.payloads) or [None] * len(keys)) if with_payload else [None] * len(keys)
    return [
        Point(
            key,
            {name: row_of(rows, at) for name, rows in vectors.items() if rows[at] is not None},
            (payload or {}) if with_payload else None,
        )
        for at, (key, payload) in enumerate(zip(keys, payloads, strict=True))
    ]


# -- hits ----------------------------------------------------------------------------------------------------


def add_hits(hits: Iterable[Hit], into: Any) -> None:
    """Hits at the end of a repeated field. Each is filled where it lies, which takes a fifth of making and copying it."""
    add = into.add
    for hit in hits:
        made, key = add(), hit.id
        if isinstance(key, str):
            made.id.text = key
        else:
            made.id.number = key
        made.score = hit.score
        if hit.label is not None:
            made.label = hit.label
        if hit.payload:
            made.payload = to_payload(hit.payload)
        for name, vector in hit.vectors.items():
            made.vectors[name].CopyFrom(to_vector(vector))


def from_hit(message: Any, *, with_payload: bool) -> Hit:
    key = message.id
    data = message.payload
    payload = (orjson.loads(data) if data else {}) if with_payload else None
    return Hit(
        key.text if key.WhichOneof("kind") == "text" else key.number,
        message.score,
        payload,
        _vectors(message.vectors) if message.vectors else {},
        message.label or None,
    )


def to_group(group: Group) -> Any:
    made = messages.Group(value=to_literal(group.value))
    add_hits(group.hits, made.hits)
    return made


# -- filters -------------------------------------------------------------------------------------------------


def to_literal(value: Any) -> Any:
    if value is None:
        return messages.Literal(null=messages.Null())
    if isinstance(value, bool):
        return messages.Literal(boolean=value)
    if isinstance(value, datetime):
        return messages.Literal(date=value.astimezone(UTC).isoformat())
    kind = {int: "integer", float: "number", str: "text"}[type(value)]
    return messages.Literal(**{kind: value})


def from_literal(message: Any, path: str | None = None) -> Any:
    kind = message.WhichOneof("value")
    if kind is None:
        raise InvalidFilter("a value is missing; for the JSON null say null {}", field=path)
    if kind == "null":
        return None
    if kind == "date":
        try:
            return datetime.fromisoformat(message.date)
        except ValueError:
            raise InvalidFilter(f"{message.date!r} is no RFC 3339 date", field=path) from None
    return getattr(message, kind)


def to_filter(where: Any) -> Any:
    """A filter of a user, as expression, dict or text; None where there is none."""
    expression = parse_filter(where)
    return None if expression is None else _to_node(expression)


def _to_node(node: Expression) -> Any:
    kinds = messages.Filter
    match node:
        case Compare():
            return kinds(compare=kinds.Compare(path=node.path, op=_OPS[node.op], value=to_literal(node.value)))
        case In():
            return kinds(**{"in": kinds.In(path=node.path, values=[to_literal(value) for value in node.values])})
        case Contains():
            return kinds(contains=kinds.Contains(path=node.path, value=to_literal(node.value)))
        case StartsWith():
            return kinds(starts_with=kinds.StartsWith(path=node.path, prefix=node.prefix))
        case Exists():
            return kinds(exists=kinds.Path(path=node.path))
        case IsNull():
            return kinds(is_null=kinds.Path(path=node.path))
        case And() | Or():
            parts = kinds.Parts(parts=[_to_node(part) for part in node.parts])
            return kinds(**{"and" if isinstance(node, And) else "or": parts})
        case Not():
            return kinds(**{"not": _to_node(node.part)})
    raise TypeError(f"{type(node).__name__} is no filter")


def from_filter(message: Any) -> Expression | None:
    """Raises InvalidFilter."""
    kind = message.WhichOneof("node")
    if kind is None:
        return None
    value = getattr(message, kind)
    match kind:
        case "expression":
            return parse_filter(value)
        case "compare":
            op, literal, f = _OP_NAMES.get(value.op), from_literal(value.value, value.path), F(value.path)
            made = {"==": F.__eq__, "!=": F.__ne__, "<": F.__lt__, "<=": F.__le__, ">": F.__gt__, ">=": F.__ge__}
            if op is None:
                raise InvalidFilter("a comparison has an op", field=value.path)
            return made[op](f, literal)
        case "in":
            return F(value.path).in_([from_literal(each, value.path) for each in value.values])
        case "contains":
            return F(value.path).contains(from_literal(value.value, value.path))
        case "starts_with":
            return F(value.path).startswith(value.prefix)
        case "exists":
            return F(value.path).exists()
        case "is_null":
            return F(value.path).is_null()
        case "not":
            return ~_needed(value)
    parts = [_needed(part) for part in value.parts]
    if not parts:
        raise InvalidFilter(f"{kind} has no parts")
    if len(parts) == 1:
        return parts[0]
    return And(tuple(parts)) if kind == "and" else Or(tuple(parts))


def _needed(message: Any) -> Expression:
    made = from_filter(message)
    if made is None:
        raise InvalidFilter("a part of the filter is empty")
    return made


# -- schemas -------------------------------------------------------------------------------------------------


def to_field(name: str, declared: Field) -> Any:
    if isinstance(declared, Sparse):
        return messages.Field(name=name, sparse=messages.Sparse(index=_to_index(declared.to_json()["index"])))
    told = declared.to_json()
    return messages.Field(
        name=name,
        dense=messages.Dense(
            dim=declared.dim, metric=_METRICS[declared.metric], dtype=_NUMBERS[declared.dtype], index=_to_index(told["index"])
        ),
    )


def from_field(message: Any) -> Field:
    if message.HasField("sparse"):
        return Sparse(from_index(message.sparse.index))
    if not message.HasField("dense"):
        raise InvalidInput("a field is dense or sparse; say which")
    dense = message.dense
    metric, dtype = _METRIC_NAMES.get(dense.metric), _DTYPE_NAMES.get(dense.dtype)
    if metric is None or dtype is None:
        raise InvalidInput(f"there is no metric {dense.metric} or no dtype {dense.dtype} of stored vectors")
    return Dense(dense.dim, metric, dtype, from_index(dense.index))  # type: ignore[arg-type]


def from_stored_field(message: Any) -> Field:
    """As the server says that it is, with an index that this process may not know."""
    kind = message.WhichOneof("kind")
    index: Any = getattr(message, kind).index
    index = AUTO if index.backend in ("", AUTO) else {"backend": index.backend, "params": orjson.loads(index.params or b"{}")}
    if kind == "sparse":
        return field_from_json({"kind": kind, "index": index})
    dim, metric, dtype = message.dense.dim, _METRIC_NAMES[message.dense.metric], _DTYPE_NAMES[message.dense.dtype]
    return field_from_json({"kind": kind, "dim": dim, "metric": metric, "dtype": dtype, "index": index})


def to_index(index: Any) -> Any:
    """Parameters of a backend, its name, or "auto"."""
    return _to_index(index_to_json(checked_index(index)))


def _to_index(told: Any) -> Any:
    if told == AUTO:
        return messages.Index(backend=AUTO)
    return messages.Index(backend=told["backend"], params=orjson.dumps(told["params"]))


def from_index(message: Any) -> Any:
    if message.backend in ("", AUTO):
        return AUTO
    defaults = checked_index(message.backend)
    try:
        params = orjson.loads(message.params or b"{}")
        return type(defaults)(**params)
    except (orjson.JSONDecodeError, TypeError, ValueError) as error:
        raise InvalidInput(f"parameters of {message.backend}: {error}") from None


# -- figures -------------------------------------------------------------------------------------------------


def to_figures(value: Any, kind: Any) -> Any:
    """A dataclass as the message `kind`, whose fields have the same names."""
    made = kind()
    for name in (field.name for field in kind.DESCRIPTOR.fields):
        given = getattr(value, name)
        if given is None:
            continue
        if name == "ids":
            made.ids.CopyFrom(to_ids(list(given)))
        elif is_dataclass(given):
            child = getattr(made, name)
            child.CopyFrom(to_figures(given, type(child)))
        elif isinstance(given, Mapping):
            getattr(made, name).update(given)
        elif isinstance(given, list | tuple):
            if given and is_dataclass(given[0]):
                child = messages.__getattr__(kind.DESCRIPTOR.fields_by_name[name].message_type.name)
                getattr(made, name).extend([to_figures(each, child) for each in given])
            else:
                getattr(made, name).extend(given)
        else:
            setattr(made, name, given)
    return made


def from_figures(message: Any, kind: Any) -> Any:
    """The dataclass again."""
    values: dict[str, Any] = {}
    hints = _hints(kind)
    for each in fields_of_class(kind):
        described = message.DESCRIPTOR.fields_by_name.get(each.name)
        if described is None:
            continue
        if each.name == "ids":
            values["ids"] = tuple(from_ids(message.ids))
            continue
        found = getattr(message, each.name)
        if described.has_presence and not message.HasField(each.name):
            values[each.name] = None
            continue
        hint = hints[each.name]
        inner = next((arg for arg in (hint, *get_args(hint)) if is_dataclass(arg)), None)
        outer = get_origin(hint)
        if outer in (list, tuple):
            several = [from_figures(one, inner) if inner is not None else one for one in found]
            values[each.name] = tuple(several) if outer is tuple else several
        elif outer is dict:
            values[each.name] = dict(found)
        else:
            values[each.name] = found if inner is None else from_figures(found, inner)
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields, whose names may be known only to type checkers."""
    from ..upkeep.probing import Probed

    return get_type_hints(kind, localns={"Probed": Probed, "Dense": Dense})
