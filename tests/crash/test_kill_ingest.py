"""SIGKILL while files are ingested: what comes out in the end is what one run would have made, and little is read twice.

How little, as a share of a large file, is measured by `python -m bench files --parts kills`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecdb

DIM, ROWS = 64, 60_000

# Writes down how many rows were read, piece by piece, so that what was read again can be counted; and, if that is said, kills
# itself some milliseconds after a number of pieces, while other threads are at whatever they are at.
CHILD = """
import os, signal, sys, time
import vecdb
from vecdb.ingest import load

log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
left, delay = int(sys.argv[4]), float(sys.argv[5])
whole = load.Run._file
def counted(self, state, reader):
    global left
    made = whole(self, state, reader)
    while True:
        try:
            work = next(made)
        except StopIteration as end:
            return end.value
        os.write(log, f"{len(work.piece)}\\n".encode())
        left -= 1
        if left == 0:
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGKILL)
        yield work
load.Run._file = counted
with vecdb.open(sys.argv[1]) as db:
    summary = db.ingest("docs", sys.argv[2])
    print("done", summary.points, summary.known, flush=True)
"""


def parquet(path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((ROWS, DIM)).astype(np.float32)
    pq.write_table(
        pa.table({
            "id": [f"document {i}" for i in range(ROWS)],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
            "year": [1990 + i % 30 for i in range(ROWS)],
            "title": [None if i % 9 == 0 else f"title {i}" for i in range(ROWS)],
        }),
        path,
        row_group_size=10_000,
    )  # fmt: skip


def fbin(path: Path) -> None:
    vectors = np.random.default_rng(2).standard_normal((ROWS, DIM)).astype(np.float32)
    path.write_bytes(np.array([ROWS, DIM], "<u4").tobytes() + vectors.tobytes())


def everything(path: Path) -> list[tuple[Any, bytes, Any]]:
    with vecdb.open(path, read_only=True) as db:
        points = db["docs"].scroll(with_vectors=True)
        return sorted((point.id, point.vector.tobytes(), point.payload) for point in points if point.vector is not None)


def run(path: Path, file: Path, log: Path, pieces: int = 0, delay: float = 0) -> subprocess.CompletedProcess[str]:
    """pieces: after which it is killed; 0 for never."""
    command = [sys.executable, "-c", CHILD, str(path), str(file), str(log), str(pieces), str(delay)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONWARNINGS": "ignore"})


@pytest.mark.parametrize("make", [parquet, fbin])
def test_ten_kills_and_one_run_come_to_the_same(
    make: Callable[[Path], None], tmp_path: Path, counted: Callable[[str, int], None]
) -> None:
    file = tmp_path / ("docs.parquet" if make is parquet else "docs.fbin")
    make(file)
    assert run(tmp_path / "whole", file, tmp_path / "whole.log").stdout.startswith(f"done {ROWS} ")
    chance, log = random.Random(5), tmp_path / "log"
    for _ in range(10):
        killed = run(tmp_path / "killed", file, log, chance.randint(1, 6), chance.uniform(0, 0.03))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run(tmp_path / "killed", file, log).stdout.startswith(f"done {ROWS} ")
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
    with vecdb.open(tmp_path / "killed") as db:
        assert db["docs"].checkpoints() == {}
        assert db.verify().ok
    pieces = [int(line) for line in log.read_text().split()]
    assert sum(pieces) >= ROWS
    # Being read, waiting, being written: no more than that is on its way, of what a kill costs.
    assert sum(pieces) - ROWS <= 10 * 3 * max(pieces)
    counted("SIGKILLs of ingests", 10)
