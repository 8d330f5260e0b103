"""What `Collection.info` says: figures as of the moment of the call. Values; safe in any thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .schema import Field

if TYPE_CHECKING:
    from .upkeep.probing import Probed


@dataclass(frozen=True)
class IndexInfo:
    """The index of one field. why: which backend, and why. segments, rows: that have it. bytes: of its files.

    building: share that is done of the segment being indexed now, None when none is. paused: by `pause_indexing`. error: why
    one could not be built; it is tried again later. calibrated: how many points there were when recall of whole searches was
    measured, on the user's own queries, or where there are several segments; outgrown: so much has changed since that it is to
    be measured again. probed: recall as it was delivered (`recall_probe=`), None when nothing was measured.
    """

    why: str
    segments: int
    rows: int
    bytes: int
    building: float | None
    paused: bool
    error: str | None
    calibrated: int | None
    outgrown: bool
    probed: Probed | None
    arrays: dict[str, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    advice: str = ""


@dataclass(frozen=True)
class Info:
    """Figures about a collection. rows: live points. dead: rows replaced or deleted and still on disk.

    bytes: of its segment files. memtable_rows: of rows that are in the log and in memory only. flush_error: why
    the last background flush failed, None when all is well.
    """

    name: str
    rows: int
    dead: int
    segments: int
    memtable_rows: int
    bytes: int
    seq: int
    fields: dict[str, Field]
    ids: str | None
    encoder: str | None
    indexes: dict[str, IndexInfo]
    flush_error: str | None
