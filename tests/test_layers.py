"""The layer rule and the import rule of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "vecdb": ROOT / "vecdb",
    "vecdb_index": ROOT / "index/vecdb_index",
    "vecdb_storage": ROOT / "storage/vecdb_storage",
}
MAY_IMPORT = {"vecdb": {"vecdb_index", "vecdb_storage"}, "vecdb_index": set(), "vecdb_storage": set()}
HEAVY = {
    "numba",
    "lmdb",
    "google",
    "grpc",
    "prometheus_client",
    "pyarrow",
    "pandas",
    "polars",
    "faiss",
    "torch",
    "ray",
    "sklearn",
    "scipy",
    "hnswlib",
    "typer",
    "rich",
    "h5py",
    "fsspec",
}


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_go_one_way(package: str) -> None:
    files = list(PACKAGES[package].rglob("*.py"))
    assert len(files) > 3
    for file in files:
        for name in imports(file):
            top = name.split(".")[0]
            assert top not in PACKAGES or top == package or top in MAY_IMPORT[package], f"{file} imports {name}"


def test_only_files_py_and_its_neighbours_touch_the_file_system() -> None:
    """In the storage engine, `os` and `open` are for files.py; locks, the registry and LMDB's flags and priorities need a little of `os`."""
    allowed = {"files.py", "locks.py", "registry.py", "store.py", "environment.py", "ulid.py", "priority.py"}
    for file in PACKAGES["vecdb_storage"].rglob("*.py"):
        names = set(imports(file))
        calls = {
            n.func.id for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
        }
        assert "open" not in calls, f"{file} opens a file by itself"
        assert file.name in allowed or "os" not in names, f"{file} imports os"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_vecdb_loads_nothing_heavy() -> None:
    code = "import sys, vecdb; from vecdb import Dense, F, errors; F('a') == 1; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    assert not HEAVY & set(run(code).split())


def test_importing_vecdb_takes_less_than_a_fifth_of_a_second() -> None:
    """The best of five, in CPU time, above the interpreter's own start: load on the machine is not its fault."""
    code = "import time; t = time.process_time(); import vecdb; print(time.process_time() - t)"
    assert min(float(run(code)) for _ in range(5)) < 0.2


def test_kernels_run_without_scipys_linear_algebra_and_other_functions_of_numba_still_find_it() -> None:
    code = """
import sys, numba, numpy as np
from vecdb_index.kernels.bitmap import ones
assert ones(np.array([5], np.uint64)) == 2
assert "scipy.linalg" not in sys.modules, "a kernel has brought it"
square = np.arange(4.0).reshape(2, 2)
assert (numba.njit(lambda a: np.dot(a, a))(square) == square @ square).all() and "scipy.linalg" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
