"""Puts a server together, and ends it: one process that answers requests, alone or as one of several workers.

On SIGTERM or SIGINT it says NOT_SERVING to those who probe, takes no new requests, finishes those that are under way, and
closes the database. Everything that was acknowledged was durable before, so a server that is killed loses nothing either.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from vecdb_index.coalesce import Coalescer
from vecdb_index.cores import usable

from ..database import Database, open_database
from ..errors import StorageError
from ..wire import messages
from . import admin, collections, points, searches
from .config import MIB, Config, check_exposure
from .forward import Writer
from .gate import PROBES, Gate
from .keys import Keys
from .probes import Probes
from .services import Answer, Handlers, Served
from .telemetry import Metrics
from .tls import credentials

ANSWERS: dict[str, Answer] = {**collections.ANSWERS, **points.ANSWERS, **searches.ANSWERS, **admin.ANSWERS}
_SPARE = 8  # threads for those who are sent away
_TOLD = 0.2  # seconds for those who watch the health to be told that it ends
log = logging.getLogger("vecdb.server")


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The methods that the writer answers for this worker, and those that it answers itself."""

    def __init__(self, own: Handlers, writer: Writer | None) -> None:
        self._own = own
        forwarded = [] if writer is None else [method for method in messages.METHODS.values() if method.writes]
        self._sent_on = {method.path: writer.handler(method) for method in forwarded if writer is not None}

    def service(self, details: Any) -> Any:
        return self._sent_on.get(details.method) or self._own.service(details)


class Server:
    """One process that serves. writer: where the one that writes listens, None for that one itself."""

    def __init__(
        self, config: Config, *, writer: str | None = None, inner: str | None = None, needs_keys: bool = False
    ) -> None:
        """inner: an address beside, for the other workers. needs_keys: they were in use, though their file may have gone.

        Raises InvalidInput, StorageError, and what opening raises.
        """
        keys = Keys(config.keys_path, needed=needs_keys)
        check_exposure(config, has_keys=bool(keys))
        self.config = config
        self._stopped, self._started = threading.Event(), False
        cores = usable()
        threads = config.threads or max(1, cores // config.workers)
        self.db: Database = open_database(
            config.db, read_only=writer is not None, threads=threads, recall_probe=config.recall_probe,
            memory_limit=None if config.memory_limit_mib is None else config.memory_limit_mib * MIB,
        )  # fmt: skip
        with ExitStack() as undone:
            undone.callback(self.db.close)
            if writer is None:
                for left in Path(config.db).glob(f"{admin.BACKUPS}*"):
                    shutil.rmtree(left, ignore_errors=True)
            self.metrics = Metrics(config.metrics_port is not None)
            self._gate = Gate(config, keys, self.metrics, inner=inner is not None)
            undone.callback(self._gate.close)
            self.metrics.watch(self.db, lambda: self._gate.inside)
            served = Served(self.db, config, Coalescer(threads, self.metrics.batches.observe))
            self._writer = None if writer is None else Writer(writer)
            self._health = health.HealthServicer()
            self._server = self._made(config, _Handlers(Handlers(served, ANSWERS), self._writer))
            undone.callback(self._server.stop, None)
            self.port = self._bind(config, inner)
            # Of several workers the parent answers, for all of them.
            alone = config.metrics_port is not None and config.workers == 1
            self._probes = Probes(config, self.metrics.text, lambda: self.serving) if alone else None
            undone.pop_all()

    def _made(self, config: Config, handlers: Any) -> grpc.Server:
        threads = config.queue + config.streams + PROBES + _SPARE
        server = grpc.server(
            ThreadPoolExecutor(threads, thread_name_prefix="vecdb-request"),
            handlers=(handlers,),
            interceptors=(self._gate,),
            maximum_concurrent_rpcs=4 * threads,  # beyond these, gRPC itself sends callers away
            options=[
                ("grpc.so_reuseport", 1 if config.workers > 1 else 0),
                # Somewhat more than is taken, so that what is too large is refused by name.
                ("grpc.max_receive_message_length", 2 * config.largest_message),
                ("grpc.max_send_message_length", -1),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*messages.SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _bind(self, config: Config, inner: str | None) -> int:
        host = f"[{config.host}]" if ":" in config.host and not config.host.startswith("[") else config.host
        try:
            if config.tls:
                port: int = self._server.add_secure_port(f"{host}:{config.port}", credentials(config))
            else:
                port = self._server.add_insecure_port(f"{host}:{config.port}")
            if inner is not None:
                self._server.add_insecure_port(inner)
        except RuntimeError:
            port = 0
        if not port:
            raise StorageError(f"{config.host}:{config.port} cannot be listened on; is another server there?")
        return port

    def start(self) -> None:
        self._server.start()
        self._started = True
        for name in ("", *messages.SERVICES):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        log.info("serving", extra={"db": self.config.db, "host": self.config.host, "port": self.port, "tls": self.config.tls})

    @property
    def metrics_port(self) -> int | None:
        return None if self._probes is None else self._probes.port

    @property
    def serving(self) -> bool:
        """Whether requests are taken: from `start` until it is asked to end."""
        return self._started and not self._stopped.is_set()

    def stop(self) -> None:
        """Asks it to end; returns at once. Safe in a signal handler and when called twice."""
        self._stopped.set()

    def wait(self) -> None:
        """Until it was asked to end and has ended."""
        self._stopped.wait()
        self._health.enter_graceful_shutdown()
        log.info("draining", extra={"inside": self._gate.inside, "grace": self.config.grace})
        drained = self._server.stop(self.config.grace)
        if not drained.wait(_TOLD):
            self._gate.end_probes()
        drained.wait()
        self._gate.close()
        if self._probes is not None:
            self._probes.close()
        if self._writer is not None:
            self._writer.close()
        self.db.close()
        log.info("stopped")


def stop_at_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and Ctrl-C ask for an end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop())
