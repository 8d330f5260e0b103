"""Rows from all over a segment, of which something is learned. Plain functions, safe in any thread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..contract import Rows

_PIECE = 1 << 16  # rows that are looked at together: memory does not grow with a segment; a multiple of 64


def evenly(rows: Rows, most: int) -> tuple[npt.NDArray[np.int64], int]:
    """At most so many rows, evenly spread, ascending, of those that have a vector which is not zero; and how many those are."""
    starts = range(0, len(rows), _PIECE)
    counts = np.array([np.count_nonzero(_there(rows, start)) for start in starts], np.int64)
    before = np.cumsum(counts) - counts
    count = int(counts.sum())
    wanted = np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)
    chosen = np.searchsorted(before, wanted, "right") - 1
    found = [
        start + np.flatnonzero(_there(rows, start))[wanted[chosen == piece] - before[piece]]
        for piece, start in enumerate(starts)
        if counts[piece]
    ]
    return np.concatenate([np.zeros(0, np.int64), *found]), count


def _there(rows: Rows, start: int) -> npt.NDArray[np.bool_]:
    norms = rows.norms[start : start + _PIECE]
    there: npt.NDArray[np.bool_] = norms > 0
    if rows.present is not None:
        words = np.ascontiguousarray(rows.present[start // 64 : (start + _PIECE) // 64])
        there &= np.unpackbits(words.view(np.uint8), count=len(norms), bitorder="little").view(np.bool_)
    return there
