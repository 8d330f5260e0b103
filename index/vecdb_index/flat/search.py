"""Exact search over the rows of one segment, at the speed of memory for one query and of arithmetic for many.

A few queries stream over the rows (`kernels.scan`), or over their int8 codes where there are any (`coded`). More are taken in
tiles: a block of rows is multiplied with a tile of queries in registers, and only rows whose approximate key could still be
among the best, by a rigorous bound of its rounding error, are scored by the pair kernel of `kernels.distances`. Either
way every returned key comes from that kernel, so an answer is the same bits alone, in a batch, and over any split of the rows.

There is no index to build or store. A FlatSearcher holds views only; safe in any thread.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from ..codec.int8 import Codes
from ..contract import Bitmap, Control, Hits, Keys, Rows
from ..kernels.bitmap import ALL, both
from ..kernels.distances import METRICS, prepared, read_only
from ..kernels.scan import scan, scan_briefly, with_key
from ..kernels.select import NO_FLOOR, settle
from ..kernels.tile import search_tiles, tiles_of
from .coded import scan_codes, scan_codes_briefly

STREAMED = 4  # queries up to which streaming beats multiplying
_CODED = 8  # likewise, over codes
_POLL_BYTES = 64 << 20  # of vectors, for each 64 queries, between two looks at the deadline
_BRIEF = 1 << 20  # bytes that are read sooner than a thread would get the interpreter back, had it let go of it


class FlatSearcher:
    """Searches `rows` exactly. codes: of the same rows, if there are any."""

    __slots__ = ("_metric", "_norms", "_vectors", "codes", "rows")
    divides: ClassVar[Literal["rows", "queries"]] = "rows"

    def __init__(self, rows: Rows, codes: Codes | None = None) -> None:
        self.rows, self.codes = rows, codes
        self._metric = METRICS[rows.metric]
        bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
        self._vectors, self._norms = read_only(bits), read_only(rows.norms)

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """See contract.Searcher. `effort` changes nothing: the answer is exact."""
        vectors = self.rows.vectors
        n, m = len(vectors), len(queries)
        keys, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)  # of which `sizes` are in use
        sizes, dropped, tied = np.zeros(m, np.int64), np.full(m, np.nan, np.float32), np.empty(m, np.bool_)
        words = self._words(allowed)
        lowest = NO_FLOOR if floor is None else read_only(floor)
        scored, read = 0, 0
        if n and m and k:
            codes, few = self.codes if m <= _CODED else None, m <= STREAMED
            asked: Any = prepared(queries, self.rows.metric) if codes is None else codes.ask(queries)
            if codes is None and not few:
                asked = tiles_of(asked)
            step = n if control is None else max(64, _POLL_BYTES // (vectors[0].nbytes * -(-m // 64)) // 64 * 64)
            about = self._vectors, self._norms, self._metric, words
            brief = m * n * (vectors.shape[1] if codes is not None else vectors[0].nbytes) < _BRIEF
            for start in range(0, n, step):
                if control is not None:
                    control.poll()
                where = start, min(n, start + step), keys, rows, sizes, dropped, lowest
                if codes is not None:
                    run = scan_codes_briefly if brief else scan_codes
                    seen, looked = run(*asked, codes.key_unit, codes.codes, *about, *where)
                    read += seen // m * codes.codes.shape[1] + looked * vectors[:1].nbytes
                else:
                    seen = ((scan_briefly if brief else scan) if few else search_tiles)(asked, *about, *where)
                    read += seen // m * vectors[:1].nbytes
                scored += seen
        settle(keys, rows, sizes, dropped, lowest, tied)
        return Hits(keys, rows, sizes.astype(np.int32), tied, scored, read)

    @property
    def exact(self) -> FlatSearcher:
        return self

    def part(self, first: int, last: int) -> FlatSearcher:
        """A searcher of some of the rows; first: a multiple of 64."""
        rows = self.rows
        if (first, last) == (0, len(rows)):
            return self
        present = None if rows.present is None else rows.present[first // 64 : -(-last // 64)]
        some = Rows(rows.vectors[first:last], rows.norms[first:last], rows.metric, present)
        return FlatSearcher(some, None if self.codes is None else self.codes.part(first, last))

    def spread(self, allowed: Bitmap) -> float:
        """See contract.Searcher."""
        return 1.0

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """By what memory delivers, or for many queries the arithmetic; where little is allowed, by rows here and there."""
        n, row_bytes = len(self.rows.vectors), self.rows.vectors[:1].nbytes
        allowed = selectivity * n
        kept = min(k, allowed) * (1 + math.log(max(1.0, allowed / max(1, k))))  # rows that are looked at closely
        if self.codes is not None and queries <= _CODED:
            one = (15e-9 if selectivity < 1 else 8e-9) + self.codes.codes.shape[1] / (16e9 if selectivity < 1 else 20e9)
            return 10e-6 + allowed * one + kept * (100e-9 + row_bytes / 10e9)
        if queries > STREAMED:
            multiplied = allowed * (self.rows.vectors.shape[1] / 40e9 + row_bytes / 10e9 / queries)
            return 5e-6 + multiplied + kept * (150e-9 + row_bytes / 10e9)
        if selectivity < 1:
            return 5e-6 + allowed * (20e-9 + row_bytes / 10e9)
        return 5e-6 + n * (2e-9 + row_bytes / 18e9)

    def rows_at(self, query: npt.NDArray[np.float32], key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """The allowed rows whose key for the (d,) query is exactly `key`, ascending: the ties at a place."""
        ready = prepared(query[None, :], self.rows.metric)
        found = np.zeros(len(self.rows.vectors), np.bool_)
        with_key(ready, self._vectors, self._norms, self._metric, self._words(allowed), np.float32(key), found)
        return np.flatnonzero(found)

    def _words(self, allowed: Bitmap | None) -> Bitmap:
        present = self.rows.present
        if allowed is None:
            return ALL if present is None else read_only(present)
        return read_only(allowed if present is None else both(allowed, present))
