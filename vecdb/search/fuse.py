"""Several searches as one: hits of some fields, ranked together.

    rrf         reciprocal rank fusion: the sum over the fields of weight / (60 + rank), ranks from 1 (Cormack, Clarke and
                Büttcher, SIGIR 2009)
    relative    the sum over the fields of weight x score, where the scores of each field go from 0, its last candidate's, to 1

A field in which a point was not found adds nothing. Pure functions; safe in any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from vecdb_storage.ids import Id

if TYPE_CHECKING:
    from .executor import Found

How = Literal["rrf", "relative"]
_OFFSET = 60
_CANDIDATES = 100  # of each field, at least


def depth(k: int) -> int:
    """How many hits of each field are looked at."""
    return max(_CANDIDATES, 3 * k)


def fused(lists: Mapping[str, list[Found]], how: How, weights: Mapping[str, float], k: int) -> list[tuple[float, Found]]:
    """The best k by the fused score, with one of their finds; ties by id. lists: of each field, best first."""
    scores: dict[Id, float] = {}
    finds: dict[Id, Found] = {}
    for field, found in lists.items():
        shares = [1 / (_OFFSET + rank) for rank in range(1, len(found) + 1)] if how == "rrf" else _relative(found)
        for one, share in zip(found, shares, strict=True):
            scores[one.id] = scores.get(one.id, 0.0) + weights.get(field, 1.0) * share
            finds.setdefault(one.id, one)
    order = sorted(scores, key=lambda key: (-scores[key], key))[:k]
    return [(scores[key], finds[key]) for key in order]


def _relative(found: list[Found]) -> list[float]:
    if not found:
        return []
    least, most = found[-1].key, found[0].key
    return [(one.key - least) / (most - least) if most > least else 1.0 for one in found]
