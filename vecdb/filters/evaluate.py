"""Filters over typed columns: a bitmap of the rows for which an expression is true.

Each node gives a pair of flags per row, (true, false); unknown is neither, so that `~` swaps them. A path without a
column is evaluated by a pass over the stored JSON, condition by condition. See `expression` for the meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from vecdb_storage.columns import ARRAY, BOOL, FLOAT, INT, MISSING, NO_TIME, NULL, STRING, Column, ColumnSet
from vecdb_storage.payloads import micros  # fmt: skip

from .expression import And, Compare, Contains, Exists, Expression, In, IsNull, Not, Or, StartsWith
from .plain import OPERATORS, value_at, value_predicate_of

Flags = npt.NDArray[np.bool_]
PayloadOf = Callable[[int], dict[str, Any] | None]
_Truth = tuple[Flags, Flags]


def evaluate(node: Expression, columns: ColumnSet, payload_of: PayloadOf) -> npt.NDArray[np.uint64]:
    """The rows for which `node` is true, as words: bit i % 64 of word i // 64, padding bits zero.

    payload_of: row -> payload, called only for rows of paths that have no column.
    """
    true, _ = _truth(node, columns, payload_of)
    words = np.zeros(-(-columns.rows // 64), np.uint64)
    packed = np.packbits(np.broadcast_to(true, columns.rows), bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def _truth(node: Expression, columns: ColumnSet, payload_of: PayloadOf) -> _Truth:
    match node:
        case And():
            true, false = _truth(node.parts[0], columns, payload_of)
            for part in node.parts[1:]:
                more_true, more_false = _truth(part, columns, payload_of)
                true, false = true & more_true, false | more_false
            return true, false
        case Or():
            true, false = _truth(node.parts[0], columns, payload_of)
            for part in node.parts[1:]:
                more_true, more_false = _truth(part, columns, payload_of)
                true, false = true | more_true, false & more_false
            return true, false
        case Not():
            true, false = _truth(node.part, columns, payload_of)
            return false, true
    path: str = node.path  # type: ignore[attr-defined]
    column = columns.column(path)
    if column is not None:
        return condition(node, column)
    holds = value_predicate_of(node)
    if columns.covers(path):
        return _everywhere(holds(value_at(None, path)))
    results = [holds(value_at(payload_of(row), path)) for row in range(columns.rows)]
    return np.array([r is True for r in results], np.bool_), np.array([r is False for r in results], np.bool_)


def _everywhere(result: bool | None) -> _Truth:
    return np.array(result is True), np.array(result is False)


def condition(node: Expression, column: Column) -> _Truth:
    """A condition on one path, for each row of its column."""
    match node:
        case Compare():
            return _compare(column, node.op, node.value)
        case In():
            return _in(column, node.values)
        case Contains():
            return _contains(column, node.value)
        case StartsWith():
            if not column.has(STRING):
                return _everywhere(None)
            start, stop = column.text.prefixed(node.prefix)
            codes = column.array("codes")
            return _spread(column, STRING, (codes >= start) & (codes < stop))
        case Exists():
            return _is_kind(column, MISSING, negated=True)
        case IsNull():
            return _is_kind(column, NULL)
    raise TypeError(f"{type(node).__name__} is no condition on a path")


def _is_kind(column: Column, kind: int, *, negated: bool = False) -> _Truth:
    holds = np.array(column.kind == kind) if column.kind is not None else column.kinds == kind
    return (~holds, holds) if negated else (holds, ~holds)


def _spread(column: Column, kind: int, holds: Flags, known: Flags | None = None) -> _Truth:
    """Flags of the rows of one kind as flags of all rows. known: which of them are not unknown."""
    fails = ~holds if known is None else known & ~holds
    if column.kind is not None:
        return holds, fails
    here = column.kinds == kind
    true, false = np.zeros(column.rows, np.bool_), np.zeros(column.rows, np.bool_)
    true[here], false[here] = holds, fails
    return true, false


def _either(left: _Truth, right: _Truth) -> _Truth:
    """For conditions on different kinds, of which a row has one."""
    return left[0] | right[0], left[1] | right[1]


def _compare(column: Column, op: str, value: Any) -> _Truth:
    if isinstance(value, bool):
        if not column.has(BOOL):
            return _everywhere(None)
        return _spread(column, BOOL, OPERATORS[op](column.array("bools"), np.uint8(value)))  # type: ignore[arg-type]
    if isinstance(value, datetime):
        return _compare_times(column, op, micros(value))
    if isinstance(value, str):
        return _compare_strings(column, op, value)
    result = _everywhere(None)
    if column.has(INT):
        result = _spread(column, INT, _compare_ints(column.array("ints"), op, value))
    if column.has(FLOAT):
        result = _either(result, _spread(column, FLOAT, _compare_floats(column.array("floats"), op, value)))
    return result


def _compare_ints(ints: npt.NDArray[np.int64], op: str, value: int | float) -> Flags:
    """Exact also for floats, which int64 cannot be compared with without rounding."""
    if isinstance(value, float) and not value.is_integer():
        if op in ("==", "!="):
            return np.full(len(ints), op == "!=")
        # v < 2.5 is v <= 2, and v > 2.5 is v > 2
        return _compare_ints(ints, "<=" if op in ("<", "<=") else ">", math.floor(value))
    whole = int(value)
    if not -(2**63) <= whole < 2**63:
        return np.full(len(ints), op == "!=" or ((op in ("<", "<=")) == (whole > 0) and op != "=="))
    return OPERATORS[op](ints, np.int64(whole))  # type: ignore[return-value]


def _compare_floats(floats: npt.NDArray[np.float64], op: str, value: int | float) -> Flags:
    rounded = float(value)
    if isinstance(value, float) or int(rounded) == value:
        return OPERATORS[op](floats, rounded)  # type: ignore[return-value]
    if op in ("==", "!="):
        return np.full(len(floats), op == "!=")
    # No float lies between the int and its rounding, so the side of the one is the side of the other.
    if int(rounded) > value:
        return floats < rounded if op in ("<", "<=") else floats >= rounded
    return floats <= rounded if op in ("<", "<=") else floats > rounded


def _compare_strings(column: Column, op: str, value: str) -> _Truth:
    if not column.has(STRING):
        return _everywhere(None)
    codes = column.array("codes")
    at, found = column.text.find(value)
    if op in ("==", "!="):
        equal = codes == at if found else np.zeros(len(codes), np.bool_)
        return _spread(column, STRING, equal if op == "==" else ~equal)
    # Codes below `at` are less than the value; `at` itself equals it if found.
    bound = at + 1 if found and op in ("<=", ">") else at
    return _spread(column, STRING, codes < bound if op in ("<", "<=") else codes >= bound)


def _compare_times(column: Column, op: str, instant: int) -> _Truth:
    if not column.has(STRING) or column.text.times is None:
        return _everywhere(None)
    times = column.text.times
    known = times != NO_TIME
    holds = OPERATORS[op](times, np.int64(instant)) & known
    codes = column.array("codes")
    return _spread(column, STRING, holds[codes], known[codes])


def _in(column: Column, values: tuple[Any, ...]) -> _Truth:
    """The `or` of an == for each value; many strings are looked up in one table."""
    if not values:
        return _everywhere(False)
    results = []
    strings = [v for v in values if isinstance(v, str)]
    if len(strings) > 1:
        if column.has(STRING):
            wanted = np.zeros(len(column.text), np.bool_)
            for text in strings:
                at, found = column.text.find(text)
                if found:
                    wanted[at] = True
            results.append(_spread(column, STRING, wanted[column.array("codes")]))
        else:
            results.append(_everywhere(None))
    ints = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    many = len(ints) > 8 and not column.has(FLOAT)
    if many:
        holds = np.isin(column.array("ints"), np.array(ints, np.int64)) if column.has(INT) else None
        results.append(_everywhere(None) if holds is None else _spread(column, INT, holds))
    for value in values:
        if value is None:
            results.append(_is_kind(column, NULL))
        elif (isinstance(value, str) and len(strings) > 1) or (many and type(value) is int):
            continue
        else:
            results.append(_compare(column, "==", value))
    true, false = results[0]
    for more_true, more_false in results[1:]:
        true, false = true | more_true, false & more_false
    return true, false


def _contains(column: Column, value: Any) -> _Truth:
    result = _everywhere(None)
    if isinstance(value, str) and column.has(STRING):
        result = _spread(column, STRING, column.text.containing(value)[column.array("codes")])
    if column.has(ARRAY):
        offsets, item = column.array("item.offsets"), column.item
        holds = np.zeros(len(offsets) - 1, np.bool_)
        if item is not None:
            if int(offsets[-1]) != item.rows:
                raise ValueError(f"arrays of {int(offsets[-1])} elements, of which there are {item.rows}")
            equal, _ = _is_kind(item, NULL) if value is None else _compare(item, "==", value)
            count = np.zeros(item.rows + 1, np.int64)
            np.cumsum(np.broadcast_to(equal, item.rows), out=count[1:])
            holds = count[offsets[1:]] > count[offsets[:-1]]
        result = _either(result, _spread(column, ARRAY, holds))
    return result
