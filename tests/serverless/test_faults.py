"""What goes wrong on the way: the right answer, or an error that names file, part and remedy."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb.errors import (
    Corruption,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    StorageError,
    Unauthenticated,
    Unavailable,
    VecdbError,
)
from vecdb.serverless import layout, transport

from .afar import QUERIES, RangesServer, check_same, copied, header_of, serving, the_object


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
