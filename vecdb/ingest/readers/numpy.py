"""NumPy's NPY files: a matrix, or structured rows of vector and others.

Ids of an NPY file may come from a second one (`ids`). A Place's offset is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...errors import InvalidFile
from ...schema import DEFAULT_FIELD
from ..reading import reading
from ..sources import Source, find, read_fully
from . import FileReader, Options, Piece, Place
from .vecs import as_column


class _Array(FileReader):
    """The header of an NPY file, and its rows by number."""

    def _begin(self) -> None:
        source = self.source = self._source
        version = np.lib.format.read_magic(self._file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, fortran, self.dtype = read(self._file)
        self._start = self._file.tell()
        if self.dtype.hasobject:
            raise InvalidFile("it holds Python objects, which only pickle could read; save plain numbers", file=source.name)
        if fortran and len(self.shape) > 1:
            raise InvalidFile("it is in Fortran order; save np.ascontiguousarray(x)", file=source.name)
        if not self.shape:
            raise InvalidFile("it holds a single number", file=source.name)
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        expected = self._start + self.shape[0] * self.row_bytes
        if source.size is not None and source.size != expected:
            raise InvalidFile(
                f"an array of shape {self.shape} takes {expected:,} bytes, and it has {source.size:,}", file=source.name
            )

    def rows(self, first: int, count: int) -> npt.NDArray[Any]:
        self._file.seek(self._start + first * self.row_bytes)
        data = read_fully(self._file, count * self.row_bytes)
        if len(data) < count * self.row_bytes:
            raise InvalidFile("it became shorter while it was read", file=self.source.name, row=first)
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])


class Npy:
    def __init__(self, source: Source, options: Options) -> None:
        self._source, self._limits = source, options.limits
        self._array = _Array(source, options)
        self._ids: _Array | None = None
        try:
            self._begin(options)
        except BaseException:
            self.close()
            raise

    def _begin(self, options: Options) -> None:
        source = self._source
        if options.ids is not None:
            (beside,) = find([options.ids], "npy")
            with reading(beside.name):
                self._ids = _Array(beside, options)
            if self._ids.shape != self._array.shape[:1]:
                raise InvalidFile(f"its shape is {self._ids.shape}, and {source.name} has {self.rows:,} rows", file=beside.name)
        names = self._array.dtype.names
        if names is None and len(self._array.shape) != 2:
            raise InvalidFile(
                f"a matrix with a row for each point is needed; its shape is {self._array.shape}", file=source.name
            )
        if names is not None and len(self._array.shape) != 1:
            raise InvalidFile(
                f"structured rows are needed in one dimension; its shape is {self._array.shape}", file=source.name
            )

    @property
    def rows(self) -> int:
        return int(self._array.shape[0])

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        step = most or max(1, self._limits.piece // max(1, self._array.row_bytes))
        for first in range(start.row, self.rows, step):
            rows = min(step, self.rows - first)
            with reading(self._source.name):
                batch = self._batch(first, rows)
            yield Piece(batch, range(first, first + rows), Place(first + rows), rows * self._array.row_bytes)

    def _batch(self, first: int, rows: int) -> Any:
        array = self._array.rows(first, rows)
        columns: dict[str, Any] = {}
        if self._ids is not None:
            columns["id"] = _plain(self._ids.rows(first, rows))
        if array.dtype.names is None:
            columns[DEFAULT_FIELD] = as_column(_native(array))
        else:
            for name in array.dtype.names:
                values = np.ascontiguousarray(array[name])
                columns[name] = as_column(_native(values)) if values.ndim == 2 else _plain(values)
        return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))

    def close(self) -> None:
        self._array.close()
        if self._ids is not None:
            self._ids.close()


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """In this machine's byte order."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _plain(values: npt.NDArray[Any]) -> Any:
    """A column of numbers, times or texts."""
    if values.dtype.kind == "S":
        return pa.array([text.decode() for text in values.tolist()])
    return pa.array(values.tolist() if values.dtype.kind == "U" else _native(values))
