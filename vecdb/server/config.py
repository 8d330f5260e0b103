"""What a server is told: by `vecdb.toml`, and by options, which count where both say something.

    [server]
    db = "my.db"
    host = "127.0.0.1"
    port = 7700
    workers = 1

    [tls]
    cert = "server.pem"
    key = "server.key"

Each name is a field of `Config`, in the table that is named beside it. Immutable values.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import InvalidInput, NotFound

MIB = 1 << 20


@dataclass(frozen=True)
class Config:
    """Everything about a server. Times in seconds.

    threads: of search kernels, in each worker; None: the cores, shared by the workers. queue: requests that may be under way
    or waiting in a worker; more are sent away with RESOURCE_EXHAUSTED. streams: likewise, of streams. in_flight_mib: of their
    messages. stream_idle: a stream that takes or sends nothing for so long is ended. grace: what a drain waits for requests
    that are under way. keys: file of API keys; None: beside the database. metrics_port: None: no metrics.
    """

    db: str = ""
    host: str = "127.0.0.1"
    port: int = 7700
    workers: int = 1
    threads: int | None = None
    memory_limit_mib: int | None = None
    recall_probe: float = 0.001
    max_message_mib: int = 64
    queue: int = 128
    streams: int = 32
    in_flight_mib: int = 512
    stream_idle: float = 60.0
    grace: float = 30.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    keys: str | None = None
    log_level: str = "info"
    log_requests: bool = False
    slow: float = 1.0

    @property
    def tls(self) -> bool:
        return self.cert is not None

    @property
    def keys_path(self) -> Path:
        from .keys import FILE

        return Path(self.keys) if self.keys is not None else Path(self.db) / FILE

    @property
    def largest_message(self) -> int:
        return self.max_message_mib * MIB


_TABLES = {
    "server": {
        "db", "host", "port", "workers", "threads", "memory_limit_mib", "recall_probe", "max_message_mib", "queue", "streams",
        "in_flight_mib", "stream_idle", "grace", "keys",
    },
    "metrics": {"metrics_host", "metrics_port"},
    "tls": {"cert", "key", "client_ca"},
    "log": {"log_level", "log_requests", "slow"},
}  # fmt: skip
_TYPES = {field.name: str(field.type) for field in fields(Config)}


def config_of(file: str | None = None, **said: Any) -> Config:
    """The configuration of a file, and of what was said beside it; None means that nothing was said.

    Raises NotFound, InvalidInput, which names table and setting.
    """
    values = {} if file is None else _read(file)
    values |= {name: value for name, value in said.items() if value is not None}
    made = Config(**values)
    if not made.db:
        raise InvalidInput("say which database: --db PATH, or db in the table [server]")
    least = {
        "port": 0, "metrics_port": 0, "workers": 1, "threads": 1, "memory_limit_mib": 1, "max_message_mib": 1, "queue": 1,
        "streams": 1, "in_flight_mib": 1, "stream_idle": 0.1, "grace": 0, "slow": 0,
    }  # fmt: skip
    for name, lowest in least.items():
        value = getattr(made, name)
        if value is not None and value < lowest:
            raise InvalidInput(f"{name} must be {lowest} or more, not {value}")
    if made.port > 65_535 or (made.metrics_port or 0) > 65_535:
        raise InvalidInput("a port is at most 65535")
    if not 0 <= made.recall_probe <= 1:
        raise InvalidInput(f"recall_probe is a share from 0 to 1, not {made.recall_probe}")
    if (made.cert is None) != (made.key is None):
        raise InvalidInput("TLS needs both: --tls-cert and --tls-key")
    if made.client_ca is not None and made.cert is None:
        raise InvalidInput("--tls-client-ca asks clients for certificates, which needs --tls-cert and --tls-key")
    if made.log_level not in ("debug", "info", "warning", "error"):
        raise InvalidInput(f"log_level is debug, info, warning or error, not {made.log_level!r}")
    for path in (made.cert, made.key, made.client_ca, made.keys):
        if path is not None and not os.access(path, os.R_OK):
            raise NotFound(f"{path} cannot be read")
    return made


def check_exposure(config: Config, *, has_keys: bool) -> None:
    """A bind beyond loopback needs TLS and authentication. Raises InvalidInput with the options that are missing."""
    missing = {}
    if not config.tls:
        missing["encryption"] = "--tls-cert FILE --tls-key FILE"
    if not has_keys and config.client_ca is None:
        missing["authentication"] = f"a key (vecdb keys create NAME --db {config.db}), or --tls-client-ca FILE"
    _refuse(config.host, missing)
    if config.metrics_port is not None:
        if not has_keys:  # that port asks for no certificates
            missing["authentication"] = f"a key (vecdb keys create NAME --db {config.db})"
        _refuse(config.metrics_host, missing)


def _refuse(host: str, missing: dict[str, str]) -> None:
    if missing and not is_loopback(host):
        raise InvalidInput(
            f"{host} can be reached from other machines, and this server would be there without {' and '.join(missing)}: "
            f"add {' and '.join(missing.values())}; or stay on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _read(file: str) -> dict[str, Any]:
    try:
        told = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise NotFound(f"{file} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} is no TOML: {error}") from None
    values: dict[str, Any] = {}
    for table, settings in told.items():
        if table not in _TABLES or not isinstance(settings, dict):
            raise InvalidInput(f"{file}: there is no table [{table}]; there are {', '.join(f'[{name}]' for name in _TABLES)}")
        for said, value in settings.items():
            name = said if said in _TABLES[table] else f"{table}_{said}"
            if name not in _TABLES[table]:
                known = sorted(each.removeprefix(f"{table}_") for each in _TABLES[table])
                raise InvalidInput(f"{file}: [{table}] has no {said!r}; it has {', '.join(known)}")
            if not _fits(value, _TYPES[name]):
                raise InvalidInput(f"{file}: [{table}] {said} cannot be {value!r}")
            values[name] = value
    return values


def _fits(value: Any, type_: str) -> bool:
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool}
    kind = kinds[type_.split(" ")[0]]
    return isinstance(value, kind) and (isinstance(value, bool) == (kind is bool))  # type: ignore[arg-type]
