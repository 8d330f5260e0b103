"""The vectors of one field, a row for each point: a matrix, or sparse rows of components and their weights.

Whatever holds vectors (batches, memtables, segments) holds an ndarray (n, d) or a SparseVectors; which of them a field has is
said by its *form*, DenseForm or SparseForm. A file keeps the matrix as `field.<name>.vectors`, and sparse rows as `.offsets`
(n + 1,) u64, `.indices` (nnz,) u32 and `.weights` (nnz,) f32. Values do not change after construction, but for a GrowingSparse,
which only the commit section appends to; what was read of it stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrayfile import Arrays
from .strings import ranges

_OFFSETS, _INDICES, _WEIGHTS = np.dtype(np.uint64), np.dtype(np.uint32), np.dtype(np.float32)


class SparseVectors:
    """Row i has the components indices[offsets[i] : offsets[i + 1]], ascending, each once, and their weights.

    offsets: (n + 1,) uint64. indices: (nnz,) uint32. weights: (nnz,) float32, finite and not zero.
    """

    __slots__ = ("indices", "offsets", "weights")

    def __init__(self, offsets: npt.NDArray[Any], indices: npt.NDArray[Any], weights: npt.NDArray[Any]) -> None:
        self.offsets, self.indices, self.weights = offsets, indices, weights

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, at: Any) -> SparseVectors:
        """Rows by a slice (views) or by their numbers (copies); one row for an int."""
        if isinstance(at, slice):
            first, last, _ = at.indices(len(self))
            return SparseVectors(self.offsets[first : max(first, last) + 1], self.indices, self.weights)
        rows = np.atleast_1d(np.asarray(at))
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1 and bool(np.all(np.diff(rows) == 1)):
            return self[int(rows[0]) : int(rows[-1]) + 1]
        starts = self.offsets[rows].astype(np.int64)
        lengths = self.offsets[rows + 1].astype(np.int64) - starts
        at = ranges(starts, lengths)
        return SparseVectors(_ends(lengths), self.indices[at], self.weights[at])

    def tight(self) -> SparseVectors:
        """The same rows, whose arrays hold nothing else: as they are stored."""
        first, last = int(self.offsets[0]), int(self.offsets[-1])
        if first == 0 and last == len(self.indices):
            return self
        return SparseVectors(self.offsets - np.uint64(first), self.indices[first:last], self.weights[first:last])

    def copy(self) -> SparseVectors:
        """The same rows in arrays of their own."""
        tight = self.tight()
        return SparseVectors(tight.offsets.copy(), tight.indices.copy(), tight.weights.copy())

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Components of each row."""
        return np.diff(self.offsets).astype(np.int64)

    @property
    def nbytes(self) -> int:
        """What these rows take."""
        return self.offsets.nbytes + 8 * int(self.offsets[-1] - self.offsets[0])

    @staticmethod
    def empty(rows: int) -> SparseVectors:
        return SparseVectors(np.zeros(rows + 1, _OFFSETS), np.zeros(0, _INDICES), np.zeros(0, _WEIGHTS))

    @staticmethod
    def concat(parts: Iterable[SparseVectors]) -> SparseVectors:
        pieces = [part.tight() for part in parts]
        if len(pieces) == 1:
            return pieces[0]
        lengths = [np.zeros(0, np.int64), *(piece.lengths for piece in pieces)]
        indices = [np.zeros(0, _INDICES), *(piece.indices for piece in pieces)]
        weights = [np.zeros(0, _WEIGHTS), *(piece.weights for piece in pieces)]
        return SparseVectors(_ends(np.concatenate(lengths)), np.concatenate(indices), np.concatenate(weights))


def _ends(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    offsets = np.zeros(len(lengths) + 1, _OFFSETS)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


class GrowingSparse(SparseVectors):
    """Sparse rows that more are appended to, up to a number of rows. Rows that were never given have no components."""

    __slots__ = ("_rows",)

    def __init__(self, capacity: int) -> None:
        super().__init__(np.zeros(capacity + 1, _OFFSETS), np.zeros(0, _INDICES), np.zeros(0, _WEIGHTS))
        self._rows = 0

    def append(self, first: int, last: int, rows: SparseVectors | None) -> None:
        """Rows first..last; None: they have none. first: where the last append ended, or beyond."""
        end = self.offsets[self._rows]
        self.offsets[self._rows : first + 1] = end
        if rows is None:
            self.offsets[first : last + 1] = end
        else:
            given = rows.tight()
            used = int(end)
            if used + len(given.indices) > len(self.indices):  # readers keep the arrays that they have
                room = max(1024, 2 * (used + len(given.indices)))
                self.indices, self.weights = _grown(self.indices, used, room), _grown(self.weights, used, room)
            self.indices[used : used + len(given.indices)] = given.indices
            self.weights[used : used + len(given.indices)] = given.weights
            self.offsets[first : last + 1] = given.offsets + end
        self._rows = last


def _grown(array: npt.NDArray[Any], used: int, room: int) -> npt.NDArray[Any]:
    larger = np.zeros(room, array.dtype)
    larger[:used] = array[:used]
    return larger


Vectors = npt.NDArray[Any] | SparseVectors


# -- forms -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseForm:
    """So many numbers of a dtype in each row."""

    dim: int
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        """Of a row in memory, as far as they are known before it is there."""
        return self.dim * self.dtype.itemsize

    @property
    def rows_together(self) -> int:
        """That are copied as one piece."""
        return max(1, (4 << 20) // self.row_bytes)

    def absent(self, rows: int) -> Vectors:
        """The vectors of rows that have none."""
        return np.zeros((rows, self.dim), self.dtype)

    def growing(self, capacity: int) -> Vectors:
        """Vectors that rows are put into (`put`) as they come."""
        return np.zeros((capacity, self.dim), self.dtype)

    def joined(self, rows: Sequence[Vectors | None]) -> Vectors:
        """Single rows as one array; None for one that is absent."""
        joined = np.zeros((len(rows), self.dim), self.dtype)
        for at, row in enumerate(rows):
            if row is not None:
                joined[at] = row
        return joined

    def fits(self, vectors: Vectors) -> bool:
        return isinstance(vectors, np.ndarray) and (vectors.shape[1:], vectors.dtype) == ((self.dim,), self.dtype)


@dataclass(frozen=True)
class SparseForm:
    """Components and weights, as many as each row likes."""

    row_bytes = 8
    rows_together = 4096

    def absent(self, rows: int) -> Vectors:
        return SparseVectors.empty(rows)

    def growing(self, capacity: int) -> Vectors:
        return GrowingSparse(capacity)

    def joined(self, rows: Sequence[Vectors | None]) -> Vectors:
        none = SparseVectors.empty(1)
        return SparseVectors.concat(
            [SparseVectors.empty(0), *(row if isinstance(row, SparseVectors) else none for row in rows)]
        )

    def fits(self, vectors: Vectors) -> bool:
        return isinstance(vectors, SparseVectors)


Form = DenseForm | SparseForm
Layout = Mapping[str, Form]


def form_of(vectors: Vectors) -> Form:
    return DenseForm(vectors.shape[1], vectors.dtype) if isinstance(vectors, np.ndarray) else SparseForm()


def norms_of(vectors: Vectors) -> npt.NDArray[np.float32]:
    """(n,) Euclidean norms, summed in float64."""
    if isinstance(vectors, np.ndarray):
        exact = vectors.astype(np.float64)
        norms: npt.NDArray[np.float32] = np.sqrt(np.vecdot(exact, exact)).astype(np.float32)
        return norms
    tight = vectors.tight()
    if not len(tight.weights):
        return np.zeros(len(vectors), np.float32)
    squares = np.append(tight.weights.astype(np.float64) ** 2, 0.0)  # so that a last empty row has a place to begin at
    sums = np.add.reduceat(squares, tight.offsets[:-1].astype(np.int64))
    sums[tight.lengths == 0] = 0.0
    return np.sqrt(sums).astype(np.float32)


def put(target: Vectors, first: int, last: int, rows: Vectors | None) -> None:
    """Rows first..last of what `Form.growing` made; None where they lack the field."""
    if isinstance(target, GrowingSparse):
        assert rows is None or isinstance(rows, SparseVectors)
        target.append(first, last, rows)
    elif rows is not None:
        assert isinstance(target, np.ndarray)
        target[first:last] = rows


def beyond_rows(vectors: Vectors) -> int:
    """Bytes that are not in the `row_bytes` of their form."""
    return 0 if isinstance(vectors, np.ndarray) else vectors.nbytes - vectors.offsets.nbytes


# -- as arrays ---------------------------------------------------------------------------------------------


def arrays_of(field: str, vectors: Vectors) -> dict[str, npt.NDArray[Any]]:
    """As named arrays, for a record or a file."""
    if isinstance(vectors, np.ndarray):
        return {f"field.{field}.vectors": vectors}
    tight = vectors.tight()
    return {
        f"field.{field}.offsets": tight.offsets,
        f"field.{field}.indices": tight.indices,
        f"field.{field}.weights": tight.weights,
    }


def is_in(field: str, arrays: Any) -> bool:
    """Whether some arrays hold the vectors of a field."""
    return f"field.{field}.vectors" in arrays or f"field.{field}.offsets" in arrays


def vectors_in(field: str, arrays: Arrays) -> Vectors:
    """The inverse of `arrays_of`. Raises KeyError, or ValueError where sparse rows do not fit each other."""
    if f"field.{field}.vectors" in arrays:
        return arrays[f"field.{field}.vectors"]
    found = SparseVectors(*(arrays[f"field.{field}.{array}"] for array in ("offsets", "indices", "weights")))
    offsets = found.offsets
    right = offsets.ndim == found.indices.ndim == found.weights.ndim == 1 and len(offsets) > 0
    right = right and (offsets.dtype, found.indices.dtype, found.weights.dtype) == (_OFFSETS, _INDICES, _WEIGHTS)
    if not right or int(offsets[0]) or int(offsets[-1]) != len(found.indices) or len(found.weights) != len(found.indices):
        raise ValueError("its sparse rows do not fit each other")
    if np.any(offsets[1:] < offsets[:-1]):
        raise ValueError("its sparse rows do not follow each other")
    return found
