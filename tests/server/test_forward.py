"""Writes that reach a worker which only reads are the same to a caller as those that reach the writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from served import Wire

import vecdb
from vecdb import Dense, errors
from vecdb.server.keys import FILE, Keys
from vecdb.wire import messages

DOCS = messages.Target(collection="docs")


@pytest.fixture
def two(process: Callable[..., Any], path: Path) -> tuple[Any, Callable[..., list[Wire]]]:
    """Two workers, and so many connections to them, by a key of its own, that both have some."""
    with vecdb.open(path) as db:
        db.create_collection("docs", Dense(256, metric="l2", index="flat"))
    keys = Keys(path / FILE)
    server = process("--workers", "2", "--max-message-mib", "1")

    def wires(**limits: Any) -> list[Wire]:
        return [Wire(f"127.0.0.1:{server.port}", keys.create("me", "write", **limits)[1]) for _ in range(10)]

    return server, wires


def rows(count: int) -> Any:
    columns = messages.Columns(ids=messages.Ids(numbers=range(count)))
    columns.vectors["vector"].dim = 256
    columns.vectors["vector"].data = np.ones((count, 256), "<f4").tobytes()
    return messages.UpsertRequest(target=DOCS, columns=columns, quiet=True)


def test_what_is_refused_in_mid_stream_is_told_by_any_worker(two: Any) -> None:
    _, wires = two
    for wire in wires():
        error = wire.error("Points/UpsertStream", rows(10), rows(1200))
        assert isinstance(error, errors.InvalidInput)
        assert "max_message_mib" in str(error)
        wire.close()
    for wire in wires(rate=2.0):
        error = wire.error("Points/UpsertStream", *[rows(1)] * 200)
        assert isinstance(error, errors.Overloaded)
        assert error.retry_after > 0
        wire.close()


def test_a_write_is_written_down_once_with_the_peer_who_asked(two: Any) -> None:
    server, wires = two
    opened = wires()
    for number, wire in enumerate(opened):
        wire.metadata.append(("x-request-id", f"mine-{number}"))
        wire.ask("Points/Upsert", rows(2))
        wire.close()
    assert server.end() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if '"vecdb.audit"' in line]
    audited = [line for line in lines if line["message"] == "Points/Upsert"]
    assert sorted(line["request_id"] for line in audited) == sorted(f"mine-{number}" for number in range(10))
    assert all(line["peer"].startswith("ipv4:127.0.0.1") for line in audited)
    assert len({line["pid"] for line in audited}) == 2, "by whichever worker was asked"


def test_a_write_that_is_sent_on_counts_once_against_the_rate_of_its_key(two: Any, path: Path) -> None:
    server, _ = two
    secret = Keys(path / FILE).create("slow", "write", rate=0.001)[1]
    told = []
    for _ in range(12):
        wire = Wire(f"127.0.0.1:{server.port}", secret)
        told.append(wire.status("Points/Upsert", rows(1)))
        wire.close()
    assert set(told) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert told.count(grpc.StatusCode.OK) == 2, "one by each worker"
