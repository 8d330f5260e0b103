"""Filters from what users write: an expression, a dict in the manner of MongoDB, or a text.

    expression   = and_part { "or" and_part }
    and_part     = unary { "and" unary }
    unary        = "not" unary | "(" expression ")" | "exists" "(" path ")" | condition
    condition    = path ( op literal | ["not"] "in" "(" literals ")" | "contains" literal | "startswith" text
                        | "exists" | "is" ["not"] "null" )
    op           = "==" | "=" | "!=" | "<>" | "<" | "<=" | ">" | ">="
    literal      = number | text | "true" | "false" | "null" | "date" text
    path         = key { "." key };  a key is a word, or anything in `backquotes`

Words of the language are known in any case. Raises InvalidFilter, with the position in the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from vecdb_storage.payloads import join_path, micros_of

from ..errors import InvalidFilter
from .expression import MAX_DEPTH, RESERVED, And, Expression, F, Not, Or


def parse(where: Any) -> Expression | None:
    """What `where=` accepts, as an expression; None for None or an empty dict. Raises InvalidFilter."""
    if where is None or isinstance(where, Expression):
        return where
    if isinstance(where, str):
        return _Text(where).parse()
    if isinstance(where, Mapping):
        return _from_dict(where, 0)
    if isinstance(where, F):
        raise InvalidFilter("a path alone is no filter; compare it, or use exists()", field=where.path)
    raise InvalidFilter(f"a filter is an expression of F, a dict or a text, not {type(where).__name__}")


# -- dicts ---------------------------------------------------------------------------------------------------

_OPERATORS = "$eq $ne $lt $lte $gt $gte $in $nin $contains $startswith $exists $is_null $not"


def _from_dict(where: Mapping[Any, Any], depth: int) -> Expression | None:
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"nested deeper than {MAX_DEPTH} levels")
    parts: list[Expression] = []
    for key, value in where.items():
        if key in ("$and", "$or"):
            if not isinstance(value, list | tuple) or not value:
                raise InvalidFilter(f"{key} takes a list of filters, and at least one")
            inner = [_needed(each, depth, key) for each in value]
            parts.append(_join(And if key == "$and" else Or, inner))
        elif key == "$not":
            parts.append(Not(_needed(value, depth, key)))
        elif not isinstance(key, str) or not key:
            raise InvalidFilter(f"a path is a non-empty string, not {key!r}")
        elif key.startswith("$"):
            raise InvalidFilter(f"unknown operator {key}; here stand $and, $or, $not, or a path")
        else:
            parts.append(_of_path(F(key), value, depth + 1))
    return _join(And, parts) if parts else None


def _needed(where: Any, depth: int, key: str) -> Expression:
    if isinstance(where, Expression):
        return where
    inner = _from_dict(where, depth + 1) if isinstance(where, Mapping) else None
    if inner is None:
        raise InvalidFilter(f"{key} takes filters such as {{'year': {{'$gte': 2020}}}}, not {where!r}")
    return inner


def _join(kind: type[And] | type[Or], parts: list[Expression]) -> Expression:
    if len(parts) == 1:
        return parts[0]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined & part if kind is And else joined | part
    return joined


def _of_path(path: F, value: Any, depth: int) -> Expression:
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"nested deeper than {MAX_DEPTH} levels")
    if not isinstance(value, Mapping) or "$date" in value:
        return path == _value(value, path)
    if not value:
        raise InvalidFilter(f"an empty condition; use one of {_OPERATORS}", field=path.path)
    return _join(And, [_condition(path, str(op), operand, depth) for op, operand in value.items()])


def _condition(path: F, op: str, operand: object, depth: int) -> Expression:
    match op:
        case "$eq":
            return path == _value(operand, path)
        case "$ne":
            return path != _value(operand, path)
        case "$lt":
            return path < _value(operand, path)
        case "$lte":
            return path <= _value(operand, path)
        case "$gt":
            return path > _value(operand, path)
        case "$gte":
            return path >= _value(operand, path)
        case "$in" | "$nin":
            if not isinstance(operand, list | tuple | set | frozenset):
                raise InvalidFilter(f"{op} takes a list of values, not {operand!r}", field=path.path)
            found = path.in_([_value(each, path) for each in operand])
            return found if op == "$in" else ~found
        case "$contains":
            return path.contains(_value(operand, path))
        case "$startswith":
            return path.startswith(operand)
        case "$exists" | "$is_null":
            if not isinstance(operand, bool):
                raise InvalidFilter(f"{op} takes true or false, not {operand!r}", field=path.path)
            holds = path.exists() if op == "$exists" else path.is_null()
            return holds if operand else ~holds
        case "$not":
            return Not(_of_path(path, operand, depth + 1))
    hint = "" if op.startswith("$") else f"; write a nested path with a dot: {path.path + '.' + op!r}"
    raise InvalidFilter(f"unknown operator {op}{hint}; use one of {_OPERATORS}", field=path.path)


def _value(value: object, path: F) -> object:
    if isinstance(value, Mapping) and set(value) == {"$date"} and isinstance(value["$date"], str):
        return _date(value["$date"], path.path)
    return value


def _date(text: str, path: str | None = None, position: int | None = None) -> datetime:
    if micros_of(text) is None:
        raise InvalidFilter(
            f"{text!r} is no RFC 3339 date or date-time, such as 2024-01-02 or 2024-01-02T03:04:05Z",
            field=path,
            position=position,
        )
    return datetime.fromisoformat(text.upper())


# -- text ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    kind: str  # "number", "text", "word", "quoted", "sign" or "end"
    text: str
    position: int


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![A-Za-z_])
      | (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<quoted>`(?:[^`]|``)*`)
      | (?P<sign>==|!=|<>|<=|>=|=|<|>|\(|\)|,|\.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_SIGNS = {"==", "=", "!=", "<>", "<", "<=", ">", ">="}


class _Text:
    """A recursive-descent parser over one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[_Token] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise InvalidFilter(f"cannot read {text[at : at + 12]!r} at {at}; texts stand in quotes", position=at)
            kind = str(match.lastgroup)
            self._tokens.append(_Token(kind, match[kind], match.start(kind)))
            at = match.end()
        self._tokens.append(_Token("end", "the end", len(text)))
        self._at = 0

    def parse(self) -> Expression:
        found = self._expression(0)
        if self._next.kind != "end":
            self._refuse("`and`, `or` or the end")
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _refuse(self, wanted: str) -> NoReturn:
        token = self._next
        raise InvalidFilter(f"{wanted} expected at {token.position}, not {token.text!r}", position=token.position)

    def _word(self, *words: str) -> str | None:
        """Takes the next token if it is one of these words."""
        if self._next.kind == "word" and self._next.text.lower() in words:
            return self._take().text.lower()
        return None

    def _sign(self, sign: str) -> bool:
        if self._next.kind == "sign" and self._next.text == sign:
            self._at += 1
            return True
        return False

    def _need(self, sign: str) -> None:
        if not self._sign(sign):
            self._refuse(repr(sign))

    def _expression(self, depth: int) -> Expression:
        parts = [self._and_part(depth)]
        while self._word("or"):
            parts.append(self._and_part(depth))
        return _join(Or, parts)

    def _and_part(self, depth: int) -> Expression:
        parts = [self._unary(depth)]
        while self._word("and"):
            parts.append(self._unary(depth))
        return _join(And, parts)

    def _unary(self, depth: int) -> Expression:
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"nested deeper than {MAX_DEPTH} levels", position=self._next.position)
        if self._word("not"):
            return Not(self._unary(depth + 1))
        if self._sign("("):
            inside = self._expression(depth + 1)
            self._need(")")
            return inside
        if self._word("exists"):
            self._need("(")
            path = self._path()
            self._need(")")
            return path.exists()
        return self._condition()

    def _condition(self) -> Expression:
        path = self._path()
        if self._next.kind == "sign" and self._next.text in _SIGNS:
            op = self._take().text
            return _compare(path, op, self._literal())
        negated = bool(self._word("not"))
        if self._word("in"):
            self._need("(")
            values = []
            while not self._sign(")"):
                values.append(self._literal())
                if self._next.text != ")":
                    self._need(",")
            found = path.in_(values)
            return Not(found) if negated else found
        if negated:
            self._refuse("`in`")
        match self._word("contains", "startswith", "exists", "is"):
            case "contains":
                return path.contains(self._literal())
            case "startswith":
                return path.startswith(self._literal())
            case "exists":
                return path.exists()
            case "is":
                negated = bool(self._word("not"))
                if not self._word("null"):
                    self._refuse("`null`")
                return Not(path.is_null()) if negated else path.is_null()
        self._refuse("a comparison (== != < <= > >= in contains startswith exists is)")

    def _path(self) -> F:
        keys = [self._key()]
        while self._sign("."):
            keys.append(self._key())
        return F(join_path(keys))

    def _key(self) -> str:
        token = self._next
        if token.kind == "quoted":
            return self._take().text[1:-1].replace("``", "`")
        if token.kind == "word" and token.text.lower() not in RESERVED:
            return self._take().text
        self._refuse("a path (words of the language stand in `backquotes`)")

    def _literal(self) -> object:
        token = self._next
        if token.kind == "number":
            self._at += 1
            return int(token.text) if re.fullmatch(r"[+-]?\d+", token.text) else float(token.text)
        if token.kind == "text":
            self._at += 1
            return _unescaped(token.text)
        match self._word("true", "false", "null", "date"):
            case "true":
                return True
            case "false":
                return False
            case "null":
                return None
            case "date":
                if self._next.kind != "text":
                    self._refuse("a date in quotes")
                written = self._take()
                return _date(_unescaped(written.text), position=written.position)
        self._refuse("a number, a text in quotes, true, false, null or date '…'")


def _unescaped(quoted: str) -> str:
    def plain(match: re.Match[str]) -> str:
        what = match[1]
        return chr(int(what[1:], 16)) if len(what) == 5 else _ESCAPES.get(what, what)

    return _ESCAPE.sub(plain, quoted[1:-1])


def _compare(path: F, op: str, value: object) -> Expression:
    match op:
        case "==" | "=":
            return path == value
        case "!=" | "<>":
            return path != value
        case "<":
            return path < value
        case "<=":
            return path <= value
        case ">":
            return path > value
    return path >= value
