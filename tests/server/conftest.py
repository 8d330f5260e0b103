"""Servers to be tested: in this process, in one of their own, with and without keys and certificates; and who vouches for those."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import vecdb
from vecdb import Dense
from vecdb.server.config import config_of
from vecdb.server.keys import FILE, Keys
from vecdb.server.serve import Server

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("calls", "served")

DIM = 8


@pytest.fixture(autouse=True)
def _no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VECDB_API_KEY", "VECDB_CA", "VECDB_CERT", "VECDB_KEY", "VECDB_DB"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "db"


@pytest.fixture
def serve(path: Path) -> Iterator[Callable[..., Server]]:
    """serve(**settings) -> a server in this process."""
    servers: list[Server] = []

    def start(**settings: Any) -> Server:
        server = Server(config_of(**{"db": str(path), "port": 0, "threads": 1, "recall_probe": 0.0, **settings}))
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
        server.wait()


@pytest.fixture
def channel_to() -> Iterator[Callable[..., grpc.Channel]]:
    """channel_to(port) -> a connection of its own, closed at the end."""
    channels: list[grpc.Channel] = []

    def connect(port: int, *options: tuple[str, Any]) -> grpc.Channel:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), *options]
        channels.append(grpc.insecure_channel(f"127.0.0.1:{port}", own))
        return channels[-1]

    yield connect
    for channel in channels:
        channel.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """connect(port, api_key=…) -> a client, closed at the end."""
    clients: list[Any] = []

    def to(port: int, **how: Any) -> Any:
        clients.append(vecdb.connect(f"{'grpcs' if 'ca' in how else 'grpc'}://127.0.0.1:{port}", **{"retries": 0, **how}))
        return clients[-1]

    yield to
    for client in clients:
        client.close()


@pytest.fixture
def keys(path: Path) -> Keys:
    """The API keys of the database; the first one is for nobody, and makes keys needed."""
    vecdb.open(path).close()
    made = Keys(path / FILE)
    made.create("nobody", "read", ("nothing",))
    return made


@pytest.fixture
def key_of(keys: Keys) -> Callable[..., str]:
    """key_of("write", "docs", …) -> the text of a new key."""
    numbers = itertools.count()

    def make(role: str, *collections: str, **limits: Any) -> str:
        return keys.create(f"{role}-{next(numbers)}", role, collections or ("*",), **limits)[1]

    return make


@pytest.fixture
def filled(path: Path) -> Callable[..., None]:
    """filled("docs", "secrets", rows=100) -> the database has these collections."""

    def fill(*names: str, rows: int = 20, dim: int = DIM, **payload: Any) -> None:
        vectors = np.random.default_rng(7).standard_normal((rows, dim)).astype(np.float32)
        with vecdb.open(path) as db:
            for name in names:
                docs = db.create_collection(name, Dense(dim, metric="l2", index="flat"))
                docs.upsert(ids=range(rows), vectors=vectors, payloads=[{"n": n, **payload} for n in range(rows)])

    return fill


class Process:
    """`vecdb serve` in a process of its own; what it logs is in a file."""

    def __init__(self, path: Path, log: Path, *arguments: str) -> None:
        self.log = log
        command = [sys.executable, "-m", "vecdb", "serve", "--db", str(path), "--threads", "1", *arguments]
        if "--port" not in arguments:
            command += ["--port", "0"]
        with open(log, "ab") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving"), f"{line}\n{log.read_text()}"
        self.port = int(line.rsplit(":", 1)[1])
        self.metrics_port = 0
        if "--metrics-port" in arguments:
            self.metrics_port = int(self.process.stdout.readline().rsplit(":", 1)[1].split("/")[0])

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self, seconds: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self) -> None:
        if self.process.poll() is None:
            self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def process(path: Path, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """process("--workers", "2", …) -> a server in a process of its own."""
    made: list[Process] = []

    def start(*arguments: str) -> Process:
        made.append(Process(path, tmp_path / f"log-{len(made)}", *arguments))
        return made[-1]

    yield start
    for each in made:
        each.close()


class Authority:
    """Vouches for certificates. Each is a pair of files in PEM: (certificate, key)."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(exist_ok=True)
        self._folder, self._numbers = folder, itertools.count()
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._cert = self._signed(self._name, self._key, ca=True)
        self.ca = str(folder / "ca.pem")
        Path(self.ca).write_bytes(self._cert.public_bytes(serialization.Encoding.PEM))

    def _signed(self, subject: x509.Name, key: Any, *, ca: bool) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=10))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def certificate(self, name: str) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._signed(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, ca=False)
        stem = self._folder / f"{name}-{next(self._numbers)}"
        files = stem.with_suffix(".cert"), stem.with_suffix(".key")
        files[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        os.chmod(files[1], 0o600)
        return str(files[0]), str(files[1])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority", "those we trust")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Whom nobody has been told to believe."""
    return Authority(tmp_path / "stranger", "those we do not")


@pytest.fixture
def serving(path: Path) -> Iterator[Callable[..., Any]]:
    """serving(**settings) -> a server in this process, as `served.Served`; ended with its connections."""
    from served import Served

    begun: list[Served] = []

    def start(**settings: Any) -> Served:
        said = {"db": str(path), "port": 0, "threads": 1, "grace": 5.0, "recall_probe": 0.0, **settings}
        server = Server(config_of(**said))
        server.start()
        begun.append(Served(server))
        return begun[-1]

    yield start
    for each in begun:
        each.close()
