"""SIGKILL while indexes are built: every answer stays right, the build begins again, and no file is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb

ROWS, DIM = 1200, 16

CHILD = """
import sys
import numpy as np
import vecdb
from vecdb.index import HNSW

path, seed = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(seed)
db = vecdb.open(path)
if "docs" not in db.collections():
    db.create_collection("docs", vecdb.Dense(16, metric="l2", index=HNSW(m=8, ef_construction=40)))
docs = db["docs"]
print("ready", flush=True)
m = 8
while True:
    ids = rng.permutation(1200)[:400]
    docs.upsert(ids=ids, vectors=np.outer(ids, np.ones(16)) + np.arange(16), payloads=[{"id": int(i)} for i in ids])
    docs.flush(wait=False)
    m = 20 - m
    docs.set_index(HNSW(m=m, ef_construction=40))
    docs.flush()
    print("built", flush=True)
"""


def rounds(tmp_path: Path, count: int, seed: int) -> None:
    path, chance = tmp_path / "db", random.Random(seed)
    for number in range(count):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(seed * 1000 + number)],
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        if chance.random() < 0.5:
            child.stdout.readline()  # one was built
        time.sleep(chance.uniform(0, 0.25))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        with vecdb.open(path, read_only=True) as reader:
            check(reader["docs"])
        with vecdb.open(path) as db:
            docs = db["docs"]
            check(docs)
            docs.flush()
            check(docs)
            assert db.verify().ok
            state = docs._store.state(docs._uuid)
            segments = {entry.name: entry for entry in state.manifest.segments}
            assert all(entry.indexes for entry in segments.values()), "a segment was left without its index"
        # Only now: a merge may have begun meanwhile, whose file has no name yet.
        with vecdb.open(path, read_only=True) as reader:
            docs = reader["docs"]
            named = docs._store.files_of(docs._store.state(docs._uuid))
            left = {file.name for file in (path / "segments").rglob("*") if file.is_file()} - named
            assert not left, "files were left behind"


def check(docs: vecdb.Collection) -> None:
    """Exact search and the index's agree with what the ids say."""
    there = {p.id for p in docs.scroll()}
    for at in (0.4, 600.2, 1199.0):
        query = np.full(DIM, at) + np.arange(DIM)
        wanted = sorted(there, key=lambda i: (abs(i - at), i))[:5]
        assert docs.search(query, k=5, exact=True).ids == wanted
        assert len(docs.search(query, k=5, recall=0.9)) == len(wanted)


def test_a_killed_build_costs_no_answer(tmp_path: Path, counted: Any) -> None:
    rounds(tmp_path, 6, seed=1)
    counted("SIGKILLs of a process that builds indexes", 6)


@pytest.mark.slow
def test_killed_builds_cost_no_answer_in_many_rounds(tmp_path: Path, counted: Any) -> None:
    rounds(tmp_path, 30, seed=2)
    counted("SIGKILLs of a process that builds indexes", 30)
