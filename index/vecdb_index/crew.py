"""The threads of a database, which share what one search takes.

Whoever has work does it himself; others help who are free. Nobody waits for a thread that is busy elsewhere, so work may be
shared inside shared work. Safe in any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

_WORTH = 400e-6  # seconds of work for each thread, below which fewer are better


class Crew:
    """threads: of kernels, at least 1, that of the caller among them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="vecdb-search") if threads > 1 else None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def pieces(self, seconds: float, worth: float = _WORTH) -> int:
        """By how many threads work of so many seconds is best done; worth: seconds for which another one is worth waking."""
        return min(self.threads, max(1, int(seconds / worth)))

    def run(self, work: Callable[[], None], threads: int) -> None:
        """Calls `work` in this thread, and in so many less one others as are free before it returns.

        Work is divided by `work` itself: all calls take from one iterator, say. What a call raises is raised when all ended.
        """
        if self._pool is None or threads < 2:
            return work()
        futures = [self._pool.submit(work) for _ in range(threads - 1)]
        try:
            work()
        finally:
            wait([future for future in futures if not future.cancel()])  # those that never began are not waited for
        for future in futures:
            if not future.cancelled():
                future.result()
