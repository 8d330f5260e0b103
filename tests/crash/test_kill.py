"""SIGKILL at random points: *acknowledged ⊆ visible ⊆ attempted*, and no batch is torn.

A child process upserts, overwrites, deletes, flushes, merges, vacuums and backs up. Before each call it writes down what it is
about to do, and after it that it was acknowledged, in a journal of its own. It is killed at a random moment, in half of the rounds
while it is still opening the database; the next child opens what the last one left. After each kill the database is compared with
the journal, and so is what came of a backup. In the other half of the rounds another process reads along, and is killed, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_storage.merge import Merger

import vecdb
from vecdb import Dense

DIM = 8
IDS = 40

CHILD = """
import json, os, random, sys
import numpy as np
import vecdb
import vecdb_storage.flush as flush_module
import vecdb_storage.growing as growing_module
import vecdb_storage.merge as merge_module
import vecdb_storage.store as store_module
from vecdb import Dense

path, journal_path, seed, opening = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "opening"
flush_module.MEMTABLE_BYTES = 60_000  # so that background flushes happen, and merges, too
merge_module.FAN, merge_module._PAUSE = 3, 0.01
random.seed(seed)
journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(**entry):
    os.write(journal, json.dumps(entry).encode() + b"\\n")

print("ready", flush=True)
number = 0
while True:
    db = vecdb.open(path)
    if "docs" not in db.collections():
        db.create_collection("docs", Dense(8, metric="l2"))
    docs = db.collection("docs")
    for _ in range(1 if opening else 40):
        number += 1
        mark = f"{seed}-{number}"
        ids = random.sample(range(40), random.randint(1, 12))
        kind = random.choice(["upsert"] * 3 + ["growing"] * 3 + ["level0", "delete", "where", "payload"]
                             + ["flush"] * 2 + ["merge", "vacuum", "vacuum all", "backup"])
        note(mark=mark, kind=kind, ids=ids)
        if kind in ("upsert", "growing", "level0"):
            store_module.LEVEL0_BYTES = 0 if kind == "level0" else 8 << 20
            growing_module.GROWING_BYTES = 0 if kind == "growing" else 1 << 20
            docs.upsert(ids=ids, vectors=[[i, number % 7, 1, 1, 1, 1, 1, 1] for i in ids],
                        payloads=[{"mark": mark, "pad": "x" * 300} for _ in ids])
        elif kind == "delete":
            docs.delete(ids)
        elif kind == "where":
            docs.delete(where=vecdb.F("mark") == f"{seed}-{number - 2}")
        elif kind == "payload":
            docs.update_payload(ids, {"mark": mark})
        elif kind == "flush":
            docs.flush()
        elif kind == "merge":
            docs.merge()
        elif kind == "backup":
            db.backup(f"{path}-backups/{mark}")
        else:
            (db if kind == "vacuum all" else docs).vacuum()
        note(done=mark)
    db.close()
"""

READER = """
import sys
import vecdb

db = None
while True:
    try:
        db = db or vecdb.open(sys.argv[1], read_only=True)
        docs = db.collection("docs")
    except vecdb.errors.NotFound:  # not made yet
        continue
    seen = set()
    for point in docs.scroll(with_vectors=True):
        assert point.id not in seen, f"{point.id} is there twice"
        seen.add(point.id)
        assert point.vector[0] == point.id, "a vector belongs to another point"
        assert point.payload["mark"].count("-") == 1
    print(len(seen), flush=True)
"""


@pytest.fixture(autouse=True)
def _no_merges_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that this process, which only looks, finds the files as they were left."""
    monkeypatch.setattr(Merger, "wake", lambda *_: None)


class Possible:
    """What a point may be, from the journal: its state after every prefix of operations that may have been the last."""

    def __init__(self) -> None:
        self.now: dict[int, str | None] = dict.fromkeys(range(IDS))

    def after(self, entry: dict[str, Any]) -> dict[int, str | None]:
        """The state if `entry` took effect as a whole."""
        state = dict(self.now)
        match entry["kind"]:
            case "upsert" | "growing" | "level0":
                state |= dict.fromkeys(entry["ids"], entry["mark"])
            case "delete":
                state |= dict.fromkeys(entry["ids"])
            case "payload":
                state |= {i: entry["mark"] for i in entry["ids"] if state[i] is not None}
            case "where":
                seed, number = entry["mark"].split("-")
                wanted = f"{seed}-{int(number) - 2}"
                state = {i: None if mark == wanted else mark for i, mark in state.items()}
        return state


def visible(path: Path) -> dict[int, str | None]:
    """id -> mark, or None; and the other ways to ask agree."""
    state: dict[int, str | None] = dict.fromkeys(range(IDS))
    with vecdb.open(path) as db:
        if "docs" not in db.collections():
            return state
        docs = db.collection("docs")
        points = list(docs.scroll(with_vectors=True))
        for point in points:
            assert state[point.id] is None, f"{point.id} is there twice"
            state[point.id] = point.payload["mark"]
            assert point.vector[0] == point.id, "a vector belongs to another point"
        assert docs.count() == len(points)
        found = docs.search(np.ones(DIM), k=100, exact=True)
        assert sorted(found.ids) == sorted(p.id for p in points)
        best = sorted((float(np.linalg.norm(p.vector - 1)), p.id) for p in points)
        assert [hit.id for hit in found] == [key for _, key in best]
        assert {p.id: p.payload["mark"] for p in docs.get(range(IDS)) if p} == {i: m for i, m in state.items() if m}
        report = db.verify()
        assert report.ok, report.damage
        folder = path / "segments"
        states = db._store.states.values()
        named = {entry.name for s in states for entry in s.manifest.segments} | {name for s in states for name in s.extents}
        assert {f.stem for f in folder.rglob("*") if f.is_file()} == named, "a file was left behind"
        others = {f.name for f in path.iterdir()} - {"VECDB", "LOCK", "segments"}
        meta = db._store.environment.path.name
        assert others == {meta, f"{meta}-lock"}, "a generation was left behind"
    return state


def restored(backup: Path, path: Path) -> dict[int, str | None] | None:
    """What a backup holds, if it was completed."""
    if not (backup / "BACKUP").exists():
        return None
    vecdb.restore(backup, path)
    state = visible(path)
    shutil.rmtree(path)
    shutil.rmtree(backup)
    return state


def check_space(path: Path, fresh: Path) -> None:
    """After a vacuum the database takes about what a new one of the same points takes."""
    with vecdb.open(path) as db, vecdb.open(fresh) as new:
        db.vacuum()
        points = list(db["docs"].scroll(with_vectors=True))
        docs = new.create_collection("docs", Dense(DIM, metric="l2"))
        docs.upsert(ids=[p.id for p in points], vectors=[p.vector for p in points], payloads=[p.payload for p in points])
        docs.flush()
        new.vacuum()
        sizes = [sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) for folder in (path, fresh)]
    assert sizes[0] <= 1.5 * sizes[1], "space was not given back"


def rounds(tmp_path: Path, count: int, seed: int, counted: Any) -> None:
    path, journal, backups = tmp_path / "db", tmp_path / "journal", tmp_path / "db-backups"
    chance = random.Random(seed)
    possible = Possible()
    seen = acknowledged = 0
    for number in range(count):
        opening = number % 2 == 0
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(journal), str(seed * 1000 + number), "opening" if opening else "working"],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        reader = None
        if not opening:
            reader = subprocess.Popen(
                [sys.executable, "-c", READER, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )  # fmt: skip
        if not opening:  # it is to get some work done, however slow the machine is
            enough = journal.stat().st_size + chance.randint(200, 4000) if journal.exists() else 1
            deadline = time.monotonic() + 60
            while (not journal.exists() or journal.stat().st_size < enough) and time.monotonic() < deadline:
                time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.08 if opening else 0.02))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if reader is not None:
            assert reader.poll() is None, reader.communicate()[1].decode()
            reader.kill()
            reader.communicate()
        entries = [json.loads(line) for line in journal.read_bytes().splitlines()[seen:]] if journal.exists() else []
        seen += len(entries)
        pending: dict[str, Any] | None = None
        for entry in entries:
            if "done" in entry:
                assert pending is not None
                assert pending["mark"] == entry["done"]
                if pending["kind"] == "backup":
                    assert restored(backups / pending["mark"], tmp_path / "restored") == possible.now
                possible.now = possible.after(pending)
                pending = None
                acknowledged += 1
            else:
                pending = entry
        state = visible(path)
        if pending is not None and state == possible.after(pending):
            possible.now = state  # the last operation was durable, and only its acknowledgement was lost
        if pending is not None and pending["kind"] == "backup":
            assert restored(backups / pending["mark"], tmp_path / "restored") in (None, state)
        assert state == possible.now, f"round {number}: an acknowledged batch is lost, or one is torn; pending {pending}"
    assert acknowledged > count, "the rounds must have done some work"
    check_space(path, tmp_path / "fresh")
    counted("SIGKILLs of a writer", count)


def test_a_killed_writer_loses_no_acknowledged_batch(tmp_path: Path, counted: Any) -> None:
    rounds(tmp_path, 24, 1, counted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_killed_writers_lose_no_acknowledged_batch_in_many_rounds(tmp_path: Path, seed: int, counted: Any) -> None:
    rounds(tmp_path, 100, seed, counted)


def test_a_database_may_be_made_by_a_process_that_is_killed_while_it_makes_it(tmp_path: Path) -> None:
    code = "import sys, vecdb; vecdb.open(sys.argv[1]).create_collection('docs', vecdb.Dense(8, metric='l2'))"
    for number in range(6):
        path = tmp_path / str(number)
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not path.exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(0.004 * number)
        child.kill()
        child.wait()
        with vecdb.open(path) as db:
            assert db.collections() in ([], ["docs"])
            if not db.collections():
                db.create_collection("docs", Dense(8))
            assert db.verify().ok
