"""SIGKILL while files are ingested: what comes out in the end is what one run would have made, and little is read twice.

How little, as a share of a large file, is measured by `python -m bench files --parts kills`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecdb

DIM, ROWS = 64, 60_000

# Writes down how many rows were read, piece by piece, so that what was read again can be counted.
CHILD = """
import os, sys
import vecdb
from vecdb.ingest import load

log = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
whole = load._Run._file
def counted(self, state, reader):
    made = whole(self, state, reader)
    while True:
        try:
            work = next(made)
        except StopIteration as end:
            return end.value
        os.write(log, f"{work.rows}\\n".encode())
        yield work
load._Run._file = counted
with vecdb.open(sys.argv[1]) as db:
    print("ready", flush=True)
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


def run(path: Path, file: Path, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(path), str(file), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})


@pytest.mark.parametrize("make", [parquet, fbin])
def test_ten_kills_and_one_run_come_to_the_same(
    make: Callable[[Path], None], tmp_path: Path, counted: Callable[[str, int], None]
) -> None:
    file = tmp_path / ("docs.parquet" if make is parquet else "docs.fbin")
    make(file)
    whole = run(tmp_path / "whole", file, tmp_path / "whole.log")
    assert whole.stdout is not None
    assert whole.stdout.readline() == "ready\n"
    began = time.monotonic()
    assert whole.communicate()[0].startswith(f"done {ROWS} ")
    seconds = time.monotonic() - began
    chance, kills, log = random.Random(5), 0, tmp_path / "log"
    for _ in range(200):
        process = run(tmp_path / "killed", file, log)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kills < 10:
            time.sleep(chance.uniform(0, seconds / 6))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
        said = process.communicate()[0]
        if process.returncode == 0:
            break
    assert said.startswith(f"done {ROWS} ")
    assert kills >= 3, "it was over too soon"
    assert everything(tmp_path / "killed") == everything(tmp_path / "whole")
    with vecdb.open(tmp_path / "killed") as db:
        assert db["docs"].checkpoints() == {}
        assert db.verify().ok
    pieces = [int(line) for line in log.read_text().split()]
    assert sum(pieces) >= ROWS
    # Being read, waiting, being written: no more than that is on its way, of what a kill costs.
    assert sum(pieces) - ROWS <= kills * 3 * max(pieces)
    counted("SIGKILLs of ingests", kills)
