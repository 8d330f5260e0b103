"""Threads that search by bits at once, and threads that share one search: the same answers as one thread alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from vecdb_index.coalesce import Coalescer
from vecdb_index.conformance import bitmap, drawn, same, stored
from vecdb_index.contract import Budget, Cancelled, Control, DeadlineReached
from vecdb_index.crew import Crew
from vecdb_index.kernels.bitmap import ALL
from vecdb_index.kernels.distances import METRICS
from vecdb_index.mib import search
from vecdb_index.mib.backend import BACKEND
from vecdb_index.mib.params import MIB
from vecdb_index.mib.scan import scan
from vecdb_index.mib.scores import Question
from vecdb_index.mib.search import MIBSearcher

METRIC = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture(autouse=True)
def _by_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MIBSearcher, "_pays", lambda self, k, short: True)


def opened(rows: Any, bits: int = 1) -> MIBSearcher:
    params = MIB("hadamard", bits)
    return MIBSearcher(BACKEND.build(rows, {}, params, Budget(), lambda share: None), {}, rows, params)


class Held:
    """Passes over the codes that wait until they may begin. sizes: of their queries."""

    def __init__(self, searcher: MIBSearcher, monkeypatch: pytest.MonkeyPatch, width: int = 1) -> None:
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.company = searcher._company = Coalescer(width)
        look = searcher.look

        def held(queries: Any, *arguments: Any) -> Any:
            self.sizes.append(len(queries))
            assert self.free.wait(30)
            return look(queries, *arguments)

        monkeypatch.setattr(searcher, "look", held)

    def waiting(self, count: int) -> bool:
        for _ in range(3000):
            if self.sizes and sum(len(line.waiting) for line in self.company._lines.values()) == count:
                return True
            time.sleep(0.01)
        return False


@METRIC
def test_threads_that_search_at_once_share_a_pass(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And get what they would have got alone, whatever their floors; a bitmap of its own is a pass of its own."""
    rows, queries = stored(drawn(3000, 96), metric), drawn(20, 96, seed=1)
    searcher = opened(rows, bits=2)
    some = bitmap(np.arange(3000) % 2 == 0)
    alone = [searcher.search(queries[q : q + 1], 5, 0.4) for q in range(20)]
    floors = [each.keys[:, 2] if q % 3 else None for q, each in enumerate(alone)]
    held = Held(searcher, monkeypatch)
    with ThreadPoolExecutor(30) as pool:
        first = pool.submit(searcher.search, queries[:1], 5, 0.4)
        assert held.waiting(0)
        others = [pool.submit(searcher.search, queries[q : q + 1], 5, 0.4, None, floors[q], Control()) for q in range(1, 20)]
        assert held.waiting(19)
        filtered = pool.submit(searcher.search, queries[:1], 5, 0.4, some)
        while len(held.sizes) < 2:
            time.sleep(0.01)
        held.free.set()
        found = [first.result(), *(each.result() for each in others)]
        assert (filtered.result().rows % 2 == 0).all()
    assert sorted(held.sizes) == [1, 1, 19] and not held.company._lines
    for q, (mine, before) in enumerate(zip(found, alone, strict=True)):
        length = 5 if floors[q] is None or q == 0 else int(mine.lengths[0])
        assert length >= 3 and np.array_equal(mine.keys[0, :length], before.keys[0, :length])
        assert np.array_equal(mine.rows[0, :length], before.rows[0, :length])
        assert mine.scored == before.scored


def test_who_has_left_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = stored(drawn(3000, 96), "l2"), drawn(4, 96, seed=1)
    searcher = opened(rows)
    before = searcher.search(queries[1:2], 5, 0.4)
    held, left = Held(searcher, monkeypatch), Control()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(searcher.search, queries[:1], 5, 0.4)
        assert held.waiting(0)
        patient = pool.submit(searcher.search, queries[1:2], 5, 0.4, None, None, Control())
        gone = pool.submit(searcher.search, queries[2:3], 5, 0.4, None, None, left)
        late = pool.submit(searcher.search, queries[3:4], 5, 0.4, None, None, Control(time.monotonic() + 0.05))
        with pytest.raises(DeadlineReached):
            late.result()
        assert held.waiting(2)
        left.cancel()
        held.free.set()
        first.result()
        with pytest.raises(Cancelled):
            gone.result()
        assert same(patient.result(), before)


# -- threads that share one search ---------------------------------------------------------------------------------


class Scans:
    """Ranges of blocks that are scanned, and by which threads, each of which waits for as many as there are to be."""

    def __init__(self, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self._all = threading.Barrier(threads)

        def scanned(*arguments: Any) -> int:
            if threading.get_ident() not in self.threads:
                self.threads.add(threading.get_ident())
                self._all.wait(30)
            self.ranges.append(arguments[6:8])
            return int(scan(*arguments))

        monkeypatch.setattr(search, "scan", scanned)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Crew, "pieces", lambda self, seconds, worth=0: self.threads)  # however little there is to do
    made = Crew(3)
    yield made
    made.close()


@METRIC
@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("m", [1, 5])
def test_a_crew_finds_what_one_thread_finds(
    metric: Any, bits: int, m: int, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By lists of a margin and of a length; with a filter, floors and a control; and it reads each block once."""
    rows, queries = stored(drawn(6000, 96), metric), drawn(m, 96, seed=1)
    searcher = opened(rows, bits)
    assert searcher.lists.decline.falls
    words = bitmap(np.arange(6000) % 7 < 3)
    for short in (10, 60, 700):
        for words_, control in ((ALL, None), (words, Control())):
            alone = searcher.look(queries, 5, short, words_, None, control)
            seen = Scans(3, monkeypatch)
            found = searcher.over(crew).look(queries, 5, short, words_, None, control)
            assert len(seen.threads) == 3 and len(seen.ranges) >= 12
            assert sorted(block for first, last in seen.ranges for block in range(first, last)) == list(range(188))
            monkeypatch.undo()
            monkeypatch.setattr(Crew, "pieces", lambda self, seconds, worth=0: self.threads)
            assert same(found, alone) and np.array_equal(found.tied, alone.tied)
            assert found.seen == alone.seen and found.scored == alone.scored and found.bytes == alone.bytes
            assert found.bound == alone.bound and (found.bound is None) == (m > 1)


def test_many_queries_are_not_divided_by_rows(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    searcher = opened(stored(drawn(6000, 96), "l2"))
    seen = Scans(1, monkeypatch)
    searcher.over(crew).look(drawn(16, 96, seed=1), 5, 60)
    assert seen.ranges == [(0, 188)] and seen.threads == {threading.get_ident()}


def test_what_a_crew_does_can_be_cancelled(crew: Crew) -> None:
    searcher, control = opened(stored(drawn(6000, 96), "l2")), Control()
    control.cancel()
    with pytest.raises(Cancelled):
        searcher.over(crew).look(drawn(1, 96), 5, 60, ALL, None, control)
    with pytest.raises(DeadlineReached):
        searcher.over(crew).look(drawn(1, 96), 5, 60, ALL, None, Control(time.monotonic() - 1))


def test_nobody_waits_for_threads_that_are_busy() -> None:
    crew, free, calls = Crew(2), threading.Event(), list[int]()
    busy = [crew._pool.submit(free.wait, 30) for _ in range(2)] if crew._pool is not None else []
    crew.run(lambda: calls.append(threading.get_ident()), 2)
    assert calls == [threading.get_ident()] and len(busy) == 2
    free.set()
    crew.close()


def test_what_a_thread_of_a_crew_raises_is_raised() -> None:
    crew, met, ended = Crew(2), threading.Barrier(2), list[int]()
    for mine in (True, False):

        def work(mine: bool = mine, caller: int = threading.get_ident()) -> None:
            met.wait(30)
            if (threading.get_ident() == caller) == mine:
                raise KeyError("broken")
            time.sleep(0.05)
            ended.append(1)

        with pytest.raises(KeyError, match="broken"):
            crew.run(work, 2)
    assert len(ended) == 2, "all calls had ended"
    crew.close()


def test_pieces_are_worth_a_thread() -> None:
    crew = Crew(4)
    assert [crew.pieces(seconds) for seconds in (0, 1e-4, 9e-4, 1)] == [1, 1, 2, 4] and Crew(1).pieces(1) == 1
    assert [crew.pieces(1e-3, worth) for worth in (1e-3, 5e-4, 1e-4)] == [1, 2, 4]
    crew.close()


@METRIC
def test_no_row_that_was_left_out_is_estimated_above_the_bound(metric: Any) -> None:
    rows, query = stored(drawn(6000, 96), metric), drawn(1, 96, seed=1)
    searcher = opened(rows)
    keys, _ = Question(searcher.encoder, query).estimated(searcher.bits)
    for short in (10, 60, 700):
        hits = searcher.look(query, 5, short)
        assert (
            hits.bound is not None
            and np.count_nonzero(keys > hits.bound + 1e-6 * abs(hits.bound)) <= hits.seen["rows in short lists"]
        )
        assert np.count_nonzero(keys >= hits.bound - 1e-6 * abs(hits.bound)) >= hits.seen["rows in short lists"]
        assert set(hits.spent) == {"tables", "scan", "rows"} and all(seconds >= 0 for seconds in hits.spent.values())
    assert searcher.look(query, 5, 6000).bound is None, "all were compared"
