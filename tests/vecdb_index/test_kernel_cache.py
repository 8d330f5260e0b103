"""Kernels in processes of their own: where they are kept, what an import costs, other CPUs, checked bounds."""

from __future__ import annotations

import os
import platform
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
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


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


ANSWERS = """
import hashlib, numpy as np
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
rng, digest = np.random.default_rng(7), hashlib.sha256()
for n in (1, 63, 200):
    words = rng.integers(0, 2**63, -(-n // 64)).astype(np.uint64)
    for dtype in (np.float32, np.float16, np.int8):
        vectors = rng.integers(1, 100, (n, 85)).astype(dtype)
        norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(1)).astype(np.float32)
        for metric in ("cosine", "ip", "l2"):
            searcher = FlatSearcher(Rows(vectors, norms, metric))
            for m in (1, 3, 70):
                queries = rng.standard_normal((m, 85)).astype(np.float32)
                for allowed in (None, words):
                    hits = searcher.search(queries, 5, allowed=allowed)
                    digest.update(hits.keys.tobytes() + hits.rows.tobytes() + hits.tied.tobytes())
                    digest.update(searcher.rows_at(queries[0], float(hits.keys[0, 0]), allowed).tobytes())
print(digest.hexdigest())
"""


def test_every_cpu_gives_the_same_bits_and_no_index_is_out_of_bounds(tmp_path: Path) -> None:
    here = run(ANSWERS)
    assert len(here.split()[-1]) == 64
    narrow = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+fma,+f16c"} if platform.machine() == "x86_64" else {}
    assert run(ANSWERS, VECDB_CACHE_DIR=str(tmp_path / "narrow"), **narrow).split()[-1] == here.split()[-1]
    checked = run(ANSWERS, VECDB_CACHE_DIR=str(tmp_path / "checked"), NUMBA_BOUNDSCHECK="1")
    assert checked.split()[-1] == here.split()[-1]
