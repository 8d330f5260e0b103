"""Searches by one thread and by two, and while somebody writes. Run by `python -m bench threads`.

Over the synthetic set in one segment with a graph, recall 0.95, k = 10. A measurement lasts a second; rounds take turns, medians
are shown.

- Batches: `search_batch` of 512 queries by a database that was opened with one thread, and with two.
- Single searches: one after the other from one Python thread, and from two, by a database with as many threads as there are cores.
- While writing: the same, while another Python thread upserts batches of ten new points, one after the other. Each such
  measurement has a copy of the database of its own. Points that are written stay in memory, and are searched exactly.
- The control: a kernel that only computes, without the interpreter's lock, by one thread and by two. It shows what the machine gives to
  two threads at all; others may be using it.

CPU/wall is the CPU time of the process over the time that passed: 2 where two cores were had.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numba
import numpy as np

from .__main__ import head, in_threads, ratio, row
from .sets import DataSet, data_sets, store

K = 10
RECALL = 0.95
SECONDS = 1.0
BATCH = 512
WRITTEN = 10  # points of a batch
STEPS = 1_000_000
COUNTS = (1, 2)


@numba.njit(nogil=True)
def spin(steps: int) -> int:
    """Steps that each wait for the one before, in registers."""
    state = np.uint64(88172645463325252)
    for _ in range(steps):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
    return state


@dataclass
class Measured:
    """Of each round: things done a second, CPU/wall, points written a second, and the times of single searches."""

    rates: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)
    written: list[float] = field(default_factory=list)
    latencies: list[np.ndarray] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def cpu(self) -> str:
        return f"{statistics.median(self.cpus):.2f}"

    def percentile(self, percent: float) -> str:
        """Median over rounds, in µs."""
        return f"{1e6 * statistics.median(np.percentile(times, percent) for times in self.latencies):,.0f}"


class Writer:
    """Upserts batches of new points in a thread of its own, from entering to leaving. points: that it wrote."""

    def __init__(self, docs: Any, data: DataSet) -> None:
        self._docs, self._data = docs, data
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run)
        self.points = 0

    def _run(self) -> None:
        n = len(self._data.base)
        while not self._stop.is_set():
            numbers = np.arange(self.points, self.points + WRITTEN)
            self._docs.upsert(ids=n + numbers, vectors=self._data.base[numbers % n])
            self.points += WRITTEN

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()


def measure(rounds: int, kinds: list[str], most: int | None) -> None:
    del kinds
    (data,) = data_sets(("synthetic",), most)
    spin(1)
    results: dict[tuple[str, bool, int], Measured] = {}
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=os.environ.get("VECDB_BENCH_DIR")) as name:
        work = Path(name)
        store(work / "db", data)
        for turn in range(rounds + 1):
            kept = results if turn else {}  # the first one warms
            for threads in COUNTS:
                _timed(kept.setdefault(("spin", False, threads), Measured()), threads, lambda _: spin(STEPS) and STEPS)
                for kind in ("batch", "single"):
                    for writing in (False, True):
                        _searched(kept.setdefault((kind, writing, threads), Measured()), work, data, kind, writing, threads)
    _show(results, data, rounds)


def _searched(into: Measured, work: Path, data: DataSet, kind: str, writing: bool, threads: int) -> None:
    import vecdb

    path = work / "db"
    if writing:
        path = work / "copy"
        shutil.copytree(work / "db", path)
    with vecdb.open(path, threads=threads if kind == "batch" else None) as db:
        docs, queries = db.collection("docs"), data.queries
        docs.search_batch(queries[:BATCH], k=K, recall=RECALL, with_payload=False)
        times: list[float] = []

        def batch(number: int) -> int:
            some = queries[np.arange(number * BATCH, (number + 1) * BATCH) % len(queries)]
            docs.search_batch(some, k=K, recall=RECALL, with_payload=False)
            return BATCH

        def single(number: int) -> int:
            started = time.perf_counter()
            docs.search(queries[number % len(queries)], k=K, recall=RECALL, with_payload=False)
            times.append(time.perf_counter() - started)
            return 1

        callers, call = (1, batch) if kind == "batch" else (threads, single)
        if writing:
            with Writer(docs, data) as writer:
                seconds = _timed(into, callers, call)
                into.written.append(writer.points / seconds)
        else:
            _timed(into, callers, call)
        into.latencies.append(np.array(times or [np.nan]))
    if writing:
        shutil.rmtree(path)


def _timed(into: Measured, threads: int, call: Callable[[int], int]) -> float:
    """Calls call(number), which says how much it did, from some threads, for so long; the seconds that it took."""
    done = [0] * threads
    started, cpu = time.perf_counter(), time.process_time()

    def work(me: int) -> None:
        number = me
        while time.perf_counter() - started < SECONDS:
            done[me] += call(number)
            number += threads

    seconds = in_threads(threads, work)
    into.rates.append(sum(done) / seconds)
    into.cpus.append((time.process_time() - cpu) / seconds)
    return seconds


def _show(results: dict[tuple[str, bool, int], Measured], data: DataSet, rounds: int) -> None:
    print(f"## One thread and two, quiet and while somebody writes: {data.name}, k={K}, recall {RECALL}\n")
    head("", "threads", "a second", "x one thread", "CPU/wall", "points written a second")
    names = {
        "spin": "the control, million steps",
        "batch": f"`search_batch` of {BATCH}, queries",
        "single": "single searches from as many Python threads",
    }
    for (kind, writing, threads), each in sorted(
        results.items(), key=lambda item: (list(names).index(item[0][0]), *item[0][1:])
    ):
        one = results[kind, writing, 1].rate
        rate = f"{each.rate / 1e6:,.0f}" if kind == "spin" else f"{each.rate:,.0f}"
        written = f"{statistics.median(each.written):,.0f}" if writing else ""
        row(names[kind] + (", while writing" if writing else ""), threads, rate, ratio(each.rate, one), each.cpu, written)
    print()
    head("single searches", "threads", "p50, µs", "p99, µs", "slowest, µs")
    for writing in (False, True):
        for threads in COUNTS:
            each = results["single", writing, threads]
            row("while writing" if writing else "quiet", threads, *(each.percentile(p) for p in (50, 99, 100)))
    print(f"\n{rounds} rounds of {SECONDS:g} s each. A writer's batch has {WRITTEN} points and is durable when it returns.\n")
