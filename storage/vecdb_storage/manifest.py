"""What a collection consists of: its segments, in the order in which they are searched. Immutable values.

In the `manifest` table, under the collection's uuid, as JSON:

    {"flushed": 41, "segments": [{"name": "01J…", "rows": 9000, "seq": 17, "bytes": 123, "indexes": {"vector": "01J….idx"}}, …]}

`flushed` is the seq up to which the log has been moved into segments; log records up to it are gone. A segment's
`seq` is the seq of all its rows (a level-0 segment) or null when each row carries its own. `indexes` names the file of each
field's index; what has none is searched exactly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import orjson

from .errors import Corruption

SUFFIX = ".seg"
READABLE_BY = "0.1.0"  # the first version that can read what this one writes


@dataclass(frozen=True)
class SegmentEntry:
    """name: ULID, also the file's. rows: dead ones included. seq: of all rows, or None. bytes: of the file.

    indexes: field -> name of its index file.
    """

    name: str
    rows: int
    seq: int | None
    bytes: int
    indexes: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Its own file, and those of its indexes."""
        return [self.name + SUFFIX, *self.indexes.values()]


@dataclass(frozen=True)
class Manifest:
    flushed: int = 0
    segments: tuple[SegmentEntry, ...] = ()

    def to_json(self) -> bytes:
        return orjson.dumps({"flushed": self.flushed, "segments": [asdict(s) for s in self.segments]})

    def with_index(self, segment: str, name: str, file: str | None) -> Manifest:
        """The same with another index file of a field of a segment, or without one."""
        changed = []
        for entry in self.segments:
            if entry.name == segment:
                indexes = {f: kept for f, kept in entry.indexes.items() if f != name}
                entry = replace(entry, indexes={**indexes, name: file} if file is not None else indexes)
            changed.append(entry)
        return replace(self, segments=tuple(changed))

    @staticmethod
    def from_json(data: bytes) -> Manifest:
        """Raises Corruption. No name leads out of the collection's folder."""
        try:
            parsed = orjson.loads(data)
            manifest = Manifest(parsed["flushed"], tuple(SegmentEntry(**s) for s in parsed["segments"]))
            numbers = [manifest.flushed, *(n for s in manifest.segments for n in (s.rows, s.bytes, s.seq or 0))]
            if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
                raise ValueError("a number of it is none")
            names = [name for s in manifest.segments for name in s.files]
            if not all(isinstance(name, str) and name and not {"/", "\0"} & {*name} for name in names):
                raise ValueError("a name of it is none")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Corruption(f"a manifest cannot be right: {error!r}", array="manifest") from error
        return manifest
