"""A client in another language, made of the protos alone: Node.js with grpc-js and proto-loader."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent / "node"


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """The client with its libraries, in a folder of its own."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed here")
    folder = tmp_path / "client"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("node_modules"))
    install = [
        "npm",
        "install",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--ignore-scripts",
        "--cache",
        tmp_path / "cache",
    ]
    try:
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm got no answer from its registry within 180 s")
    if done.returncode:
        pytest.skip(f"npm cannot install grpc-js here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def test_a_client_in_another_language_needs_only_the_protos(client: Path, tmp_path: Path) -> None:
    from vecdb.server.config import Config
    from vecdb.server.serve import Server

    server = Server(Config(db=str(tmp_path / "db"), port=0))
    server.start()
    try:
        done = subprocess.run(
            ["node", "client.js", ROOT / "proto", f"127.0.0.1:{server.port}"],
            cwd=client, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        server.stop()
        server.wait()
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["hello"]["role"] == "ROLE_ADMIN" and seen["hello"]["largest_message"] == 64 << 20
    assert seen["created"] == {"name": "docs", "uuid": 16}
    assert seen["upserted"] == [[2, None], [2, None]]  # one token: applied once, answered twice
    assert seen["packed"] == 3 and seen["streamed"] == 100
    assert [(key, payload, first) for key, _, payload, first in seen["search"]] == [
        (3, {"n": 3, "kind": "packed"}, 3),
        (4, {"n": 4, "kind": "packed"}, 4),
        (2, {"n": 2, "kind": "floats"}, 2),
    ]
    assert seen["search"][0][1] == pytest.approx(0.2, abs=1e-6)
    assert seen["batch"] == {"ids": [1, 2, 105, 104], "lengths": [2, 2], "first": 0}
    assert seen["filtered"] == [[52, 53], [52, 53]]
    assert seen["count"] == 3 and seen["got"] == {"ids": [5], "missing": [1]}
    assert seen["scrolled"] == list(range(1, 106))
    assert seen["both"] == [[9], "DimensionMismatch", [10]]
    error = seen["error"]
    assert (error["code"], error["type"], error["known"], error["request"]) == (
        "INVALID_ARGUMENT",
        "DimensionMismatch",
        True,
        True,
    )
    assert error["attributes"]["field"] == "vector"
    assert seen["missing"] == "NOT_FOUND"
