"""Recall as users get it: a few of their searches are run again exactly, when nothing else is asked, and compared.

A Prober belongs to one Database. It keeps the snapshot of a search that it is going to repeat, so what is compared is what was
there. At most a few searches wait; when more come, the oldest are forgotten. `offer` may be called from any thread; one thread
of its own does the rest.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import threading
import time
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import Queries
from vecdb_storage.priority import give_way
from vecdb_storage.snapshot import Snapshot

from ..search.executor import Answer, Executor
from ..search.planner import Asked

_WAITING = 64
_IDLE, _PATIENCE = 0.05, 2.0  # seconds without a search that are waited for, and for how long at most
_ENOUGH, _SHORT = 100, 0.01  # queries from which on a recall that is short by so much is worth a warning
_log = logging.getLogger("vecdb")


@dataclass(frozen=True)
class Probed:
    """What searches of a field delivered. queries: run again. asked, delivered: mean recall; low, high: its 95 % interval."""

    queries: int
    asked: float
    delivered: float
    low: float
    high: float


@dataclass(frozen=True)
class _Search:
    """A search to be run again. recall: that was asked. keys: of the hits that came."""

    uuid: bytes
    snapshot: Snapshot
    exactly: Asked
    recall: float
    query: Queries
    keys: npt.NDArray[np.float32]


@dataclass
class _Sums:
    count: int = 0
    asked: float = 0.0
    found: float = 0.0
    squares: float = 0.0
    warned: bool = False


class Prober:
    def __init__(self, rate: float) -> None:
        """rate: the share of queries that is run again."""
        self._rate = rate
        self._executor = Executor(1)
        self._waiting: deque[_Search] = deque(maxlen=_WAITING)
        self._sums: dict[tuple[bytes, str], _Sums] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._thread: threading.Thread | None = None
        self._last = 0.0
        self._stopped = False

    def offer(self, uuid: bytes, snapshot: Snapshot, asked: Asked, queries: Queries, found: Answer) -> None:
        """A search was answered; some are taken note of."""
        self._last = time.monotonic()
        if asked.recall >= 1 or random.random() >= 1 - (1 - self._rate) ** len(queries):
            return
        at = random.randrange(len(queries))
        keys = np.array([hit.key for hit in found[at]], np.float32)
        again = replace(asked, recall=1.0, control=None, whole=None)
        with self._lock:
            if self._stopped:
                return
            self._waiting.append(_Search(uuid, snapshot, again, asked.recall, copy.deepcopy(queries[at : at + 1]), keys))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="vecdb-probe", daemon=True)
                self._thread.start()
        self._woken.set()

    def close(self) -> None:
        with self._lock:
            self._stopped = True
            self._waiting.clear()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
        self._executor.close()

    def of(self, uuid: bytes, field: str) -> Probed | None:
        with self._lock:
            sums = self._sums.get((uuid, field))
            return None if sums is None else _probed(sums)

    def _run(self) -> None:
        give_way()
        while True:
            self._woken.wait()
            self._woken.clear()
            while True:
                began = time.monotonic()
                while not self._stopped and time.monotonic() - self._last < _IDLE and time.monotonic() - began < _PATIENCE:
                    time.sleep(_IDLE)
                with self._lock:
                    if self._stopped:
                        return
                    if not self._waiting:
                        break
                    one = self._waiting.popleft()
                try:
                    true = self._executor.search(one.snapshot, one.exactly, one.query, batch=False)[0]
                except Exception as error:  # a damaged segment, say, of which the search itself has told
                    _log.info("a search could not be run again to measure recall: %s", error)
                    continue
                if true:
                    recall = min(1.0, float(np.count_nonzero(one.keys >= np.float32(true[-1].key))) / len(true))
                    self._add(one.uuid, one.exactly.field, one.recall, recall)

    def _add(self, uuid: bytes, field: str, asked: float, recall: float) -> None:
        with self._lock:
            sums = self._sums.setdefault((uuid, field), _Sums())
            sums.count += 1
            sums.asked += asked
            sums.found += recall
            sums.squares += recall * recall
            seen = _probed(sums)
            if sums.warned or seen.queries < _ENOUGH or seen.high >= seen.asked - _SHORT:
                return
            sums.warned = True
        _log.warning(
            "field %r delivers a recall of %.3f (%.3f to %.3f, %d queries) where %.3f was asked: give calibrate() some hundred "
            "queries like those", field, seen.delivered, seen.low, seen.high, seen.queries, seen.asked,
        )  # fmt: skip


def _probed(sums: _Sums) -> Probed:
    n, mean = sums.count, sums.found / sums.count
    spread = 1.96 * math.sqrt(max(0.0, sums.squares / n - mean * mean) / max(1, n - 1))
    return Probed(n, sums.asked / n, mean, max(0.0, mean - spread), min(1.0, mean + spread))
