"""Servers, ours and peers', and crowds of their clients, as processes of their own.

The programs that run in them are `peers/serving_NAME.py` and `peers/calling.py`; peers have environments of their own.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .__main__ import HERE, python_of

MIB = 1 << 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int, process: subprocess.Popen[Any], seconds: float = 120) -> None:
    """Returns when something listens. Raises OSError when the process ended, or after so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise OSError("its server ended" if process.poll() is not None else f"its server did not listen within {seconds:g} s")


class Server:
    """A server over a folder, and all its processes, from entering to leaving. What it prints goes to server.log in the folder."""

    def __init__(self, engine: Engine, folder: Path, *arguments: str) -> None:
        self.engine, self.folder, self.port = engine, folder, free_port()
        self._arguments = arguments

    def __enter__(self) -> Server:
        with (self.folder / "server.log").open("ab") as log:
            command = self.engine.command("serve", self.folder, self.port, *self.engine.arguments, *self._arguments)
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment())
        try:
            listening(self.port, self.process)
        except OSError as error:
            self.__exit__()
            said = (self.folder / "server.log").read_text(errors="replace").strip().splitlines()
            raise OSError(f"{error}: {' / '.join(said[-3:])[-300:]}") from None
        return self

    def __exit__(self, *_: Any) -> None:
        for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
        with contextlib.suppress(ProcessLookupError):  # its children, should it have left any
            os.killpg(self.process.pid, signal.SIGKILL)

    def memory(self) -> tuple[int, int]:
        """Resident bytes of all its processes, and the anonymous ones among them."""
        resident = anonymous = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[2]) == self.process.pid:  # its process group
                    for line in path.with_name("status").read_text().splitlines():
                        resident += 1024 * int(line.split()[1]) if line.startswith("VmRSS") else 0
                        anonymous += 1024 * int(line.split()[1]) if line.startswith("RssAnon") else 0
        return resident, anonymous

    def connections(self) -> int:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
        cells = [line.split() for line in lines]
        return sum(cell[3] == "01" and int(cell[1].rpartition(":")[2], 16) == self.port for cell in cells)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "ANONYMIZED_TELEMETRY": "False",
        "RUST_LOG": "warn",
    }  # Chroma logs each request


@dataclass(frozen=True, eq=False)
class Engine:
    """script: `peers/serving_NAME.py`. environment: whose interpreter runs it. settings: from fast to exact. arguments: of the server.

    offline: is loaded without its server. keeps: a setting belongs to the collection and holds from the next start of the server on.
    """

    name: str
    script: str
    environment: str
    settings: tuple[dict[str, Any], ...] = ({},)
    arguments: tuple[str, ...] = ()
    offline: bool = False
    keeps: bool = False

    def command(self, verb: str, folder: Path, port: int, *arguments: str) -> list[str]:
        python = python_of(self.environment)
        if python is None:
            raise OSError("could not be installed")
        return [python, str(HERE / "peers" / f"serving_{self.script}.py"), verb, str(folder), str(port), *arguments]


VECDB = Engine("vecdb", "vecdb", "vecdb", tuple({"recall": each} for each in (0.95, 0.96, 0.97, 0.98, 0.99)), offline=True)
EFS = tuple({"ef": each} for each in (10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 800))
PEERS = (
    Engine("Chroma", "chromadb", "chromadb", EFS, keeps=True),
    Engine("Milvus Lite", "milvus_lite", "milvus", EFS),
    Engine("Milvus standalone 2.3", "milvus", "milvus-server", EFS),
)


@dataclass
class Answers:
    """seconds: that it should take. calls: (n, 2) start and seconds of those that were answered. errors: by the name of the exception."""

    seconds: float
    calls: np.ndarray
    errors: collections.Counter[str]

    @property
    def rate(self) -> float:
        return len(self.calls) / self.seconds

    def ms(self, percent: float) -> float:
        return 1e3 * float(np.percentile(self.calls[:, 1], percent)) if len(self.calls) else float("nan")

    @property
    def others(self) -> str:
        return ", ".join(f"{name} {count:,}" for name, count in self.errors.items() if name != "Overloaded") or "0"


class Callers:
    """Processes of clients of a server, from entering to leaving. The folder has queries.npy. arguments: of their `connect`."""

    def __init__(self, server: Server, processes: int, *arguments: str) -> None:
        command = server.engine.command("call", server.folder, server.port, *arguments)
        variables = {**environment(), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._log = server.folder / "callers.log"
        with self._log.open("ab") as log:
            self._processes = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables)
                for _ in range(processes)
            ]

    def __enter__(self) -> Callers:
        for process in self._processes:
            self._answer(process)
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.communicate(timeout=None)

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise OSError(f"a process of its clients ended: {' / '.join(said[-2:])[-300:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ask(self, process: subprocess.Popen[str], request: dict[str, Any]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()

    def start(
        self, threads: int, seconds: float, setting: dict[str, Any], processes: int | None = None, rate: float | None = None
    ) -> Callable[[], Answers]:
        """A loop of so many threads in each of the processes (of the first so many). rate: of all, to offer.

        Returns what waits for its end.
        """
        some = self._processes[:processes]
        request: dict[str, Any] = {"threads": threads, "seconds": seconds, "setting": setting, "at": time.time() + 0.3}
        if rate is not None:
            request["rate"] = rate / len(some)
        for process in some:
            self._ask(process, request)

        def wait() -> Answers:
            answers = [self._answer(process) for process in some]
            errors = sum((collections.Counter(answer["errors"]) for answer in answers), collections.Counter())
            return Answers(seconds, np.concatenate([np.load(answer["calls"]) for answer in answers]), errors)

        return wait

    def run(self, threads: int, seconds: float, setting: dict[str, Any], processes: int | None = None) -> Answers:
        return self.start(threads, seconds, setting, processes)()

    def connect(self, threads: int, setting: dict[str, Any]) -> None:
        """Each thread's connection, which the first loop makes before it begins."""
        self.run(threads, 0.5, setting)

    def found(self, setting: dict[str, Any]) -> np.ndarray:
        self._ask(self._processes[0], {"each": True, "setting": setting})
        found: np.ndarray = np.load(self._answer(self._processes[0])["found"])
        return found
