"""Room to build an index in.

It lies in a file without a name, as far as that does good: when the system is short of memory it can take back that of a file,
and no other where there is no swap. Not where there is little of it; nor much that is changed for long, since the system writes
what was changed half a minute ago, and would do so again and again; nor on a disk that is nearly full. Then it is memory like
any other. Any thread.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import VecdbError
from .files import Files

_LEAST, _MOST_CHANGED = 1 << 20, 64 << 20
_SPARE = 1 << 30  # bytes of the disk that are left for what is to stay


def room(files: Files, folder: Path, size: int, once: bool) -> npt.NDArray[np.uint8]:
    """(size,) zeros. folder: on the disk in question. once: they are filled in, and not changed later."""
    if size >= _LEAST and (once or size <= _MOST_CHANGED):
        with suppress(VecdbError):  # the folder went, or the disk is in trouble
            if files.free_bytes(folder) >= _SPARE + size:
                return np.frombuffer(files.scratch(folder, size), np.uint8)
    return np.zeros(size, np.uint8)
