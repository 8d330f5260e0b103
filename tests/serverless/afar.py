"""What tests of the serverless form share: a web server that can be made to fail, collections, and what they are compared by.

The oracle is the local search of the same database, made by its index.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from vecdb_index.mib.search import ShortLists

import vecdb
from vecdb.search import whole
from vecdb.serverless import layout

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


def drawn(n: int, seed: int, dim: int = DIM) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((40, dim)) * 1.5
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, dim))).astype(np.float32)


QUERIES = drawn(40, 2)


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
