"""A batch: the rows and deletes that one call writes, checked and in the stored types.

The product builds batches from user input; the log stores them (`to_record`), the memtable appends them, and a
large one becomes a level-0 segment. Values are not changed after construction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import ids as ids_module
from . import strings
from .arrayfile import Arrays, check_ends, pack, unpack
from .column_build import Raw
from .columns import Columns
from .errors import Corruption, VecdbError
from .growing import Extent
from .ids import Hashes, Id, IntIds, Rows, StrIds, hashes_of
from .strings import Texts
from .vectors import Layout, Vectors, arrays_of, vectors_in

_MOST_DIM = 1 << 16  # no field has more
LEVEL0_BYTES = 8 << 20  # a batch this large is written once, as a level-0 segment, and not to the log


@dataclass(frozen=True)
class FieldRows:
    """The vectors of one field: (n, d) f32 | f16 | i8, or sparse; norms (n,) f32, present (n,) bool or None for all."""

    vectors: Vectors
    norms: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_] | None = None

    def slice(self, start: int, stop: int) -> FieldRows:
        present = None if self.present is None else self.present[start:stop]
        return FieldRows(self.vectors[start:stop], self.norms[start:stop], present)


@dataclass(frozen=True)
class Batch:
    """keys: the ids as Python values. payloads: JSON per row, b"" for none. deletes: ids that die first.

    columns: typed columns of the payloads with their description, when the caller has built them already. owned: the
    arrays are the engine's own and will not change, so that the memtable may keep them instead of a copy. extent: where
    the vectors of the one field lie on disk, if not in the log. raw: see columns.Prepared. packed: keys and payloads once
    more, where somebody has needed them so; see `packed_up`.
    """

    keys: Sequence[Id] = ()
    fields: dict[str, FieldRows] = field(default_factory=dict)
    payloads: Sequence[bytes] = ()
    deletes: Sequence[Id] = ()
    columns: Columns | None = None
    owned: bool = False
    extent: Extent | None = None
    raw: Raw | None = None
    packed: Packed | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def hashes(self) -> Hashes | None:
        """Of the keys, if somebody has made them."""
        return None if self.packed is None else self.packed.hashes

    @property
    def nbytes(self) -> int:
        """About what the rows take in memory and in the log."""
        vectors = sum(f.vectors.nbytes + f.norms.nbytes for f in self.fields.values())
        return vectors + strings.bytes_of(self.payloads) + 64 * (len(self.keys) + len(self.deletes))

    def packed_up(self) -> Batch:
        """The same with `packed`, which whoever needs it then has without making it again."""
        return self if self.packed is not None else replace(self, packed=Packed.of(self.keys, self.payloads))

    def to_record(self) -> bytes:
        """The batch as a log record."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        if self.keys:
            ids = ids_module.from_list(self.keys) if self.packed is None else self.packed.ids
            payloads = Texts.of(self.payloads) if self.packed is None else self.packed.payloads
            arrays |= ids.arrays() | {"payload.offsets": payloads.offsets, "payload.bytes": payloads.text}
            for name, rows in self.fields.items():
                arrays |= field_arrays(name, rows)
                if self.extent is not None:  # of dense vectors
                    del arrays[f"field.{name}.vectors"]
        if self.deletes:
            arrays |= {f"delete.{k}": a for k, a in ids_module.from_list(self.deletes).arrays().items()}
        meta: dict[str, Any] = {"fields": list(self.fields)}
        if self.extent is not None:
            meta["extent"] = self.extent.to_json()
        return pack(meta, arrays)

    @staticmethod
    def from_record(record: bytes, vectors_at: Callable[[Extent], npt.NDArray[Any]]) -> Batch:
        """The inverse of `to_record`. vectors_at: reads an extent. Raises Corruption, and what vectors_at raises."""
        try:
            return _from_record(record, vectors_at)
        except VecdbError:  # of which NotFound is a KeyError
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise Corruption(f"a log record cannot be right: {error!r}", array="log") from error

    def check_layout(self, layout: Layout, kind: str | None) -> None:
        """A batch from the log is of the fields and the kind of ids of its collection. Raises Corruption."""
        right = all(name in layout and layout[name].fits(rows.vectors) for name, rows in self.fields.items())
        kinds = {type(key).__name__ for keys in (self.keys, self.deletes) for key in keys[:1]}
        if not right or not kinds <= ({"int", "str"} if kind is None else {kind}):
            raise Corruption("a log record is not as the schema of its collection says", array="log")

    def kept_in(self, record: bytes) -> Batch:
        """The same batch with its vectors where they lie in its own log record, which nobody else can change."""
        meta, arrays = unpack(record)
        return replace(self, fields=_fields(meta["fields"], arrays, len(self)), owned=True)


@dataclass(frozen=True)
class Packed:
    """Ids and payloads of n rows as arrays, which is how log records and segments have them. hashes: (n,), of the ids."""

    ids: IntIds | StrIds
    hashes: Hashes
    payloads: Texts

    @staticmethod
    def of(keys: Sequence[Id], payloads: Sequence[bytes]) -> Packed:
        return Packed(ids_module.from_list(keys), hashes_of(keys), Texts.of(payloads))

    @staticmethod
    def concat(parts: Sequence[Packed]) -> Packed:
        """End to end; at least one."""
        ids = ids_module.concat([part.ids for part in parts])
        hashes = np.concatenate([part.hashes for part in parts])
        return Packed(ids, hashes, strings.concat([part.payloads for part in parts]))

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: Rows) -> Packed:
        """Some of the rows."""
        return Packed(self.ids.take(rows), self.hashes[rows], self.payloads.take(rows))


def _from_record(record: bytes, vectors_at: Callable[[Extent], npt.NDArray[Any]]) -> Batch:
    meta, arrays = unpack(record)
    extent = Extent.from_json(meta["extent"]) if "extent" in meta else None
    if extent is not None:
        (name,) = meta["fields"]
        _check_extent(extent, len(arrays["payload.offsets"]) - 1)
        arrays[f"field.{name}.vectors"] = vectors_at(extent)
    deleted = {k.removeprefix("delete."): a for k, a in arrays.items() if k.startswith("delete.")}
    deletes = ids_module.from_arrays(deleted).tolist() if deleted else ()
    if "payload.offsets" not in arrays:
        return Batch(deletes=deletes)
    keys = ids_module.from_arrays(arrays).tolist()
    check_ends(arrays["payload.offsets"], arrays["payload.bytes"], "payload.offsets")
    payloads = Texts(arrays["payload.offsets"], arrays["payload.bytes"])
    fields = _fields(meta["fields"], arrays, len(keys))
    lengths = [(len(rows.vectors), *rows.norms.shape) for rows in fields.values()]
    if len(payloads) != len(keys) or any(each != (len(keys), len(keys)) for each in lengths):
        raise ValueError("its arrays are of different lengths")
    return Batch(keys, fields, payloads, deletes, owned=True, extent=extent)


def _check_extent(extent: Extent, rows: int) -> None:
    """Raises ValueError where an extent leads out of its folder, or not to the vectors of so many rows."""
    if not isinstance(extent.name, str) or "/" in extent.name or "\0" in extent.name:
        raise ValueError(f"{extent.name!r} is no file")
    numbers = extent.offset, extent.rows, extent.dim
    right = all(type(n) is int and n >= 0 for n in numbers) and extent.rows == rows and extent.dim <= _MOST_DIM
    if not right or extent.dtype not in ("<f4", "<f2", "|i1"):
        raise ValueError(f"{extent} is no place of vectors")


def extent_of(record: bytes) -> Extent | None:
    """Where the vectors of a log record lie, if not in it."""
    meta, _ = unpack(record)
    return Extent.from_json(meta["extent"]) if "extent" in meta else None


def _fields(names: Sequence[str], arrays: Arrays, count: int) -> dict[str, FieldRows]:
    fields = {}
    for name in names:
        packed = arrays.get(f"field.{name}.present")
        present = None if packed is None else unpack_bits(packed, count)
        fields[name] = FieldRows(vectors_in(name, arrays), arrays[f"field.{name}.norms"], present)
    return fields


def field_arrays(name: str, rows: FieldRows) -> dict[str, npt.NDArray[Any]]:
    """The arrays that store a field; `present` only where some row lacks it."""
    arrays = {**arrays_of(name, rows.vectors), f"field.{name}.norms": rows.norms}
    if rows.present is not None and not rows.present.all():
        arrays[f"field.{name}.present"] = pack_bits(rows.present)
    return arrays


def pack_bits(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Flags as uint64 words: bit i % 64 of word i // 64."""
    words = np.zeros(-(-len(flags) // 64), np.uint64)
    packed = np.packbits(flags, bitorder="little")
    words.view(np.uint8)[: len(packed)] = packed
    return words


def unpack_bits(words: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.bool_]:
    """The first `count` flags of such words."""
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=count, bitorder="little").view(np.bool_)
