"""Typed columns of several parts as one, by their arrays: a merge need not parse its payloads again.

    arrays, meta = merge_columns([(columns, rows), …], order)

`rows` are those that are kept of a part; `order` says in which order the kept rows of all parts, end to end, come out.
A dictionary keeps only the strings that are still in use, and a path that no row has any more is gone. A path that
one part has no column for, and might have (a wide text, or more than 256 paths), gets none: filters then read the
JSON, as they did for that part. Pure functions, safe in any thread.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .columns import ARRAY, BOOL, FLOAT, INT, MAX_PATHS, MISSING, NO_TIME, STRING, Array, Column, ColumnSet, Dictionary, widen
from .ids import Rows
from .strings import Texts, concat, ranges

Order = npt.NDArray[np.int64] | None  # None: as they are

_PIECE = 8192  # strings of a part that are put in order at once
_NAMES = {BOOL: ("bools", np.uint8), INT: ("ints", np.int64), FLOAT: ("floats", np.float64)}


def merge_columns(
    parts: Sequence[tuple[ColumnSet, Rows]], order: Order, pause: Callable[[], None] = lambda: None
) -> tuple[dict[str, Array], dict[str, Any]]:
    """The columns of the kept rows of all parts: (arrays, meta), as `column_build.build` gives them.

    order: (n,) or None. pause: called before each column.
    """
    parts = [(columns, rows) for columns, rows in parts if len(rows)]
    arrays: dict[str, Array] = {}
    described: list[dict[str, Any]] = []
    unknown: list[str] = []
    complete = all(columns.complete for columns, _ in parts)
    for path in dict.fromkeys(path for columns, _ in parts for path in columns.paths()):
        if not all(columns.covers(path) for columns, _ in parts):
            unknown.append(path)
            continue
        if len(described) >= MAX_PATHS:
            complete = False
            continue
        pause()
        column, meta = _merged(f"col.{len(described)}.", [(columns.column(path), rows) for columns, rows in parts], order)
        if meta["kind"] != MISSING:
            arrays |= column
            described.append({"path": path, **meta})
    wide = sorted({*unknown, *(path for columns, _ in parts for path in columns.wide)})
    return arrays, {"columns": described, "wide": wide, "complete": complete}


def _merged(
    prefix: str, parts: Sequence[tuple[Column | None, Rows]], order: Order, *, inside: bool = False
) -> tuple[dict[str, Array], dict[str, Any]]:
    """One column. A part without it has it in no row. inside: over the elements of arrays."""
    kinds = np.concatenate([np.zeros(0, np.uint8), *(_kinds(column, rows) for column, rows in parts)])
    ordered = kinds if order is None else kinds[order]
    found = np.unique(kinds).tolist()
    meta: dict[str, Any] = {"rows": len(kinds), "kind": found[0] if len(found) == 1 else None}
    arrays: dict[str, Array] = {} if len(found) == 1 else {prefix + "kinds": ordered}
    for kind in found:
        # Values of a kind lie end to end; this is where each one of the result is among those of all parts.
        places = None if order is None else (np.cumsum(kinds == kind) - 1)[order[ordered == kind]]
        chosen = [(column, _places(column, rows, kind)) for column, rows in parts]
        if kind in _NAMES:
            name, dtype = _NAMES[kind]
            values = [column.array(name)[at] for column, at in chosen if column is not None and len(at)]
            arrays[prefix + name] = _in_order(np.concatenate([np.zeros(0, dtype), *values]), places)
        elif kind == STRING:
            arrays |= _strings(prefix, chosen, places)
        elif kind == ARRAY and not inside:
            items, meta["item"] = _items(prefix, chosen, places)
            arrays |= items
    return arrays, meta


def _kinds(column: Column | None, rows: Rows) -> npt.NDArray[np.uint8]:
    if column is None or column.kind is not None:
        return np.full(len(rows), MISSING if column is None else column.kind, np.uint8)
    kinds: npt.NDArray[np.uint8] = column.kinds[rows]
    return kinds


def _places(column: Column | None, rows: Rows, kind: int) -> Rows:
    """Where the values of those of `rows` that are of this kind lie in the column's array of them."""
    if column is None or not column.has(kind):
        return rows[:0]
    if column.kind is not None:
        return rows
    of_kind = column.kinds == kind
    places: Rows = (np.cumsum(of_kind) - 1)[rows[of_kind[rows]]]
    return places


def _in_order(values: Array, order: Order) -> Array:
    return values if order is None else values[order]


def _strings(prefix: str, parts: Sequence[tuple[Column | None, Rows]], order: Order) -> dict[str, Array]:
    codes: list[npt.NDArray[Any]] = []
    used: list[tuple[Dictionary, Rows]] = []
    for column, at in parts:
        if column is not None and len(at):
            distinct, code = np.unique(column.array("codes")[at], return_inverse=True)
            used.append((column.text, distinct.astype(np.int64)))
            codes.append(code)
    maps = [np.zeros(len(distinct), np.uint32) for _, distinct in used]
    merged: list[Texts] = []
    count = 0
    for piece in _pieces(used):
        some = [(dictionary, distinct[run]) for (dictionary, distinct), run in zip(used, piece, strict=True)]
        texts, places = _put_in_order(some)
        for numbers, run, of in zip(maps, piece, places, strict=True):
            numbers[run] = count + of
        merged.append(texts)
        count += len(texts)
    together = concat(merged)
    arrays = {
        prefix + "codes": _in_order(np.concatenate([m[c] for m, c in zip(maps, codes, strict=True)]), order),
        prefix + "text.offsets": together.offsets,
        prefix + "text.bytes": together.text,
    }
    if any(dictionary.times is not None for dictionary, _ in used):
        times = np.full(count, NO_TIME, np.int64)
        for (dictionary, distinct), codes_of in zip(used, maps, strict=True):
            if dictionary.times is not None:
                times[codes_of] = dictionary.times[distinct]
        if (times != NO_TIME).any():
            arrays[prefix + "text.times"] = times
    return arrays


def _pieces(used: Sequence[tuple[Dictionary, Rows]]) -> Iterator[list[slice]]:
    """A run of each part's strings, of some thousands, and the next: what is in one run is below all that is in later ones."""
    ends = sorted({d[int(codes[at])] for d, codes in used for at in range(_PIECE, len(codes), _PIECE)})
    starts = [0] * len(used)
    for end in [*ends, None]:
        stops = [
            len(codes) if end is None else int(np.searchsorted(codes, dictionary.place(end)[0])) for dictionary, codes in used
        ]
        yield list(map(slice, starts, stops))
        starts = stops


def _put_in_order(parts: Sequence[tuple[Dictionary, Rows]]) -> tuple[Texts, list[npt.NDArray[np.int64]]]:
    """The distinct strings of some codes of each part, in order, and which of them each code is."""
    narrow = [dictionary.narrow(codes) for dictionary, codes in parts]
    short = [each for each in narrow if each is not None]
    bounds = np.cumsum([len(codes) for _, codes in parts])
    if len(short) == len(parts):  # without an object for each, and while other threads run
        distinct, places = np.unique(np.concatenate(short), return_inverse=True)
        return widen(distinct), np.split(places, bounds[:-1])
    found: list[bytes] = []
    places = np.zeros(int(bounds[-1]), np.int64)
    for text, at in heapq.merge(*(_texts(*each, int(end)) for each, end in zip(parts, bounds, strict=True))):
        if not found or text != found[-1]:
            found.append(text)
        places[at] = len(found) - 1
    return Texts.of(found), np.split(places, bounds[:-1])


def _texts(dictionary: Dictionary, codes: Rows, end: int) -> Iterator[tuple[bytes, int]]:
    """The strings of a part, which is the one that ends there."""
    return zip(dictionary.at(codes), range(end - len(codes), end), strict=True)


def _items(prefix: str, parts: Sequence[tuple[Column | None, Rows]], order: Order) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays: where each begins, and a column over all their elements."""
    lengths: list[Rows] = [np.zeros(0, np.int64)]
    elements: list[tuple[Column | None, Rows]] = []
    for column, at in parts:
        if column is not None and len(at):
            offsets = column.array("item.offsets").astype(np.int64)
            lengths.append(offsets[at + 1] - offsets[at])
            elements.append((column.item, ranges(offsets[at], lengths[-1])))
    sizes = np.concatenate(lengths)
    inner = None
    if order is not None:
        begins = np.cumsum(sizes) - sizes
        sizes = sizes[order]
        inner = ranges(begins[order], sizes)
    items, meta = _merged(prefix + "item.", elements, inner, inside=True)
    offsets = np.zeros(len(sizes) + 1, np.uint64)
    np.cumsum(sizes.astype(np.uint64), out=offsets[1:])
    return {prefix + "item.offsets": offsets, **items}, meta
