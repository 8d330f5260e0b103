"""What a newcomer may type: each mistake gets one typed error that says what to do, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb import Dense, F, Point
from vecdb.errors import DimensionMismatch, InvalidInput, InvalidPayload, InvalidVector, VecdbError


@pytest.fixture
def docs(db: vecdb.Database) -> vecdb.Collection:
    docs = db.create_collection("docs", Dense(4))
    docs.upsert(ids=[1, 2], vectors=np.eye(4)[:2], payloads=[{"n": 1}, {"n": 2}])
    return docs


MISTAKES: list[tuple[Callable[[Any], Any], type[VecdbError], str]] = [
    (lambda d: d.recommend([1], group_by="n"), InvalidInput, "no groups"),
    (lambda d: d.upsert([Point(3, [1, 2, 3, 4])]), InvalidInput, "point 3: Point.vectors maps fields"),  # type: ignore[arg-type]
    (lambda d: d.upsert(ids=[3], vectors=[[1, 2, 3, 4]], payloads={"a": 1}), InvalidInput, "a payload column is a list"),
    (lambda d: d.upsert(ids=[3], vectors=[[1, 2, 3, 4]], payloads=5), InvalidInput, "payloads are a list of dicts"),
    (lambda d: d.upsert(ids=[3], vectors=[[1, None, 3, 4]]), InvalidVector, "point 3, field 'vector'.*at 1 it holds None"),
    (lambda d: d.update_payload([1], 5), InvalidInput, "payload is a dict"),
    (lambda d: d.update_payload([1], {"a": float("nan")}), InvalidPayload, "^field 'a'"),
    (lambda d: d.update_payload([1, 2], [{}, {"a": float("nan")}]), InvalidPayload, "^point 2, field 'a'"),
    (lambda d: d.update_payload(where={}, payload={"a": 1}), InvalidInput, "the filter is empty"),
    (lambda d: d.delete(where={}), InvalidInput, "the filter is empty"),
    (lambda d: d.search([1, 0, 0, 0], group_by=5), InvalidInput, "group_by is a payload path"),
    (lambda d: d.search([1, 0, 0, 0], group_by="n", group_size=0), InvalidInput, "group_size must be"),
    (lambda d: d.search([1, 0, 0, 0], score_threshold="x"), InvalidInput, "score_threshold must be a number"),
    (lambda d: d.search([1, 0, 0, 0], score_threshold=float("nan")), InvalidInput, "score_threshold must be a number"),
    (lambda d: d.search([1, 0, 0, 0], with_vectors=["zz"]), InvalidInput, "field 'zz': no such field"),
    (lambda d: d.search_batch([[1, 0, 0, 0], [1, 2]]), DimensionMismatch, "query 1, field 'vector': got 2 numbers"),
    (lambda d: d.search([1e-45] * 4), InvalidVector, "query 0.*no direction"),
    (lambda d: d.upsert(ids=[3], vectors=[[1e-45, 0, 0, 0]]), InvalidVector, "shorter than 1.2e-38"),
    (lambda d: d.scroll(limit=1.5), InvalidInput, "limit must be a whole number"),
    (lambda d: d.scroll(limit=-1), InvalidInput, "limit must be a whole number"),
    (lambda d: d.scroll(with_vectors=["zz"]), InvalidInput, "field 'zz': no such field"),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_a_mistake_is_named(docs: vecdb.Collection, number: int) -> None:
    act, kind, message = MISTAKES[number]
    before = [(p.id, p.payload) for p in docs.scroll()]
    with pytest.raises(kind, match=message):
        act(docs)
    assert [(p.id, p.payload) for p in docs.scroll()] == before


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_vectors_whose_distances_would_overflow_are_refused(db: vecdb.Database, metric: Any) -> None:
    docs = db.create_collection("docs", Dense(2, metric=metric))
    docs.upsert(ids=[1, 2], vectors=[[3e18, 0], [0, -4e18]])
    assert all(np.isfinite(hit.score) for hit in docs.search([-4e18, 0], k=2))
    with pytest.raises(InvalidVector, match="point 3, field 'vector': its length, 1e\\+21"):
        docs.upsert(ids=[3], vectors=[[1e21, 0]])
    with pytest.raises(InvalidVector, match="query 0.*scale it down"):
        docs.search([1e38, 1e38])


def test_a_users_own_text_key_is_not_replaced_by_the_text(db: vecdb.Database) -> None:
    notes = db.create_collection("notes", embed="tfidf")
    for payloads in ([{"text": "mine"}], {"text": ["mine"]}):
        with pytest.raises(InvalidInput, match="taken by the text itself"):
            notes.upsert(texts=["the cat"], payloads=payloads)
    notes.upsert(texts=["the cat"], payloads=[{"text": "the cat"}])
    assert notes.count() == 1


def test_databases_and_collections_are_containers(db: vecdb.Database, docs: vecdb.Collection) -> None:
    assert ("docs" in db, "nope" in db, list(db), len(db)) == (True, False, ["docs"], 1)
    assert (1 in docs, 7 in docs, "a" in docs, len(docs)) == (True, False, False, 2)
    assert docs.recommend(1, k=1).ids == [2]
    db.drop_collection("docs")
    assert "dropped" in repr(docs)


def test_a_path_that_cannot_be_a_database_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the path is empty"):
        vecdb.open("")
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="is a file; a database is a directory"):
        vecdb.open(tmp_path / "file")


def test_a_filter_for_everything_must_say_so(docs: vecdb.Collection) -> None:
    assert docs.delete(where=F("n").exists()) == 2
