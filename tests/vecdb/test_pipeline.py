"""A pipeline keeps order, is one piece ahead and no more, and drops what nobody took."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vecdb.pipeline import Ahead


def test_one_piece_is_ahead_and_no_more() -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(6):
            begun.append(number)
            yield number

    taken = []
    ahead = Ahead(items(), lambda _: None)
    for number in ahead:
        taken.append(number)
        time.sleep(0.02)
        assert len(begun) <= len(taken) + 1
    ahead.close()
    assert taken == begun == list(range(6))


def test_stages_follow_each_other_and_an_error_comes_after_what_was_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise ValueError("the fourth")

    first = Ahead(items(), lambda _: None)
    second = Ahead((10 * number for number in first), lambda _: None, first)
    taken = []
    with pytest.raises(ValueError, match="the fourth"):
        for number in second:
            taken.append(number)  # noqa: PERF402
    second.close()
    assert taken == [0, 10, 20]


def test_what_was_not_taken_is_dropped() -> None:
    dropped: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        second.set()
        yield 1
        raise AssertionError("nobody wanted a third")

    ahead = Ahead(items(), dropped.append)
    assert next(iter(ahead)) == 0
    assert second.wait(10)
    ahead.close()
    assert dropped == [1]
    assert list(ahead) == []
