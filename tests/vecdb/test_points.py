"""What users hand in: every form gives the same points, and what is wrong is refused by point and field, all or nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
import vecdb_storage.store as store_module

import vecdb
from vecdb import Dense, Point
from vecdb.errors import (
    AlreadyExists,
    DimensionMismatch,
    DuplicateId,
    InvalidId,
    InvalidInput,
    InvalidPayload,
    InvalidVector,
    NotFound,
    ReadOnly,
)


@pytest.fixture
def docs(db: vecdb.Database) -> vecdb.Collection:
    return db.create_collection("docs", Dense(3))


def everything(docs: vecdb.Collection) -> dict[Any, Any]:
    return {p.id: (p.vector.tolist(), p.payload) for p in docs.scroll(with_vectors=True)}


IDS = ["a", "b", "c"]
VECTORS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.5]]
PAYLOADS = [{"year": 2020, "tags": ["x"]}, {"year": 2021}, {"year": 2022, "author": {"name": "Ada"}}]
EXPECTED = dict(zip(IDS, zip(VECTORS, PAYLOADS, strict=True), strict=True))


def test_every_form_of_input_gives_the_same_points(db: vecdb.Database) -> None:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    rows = [{"id": i, "vector": v, **p} for i, v, p in zip(IDS, VECTORS, PAYLOADS, strict=True)]
    vectors64, vectors32 = np.array(VECTORS), np.array(VECTORS, np.float32)
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(vectors32.ravel()), 3)
    table = pa.table({"id": IDS, "vector": fixed, **{k: [p.get(k) for p in PAYLOADS] for k in ("year", "tags", "author")}})
    forms: dict[str, Any] = {
        "lists": {"ids": IDS, "vectors": VECTORS, "payloads": PAYLOADS},
        "float64": {"ids": np.array(IDS), "vectors": vectors64, "payloads": tuple(PAYLOADS)},
        "fortran": {"ids": tuple(IDS), "vectors": np.asfortranarray(vectors32), "payloads": PAYLOADS},
        "by field": {"ids": IDS, "vectors": {"vector": vectors32}, "payloads": iter(PAYLOADS)},
        "dicts": [{"id": i, "vector": v, "payload": p} for i, v, p in zip(IDS, VECTORS, PAYLOADS, strict=True)],
        "points": (Point(i, {"vector": np.array(v)}, p) for i, v, p in zip(IDS, VECTORS, PAYLOADS, strict=True)),
        "arrow": table,
        "arrow lists": pa.Table.from_pylist(rows, schema=table.schema.set(1, pa.field("vector", pa.list_(pa.float64())))),
        "chunked": pa.concat_tables([table.slice(0, 1), table.slice(1)]),
        "record batch": table.to_batches()[0],
        "polars": pl.DataFrame(rows),
    }
    for name, form in forms.items():
        docs = db.create_collection(name.replace(" ", "-"), Dense(3))
        ids = docs.upsert(**form) if isinstance(form, dict) else docs.upsert(form)
        assert ids == IDS, name
        assert everything(docs) == EXPECTED, name
    frame = pd.DataFrame({"id": IDS, "vector": VECTORS, "year": [2020, 2021, 2022]})
    docs = db.create_collection("pandas", Dense(3))
    docs.upsert(frame)
    assert {i: p["year"] for i, (_, p) in everything(docs).items()} == {"a": 2020, "b": 2021, "c": 2022}
    columns = db.create_collection("columns", Dense(3))
    columns.upsert(ids=IDS, vectors=VECTORS, payloads={"year": np.array([1, 2, 3]), "t": ["x", None, "z"]})
    assert everything(columns)["b"] == ([4, 5, 6], {"year": 2, "t": None})


def test_missing_ids_are_generated_and_sort_by_time(docs: vecdb.Collection) -> None:
    ids = docs.upsert(vectors=VECTORS) + docs.upsert([{"vector": [1, 1, 1]}])
    assert len(set(ids)) == 4
    assert ids == sorted(ids)
    assert all(len(i) == 26 for i in ids)
    assert [p.id for p in docs.scroll()] == ids


def test_insert_refuses_what_exists_and_upsert_replaces(docs: vecdb.Collection) -> None:
    docs.insert(ids=IDS, vectors=VECTORS, payloads=PAYLOADS)
    with pytest.raises(AlreadyExists, match="'b'"):
        docs.insert(ids=["d", "b"], vectors=VECTORS[:2])
    assert everything(docs) == EXPECTED
    docs.upsert(ids=["b"], vectors=[[9, 9, 9]])
    assert everything(docs) == {**EXPECTED, "b": ([9, 9, 9], {})}
    assert [p.id for p in docs.scroll()] == ["a", "c", "b"], "scroll is in the order of writing"


WRONG: list[tuple[Any, type[Exception], Any, Any]] = [
    # (arguments, error, point, field)
    ({"ids": ["x", "y"], "vectors": [[1, 2, 3], [1, 2]]}, DimensionMismatch, "y", "vector"),
    ({"ids": ["x"], "vectors": [[1, 2, 3, 4]]}, DimensionMismatch, "x", "vector"),
    ({"ids": ["x", "y"], "vectors": [[1, 2, 3], [1, float("nan"), 3]]}, InvalidVector, "y", "vector"),
    ({"ids": ["x", "y"], "vectors": np.array([[1, 2, 3], [1, np.inf, 3]])}, InvalidVector, "y", "vector"),
    ({"ids": ["x"], "vectors": [[1, 2, 1e300]]}, InvalidVector, "x", "vector"),
    ({"ids": ["x", "y"], "vectors": [[1, 2, 3], [0, 0, 0]]}, InvalidVector, "y", "vector"),
    ({"ids": ["x"], "vectors": [["1", "2", "3"]]}, InvalidVector, "x", "vector"),
    ({"ids": ["x"], "vectors": [[1, None, 3]]}, InvalidVector, "x", "vector"),
    ({"ids": ["x"], "vectors": np.array([[True, False, True]])}, InvalidVector, None, "vector"),
    ({"ids": ["x"], "vectors": np.ones((1, 3), complex)}, InvalidVector, "x", "vector"),
    ({"ids": ["x", "y"], "vectors": [[1, 2, 3]]}, InvalidInput, None, "vector"),
    ({"ids": ["x"], "vectors": [1, 2, 3]}, InvalidInput, None, "vector"),
    ({"ids": ["x"], "vectors": {"other": [[1, 2, 3]]}}, InvalidInput, None, "other"),
    ({"ids": ["x", "y", "x"], "vectors": np.ones((3, 3))}, DuplicateId, "x", None),
    ({"ids": ["x", 1], "vectors": np.ones((2, 3))}, InvalidId, 1, None),
    ({"ids": [2**63], "vectors": np.ones((1, 3))}, InvalidId, 2**63, None),
    ({"ids": np.array([2**63], np.uint64), "vectors": np.ones((1, 3))}, InvalidId, 2**63, None),
    ({"ids": [1.5], "vectors": np.ones((1, 3))}, InvalidId, 1.5, None),
    ({"ids": [True], "vectors": np.ones((1, 3))}, InvalidId, True, None),
    ({"ids": [None], "vectors": np.ones((1, 3))}, InvalidId, None, None),
    ({"ids": ["x", ""], "vectors": np.ones((2, 3))}, InvalidId, "", None),
    ({"ids": ["ü" * 257], "vectors": np.ones((1, 3))}, InvalidId, "ü" * 64, None),
    ({"ids": ["\ud800"], "vectors": np.ones((1, 3))}, InvalidId, "\ud800", None),
    ({"ids": "abc", "vectors": np.ones((3, 3))}, InvalidId, None, None),
    (
        {"ids": ["x", "y"], "vectors": np.ones((2, 3)), "payloads": [{}, {"a": {"b": float("nan")}}]},
        InvalidPayload,
        "y",
        "a.b",
    ),
    ({"ids": ["x", "y"], "vectors": np.ones((2, 3)), "payloads": [{}, {"a": {1, 2}}]}, InvalidPayload, "y", "a"),
    ({"ids": ["x"], "vectors": np.ones((1, 3)), "payloads": ["text"]}, InvalidPayload, "x", None),
    ({"ids": ["x"], "vectors": np.ones((1, 3)), "payloads": [{"a": "y" * (1 << 20)}]}, InvalidPayload, "x", None),
    ({"ids": ["x"], "vectors": np.ones((1, 3)), "payloads": [{}, {}]}, InvalidInput, None, None),
    ({"ids": ["x"]}, InvalidInput, None, None),
    ({}, InvalidInput, None, None),
]


@pytest.mark.parametrize(("arguments", "error", "point", "field"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_named_and_nothing_is_written(
    docs: vecdb.Collection, arguments: dict[str, Any], error: type[Exception], point: Any, field: Any
) -> None:
    docs.upsert(ids=IDS, vectors=VECTORS, payloads=PAYLOADS)
    with pytest.raises(error) as caught:
        docs.upsert(**arguments)
    assert (caught.value.point, caught.value.field) == (point, field)  # type: ignore[attr-defined]
    assert type(caught.value) is error
    assert everything(docs) == EXPECTED


def test_wrong_points_are_refused(docs: vecdb.Collection) -> None:
    for points in ([{"id": 1}], [{"id": 1, "vektor": [1, 2, 3]}], [3], "text", 5, {"vector": [1, 2, 3]}, ["text"]):
        with pytest.raises(InvalidInput):
            docs.upsert(points)
    with pytest.raises(InvalidInput):
        docs.upsert([{"id": 1, "vector": [1, 2, 3]}], ids=[1])
    assert docs.count() == 0


def test_i8_takes_whole_numbers_and_f16_refuses_overflow(db: vecdb.Database) -> None:
    i8, f16 = db.create_collection("i8", Dense(2, dtype="i8")), db.create_collection("f16", Dense(2, dtype="f16"))
    i8.upsert(ids=[1, 2], vectors=[[-128, 127], [1.0, 2.0]])
    assert i8.get([1])[0].vector.dtype == np.int8  # type: ignore[union-attr]
    for vector in ([0.5, 1], [128, 0], [-129, 1], [np.nan, 1]):
        with pytest.raises(InvalidVector) as caught:
            i8.upsert(ids=[3], vectors=[vector])
        assert caught.value.point == 3
    with pytest.raises(InvalidVector, match="65,504"):
        f16.upsert(ids=[1], vectors=[[70_000, 1]])
    f16.upsert(ids=[1], vectors=[[65_504, 1]])
    assert f16.search([65_504, 1])[0].score == pytest.approx(1)


def test_an_iterable_commits_chunk_by_chunk_and_says_how_far_it_came(
    docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecdb.points._CHUNK_POINTS", 10)

    def points() -> Any:
        for i in range(25):
            yield {"id": i, "vector": [1, 2, 3 if i != 23 else float("nan")]}

    with pytest.raises(InvalidVector) as caught:
        docs.upsert(points())
    assert caught.value.applied == docs.count() == 20  # type: ignore[attr-defined]
    assert docs.upsert({"id": i, "vector": [1, 2, 3]} for i in range(25)) == list(range(25))
    assert docs.count() == 25


@pytest.mark.parametrize("bytes_of_level0", [0, 1 << 40])
def test_updates_of_payloads(docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch, bytes_of_level0: int) -> None:
    monkeypatch.setattr(store_module, "LEVEL0_BYTES", bytes_of_level0)
    docs.upsert(ids=IDS, vectors=VECTORS, payloads=PAYLOADS)
    assert docs.update_payload(["a", "nope"], {"year": 1, "new": None}) == 1
    assert docs.update_payload("b", {"only": True}, replace=True) == 1
    assert docs.update_payload(where="year > 2000", remove=["author"]) == 1
    assert docs.update_payload(["a", "b"], [{"n": 1}, {"n": 2}]) == 2
    expected = {"a": {"year": 1, "tags": ["x"], "new": None, "n": 1}, "b": {"only": True, "n": 2}, "c": {"year": 2022}}
    for _ in range(2):
        assert {i: p for i, (_, p) in everything(docs).items()} == expected
        assert {i: v for i, (v, _) in everything(docs).items()} == dict(zip(IDS, VECTORS, strict=True))
        docs.flush()
    for wrong in ({"a": float("nan")}, ["x"], [{"a": 1}, {"b": 2}]):
        with pytest.raises(InvalidInput):
            docs.update_payload(["a"], wrong)
    with pytest.raises(InvalidInput):
        docs.update_payload(["a"])
    with pytest.raises(InvalidPayload, match="bytes"):
        docs.update_payload(["a"], {"big": "x" * (1 << 20)})
    assert {i: p for i, (_, p) in everything(docs).items()} == expected


def test_get_delete_and_count(docs: vecdb.Collection) -> None:
    docs.upsert(ids=IDS, vectors=VECTORS, payloads=PAYLOADS)
    found = docs.get(["c", "nope", "a", "c"])
    assert [p and p.id for p in found] == ["c", None, "a", "c"]
    assert found[0].vector.tolist() == [7, 8, 9.5]  # type: ignore[union-attr]
    assert docs.get([1, 2]) == [None, None], "an id of the other kind does not exist"
    assert docs.get("a", with_vectors=False, with_payload=False)[0] == Point("a", {}, None)
    assert docs.delete(["a", "nope", "a"]) == 1
    assert docs.delete(where={"year": {"$gte": 2022}}) == 1
    assert (docs.count(), docs.count("year == 2021"), len(docs)) == (1, 1, 1)
    for wrong in ({}, {"ids": ["a"], "where": "year > 1"}):
        with pytest.raises(InvalidInput):
            docs.delete(**wrong)


def test_dates_in_payloads_are_found_by_filters(docs: vecdb.Collection) -> None:
    when = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    docs.upsert(ids=["a", "b"], vectors=VECTORS[:2], payloads=[{"at": when}, {"at": "2024-05-06T07:08:10Z"}])
    for flushed in (False, True):
        if flushed:
            docs.flush()
        assert docs.count(vecdb.F("at") > when) == 1
        assert docs.count(vecdb.F("at") >= when) == 2
        assert docs.count("at < date '2024-05-06T09:08:10+02:00'") == 1
    assert docs.get(["a"])[0].payload == {"at": "2024-05-06T07:08:09Z"}  # type: ignore[union-attr]


def test_collections_are_created_renamed_and_dropped(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", Dense(3))
    docs.upsert(ids=[1], vectors=[[1, 2, 3]])
    with pytest.raises(AlreadyExists):
        db.create_collection("docs", Dense(4))
    db.create_collection("other", Dense(2))
    with pytest.raises(AlreadyExists):
        db.rename_collection("docs", "other")
    db.rename_collection("docs", "texts")
    assert db.collections() == ["other", "texts"]
    assert docs.name == "texts"
    assert db.collection("texts").count() == docs.count() == 1
    iterator = docs.scroll()
    db.drop_collection("texts")
    assert [p.id for p in iterator] == [1], "a scroll that has begun goes on"
    with pytest.raises(NotFound, match="other"):
        db.collection("texts")
    with pytest.raises(NotFound):
        docs.count()
    with pytest.raises(NotFound):
        docs.upsert(ids=[1], vectors=[[1, 2, 3]])
    for name in ("", "a/b", "../x", "-x", "x" * 129, 3, None):
        with pytest.raises(InvalidInput):
            db.create_collection(name, Dense(3))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput):
        db.create_collection("x")
    for wrong in (
        {"dim": 0},
        {"dim": 65_536},
        {"dim": 3.0},
        {"dim": True},
        {"dim": 3, "metric": "dot"},
        {"dim": 3, "dtype": "f64"},
    ):
        with pytest.raises(InvalidInput):
            Dense(**wrong)  # type: ignore[arg-type]


def test_closing_and_reading_only(tmp_path: Any) -> None:
    db = vecdb.open(tmp_path / "db")
    docs = db.create_collection("docs", Dense(3))
    docs.upsert(ids=IDS, vectors=VECTORS, payloads=PAYLOADS)
    reader = vecdb.open(tmp_path / "db", read_only=True)
    assert everything(reader.collection("docs")) == EXPECTED
    for write in (
        lambda: reader.create_collection("x", Dense(2)),
        lambda: reader.drop_collection("docs"),
        lambda: reader["docs"].upsert(ids=["d"], vectors=[[1, 2, 3]]),
        lambda: reader["docs"].delete(["a"]),
        lambda: reader["docs"].update_payload(["a"], {"x": 1}),
        lambda: reader["docs"].flush(),
    ):
        with pytest.raises(ReadOnly):
            write()
    db.close()
    db.close()
    with pytest.raises(vecdb.errors.Closed):
        docs.count()
    with pytest.raises(vecdb.errors.Closed):
        db.collections()
    assert reader["docs"].count() == 3
    reader.close()
    with vecdb.open(tmp_path / "db") as again:
        assert everything(again["docs"]) == EXPECTED
    with pytest.raises(InvalidInput):
        vecdb.open(":memory:", read_only=True)
    with pytest.raises(InvalidInput):
        vecdb.open(tmp_path / "db", threads=0)


def test_two_memory_databases_are_two() -> None:
    with vecdb.open(":memory:") as one, vecdb.open(":memory:") as two:
        one.create_collection("a", Dense(2))
        assert two.collections() == []
