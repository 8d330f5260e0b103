"""Codes of a collection, exported to a folder and searched over HTTP from an empty cache, and then from a full one."""

import re
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np

import vecdb
from vecdb import Dense
from vecdb.index import MIB


class Ranges(SimpleHTTPRequestHandler):
    """Python's own web server with ranges, as nginx, Caddy and all buckets have them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body is not to wait until its head has arrived

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = path.stat().st_size
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, size - 1)
        with open(path, "rb") as file:
            file.seek(first)
            part = file.read(last - first + 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *about: object) -> None: ...


rng = np.random.default_rng(0)
axes = rng.standard_normal((24, 384)).astype(np.float32)
vectors = rng.standard_normal((30_000, 24), np.float32) @ axes + 0.3 * rng.standard_normal((30_000, 384), np.float32)

with tempfile.TemporaryDirectory() as folder:
    with vecdb.open(f"{folder}/my.db") as db:
        docs = db.create_collection("docs", Dense(384, index=MIB()))
        docs.upsert(ids=range(30_000), vectors=vectors, payloads=[{"title": f"document {i}"} for i in range(30_000)])
        done = docs.export_codes(f"{folder}/codes")
        print(f"{done.points:,} points, {done.bytes / 1e6:.0f} MB in {done.objects} object and a manifest")

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=f"{folder}/codes"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"  # from here on, what another machine would do
    for state in ("an empty cache", "a full one"):
        with vecdb.open_codes(url, cache=f"{folder}/cache") as codes:
            hits = codes.search(vectors[12], k=3, explain=True)
            print(f"{state}: {hits.plan.transfer}")
    print([(hit.id, round(hit.score, 2), hit.payload["title"]) for hit in hits])
    server.shutdown()
    server.server_close()
