"""Every registered backend keeps the contract."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from vecdb_index.conformance import CASES
from vecdb_index.contract import Backend
from vecdb_index.registry import backend, names


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_backend(name: str, case: Callable[[Backend], None]) -> None:
    case(backend(name))


def test_unknown_backends_are_named() -> None:
    with pytest.raises(KeyError, match="no index backend 'nope'; there are flat, hnsw"):
        backend("nope")


BOUNDED = """
from vecdb_index.conformance import CASES
from vecdb_index.registry import backend, names
for name in names():
    for case in CASES:
        case(backend(name))
"""


@pytest.mark.slow
def test_no_kernel_reads_or_writes_outside_its_arrays(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "VECDB_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", BOUNDED], check=True, env=environment)
