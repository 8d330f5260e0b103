"""A CSV file of `COPY table TO … CSV HEADER`, from PostgreSQL with pgvector, as one collection with the file's name.

    "[1,2,3]"          vector and halfvec: a field under the column's name; JSON is told by the spaces after its commas
    id, uuid, key, …   the id, if its column has whole numbers or texts (`mapping.py` has the names); else rows are numbered
    {"a": 1}           json and jsonb, if all values of the column are objects: nested payload
    12, 1.5            numbers, if all values of the column are, and are written so that nothing of the text is lost
    anything else      texts as they are, such as 007, 1.50, t, {1,2}, 2024-01-01 00:00:00+00: a CSV does not say what they were
    empty, unquoted    null, which stays null, or a point without that vector

Those rules hold for columns as a whole, so the file is read twice, by the reader of `ingest`: first as texts, to see what the
columns are, and then in earnest. The metric is to be said: <=> is cosine, <#> ip, <-> l2.

Called by `import_from`, in any thread.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ...errors import DimensionMismatch, InvalidFile, InvalidInput
from ...schema import Dense, Metric
from ..mapping import Column, Mapped, Wanted, settle
from ..readers import START, Limits, Options, Piece, open_reader
from ..sources import COMPRESSIONS, Source, find
from . import Rows, Table, chosen, rows_at_once

_LIMITS = Limits(piece=4 << 20)  # of text, which takes ten times as much as numbers in lists
_VECTOR = re.compile(r"\[[-+0-9.eE]+(?:,[-+0-9.eE]+)*\]")
_SPACED = re.compile(r"\[\s*[-+0-9.eE]+(?:\s*,\s*[-+0-9.eE]+)*\s*\]")
_INT = re.compile(r"-?[1-9]\d{0,18}|0")
_FLOAT = re.compile(r"-?\d+\.\d+")
_SCIENTIFIC = re.compile(r"-?[1-9](?:\.\d*[1-9])?e[-+]\d\d\d?")

_log = logging.getLogger("vecdb")


@contextmanager
def tables(path: str, only: str | None, metric: Metric | None) -> Iterator[list[Table]]:
    """Raises NotFound, InvalidFile, InvalidInput, DimensionMismatch, StorageError."""
    if Path(path).is_dir():
        raise InvalidFile("it is a directory; give the CSV file of one table", file=path)
    (source,) = find(path, "csv") if Path(path).exists() else find([path])
    (name,) = chosen(path, [_stem(path)], only)
    if metric is None:
        raise InvalidInput(f"{path}: a CSV file does not say its metric: --metric cosine (<=>), ip (<#>) or l2 (<->)")
    looks = _looked_at(source)
    vectors = _vectors(looks, "vector", path) or _vectors(looks, "spaced", path)
    if not vectors:
        raise InvalidFile(
            f"no column has vectors, written as [1,2,3]; there are: {', '.join(looks)}; write it by COPY … CSV HEADER",
            file=path,
        )
    kinds = {column: "vector" if column in vectors else look.kind for column, look in looks.items()}
    columns = {column: Column(kind, vectors.get(column), said=kind) for column, kind in kinds.items()}
    mapped = settle(columns, Wanted(vectors={each: each for each in vectors}, payload=()), None, path, embeds=False)
    fields = {column: Dense(dim, metric) for column, dim in vectors.items()}
    total = max(look.rows for look in looks.values())
    yield [Table(name, fields, total, _batches(source, mapped, fields, kinds))]


def _stem(path: str) -> str:
    name = Path(path)
    return Path(name.stem).stem if name.suffix in COMPRESSIONS else name.stem


# -- what columns are ------------------------------------------------------------------------------------------


@dataclass
class _Look:
    """What all values so far of a column could be. dims: the lengths of its vectors, with the row of each."""

    rows: int = 0
    seen: bool = False
    could_be: set[str] = field(default_factory=lambda: {"vector", "spaced", "int", "float", "object"})
    filled: bool = False  # whether an object had a key: {} is an empty array, too
    dims: dict[int, int] = field(default_factory=dict)

    def add(self, texts: list[str | None], numbers: Any) -> None:
        self.rows += len(texts)
        for number, text in zip(numbers, texts, strict=True):
            if text is None:
                continue
            self.seen = True
            if not self.could_be:
                return
            self.could_be = {kind for kind in self.could_be if _TESTS[kind](text)}
            if "spaced" in self.could_be:
                self.dims.setdefault(text.count(",") + 1, int(number))
            self.filled |= text != "{}"

    @property
    def kind(self) -> str:
        if not self.seen:
            return "text"
        if "object" in self.could_be and not self.filled:
            return "text"
        return next((kind for kind in ("int", "float", "object") if kind in self.could_be), "text")


def _vectors(looks: Mapping[str, _Look], kind: str, path: str) -> dict[str, int]:
    """The columns of vectors, and of how many numbers those are. Raises DimensionMismatch."""
    found = {column: look for column, look in looks.items() if look.seen and kind in look.could_be}
    mixed = {column: look for column, look in found.items() if len(look.dims) > 1}
    vectors = {column: next(iter(look.dims)) for column, look in found.items() if column not in mixed}
    for column, look in mixed.items():
        (dim, _), (other, row), *_ = look.dims.items()
        if not vectors and kind == "vector":
            raise DimensionMismatch(
                f"{path}, row {row:,}: got {other} numbers, and vectors before it have {dim}; write each length to a file of "
                f"its own, by COPY (SELECT … WHERE vector_dims({column}) = {dim}) TO …",
                field=column,
            )
        _log.warning("%s: column %r has lists of several lengths, and is kept as texts", path, column)
    return vectors


def _is_int(text: str) -> bool:
    return _INT.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


def _is_float(text: str) -> bool:
    """Whether a float says all that the text does."""
    if _INT.fullmatch(text) or text == "-0":
        return abs(int(text)) <= 1 << 53  # larger ones would not all be exact
    if _SCIENTIFIC.fullmatch(text):  # in which PostgreSQL writes smaller numbers than Python does
        return Decimal(text) == Decimal(repr(float(text)))
    return _FLOAT.fullmatch(text) is not None and repr(float(text)) == text


def _is_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


_TESTS = {
    "vector": lambda text: _VECTOR.fullmatch(text) is not None,
    "spaced": lambda text: _SPACED.fullmatch(text) is not None,
    "int": _is_int,
    "float": _is_float,
    "object": _is_object,
}


def _looked_at(source: Source) -> dict[str, _Look]:
    with closing(open_reader(source, Options(limits=_LIMITS))) as reader:
        names = next((_batch(piece).schema.names for piece in reader.read(START, 1) if len(piece)), None)
    if names is None:
        raise InvalidFile("it has no rows, and so nothing says how many numbers a vector has", file=source.name)
    if any(_SPACED.fullmatch(name) for name in names):
        raise InvalidFile("its first line is no header; write it by COPY … CSV HEADER", file=source.name)
    looks = {name: _Look() for name in names}
    for piece in _pieces(source, dict.fromkeys(names, "string"), None):
        batch = _batch(piece)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            looks[name].add(column.to_pylist(), piece.numbers)
    return looks


def _pieces(source: Source, types: Mapping[str, str], most: int | None) -> Iterator[Piece]:
    """Raises InvalidFile at the first row that cannot be read."""
    with closing(open_reader(source, Options(types=types, limits=_LIMITS))) as reader:
        for piece in reader.read(START, most):
            for unread in piece.unread:
                raise InvalidFile(unread.reason, file=source.name, row=unread.row, column=unread.column)
            yield piece
    source.check_unchanged()


def _batch(piece: Piece) -> Any:
    """A reader of CSV has Arrow's batches."""
    return piece.rows


# -- rows ------------------------------------------------------------------------------------------------------


def _batches(source: Source, mapped: Mapped, fields: Mapping[str, Dense], kinds: Mapping[str, str]) -> Iterator[Rows]:
    types = {name: kind if kind in ("int", "float") else "string" for name, kind in kinds.items()}
    rest = [name for name in kinds if name not in fields and name != mapped.id]
    for piece in _pieces(source, types, rows_at_once(fields)):
        chunk = mapped.apply(piece, 0, source.name)
        payloads: list[dict[str, Any]] = _batch(piece).select(rest).to_pylist() if rest else [{} for _ in piece.numbers]
        for name in rest:
            if kinds[name] == "object":
                for payload in payloads:
                    if payload[name] is not None:
                        payload[name] = json.loads(payload[name])
        yield Rows(chunk.ids, chunk.vectors, payloads)
