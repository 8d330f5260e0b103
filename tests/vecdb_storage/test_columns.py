"""Typed columns: what goes in comes out, and what is no JSON is refused by name."""

from __future__ import annotations

import enum
import uuid
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vecdb_storage import column_build
from vecdb_storage.batch import Batch
from vecdb_storage.column_build import NO_COLUMNS, build, from_raw, prepare, prepare_by_key
from vecdb_storage.columns import MISSING, NO_TIME, open_columns
from vecdb_storage.errors import InvalidPayload
from vecdb_storage.memtable import Block, Memtable, gather
from vecdb_storage.payloads import encode, join_path, parse, split_path


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": float("nan")}, "a"),
        ({"a": {"b": float("inf")}}, "a.b"),
        ({"a": [1, 2, float("nan")]}, "a"),
        ({"a": [[float("nan")]]}, "a"),
        ({"a": [{"b": float("nan")}]}, "a"),
        ({"a": 2**63}, "a"),
        ({"a": [-(2**63) - 1]}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": b"bytes"}, "a"),
        ({"a": uuid.uuid4()}, "a"),
        ({"a": Colour.RED}, "a"),
        ({"a": {"x.y": object()}}, "a.x\\.y"),
        ({"a": "\ud800"}, "a"),
        ({"a": ["\ud800"]}, "a"),
        ({"a": {1: 2}}, "a"),
        ({"a": [{1: 2}]}, "a"),
    ],
)
def test_what_json_cannot_say_is_refused_by_row_and_path(payload: dict[str, Any], path: str) -> None:
    for before in ([], [{"a": 1}, {}], [None, {"b": [1]}], [{"a": 1}] * 20):
        with pytest.raises(InvalidPayload) as caught:
            prepare([*before, payload, {"a": "later"}])
        assert (caught.value.point, caught.value.field) == (len(before), path)
        with pytest.raises(InvalidPayload) as caught:  # as for the log, without columns
            prepare([*before, payload, {"a": "later"}], columns=False)
        assert (caught.value.point, caught.value.field) == (len(before), path)


@pytest.mark.parametrize("payload", ["text", 3, [1], {1: 2}, {"\ud800": 1}])
def test_a_payload_is_an_object_with_string_keys(payload: Any) -> None:
    with pytest.raises(InvalidPayload) as caught:
        prepare([{}, payload])
    assert caught.value.point == 1


def test_depth_and_size_are_limited() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    for payload in (deep, {"a": nested}):
        with pytest.raises(InvalidPayload, match="64 levels"):
            prepare([payload])
    with pytest.raises(InvalidPayload, match="1,048,576") as caught:
        prepare([{}, {"a": "x" * (1 << 20)}])
    assert caught.value.point == 1
    assert len(prepare([{"a": "x" * ((1 << 20) - 8)}]).json[0]) == 1 << 20


def test_dates_numpy_scalars_and_tuples_are_stored_as_plain_json() -> None:
    payload = {
        "when": datetime(2024, 1, 2, 3, tzinfo=UTC), "naive": datetime(2024, 1, 2, 3), "day": date(2024, 1, 2),
        "i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "s": np.str_("x"), "t": (1, 2), "n": {"d": date(2024, 1, 2)},
    }  # fmt: skip
    assert parse(prepare([payload]).json[0]) == {
        "when": "2024-01-02T03:00:00Z", "naive": "2024-01-02T03:00:00Z", "day": "2024-01-02",
        "i": 3, "f": 0.5, "b": True, "s": "x", "t": [1, 2], "n": {"d": "2024-01-02"},
    }  # fmt: skip


keys = st.sampled_from(["a", "b", "c.d", "\\", "ключ", ""])
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
)
objects = st.dictionaries(
    keys, st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=8)
)


def unicode(value: Any) -> bool:
    try:
        repr(value).encode()
        encode({"v": value})
    except (UnicodeEncodeError, TypeError, ValueError):
        return False
    return True


@settings(max_examples=300, deadline=None)
@given(st.lists(st.none() | objects, max_size=6).filter(unicode))
def test_columns_hold_every_value_at_its_row(rows: list[Any]) -> None:
    arrays, meta = build(rows)
    columns = open_columns(meta, arrays, len(rows))
    expected: dict[tuple[str, ...], list[Any]] = {}

    def visit(value: Any, path: tuple[str, ...], row: int) -> None:
        if path:
            expected.setdefault(path, [MISSING] * len(rows))[row] = (value,)
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, (*path, key), row)

    for row, payload in enumerate(rows):
        if payload is not None:
            visit(payload, (), row)
    assert {split_path(p) for p in columns.paths()} == set(expected)
    assert all(split_path(join_path(p)) == p for p in expected)
    kind_of = {type(None): 1, bool: 2, int: 3, float: 4, str: 5, list: 6, dict: 7}
    for path, cells in expected.items():
        column = columns.column(join_path(path))
        assert column is not None
        kinds = [0 if cell is MISSING else kind_of[type(cell[0])] for cell in cells]
        assert list(column.kinds if column.kind is None else [column.kind] * len(rows)) == kinds
        for kind, name, read in ((2, "bools", bool), (3, "ints", int), (4, "floats", float)):
            own = [cell[0] for cell in cells if cell is not MISSING and type(cell[0]) is read]
            if own:
                assert [read(v) for v in column.array(name)] == own, kind
        strings = [cell[0] for cell in cells if cell is not MISSING and type(cell[0]) is str]
        if strings:
            for code, text in zip(column.array("codes").tolist(), strings, strict=True):
                assert column.text.find(text) == (code, True)


def test_times_are_kept_beside_the_dictionary() -> None:
    arrays, meta = build([{"t": "2024-01-02"}, {"t": "later"}, {"t": "1970-01-01T00:00:01Z"}])
    column = open_columns(meta, arrays, 3).column("t")
    assert column is not None
    assert column.text.times is not None
    assert column.text.times[column.array("codes")].tolist() == [1_704_153_600_000_000, NO_TIME, 1_000_000]


plain = st.dictionaries(
    st.sampled_from(["a", "b.c", "ü", ""]),
    st.sampled_from(
        [st.text(max_size=5), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()]
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(form=plain, sizes=st.lists(st.integers(9, 14), min_size=1, max_size=3), data=st.data())
def test_values_that_were_kept_make_the_columns_that_their_json_makes(form: Any, sizes: list[int], data: Any) -> None:
    batches = [[{key: data.draw(of) for key, of in form.items()} for _ in range(size)] for size in sizes]
    prepared = [prepare(batch, columns=False) for batch in batches]
    everything = [payload for batch in batches for payload in batch]
    assert [parse(text) for each in prepared for text in each.json] == everything
    if any(each.raw is None for each in prepared):
        return  # a text or number that had to be looked at closely
    made = from_raw([each.raw for each in prepared if each.raw is not None], len(everything))
    assert made is not None
    arrays, meta = build(everything)
    assert meta == made[1]
    assert arrays.keys() == made[0].keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, made[0][name])
        assert array.dtype == made[0][name].dtype


odd = st.one_of(
    st.text(alphabet='",\\ä\0{}\n', max_size=4),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.none(),
    st.just([1]),
)


def _of_type(kind: type, value: Any) -> bool:
    return type(value) is kind


@settings(max_examples=300, deadline=None)
@given(
    keys=st.lists(st.text(alphabet='a":\\,.ä', max_size=3), unique=True, max_size=3),
    count=st.integers(0, 14), mixed=st.booleans(), columns=st.booleans(), data=st.data(),
)  # fmt: skip
def test_payloads_that_come_key_by_key_are_as_those_that_come_one_by_one(
    keys: list[str], count: int, mixed: bool, columns: bool, data: Any
) -> None:
    values: dict[str, list[Any]] = {}
    for key in keys:
        first = data.draw(odd)
        alike = odd if mixed else odd.filter(partial(_of_type, type(first)))
        values[key] = [first, *(data.draw(alike) for _ in range(count - 1))][:count]
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)] or [None] * count

    def told(call: Any) -> Any:
        try:
            made = call()
        except InvalidPayload as error:
            return str(error)
        kept = None if made.raw is None else {key: list(column) for key, column in made.raw.items()}
        arrays = None if made.columns is None else {name: array.tolist() for name, array in made.columns[0].items()}
        return list(made.json), kept, arrays, None if made.columns is None else made.columns[1]

    by_key = told(lambda: prepare_by_key(values, count, columns=columns))
    assert by_key == told(lambda: prepare(rows, columns=columns))


def test_kept_values_of_different_form_make_no_columns_together() -> None:
    some, other = prepare([{"a": 1}] * 9, columns=False).raw, prepare([{"a": "x"}] * 9, columns=False).raw
    assert some is not None and other is not None
    assert from_raw([some, other], 18) is None
    assert prepare([{"a": 1}] * 8 + [{"a": "x"}], columns=False).raw is None
    assert prepare([{"a": 1}] * 8 + [{"b": 1}], columns=False).raw is None
    wide = prepare([{"t": f"{i} " + "long text " * 30} for i in range(20)], columns=False).raw
    assert wide is not None
    made = from_raw([wide], 20)
    assert made is not None and made[1]["wide"] == ["t"] and made[1]["columns"] == []


@given(
    st.lists(
        st.one_of(st.text(max_size=6), st.sampled_from(["", "a", "a\0", "\0", "ä", "2020-01-01", "𝄞", "z" * 65])), min_size=1
    )
)
def test_many_strings_are_sorted_elsewhere_into_the_same_columns(texts: list[str]) -> None:
    payloads = [{"t": text} for text in texts]
    few = build(payloads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_build, "_MANY", 1)
        many = build(payloads)
    assert few[1] == many[1]
    assert few[0].keys() == many[0].keys()
    for name, array in few[0].items():
        assert array.dtype == many[0][name].dtype
        np.testing.assert_array_equal(array, many[0][name])


@given(st.lists(
    st.fixed_dictionaries({"text": st.text(max_size=5), "n": st.integers(-5, 5), "x": st.floats(-2, 2), "yes": st.booleans()}),
    min_size=9, max_size=40,
))  # fmt: skip
def test_the_quick_way_of_ordinary_payloads_makes_the_same_columns(payloads: list[dict[str, Any]]) -> None:
    """Large batches take it when they are written, small ones when they are flushed; `build` is the walk of each payload."""
    quick, walked = prepare(payloads, columns=True).columns, build(payloads)
    assert quick is not None
    assert quick[1] == walked[1]
    assert quick[0].keys() == walked[0].keys()
    for name, array in walked[0].items():
        assert array.dtype == quick[0][name].dtype
        assert np.array_equal(array, quick[0][name])


def test_no_payloads_have_no_columns() -> None:
    assert build([None] * 20) == NO_COLUMNS


tricky = st.recursive(
    st.text(alphabet='},{"\\n\n[', max_size=6) | st.none() | st.integers(0, 9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='},{"', max_size=3), inner, max_size=3),
    max_leaves=5,
)


@example([{"a": [{}, {}, {}]}, None, *[{}] * 8])  # as many separators as if there were no null
@given(st.lists(st.none() | st.dictionaries(st.text(alphabet='},{"a', max_size=3), tricky, max_size=3), max_size=12))
def test_payloads_are_told_apart_whatever_they_look_like_inside(payloads: list[Any]) -> None:
    assert list(prepare(payloads).json) == [encode(payload) for payload in payloads]


@given(
    st.lists(st.lists(st.sampled_from(["", "a", "ä", "𝄞b", "z" * 65, "a\0"]), min_size=9, max_size=12), min_size=1, max_size=4)
)
def test_kept_texts_of_any_form_join(batches: list[list[str]]) -> None:
    raws = [prepare([{"t": text} for text in batch], columns=False).raw for batch in batches]
    everything = [{"t": text} for batch in batches for text in batch]
    made, walked = from_raw([raw for raw in raws if raw is not None], len(everything)), build(everything)
    assert made is not None
    assert made[1] == walked[1]
    for name, array in walked[0].items():
        np.testing.assert_array_equal(array, made[0][name])


@settings(max_examples=60, deadline=None)
@given(form=plain, sizes=st.lists(st.integers(1, 14), min_size=1, max_size=4), data=st.data())
def test_a_flush_has_the_columns_of_its_payloads(form: Any, sizes: list[int], data: Any) -> None:
    """Batches that kept their values, batches that came by the log, and rows that have died meanwhile."""
    memtable, first, seq = Memtable({}), 0, 0
    for size in sizes:
        payloads = [{key: data.draw(of) for key, of in form.items()} for _ in range(size)]
        made = prepare(payloads, columns=False)
        logged = data.draw(st.booleans())
        batch = Batch(range(first, first + size), {}, made.json, raw=None if logged else made.raw, owned=True)
        seq += 1
        if logged:
            memtable.append(batch, seq, new=True)
        else:
            memtable.blocks.append(Block.adopt(batch.packed_up(), {}, seq))
        for row in data.draw(st.sets(st.integers(0, size - 1), max_size=2)):
            block = memtable.blocks[-1]
            memtable.kill((len(memtable.blocks) - 1) << 32 | (block.rows - size + row), seq)
        first += size
    gathered = gather(memtable.blocks, seq, {})
    if gathered.columns is None:
        return
    arrays, meta = build([parse(text) for text in gathered.packed.payloads])
    assert gathered.columns[1] == meta
    assert gathered.columns[0].keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, gathered.columns[0][name])


def test_a_few_logged_rows_do_not_cost_a_flush_the_values_that_were_kept() -> None:
    memtable, payloads = Memtable({}), [{"t": f"{i:03}", "n": i} for i in range(50)]
    for start, stop in ((0, 20), (20, 40)):
        made = prepare(payloads[start:stop], columns=False)
        batch = Batch(range(start, stop), {}, made.json, raw=made.raw, owned=True).packed_up()
        memtable.blocks.append(Block.adopt(batch, {}, 1))
    memtable.append(Batch(range(40, 50), {}, [encode(payload) for payload in payloads[40:]]), 2, new=True)
    memtable.kill(3, 3)
    columns_of_rows = gather(memtable.blocks, 2, {}).columns
    assert columns_of_rows is not None
    assert columns_of_rows[1] == build(payloads)[1]
    for name, array in build(payloads)[0].items():
        np.testing.assert_array_equal(array, columns_of_rows[0][name])
    assert gather(memtable.blocks, 3, {}).columns is None, "of most rows the JSON has to be read: then of all, in one walk"
