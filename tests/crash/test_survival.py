"""What happens to databases in the field: clocks that jump, folders that move, writers that sleep, ten thousand collections."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.files as files_module
import vecdb_storage.growing as growing_module

import vecdb
from vecdb import Dense
from vecdb.errors import InvalidInput, Locked, ReadOnly


def fill(path: Path, count: int = 50) -> None:
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(4, metric="l2", index="flat"))
        for start in range(0, count, 10):
            ids = range(start, start + 10)
            docs.upsert(ids=ids, vectors=[[i, 1, 1, 1] for i in ids], payloads=[{"n": i} for i in ids])
            if start % 20 == 0:
                docs.flush()
        docs.delete([3])


def check(db: vecdb.Database, count: int = 50) -> None:
    docs = db["docs"]
    assert {p.id: p.payload["n"] for p in docs.scroll()} == {i: i for i in range(count) if i != 3}
    assert docs.search([7, 1, 1, 1], k=1)[0].id == 7


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of files begin with the time; nothing else goes by the clock."""
    now = time.time
    chance = np.random.default_rng(3)
    monkeypatch.setattr(time, "time", lambda: now() + float(chance.choice([-3e8, 0, 3e8, -now()])))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    fill(tmp_path / "db")
    for _ in range(3):
        with vecdb.open(tmp_path / "db") as db:
            check(db)
            db["docs"].upsert(ids=[7], vectors=[[7, 1, 1, 1]], payloads=[{"n": 7}])
            db["docs"].merge()
            db.vacuum()
            db.backup(tmp_path / f"backup-{len(list(tmp_path.iterdir()))}")
            check(db)
            assert db.verify().ok


def test_a_folder_that_is_moved_while_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    fill(tmp_path / "here" / "db")
    (tmp_path / "here").rename(tmp_path / "there")
    with vecdb.open(tmp_path / "there" / "db") as db:
        check(db)
        db.vacuum()
    shutil.copytree(tmp_path / "there", tmp_path / "copy")
    with vecdb.open(tmp_path / "copy" / "db") as copy, vecdb.open(tmp_path / "there" / "db") as db:
        copy["docs"].delete([7])
        check(db)
        assert copy["docs"].count() == 48 and copy.verify().ok


def test_read_only_media(tmp_path: Path) -> None:
    """A mount in a namespace of its own; read by a process that could not write if it wanted to."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed")
    command = [unshare, "-m"] if os.geteuid() == 0 else [unshare, "-rm"]
    fill(tmp_path / "db")
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "db").rglob("*")}
    code = f"""
import vecdb
from vecdb.errors import StorageError
path = {str(tmp_path / "db")!r}
with vecdb.open(path, read_only=True) as db:
    assert db["docs"].count() == 49 and db["docs"].search([7, 1, 1, 1], k=1)[0].id == 7
    assert db.verify().ok
    db.backup({str(tmp_path / "backup")!r})
try:
    vecdb.open(path)
except StorageError as error:
    print(error)
"""
    mount = f"mount --bind {tmp_path}/db {tmp_path}/db && mount -o remount,bind,ro {tmp_path}/db"
    probe = subprocess.run([*command, "sh", "-c", mount], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"nothing can be mounted here: {probe.stderr.strip()}")
    script = tmp_path / "child.py"
    script.write_text(code)
    done = subprocess.run([*command, "sh", "-c", f"{mount} && {sys.executable} {script}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ead-only file system" in done.stdout
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "db").rglob("*")} == before
    vecdb.restore(tmp_path / "backup", tmp_path / "again")
    with vecdb.open(tmp_path / "again") as db:
        check(db)


def test_two_hosts_on_a_network_file_system_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "db")
    monkeypatch.setattr(files_module.Files, "on_network", lambda self, path: "nfs4")
    for act in (lambda: vecdb.open(tmp_path / "db"), lambda: vecdb.open(tmp_path / "new")):
        with pytest.raises(InvalidInput, match="network file system"):
            act()
    assert not (tmp_path / "new" / "VECDB").exists()
    with vecdb.open(tmp_path / "db", read_only=True) as db:
        check(db)
        with pytest.raises(ReadOnly):
            db["docs"].delete([1])
        db.backup(tmp_path / "backup")
    with pytest.raises(InvalidInput, match="network file system"):
        vecdb.restore(tmp_path / "backup", tmp_path / "again")


SLEEPER = """
import sys, vecdb
db = vecdb.open(sys.argv[1])
docs = db["docs"]
number = 0
while True:
    number += 1
    docs.upsert(ids=[1000], vectors=[[1, 1, 1, number]], payloads=[{"n": number}])
    if number % 50 == 0:
        docs.flush()
    print(number, flush=True)
"""


def stopped_for(path: Path, seconds: float) -> None:
    fill(path)
    child = subprocess.Popen([sys.executable, "-c", SLEEPER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        for _ in range(120):
            child.stdout.readline()
        child.send_signal(signal.SIGSTOP)
        until = time.monotonic() + seconds
        while True:  # at least one look
            with vecdb.open(path, read_only=True) as db:
                assert db["docs"].count() == 50
                with pytest.raises(Locked, match=f"process {child.pid}"):
                    vecdb.open(path)
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        child.send_signal(signal.SIGCONT)
        last = 0
        for _ in range(120):
            last = int(child.stdout.readline())
        child.kill()
        child.wait()
        with vecdb.open(path) as db:
            (point,) = db["docs"].get([1000])
            assert point is not None and point.payload["n"] >= last
            assert db.verify().ok
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_writer_that_is_stopped_and_goes_on(tmp_path: Path) -> None:
    stopped_for(tmp_path / "db", 0.5)


@pytest.mark.slow
def test_a_writer_that_is_stopped_for_a_minute(tmp_path: Path) -> None:
    stopped_for(tmp_path / "db", 60)


def collections(path: Path, count: int) -> None:
    with vecdb.open(path) as db:
        for number in range(count):
            db.create_collection(f"c{number}", Dense(2, index="flat")).upsert(ids=[number], vectors=[[1, number]])
        db.flush()
        for number in range(0, count, 10):
            db[f"c{number}"].upsert(ids=[-1], vectors=[[1, 1]])
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with vecdb.open(path) as db:
        assert len(db.collections()) == count
        if descriptors:
            assert len(os.listdir("/proc/self/fd")) < descriptors + 50, "a segment must not cost a descriptor"
        for number in range(0, count, max(1, count // 50)):
            assert db[f"c{number}"].count() == 1 + (number % 10 == 0)
            assert db[f"c{number}"].search([1, number], k=1)[0].id in (number, -1)
        with vecdb.open(path, read_only=True) as again:
            assert len(again.collections()) == count
        db.drop_collection("c5")
        db.rename_collection("c6", "six")
        assert "c5" not in db and "six" in db and "c6" not in db
        assert db.vacuum().after > 0 and db.verify().ok
    with vecdb.open(path) as db:
        assert len(db.collections()) == count - 1


def test_hundreds_of_collections(tmp_path: Path) -> None:
    collections(tmp_path / "db", 300)


@pytest.mark.slow
def test_ten_thousand_collections(tmp_path: Path) -> None:
    collections(tmp_path / "db", 10_000)


def resources() -> tuple[int, int, int]:
    """Descriptors, mappings of database files, threads."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    ours = sum(1 for line in maps if any(name in line for name in (".seg", ".idx", ".growing", ".mdb")))
    return len(os.listdir("/proc/self/fd")), ours, threading.active_count()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_opening_and_closing_leaks_nothing(tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    path = tmp_path / "db"
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(4, metric="l2", index="hnsw"))
        docs.upsert(ids=range(300), vectors=np.random.default_rng(0).standard_normal((300, 4)))
        docs.flush()
    before: Any = None
    for number in range(rounds):
        with vecdb.open(path, read_only=number % 3 == 1) as db:
            docs = db["docs"]
            docs.search([0, 0, 0, 0], k=1)
            if number % 3 == 0:
                docs.upsert(ids=[number % 300], vectors=[[1, 2, 3, number]])
            if number % 21 == 0:
                docs.vacuum()
        del db, docs
        if number == 10:
            before = resources()
    after = resources()
    assert all(now <= then for now, then in zip(after, before, strict=True)), f"{before} became {after}"
