"""SIGKILL while indexes are built: every answer stays right, the build begins again, and no file is left behind."""

from __future__ import annotations

import itertools
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
import pytest

import vecdb
from vecdb.index import HNSW, Seismic

ROWS, DIM = 1200, 16
COMMON, OF_SOME = 9000, 5000  # components: of all rows, and the first of those that every fortieth has


def field(kind: str) -> Any:
    if kind == "dense":
        return vecdb.Dense(DIM, metric="l2", index=parameters(kind, 0))
    return vecdb.Sparse(index=parameters(kind, 0))


def parameters(kind: str, turn: int) -> Any:
    return HNSW(m=8 + 4 * (turn % 2), ef_construction=40) if kind == "dense" else Seismic(postings=3 - turn % 2)


def vectors(kind: str, ids: Any) -> Any:
    if kind == "dense":
        return np.outer(ids, np.ones(DIM)) + np.arange(DIM)
    return [{int(i): 2.0, OF_SOME + int(i) % 40: 1 + int(i) / 4096, COMMON: 1 + int(i) / 4096} for i in ids]


def questions(kind: str) -> list[tuple[Any, Callable[[int], float]]]:
    """Queries, and for each what is least of the ids that are to come first."""
    if kind == "dense":
        return [(np.full(DIM, at) + np.arange(DIM), lambda i, at=at: abs(i - at)) for at in (0.4, 600.2, 1199.0)]
    return [
        (
            {at: 1.0, OF_SOME + at % 40: 2.0, COMMON: 0.5},
            lambda i, at=at: -2 * (i == at) - (2.5 if i % 40 == at % 40 else 0.5) * (1 + i / 4096),
        )
        for at in (0, 600, 1199)
    ]


def child(path: str, seed: int, kind: str) -> None:
    """Writes and builds until it is killed."""
    rng = np.random.default_rng(seed)
    db = vecdb.open(path)
    if "docs" not in db.collections():
        db.create_collection("docs", field(kind))
    docs = db["docs"]
    print("ready", flush=True)
    for turn in itertools.count(1):
        ids = rng.permutation(ROWS)[:400]
        docs.upsert(ids=ids, vectors=vectors(kind, ids), payloads=[{"id": int(i)} for i in ids])
        docs.flush(wait=False)
        docs.set_index(parameters(kind, turn))
        docs.flush()
        print("built", flush=True)


def rounds(tmp_path: Path, count: int, seed: int, kind: str) -> None:
    path, chance = tmp_path / "db", random.Random(seed)
    for number in range(count):
        child = subprocess.Popen(
            [sys.executable, __file__, str(path), str(seed * 1000 + number), kind],
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
            check(reader["docs"], kind)
        with vecdb.open(path) as db:
            docs = db["docs"]
            check(docs, kind)
            docs.flush()
            check(docs, kind)
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


def check(docs: vecdb.Collection, kind: str) -> None:
    """Exact search and the index's agree with what the ids say."""
    there = {p.id for p in docs.scroll()}
    for query, least in questions(kind):
        wanted = sorted(there, key=lambda i: (least(i), i))[:5]
        assert docs.search(query, k=5, exact=True).ids == wanted
        assert len(docs.search(query, k=5, recall=0.9)) == len(wanted)


@pytest.mark.parametrize(("kind", "count"), [("dense", 6), ("sparse", 4)])
def test_a_killed_build_costs_no_answer(tmp_path: Path, counted: Any, kind: str, count: int) -> None:
    rounds(tmp_path, count, 1, kind)
    counted(f"SIGKILLs of a process that builds {kind} indexes", count)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_killed_builds_cost_no_answer_in_many_rounds(tmp_path: Path, counted: Any, kind: str) -> None:
    rounds(tmp_path, 30, 2, kind)
    counted(f"SIGKILLs of a process that builds {kind} indexes", 30)


if __name__ == "__main__":
    child(sys.argv[1], int(sys.argv[2]), sys.argv[3])
