"""A segment: rows in one immutable array file, as FORMAT.md describes.

Arrays: the ids and their table (ids.py), `seq` (n,) u64 unless the segment is level-0, `payload.offsets` and
`payload.bytes`, typed columns `col.*` (columns.py), and per field its vectors (vectors.py), `field.<name>.norms` (n,)
f32 and, where some row lacks it, `.present`. Rows ascend by seq. A Segment is read-only and safe in any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from . import ids as ids_module
from .arrayfile import ArrayFile, Arrays, ArrayWriter, CheckedArrays, check_ends
from .batch import FieldRows, Packed, field_arrays, pack_bits
from .column_build import of_stored
from .columns import Columns, ColumnSet, open_columns
from .errors import Corruption
from .files import Files
from .ids import Id, IdTable, IntIds, Rows, StrIds, Wanted
from .manifest import SUFFIX
from .memtable import GatheredField
from .strings import ranges
from .tombstones import Words
from .vectors import DenseForm, Layout, SparseVectors, Vectors, arrays_of, is_in, vectors_in


@dataclass(frozen=True)
class StoredField:
    """One field of one part of a collection: n vectors, norms (n,) f32, present: bitmap words, None for all."""

    vectors: Vectors
    norms: npt.NDArray[np.float32]
    present: Words | None

    def has(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """For each of `rows` (m,), whether it has the field."""
        if self.present is None:
            return np.ones(len(rows), np.bool_)
        flags: npt.NDArray[np.bool_] = (self.present[rows >> 6] >> (rows & 63).astype(np.uint64) & np.uint64(1)).astype(
            np.bool_
        )
        return flags


class SegmentWriter:
    """Writes a segment's file in pieces: fields first, since they can be on their way to disk while the rest is made."""

    def __init__(self, files: Files, path: Path, store: bytes, begun: int) -> None:
        """begun: see ArrayWriter."""
        self._writer = ArrayWriter(files, path, store, begun)
        self._meta: dict[str, Any] = {"kind": "segment", "fields": []}

    @staticmethod
    def after(writer: ArrayWriter, name: str, rows: FieldRows) -> SegmentWriter:
        """Completes a growing file, which holds the vectors of field `name` already."""
        self = SegmentWriter.__new__(SegmentWriter)
        self._writer, self._meta = writer, {"kind": "segment", "fields": [name]}
        arrays = field_arrays(name, rows)
        del arrays[f"field.{name}.vectors"]
        self._add(arrays)
        return self

    def add_and_sync_fields(self, fields: Mapping[str, FieldRows]) -> None:
        """Fields of a bulk load: synced at once, while others are busy with the rest, which is small."""
        for name, rows in fields.items():
            if rows.present is None or rows.present.any():
                self._meta["fields"].append(name)
                arrays = field_arrays(name, rows)
                for large in arrays_of(name, rows.vectors):
                    array = arrays.pop(large)
                    self._writer.begin()
                    self._writer.extend_through(array)
                    self._writer.end(large, array.dtype, array.shape)
                self._add(arrays)

    def add_gathered(self, fields: Mapping[str, GatheredField]) -> None:
        """Fields whose vectors still lie in several blocks."""
        for name, field in fields.items():
            if field.present.any():
                self._meta["fields"].append(name)
                self._add_vectors(name, field)
                self._writer.add(f"field.{name}.norms", field.norms)
                if not field.present.all():
                    self._writer.add(f"field.{name}.present", pack_bits(field.present))

    def _add_vectors(self, name: str, field: GatheredField) -> None:
        form, rows = field.form, len(field.norms)
        if isinstance(form, DenseForm):
            pieces = (vectors for vectors in field.vectors() if isinstance(vectors, np.ndarray))
            self._writer.add_parts(f"field.{name}.vectors", form.dtype, (rows, form.dim), pieces)
            return
        lengths = [np.zeros(1, np.int64), *(part.lengths for part in field.vectors() if isinstance(part, SparseVectors))]
        offsets = np.cumsum(np.concatenate(lengths)).astype(np.uint64)
        count = (int(offsets[-1]),)
        self._writer.add(f"field.{name}.offsets", offsets)
        # Once for each array, so that none of them need be in memory.
        indices = (part.tight().indices for part in field.vectors() if isinstance(part, SparseVectors))
        self._writer.add_parts(f"field.{name}.indices", np.dtype(np.uint32), count, indices)
        weights = (part.tight().weights for part in field.vectors() if isinstance(part, SparseVectors))
        self._writer.add_parts(f"field.{name}.weights", np.dtype(np.float32), count, weights)

    def finish(self, packed: Packed, seqs: npt.NDArray[np.uint64] | None, columns: Columns | None = None) -> int:
        """Ids, payloads, their columns, directory; synced and named. Returns the file's length."""
        table = IdTable.build(packed.ids, packed.hashes)
        return self.close(
            packed.ids, table, seqs, packed.payloads.offsets, [packed.payloads.text], columns or of_stored(packed.payloads)
        )

    def close(
        self,
        ids: IntIds | StrIds,
        table: IdTable,
        seqs: npt.NDArray[np.uint64] | None,
        offsets: npt.NDArray[np.uint64],
        payloads: Iterable[npt.NDArray[np.uint8]],
        columns: Columns,
    ) -> int:
        """`finish`, from arrays. offsets (n+1,): of the payloads, whose bytes come in pieces."""
        self._add(ids.arrays())
        self._add(table.arrays())
        if seqs is not None:
            self._add({"seq": seqs})
        self._add({"payload.offsets": offsets})
        self._writer.add_parts("payload.bytes", np.dtype(np.uint8), (int(offsets[-1]),), payloads)
        arrays, described = columns
        self._add(arrays)
        self._meta |= {"rows": len(ids), "columns": described}
        return self._writer.finish(self._meta)

    def _add(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self._writer.add(name, array)

    def abandon(self) -> None:
        self._writer.abandon()


class Segment:
    def __init__(self, files: Files, path: Path, store: bytes, seq: int | None) -> None:
        """seq: of all rows (level-0), or None when they carry their own. Raises Corruption, NotFound, StorageError.

        What the engine dereferences (ids, hashes, offsets, seqs) is checked here; vectors and payloads on first use.
        """
        self.name = path.name.removesuffix(SUFFIX)
        self.file = ArrayFile(files, path, store)
        self._arrays = CheckedArrays(self.file)
        self.rows: int = self.file.meta.get("rows", -1)
        self.ids: IntIds | StrIds = ids_module.from_arrays(self._arrays)
        self.table = IdTable(self.ids, self._arrays["id.hash"], self._arrays["id.row"], self._arrays["id.filter"])
        self.payload_offsets = self._arrays["payload.offsets"]
        self._payload_bytes = self.file.unchecked("payload.bytes")
        self._seqs = self._arrays["seq"] if seq is None else None
        self._check_shape()
        self.min_seq = int(self._seqs[0]) if self._seqs is not None else int(seq or 0)
        self.max_seq = int(self._seqs[-1]) if self._seqs is not None else int(seq or 0)
        self._fields: dict[str, StoredField] = {}
        self._files, self._store = files, store
        self._indexes: dict[str, ArrayFile] = {}
        self._lock = threading.Lock()

    def _check_shape(self) -> None:
        rows, offsets, seqs = self.rows, self.payload_offsets, self._seqs
        check_ends(offsets, self._payload_bytes, "payload.offsets")
        right = len(self.ids) == rows == len(self.table.row) == len(self.table.hash) == len(offsets) - 1
        right = right and (seqs is None or (seqs.dtype == np.uint64 and seqs.shape == (rows,) and rows > 0))
        if not right or (rows and int(self.table.row.max()) >= rows):
            raise Corruption("its arrays do not fit each other", file=str(self.file.path))

    def check_layout(self, layout: Layout) -> None:
        """The vectors of its fields are those of the schema: kernels rely on that. Raises Corruption."""
        for field, form in layout.items():
            if is_in(field, self.file):
                shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {"norms": ((self.rows,), np.dtype(np.float32))}
                if isinstance(form, DenseForm):
                    shapes["vectors"] = (self.rows, form.dim), form.dtype
                else:
                    shapes["offsets"] = (self.rows + 1,), np.dtype(np.uint64)
                if f"field.{field}.present" in self.file:
                    shapes["present"] = ((-(-self.rows // 64),), np.dtype(np.uint64))
                for array, expected in shapes.items():
                    name = f"field.{field}.{array}"
                    found = self.file.unchecked(name) if name in self.file else None
                    if found is None or (found.shape, found.dtype) != expected:
                        raise Corruption("it is not as the schema says", file=str(self.file.path), array=name)

    def find(self, wanted: Wanted) -> tuple[Rows, Rows]:
        """Which of the ids are here, as places in `wanted`, and in which rows; dead rows are found too."""
        return self.table.find(wanted)

    def keys(self, rows: Rows) -> list[Id]:
        return self.ids.at(rows)  # type: ignore[return-value]

    def seqs(self, rows: Rows) -> npt.NDArray[np.uint64]:
        """The commit seq of each row."""
        return np.full(len(rows), self.min_seq, np.uint64) if self._seqs is None else self._seqs[rows]

    def payload(self, row: int) -> bytes:
        """The row's JSON, b"" when it has none."""
        start, stop = int(self.payload_offsets[row]), int(self.payload_offsets[row + 1])
        self.file.check("payload.bytes", start, stop)
        return self._payload_bytes[start:stop].tobytes()

    def payload_bytes(self, rows: Rows) -> npt.NDArray[np.uint8]:
        """The JSON of ascending rows, end to end."""
        starts = self.payload_offsets[rows].astype(np.int64)
        lengths = self.payload_offsets[rows + 1].astype(np.int64) - starts
        if not len(rows):
            return self._payload_bytes[:0]
        first, last = int(starts[0]), int(starts[-1] + lengths[-1])
        self.file.check("payload.bytes", first, last)
        if last - first == int(lengths.sum()):
            return self._payload_bytes[first:last]
        return self._payload_bytes[ranges(starts, lengths)]

    def field(self, name: str) -> StoredField | None:
        """The vectors of a field, checked; None when no row has one."""
        found = self._fields.get(name)
        if found is None and is_in(name, self.file):
            present = f"field.{name}.present"
            try:
                vectors = vectors_in(name, self._arrays)
            except ValueError as error:
                raise Corruption(str(error), file=str(self.file.path), array=f"field.{name}.offsets") from None
            found = self._fields[name] = StoredField(
                vectors,
                self.file.array(f"field.{name}.norms"),
                self.file.array(present) if present in self.file else None,
            )
        return found

    def is_checked(self, name: str) -> bool:
        """Whether `field` has been asked for before, and so need not read the vectors again."""
        return name in self._fields or not is_in(name, self.file)

    def index(self, file: str) -> ArrayFile:
        """An index of one of its fields, opened once. Raises NotFound, Corruption."""
        with self._lock:
            found = self._indexes.get(file)
            if found is None:
                found = ArrayFile(self._files, self.file.path.with_name(file), self._store)
                self._indexes = {file: found} if len(self._indexes) > 7 else {**self._indexes, file: found}
            return found

    @cached_property
    def columns(self) -> ColumnSet:
        try:
            return open_columns(self.file.meta["columns"], self._arrays, self.rows)
        except (KeyError, TypeError) as error:
            raise Corruption(f"the description of its columns is none: {error!r}", file=str(self.file.path)) from error

    def verify(self) -> Iterator[Corruption]:
        """Every byte against its checksum, then every id against its hash and its place in the table."""
        damaged = list(self.file.verify())
        yield from damaged
        if damaged:
            return
        hashes = self.ids.hashes()
        if not np.array_equal(hashes[self.table.row], self.table.hash):
            yield Corruption("hashes do not belong to their ids", file=str(self.file.path), array="id.hash")
        if np.any(self.table.hash[1:] < self.table.hash[:-1]):
            yield Corruption("hashes are not sorted", file=str(self.file.path), array="id.hash")
        if self._seqs is not None and np.any(self._seqs[1:] < self._seqs[:-1]):
            yield Corruption("seqs do not ascend", file=str(self.file.path), array="seq")
