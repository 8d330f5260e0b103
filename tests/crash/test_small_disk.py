"""A real file system of a few MB is filled to the last block: nothing acknowledged is lost, reads go on, deletes give room.

The scenario runs in a child process with mounts of its own, so that nothing is left of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MEGABYTES = 24
MOUNTS = {
    "tmpfs": "mount -t tmpfs -o size={size}m tmpfs {at}",
    "ext4": "truncate -s {size}M {at}.image && mkfs.ext4 -q -m 0 {at}.image && mount -o loop {at}.image {at}",
}

CHILD = """
import faulthandler
import subprocess, sys
from pathlib import Path

import numpy as np
import vecdb
import vecdb_storage.flush as flush_module
from vecdb import Dense
from vecdb.errors import DiskFull

DIM = 64
faulthandler.dump_traceback_later(90, exit=True)  # if it hangs, to say where
mount, at, seed, memtable = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
subprocess.run(mount, shell=True, check=True)
flush_module.MEMTABLE_BYTES = memtable
rng = np.random.default_rng(seed)
known = {}  # id -> mark, as acknowledged


def vectors_of(ids, mark):
    return np.column_stack([ids, np.full(len(ids), mark), *np.ones((DIM - 2, len(ids)))]).astype(np.float32)


def check(docs):
    shown = {point.id: point.payload["mark"] for point in docs.scroll()}
    assert shown == known, f"{len(shown)} shown, {len(known)} acknowledged"
    assert docs.count() == len(known)
    some = list(known)[:50]
    for point in docs.get(some):
        assert point.vector[0] == point.id and point.vector[1] == known[point.id]
    if known:
        hit = docs.search(vectors_of([some[0]], known[some[0]])[0], k=1, exact=True)[0]
        assert (hit.id, hit.score) == (some[0], 0.0)


def fill(docs, start):
    "Writes until the disk has been full three times in a row; returns how many batches were acknowledged."
    written = refusals = 0
    mark = start
    while refusals < 3:
        mark += 1
        ids = np.arange(mark * 10_000, mark * 10_000 + int(rng.choice([1, 300, 1500, 6000])))
        try:
            docs.upsert(ids=ids, vectors=vectors_of(ids, mark), payloads=[{"mark": mark}] * len(ids))
        except DiskFull:
            refusals += 1
            check(docs)
        else:
            refusals = 0
            written += 1
            known.update(dict.fromkeys(ids.tolist(), mark))
    return written


db = vecdb.open(at / "db")
docs = db.create_collection("docs", Dense(DIM, metric="l2", index="flat"))
assert fill(docs, 0) > 3
print("full")
try:
    db.flush()
except DiskFull:
    pass
check(docs)
db.close()

with vecdb.open(at / "db", read_only=True) as reader:
    check(reader["docs"])
del reader
print("read-only")

db = vecdb.open(at / "db")  # the disk is still full
docs = db["docs"]
check(docs)
assert db.verify().ok
print("writer")
if sys.argv[5] == "no deletes":
    db.close()
    print("finished")
    sys.exit()

gone = list(known)[: len(known) * 9 // 10]
for start in range(0, len(gone), 1000):
    some = gone[start : start + 1000]
    assert docs.delete(ids=some) == len(some)
    for key in some:
        del known[key]
check(docs)
print("deleted")
try:
    db.vacuum()
    enough = True
except DiskFull:  # what is left must be written anew, and there is no room even for that
    enough = False
if not enough:
    check(docs)
    docs.delete(ids=list(known))
    known.clear()
    db.vacuum()
check(docs)
print("vacuumed")
assert fill(docs, 1000) > 3
print("filled again")
docs.delete(ids=list(known))
known.clear()
check(docs)
db.vacuum()
assert fill(docs, 2000) > 3
check(docs)
db.close()
with vecdb.open(at / "db") as db:
    check(db["docs"])
    assert db.verify().ok
print("finished")
"""


def isolated() -> list[str]:
    """The command under which a child may mount."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("unshare is not installed: no small file system can be mounted")
    command = [unshare, "-m"] if os.geteuid() == 0 else [unshare, "-rm"]
    probe = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.strip()}")
    return command


def fill_up(folder: Path, kind: str, seed: int, memtable: int, then: str = "deletes") -> None:
    command, at = isolated(), folder / "small"
    at.mkdir()
    mount = MOUNTS[kind].format(size=MEGABYTES, at=at)
    probe = subprocess.run([*command, "sh", "-c", mount], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"{kind} cannot be mounted here: {probe.stderr.strip()}")
    child = subprocess.run(
        [*command, sys.executable, "-c", CHILD, mount, str(at), str(seed), str(memtable), then],
        capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr[-3000:]}"
    assert child.stdout.endswith("finished\n")


def test_a_full_disk_loses_nothing(tmp_path: Path, counted: Any) -> None:
    counted("disks that were filled", 1)
    fill_up(tmp_path, "tmpfs", seed=1, memtable=64 << 20, then="no deletes")


@pytest.mark.parametrize("memtable", [1 << 20, 64 << 20])
def test_deletes_and_vacuum_give_a_full_disk_room_again(tmp_path: Path, counted: Any, memtable: int) -> None:
    counted("disks that were filled", 1)
    fill_up(tmp_path, "tmpfs", seed=1, memtable=memtable)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MOUNTS)
@pytest.mark.parametrize("memtable", [1 << 20, 64 << 20])
@pytest.mark.parametrize("seed", range(2, 8))
def test_full_disks_lose_nothing(tmp_path: Path, counted: Any, kind: str, seed: int, memtable: int) -> None:
    counted("disks that were filled", 1)
    fill_up(tmp_path, kind, seed, memtable)


INGEST = """
import json, subprocess, sys
from pathlib import Path

import numpy as np
import vecdb
from vecdb.errors import DiskFull

mount, at, data = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
subprocess.run(mount, shell=True, check=True)
(at / "ballast").write_bytes(bytes(12 << 20))
with vecdb.open(at / "db") as db:
    try:
        db.ingest("docs", data)
    except DiskFull as error:
        assert len(str(error).splitlines()) == 1
    else:
        raise AssertionError("the disk was not full")
with vecdb.open(at / "db") as db:  # still full
    docs = db["docs"]
    before = len(docs)
    assert 0 < before < 40_000
    assert [point.id for point in docs.scroll()] == list(range(before))
    assert db.verify().ok
    (at / "ballast").unlink()
    summary = db.ingest("docs", data)
    assert (summary.known, summary.points) == (before, 40_000)
    rows = np.load(data)
    assert all(point.vector.tobytes() == rows[point.id].tobytes() for point in docs.scroll(with_vectors=True))
    assert [point.id for point in docs.scroll()] == list(range(40_000))
print("finished")
"""


def test_an_ingest_goes_on_when_a_full_disk_has_room_again(tmp_path: Path, counted: Any) -> None:
    command, at, data = isolated(), tmp_path / "small", tmp_path / "rows.npy"
    at.mkdir()
    np.save(data, np.random.default_rng(0).standard_normal((40_000, 64)).astype(np.float32))  # 10 MB
    mount = MOUNTS["tmpfs"].format(size=22, at=at)
    child = subprocess.run(
        [*command, sys.executable, "-c", INGEST, mount, str(at), str(data)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr[-3000:]}"
    assert child.stdout.endswith("finished\n")
    counted("disks that were filled", 1)
