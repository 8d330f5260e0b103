"""Every registered backend keeps the contract."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from vecdb_index.conformance import CASES, SPARSE_CASES
from vecdb_index.contract import Backend
from vecdb_index.registry import backend, names, serves


@pytest.mark.parametrize("name", [name for name in names() if serves(name, "dense")])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_backend(name: str, case: Callable[[Backend], None]) -> None:
    case(backend(name))


@pytest.mark.parametrize("name", [name for name in names() if serves(name, "sparse")])
@pytest.mark.parametrize("case", SPARSE_CASES, ids=lambda case: case.__name__)
def test_backend_of_sparse_vectors(name: str, case: Callable[[Backend], None]) -> None:
    case(backend(name))


def test_unknown_backends_are_named() -> None:
    with pytest.raises(KeyError, match="no index backend 'nope'; there are flat, hnsw, mib, seismic"):
        backend("nope")


BOUNDED = """
from vecdb_index.conformance import CASES, SPARSE_CASES
from vecdb_index.registry import backend, names, serves
for name in names():
    for kind, cases in (("dense", CASES), ("sparse", SPARSE_CASES)):
        for case in cases if serves(name, kind) else ():
            case(backend(name))
"""


@pytest.mark.slow
def test_no_kernel_reads_or_writes_outside_its_arrays(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "VECDB_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", BOUNDED], check=True, env=environment)
