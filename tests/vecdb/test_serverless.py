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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from vecdb_index.mib.params import MIB
from vecdb_index.mib.search import ShortLists
from vecdb_storage.files import Files

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
PAYS = ShortLists.pays


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
            disable_nagle_algorithm = True  # a body must not wait for the head to be acknowledged

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


@pytest.fixture(scope="module", autouse=True)
def _by_index() -> Iterator[None]:
    """At home, too, the bits: these collections are so small that the clock would decide otherwise. And no long pauses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)
        patch.setattr(ShortLists, "pays", lambda *_: True)
        patch.setattr(calibrate, "_HOPELESS", 1e9)
        patch.setattr(whole, "_HOPELESS", 1e9)
        patch.setattr(transport, "PAUSE", 0.001)
        yield


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
def home(_by_index: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[vecdb.Collection]:
    """A collection of one segment with deleted rows, which no test changes."""
    with vecdb.open(tmp_path_factory.mktemp("home") / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(bits=1)))
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


def settle(docs: vecdb.Collection) -> None:
    """Waits until searches over all segments are measured, which happens in the background and changes efforts."""
    until = time.monotonic() + 120
    while any(whole.is_due(docs._snapshot(), name) for name in docs.fields):
        assert time.monotonic() < until
        time.sleep(0.02)


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
            assert np.array_equal(
                there.search(queries[0], with_vectors=True)[0].vector, docs.search(queries[0], with_vectors=True)[0].vector
            )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_several_bits_a_dimension_cut_the_short_list_first(
    tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, metric="l2", index=MIB(rotation="hadamard", bits=bits)))
        docs.upsert(ids=range(4000), vectors=np.repeat(drawn(2000, 3), 2, axis=0), payloads=[{"n": i} for i in range(4000)])
        docs.flush()
        docs.delete(range(0, 4000, 9))
        docs.export_codes(tmp_path / "codes")
        with serving(tmp_path / "codes") as server, vecdb.open_codes(server.url) as there:
            for how in ({}, {"recall": 0.8, "k": 1}, {"recall": 0.99}):
                check_same(there, docs, **how)
            mine, right = (each.search(QUERIES[0], recall=0.99, explain=True).plan.parts[0] for each in (there, docs))
            assert mine.seen["rows looked at by all bits"] > mine.seen["rows in short lists"] >= 10
            assert {name: mine.seen[name] for name in right.seen} == right.seen
            monkeypatch.setattr(segment, "_MEMORY", 1 << 16)  # a few queries at a time
            check_same(there, docs)
        path = the_object(tmp_path / "codes")
        section = header_of(path).sections["planes:vector"]
        data, found = path.read_bytes(), list[str]()
        expected = docs.search_batch(QUERIES)
        for place in np.random.default_rng(0).integers(section.offset, section.offset + section.length, 15).tolist():
            path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
            with vecdb.open_codes(tmp_path / "codes") as there:
                try:
                    assert np.array_equal(there.search_batch(QUERIES).ids, expected.ids)
                except Corruption as error:
                    found.append(str(error))
        assert len(found) > 5 and all("planes:vector" in each for each in found)


def test_several_segments_and_two_fields_one_of_which_some_points_lack(tmp_path: Path) -> None:
    """Fields of their own metric and width; ids are texts, and one is not ASCII."""
    first, second = drawn(2400, 5), drawn(2400, 6, 33)
    with vecdb.open(tmp_path / "db") as db:
        fields = {"a": Dense(DIM, index=MIB()), "b": Dense(33, metric="l2", dtype="f16", index=MIB(rotation="none"))}
        docs = db.create_collection("docs", {**fields, "plain": Dense(2)})
        for start in range(0, 2400, 1200):
            points = [
                {
                    "id": f"dök-{i}",
                    "vectors": {"a": first[i], "plain": [1, 2], **({"b": second[i]} if i % 3 else {})},
                    "payload": {"n": i},
                }
                for i in range(start, start + 1200)
            ]
            docs.upsert(points)
            docs.flush()
        docs.delete(["dök-0", "dök-1", "dök-2399"])
        assert docs.info().segments == 2
        settle(docs)
        docs.export_codes(tmp_path / "codes")
        with serving(tmp_path / "codes") as server, vecdb.open_codes(server.url) as there:
            check_same(there, docs, field="a")
            check_same(there, docs, drawn(20, 7, 33), field="b")
            check_same(there, docs, drawn(20, 7, 33), field="b", exact=True)
            assert set(there.fields) == {"a", "b"}
            hit, right = (each.search(first[7], k=1, field="a", with_vectors=["a", "b"])[0] for each in (there, docs))
            assert hit.vectors.keys() == right.vectors.keys()
            assert all(np.array_equal(hit.vectors[name], right.vectors[name]) for name in hit.vectors)
            as_stored = [each.search(first[7], field="a", with_payload="json")[0].payload for each in (there, docs)]
            assert as_stored[0] == as_stored[1] and isinstance(as_stored[0], bytes)
            with pytest.raises(InvalidInput, match="field"):
                there.search(first[0])
            with pytest.raises(InvalidInput, match="no such field"):
                there.search([1, 2], field="plain")


@pytest.mark.parametrize(("dim", "rows"), [(1, 300), (63, 1), (65, 33), (65, 1000), (4097, 70)])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_widths_and_numbers_of_rows_that_fit_nothing(tmp_path: Path, dim: int, rows: int, rotation: str) -> None:
    vectors, queries = drawn(rows, 20, dim), drawn(10, 21, dim)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(dim, metric="l2", index=MIB(rotation=rotation)))
        docs.upsert(ids=range(rows), vectors=vectors, payloads=[{"n": i} for i in range(rows)])
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "codes") as there:
            for how in ({}, {"k": 1, "recall": 0.5}, {"exact": True}, {"k": rows + 5}):
                check_same(there, docs, queries, **how)


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
    """As at home, where codes save no time; with the rule that is in force outside these tests."""
    monkeypatch.setattr(ShortLists, "pays", PAYS)
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


def test_arrival_in_any_order_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes come one by one, in an order that is drawn, with many equal estimates among them; and few queries at a time."""
    from vecdb.serverless import reader

    monkeypatch.setattr(reader, "RANGE", 1)
    monkeypatch.setattr(segment, "RANGE", 1)
    monkeypatch.setattr(segment, "_TOGETHER", 7)
    ahead = reader.ObjectReader._ahead

    def shuffled(self: Any, starts: Any, get: Any) -> Any:
        found = list(ahead(self, starts, get))
        return iter([found[i] for i in rng.permutation(len(found))])

    monkeypatch.setattr(layout, "PIECE", 8 << 10)
    monkeypatch.setattr(reader.ObjectReader, "_ahead", shuffled)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=np.random.default_rng(0).permutation(5000), vectors=np.repeat(drawn(250, 8), 20, axis=0))
        docs.export_codes(tmp_path / "codes")
        assert len(header_of(the_object(tmp_path / "codes")).sections["codes:vector"].sums) > 5
        for seed in range(3):
            rng = np.random.default_rng(seed)
            with vecdb.open_codes(tmp_path / "codes") as there:
                check_same(there, docs)
                check_same(there, docs, k=31)
                check_same(there, docs, QUERIES[:2], exact=True, k=31)
                monkeypatch.setattr(segment, "_MEMORY", 1 << 16)  # and but a few queries to a pass over the codes
                check_same(there, docs, k=31)
                monkeypatch.setattr(segment, "_MEMORY", 256 << 20)


# -- what is read --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(_by_index: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[vecdb.Collection, Path]]:
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


# -- what goes wrong on the way ------------------------------------------------------------------------------------


def right(served: RangesServer, home: vecdb.Collection, fault: Callable[[int, str, int], Any]) -> int:
    """A search under a fault still has the right answer. Returns how many requests there were."""
    served.reset()
    served.fault = fault
    with vecdb.open_codes(served.url, cache_bytes=0) as there:
        for query in QUERIES[:2]:
            found, expected = there.search(query), home.search(query)
            assert found.ids == expected.ids and found.scores == expected.scores
    return len(served.seen)


@pytest.mark.parametrize("fault", [500, 502, 503, 429, 408, "short", "close", "flip", "elsewhere"])
def test_what_passes_is_tried_again(served: RangesServer, home: vecdb.Collection, fault: Any) -> None:
    usual = right(served, home, lambda number, name, start: None)
    struck: set[tuple[str, int]] = set()

    def once(number: int, name: str, start: int) -> Any:
        """The first time that a range is asked for, it fails; the manifest's bit is not flipped, which is another test."""
        fresh = (name, start) not in struck and not (name == layout.MANIFEST and fault in ("flip", "elsewhere"))
        struck.add((name, start))
        return fault if fresh else None

    assert right(served, home, once) > usual


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (500, Unavailable, "answered 500"), (503, Unavailable, "ask later"), (429, Overloaded, "ask later"),
        (404, NotFound, "upload the whole folder"), (410, NotFound, "not there"), (401, Unauthenticated, "headers"),
        (403, PermissionDenied, "not there, too"), (400, StorageError, "answered 400"),
        ("close", Unavailable, "cannot be reached"), ("short", StorageError, "bytes came"),
        ("flip", Corruption, "not what was written|not the object|damaged"), ("elsewhere", StorageError, "another range"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("part", ["header", "codes", "rows", "texts"])
def test_what_does_not_pass_is_an_error_that_names_file_part_and_remedy(
    codes: Path, served: RangesServer, fault: Any, error: type[VecdbError], says: str, part: str
) -> None:
    header = header_of(the_object(codes))
    first = 0 if part == "header" else header.sections["texts" if part == "texts" else f"{part}:vector"].offset
    last = {"header": 1, "codes": header.sections["rows:vector"].offset, "rows": header.sections["texts"].offset}.get(
        part, 1 << 40
    )
    served.fault = lambda number, name, start: fault if name != layout.MANIFEST and first <= start < last else None
    with vecdb.open_codes(served.url) as there:
        if part == "codes":  # with the first bytes of so small an object, some codes come, too
            first = 0 if first < layout.PREFIX else first
        with pytest.raises(error, match=says) as raised:
            there.search(QUERIES[0])
        assert the_object(codes).name in str(raised.value)
        assert part in str(raised.value) or part == "codes"
        served.reset()
        assert len(there.search(QUERIES[0])) == 10  # and it goes on afterwards


def test_an_object_that_changes_its_etag_is_read_by_its_checksums(served: RangesServer, home: vecdb.Collection) -> None:
    assert right(served, home, lambda number, name, start: "changed") > 3
    assert any(each.get("If-Match") for each in served.headers)


def test_an_object_that_is_replaced_while_it_is_read_is_an_error_and_not_an_answer(codes: Path, tmp_path: Path) -> None:
    folder = copied(codes, tmp_path / "codes")
    with serving(folder) as server, vecdb.open_codes(server.url) as there:
        there.search(QUERIES[0])
        path = the_object(folder)
        data = bytearray(path.read_bytes())
        begins = header_of(path).sections["rows:vector"].offset
        data[begins:] = np.random.default_rng(0).bytes(len(data) - begins)
        path.write_bytes(data)
        with pytest.raises(Corruption, match="not what was written") as raised:
            there.search(QUERIES[1])
        assert path.name in str(raised.value) and "rows:vector" in str(raised.value)
        path.write_bytes(data[: begins + 100])
        with pytest.raises(Corruption, match="cut short or replaced"):
            there.search(QUERIES[2])
        path.unlink()
        with pytest.raises(NotFound, match="open it again"):
            there.search(QUERIES[3])


def test_a_server_without_ranges_sends_the_object_once(served: RangesServer, home: vecdb.Collection, codes: Path) -> None:
    served.ranges = False
    with vecdb.open_codes(served.url, cache_bytes=0) as there:
        check_same(there, home)
    assert [name for name, _, _ in served.seen] == [layout.MANIFEST, the_object(codes).name]


def test_a_server_without_ranges_that_sends_something_else(codes: Path, tmp_path: Path) -> None:
    folder = copied(codes, tmp_path / "codes")
    path = the_object(folder)
    data = path.read_bytes()
    with serving(folder) as server:
        server.ranges = False
        path.write_bytes(data[:-1000])
        with vecdb.open_codes(server.url) as there, pytest.raises(Corruption, match="cut short"):
            there.search(QUERIES[0])
        path.write_bytes(data[:100] + bytes([data[100] ^ 4]) + data[101:])
        with vecdb.open_codes(server.url) as there, pytest.raises(Corruption, match="header"):
            there.search(QUERIES[0])


def test_a_server_that_is_not_there_and_one_that_is_silent(served: RangesServer) -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        vecdb.open_codes("http://127.0.0.1:9/codes")
    with pytest.raises(InvalidInput, match="no host"):
        vecdb.open_codes("http:///codes")
    with vecdb.open_codes(served.url) as there:
        held = threading.Event()
        served.fault = lambda number, name, start: held.wait(20) and None
        began = time.monotonic()
        try:
            with pytest.raises(DeadlineExceeded, match="took longer"):
                there.search(QUERIES[0], timeout=0.3)
        finally:
            held.set()
        assert time.monotonic() - began < 15


def test_redirects_are_followed_without_what_is_secret(served: RangesServer, home: vecdb.Collection) -> None:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            assert self.headers["Authorization"] == "Bearer abc"
            self.send_response(302)
            self.send_header("Location", served.url + self.path.removeprefix("/here"))
            self.send_header("Content-Length", "0")
            self.end_headers()

    first = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=first.serve_forever, daemon=True).start()
    try:
        options = {"headers": {"Authorization": "Bearer abc"}}
        with vecdb.open_codes(f"http://127.0.0.1:{first.server_port}/here?sig=hidden", options=options) as there:
            assert there.search(QUERIES[0]).ids == home.search(QUERIES[0]).ids
            assert "hidden" not in repr(there)
    finally:
        first.shutdown()
        first.server_close()
    assert served.seen and not any(each.get("Authorization") for each in served.headers)


def test_no_faults_together_make_an_answer_wrong(
    served: RangesServer, home: vecdb.Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    counted: Callable[[str, int], None],
) -> None:  # fmt: skip
    """Faults of all kinds, drawn, over small ranges, with and without a cache: the right answer, or a typed error; and then, undisturbed, the
    right answer from what was kept.
    """
    from vecdb.serverless import reader

    monkeypatch.setattr(reader, "RANGE", 16 << 10)
    monkeypatch.setattr(transport, "ATTEMPTS", 3)
    kinds = [500, 503, 429, 404, 403, 412, 416, "short", "close", "flip", "elsewhere", "changed"]
    expected = {at: home.search(QUERIES[at]) for at in range(6)}
    answered = refused = 0
    for seed in range(24):
        rng, share = np.random.default_rng(seed), 0.1 * (seed % 6)

        def fault(number: int, name: str, start: int) -> Any:
            with served.lock:
                if name == layout.MANIFEST or rng.random() >= share:
                    return None
                return "whole" if rng.random() < 0.002 else kinds[int(rng.integers(len(kinds)))]

        served.reset()
        served.fault = fault
        with vecdb.open_codes(served.url, cache=tmp_path / f"{seed // 12}", cache_bytes=(0, 1 << 30)[seed // 6 % 2]) as there:
            for at, right_one in expected.items():
                try:
                    found = there.search(QUERIES[at])
                except VecdbError:
                    refused += 1
                    continue
                answered += 1
                assert found.ids == right_one.ids and found.scores == right_one.scores
                assert [hit.payload for hit in found] == [hit.payload for hit in right_one]
    assert answered > 50 and refused > 30
    counted("searches under faults of a web server", answered + refused)
    served.reset()
    with vecdb.open_codes(served.url, cache=tmp_path / "0") as there:
        check_same(there, home)


def test_a_proxy_of_the_environment_is_asked(served: RangesServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("Proxy-Authorization")))
            self.path = self.path.removeprefix("http://elsewhere.invalid")
            served.answer(self)

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("http_proxy", f"http://me:it@127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    try:
        with vecdb.open_codes("http://elsewhere.invalid/codes") as there:
            assert len(there.search(QUERIES[0])) == 10
        assert asked[0] == ("http://elsewhere.invalid/codes/manifest.json", "Basic bWU6aXQ=") and len(asked) == len(served.seen)
        with vecdb.open_codes(served.url):
            assert len(asked) < len(served.seen)
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_a_password_in_a_url_goes_along_and_into_no_message(served: RangesServer) -> None:
    with vecdb.open_codes(served.url.replace("//", "//me:hidden@") + "?sig=secret") as there:
        assert served.headers[-1]["Authorization"] == "Basic bWU6aGlkZGVu"
        served.fault = lambda number, name, start: 500
        with pytest.raises(Unavailable) as raised:
            there.search(QUERIES[0])
        assert not re.search("hidden|secret", repr(there) + str(raised.value) + str(raised.value.__notes__))


def test_threads_search_at_once(served: RangesServer, home: vecdb.Collection) -> None:
    expected = [home.search(query) for query in QUERIES[:12]]
    with vecdb.open_codes(served.url) as there, ThreadPoolExecutor(6) as pool:
        for found, right_one in zip(pool.map(there.search, QUERIES[:12]), expected, strict=True):
            assert found.ids == right_one.ids and found.scores == right_one.scores


# -- files that are damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", ["header", "encoder:vector", "live:vector", "codes:vector", "rows:vector", "texts"])
def test_flipped_bits_are_found_in_every_section(
    codes: Path, tmp_path: Path, home: vecdb.Collection, section: str, counted: Callable[[str, int], None]
) -> None:
    """Bits all over a section: a typed error that names it, or, where no search looks at that byte, the right answer."""
    folder = copied(codes, tmp_path / "codes")
    path = the_object(folder)
    data, header = path.read_bytes(), header_of(path)
    start, length = (0, header.body) if section == "header" else (
        header.sections[section].offset, header.sections[section].length
    )  # fmt: skip
    expected = home.search_batch(QUERIES, recall=0.9)
    rng, found, said = np.random.default_rng(1), 0, list[str]()
    for place in rng.integers(start, start + length, 25).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with vecdb.open_codes(folder) as there:
            try:
                answer = there.search_batch(QUERIES, recall=0.9)
                texts = answer.payloads()
                assert np.array_equal(answer.ids, expected.ids) and list(texts) == list(expected.payloads())
            except Corruption as error:
                found += 1
                said.append(str(error))
    everywhere = section in ("header", "encoder:vector", "live:vector", "codes:vector")
    assert found == 25 if everywhere else found > 0
    assert all(section in each and path.name in each and "upload" in each for each in said)
    counted("bits flipped in exported codes", 25)


def test_truncated_objects_are_found_at_any_length(codes: Path, tmp_path: Path) -> None:
    folder = copied(codes, tmp_path / "codes")
    path = the_object(folder)
    data = path.read_bytes()
    texts = header_of(path).sections["texts"]
    for length in [0, 1, 63, 64, 1000, layout.PREFIX, len(data) // 2, texts.offset, texts.offset + texts.length - 1]:
        path.write_bytes(data[:length])
        with vecdb.open_codes(folder) as there, pytest.raises(Corruption, match=path.name):
            there.search(QUERIES[0], exact=True)
            there.search_batch(QUERIES, k=6000).payloads()


def test_objects_that_are_mixed_up(codes: Path, tmp_path: Path) -> None:
    """Another export's object under this one's name: of another encoder, of another width."""
    for name, dim, rotation in (("encoder", DIM, "dense"), ("width", 32, "none")):
        with vecdb.open(tmp_path / f"{name}.db") as db:
            docs = db.create_collection("docs", Dense(dim, index=MIB(rotation=rotation)))
            docs.upsert(ids=range(ROWS), vectors=drawn(ROWS, 1, dim))
            docs.export_codes(tmp_path / name)
        folder = copied(codes, tmp_path / f"mixed-{name}")
        other = the_object(tmp_path / name).read_bytes()
        the_object(folder).write_bytes(other.ljust(the_object(folder).stat().st_size, b"\0"))
        with vecdb.open_codes(folder) as there, pytest.raises(Corruption, match="not the object that the manifest names"):
            there.search(QUERIES[0])


def described(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The header's JSON is changed, with all checksums made anew: what someone may write who means harm."""
    path = the_object(folder)
    data = path.read_bytes()
    body = layout.header_length(data, "it")
    _, _, _, length, whole, _ = layout._HEAD.unpack(data[:64])
    said = json.loads(data[64 : 64 + length])
    change(said)
    text = json.dumps(said).encode()
    assert len(text) <= 2 * body
    new = 64 + len(text) + -(64 + len(text)) % 64
    head = layout._HEAD.pack(layout._MAGIC, 1, 0, len(text), whole - body + new, 0)[:-8]
    head += xxhash.xxh3_64_intdigest(head + text).to_bytes(8, "little")
    header = (head + text).ljust(new, b"\0")
    path.write_bytes(header + data[body:])
    manifest = json.loads((folder / layout.MANIFEST).read_bytes())
    (one,) = manifest["objects"]
    one |= {"header": len(header), "length": path.stat().st_size, "check": layout.digest(header), "rows": said["rows"]}
    del manifest["check"], manifest["format"], manifest["version"]
    (folder / layout.MANIFEST).write_bytes(layout.write_manifest(manifest))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(rows=said["rows"] + 1), lambda said: said.update(rows=1 << 40), lambda said: said.update(rows=-1),
        lambda said: said.update(rows="6000"), lambda said: said["fields"]["vector"].update(dim=DIM + 64),
        lambda said: said["fields"]["vector"].update(dim=DIM + 1), lambda said: said["fields"]["vector"].update(dtype="f16"),
        lambda said: said["fields"]["vector"].update(encoder=1), lambda said: said["fields"]["vector"].update(allowed=10**9),
        lambda said: said["fields"]["vector"].update(allowed=7), lambda said: said["fields"]["vector"].update(metric="l2"),
        lambda said: said["fields"]["vector"].update(bits=4), lambda said: said["fields"]["vector"].update(power=0),
        lambda said: said["sections"].pop(), lambda said: said["sections"].pop(0), lambda said: said.update(ids="bytes"),
        lambda said: said["sections"][2].update(offset=1 << 50), lambda said: said["sections"][2].update(length=1),
        lambda said: said["sections"][2].update(sums=[]), lambda said: said["sections"][3].update(piece=0),
        lambda said: said["sections"][3].update(offset=-64), lambda said: said.update(fields=[]), lambda said: said.update(seed=None),
    ],
)  # fmt: skip
def test_headers_that_cannot_be_right_lead_no_kernel_astray(codes: Path, tmp_path: Path, change: Any) -> None:
    folder = described(copied(codes, tmp_path / "codes"), change)
    with pytest.raises(Corruption), vecdb.open_codes(folder) as there:
        there.search(QUERIES[0])


def test_manifests_that_are_none(codes: Path, tmp_path: Path) -> None:
    folder = copied(codes, tmp_path / "codes")
    path = folder / layout.MANIFEST
    data, said = path.read_bytes(), list[str]()
    for place in np.random.default_rng(0).integers(0, len(data), 60).tolist():
        changed = data[:place] + bytes([data[place] ^ 2]) + data[place + 1 :]
        path.write_bytes(changed)
        try:
            with vecdb.open_codes(folder) as there:
                # Of a space, or of the last digit of a number that is read as the same one.
                assert json.loads(changed) == json.loads(data)
                assert there.count() == 6000 - 858
        except (Corruption, NewerFormat) as error:
            said.append(str(error))
    assert len(said) > 40 and all(layout.MANIFEST in each for each in said)
    manifest = json.loads(data)
    del manifest["check"], manifest["format"], manifest["version"]
    (one,) = manifest["objects"]
    for change in (
        {"count": 1 << 50}, {"objects": [{**one, "live": one["rows"] + 1}]}, {"objects": [{**one, "name": "../other.codes"}]},
        {"fields": {"vector": {"kind": "sparse", "index": "auto"}}}, {"whole": {"vector": 5}}, {"objects": [{**one, "calibration": {"vector": {}}}]},
        {"objects": [{**one, "calibration": {"vector": {"curves": [{"k": 1, "selectivity": 1, "queries": 1, "efforts": [], "recalls": [], "lows": [], "seconds": []}], "exact": [], "single": []}}}]},
    ):  # fmt: skip
        path.write_bytes(layout.write_manifest({**manifest, **change}))
        with pytest.raises(Corruption, match=layout.MANIFEST):
            vecdb.open_codes(folder)
    for wrong in (b"", b"{}", b"[]", b"null", data[:-20], b"<html>not found</html>"):
        path.write_bytes(wrong)
        with pytest.raises(Corruption, match="no manifest"):
            vecdb.open_codes(folder)
    path.unlink()
    with pytest.raises(NotFound):
        vecdb.open_codes(folder)


# -- the cache ---------------------------------------------------------------------------------------------------------


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_entries_that_are_damaged_are_read_again(served: RangesServer, home: vecdb.Collection, cache: Path) -> None:
    with vecdb.open_codes(served.url) as there:
        there.search(QUERIES[0])
    rng = np.random.default_rng(0)
    for path in entries(cache):
        data = bytearray(path.read_bytes())
        match int(rng.integers(3)):
            case 0:
                data[int(rng.integers(len(data)))] ^= 1
            case 1:
                data = data[: len(data) // 2]
            case 2:
                data = bytearray()
        path.write_bytes(data)
    served.reset()
    with vecdb.open_codes(served.url) as there:
        found = there.search(QUERIES[0], explain=True)
        assert found.ids == home.search(QUERIES[0]).ids and found.plan.transfer.hits == 0 and len(served.seen) > 1
    served.reset()
    with vecdb.open_codes(served.url) as there:
        there.search(QUERIES[0])
    assert len(served.seen) == 1  # what was damaged was replaced


def test_the_cache_keeps_within_its_limit_and_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    limit = 64 << 10
    both = [RangeCache(tmp_path / "cache", limit) for _ in range(2)]  # as of two processes
    for number in range(200):
        both[number % 2].put(f"key {number}", bytes([number]) * 3000)
        taken = sum(-(-path.stat().st_size // 4096) * 4096 for path in entries(tmp_path / "cache"))
        assert taken <= limit
    assert both[0].get("key 199") == bytes([199]) * 3000 and both[0].get("key 0") is None
    both[0].put("large", bytes(limit))
    assert both[0].get("large") is None


def test_nothing_is_kept_where_nothing_is_to_be(served: RangesServer, cache: Path) -> None:
    with vecdb.open_codes(served.url, cache_bytes=0) as there:
        there.search(QUERIES[0])
    assert not entries(cache)


@pytest.mark.parametrize("full", [False, True])
def test_a_folder_that_cannot_be_written_or_is_full_is_told_of_once(
    served: RangesServer, home: vecdb.Collection, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch, full: bool,
) -> None:  # fmt: skip
    folder = tmp_path / "cache"
    if full:
        monkeypatch.setattr("vecdb.serverless.cache.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    else:
        folder.write_text("a file, where root may not write either")
    with caplog.at_level(logging.WARNING, "vecdb"), vecdb.open_codes(served.url, cache=folder) as there:
        for query in QUERIES[:3]:
            assert there.search(query).ids == home.search(query).ids
    assert len([each for each in caplog.records if "nothing is kept" in each.message]) == 1
    assert not full or not entries(folder)


_ASK = """
import sys, numpy as np, vecdb
from vecdb_index.mib.search import ShortLists
ShortLists.pays = lambda *_: True
with vecdb.open_codes(sys.argv[1], cache=sys.argv[2]) as there:
    for query in np.load(sys.argv[3]):
        print(*there.search(query, explain=True).ids)
"""


def test_two_processes_share_a_cache(served: RangesServer, home: vecdb.Collection, cache: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "queries.npy", QUERIES[:6])
    command = [sys.executable, "-c", _ASK, served.url, str(cache), str(tmp_path / "queries.npy")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    right = [" ".join(map(str, home.search(query).ids)) for query in QUERIES[:6]]
    for each in both:
        assert each.communicate(timeout=300)[0].splitlines() == right and each.returncode == 0
    assert not [path for path in entries(cache) if path.name.endswith(".partial")]
    served.reset()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines() == right
    assert len(served.seen) == 1


_PUT = """
import os, sys
from pathlib import Path
from vecdb.serverless import cache
class Slow:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def write(self, data):
        self.file.write(data[: len(data) // 2]); self.file.flush()
        if len(data) > 1000:
            print("half", flush=True); sys.stdin.read()
real = open
cache.open = lambda *given: Slow(real(*given))
cache.RangeCache(Path(sys.argv[1])).put("the key", bytes(range(256)) * 100)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_that_is_believed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    writer = subprocess.Popen(
        [sys.executable, "-c", _PUT, str(folder)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None and writer.stdin is not None and writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    writer.stdin.close()
    kept = RangeCache(folder, 1 << 20)
    (left,) = entries(folder)
    assert left.name.endswith(".partial") and kept.get("the key") is None
    kept.put("the key", b"right")
    assert kept.get("the key") == b"right"
    os.utime(left, (0, 0))
    RangeCache(folder, 1 << 20).put("another", bytes(70_000))  # who looks at the folder takes away what is nobody's
    assert not left.exists()


# -- where it lies, and what cannot be done ---------------------------------------------------------------------------


def test_fsspec_and_file_urls(home: vecdb.Collection, codes: Path) -> None:
    pytest.importorskip("fsspec")
    done = home.export_codes("memory://bucket/codes", overwrite=True)
    assert done.folder == "memory://bucket/codes" and done.objects == 1
    for where in ("memory://bucket/codes", codes.as_uri(), str(codes)):
        with vecdb.open_codes(where) as there:
            check_same(there, home)
            assert there.search(QUERIES[0], explain=True).plan.transfer.requests >= 0
    with pytest.raises(NotFound):
        vecdb.open_codes("memory://bucket/nothing")
    with pytest.raises((InvalidInput, Unsupported)):
        vecdb.open_codes("nosuch://bucket/codes")


def test_exports_again(home: vecdb.Collection, tmp_path: Path) -> None:
    """The same commit writes no object anew; another one does, and takes away what only the old manifest names."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=range(500), vectors=drawn(500, 11))
        first = docs.export_codes(tmp_path / "codes")
        assert first.written == first.bytes and first.points == 500
        with pytest.raises(AlreadyExists, match="overwrite"):
            docs.export_codes(tmp_path / "codes")
        again = docs.export_codes(tmp_path / "codes", overwrite=True)
        assert again.written < first.written / 10 and again.bytes == first.bytes
        damaged = the_object(tmp_path / "codes")
        kept = damaged.read_bytes()
        damaged.write_bytes(kept[:-100] + bytes(100))
        assert docs.export_codes(tmp_path / "codes", overwrite=True).written == first.bytes and damaged.read_bytes() == kept
        (tmp_path / "codes" / layout.MANIFEST).write_text("{}")
        docs.export_codes(tmp_path / "codes", overwrite=True)
        reader = vecdb.open_codes(tmp_path / "codes")
        before = the_object(tmp_path / "codes").name
        docs.delete([0, 1])
        told: list[tuple[int, int]] = []
        docs.export_codes(tmp_path / "codes", overwrite=True, progress=lambda done, total: told.append((done, total)))
        assert told and told[-1][0] == told[-1][1]
        assert the_object(tmp_path / "codes").name != before
        with reader, pytest.raises(NotFound, match="open it again"):
            reader.search(QUERIES[0])
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs)


def test_an_export_that_is_cut_short_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """At any write: readers see the old manifest, and its objects are there; the next export completes it."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=range(500), vectors=drawn(500, 11))
        docs.export_codes(tmp_path / "codes")
        before = docs.search(QUERIES[0])
        docs.delete(before.ids[:5])
        write, left = Files.write, 0

        def fail(self: Files, fd: int, data: Any, path: Path) -> None:
            nonlocal left
            left -= 1
            write(self, fd, bytes(data)[: len(data) // 2] if left < 0 else data, path)
            if left < 0:
                raise StorageError("the disk went away")

        with monkeypatch.context() as patch:
            left = 1000
            patch.setattr(Files, "write", fail)
            docs.export_codes(tmp_path / "elsewhere")
        taken, there_before = 1000 - left, set((tmp_path / "codes").iterdir())
        assert taken > 6
        for writes in range(taken):  # the last of which is that of the manifest
            left = writes
            with monkeypatch.context() as patch, pytest.raises(StorageError, match="went away"):
                patch.setattr(Files, "write", fail)
                docs.export_codes(tmp_path / "codes", overwrite=True)
            with vecdb.open_codes(tmp_path / "codes") as there:
                assert there.search(QUERIES[0]).ids == before.ids
            if writes < taken - 1:
                for new in set((tmp_path / "codes").iterdir()) - there_before:
                    new.unlink()  # what of it is complete would not be written again
        docs.export_codes(tmp_path / "codes", overwrite=True)
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        plain = db.create_collection("plain", Dense(4))
        with pytest.raises(InvalidInput, match=r"set_index\(MIB\(\)\)"):
            plain.export_codes(tmp_path / "out")
        docs = db.create_collection("docs", {"a": Dense(4, index=MIB()), "b": Dense(4)})
        with pytest.raises(InvalidInput, match="field 'b'"):
            docs.export_codes(tmp_path / "out", field="b")
        with pytest.raises(InvalidInput, match="no such field"):
            docs.export_codes(tmp_path / "out", field="c")
        docs.upsert([{"id": i, "vectors": {"a": [1, 2, 3, i]}} for i in range(10)])
        with vecdb.open(tmp_path / "db", read_only=True) as beside, pytest.raises(InvalidInput, match="in memory.*flush"):
            beside["docs"].export_codes(tmp_path / "out")
        db.pause_indexing()
        with pytest.raises(Unsupported, match=r"field 'a'.*flush\(\)"):
            docs.export_codes(tmp_path / "out")
        db.resume_indexing()
        assert docs.export_codes(tmp_path / "out").points == 10
        with vecdb.open(tmp_path / "db", read_only=True) as beside:
            beside["docs"].export_codes(tmp_path / "beside")
    assert the_object(tmp_path / "out").read_bytes() == the_object(tmp_path / "beside").read_bytes()


def test_what_exported_codes_cannot_do_is_said(codes: Path) -> None:
    there = vecdb.open_codes(codes)
    for call, error in (
        (lambda: there.upsert([]), ReadOnly), (lambda: there.get([1]), Unsupported), (lambda: there.delete([1]), ReadOnly),
        (lambda: there.search(QUERIES[0], where=F("n") > 1), Unsupported), (lambda: there.search("text"), Unsupported),
        (lambda: there.search(QUERIES[0], score="its"), Unsupported), (lambda: there.search_batch(QUERIES, score="its"), Unsupported),
        (lambda: there.search(QUERIES[0], group_by="n"), Unsupported), (lambda: there.count(F("n") > 1), Unsupported),
        (lambda: there.search([1, 2]), DimensionMismatch), (lambda: there.search(QUERIES[0], k=0), InvalidInput),
        (lambda: there.search(QUERIES[0], recall=2), InvalidInput), (lambda: there.search(QUERIES[0], field="b"), InvalidInput),
        (lambda: there.search(QUERIES[0], with_vectors=["b"]), InvalidInput),
    ):  # fmt: skip
        with pytest.raises(error):
            call()
    with pytest.raises(AttributeError):
        there.nothing  # noqa: B018
    assert there.info().rows == there.count() == len(there) == 6000 - 858 and there.name == "docs"
    assert there.search(QUERIES[0], score_threshold=2).ids == []
    late = there.search_batch(QUERIES[:2])
    there.close()
    with pytest.raises(Closed):
        there.search(QUERIES[0])
    with pytest.raises(Closed):
        late[0]  # whose payloads were not read yet
    with pytest.raises(InvalidInput, match=r"open_codes"):
        vecdb.open("https://host/codes?sig=secret")
    with pytest.raises(InvalidInput, match="headers and timeout"):
        vecdb.open_codes("https://host/codes", options={"anon": True})


# -- commands ------------------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, said.out, said.err


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, query = str(tmp_path / "db"), tmp_path / "codes", json.dumps(drawn(1, 12)[0].tolist())
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB()))
        docs.upsert(ids=range(3000), vectors=drawn(3000, 13), payloads=[{"n": i} for i in range(3000)])
    code, _, said = command(capsys, "export", "docs", "--db", path, "--codes", str(folder))
    assert code == 0 and "3,000 points in 1 objects" in said and "upload" in said
    code, out, _ = command(capsys, "export", "docs", "--db", path, "--codes", str(folder), "--overwrite", "--json")
    assert code == 0 and json.loads(out)["points"] == 3000
    code, right, _ = command(capsys, "search", "docs", "--db", path, "--vector", query, "--json", "-k", "3")
    with serving(folder) as server:
        for where in (server.url, str(folder)):
            code, out, said = command(
                capsys, "search", "docs", "--db", where, "--vector", query, "--json", "-k", "3", "--explain"
            )
            assert code == 0 and json.loads(out) == json.loads(right)
            assert re.search(r"read [\d,]+ bytes in \d+ requests.* ms of CPU a query", said)
        code, out, _ = command(capsys, "explain", "docs", "--db", server.url, "--vector", query, "--json")
        assert code == 0 and json.loads(out)["transfer"]["bytes"] > 0
        assert command(capsys, "info", "docs", "--db", server.url)[0] == 0
        assert command(capsys, "list", "--db", server.url)[0] == 0
        assert command(capsys, "search", "nothing", "--db", server.url, "--vector", query)[0] == 3
        assert command(capsys, "search", "docs", "--db", server.url, "--like", "1")[0] == 8
        assert command(capsys, "delete", "docs", "1", "--yes", "--db", server.url)[0] == 5
        assert command(capsys, "stats", "--db", server.url)[0] == 5
    for wrong in (["--codes", "x", "--out", "y.npy"], [], ["--codes", "x", "--where", "n > 1"]):
        assert command(capsys, "export", "docs", "--db", path, *wrong)[0] == 4
