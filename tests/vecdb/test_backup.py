"""A backup is one commit of a database that is in use, and comes back as it was, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.growing as growing_module
from vecdb_storage.files import Files

import vecdb
from vecdb import Dense
from vecdb.errors import AlreadyExists, Corruption, DiskFull, InvalidInput, NewerFormat, NotFound


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[vecdb.Database]:
    """A database with every kind of file."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(8, metric="l2", index="hnsw"))
        rng = np.random.default_rng(3)
        docs.upsert(ids=range(400), vectors=rng.standard_normal((400, 8)), payloads=[{"n": i} for i in range(400)])
        docs.flush()
        docs.delete(range(0, 400, 7))
        monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
        docs.upsert(ids=range(1000, 1020), vectors=rng.standard_normal((20, 8)), payloads=[{"n": i} for i in range(20)])
        texts = db.create_collection("texts", embed="tfidf")
        texts.upsert(ids=["a", "b", "c"], texts=["red apples", "green pears", "blue plums"])
        assert list((tmp_path / "db").rglob("*.growing")) and list((tmp_path / "db").rglob("*.arr"))
        yield db


def content(db: vecdb.Database) -> dict[str, list[Any]]:
    return {
        name: [(p.id, p.payload, np.asarray(p.vector).tolist()) for p in db[name].scroll(with_vectors=True)]
        for name in db.collections()
    }


def restored(backup: Any, path: Path) -> dict[str, list[Any]]:
    vecdb.restore(backup, path)
    with vecdb.open(path) as db:
        assert db.verify().ok
        found = content(db)
        db["docs"].upsert(ids=[-1], vectors=[[0] * 8])
        assert db["docs"].count() == len(found["docs"]) + 1
    return found


@pytest.mark.parametrize("link", [False, True])
def test_what_was_backed_up_comes_back(full: vecdb.Database, tmp_path: Path, link: bool) -> None:
    seen: list[tuple[int, int]] = []
    made = full.backup(tmp_path / "backup", link=link, progress=lambda *at: seen.append(at))
    assert seen[-1][0] == seen[-1][1] == made.bytes and made.files == len(seen)
    before = content(full)
    full["docs"].upsert(ids=[7777], vectors=[[1] * 8])
    full["docs"].flush()
    full.vacuum()
    assert restored(tmp_path / "backup", tmp_path / "again") == before
    links = [f for f in (tmp_path / "backup").rglob("*.seg") if f.stat().st_nlink > 1]
    assert not links, "the vacuum has replaced them, and a restoration copies"


def test_a_backup_is_no_database_and_a_database_no_backup(full: vecdb.Database, tmp_path: Path) -> None:
    full.backup(tmp_path / "backup")
    with pytest.raises(NotFound, match="no database"):
        vecdb.open(tmp_path / "backup", read_only=True)
    with pytest.raises(InvalidInput, match="not a database"):
        vecdb.open(tmp_path / "backup")
    with pytest.raises(NotFound, match="no backup"):
        vecdb.restore(tmp_path / "db", tmp_path / "again")
    with pytest.raises(AlreadyExists, match="holds a backup"):
        full.backup(tmp_path / "backup")
    with pytest.raises(AlreadyExists):
        full.backup(tmp_path / "db")
    with pytest.raises(AlreadyExists, match="holds a database"):
        vecdb.restore(tmp_path / "backup", tmp_path / "db")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    for act in (lambda: full.backup(tmp_path / "other"), lambda: vecdb.restore(tmp_path / "backup", tmp_path / "other")):
        with pytest.raises(AlreadyExists, match=r"thesis\.tex"):
            act()


def test_an_incremental_backup_copies_only_what_is_new(full: vecdb.Database, tmp_path: Path) -> None:
    first = full.backup(tmp_path / "monday")
    full["docs"].upsert(ids=[5000], vectors=[[1] * 8])
    full["docs"].flush()
    second = full.backup(tmp_path / "tuesday", earlier=tmp_path / "monday")
    assert first.copied == first.bytes and second.copied < second.bytes
    before = content(full)
    shared = {f.name for f in (tmp_path / "tuesday").rglob("*") if f.is_file() and f.stat().st_nlink > 1}
    assert {Path(name).suffix for name in shared} == {".seg", ".idx", ".arr"}
    shutil.rmtree(tmp_path / "monday")
    assert restored(tmp_path / "tuesday", tmp_path / "again") == before, "each backup is whole by itself"
    with vecdb.open(tmp_path / "second") as other:
        other.create_collection("docs", Dense(8))
        with pytest.raises(InvalidInput, match="another database"):
            other.backup(tmp_path / "x", earlier=tmp_path / "tuesday")
    with pytest.raises(NotFound, match="no backup"):
        full.backup(tmp_path / "x", earlier=tmp_path / "nowhere")


def test_backups_on_a_url(full: vecdb.Database, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    first = full.backup("memory://vault/monday")
    full["docs"].upsert(ids=[5000], vectors=[[1] * 8])
    full["docs"].flush()
    second = full.backup("memory://vault/tuesday", earlier="memory://vault/monday")
    third = full.backup("memory://vault/wednesday", earlier="memory://vault/tuesday")
    assert third.copied < second.copied < first.copied == first.bytes
    before = content(full)
    assert restored("memory://vault/wednesday", tmp_path / "again") == before
    with pytest.raises(AlreadyExists):
        full.backup("memory://vault/monday")
    with pytest.raises(NotFound):
        vecdb.restore("memory://vault/friday", tmp_path / "x")
    # From a directory to a URL and the other way nothing can be shared, and everything is copied.
    assert full.backup(tmp_path / "local", earlier="memory://vault/tuesday").copied > third.copied
    assert restored(tmp_path / "local", tmp_path / "more") == before


def test_a_damaged_backup_makes_no_database(full: vecdb.Database, tmp_path: Path) -> None:
    full.backup(tmp_path / "backup")
    files = [f for f in (tmp_path / "backup").rglob("*") if f.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
        target = tmp_path / str(number)
        if file.name != "BACKUP":  # of its text some may be changed without harm, as in the date
            with pytest.raises(Corruption, match=re.escape(file.name)):
                vecdb.restore(tmp_path / "backup", target)
            assert not (target / "VECDB").exists()
        file.write_bytes(whole)
        shutil.rmtree(target, ignore_errors=True)
    (tmp_path / "backup" / "BACKUP").rename(tmp_path / "BACKUP")
    with pytest.raises(NotFound, match="not completed"):
        vecdb.restore(tmp_path / "backup", tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 99}, NewerFormat),
        ({"uuid": "zz"}, Corruption),
        ({"meta": "../meta-1.mdb"}, Corruption),
        ({"files": [{"path": "../../evil", "bytes": 1, "xxh3": 1}]}, Corruption),
        ({"files": [{"path": "/etc/evil", "bytes": 1, "xxh3": 1}]}, Corruption),
        ({"files": [{"path": "meta-1.mdb", "bytes": -1, "xxh3": 1}]}, Corruption),
        ({"files": 3}, Corruption),
        ({"files": None}, Corruption),
    ],
)
def test_a_hostile_manifest_is_refused(
    full: vecdb.Database, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    full.backup(tmp_path / "backup")
    manifest = tmp_path / "backup" / "BACKUP"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(error):
        vecdb.restore(tmp_path / "backup", tmp_path / "x")
    assert not (tmp_path / "x" / "VECDB").exists() and not (tmp_path.parent / "evil").exists()


def test_damage_is_found_when_it_is_backed_up_and_not_when_it_is_needed(full: vecdb.Database, tmp_path: Path) -> None:
    file = max((tmp_path / "db").rglob("*.seg"), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    data[4096] ^= 0xFF
    full.close()
    file.write_bytes(data)
    with vecdb.open(tmp_path / "db") as db:
        with pytest.raises(Corruption, match=file.name):
            db.backup(tmp_path / "backup")
        with pytest.raises(NotFound):
            vecdb.restore(tmp_path / "backup", tmp_path / "x")


def test_a_full_disk_under_a_backup_harms_nothing(
    full: vecdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(full)
    write = Files.write

    def failing(self: Files, fd: int, data: Any, path: Path) -> None:
        if "backup" in path.parts and path.suffix == ".idx":
            raise DiskFull("injected")
        write(self, fd, data, path)

    with monkeypatch.context() as patched:
        patched.setattr(Files, "write", failing)
        with pytest.raises(DiskFull):
            full.backup(tmp_path / "backup")
    assert content(full) == before
    full.backup(tmp_path / "backup")  # what was cut short is done again
    assert restored(tmp_path / "backup", tmp_path / "again") == before


def test_a_backup_during_writes_merges_and_vacuums_is_one_commit(full: vecdb.Database, tmp_path: Path) -> None:
    """Batches of 20 ids have one mark each; a backup must never hold a torn one."""
    docs = full.create_collection("marks", Dense(2, metric="l2", index="flat"))
    docs.upsert(ids=range(20), vectors=np.ones((20, 2)), payloads=[{"mark": 0}] * 20)
    stop, failures = threading.Event(), []

    def write() -> None:
        mark = 0
        try:
            while not stop.is_set():
                mark += 1
                docs.upsert(ids=range(20), vectors=np.ones((20, 2)), payloads=[{"mark": mark}] * 20)
                if mark % 3 == 0:
                    docs.flush()
                if mark % 10 == 0:
                    docs.merge()
                if mark % 25 == 0:
                    full.vacuum()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    last = 0
    for number in range(12):
        earlier = tmp_path / f"b{number - 1}" if number % 3 else None
        full.backup(tmp_path / f"b{number}", earlier=earlier, link=number % 2 == 0)
        vecdb.restore(tmp_path / f"b{number}", tmp_path / f"r{number}")
        with vecdb.open(tmp_path / f"r{number}") as db:
            marks = [point.payload["mark"] for point in db["marks"].scroll()]
            assert len(marks) == 20 and len(set(marks)) == 1 and marks[0] >= last
            last = marks[0]
            assert db.verify().ok
            assert db["docs"].count() == full["docs"].count()
    stop.set()
    thread.join()
    assert not failures, failures
    assert last > 0


def test_another_process_can_back_up_what_this_one_writes(full: vecdb.Database, tmp_path: Path, reader_of: Any) -> None:
    reader = reader_of(tmp_path / "db")
    for number in range(5):
        for _ in range(8):
            full["docs"].upsert(ids=range(50), vectors=np.ones((50, 8)), payloads=[{"n": number}] * 50)
            full["docs"].flush(wait=False)
        assert reader.ask(f"store.backup({str(tmp_path / f'b{number}')!r}).transaction") > 0
        full["docs"].merge(wait=False)
        if number == 2:
            full.vacuum()
    before = content(full)
    reader.ask(f"store.backup({str(tmp_path / 'last')!r}).files")
    assert restored(tmp_path / "last", tmp_path / "again") == before
    assert not [name for name in os.listdir(tmp_path / "last") if name.endswith(".tmp")]


def test_a_backup_to_another_device(full: vecdb.Database, tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or os.stat(shared).st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("there is no other device to be had")
    target = shared / f"vecdb-test-{os.getpid()}"
    try:
        made = full.backup(target / "a", link=True)
        assert made.copied == made.bytes, "a hard link does not reach so far"
        assert restored(target / "a", tmp_path / "again") == content(full)
    finally:
        shutil.rmtree(target, ignore_errors=True)
