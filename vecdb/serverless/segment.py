"""Searches the codes of one published object: as `vecdb_index.mib.search` does where they lie, with the same answers.

Codes are scanned in stripes as they arrive, in whatever order that is: each range has lists of its own, and the best of all are
kept by (estimate, row), and cut by the margin in the end. Then the rows of the short lists are read and ranked by the kernel
that ranks them at home, so that ids and scores are the same bits for the same effort. Where a list would hold all rows that
count, or they are so few that codes save no time, all rows are read, range by range, and searched exactly.

A SegmentSearch is of one search, and of the thread that makes it; threads of the reader fetch for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from vecdb_index.codec.bits import BLOCK, LENGTH
from vecdb_index.codec.planes import refine
from vecdb_index.contract import Control, Hits, Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.kernels.distances import METRICS, read_only
from vecdb_index.mib.scan import Lists, filled, rank, scan, shorten
from vecdb_index.mib.tuning import plan_of
from vecdb_storage.ids import Id

from ..errors import Corruption
from .layout import FieldLayout, block_bytes
from .reader import RANGE, ObjectReader
from .transport import Tally

_TOGETHER = 64  # queries whose short lists are read together, at most
_MEMORY = 256 << 20  # bytes that lists of queries that share a pass may take, and rows that are ranked together
_GREATEST = 1e31  # of factors, as in `mib.layout`
_ROW_BITS = np.uint64(0xFFFF_FFFE)  # of an entry; see kernels.select
_NONE = read_only(np.zeros(0, np.uint64))


class SegmentSearch:
    """A field of an object as `Searcher` and as `Part`: what the executor's answers are made of. control: of the search."""

    def __init__(self, reader: ObjectReader, name: str, tally: Tally, control: Control | None) -> None:
        self._reader, self._tally, self._control = reader, tally, control
        self._header = reader.header(tally, control)
        self._field: FieldLayout | None = self._header.fields.get(name)
        self.rows = self._header.rows
        self.live_rows = reader.object.live
        self._records: dict[int, Any] = {}  # of rows that may be hits
        self._texts: dict[int, bytes] = {}

    # -- as a searcher -------------------------------------------------------------------------------------------

    @property
    def allowed(self) -> int:
        """Rows that count."""
        return 0 if self._field is None else self._field.allowed

    @property
    def declared(self) -> tuple[int, str, str]:
        """Its field's dimensions, metric and dtype."""
        declared = self._known.declared
        return declared.dim, declared.metric, declared.dtype

    def listed(self, k: int, effort: float) -> int | None:
        """How long short lists are; None where all rows are read instead."""
        field = self._known
        if effort >= 1 or field.allowed <= (short := field.lists.listed(k, effort)):
            return None
        d, dtype = field.declared.dim, field.record["vector"].base
        elsewhere = Rows(
            np.broadcast_to(np.zeros((1, d), dtype), (self.rows, d)), np.zeros(0, np.float32), field.declared.metric
        )
        return short if field.lists.pays(FlatSearcher(elsewhere), k, short) else None

    def search(self, queries: npt.NDArray[np.float32], k: int, effort: float) -> Hits:
        """The best k rows of each query. Raises as the transport does, and Corruption."""
        short = self.listed(k, effort)
        if short is None:
            return self._exactly(queries, k)
        step = max(1, _MEMORY // (24 * self._known.lists.most(short)))
        return _stacked([self._look(queries[at : at + step], k, short) for at in range(0, len(queries), step)])

    def _look(self, queries: npt.NDArray[np.float32], k: int, short: int) -> Hits:
        """By the codes, which all of these queries pass over once."""
        field, m = self._known, len(queries)
        encoder = self._reader.encoder(field, self._tally, self._control)
        live = self._reader.live(field, self._tally, self._control)
        ready, tables, terms, turned = encoder.ask(queries)
        best: list[npt.NDArray[np.uint64]] = [np.zeros(0, np.uint64)] * m
        worst = np.full(m, -np.inf, np.float32)  # estimates of the last ones of full lists
        blocks, plan, lengths = self._header.blocks, plan_of(field.width, 0), terms[:, LENGTH]
        *_, reach, most, near = field.lists.empty(k, short, lengths)
        pieces = -(-blocks // field.stripe)
        arrived = self._reader.pieces(f"codes:{field.name}", 0, pieces, self._tally, self._control, self._stripes)
        coded = 0
        for first, codes, factors in arrived:
            # Rows that come before those that are known win where estimates are the same.
            lists = field.lists.empty(k, short, lengths)._replace(least=np.nextafter(worst, np.float32(-np.inf)))
            n = min(self.rows - first * BLOCK, len(codes) * BLOCK)
            words = read_only(live[first // 2 : first // 2 + -(-n // 64)]) if len(live) else _NONE
            scan(tables, terms, codes, factors, n, words, 0, len(codes), plan, *lists)
            moved = np.uint64(first * BLOCK << 1)
            for q in range(m):
                both = np.concatenate([best[q], lists.entries[q, : lists.sizes[q]] + moved])
                if len(both) >= most:
                    both.partition(most - 1)
                    both = both[:most]
                    worst[q] = _estimate(both[most - 1])
                best[q] = both
            coded += len(codes)
        best = _shortened(best, reach, most, near)
        scanned, passed, last = coded * block_bytes(field.width), 0, field.lists.compared(k, short)
        if last < short:
            passed = sum(map(len, best))
            scanned += passed * field.lists.plane_bytes
            together = max(1, min(_TOGETHER, _MEMORY // (most * field.planes.itemsize)))
            best = [
                each
                for at in range(0, m, together)
                for each in self._refined(turned, terms, best, slice(at, at + together), last)
            ]
        together = max(1, min(_TOGETHER, _MEMORY // (max(map(len, best), default=1) * field.record.itemsize)))
        found = [self._ranked(ready, best, slice(at, at + together), k) for at in range(0, m, together)]
        hits = _stacked(found)
        looked = sum(map(len, best))
        seen = {"rows in short lists": looked, "bytes of codes": scanned}
        if last < short:
            seen["rows looked at by all bits"] = passed
        return Hits(hits.keys, hits.rows, hits.lengths, hits.tied, m * field.allowed, scanned + looked * self._row_bytes, seen)

    def _stripes(self, piece: int, data: bytes) -> tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """(first block, codes, factors) of some stripes, each of these together. Raises Corruption."""
        field = self._known
        first, code = piece * field.stripe, BLOCK * (field.width // 8)
        blocks = len(data) // block_bytes(field.width)
        codes, factors = np.empty((blocks, field.width // 8, BLOCK), np.uint8), np.empty((blocks, 2, BLOCK), np.float32)
        given, at = np.frombuffer(data, np.uint8), 0
        for start in range(0, blocks, field.stripe):
            count = min(field.stripe, blocks - start)
            codes[start : start + count] = given[at : at + count * code].reshape(count, -1, BLOCK)
            at += count * code
            factors[start : start + count] = given[at : at + count * 8 * BLOCK].view(np.float32).reshape(count, 2, BLOCK)
            at += count * 8 * BLOCK
        if not np.isfinite(factors).all() or np.abs(factors).max(initial=0) > _GREATEST:
            raise Corruption("the factors of a row are no numbers", file=self._reader.file, array=f"codes:{field.name}")
        return first, read_only(codes), read_only(factors)

    def _refined(
        self, turned: npt.NDArray[np.float32], terms: npt.NDArray[np.float64], best: list[npt.NDArray[np.uint64]], some: slice,
        last: int,
    ) -> list[npt.NDArray[np.uint64]]:  # fmt: skip
        """The lists of some queries, cut by all bits of a dimension. Raises Corruption."""
        field = self._known
        name = f"planes:{field.name}"
        rows, lists, held = _lists_of(best[some])
        records = self._reader.records(name, field.planes, rows, self._tally, self._control)
        planes, scales = np.ascontiguousarray(records["planes"]), np.ascontiguousarray(records["scale"])
        factors = np.zeros((-(-len(rows) // BLOCK), 2, BLOCK), np.float32)
        at = np.arange(len(rows))
        factors[at // BLOCK, 1, at % BLOCK] = records["add"]
        if not (np.isfinite(scales).all() and np.isfinite(factors).all()) or np.abs(scales).max(initial=0) > _GREATEST:
            raise Corruption("the scales of a row are no numbers", file=self._reader.file, array=name)
        about = read_only(planes), read_only(scales), read_only(factors)
        refine(turned[some], terms[some], *about, last, lists, held)
        cut = [lists[q, : held[q]] for q in range(len(lists))]
        return [(each & ~_ROW_BITS) | rows[_rows_in(each)].astype(np.uint64) << np.uint64(1) for each in cut]

    def _ranked(self, ready: npt.NDArray[np.float32], best: list[npt.NDArray[np.uint64]], some: slice, k: int) -> Hits:
        """The best k rows in the short lists of some queries, by their vectors."""
        rows, lists, held = _lists_of(best[some])
        kept = Lists(
            lists, held, filled(len(lists), -np.inf), held.copy(), read_only(filled(len(lists), np.inf)), lists.shape[1], 1
        )
        records, m = self._read(rows), len(lists)
        keys, found = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        sizes, dropped, tied = np.zeros(m, np.int64), np.full(m, np.nan, np.float32), np.empty(m, np.bool_)
        taken = self._rows_of(records)
        bits = taken.vectors.view(np.uint16) if taken.vectors.dtype == np.float16 else taken.vectors
        about = read_only(bits), read_only(taken.norms), METRICS[taken.metric]
        rank(ready[some], *about, *kept, keys, found, sizes, dropped, read_only(filled(m, -np.inf)), tied)
        hit = found >= 0
        self._keep(np.unique(found[hit]), rows, records)
        found[hit] = rows[found[hit]]
        return Hits(keys, found, sizes.astype(np.int32), tied, 0, 0)

    def _exactly(self, queries: npt.NDArray[np.float32], k: int) -> Hits:
        """By all rows, a range after the other."""
        m, scored = len(queries), 0
        keys, rows = np.full((m, k), -np.inf, np.float32), np.full((m, k), -1, np.int64)
        tied = np.zeros(m, np.bool_)
        for first, records, words in self._ranges():
            mine = FlatSearcher(self._rows_of(records)).search(queries, k, 1.0, words)
            before = np.where(rows < 0, np.iinfo(np.int64).max, rows)
            further = np.where(mine.rows < 0, np.iinfo(np.int64).max, mine.rows + first)
            both, where = np.concatenate([keys, mine.keys], axis=1), np.concatenate([before, further], axis=1)
            order = np.lexsort((where, -both), axis=1)
            both, where = np.take_along_axis(both, order, 1), np.take_along_axis(where, order, 1)
            last = both[:, k - 1]
            # Something was left out that is as good as the last one: here, before, or there, if that last one is still it.
            left = (both[:, k] == last) & (last > -np.inf)
            tied = left | (tied & (keys[:, k - 1] == last)) | (mine.tied & (mine.keys[:, k - 1] == last))
            keys, rows = both[:, :k], np.where(both[:, :k] > -np.inf, where[:, :k], -1)
            here = np.unique(rows[(rows >= first) & (rows < first + len(records))])
            self._keep(here - first, np.arange(first, first + len(records)), records)
            best = set(rows[rows >= 0].tolist())
            self._records = {row: record for row, record in self._records.items() if row in best}
            scored += mine.scored
        lengths = (keys > -np.inf).sum(axis=1).astype(np.int32)
        return Hits(keys, rows, lengths, tied, scored, self.rows * self._row_bytes)

    def rows_at(self, query: npt.NDArray[np.float32], key: float, allowed: Any = None) -> npt.NDArray[np.int64]:
        """The rows whose key is exactly that one, ascending: the ties at a place, for which all rows are read again."""
        found = []
        for first, records, words in self._ranges():
            here = FlatSearcher(self._rows_of(records)).rows_at(query, key, words)
            self._keep(here, np.arange(first, first + len(records)), records)
            found.append(here + first)
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _ranges(self) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[np.uint64] | None]]:
        """(first row, records, which of them count) of all rows, in ranges that begin at multiples of 64."""
        field = self._known
        live = self._reader.live(field, self._tally, self._control)
        size = field.record.itemsize
        piece = self._header.sections[f"rows:{field.name}"].piece
        step = max(1, 64 * size // piece)  # pieces; both are powers of two in rows
        while step * piece < RANGE:
            step *= 2
        pieces = -(-self.rows * size // piece)
        for start in range(0, pieces, step):
            parts = self._reader.pieces(
                f"rows:{field.name}", start, min(pieces, start + step), self._tally, self._control, lambda at, data: (at, data)
            )
            data = b"".join(part for _, part in sorted(parts))
            first = start * piece // size
            records = np.frombuffer(data, field.record)
            words = np.ascontiguousarray(live[first // 64 : first // 64 + -(-len(records) // 64)]) if len(live) else None
            yield first, records, words

    @property
    def _known(self) -> FieldLayout:
        assert self._field is not None
        return self._field

    @property
    def _row_bytes(self) -> int:
        return self._known.record["vector"].itemsize

    def _rows_of(self, records: npt.NDArray[Any]) -> Rows:
        """Records as kernels take rows."""
        vectors, norms = np.ascontiguousarray(records["vector"]), np.ascontiguousarray(records["norm"])
        vectors = vectors.reshape(len(records), self._known.declared.dim)
        return Rows(vectors, norms, self._known.declared.metric)

    def _read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self._reader.records(f"rows:{self._known.name}", self._known.record, rows, self._tally, self._control)

    def _keep(self, at: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], records: npt.NDArray[Any]) -> None:
        """Of what was read, the places that may be hits."""
        for one in at.tolist():
            self._records[int(rows[one])] = records[one].copy()

    def end(self) -> None:
        """The search is over: what is read for its hits later is under no deadline."""
        self._control = None

    # -- as a part ---------------------------------------------------------------------------------------------------

    def key(self, row: int) -> Id:
        return self.keys(np.array([row]))[0]

    def keys(self, rows: npt.NDArray[np.int64]) -> list[Id]:
        """Ids. Those that are texts are read, if that was not done before, with their payloads."""
        wanted = rows.tolist()
        if self._header.ids == "int":
            return [int(self._record(row)["id"]) for row in wanted]
        self.fetch(wanted)
        found: list[Id] = []
        for row in wanted:
            try:
                found.append(self._texts[row][: int(self._record(row)["named"])].decode())
            except UnicodeDecodeError as error:
                raise Corruption(f"the id of row {row:,} is no text", file=self._reader.file, array="texts") from error
        return found

    def payload(self, row: int) -> bytes:
        """Its JSON, b"" when it has none."""
        self.fetch([row])
        return self._texts[row][int(self._record(row)["named"]) :]

    def fetch(self, rows: list[int]) -> None:
        """Reads ids and payloads of some rows at once."""
        wanted = np.array(sorted({row for row in rows if row not in self._texts}), np.int64)
        if not len(wanted):
            return
        records = np.array([self._record(row) for row in wanted.tolist()])
        texts = self._reader.texts(records, wanted, self._tally, self._control)
        self._texts |= dict(zip(wanted.tolist(), texts, strict=True))

    def vector(self, row: int, name: str) -> npt.NDArray[Any] | None:
        """A copy of a stored vector of any field that was published, None where the row lacks it."""
        field = self._header.fields.get(name)
        if field is None:
            return None
        live = self._reader.live(field, self._tally, self._control)
        if len(live) and not int(live[row >> 6]) >> (row & 63) & 1:
            return None
        if field is self._field:
            record = self._record(row)
        else:
            name = f"rows:{field.name}"
            record = self._reader.records(name, field.record, np.array([row]), self._tally, self._control)[0]
        found: npt.NDArray[Any] = np.array(record["vector"]).reshape(-1)
        return found

    def _record(self, row: int) -> Any:
        if row not in self._records:
            self._keep(np.zeros(1, np.int64), np.array([row]), self._read(np.array([row])))
        return self._records[row]


def _lists_of(
    best: list[npt.NDArray[np.uint64]],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """(rows of all lists, ascending; the lists, with the places of their rows among these; sizes).

    Places are in the order of rows, so that ties are settled alike.
    """
    rows = np.unique(np.concatenate([_rows_in(each) for each in best]))
    sizes = np.array([len(each) for each in best], np.int64)
    lists = np.zeros((len(best), max(1, sizes.max(initial=0))), np.uint64)
    for q, each in enumerate(best):
        there = np.searchsorted(rows, _rows_in(each)).astype(np.uint64)
        lists[q, : len(each)] = (each & ~_ROW_BITS) | there << np.uint64(1)
    return rows, lists, sizes


def _shortened(
    best: list[npt.NDArray[np.uint64]], reach: npt.NDArray[np.float32], most: int, near: int
) -> list[npt.NDArray[np.uint64]]:
    """What is kept of lists when all rows were offered; see `vecdb_index.mib.scan`."""
    kept = []
    for q, each in enumerate(best):
        entries, sizes = each[None].copy(), np.array([len(each)], np.int64)
        shorten(entries, sizes, np.full(1, -np.inf, np.float32), sizes.copy(), reach[q : q + 1], most, near)
        kept.append(entries[0, : sizes[0]])
    return kept


def _stacked(found: list[Hits]) -> Hits:
    """The hits of some queries, and of those after them."""
    if len(found) == 1:
        return found[0]
    seen: dict[str, int] = {}
    for each in found:
        seen = {name: seen.get(name, 0) + count for name, count in each.seen.items()}
    return Hits(
        np.concatenate([each.keys for each in found]), np.concatenate([each.rows for each in found]),
        np.concatenate([each.lengths for each in found]), np.concatenate([each.tied for each in found]),
        sum(each.scored for each in found), sum(each.bytes for each in found), seen,
    )  # fmt: skip


def _rows_in(entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return ((entries & _ROW_BITS) >> np.uint64(1)).astype(np.int64)


def _estimate(entry: np.uint64) -> np.float32:
    """The estimate in an entry; see kernels.select.key_in."""
    high = int(entry) >> 32
    return np.uint32(high if high >> 31 else ~high & 0x7FFF_FFFF).view(np.float32)
