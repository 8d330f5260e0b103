"""Callers that stop reading, stop writing, or vanish: nothing of theirs stays behind, no thread, no snapshot, no place."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socket import create_connection
from typing import Any

import grpc
import pytest
from served import fill, soon

from vecdb import errors
from vecdb.collection import Collection
from vecdb.wire import messages

DOCS = messages.Target(collection="docs")
QUERY = messages.SearchRequest(target=DOCS, query=messages.Vector(values=[1] * 4))
POINT = messages.UpsertRequest(target=DOCS, columns=messages.Columns(ids=messages.Ids(numbers=[7])))
POINT.columns.vectors["vector"].dim = 4
POINT.columns.vectors["vector"].values.extend([1] * 4)
FIRST = {
    "Points/Scroll": messages.ScrollRequest(target=DOCS),
    "Points/Export": messages.ScrollRequest(target=DOCS),
    "Points/UpsertStream": POINT,
    "Search/SearchStream": QUERY,
    "Admin/Verify": messages.VerifyRequest(),
    "Admin/Vacuum": messages.VacuumRequest(),
    "Admin/Backup": messages.BackupRequest(),
}


def threads() -> int:
    return threading.active_count()


def let_go(served: Any, docs: Any) -> None:
    """Nobody is inside any more, and no old state is held after a write."""
    assert served.empty()
    docs.upsert(ids=[1], vectors=[[1, 2, 3, 4]])
    assert served.snapshots_gone()


@pytest.fixture
def large(serving: Any) -> Callable[..., tuple[Any, Any]]:
    """large(**settings) -> a server, and a collection that is more than any buffer between it and a client."""

    def make(**settings: Any) -> tuple[Any, Any]:
        served = serving(**settings)
        return served, fill(served.connect(), "docs", 24_000, pad=1_000)

    return make


def test_all_streams_are_tested_here() -> None:
    assert FIRST.keys() == {m.name for m in messages.METHODS.values() if m.client_streams or m.server_streams}


@pytest.mark.parametrize("name", ["Points/Scroll", "Points/Export", "Admin/Backup"])
def test_who_stops_reading_is_sent_away(large: Any, name: str) -> None:
    served, docs = large(stream_idle=0.5)
    before = threads()
    calls = [served.wire().begin(name, FIRST[name]) for _ in range(3)]
    for call in calls:
        next(call)
    let_go(served, docs)
    for call in calls:
        with pytest.raises(grpc.RpcError):
            list(call)
    assert soon(lambda: threads() <= before + 20)
    assert not list(Path(served.server.config.db).glob(".backup-*"))


def test_a_client_that_read_too_slowly_is_told_so(large: Any) -> None:
    served, docs = large(stream_idle=0.4)
    points = docs.scroll()
    next(points)
    assert served.empty()
    with pytest.raises(errors.CursorExpired):
        list(points)
    assert len(list(docs.scroll())) == 24_000


@pytest.mark.parametrize("name", ["Points/UpsertStream", "Search/SearchStream"])
def test_who_stops_writing_is_sent_away(serving: Any, name: str) -> None:
    served = serving(stream_idle=0.5)
    docs = fill(served.connect())
    unended = threading.Event()
    call = served.wire().begin(name, FIRST[name], FIRST[name], unended=unended)
    assert soon(lambda: served.inside == 1)
    let_go(served, docs)
    unended.set()
    with pytest.raises(grpc.RpcError):
        list(call) if messages.METHODS[name].server_streams else call.result()


def test_who_sends_no_request_is_sent_away(serving: Any) -> None:
    served = serving(stream_idle=0.5, queue=4)
    docs = fill(served.connect())
    wire = served.wire()
    calls = [wire.headers_only(name) for name in ("Points/Count", "Points/Upsert", "Points/Scroll")]
    assert soon(lambda: served.inside == 3)
    let_go(served, docs)
    for call in calls:
        assert call.code() is not grpc.StatusCode.OK


def test_a_server_that_works_long_does_not_send_its_caller_away(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serving(stream_idle=0.3)
    fill(served.connect())
    scroll = Collection.scroll

    def slow(self: Any, *args: Any, **how: Any) -> Any:
        points = scroll(self, *args, **how)
        time.sleep(1.5)
        yield from points

    monkeypatch.setattr(Collection, "scroll", slow)
    replies = served.wire().ask("Points/Scroll", FIRST["Points/Scroll"])
    assert sum(len(each.points) for each in replies) == 100


@pytest.mark.parametrize("name", list(FIRST))
def test_a_client_that_vanishes_leaves_nothing(large: Any, name: str) -> None:
    served, docs = large()
    method, before = messages.METHODS[name], threads()
    for _ in range(3):
        wire = served.wire()
        call = wire.begin(name, FIRST[name], unended=threading.Event() if method.client_streams else None)
        if method.server_streams:
            next(call)
        else:
            assert soon(lambda: served.inside == 1)
        wire.close()
    let_go(served, docs)
    assert soon(lambda: threads() <= before + 20)
    assert soon(lambda: not list(Path(served.server.config.db).glob(".backup-*")))


KILLED = """
import sys, threading, grpc
from served import Wire
from test_vanishing import FIRST
wire = Wire(sys.argv[1])
calls = [wire.begin(name, FIRST[name], unended=threading.Event()) for name in FIRST if name != "Points/UpsertStream"]
for call in calls:
    next(call)
calls.append(wire.begin("Points/UpsertStream", FIRST["Points/UpsertStream"], unended=threading.Event()))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_client_that_is_killed_leaves_nothing(large: Any) -> None:
    served, docs = large()
    folder = __file__.rsplit("/", 1)[0]
    code = f"import sys; sys.path.insert(0, {folder!r})\n{KILLED}"
    client = subprocess.Popen([sys.executable, "-c", code, served.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    assert soon(lambda: served.inside >= 4)
    client.kill()
    client.wait()
    client.stdin.close()
    client.stdout.close()
    let_go(served, docs)


def test_connections_that_say_nothing_cost_no_threads(serving: Any) -> None:
    served = serving()
    docs = fill(served.connect())
    docs.count()
    before = threads()
    sockets = [create_connection(("127.0.0.1", served.server.port)) for _ in range(300)]
    half = [create_connection(("127.0.0.1", served.server.port)) for _ in range(50)]
    for each in half:
        each.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00")
    assert docs.count() == 100
    assert threads() <= before + 4
    for each in sockets + half:
        each.close()
    assert docs.count() == 100
    let_go(served, docs)


def test_a_stream_of_points_that_fails_tells_a_caller_who_waits(serving: Any) -> None:
    served = serving()
    docs = fill(served.connect())
    wrong = messages.UpsertRequest(columns=messages.Columns(ids=messages.Ids(numbers=[8])))
    wrong.columns.vectors["vector"].dim = 3
    wrong.columns.vectors["vector"].values.extend([1] * 3)
    for second in (wrong, POINT):
        if second is POINT:
            second = messages.UpsertRequest(insert=True)
            second.MergeFrom(POINT)
        unended = threading.Event()
        call = served.wire().begin("Points/UpsertStream", POINT, second, unended=unended)
        began = time.monotonic()
        assert call.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS)
        assert time.monotonic() - began < 20
        unended.set()
    let_go(served, docs)
