"""Exact search over sparse rows as they lie: every allowed row is compared with the query.

For what is in memory, for small segments, for few allowed rows, and as the oracle. A SparseSearcher holds views only; safe in
any thread.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..contract import Bitmap, Control, Hits, Keys, SparseRows
from ..kernels.bitmap import ALL
from ..kernels.distances import read_only
from ..kernels.select import NO_FLOOR, settle
from ..kernels.sparse import scan_sparse, slots_for, with_product

_POLL = 1 << 20  # components of rows that are looked at, for each query, between two looks at the deadline


class SparseSearcher:
    """Searches `rows` exactly."""

    __slots__ = ("_arrays", "_mean", "rows")
    divides: ClassVar[Literal["rows", "queries"]] = "rows"

    def __init__(self, rows: SparseRows) -> None:
        self.rows = rows
        self._arrays = read_only(rows.offsets), read_only(rows.indices), read_only(rows.weights)
        self._mean = (int(rows.offsets[-1]) - int(rows.offsets[0])) / max(1, len(rows))  # components of a row

    def search(
        self,
        queries: SparseRows,
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """See contract.Searcher. `effort` changes nothing: the answer is exact."""
        n, m = len(self.rows), len(queries)
        keys, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        sizes, dropped, tied = np.zeros(m, np.int64), np.full(m, np.nan, np.float32), np.empty(m, np.bool_)
        words = self._words(allowed)
        lowest = read_only(np.repeat(NO_FLOOR, m) if floor is None else floor)
        scored = 0
        if n and m and k:
            asked = read_only(queries.offsets), read_only(queries.indices), read_only(queries.weights)
            table = self._table(queries)
            step = n if control is None else max(64, int(_POLL / max(1.0, self._mean)) // 64 * 64)
            for q in range(m):  # one by one, so that a deadline is kept whatever their number
                one = slice(q, q + 1)
                for start in range(0, n, step):
                    if control is not None:
                        control.poll()
                    scored += scan_sparse(
                        asked[0][q : q + 2], *asked[1:], *table, *self._arrays, words, start, min(n, start + step),
                        keys[one], rows[one], sizes[one], dropped[one], lowest[one],
                    )  # fmt: skip
        settle(keys, rows, sizes, dropped, lowest, tied)
        return Hits(keys, rows, sizes.astype(np.int32), tied, scored, int(scored * self._mean * 8))

    @property
    def exact(self) -> SparseSearcher:
        return self

    def part(self, first: int, last: int) -> SparseSearcher:
        """A searcher of some of the rows; first: a multiple of 64."""
        return self if (first, last) == (0, len(self.rows)) else SparseSearcher(self.rows[first:last])

    def spread(self, allowed: Bitmap) -> float:
        """See contract.Searcher."""
        return 1.0

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """By the components that are looked up."""
        return 5e-6 + selectivity * len(self.rows) * (20e-9 + 1.5e-9 * self._mean)

    def rows_at(self, query: SparseRows, key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """The allowed rows whose key for the one query is exactly `key`, ascending: the ties at a place."""
        found = np.zeros(len(self.rows), np.bool_)
        first, last = int(query.offsets[0]), int(query.offsets[1])
        asked = read_only(query.indices), read_only(query.weights), first, last
        with_product(*self._table(query), *asked, *self._arrays, self._words(allowed), np.float32(key), found)
        return np.flatnonzero(found)

    @staticmethod
    def _table(queries: SparseRows) -> tuple[Any, Any]:
        most = int(np.diff(queries.offsets).max(initial=0))
        return np.empty(slots_for(most), np.uint32), np.empty(slots_for(most), np.float32)

    def _words(self, allowed: Bitmap | None) -> Bitmap:
        present = self.rows.present
        if allowed is None:
            return ALL if present is None else read_only(present)
        return read_only(allowed if present is None else allowed & present)
