"""What stops a search from outside: a deadline or a wish that belongs to the thread and not to the call.

A server sets it around what it calls; searches in that thread are then under it, as well as under their own `timeout`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from vecdb_index.contract import Control

_current: ContextVar[Control | None] = ContextVar("vecdb_search_control", default=None)


@contextmanager
def stopped_by(control: Control) -> Iterator[None]:
    """Searches of this thread end when `control` says so: with Cancelled, or DeadlineExceeded."""
    token = _current.set(control)
    try:
        yield
    finally:
        _current.reset(token)


def control_for(timeout: float | None) -> Control | None:
    """What a search that may take `timeout` seconds is under; None where nothing stops it."""
    control = _current.get()
    if timeout is None:
        return control
    until = time.monotonic() + timeout
    if control is None:
        return Control(until)
    control.deadline = until if control.deadline is None else min(until, control.deadline)
    return control
