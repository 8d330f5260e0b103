"""Engines in processes of their own: each builds once and then answers one pass at a time, so that passes take turns.

The other side of the pipe is `peers/protocol.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from typing import Any

from .__main__ import HERE, python_of


class Engine:
    """A process that has built its index. built: how long that took. Raises OSError when it could not."""

    def __init__(self, script: str, environment: str, *arguments: Any) -> None:
        """script: in `peers/`. environment: whose interpreter runs it; "vecdb" for this one."""
        python = python_of(environment)
        if python is None:
            raise OSError("could not be installed")
        variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
        command = [python, str(HERE / "peers" / f"{script}.py"), *(str(each) for each in arguments)]
        self._told = tempfile.TemporaryFile("w+")  # what it says when it cannot
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._told, text=True, env=variables
        )
        self.built = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # a library's own words
            line = self._process.stdout.readline()
        if not line:
            self._told.seek(0)
            raise OSError((self._told.read().strip().splitlines() or ["its process ended"])[-1][:200])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, request: Any) -> dict[str, Any]:
        """One pass: seconds, cpu, and ids, the file that holds what was found."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()
