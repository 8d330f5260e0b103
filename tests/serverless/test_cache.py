"""What was read is kept: within its limit, for all processes, and believed only where it is right."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb.serverless.cache import RangeCache

from .afar import QUERIES, RangesServer


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_entries_that_are_damaged_are_read_again(served: RangesServer, home: vecdb.Collection, cache: Path) -> None:
    with vecdb.open_codes(served.url) as there:
        there.search(QUERIES[0])
    rng = np.random.default_rng(0)
    for path in entries(cache):
        data = bytearray(path.read_bytes())
        match int(rng.integers(3)):
            case 0:
                data[int(rng.integers(len(data)))] ^= 1
            case 1:
                data = data[: len(data) // 2]
            case 2:
                data = bytearray()
        path.write_bytes(data)
    served.reset()
    with vecdb.open_codes(served.url) as there:
        found = there.search(QUERIES[0], explain=True)
        assert found.ids == home.search(QUERIES[0]).ids and found.plan.transfer.hits == 0 and len(served.seen) > 1
    served.reset()
    with vecdb.open_codes(served.url) as there:
        there.search(QUERIES[0])
    assert len(served.seen) == 1  # what was damaged was replaced


def test_the_cache_keeps_within_its_limit_and_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    limit = 64 << 10
    both = [RangeCache(tmp_path / "cache", limit) for _ in range(2)]  # as of two processes
    for number in range(200):
        both[number % 2].put(f"key {number}", bytes([number]) * 3000)
        taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in entries(tmp_path / "cache"))
        assert taken <= limit
    assert both[0].get("key 199") == bytes([199]) * 3000 and both[0].get("key 0") is None
    both[0].put("large", bytes(limit))
    assert both[0].get("large") is None


def test_nothing_is_kept_where_nothing_is_to_be(served: RangesServer, cache: Path) -> None:
    with vecdb.open_codes(served.url, cache_bytes=0) as there:
        there.search(QUERIES[0])
    assert not entries(cache)


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_that_cannot_be_written_or_is_full_is_told_of_once(
    served: RangesServer, home: vecdb.Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, full: bool,
) -> None:  # fmt: skip
    folder = tmp_path / "cache"
    if full:
        monkeypatch.setattr("vecdb.serverless.cache.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    else:
        folder.write_text("a file, where root may not write either")
    with caplog.at_level(logging.WARNING, "vecdb"), vecdb.open_codes(served.url, cache=folder) as there:
        for query in QUERIES[:3]:
            assert there.search(query).ids == home.search(query).ids
    assert len([each for each in caplog.records if "nothing is kept" in each.message]) == 1
    assert not full or not entries(folder)


_ASK = """
import sys, numpy as np, vecdb
from vecdb_index.mib.search import ShortLists
ShortLists.pays = lambda *_: True
with vecdb.open_codes(sys.argv[1], cache=sys.argv[2]) as there:
    for query in np.load(sys.argv[3]):
        print(*there.search(query, explain=True).ids)
"""


def test_two_processes_share_a_cache(served: RangesServer, home: vecdb.Collection, cache: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "queries.npy", QUERIES[:6])
    command = [sys.executable, "-c", _ASK, served.url, str(cache), str(tmp_path / "queries.npy")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    right = [" ".join(map(str, home.search(query).ids)) for query in QUERIES[:6]]
    for each in both:
        assert each.communicate(timeout=300)[0].splitlines() == right and each.returncode == 0
    assert not [path for path in entries(cache) if path.name.endswith(".partial")]
    served.reset()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == right
    assert len(served.seen) == 1


_PUT = """
import os, sys
from pathlib import Path
from vecdb.serverless import cache
class Slow:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, data):
        self.file.write(data[: len(data) // 2]); self.file.flush()
        if len(data) > 1000:
            print("half", flush=True); sys.stdin.read()
real = open
cache.open = lambda *given: Slow(real(*given))
cache.RangeCache(Path(sys.argv[1])).put("the key", bytes(range(256)) * 100)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    writer = subprocess.Popen(
        [sys.executable, "-c", _PUT, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdin is not None and writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    writer.stdin.close()
    kept = RangeCache(folder, 1 << 20)
    (left,) = entries(folder)
    assert left.name.endswith(".partial") and kept.get("the key") is None
    kept.put("the key", b"right")
    assert kept.get("the key") == b"right"
    os.utime(left, (0, 0))
    RangeCache(folder, 1 << 20).put("another", bytes(70_000))  # who looks at the folder takes away what is nobody's
    assert not left.exists()
