"""Several processes behind one port: whichever a client is connected to, it sees what was written, and one that is killed comes back."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from served import Wire, soon

import vecdb
from vecdb import Dense, errors
from vecdb.server.config import Config
from vecdb.server.keys import FILE, Keys
from vecdb.server.workers import Supervisor
from vecdb.wire import messages


def workers_of(parent: int) -> dict[str, int]:
    """Processes that were started by it: "writer" or "reader" -> pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes()
                files = [os.readlink(each) for each in (entry / "fd").iterdir()] if int(status[1]) == parent else []
            except OSError:
                continue
            if int(status[1]) == parent and status[0] != "Z" and b"vecdb.server.workers" in command:
                found["writer" if any(name.endswith("/LOCK") for name in files) else "reader"] = int(entry.name)
    return found


@pytest.fixture
def clients() -> Iterator[Callable[[int, int], list[Any]]]:
    """clients(port, n) -> connections; there are so many that each worker has some."""
    made: list[Any] = []

    def connect(port: int, count: int) -> list[Any]:
        some = [vecdb.connect(f"grpc://127.0.0.1:{port}", timeout=60) for _ in range(count)]
        made.extend(some)
        return some

    yield connect
    for each in made:
        each.close()


def put(docs: Any, key: int, mark: int) -> None:
    docs.upsert(ids=[key], vectors=[[key, 1, 1, 1]], payloads=[{"mark": mark}])


def test_writes_through_any_worker_are_seen_at_once_through_all(process: Any, clients: Any) -> None:
    server = process("--workers", "2", "--metrics-port", "0")
    dbs = clients(server.port, 12)
    dbs[0].create_collection("docs", Dense(4, metric="l2"))
    docs = [db["docs"] for db in dbs]
    for number in range(24):
        put(docs[number % 12], number, number)
        for each in docs:
            found = each.get([number])[0]
            assert found is not None
            assert found.payload == {"mark": number}
    assert [each.count() for each in docs] == [24] * 12
    assert {each.search([5, 1, 1, 1], 1)[0].id for each in docs} == {5}
    dbs[1].rename_collection("docs", "texts")
    assert {tuple(db.collections()) for db in dbs} == {("texts",)}
    answered = {
        line.split('worker="')[1][0] for line in metrics(server).splitlines() if "Points/Get" in line and "worker=" in line
    }
    assert answered == {"0", "1"}, "both workers read"


def metrics(server: Any) -> str:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as reply:
        return str(reply.read().decode())


@pytest.mark.parametrize("which", ["reader", "writer"])
def test_a_worker_that_is_killed_is_started_anew_and_nothing_acknowledged_is_lost(
    process: Any, clients: Any, which: str
) -> None:
    server = process("--workers", "2")
    dbs = clients(server.port, 8)
    dbs[0].create_collection("docs", Dense(4, metric="l2"))
    docs = [db["docs"] for db in dbs]
    written, stopped = [0] * 4, threading.Event()
    failed: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            while not stopped.is_set():
                put(docs[thread], 100_000 * thread + written[thread], thread)
                written[thread] += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    assert soon(lambda: min(written) > 5)
    before = workers_of(server.pid)
    assert before.keys() == {"reader", "writer"}
    os.kill(before[which], signal.SIGKILL)
    assert soon(lambda: workers_of(server.pid).keys() == {"reader", "writer"}, 60)
    now = list(written)
    assert soon(lambda: failed or min(a - b for a, b in zip(written, now, strict=True)) > 5, 60)
    stopped.set()
    for each in threads:
        each.join()
    assert not failed, failed
    after = workers_of(server.pid)
    other = "reader" if which == "writer" else "writer"
    assert after[which] != before[which]
    assert after[other] == before[other], "the other one went on"
    acknowledged = {100_000 * thread + n for thread in range(4) for n in range(written[thread])}
    for each in (*docs, clients(server.port, 1)[0]["docs"]):
        assert {point.id for point in each.scroll(with_payload=False)} == acknowledged


def test_workers_end_with_their_parent_however_it_ends(process: Any, clients: Any) -> None:
    server = process("--workers", "2")
    clients(server.port, 1)[0].create_collection("docs", Dense(4))
    pids = list(workers_of(server.pid).values())
    assert len(pids) == 2
    server.kill()
    assert soon(lambda: not any(map(alive, pids)), 60)
    again = process("--workers", "2")
    assert clients(again.port, 1)[0].collections() == ["docs"]
    assert again.end() == 0
    assert soon(lambda: not workers_of(again.pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_is_stopped_does_not_keep_the_figures_of_the_others(process: Any, clients: Any) -> None:
    server = process("--workers", "2", "--metrics-port", "0")
    clients(server.port, 1)[0].create_collection("docs", Dense(4))
    reader = workers_of(server.pid)["reader"]

    def told() -> set[str]:
        return {line.split('worker="')[1][0] for line in metrics(server).splitlines() if "worker=" in line}

    assert told() == {"0", "1"}
    os.kill(reader, signal.SIGSTOP)
    try:
        assert told() == told() == {"0"}
    finally:
        os.kill(reader, signal.SIGCONT)
    assert soon(lambda: told() == {"0", "1"})


def test_of_two_that_start_at_once_one_gets_the_port() -> None:
    """Also before any worker of the first one listens."""
    first, second = object.__new__(Supervisor), object.__new__(Supervisor)
    try:
        port = first._reserve("127.0.0.1", 0)
        with pytest.raises(errors.StorageError, match=f"{port} cannot be listened on; is another server there"):
            second._reserve("127.0.0.1", port)
        with socket.socket() as worker:  # as gRPC does it
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                worker.setsockopt(socket.SOL_SOCKET, option, 1)
            worker.bind(("127.0.0.1", port))
            worker.listen()
    finally:
        for each in (first, second):
            each._reserved.close()


def test_a_port_that_another_server_has_is_refused_and_not_shared(process: Any, clients: Any, tmp_path: Path) -> None:
    server = process("--workers", "2")
    clients(server.port, 1)[0].create_collection("docs", Dense(4))
    told = Config(db=str(tmp_path / "other"), port=server.port, workers=2)
    with pytest.raises(errors.StorageError, match=f"{server.port} cannot be listened on; is another server there"):
        Supervisor(told)
    assert not (tmp_path / "other").exists()
    for _ in range(8):
        assert clients(server.port, 1)[0].collections() == ["docs"]


@pytest.mark.slow
def test_workers_that_are_started_anew_are_as_closed_as_those_before(process: Any, path: Path) -> None:
    vecdb.open(path).close()
    text = Keys(path / FILE).create("me", "admin")[1]
    server = process("--workers", "2")
    (path / FILE).unlink()
    before = workers_of(server.pid)
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    assert soon(lambda: len(set(workers_of(server.pid).values()) - set(before.values())) == 2, 60)
    wires = [Wire(f"127.0.0.1:{server.port}", key) for key in (None, text) for _ in range(6)]

    def codes() -> set[grpc.StatusCode]:
        return {wire.status("Admin/Hello", b"", timeout=10) for wire in wires}

    assert soon(lambda: codes() - {grpc.StatusCode.UNAVAILABLE}, 60)
    for _ in range(3):
        assert codes() <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}
    for wire in wires:
        wire.close()


def test_errors_deadlines_and_cancellation_pass_through_a_worker(process: Any, clients: Any, tmp_path: Path) -> None:
    server = process("--workers", "2")
    clients(server.port, 1)[0].create_collection("docs", Dense(4, metric="l2"))
    target = messages.Target(collection="docs")
    rng = np.random.default_rng(3)
    wires = [Wire(f"127.0.0.1:{server.port}") for _ in range(8)]
    matrix = messages.Matrix(dim=3, values=[1, 2, 3])
    wrong = messages.UpsertRequest(target=target, columns=messages.Columns(vectors={"vector": matrix}))
    ids = messages.Ids(numbers=range(50_000))
    rows = messages.Matrix(dim=4, dtype=1, data=rng.standard_normal((50_000, 4)).astype("<f4").tobytes())
    large = messages.UpsertRequest(target=target, columns=messages.Columns(ids=ids, vectors={"vector": rows}))
    for wire in wires:
        error = wire.error("Points/Upsert", wrong)
        assert isinstance(error, vecdb.errors.DimensionMismatch)
        assert error.field == "vector"
        call = wire.begin("Points/Upsert", large)
        time.sleep(0.02)
        call.cancel()
        assert wire.status("Points/Upsert", large, timeout=0.001) in (
            grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK,
        )  # fmt: skip
    for wire in wires:
        assert wire.ask("Points/Count", messages.CountRequest(target=target))[0].count in (0, 50_000)
        wire.close()
    assert '"trace"' not in server.log.read_text(), "a caller who goes is no failure of the server"
