"""Columns merged by their arrays are those that the payloads themselves would make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vecdb_storage import column_merge
from vecdb_storage.column_build import build
from vecdb_storage.column_merge import merge_columns
from vecdb_storage.columns import ColumnSet, open_columns
from vecdb_storage.payloads import encode

Payloads = list[dict[str, Any] | None]

keys = st.sampled_from(["a", "b", "c.d"])
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "x", "ä", "a\0", "2024-01-02", "1970-01-01T00:00:01Z", "𝄞"]),
)  # fmt: skip
objects = st.dictionaries(
    keys, st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=8)
)


def opened(payloads: Payloads) -> ColumnSet:
    arrays, meta = build(payloads)
    return open_columns(meta, arrays, len(payloads))


def by_path(built: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """path -> (meta, arrays by name)."""
    arrays, meta = built
    found = {}
    for number, described in enumerate(meta["columns"]):
        prefix = f"col.{number}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        # A kind that all rows share need not be said once only, but it may.
        own.setdefault("kinds", np.full(described["rows"], described["kind"] or 0, np.uint8))
        found[described["path"]] = ({key: value for key, value in described.items() if key not in ("path", "kind")}, own)
    return found


def assert_same(made: tuple[dict[str, Any], dict[str, Any]], expected: Payloads) -> None:
    ours, theirs = by_path(made), by_path(build(expected))
    assert ours.keys() == theirs.keys()
    for path, (meta, arrays) in theirs.items():
        assert ours[path][0] == meta
        assert ours[path][1].keys() == arrays.keys()
        for name, array in arrays.items():
            assert ours[path][1][name].dtype == array.dtype
            np.testing.assert_array_equal(ours[path][1][name], array)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.lists(st.none() | objects, max_size=6), min_size=1, max_size=3), data=st.data())
def test_merged_columns_are_those_of_the_rows_that_are_kept(parts: list[Payloads], data: st.DataObject) -> None:
    kept = [sorted(data.draw(st.sets(st.integers(0, len(p) - 1)))) if p else [] for p in parts]
    cat = [part[row] for part, rows in zip(parts, kept, strict=True) for row in rows]
    order = data.draw(st.permutations(range(len(cat))))
    chosen: Sequence[tuple[ColumnSet, Any]] = [(opened(p), np.array(r, np.int64)) for p, r in zip(parts, kept, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_merge, "_PIECE", data.draw(st.sampled_from([1, 2, 8192])))
        assert_same(merge_columns(chosen, None), cat)
        assert_same(merge_columns(chosen, np.array(order, np.int64)), [cat[at] for at in order])


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(st.lists(st.text(max_size=3) | st.sampled_from(["z" * 65, "a\0", "ß"]), min_size=1), min_size=1, max_size=4),
    piece=st.integers(1, 4),
)
def test_dictionaries_of_many_strings_are_merged_piece_by_piece(parts: list[list[str]], piece: int) -> None:
    payloads: list[Payloads] = [[{"t": text} for text in texts] for texts in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_merge, "_PIECE", piece)
        merged = merge_columns([(opened(each), np.arange(len(each))) for each in payloads], None)
    assert_same(merged, [payload for each in payloads for payload in each])


def test_what_one_part_cannot_tell_has_no_column() -> None:
    wide: Payloads = [{"text": f"{i} " + "long " * 60, "n": i} for i in range(9)]
    short: Payloads = [{"text": "short", "n": 1}] * 9
    everything = np.arange(9)
    arrays, meta = merge_columns([(opened(wide), everything), (opened(short), everything)], None)
    assert meta["wide"] == ["text"] and meta["complete"]
    columns = open_columns(meta, arrays, 18)
    assert not columns.covers("text") and columns.covers("n") and columns.covers("other")
    # A part of which nothing is kept has no say.
    _, meta = merge_columns([(opened(wide), everything[:0]), (opened(short), everything)], None)
    assert meta["wide"] == [] and {each["path"] for each in meta["columns"]} == {"text", "n"}
    many: Payloads = [{f"k{i}": i for i in range(300)}]
    arrays, meta = merge_columns([(opened(many), np.arange(1)), (opened([{"z": 1}]), np.arange(1))], None)
    columns = open_columns(meta, arrays, 2)
    assert not columns.complete and columns.column("k3") is not None
    assert not columns.covers("z"), "the first part may have it in one of the paths that got no column"
    assert not columns.covers("k299")


def test_strings_of_dropped_rows_are_in_no_array() -> None:
    rows: Payloads = [{"t": "secret", "l": ["hidden", "seen"]}, {"t": "seen", "gone": 1}]
    arrays, meta = merge_columns([(opened(rows), np.array([1]))], None)
    assert [each["path"] for each in meta["columns"]] == ["t", "gone"]
    assert b"secret" not in b"".join(array.tobytes() for array in arrays.values())
    assert b"hidden" not in b"".join(array.tobytes() for array in arrays.values()) + encode(meta)
