"""Arguments of calls, checked: one place for the embedded API and for clients, so that both say the same of what is wrong.

Ids, vectors, payloads and queries are in `points.py`. Plain functions, safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from vecdb_storage.ids import Id

from .errors import InvalidInput
from .filters import Expression
from .filters import parse as parse_filter
from .points import Point, checked_ids

Where = Expression | Mapping[str, Any] | str | None


def asked_ids(ids: Any) -> list[Id]:
    """Ids, or a single one. Raises InvalidId."""
    return checked_ids([ids] if isinstance(ids, int | str) and not isinstance(ids, bool) else ids)


def check_chosen(ids: Any, where: Where) -> None:
    """Points are chosen by ids or by a filter, which is not empty: that would touch everything. Raises InvalidInput."""
    if (ids is None) == (where is None):
        raise InvalidInput("give ids= or where=, one of them")
    if where is not None and parse_filter(where) is None:
        raise InvalidInput("the filter is empty, which means every point; say so with ids=, or drop the collection")


def checked_patches(payload: Any, removed: Iterable[str]) -> tuple[list[Any], bool]:
    """The payloads of an update, and whether there is one for all. Raises InvalidInput."""
    if payload is None and not removed:
        raise InvalidInput("give payload= (a dict) or remove= (keys)")
    if payload is None or isinstance(payload, Mapping):
        return [payload or {}], True
    if not isinstance(payload, Iterable):
        raise InvalidInput(f"payload is a dict, or a list of dicts, one for each id; not {payload!r}")
    return list(payload), False


def check_columns_alone(ids: Any, vectors: Any, payloads: Any, texts: Any) -> None:
    """Beside points, no columns are given. Raises InvalidInput."""
    if ids is not None or vectors is not None or payloads is not None or texts is not None:
        raise InvalidInput("give points, or ids=, vectors= and payloads=, not both")


def checked_points(points: Any) -> Any:
    """An iterable of points, of one that was given without a list, too. Raises InvalidInput."""
    if isinstance(points, Point) or (isinstance(points, Mapping) and "id" in points):
        return [points]
    if isinstance(points, Sequence) and points and all(isinstance(each, str) for each in points):
        raise InvalidInput("to write texts, say texts=[...]")
    return points


def checked_k(k: Any, name: str = "k") -> int:
    if type(k) is int and k > 0:  # the usual case, at a tenth of the price
        return k
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InvalidInput(f"{name} must be a whole number from 1 up, not {k!r}")
    return int(k)


def checked_limit(limit: Any) -> int | None:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise InvalidInput(f"limit must be a whole number from 0 up, not {limit!r}")
    return limit


def checked_recall(recall: Any) -> float:
    if isinstance(recall, bool) or not isinstance(recall, int | float) or not 0 < recall <= 1:
        raise InvalidInput(f"recall must be above 0 and at most 1, not {recall!r}")
    return float(recall)


SCORES = ("its", "surprise", "likelihood")


def checked_score(score: Any) -> str | None:
    """None for the metric's own. Raises InvalidInput."""
    if score is not None and score not in SCORES:
        raise InvalidInput(f"score is one of {', '.join(SCORES)}, or None for the metric's own; not {score!r}")
    return score  # type: ignore[no-any-return]


def check_ungrouped(score: Any) -> None:
    """Groups are of hits by the metric's own score. Raises InvalidInput."""
    if score is not None:
        raise InvalidInput("groups have the metric's own score; leave score= or group_by= out")


def check_threshold(score_threshold: Any) -> None:
    if score_threshold is None:
        return
    number = isinstance(score_threshold, int | float | np.number) and not isinstance(score_threshold, bool)
    if not number or score_threshold != score_threshold:
        raise InvalidInput(f"score_threshold must be a number, not {score_threshold!r}")


def checked_timeout(timeout: Any) -> float | None:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0):
        raise InvalidInput(f"timeout must be a number of seconds above 0, not {timeout!r}")
    return timeout


def checked_group_by(path: Any) -> str:
    if not isinstance(path, str):
        raise InvalidInput(f"group_by is a payload path such as 'author.name', not {path!r}")
    return path


def is_texts(queries: Any) -> bool:
    """Whether these are texts, to be embedded."""
    return isinstance(queries, Sequence) and bool(queries) and all(isinstance(query, str) for query in queries)


def checked_fusion(queries: Any, fuse: Any, weights: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Queries by field without those that are None, and the weights of their fields. Raises InvalidInput."""
    if not isinstance(queries, Mapping) or not all(isinstance(name, str) for name in queries):
        raise InvalidInput('queries are by field, as in {"body": [0.1, 0.2], "terms": {17: 1.5}}')
    asked = {name: query for name, query in queries.items() if query is not None}
    if not asked:
        raise InvalidInput("give a query for at least one field")
    if fuse not in ("rrf", "relative"):
        raise InvalidInput(f'fuse is "rrf" or "relative", not {fuse!r}')
    given = dict(weights or {})
    for name, weight in given.items():
        if name not in queries:
            raise InvalidInput("it has a weight and no query", field=str(name))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InvalidInput(f"a weight is a number from 0 up, not {weight!r}", field=name)
    return asked, {name: float(weight) for name, weight in given.items()}


def check_embedded(embedded: str, field: str | None) -> None:
    """Texts are searched in the field that texts are embedded into. Raises InvalidInput."""
    if field is not None and field != embedded:
        raise InvalidInput(f"texts are embedded into field {embedded!r}; give this one a vector", field=field)


def checked_examples(positive: Any, negative: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Examples to recommend by; a single id is one. Raises InvalidInput."""
    positive, negative = ([each] if isinstance(each, int | str) else each for each in (positive, negative))
    if not len(positive):
        raise InvalidInput("give at least one positive example, an id or a vector")
    if "group_by" in options:
        raise InvalidInput("recommend has no groups; search with group_by for the mean of the examples")
    return positive, negative


def checked_truth(truth: Any, queries: int) -> list[list[Id]]:
    """A row of ids for each query, no one twice. Raises InvalidInput, InvalidId."""
    if isinstance(truth, str) or len(truth) != queries:
        raise InvalidInput(f"truth needs a row of ids for each of the {queries} queries; it has {len(truth)} rows")
    rows = []
    for position, row in enumerate(truth):
        if isinstance(row, int | str | np.integer) or not len(row):
            raise InvalidInput("its row of truth is no list of ids, or an empty one", query=position)
        ids = checked_ids(list(row))
        if len(set(ids)) < len(ids):
            raise InvalidInput("its row of truth names an id twice", query=position)
        rows.append(ids)
    return rows
