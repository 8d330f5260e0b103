"""After a vacuum what was deleted is in no file, and readers have moved over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.vacuum as vacuum_module
from vecdb_storage.batch import Batch
from vecdb_storage.errors import DiskFull, StorageError
from vecdb_storage.files import Files
from vecdb_storage.registry import open_store
from vecdb_storage.store import Store

import vecdb
from vecdb import Dense

Rows = Callable[..., Batch]
Schema = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "db")
    yield opened
    opened.close()


def everything(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file())


def ids(store: Store, uuid: bytes) -> set[Any]:
    return {key for part, rows in store.snapshot(uuid).in_order() for key in part.keys(rows)}


@pytest.mark.parametrize("way", ["delete", "overwrite", "update_payload", "drop_collection"])
@pytest.mark.parametrize("of", ["database", "collection"])
def test_deleted_payloads_and_vectors_are_in_no_file(tmp_path: Path, rng: np.random.Generator, way: str, of: str) -> None:
    secret = rng.standard_normal((20, 16)).astype(np.float32)
    with vecdb.open(tmp_path / "db") as db:
        kept = db.create_collection("kept", Dense(16, index="hnsw"))
        docs = db.create_collection("docs", Dense(16, index="hnsw"))
        for collection, offset in ((kept, 1000), (docs, 0)):
            others = rng.standard_normal((600, 16))
            payloads = [{"text": f"ordinary {offset + i}", "tags": ["plain"]} for i in range(600)]
            collection.upsert(ids=range(600), vectors=others, payloads=payloads)
            collection.flush()
        # Some secrets get into a segment and its index, some into the log only.
        for start in (0, 10):
            docs.upsert(
                ids=range(9000 + start, 9010 + start), vectors=secret[start : start + 10],
                payloads=[{"text": f"secret-payload-{i}", "tags": [f"secret-tag-{i}"], "deep": {"secret-key": i}} for i in range(10)],
            )  # fmt: skip
            if not start:
                docs.flush()
        raw = everything(tmp_path / "db")
        assert b"secret-payload" in raw and b"secret-tag" in raw and secret[3].tobytes() in raw and secret[13].tobytes() in raw
        match way:
            case "delete":
                docs.delete(range(9000, 9020))
            case "overwrite":
                docs.upsert(ids=range(9000, 9020), vectors=np.ones((20, 16)), payloads=[{"text": "harmless"}] * 20)
            case "update_payload":
                docs.update_payload(list(range(9000, 9020)), {"text": "harmless"}, replace=True)
            case "drop_collection":
                db.drop_collection("docs")
        seen: list[tuple[int, int]] = []
        done = (db if of == "database" or way == "drop_collection" else docs).vacuum(progress=lambda *at: seen.append(at))
        assert seen and seen[-1][0] == seen[-1][1] and done.after < done.before
        raw = everything(tmp_path / "db")
        for trace in (b"secret-payload", b"secret-tag", b"secret-key"):
            assert trace not in raw, trace
        if way != "update_payload":
            assert not any(vector.tobytes() in raw for vector in secret)
        assert kept.count() == 600 and b"ordinary 1007" in raw
        assert db.verify().ok
        assert len(list((tmp_path / "db").glob("meta-*.mdb"))) == 1
    with vecdb.open(tmp_path / "db") as db:
        assert db["kept"].count() == 600
        if way != "drop_collection":
            assert db["docs"].count() == (600 if way == "delete" else 620)
        assert db.verify().ok


def test_readers_move_over_to_the_next_generation(store: Store, schema: Schema, rows_of: Rows, reader_of: Any) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(10), 1))
    awake, asleep = reader_of(store.path), reader_of(store.path)
    asleep.ask(f"hold({uuid.hex()!r})")
    for turn in range(2, 4):
        store.vacuum()
        assert awake.ids(uuid) == ids(store, uuid)
        store.write(uuid, rows_of([100 + turn], turn))
        store.delete(uuid, [turn])
        assert awake.ids(uuid) == ids(store, uuid)
    assert asleep.ask("ids('', held)") == set(range(10)), "it sleeps through two vacuums"
    assert asleep.ids(uuid) == ids(store, uuid) == {0, 1, *range(4, 10), 102, 103}
    assert store.path.joinpath("meta-3.mdb").exists() and not store.path.joinpath("meta-2.mdb").exists()


def test_transactions_go_on_from_those_of_the_generation_before(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = store.create_collection("c", schema)
    for turn in range(5):
        store.write(uuid, rows_of([turn], turn))
    before = store.last_transaction()
    store.vacuum()
    assert store.last_transaction() > before
    store.close()
    again = open_store(store.path)
    assert again.last_transaction() > before
    assert ids(again, uuid) == set(range(5))
    again.close()


def test_what_an_interrupted_vacuum_leaves_is_cleared_by_the_next_writer(
    store: Store, schema: Schema, rows_of: Rows, reader_of: Any
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(3), 1))
    path = store.path
    # It died before VECDB named the copy.
    store.environment.copy(path / "meta-2.mdb")
    store.write(uuid, rows_of([0], 2))  # a vacuum may also fail, and the writer go on
    (path / "meta-3.mdb.tmp").write_bytes(b"half a copy")
    store.close()
    again = open_store(path)
    assert ids(again, uuid) == {0, 1, 2}
    assert not (path / "meta-2.mdb").exists() and not (path / "meta-3.mdb.tmp").exists()
    # It died after VECDB named the copy, and before the old one was told; a reader has that one open.
    reader = reader_of(path)
    again.environment.copy(path / "meta-2.mdb")
    again.name_meta("meta-2.mdb")
    again.close()
    last = open_store(path)
    last.write(uuid, rows_of([7], 1))
    assert not (path / "meta-1.mdb").exists()
    assert ids(last, uuid) == reader.ids(uuid) == {0, 1, 2, 7}
    last.close()


def test_a_generation_that_was_in_use_is_not_deleted_when_an_older_one_is_put_back(
    store: Store, tmp_path: Path, schema: Schema, rows_of: Rows
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(3), 1))
    for name in ("VECDB", "meta-1.mdb"):
        shutil.copy(store.path / name, tmp_path / name)
    store.vacuum()
    store.write(uuid, rows_of([4], 1))
    store.close()
    for name in ("VECDB", "meta-1.mdb"):
        shutil.copy(tmp_path / name, store.path / name)
    again = open_store(store.path)
    assert ids(again, uuid) == {0, 1, 2}
    assert (store.path / "meta-2.mdb").exists()
    assert [Path(str(found.file)).name for found in again.verify().damage if "meta-2" in str(found.file)] == ["meta-2.mdb"]
    again.close()


class Failing(Files):
    """The `at`-th call of `name` fails, once armed."""

    def __init__(self, name: str, at: int) -> None:
        super().__init__()
        self.name, self.at, self.armed = name, at, False

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name in ("name", "at", "armed") or not self.armed or name != self.name:
            return method
        self.at -= 1
        if self.at:
            return method

        def fail(*arguments: Any) -> Any:
            raise DiskFull(f"injected into {name}")

        return fail


def test_a_name_that_could_not_be_synced_stops_all_writing(tmp_path: Path, schema: Schema, rows_of: Rows) -> None:
    files = Failing("sync_directory", 2)  # the first is that of the copy, the second that of VECDB
    store = open_store(tmp_path / "db", files=files)
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(3), 1))
    store.flush()
    files.armed = True
    with pytest.raises(StorageError) as caught:
        store.vacuum()
    assert caught.value.outcome == "unknown"
    with pytest.raises(vecdb.errors.Closed, match="open the database again"):
        store.write(uuid, rows_of([9], 1))
    store.close()
    again = open_store(tmp_path / "db")
    assert ids(again, uuid) == {0, 1, 2} and again.verify().ok
    again.write(uuid, rows_of([9], 1))
    again.close()


def test_without_room_for_a_copy_nothing_changes(
    store: Store, schema: Schema, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(3), 1))

    def full(*arguments: Any) -> None:
        raise DiskFull("injected")

    with monkeypatch.context() as patched:
        patched.setattr(vacuum_module.Environment, "copy", full)
        with pytest.raises(DiskFull):
            store.vacuum()
    store.write(uuid, rows_of([5], 1))
    assert ids(store, uuid) == {0, 1, 2, 5}
    store.vacuum()
    assert ids(store, uuid) == {0, 1, 2, 5} and store.verify().ok
