"""The raw vector files of the field's benchmarks.

    fvecs, bvecs, ivecs      of each row: i32 dim, then dim numbers (f32, u8, i32); little-endian
    fbin, u8bin, i8bin       u32 rows, u32 dim, then all numbers (f32, u8, i8) row after row

They have no ids: those are the rows' numbers. A Place's offset is not used, for every row has one length. Files are read, and
not mapped: one that is cut short meanwhile is then an error, where a map would end the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...errors import InvalidFile
from ...schema import DEFAULT_FIELD, MAX_DIM
from ..reading import reading
from ..sources import read_fully
from . import FileReader, Piece, Place

_DTYPES: dict[str, np.dtype[Any]] = {
    "f": np.dtype("<f4"),
    "b": np.dtype("u1"),
    "i": np.dtype("<i4"),
    "u8": np.dtype("u1"),
    "i8": np.dtype("i1"),
}


def as_column(vectors: npt.NDArray[Any]) -> Any:
    """(n, d) numbers as an Arrow column of lists, without a copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), vectors.shape[1])


def as_batch(vectors: npt.NDArray[Any], name: str = DEFAULT_FIELD) -> Any:
    return pa.RecordBatch.from_arrays([as_column(vectors)], [name])


class _Rows(FileReader):
    """Rows of one length, from a place in the file on. metric: these formats are of benchmarks of Euclidean distance."""

    metric = "l2"

    _header = 0  # bytes before the first row
    _row_bytes = 1
    _count = 0

    @property
    def rows(self) -> int:
        return self._count

    def _wrong(self, why: str, row: int | None = None) -> InvalidFile:
        return InvalidFile(f"{why}; is it a whole {self._source.format} file?", file=self._source.name, row=row)

    def _matrix(self, data: bytes, rows: int, first: int) -> npt.NDArray[Any]:
        raise NotImplementedError

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        step = most or max(1, self._limits.piece // self._row_bytes)
        with reading(self._source.name):
            self._file.seek(self._header + start.row * self._row_bytes)
            for first in range(start.row, self._count, step):
                rows = min(step, self._count - first)
                data = read_fully(self._file, rows * self._row_bytes)
                if len(data) < rows * self._row_bytes:
                    raise self._wrong("it became shorter while it was read", first + len(data) // self._row_bytes)
                batch = as_batch(self._matrix(data, rows, first))
                yield Piece(batch, range(first, first + rows), Place(first + rows), len(data))

    def _checked_dim(self, dim: int) -> int:
        if not 1 <= dim <= MAX_DIM:
            raise self._wrong(f"it says that its vectors have {dim:,} numbers, and a field has 1 to {MAX_DIM:,}")
        return dim


class Vecs(_Rows):
    def _begin(self) -> None:
        source = self._source
        head = read_fully(self._file, 4)
        if source.size is None or len(head) < 4:
            raise self._wrong(f"it has {len(head)} bytes")
        self._dtype = _DTYPES[source.format[0]]
        self._dim = self._checked_dim(int(np.frombuffer(head, "<i4")[0]))
        self._row_bytes = 4 + self._dim * self._dtype.itemsize
        self._count = source.size // self._row_bytes
        if source.size % self._row_bytes:
            raise self._wrong(
                f"its {source.size:,} bytes are no multiple of the {self._row_bytes:,} that a row of {self._dim} numbers "
                f"takes: it was cut short in row {self._count:,}, or its rows differ in length"
            )

    def _matrix(self, data: bytes, rows: int, first: int) -> npt.NDArray[Any]:
        table = np.frombuffer(data, np.dtype([("dim", "<i4"), ("vector", self._dtype, (self._dim,))]), rows)
        other = np.flatnonzero(table["dim"] != self._dim)
        if len(other):
            raise self._wrong(
                f"it says that it has {table['dim'][other[0]]:,} numbers; the first row has {self._dim}", first + int(other[0])
            )
        return np.ascontiguousarray(table["vector"])


class Bin(_Rows):
    def _begin(self) -> None:
        source = self._source
        head = read_fully(self._file, 8)
        if source.size is None or len(head) < 8:
            raise self._wrong(f"it has {len(head)} bytes, and the header alone has 8")
        self._count, dim = np.frombuffer(head, "<u4").astype(int).tolist()
        self._dtype = _DTYPES[source.format[:-3]]
        self._dim, self._header = self._checked_dim(dim), 8
        self._row_bytes = self._dim * self._dtype.itemsize
        expected = 8 + self._count * self._row_bytes
        if source.size != expected:
            raise self._wrong(
                f"{self._count:,} vectors of {self._dim} numbers take {expected:,} bytes, and it has {source.size:,}"
            )

    def _matrix(self, data: bytes, rows: int, first: int) -> npt.NDArray[Any]:
        return np.frombuffer(data, self._dtype).reshape(rows, self._dim)
