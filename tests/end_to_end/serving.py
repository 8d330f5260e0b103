"""A real server for tests: `vecdb serve` as a process of its own, with certificates made on the spot."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

VECDB = Path(sys.executable).parent / "vecdb"
PLACES = ("VECDB_DB", "VECDB_API_KEY", "VECDB_CA", "VECDB_CERT", "VECDB_KEY")


def run(*arguments: Any, check: bool = True, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of vecdb, with nothing in the environment but what is said."""
    told = {name: value for name, value in os.environ.items() if name not in PLACES} | {"COLUMNS": "200"} | environment
    done = subprocess.run(
        [VECDB, *map(str, arguments)], capture_output=True, text=True, check=False, env=told, timeout=180, cwd=cwd
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not check or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


class Process:
    """A server that is up when this is made. A context manager: leaving the block drains it."""

    def __init__(self, db: Path, *options: Any, log: Path | None = None) -> None:
        self.log = log or db.with_name(f"{db.name}.log")
        told = {name: value for name, value in os.environ.items() if name not in PLACES}
        with open(self.log, "a", encoding="utf-8") as errors:
            self.process = subprocess.Popen(
                [VECDB, "serve", "--db", str(db), "--port", "0", "--metrics-port", "0", *map(str, options)],
                stdout=subprocess.PIPE, stderr=errors, text=True, env=told,
            )  # fmt: skip
        self.url = self._said(r"serving .* at (\S+)")
        self.metrics = self._said(r"metrics at (\S+)")
        self.port = int(self.url.rpartition(":")[2])

    def _said(self, pattern: str) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(pattern, line.strip())
        if found is None:
            self.kill()
        assert found is not None, f"{line!r}\n{self.log.read_text(encoding='utf-8')}"
        return found[1]

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self._ended()

    def drain(self) -> int:
        self.process.terminate()
        return self._ended()

    def _ended(self) -> int:
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.drain()
        elif self.process.stdout is not None:
            self.process.stdout.close()


class Authority:
    """Signs certificates for localhost and for clients."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ca = folder, folder / "ca.pem"
        self._key, self._certificate = self._made("a test's authority", None)
        self.ca.write_bytes(self._certificate.public_bytes(_pem()))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key, each put into its place as a whole."""
        from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

        key, certificate = self._made(name, self._key)
        chain = certificate.public_bytes(_pem())
        secret = key.private_bytes(_pem(), PrivateFormat.PKCS8, NoEncryption())
        places = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, data in zip(places, (chain, secret), strict=True):
            path.with_suffix(".next").write_bytes(data)
            path.with_suffix(".next").replace(path)
        return places

    def _made(self, name: str, signer: Any) -> tuple[Any, Any]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if signer is None else self._certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=7))
            .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
        )
        if signer is not None:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return key, made.sign(signer or key, hashes.SHA256())


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM
