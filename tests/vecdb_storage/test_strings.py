"""Strings end to end are the strings that a list would hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from vecdb_storage.strings import Texts, bytes_of, concat

lists = st.lists(st.binary(max_size=4), max_size=9)


@given(lists, st.data())
def test_texts_are_a_list_of_strings(strings: list[bytes], data: Any) -> None:
    texts = Texts.of(strings)
    assert list(texts) == strings
    assert [texts[at] for at in range(-len(strings), len(strings))] == strings * 2
    assert len(texts) == len(strings)
    assert bytes_of(texts) == bytes_of(strings)
    chosen = data.draw(st.slices(12))
    assert texts[chosen] == strings[chosen]
    rows = data.draw(st.lists(st.sampled_from(range(len(strings))), max_size=12)) if strings else []
    assert list(texts.take(np.array(rows, np.int64))) == [strings[row] for row in rows]


@given(st.lists(lists, max_size=4))
def test_parts_are_put_end_to_end(parts: list[list[bytes]]) -> None:
    assert list(concat([Texts.of(part) for part in parts])) == [each for part in parts for each in part]
