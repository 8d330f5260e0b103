"""A write that carries a token is applied once, however often and whenever it is sent, and always answered as the first time."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.growing as growing_module
import vecdb_storage.once as once_module
import vecdb_storage.store as store_module
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from vecdb_storage.batch import Batch
from vecdb_storage.commit import CommitQueue
from vecdb_storage.errors import AlreadyExists, Corruption, DiskFull, NotFound
from vecdb_storage.merge import Merger
from vecdb_storage.once import KEPT, Token
from vecdb_storage.registry import open_store
from vecdb_storage.store import Store
from vecdb_storage.ulid import series, ulids

import vecdb
import vecdb.points as points_module
from vecdb import Dense, F
from vecdb.errors import InvalidInput, ReadOnly
from vecdb.index import HNSW, Flat

Rows = Callable[..., Batch]
Schema = dict[str, Any]
HOUR = 3_600_000


class Clock:
    """Milliseconds, as the entries of tokens have them; set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(once_module, "clock", clock)
    return clock


@pytest.fixture
def docs(db: vecdb.Database) -> vecdb.Collection:
    return db.create_collection("docs", Dense(2, metric="l2"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(tmp_path / "db")
    yield store
    if store.closed is None:
        store.close()


def entries(store: Store) -> tuple[int, int]:
    """How many tokens the store holds, and how many times of tokens."""
    with store.environment.read() as txn:
        keys = [store.environment.keys(txn, "checkpoint", bytes(16) + kind, 1 << 30) for kind in (b"once.", b"time.")]
    return len(keys[0]), len(keys[1])


def files(store: Store) -> set[str]:
    return {path.name for path in (store.path / "segments").rglob("*") if path.is_file()}


def purged(store: Store) -> None:
    """The next commit that carries a token purges."""
    store.tokens._due = 0.0


# -- every operation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["log", "growing", "level0"])
@pytest.mark.parametrize("reopened", [False, True])
def test_points_that_are_sent_again_are_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, reopened: bool
) -> None:
    if way == "level0":
        monkeypatch.setattr(store_module, "LEVEL0_BYTES", 0)
    if way == "growing":
        monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    db = vecdb.open(tmp_path / "db")
    docs = db.create_collection("docs", Dense(2, metric="l2"))
    first = {"ids": [1, 2], "vectors": [[1, 1], [2, 2]], "payloads": [{"n": 1}, {"n": 2}], "token": b"first"}
    made = {"vectors": [[3, 3], [4, 4]], "token": b"made"}
    assert docs.upsert(ids=["of", "strings"], vectors=[[1, 1], [2, 2]], token=b"deleted later") == ["of", "strings"]
    docs.delete(["of", "strings"])
    other = db.create_collection("other", Dense(2))
    assert other.upsert(**first) == [1, 2]
    new = docs.upsert(**made)
    docs.upsert(ids=["later"], vectors=[[9, 9]])
    other.upsert(ids=[1], vectors=[[7, 7]])
    if reopened:
        db.close()
        db = vecdb.open(tmp_path / "db")
        docs, other = db["docs"], db["other"]
    before = files(db._store)
    assert other.upsert(**first) == [1, 2]
    assert other.get(1)[0].vector.tolist() == [7, 7], "the repetition wrote again"
    assert docs.upsert(**made) == new
    assert {point.id for point in docs.scroll()} == {*new, "later"}
    assert files(db._store) == before
    assert db.verify().ok
    db.close()


def test_an_insert_that_is_sent_again_is_no_duplicate(docs: vecdb.Collection) -> None:
    assert docs.insert(ids=[1], vectors=[[1, 1]], token=b"t") == [1]
    assert docs.insert(ids=[1], vectors=[[1, 1]], token=b"t") == [1]
    with pytest.raises(AlreadyExists):
        docs.insert(ids=[1], vectors=[[1, 1]], token=b"another")
    with pytest.raises(AlreadyExists):
        docs.insert(ids=[1], vectors=[[1, 1]])
    docs.delete([1])
    assert docs.insert(ids=[1], vectors=[[1, 1]], token=b"another") == [1], "what was refused left an entry"


def test_deletes_and_updates_return_what_the_first_one_returned(docs: vecdb.Collection) -> None:
    docs.upsert(ids=[1, 2, 3], vectors=[[1, 1]] * 3, payloads=[{"n": i} for i in (1, 2, 3)])
    calls: list[Callable[[], int]] = [
        lambda: docs.update_payload([1, 2, 77], {"seen": True}, token=b"by id"),
        lambda: docs.update_payload(where=F("n") == 3, payload={"n": 4}, token=b"by filter"),
        lambda: docs.update_payload(where=F("n") == 99, payload={"n": 0}, token=b"of none"),
        lambda: docs.delete([1, 5], token=b"delete"),
        lambda: docs.delete(where=F("n") == 2, token=b"delete where"),
        lambda: docs.delete([5], token=b"delete none"),
        lambda: docs.delete(where=F("n") == 99, token=b"delete where none"),
        lambda: docs.delete([], token=b"delete nothing"),
    ]
    first = [call() for call in calls]
    assert first == [2, 1, 0, 1, 1, 0, 0, 0]
    # Now there are points which each of them would change.
    docs.upsert(ids=[1, 2, 3, 5, 77], vectors=[[1, 1]] * 5, payloads=[{"n": n} for n in (99, 2, 3, 99, 1)])
    expected = {point.id: point.payload for point in docs.scroll()}
    assert [call() for call in calls] == first
    assert {point.id: point.payload for point in docs.scroll()} == expected


def test_changes_of_the_catalogue_are_made_once(db: vecdb.Database) -> None:
    made = db.create_collection("a", Dense(2), token=b"create")
    assert db.create_collection("a", Dense(2), token=b"create") is made
    with pytest.raises(AlreadyExists):
        db.create_collection("a", Dense(2), token=b"create again")
    for _ in range(2):
        db.add_field("a", "title", Dense(3), token=b"field")
        made.set_index(HNSW(m=24), "title", token=b"index")
    for _ in range(2):
        db.rename_collection("a", "b", token=b"rename")
    db.add_field("a", "title", Dense(3), token=b"field")  # under the name that it had then
    assert db.collections() == ["b"]
    made.set_index("flat", "title")
    made.set_index(HNSW(m=24), "title", token=b"index")
    assert made.info().fields["title"].index == Flat()
    for _ in range(2):
        db.drop_collection("b", token=b"drop")
    db.create_collection("b", Dense(2))
    db.drop_collection("b", token=b"drop")
    db.create_collection("a", Dense(2), token=b"create")
    assert db.collections() == ["b"], "the drop was repeated, or the create"
    with pytest.raises(NotFound):
        db.drop_collection("a", token=b"drop of none")


def test_a_create_with_an_encoder_is_repeated_also_when_it_was_dropped(db: vecdb.Database) -> None:
    for _ in range(2):
        docs = db.create_collection("docs", embed="tfidf", token=b"t")
    texts = ["a cat", "a dog", "a fox"]
    ids = docs.upsert(texts=texts, token=b"texts")
    assert docs.upsert(texts=texts, token=b"texts") == ids
    assert docs.count() == 3
    db.drop_collection("docs")
    db.create_collection("docs", embed="tfidf", token=b"t")
    assert db.collections() == []


def test_a_drop_takes_the_collections_own_entries_along(db: vecdb.Database) -> None:
    docs, other = (db.create_collection(name, Dense(2)) for name in ("docs", "other"))
    for collection in (docs, other):
        collection.upsert(ids=[1], vectors=[[1, 1]], token=b"t")
    db.drop_collection("docs", token=b"drop")
    assert entries(db._store) == (2, 3), "those of other and of the drop; times wait for the purge"
    other.upsert(ids=[1], vectors=[[9, 9]])
    other.upsert(ids=[1], vectors=[[1, 1]], token=b"t")
    assert other.get(1)[0].vector is not None
    with pytest.raises(NotFound):
        docs.upsert(ids=[1], vectors=[[1, 1]], token=b"t")


# -- what a token is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [b"", b"x" * 65, "text", 7, bytearray(b"t"), True])
def test_other_things_are_no_tokens(db: vecdb.Database, docs: vecdb.Collection, token: Any) -> None:
    docs.upsert(ids=[1], vectors=[[1, 1]])
    calls: list[Callable[[], object]] = [
        lambda: docs.upsert(ids=[2], vectors=[[1, 1]], token=token),
        lambda: docs.upsert([{"id": 2, "vector": [1, 1]}], token=token),
        lambda: docs.insert(ids=[2], vectors=[[1, 1]], token=token),
        lambda: docs.prepare([2], [[1, 1]], None).commit(token=token),
        lambda: docs.delete([1], token=token),
        lambda: docs.update_payload([1], {"a": 1}, token=token),
        lambda: docs.set_index("flat", token=token),
        lambda: db.create_collection("x", Dense(2), token=token),
        lambda: db.drop_collection("docs", token=token),
        lambda: db.rename_collection("docs", "x", token=token),
        lambda: db.add_field("docs", "x", Dense(2), token=token),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match="token"):
            call()
    assert [(p.id, p.payload) for p in docs.scroll()] == [(1, {})]
    assert db.collections() == ["docs"]
    assert entries(db._store) == (0, 0)


def test_tokens_of_every_length_and_byte_are_told_apart(docs: vecdb.Collection) -> None:
    tokens = [b"x", b"x\0", b"x\0\0\0\0", b"x\0\0\0\1", b"\0", b"\xff" * 64, b"\xff" * 63, b"once.", b"ingest.", b"x" * 64]
    for number, token in enumerate(tokens):
        docs.upsert([{"id": number, "vector": [number, 1]}], token=token)
    assert docs.count() == len(tokens)


def test_a_token_that_is_used_for_another_call_is_refused(db: vecdb.Database, docs: vecdb.Collection) -> None:
    docs.upsert(ids=[1], vectors=[[1, 1]], token=b"t")
    docs.upsert(ids=[], vectors=np.zeros((0, 2)), token=b"empty")
    wrong: list[Callable[[], object]] = [
        lambda: docs.upsert(ids=[2], vectors=[[1, 1]], token=b"t"),
        lambda: docs.upsert(vectors=[[1, 1]], token=b"t"),
        lambda: docs.upsert([{"id": 1, "vector": [1, 1]}, {"id": 2, "vector": [1, 1]}], token=b"t"),
        lambda: docs.insert(ids=[1], vectors=[[1, 1]], token=b"t"),
        lambda: docs.delete([1], token=b"t"),
        lambda: docs.upsert(ids=[3], vectors=[[1, 1]], token=b"empty"),
    ]
    for call in wrong:
        with pytest.raises(InvalidInput, match="another call"):
            call()
    assert docs.count() == 1
    db.drop_collection("docs", token=b"drop")
    db.create_collection("other", Dense(2))
    with pytest.raises(InvalidInput, match=r"drop_collection 'docs'.*drop_collection 'other'"):
        db.drop_collection("other", token=b"drop")


def test_ids_that_were_made_are_the_same_again_and_new_after_a_day(docs: vecdb.Collection, clock: Clock) -> None:
    vectors = np.ones((1000, 2))
    ids = docs.upsert(vectors=vectors, token=b"t")
    assert docs.upsert(vectors=vectors, token=b"t") == ids == sorted(set(ids))
    with docs._store.environment.read() as txn:
        (entry,) = [v for k, v in docs._store.environment.scan(txn, "checkpoint", bytes(16) + b"once.") if b"t" in k]
    assert len(entry) < 200
    clock.now += KEPT
    again = docs.upsert(vectors=vectors, token=b"t")
    assert set(again).isdisjoint(ids), "a token that is used again replaced points of the first time"
    assert docs.count() == 2000


def test_prepared_batches_know_the_ids_of_the_first_time(docs: vecdb.Collection) -> None:
    first, again, other = (docs.prepare(None, [[1, 1], [2, 2]], None) for _ in range(3))
    assert first.commit(token=b"t", checkpoints={b"c": b"1"}) == 0
    assert again.commit(token=b"t", checkpoints={b"c": b"2"}) == 0
    assert again.ids == first.ids
    assert docs.upsert(vectors=[[1, 1], [2, 2]], token=b"t") == first.ids
    assert other.commit() == 0
    assert docs.count() == 4
    assert docs.checkpoints() == {b"c": b"1"}


def test_an_iterable_has_the_token_chunk_by_chunk(docs: vecdb.Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points_module, "_CHUNK_POINTS", 3)
    given = [{"id": f"given {i}" if i % 2 else None, "vector": [i, 1], "payload": {"i": i}} for i in range(10)]
    broken: list[Any] = [*given[:7], {"id": None, "vector": [1, 2, 3]}, *given[8:]]
    with pytest.raises(InvalidInput) as caught:
        docs.upsert(broken, token=b"t")
    assert caught.value.applied == 6
    ids = docs.upsert(iter(given), token=b"t")  # two chunks are in; the others come
    assert docs.count() == 10
    assert docs.upsert(iter(given), token=b"t") == ids
    assert docs.count() == 10
    assert [docs.get(key)[0].payload["i"] for key in ids] == list(range(10))


def test_tables_keep_the_ids_that_were_made_for_them(docs: vecdb.Collection) -> None:
    import pyarrow as pa

    table = pa.table({"vector": [[1.0, 2.0], [3.0, 4.0]], "n": [1, 2]})
    ids = docs.upsert(table, token=b"t")
    assert docs.upsert(table, token=b"t") == ids
    assert docs.count() == 2


def test_ulids_follow_each_other() -> None:
    made = ulids(1000)
    assert series(made[0], 1000) == made == sorted(set(made))
    assert ulids(1)[0] > made[-1]
    assert ulids(0) == []


def test_checkpoints_and_tokens_do_not_meet(docs: vecdb.Collection) -> None:
    docs.set_checkpoints({b"once.t": b"mine", b"ingest.x": b"y", b"time.": b"z"})
    docs.upsert(ids=[1], vectors=[[1, 1]], token=b"t")
    docs.upsert(ids=[2], vectors=[[1, 1]], token=b"ingest.x")
    assert docs.checkpoints() == {b"once.t": b"mine", b"ingest.x": b"y", b"time.": b"z"}
    docs.set_checkpoints(dict.fromkeys(docs.checkpoints()))
    docs.delete([1])
    docs.upsert(ids=[1], vectors=[[1, 1]], token=b"t")
    assert docs.count() == 1


def test_a_reader_is_not_asked_to_write(tmp_path: Path, db: vecdb.Database, docs: vecdb.Collection) -> None:
    docs.upsert(ids=[1], vectors=[[1, 1]], token=b"t")
    with vecdb.open(tmp_path / "db", read_only=True) as reader, pytest.raises(ReadOnly):
        reader["docs"].upsert(ids=[1], vectors=[[1, 1]], token=b"t")


# -- original and retry at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["log", "growing", "level0"])
def test_originals_and_retries_at_once_are_applied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr(Merger, "wake", lambda *_: None)  # so that files can be counted
    if way == "level0":
        monkeypatch.setattr(store_module, "LEVEL0_BYTES", 0)
    if way == "growing":
        monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(2))
        calls, copies = 30, 4
        start = threading.Barrier(8)

        def send(number: int) -> list[Any]:
            if number < 8:
                start.wait()
            return docs.upsert(vectors=[[number // copies + 1, 1]] * 3, token=b"%d" % (number // copies))

        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(send, range(calls * copies)))
        assert docs.count() == 3 * calls
        for call in range(calls):
            same = answers[call * copies : (call + 1) * copies]
            assert all(answer == same[0] for answer in same)
            assert {point.vector[0] for point in docs.get(same[0])} == {call + 1}
        docs.flush()
        assert len(files(db._store)) == docs.info().segments, "a repetition left a file"
        assert db.verify().ok
    with vecdb.open(tmp_path / "db") as db:
        assert db["docs"].count() == 3 * calls


@pytest.mark.parametrize("way", ["log", "growing", "level0"])
def test_original_and_retry_in_one_group(
    store: Store, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "level0":
        monkeypatch.setattr(store_module, "LEVEL0_BYTES", 0)
    if way == "growing":
        monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    uuid = store.create_collection("docs", schema)
    token = Token(b"t", "insert", uuid)
    groups: list[int] = []
    commit = store.queue._commit

    def counted(group: Any) -> None:
        groups.append(len(group))
        commit(group)

    def gathered(queue: CommitQueue) -> None:
        deadline = time.monotonic() + 20
        while len(queue._waiting) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)

    store.queue._commit = counted
    monkeypatch.setattr(CommitQueue, "_gather", gathered)
    with ThreadPoolExecutor(3) as threads:
        sent = [
            threads.submit(lambda: store.write(uuid, rows_of([1, 2]), insert=True, token=token)),
            threads.submit(lambda: store.write(uuid, rows_of([1, 2]), insert=True, token=token)),
            threads.submit(lambda: store.write(uuid, rows_of([3]), token=Token(b"other", "upsert", uuid))),
        ]
        assert [each.result() for each in sent] == [0, 0, 0]
    assert groups == [3]
    monkeypatch.undo()
    assert store.snapshot(uuid).count == 3
    store.flush()
    assert len(files(store)) == len(store.state(uuid).manifest.segments)


def test_a_filter_that_is_sent_again_while_the_first_is_under_way_deletes_once(
    db: vecdb.Database, docs: vecdb.Collection
) -> None:
    """The second has chosen its points before the first is committed."""
    docs.upsert(ids=range(10), vectors=[[1, 1]] * 10, payloads=[{"n": i} for i in range(10)])
    store, delete, both = db._store, db._store.delete, threading.Barrier(2)

    def together(*arguments: Any, **named: Any) -> int:
        both.wait()
        return delete(*arguments, **named)

    store.delete = together  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as threads:
        sent = [threads.submit(docs.delete, where=F("n") < 4, token=b"t") for _ in range(2)]
        assert [each.result() for each in sent] == [4, 4]
    assert docs.count() == 6


# -- what is refused or fails leaves nothing ---------------------------------------------------------------


def test_what_is_refused_leaves_no_entry(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("docs", schema, Token(b"create", "create"))
    store.write(uuid, rows_of([1]))
    before = entries(store)
    with pytest.raises(AlreadyExists):
        store.write(uuid, rows_of([1]), insert=True, token=Token(b"t", "insert", uuid))
    with pytest.raises(AlreadyExists):
        store.create_collection("docs", schema, Token(b"u", "create"))
    with pytest.raises(NotFound):
        store.drop_collection("none", Token(b"v", "drop"))
    with pytest.raises(InvalidInput):
        store.write(uuid, rows_of(["text"]), token=Token(b"w", "upsert", uuid))
    assert entries(store) == before


def test_a_commit_that_fails_leaves_no_entry(
    store: Store, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("docs", schema)
    token = Token(b"t", "upsert", uuid)

    def full(*_: Any) -> None:
        raise DiskFull("there is no room")

    monkeypatch.setattr(store.garbage, "unlist", full)  # after the operations, within the transaction
    with pytest.raises(DiskFull):
        store.write(uuid, rows_of([1]), token=token)
    monkeypatch.undo()
    assert entries(store) == (0, 0)
    assert store.write(uuid, rows_of([1]), token=token) == 0
    assert store.write(uuid, rows_of([1]), token=token) == 0
    assert store.snapshot(uuid).seq == store.seq == 1


def test_a_damaged_entry_is_no_answer(store: Store, rows_of: Rows, schema: Schema, clock: Clock) -> None:
    uuid = store.create_collection("docs", schema)
    token = Token(b"t", "upsert", uuid)
    store.write(uuid, rows_of([1]), token=token)

    def damage(txn: Any) -> None:
        key = bytes(16) + b"once." + token.key
        txn.put(key, b"damaged" * 5, db=store.environment._tables["checkpoint"])

    store.environment.commit(1 << 12, damage)
    with pytest.raises(Corruption):
        store.write(uuid, rows_of([2]), token=token)
    assert len(store.verify().damage) == 1
    clock.now -= 3 * KEPT
    purged(store)
    store.write(uuid, rows_of([2]), token=Token(b"other", "upsert", uuid))  # a purge that meets it fails for nobody
    clock.now += 5 * KEPT
    purged(store)
    store.write(uuid, rows_of([2]), token=Token(b"last", "upsert", uuid))
    assert store.snapshot(uuid).count == 2


# -- a day -------------------------------------------------------------------------------------------------


def test_entries_are_kept_for_a_day_and_then_purged(tmp_path: Path, rows_of: Rows, schema: Schema, clock: Clock) -> None:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("docs", schema)
    tokens = [Token(b"%d" % i, "upsert", uuid) for i in range(600)]
    for token in tokens:
        store.write(uuid, rows_of([1]), token=token)
    clock.now += KEPT - 1
    purged(store)
    seq = store.seq
    store.write(uuid, rows_of([1]), token=tokens[0])
    assert store.seq == seq
    assert entries(store) == (600, 600)
    clock.now += 1
    store.write(uuid, rows_of([1]), token=tokens[0])  # a day is over, purged or not: it is a write like any other
    assert store.seq == seq + 1
    assert entries(store) == (344, 344), "a commit purges no more than its share, and the next ones the rest"
    store.write(uuid, rows_of([1]), token=tokens[0])
    assert store.seq == seq + 1
    store.release()
    store = open_store(tmp_path / "db")
    assert entries(store) == (1, 1)
    store.release()


def test_a_purge_goes_on_with_later_commits_and_then_rests(
    store: Store, rows_of: Rows, schema: Schema, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once_module, "_PIECE", 4)
    monkeypatch.setattr(once_module, "_PAUSE", 0.0)
    uuid = store.create_collection("docs", schema)
    for i in range(10):
        store.write(uuid, rows_of([1]), token=Token(b"%d" % i, "upsert", uuid))
    clock.now += KEPT
    purged(store)
    left = []
    for i in range(4):
        store.write(uuid, rows_of([1]), token=Token(b"new %d" % i, "upsert", uuid))
        left.append(entries(store)[0])
    assert left == [7, 4, 3, 4]
    clock.now += KEPT
    store.write(uuid, rows_of([1]), token=Token(b"last", "upsert", uuid))
    assert entries(store) == (5, 5), "it was purged again at once"


def test_entries_of_dropped_collections_are_purged_with_their_times(
    tmp_path: Path, rows_of: Rows, schema: Schema, clock: Clock
) -> None:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("docs", schema)
    store.write(uuid, rows_of([1]), token=Token(b"t", "upsert", uuid))
    store.drop_collection("docs", Token(b"drop", "drop"))
    assert entries(store) == (1, 2)
    clock.now += KEPT
    store.release()
    store = open_store(tmp_path / "db")
    assert entries(store) == (0, 0)
    with pytest.raises(NotFound):
        store.drop_collection("docs", Token(b"drop", "drop"))
    store.release()


@pytest.mark.parametrize("jump", [-400 * 24 * HOUR, -HOUR, HOUR, 23 * HOUR])
def test_a_clock_that_jumps_takes_no_more_than_its_jump(
    tmp_path: Path, rows_of: Rows, schema: Schema, clock: Clock, jump: int
) -> None:
    """An entry is written before, and asked for after the jump, with purges and an opening on the way."""
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("docs", schema)
    token = Token(b"t", "upsert", uuid)
    store.write(uuid, rows_of([1]), token=token)
    clock.now += jump
    lasts = KEPT - max(jump, 0)
    purged(store)
    store.write(uuid, rows_of([2]), token=Token(b"other", "upsert", uuid))
    store.release()
    clock.now += lasts - 1
    store = open_store(tmp_path / "db")
    seq = store.seq
    store.write(uuid, rows_of([1]), token=token)
    assert store.seq == seq, "it vanished early"
    store.release()


def test_entries_that_a_wrong_clock_made_do_not_stay_for_ever(
    tmp_path: Path, rows_of: Rows, schema: Schema, clock: Clock
) -> None:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("docs", schema)
    clock.now += 100 * 365 * 24 * HOUR
    store.write(uuid, rows_of([1]), token=Token(b"t", "upsert", uuid))
    clock.now -= 100 * 365 * 24 * HOUR
    store.release()
    store = open_store(tmp_path / "db")
    assert store.write(uuid, rows_of([1]), token=Token(b"t", "upsert", uuid)) == 0
    assert store.seq == 1
    store.release()
    clock.now += KEPT
    store = open_store(tmp_path / "db")
    assert entries(store) == (0, 0)
    store.release()


# -- over vacuum, backup and reopening ---------------------------------------------------------------------


def test_entries_live_through_vacuums_backups_and_reopening(tmp_path: Path) -> None:
    db = vecdb.open(tmp_path / "db")
    docs = db.create_collection("docs", Dense(2), token=b"create")
    ids = docs.upsert(vectors=[[1, 1]], token=b"t")
    docs.flush()
    db.vacuum()
    db.backup(tmp_path / "backup")
    db.close()
    vecdb.restore(tmp_path / "backup", tmp_path / "restored")
    for name in ("db", "restored"):
        with vecdb.open(tmp_path / name) as again:
            docs = again.create_collection("docs", Dense(2), token=b"create")
            assert docs.upsert(vectors=[[1, 1]], token=b"t") == ids
            assert docs.count() == 1
            docs.merge()
            assert again.verify().ok


# -- in any order ------------------------------------------------------------------------------------------

keys = st.integers(0, 12)
tokens = st.integers(0, 5)


class Model(RuleBasedStateMachine):
    """Calls are remembered by token with their arguments and answer; any of them may be sent again at any time."""

    @initialize()
    def create(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vecdb-once-"))
        self.patched = pytest.MonkeyPatch()
        self.clock = Clock()
        self.patched.setattr(once_module, "clock", self.clock)
        self.db = vecdb.open(self.folder / "db")
        self.docs = self.db.create_collection("docs", Dense(2, metric="l2"))
        self.model: dict[int, int] = {}
        self.sent: dict[bytes, tuple[int, Callable[[], Any], Any]] = {}  # when, the call and its answer
        self.number = 0

    def teardown(self) -> None:
        self.db.close()
        self.patched.undo()
        shutil.rmtree(self.folder)

    def _send(self, call: Callable[[bytes], Any], expected: Any, after: dict[int, int]) -> None:
        self.number += 1
        token = b"token %d" % self.number
        assert call(token) == expected
        self.model = after
        self.sent[token] = (self.clock.now, lambda: call(token), expected)

    @rule(
        some=st.lists(keys, min_size=1, max_size=5, unique=True),
        insert=st.booleans(),
        way=st.sampled_from(["log", "growing", "level0"]),
    )
    def write(self, some: list[int], insert: bool, way: str) -> None:
        mark = self.number

        def call(token: bytes) -> Any:
            patched = pytest.MonkeyPatch()
            if way == "level0":
                patched.setattr(store_module, "LEVEL0_BYTES", 0)
            elif way == "growing":
                patched.setattr(growing_module, "GROWING_BYTES", 0)
            try:
                write = self.docs.insert if insert else self.docs.upsert
                return write(
                    ids=some, vectors=[[key, mark] for key in some], payloads=[{"mark": mark}] * len(some), token=token
                )
            finally:
                patched.undo()

        if insert and self.model.keys() & set(some):
            with pytest.raises(AlreadyExists):
                call(b"refused %d" % mark)
        else:
            self._send(call, some, self.model | dict.fromkeys(some, mark))

    @rule(some=st.lists(keys, max_size=4))
    def delete(self, some: list[int]) -> None:
        after = {key: mark for key, mark in self.model.items() if key not in some}
        self._send(lambda token: self.docs.delete(some, token=token), len(self.model) - len(after), after)

    @rule(back=st.integers(1, 6))
    def delete_where(self, back: int) -> None:
        least = self.number - back
        after = {key: mark for key, mark in self.model.items() if mark < least}
        self._send(lambda token: self.docs.delete(where=F("mark") >= least, token=token), len(self.model) - len(after), after)

    @rule(some=st.lists(keys, max_size=4, unique=True))
    def update(self, some: list[int]) -> None:
        mark, there = self.number, [key for key in some if key in self.model]
        self._send(
            lambda token: self.docs.update_payload(some, {"mark": mark}, token=token),
            len(there),
            self.model | dict.fromkeys(there, mark),
        )

    @rule(data=st.data())
    def again(self, data: st.DataObject) -> None:
        fresh = [token for token, (when, *_) in self.sent.items() if self.clock.now - when < KEPT]
        if fresh:
            _, call, expected = self.sent[data.draw(st.sampled_from(fresh))]
            assert call() == expected

    @rule(hours=st.sampled_from([1, 7, 23, 25]))
    def later(self, hours: int) -> None:
        self.clock.now += hours * HOUR
        purged(self.db._store)

    @rule()
    def flush(self) -> None:
        self.docs.flush()

    @rule()
    def vacuum(self) -> None:
        self.db.vacuum()

    @rule()
    def reopen(self) -> None:
        self.db.close()
        self.db = vecdb.open(self.folder / "db")
        self.docs = self.db["docs"]

    @invariant()
    def holds(self) -> None:
        assert {point.id: point.payload["mark"] for point in self.docs.scroll()} == self.model


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


def test_small_writes_with_tokens_share_commits_as_others_do(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = store.create_collection("docs", schema)
    before = store.queue.groups
    writers = [
        threading.Thread(target=store.write, args=(uuid, rows_of([n])), kwargs={"token": Token(b"%d" % n, "upsert", uuid)})
        for n in range(12)
    ]
    with store.commit_lock:  # as if a commit were under way
        for writer in writers:
            writer.start()
        end = time.monotonic() + 30
        while len(store.queue._waiting) < 11 and time.monotonic() < end:  # all but the one that leads, and waits for the lock
            time.sleep(0.001)
    for writer in writers:
        writer.join()
    assert store.snapshot(uuid).count == 12
    assert store.queue.groups - before <= 2
