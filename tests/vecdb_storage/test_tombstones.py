"""Tombstones say of each row what a set of dead rows says, and never change."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vecdb_storage.tombstones import CHUNK_ROWS, Tombstones, from_chunks

ROWS = 3 * CHUNK_ROWS + 70
_some = st.lists(
    st.one_of(st.integers(0, ROWS - 1), st.integers(CHUNK_ROWS - 70, CHUNK_ROWS + 70), st.integers(ROWS - 70, ROWS - 1)),
    max_size=40,
)


def holds(tombstones: Tombstones, dead: set[int], asked: list[int]) -> None:
    rows = np.array(asked, np.int64)
    assert tombstones.is_dead(rows).tolist() == [row in dead for row in asked]
    assert tombstones.count == len(dead)
    live = tombstones.live
    if not dead:
        assert live is None
    else:
        assert live is not None and len(live) == -(-ROWS // 64)
        flags = np.unpackbits(live.view(np.uint8), bitorder="little")
        assert set(np.flatnonzero(flags == 0).tolist()) == dead | set(range(ROWS, len(flags)))


@given(st.lists(_some, max_size=5), _some)
def test_they_are_as_a_set_of_rows(steps: list[list[int]], others: list[int]) -> None:
    """Rows may come in any order, twice, and when they are dead already."""
    made: list[tuple[Tombstones, set[int]]] = [(Tombstones(ROWS), set())]
    for step in steps:
        before, dead = made[-1]
        after = before.with_dead(np.array(step, np.int64))
        made.append((after, dead | set(step)))
        changed = {row // CHUNK_ROWS for row in set(step) - dead}
        assert changed <= after.changed_since(before).keys() <= {row // CHUNK_ROWS for row in step}
    asked = [row for step in steps for row in step] + others
    for tombstones, dead in made:
        holds(tombstones, dead, asked)
    last, dead = made[-1]
    holds(from_chunks(ROWS, last.chunks), dead, asked)
