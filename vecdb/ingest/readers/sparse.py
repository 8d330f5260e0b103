"""Files of sparse vectors alone, whose ids are the rows' numbers.

npz         a CSR matrix, as scipy.sparse.save_npz writes it
seismic     the data sets of Seismic and its kin: u32 rows; of each row u32 count, then so many u32 components, then so
            many f32 weights; little-endian
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import InvalidFile
from ...schema import DEFAULT_FIELD
from ...sparse import MAX_COMPONENT
from ..reading import reading
from ..sources import read_fully
from . import FileReader, Piece, Place

_LARGEST_CSR = 4 << 30  # bytes of its arrays, which are read as a whole
_MOST_COMPONENTS = 1 << 26  # of one vector, beyond which a file is not what it is taken for


def as_column(offsets: Any, indices: Any, weights: Any) -> Any:
    """Rows end to end, (n + 1,) offsets from 0 on, as an Arrow column of structs of two lists."""
    ends = pa.array(offsets.astype(np.int32))
    lists = [
        pa.ListArray.from_arrays(ends, pa.array(indices.astype(np.uint32))),
        pa.ListArray.from_arrays(ends, pa.array(weights.astype(np.float32))),
    ]
    return pa.StructArray.from_arrays(lists, ["indices", "values"])


def _batch(offsets: Any, indices: Any, weights: Any) -> Any:
    return pa.RecordBatch.from_arrays([as_column(offsets, indices, weights)], [DEFAULT_FIELD])


class CsrNpz(FileReader):
    def _begin(self) -> None:
        source = self._source
        archive = zipfile.ZipFile(self._file)
        total = sum(entry.file_size for entry in archive.infolist())
        if total > _LARGEST_CSR:
            raise InvalidFile(
                f"unpacked it has {total:,} bytes, more than {_LARGEST_CSR:,}: split the matrix", file=source.name
            )
        arrays = {}
        for entry in archive.infolist():
            with archive.open(entry) as member:
                arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
        if bytes(arrays.get("format", np.array(b"")).item()) != b"csr":
            raise InvalidFile("it is no CSR matrix as scipy.sparse.save_npz writes it", file=source.name)
        self._data, self._columns, self._ends = arrays["data"], arrays["indices"], arrays["indptr"]
        self._count, width = (int(n) for n in arrays["shape"])
        ends, indices = self._ends, self._columns
        right = (
            len(ends) == self._count + 1
            and ends[0] == 0
            and ends[-1] == len(indices) == len(self._data)
            and np.all(np.diff(ends) >= 0)
        )
        if not right or (len(indices) and not (indices.min() >= 0 and indices.max() < min(width, MAX_COMPONENT + 1))):
            raise InvalidFile("its indices do not fit its shape", file=source.name)

    @property
    def rows(self) -> int:
        return self._count

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        mean = max(1, len(self._columns) // max(1, self._count))
        step = most or max(1, self._limits.piece // (8 * mean))
        for first in range(start.row, self._count, step):
            rows = min(step, self._count - first)
            begin, end = int(self._ends[first]), int(self._ends[first + rows])
            batch = _batch(self._ends[first : first + rows + 1] - begin, self._columns[begin:end], self._data[begin:end])
            share = (self._source.size or 0) * rows // max(1, self._count)
            yield Piece(batch, range(first, first + rows), Place(first + rows), share)


class Seismic(FileReader):
    """A Place's offset is where the row begins."""

    def _begin(self) -> None:
        head = read_fully(self._file, 4)
        if len(head) < 4:
            raise InvalidFile(f"it has {len(head)} bytes, and the header alone has 4", file=self._source.name)
        self._count = int(np.frombuffer(head, "<u4")[0])

    @property
    def rows(self) -> int:
        return self._count

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        with reading(self._source.name):
            row, offset = start.row, max(4, start.offset)
            self._file.seek(offset)
            while row < self._count:
                parts: list[tuple[Any, Any]] = []
                size = 0
                while row + len(parts) < self._count and size < self._limits.piece and len(parts) < (most or self._count):
                    parts.append(self._row(row + len(parts)))
                    size += 4 + 8 * len(parts[-1][0])
                offsets = np.cumsum([0, *(len(indices) for indices, _ in parts)])
                batch = _batch(offsets, *(np.concatenate(each) for each in zip(*parts, strict=True)))
                first, row, offset = row, row + len(parts), offset + size
                yield Piece(batch, range(first, row), Place(row, offset), size)

    def _row(self, row: int) -> tuple[Any, Any]:
        head = read_fully(self._file, 4)
        count = int(np.frombuffer(head, "<u4")[0]) if len(head) == 4 else 0
        data = read_fully(self._file, 8 * count) if count <= _MOST_COMPONENTS else b""
        if len(head) < 4 or len(data) < 8 * count:
            raise InvalidFile("it ends in the middle of a row; is it a whole seismic file?", file=self._source.name, row=row)
        return np.frombuffer(data, "<u4", count), np.frombuffer(data, "<f4", count, 4 * count)
