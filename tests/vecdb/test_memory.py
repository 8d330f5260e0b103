"""Memory that was freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb import Dense
from vecdb.index import HNSW
from vecdb.upkeep import indexing

FREED = """
from pathlib import Path
import numpy as np
from vecdb.memory import give_back

def resident():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))

np.zeros(32 << 20, np.uint8)  # when it is freed, the allocator keeps all that is smaller
pairs = [(np.ones(60_000, np.uint8), np.ones(100, np.uint8)) for _ in range(1000)]
kept, before = [small for _, small in pairs], resident()
del pairs
give_back()
print(before - resident(), sum(map(len, kept)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves, or never")
def test_what_was_freed_between_what_is_kept_goes_back() -> None:
    freed, kept = map(int, subprocess.run([sys.executable, "-c", FREED], check=True, capture_output=True).stdout.split())
    assert kept == 100_000 and freed > 0.6 * 60_000 * 1000 / 1024


def test_it_does_after_each_build_and_when_a_merge_is_written(
    db: vecdb.Database, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(indexing, "give_back", lambda: given.append(docs.info().indexes["vector"].segments))
    docs = db.create_collection("docs", Dense(8, index=HNSW()))
    for start in (0, 100):
        docs.upsert(ids=range(start, start + 100), vectors=rng.standard_normal((100, 8)))
        docs.flush()
    docs.merge()
    until = time.monotonic() + 60
    while len(given) < 4 and time.monotonic() < until:  # who waits for an index is told of it before
        time.sleep(0.01)
    assert given == [1, 2, 2, 1]
