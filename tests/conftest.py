"""What many tests need: a database in a folder of its own, and rows to put in it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# Before NumPy is loaded: the threads of several workers' BLAS would wait for each other in busy loops, for minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from vecdb_storage.batch import Batch

import vecdb
from vecdb.points import batch_from_arrays
from vecdb.schema import Dense


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_251)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[vecdb.Database]:
    with vecdb.open(tmp_path / "db") as opened:
        yield opened


_COUNT = "count: "


@pytest.fixture
def counted(record_property: Callable[[str, Any], None]) -> Callable[[str, int], None]:
    """counted(what, how many): is summed over all tests and shown at the end of the run."""
    return lambda what, number: record_property(_COUNT + what, number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    totals: dict[str, int] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name.startswith(_COUNT):
                totals[name.removeprefix(_COUNT)] = totals.get(name.removeprefix(_COUNT), 0) + int(value)
    for what, number in sorted(totals.items()):
        terminalreporter.write_line(f"{number:>10,} {what}")


class Reader:
    """A process of its own that has a database open read-only; `ask` is an expression over `store` and `held`."""

    CODE = """
import sys
from vecdb_storage.registry import open_store
store = open_store(sys.argv[1], read_only=True)
held = None
def ids(uuid, of=None):
    snapshot = of or store.snapshot(bytes.fromhex(uuid))
    return {key for part, rows in snapshot.in_order() for key in part.keys(rows)}
def hold(uuid):
    global held
    held = store.snapshot(bytes.fromhex(uuid))
print("ready", flush=True)
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", self.CODE, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, expression: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(expression + "\n")
        self._process.stdin.flush()
        return ast.literal_eval(self._answer())

    def ids(self, uuid: bytes) -> set[Any]:
        """The ids of a collection, as this process sees it now."""
        found: set[Any] = self.ask(f"ids({uuid.hex()!r}) or None") or set()
        return found

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture
def reader_of() -> Iterator[Callable[[Path], Reader]]:
    readers: list[Reader] = []

    def make(path: Path) -> Reader:
        readers.append(Reader(path))
        return readers[-1]

    yield make
    for reader in readers:
        reader.close()


@pytest.fixture
def rows_of() -> Callable[..., Batch]:
    """rows_of(keys, mark) -> a batch of 4-dimensional rows whose payloads say {"mark": mark}."""

    def make(keys: Sequence[Any], mark: Any = 0, dim: int = 4) -> Batch:
        vectors = np.ones((len(keys), dim), np.float32)
        return batch_from_arrays({"vector": Dense(dim)}, list(keys), vectors, [{"mark": mark}] * len(keys))

    return make


@pytest.fixture
def schema() -> dict[str, Any]:
    return {"fields": {"vector": Dense(4).to_json()}, "ids": None}
