"""The decorator of all kernels: Numba without the GIL, cached on disk.

Numba's own cache does not notice when a kernel that another file calls was edited. So the cache lies in a folder
named by a hash of all sources of this package: `kernels-<hash>` under $VECDB_CACHE_DIR, $XDG_CACHE_HOME/vecdb or
~/.cache/vecdb. Where no folder can be written, kernels are compiled in each process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba.core import event
from numba.np import linalg

intrinsic: Any = numba.extending.intrinsic
_log = logging.getLogger("vecdb")
_SECONDS = 20  # that compiling what a search needs takes, at most


def _spare_scipy() -> None:
    """Loads what Numba needs for any kernel, without SciPy's linear algebra.

    Numba would import that to see whether it is there: a quarter of a second of each process's first search, for what no
    kernel uses. Whoever compiles such a function has it looked for then, as always.
    """
    of: Any = linalg
    look, of.ensure_blas = of.ensure_blas, lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        of.ensure_blas = look


_spare_scipy()


@cache
def cache_folder() -> Path | None:
    """The folder of compiled kernels, made if need be; None when it cannot be written."""
    root = os.environ.get("VECDB_CACHE_DIR")
    if root is None:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vecdb")
    sources = hashlib.sha256()
    for source in sorted(Path(__file__).parent.parent.rglob("*.py")):
        sources.update(source.read_bytes())
    folder = Path(root) / f"kernels-{sources.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles `function` when it is first called with arguments of some types, or loads what was compiled before."""
    return _compiled(function, nogil=True)


def brief(function: Callable[..., Any]) -> Any:
    """A kernel that is over sooner than a thread would get the interpreter back, had it let go of it."""
    return _compiled(function, nogil=False)


def _compiled(function: Callable[..., Any], nogil: bool) -> Any:
    folder = cache_folder()
    options: dict[str, Any] = {"nogil": nogil, "error_model": "numpy", "boundscheck": None}
    if folder is None:
        return numba.njit(**options)(function)
    # Numba reads this setting while it decorates; the user's own value is put back at once.
    config: Any = numba.config
    theirs, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        return numba.njit(cache=True, **options)(function)
    finally:
        config.CACHE_DIR = theirs


class _Announcer(event.Listener):
    """Says once, when the first kernel is being compiled and not loaded, what the caller is waiting for."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__.startswith(__package__):
            self.said = True
            how_often = "in each process: the cache cannot be written" if cache_folder() is None else "once per machine"
            _log.warning("compiling search kernels, %s (about %d s)", how_often, _SECONDS)

    def on_end(self, event: Any) -> None: ...


event.register("numba:compile", _Announcer())
