"""Nothing but typed errors leaves what reads bytes from a disk, whatever these are: `fuzz_parsers.py`, run and counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

TARGETS = {"records", "array_files", "manifests", "descriptions", "trees", "column_sets", "graphs"}
pytestmark = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris, which guides these inputs, has wheels for Linux on x86-64 only"
)


def run(folder: Path, runs: int, seed: int, counted: Any) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz_parsers.py")), str(runs), str(seed), str(folder)]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}  # so that the seed says what is tried
    done = subprocess.run(command, capture_output=True, text=True, timeout=7200, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    answers = {answer["target"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    counted("inputs of parsers, by coverage", sum(runs // 3 if name == "trees" else runs for name in answers))
    assert answers.keys() == TARGETS
    for name, answer in answers.items():
        inputs = {
            path.name: path.read_bytes()[:2000] for path in (folder / name).glob("*-*") if not path.name.startswith("sound")
        }
        assert answer["ok"], f"{name}: {answer['said']}\n{inputs}"


def test_parsers_raise_typed_errors_only(tmp_path: Path, counted: Any) -> None:
    run(tmp_path, 3000, 1, counted)


@pytest.mark.slow
def test_parsers_raise_typed_errors_only_for_long(tmp_path: Path, counted: Any) -> None:
    run(tmp_path, 200_000, 2, counted)
