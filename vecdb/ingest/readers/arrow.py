"""Arrow IPC: files (also Feather, version 2) and streams. A Place's offset is the record batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from ..reading import reading
from ..sources import read_fully
from . import FileReader, Piece, Place

_MAGIC = b"ARROW1"


class Arrow(FileReader):
    def _begin(self) -> None:
        self._is_file = read_fully(self._file, len(_MAGIC)) == _MAGIC
        self._file.seek(0)
        self._batched: Any = pa.ipc.open_file(pa.PythonFile(self._file, "r")) if self._is_file else None
        if not self._is_file:
            pa.ipc.open_stream(pa.PythonFile(self._file, "r"))  # raises if it is none

    @property
    def rows(self) -> int | None:
        return None

    def _batches(self, first: int) -> Iterator[tuple[int, Any]]:
        if self._is_file:
            for number in range(first, self._batched.num_record_batches):
                yield number, self._batched.get_batch(number)
        else:
            self._file.seek(0)
            for number, batch in enumerate(pa.ipc.open_stream(pa.PythonFile(self._file, "r"))):
                if number >= first:
                    yield number, batch

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        """start.row counts from the file's beginning, and so do we: a record batch's own length is known when it is read."""
        # The offset holds the batch and the rows of it that are done.
        first, done = divmod(start.offset, _IN_BATCH)
        row = start.row
        with reading(self._source.name):
            batches = self._batches(first)
            while (found := next(batches, None)) is not None:
                number, batch = found
                step = most or max(1, self._limits.piece * max(1, len(batch)) // max(1, batch.nbytes))
                for at in range(done, len(batch), step):
                    piece = batch.slice(at, step)
                    after = Place(row + len(piece), number * _IN_BATCH + at + len(piece))
                    yield Piece(piece, range(row, row + len(piece)), after, piece.nbytes)
                    row += len(piece)
                done = 0


_IN_BATCH = 1 << 32  # rows that a record batch has at most
