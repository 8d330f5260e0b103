"""Calls whose reply was lost are sent again with their token, and are applied once: after SIGKILL, and after any fault of a disk.

None of the calls would be harmless to repeat: their points get new ids, or they count, or they would be refused or find nothing.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vecdb_storage.growing as growing_module
import vecdb_storage.store as store_module
from disk import Fault, Faulty
from vecdb_storage.batch import Batch
from vecdb_storage.errors import StorageError, VecdbError
from vecdb_storage.merge import Merger
from vecdb_storage.once import Token
from vecdb_storage.registry import open_store
from vecdb_storage.store import Store
from workload import SCHEMA, orphans

import vecdb

# Carries out call after call, the last one that was begun first; and, if that is said, is killed after a commit and before the
# reply. The journal has a line when a call begins and one with its answer when it has returned.
CHILD = """
import json, os, signal, sys
import vecdb
import vecdb_storage.growing as growing_module
import vecdb_storage.store as store_module
from vecdb import Dense, F

path, journal_path, number, kills_at = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
journal = os.open(journal_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
commits = 0
transact = store_module.Store.transact

def committed(self, room, run, **named):
    global commits
    transact(self, room, run, **named)
    commits += 1
    if commits == kills_at:
        os.kill(os.getpid(), signal.SIGKILL)

store_module.Store.transact = committed
db = vecdb.open(path)
db.create_collection("docs", Dense(4, metric="l2"), token=b"docs")
docs = db["docs"]
print("ready", flush=True)
while True:
    os.write(journal, json.dumps([number]).encode() + b"\\n")
    token, kind = b"call %d" % number, number % 8
    if kind in (0, 1, 2):
        store_module.LEVEL0_BYTES = 0 if kind == 1 else 8 << 20
        growing_module.GROWING_BYTES = 0 if kind == 2 else 1 << 20
        answer = docs.upsert(vectors=[[number, i, 1, 1] for i in range(5)], payloads=[{"n": number}] * 5, token=token)
    elif kind == 3:
        answer = docs.insert(ids=[f"call {number}"], vectors=[[number, 1, 1, 1]], payloads=[{"n": number}], token=token)
    elif kind == 4:
        answer = docs.delete(where=F("n") == number - 4, token=token)
    elif kind == 5:
        answer = docs.update_payload(where=F("n") == number - 4, payload={"n": -number}, token=token)
    elif kind == 6:
        db.create_collection(f"of-{number}", Dense(4), token=token)
        answer = None
    else:
        answer = db.drop_collection(f"of-{number - 1}", token=token)
        if number % 16 == 15:
            db.vacuum()
    os.write(journal, json.dumps([number, answer]).encode() + b"\\n")
    number += 1
"""


@pytest.fixture(autouse=True)
def _no_merges_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Merger, "wake", lambda *_: None)


def expected_answer(number: int) -> Any:
    """What a call returns that is applied once. Of those with new ids, how many."""
    return [5, 5, 5, [f"call {number}"], 5, 5, None, None][number % 8]


def expected_marks(done: int) -> list[int]:
    """The payloads after so many calls."""
    marks: list[int] = []
    for number in range(done):
        match number % 8:
            case 0 | 1 | 2:
                marks += [number] * 5
            case 3:
                marks.append(number)
            case 4:
                marks = [mark for mark in marks if mark != number - 4]
            case 5:
                marks = [-number if mark == number - 4 else mark for mark in marks]
    return sorted(marks)


def test_a_call_whose_writer_was_killed_is_applied_once(tmp_path: Path, counted: Any) -> None:
    path, journal, chance = tmp_path / "db", tmp_path / "journal", random.Random(1)
    number, rounds, again = 0, 15, 0
    for turn in range(rounds):
        after_commit = turn % 3 != 2
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(journal), str(number), str(chance.randint(2, 14) if after_commit else 0)],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        if not after_commit:
            time.sleep(chance.uniform(0.005, 0.1))
            child.kill()
        child.wait(60)
        child.stdout.close()
        assert child.returncode == -signal.SIGKILL
        lines = [json.loads(line) for line in journal.read_bytes().splitlines()] if journal.exists() else []
        answers = {line[0]: line[1] for line in lines if len(line) == 2}
        for call, answer in answers.items():
            shown = len(answer) if call % 8 < 3 else answer
            assert shown == expected_answer(call), f"call {call}"
        begun = max((line[0] for line in lines), default=0)
        number = begun if begun not in answers else begun + 1
        assert sorted(answers) == list(range(number))
        with vecdb.open(path) as db:
            if not lines:
                assert db.collections() in ([], ["docs"])
                continue
            docs = db["docs"]
            marks = sorted(point.payload["n"] for point in docs.scroll())
            assert marks in (expected_marks(number), expected_marks(number + 1)), f"call {number}"
            again += marks != expected_marks(number)
            made = {key for call, answer in answers.items() if call % 8 in (1, 2) for key in answer}
            assert all(docs.get(sorted(made))), "an answer named other ids than those that were written"
            assert db.verify().ok
            assert orphans(db._store) == []
    assert number > rounds
    assert again > 3, "some calls must have been in the database without a reply"
    counted("SIGKILLs between a commit and its reply, or about it", rounds)


Rows = Callable[..., Batch]


def retried(call: Callable[[], Any]) -> Any:
    """As a client does it: again, until there is an answer."""
    for _ in range(6):
        try:
            return call()
        except StorageError:
            continue
    return call()


def faulty_calls(folder: Path, files: Faulty, rows_of: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls with tokens, while a fault is on its way; then what is there."""
    opened: list[Store] = []

    def store() -> Store:
        if opened and opened[-1].closed is not None:
            opened.pop().release()
        if not opened:
            opened.append(open_store(folder, files=files))
        return opened[-1]

    def send(call: Callable[[Store], Any]) -> Any:
        return retried(lambda: call(store()))

    uuid = send(lambda s: s.create_collection("docs", SCHEMA, Token(b"docs", "create")))
    assert send(lambda s: s.create_collection("docs", SCHEMA, Token(b"docs", "create"))) == uuid
    for turn in range(2):
        for kind, (level0, growing) in enumerate([(1 << 30, 1 << 30), (0, 1 << 30), (1 << 30, 0)]):
            monkeypatch.setattr(store_module, "LEVEL0_BYTES", level0)
            monkeypatch.setattr(growing_module, "GROWING_BYTES", growing)
            keys = [100 * turn + 10 * kind + i for i in range(4)]
            token = Token(b"%d-%d" % (turn, kind), "insert", uuid)
            for _ in range(2):
                assert send(lambda s, k=keys, t=token: s.write(uuid, rows_of(k), insert=True, token=t)) == 0
        gone = Token(b"delete %d" % turn, "delete", uuid)
        for _ in range(2):
            assert send(lambda s, t=turn, k=gone: s.delete(uuid, [100 * t, 100 * t + 10], token=k)) == 2
        changed = Token(b"change %d" % turn, "change", uuid)
        keys = [100 * turn + 1, 100 * turn]
        for _ in range(2):
            sent = send(lambda s, k=keys, t=changed: s.change_payloads(uuid, k, lambda key, old: b'{"mark":1}', token=t))
            assert sent == 1
        send(lambda s: s.flush())
    for _ in range(2):
        send(lambda s: s.rename_collection("docs", "aside", Token(b"rename", "rename")))
        send(lambda s: s.create_collection("other", SCHEMA, Token(b"other", "create")))
    for _ in range(2):
        send(lambda s: s.drop_collection("other", Token(b"drop", "drop")))
    files.fails_at = 0
    store().release()
    opened.clear()
    whole = store()
    assert list(whole.collections()) == ["aside"]
    snapshot = whole.snapshot(uuid)
    found = {key for part, rows in snapshot.in_order() for key in part.keys(rows)}
    there = {100 * turn + 10 * kind + i for turn in range(2) for kind in range(3) for i in range(4)}
    assert found == there - {0, 10, 100, 110}
    assert snapshot.count == len(found)
    assert whole.verify().ok
    assert orphans(whole) == []
    whole.release()


def test_a_call_that_a_fault_befell_is_applied_once(
    scratch: Path, rows_of: Rows, monkeypatch: pytest.MonkeyPatch, counted: Any
) -> None:
    calm = Faulty()
    faulty_calls(scratch / "well", calm, rows_of, monkeypatch)
    points = [(at, fault) for at, name in enumerate(calm.calls, 1) for fault in Fault if fault.may_befall(name)]
    points = [(at, fault) for at, fault in points if fault is not Fault.DELAYED]
    chosen = random.Random(3).sample(points, 40)
    for at, fault in chosen:
        try:
            faulty_calls(scratch / "ill", Faulty(at, fault), rows_of, monkeypatch)
        except (AssertionError, VecdbError) as error:
            raise AssertionError(f"{fault} in call {at}, {calm.calls[at - 1]}") from error
        shutil.rmtree(scratch / "ill")
    counted("faults in calls that were sent again", len(chosen))
