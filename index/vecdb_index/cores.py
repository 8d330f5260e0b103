"""How many cores this process may use. Any thread."""

from __future__ import annotations

import os


def usable() -> int:
    """Those that it is pinned to, where the system tells; else all that there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
