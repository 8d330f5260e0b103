"""Parquet: row groups one after the other, of each only the columns that are wanted.

Pages are read as they come, so that memory does not grow with the size of a row group, which many writers make of a million
rows. A Place's offset is the row group; within a group, what is before the row is read again and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..reading import reading
from . import FileReader, Piece, Place

_BUFFER = 1 << 20  # of each column, read at once


class Parquet(FileReader):
    def _begin(self) -> None:
        whole = pa.PythonFile(self._file, "r") if self._source.is_remote else self._source.url
        self._parquet = pq.ParquetFile(whole, buffer_size=_BUFFER, pre_buffer=False)
        self._groups = [self._parquet.metadata.row_group(g) for g in range(self._parquet.metadata.num_row_groups)]
        self._firsts = [0]
        for group in self._groups:
            self._firsts.append(self._firsts[-1] + group.num_rows)
        self._columns: list[str] | None = None

    @property
    def rows(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def prune(self, choose: Callable[[Sequence[str]], list[str]]) -> None:
        """Only some columns are read from now on: those that `choose` takes of all."""
        self._columns = choose(self._parquet.schema_arrow.names)

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        for number in range(start.offset, len(self._groups)):
            if start.row >= self._firsts[number + 1]:
                continue
            yield from self._group(number, max(start.row, self._firsts[number]), most)

    def _group(self, number: int, first: int, most: int | None) -> Iterator[Piece]:
        group, row = self._groups[number], self._firsts[number]
        share = self._source.size / max(1, self.rows) if self._source.size else 0.0
        pieces = max(1, -(-group.total_byte_size // self._limits.piece))
        rows = most or max(1, -(-group.num_rows // pieces))  # of about one size: a small one would take the way of small writes
        with reading(self._source.name):
            batches: Any = self._parquet.iter_batches(rows, row_groups=[number], columns=self._columns, use_threads=False)
            while (batch := next(batches, None)) is not None:
                if row + len(batch) > first:
                    skipped = max(0, first - row)
                    batch, row = batch.slice(skipped), row + skipped
                    after = Place(row + len(batch), number)
                    yield Piece(batch, range(row, row + len(batch)), after, round(share * len(batch)))
                row += len(batch)
