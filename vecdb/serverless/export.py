"""Writes a collection as published codes: an object for each segment, and the manifest last; `layout` has the bytes.

What is written is one commit, whose snapshot is held meanwhile; the collection may be in use. Objects have the name of what is
in them, so those that are there already are left as they are, and another export to the same folder writes what is new. Readers
of the manifest before go on until objects that only it names are removed, which is the last thing done. Any thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash
from vecdb_index.codec.bits import BLOCK
from vecdb_index.mib.search import MIBSearcher
from vecdb_storage.arrayfile import checksum, pack
from vecdb_storage.files import Files
from vecdb_storage.places import Folder, Place, place_of
from vecdb_storage.segment import StoredField
from vecdb_storage.snapshot import SegmentPart, Snapshot

from ..errors import AlreadyExists, Corruption, InvalidInput, NewerFormat, NotFound, Unsupported
from ..schema import Dense, Field
from ..search.indexes import index_of, rows_of
from ..search.whole import Measured
from .layout import (
    ALIGNMENT,
    ENDING,
    MANIFEST,
    PIECE,
    Object,
    Planned,
    block_bytes,
    digest,
    piece_rows,
    pieces_of,
    planes_of,
    read_manifest,
    record_of,
    seeded,
    stripe_blocks,
    write_header,
    write_manifest,
)

if TYPE_CHECKING:
    from vecdb_storage.files import Progress

_ROWS = 4096  # that are made records of together
_BACKEND = "mib"


@dataclass(frozen=True)
class Exported:
    """What was written. written: bytes, without objects that were there already. bytes: of all that is there for readers."""

    folder: str
    points: int
    objects: int
    bytes: int
    written: int


@dataclass(frozen=True)
class _Field:
    """A field of a segment. flags: (n,) bool, rows that are live and have it."""

    name: str
    declared: Dense
    stored: StoredField
    searcher: MIBSearcher
    calibration: dict[str, Any]
    flags: npt.NDArray[np.bool_]


def export_codes(
    snapshot: Snapshot,
    name: str,
    uuid: bytes,
    fields: Mapping[str, Field],
    measured: Callable[[str], Measured | None],
    folder: str | os.PathLike[str],
    *,
    field: str | None = None,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """See `Collection.export_codes`. name, uuid, fields: of the collection. measured: of whole searches of a field."""
    chosen = _chosen(fields, field)
    place = place_of(Files(), os.fspath(folder), options)
    before = _before(place, overwrite)
    segments = [(part, _fields(part, chosen)) for part in _parts(snapshot)]
    total = sum(part.segment.file.size for part, _ in segments)
    objects, written, done = [], 0, 0
    for part, mine in segments:
        size, before_it = part.segment.file.size, done

        def told(share: float, size: int = size, before_it: int = before_it) -> None:
            if progress is not None:
                progress(before_it + round(share * size), total)

        if mine:
            one, new = _write(place, part, mine, snapshot.schema.get("ids") or "int", told)
            objects.append(one)
            written += new
        done += size
        told(1.0)
    manifest = write_manifest(
        {
            "collection": name,
            "uuid": uuid.hex(),
            "seq": snapshot.seq,
            "count": snapshot.count,
            "ids": snapshot.schema.get("ids"),
            "fields": {each: declared.to_json() for each, declared in chosen.items()},
            "whole": {each: _whole(measured(each), snapshot, each) for each in chosen},
            "objects": [asdict(one) for one in objects],
        }
    )
    place.finish(MANIFEST, manifest)
    for old in before - {one.name for one in objects}:
        place.remove(old)
    size = len(manifest) + sum(one.length for one in objects)
    return Exported(place.location, snapshot.count, len(objects), size, written + len(manifest))


def _chosen(fields: Mapping[str, Field], field: str | None) -> dict[str, Dense]:
    """The fields whose codes are written."""
    if field is not None and field not in fields:
        raise InvalidInput(f"no such field; this collection has {', '.join(fields)}", field=field)
    chosen = {
        name: declared
        for name, declared in fields.items()
        if field in (None, name) and isinstance(declared, Dense) and getattr(declared.index, "backend", None) == _BACKEND
    }
    if not chosen:
        raise InvalidInput("only an index of bits has codes to export: declare it by set_index(MIB()) and flush()", field=field)
    return chosen


def _before(place: Place, overwrite: bool) -> set[str]:
    """The objects that a manifest names which is there already."""
    try:
        there = b"".join(place.read(MANIFEST))
    except NotFound:
        return set()
    if not overwrite:
        raise AlreadyExists(f"{place.location} has codes already; overwrite=True (--overwrite) replaces them")
    try:
        return {one.name for one in read_manifest(there, f"{place.location}/{MANIFEST}").objects}
    except (Corruption, NewerFormat):  # which is no reason not to write it anew
        return set()


def _parts(snapshot: Snapshot) -> list[SegmentPart]:
    """The segments with live rows. Raises InvalidInput where rows are in memory only."""
    parts = []
    for part in snapshot.parts:
        if not isinstance(part, SegmentPart):
            if part.live_rows:
                raise InvalidInput(
                    f"{part.live_rows:,} points are in memory and have no codes yet: open the database for writing and flush()"
                )
        elif part.live_rows:
            parts.append(part)
    return parts


def _fields(part: SegmentPart, chosen: Mapping[str, Dense]) -> list[_Field]:
    """The fields of which a segment has rows. Raises Unsupported where one has no index yet."""
    found = []
    for name, declared in chosen.items():
        stored = part.field(name)
        if stored is None:
            continue
        index = index_of(part, name, rows_of(stored, declared.metric))
        if not isinstance(index.searcher, MIBSearcher):
            raise Unsupported(
                f"field {name!r}: a segment of {part.rows:,} points cannot be exported: {index.why or 'its index is another'}; "
                "open the database for writing and flush(), which waits for indexes"
            )
        flags = np.ones(part.rows, np.bool_) if part.live is None else _flags(part.live, part.rows)
        if stored.present is not None:
            flags &= _flags(stored.present, part.rows)
        if flags.any():
            found.append(_Field(name, declared, stored, index.searcher, index.calibration.to_json(), flags))
    return found


def _flags(words: npt.NDArray[np.uint64], rows: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(words.view(np.uint8), count=rows, bitorder="little").view(np.bool_)


def _whole(measured: Measured | None, snapshot: Snapshot, name: str) -> Any:
    """What is known of searches over all segments, which whoever reads cannot measure."""
    return None if measured is None else {"curves": measured.curves, "outgrown": measured.outgrown_by(snapshot, name)}


def _write(
    place: Place, part: SegmentPart, fields: list[_Field], ids: str, told: Callable[[float], None]
) -> tuple[Object, int]:  # fmt: skip
    """Writes the object of a segment. Returns how it is named in the manifest, and the bytes that were new.

    told: of the share that is done.
    """
    segment = part.segment.name
    seed = checksum("/".join([segment, *(f"{each.name} {each.searcher.encoder.check}" for each in fields)]).encode())
    texts = _Texts(part, ids, seed)
    planned: list[Planned] = []
    for each in fields:
        planned += _searched(each)
    for each in fields:
        if each.searcher.depth > 1:
            planned.append(_planes(each, seed))
        planned.append(_records(each, part.rows, seed, ids, texts))
    planned.append(Planned("texts", int(texts.lengths.sum()), PIECE, texts.each_text))
    size, seen, sums = max(1, sum(one.length for one in planned)), 0, list[list[int]]()
    for one in planned:  # twice: once for checksums, which come first in the object
        sums.append([])
        for piece in pieces_of(one.make(), one.piece):
            sums[-1].append(checksum(piece))
            seen += len(piece)
            told(0.5 * seen / size)
    about = {
        "segment": segment,
        "rows": part.rows,
        "seed": seed,
        "ids": ids,
        "fields": {
            each.name: {
                "dim": each.declared.dim,
                "metric": each.declared.metric,
                "dtype": each.declared.dtype,
                "encoder": each.searcher.encoder.check,
                "allowed": int(each.flags.sum()),
                "bits": each.searcher.lists.depth,
                "power": each.searcher.lists.power,
                "width": each.searcher.lists.width,
                "decline": asdict(each.searcher.lists.decline),
            }
            for each in fields
        },
    }
    header = write_header(about, planned, sums)
    check = digest(header)
    name = f"{segment}-{check[:16]}{ENDING}"
    length = len(header) + sum(one.length + -one.length % ALIGNMENT for one in planned)
    live = {each.name: each.calibration for each in fields}
    described = Object(name, length, len(header), part.rows, part.live_rows, check, live)

    def whole() -> Iterator[Any]:
        done = 0
        yield header
        for one in planned:
            for piece in pieces_of(one.make(), PIECE):
                yield piece
                done += len(piece)
                told(0.5 + 0.5 * done / size)
            yield bytes(-one.length % ALIGNMENT)

    if name in place.names() and place.size(name) == length and _is(place, name, whole()):
        return described, 0
    place.write(name, whole())
    return described, length


def _is(place: Place, name: str, pieces: Iterator[Any]) -> bool:
    """Whether a file, which has the name and the length of these, has their bytes; of a remote one, that is believed."""
    if not isinstance(place, Folder):
        return True
    there, here = xxhash.xxh3_128(), xxhash.xxh3_128()
    for piece in place.read(name):
        there.update(piece)
    for piece in pieces:
        here.update(piece)
    return bool(there.digest() == here.digest())


def _searched(field: _Field) -> list[Planned]:
    """What every search reads of a field: its encoder, which rows count, the codes."""
    encoder, bits = field.searcher.encoder, field.searcher.bits
    packed = pack({}, encoder.arrays())
    rows, stripe = bits.n, stripe_blocks(encoder.width)
    words = np.zeros(-(-rows // 64) * 64, np.bool_)
    words[:rows] = field.flags
    live = b"" if field.flags.all() else np.packbits(words, bitorder="little").tobytes()

    def stripes() -> Iterator[Any]:
        for first in range(0, len(bits.codes), stripe):
            codes, factors = bits.codes[first : first + stripe], bits.factors[first : first + stripe]
            dead = np.flatnonzero(~field.flags[first * BLOCK : (first + len(codes)) * BLOCK])
            if len(dead):  # nothing is told of what was deleted
                codes, factors = codes.copy(), factors.copy()
                block, lane = dead // BLOCK, dead % BLOCK
                codes[block, :, 2 * (lane % (BLOCK // 2)) + lane // (BLOCK // 2)] = 0
                factors[block, :, lane] = 0
            yield np.ascontiguousarray(codes).reshape(-1)
            yield np.ascontiguousarray(factors).reshape(-1).view(np.uint8)

    one = block_bytes(encoder.width)
    return [
        Planned(f"encoder:{field.name}", len(packed), PIECE, lambda: iter([packed])),
        Planned(f"live:{field.name}", len(live), PIECE, lambda: iter([live])),
        Planned(f"codes:{field.name}", len(bits.codes) * one, stripe * one, stripes),
    ]


def _planes(field: _Field, seed: int) -> Planned:
    """All bits of a dimension, of each row, with what else its estimate takes."""
    searcher, rows = field.searcher, field.searcher.bits.n
    dtype = planes_of(searcher.encoder.width, searcher.depth)

    def records() -> Iterator[Any]:
        for start in range(0, rows, _ROWS):
            stop = min(rows, start + _ROWS)
            found, mine = np.zeros(stop - start, dtype), np.flatnonzero(field.flags[start:stop])
            at = start + mine
            found["planes"][mine], found["scale"][mine] = searcher.planes[at], searcher.scales[at]
            found["add"][mine] = searcher.bits.factors[at // BLOCK, 1, at % BLOCK]
            yield _checked(found, seed + start)

    return Planned(f"planes:{field.name}", rows * dtype.itemsize, piece_rows(dtype.itemsize) * dtype.itemsize, records)


def _checked(records: npt.NDArray[Any], seed: int) -> npt.NDArray[np.uint8]:
    """The bytes of records, each with its checksum. seed: of the first."""
    for at, row in enumerate(records):
        row["check"] = seeded(row.tobytes()[:-8], seed + at)
    return records.view(np.uint8).reshape(-1)


def _records(field: _Field, rows: int, seed: int, ids: str, texts: _Texts) -> Planned:
    dtype = record_of(field.declared.dim, field.declared.dtype)

    def records() -> Iterator[Any]:
        for start in range(0, rows, _ROWS):
            stop = min(rows, start + _ROWS)
            found = np.zeros(stop - start, dtype)
            mine = field.flags[start:stop]
            assert isinstance(field.stored.vectors, np.ndarray)
            found["vector"][mine] = field.stored.vectors[start:stop][mine]
            found["norm"][mine] = field.stored.norms[start:stop][mine]
            if ids == "int":
                found["id"][mine] = texts.keys(start, stop)[mine]
            for name, array in (("offset", texts.offsets), ("length", texts.lengths), ("named", texts.named)):
                found[name] = array[start:stop]
            found["text"] = texts.sums[start:stop]
            yield _checked(found, seed + start)

    size = dtype.itemsize
    return Planned(f"rows:{field.name}", rows * size, piece_rows(size) * size, records)


class _Texts:
    """Ids, where they are texts, and payloads of the live rows of a segment. All arrays have an entry for each row.

    offsets, lengths: of its text among all; named: bytes of its id in it; sums: seeded checksums.
    """

    def __init__(self, part: SegmentPart, ids: str, seed: int) -> None:
        self._part, self._ids = part, ids
        self._flags = np.ones(part.rows, np.bool_) if part.live is None else _flags(part.live, part.rows)
        self.lengths, self.named = np.zeros(part.rows, np.uint64), np.zeros(part.rows, np.uint16)
        self.sums = np.zeros(part.rows, np.uint64)
        for row, name, text in self._each():
            self.lengths[row], self.named[row], self.sums[row] = len(text), name, seeded(text, seed + row)
        for row in np.flatnonzero(~self._flags).tolist():
            self.sums[row] = seeded(b"", seed + row)
        self.offsets = np.concatenate([np.zeros(1, np.uint64), np.cumsum(self.lengths)])[:-1].astype(np.uint64)

    def keys(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The ids of some rows, where they are numbers."""
        return np.array(self._part.keys(np.arange(start, stop)), np.int64)

    def each_text(self) -> Iterator[bytes]:
        return (text for _, _, text in self._each())

    def _each(self) -> Iterator[tuple[int, int, bytes]]:
        """(row, bytes of its id, id and payload) of live rows."""
        live = np.flatnonzero(self._flags)
        for start in range(0, len(live), _ROWS):
            rows = live[start : start + _ROWS]
            names = [b""] * len(rows) if self._ids == "int" else [str(key).encode() for key in self._part.keys(rows)]
            for row, name in zip(rows.tolist(), names, strict=True):
                yield row, len(name), name + self._part.payload(row)
