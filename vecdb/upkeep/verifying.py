"""What `verify` checks of an index beyond its checksums: that it is an index of its rows, and of no others.

Some rows are searched for: exactly, over the rows and over what the index holds of them, which must agree to the last
bit; and by the index, which must find most of them. Pure functions; safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from vecdb_index.flat.backend import exactly
from vecdb_storage.arrayfile import ArrayFile
from vecdb_storage.snapshot import SegmentPart

from ..schema import Unregistered, field_from_json
from ..search.calibrate import as_queries
from ..search.indexes import index_of

_SAMPLE, _K = 32, 10
_FEW = 4  # queries together, so that an exact search reads what the index holds and not the rows
_EFFORT = 0.3  # at which any index finds most rows by themselves, and none looks at all of them


def index_problems(schema: dict[str, Any], part: SegmentPart, name: str, file: ArrayFile) -> Iterator[str]:
    """What is wrong with the index of a field, whose bytes are as they were written."""
    if name not in schema["fields"] or part.field(name) is None:
        yield f"{file.path}: the segment has no field {name!r} for it to be an index of"
        return
    if isinstance(field_from_json(schema["fields"][name]).index, Unregistered):
        return  # only a process that knows the backend can tell
    found = index_of(part, name, None)
    searcher = found.searcher
    if searcher is None:
        yield f"{file.path}: {found.why}"
        return
    rows = searcher.rows
    stored = part.field(name)
    if stored is None or len(rows) != part.rows:
        yield f"{file.path}: it is of {len(rows)} rows, and the segment has {part.rows}"
        return
    there = np.flatnonzero(stored.has(np.arange(part.rows)))
    sample = np.random.default_rng(0).permutation(there)[:_SAMPLE]
    if not len(sample):
        return
    queries, k = as_queries(rows, sample), min(_K, len(there))
    true = exactly(rows).search(queries, k, allowed=rows.present).keys
    few = [
        searcher.exact.search(queries[start : start + _FEW], k, allowed=rows.present).keys
        for start in range(0, len(queries), _FEW)
    ]
    if not np.array_equal(true, np.concatenate(few)):
        yield f"{file.path}: what it holds of the rows is not what the rows are"
        return
    hits = searcher.search(queries, 1, _EFFORT, rows.present)
    if np.count_nonzero(hits.keys[:, 0] == true[:, 0]) < len(sample) / 2:
        yield f"{file.path}: it does not find the rows that it is an index of"
