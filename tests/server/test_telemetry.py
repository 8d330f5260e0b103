"""What a server tells of itself: metrics that count, JSON lines that can be read, and who wrote what, without a secret."""

from __future__ import annotations

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Wire, fill

import vecdb
from vecdb import Dense
from vecdb.index import MIB
from vecdb.server.keys import FILE, Keys
from vecdb.wire import messages

DOCS = messages.Target(collection="docs")


def figures(server: Any) -> dict[tuple[str, frozenset[Any]], float]:
    with urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=60) as reply:
        text = reply.read().decode()
    return {
        (each.name, frozenset(each.labels.items())): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


def of(found: Any, name: str, **labels: str) -> float:
    return float(found.get((name, frozenset(labels.items())), 0))


def test_metrics_count_requests_by_method_and_status(serving: Any) -> None:
    served = serving(metrics_port=0)
    fill(served.connect(), "docs", 30)
    wire = served.wire()
    for _ in range(7):
        wire.ask("Points/Count", messages.CountRequest(target=DOCS))
    for _ in range(3):
        assert wire.status("Points/Count", messages.CountRequest()) is grpc.StatusCode.INVALID_ARGUMENT
    wire.ask("Points/Scroll", messages.ScrollRequest(target=DOCS))
    assert served.empty()
    found = figures(served.server)
    assert of(found, "vecdb_request_seconds_count", method="Points/Count", status="OK") == 7
    assert of(found, "vecdb_request_seconds_count", method="Points/Count", status="INVALID_ARGUMENT") == 3
    assert of(found, "vecdb_request_seconds_count", method="Points/Scroll", status="OK") == 1
    assert of(found, "vecdb_stage_seconds_count", method="Points/Count", stage="answer") == 7
    assert of(found, "vecdb_collection_rows", collection="docs") == 30
    assert of(found, "vecdb_requests_inside") == 0
    assert of(found, "vecdb_resident_bytes") > 10e6


def test_metrics_have_the_figures_of_indexes(serving: Any) -> None:
    """Of bits their entropy and that of the rows the encoder knew, which is drift; and whether another index is advised."""
    served = serving(metrics_port=0)
    rng = np.random.default_rng(0)
    db = served.connect()
    good = db.create_collection("good", Dense(256, index="mib"))
    good.upsert(ids=range(3000), vectors=rng.standard_normal((3000, 256)).astype(np.float32))
    poor = db.create_collection("poor", Dense(8, metric="l2", index=MIB(bits=1)))
    poor.upsert(ids=range(3000), vectors=rng.exponential(1, (3000, 8)).astype(np.float32))
    for docs in (good, poor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            docs.flush()
        docs.search(np.ones(docs.fields["vector"].dim), 3)  # an index tells of itself from its first search on
    found = figures(served.server)
    for docs, advised in ((good, 0), (poor, 1)):
        where = {"collection": docs.name, "field": "vector"}
        assert of(found, "vecdb_index_advised", **where) == advised
        told = docs.info().indexes["vector"].figures
        assert told.keys() >= {"entropy of a bit", "entropy of a bit, of the rows that the encoder knew"}
        for name, value in told.items():
            assert of(found, "vecdb_index_figure", figure=name, **where) == pytest.approx(value)


def test_metrics_count_those_who_are_sent_away(serving: Any) -> None:
    served = serving(metrics_port=0)
    wire = served.wire(served.key("read", rate=1, name="often"))
    codes = [wire.status("Collections/List", b"") for _ in range(6)]
    sent_away = codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert sent_away > 0
    found = figures(served.server)
    assert of(found, "vecdb_shed_total", limit="rate") == sent_away
    assert of(found, "vecdb_request_seconds_count", method="Collections/List", status="RESOURCE_EXHAUSTED") == sent_away


def test_metrics_count_queries_that_go_together(serving: Any) -> None:
    served = serving(metrics_port=0)
    docs = fill(served.connect(), "docs", 30)
    for _ in range(5):
        docs.search(np.ones(4), 3)
    found = figures(served.server)
    assert of(found, "vecdb_coalesced_queries_sum") == 5


def test_a_method_that_there_is_not_makes_no_metric(serving: Any) -> None:
    served = serving(metrics_port=0)
    wire = served.wire()
    for number in range(20):
        with pytest.raises(grpc.RpcError) as refused:
            wire.channel.unary_unary(f"/vecdb.v1.Points/No{number}")(b"", timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    assert not [name for name, labels in figures(served.server) if "No1" in str(labels)]


def test_logs_are_lines_of_json_and_writes_are_audited_without_secrets(process: Any, path: Path) -> None:
    vecdb.open(path).close()
    keys = Keys(path / FILE)
    _, admin = keys.create("the-admin", "admin")
    _, writer = keys.create("the-writer", "write", ("docs",))
    server = process("--log-requests")
    with vecdb.connect(f"grpc://127.0.0.1:{server.port}", api_key=admin) as db:
        db.create_collection("docs", Dense(4))
    with vecdb.connect(f"grpc://127.0.0.1:{server.port}", api_key=writer) as db:
        docs = db["docs"]
        docs.upsert(ids=[1], vectors=[[1, 2, 3, 4]], payloads=[{"text": "private words"}])
        docs.search([1, 2, 3, 4])
        with pytest.raises(vecdb.errors.PermissionDenied):
            db.drop_collection("others")
    wire = Wire(f"127.0.0.1:{server.port}", writer)
    wire.metadata.append(("x-request-id", "mine-42"))
    wire.ask("Points/Delete", messages.DeleteRequest(target=DOCS, ids=messages.Ids(numbers=[1])))
    wire.close()
    stranger = Wire(f"127.0.0.1:{server.port}", "vk_" + "A" * 12 + "_" + "S" * 43)
    assert stranger.status("Collections/Drop", messages.DropRequest(name="docs")) is grpc.StatusCode.UNAUTHENTICATED
    stranger.close()
    assert server.end() == 0
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert all({"time", "level", "log", "message", "pid"} <= line.keys() for line in lines)
    requests = [line for line in lines if "/" in line["message"]]
    assert all(line["request_id"] for line in requests)
    assert any(line["message"] == "Search/Search" for line in requests)
    audited = [line for line in lines if line["log"] == "vecdb.audit"]
    told = [(line["message"], line["key"], line["collection"], line["status"]) for line in audited]
    assert ("Collections/Create", "the-admin", "docs", "OK") in told
    assert ("Points/Upsert", "the-writer", "docs", "OK") in told
    assert ("Points/Delete", "the-writer", "docs", "OK") in told
    assert ("Collections/Drop", "the-writer", "others", "PERMISSION_DENIED") in told
    assert any(line["message"] == "Collections/Drop" and line["status"] == "UNAUTHENTICATED" for line in audited)
    assert not any(line["message"].startswith("Search/") for line in audited)
    assert any(line["request_id"] == "mine-42" for line in audited)
    for secret in (admin, writer, admin.split("_", 2)[2], writer.split("_", 2)[2], "S" * 43, "private words"):
        assert secret not in text
    assert not re.search(r"[Bb]earer", text)


def test_a_failure_is_in_the_log_by_the_id_that_the_caller_is_told(
    serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    served = serving()
    fill(served.connect())

    def broken(*args: Any) -> Any:
        raise RuntimeError("of the server's own")

    monkeypatch.setattr("vecdb.collection.Collection.count", broken)
    with caplog.at_level(logging.ERROR, "vecdb.server"):
        error = served.wire().error("Points/Count", messages.CountRequest(target=DOCS))
    assert "of the server's own" not in str(error), "callers learn nothing of the inside"
    assert error.request_id
    assert error.request_id in str(error)
    assert [record.request_id for record in caplog.records if record.exc_info] == [error.request_id]


def test_a_name_of_any_length_makes_a_short_line(serving: Any, caplog: Any) -> None:
    served = serving()
    with caplog.at_level(logging.INFO, "vecdb.audit"):
        served.wire().status("Collections/Drop", messages.DropRequest(name="x" * 1_000_000))
    assert served.empty()
    assert max(len(str(vars(record))) for record in caplog.records if record.name == "vecdb.audit") < 5_000
