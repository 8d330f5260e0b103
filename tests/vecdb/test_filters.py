"""Filters: columns, the plain evaluator and the oracle below agree on every expression and payload."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vecdb_storage.column_build import build
from vecdb_storage.columns import open_columns
from vecdb_storage.payloads import encode, join_path
from vecdb_storage.payloads import parse as parse_payload

import vecdb
from vecdb import Dense, F
from vecdb.errors import InvalidFilter
from vecdb.filters import Expression, dict_of, evaluate, parse, predicate_of, text_of
from vecdb.filters.expression import And, Compare, Contains, Exists, In, IsNull, Not, Or, StartsWith

# -- an evaluator straight from the definition, sharing nothing with the engine ---------------------------

GONE = object()


def split(path: str) -> list[str]:
    keys, plain = [""], False
    for c in path:
        if plain:
            keys[-1] += c
            plain = False
        elif c == "\\":
            plain = True
        elif c == ".":
            keys.append("")
        else:
            keys[-1] += c
    return keys


def instant(text: Any) -> Fraction | None:
    if not isinstance(text, str):
        return None
    for form in ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S"):
        try:
            parsed = datetime.strptime(text, form)
        except ValueError:
            continue
        if len(text) < 10:  # strptime takes 2024-1-2, RFC 3339 does not
            return None
        parsed = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        return Fraction((parsed - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
    return None


def rank(value: Any) -> tuple[str, Any] | None:
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, int | float):
        return ("number", Fraction(value))
    if isinstance(value, str):
        return ("string", value)
    return None


def compare(op: str, value: Any, wanted: Any) -> bool | None:
    if isinstance(wanted, datetime):
        left, right = instant(value), Fraction((wanted - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
        if left is None:
            return None
    else:
        one, two = rank(value), rank(wanted)
        if one is None or two is None or one[0] != two[0]:
            return None
        left, right = one[1], two[1]
    return {
        "==": left == right,
        "!=": left != right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[op]


def any_of(results: list[bool | None]) -> bool | None:
    return True if True in results else None if None in results else False


def oracle(node: Expression, payload: Any) -> bool | None:
    if isinstance(node, And):
        results = [oracle(p, payload) for p in node.parts]
        return False if False in results else None if None in results else True
    if isinstance(node, Or):
        return any_of([oracle(p, payload) for p in node.parts])
    if isinstance(node, Not):
        result = oracle(node.part, payload)
        return None if result is None else not result
    value: Any = payload
    for key in split(node.path):  # type: ignore[attr-defined]
        value = value[key] if isinstance(value, dict) and key in value else GONE
    if isinstance(node, Compare):
        return compare(node.op, value, node.value)
    if isinstance(node, In):
        return any_of([value is None if v is None else compare("==", value, v) for v in node.values])
    if isinstance(node, Contains):
        if isinstance(value, list):
            return any(e is None if node.value is None else compare("==", e, node.value) is True for e in value)
        return node.value in value if isinstance(value, str) and isinstance(node.value, str) else None
    if isinstance(node, StartsWith):
        return value[: len(node.prefix)] == node.prefix if isinstance(value, str) else None
    if isinstance(node, Exists):
        return value is not GONE
    assert isinstance(node, IsNull)
    return value is None


# -- payloads and expressions -----------------------------------------------------------------------------

KEYS = ["a", "b", "c.d", "e\\", "and", "$x", "ключ"]
TIMES = [
    "2024-01-02",
    "2024-01-02T03:04:05Z",
    "2024-01-02T05:04:05+02:00",
    "2024-01-02T03:04:05.5Z",
    "2024-02-31",
    "2024-1-2",
]
NUMBERS = [
    0,
    1,
    -1,
    2,
    2.0,
    2.5,
    -0.0,
    2**53,
    2**53 + 1,
    float(2**53),
    2**63 - 1,
    -(2**63),
    9.3e18,
    -9.3e18,
    1e300,
    5e-324,
]
scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["", "x", "xy", "y", "é", "𝄞", "\uffff", *TIMES]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
payloads = st.none() | st.dictionaries(st.sampled_from(KEYS), values, max_size=4)
paths = st.lists(st.sampled_from(KEYS), min_size=1, max_size=2).map(join_path).map(F)
times = st.datetimes(datetime(2023, 12, 31), datetime(2024, 1, 4), timezones=st.just(UTC)) | st.just(
    datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
)
wanted = scalars.filter(lambda v: v is not None) | times
ordered = wanted.filter(lambda v: not isinstance(v, bool))
conditions = st.one_of(
    st.builds(lambda p, v: p == v, paths, wanted | st.none()), st.builds(lambda p, v: p != v, paths, wanted | st.none()),
    st.builds(lambda p, v: p < v, paths, ordered), st.builds(lambda p, v: p <= v, paths, ordered),
    st.builds(lambda p, v: p > v, paths, ordered), st.builds(lambda p, v: p >= v, paths, ordered),
    st.builds(lambda p, v: p.in_(v), paths, st.lists(wanted | st.none(), max_size=4)),
    st.builds(lambda p, v: p.in_(v), paths, st.lists(st.integers(-3, 3), min_size=9, max_size=12)),
    st.builds(lambda p, v: p.contains(v), paths, wanted | st.none()),
    st.builds(lambda p, v: p.startswith(v), paths, st.sampled_from(["", "x", "xy", "2024", "é"])),
    st.builds(lambda p: p.exists(), paths), st.builds(lambda p: p.is_null(), paths),
)  # fmt: skip
expressions = st.recursive(
    conditions,
    lambda inner: (
        st.builds(lambda a, b: a & b, inner, inner) | st.builds(lambda a, b: a | b, inner, inner) | inner.map(lambda e: ~e)
    ),
    max_leaves=5,
)


def rows_of(words: np.ndarray, rows: int) -> list[bool]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert not bits[rows:].any(), "padding bits must be zero"
    return [bool(b) for b in bits[:rows]]


def by_columns(node: Expression, rows: list[Any], **options: int) -> list[bool]:
    arrays, meta = build(rows, **options)
    columns = open_columns(json.loads(json.dumps(meta)), arrays, len(rows))
    return rows_of(evaluate(node, columns, lambda row: parse_payload(encode(rows[row]))), len(rows))


@settings(max_examples=1200, deadline=None)
@given(st.lists(payloads, max_size=8), expressions)
def test_columns_and_the_plain_evaluator_agree_with_the_definition(rows: list[Any], node: Expression) -> None:
    expected = [oracle(node, row) for row in rows]
    holds = predicate_of(node)
    assert [holds(parse_payload(encode(row))) for row in rows] == expected
    assert by_columns(node, rows) == [result is True for result in expected]


@settings(max_examples=200, deadline=None)
@given(st.lists(payloads, max_size=8), expressions)
def test_paths_beyond_the_limit_are_found_in_the_json(rows: list[Any], node: Expression) -> None:
    assert by_columns(node, rows, max_paths=1) == [oracle(node, row) is True for row in rows]


@settings(max_examples=500, deadline=None)
@given(expressions)
def test_text_and_dict_forms_read_back_to_the_same_expression(node: Expression) -> None:
    assert parse(text_of(node)) == node
    assert parse(json.loads(json.dumps(dict_of(node)))) == node
    names = {"F": F, "datetime": __import__("datetime")}
    assert eval(repr(node), names) == node


@settings(max_examples=300, deadline=None)
@given(st.lists(payloads, min_size=1, max_size=6), expressions, expressions)
def test_the_laws_of_three_valued_logic(rows: list[Any], a: Expression, b: Expression) -> None:
    assert by_columns(~(a & b), rows) == by_columns(~a | ~b, rows)
    assert by_columns(~(a | b), rows) == by_columns(~a & ~b, rows)
    assert by_columns(Not(Not(a)), rows) == by_columns(a, rows)
    assert not any(by_columns(a & ~a, rows))


def test_wide_texts_have_no_column_and_are_still_found() -> None:
    rows = [{"text": f"{i} " + "long " * 60, "n": i} for i in range(100)] + [{"text": None}, {}]
    _, meta = build(rows)
    assert meta["wide"] == ["text"]
    assert by_columns(F("text").startswith("7 "), rows) == [i == 7 for i in range(102)]
    assert sum(by_columns(F("text").contains("9 long"), rows)) == 10
    assert by_columns(F("text").is_null(), rows) == [i == 100 for i in range(102)]


def test_a_missing_year_is_neither_equal_nor_unequal() -> None:
    rows = [{"year": 2020}, {"year": 2021}, {"year": "2020"}, {"year": None}, {}, None]
    assert by_columns(F("year") == 2020, rows) == [True] + [False] * 5
    assert by_columns(F("year") != 2020, rows) == by_columns(~(F("year") == 2020), rows) == [False, True] + [False] * 4
    assert by_columns((F("year") != 2020) | ~F("year").exists(), rows) == [False, True, False, False, True, True]


def test_true_is_not_one() -> None:
    assert (F("a") == True) != (F("a") == 1)  # noqa: E712
    assert hash(F("a").in_([True])) is not None
    assert F("a").in_([True]) != F("a").in_([1])
    assert by_columns(F("a") == 1, [{"a": True}, {"a": 1}, {"a": 1.0}]) == [False, True, True]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("year >= 2020 and lang == 'en'", (F("year") >= 2020) & (F("lang") == "en")),
        ("year = 2020 or not lang in ('en', \"de\")", (F("year") == 2020) | ~F("lang").in_(["en", "de"])),
        ("a.b <> -1.5e3 AND NOT (x exists)", (F("a.b") != -1500.0) & ~F("x").exists()),
        ("`a b`.`and` is not null", ~F("a b.and").is_null()),
        ("exists(a.b) and t contains 'it\\'s'", F("a.b").exists() & F("t").contains("it's")),
        ("t > date '2024-01-02'", F("t") > date(2024, 1, 2)),
        (
            "flag == true and other != false and z == null",
            (F("flag") == True) & (F("other") != False) & F("z").is_null(),
        ),  # noqa: E712
        ("x not in (1, null)", ~F("x").in_([1, None])),
    ],
)
def test_texts_mean_what_they_say(text: str, same: Expression) -> None:
    assert parse(text) == same


@pytest.mark.parametrize(
    ("form", "same"),
    [
        ({"year": {"$gte": 2020}}, F("year") >= 2020),
        (
            {"year": {"$gte": 2020, "$lt": 2022}, "lang": "en"},
            (F("year") >= 2020) & (F("year") < 2022) & (F("lang") == "en"),
        ),
        ({"$or": [{"a": 1}, {"b": {"$nin": [1, 2]}}]}, (F("a") == 1) | ~F("b").in_([1, 2])),
        ({"a": {"$not": {"$contains": "x"}}}, ~F("a").contains("x")),
        ({"a": {"$exists": False}}, ~F("a").exists()),
        ({"a": None}, F("a").is_null()),
        ({"a": {"$gt": {"$date": "2024-01-02"}}}, F("a") > date(2024, 1, 2)),
        ({}, None),
    ],
)
def test_dicts_mean_what_they_say(form: dict[str, Any], same: Expression | None) -> None:
    assert parse(form) == same


@pytest.mark.parametrize(
    "wrong",
    [
        "year >=", "year >= 'x", "year ~ 3", "(year > 1", "year > 1)", "and", "", "year in 1", "x is 3", "t > date '2024-13-01'",
        "x > true", "x startswith 3", "1 < x", {"$nor": []}, {"a": {"$regex": "x"}}, {"a": {"b": 1}}, {"a": [1]}, {"$and": []},
        {"a": {"$in": "x"}}, {"a": {"$exists": 1}}, {"a": float("nan")}, {"a": {"$gt": None}}, {"a": {"$gt": {"$date": "x"}}},
        {1: 2}, {"a": {}}, ["x"], 3, F("x"), {"a": 2**63}, "x == 9223372036854775808",
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidFilter) as caught:
        parse(wrong)
    assert len(str(caught.value)) > 10


def test_errors_in_texts_name_the_place() -> None:
    with pytest.raises(InvalidFilter, match="at 5") as caught:
        parse("year ~ 3")
    assert caught.value.position == 5


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    for deep in ("(" * 5000 + "a == 1" + ")" * 5000, "not " * 5000 + "a == 1"):
        with pytest.raises(InvalidFilter, match="nested"):
            parse(deep)
    form: dict[str, Any] = {"a": 1}
    for _ in range(5000):
        form = {"$not": form}
    with pytest.raises(InvalidFilter, match="nested"):
        parse(form)
    long = F("a") == 0
    for i in range(1, 500):
        long = long | (F("a") == i)
    assert by_columns(long, [{"a": 3}, {"a": 700}]) == [True, False]


def test_python_operators_that_cannot_be_overloaded_say_so() -> None:
    with pytest.raises(TypeError, match="& | ~"):
        _ = (F("a") == 1) and (F("b") == 2)
    with pytest.raises(TypeError):
        _ = 1 < F("a") < 3
    for wrong in (
        lambda: F("a") > None,
        lambda: F("a") < True,
        lambda: F("a") == [1],
        lambda: F(""),
        lambda: F("a").in_("x"),
    ):
        with pytest.raises(InvalidFilter):
            wrong()


def test_numpy_scalars_and_dates_are_literals() -> None:
    assert (F("a") >= np.int64(3)) == (F("a") >= 3)
    assert (F("a") == np.float32(0.5)) == (F("a") == 0.5)
    assert (F("t") == date(2024, 1, 2)) == (F("t") == datetime(2024, 1, 2, tzinfo=UTC))


def test_what_is_kept_of_rows_in_memory_stays_right_as_they_grow(db: vecdb.Database) -> None:
    """Bitmaps of blocks that fill up, of snapshots from before, and of rows that die, beside an evaluation of each row."""
    docs = db.create_collection("docs", Dense(2, metric="l2"))
    rng, model = np.random.default_rng(3), {}
    where = [F("a") < 3, (F("a") >= 2) & (F("b") == "x"), ~(F("b") == "y")]
    scrolls = []
    for step in range(60):
        ids = rng.integers(0, 6000, int(rng.integers(1, 300)))
        ids = np.unique(ids)
        rows = [{"a": int(rng.integers(10)), "b": "xy"[int(rng.integers(2))], "long": "z" * 100} for _ in ids]
        docs.upsert(ids=ids, vectors=rng.standard_normal((len(ids), 2)), payloads=rows)
        model.update(zip(ids.tolist(), rows, strict=True))
        if step % 7 == 0:
            for gone in list(model)[:5]:
                docs.delete([gone])
                del model[gone]
        if step % 10 == 0:
            scrolls.append((docs.scroll(where[0]), {key for key, row in model.items() if row["a"] < 3}))
        true = [
            {key for key, row in model.items() if row["a"] < 3},
            {key for key, row in model.items() if row["a"] >= 2 and row["b"] == "x"},
            {key for key, row in model.items() if row["b"] != "y"},
        ]
        for one, expected in zip(where, true, strict=True):
            assert {point.id for point in docs.scroll(one)} == expected
            assert docs.count(one) == len(expected)
    for scroll, expected in scrolls:
        assert {point.id for point in scroll} == expected
