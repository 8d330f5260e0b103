"""Work in a pipeline: the next piece is made in one thread while another takes the one before.

Used where pieces are large, one at a time in memory is right, and their order matters: loading files, and streams of points.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """Runs an iterator in a thread, one item ahead of who takes them. Iterated by one thread, and closed by it.

    drop: told each item that nobody takes. before: another one, which this one's iterator takes from.
    """

    def __init__(self, items: Iterator[T], drop: Callable[[T], None], before: Ahead[T] | None = None) -> None:
        self._items, self._drop, self._before = items, drop, before
        self._queue: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(1)  # the next item is begun when the one before was taken, so that one is ahead
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vecdb-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._wanted.acquire() and not self._stopped.is_set():
                item = next(self._items, None)
                self._queue.put((item, None))
                if item is None:
                    break
        except BaseException as error:
            self._queue.put((None, error))
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            if self._stopped.is_set():
                self._empty()

    def __iter__(self) -> Iterator[T]:
        while not self._stopped.is_set():
            try:
                item, error = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is None:
                return
            self._wanted.release()
            yield item

    def close(self, *, wait: bool = True) -> None:
        """Stops the thread, wherever it is between two pieces, and waits for it; what was not taken is dropped.

        wait: False where the next piece may be long in coming; the thread then ends when it comes, or fails to.
        """
        self._stopped.set()
        self._wanted.release()
        if self._before is not None:
            self._before.close(wait=wait)
        if wait:
            self._thread.join()
        self._empty()

    def _empty(self) -> None:
        while True:
            try:
                item, _ = self._queue.get_nowait()
            except queue.Empty:
                return
            if item is not None:
                self._drop(item)
