"""The port beside: /metrics for Prometheus, /healthz and /readyz for those who restart and route.

On loopback it is plain HTTP without a key. Beyond, it has the server's certificate, and /metrics, which names collections,
wants an API key that may read all of them (`Authorization: Bearer vk_…`). Its threads are its own.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from ..errors import StorageError, VecdbError
from .config import Config, is_loopback
from .keys import Keys
from .tls import context

log = logging.getLogger("vecdb.server")


class Probes:
    """Serves until it is closed. metrics: the text, or None where there is none; ready: whether requests are taken."""

    def __init__(self, config: Config, metrics: Callable[[], bytes], ready: Callable[[], bool]) -> None:
        """Raises StorageError when the port is taken."""
        assert config.metrics_port is not None
        keys, guarded = Keys(config.keys_path), not is_loopback(config.metrics_host)

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds for somebody who connects and says nothing

            def do_GET(self) -> None:
                if self.path == "/healthz":
                    self._reply(200, b"ok\n")
                elif self.path == "/readyz":
                    self._reply(*((200, b"ok\n") if ready() else (503, b"not ready\n")))
                elif self.path == "/metrics":
                    if guarded and not self._may_read():
                        self._reply(401, b"an API key that may read all collections is needed\n")
                    else:
                        self._reply(200, metrics())
                else:
                    self._reply(404, b"there are /metrics, /healthz and /readyz\n")

            def _may_read(self) -> bool:
                try:
                    return "*" in keys.who(self.headers.get("Authorization")).collections
                except VecdbError:
                    return False

            def _reply(self, code: int, text: bytes) -> None:
                self.send_response(code)
                self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:
                log.debug(format, *args)

        class Listening(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in config.metrics_host else socket.AF_INET

        try:
            self._server = Listening((config.metrics_host, config.metrics_port), Handler)
        except OSError as error:
            raise StorageError(f"{config.metrics_host}:{config.metrics_port} cannot be listened on: {error.strerror}") from None
        self._server.daemon_threads = True
        if config.tls and guarded:
            secured = context(config).wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
            self._server.socket = secured
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="vecdb-probes", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
