"""`python -m bench sparse-engine [--parts PART …] [--set NAME] [--real FILE]`: sparse vectors through the API of the engine.

    recall    what searches deliver that ask for a recall, and of how many queries the answer is the exact one
    filters   the same where a share of the points is allowed, and whether all hits came
    known     passages found by a sentence of theirs (MRR@10), exactly and not; needs --real, the file of real vectors
    threads   batches of a thousand, by one thread and by two
    first     a process that starts: until its first answer, with files in the page cache and without; its memory
    build     seconds and peak memory of an index's build, beside its rows and what it makes

The sets are those of `bench/sparse.py`; a database of each is made once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import vecdb
from vecdb import F, Sparse

from . import __main__ as runner
from . import sparse

K = 10
ASKED = (0.90, 0.95, 0.99)
SHARES = (0.5, 0.1, 0.01, 0.001)
FIRST = """
import sys, time
import vecdb, vecdb_index.warmup
vecdb_index.warmup.warmup()
queries = __import__("pickle").load(open(sys.argv[2], "rb"))
def resident(what):
    return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith(what)) * 1024
before = resident("Rss:")
started = time.perf_counter()
db = vecdb.open(sys.argv[1], read_only=True)
docs = db["docs"]
docs.search(queries[0], recall=0.95, with_payload=False)
first = time.perf_counter() - started
again = time.perf_counter()
docs.search(queries[1], recall=0.95, with_payload=False)
again = time.perf_counter() - again
docs.search_batch(queries, recall=0.95, with_payload=False)
print(__import__("json").dumps({"first": first, "again": again, "resident": resident("Rss:") - before, "index": docs.info().indexes["vector"].bytes}))
"""
BUILD = """
import json, resource, sys, time
import numpy as np
from vecdb_index.contract import Budget, SparseRows
from vecdb_index.seismic.backend import BACKEND
from vecdb_index.warmup import warmup
warmup()
with np.load(sys.argv[1]) as file:
    rows = SparseRows(file["indptr"].astype(np.uint64), file["indices"].astype(np.uint32), file["values"])
mine = sum(each.nbytes for each in (rows.offsets, rows.indices, rows.weights))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
started, cpu = time.perf_counter(), time.process_time()
made = BACKEND.build(rows, {}, BACKEND.params(**json.loads(sys.argv[2])), Budget(threads=int(sys.argv[3])), lambda share: None)
took = time.perf_counter() - started, time.process_time() - cpu
index = sum(each.nbytes for each in made.values())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": took[0], "cpu": took[1], "rows": mine, "index": index, "peak": peak, "before": before}))
"""


def database_of(name: str, real: Path | None) -> Path:
    """A database with a collection `docs` of a set, made if need be."""
    folder = sparse.folder_of(name, real)
    path = folder / f"engine-{vecdb.__version__}-{sparse.sources()}.db"
    if not (path / "made").exists():
        with vecdb.open(path) as db:
            if "docs" in db.collections():
                db.drop_collection("docs")
            docs = db.create_collection("docs", Sparse())
            rows = matrix(folder, "docs")
            for start in range(0, rows.shape[0], 50_000):
                some = rows[start : start + 50_000]
                ids = np.arange(start, start + some.shape[0])
                docs.upsert(ids=ids, vectors=some, payloads=[{"n": int(i) * 2_654_435_761 % 100_000} for i in ids])
            docs.flush()
            docs.merge()
        (path / "made").touch()
    return path


def matrix(folder: Path, part: str) -> Any:
    from scipy.sparse import csr_matrix

    indptr, indices, values = sparse.csr(folder / f"{part}.npz")
    return csr_matrix((values, indices.astype(np.int64), indptr))


def overlap(found: Any, exact: Any) -> tuple[float, float]:
    """(recall, share of queries with no hit that an exact search would not have): by scores, so that ties are no misses."""
    lowest = np.nanmin(np.where(np.isnan(exact.scores), np.inf, exact.scores), axis=1, keepdims=True)
    right = (found.scores >= lowest - 1e-6 * np.abs(lowest)).sum(axis=1)
    wanted = (~np.isnan(exact.scores)).sum(axis=1)
    return float((right / np.maximum(1, wanted)).mean()), float((right >= wanted).mean())


def recall(path: Path, folder: Path) -> None:
    queries = matrix(folder, "test")
    runner.head("recall asked", "delivered", "answers that are exact", "µs a query")
    with vecdb.open(path, threads=1) as db:
        docs = db["docs"]
        exact = docs.search_batch(queries, K, exact=True, with_payload=False)
        for asked in ASKED:
            docs.search_batch(queries, K, recall=asked, with_payload=False)
            started = time.perf_counter()
            found = docs.search_batch(queries, K, recall=asked, with_payload=False)
            took = time.perf_counter() - started
            delivered, right = overlap(found, exact)
            runner.row(asked, f"{delivered:.3f}", f"{right:.1%}", f"{took / queries.shape[0] * 1e6:.0f}")


def filters(path: Path, folder: Path) -> None:
    queries = matrix(folder, "test")[:500]
    runner.head("allowed", "recall delivered (0.95 asked)", "queries with all hits that there are", "µs a query", "exact, µs")
    with vecdb.open(path, threads=1) as db:
        docs = db["docs"]
        for share in SHARES:
            where = F("n") < int(share * 100_000)
            times, answers = [], []
            for how in ({"recall": 0.95}, {"exact": True}):
                docs.search_batch(queries, K, where=where, with_payload=False, **how)
                started = time.perf_counter()
                answers.append(docs.search_batch(queries, K, where=where, with_payload=False, **how))
                times.append((time.perf_counter() - started) / queries.shape[0] * 1e6)
            found, exact = answers
            full = float((found.lengths >= exact.lengths).mean())
            runner.row(f"{share:.1%}", f"{overlap(found, exact)[0]:.3f}", f"{full:.1%}", *(f"{each:.0f}" for each in times))


def known(real: Path) -> None:
    from scipy.sparse import csr_matrix

    def part(file: Any, of: str) -> Any:
        return csr_matrix(tuple(file[f"{of}_{each}"] for each in ("values", "indices", "indptr")))

    with np.load(real) as file, vecdb.open(":memory:") as db:
        docs, queries, items = part(file, "doc").astype(np.float32), part(file, "query").astype(np.float32), file["query_doc"]
        collection = db.create_collection("docs", Sparse(index="seismic"))
        collection.upsert(ids=np.arange(docs.shape[0]), vectors=docs)
        collection.flush()
        runner.head("search", "MRR@10", "of exact", "recall@10")
        exact = collection.search_batch(queries, K, exact=True, with_payload=False)

        def mrr(found: Any) -> float:
            rank = (found.ids == items[:, None]).astype(float) / np.arange(1, K + 1)
            return float(rank.max(axis=1).mean())

        for how in ({"exact": True}, *({"recall": each} for each in ASKED)):
            found = collection.search_batch(queries, K, with_payload=False, **how)
            about = "exact" if "exact" in how else f"recall {how['recall']:g}"
            runner.row(about, f"{mrr(found):.4f}", f"{mrr(found) / mrr(exact):.3f}", f"{overlap(found, exact)[0]:.3f}")


def threads(path: Path, folder: Path) -> None:
    queries = matrix(folder, "test")
    runner.head("recall asked", "one thread, µs a query", "two", "ratio [least–most]")
    with vecdb.open(path, threads=1) as one, vecdb.open(path, threads=2, read_only=True) as two:
        for how in (*({"recall": each} for each in ASKED), {"exact": True}):
            times: dict[int, list[float]] = {1: [], 2: []}
            for _ in range(9):
                for count, db in ((1, one), (2, two)):
                    started = time.perf_counter()
                    db["docs"].search_batch(queries, K, with_payload=False, **how)
                    times[count].append((time.perf_counter() - started) / queries.shape[0] * 1e6)
            ratios = [a / b for a, b in zip(times[1][1:], times[2][1:], strict=True)]
            medians = [f"{statistics.median(each[1:]):.0f}" for each in times.values()]
            shown = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}]"
            runner.row(next(iter(how.values())) if "recall" in how else "exact", *medians, shown)


def forget(path: Path) -> None:
    """Its files, from the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def first(path: Path, folder: Path) -> None:
    import pickle
    import tempfile

    runner.head("files", "open and first answer, ms", "second, ms", "resident after 1,000 queries, MB", "index, MB")
    with tempfile.NamedTemporaryFile(suffix=".pickle") as queries:
        pickle.dump(matrix(folder, "test"), queries)
        queries.flush()
        for about in ("cached", "cached", "on disk", "on disk"):
            if about == "on disk":
                forget(path)
            run = subprocess.run(
                [sys.executable, "-c", FIRST, str(path), queries.name], capture_output=True, text=True, check=True
            )
            told = json.loads(run.stdout.splitlines()[-1])
            figures = told["first"] * 1e3, told["again"] * 1e3, told["resident"] / 1e6, told["index"] / 1e6
            runner.row(about, *(f"{each:.1f}" for each in figures))


def build(folder: Path) -> None:
    runner.head("parameters", "threads", "seconds", "CPU s", "rows, MB", "index, MB", "peak less rows, MB", "÷ (rows + index)")
    for params in ({}, {"exact": "scan"}, {"knn": 8}):
        for count in (1, 2):
            command = [sys.executable, "-c", BUILD, str(folder / "docs.npz"), json.dumps(params), str(count)]
            told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            peak = told["peak"] - told["before"] + told["rows"]
            runner.row(
                " ".join(f"{key}={value}" for key, value in params.items()) or "as by default", count,
                f"{told['seconds']:.1f}", f"{told['cpu']:.1f}", f"{told['rows'] / 1e6:.0f}", f"{told['index'] / 1e6:.0f}",
                f"{(peak - told['rows']) / 1e6:.0f}", f"{peak / (told['rows'] + told['index']):.2f}",
            )  # fmt: skip


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench sparse-engine", description=__doc__)
    parts = ["recall", "filters", "known", "threads", "first", "build"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--set", default="100k", choices=list(sparse.SETS))
    parser.add_argument("--real", type=Path, help="the file of real vectors, with query_doc")
    options = parser.parse_args(arguments)
    folder = sparse.folder_of(options.set, options.real)
    for part in options.parts:
        print(f"\n## {part}: {options.set}, load {os.getloadavg()[0]:.2f}\n", flush=True)
        if part == "known":
            if options.real is not None:
                known(options.real)
        elif part == "build":
            build(folder)
        else:
            globals()[part](database_of(options.set, options.real), folder)
