"""The last step of a read: rows as points and hits, with as much of them as was asked for. Immutable; safe in any thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from vecdb_storage.ids import Id
from vecdb_storage.payloads import parse
from vecdb_storage.snapshot import Part, Snapshot
from vecdb_storage.vectors import SparseVectors

from .filters import Expression
from .hits import Hit, Hits
from .points import Point, field_named
from .schema import Field
from .search import bitmaps
from .search.keys import score_of, within
from .sparse import SparseVector

if TYPE_CHECKING:
    from .search.executor import Found

WithPayload = bool | Literal["json"]
WithVectors = bool | Sequence[str]
_RUN = 1024  # points of a scroll that are read together


@dataclass(frozen=True, slots=True)
class Shape:
    """What is shown of rows. payload: "json" for the bytes that are stored. vectors: the names of fields."""

    payload: WithPayload
    vectors: Sequence[str]

    @staticmethod
    def of(fields: Mapping[str, Field], with_payload: WithPayload, with_vectors: WithVectors) -> Shape:
        """Raises InvalidInput for a field that is not there."""
        if isinstance(with_vectors, bool) or not with_vectors:
            return Shape(with_payload, list(fields) if with_vectors is True else ())
        names = [with_vectors] if isinstance(with_vectors, str) else with_vectors
        return Shape(with_payload, [field_named(fields, name) for name in names])

    def point(self, key: Id, part: Part, row: int) -> Point:
        return Point(key, self._vectors(part, row), self._payload(part, row) if self.payload else None)

    def hit(self, hit: Hit, found: Found) -> Hit:
        """A hit, filled in."""
        if self.payload:
            hit.payload = self._payload(found.part, found.row)
        if self.vectors:
            hit.vectors = self._vectors(found.part, found.row)
        return hit

    def hits(self, found: list[Found], declared: Field, threshold: float | None) -> Hits:
        """Of one query. threshold: as in `Collection.search`."""
        reported = bool(found) and found[0].reported is not None
        if threshold is not None and not reported:  # of those that are, what is below was left out
            found = within(found, declared, threshold)
        if reported:
            hits = [Hit(each.id, each.reported or 0.0, label=each.label) for each in found]
        elif declared.metric == "cosine":  # the usual metric, without a call for each hit; see score_of
            hits = [Hit(each.id, min(1.0, max(-1.0, each.key))) for each in found]
        else:
            hits = [Hit(each.id, score_of(each.key, declared)) for each in found]
        if self.payload or self.vectors:
            for hit, each in zip(hits, found, strict=True):
                self.hit(hit, each)
        return Hits(hits)

    def scroll(self, snapshot: Snapshot, where: Expression | None, limit: int | None) -> Iterator[Point]:
        """The points that match, in the order in which they were last written."""
        passing: dict[int, Any] = {}
        left = limit if limit is not None else snapshot.count
        for part, rows in snapshot.in_order():
            if where is not None:
                if id(part) not in passing:
                    passing[id(part)] = bitmaps.flags(bitmaps.passing(part, where), part.rows)
                rows = rows[passing[id(part)][rows]]
            rows = rows[: max(0, left)]
            left -= len(rows)
            for start in range(0, len(rows), _RUN):
                run = rows[start : start + _RUN]
                for key, row in zip(part.keys(run), run.tolist(), strict=True):
                    yield self.point(key, part, row)

    def sample(self, snapshot: Snapshot, where: Expression | None, count: int, seed: int) -> list[Point]:
        """So many of the points that match, at random."""
        rows = [bitmaps.rows_of(bitmaps.allowed(part, where), part.rows) for part in snapshot.parts]
        total = sum(map(len, rows))
        chosen = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
        points, before = [], 0
        for part, here in zip(snapshot.parts, rows, strict=True):
            picked = here[chosen[np.searchsorted(chosen, before) : np.searchsorted(chosen, before + len(here))] - before]
            points += [self.point(key, part, row) for key, row in zip(part.keys(picked), picked.tolist(), strict=True)]
            before += len(here)
        return points

    def _payload(self, part: Part, row: int) -> Any:
        stored = part.payload(row)
        return stored if self.payload == "json" else parse(stored) or {}

    def _vectors(self, part: Part, row: int) -> dict[str, Any]:
        vectors = {name: vector_at(part, row, name) for name in self.vectors}
        return {name: vector for name, vector in vectors.items() if vector is not None}


def vector_at(part: Part, row: int, name: str) -> Any:
    """A copy of one stored vector, an ndarray or a SparseVector, or None where the point lacks the field."""
    stored = part.field(name)
    if stored is None or (stored.present is not None and not int(stored.present[row >> 6]) >> (row & 63) & 1):
        return None
    vector = stored.vectors[row]
    return SparseVector.of(vector) if isinstance(vector, SparseVectors) else vector.copy()
