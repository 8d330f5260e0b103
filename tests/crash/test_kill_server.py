"""SIGKILL of a server under concurrent writes over the wire: *acknowledged ⊆ visible ⊆ attempted*.

Several clients write, each to ids of its own, and note what they are about to do and what was acknowledged. The server is
killed at a random moment; in half of the rounds the clients are left alone to try again until another one is there, so that
a write whose acknowledgement was lost is asked for twice, and is in once. What is there afterwards is compared with the notes.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import vecdb
from vecdb import Dense
from vecdb.errors import AlreadyExists, VecdbError

CLIENTS = 4
IDS = 12


class Killable:
    """`vecdb serve` in a process of its own."""

    def __init__(self, path: Path, port: int = 0) -> None:
        command = [sys.executable, "-m", "vecdb", "serve", "--db", str(path), "--port", str(port), "--threads", "1"]
        self._log = open(path.with_suffix(".log"), "ab")  # noqa: SIM115
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("serving"), path.with_suffix(".log").read_text()
        self.port = int(line.rsplit(":", 1)[1])

    def end(self, number: int = signal.SIGKILL) -> None:
        self._process.send_signal(number)
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()


class Client(threading.Thread):
    """Writes to its own ids. states: what each id may be: one state, or two while it is not known whether a write is in."""

    def __init__(
        self, number: int, states: dict[int, set[Any]], port: int, seed: int, stopped: threading.Event, retries: int
    ) -> None:
        super().__init__()
        self._number, self._states, self._stopped = number, states, stopped
        self._chance = random.Random(seed)
        self._db = vecdb.connect(f"grpc://127.0.0.1:{port}", retries=retries, timeout=60)
        self.done = 0
        self.error: VecdbError | None = None
        self.wrong: BaseException | None = None

    def run(self) -> None:
        try:
            docs = self._db["docs"]
            while not self._stopped.is_set():
                self._step(docs)
                self.done += 1
        except VecdbError as error:
            self.error = error
        except BaseException as error:
            self.wrong = error
        finally:
            self._db.close()

    def _step(self, docs: Any) -> None:
        keys = [IDS * self._number + at for at in self._chance.sample(range(IDS), self._chance.randint(1, 5))]
        mark = f"{self._number}-{self._chance.getrandbits(60)}"
        before = {key: self._states[key] for key in keys}
        kind = self._chance.choice(["upsert"] * 4 + ["delete", "payload", "insert", "many"])
        after: dict[int, set[Any]] = {}
        for key in keys:
            (was,) = before[key]
            after[key] = {None if kind == "delete" or (kind == "payload" and was is None) else mark}
        rows = [[key, 1, 1, 1] for key in keys]
        if kind == "insert" and any(before[key] != {None} for key in keys):
            with pytest.raises(AlreadyExists):
                docs.insert(ids=keys, vectors=rows)
            return
        for key in keys:
            self._states[key] = before[key] | after[key]
        match kind:
            case "upsert":
                docs.upsert(ids=keys, vectors=rows, payloads=[{"mark": mark}] * len(keys))
            case "many":
                docs.upsert(
                    [{"id": key, "vector": row, "payload": {"mark": mark}} for key, row in zip(keys, rows, strict=True)]
                )
            case "insert":
                docs.insert(ids=keys, vectors=rows, payloads=[{"mark": mark}] * len(keys))
            case "delete":
                assert docs.delete(keys) == sum(before[key] != {None} for key in keys), (
                    "a delete was applied twice, or not at all"
                )
            case "payload":
                assert docs.update_payload(keys, {"mark": mark}) == sum(before[key] != {None} for key in keys)
        self._states.update(after)


def visible(docs: Any) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for point in docs.scroll(with_vectors=True):
        assert point.id not in found, f"{point.id} is there twice"
        assert point.vector[0] == point.id
        found[point.id] = point.payload["mark"]
    assert docs.count() == len(found)
    return found


def rounds(tmp_path: Path, count: int, seed: int, counted: Any) -> None:
    path, chance = tmp_path / "db", random.Random(seed)
    states: dict[int, set[Any]] = {key: {None} for key in range(CLIENTS * IDS)}
    server = Killable(path)
    with vecdb.connect(f"grpc://127.0.0.1:{server.port}") as db:
        db.create_collection("docs", Dense(4, metric="l2"))
    for number in range(count):
        patient, stopped = number % 2 == 1, threading.Event()
        clients = [
            Client(each, states, server.port, chance.getrandbits(60), stopped, 30 if patient else 0) for each in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        end = time.monotonic() + 60
        enough = chance.randint(2, 20)
        while sum(client.done for client in clients) < CLIENTS * enough and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        server.end()
        server = Killable(path, server.port)
        if patient:
            before = [client.done for client in clients]
            while (
                any(c.is_alive() and c.done < b + 3 for c, b in zip(clients, before, strict=True))
                and time.monotonic() < end + 60
            ):
                time.sleep(0.002)
            stopped.set()
        for client in clients:
            client.join(120)
            assert not client.is_alive()
            assert client.wrong is None, client.wrong
            assert client.done > 0
            assert (client.error is None) == patient, client.error
        with vecdb.connect(f"grpc://127.0.0.1:{server.port}") as db:
            found = visible(db["docs"])
            for key, possible in states.items():
                assert found.get(key) in possible, f"round {number}: {key} is {found.get(key)}, and may be {possible}"
            if patient:
                assert all(len(possible) == 1 for possible in states.values())
            states.update({key: {found.get(key)} for key in states})
    server.end(signal.SIGTERM)
    with vecdb.open(path) as db:
        assert visible(db["docs"]) == {key: mark for key, (mark,) in states.items() if mark is not None}
        assert db.verify().ok
    counted("SIGKILLs of a server under writes", count)


def test_a_killed_server_loses_no_acknowledged_write(tmp_path: Path, counted: Any) -> None:
    rounds(tmp_path, 2, 1, counted)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_a_server_that_is_killed_again_and_again_loses_no_acknowledged_write(tmp_path: Path, counted: Any, seed: int) -> None:
    rounds(tmp_path, 40, seed, counted)
