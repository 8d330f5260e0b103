"""The serverless form of the index of bits: what is exported and searched from afar answers as the database at home does.

The oracle is the local search of the same database, made by its index. Faults are those of a web server written here.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from vecdb_index.mib.params import MIB
from vecdb_index.mib.search import MIBSearcher

import vecdb
from vecdb import Dense, F
from vecdb.cli import main
from vecdb.errors import (
    AlreadyExists,
    Closed,
    Corruption,
    DeadlineExceeded,
    DimensionMismatch,
    InvalidInput,
    NewerFormat,
    NotFound,
    Overloaded,
    PermissionDenied,
    ReadOnly,
    StorageError,
    Unauthenticated,
    Unavailable,
    Unsupported,
    VecdbError,
)
from vecdb.search import calibrate, whole
from vecdb.search.calibrate import Calibration
from vecdb.serverless import layout, segment, transport
from vecdb.serverless.cache import RangeCache
from vecdb.serverless.reader import GAP, RANGE, runs_of

DIM, ROWS = 64, 6000


class RangesServer:
    """folder: what it serves, below `/codes`. seen: (name, first byte, length) of each request.

    fault: called with (number of the request, name, first byte); what it returns is done instead: a status, "short" (half of the
    body), "close" (nothing), "whole" (no ranges), "elsewhere" (another range), "flip" (one bit), "changed" (an ETag of its own).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[tuple[str, int, int]] = []
        self.headers: list[Any] = []
        self.fault: Callable[[int, str, int], Any] = lambda number, name, start: None
        self.ranges = True
        self.lock = threading.Lock()
        self.sent = 0
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def do_GET(self) -> None:
                owner.answer(self)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None: ...  # clients go away in the middle, as they should

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/codes"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        self.seen, self.sent, self.fault = [], 0, lambda number, name, start: None

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.split("?")[0].removeprefix("/codes/")
        path = self.folder / name
        given = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        start = int(given[1]) if given else 0
        data = path.read_bytes() if path.is_file() else b""
        end = min(len(data), int(given[2]) + 1) if given else len(data)
        with self.lock:
            number = len(self.seen)
            self.seen.append((name, start, max(0, end - start)))
            self.headers.append(handler.headers)
        fault = self.fault(number, name, start)
        if fault == "close":
            handler.close_connection = True
            handler.connection.close()
            return
        if not path.is_file():
            fault = 404
        if isinstance(fault, int):
            handler.send_response(fault)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        etag = f'"{xxhash.xxh3_64_hexdigest(data)}"' if fault != "changed" else f'"other-{number}"'
        if handler.headers.get("If-Match") not in (None, etag):
            handler.send_response(412)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        whole = fault == "whole" or not self.ranges or not given
        if not whole and start >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "elsewhere":
            start, end = start + 1, min(len(data), end + 1)
        body = data if whole else data[start:end]
        if fault == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        handler.send_response(200 if whole else 206)
        if not whole:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        handler.send_header("ETag", etag)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if fault == "short":
            handler.wfile.write(body[: len(body) // 2])
            handler.wfile.flush()
            handler.close_connection = True
            handler.connection.close()
            return
        with self.lock:
            self.sent += len(body)
        handler.wfile.write(body)


@contextmanager
def serving(folder: Path) -> Iterator[RangesServer]:
    server = RangesServer(folder)
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(autouse=True)
def _by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """At home, too, the bits: these collections are so small that the clock would decide otherwise. And no long pauses."""
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)
    monkeypatch.setattr(MIBSearcher, "_pays", lambda self, k, short: True)
    monkeypatch.setattr(segment, "pays", lambda *_: True)
    monkeypatch.setattr(calibrate, "_HOPELESS", 1e9)
    monkeypatch.setattr(whole, "_HOPELESS", 1e9)
    monkeypatch.setattr(transport, "PAUSE", 0.001)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test; what was compiled stays where it is."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("vecdb.serverless.collection.cache_folder", lambda: folder)
    return folder


def drawn(n: int, seed: int, dim: int = DIM) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((40, dim)) * 1.5
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, dim))).astype(np.float32)


QUERIES = drawn(40, 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[vecdb.Collection]:
    """A collection of one segment with deleted rows, which no test changes."""
    with vecdb.open(tmp_path_factory.mktemp("home") / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB()))
        payloads = [{"n": i, "secret": f"of {i}"} for i in range(ROWS)]
        docs.upsert(ids=range(ROWS), vectors=drawn(ROWS, 1), payloads=payloads)
        docs.flush()
        docs.delete(range(0, ROWS, 7))
        yield docs


@pytest.fixture(scope="module")
def codes(home: vecdb.Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    home.export_codes(folder)
    return folder


@pytest.fixture
def served(codes: Path) -> Iterator[RangesServer]:
    with serving(codes) as server:
        yield server


def copied(codes: Path, to: Path) -> Path:
    """The same files, to be damaged."""
    to.mkdir()
    for each in codes.iterdir():
        (to / each.name).write_bytes(each.read_bytes())
    return to


def the_object(folder: Path) -> Path:
    (found,) = folder.glob("*.codes")
    return found


def header_of(path: Path) -> layout.Header:
    data = path.read_bytes()
    return layout.read_header(data[: layout.header_length(data, "it")], "it")


def check_same(there: Any, here: Any, queries: np.ndarray = QUERIES, **how: Any) -> None:
    """Ids and scores of single queries and of a batch, bit for bit."""
    for query in queries[:8]:
        found, right = there.search(query, **how), here.search(query, **how)
        assert found.ids == right.ids and found.scores == right.scores
        assert [hit.payload for hit in found] == [hit.payload for hit in right]
    found, right = there.search_batch(queries, **how), here.search_batch(queries, **how)
    assert np.array_equal(found.ids, right.ids) and np.array_equal(found.scores, right.scores, equal_nan=True)
    assert np.array_equal(found.lengths, right.lengths) and list(found.payloads()) == list(right.payloads())


# -- the same answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"recall": 0.8}, {"recall": 0.99}, {"k": 1}, {"k": 100}, {"exact": True}, {"k": 10_000}])
def test_answers_are_those_of_the_database(home: vecdb.Collection, served: RangesServer, how: dict[str, Any]) -> None:
    with vecdb.open_codes(served.url) as there:
        check_same(there, home, **how)


def test_a_search_by_codes_is_one_and_its_short_list_is_that_at_home(home: vecdb.Collection, served: RangesServer) -> None:
    with vecdb.open_codes(served.url) as there:
        mine, right = (each.search(QUERIES[0], explain=True).plan for each in (there, home))
    assert mine is not None and right is not None
    (part,), (at_home,) = mine.parts, right.parts
    assert part.way.startswith("codes") and at_home.way.startswith("index")
    for what in ("rows in short lists", "bytes of codes"):
        assert part.seen[what] == at_home.seen[what]
    assert mine.recall_expected == right.recall_expected


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_metrics_and_dtypes(tmp_path: Path, metric: Any, dtype: Any) -> None:
    vectors, queries = drawn(2500, 3, 40), drawn(20, 4, 40)
    if dtype == "i8":
        vectors, queries = np.rint(20 * vectors).clip(-127, 127), np.rint(20 * queries)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(40, metric=metric, dtype=dtype, index=MIB(rotation="hadamard")))
        docs.upsert(ids=[f"doc-{i}" for i in range(2500)], vectors=vectors, payloads=[{"n": i} for i in range(2500)])
        docs.flush()
        docs.delete([f"doc-{i}" for i in range(100)])
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs, queries)
            check_same(there, docs, queries, exact=True, k=3)
            assert np.array_equal(there.search(queries[0], with_vectors=True)[0].vector, docs.search(queries[0], with_vectors=True)[0].vector)


def test_several_segments_and_two_fields_one_of_which_some_points_lack(tmp_path: Path) -> None:
    """Fields of their own metric and width; ids are texts, and one is not ASCII."""
    first, second = drawn(4000, 5), drawn(4000, 6, 33)
    with vecdb.open(tmp_path / "db") as db:
        fields = {"a": Dense(DIM, index=MIB()), "b": Dense(33, metric="l2", dtype="f16", index=MIB(rotation="none"))}
        docs = db.create_collection("docs", {**fields, "plain": Dense(2)})
        for start in range(0, 4000, 2000):
            points = [
                {"id": f"dök-{i}", "vectors": {"a": first[i], "plain": [1, 2], **({"b": second[i]} if i % 3 else {})}, "payload": {"n": i}}
                for i in range(start, start + 2000)
            ]
            docs.upsert(points)
            docs.flush()
        docs.delete(["dök-0", "dök-1", "dök-3999"])
        assert docs.info().segments == 2
        docs.export_codes(tmp_path / "codes")
        with serving(tmp_path / "codes") as server, vecdb.open_codes(server.url) as there:
            check_same(there, docs, field="a")
            check_same(there, docs, drawn(20, 7, 33), field="b")
            check_same(there, docs, drawn(20, 7, 33), field="b", exact=True)
            assert set(there.fields) == {"a", "b"}
            hit, right = (each.search(first[7], k=1, field="a", with_vectors=["a", "b"])[0] for each in (there, docs))
            assert hit.vectors.keys() == right.vectors.keys()
            assert all(np.array_equal(hit.vectors[name], right.vectors[name]) for name in hit.vectors)
            with pytest.raises(InvalidInput, match="field"):
                there.search(first[0])
            with pytest.raises(InvalidInput, match="no such field"):
                there.search([1, 2], field="plain")


@pytest.mark.parametrize("duplicates", [1, 50, 2500])
def test_ties_are_settled_as_at_home(tmp_path: Path, duplicates: int) -> None:
    vectors = np.repeat(drawn(2500 // duplicates, 8), duplicates, axis=0)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=np.random.default_rng(0).permutation(2500), vectors=vectors)
        docs.flush()
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "codes") as there:
            for how in ({}, {"exact": True}, {"k": 60}):
                check_same(there, docs, **how)


def test_tiny_collections_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at home, where codes save no time; with the rules that are in force outside these tests."""
    monkeypatch.undo()
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(3, index=MIB()))
        docs.export_codes(tmp_path / "empty")
        docs.upsert(ids=range(5), vectors=[[1, 2, i] for i in range(5)])
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "empty") as none:
            assert none.search([1, 2, 3]).ids == [] and len(none) == 0
            assert none.search_batch([[1, 2, 3]], k=3).ids.tolist() == [[None] * 3]
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs, np.eye(3, dtype=np.float32), k=10)
            assert len(there.search([1, 2, 3], k=10)) == 5


def test_arrival_in_any_order_changes_nothing(home: vecdb.Collection, codes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes come one by one, in an order that is drawn, with many equal estimates among them."""
    from vecdb.serverless import reader

    monkeypatch.setattr(reader, "RANGE", 1)
    ahead = reader.ObjectReader._ahead

    def shuffled(self: Any, starts: Any, get: Any) -> Any:
        found = list(ahead(self, starts, get))
        return iter([found[i] for i in rng.permutation(len(found))])

    monkeypatch.setattr(layout, "PIECE", 8 << 10)
    monkeypatch.setattr(reader.ObjectReader, "_ahead", shuffled)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        folder = codes.with_name(f"small-{seed}")
        home.export_codes(folder)
        assert len(header_of(the_object(folder)).sections["codes:vector"].sums) > 5
        with vecdb.open_codes(folder) as there:
            check_same(there, home)


# -- what is read --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[vecdb.Collection, Path]]:
    """Rows that are long beside their codes: 60,000 of 512 numbers, of which the codes are 4 MiB."""
    folder = tmp_path_factory.mktemp("large")
    with vecdb.open(folder / "db") as db:
        docs = db.create_collection("docs", Dense(512, dtype="i8", metric="ip", index=MIB(rotation="none")))
        docs.upsert(ids=range(60_000), vectors=np.rint(20 * drawn(60_000, 9, 512)).clip(-127, 127))
        docs.flush()
        docs.export_codes(folder / "codes")
        yield docs, folder / "codes"


def test_a_cold_search_reads_codes_and_the_rows_of_its_short_list(large: tuple[vecdb.Collection, Path]) -> None:
    """The bounds that are promised: 1.1 times the bytes, and requests for codes / 4 MiB, 20, and one for each run of rows."""
    home, folder = large
    query = drawn(1, 10, 512)[0]
    header = header_of(the_object(folder))
    manifest = (folder / layout.MANIFEST).stat().st_size
    with serving(folder) as server, vecdb.open_codes(server.url) as there:
        hits = there.search(query, explain=True, with_payload=False)
        assert hits.ids == home.search(query).ids
        plan, seen = hits.plan, list(server.seen)
        assert plan is not None and plan.transfer is not None
        assert plan.transfer.requests == len(seen) and plan.transfer.bytes == server.sent
        rows, codes = header.sections["rows:vector"], header.sections["codes:vector"]
        listed = plan.parts[0].seen["rows in short lists"] * header.fields["vector"].record.itemsize
        opening = manifest + max(layout.PREFIX, header.body)
        assert server.sent <= 1.1 * (codes.length + opening + listed)
        runs = [each for each in seen if each[0] != layout.MANIFEST and each[1] >= rows.offset]
        assert 0 < len(runs) <= plan.parts[0].seen["rows in short lists"]
        assert len(seen) <= codes.length / (4 << 20) + 20 + len(runs)
        assert all(length <= RANGE for _, _, length in seen)


def test_a_second_search_reads_nothing_again(home: vecdb.Collection, served: RangesServer) -> None:
    for turn in range(2):  # a second opening reads the manifest, and all else from the cache
        with vecdb.open_codes(served.url) as there:
            served.reset()
            first = there.search(QUERIES[0], explain=True)
            assert first.ids == home.search(QUERIES[0]).ids
            assert bool(served.seen) == (turn == 0)
            transfer = first.plan.transfer
            assert (transfer.hits > 0) == (turn == 1) and transfer.cpu > 0
            assert "requests" in str(first.plan)


def test_runs_join_rows_that_are_near_and_stay_within_what_may_be_wasted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths, gaps = rng.integers(0, 5000, 60), rng.integers(0, 2 * GAP, 60)
        ends = np.cumsum(lengths + gaps)
        starts, spare = ends - lengths, int(rng.integers(0, 40 * GAP))
        runs = list(runs_of(starts, ends, spare))
        assert [first for first, _ in runs[1:]] == [last for _, last in runs[:-1]] and (runs[0][0], runs[-1][1]) == (0, 60)
        read = sum(int(ends[last - 1] - starts[first]) for first, last in runs)
        assert read - lengths.sum() <= spare
        joined = [int(starts[i + 1] - ends[i]) for first, last in runs for i in range(first, last - 1)]
        assert all(gap < GAP for gap in joined)
    assert list(runs_of(np.array([0, 10]), np.array([RANGE, RANGE + 10]), 100)) == [(0, 1), (1, 2)]
    assert list(runs_of(np.zeros(0, np.int64), np.zeros(0, np.int64), 100)) == []


def test_what_was_deleted_is_not_exported(codes: Path, home: vecdb.Collection) -> None:
    data = the_object(codes).read_bytes()
    assert b'"of 8"' in data and b'"of 7"' not in data and b'"of 0"' not in data
    header = header_of(the_object(codes))
    records = header.sections["rows:vector"]
    rows = np.frombuffer(data[records.offset : records.offset + records.length], header.fields["vector"].record)
    assert not rows["vector"][::7].any() and rows["vector"][1].any() and not rows["id"][7]
