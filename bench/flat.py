"""Exact search beside the memory's own speed, faiss IndexFlat and NumPy's BLAS; one thread. Run by `python -m bench flat`."""

from __future__ import annotations

import mmap
import sys
import tempfile
import time
from typing import Any

import numba
import numpy as np
from vecdb_index.codec.int8 import Codes
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.warmup import warmup

from . import data
from .__main__ import head, interleaved, ratio, row


@numba.njit(nogil=True)
def read(words: Any) -> Any:
    """Touches every byte of an array of int64, as fast as one thread can."""
    total = np.int64(0)
    for i in range(words.size):
        total ^= words[i]
    return total


def mapped(array: np.ndarray) -> np.ndarray:
    """A read-only mapping of a file that holds `array`, as segments are."""
    file = tempfile.TemporaryFile()
    file.write(array.tobytes())
    file.flush()
    return np.frombuffer(mmap.mmap(file.fileno(), array.nbytes, access=mmap.ACCESS_READ), array.dtype).reshape(array.shape)


def main() -> None:
    rounds = int(sys.argv[1])
    warmup()
    x = mapped(data.vectors(100_000))
    queries = data.vectors(64, seed=1)
    stored = {"f32": x, "f16": mapped(x.astype(np.float16)), "i8": mapped(np.rint(x * 400).clip(-127, 127).astype(np.int8))}
    calls = {}
    for name, vectors in stored.items():
        norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
        searcher = FlatSearcher(Rows(vectors, norms, "cosine"))
        words = vectors.reshape(-1).view(np.int64)
        calls[f"read {name}"] = lambda words=words: read(words)
        calls[f"one {name}"] = lambda searcher=searcher: searcher.search(queries[:1], 10)
        calls[f"batch {name}"] = lambda searcher=searcher: searcher.search(queries, 10)
    rows = Rows(x, np.linalg.norm(x, axis=1), "cosine")
    codes = Codes.of(rows)
    started = time.perf_counter()
    codes.fill(rows, 0, len(rows))
    coding = time.perf_counter() - started
    coded = FlatSearcher(rows, codes)
    calls["one codes"] = lambda: coded.search(queries[:1], 10)
    inner = FlatSearcher(Rows(x, np.linalg.norm(x, axis=1), "ip"))
    calls["batch ip"] = lambda: inner.search(queries, 10)

    def blas() -> np.ndarray:
        scores = queries @ x.T
        best = np.argpartition(-scores, 10, axis=1)[:, :10]
        return np.take_along_axis(scores, best, 1)

    calls["blas"] = blas
    try:
        import faiss

        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(x.shape[1])
        index.add(x)
        calls["faiss"] = lambda: index.search(queries, 10)
        calls["faiss one"] = lambda: index.search(queries[:1], 10)
    except ImportError:
        print("faiss is not installed: pip install 'vecdb[bench]'", file=sys.stderr)
    times = interleaved(rounds, calls)
    print("## Exact search, 100,000 x 384, k=10, one thread, rows mapped from a file\n")
    head("one query", "ms", "GB/s", "share of the read bandwidth")
    for name, vectors in stored.items():
        seconds = times[f"one {name}"]
        row(
            f"vecdb {name}",
            f"{1000 * seconds:.2f}",
            f"{vectors.nbytes / seconds / 1e9:.1f}",
            ratio(times[f"read {name}"], seconds),
        )
    one = times["one codes"]
    share = ratio(times["read f32"] * codes.codes.nbytes / x.nbytes, one)
    row("vecdb f32, over int8 codes", f"{1000 * one:.2f}", f"{codes.codes.nbytes / one / 1e9:.1f}", share)
    row("reading f32, nothing else", f"{1000 * times['read f32']:.2f}", f"{x.nbytes / times['read f32'] / 1e9:.1f}", "1.00")
    if "faiss one" in times:
        row(
            "faiss IndexFlatIP",
            f"{1000 * times['faiss one']:.2f}",
            f"{x.nbytes / times['faiss one'] / 1e9:.1f}",
            ratio(times["read f32"], times["faiss one"]),
        )
    print(f"\nMaking the codes takes {1000 * coding:.0f} ms.\n")
    head("64 queries", "ms", "queries/s", "x the faster of faiss and BLAS")
    best = min(times.get("faiss", np.inf), times["blas"])
    for name in ("batch ip", "batch f32", "batch f16", "batch i8", "faiss", "blas"):
        if name in times:
            label = {
                "batch ip": "vecdb f32, inner product",
                "batch f32": "vecdb f32, cosine",
                "faiss": "faiss IndexFlatIP",
                "blas": "NumPy BLAS, argpartition",
            }
            row(
                label.get(name, f"vecdb {name[6:]}, cosine"),
                f"{1000 * times[name]:.1f}",
                f"{64 / times[name]:,.0f}",
                ratio(best, times[name]),
            )


if __name__ == "__main__":
    main()
