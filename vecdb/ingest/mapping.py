"""Which columns of a file become id, vectors, text and payload: guessed from names and first rows, or as the user says.

Guesses are made once, of the first file, and shown before anything is written; the other files must have the columns that
they name. Plain functions and immutable values; safe in any thread.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from ..errors import InvalidFile, InvalidInput
from ..points import vectors_of_column
from ..schema import DEFAULT_FIELD, MAX_DIM, Field, Sparse
from ..sparse import Unchecked, from_json, is_sparse, is_sparse_column, rows_of_column
from .readers import Piece

if TYPE_CHECKING:
    import pyarrow as pa

ROW, ULID = ":row", ":ulid"  # in the place of an id column: the row's number, or a new ULID
_IDS = ("id", "_id", "ids", "point_id", "doc_id", "docid", "document_id", "uuid", "guid", "key", "pk")
_VECTORS = (
    "vector", "vectors", "embedding", "embeddings", "emb", "vec", "features", "values", "dense", "sparse",
    "sparse_vector", "terms", "weights",
)  # fmt: skip
_TEXTS = ("text", "content", "body", "chunk", "passage", "document", "page_content", "abstract", "title")
_NUMBERED = re.compile(r"(.*?)(\d+)")
JSON_COLUMN = {b"vecdb": b"json"}  # metadata of an Arrow column of JSON texts
_LOOKED_AT = 100  # rows, to tell what a column without a type is


@dataclass(frozen=True)
class Column:
    """What a column holds, by the first rows.

    kind: int, text, number, bool, time, vector, sparse (vectors), list, object, binary or empty.
    """

    kind: str
    dim: int | None = None  # of vectors
    dtype: str | None = None  # of a field that would hold them as they are
    said: str = ""  # its type, for people


@dataclass(frozen=True)
class Wanted:
    """What the user says; None is guessed. id: a column, ROW or ULID. vectors: field -> column. payload: columns to keep.

    without: columns to leave out. rename: column -> payload key. text: the column that is embedded. tokens: of sparse vectors
    that are written by tokens, the component of each.
    """

    id: str | None = None
    vectors: Mapping[str, str] | None = None
    payload: Sequence[str] | None = None
    without: Sequence[str] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    tokens: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Chunk:
    """Rows on their way to be points. numbers: of the rows in their file. payloads: dicts, or columns by key, or None."""

    numbers: Sequence[int]
    ids: Any
    vectors: dict[str, Any]
    payloads: Any
    texts: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: Sequence[int]) -> Chunk:
        """Some of the rows, with everything one by one: for the few chunks in which something is wrong."""
        ids = None if self.ids is None else [self.id_of(row) for row in rows]
        vectors = {
            name: [each[row] for row in rows]
            for name, values in self.vectors.items()
            for each in [values.rows() if isinstance(values, Unchecked) else values]
        }
        payloads = self.payload_rows()
        texts = None if self.texts is None else [self.texts[row] for row in rows]
        return Chunk(
            [self.numbers[row] for row in rows],
            ids,
            vectors,
            None if payloads is None else [payloads[row] for row in rows],
            texts,
        )

    def id_of(self, row: int) -> Any:
        """The id of a row, as a plain value; None where it will be a new ULID."""
        key = None if self.ids is None else self.ids[row]
        return key.item() if isinstance(key, np.integer) else key

    def payload_rows(self) -> list[Any] | None:
        if not isinstance(self.payloads, Mapping):
            return None if self.payloads is None else list(self.payloads)
        if not self.payloads:
            return None
        keys = list(self.payloads)
        return [dict(zip(keys, row, strict=True)) for row in zip(*map(_listed, self.payloads.values()), strict=True)]


def _listed(column: Any) -> list[Any]:
    return list(column.to_pylist()) if hasattr(column, "to_pylist") else list(column)


# -- columns -------------------------------------------------------------------------------------------------


def columns_of(piece: Piece) -> dict[str, Column]:
    """What the columns of a piece are. Runs of numbered ones ("v0", "v1", …) are a vector "v*", too."""
    if isinstance(piece.rows, Sequence):
        columns = _of_dicts(piece.rows[:_LOOKED_AT])
    else:
        columns = {
            name: _of_arrow(name, column) for name, column in zip(piece.rows.schema.names, piece.rows.columns, strict=True)
        }
    return columns | _numbered(columns)


def _of_dicts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    values: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            if value is not None:
                values.setdefault(key, []).append(value)
            else:
                values.setdefault(key, [])
    return {key: _of_values(key, each) for key, each in values.items()}


_SIMPLE: dict[type, str] = {int: "int", str: "text", float: "number", bool: "bool", dict: "object", list: "list"}


def _of_values(name: str, values: list[Any]) -> Column:
    kinds = set(map(type, values))
    if not kinds:
        return Column("empty", said="empty")
    if kinds == {list}:
        numeric = [len(row) for row in values if all(type(n) in (int, float) for n in row)]
        return _of_lengths(name, numeric, len(values), "f32", "list")
    if kinds == {dict} and any(values) and all(map(is_sparse, values)):
        return Column("sparse", said="sparse vectors")
    if kinds == {str} and (dim := _dim_of_texts(values)):
        return Column("vector", dim, "f32", "text of numbers")
    if kinds == {int, float}:
        return Column("number", said="number")
    kind = _SIMPLE.get(next(iter(kinds)), "object") if len(kinds) == 1 else "object"
    return Column(kind, said=kind if len(kinds) == 1 else "values of several kinds")


def _dim_of_texts(values: Sequence[str]) -> int | None:
    """Of vectors that are written as "[1, 2.5]", as pgvector does; None if they are not."""
    if not all(text.startswith("[") and text.endswith("]") for text in values):
        return None
    try:
        lengths = {len(orjson.loads(text)) for text in values}
    except (orjson.JSONDecodeError, TypeError):
        return None
    return lengths.pop() if len(lengths) == 1 and 0 not in lengths else None


def _of_lengths(name: str, lengths: Sequence[int], rows: int, dtype: str, said: str) -> Column:
    """Lists of numbers are vectors where nearly all have one length, or most of them and the name says so.

    What is longer or shorter is then a row that is wrong, and not a reason to take the column for something else.
    """
    (dim, count), *_ = Counter(lengths).most_common(1) or [(0, 0)]
    least = 0.5 if name.lower() in _VECTORS else 0.9
    kind = "vector" if dim and count >= least * rows else "list"
    return Column(kind, dim or None, dtype, said)


def _of_arrow(name: str, column: Any) -> Column:
    import pyarrow as pa

    kind, types = column.type, pa.types
    if types.is_dictionary(kind):
        return _of_arrow(name, column.dictionary_decode())
    said = str(kind)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = kind.value_type
        if types.is_integer(inner) or types.is_floating(inner):
            dtype = "f16" if types.is_float16(inner) else "i8" if types.is_int8(inner) else "f32"
            if types.is_fixed_size_list(kind):
                return Column("vector", kind.list_size, dtype, said)
            lengths = column.drop_null().value_lengths().to_pylist()
            return _of_lengths(name, lengths, len(lengths), dtype, said)
        return Column("list", said=said)
    if types.is_string(kind) or types.is_large_string(kind) or kind == getattr(pa, "string_view", lambda: None)():
        some = [text for text in column.slice(0, _LOOKED_AT).to_pylist() if text is not None]
        dim = _dim_of_texts(some) if some else None
        return Column("vector", dim, "f32", "text of numbers") if dim else Column("text", said=said)
    if is_sparse_column(kind):
        return Column("sparse", said=said)
    for test, said_kind in (
        (types.is_integer, "int"), (types.is_floating, "number"), (types.is_decimal, "number"), (types.is_boolean, "bool"),
        (types.is_temporal, "time"), (types.is_null, "empty"), (types.is_struct, "object"), (types.is_map, "object"),
    ):  # fmt: skip
        if test(kind):
            return Column(said_kind, said=said)
    return Column("binary", said=said)


def _numbered(columns: Mapping[str, Column]) -> dict[str, Column]:
    groups: dict[str, list[int]] = {}
    for name, column in columns.items():
        match = _NUMBERED.fullmatch(name)
        if match and column.kind in ("int", "number"):
            groups.setdefault(match[1], []).append(int(match[2]))
    return {
        prefix + "*": Column("vector", len(numbers), "f32", f"{len(numbers)} columns")
        for prefix, numbers in groups.items()
        if len(numbers) > 1 and sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers))) and min(numbers) <= 1
    }


def _members(name: str, columns: Iterable[str]) -> list[str]:
    """The columns of a numbered vector, by number."""
    prefix = name[:-1]
    found = [(int(match[2]), each) for each in columns if (match := _NUMBERED.fullmatch(each)) and match[1] == prefix]
    return [each for _, each in sorted(found)]


# -- the mapping -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapped:
    """The settled mapping. vectors: field -> column. payload: None for all other columns. left_out: and why, for people.

    dims: numbers in the vectors of each field, None for sparse ones; dtypes: of dense ones.
    """

    id: str
    vectors: dict[str, str]
    dims: dict[str, int | None]
    dtypes: dict[str, str]
    payload: tuple[str, ...] | None
    without: frozenset[str]
    rename: dict[str, str]
    text: str | None
    left_out: dict[str, str]
    tokens: Mapping[str, int] | None = None

    def check(self, columns: Mapping[str, Column], file: str) -> list[str]:
        """Whether another file has the columns that are needed. Returns payload columns that it lacks. Raises InvalidFile."""
        needed = [
            *self.vectors.values(),
            *([self.text] if self.text else []),
            *([self.id] if not self.id.startswith(":") else []),
        ]
        for name in needed:
            if name not in columns:
                raise InvalidFile(f"the column is missing; there are: {_listing(columns)}", file=file, column=name)
        for field_name, name in self.vectors.items():
            found = columns[name]
            if (found.kind == "sparse") != (self.dims[field_name] is None) and found.kind in ("sparse", "vector"):
                raise InvalidFile(
                    f"it holds {found.said}, and field {field_name!r} has "
                    f"{'sparse vectors' if self.dims[field_name] is None else 'dense ones'}", file=file, column=name,
                )  # fmt: skip
            if found.kind == "vector" and found.dim != self.dims[field_name]:
                raise InvalidFile(
                    f"its vectors have {found.dim} numbers, and field {field_name!r} has {self.dims[field_name]}",
                    file=file,
                    column=name,
                )
        return [name for name in self.payload or () if name not in columns]

    def columns(self, columns: Iterable[str]) -> list[str]:
        """The columns of a file that have to be read."""
        names = [name for name in columns if not name.endswith("*")]
        spread = set(self.spread(names))
        return [name for name in names if name in spread or name in (self.id, self.text) or self.is_payload(name, spread)]

    def payload_of(self, columns: Iterable[str]) -> list[str]:
        """The columns of a file that become payload."""
        names = [name for name in columns if not name.endswith("*")]
        spread = set(self.spread(names))
        return [name for name in names if self.is_payload(name, spread)]

    def spread(self, names: Iterable[str]) -> list[str]:
        """The columns that vectors are made of."""
        spread: list[str] = []
        for column in self.vectors.values():
            spread += _members(column, names) if column.endswith("*") else [column]
        return spread

    def is_payload(self, name: str, spread: set[str]) -> bool:
        if name in self.without or name in spread or name in (self.id, self.text):
            return False
        return self.payload is None or name in self.payload

    # -- rows ------------------------------------------------------------------------------------

    def apply(self, piece: Piece, first: int, file: str) -> Chunk:
        """first: of the file's rows among those of all files. Raises InvalidFile."""
        if isinstance(piece.rows, Sequence):
            return self._of_dicts(piece.rows, piece.numbers, first)
        return self._of_batch(piece.rows, piece.numbers, first, file)

    def _ids(self, numbers: Sequence[int], first: int) -> Any:
        return first + np.asarray(numbers, np.int64) if self.id == ROW else None

    def _of_dicts(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], first: int) -> Chunk:
        names: dict[str, None] = {}
        for row in rows:
            names.update(dict.fromkeys(row))
        keys = self.payload_of(names)
        payloads = [{self.rename.get(key, key): row[key] for key in keys if key in row} for row in rows]
        vectors: dict[str, Any] = {}
        for field_name, column in self.vectors.items():
            if column.endswith("*"):
                members = _members(column, names)
                vectors[field_name] = [[row.get(name) for name in members] for row in rows]
            else:
                vectors[field_name] = [_parsed_vector(row.get(column), self.tokens) for row in rows]
        ids = self._ids(numbers, first) if self.id.startswith(":") else [row.get(self.id) for row in rows]
        texts = None if self.text is None else [row.get(self.text) for row in rows]
        return Chunk(numbers, ids, vectors, payloads if keys else None, texts)

    def _of_batch(self, batch: pa.RecordBatch, numbers: Sequence[int], first: int, file: str) -> Chunk:
        names = batch.schema.names

        def column(name: str) -> Any:
            if name not in names:
                raise InvalidFile(
                    "the column is missing", file=file, row=int(numbers[0]) if len(numbers) else None, column=name
                )
            found = batch.column(names.index(name))
            return found.dictionary_decode() if hasattr(found, "dictionary_decode") else found

        vectors: dict[str, Any] = {}
        for field_name, name in self.vectors.items():
            if name.endswith("*"):
                parts = [column(each) for each in _members(name, names)]
                vectors[field_name] = np.column_stack([part.to_numpy(zero_copy_only=False) for part in parts])
            else:
                vectors[field_name] = _vectors(column(name), field_name)
        if self.id.startswith(":"):
            ids = self._ids(numbers, first)
        else:
            found = column(self.id)
            ids = found.to_pylist()
        payload: Any = {
            self.rename.get(name, name): _json_values(column(name)) if _is_json(batch.schema.field(name)) else column(name)
            for name in self.payload_of(names)
        }
        texts = None if self.text is None else column(self.text).to_pylist()
        return Chunk(numbers, ids, vectors, _payloads(payload) if payload else None, texts)


def _is_json(declared: Any) -> bool:
    """Whether a column holds JSON texts, as `export` writes values that have no one type."""
    return bool(declared.metadata and declared.metadata.items() >= JSON_COLUMN.items())


def _json_values(column: Any) -> list[Any]:
    return [None if text is None else orjson.loads(text) for text in column.to_pylist()]


def _parsed_vector(value: Any, tokens: Mapping[str, int] | None = None) -> Any:
    if isinstance(value, Mapping):
        return from_json(value, tokens)
    if isinstance(value, str):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value  # refused later, with its row
    return value


def _vectors(column: Any, name: str) -> Any:
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [_parsed_vector(text) for text in column.to_pylist()]
    if is_sparse_column(column.type):
        return rows_of_column(pa.chunked_array([column]), name)
    return vectors_of_column(pa.chunked_array([column]), name)


def _payloads(columns: dict[str, Any]) -> Any:
    """Columns by key where every row has every value; else a dict for each row, of what it has. NaN is no value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    settled: dict[str, Any] = {}
    for key, column in columns.items():
        if isinstance(column, list):
            settled[key] = column
            continue
        if pa.types.is_float16(column.type):
            column = column.cast(pa.float32())
        if pa.types.is_floating(column.type):
            nan = pc.is_nan(column)
            if pc.any(nan).as_py():
                column = pc.if_else(nan, pa.scalar(None, column.type), column)
        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        settled[key] = column
    values = {key: column if isinstance(column, list) else column.to_pylist() for key, column in settled.items()}
    if not any(None in column if isinstance(column, list) else column.null_count for column in settled.values()):
        return values
    return [
        {key: value for key, value in zip(values, row, strict=True) if value is not None}
        for row in zip(*values.values(), strict=True)
    ]


# -- settling ----------------------------------------------------------------------------------------------------


def settle(
    columns: Mapping[str, Column], wanted: Wanted, fields: Mapping[str, Field] | None, file: str, *, embeds: bool
) -> Mapped:
    """The mapping of files like this one. fields: of the collection, None if it is to be created. embeds: texts become vectors.

    Raises InvalidFile or InvalidInput, which name the columns there are and the option that would help.
    """
    for name in [*(wanted.payload or ()), *wanted.without, *wanted.rename, *filter(None, (wanted.text,))]:
        if name not in columns:
            raise InvalidFile(f"there is no such column; there are: {_listing(columns)}", file=file, column=name)
    if wanted.tokens is not None:
        columns = _by_tokens(columns, wanted)
    text = _text_column(columns, wanted, file) if embeds else None
    vectors = {} if embeds else _vector_columns(columns, wanted, fields, file)
    spread = {each for column in vectors.values() for each in (_members(column, columns) if column.endswith("*") else [column])}
    left_out = {
        name: "binary values are no JSON"
        for name, column in columns.items()
        if column.kind == "binary" and name not in spread and name not in (wanted.payload or ())
    }
    key = _id_column(columns, wanted, spread | ({text} if text else set()), file)
    dims: dict[str, int | None] = {}
    dtypes = {}
    for name, column in vectors.items():
        found = columns[column]
        if found.kind == "sparse":
            dims[name] = None
            continue
        if found.dim is None or not 1 <= found.dim <= MAX_DIM:
            raise InvalidFile(
                f"vectors of one length are needed, of 1 to {MAX_DIM:,} numbers; it holds {found.said}",
                file=file,
                column=column,
            )
        dims[name], dtypes[name] = found.dim, found.dtype or "f32"
    payload = None if wanted.payload is None else tuple(wanted.payload)
    mapped = Mapped(
        key,
        vectors,
        dims,
        dtypes,
        payload,
        frozenset(wanted.without) | frozenset(left_out),
        dict(wanted.rename),
        text,
        left_out,
        wanted.tokens,
    )
    names = mapped.payload_of(columns)
    twice = [
        name for name in names if sum(mapped.rename.get(each, each) == mapped.rename.get(name, name) for each in names) > 1
    ]
    if twice:
        raise InvalidInput(
            f"two columns would have the payload key {mapped.rename.get(twice[0], twice[0])!r}; rename one of them"
        )
    return mapped


def _fits(column: Column, field: Field) -> bool:
    """Whether a column's vectors can be a field's."""
    return column.kind == "sparse" if isinstance(field, Sparse) else column.dim == field.dim


def _what(field: Field) -> str:
    return "sparse" if isinstance(field, Sparse) else str(field.dim)


def _by_tokens(columns: Mapping[str, Column], wanted: Wanted) -> dict[str, Column]:
    """Columns as they are where sparse vectors are written by tokens: objects of the names of vectors are such."""
    chosen = set((wanted.vectors or {}).values())
    return {
        name: Column("sparse", said="weights by token")
        if column.kind == "object" and (name in chosen or name in _VECTORS)
        else column
        for name, column in columns.items()
    }


def _listing(columns: Mapping[str, Column]) -> str:
    shown = [f"{name} ({column.said})" for name, column in columns.items()]
    return ", ".join(shown[:30] + (["…"] if len(shown) > 30 else [])) or "none"


def _named(columns: Mapping[str, Column], names: Sequence[str], kinds: Sequence[str], but: Iterable[str] = ()) -> str | None:
    """The column that has the first of these names, in any case, and a fitting kind."""
    lower = {name.lower(): name for name in reversed(list(columns)) if columns[name].kind in kinds and name not in but}
    return next((lower[name] for name in names if name in lower), None)


def _text_column(columns: Mapping[str, Column], wanted: Wanted, file: str) -> str:
    if wanted.text is not None:
        return wanted.text
    texts = [name for name, column in columns.items() if column.kind == "text"]
    found = _named(columns, _TEXTS, ("text",)) or (texts[0] if len(texts) == 1 else None)
    if found is None:
        raise InvalidFile(f"which column is to be embedded? Say --text COLUMN; there are: {_listing(columns)}", file=file)
    return found


def _id_column(columns: Mapping[str, Column], wanted: Wanted, but: set[str], file: str) -> str:
    if wanted.id is not None:
        if wanted.id not in (ROW, ULID) and wanted.id not in columns:
            raise InvalidFile(f"there is no such column; there are: {_listing(columns)}", file=file, column=wanted.id)
        return wanted.id
    return _named(columns, _IDS, ("int", "text", "object", "number"), but) or ROW


def _vector_columns(
    columns: Mapping[str, Column], wanted: Wanted, fields: Mapping[str, Field] | None, file: str
) -> dict[str, str]:
    if wanted.vectors is not None:
        chosen = dict(wanted.vectors)
        if fields is not None and len(fields) == 1 and set(chosen) == {DEFAULT_FIELD}:
            chosen = {next(iter(fields)): chosen[DEFAULT_FIELD]}  # the only field need not be named
        for name, column in chosen.items():
            if column not in columns:
                raise InvalidFile(f"there is no such column; there are: {_listing(columns)}", file=file, column=column)
            if fields is not None and name not in fields:
                raise InvalidInput(f"the collection has no field {name!r}; it has {', '.join(fields)}")
        return chosen
    candidates = {name: column for name, column in columns.items() if column.kind in ("vector", "sparse")}
    if fields is not None:
        named = {name: name for name in fields if name in candidates}
        if named:
            return named
        candidates = {
            name: column for name, column in candidates.items() if any(_fits(column, each) for each in fields.values())
        }
    found = _named(candidates, _VECTORS, ("vector", "sparse"))
    if found is None:
        longest = max((column.dim or 0 for column in candidates.values()), default=0)
        widest = [name for name, column in candidates.items() if column.dim == longest]
        found = widest[0] if len(widest) == 1 else None
    if found is None:
        hint = (
            f"which column holds the vectors? Say --vector COLUMN, or --embed MODEL to make them of a text; there are: "
            f"{_listing(columns)}"
        )
        if fields is not None:
            hint += f"; the collection's fields are {', '.join(f'{name} ({_what(each)})' for name, each in fields.items())}"
        raise InvalidFile(hint, file=file)
    if fields is not None and len(fields) > 1:
        fitting = [name for name, each in fields.items() if _fits(candidates[found], each)]
        if len(fitting) > 1:
            raise InvalidFile(
                f"which field is column {found!r}? Say --vector FIELD={found}; there are: {', '.join(fitting)}", file=file
            )
        return {fitting[0]: found}
    return {next(iter(fields)) if fields else DEFAULT_FIELD: found}
