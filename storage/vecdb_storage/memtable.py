"""Rows since the last flush, in memory and in the log.

A memtable is a list of blocks that only grow: in place, and where one is full and small, as a larger copy. Each row has
the seq of its commit and the seq of its death (`ALIVE` until then), so that a snapshot at seq s sees exactly the rows with
seq <= s < death, without a copy of anything, however the table goes on. `rows_of` maps an id to its newest row, and
`previous` chains to the older ones.
A row's address is block << 32 | row.

Written only in the commit section; read from any thread through snapshots, which hold a number of rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .batch import Batch, FieldRows, Packed
from .column_build import Raw, from_raw, raw_of
from .columns import Columns
from .growing import Extent
from .ids import Id
from .strings import bytes_of
from .tombstones import Words
from .vectors import Form, Layout, Vectors, beyond_rows, put

ALIVE = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_FIRST_BLOCK, _LARGEST_BLOCK = 256 << 10, 16 << 20
_GROWTH = 4  # times all rows before, is what a block has room for that is begun or made larger
ADOPTED_BYTES = 1 << 20  # vectors from which a batch becomes a block as it is, if it is the engine's own
_MAPPED = 4  # vectors that are mapped from a growing file count for so much less than those in memory
_ROW_OVERHEAD = 200  # bytes of an id, its map entry and its share of the row arrays, about


def _bytes_of_column(values: Any) -> int:
    """About what kept payload values take."""
    return values.nbytes if isinstance(values, np.ndarray) else 64 * len(values)


class Block:
    """Rows in the order of their commits. Arrays have `capacity` rows; a snapshot knows how many are its own."""

    def __init__(self, capacity: int, layout: Layout) -> None:
        self.capacity = capacity
        self.rows = 0
        self.keys: list[Id] = []
        self.payloads: Sequence[bytes] = []
        self.packed: Packed | None = None  # keys and payloads, of a block that is one batch
        self.seq = np.zeros(capacity, np.uint64)
        self.death = np.full(capacity, ALIVE)
        self.previous = np.full(capacity, -1, np.int64)
        self.raw: Raw | None = None  # the payloads' values by key, if they are ordinary; see columns.Prepared
        self.extent: Extent | None = None  # where its vectors lie on disk, if all of them do
        self.stripes: dict[tuple[int, int], Any] = {}  # typed columns of finished runs of rows, built when first asked for
        self.died: list[tuple[int, int]] = []  # (seq, row), as they died; longer than what older snapshots see
        self.known_live: tuple[int, Words] = 0, np.zeros(0, np.uint64)  # bitmap of all rows after so many deaths; see `live`
        self.adopted = False  # its arrays are those of a batch
        self.full = set(layout)  # fields that every row has
        self.fields = {
            name: FieldRows(form.growing(capacity), np.zeros(capacity, np.float32), np.zeros(capacity, np.bool_))
            for name, form in layout.items()
        }

    @staticmethod
    def adopt(batch: Batch, layout: Layout, seq: int) -> Block:
        """A full block of a batch's own arrays, without a copy."""
        block = Block(len(batch), {name: of for name, of in layout.items() if name not in batch.fields})
        everywhere = np.ones(len(batch), np.bool_)
        for name, rows in batch.fields.items():
            block.fields[name] = FieldRows(rows.vectors, rows.norms, everywhere if rows.present is None else rows.present)
        block.full = {name for name, rows in batch.fields.items() if rows.present is None or rows.present.all()}
        block.keys, block.rows, block.extent = list(batch.keys), len(batch), batch.extent
        block.packed = batch.packed
        block.payloads = list(batch.payloads) if batch.packed is None else batch.packed.payloads
        block.seq[:] = seq
        block.raw, block.adopted = batch.raw, True
        return block

    def grown(self, capacity: int, layout: Layout) -> Block:
        """A larger block that begins with the same rows. This one stays as it is, for snapshots that hold it."""
        block, rows = Block(capacity, layout), self.rows
        block.rows, block.full, block.stripes = rows, set(self.full), self.stripes
        block.keys, block.payloads = self.keys, self.payloads  # of which each sees so many as it has rows
        block.died = self.died  # and so many as had died
        for mine, own in ((self.seq, block.seq), (self.death, block.death), (self.previous, block.previous)):
            own[:rows] = mine[:rows]
        for name, source in self.fields.items():
            target = block.fields[name]
            put(target.vectors, 0, rows, source.vectors[:rows])
            target.norms[:rows] = source.norms[:rows]
            assert target.present is not None and source.present is not None
            target.present[:rows] = source.present[:rows]
        return block

    def append(self, batch: Batch, start: int, stop: int, seq: int) -> None:
        first, last = self.rows, self.rows + stop - start
        self.keys += batch.keys[start:stop]
        assert isinstance(self.payloads, list)
        self.payloads += batch.payloads[start:stop]
        self.seq[first:last] = seq
        self.full &= batch.fields.keys()
        for name, source in batch.fields.items():
            target = self.fields[name]
            if source.present is not None and not source.present[start:stop].all():
                self.full.discard(name)
            put(target.vectors, first, last, source.vectors[start:stop])
            target.norms[first:last] = source.norms[start:stop]
            assert target.present is not None
            target.present[first:last] = True if source.present is None else source.present[start:stop]
        for name in self.fields.keys() - batch.fields.keys():
            put(self.fields[name].vectors, first, last, None)
        self.rows = last

    def deaths(self, seq: int) -> int:
        """How many rows had died at `seq`."""
        return bisect_right(self.died, (seq, self.capacity)) if self.died else 0

    def live(self, rows: int, seq: int) -> Words | None:
        """Bitmap of the first `rows` rows, those of a snapshot at `seq`, that were alive then; None when all were.

        Made of the last one: after a write it differs by few rows.
        """
        count = self.deaths(seq)
        if not count:
            return None
        known, words = self.known_live
        if not len(words) or known > count:
            known, words = 0, np.full(-(-self.capacity // 64), ALIVE)
        words = words.copy()
        for _, row in self.died[known:count]:
            words[row >> 6] &= ~np.uint64(1 << (row & 63))
        self.known_live = count, words
        words = words[: -(-rows // 64)].copy()
        if rows % 64:
            words[-1] &= np.uint64((1 << rows % 64) - 1)
        return words


class Memtable:
    def __init__(self, layout: Layout) -> None:
        self.set_layout(layout)
        self.blocks: list[Block] = []
        self.rows_of: dict[Id, int] = {}
        self.bytes = 0
        self.records = 0  # log records whose rows or deletes these are
        self.last_seq = 0

    def set_layout(self, layout: Layout) -> None:
        """Later rows may have these fields; a block keeps those it began with."""
        self._layout = dict(layout)
        self._row_bytes = sum(form.row_bytes + 5 for form in layout.values()) + _ROW_OVERHEAD

    def append(self, batch: Batch, seq: int, *, new: bool) -> None:
        """Adds the batch's rows; whoever calls has marked the rows they replace. new: none of their ids has been here."""
        self.last_seq = seq
        self.records += 1
        vectors = sum(rows.vectors.nbytes for rows in batch.fields.values())
        if batch.extent is not None or (batch.owned and vectors >= ADOPTED_BYTES):
            self.blocks.append(Block.adopt(batch, self._layout, seq))
            self._map(batch.keys, 0, new)
        else:
            start = 0
            while start < len(batch):
                block = self._open_block(len(batch) - start)
                stop = min(len(batch), start + block.capacity - block.rows)
                first = block.rows
                block.append(batch, start, stop, seq)
                self._map(batch.keys[start:stop], first, new)
                start = stop
        self.bytes += bytes_of(batch.payloads) + len(batch) * self._row_bytes + 64 * len(batch.deletes)
        self.bytes += sum(beyond_rows(rows.vectors) for rows in batch.fields.values())
        if batch.extent is not None:
            self.bytes -= vectors - vectors // _MAPPED
        if batch.raw is not None:
            self.bytes += sum(map(_bytes_of_column, batch.raw.values()))

    def _map(self, keys: Sequence[Id], first: int, new: bool) -> None:
        """`keys` have come into the last block, from row `first` on."""
        block, rows_of = self.blocks[-1], self.rows_of
        base = (len(self.blocks) - 1) << 32 | first
        if not new:
            for at in [at for at, key in enumerate(keys) if key in rows_of]:
                block.previous[first + at] = rows_of[keys[at]]
        rows_of.update(zip(keys, range(base, base + len(keys)), strict=True))

    def _open_block(self, rows: int) -> Block:
        """A block with room. A small one is made larger: each costs a search some 50 µs, however few rows it has."""
        last = self.blocks[-1] if self.blocks else None
        if last is not None and (last.adopted or last.fields.keys() != self._layout.keys()):
            last = None
        if last is not None and last.rows < last.capacity:
            return last
        size = min(_LARGEST_BLOCK, max(_FIRST_BLOCK, _GROWTH * self.bytes))
        capacity = max(1, size // self._row_bytes, min(rows, 8192))
        if last is not None and capacity >= 2 * last.capacity:
            self.blocks[-1] = last.grown(capacity, self._layout)
        else:
            self.blocks.append(Block(capacity, self._layout))
        return self.blocks[-1]

    def live_address(self, key: Id) -> int:
        """The address of the id's newest row if it is alive, else -1. For the commit section."""
        address = self.rows_of.get(key, -1)
        if address >= 0 and self.blocks[address >> 32].death[address & 0xFFFF_FFFF] != ALIVE:
            return -1
        return address

    def address_at(self, key: Id, seq: int) -> int:
        """The address of the row of `key` that a snapshot at `seq` sees, or -1."""
        address = self.rows_of.get(key, -1)
        while address >= 0:
            block, row = self.blocks[address >> 32], address & 0xFFFF_FFFF
            if block.seq[row] <= seq:
                return address if block.death[row] > seq else -1
            address = int(block.previous[row])
        return -1

    def seq_of(self, address: int) -> int:
        return int(self.blocks[address >> 32].seq[address & 0xFFFF_FFFF])

    def kill(self, address: int, seq: int) -> None:
        block = self.blocks[address >> 32]
        block.death[address & 0xFFFF_FFFF] = seq
        block.died.append((seq, address & 0xFFFF_FFFF))

    @property
    def rows(self) -> int:
        return sum(block.rows for block in self.blocks)


@dataclass(frozen=True)
class GatheredField:
    """One field of the rows that a flush takes. norms (n,) f32, present (n,) bool; the vectors come block by block.

    vectors: may be called several times.
    """

    form: Form
    norms: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]
    vectors: Callable[[], Iterator[Vectors]]


@dataclass(frozen=True)
class Gathered:
    """The rows of a memtable alive at some seq: ids and payloads, fields, seqs (n,) u64, and which rows of each block.

    columns: typed columns of the payloads with their description, where they were at hand.
    """

    packed: Packed
    columns: Columns | None
    fields: dict[str, GatheredField]
    seqs: npt.NDArray[np.uint64]
    rows: list[npt.NDArray[np.int64]]


def gather(blocks: Sequence[Block], seq: int, layout: Layout) -> Gathered:
    """The rows of `blocks` alive at `seq`, without a second copy of their vectors."""
    kept = [np.flatnonzero(block.death[: block.rows] > np.uint64(seq)) for block in blocks]
    pairs = list(zip(blocks, kept, strict=True))
    packed = [_pack(block, rows) for block, rows in pairs if len(rows)]
    fields = {name: _gather_field(pairs, name, form) for name, form in layout.items()}
    seqs = np.concatenate([np.zeros(0, np.uint64), *(block.seq[rows] for block, rows in pairs)])
    together = Packed.concat(packed) if packed else Packed.of([], [])
    return Gathered(together, _columns(pairs, packed), fields, seqs, kept)


def _columns(pairs: list[tuple[Block, npt.NDArray[np.int64]]], packed: list[Packed]) -> Columns | None:
    """Columns of values that were kept, if they were of most blocks; those of the others are read from their JSON."""
    pairs = [(block, rows) for block, rows in pairs if len(rows)]
    whole = [block.raw if len(rows) == block.rows else None for block, rows in pairs]
    if 2 * sum(len(rows) for (_, rows), raw in zip(pairs, whole, strict=True) if raw is not None) <= sum(map(len, packed)):
        return None
    raws = [raw_of(own.payloads) if raw is None else raw for raw, own in zip(whole, packed, strict=True)]
    if any(raw is None for raw in raws):
        return None
    return from_raw([raw for raw in raws if raw is not None], sum(map(len, packed)))


def _pack(block: Block, rows: npt.NDArray[np.int64]) -> Packed:
    if block.packed is not None:
        return block.packed if len(rows) == block.rows else block.packed.take(rows)
    if len(rows) == block.rows:
        return Packed.of(block.keys[: block.rows], block.payloads[: block.rows])
    return Packed.of([block.keys[row] for row in rows.tolist()], [block.payloads[row] for row in rows.tolist()])


def _gather_field(pairs: list[tuple[Block, npt.NDArray[np.int64]]], name: str, form: Form) -> GatheredField:
    norms, present = [np.zeros(0, np.float32)], [np.zeros(0, np.bool_)]
    for block, rows in pairs:
        stored = block.fields.get(name)
        norms.append(np.zeros(len(rows), np.float32) if stored is None else stored.norms[rows])
        present.append(np.zeros(len(rows), np.bool_) if stored is None or stored.present is None else stored.present[rows])

    def vectors() -> Iterator[Vectors]:
        for block, rows in pairs:
            stored = block.fields.get(name)
            if stored is None:
                yield form.absent(len(rows))
            elif len(rows) == block.rows:
                yield stored.vectors[: block.rows]
            else:
                yield stored.vectors[rows]

    return GatheredField(form, np.concatenate(norms), np.concatenate(present), vectors)
