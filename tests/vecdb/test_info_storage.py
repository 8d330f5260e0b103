"""The figures about storage are those of the files."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

import vecdb
from vecdb import Dense


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_figures_follow_what_is_done(tmp_path: Path, rng: np.random.Generator) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(32, index="flat"))
        before = db.info()
        assert before.write_amplification is None and before.log_records == 0
        vectors = rng.standard_normal((1000, 32)).astype(np.float32)
        for turn in range(3):
            docs.upsert(ids=range(1000), vectors=vectors, payloads=[{"n": i, "turn": turn} for i in range(1000)])
        logged = db.info()
        assert logged.log_records == 3 and logged.log_bytes > 3 * vectors.nbytes
        assert logged.commits - before.commits == logged.operations - before.operations == 3
        assert logged.bytes_accepted > 3 * vectors.nbytes
        docs.flush()
        flushed = db.info()
        assert (flushed.log_records, flushed.flushes, flushed.segments) == (0, 1, 1)
        assert flushed.flush_seconds > 0
        # The log took everything once, the flush what was left of it once more.
        assert flushed.write_amplification is not None and 1.2 < flushed.write_amplification < 2.2
        assert flushed.bytes_on_disk == size_of(tmp_path / "db")
        docs.upsert(ids=range(400), vectors=vectors[:400])
        docs.flush()
        worn = db.info()
        assert worn.dead_rows == 400 and worn.segments == 2
        assert worn.space_amplification is not None and worn.bytes_live < worn.bytes_on_disk
        snapshot = docs._snapshot()
        docs.upsert(ids=[1], vectors=vectors[:1])
        assert db.info().oldest_snapshot_seconds > 0
        del snapshot
        gc.collect()
        docs.vacuum()
        clean = db.info()
        assert (clean.dead_rows, clean.merges, clean.generation, clean.merging) == (0, 1, 2, 0)
        assert clean.merge_seconds > 0 and clean.bytes_written > worn.bytes_written
        assert clean.space_amplification is not None and clean.space_amplification < worn.space_amplification
        assert clean.garbage_files == 0 and clean.flush_error is None and clean.merge_error is None
        with db._store.environment.read():
            assert db.info().readers >= 1
        flat = clean.flat()
        assert flat["vecdb.storage.write_amplification"] == pytest.approx(clean.write_amplification)
        assert all(isinstance(value, int | float) for value in flat.values())
    with vecdb.open(tmp_path / "db", read_only=True) as db:
        assert db.info().segments == clean.segments
