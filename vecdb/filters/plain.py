"""Filters over one payload, in plain Python: for rows that have no columns yet. See `expression` for the meaning.

A filter becomes a function once, so that what depends on the filter alone is not decided again for each payload.
"""

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
Predicate = Callable[[Any], bool | None]


def predicate_of(node: Expression) -> Predicate:
    """A function of a payload, None for none: True, False, or None for unknown."""
    match node:
        case And():
            parts = [predicate_of(part) for part in node.parts]
            return lambda payload: _all([part(payload) for part in parts])
        case Or():
            parts = [predicate_of(part) for part in node.parts]
            return lambda payload: _any([part(payload) for part in parts])
        case Not():
            part = predicate_of(node.part)
            return lambda payload: _not(part(payload))
    holds, path = value_predicate_of(node), node.path  # type: ignore[attr-defined]
    keys = split_path(path)
    if len(keys) == 1:  # the usual path, without a loop
        (key,) = keys
        return lambda payload: holds(payload.get(key, MISSING) if isinstance(payload, dict) else MISSING)
    return lambda payload: holds(value_at(payload, path))


def value_at(payload: Any, path: str) -> Any:
    """The value at a path, or MISSING."""
    for key in split_path(path):
        if not isinstance(payload, dict) or key not in payload:
            return MISSING
        payload = payload[key]
    return payload


def value_predicate_of(node: Expression) -> Predicate:
    """A function of the value at a condition's path."""
    match node:
        case Compare():
            return _comparison(OPERATORS[node.op], node.value)
        case In():
            equal = [_is_none if value is None else _comparison(operator.eq, value) for value in node.values]
            return lambda value: _any([each(value) for each in equal])
        case Contains():
            return _holds(node.value)
        case StartsWith():
            prefix = node.prefix
            return lambda value: value.startswith(prefix) if isinstance(value, str) else None
        case Exists():
            return lambda value: value is not MISSING
        case IsNull():
            return _is_none
    raise TypeError(f"{type(node).__name__} is no condition on a path")


def _all(results: list[bool | None]) -> bool | None:
    return False if False in results else None if None in results else True


def _any(results: list[bool | None]) -> bool | None:
    return True if True in results else None if None in results else False


def _not(result: bool | None) -> bool | None:
    return None if result is None else not result


def _is_none(value: Any) -> bool:
    return value is None


def _holds(wanted: Any) -> Predicate:
    equal = _is_none if wanted is None else _comparison(operator.eq, wanted)

    def holds(value: Any) -> bool | None:
        if isinstance(value, list):
            return any(equal(each) is True for each in value)
        return wanted in value if isinstance(value, str) and isinstance(wanted, str) else None

    return holds


def _comparison(compare: Callable[[Any, Any], bool], wanted: Any) -> Predicate:
    """How a value compares with `wanted`; unknown where they are of different kinds."""
    if isinstance(wanted, datetime):
        instant = micros(wanted)

        def since(value: Any) -> bool | None:
            found = micros_of(value) if isinstance(value, str) else None
            return None if found is None else compare(found, instant)

        return since
    if isinstance(wanted, bool):
        return lambda value: compare(value, wanted) if isinstance(value, bool) else None
    if isinstance(wanted, int | float):  # Python compares ints and floats exactly
        return lambda value: compare(value, wanted) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if isinstance(wanted, str):
        return lambda value: compare(value, wanted) if isinstance(value, str) else None
    return lambda value: None
