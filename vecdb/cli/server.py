"""The server: serve, and the keys of those who may call it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import output
from .output import Json

_Database = Annotated[
    str | None,
    typer.Option("--db", envvar="VECDB_DB", help="The database: a directory; made if it is not there.", show_default=False),
]


def register(app: typer.Typer) -> None:
    app.command()(serve)
    group = typer.Typer(help="API keys of a server: create, list, revoke.", no_args_is_help=True, rich_markup_mode=None)
    for command in (create, list_, revoke):
        group.command(command.__name__.rstrip("_"))(command)
    app.add_typer(group, name="keys")


def serve(
    db: _Database = None,
    config: Annotated[
        str | None, typer.Option("--config", help="A vecdb.toml; options count more.", show_default=False)
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Default: 127.0.0.1.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option("--port", help="Default: 7700; 0: any that is free.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Processes that share the port.", show_default=False)] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", help="Of search kernels, in each worker; default: the cores.", show_default=False)
    ] = None,
    tls_cert: Annotated[str | None, typer.Option("--tls-cert", help="The certificate, PEM.", show_default=False)] = None,
    tls_key: Annotated[str | None, typer.Option("--tls-key", help="Its key, PEM.", show_default=False)] = None,
    tls_client_ca: Annotated[
        str | None, typer.Option("--tls-client-ca", help="Clients need certificates by these, PEM.", show_default=False)
    ] = None,
    keys: Annotated[
        str | None, typer.Option("--keys", help="The file of API keys; default: keys.json in the database.", show_default=False)
    ] = None,
    metrics_host: Annotated[str | None, typer.Option("--metrics-host", help="Default: 127.0.0.1.", show_default=False)] = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Of /metrics, /healthz and /readyz.", show_default=False)
    ] = None,
    queue: Annotated[
        int | None, typer.Option("--queue", help="Requests under way in a worker, at most; default: 128.", show_default=False)
    ] = None,
    streams: Annotated[
        int | None, typer.Option("--streams", help="Streams under way in a worker, at most; default: 32.", show_default=False)
    ] = None,
    max_message_mib: Annotated[
        int | None, typer.Option("--max-message-mib", help="The largest request; default: 64.", show_default=False)
    ] = None,
    recall_probe: Annotated[
        float | None,
        typer.Option(
            "--recall-probe", help="Share of searches run again exactly when idle; default: 0.001.", show_default=False
        ),
    ] = None,
    grace: Annotated[
        float | None, typer.Option("--grace", help="Seconds that a drain waits for requests; default: 30.", show_default=False)
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error.", show_default=False)
    ] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log every request, not only slow ones.")] = False,
) -> None:
    """Serve a database by gRPC until SIGTERM or Ctrl-C. Logs are JSON lines on stderr, the address goes to stdout."""
    from vecdb.errors import Unsupported
    from vecdb.server import telemetry
    from vecdb.server.config import config_of, is_loopback
    from vecdb.server.serve import Server, stop_at_signals

    made = config_of(
        config, db=db, host=host, port=port, workers=workers, threads=threads, cert=tls_cert, key=tls_key,
        client_ca=tls_client_ca, keys=keys, metrics_host=metrics_host, metrics_port=metrics_port, queue=queue, streams=streams,
        max_message_mib=max_message_mib, recall_probe=recall_probe, grace=grace, log_level=log_level,
        log_requests=log_requests or None,
    )  # fmt: skip
    telemetry.log_to_stderr(made.log_level)
    if output.is_server(made.db):
        raise Unsupported(f"{made.db} is served already; give the path of a database of this machine")
    server: Any
    if made.workers > 1:
        from vecdb.server.workers import Supervisor

        server = Supervisor(made)
    else:
        server = Server(made)
        server.start()
    stop_at_signals(server.stop)
    scheme = "grpcs" if made.tls else "grpc"
    print(f"serving {made.db} at {scheme}://{_shown(made.host)}:{server.port}", flush=True)
    if server.metrics_port is not None:
        scheme = "https" if made.tls and not is_loopback(made.metrics_host) else "http"
        print(f"metrics at {scheme}://{_shown(made.metrics_host)}:{server.metrics_port}/metrics", flush=True)
    server.wait()


def _shown(host: str) -> str:
    """As URLs have it."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


_Keys = Annotated[str | None, typer.Option("--keys", help="The file; default: keys.json in the database.", show_default=False)]


def _file(db: str | None, keys: str | None, *, make: bool = False) -> Any:
    """make: a database that is not there is made, so that a server which others can reach has a key from its first start."""
    from vecdb.errors import InvalidInput, NotFound, Unsupported
    from vecdb.server.keys import FILE, Keys

    if keys is None:
        if db is None:
            raise InvalidInput("say which database: --db PATH, or --keys FILE")
        if "://" in db:
            raise Unsupported("keys are made on the machine of the server: give the path of its database")
        if not (Path(db) / "VECDB").exists():
            if not make:
                raise NotFound(f"{db}: there is no database; `vecdb keys create`, `vecdb create` and `vecdb serve` make one")
            import vecdb

            vecdb.open(db).close()
    return Keys(Path(keys) if keys is not None else Path(db or "") / FILE)


def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, as it will be in logs.", show_default=False)],
    db: _Database = None,
    role: Annotated[str, typer.Option("--role", help="read, write or admin.")] = "read",
    collection: Annotated[
        list[str] | None,
        typer.Option("--collection", help="What it is for; * and ? stand for others; may be repeated. Default: all."),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Requests a second, at most.", show_default=False)] = None,
    max_message_mib: Annotated[
        float | None, typer.Option("--max-message-mib", help="Its largest request.", show_default=False)
    ] = None,
    days: Annotated[float | None, typer.Option("--days", help="How long it is good for.", show_default=False)] = None,
    keys: _Keys = None,
    json: Json = False,
) -> None:
    """Make an API key. It is shown this once; the file keeps a hash. Servers know it at once.

    A database is made if there is none.
    """
    from vecdb.server.keys import without_secret

    largest = None if max_message_mib is None else round(max_message_mib * (1 << 20))
    key, text = _file(db, keys, make=True).create(
        name, role, tuple(collection or ("*",)), rate=rate, largest=largest, days=days
    )
    if json:
        output.print_json({**without_secret(key), "api_key": text})
    else:
        print(text)
        output.say(f"key {key.id} of {name}: {role}, collections {', '.join(key.collections)}; it is not shown again")


def list_(db: _Database = None, keys: _Keys = None, json: Json = False) -> None:
    """The keys, without their secrets."""
    import time

    from vecdb.server.keys import without_secret

    found = _file(db, keys).all()
    if json:
        output.print_json([without_secret(key) for key in found])
        return

    def day(at: float | None) -> str | None:
        return None if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))

    rows = [
        [key.id, key.name, key.role, ", ".join(key.collections), key.rate, key.largest, day(key.created), day(key.expires)]
        for key in found
    ]
    output.table(["id", "name", "role", "collections", "rate", "largest", "created", "expires"], rows)


def revoke(
    which: Annotated[
        str, typer.Argument(help="The id of a key, or a name, which stands for all of that name.", show_default=False)
    ],
    db: _Database = None,
    keys: _Keys = None,
    json: Json = False,
) -> None:
    """Take a key away. Servers refuse it from the next request on."""
    from vecdb.server.keys import without_secret

    gone = _file(db, keys).revoke(which)
    if json:
        output.print_json([without_secret(key) for key in gone])
    else:
        output.say(f"revoked: {', '.join(f'{key.id} ({key.name})' for key in gone)}")
