"""Certificates, read again when their files change: a renewed one is used by the next connection, without a restart."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from pathlib import Path
from typing import Any

import grpc

from ..errors import InvalidInput
from .config import Config

log = logging.getLogger("vecdb.server")


def credentials(config: Config) -> grpc.ServerCredentials:
    """TLS, with clients' certificates asked for where a `client_ca` is given. Raises InvalidInput."""
    paths = [Path(path) for path in (config.cert, config.key, config.client_ca) if path is not None]
    lock = threading.Lock()
    seen = _marks(paths)

    def made() -> Any:
        _check(config)
        key, chain = paths[1].read_bytes(), paths[0].read_bytes()
        ca = paths[2].read_bytes() if len(paths) > 2 else None
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=ca)

    def renewed() -> Any:
        """Asked by gRPC at each handshake; None: as before."""
        nonlocal seen
        with lock:
            try:
                now = _marks(paths)
                if now == seen:
                    return None
                fresh = made()
            except (OSError, InvalidInput) as error:  # half written: the one that is in use goes on
                log.error("the new certificate cannot be used", extra={"reason": str(error)})
                return None
            seen = now
        log.info("certificate renewed", extra={"cert": str(paths[0])})
        return fresh

    return grpc.dynamic_ssl_server_credentials(made(), renewed, require_client_authentication=config.client_ca is not None)


def context(config: Config) -> ssl.SSLContext:
    """The same for servers that are not gRPC's, without clients' certificates. Raises InvalidInput."""
    paths = [Path(path) for path in (config.cert, config.key) if path is not None]

    def made() -> ssl.SSLContext:
        _check(config)
        fresh = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fresh.load_cert_chain(config.cert or "", config.key)
        return fresh

    seen = _marks(paths)
    first = latest = made()

    def renewed(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        """Called at each handshake, also where no name is given."""
        nonlocal seen, latest
        try:
            now = _marks(paths)
            if now != seen:
                latest, seen = made(), now
        except (OSError, InvalidInput) as error:
            log.error("the new certificate cannot be used", extra={"reason": str(error)})
        if latest is not first:
            connection.context = latest

    first.sni_callback = renewed
    return first


def _marks(paths: list[Path]) -> list[tuple[int, int, int]]:
    return [(found.st_mtime_ns, found.st_ino, found.st_size) for found in map(os.stat, paths)]


def _check(config: Config) -> None:
    """Certificate and key can be read and belong together. Raises InvalidInput."""
    assert config.cert is not None and config.key is not None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.cert, config.key, password=lambda: b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise InvalidInput(f"{config.cert} and {config.key} are no certificate and its key, in PEM: {error}") from None
