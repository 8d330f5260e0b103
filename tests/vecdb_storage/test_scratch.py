"""Room to build an index in: in a file without a name where that does good, in memory otherwise."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from vecdb_storage import scratch
from vecdb_storage.errors import DiskFull, StorageError
from vecdb_storage.files import Files

MIB = 1 << 20
pytestmark = pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="only Linux has files without a name")


def mapped() -> int:
    """Bytes of this process that lie in files that have no name (any more)."""
    gc.collect()  # what other tests left
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith("(deleted)") and " rw-s " in line:
            first, last = line.split()[0].split("-")
            total += int(last, 16) - int(first, 16)
    return total


@pytest.mark.parametrize(
    ("size", "once", "lies"),
    [
        (MIB - 1, True, False), (MIB, True, True), (MIB, False, True), (64 * MIB, False, True), (64 * MIB + 1, False, False),
        (64 * MIB + 1, True, True),
    ],
)  # fmt: skip
def test_room_lies_in_a_file_where_it_is_neither_little_nor_much_that_changes(
    tmp_path: Path, size: int, once: bool, lies: bool
) -> None:
    before = mapped()
    zeros = scratch.room(Files(), tmp_path, size, once)
    assert zeros.shape == (size,) and zeros.dtype == np.uint8 and not zeros.any()
    zeros[:] = 7
    assert int(zeros.sum()) == 7 * size
    assert (mapped() - before > 0) == lies and list(tmp_path.iterdir()) == []
    part = zeros[5:9]
    del zeros
    assert (mapped() - before > 0) == lies and part.tolist() == [7] * 4, "as long as somebody refers to a part of it"
    del part
    assert mapped() == before


@pytest.mark.parametrize("error", [DiskFull("no room", file="f"), StorageError("broken", file="f")])
def test_where_there_is_no_file_to_be_had_it_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: StorageError
) -> None:
    before = mapped()

    def failing(*_: object) -> memoryview:
        raise error

    for name in ("scratch", "free_bytes"):
        with monkeypatch.context() as patched:
            patched.setattr(Files, name, failing)
            assert len(scratch.room(Files(), tmp_path, MIB, True)) == MIB and mapped() == before
    assert len(scratch.room(Files(), tmp_path / "gone", MIB, True)) == MIB and mapped() == before


def test_what_is_left_of_a_disk_is_for_what_is_to_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = mapped()
    monkeypatch.setattr(Files, "free_bytes", lambda *_: (1 << 30) + MIB - 1)
    assert len(scratch.room(Files(), tmp_path, MIB, True)) == MIB and mapped() == before
    monkeypatch.setattr(Files, "free_bytes", lambda *_: (1 << 30) + MIB)
    kept = scratch.room(Files(), tmp_path, MIB, True)
    assert len(kept) == MIB and mapped() > before


def test_it_costs_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = [scratch.room(Files(), tmp_path, MIB, True) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before and len(kept) == 20
