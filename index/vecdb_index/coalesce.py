"""Searches that arrive together become one kernel call.

Nobody waits for company: a search that finds the way free goes at once, alone. Those that arrive while it runs, and ask for the
same thing of the same collection, go together next, led by the first of them: as many as leave calls that run side by side
about equal. So a batch is as large as the load makes it, the wait is about that of the call before, and nothing is on when
nobody else searches. A server has one for its requests; an index whose searches read every row has one of its own, so that
threads that search at once share what is read. Safe in any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from .contract import Cancelled, Control, DeadlineReached, Overloaded

Query = TypeVar("Query")
Reply = TypeVar("Reply")
LARGEST = 256  # queries in a call
LIMIT = 4096  # queries that wait for their turn


class Shared(Control):
    """Of work that is done for several callers: it stops when all of them are stopped."""

    __slots__ = ("_callers",)

    def __init__(self, callers: Sequence[Control]) -> None:
        super().__init__()
        self._callers = callers

    def poll(self) -> None:
        super().poll()
        stopped: Exception | None = None
        for caller in self._callers:
            try:
                return caller.poll()
            except (Cancelled, DeadlineReached) as error:
                stopped = error
        if stopped is not None:
            raise stopped


class _Waiting(Generic[Query, Reply]):
    __slots__ = ("error", "led", "query", "ready", "reply")

    def __init__(self, query: Query) -> None:
        self.query = query
        self.ready = threading.Event()
        self.led: list[_Waiting[Query, Reply]] | None = None  # set when it is to lead these, itself among them
        self.reply: Reply | None = None
        self.error: BaseException | None = None


class _Line:
    """Those who ask for the same thing. asked: queries in calls that run."""

    __slots__ = ("asked", "running", "waiting")

    def __init__(self) -> None:
        self.running = self.asked = 0
        self.waiting: list[Any] = []


class Coalescer(Generic[Query, Reply]):
    """width: calls for the same thing that may run side by side: as many as there are kernel threads."""

    def __init__(self, width: int, seen: Callable[[int], None] = lambda size: None, limit: int = LIMIT) -> None:
        """seen: told the size of each call. limit: queries that may wait for a call of their kind."""
        self._width, self._seen, self._limit = width, seen, limit
        self._lock = threading.Lock()
        self._lines: dict[Hashable, _Line] = {}

    def search(
        self,
        same: Hashable,
        query: Query,
        deadline: float | None,
        run: Callable[[list[Query]], list[Reply]],
    ) -> Reply:
        """The reply to one query. same: what must be equal for queries to go together.

        deadline: a time.monotonic() value until which it waits for its turn, or None. run: answers some queries; what it
        raises is raised to each of them. Raises DeadlineReached, and Overloaded where too many wait already.
        """
        with self._lock:
            line = self._lines.get(same)
            if line is None:
                line = self._lines[same] = _Line()
            if line.running < self._width:
                line.running += 1
                line.asked += 1
                mine = None
            elif len(line.waiting) >= self._limit:
                raise Overloaded(self._limit)
            else:
                mine = _Waiting[Query, Reply](query)
                line.waiting.append(mine)
        if mine is None:
            try:
                self._seen(1)
                return run([query])[0]
            finally:
                self._next(same, line, 1)
        if not mine.ready.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            with self._lock:
                if mine in line.waiting:
                    line.waiting.remove(mine)
                left = mine.led is None
            if left:
                raise DeadlineReached
        if mine.led is not None:
            self._lead(same, line, mine.led, run)
        if mine.error is not None:
            raise mine.error
        assert mine.reply is not None
        return mine.reply

    def _lead(
        self,
        same: Hashable,
        line: _Line,
        together: list[_Waiting[Query, Reply]],
        run: Callable[[list[Query]], list[Reply]],
    ) -> None:
        try:
            self._seen(len(together))
            replies = run([each.query for each in together])
            for each, reply in zip(together, replies, strict=True):
                each.reply = reply
        except BaseException as error:
            for each in together:
                each.error = error
        finally:
            self._next(same, line, len(together))
            for each in together[1:]:
                each.ready.set()

    def _next(self, same: Hashable, line: _Line, done: int) -> None:
        """Some of those who wait go next, led by the first of them; or nobody does. done: queries that were answered."""
        with self._lock:
            line.asked -= done
            count = min(LARGEST, -(-(len(line.waiting) + line.asked) // self._width))  # their share, beside other calls
            together, line.waiting = line.waiting[:count], line.waiting[count:]
            if together:
                together[0].led = together
                line.asked += len(together)
            else:
                line.running -= 1
                if not line.running and self._lines.get(same) is line:
                    del self._lines[same]
        if together:
            together[0].ready.set()
