"""Searches the bits of one segment, then its rows.

Every allowed row is estimated from its bits (`scan`); the rows of the C best estimates, the *short list*, are compared
themselves, in their order in the segment, by the kernel of all keys. `effort` says how long the list is, on a logarithmic scale
from k to a fourth of the rows; at 1 the search is the exact one, and wherever that is the quicker one. Where no more rows are
allowed than a list would hold, they are searched exactly, which is the same answer. There is no chance in it: the same rows
come for any batch, thread or division of the work.

A MIBSearcher is safe in any thread: it holds views only, and a search its own lists (8 bytes for each of two short lists).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..codec.bits import BLOCK, report, unpacked
from ..contract import Arrays, Bitmap, Control, Hits, Keys, Rows
from ..flat.search import FlatSearcher
from ..kernels.distances import METRICS, read_only
from ..kernels.select import settle
from .gate import LATER, RECALLS, verdict_of
from .layout import LISTS, TRIED, measured_in, opened
from .params import MIB
from .scan import rank, scan

_SHARE = 0.25  # of the rows: the longest short list
_LEAST_ROOM = 256  # entries beyond the short list before it is cut
STREAMED = 4  # queries up to which the codes come at the speed of memory
_TILE = 64  # queries that pass over the codes together
_POLL = 1 << 22  # rows times queries between two looks at the deadline
_LOOKED_AT, _PAIRS = 1024, 2000  # rows whose bits are looked at for `figures`, and pairs of them
_NO_BITMAP = read_only(np.zeros(0, np.uint64))


def listed_of(n: int, k: int, effort: float, rest: float = 1.0) -> int:
    """How many of n rows are in the short list, if so many are allowed. rest: the share of the rows that is not held out."""
    return max(k, round(rest * k * (max(k, n * _SHARE) / max(1, k)) ** min(1.0, max(0.0, effort))))


def pays(exact: FlatSearcher, block_bytes: int, k: int, short: int) -> bool:
    """Whether bits save time for one query. exact: of the rows, of which only the costs are asked."""
    vectors = exact.rows.vectors
    return _cost_of(len(vectors), block_bytes, vectors[:1].nbytes, short, 1.0, 1) < exact.cost(k, 1.0, 1.0)


def _cost_of(n: int, block_bytes: int, row_bytes: int, short: int, selectivity: float, queries: int) -> float:
    blocks = n / BLOCK * (1 - (1 - min(1.0, selectivity)) ** BLOCK)
    one = block_bytes / (16e9 if queries <= STREAMED else 30e9)
    return 25e-6 + blocks * (one + 10e-9) + short * (90e-9 + row_bytes / 12e9)


class MIBSearcher:
    def __init__(self, arrays: Arrays, trained: Arrays, rows: Rows, params: MIB, held: int = 0) -> None:
        """held: rows that are left out while recall is measured. Short lists are shorter by their share then: among all rows
        so many more lie before those that are sought. Raises Damaged.
        """
        self.rows = rows
        self.encoder, self.bits = opened(arrays, trained, rows)
        self._trial, self.gate = measured_in(arrays, trained)
        self.exact = FlatSearcher(rows)
        self._metric = METRICS[rows.metric]
        bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
        self._vectors, self._norms = read_only(bits), read_only(rows.norms)
        self._row_bytes = rows.vectors[:1].nbytes
        self._block_bytes = self.bits.codes[:1].nbytes + self.bits.factors[:1].nbytes
        self._count = len(rows) if rows.present is None else int(np.bitwise_count(rows.present).sum())
        self._rest = self._count / (self._count + held) if held else 1.0
        self.verdict = verdict_of(self.gate, self._count, rows.vectors.shape[1], self._row_bytes)
        self.advice = "" if self.verdict is None else self.verdict.advice

    @cached_property
    def figures(self) -> dict[str, float]:
        """See contract.Searcher. Found when they are first asked for: searches do without."""
        found = {f"rotation: {self.encoder.rotation}": 1.0, "bytes a row": self._block_bytes / BLOCK}
        for name, shares in zip(TRIED, self._trial, strict=False):
            if shares[0] >= 0:
                found[f"found in {LISTS[3]} by {name}"] = float(shares[3])
        found |= self._said_by_bits()
        if (verdict := self.verdict) is not None:
            for recall, short, later in zip(RECALLS, verdict.lists, verdict.later, strict=True):
                found[f"short list for {recall}"] = short
                found[f"short list for {recall} of {LATER} times the rows"] = later
            found[f"bytes read for {RECALLS[-1]}"], found["bytes of an exact search of int8"] = verdict.read[-1], verdict.exact
        return found

    def _said_by_bits(self) -> dict[str, float]:
        """Of rows from all over the segment, whole blocks of them."""
        blocks = len(self.bits.codes)
        step = max(1, -(-blocks * BLOCK // _LOOKED_AT))
        some = np.arange(0, blocks, step)
        rows = (some[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        bits = unpacked(self.bits.codes[some], len(rows))[(rows < len(self.rows)) & self._has(rows)]
        if len(bits) < 2:
            return {}
        if self.encoder.rotation not in ("hadamard", "dense"):
            bits = bits[:, : self.rows.vectors.shape[1]]  # no other rotation makes anything of padding
        said = report(bits, pairs=_PAIRS)
        return {
            "entropy of a bit": said.entropy,
            "entropy of a bit, least": said.least,
            "correlation of bits": said.correlation,
            "effective bits": said.effective,
        }

    def _has(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of them have a vector."""
        if self.rows.present is None:
            return np.ones(len(rows), np.bool_)
        inside = np.minimum(rows, len(self.rows) - 1)
        return (self.rows.present[inside // 64] >> (inside % 64).astype(np.uint64) & np.uint64(1)).astype(np.bool_)

    def listed(self, k: int, effort: float) -> int:
        """How many rows are in the short list, if so many are allowed."""
        return listed_of(len(self.rows), k, effort, self._rest)

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """See contract.Searcher."""
        m = len(queries)
        words, count = self._words(allowed)
        short = self.listed(k, effort)
        if effort >= 1 or count <= short or not (m and k and self._pays(k, short)):
            return self.exact.search(queries, k, 1.0, allowed, floor, control)
        return self.look(queries, k, short, words, floor, control)

    def look(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        short: int,
        words: Bitmap = _NO_BITMAP,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """Searches by the bits, with short lists of so many rows, k or more. words: of allowed rows, which all have vectors."""
        m = len(queries)
        keys, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        sizes, dropped, tied = np.zeros(m, np.int64), np.full(m, np.nan, np.float32), np.empty(m, np.bool_)
        lowest = read_only(np.full(m, -np.inf, np.float32) if floor is None else floor)
        blocks, looked = 0, 0
        for start in range(0, m, _TILE):
            some = slice(start, min(m, start + _TILE))
            more = self._tile(queries[some], short, words, keys[some], rows[some], sizes[some], dropped[some], control)
            blocks, looked = blocks + more[0], looked + more[1]
        settle(keys, rows, sizes, dropped, lowest, tied)
        coded, read = blocks * self._block_bytes, looked * self._row_bytes
        seen = {"rows in short lists": looked, "bytes of codes": coded}
        return Hits(keys, rows, sizes.astype(np.int32), tied, m * self._among(words), coded + read, seen)

    def _tile(
        self, queries: npt.NDArray[np.float32], short: int, words: Bitmap, keys: Keys, rows: npt.NDArray[np.int64],
        sizes: npt.NDArray[np.int64], dropped: npt.NDArray[np.float32], control: Control | None,
    ) -> tuple[int, int]:  # fmt: skip
        """Fills the heaps of some queries. Returns how many blocks were read, for all together, and rows."""
        m, blocks = len(queries), len(self.bits.codes)
        ready, tables, terms, _ = self.encoder.ask(queries)
        lists = np.empty((m, short + max(_LEAST_ROOM, short)), np.uint64)
        held, least = np.zeros(m, np.int64), np.full(m, -np.inf, np.float32)
        step = blocks if control is None else max(64, _POLL // (m * BLOCK))
        read = 0
        for first in range(0, blocks, step):
            if control is not None:
                control.poll()
            last = min(blocks, first + step)
            read += scan(tables, terms, *self.bits, words, first, last, short, lists, held, least)
        if control is not None:
            control.poll()
        about = self._vectors, self._norms, self._metric
        return read, rank(ready, *about, short, lists, held, least, keys, rows, sizes, dropped)

    def rows_at(self, query: npt.NDArray[np.float32], key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """See FlatSearcher."""
        return self.exact.rows_at(query, key, allowed)

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1) -> float:
        """By the blocks in which a row is allowed, wherever these lie, and the rows of the short list."""
        short = self.listed(k, effort)
        if effort >= 1 or selectivity * len(self.rows) <= short or not self._pays(k, short):
            return self.exact.cost(k, 1.0, selectivity, queries)
        return _cost_of(len(self.rows), self._block_bytes, self._row_bytes, short, selectivity, queries)

    def _pays(self, k: int, short: int) -> bool:
        """Whether bits save time. It must not depend on what else is asked: answers would."""
        return pays(self.exact, self._block_bytes, k, short)

    def _among(self, words: Bitmap) -> int:
        """How many rows a bitmap has."""
        return int(np.bitwise_count(words).sum()) if len(words) else len(self.rows)

    def _words(self, allowed: Bitmap | None) -> tuple[Bitmap, int]:
        """The bitmap that kernels go by, and how many rows it has."""
        present = self.rows.present
        if allowed is None:
            return (_NO_BITMAP if present is None else read_only(present)), self._count
        both = read_only(allowed if present is None else allowed & present)
        return both, self._among(both)
