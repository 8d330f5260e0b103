"""Work in the background gives way to searches and writes: its threads run at a lower priority.

Where all cores are busy, a thread of `NICE` gets about a third of what one of the application gets; where a core is idle, it
gets all of it. The threads that it starts inherit it. Linux only: elsewhere priorities belong to processes.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

NICE = 5


def give_way() -> None:
    """Lowers the priority of the calling thread. It cannot be raised again, so call it in threads of our own only."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox that forbids it: the work is done at the usual priority
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)
