"""`python -m bench [NAME …] [--rounds R] [--points N] [--sets NAME …] [--rows N]`: the engine beside its peers.

run CONFIG.toml: nearest-neighbour indexes side by side, with plots: see `run.py`. sparse, sparse-engine: sparse
vectors beside peers and through the API, see `sparse.py` and `sparse_engine.py`. All
others are tables by name:

ingest, small: writing. flat: searching exactly. mib: by bits. scores: what bits report of hits. recall: asked and delivered. filtered: searches with a filter.
planner: its choices beside the best ones. threads: searches of several, and while somebody writes. overhead, open: what is around.
files: loading Parquet and fbin, memory, and the shell. serving: the server beside the embedded API and servers of peers. endurance: space, write amplification, recovery, verify, and 20 minutes of mixed load; its parts are chosen by --parts.

Each table is measured side by side in one run: rounds take turns, medians are reported, and so are ratios, because single
figures of a shared machine mean little. Writing programs run in processes of their own; engines that are peers, in
environments of their own (`bench/.envs`, made when missing). Figures go to standard output as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = {
    "lancedb": ["lancedb"],
    "chromadb": ["chromadb", "pyarrow"],
    "milvus": ["pymilvus", "milvus-lite", "setuptools<81"],
    "milvus-server": ["pymilvus", "milvus", "setuptools<81"],
    "qdrant": ["qdrant-client"],
    "zvec": ["zvec"],
    "hnswlib": ["hnswlib"],
    "rabitqlib": ["rabitqlib"],
    "usearch": ["usearch"],
    "faiss": ["faiss-cpu"],
    "turbovec": ["turbovec"],
    "voyager": ["voyager"],
    "scann": ["scann"],
    "svs": ["scalable-vs"],
    "ngt": ["ngt"],
}
SLOW = {"chromadb": 10, "milvus": 10, "qdrant": 10}  # are given so many times fewer points, or they would take all day
INGESTING = ("lancedb", "chromadb", "milvus", "qdrant", "zvec")
ROUNDS = {"recall": 3, "filtered": 3, "planner": 3, "files": 3, "serving": 3}  # others have 5
SYNC_CALLS = "fsync,fdatasync,msync,sync_file_range"


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        from .run import main as side_by_side

        return side_by_side(sys.argv[2:])
    if sys.argv[1:2] == ["sparse"]:
        from .sparse import main as of_sparse_vectors

        return of_sparse_vectors(sys.argv[2:])
    if sys.argv[1:2] == ["sparse-engine"]:
        from .sparse_engine import main as through_the_api

        return through_the_api(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    tables = {
        "ingest": ingest, "small": small, "flat": flat, "overhead": overhead, "open": opening, "endurance": endurance, "files": files,
        "serving": serving, "mib": mib,
        **{name: partial(of_sets, name) for name in ("recall", "filtered", "planner", "threads", "scores")},
    }  # fmt: skip
    parser.add_argument("tables", nargs="*", choices=[*tables, []], help="which; all by default")
    parser.add_argument("--points", type=int, default=200_000, help="of the ingest table")
    parser.add_argument("--rounds", type=int, help="of each table but the peers' ingest: 5, or 3 of long ones")
    parser.add_argument("--sets", nargs="+", default=["images", "synthetic", "text"], help="of vectors (see bench/sets.py)")
    parser.add_argument(
        "--parts", nargs="+", default=None, help="of endurance, files, mib or serving (see bench/NAME.py); all by default"
    )
    parser.add_argument("--minutes", type=float, default=20, help="of sustained load")
    parser.add_argument("--rows", type=int, help="of each set, at most: to try a program out")
    parser.add_argument("--quick", action="store_true", help="serving: small sizes and short times, to try it out")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}\n"
    )
    rounds = options.rounds
    for name in options.tables or tables:
        options.rounds = rounds or ROUNDS.get(name, 5)
        tables[name](options)
        print(flush=True)


def ratio(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else "–"


def row(*cells: Any) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: str) -> None:
    row(*cells)
    row(*("---" for _ in cells))


# -- ingest ----------------------------------------------------------------------------------------------------


def python_of(engine: str) -> str | None:
    """The interpreter of an engine's environment, made if need be; None when that fails."""
    if engine in ("disk", "vecdb"):
        return sys.executable
    folder = HERE / ".envs" / engine
    python = folder / "bin" / "python"
    try:
        if not (folder / "ready").exists():
            print(f"installing {engine} …", file=sys.stderr, flush=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "numpy", *ENVIRONMENTS[engine]], check=True)
            (folder / "ready").touch()
    except subprocess.CalledProcessError:
        return None
    return str(python)


def run(engine: str, folder: Path, points: int, batch: int, *, traced: Path | None = None) -> dict[str, Any] | str:
    """One ingest in a process of its own: its figures, or why there are none."""
    python = python_of(engine)
    if python is None:
        return "could not be installed"
    tracer = ["strace", "-f", "-c", "-e", f"trace={SYNC_CALLS}", "-o", str(traced)] if traced else []
    command = [*tracer, python, str(HERE / "peers" / f"{engine}.py"), str(folder), str(points), str(batch)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    except subprocess.TimeoutExpired:
        return "took more than 20 minutes"
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['?'])[-1][:80]}"
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def syncs(engine: str, work: Path) -> str:
    """How often an engine syncs while it writes four batches of 1,000, counted by strace; that is its durability."""
    if shutil.which("strace") is None:
        return "not counted (no strace)"
    trace = work / f"{engine}.trace"
    if isinstance(run(engine, work / f"{engine}-traced", 4000, 1000, traced=trace), str):
        return "not counted"
    counts = [
        line.split() for line in trace.read_text().splitlines() if line.split() and line.split()[-1] in SYNC_CALLS.split(",")
    ]
    said = ", ".join(f"{cells[3]} {cells[-1]}" for cells in counts)
    return said or "none"


def ingest(options: argparse.Namespace) -> None:
    points, rounds = options.points, options.rounds
    print(f"## Durable ingest: {points:,} x 384 f32, string ids, payloads of three fields, until acknowledged\n")
    print(
        "`disk` appends the same bytes and calls fdatasync once a batch. Syncs: system calls while four batches of 1,000 are written. "
        f"{', '.join(SLOW)} are given a tenth of the points.\n"
    )
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=os.environ.get("VECDB_BENCH_DIR")) as name:
        work = Path(name)
        for batch in (20_000, 1_000):
            print(f"### Batches of {batch:,}\n")
            rates: dict[str, list[float]] = {}
            memory: dict[str, float] = {}
            for turn in range(rounds):
                for engine in ("disk", "vecdb"):
                    figures = run(engine, work / f"{engine}-{batch}-{turn}", points, batch)
                    assert isinstance(figures, dict), figures
                    rates.setdefault(engine, []).append(figures["points_per_s"])
                    memory[engine] = max(memory.get(engine, 0), figures["rss_anon_growth"])
            disk = statistics.median(rates["disk"])
            head("engine", "points/s", "share of the disk's rate", "in total time", "RssAnon growth, MiB", "syncs")
            for engine in ("disk", "vecdb", *(INGESTING if batch == 20_000 else ())):
                if engine in INGESTING:
                    figures = run(engine, work / f"{engine}-{batch}", points // SLOW.get(engine, 1), batch)
                    shutil.rmtree(work / f"{engine}-{batch}", ignore_errors=True)
                    if isinstance(figures, str):
                        row(engine, figures, "", "", "", "")
                        continue
                    rate, grown = figures["points_per_s"], figures["rss_anon_growth"]
                else:
                    rate, grown = statistics.median(rates[engine]), memory[engine]
                row(
                    engine,
                    f"{rate:,.0f}",
                    ratio(rate, disk),
                    ratio(total(rates["disk"]), total(rates[engine])) if engine in rates else "",
                    f"{grown / 2**20:,.0f}",
                    syncs(engine, work) if batch == 20_000 else "",
                )
            print(f"\nRounds, disk: {spread(rates['disk'])}; vecdb: {spread(rates['vecdb'])}\n")
            for leftover in work.iterdir():  # only now: blocks that are freed make the next round of the disk faster
                shutil.rmtree(leftover, ignore_errors=True)


def total(rates: list[float]) -> float:
    """Seconds of all rounds, for one point in each."""
    return sum(1 / rate for rate in rates)


def spread(rates: list[float]) -> str:
    return ", ".join(f"{rate:,.0f}" for rate in rates)


# -- small writes ------------------------------------------------------------------------------------------------


def small(options: argparse.Namespace) -> None:
    import vecdb
    from vecdb import Dense

    from . import data

    x = data.vectors(8_000)
    rates: dict[int, list[float]] = {1: [], 16: []}
    together: list[float] = []
    for _ in range(options.rounds):
        for threads in rates:
            with (
                tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=os.environ.get("VECDB_BENCH_DIR")) as name,
                vecdb.open(name + "/db") as db,
            ):
                docs = db.create_collection("docs", Dense(data.DIM))
                count = 1_000 if threads == 1 else 6_000
                queue = db._store.queue
                groups, operations = queue.groups, queue.operations

                def work(first: int, docs: Any = docs, count: int = count, step: int = threads) -> None:
                    for i in range(first, count, step):
                        docs.upsert(
                            ids=[f"document-{i}"], vectors=x[i : i + 1], payloads=[{"title": "t", "year": i, "lang": "en"}]
                        )

                seconds = in_threads(threads, work)
                rates[threads].append(count / seconds)
                if threads > 1:
                    together.append((queue.operations - operations) / (queue.groups - groups))
    one, many = statistics.median(rates[1]), statistics.median(rates[16])
    print("## Single points from many threads, each durable when acknowledged\n")
    head("threads", "points/s", "ratio", "points a commit")
    row(1, f"{one:,.0f}", "1.00", "1.0")
    row(16, f"{many:,.0f}", ratio(many, one), f"{statistics.median(together):.1f}")


def in_threads(count: int, work: Callable[[int], None]) -> float:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


# -- exact search ------------------------------------------------------------------------------------------------


def interleaved(rounds: int, calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each call; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def flat(options: argparse.Namespace) -> None:
    """In a process of its own, in which BLAS has one thread."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "bench.flat", str(options.rounds)], check=True, env=environment)


def mib(options: argparse.Namespace) -> None:
    """Likewise."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    rows = [] if options.rows is None else ["--rows", str(options.rows)]
    parts = [] if options.parts is None else ["--parts", *options.parts]
    command = [sys.executable, "-m", "bench.mib", "--rounds", str(options.rounds), *rows, *parts]
    subprocess.run(command, check=True, env=environment)


def of_sets(name: str, options: argparse.Namespace) -> None:
    """A program that is a module of its own, and measures over sets of vectors."""
    import_module(f".{name}", __package__).measure(options.rounds, options.sets, options.rows)


def endurance(options: argparse.Namespace) -> None:
    from .endurance import PARTS, tables

    tables(options.parts or list(PARTS), 10 * options.points, options.minutes)


def files(options: argparse.Namespace) -> None:
    from .files import tables

    tables(options.parts, options.rounds, options.rows)


def serving(options: argparse.Namespace) -> None:
    from .serving import tables

    tables(options.parts, options.rounds, options.rows, options.quick)


def overhead(options: argparse.Namespace) -> None:
    import vecdb
    from vecdb import Dense

    from . import data

    x = data.vectors(1_000)  # so few that the kernel's own spread does not hide what is above it
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", Dense(data.DIM, index="flat"))
        docs.upsert(
            ids=[f"document-{i}" for i in range(len(x))],
            vectors=x,
            payloads=[{"title": f"t{i}", "year": i, "lang": "en"} for i in range(len(x))],
        )
        docs.flush()
        docs.search(x[0])
        part = docs._store.snapshot(docs._uuid).parts[0]
        from vecdb_index.contract import Rows
        from vecdb_index.flat.search import FlatSearcher

        field = part.field("vector")
        assert field is not None
        searcher = FlatSearcher(Rows(field.vectors, field.norms, "cosine"))
        repeat = 200

        def many(call: Callable[[Any], Any]) -> Callable[[], None]:
            def run() -> None:
                for i in range(repeat):
                    call(x[i])

            return run

        times = interleaved(
            options.rounds,
            {
                "kernel": many(lambda q: searcher.search(q[None, :], 10)),
                "search": many(lambda q: docs.search(q, k=10, with_payload=False)),
                "search with payloads": many(lambda q: docs.search(q, k=10)),
            },
        )
    print("## One embedded search above its kernel, 1,000 x 384, k=10, one thread\n")
    head("call", "µs", "above the kernel, µs")
    for name, seconds in times.items():
        row(name, f"{seconds / repeat * 1e6:,.0f}", f"{(seconds - times['kernel']) / repeat * 1e6:,.0f}")


# -- opening -----------------------------------------------------------------------------------------------------

OPEN = """
import json, sys, time
from bench.data import rss_anon
import numpy as np, numba
before = rss_anon()
started = time.perf_counter()
import vecdb
with vecdb.open(sys.argv[1]) as db:
    docs = db.collection("docs")
    opened = time.perf_counter() - started
    hits = docs.search(np.ones(384, np.float32), k=10)
    print(json.dumps({"open": opened, "first": time.perf_counter() - started, "rss": rss_anon() - before, "rows": docs.count()}))
"""


def opening(options: argparse.Namespace) -> None:
    import vecdb
    from vecdb import Dense

    from . import data

    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=os.environ.get("VECDB_BENCH_DIR")) as name:
        with vecdb.open(name + "/db") as db:
            docs = db.create_collection("docs", Dense(data.DIM, index="flat"))
            for start in range(0, 1_000_000, 50_000):
                ids = [f"document-{i:08d}" for i in range(start, start + 50_000)]
                docs.upsert(
                    ids=ids,
                    vectors=data.vectors(50_000, seed=start),
                    payloads=[{"year": i % 50, "lang": "en"} for i in range(50_000)],
                )
        runs = []
        for _ in range(options.rounds + 1):
            done = subprocess.run(
                [sys.executable, "-c", OPEN, name + "/db"], capture_output=True, text=True, check=True, cwd=HERE.parent
            )
            runs.append(json.loads(done.stdout))
    runs = runs[1:]  # the first warms the page cache
    print("## Opening a collection of 1,000,000 x 384 in a new process, page cache warm, numba loaded before\n")
    head("", "median")
    row("until open, ms", f"{1000 * statistics.median(r['open'] for r in runs):,.0f}")
    row(
        "until the first answer (k=10, exact over all, every block of vectors checked), ms",
        f"{1000 * statistics.median(r['first'] for r in runs):,.0f}",
    )
    row("RssAnon above the interpreter with numba, MiB", f"{statistics.median(r['rss'] for r in runs) / 2**20:,.0f}")


if __name__ == "__main__":
    main()
