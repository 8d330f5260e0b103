"""The checker accepts what some order explains, and rejects what none does."""

from __future__ import annotations

import itertools
import random

import pytest
from linearizability import Operation, is_linearizable


def write(value: object, called: float, returned: float, certain: bool = True) -> Operation:
    return Operation("write", value, called, returned, certain)


def read(value: object, called: float, returned: float) -> Operation:
    return Operation("read", value, called, returned)


GOOD = {
    "nothing": [],
    "one after another": [write(1, 0, 1), read(1, 2, 3), write(2, 4, 5), read(2, 6, 7)],
    "a read beside a write sees the old value": [write(1, 0, 1), write(2, 2, 5), read(1, 3, 4)],
    "a read beside a write sees the new value": [write(1, 0, 1), write(2, 2, 5), read(2, 3, 4)],
    "two writes together, in either order": [write(1, 0, 3), write(2, 1, 2), read(1, 4, 5)],
    "deleted": [write(1, 0, 1), write(None, 2, 3), read(None, 4, 5)],
    "a lost write that happened later": [write(1, 0, 1), write(2, 2, 3, certain=False), read(1, 4, 5), read(2, 6, 7)],
    "a lost write that never happened": [write(1, 0, 1), write(2, 2, 3, certain=False), read(1, 4, 5)],
    "a lost write beside the last read": [write(1, 0, 1, certain=False), read(None, 0, 2)],
}

BAD = {
    "a write that nobody made": [write(1, 0, 1), read(2, 2, 3)],
    "an acknowledged write is not seen": [write(1, 0, 1), read(None, 2, 3)],
    "a stale read": [write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)],
    "new, then old": [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)],
    "read before it was written": [read(1, 0, 1), write(1, 2, 3)],
    "two readers disagree on the order": [
        write(1, 0, 9), write(2, 0, 9), read(1, 10, 11), read(2, 12, 13),
    ],
    "a delete that came back": [write(1, 0, 1), write(None, 2, 3), read(1, 4, 5)],
    "a lost write that came and went": [write(1, 0, 1), write(2, 2, 3, certain=False), read(2, 4, 5), read(1, 6, 7)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_histories_with_an_explanation_are_accepted(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_histories_without_one_are_rejected(name: str) -> None:
    assert not is_linearizable(BAD[name])


def explained(history: list[Operation]) -> bool:
    """By trying every order."""
    for order in itertools.permutations(history):
        value, right = None, True
        for place, operation in enumerate(order):
            right = right and all(later.returned >= operation.called for later in order[place + 1 :])
            if operation.kind == "write":
                value = operation.value
            right = right and operation.value == value
        if right:
            return True
    return False


def test_it_agrees_with_trying_every_order() -> None:
    chance, verdicts = random.Random(5), set()
    for _ in range(600):
        history = []
        for _ in range(chance.randint(1, 6)):
            called = chance.uniform(0, 10)
            kind, value = chance.choice(["read", "write"]), chance.choice([None, 1, 2])
            history.append(Operation(kind, value, called, called + chance.uniform(0, 4)))
        verdict = is_linearizable(history)
        verdicts.add(verdict)
        assert verdict == explained(history), history
    assert verdicts == {True, False}


def test_a_long_history_of_many_threads_is_decided_quickly() -> None:
    chance, history, value = random.Random(6), [], None
    for moment in range(2000):
        kind = chance.choice(["read", "write"])
        value = moment if kind == "write" else value
        history.append(Operation(kind, value, moment - chance.uniform(0, 6), moment + chance.uniform(0, 6)))
    assert is_linearizable(history)
