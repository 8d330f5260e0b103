"""The bytes of published codes: one immutable object for each segment, and a manifest that names them.

An object is a header, then sections one after another, each at a multiple of 64 bytes. All numbers are little-endian:

    0    magic b"VECDBMIB", u32 version, u32 zero, u64 length of the JSON, u64 length of the object, 24 zero bytes,
         u64 xxh3 of the 56 bytes before and of the JSON
    64   JSON: {"segment", "rows", "seed", "ids": "int" | "str", "fields": {name: {"dim", "metric", "dtype", "encoder",
         "allowed", "width": D, "bits", "power", "decline": {"falls", "least"}}}, "sections": [{"name", "offset", "length",
         "piece", "sums"}, …]}

`offset` counts from the end of the header, rounded up to 64. `sums` has the xxh3 of each `piece` bytes of a section (1 MiB or
less, the last piece shorter), so that whatever part is read can be checked before it is used. In this order there are, of each
field f with an index of bits,

    encoder:f    the arrays of `codec.bits.Encoder`, as `arrayfile.pack` has them
    live:f       u64 words: bit i % 64 of word i // 64 is 1 where row i is live and has a vector; empty where all are
    codes:f      stripes, each a piece: the codes of some blocks of 32 rows, u8 (blocks, D / 8, 32), then their factors,
                 f32 (blocks, 2, 32), as in `vecdb_index.mib.layout`; an even number of blocks, but for the last stripe

and then, which a search reads some rows of,

    planes:f     where a dimension has several bits, a record for each row: these bits as in `codec.planes`, its f32 scale, the
                 f32 add of its factors, u64 xxh3 of the record so far; `power` says how far lists are cut by them
    rows:f       a record for each row: its vector as stored, f32 norm, i64 id (0 where ids are texts), u64 offset and u32
                 length of its text, u16 how much of that is its id, u16 zero, u64 xxh3 of the text, u64 xxh3 of the record so
                 far; both seeded with `seed` + the row
    texts        of each row the bytes of its id, where ids are texts, and its payload as JSON

Codes and factors of a block lie in one stripe, so that what arrives can be scanned at once; live comes before them, so that it
comes with the first read. Of rows that are deleted or lack the vector there are zeros and no text: what was deleted is not
published. An object is named by a digest of its header, which holds all checksums: other bytes have another name.

The manifest, `manifest.json`, is written last:

    {"format": "vecdb-codes", "version": 1, "collection", "uuid", "seq", "count", "ids", "fields": {name: as in the catalogue},
     "whole": {field: {"curves", "outgrown"}}, "objects": [{"name", "length", "header", "rows", "live", "check",
     "calibration": {field: curves}}, …], "check"}

with the calibration of each index. `check` of an object is the xxh3-128 of its header, of the manifest that of all else in it.

Everything here is plain functions and values; safe in any thread. Whatever is read is checked so far that no kernel can be led
outside an array: what cannot be right raises Corruption, naming file and section.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import xxhash
from vecdb_index.codec.bits import BLOCK, WIDEST, WORD, width_of
from vecdb_index.contract import Damaged
from vecdb_index.kernels.select import MAX_ROWS
from vecdb_index.mib.margin import Decline
from vecdb_index.mib.params import MOST_BITS
from vecdb_index.mib.search import ShortLists
from vecdb_storage.arrayfile import checksum

from ..errors import Corruption, NewerFormat
from ..schema import Dense, field_from_json

VERSION = 1
MANIFEST = "manifest.json"
ENDING = ".codes"
FORMAT = "vecdb-codes"
PREFIX = 64 << 10  # bytes of an object that are read first
PIECE = 1 << 20
ALIGNMENT = 64
_HEAD = struct.Struct("<8sIIQQ24xQ")
_MAGIC = b"VECDBMIB"
_LONGEST_JSON = 1 << 30
DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "i8": np.dtype("i1")}
# What reading a description that is none raises.
_STRANGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, Damaged)


def digest(data: bytes) -> str:
    """The xxh3-128 of some bytes, in hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def seeded(data: Any, seed: int) -> int:
    """The xxh3 of some bytes, of one place only."""
    return int(xxhash.xxh3_64_intdigest(data, seed % (1 << 64)))


def record_of(dim: int, dtype: str) -> np.dtype[Any]:
    """A row, as it lies in `rows:f`."""
    return np.dtype(
        [
            ("vector", DTYPES[dtype], (dim,)), ("norm", "<f4"), ("id", "<i8"), ("offset", "<u8"), ("length", "<u4"),
            ("named", "<u2"), ("zero", "<u2"), ("text", "<u8"), ("check", "<u8"),
        ]
    )  # fmt: skip


def planes_of(width: int, bits: int) -> np.dtype[Any]:
    """A row, as it lies in `planes:f`."""
    return np.dtype([("planes", "u1", (bits * width // 8,)), ("scale", "<f4"), ("add", "<f4"), ("check", "<u8")])


def stripe_blocks(width: int) -> int:
    """Blocks in a stripe: as many pairs as fit in a piece, one at least. width: bits of a row."""
    return 2 * max(1, PIECE // (2 * block_bytes(width)))


def block_bytes(width: int) -> int:
    """Of the codes and factors of a block."""
    return BLOCK * (width // 8 + 8)


def piece_rows(record: int) -> int:
    """Records in a piece: a power of two, one at least. record: bytes."""
    return 1 << max(0, (PIECE // record).bit_length() - 1)


@dataclass(frozen=True)
class Section:
    """A part of an object. offset: in the object. piece: bytes to a checksum."""

    name: str
    offset: int
    length: int
    piece: int
    sums: tuple[int, ...]

    def wrong_in(self, data: Any, start: int) -> int | None:
        """The first piece that is not what was written, in bytes from `start` on, where a piece begins; None if all are."""
        view = memoryview(data)
        for at in range(0, len(view), self.piece):
            piece = (start + at) // self.piece
            if checksum(view[at : at + self.piece]) != self.sums[piece]:
                return piece
        return None


@dataclass(frozen=True)
class FieldLayout:
    """A field of an object. encoder: the number of what made its codes. allowed: rows that are live and have it. lists: how
    long short lists are.
    """

    name: str
    declared: Dense
    encoder: int
    allowed: int
    lists: ShortLists

    @cached_property
    def record(self) -> np.dtype[Any]:
        return record_of(self.declared.dim, self.declared.dtype)

    @property
    def width(self) -> int:
        return self.lists.width

    @cached_property
    def planes(self) -> np.dtype[Any]:
        return planes_of(self.width, self.lists.depth)

    @cached_property
    def stripe(self) -> int:
        """Blocks in a stripe."""
        return stripe_blocks(self.width)


@dataclass(frozen=True)
class Header:
    """What an object says of itself. length: of the object. seed: of the checksums of records. body: where sections begin."""

    segment: str
    rows: int
    seed: int
    ids: Literal["int", "str"]
    length: int
    body: int
    fields: Mapping[str, FieldLayout]
    sections: Mapping[str, Section]

    @property
    def blocks(self) -> int:
        return -(-self.rows // BLOCK)


@dataclass(frozen=True)
class Planned:
    """A section that is to be written. make: its bytes, from the first on; called twice, for checksums come before them."""

    name: str
    length: int
    piece: int
    make: Callable[[], Iterator[Any]]


def pieces_of(parts: Iterator[Any], piece: int) -> Iterator[memoryview]:
    """Bytes that come in any parts, in pieces of one length, but for the last."""
    waiting = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        if waiting:
            room = piece - len(waiting)
            waiting += view[:room]
            view = view[room:]
            if len(waiting) == piece:
                yield memoryview(bytes(waiting))
                waiting = bytearray()
        while len(view) >= piece:
            yield view[:piece]
            view = view[piece:]
        waiting += view
    if waiting:
        yield memoryview(bytes(waiting))


def write_header(about: Mapping[str, Any], planned: list[Planned], sums: list[list[int]]) -> bytes:
    """The header of an object, padded to where its first section begins. about: all of the JSON but the sections."""
    entries, offset = [], 0
    for section, mine in zip(planned, sums, strict=True):
        entry = {"name": section.name, "offset": offset, "length": section.length, "piece": section.piece, "sums": mine}
        entries.append(entry)
        offset += section.length + -section.length % ALIGNMENT
    text = orjson.dumps({**about, "sections": entries})
    body = _HEAD.size + len(text)
    body += -body % ALIGNMENT
    head = _HEAD.pack(_MAGIC, VERSION, 0, len(text), body + offset, 0)[:-8]
    head += checksum(head + text).to_bytes(8, "little")
    return (head + text).ljust(body, b"\0")


def header_length(prefix: bytes, file: str) -> int:
    """How many bytes the header of an object has, by its first ones. Raises Corruption, NewerFormat."""
    if len(prefix) < _HEAD.size:
        raise Corruption(f"{len(prefix)} bytes are too few for codes; it was cut short", file=file, array="header")
    magic, version, _, length, _, _ = _HEAD.unpack(prefix[: _HEAD.size])
    if magic != _MAGIC:
        raise Corruption("these are no codes of vecdb", file=file, array="header")
    if version > VERSION:
        raise NewerFormat(f"{file} has format {version}; this vecdb reads up to {VERSION}", needs=f"format {version}")
    if length > _LONGEST_JSON:
        raise Corruption("its header cannot be so long", file=file, array="header")
    found: int = _HEAD.size + length
    return found + -found % ALIGNMENT


def read_header(data: bytes, file: str) -> Header:
    """A whole header, looked at as far as kernels rely on it. Raises Corruption, NewerFormat."""
    body = header_length(data, file)
    _, _, _, length, whole, own = _HEAD.unpack(data[: _HEAD.size])
    text = data[_HEAD.size : _HEAD.size + length]
    if len(data) != body or own != checksum(data[: _HEAD.size - 8] + text):
        raise Corruption("the header is damaged; upload the object again", file=file, array="header")
    try:
        return _checked(orjson.loads(text), body, whole)
    except _STRANGE as error:
        raise Corruption(f"the header cannot be right: {error!r}", file=file, array="header") from error


def _checked(said: Any, body: int, whole: int) -> Header:
    """Raises one of _STRANGE."""
    sections = {}
    for each in said["sections"]:
        numbers = each["offset"], each["length"], each["piece"]
        if not all(type(number) is int and number >= 0 for number in (*numbers, *each["sums"])) or each["piece"] < 1:
            raise ValueError(f"{each['name']} has strange numbers")
        section = Section(each["name"], body + each["offset"], each["length"], each["piece"], tuple(each["sums"]))
        if section.offset + section.length > whole or len(section.sums) != -(-section.length // section.piece):
            raise ValueError(f"{section.name} does not fit the object, or its checksums")
        sections[section.name] = section
    rows, seed, ids = said["rows"], said["seed"], said["ids"]
    if type(rows) is not int or not 0 < rows < MAX_ROWS or type(seed) is not int or ids not in ("int", "str"):
        raise ValueError("it has strange rows")
    fields = {}
    for name, each in said["fields"].items():
        declared = field_from_json({"kind": "dense", **each})
        if not isinstance(declared, Dense) or declared.dim > WIDEST:
            raise ValueError(f"{name} is no field of dense vectors")
        bits, power = each["bits"], float(each["power"])
        if type(bits) is not int or not 1 <= bits <= MOST_BITS or not 0 < power <= 1:
            raise ValueError(f"{name} has strange bits")
        width, decline = each["width"], Decline(tuple(each["decline"]["falls"]), each["decline"]["least"])
        if type(width) is not int or not 0 < width <= width_of(declared.dim) or width % WORD:
            raise ValueError(f"{name} has codes of strange width")
        Decline.of(decline.table())
        lists = ShortLists(rows, width, declared.dim * DTYPES[declared.dtype].itemsize, bits, power, decline)
        field = fields[name] = FieldLayout(name, declared, each["encoder"], each["allowed"], lists)
        if type(field.encoder) is not int or type(field.allowed) is not int or not 0 <= field.allowed <= rows:
            raise ValueError(f"{name} has strange numbers")
        codes, live, records = (sections[f"{kind}:{name}"] for kind in ("codes", "live", "rows"))
        one = block_bytes(field.width)
        if (codes.length, codes.piece) != (-(-rows // BLOCK) * one, field.stripe * one):
            raise ValueError(f"the codes of {name} are not of {rows:,} rows of {declared.dim:,} numbers")
        if live.length != (0 if field.allowed == rows else -(-rows // 64) * 8):
            raise ValueError(f"the bitmap of {name} is not of {rows:,} rows")
        size = field.record.itemsize
        if (records.length, records.piece) != (rows * size, piece_rows(size) * size):
            raise ValueError(f"the rows of {name} are not {rows:,} of {declared.dim:,} numbers")
        if bits > 1 and sections[f"planes:{name}"].length != rows * field.planes.itemsize:
            raise ValueError(f"the planes of {name} are not of {rows:,} rows in {bits} bits")
        sections[f"encoder:{name}"]
    sections["texts"]
    return Header(str(said["segment"]), rows, seed, ids, whole, body, fields, sections)


@dataclass(frozen=True)
class Object:
    """An object, as the manifest names it. header: bytes of its header. check: of these. live: rows that count."""

    name: str
    length: int
    header: int
    rows: int
    live: int
    check: str
    calibration: Mapping[str, Any]


@dataclass(frozen=True)
class Manifest:
    """A collection that was published. whole: of a field, curves of searches over all segments, and whether outgrown."""

    collection: str
    uuid: bytes
    seq: int
    count: int
    ids: str | None
    fields: Mapping[str, Dense]
    whole: Mapping[str, Any]
    objects: tuple[Object, ...]


def write_manifest(said: Mapping[str, Any]) -> bytes:
    """All of a manifest but format, version and check."""
    whole = {"format": FORMAT, "version": VERSION, **said}
    return orjson.dumps(
        {**whole, "check": digest(orjson.dumps(whole, option=orjson.OPT_SORT_KEYS))}, option=orjson.OPT_INDENT_2
    )


def read_manifest(data: bytes, file: str) -> Manifest:
    """Raises Corruption, NewerFormat."""
    try:
        said = orjson.loads(data)
        check = said.pop("check")
        if said["format"] != FORMAT:
            raise ValueError("it is of another format")
        if said["version"] > VERSION:
            raise NewerFormat(
                f"{file} has format {said['version']}; this vecdb reads up to {VERSION}", needs=f"{said['version']}"
            )
        if check != digest(orjson.dumps(said, option=orjson.OPT_SORT_KEYS)):
            raise ValueError("it is not what was written")
        fields = {name: field_from_json(each) for name, each in said["fields"].items()}
        objects = tuple(Object(**each) for each in said["objects"])
        numbers = [
            said["count"],
            said["seq"],
            *(n for each in objects for n in (each.length, each.header, each.rows, each.live)),
        ]
        right = all(type(number) is int and number >= 0 for number in numbers) and said["ids"] in ("int", "str", None)
        right = right and all(isinstance(field, Dense) for field in fields.values())
        right = right and all(not {"/", "\\"} & set(each.name) and each.name.endswith(ENDING) for each in objects)
        right = right and all(each.live <= each.rows for each in objects)
        if not right or said["count"] != sum(each.live for each in objects):
            raise ValueError("it has strange values")
        return Manifest(
            str(said["collection"]), bytes.fromhex(said["uuid"]), said["seq"], said["count"], said["ids"],
            {name: field for name, field in fields.items() if isinstance(field, Dense)}, dict(said["whole"]), objects,
        )  # fmt: skip
    except _STRANGE as error:
        raise Corruption(f"no manifest of published codes: {error}; export and upload it again", file=file) from error


def words_of(data: bytes) -> npt.NDArray[np.uint64]:
    """A bitmap."""
    return np.frombuffer(data, np.uint64)
