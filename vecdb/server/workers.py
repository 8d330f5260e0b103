"""Several processes behind one port: reads by all of them, writes by the first.

The process that `vecdb serve --workers N` starts opens no database: it starts the workers, starts one anew that ended on its
own, and asks them for their figures. Worker 0 has the database open for writing; the others follow it read-only, and send
writes on to it through a socket in a folder that only this user can enter. The kernel spreads connections over them
(SO_REUSEPORT).

A worker is a fresh interpreter, never a fork. Its standard input is its life line: when it closes, because the parent ended
in whatever way, the worker drains and ends. Over it the parent also asks for metrics: a line with the question, and on
standard output one with the answer, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import StorageError, VecdbError
from . import telemetry
from .config import Config, check_exposure
from .keys import Keys
from .probes import Probes

log = logging.getLogger("vecdb.server")
_START = 60.0  # seconds for a worker to say that it serves
_PATIENCE = 2.0  # seconds for its figures
_QUICK = 1.0  # one that ended sooner than that is started anew after a pause
_PAUSE = 1.0


class Worker:
    """One process, as its parent sees it. Belongs to the thread that watches it, but for `ask`."""

    def __init__(self, config: Config, number: int, inner: str, needs_keys: bool) -> None:
        self.number = number
        self._ready = False
        self._lock = threading.Lock()
        told = {"config": asdict(config), "number": number, "inner": inner, "needs_keys": needs_keys}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vecdb.server.workers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.started = time.monotonic()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._owed = 0  # answers to questions for which nobody waits any more
        threading.Thread(target=self._listen, name=f"vecdb-answers-{number}", daemon=True).start()
        with contextlib.suppress(OSError):  # it has ended already, which `wait_ready` tells
            self._say(json.dumps(told))

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def wait_ready(self) -> None:
        """Raises the error with which it ended."""
        told = self._answers.get()
        if told is None or "error" in told:
            self.process.wait(_START)
            raise StorageError((told or {}).get("error") or f"worker {self.number} ended with {self.process.returncode}")
        self._ready = True

    def ask(self, question: str) -> Any:
        """None when it is not there, or not yet, or does not answer."""
        if not self._ready:
            return None
        with self._lock, contextlib.suppress(OSError, ValueError, queue.Empty):
            while self._owed:
                self._answers.get_nowait()
                self._owed -= 1
            self._say(question)
            self._owed += 1
            answer = self._answers.get(timeout=_PATIENCE)
            self._owed -= 1
            return answer
        return None

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()


class Supervisor:
    """The parent of the workers."""

    def __init__(self, config: Config) -> None:
        """Raises what opening the database or listening raises in a worker."""
        self._keys = Keys(config.keys_path)
        check_exposure(config, has_keys=bool(self._keys))
        self._folder = tempfile.mkdtemp(prefix="vecdb-")  # 0700
        self._inner = f"unix:{self._folder}/writer"
        self._stopped = threading.Event()
        self._probes: Probes | None = None
        self._reserved: socket.socket | None = None
        self._workers: list[Worker] = []
        try:
            self.config = config = replace(config, port=self._reserve(config.host, config.port))
            for number in range(config.workers):
                worker = Worker(config, number, self._inner, bool(self._keys))
                self._workers.append(worker)
                worker.wait_ready()
            if config.metrics_port is not None:
                self._probes = Probes(config, self._metrics, self._ready)
        except BaseException:
            self._end()
            raise
        self._watchers = [
            threading.Thread(target=self._watch, args=(n,), name=f"vecdb-worker-{n}") for n in range(config.workers)
        ]
        for watcher in self._watchers:
            watcher.start()

    def _reserve(self, host: str, port: int) -> int:
        """The port, or a free one for 0, bound and not listened on, so that nobody else gets it.

        Raises StorageError where somebody has it: workers share theirs with whoever else lets them, and callers with it.
        """
        self._reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            # Alone there, though connections of before are not forgotten yet; then with workers, and with nobody who is not.
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reserved.bind((host.strip("[]"), port))
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            raise StorageError(f"{host}:{port} cannot be listened on; is another server there? ({error.strerror})") from None
        return int(self._reserved.getsockname()[1])

    @property
    def port(self) -> int:
        return self.config.port

    @property
    def metrics_port(self) -> int | None:
        return None if self._probes is None else self._probes.port

    def _watch(self, number: int) -> None:
        """Starts worker `number` anew whenever it has ended on its own."""
        while True:
            worker = self._workers[number]
            code = worker.process.wait()
            if self._stopped.is_set():
                return
            log.error("a worker ended and is started anew", extra={"worker": number, "code": code})
            worker.end()
            if time.monotonic() - worker.started < _QUICK and self._stopped.wait(_PAUSE):
                return
            try:
                fresh = self._workers[number] = Worker(self.config, number, self._inner, bool(self._keys))
                if self._stopped.is_set():  # too late for it to be ended with the others
                    fresh.end()
                fresh.wait_ready()
            except (VecdbError, OSError) as error:
                log.error("a worker cannot start", extra={"worker": number, "reason": str(error)})
                if self._stopped.wait(_PAUSE):
                    return

    def _metrics(self) -> bytes:
        return telemetry.joined(
            [(worker.number, told["metrics"]) for worker in self._workers if (told := worker.ask("metrics"))]
        )

    def _ready(self) -> bool:
        return not self._stopped.is_set() and all(worker.process.poll() is None for worker in self._workers)

    def stop(self) -> None:
        self._stopped.set()

    def wait(self) -> None:
        while not self._stopped.wait(60):
            pass
        self._end()
        for watcher in self._watchers:
            watcher.join()
        log.info("stopped")

    def _end(self) -> None:
        """All workers drain, those that read first."""
        self._stopped.set()
        if self._probes is not None:
            self._probes.close()
        for worker in reversed(self._workers):
            worker.end()
        for worker in reversed(self._workers):
            try:
                worker.process.wait(self.config.grace + 10)
            except subprocess.TimeoutExpired:
                worker.process.kill()
        if self._reserved is not None:
            self._reserved.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _run() -> None:
    """A worker: see above."""
    from .serve import Server

    told = json.loads(sys.stdin.readline())
    config, number, inner = Config(**told["config"]), told["number"], told["inner"]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints must not be taken for an answer
    telemetry.log_to_stderr(config.log_level)
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)  # a terminal sends them to all; the parent tells when to end
    try:
        if number == 0:
            Path(inner.removeprefix("unix:")).unlink(missing_ok=True)
            server = Server(config, inner=inner, needs_keys=told["needs_keys"])
        else:
            server = Server(config, writer=inner, needs_keys=told["needs_keys"])
        server.start()
    except VecdbError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        sys.exit(1)
    answers.write(json.dumps({"port": server.port}) + "\n")

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "metrics":
                answers.write(json.dumps({"metrics": server.metrics.text().decode()}) + "\n")
        server.stop()

    threading.Thread(target=listen, name="vecdb-life-line", daemon=True).start()
    server.wait()


if __name__ == "__main__":
    _run()
