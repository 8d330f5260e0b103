"""Whether a history of operations on one register could have happened one after another, each between its call and its return.

The search of Wing and Gong (1993) with the memory of Lowe (2017): from a state, any operation may be next that was called before
every other unfinished one has returned; a set of finished operations and a state that led nowhere is not tried again.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """called, returned: moments on one clock. kind: "write" of value (None deletes), or "read", which saw value.

    certain: False for a write whose outcome is not known: it may have happened at any time since, or never.
    """

    kind: str
    value: Hashable
    called: float
    returned: float
    certain: bool = True


def is_linearizable(history: Sequence[Operation], first: Hashable = None) -> bool:
    """Whether the register, which held `first`, may have given these answers."""
    operations = sorted(history, key=lambda operation: operation.called)
    ends = [operation.returned if operation.certain else float("inf") for operation in operations]
    every = (1 << len(operations)) - 1
    needed = sum(1 << number for number, operation in enumerate(operations) if operation.certain)
    seen: set[tuple[int, Any]] = set()
    waiting: list[tuple[int, Hashable]] = [(0, first)]
    while waiting:
        done, value = waiting.pop()
        if done & needed == needed:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        left = every & ~done
        number = (left & -left).bit_length() - 1
        deadline = float("inf")  # whoever is called after this must wait for the one that returns then
        while number < len(operations) and operations[number].called <= deadline:
            if left >> number & 1:
                deadline = min(deadline, ends[number])
                operation = operations[number]
                if operation.kind == "write":
                    waiting.append((done | 1 << number, operation.value))
                elif operation.value == value:
                    waiting.append((done | 1 << number, value))
            number += 1
    return False
