"""The rows that every engine is given: made anew in each process from a seed, so that nothing is passed between them.

NumPy only: peers run in environments of their own that have nothing else in common.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

DIM = 384
LANGUAGES = ["en", "de", "fr", "es", "zh"]


def vectors(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """(n, dim) float32 of length one."""
    made = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    made /= np.linalg.norm(made, axis=1)[:, None]
    return made


def batches(n: int, size: int) -> Iterator[tuple[list[str], np.ndarray, list[dict[str, Any]]]]:
    """(string ids, vectors, payloads of three fields) in batches; all made before the first is given out."""
    x = vectors(n)
    ids = [f"document-{i:08d}" for i in range(n)]
    payloads = [{"title": f"title of document {i}", "year": 1980 + i % 45, "lang": LANGUAGES[i % 5]} for i in range(n)]
    for start in range(0, n, size):
        yield ids[start : start + size], x[start : start + size], payloads[start : start + size]


def rss_anon() -> int:
    """Anonymous resident bytes of this process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def ingest(durability: str, open_and_writer: Callable[[str], tuple[Callable[..., Any], Callable[[], Any]]]) -> None:
    """Main program of an adapter: path n batch -> one JSON line. open_and_writer(path) -> (write(ids, vectors, payloads), close).

    Only the writes are timed, each until it is acknowledged; memory is what they add to the process.
    """
    import sys

    path, n, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    ready = list(batches(n, size))
    write, close = open_and_writer(path)
    if hasattr(open_and_writer, "prepare"):
        open_and_writer.prepare(ready)
    before, most, done = rss_anon(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], rss_anon())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    times = []
    for ids, x, payloads in ready:
        started = time.perf_counter()
        write(ids, x, payloads)
        times.append(time.perf_counter() - started)
    done.set()
    watcher.join()
    started = time.perf_counter()
    close()
    size_on_disk = sum(os.stat(os.path.join(f, name)).st_blocks * 512 for f, _, names in os.walk(path) for name in names)
    print(
        json.dumps(
            {
                "points_per_s": n / sum(times), "seconds": sum(times), "close_seconds": time.perf_counter() - started,
                "rss_anon_growth": max(0, most[0] - before), "bytes_on_disk": size_on_disk, "durability": durability,
            }
        )
    )  # fmt: skip
