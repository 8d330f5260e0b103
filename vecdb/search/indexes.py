"""The index of a field of a segment: where it is, whether it can be used, and what it promises.

An index file that is missing, damaged or of another version costs speed, never an answer: the segment is searched exactly,
a warning is logged once, and whoever builds indexes (`upkeep`) is told. Searchers are kept with their segments. Any thread.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from vecdb_index import registry
from vecdb_index.contract import AnyRows, Arrays, Damaged, Metric, Rows, Searcher, SparseRows
from vecdb_storage.arrayfile import ArrayFile, CheckedArrays
from vecdb_storage.errors import VecdbError
from vecdb_storage.segment import Segment, StoredField
from vecdb_storage.snapshot import SegmentPart
from vecdb_storage.vectors import SparseVectors

from ..schema import AUTO, Dense, Field, Sparse
from .calibrate import Calibration

AUTO_ROWS = 5_000  # from which on a segment gets a graph under "auto"
AUTO_SPARSE_ROWS = 5_000  # likewise, of sparse vectors
AUTO_SECONDS = 0.3e-3  # that an exact search of it must take at least
TRAINED = "trained."  # before the names of trained arrays, which are kept with each index that was built with them
_log = logging.getLogger("vecdb")
_lock = threading.Lock()


@dataclass(frozen=True)
class Index:
    """searcher and calibration of one index; None in their place, with the reason, where it cannot be used.

    ways: what the planner decided, by what was asked, so that it need not think twice.
    """

    searcher: Searcher | None
    calibration: Calibration
    why: str = ""
    ways: dict[Any, Any] = field(default_factory=dict, compare=False)


NOT_INDEXED = Index(None, Calibration(()), "in memory, not indexed")
SHOWN = 10  # hits, of whose recall `figures_of` tells
RECALL_OF_LISTS = f"share of the {SHOWN} nearest in lists of"
_told: set[str] = set()  # files of indexes whose advice was logged
_kept: WeakKeyDictionary[Segment, dict[str, tuple[str, Index]]] = WeakKeyDictionary()  # by field: its file, and that


def rows_of(stored: StoredField, metric: Metric) -> AnyRows:
    """The vectors of a field as backends take them."""
    if isinstance(stored.vectors, SparseVectors):
        return SparseRows(stored.vectors.offsets, stored.vectors.indices, stored.vectors.weights, stored.present)
    return Rows(stored.vectors, stored.norms, metric, stored.present)


def wanted(declared: Field, rows: int) -> Any:
    """The parameters of the index that a segment of so many rows is to have, or None for none. Of a registered backend."""
    if declared.index != AUTO:
        return None if declared.is_flat else declared.index
    if isinstance(declared, Sparse):
        return registry.params("seismic")() if rows >= AUTO_SPARSE_ROWS and "seismic" in registry.names() else None
    if rows >= AUTO_ROWS and scan_seconds(declared, rows) >= AUTO_SECONDS:
        return registry.params("hnsw")()
    return None


def scan_seconds(declared: Dense, rows: int) -> float:
    """That an exact search of so many rows takes, about."""
    row_bytes = declared.dim * {"f32": 4, "f16": 2, "i8": 1}[declared.dtype]
    return rows * (2e-9 + row_bytes / 18e9)


def why_auto(declared: Field, rows: int) -> str:
    """What "auto" decided for a segment, in words."""
    if declared.index != AUTO:
        return f"{declared.index.backend}, as declared"
    chosen = wanted(declared, rows)
    what = f"{declared.dim} numbers" if isinstance(declared, Dense) else "sparse vectors"
    if chosen is None:
        return f"auto: exact, because {rows:,} rows of {what} are scanned in well under a millisecond"
    return f"auto: {chosen.backend}, because an exact search would read {rows:,} rows of {what}"


def is_current(part: SegmentPart, name: str, params: Any) -> bool:
    """Whether the index that the manifest names can be used and is built with these parameters."""
    file = part.indexes.get(name)
    if file is None:
        return False
    try:
        meta = part.segment.index(file).meta
    except VecdbError:
        return False
    backend = registry.backend(params.backend)
    right = (meta.get("backend"), meta.get("version"), meta.get("params")) == (backend.name, backend.version, asdict(params))
    return right and index_of(part, name, None).searcher is not None


def stored(part: SegmentPart, name: str, params: Any) -> tuple[Arrays, Arrays] | None:
    """The arrays of an index and what was trained for it, if it can be used and is built with these parameters."""
    if not is_current(part, name, params):
        return None
    return _arrays(part.segment.index(part.indexes[name]))


def _arrays(file: ArrayFile) -> tuple[Arrays, Arrays]:
    arrays = CheckedArrays(file)
    trained = {name.removeprefix(TRAINED): arrays[name] for name in arrays if name.startswith(TRAINED)}
    return arrays, trained


def index_of(part: SegmentPart, name: str, rows: AnyRows | None) -> Index:
    """The index of a field of a segment as it can be used now. rows: of the field; None if it is surely open already."""
    file = part.indexes.get(name)
    if file is None:
        return Index(None, Calibration(()), "no index yet")
    with _lock:
        kept = _kept.setdefault(part.segment, {})
        known, found = kept.get(name, (None, None))
    if found is None or known != file:
        if rows is None:
            stored = part.field(name)
            assert stored is not None
            rows = rows_of(stored, part.segment.index(file).meta.get("metric", ""))
        found = _opened(part, file, rows)
        with _lock:
            kept[name] = file, found
    return found


def figures_of(part: SegmentPart, name: str) -> dict[str, float]:
    """What the backend tells of an index; nothing before its first search."""
    with _lock:
        file, found = _kept.get(part.segment, {}).get(name, (None, NOT_INDEXED))
    if file != part.indexes.get(name):
        return {}
    figures, listed = dict(getattr(found.searcher, "figures", {})), getattr(found.searcher, "listed", None)
    curve = next((each for each in found.calibration.curves if each.k == SHOWN and each.selectivity == 1), None)
    if listed is not None and curve is not None:
        figures |= {
            f"{RECALL_OF_LISTS} {listed(SHOWN, effort):,}": recall
            for effort, recall in zip(curve.efforts, curve.recalls, strict=True)
            if effort < 1
        }
    return figures


def advice_of(part: SegmentPart, name: str) -> str:
    """Why another index would serve its rows better; "" where all is well, and before its first search."""
    with _lock:
        file, found = _kept.get(part.segment, {}).get(name, (None, NOT_INDEXED))
    return said_by(found.searcher) if file == part.indexes.get(name) else ""


def said_by(searcher: Searcher | None) -> str:
    """The advice of a searcher."""
    return str(getattr(searcher, "advice", ""))


def _opened(part: SegmentPart, file: str, rows: AnyRows) -> Index:
    try:
        opened = part.segment.index(file)
        meta = opened.meta
        backend = registry.backend(meta["backend"])
        if backend.version != meta["version"]:
            return Index(None, Calibration(()), f"its index is of version {meta['version']} of {backend.name}")
        arrays, trained = _arrays(opened)
        searcher = backend.open(arrays, trained, rows, backend.params(**meta["params"]))
        if (advice := said_by(searcher)) and file not in _told:
            _told.add(file)
            _log.warning("an index serves its rows badly: %s", advice)
        return Index(searcher, Calibration.from_json(meta["calibration"]))
    except (VecdbError, Damaged, LookupError, ValueError, TypeError, AttributeError) as error:
        _log.warning("an index cannot be used, and is searched around until it is built again: %s", error)
        return Index(None, Calibration(()), f"its index cannot be used: {error}")
