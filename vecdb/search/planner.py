"""How each part of a snapshot is searched: exactly, or by its index, with or without a bitmap.

The cheaper way wins, by what the backends say a query costs, at the effort that the calibration of the index gives for the
recall that was asked. Memtable blocks and segments without a usable index are always searched exactly. Pure; any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from vecdb_index.contract import Rows, Searcher
from vecdb_index.flat.search import FlatSearcher
from vecdb_storage.snapshot import Part, SegmentPart
from vecdb_storage.tombstones import Words

from ..schema import AUTO, Dense
from . import bitmaps
from .calibrate import Calibration
from .indexes import Index, index_of


@dataclass(frozen=True)
class Way:
    """How one part is searched. searcher: None for exactly. expected: recall, None when nothing was measured."""

    searcher: Searcher | None
    effort: float
    expected: float | None
    allowed: int
    why: str

    @property
    def name(self) -> str:
        return "exact scan" if self.searcher is None else f"index, effort {self.effort:.2f}"


def way_of(
    part: Part, name: str, declared: Dense, rows: Rows, words: Words | None, k: int, share: float, recall: float, queries: int
) -> Way:
    """k: hits that are asked. share: of all rows, that are in this part. recall: 1 asks for an exact search."""
    allowed = bitmaps.count(words, part.rows)
    if recall >= 1:
        return Way(None, 1.0, 1.0, allowed, "exact was asked")
    if declared.index != AUTO and declared.index.backend == "flat":
        return Way(None, 1.0, 1.0, allowed, "as declared")
    index = index_of(part, name, rows) if isinstance(part, SegmentPart) else Index(None, _NONE, "in memory, not indexed")
    if index.searcher is None:
        return Way(None, 1.0, 1.0, allowed, index.why)
    selectivity = allowed / max(1, part.rows)
    effort, expected = index.calibration.effort_for(recall, k, selectivity, share)
    by_index = index.searcher.cost(k, effort, selectivity, queries)
    exactly = FlatSearcher(rows).cost(k, 1.0, selectivity, queries)
    compared = f"{1e6 * exactly:,.0f} µs exactly, {1e6 * by_index:,.0f} µs by the index"
    if exactly <= by_index:
        return Way(None, 1.0, 1.0, allowed, compared)
    return Way(index.searcher, effort, expected, allowed, compared)


_NONE = Calibration(())
