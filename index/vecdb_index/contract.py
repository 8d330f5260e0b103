"""What index backends are given and what they give back. Imports NumPy alone: no kernel is loaded by naming a type.

Keys are larger-is-better inside the engine: cosine similarity, inner product, or minus the *squared* Euclidean
distance; `scores_of` turns them into the metric's own values. Bitmaps are uint64 words, bit i % 64 of word i // 64.
Values are immutable and safe in any thread, except that a Control may be cancelled from anywhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Metric = Literal["cosine", "ip", "l2"]
Bitmap = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Rows:
    """Stored vectors, as they lie in a segment or a memtable block.

    vectors: (n, d) float32, float16 or int8, C-contiguous, may be mapped read-only. norms: (n,) float32 Euclidean
    norms, within a relative d 2^-24: the bounds of searches rely on them. present: rows that have a vector; None for all.
    """

    vectors: npt.NDArray[Any]
    norms: npt.NDArray[np.float32]
    metric: Metric
    present: Bitmap | None = None


@dataclass(frozen=True, slots=True)
class Hits:
    """The best rows of each query, by (key descending, row ascending).

    keys: (m, k) float32. rows: (m, k) int64, -1 beyond lengths. lengths: (m,) int32. tied: (m,) bool, true when a row that
    was left out has exactly the key of the last hit. scored: rows compared with a query; bytes: of vectors read.
    """

    keys: Keys
    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    tied: npt.NDArray[np.bool_]
    scored: int
    bytes: int


class Cancelled(Exception):
    """The search was cancelled through its Control."""


class DeadlineReached(Exception):
    """The search ran past the deadline of its Control."""


class Control:
    """Stops a search between blocks. deadline: a time.monotonic() value, or None."""

    __slots__ = ("_cancelled", "deadline")

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def poll(self) -> None:
        """Raises Cancelled or DeadlineReached."""
        if self._cancelled:
            raise Cancelled
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlineReached


class Searcher(Protocol):
    """Searches the rows of one segment."""

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """The best k allowed rows of each of the (m, d) queries; fewer only when fewer are allowed.

        effort: 0 to 1, the backend's one knob. floor: (m,) keys; hits below them may be left out.
        """


def scores_of(keys: Keys, metric: Metric) -> Keys:
    """Keys as the metric's own values: similarities as they are, distances for l2."""
    return np.sqrt(np.maximum(-keys, 0)) if metric == "l2" else keys
