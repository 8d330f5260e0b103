"""Sixteen threads and three reader processes at once, with pauses where they hurt: every answer has an explanation.

*Single points* are read, written and deleted by many threads; for each id, some order of these operations explains all answers
(linearizability.py). *Groups* of ids are always written together, each group by one thread with ascending marks; a scan, in
whichever process, sees of each group one mark or nothing, never an older one than the scan before, and nothing that was written
after it began. Flushes, merges, vacuums and builds of indexes go on meanwhile.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vecdb_storage.flush as flush_module
import vecdb_storage.growing as growing_module
import vecdb_storage.merge as merge_module
import vecdb_storage.store as store_module
from linearizability import Operation, is_linearizable
from vecdb_storage.commit import CommitQueue
from vecdb_storage.environment import Environment
from vecdb_storage.files import Files
from vecdb_storage.flush import Flusher
from vecdb_storage.merge import Merger
from vecdb_storage.state import CollectionState
from vecdb_storage.store import Store
from workload import orphans

import vecdb
from vecdb import Dense
from vecdb.index import HNSW

DIM = 4
POINTS = range(5)
SIZES = (4, 30, 90)  # rows of a group: by way of the log, of a growing file, as a segment of its own
PAUSES: list[tuple[type, str]] = [
    (CommitQueue, "_lead"), (CommitQueue, "_promote"), (Store, "transact"), (Store, "discard"), (Environment, "commit"),
    (CollectionState, "publish"), (Flusher, "_write"), (Flusher, "_commit"), (Merger, "_write"), (Merger, "_commit"),
    (Files, "create"), (Files, "sync"), (Files, "sync_directory"), (Files, "rename"), (Files, "unlink"), (Files, "open"),
]  # fmt: skip

READER = """
import sys
from pathlib import Path

import vecdb

sys.path.insert(0, sys.argv[1])
from test_concurrency import Groups

path, stop = Path(sys.argv[2]), Path(sys.argv[3])
groups, scans = Groups(), 0
with vecdb.open(path, read_only=True) as db:
    docs = db["docs"]
    print("ready", flush=True)
    while not stop.exists() or not scans:
        groups.look(docs.scroll())
        scans += 1
print(scans)
"""


class Groups:
    """What one thread or process has seen of the groups so far."""

    def __init__(self) -> None:
        self._newest: dict[int, int] = {}

    def look(self, points: Any) -> None:
        """One scan. Ids are (group + 1) * 1000 + number; single points are below."""
        marks: dict[int, set[int]] = defaultdict(set)
        rows: dict[int, int] = defaultdict(int)
        for point in points:
            group = point.id // 1000 - 1
            if group >= 0:
                assert point.vector is None or point.vector[1] == point.payload["mark"], "vector and payload of two writes"
                marks[group].add(point.payload["mark"])
                rows[group] += 1
        for group, seen in marks.items():
            assert len(seen) == 1 and rows[group] == SIZES[group % len(SIZES)], (
                f"group {group} is torn: {seen}, {rows[group]} rows"
            )
            (mark,) = seen
            assert mark >= self._newest.get(group, 0), f"group {group} went back from {self._newest[group]} to {mark}"
            self._newest[group] = mark
        assert marks.keys() >= self._newest.keys(), "a group is gone"


class Run:
    """One run. rounds: operations of each thread that has a number of them; the others go on until those are done."""

    def __init__(self, path: Path, seed: int, rounds: int, patched: pytest.MonkeyPatch) -> None:
        self.path, self.seed, self.rounds, self.patched = path, seed, rounds, patched
        self.values = itertools.count(1)
        self.history: dict[int, list[Operation]] = defaultdict(list)
        self.errors: list[BaseException] = []
        self.over = threading.Event()
        self.scans = self.upkeep = 0
        patched.setattr(flush_module, "MEMTABLE_BYTES", 60_000)
        patched.setattr(growing_module, "GROWING_BYTES", 400)
        patched.setattr(store_module, "LEVEL0_BYTES", 6000)
        patched.setattr(merge_module, "FAN", 4)
        chance = random.Random(seed)
        for owner, name in PAUSES:
            patched.setattr(owner, name, self._pausing(getattr(owner, name), random.Random(chance.random())))
        self.db = vecdb.open(path)
        self.docs = self.db.create_collection("docs", Dense(DIM, metric="l2"))

    def _pausing(self, method: Callable[..., Any], chance: random.Random) -> Callable[..., Any]:
        def paused(*arguments: Any, **named: Any) -> Any:
            if chance.random() < 0.1:
                time.sleep(chance.expovariate(400))
            result = method(*arguments, **named)
            if chance.random() < 0.1:
                time.sleep(chance.expovariate(400))
            return result

        return paused

    # -- what the threads do ------------------------------------------------------------------------

    def points(self, chance: random.Random) -> None:
        for _ in range(self.rounds):
            key = chance.choice(POINTS)
            kind = chance.choice(["read", "read", "write", "write", "delete"])
            value = next(self.values) if kind == "write" else None
            called = time.perf_counter()
            if kind == "write":
                self.docs.upsert(ids=[key], vectors=[[key, value, 0, 0]], payloads=[{"value": value}])
            elif kind == "delete":
                self.docs.delete([key])
            else:
                (point,) = self.docs.get([key])
                assert point is None or point.vector[1] == point.payload["value"]
                value = point and point.payload["value"]
            returned = time.perf_counter()
            self.history[key].append(Operation("read" if kind == "read" else "write", value, called, returned))

    def groups(self, chance: random.Random, owned: range) -> None:
        for mark in range(1, self.rounds // 4):
            group = chance.choice(owned)
            ids = [(group + 1) * 1000 + number for number in range(SIZES[group % len(SIZES)])]
            self.docs.upsert(ids=ids, vectors=[[key, mark, 1, 1] for key in ids], payloads=[{"mark": mark}] * len(ids))

    def scanning(self, chance: random.Random) -> None:
        groups = Groups()
        while not self.over.is_set():
            groups.look(self.docs.scroll(with_vectors=True))
            self.scans += 1

    def pinned(self, chance: random.Random) -> None:
        """Scans that a write overtakes."""
        own = 900 + chance.randrange(90)
        while not self.over.is_set():
            value = next(self.values)
            self.docs.upsert(ids=[own], vectors=[[own, value, 0, 0]], payloads=[{"value": value}])
            scan = iter(self.docs.scroll())
            begun = [next(scan)]
            self.docs.upsert(ids=[own], vectors=[[own, -1, 0, 0]], payloads=[{"value": -1}])
            seen = [point.payload["value"] for point in (*begun, *scan) if point.id == own]
            assert seen == [value], f"a scan shows {seen} of what was {value} when it began"
            self.scans += 1

    def keeping(self, chance: random.Random) -> None:
        store, uuid = self.docs._store, self.docs._uuid
        while not self.over.is_set():
            match chance.choice(["flush", "flush", "merge", "vacuum", "index"]):
                case "flush":
                    self.docs.flush(wait=False)
                case "merge":
                    store.merge(uuid)
                case "vacuum":
                    self.docs.vacuum()
                case "index":
                    self.docs.set_index(HNSW(m=chance.choice([4, 8]), ef_construction=20))
            self.upkeep += 1
            time.sleep(chance.uniform(0, 0.02))

    # -- all of it ----------------------------------------------------------------------------------

    def go(self) -> None:
        chance = random.Random(self.seed)
        stop = self.path.with_name("stop")
        readers = [self._reader(stop) for _ in range(3)]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        bounded = [self._thread(self.points, chance) for _ in range(8)]
        bounded += [self._thread(self.groups, chance, range(first, first + 3)) for first in (0, 3, 6)]
        others = [self._thread(self.scanning, chance) for _ in range(2)]
        others += [self._thread(self.pinned, chance) for _ in range(2)]
        others += [self._thread(self.keeping, chance)]
        for thread in (*bounded, *others):
            thread.start()
        self._join(bounded)
        self.over.set()
        self._join(others)
        stop.touch()
        for reader in readers:
            out, err = reader.communicate(timeout=120)
            assert reader.returncode == 0, err[-3000:]
            assert int(out) > 0
        if self.errors:
            raise self.errors[0]
        self._settle()

    def _reader(self, stop: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", READER, str(Path(__file__).parent), str(self.path), str(stop)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    def _thread(self, act: Callable[..., None], chance: random.Random, *arguments: Any) -> threading.Thread:
        own = random.Random(chance.random())

        def guarded() -> None:
            try:
                act(own, *arguments)
            except BaseException as error:
                self.errors.append(error)
                self.over.set()

        return threading.Thread(target=guarded, daemon=True, name=act.__name__)

    def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + 300
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                faulthandler.dump_traceback()
                raise AssertionError(f"{thread.name} hangs")

    def _settle(self) -> None:
        """What is there at the end, now and after the next open, is what the history ends with."""
        self._read_all()
        self.db.close()
        self.patched.setattr(Merger, "wake", lambda *_: None)  # a file on its way to a commit looks like one without a name
        self.db = vecdb.open(self.path)
        self.db.pause_indexing()
        self.docs = self.db["docs"]
        self._read_all()
        report = self.db.verify()
        assert report.ok, report.damage
        assert [name for name in orphans(self.docs._store) if not name.endswith(".tmp")] == []
        self.db.close()
        for key, history in self.history.items():
            assert is_linearizable(history), f"no order explains what was seen of {key}"

    def _read_all(self) -> None:
        for key in POINTS:
            called = time.perf_counter()
            (point,) = self.docs.get([key])
            self.history[key].append(Operation("read", point and point.payload["value"], called, time.perf_counter()))


def test_answers_are_explained_while_everything_goes_on(scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any) -> None:
    counted("seeds of concurrent use", 1)
    run = Run(scratch / "db", seed=1, rounds=60, patched=monkeypatch)
    run.go()
    assert run.scans and run.upkeep


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_answers_are_explained_with_other_seeds(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any, seed: int
) -> None:
    counted("seeds of concurrent use", 1)
    Run(scratch / "db", seed, rounds=250, patched=monkeypatch).go()


def test_the_checks_would_notice() -> None:
    """A torn group, one that goes back, and one that is gone."""

    def scan(*marks: int) -> list[vecdb.Point]:
        return [vecdb.Point(1000 + number, payload={"mark": mark}) for number, mark in enumerate(marks)]

    for scans in ([scan(1, 1, 1, 2)], [scan(1, 1, 1)], [scan(2, 2, 2, 2), scan(1, 1, 1, 1)], [scan(1, 1, 1, 1), []]):
        groups = Groups()
        *fine, wrong = scans
        for points in fine:
            groups.look(points)
        with pytest.raises(AssertionError):
            groups.look(wrong)
