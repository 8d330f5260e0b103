"""ULIDs: names that sort by the time they were made. 48 bits of milliseconds, 80 random bits, Crockford base 32.

Within a process each is greater than the one before, whatever the clock does (the `monotonic` clause of the ULID
specification). Safe in any thread.
"""

from __future__ import annotations

import os
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_lock = threading.Lock()
_last = 0
_owner = 0


def ulid() -> str:
    """A new ULID, 26 characters."""
    return ulids(1)[0]


def ulids(count: int) -> list[str]:
    """New ULIDs, each the successor of the one before: `series` has them all from the first."""
    global _last, _owner
    with _lock:
        fresh = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
        if _owner != os.getpid():  # a forked child must not continue its parent's series
            _last, _owner = 0, os.getpid()
        first = max(fresh, _last + 1)
        _last = first + max(0, count - 1)
    return [_text(first + number) for number in range(count)]


def series(first: str, count: int) -> list[str]:
    """A ULID and its successors."""
    value = 0
    for letter in first:
        value = value << 5 | _ALPHABET.index(letter)
    return [_text(value + number) for number in range(count)]


def _text(value: int) -> str:
    value &= (1 << 128) - 1
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))
