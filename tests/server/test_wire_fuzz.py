"""Whatever bytes come, a status goes back that says what was wrong; and whatever is sent arrives as it was."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from served import Served, Wire, fill

from vecdb import Dense, F, errors
from vecdb.filters import parse
from vecdb.hits import Group, Hit
from vecdb.points import Point
from vecdb.server.config import config_of
from vecdb.server.serve import Server
from vecdb.wire import convert, failures, messages

INNER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
NAMES = ["docs", "texts", "a", "", "x" * 130]
FEW = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Wire]]:
    path: Path = tmp_path_factory.mktemp("fuzz") / "db"
    server = Server(config_of(db=str(path), port=0, threads=1, recall_probe=0.0))
    server.start()
    served = Served(server)
    refill(served)
    yield served, served.wire()
    served.close()


def refill(served: Served) -> None:
    with served.connect() as db:
        if "docs" not in db:
            fill(db, "docs", 30)
        if "texts" not in db:
            db.create_collection("texts", embed="tfidf").upsert(ids=["a", "b"], texts=["one two", "two three"])


def check(shared: tuple[Served, Wire], name: str, *data: bytes) -> None:
    served, wire = shared
    status = wire.status(name, *data, timeout=60)
    assert status not in INNER, f"{name} {status}: {messages.METHODS[name].request.FromString(data[0])}"
    assert served.empty()


@pytest.mark.parametrize("name", list(messages.METHODS))
@FEW
@given(data=st.lists(st.binary(max_size=120), min_size=1, max_size=3))
def test_random_bytes_get_a_status(shared: Any, name: str, data: list[bytes]) -> None:
    check(shared, name, *(data if messages.METHODS[name].client_streams else data[:1]))


INTEGERS = [0, 1, 2, 3, 7, 10, 1000, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63)]
FLOATS = [0.0, 1.0, 0.5, -1.0, 1e-30, 1e30, 3.4e38, math.inf, -math.inf, math.nan]
TEXTS = [
    *NAMES, "vector", "n", "n.a", "\\", "a\\.b", ".", "n >= 3", "n in [1, 2]", "(" * 500, "not " * 3000 + "n == 1", "n == 'x",
    "2024-02-29T12:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "flat", "hnsw", "auto", "tfidf",
    "openai:x", "one two", "\x00", "é", "💥",
]  # fmt: skip
BYTES = [
    b"", b"\x00" * 16, b"{}", b'{"n": 1}', b'{"m": 24}', b'{"m": -1}', b'{"m": 1e99}', b"[1]", b"[" * 3000, b'{"a": NaN}',
    b"\xff\xfe", b"1", b'{"m": 1000000000}', np.ones(4, "<f4").tobytes(), np.full(4, np.nan, "<f4").tobytes(),
]  # fmt: skip


def filled_in(kind: Any, chance: random.Random, depth: int = 0) -> Any:
    """A message of that kind, valid as bytes, of values that are likely to be wrong."""
    made = kind()
    for field in made.DESCRIPTOR.fields:
        if (field.name != "target" and chance.random() < 0.5) or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            if value.message_type is not None:
                inner = filled_in(message_factory.GetMessageClass(value.message_type), chance, depth + 1)
                getattr(made, field.name)[chance.choice(TEXTS)].CopyFrom(inner)
            continue
        values = [value_of(field, chance, depth) for _ in range(chance.randint(0, 3) if field.is_repeated else 1)]
        if field.is_repeated:
            getattr(made, field.name).extend(values)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(values[0])
        else:
            setattr(made, field.name, values[0])
    return made


def value_of(field: Any, chance: random.Random, depth: int) -> Any:
    kinds = FieldDescriptor
    if field.message_type is not None:
        if field.message_type.name == "Target":
            return messages.Target(collection=chance.choice(["docs", "docs", "texts", "a"]))
        return filled_in(message_factory.GetMessageClass(field.message_type), chance, depth + 1)
    if field.type == kinds.TYPE_STRING:
        return chance.choice(TEXTS)
    if field.type == kinds.TYPE_BYTES:
        return chance.choice(BYTES)
    if field.type == kinds.TYPE_BOOL:
        return chance.random() < 0.5
    if field.type in (kinds.TYPE_FLOAT, kinds.TYPE_DOUBLE):
        return chance.choice(FLOATS)
    if field.type == kinds.TYPE_ENUM:
        return chance.randint(0, 7)
    low, high = {
        kinds.TYPE_UINT32: (0, 2**32 - 1), kinds.TYPE_UINT64: (0, 2**64 - 1), kinds.TYPE_INT32: (-(2**31), 2**31 - 1),
    }.get(field.type, (-(2**63), 2**63 - 1))  # fmt: skip
    return min(max(chance.choice(INTEGERS), low), high)


@pytest.mark.parametrize("name", list(messages.METHODS))
@FEW
@given(chance=st.randoms(use_true_random=True))
def test_messages_of_odd_values_get_a_status(shared: Any, name: str, chance: random.Random) -> None:
    for _ in range(10):
        check(shared, name, filled_in(messages.METHODS[name].request, chance).SerializeToString())


@pytest.mark.parametrize("name", list(messages.METHODS))
@FEW
@given(chance=st.randoms(use_true_random=True))
def test_valid_messages_that_were_damaged_get_a_status(shared: Any, name: str, chance: random.Random) -> None:
    for _ in range(5):
        whole = bytearray(filled_in(messages.METHODS[name].request, chance).SerializeToString() + b"\x00")
        for _ in range(chance.randint(1, 4)):
            whole[chance.randrange(len(whole))] = chance.randrange(256)
        check(shared, name, bytes(whole[: chance.randint(0, len(whole))]))


@pytest.mark.parametrize("name", ["Points/SetCheckpoints", "Points/Upsert"])
def test_a_checkpoint_that_fits_no_key_is_refused_and_nothing_is_written(shared: Any, name: str) -> None:
    served, wire = shared
    refill(served)
    request = messages.METHODS[name].request(target=messages.Target(collection="docs"))
    request.checkpoints.add(token=b"x" * 401, value=b"1")
    if name == "Points/Upsert":
        request.columns.CopyFrom(convert.to_columns([Point(9_999, {"vector": np.ones(4, np.float32)}, {})], with_payload=True))
    assert isinstance(wire.error(name, request), errors.InvalidInput)
    ids = messages.GetRequest(target=messages.Target(collection="docs"), ids=messages.Ids(numbers=[9_999]))
    assert name != "Points/Upsert" or wire.ask("Points/Get", ids)[0].missing == [0]


def test_the_server_serves_on(shared: Any) -> None:
    served, wire = shared
    refill(served)
    found = wire.ask("Points/Count", messages.CountRequest(target=messages.Target(collection="texts")))[0]
    assert found.count >= 0
    assert served.inside == 0
    assert served.snapshots_gone()


# -- there and back ------------------------------------------------------------------------------------------

KEYS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.text(max_size=20)))


@MANY
@given(KEYS)
def test_ids_arrive_as_they_were(keys: list[Any]) -> None:
    assert convert.from_ids(convert.to_ids(keys)) == keys
    assert [convert.from_id(convert.to_id(key)) for key in keys] == keys


DTYPES = st.sampled_from([np.float32, np.float16, np.int8, np.float64])


@MANY
@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9))), st.data())
def test_vectors_arrive_as_they_were(rows: Any, data: Any) -> None:
    same = convert.from_matrix(convert.to_matrix(rows))
    assert same.dtype == rows.dtype
    assert same.tobytes() == rows.tobytes()
    vector = convert.from_vector(convert.to_vector(rows[0]))
    assert vector.tobytes() == rows[0].tobytes()
    present = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))))
    some = convert.from_matrix(convert.to_matrix(rows, present))
    assert [row is not None for row in some] == present.tolist()
    assert all(row.tobytes() == rows[at].tobytes() for at, row in enumerate(some) if row is not None)


SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
    st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda at: at.replace(tzinfo=UTC)),
)  # fmt: skip
PATHS = st.sampled_from(["n", "a.b", "a\\.b", "x y"])
ORDERED = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8))


def leaf(path: str, op: int, value: Any, values: list[Any], ordered: Any) -> Any:
    f = F(path)
    return [
        lambda: f == value, lambda: f != value, lambda: f < ordered, lambda: f <= ordered, lambda: f > ordered,
        lambda: f >= ordered, lambda: f.in_(values), lambda: f.contains(value), lambda: f.startswith(str(ordered)),
        lambda: f.exists(), lambda: f.is_null(), lambda: f == None,  # noqa: E711
    ][op]()  # fmt: skip


FILTERS = st.recursive(
    st.builds(leaf, PATHS, st.integers(0, 11), SCALARS, st.lists(SCALARS, min_size=1, max_size=3), ORDERED),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]), st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=6,
)  # fmt: skip


@MANY
@given(FILTERS)
def test_filters_arrive_as_they_were(where: Any) -> None:
    wire = messages.Filter.FromString(convert.to_filter(where).SerializeToString())
    assert repr(convert.from_filter(wire)) == repr(parse(where))


@MANY
@given(st.one_of(st.none(), SCALARS))
def test_literals_arrive_as_they_were(value: Any) -> None:
    assert convert.from_literal(convert.to_literal(value)) == value


PAYLOADS = st.dictionaries(
    st.text(max_size=5), st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=5)), max_size=3
)
VECTORS = st.dictionaries(st.sampled_from(["vector", "b"]), arrays.arrays(np.float32, 3, elements=st.floats(-10, 10, width=32)))


@MANY
@given(st.lists(st.tuples(st.integers(-5, 5), st.floats(-10, 10), PAYLOADS, VECTORS), max_size=4))
def test_hits_and_points_arrive_as_they_were(rows: list[Any]) -> None:
    hits = [Hit(key, score, payload, vectors) for key, score, payload, vectors in rows]
    made = messages.SearchReply()
    convert.add_hits(hits, made.hits)
    for hit, back in zip(hits, [convert.from_hit(each, with_payload=True) for each in made.hits], strict=True):
        assert (hit.id, hit.score, hit.payload) == (back.id, back.score, back.payload)
        assert {n: v.tolist() for n, v in hit.vectors.items()} == {n: v.tolist() for n, v in back.vectors.items()}
    group = convert.to_group(Group("x", hits))
    assert (group.value.text, len(group.hits)) == ("x", len(hits))
    points = [Point(f"p{at}", vectors, payload) for at, (_, _, payload, vectors) in enumerate(rows)]
    for back in (
        [convert.from_point(convert.to_point(point)) for point in points],
        convert.from_columns(convert.to_columns(points, with_payload=True), with_payload=True),
    ):
        for point, same in zip(points, back, strict=True):
            assert (point.id, point.payload) == (same.id, same.payload)
            assert {n: v.tolist() for n, v in point.vectors.items()} == {n: v.tolist() for n, v in same.vectors.items()}


@MANY
@given(
    st.builds(
        Dense, st.integers(1, 65535), metric=st.sampled_from(["cosine", "ip", "l2"]), dtype=st.sampled_from(["f32", "f16"]),
        index=st.sampled_from(["auto", "flat", "hnsw"]),
    )
)  # fmt: skip
def test_fields_arrive_as_they_were(field: Dense) -> None:
    assert convert.from_field(convert.to_field("vector", field)) == field


def test_figures_arrive_as_they_were(shared: Any) -> None:
    from vecdb_storage.metrics import Metrics

    served, _ = shared
    here = served.server.db.info()
    there = convert.from_figures(
        messages.DatabaseStats.FromString(convert.to_figures(here, messages.DatabaseStats).SerializeToString()), Metrics
    )
    assert there == here


def made(kind: Any) -> errors.VecdbError:
    """An error of that class, with attributes."""
    more: dict[Any, dict[str, Any]] = {
        errors.InvalidFile: {"file": "f.csv", "row": 3, "column": "c"},
        errors.InvalidFilter: {"field": "n", "position": 4},
        errors.Overloaded: {"retry_after": 0.25},
        errors.NewerFormat: {"needs": "2.0"},
    }
    try:
        error = kind("what was wrong", **more.get(kind, {}))
    except TypeError:
        error = kind("what was wrong", file="f")
    error.mark, error.path = 7, Path("/x")
    return error  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_arrive_with_class_message_and_attributes(name: str) -> None:
    kind = getattr(errors, name)
    error = made(kind)
    told = messages.Error.FromString(failures.to_error(error, "id-1").SerializeToString())
    trailers = [(failures.KEY, told.SerializeToString()), (failures.PUSHBACK, "250")]
    back = failures.from_status(failures.code_of(error), told.message, trailers)
    assert type(back) is kind
    assert str(back) == str(error)
    assert back.request_id == "id-1"
    for attribute, value in vars(error).items():
        if not attribute.startswith("_"):
            assert getattr(back, attribute) == (str(value) if isinstance(value, Path) else value), attribute
    if kind is not errors.VecdbError:
        assert failures.code_of(error) is not grpc.StatusCode.UNKNOWN, "every class has a code of its own kind"


@MANY
@given(st.binary(max_size=80), st.sampled_from(list(grpc.StatusCode)))
def test_trailers_of_anybody_make_an_error(data: bytes, code: grpc.StatusCode) -> None:
    assert isinstance(failures.from_status(code, None, [(failures.KEY, data)]), errors.VecdbError)
