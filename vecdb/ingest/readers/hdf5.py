"""HDF5 as ann-benchmarks writes it: the dataset "train", or the one that is named. Its ids are the rows' numbers.

A Place's offset is not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ...errors import InvalidFile, Unsupported
from ..reading import reading
from . import FileReader, Piece, Place
from .vecs import as_batch

_USUAL = "train"
_METRICS = {"euclidean": "l2", "angular": "cosine", "dot": "ip", "ip": "ip", "normalized": "cosine"}


class Hdf5(FileReader):
    def _begin(self) -> None:
        source = self._source
        try:
            import h5py
        except ImportError:
            raise Unsupported(f"{source.name}: reading HDF5 needs h5py; pip install 'vecdb[hdf5]'") from None
        self._opened: Any = h5py.File(self._file if source.is_remote else source.url, "r")
        names = [name for name, item in self._opened.items() if isinstance(item, h5py.Dataset)]
        name = self._options.dataset or _USUAL
        if name not in names:
            raise InvalidFile(
                f"it has no dataset {name!r}; there are: {', '.join(names) or 'none'}; say --dataset", file=source.name
            )
        self._data = self._opened[name]
        if self._data.ndim != 2 or self._data.dtype.kind not in "fiu":
            raise InvalidFile(
                f"dataset {name!r} is {self._data.dtype} of shape {self._data.shape}; a matrix of numbers is needed",
                file=source.name,
            )
        self.metric = _METRICS.get(str(self._opened.attrs.get("distance", "")), "cosine")
        self._row_bytes = int(self._data.dtype.itemsize * self._data.shape[1])

    @property
    def rows(self) -> int:
        return int(self._data.shape[0])

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        step = most or max(1, self._limits.piece // max(1, self._row_bytes))
        for first in range(start.row, self.rows, step):
            with reading(self._source.name):
                vectors = np.asarray(self._data[first : first + step])
            yield Piece(
                as_batch(vectors),
                range(first, first + len(vectors)),
                Place(first + len(vectors)),
                len(vectors) * self._row_bytes,
            )

    def close(self) -> None:
        if hasattr(self, "_opened"):
            self._opened.close()
        super().close()
