"""A server as its users run it: TLS, keys, files loaded from a shell, both clients, rotations, a kill, figures."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import ssl
import sys
import time
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecdb
import vecdb.aio
from vecdb.errors import PermissionDenied, Unauthenticated

ROWS, DIM = 5000, 48


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert specification is not None and specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


serving: Any = _beside("serving")


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((ROWS, DIM)).astype(np.float32)


@pytest.fixture
def file(tmp_path: Path, vectors: np.ndarray) -> Path:
    path = tmp_path / "docs.parquet"
    columns = {
        "id": [f"doc-{i}" for i in range(ROWS)],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
        "year": [2000 + i % 25 for i in range(ROWS)],
    }
    pq.write_table(pa.table(columns), path)
    return path


def test_a_secured_server_from_a_file_to_a_kill(tmp_path: Path, file: Path, vectors: np.ndarray) -> None:
    authority, db = serving.Authority(tmp_path), tmp_path / "served.db"
    cert, key = authority.issue("server")
    ca = str(authority.ca)
    serving.run("create", "other", "--db", db, "--dim", 4)

    def key_of(name: str, *options: str) -> Any:
        return json.loads(serving.run("keys", "create", name, "--db", db, "--json", *options).stdout)

    writer = key_of("loader", "--role", "write")
    reader = key_of("site", "--role", "read", "--collection", "docs")
    secured = ("--tls-cert", cert, "--tls-key", key)
    with serving.Process(db, *secured, log=tmp_path / "first.log") as server:
        assert server.url.startswith("grpcs://")
        url = f"grpcs://localhost:{server.port}"
        refused = serving.run("ingest", file, "--db", url, "-c", "docs", check=False, VECDB_CA=ca)
        assert refused.returncode == 10 and "API key is needed" in refused.stderr
        loaded = serving.run("ingest", file, "--db", url, "-c", "docs", VECDB_CA=ca, VECDB_API_KEY=writer["api_key"])
        assert f"{ROWS:,} points of {ROWS:,} rows" in loaded.stderr

        # Both clients find what NumPy finds.
        query = np.random.default_rng(6).standard_normal(DIM).astype(np.float32)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        nearest = [f"doc-{i}" for i in np.argsort(-(unit @ query))[:10]]
        with vecdb.connect(url, api_key=reader["api_key"], ca=ca) as remote:
            assert [hit.id for hit in remote["docs"].search(query, 10, exact=True)] == nearest
            assert remote.collections() == ["docs"]
            with pytest.raises(PermissionDenied, match="role write"):
                remote["docs"].delete(["doc-1"])
            with pytest.raises(PermissionDenied, match="not for 'other'"):
                remote["other"]

        async def ask() -> list[list[str]]:
            async with await vecdb.aio.connect(url, api_key=reader["api_key"], ca=ca) as remote:
                docs = await remote.collection("docs")
                found = await asyncio.gather(*(docs.search(query, 10, exact=True) for _ in range(8)))
                return [[hit.id for hit in hits] for hits in found]

        assert asyncio.run(ask()) == [nearest] * 8

        # A key is rotated: the next is good at once, the last until it is revoked, and not a request longer.
        following = key_of("site", "--role", "read", "--collection", "docs")
        with vecdb.connect(url, api_key=reader["api_key"], ca=ca) as old:
            with vecdb.connect(url, api_key=following["api_key"], ca=ca) as new:
                assert old["docs"].count() == new["docs"].count() == ROWS
                serving.run("keys", "revoke", reader["id"], "--db", db)
                assert new["docs"].count() == ROWS
            with pytest.raises(Unauthenticated):
                old["docs"].count()

        # A certificate is rotated under a connection that goes on.
        with vecdb.connect(url, api_key=following["api_key"], ca=ca) as before:
            shown = ssl.get_server_certificate(("localhost", server.port))
            time.sleep(0.01)  # the time of a file changes
            authority.issue("server")
            assert before["docs"].count() == ROWS
            renewed = ssl.get_server_certificate(("localhost", server.port))
            assert renewed != shown and renewed.strip() == cert.read_text().strip()
            with vecdb.connect(url, api_key=following["api_key"], ca=ca) as after:
                assert after["docs"].count() == before["docs"].count() == ROWS

        # What was acknowledged is there after a kill.
        with vecdb.connect(url, api_key=writer["api_key"], ca=ca) as remote:
            remote["docs"].upsert(ids=["last"], vectors=vectors[:1], payloads=[{"year": 2030}])
        figures = _text(server.metrics)
        assert 'vecdb_collection_rows{collection="docs"} 5001.0' in figures
        assert 'vecdb_request_seconds_count{method="Points/Upsert",status="OK"}' in figures
        assert 'method="Points/Delete",status="PERMISSION_DENIED"' in figures
        audit = [line for line in server.lines() if line["log"] == "vecdb.audit"]
        assert {"Collections/Create", "Points/Delete"} <= {line["message"] for line in audit}
        assert all({"key", "key_id", "peer", "collection", "status", "request_id"} <= set(line) for line in audit)
        assert any(line["message"] == "Points/Delete" and line["status"] == "PERMISSION_DENIED" for line in audit)
        told = server.log.read_text()
        assert writer["api_key"] not in told and reader["api_key"] not in told
        server.kill()

    with serving.Process(db, *secured, log=tmp_path / "second.log") as server:
        url = f"grpcs://localhost:{server.port}"
        with vecdb.connect(url, api_key=following["api_key"], ca=ca) as remote:
            docs = remote["docs"]
            assert docs.count() == ROWS + 1
            assert docs.get(["last"])[0].payload == {"year": 2030}
            assert [hit.id for hit in docs.search(query, 10, exact=True, where="year < 2030")] == nearest
            points = docs.get([f"doc-{i}" for i in range(ROWS)])
            assert np.array_equal(np.stack([point.vector for point in points]), vectors)
        with pytest.raises(Unauthenticated):
            vecdb.connect(url, api_key=reader["api_key"], ca=ca)
        assert 'vecdb_collection_rows{collection="docs"} 5001.0' in _text(server.metrics)
        assert _text(server.metrics.replace("/metrics", "/healthz")) == _text(server.metrics.replace("/metrics", "/readyz"))
        assert server.drain() == 0
        assert [line["message"] for line in server.lines()][-2:] == ["draining", "stopped"]
    with vecdb.open(db, read_only=True) as opened:
        assert opened.verify().ok
        opened.backup(tmp_path / "backup")
    assert not list((tmp_path / "backup").rglob("keys*")), "keys stay where they are"


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ((), "encryption and authentication"),
        (("--host", "::"), "encryption and authentication"),
        (("--host", "127.0.0.1", "--metrics-host", "0.0.0.0", "--metrics-port", "0"), "encryption and authentication"),
        (("tls",), "authentication"),
        (("key",), "encryption"),
    ],
    ids=["bare", "v6", "metrics", "only TLS", "only a key"],
)
def test_beyond_loopback_what_is_missing_is_named_and_nothing_listens(
    options: tuple[str, ...], missing: str, tmp_path: Path
) -> None:
    db, said = tmp_path / "db", [option for option in options if option not in ("tls", "key")]
    if "tls" in options:
        cert, key = serving.Authority(tmp_path).issue("server")
        said += ["--tls-cert", str(cert), "--tls-key", str(key)]
    if "key" in options:
        serving.run("create", "docs", "--db", db, "--dim", 4)
        serving.run("keys", "create", "one", "--db", db)
    host = [] if "--host" in said else ["--host", "0.0.0.0"]
    done = serving.run("serve", "--db", db, "--port", 0, *host, *said, check=False)
    assert done.returncode == 4
    assert f"without {missing}:" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert "serving" not in done.stdout


def test_with_both_it_serves_beyond_loopback_and_figures_want_a_key(tmp_path: Path) -> None:
    authority, db = serving.Authority(tmp_path), tmp_path / "db"
    cert, key = authority.issue("server")
    serving.run("create", "docs", "--db", db, "--dim", 4)
    secret = serving.run("keys", "create", "one", "--db", db).stdout.strip()
    narrow = serving.run("keys", "create", "two", "--collection", "docs", "--db", db).stdout.strip()
    beyond = ("--host", "0.0.0.0", "--metrics-host", "0.0.0.0", "--tls-cert", cert, "--tls-key", key)
    with serving.Process(db, *beyond) as server:
        ca = str(authority.ca)
        with vecdb.connect(f"grpcs://localhost:{server.port}", api_key=secret, ca=ca) as remote:
            assert remote.collections() == ["docs"]
        port = server.metrics.rpartition(":")[2].partition("/")[0]
        base, context = f"https://localhost:{port}", ssl.create_default_context(cafile=ca)
        assert server.metrics.startswith("https://")
        assert _text(f"{base}/readyz", context=context) == "ok\n"
        for bad in ({}, {"Authorization": f"Bearer {narrow}"}):
            with pytest.raises(urllib.error.HTTPError) as refused:
                _text(f"{base}/metrics", bad, context)
            assert refused.value.code == 401
            refused.value.close()
        assert "vecdb_collection_rows" in _text(f"{base}/metrics", {"Authorization": f"Bearer {secret}"}, context)


def _text(url: str, headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers or {}), timeout=10, context=context) as reply:
        found: str = reply.read().decode()
        return found
