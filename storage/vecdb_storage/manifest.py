"""What a collection consists of: its segments, in the order in which they are searched. Immutable values.

In the `manifest` table, under the collection's uuid, as JSON:

    {"flushed": 41, "segments": [{"name": "01J…", "rows": 9000, "seq": 17, "bytes": 123}, …]}

`flushed` is the seq up to which the log has been moved into segments; log records up to it are gone. A segment's
`seq` is the seq of all its rows (a level-0 segment) or null when each row carries its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import orjson


@dataclass(frozen=True)
class SegmentEntry:
    """name: ULID, also the file's. rows: dead ones included. seq: of all rows, or None. bytes: of the file."""

    name: str
    rows: int
    seq: int | None
    bytes: int


@dataclass(frozen=True)
class Manifest:
    flushed: int = 0
    segments: tuple[SegmentEntry, ...] = ()

    def to_json(self) -> bytes:
        return orjson.dumps({"flushed": self.flushed, "segments": [asdict(s) for s in self.segments]})

    @staticmethod
    def from_json(data: bytes) -> Manifest:
        parsed = orjson.loads(data)
        return Manifest(parsed["flushed"], tuple(SegmentEntry(**s) for s in parsed["segments"]))
