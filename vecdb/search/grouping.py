"""Hits by groups: points that share a value at a path of their payloads. Pure functions; safe in any thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vecdb_storage.payloads import parse

from ..filters import Expression, F, split_path
from ..hits import Group, Hits

if TYPE_CHECKING:
    from .executor import Found

Search = Callable[[int, Expression | None, Expression | None], "list[Found]"]  # how many, among which points, but for which


def grouped(
    search: Search, hits: Callable[[list[Found]], Hits], k: int, size: int, path: str, where: Expression | None, total: int
) -> list[Group]:
    """The k groups with the best hits, and of each the best `size`. search: exact. total: points that match `where`.

    Finds the groups first, each pass without those found; then fills each. Points whose value at `path` is missing, null, an
    array or an object belong to no group.
    """
    groups = []
    for value in _values(search, k, path, where, total):
        mine = F(path) == value
        found = hits(search(size, mine if where is None else where & mine, None))
        if found:
            groups.append(Group(value, found))
    return groups


def _values(search: Search, k: int, path: str, where: Expression | None, total: int) -> list[Any]:
    """Of the k groups, best first."""
    values: list[Any] = []
    fetch = 4 * k
    while len(values) < k:
        found = search(min(fetch, max(total, 1)), where, F(path).in_(values) if values else None)
        for hit in found:
            value = _value_at(parse(hit.part.payload(hit.row)), path)
            known = any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)
            if value is not None and not known and len(values) < k:
                values.append(value)
        if len(found) < fetch:
            break
        fetch *= 2
    return values


def _value_at(payload: Any, path: str) -> Any:
    """A value that can name a group, or None."""
    for key in split_path(path):
        if not isinstance(payload, dict) or key not in payload:
            return None
        payload = payload[key]
    return payload if isinstance(payload, str | int | float | bool) else None
