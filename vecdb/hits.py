"""What searches return: hits, lists of hits, batches of them, and groups. Plain values; safe in any thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
from vecdb_storage.ids import Id

from .errors import InvalidInput

if TYPE_CHECKING:
    from .search.plan import HybridPlan, Plan


_MOST_PLACES = 1 << 28  # of a batch, of 12 bytes at least


def check_places(queries: int, k: int) -> None:
    """A batch has room for k hits of each query. Raises InvalidInput."""
    if queries * k > _MOST_PLACES:
        raise InvalidInput(f"{queries:,} queries with k={k:,} have more than {_MOST_PLACES:,} places: ask for less")


BANDS = (
    (0.894, "Close Match"), (0.632, "Very High Relevance"), (0.447, "High Relevance"), (0.316, "Good Relevance"),
    (0.224, "Low Relevance"), (0.1, "Very Low Relevance"), (0.0, "Irrelevant"),
)  # fmt: skip


def band(its: float) -> str:
    """The name of the band in which a score of `score="its"` lies, "Close Match" to "Irrelevant".

    Published by Moorcheh.ai for a score from 0 to 1; the limits are about the roots of 0.8, 0.4, 0.2, 0.1, 0.05 and 0.01.
    Raises InvalidInput for what is no such score.
    """
    if not 0 <= its <= 1:
        raise InvalidInput(f"its is a number from 0 to 1, not {its!r}")
    return next(label for least, label in BANDS if its >= least)


@dataclass(slots=True)
class Hit:
    """One found point. score: the metric's own value, or what `score=` asked for. payload: None unless asked for.

    vectors: those asked for. label: with `score="its"`, the name of its band (`vecdb.hits.band`).
    """

    id: Id
    score: float
    payload: dict[str, Any] | None = None
    vectors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    label: str | None = None

    @property
    def vector(self) -> npt.NDArray[Any] | None:
        """The vector, when one field was asked for or the collection's field has no name."""
        if "vector" in self.vectors or len(self.vectors) != 1:
            return self.vectors.get("vector")
        return next(iter(self.vectors.values()))


class Hits(Sequence[Hit]):
    """Hits of one query, best first, ties by id. plan: how they were found, with `explain=True`."""

    __slots__ = ("_hits", "plan")

    def __init__(self, hits: list[Hit], plan: Plan | HybridPlan | None = None) -> None:
        self._hits = hits
        self.plan = plan

    def __len__(self) -> int:
        return len(self._hits)

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> list[Hit]: ...
    def __getitem__(self, at: int | slice) -> Hit | list[Hit]:
        return self._hits[at]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    def __repr__(self) -> str:
        return f"Hits({self._hits!r})"

    @property
    def ids(self) -> list[Id]:
        return [hit.id for hit in self._hits]

    @property
    def scores(self) -> list[float]:
        return [hit.score for hit in self._hits]

    def to_arrow(self) -> Any:
        """A pyarrow.Table with columns id, score and, where there are, label, and payload (JSON text)."""
        import orjson
        import pyarrow as pa

        columns: dict[str, Any] = {"id": pa.array(self.ids), "score": pa.array(self.scores, pa.float32())}
        if any(hit.label is not None for hit in self._hits):
            columns["label"] = pa.array([hit.label for hit in self._hits])
        if any(hit.payload is not None for hit in self._hits):
            columns["payload"] = pa.array([orjson.dumps(hit.payload).decode() for hit in self._hits])
        return pa.table(columns)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with columns id and score, label where there are, and one per payload key."""
        import pandas as pd

        rows = [
            {"id": hit.id, "score": hit.score, **({"label": hit.label} if hit.label else {}), **(hit.payload or {})}
            for hit in self._hits
        ]
        return pd.DataFrame(rows, columns=None if rows else ["id", "score"])


@dataclass(frozen=True)
class BatchHits(Sequence[Hits]):
    """Hits of many queries.

    ids: (m, k) object, None where a query has fewer hits. scores: (m, k) float32, NaN there. lengths: (m,) int64, hits
    of each query. batch[i] is the Hits of query i, whose payloads are read when it is asked for. payloads(): those of all hits,
    query after query, as the JSON that is stored (b"" for none), for whoever hands them on.
    """

    ids: npt.NDArray[np.object_]
    scores: npt.NDArray[np.float32]
    lengths: npt.NDArray[np.int64]
    _shape: Callable[[int], Hits] = field(repr=False)
    payloads: Callable[[], Sequence[bytes]] = field(repr=False)
    plan: Plan | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, at: int) -> Hits: ...
    @overload
    def __getitem__(self, at: slice) -> list[Hits]: ...
    def __getitem__(self, at: int | slice) -> Hits | list[Hits]:
        positions = range(len(self))
        return [self._shape(p) for p in positions[at]] if isinstance(at, slice) else self._shape(positions[at])


@dataclass(frozen=True)
class Group:
    """Hits that share a payload value. value: that value. hits: best first."""

    value: str | int | float | bool
    hits: Hits
