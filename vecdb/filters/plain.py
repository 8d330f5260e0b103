"""Filters over one payload, in plain Python: for rows that have no columns yet. See `expression` for the meaning."""

from __future__ import annotations

import operator
from collections.abc import Callable
from datetime import datetime
from typing import Any

from vecdb_storage.payloads import micros, micros_of, split_path

from .expression import And, Compare, Contains, Exists, Expression, In, IsNull, Not, Or, StartsWith

MISSING = object()
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def matches(node: Expression, payload: dict[str, Any] | None) -> bool | None:
    """True, False, or None for unknown."""
    match node:
        case And():
            results = [matches(part, payload) for part in node.parts]
            return False if False in results else None if None in results else True
        case Or():
            results = [matches(part, payload) for part in node.parts]
            return True if True in results else None if None in results else False
        case Not():
            result = matches(node.part, payload)
            return None if result is None else not result
    return matches_value(node, value_at(payload, node.path))  # type: ignore[attr-defined]


def value_at(payload: Any, path: str) -> Any:
    """The value at a path, or MISSING."""
    for key in split_path(path):
        if not isinstance(payload, dict) or key not in payload:
            return MISSING
        payload = payload[key]
    return payload


def matches_value(node: Expression, value: Any) -> bool | None:
    """A condition on one path, given the value there."""
    match node:
        case Compare():
            return _compare(OPERATORS[node.op], value, node.value)
        case In():
            results = [value is None if v is None else _compare(operator.eq, value, v) for v in node.values]
            return True if True in results else None if None in results else False
        case Contains():
            if isinstance(value, list):
                if node.value is None:
                    return any(each is None for each in value)
                return any(_compare(operator.eq, each, node.value) is True for each in value)
            return node.value in value if isinstance(value, str) and isinstance(node.value, str) else None
        case StartsWith():
            return value.startswith(node.prefix) if isinstance(value, str) else None
        case Exists():
            return value is not MISSING
        case IsNull():
            return value is None
    raise TypeError(f"{type(node).__name__} is no condition on a path")


def _compare(compare: Callable[[Any, Any], bool], value: Any, wanted: Any) -> bool | None:
    if isinstance(wanted, datetime):
        instant = micros_of(value) if isinstance(value, str) else None
        return None if instant is None else compare(instant, micros(wanted))
    if isinstance(value, bool) or isinstance(wanted, bool):
        return compare(value, wanted) if type(value) is type(wanted) else None
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        return compare(value, wanted)  # Python compares ints and floats exactly
    if isinstance(value, str) and isinstance(wanted, str):
        return compare(value, wanted)
    return None
