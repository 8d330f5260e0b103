"""What a server takes at most, and how soon it stops: queues, sizes, deadlines, cancellation, and its own end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from served import fill, soon

import vecdb
from vecdb import Dense, errors
from vecdb.collection import Collection
from vecdb.search.executor import Executor
from vecdb.wire import convert, messages

DOCS = messages.Target(collection="docs")
COUNT = messages.CountRequest(target=DOCS)
HEALTH = health_pb2.HealthCheckRequest()


class Held:
    """Counts wait for this to be released."""

    def __init__(self) -> None:
        self.event, self.waiting = threading.Event(), 0

    def release(self) -> None:
        self.event.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made, count = Held(), Collection.count

    def slow(self: Any, where: Any = None) -> int:
        made.waiting += 1
        assert made.event.wait(60)
        return count(self, where)

    monkeypatch.setattr(Collection, "count", slow)
    yield made
    made.release()


# -- room ----------------------------------------------------------------------------------------------------


def test_those_beyond_the_queue_are_sent_away_at_once_and_others_go_on(serving: Any, held: Held) -> None:
    served = serving(queue=3, streams=2)
    fill(served.connect())
    wire = served.wire()
    under_way = [wire.begin("Points/Count", COUNT) for _ in range(3)]
    assert soon(lambda: held.waiting == 3)
    began = time.monotonic()
    error = wire.error("Points/Get", messages.GetRequest(target=DOCS, ids=messages.Ids(numbers=[1])))
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after is not None
    assert error.retry_after > 0
    assert time.monotonic() - began < 10, "they wait for nobody"
    assert len(wire.ask("Points/Scroll", messages.ScrollRequest(target=DOCS))[0].points) == 100, (
        "streams have places of their own"
    )
    assert health_pb2_grpc.HealthStub(wire.channel).Check(HEALTH, timeout=30).status == 1
    held.release()
    assert [messages.CountReply.FromString(each.result()).count for each in under_way] == [100] * 3
    assert served.empty()


def test_a_client_comes_again_when_there_is_room(serving: Any, held: Held) -> None:
    served = serving(queue=1)
    docs = fill(served.connect())
    under_way = served.wire().begin("Points/Count", COUNT)
    assert soon(lambda: held.waiting == 1)
    threading.Timer(0.3, held.release).start()
    assert docs.get([1])[0].id == 1
    under_way.result()


def test_streams_beyond_their_number_are_sent_away(serving: Any) -> None:
    served = serving(queue=3, streams=2)
    fill(served.connect())
    wire, unended = served.wire(), threading.Event()
    streams = [wire.begin("Search/SearchStream", unended=unended) for _ in range(2)]
    assert soon(lambda: served.inside == 2)
    assert isinstance(wire.error("Points/Scroll", messages.ScrollRequest(target=DOCS)), errors.Overloaded)
    assert wire.status("Points/Count", COUNT) is grpc.StatusCode.OK
    unended.set()
    assert [list(each) for each in streams] == [[], []]
    assert len(wire.ask("Points/Scroll", messages.ScrollRequest(target=DOCS))) == 1


def test_messages_under_way_are_bounded_together(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serving(in_flight_mib=1)
    fill(served.connect())
    wire, go, waiting = served.wire(), threading.Event(), []
    delete = Collection.delete

    def slow(self: Any, *args: Any, **how: Any) -> Any:
        waiting.append(1)
        assert go.wait(60)
        return delete(self, *args, **how)

    monkeypatch.setattr(Collection, "delete", slow)
    big = messages.DeleteRequest(target=DOCS, ids=messages.Ids(numbers=range(1_000, 101_000)))
    first = wire.begin("Points/Delete", big)
    assert soon(lambda: waiting)
    assert isinstance(wire.error("Points/Delete", big), errors.Overloaded)
    assert wire.status("Points/Count", COUNT) is grpc.StatusCode.OK, "small ones have room"
    go.set()
    first.result()
    assert wire.status("Points/Delete", big) is grpc.StatusCode.OK


@pytest.mark.parametrize("size", [1_500_000, 5_000_000])
def test_what_is_too_large_is_refused_by_the_name_of_the_setting(serving: Any, size: int) -> None:
    served = serving(max_message_mib=1)
    docs = fill(served.connect(retries=0))
    with pytest.raises(errors.InvalidInput, match="max_message_mib"):
        docs.count(vecdb.F("text") == "x" * size)
    assert docs.count() == 100
    assert served.empty()


def test_writes_larger_than_a_message_go_in_parts(serving: Any) -> None:
    served = serving(max_message_mib=1)
    docs = served.connect(retries=0).create_collection("docs", Dense(256, metric="l2", index="flat"))
    docs.upsert(ids=np.arange(3000), vectors=np.ones((3000, 256), np.float32))
    assert docs.count() == 3000


# -- time ----------------------------------------------------------------------------------------------------


@pytest.fixture
def long_search(serving: Any) -> tuple[Any, Any]:
    """A server, and a request that takes it many seconds."""
    served = serving()
    docs = served.connect().create_collection("docs", Dense(512, metric="l2", index="flat"))
    rng = np.random.default_rng(1)
    docs.upsert(ids=np.arange(80_000), vectors=rng.standard_normal((80_000, 512), np.float32))
    queries = convert.to_matrix(np.tile(rng.standard_normal((500, 512)).astype(np.float32), (12, 1)))
    options = messages.Options(exact=True, with_payload=False)
    return served, messages.SearchBatchRequest(target=DOCS, queries=queries, k=10, options=options)


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How each search that was begun ended, or "" while it goes on."""
    ends: list[str] = []
    search = Executor.search

    def watched(*args: Any, **how: Any) -> Any:
        number = len(ends)
        ends.append("")
        try:
            found = search(*args, **how)
        except BaseException as error:
            ends[number] = type(error).__name__
            raise
        ends[number] = "found"
        return found

    monkeypatch.setattr(Executor, "search", watched)
    return ends


def test_a_deadline_stops_the_kernel(long_search: tuple[Any, Any], searches: list[str]) -> None:
    served, request = long_search
    wire = served.wire()
    assert wire.status("Search/SearchBatch", request, timeout=1.0) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.empty()
    assert searches in ([], ["DeadlineReached"], ["Cancelled"]), "the work went on"
    assert wire.status("Points/Count", COUNT) is grpc.StatusCode.OK


def test_a_cancelled_call_stops_the_kernel(long_search: tuple[Any, Any], searches: list[str]) -> None:
    served, request = long_search
    call = served.wire().begin("Search/SearchBatch", request)
    assert soon(lambda: searches == [""])
    call.cancel()
    assert served.empty()
    assert searches == ["Cancelled"], "the work went on"


@pytest.mark.parametrize("hours", [-1000, 1000])
def test_a_clock_that_jumps_breaks_no_deadline(
    long_search: tuple[Any, Any], hours: int, searches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, request = long_search
    short = messages.SearchBatchRequest()
    short.CopyFrom(request)
    short.queries.CopyFrom(convert.to_matrix(convert.from_matrix(request.queries)[:400]))
    wire = served.wire()
    stopped = wire.begin("Search/SearchBatch", request, timeout=1.5)
    finished = served.wire().begin("Search/SearchBatch", short, timeout=60)
    assert soon(lambda: served.inside == 2)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * hours)
    assert len(messages.SearchBatchReply.FromString(finished.result()).lengths) == 400
    assert stopped.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.empty()
    assert "found" in searches and len(searches) == 1 + len({"DeadlineReached", "Cancelled"} & set(searches))


# -- the end -------------------------------------------------------------------------------------------------


def test_a_drain_finishes_what_is_under_way_and_takes_nothing_new(serving: Any, held: Held) -> None:
    served = serving(grace=30)
    fill(served.connect())
    wire = served.wire()
    seen: list[int] = []

    def watch() -> None:
        try:
            for each in health_pb2_grpc.HealthStub(wire.channel).Watch(HEALTH):
                seen.append(each.status)
        except grpc.RpcError:
            pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    under_way = wire.begin("Points/Count", COUNT)
    assert soon(lambda: held.waiting == 1 and seen == [1])
    served.server.stop()
    ending = threading.Thread(target=served.server.wait)
    ending.start()
    assert soon(lambda: seen == [1, 2]), "SERVING, and then NOT_SERVING"
    assert soon(lambda: served.wire().status("Admin/Hello", b"", timeout=2) is grpc.StatusCode.UNAVAILABLE)
    assert not under_way.done()
    held.release()
    assert messages.CountReply.FromString(under_way.result()).count == 100
    ending.join(20)
    assert not ending.is_alive(), "one who watches its health does not keep a server from ending"
    watcher.join(20)


def test_what_outlasts_the_grace_is_cut_off(serving: Any) -> None:
    served = serving(grace=0.3)
    fill(served.connect())
    call = served.wire().begin("Search/SearchStream", unended=threading.Event())
    assert soon(lambda: served.inside == 1)
    served.server.stop()
    ending = threading.Thread(target=served.server.wait)
    ending.start()
    ending.join(20)
    assert not ending.is_alive()
    with pytest.raises(grpc.RpcError):
        list(call)


def test_sigterm_drains(process: Callable[..., Any], connect: Callable[..., Any]) -> None:
    server = process("--grace", "60")
    docs = connect(server.port).create_collection("docs", Dense(256, metric="l2", index="flat"))
    rng = np.random.default_rng(1)
    docs.upsert(ids=np.arange(20_000), vectors=rng.standard_normal((20_000, 256)).astype(np.float32))
    queries = rng.standard_normal((3_000, 256)).astype(np.float32)
    found: list[Any] = []
    search = threading.Thread(target=lambda: found.append(docs.search_batch(queries, exact=True, with_payload=False)))
    search.start()
    time.sleep(0.3)
    assert server.end() == 0
    search.join(60)
    assert len(found[0]) == 3_000
    assert '"draining"' in server.log.read_text()
