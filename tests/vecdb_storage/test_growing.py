"""Growing files: vectors of a steady load are on disk once, and whatever comes between, no row is lost or invented."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.flush as flush_module
import vecdb_storage.growing as growing_module
from vecdb_storage.errors import AlreadyExists, Corruption, StorageError
from vecdb_storage.files import Files
from vecdb_storage.growing import Placing

import vecdb
from vecdb import Dense

DIM = 6


@pytest.fixture(autouse=True)
def _every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_module, "GROWING_BYTES", 1)


@pytest.fixture
def docs(db: vecdb.Database) -> vecdb.Collection:
    return db.create_collection("docs", Dense(DIM, metric="l2"))


def put(docs: vecdb.Collection, ids: Any, mark: int) -> dict[int, list[float]]:
    """Points whose vectors say which they are."""
    vectors = np.array([[i, mark, 1, 2, 3, 4] for i in ids], np.float32)
    docs.upsert(ids=list(ids), vectors=vectors, payloads=[{"mark": mark}] * len(vectors))
    return {i: v.tolist() for i, v in zip(ids, vectors, strict=True)}


def stored(docs: vecdb.Collection) -> dict[Any, list[float]]:
    return {p.id: p.vector.tolist() for p in docs.scroll(with_vectors=True)}  # type: ignore[union-attr]


def files(docs: vecdb.Collection) -> list[str]:
    return sorted(file.suffix for file in docs._store.folder(docs._uuid).iterdir())


def test_a_flush_completes_the_file_that_holds_the_vectors(docs: vecdb.Collection) -> None:
    expected = put(docs, range(10), 1) | put(docs, range(10, 30), 2)
    (grown,) = docs._store.folder(docs._uuid).iterdir()
    inode = grown.stat().st_ino
    docs.flush()
    (segment,) = docs._store.folder(docs._uuid).iterdir()
    assert (segment.suffix, segment.stem, segment.stat().st_ino) == (".seg", grown.stem, inode), "vectors were copied"
    assert stored(docs) == expected
    assert docs.verify().ok
    expected |= put(docs, range(5, 40), 3)  # in a file of its own
    assert files(docs) == [".growing", ".seg"]
    docs.flush()
    assert (stored(docs), files(docs)) == (expected, [".seg", ".seg"])


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each flush, whether it completed a file; otherwise it copied."""
    results: list[bool] = []
    complete = growing_module.Growing.complete

    def watched(self: Any, *about: Any) -> Any:
        writer = complete(self, *about)
        results.append(writer is not None)
        return writer

    monkeypatch.setattr(growing_module.Growing, "complete", watched)
    return results


def prepared(docs: vecdb.Collection, ids: range) -> Any:
    return docs.prepare([*ids], np.array([[i, 0, 1, 2, 3, 4] for i in ids], np.float32), None)


def test_batches_that_are_prepared_ahead_leave_nothing_to_copy(
    docs: vecdb.Collection, completed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush_module, "MEMTABLE_BYTES", 200_000)
    monkeypatch.setattr(flush_module, "_LONGEST_WAIT", 60.0)
    store, begun = docs._store, 0
    ready = [prepared(docs, range(20)), prepared(docs, range(20, 40))]
    for first in range(40, 12_000, 20):
        begun += ready[0].ahead.begun
        ready.pop(0).commit()
        while store.state(docs._uuid).frozen is not None:
            time.sleep(0.001)
        ready.append(prepared(docs, range(first, first + 20)))
    for each in ready:
        each.commit()
    docs.flush()
    assert len(completed) > 4 and all(completed)
    assert begun > 400, "hardly any was written ahead"
    assert stored(docs) == {i: [i, 0, 1, 2, 3, 4] for i in range(12_000)}
    assert docs.verify().ok


def test_a_batch_does_not_overtake_one_that_waits_for_its_place(
    docs: vecdb.Collection, completed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    near = [True]
    monkeypatch.setattr(docs._store.flusher, "is_near", lambda size: near[0])
    waits, refused = prepared(docs, range(10)), prepared(docs, range(5))
    near[0] = False
    follows = prepared(docs, range(10, 20))
    assert not (waits.ahead.begun or refused.ahead.begun or follows.ahead.begun)
    refused.release()
    waits.commit()
    assert follows.ahead.begun, "it waited longer than the one before it"
    follows.commit()
    docs.flush()
    assert completed == [True]
    assert stored(docs) == {i: [i, 0, 1, 2, 3, 4] for i in range(20)}


@pytest.mark.parametrize("between", ["flush", "merge", "vacuum", "backup", "failure", "rollback", "reopening", "refusal"])
@pytest.mark.parametrize("waits", [False, True])
def test_a_prepared_batch_outlives_whatever_comes_before_its_commit(
    tmp_path: Path, between: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, metric="l2"))
        put(docs, range(10), 0)
        docs.flush()
        put(docs, range(10, 20), 0)
        with monkeypatch.context() as patched:
            patched.setattr(docs._store.flusher, "is_near", lambda size: waits)
            ready, dropped = prepared(docs, range(20, 30)), prepared(docs, range(30, 40))
        assert ready.ahead.begun is not waits
        if between == "backup":
            db.backup(tmp_path / "copy")
        elif between == "failure":
            with monkeypatch.context() as patched:
                patched.setattr(Files, "write_through", partial(_fail, StorageError("no")))
                with pytest.raises(StorageError):
                    put(docs, range(40, 50), 0)
        elif between in ("rollback", "reopening"):  # memory is put back to what the disk says
            error = StorageError("no", outcome="unknown" if between == "reopening" else "failed")
            with monkeypatch.context() as patched:
                patched.setattr(docs._store.environment, "commit", partial(_fail, error))
                with pytest.raises(StorageError):
                    docs.delete([3])
        elif between == "refusal":
            with pytest.raises(AlreadyExists):
                docs.insert(ids=[3], vectors=np.zeros((1, DIM), np.float32))
        elif between == "merge":
            docs.flush()
            docs._store.merge(docs._uuid)
        else:
            getattr(docs, between)()
        dropped.release()
        ready.commit()
    expected = {i: [i, 0, 1, 2, 3, 4] for i in range(30)}
    for _ in range(2):  # from the log, and from a segment
        with vecdb.open(tmp_path / "db") as db:
            docs = db.collection("docs")
            assert stored(docs) == expected
            assert docs.verify().ok
            docs.flush()
            assert files(docs) == [".seg"] * len(files(docs))


def _fail(error: StorageError, *about: Any, **more: Any) -> None:
    raise error


@pytest.mark.parametrize("what", ["refused", "overwritten", "deleted", "by log", "updated"])
def test_whatever_does_not_fit_is_copied_and_the_file_goes(
    docs: vecdb.Collection, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = put(docs, range(10), 1)
    grown = next(docs._store.folder(docs._uuid).iterdir()).stem
    if what == "refused":
        with pytest.raises(AlreadyExists):
            docs.insert(ids=[50, 3], vectors=np.ones((2, DIM)))
    elif what == "overwritten":
        expected |= put(docs, range(8, 12), 2)
    elif what == "deleted":
        docs.delete([4])
        del expected[4]
    elif what == "by log":
        monkeypatch.undo()
        expected |= put(docs, [70], 2)
    else:
        docs.update_payload([2], {"mark": 9})
    assert stored(docs) == expected
    docs.flush()
    (segment,) = docs._store.folder(docs._uuid).iterdir()
    assert segment.suffix == ".seg"
    assert segment.stem != grown
    assert stored(docs) == expected
    assert docs.verify().ok


@pytest.mark.parametrize("flushed", [False, True])
def test_the_log_is_replayed_from_growing_and_from_completed_files(
    tmp_path: Path, flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM))
        expected = put(docs, range(10), 1) | put(docs, range(10, 15), 2)
        if flushed:  # as by a crash between the file's completion and the commit
            with monkeypatch.context() as patched:
                patched.setattr(type(docs._store.flusher), "_commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    docs.flush()
        assert files(docs) == [".seg" if flushed else ".growing"]
        if flushed:
            docs._store._load()
            assert stored(docs) == expected
    with vecdb.open(tmp_path / "db") as db:
        docs = db.collection("docs")
        assert stored(docs) == expected
        expected |= put(docs, range(12, 20), 3)
        docs.flush()
        assert (stored(docs), files(docs)) == (expected, [".seg"])
        assert db.verify().ok


def test_a_flipped_byte_is_found_when_the_log_is_read(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM))
        put(docs, range(10), 1)
        folder, other = docs._store.folder(docs._uuid), db.create_collection("other", Dense(DIM))
        put(other, range(3), 1)
    (grown,) = folder.iterdir()
    data = bytearray(grown.read_bytes())
    data[100] ^= 1
    grown.write_bytes(data)
    with vecdb.open(tmp_path / "db") as db:
        assert len(stored(db.collection("other"))) == 3
        with pytest.raises(Corruption, match=r"growing"):
            db.collection("docs").count()
        assert grown.exists(), "damage is kept for whoever repairs it"
        assert any(grown.name in str(damage) for damage in db.verify().damage)


def test_a_file_that_no_record_names_is_deleted_by_the_next_open(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM))
        put(docs, range(10), 1)
        docs._store.growing.append(docs._uuid, Placing(np.ones((2, DIM), np.float32)))  # a batch that never came
        docs.flush()
        assert files(docs) == [".growing", ".seg"], "it might still come"
        assert db.verify().ok
    with vecdb.open(tmp_path / "db") as db:
        assert files(db.collection("docs")) == [".seg"]


def test_a_file_of_another_store_is_not_deleted(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "other") as db:
        put(db.create_collection("docs", Dense(DIM)), range(3), 1)
    (foreign,) = (tmp_path / "other").rglob("*.growing")
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM))
        put(docs, range(3), 1)
        kept = docs._store.folder(docs._uuid) / foreign.name
    kept.write_bytes(foreign.read_bytes())
    with vecdb.open(tmp_path / "db") as db:
        assert kept.exists()
        assert [kept.name in str(damage) for damage in db.verify().damage] == [True]


READER = """
import sys, vecdb
with vecdb.open(sys.argv[1], read_only=True) as db:
    docs = db.collection("docs")
    for line in sys.stdin:
        print(sorted((p.id, *p.vector.tolist()[:2]) for p in docs.scroll(with_vectors=True)), flush=True)
"""


@pytest.fixture
def ask(tmp_path: Path, docs: vecdb.Collection) -> Iterator[Callable[[], Any]]:
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(tmp_path / "db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def see() -> Any:
        assert reader.stdin is not None
        assert reader.stdout is not None
        reader.stdin.write("\n")
        reader.stdin.flush()
        return reader.stdout.readline().strip()

    yield see
    reader.communicate()


def test_readers_in_other_processes_follow(docs: vecdb.Collection, ask: Callable[[], Any]) -> None:
    expected: dict[int, list[float]] = {}
    for turn in range(6):
        expected |= put(docs, range(turn * 4, turn * 4 + 7), turn)
        assert ask() == str(sorted((i, *v[:2]) for i, v in expected.items()))
        if turn % 2:
            docs.flush()
            assert ask() == str(sorted((i, *v[:2]) for i, v in expected.items()))


def test_writers_of_many_threads_and_flushes_lose_nothing(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM))
        written: list[dict[int, list[float]]] = []

        def write(first: int) -> None:
            for turn in range(12):
                ids = range(1000 * first + 5 * turn, 1000 * first + 5 * turn + 7)
                written.append(put(docs, ids, turn))

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            docs.flush()
        for thread in threads:
            thread.join()
        ids = {i for one in written for i in one}
        newest = {i: max((one[i] for one in written if i in one), key=lambda v: v[1]) for i in ids}
        assert stored(docs) == newest
        docs.flush()
        assert stored(docs) == newest
        assert set(files(docs)) == {".seg"}
        assert db.verify().ok
    with vecdb.open(tmp_path / "db") as db:
        assert stored(db.collection("docs")) == newest


def test_vectors_that_do_not_reach_the_disk_refuse_their_own_batch_alone(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM))
        expected = put(docs, range(5), 1)
        store = docs._store
        failed: list[BaseException] = []

        def write(ids: range, mark: int) -> None:
            try:
                expected.update(put(docs, ids, mark))
            except StorageError as error:
                failed.append(error)

        whole = store.files.write_through

        def fails(fd: int, data: Any, path: Path) -> None:
            time.sleep(0.2)  # until the other has joined the group
            store.files.write_through = whole  # type: ignore[method-assign]
            raise StorageError("injected")

        store.files.write_through = fails  # type: ignore[method-assign]
        store.queue.LONGEST_WAIT, store.queue._company, store.queue._duration = 1.0, 9.0, 1.0  # type: ignore[misc]
        threads = [
            threading.Thread(target=write, args=(range(10, 15), 2)),
            threading.Thread(target=write, args=(range(20, 25), 3)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 1
        assert "injected" in str(failed[0])
        assert stored(docs) == expected
        expected |= put(docs, range(3, 30), 4)
        assert stored(docs) == expected
        assert db.verify().ok
    with vecdb.open(tmp_path / "db") as db:
        assert stored(db.collection("docs")) == expected


@pytest.mark.parametrize("ahead", [False, True])
def test_a_caller_who_changes_his_array_meanwhile_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    vectors = np.ones((8, DIM), np.float32)
    whole = Files.write_through

    def later(self: Files, fd: int, data: Any, path: Path) -> None:
        vectors[:] = 7
        whole(self, fd, data, path)
        vectors[:] = 9

    monkeypatch.setattr(Files, "write_through", later)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, metric="l2"))
        if ahead:
            ready = docs.prepare(list(range(8)), vectors, None)
            vectors[:] = 5
            ready.commit()
        else:
            docs.upsert(ids=list(range(8)), vectors=vectors)
        assert stored(docs) == {i: [1.0] * DIM for i in range(8)}
    with vecdb.open(tmp_path / "db") as db:
        docs = db.collection("docs")
        docs.flush()
        assert stored(docs) == {i: [1.0] * DIM for i in range(8)}
        assert db.verify().ok
