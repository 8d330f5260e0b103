"""Where compiled kernels are kept, and what an import costs. Each claim is made in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SEARCH = """
import numba, numpy as np
before = numba.config.CACHE_DIR
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
rows = Rows(np.eye(3, dtype=np.float32), np.ones(3, np.float32), "ip")
assert FlatSearcher(rows).search(np.eye(3, dtype=np.float32)[1:2], 1).rows.tolist() == [[1]]
assert numba.config.CACHE_DIR == before
"""


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_kernels_are_kept_under_the_hash_of_their_sources(tmp_path: Path) -> None:
    run(SEARCH, VECDB_CACHE_DIR=str(tmp_path))
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("kernels-")
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*.nb*")}
    assert kept
    run(SEARCH, VECDB_CACHE_DIR=str(tmp_path))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.nb*")} == kept


def test_a_folder_that_cannot_be_written_means_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run(SEARCH, VECDB_CACHE_DIR=str(tmp_path / "file" / "below"))


def test_the_contract_loads_no_compiler() -> None:
    run("import sys, vecdb_index, vecdb_index.contract; assert not {'numba', 'llvmlite'} & set(sys.modules)")


def test_the_first_search_says_once_what_it_waits_for(tmp_path: Path) -> None:
    told = run(SEARCH, VECDB_CACHE_DIR=str(tmp_path))
    assert told.count("compiling search kernels") == 1
    assert "compiling" not in run(SEARCH, VECDB_CACHE_DIR=str(tmp_path))
