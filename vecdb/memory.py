"""How much memory there is, and giving back what is not needed any more. Any thread."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress


def available() -> int:
    """Bytes that are free, about."""
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not say
        return 1 << 32


def give_back() -> None:
    """What was freed goes back to the system. glibc keeps it for later: after builds, about as much as the largest one took.

    Takes about 0.1 ms for each MiB, in which other threads may wait for memory. Does nothing with other C libraries.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
