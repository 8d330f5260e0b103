"""Filter expressions: `F("year") >= 2020` and what `& | ~` make of them. Immutable, hashable, comparable values.

**What a filter means.** The value at a path is missing, null, a bool, a number, a string, an array or an object.
A comparison (`== != < <= > >=`, `in_`) with a value of another type, or with one that is missing or null, is neither true
nor false but *unknown*; a point matches only when the whole filter is true.

- Ints and floats are one type and compare exactly; a bool is no number; strings are ordered by code point.
- A `datetime` or `date` compares, as an instant, with strings that are RFC 3339 dates or date-times; without an offset
  they are UTC. With any other value it is unknown.
- `== None` is `is_null()` and `!= None` its opposite. `exists()` (the path is there, null included) and `is_null()` (it
  is there and null) are never unknown.
- `in_([...])` is true when some `==` is; it is false when all are, and otherwise unknown. Empty, it is false.
- `contains(v)`: of an array, some element equals v (true or false); of a string, it has the string v inside; else unknown.
- `startswith(s)`: of a string; else unknown.
- `~` of unknown is unknown; `&` is false if one side is; `|` is true if one side is; else unknown wins.

So `F("year") != 2020` and `~(F("year") == 2020)` match the same points: those with a number there that is not 2020. To
have those without a year too, say so: `(F("year") != 2020) | ~F("year").exists()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, NoReturn

import numpy as np
from vecdb_storage.payloads import join_path, rfc3339, split_path

from ..errors import InvalidFilter

Literal = bool | int | float | str | datetime
MAX_DEPTH = 100


class Expression:
    """A filter. Combine with `&`, `|` and `~`; `and`, `or` and `not` cannot be overloaded and raise."""

    __slots__ = ()

    def __and__(self, other: Expression) -> Expression:
        return _joined(And, self, other)

    def __or__(self, other: Expression) -> Expression:
        return _joined(Or, self, other)

    def __invert__(self) -> Expression:
        return self.part if isinstance(self, Not) else Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError("a filter has no truth value: combine with & | ~ (not and, or, not), and write a < b < c as two")

    def __str__(self) -> str:
        """The text form, which `parse` reads back."""
        return text_of(self)


def _joined(kind: type[And] | type[Or], left: Expression, right: Expression) -> Expression:
    if not isinstance(right, Expression):
        raise InvalidFilter(f"cannot combine a filter with {type(right).__name__}; put comparisons in parentheses")
    parts: list[Expression] = []
    for side in (left, right):
        parts += side.parts if isinstance(side, kind) else [side]
    return kind(tuple(parts))


@dataclass(frozen=True)
class Compare(Expression):
    """op: "==", "!=", "<", "<=", ">" or ">="."""

    path: str
    op: str
    value: Literal
    type: type = field(init=False, repr=False)  # True == 1 in Python, and not here

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", type(self.value))

    def __repr__(self) -> str:
        return f"(F({self.path!r}) {self.op} {self.value!r})"


@dataclass(frozen=True)
class In(Expression):
    path: str
    values: tuple[Literal | None, ...]
    types: tuple[type, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(map(type, self.values)))

    def __repr__(self) -> str:
        return f"F({self.path!r}).in_({list(self.values)!r})"


@dataclass(frozen=True)
class Contains(Expression):
    path: str
    value: Literal | None
    type: type = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", type(self.value))

    def __repr__(self) -> str:
        return f"F({self.path!r}).contains({self.value!r})"


@dataclass(frozen=True)
class StartsWith(Expression):
    path: str
    prefix: str

    def __repr__(self) -> str:
        return f"F({self.path!r}).startswith({self.prefix!r})"


@dataclass(frozen=True)
class Exists(Expression):
    path: str

    def __repr__(self) -> str:
        return f"F({self.path!r}).exists()"


@dataclass(frozen=True)
class IsNull(Expression):
    path: str

    def __repr__(self) -> str:
        return f"F({self.path!r}).is_null()"


@dataclass(frozen=True)
class And(Expression):
    parts: tuple[Expression, ...]
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _set_depth(self, self.parts)

    def __repr__(self) -> str:
        return "(" + " & ".join(map(repr, self.parts)) + ")"


@dataclass(frozen=True)
class Or(Expression):
    parts: tuple[Expression, ...]
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _set_depth(self, self.parts)

    def __repr__(self) -> str:
        return "(" + " | ".join(map(repr, self.parts)) + ")"


@dataclass(frozen=True)
class Not(Expression):
    part: Expression
    depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _set_depth(self, (self.part,))

    def __repr__(self) -> str:
        return f"~{self.part!r}"


def _set_depth(node: Expression, parts: Iterable[Expression]) -> None:
    depth = 1 + max(getattr(part, "depth", 0) for part in parts)
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"nested deeper than {MAX_DEPTH} levels; use in_ for long lists of values")
    object.__setattr__(node, "depth", depth)


def paths_of(expression: Expression) -> list[str]:
    """The payload paths that a filter looks at, each once, in its order."""
    if isinstance(expression, And | Or):
        return list(dict.fromkeys(path for part in expression.parts for path in paths_of(part)))
    return paths_of(expression.part) if isinstance(expression, Not) else [expression.path]  # type: ignore[attr-defined]


class F:
    """A payload path in a filter: `F("year") >= 2020`, `F("author.name").startswith("Knuth")`.

    Keys are joined by dots; a dot or backslash inside a key is escaped by a backslash. Raises InvalidFilter.
    """

    __slots__ = ("path",)
    __hash__ = None  # type: ignore[assignment]  # F == value is a filter, so F cannot be a key

    def __init__(self, path: str) -> None:
        if not isinstance(path, str) or not path:
            raise InvalidFilter(f"a path is a non-empty string, not {path!r}")
        self.path = join_path(split_path(path))

    def __eq__(self, value: object) -> Expression:  # type: ignore[override]
        return IsNull(self.path) if value is None else Compare(self.path, "==", literal(value, self.path))

    def __ne__(self, value: object) -> Expression:  # type: ignore[override]
        return Not(IsNull(self.path)) if value is None else Compare(self.path, "!=", literal(value, self.path))

    def __lt__(self, value: object) -> Expression:
        return Compare(self.path, "<", _ordered(value, self.path))

    def __le__(self, value: object) -> Expression:
        return Compare(self.path, "<=", _ordered(value, self.path))

    def __gt__(self, value: object) -> Expression:
        return Compare(self.path, ">", _ordered(value, self.path))

    def __ge__(self, value: object) -> Expression:
        return Compare(self.path, ">=", _ordered(value, self.path))

    def in_(self, values: Iterable[Any]) -> Expression:
        """True when the value equals one of `values`."""
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise InvalidFilter(f"in_ takes a list of values, not {values!r}", field=self.path)
        return In(self.path, tuple(None if v is None else literal(v, self.path) for v in values))

    def contains(self, value: Any) -> Expression:
        """True when an array has an element equal to `value`, or a string has it inside."""
        return Contains(self.path, None if value is None else literal(value, self.path))

    def startswith(self, prefix: object) -> Expression:
        """True when a string begins with `prefix`."""
        if not isinstance(prefix, str):
            raise InvalidFilter(f"startswith takes a string, not {prefix!r}", field=self.path)
        return StartsWith(self.path, str(literal(prefix, self.path)))

    def exists(self) -> Expression:
        """True when the path is there, be it null."""
        return Exists(self.path)

    def is_null(self) -> Expression:
        """True when the path is there and null."""
        return IsNull(self.path)

    def __repr__(self) -> str:
        return f"F({self.path!r})"


def literal(value: Any, path: str | None = None) -> Literal:
    """A value to compare with, as bool, int, float, str or datetime in UTC. Raises InvalidFilter."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, date):
        if not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        fixed = value if value.tzinfo else value.replace(tzinfo=UTC)
        return datetime.fromisoformat(fixed.astimezone(UTC).isoformat())
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidFilter(f"{value} does not fit int64", field=path)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidFilter(f"{value} cannot be compared with; use exists() or is_null()", field=path)
        return float(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidFilter("the text is not valid Unicode (it has a lone surrogate)", field=path) from None
        return str(value)
    hint = "; use in_ for one of several, contains for an array's elements" if isinstance(value, list | tuple | set) else ""
    raise InvalidFilter(f"cannot compare with {type(value).__name__}{hint}", field=path)


def _ordered(value: Any, path: str) -> Literal:
    checked = literal(value, path) if value is not None else None
    if checked is None or isinstance(checked, bool):
        raise InvalidFilter(f"{value} has no order; use == or !=", field=path)
    return checked


# -- the text and dict forms ------------------------------------------------------------------------------------


def text_of(node: Expression) -> str:
    """The expression as text."""
    match node:
        case Compare():
            return f"{_path_text(node.path)} {node.op} {_literal_text(node.value)}"
        case In():
            return f"{_path_text(node.path)} in ({', '.join(map(_literal_text, node.values))})"
        case Contains():
            return f"{_path_text(node.path)} contains {_literal_text(node.value)}"
        case StartsWith():
            return f"{_path_text(node.path)} startswith {_literal_text(node.prefix)}"
        case Exists():
            return f"{_path_text(node.path)} exists"
        case IsNull():
            return f"{_path_text(node.path)} is null"
        case And():
            return " and ".join(f"({text_of(p)})" if isinstance(p, And | Or) else text_of(p) for p in node.parts)
        case Or():
            return " or ".join(f"({text_of(p)})" if isinstance(p, Or) else text_of(p) for p in node.parts)
        case Not():
            return f"not ({text_of(node.part)})"
    raise TypeError(f"{type(node).__name__} is no filter")


RESERVED = {"and", "or", "not", "in", "contains", "startswith", "exists", "is", "null", "true", "false", "date"}


def _path_text(path: str) -> str:
    return ".".join(
        key if key.isidentifier() and key.isascii() and key.lower() not in RESERVED else "`" + key.replace("`", "``") + "`"
        for key in split_path(path)
    )


def _literal_text(value: Literal | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return f"date '{rfc3339(value)}'"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


_DICT_OPS = {"==": "$eq", "!=": "$ne", "<": "$lt", "<=": "$lte", ">": "$gt", ">=": "$gte"}


def dict_of(node: Expression) -> dict[str, Any]:
    """The expression as a JSON-able dict."""
    match node:
        case Compare():
            return {_path_key(node.path): {_DICT_OPS[node.op]: _literal_json(node.value)}}
        case In():
            return {_path_key(node.path): {"$in": [_literal_json(v) for v in node.values]}}
        case Contains():
            return {_path_key(node.path): {"$contains": _literal_json(node.value)}}
        case StartsWith():
            return {_path_key(node.path): {"$startswith": node.prefix}}
        case Exists():
            return {_path_key(node.path): {"$exists": True}}
        case IsNull():
            return {_path_key(node.path): {"$is_null": True}}
        case And() | Or():
            return {"$and" if isinstance(node, And) else "$or": [dict_of(part) for part in node.parts]}
        case Not():
            return {"$not": dict_of(node.part)}
    raise TypeError(f"{type(node).__name__} is no filter")


def _path_key(path: str) -> str:
    return "\\" + path if path.startswith("$") else path


def _literal_json(value: Literal | None) -> Any:
    return {"$date": rfc3339(value)} if isinstance(value, datetime) else value
