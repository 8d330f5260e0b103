"""What only clients can get wrong: writes in several parts, errors in the middle of them, and ids that are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vecdb import Dense
from vecdb.client import channel
from vecdb.client import collection as client
from vecdb.errors import AlreadyExists, DeadlineExceeded, InvalidInput


def test_an_error_in_a_stream_says_how_many_points_are_in(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CHUNK_BYTES", 64 << 10)
    docs = db.create_collection("docs", Dense(64))
    vectors = np.ones((1000, 64), np.float32)
    docs.upsert(ids=[900], vectors=vectors[:1])
    with pytest.raises(AlreadyExists) as caught:
        docs.insert(ids=range(1000), vectors=vectors)
    assert 0 < caught.value.applied <= 900  # whole parts, before that of the point that is there
    assert docs.count() == caught.value.applied + 1


def test_a_token_holds_for_all_parts_and_given_ids_stay(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CHUNK_BYTES", 64 << 10)
    docs = db.create_collection("docs", Dense(64))
    # All of the last part are given, fewer than were made in the whole.
    points = [{**({} if i < 600 else {"id": f"given {i}"}), "vector": np.ones(64), "payload": {"n": i}} for i in range(1000)]
    first = docs.upsert(points, token=b"once")
    assert docs.upsert(points, token=b"once") == first
    assert first[600:] == [f"given {i}" for i in range(600, 1000)]
    assert docs.count() == 1000
    assert [point.payload["n"] for point in docs.get(first)] == list(range(1000))


def test_several_parts_hold_what_one_would(db: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    monkeypatch.setattr(client, "CHUNK_BYTES", 256 << 10)
    monkeypatch.setattr(client, "_PIECE", 16 << 10)
    docs = db.create_collection("docs", {"a": Dense(32), "b": Dense(8, dtype="f16")})
    some = rng.standard_normal((3000, 32)).astype(np.float32)
    others = [None if i % 3 else row for i, row in enumerate(rng.integers(-5, 5, (3000, 8)) + 0.5)]
    payloads = [None if i % 5 else {"n": i} for i in range(3000)]
    assert docs.upsert(ids=range(3000), vectors={"a": some, "b": others}, payloads=payloads) == list(range(3000))
    for i, point in enumerate(docs.get(range(3000))):
        assert np.array_equal(point.vectors["a"], some[i])
        assert (point.vectors.get("b") is None) == (others[i] is None)
        assert others[i] is None or np.array_equal(point.vectors["b"], others[i])
        assert point.payload == (payloads[i] or {})


def test_a_wrong_row_of_a_large_write_is_named_and_nothing_is_sent(db: Any) -> None:
    docs = db.create_collection("docs", Dense(64))
    vectors = np.ones((50_000, 64), np.float32)
    vectors[49_999, 3] = np.nan
    with pytest.raises(InvalidInput, match="point 49999"):
        docs.upsert(ids=range(50_000), vectors=vectors)
    assert docs.count() == 0


def test_a_call_whose_time_is_over_is_not_sent(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = db.create_collection("docs", Dense(2))
    for kind in (channel.Blocking, channel.Waiting):
        monkeypatch.setattr(kind, "_once", lambda *_: pytest.fail("it was sent"))
    with pytest.raises(DeadlineExceeded, match="took longer than 1e-09 s"):
        docs.search([1, 2], timeout=1e-9)
