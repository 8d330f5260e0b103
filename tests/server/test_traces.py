"""A request is a span below its caller's, with what it did and how long that took."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import vecdb
from vecdb.server import telemetry
from vecdb.server.config import config_of
from vecdb.server.serve import Server
from vecdb.wire import messages


def test_a_search_is_a_span_below_its_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(telemetry, "_traced", provider.get_tracer("vecdb.server"))
    server = Server(config_of(db=str(tmp_path / "db"), port=0))
    server.start()
    try:
        with vecdb.connect(f"grpc://127.0.0.1:{server.port}") as db:
            db.create_collection("docs", vecdb.Dense(2)).upsert(ids=[1], vectors=[[1, 2]])
        method = messages.METHODS["Search/Search"]
        request = messages.SearchRequest(target=messages.Target(collection="docs"), query=messages.Vector(values=[1, 2]))
        caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            channel.unary_unary(method.path)(request.SerializeToString(), metadata=[("traceparent", caller)], timeout=60)
    finally:
        server.stop()
        server.wait()
    spans = {span.name: span for span in kept.get_finished_spans()}
    assert {"Collections/Create", "Points/Upsert", "Search/Search"} <= spans.keys()
    mine = spans["Search/Search"]
    assert mine.parent is not None and f"{mine.parent.span_id:016x}" == "b7ad6b7169203331"
    assert f"{mine.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert mine.attributes is not None
    assert mine.attributes["vecdb.collection"] == "docs"
    assert mine.attributes["vecdb.search_ms"] > 0  # type: ignore[operator]


def test_without_the_environments_word_nothing_is_traced() -> None:
    assert telemetry._traced is None
