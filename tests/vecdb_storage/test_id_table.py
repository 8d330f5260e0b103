"""A table of ids finds what a dict finds, whatever hashes ids have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vecdb_storage import ids as ids_module
from vecdb_storage.ids import IdTable, Ints, Wanted


def hashed(keys: list[Any], different: int) -> np.ndarray:
    """Hashes of which so many are different: so many ids share one."""
    return np.array([(hash(key) % different) << 48 for key in keys], np.uint64)


@pytest.mark.parametrize("kind", ["int", "array", "str"])
@given(
    st.sets(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30), max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 30), max_size=20),
    st.sampled_from([1, 3, 1 << 15]),
)
def test_it_finds_what_a_dict_finds(kind: str, there: set[int], asked: list[int], different: int) -> None:
    stored: list[Any] = [str(each) for each in there] if kind == "str" else list(there)
    wanted: list[Any] = [*stored[::2], *(str(each) if kind == "str" else each for each in asked)]
    keys = Ints(np.array(wanted, np.int64)) if kind == "array" else wanted
    table = IdTable.build(ids_module.from_list(stored), hashed(stored, different))
    places, rows = table.find(Wanted(keys, hashed(wanted, different)))
    known = {key: row for row, key in enumerate(stored)}
    expected = [(place, known[key]) for place, key in enumerate(wanted) if key in known]
    assert list(zip(places.tolist(), rows.tolist(), strict=True)) == expected
