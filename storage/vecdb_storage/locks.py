"""Who may open a database: within a process one thread at a time, and for writing one process.

The writer's lock: an flock on LOCK, held while a process has the database open for writing.

The file's content (JSON: pid, host, started, address) is for the refusal message only; the lock itself is the
kernel's and goes with the process, however it dies. Belongs to one Store.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from .errors import Locked
from .files import typed

opening = threading.RLock()  # held while this process opens a store or counts its references


def reset_after_fork() -> None:
    """In a forked child, where a thread that held `opening` does not exist."""
    global opening
    opening = threading.RLock()


class WriterLock:
    def __init__(self, path: Path, address: str | None = None) -> None:
        """Takes the lock at once. address: of the server this process runs, if it does. Raises Locked."""
        self.path = path
        with typed(path, "open"):
            self._fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._owner()
            os.close(self._fd)
            raise Locked(self._refusal(owner), pid=owner.get("pid"), host=owner.get("host")) from error
        note = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time(), "address": address}
        with suppress(OSError):  # on a full disk it is locked all the same
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, orjson.dumps(note), 0)

    def _owner(self) -> dict[str, Any]:
        try:
            owner = orjson.loads(os.pread(self._fd, 4096, 0))
        except (OSError, ValueError):  # the owner has locked it, and not yet written its name
            return {}
        return owner if isinstance(owner, dict) else {}

    def _refusal(self, owner: dict[str, Any]) -> str:
        who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
        remedy = "open it with read_only=True, or close it there"
        if owner.get("address"):
            remedy += f", or connect to its server at {owner['address']}"
        return f"{self.path.parent} is open for writing by {who}; {remedy}"

    def release(self) -> None:
        """Gives the lock up, in the process that took it or, without effect on that one, in its forked child."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
