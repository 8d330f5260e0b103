"""Searches that arrive together go together: each gets its own answer, and nobody waits for company."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from calls import in_threads
from served import fill, soon
from vecdb_index import contract
from vecdb_index.coalesce import LARGEST, Coalescer, Shared
from vecdb_index.contract import Control

from vecdb import errors
from vecdb.collection import Collection
from vecdb.search.stopping import control_for
from vecdb.wire import messages


class Kernel:
    """Answers n by 10 * n, when it may."""

    def __init__(self, held: bool = False) -> None:
        self.calls: list[list[int]] = []
        self.free = threading.Event()
        if not held:
            self.free.set()

    def __call__(self, queries: list[int]) -> list[int]:
        self.calls.append(queries)
        assert self.free.wait(30)
        return [10 * query for query in queries]


def waiting(coalescer: Coalescer[int, int], same: str = "same") -> int:
    line = coalescer._lines.get(same)
    return 0 if line is None else len(line.waiting)


class Asked(threading.Thread):
    """One search, in a thread of its own."""

    def __init__(self, coalescer: Any, query: int, run: Any, deadline: float | None = None, same: str = "same") -> None:
        super().__init__()
        self.found: Any = None
        self._ask = lambda: coalescer.search(same, query, deadline, run)
        self.start()

    def run(self) -> None:
        try:
            self.found = self._ask()
        except Exception as error:
            self.found = error

    def end(self) -> Any:
        self.join(30)
        assert not self.is_alive()
        return self.found


def test_a_search_that_finds_the_way_free_goes_alone() -> None:
    sizes: list[int] = []
    coalescer, kernel = Coalescer[int, int](1, sizes.append), Kernel()
    assert [coalescer.search("same", n, None, kernel) for n in range(5)] == [0, 10, 20, 30, 40]
    assert sizes == [1] * 5
    assert not coalescer._lines, "nothing is left when it is idle"


def test_those_who_arrive_meanwhile_go_together_and_each_gets_its_own() -> None:
    coalescer, kernel = Coalescer[int, int](1), Kernel(held=True)
    asked = [Asked(coalescer, 0, kernel)]
    assert soon(lambda: kernel.calls == [[0]])
    for n in range(1, 9):
        asked.append(Asked(coalescer, n, kernel))
        assert soon(lambda n=n: waiting(coalescer) == n)
    kernel.free.set()
    assert [each.end() for each in asked] == [10 * n for n in range(9)]
    assert kernel.calls == [[0], list(range(1, 9))]
    assert not coalescer._lines


def test_many_threads_get_their_own_answers() -> None:
    coalescer, kernel = Coalescer[int, int](2), Kernel()

    def work(thread: int) -> None:
        for n in range(300):
            assert coalescer.search(f"same-{n % 3}", 1000 * thread + n, None, kernel) == 10 * (1000 * thread + n)

    in_threads(8, work)
    assert sum(map(len, kernel.calls)) == 2400
    assert not coalescer._lines


def test_calls_side_by_side_get_about_as_many_queries() -> None:
    """Or one of them answered all that wait, while the other had nothing to do."""
    coalescer, kernels = Coalescer[int, int](2), [Kernel(held=True) for _ in range(2)]
    rest, asked = Kernel(held=True), []
    for n, kernel in enumerate(kernels):
        asked.append(Asked(coalescer, n, kernel))
        assert soon(lambda kernel=kernel: len(kernel.calls) == 1)
    for n in range(2, 33):
        asked.append(Asked(coalescer, n, rest))
        assert soon(lambda n=n: waiting(coalescer) == n - 1)
    for kernel, so_far, left in zip(kernels, (1, 2), (15, 0), strict=True):
        kernel.free.set()
        assert soon(lambda so_far=so_far: len(rest.calls) == so_far) and waiting(coalescer) == left
    assert rest.calls == [list(range(2, 18)), list(range(18, 33))]
    rest.free.set()
    assert [each.end() for each in asked] == [10 * n for n in range(33)] and not coalescer._lines


def test_a_batch_is_bounded() -> None:
    coalescer, kernel = Coalescer[int, int](1), Kernel(held=True)
    asked = [Asked(coalescer, n, kernel) for n in range(LARGEST + 50)]
    assert soon(lambda: waiting(coalescer) == LARGEST + 49)
    kernel.free.set()
    assert [each.end() for each in asked] == [10 * n for n in range(LARGEST + 50)]
    assert sorted(map(len, kernel.calls)) == [1, 49, LARGEST]


def test_more_than_may_wait_are_told_so() -> None:
    coalescer, kernel = Coalescer[int, int](1, limit=2), Kernel(held=True)
    asked = [Asked(coalescer, 0, kernel)]
    assert soon(lambda: kernel.calls == [[0]])
    for n in (1, 2):
        asked.append(Asked(coalescer, n, kernel))
        assert soon(lambda n=n: waiting(coalescer) == n)
    with pytest.raises(contract.Overloaded, match="2 searches wait"):
        coalescer.search("same", 3, None, kernel)
    assert coalescer.search("another", 4, None, Kernel()) == 40
    kernel.free.set()
    assert [each.end() for each in asked] == [0, 10, 20] and not coalescer._lines


def test_as_many_calls_run_side_by_side_as_the_width_says() -> None:
    coalescer, kernel = Coalescer[int, int](3), Kernel(held=True)
    asked = [Asked(coalescer, n, kernel) for n in range(5)]
    assert soon(lambda: waiting(coalescer) == 2)
    assert len(kernel.calls) == 3
    kernel.free.set()
    assert [each.end() for each in asked] == [0, 10, 20, 30, 40]


def test_what_is_not_the_same_does_not_go_together() -> None:
    coalescer, kernel, other = Coalescer[int, int](1), Kernel(held=True), Kernel()
    first = Asked(coalescer, 1, kernel)
    assert soon(lambda: kernel.calls)
    assert coalescer.search("another", 2, None, other) == 20
    kernel.free.set()
    assert first.end() == 10


def test_a_deadline_ends_the_wait_and_nobody_elses() -> None:
    coalescer, kernel = Coalescer[int, int](1), Kernel(held=True)
    first = Asked(coalescer, 1, kernel)
    assert soon(lambda: kernel.calls)
    late = Asked(coalescer, 2, kernel, deadline=time.monotonic() + 0.1)
    patient = Asked(coalescer, 3, kernel)
    assert isinstance(late.end(), contract.DeadlineReached)
    kernel.free.set()
    assert (first.end(), patient.end()) == (10, 30)
    assert [2] not in kernel.calls
    assert not coalescer._lines


def test_an_error_goes_to_all_of_the_batch_and_to_nobody_else() -> None:
    coalescer, kernel = Coalescer[int, int](1), Kernel(held=True)

    def run(queries: list[int]) -> list[int]:
        found = kernel(queries)
        if len(queries) > 1:
            raise errors.StorageError("the disk is gone", file="f")
        return found

    first = Asked(coalescer, 1, run)
    assert soon(lambda: kernel.calls)
    together = [Asked(coalescer, n, run) for n in (2, 3, 4)]
    assert soon(lambda: waiting(coalescer) == 3)
    kernel.free.set()
    assert first.end() == 10
    assert [type(each.end()) for each in together] == [errors.StorageError] * 3
    assert coalescer.search("same", 5, None, run) == 50
    assert not coalescer._lines


def test_an_error_of_one_who_goes_alone_lets_the_next_go() -> None:
    coalescer = Coalescer[int, int](1)

    def run(queries: list[int]) -> list[int]:
        raise errors.Corruption("torn", file="f")

    for _ in range(3):
        with pytest.raises(errors.Corruption):
            coalescer.search("same", 1, None, run)
    assert not coalescer._lines


def test_a_query_that_is_wrong_does_not_fail_those_that_go_with_it(serving: Any) -> None:
    served = serving(metrics_port=0)
    db = served.connect()
    fill(db, "docs", 500)
    target = messages.Target(collection="docs")

    def ask(number: int) -> Any:
        wire = served.wire()
        for _ in range(40):
            values = [number, 1, 1, float("nan")] if number % 4 == 0 else [number, 1, 1, 1]
            request = messages.SearchRequest(target=target, query=messages.Vector(values=values), k=3)
            if number % 4 == 0:
                assert isinstance(wire.error("Search/Search", request), errors.InvalidVector)
            else:
                assert wire.ask("Search/Search", request)[0].hits[0].id.number == number
        return None

    in_threads(12, ask)
    assert served.empty()
    assert served.server.metrics.text().count(b"vecdb_coalesced_queries_bucket") > 1


def test_searches_that_go_together_are_those_that_go_alone(serving: Any, rng: np.random.Generator) -> None:
    served = serving()
    docs = fill(served.connect(), "docs", 300, dim=8)
    queries = rng.standard_normal((40, 8)).astype(np.float32)
    alone = [[(hit.id, hit.score) for hit in docs.search(query, 5)] for query in queries]
    clients = [served.connect()["docs"] for _ in range(8)]
    found = in_threads(8, lambda n: [[(hit.id, hit.score) for hit in clients[n].search(query, 5)] for query in queries])
    for each in found:
        assert each == alone


def test_work_for_several_goes_on_until_the_latest_of_their_deadlines() -> None:
    now = time.monotonic()
    Shared([Control(now - 1), Control(now + 3600), Control(now - 2)]).poll()
    Shared([Control(now - 1), Control(None)]).poll()
    with pytest.raises(contract.DeadlineReached):
        Shared([Control(now - 1), Control(now - 2)]).poll()


def test_work_for_several_stops_when_all_of_them_have_gone() -> None:
    callers = [Control(), Control(time.monotonic() + 3600), Control(time.monotonic() - 1)]
    shared = Shared(callers)
    shared.poll()
    callers[0].cancel()
    shared.poll()
    callers[1].cancel()
    with pytest.raises((contract.Cancelled, contract.DeadlineReached)):
        shared.poll()


def test_a_batch_goes_on_for_the_last_who_wants_it_and_stops_when_nobody_does(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Coalescer[Any, Any]] = []

    def kept(*how: Any) -> Coalescer[Any, Any]:
        made.append(Coalescer(*how))
        return made[-1]

    monkeypatch.setattr("vecdb.server.serve.Coalescer", kept)
    served = serving()
    fill(served.connect())
    free, polls, sizes = threading.Event(), [0], []
    search = Collection.search

    def first(self: Any, *args: Any, **how: Any) -> Any:
        assert free.wait(60)
        return search(self, *args, **how)

    def batch(self: Any, queries: Any, *args: Any, **how: Any) -> Any:
        sizes.append(len(queries))
        control = control_for(None)
        assert control is not None
        while True:
            polls[0] += 1
            control.poll()
            time.sleep(0.001)

    monkeypatch.setattr(Collection, "search", first)
    monkeypatch.setattr(Collection, "search_batch", batch)
    request = messages.SearchRequest(target=messages.Target(collection="docs"), query=messages.Vector(values=[1] * 4))
    wire = served.wire()
    alone = wire.begin("Search/Search", request)
    lines = made[0]._lines
    assert soon(lambda: [line.running for line in lines.values()] == [1])
    together = [wire.begin("Search/Search", request) for _ in range(3)]
    assert soon(lambda: [len(line.waiting) for line in lines.values()] == [3])
    free.set()
    alone.result()
    assert soon(lambda: sizes == [3])
    for call in together[:2]:
        call.cancel()
    before = polls[0]
    assert soon(lambda: polls[0] > before + 100)
    assert served.inside == 3
    together[2].cancel()
    assert served.empty()
    assert not lines
