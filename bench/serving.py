"""`python -m bench serving [--parts …] [--quick]`: the server beside the embedded API, a bare server, and servers of peers.

latency     one query after the other over loopback, beside a gRPC server that only echoes as many bytes, and the embedded search
batch       `search_batch` of 64 queries in a call, exact and by a graph: share of the embedded API's throughput
ingest      `upsert` of large arrays: share of the embedded API's throughput
clients     64 clients at once for a minute: errors, latencies, memory
overload    twice the load that 64 clients sustained, from 256 that do not try again: what is shed, and the time until all is as before
workers     two workers beside one, exact scans of at least 20 ms
peers       Chroma, Milvus Lite and Milvus standalone, each by its own server and client: the same rows, k and recall

Servers and clients are processes of their own (`peers/serving_NAME.py`, `peers/calling.py`), peers in environments of their own. What is
compared takes turns, medians of rounds are reported. Everything is on loopback, so servers share the cores with their clients.
--quick: small sizes and short times, to try the programs out. --rows: of the peers' set.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from . import data
from .__main__ import HERE, head, ratio, row
from .processes import MIB, PEERS, VECDB, Answers, Callers, Engine, Server, environment, free_port, listening

PARTS = ("latency", "batch", "ingest", "clients", "overload", "workers", "peers")
K = 10
DIM = data.DIM
BATCH = 64
RECALL = 0.95
REQUEST, REPLY = 4 * DIM + 64, 1000  # bytes of the echo


def tables(parts: list[str] | None, rounds: int, rows: int | None, quick: bool) -> None:
    known: dict[str, Callable[[Path, int, int | None, bool], None]] = {
        "latency": latency, "batch": batch, "ingest": ingest, "clients": clients, "overload": overload, "workers": workers, "peers": peers,
    }  # fmt: skip
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # so that servers do not outlive a run that is ended
    print("## The server\n")
    for part in parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="vecdb-serving-", dir=os.environ.get("VECDB_BENCH_DIR")) as folder:
            known[part](Path(folder), 1 if quick else rounds, rows, quick)


# -- data --------------------------------------------------------------------------------------------------------


def clustered(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 384) rows and (m, 384) queries like them, of length one: 1,000 clusters in 32 dimensions, with noise in all of them."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((1000, 32), np.float32)
    spread = rng.standard_normal((32, DIM), np.float32)
    made = np.empty((n + m, DIM), np.float32)
    for start in range(0, n + m, 20_000):
        some = made[start : start + 20_000]
        some[:] = (centres[rng.integers(0, 1000, len(some))] + 0.6 * rng.standard_normal((len(some), 32), np.float32)) @ spread
        some += 0.3 * rng.standard_normal(some.shape, np.float32)
        some /= np.linalg.norm(some, axis=1)[:, None]
    return made[:n], made[n:]


def payloads_of(first: int, n: int) -> list[dict[str, Any]]:
    return [
        {"title": f"title of document {i}", "year": 1980 + i % 45, "lang": data.LANGUAGES[i % 5]}
        for i in range(first, first + n)
    ]


def built(path: Path, base: np.ndarray, index: str, name: str = "docs") -> None:
    """A collection of a database: ids are row numbers, payloads have three fields."""
    import vecdb

    with vecdb.open(path) as db:
        docs = db.create_collection(name, vecdb.Dense(DIM, index=index))
        for start in range(0, len(base), 50_000):
            some = base[start : start + 50_000]
            docs.upsert(ids=np.arange(start, start + len(some)), vectors=some, payloads=payloads_of(start, len(some)))
        docs.flush()
        docs.merge()


# -- one query ---------------------------------------------------------------------------------------------------------


def echo(port: str) -> None:
    """A server of grpcio that takes bytes and gives others, and knows no messages."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    reply = os.urandom(REPLY)
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: reply)
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("echo.Echo", {"Call": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


@contextlib.contextmanager
def echoing() -> Iterator[Callable[[], Any]]:
    """A call of such a server in a process of its own."""
    import grpc

    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.serving", "echo", str(port)], cwd=HERE.parent)
    try:
        listening(port, process)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call, request = channel.unary_unary("/echo.Echo/Call"), os.urandom(REQUEST)
            call(request)
            yield lambda: call(request)
    finally:
        process.terminate()
        process.wait()


def latency(work: Path, rounds: int, rows: int | None, quick: bool) -> None:
    import vecdb

    n, calls = (5_000, 300) if quick else (20_000, 2_000)
    base, queries = clustered(n, 1000)
    (work / "served").mkdir()
    built(work / "served" / "data", base, "hnsw")
    shutil.copytree(work / "served" / "data", work / "embedded")
    spent: list[dict[str, np.ndarray]] = []
    with echoing() as echoed, vecdb.open(work / "embedded") as db, Server(VECDB, work / "served") as server:
        here, there = db["docs"], vecdb.connect(f"grpc://127.0.0.1:{server.port}")["docs"]
        programs: dict[str, Callable[[np.ndarray], Any]] = {
            "echo of as many bytes": lambda q: echoed(),
            "embedded search": lambda q: here.search(q, k=K),
            "server": lambda q: there.search(q, k=K),
        }
        for turn in range(rounds + 1):
            times: dict[str, list[float]] = {name: [] for name in programs}
            for i in range(calls):
                for name, call in programs.items():
                    started = time.perf_counter()
                    call(queries[i % len(queries)])
                    times[name].append(time.perf_counter() - started)
            if turn:  # the first one warms
                spent.append({name: 1e3 * np.array(each) for name, each in times.items()})

    def median(name: str, percent: float) -> float:
        return statistics.median(float(np.percentile(each[name], percent)) for each in spent)

    print(
        f"### One query over loopback: {n:,} x {DIM}, graph, k={K}, payloads of three fields, one client (`--parts latency`)\n"
    )
    head("call", "p50, ms", "p99, ms")
    for name in programs:
        row(name, f"{median(name, 50):.3f}", f"{median(name, 99):.3f}")
    above = [
        float(np.median(each["server"]) - np.median(each["echo of as many bytes"]) - np.median(each["embedded search"]))
        for each in spent
    ]
    row("server less echo less embedded", f"{statistics.median(above):.3f}", "")
    print(
        f"\n{len(spent)} rounds of {calls:,} calls of each, which take turns one by one ({', '.join(f'{each:.3f}' for each in above)} ms). "
        f"The echo: grpcio's own server in a process of its own, {REQUEST:,} bytes there and {REPLY:,} back. Asked for: at most 0.3 ms.\n"
    )


# -- batches -------------------------------------------------------------------------------------------------------------


def for_a_while(call: Callable[[int], int], seconds: float) -> float:
    """Things done a second by call(number), which says how many it did."""
    done = number = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < seconds:
        done += call(number)
        number += 1
    return done / spent


def together(call: Callable[[int], int], threads: int, seconds: float) -> float:
    """As `for_a_while`, of several threads."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda number: for_a_while(lambda n: call(n + 7 * number), seconds), range(threads)))


def batch(work: Path, rounds: int, rows: int | None, quick: bool) -> None:
    import vecdb

    n, seconds = (10_000, 1.0) if quick else (100_000, 4.0)
    base, queries = clustered(n, 64 * BATCH)
    (work / "served").mkdir()
    built(work / "served" / "data", base, "flat", "flat")
    built(work / "served" / "data", base, "hnsw", "graph")
    shutil.copytree(work / "served" / "data", work / "embedded")
    kinds = {
        "flat": ("flat", None, "0.90"), "graph, recall 0.95": ("graph", 0.95, "0.75"), "graph, recall 0.99": ("graph", 0.99, "0.75"),
    }  # fmt: skip
    rates: dict[tuple[str, str, bool], list[float]] = {}
    with vecdb.open(work / "embedded") as db, Server(VECDB, work / "served") as server:
        client = vecdb.connect(f"grpc://127.0.0.1:{server.port}")
        for turn in range(rounds + 1):
            for kind, (collection, recall, _) in kinds.items():
                for with_payload in (True, False):
                    for name, docs, threads in (
                        ("embedded", db[collection], 1), ("one", client[collection], 1), ("four", client[collection], 4),
                    ):  # fmt: skip

                        def call(number: int, docs: Any = docs, with_payload: bool = with_payload, recall: Any = recall) -> int:
                            some = queries[number % 64 * BATCH :][:BATCH]
                            found = docs.search_batch(some, k=K, with_payload=with_payload, recall=recall)
                            if with_payload:  # the embedded API reads payloads when they are asked for
                                assert all(hit.payload for hits in found for hit in hits)
                            return BATCH

                        rate = together(call, threads, seconds if turn else 1.0)
                        if turn:
                            rates.setdefault((kind, name, with_payload), []).append(rate)
    print(f"### `search_batch` of {BATCH} queries, {n:,} x {DIM}, k={K} (`--parts batch`)\n")
    head(
        "index",
        "payloads read",
        "embedded, queries/s",
        "server, one call at a time",
        "share",
        "server, four calls at once",
        "share",
        "asked for",
    )
    for kind, (_, _, asked) in kinds.items():
        for with_payload in (True, False):
            here, one, four = (statistics.median(rates[kind, name, with_payload]) for name in ("embedded", "one", "four"))
            cells = f"{here:,.0f}", f"{one:,.0f}", ratio(one, here), f"{four:,.0f}", ratio(four, here)
            row(kind, "yes" if with_payload else "no", *cells, asked)
    print(f"\n{rounds} rounds of {seconds:g} s; the client is one process, whose threads share a connection.\n")


# -- ingest ----------------------------------------------------------------------------------------------------------------


def ingest(work: Path, rounds: int, rows: int | None, quick: bool) -> None:
    import vecdb

    n = 20_000 if quick else 200_000
    steps = {f"{n // 10:,} points in a call": n // 10, "all in one call": n}
    base, payloads = data.vectors(n), payloads_of(0, n)
    ids = np.arange(n)
    rates: dict[tuple[str, str], list[float]] = {}
    number = 0

    def write(db: Any, step: int) -> float:
        warm = db.create_collection("warm", vecdb.Dense(DIM, index="flat"))
        warm.upsert(ids=ids[:1000], vectors=base[:1000], payloads=payloads[:1000])
        docs = db.create_collection("docs", vecdb.Dense(DIM, index="flat"))
        started = time.perf_counter()
        for i in range(0, n, step):
            docs.upsert(ids=ids[i : i + step], vectors=base[i : i + step], payloads=payloads[i : i + step])
        seconds = time.perf_counter() - started
        assert docs.count() == n
        return n / seconds

    for _ in range(rounds):
        for shape, step in steps.items():
            for name in ("embedded", "server"):
                folder, number = work / f"{number}", number + 1
                folder.mkdir()
                if name == "embedded":
                    with vecdb.open(folder / "data") as db:
                        rate = write(db, step)
                else:
                    with Server(VECDB, folder) as server:
                        rate = write(vecdb.connect(f"grpc://127.0.0.1:{server.port}"), step)
                rates.setdefault((shape, name), []).append(rate)
    print(f"### Durable ingest through the server: {n:,} x {DIM} f32, payloads of three fields (`--parts ingest`)\n")
    head("`upsert`", "embedded, points/s", "server, points/s", "share", "rounds, embedded", "rounds, server")
    for shape in steps:
        here, there = rates[shape, "embedded"], rates[shape, "server"]
        low, high = statistics.median(there), statistics.median(here)
        row(
            shape,
            f"{high:,.0f}",
            f"{low:,.0f}",
            ratio(low, high),
            *(", ".join(f"{r:,.0f}" for r in each) for each in (here, there)),
        )
    print("\nEach until it is acknowledged, into a new database. Asked for: 0.60.\n")


# -- many clients ----------------------------------------------------------------------------------------------------------


def clients(work: Path, rounds: int, rows: int | None, quick: bool) -> None:
    n, seconds = (10_000, 12.0) if quick else (100_000, 60.0)
    base, queries = clustered(n, 1000)
    built(work / "data", base, "hnsw")
    np.save(work / "queries.npy", queries)
    plain: dict[str, Any] = {}
    with Server(VECDB, work) as server, Callers(server, 4) as crowd, Callers(server, 1) as single:
        single.run(1, 2, plain)
        quiet = single.run(1, 3, plain)
        crowd.connect(16, plain)
        memory: list[int] = []
        wait = crowd.start(16, seconds, plain)
        for pause in (10.3, seconds - 10.1):
            time.sleep(pause)
            memory.append(server.memory()[0])
        many = wait()
    print(
        f"### 64 clients at once for {seconds:g} s: {n:,} x {DIM}, graph, k={K}, 4 processes of 16 threads (`--parts clients`)\n"
    )
    head("", "answers/s", "p50, ms", "p99, ms", "p99 / p50", "overloaded", "other errors", "RSS at 10 s, MiB", "at the end, MiB")  # fmt: skip
    for name, each, sizes in (("one client", quiet, ["", ""]), ("64 clients", many, [f"{size / MIB:,.0f}" for size in memory])):
        figures = (f"{each.rate:,.0f}", f"{each.ms(50):.2f}", f"{each.ms(99):.2f}", ratio(each.ms(99), each.ms(50)))
        row(name, *figures, f"{each.errors['Overloaded']:,}", each.others, *sizes)
    print("\nAsked for: no errors, p99 at most 10 times p50, memory that does not grow.\n")


def overload(work: Path, rounds: int, rows: int | None, quick: bool) -> None:
    n, seconds = (100_000, 5.0) if quick else (400_000, 20.0)  # so many that the server is slower than its clients
    base, queries = clustered(n, 1000)
    built(work / "data", base, "flat")
    np.save(work / "queries.npy", queries)
    exact = {"exact": True}
    with Server(VECDB, work) as server, Callers(server, 4) as crowd, Callers(server, 1) as single:
        single.run(1, 2, exact)
        quiet = single.run(1, 3, exact)
        crowd.connect(16, exact)
        sustained = crowd.run(16, seconds, exact)
    offered = 2 * sustained.rate
    with Server(VECDB, work) as server, Callers(server, 8, "0") as crowd, Callers(server, 1, "0") as single:
        single.run(1, 2, exact)
        crowd.connect(32, exact)
        time.sleep(1)
        through = single.start(1, seconds + 10, exact)
        wait = crowd.start(32, seconds, exact, rate=offered)
        end = time.time() + 0.3 + seconds
        over, alone = wait(), through()
        grown = server.memory()[0]
    after = recovered(alone.calls, end, 2e-3 * quiet.ms(50))
    print(f"### Twice what was sustained: exact searches of {n:,} x {DIM}; then one client (`--parts overload`)\n")
    head("", "offered/s", "answers/s", "p50, ms", "p99, ms", "shed", "other errors")
    for name, each in (("one client", quiet), ("64 clients", sustained), ("256 clients", over)):
        asked = len(each.calls) + sum(each.errors.values())
        figures = (f"{asked / each.seconds:,.0f}", f"{each.rate:,.0f}", f"{each.ms(50):.2f}", f"{each.ms(99):.2f}")
        row(name, *figures, ratio(each.errors["Overloaded"], asked), each.others)
    said = "not within 10 s" if after is None else f"{after:.2f} s"
    print(
        f"\nThe 256, which do not try again, were to offer {offered:,.0f} a second. A single client's latency was back within twice its quiet p50 after: "
        f"{said} (ten calls in a row, by their median; other errors of that client: {alone.others}). RSS after it: {grown / MIB:,.0f} MiB. "
        "Asked for: no errors but `Overloaded`, and at most 1 s.\n"
    )


def recovered(calls: np.ndarray, end: float, most: float, window: int = 10) -> float | None:
    """Seconds after `end` until the first of `window` calls whose median is no longer than `most` seconds; None when there are none."""
    later = calls[calls[:, 0] >= end]
    for first in range(len(later) - window + 1):
        if np.median(later[first : first + window, 1]) <= most:
            return float(later[first, 0] - end)
    return None


# -- workers ---------------------------------------------------------------------------------------------------------------


def workers(work: Path, rounds: int, rows: int | None, quick: bool) -> None:
    import vecdb

    least, step, seconds = (0.002, 20_000, 3.0) if quick else (0.022, 200_000, 10.0)
    n, took = 0, 0.0
    queries = data.vectors(1000, seed=99)
    np.save(work / "queries.npy", queries)
    with vecdb.open(work / "data", threads=1) as db:
        docs = db.create_collection("docs", vecdb.Dense(DIM, index="flat"))
        while took < least and n < 4_000_000:
            for start in range(n, n + step, 20_000):
                docs.upsert(ids=np.arange(start, start + 20_000), vectors=data.vectors(20_000, seed=start))
            n += step
            docs.flush()
            docs.merge()
            for q in queries[:20]:
                docs.search(q, exact=True)
            times = []
            for q in queries[:30]:
                started = time.perf_counter()
                docs.search(q, exact=True, with_payload=False)
                times.append(time.perf_counter() - started)
            took = statistics.median(times)
    threads = (1, 8)  # of each of 8 processes of clients
    answers: dict[tuple[int, int], list[Answers]] = {(each, count): [] for each in threads for count in (1, 2)}
    for _ in range(rounds):
        for each in threads:
            for count in (1, 2):
                with Server(VECDB, work, "--workers", str(count), "--threads", "1") as server, Callers(server, 8) as crowd:
                    crowd.run(each, 3, {"exact": True})
                    answers[each, count].append(crowd.start(each, seconds, {"exact": True})())
    print(f"### Workers: exact scans of {n:,} x {DIM}, {1e3 * took:.0f} ms by one thread (`--parts workers`)\n")
    head("clients", "workers, of one thread each", "answers/s", "ratio", "p50, ms", "p99, ms", "errors")
    for (each, count), some in answers.items():
        rate, one = (statistics.median(a.rate for a in answers[each, which]) for which in (count, 1))
        cells = (f"{statistics.median(a.ms(percent) for a in some):.1f}" for percent in (50, 99))
        row(8 * each, count, f"{rate:,.1f}", ratio(rate, one), *cells, sum(sum(a.errors.values()) for a in some))
    print(
        f"\n{rounds} rounds of {seconds:g} s, closed loop, 8 processes of clients, a connection for each client. A worker answers those who "
        f"wait in one call, which costs less the more they are; so two workers, each with half of them, do not do twice as much where they "
        f"are few. Asked for: 1.6.\n"
    )


# -- peers ---------------------------------------------------------------------------------------------------------------


def peers(work: Path, rounds: int, rows: int | None, quick: bool, engines: tuple[Engine, ...] | None = None) -> None:
    from .sets import truth_of

    n, seconds = rows or (5_000 if quick else 100_000), 2.0 if quick else 6.0
    base, queries = clustered(n, 200 if quick else 1000)
    truth = truth_of(base, queries, "cosine", K)
    two = Engine("vecdb, two workers", "vecdb", "vecdb", VECDB.settings, ("--workers", "2"), offline=True)
    ready: dict[Engine, tuple[Path, dict[str, Any], float, float]] = {}  # folder, setting, recall, seconds of the load
    failed: dict[str, str] = {}
    for engine in engines or (VECDB, two, *PEERS):
        folder = work / engine.name
        folder.mkdir()
        np.save(folder / "base.npy", base)
        np.save(folder / "queries.npy", queries)
        try:
            if engine.offline:
                load = _load(engine, folder, 0)
            else:
                with Server(engine, folder) as server:
                    load = _load(engine, folder, server.port)
            setting, recall = _tuned(engine, folder, lambda found: float(truth.recalls(found, K).mean()))
            ready[engine] = (folder, setting, recall, load)
        except (OSError, subprocess.SubprocessError) as error:
            failed[engine.name] = str(error)[:300]
    answers: dict[tuple[Engine, int], list[Answers]] = {}
    for _ in range(rounds):
        for engine in list(ready):
            folder, setting, _, _ = ready[engine]
            try:
                with Server(engine, folder) as server, Callers(server, 4) as callers:
                    callers.run(4, seconds / 2, setting)  # warms
                    answers.setdefault((engine, 1), []).append(callers.run(1, seconds, setting, processes=1))
                    answers.setdefault((engine, 16), []).append(callers.run(4, seconds, setting))
            except OSError as error:
                failed[engine.name] = str(error)[:300]
                del ready[engine]
    print(f"### Servers of peers: {n:,} x {DIM}, cosine, HNSW, k={K}, ids and distances (`--parts peers`)\n")
    head("server", "setting", "recall", "load, s", *(f"{what}, {many}" for many in ("1 client", "16 clients") for what in ("queries/s", "p50, ms", "p99, ms")), "errors")  # fmt: skip
    for engine, (_, setting, recall, load) in ready.items():
        cells, errors = [], 0
        for many in (1, 16):
            each = answers[engine, many]
            cells += [f"{statistics.median(some.rate for some in each):,.0f}"]
            cells += [f"{statistics.median(some.ms(percent) for some in each):.2f}" for percent in (50, 99)]
            errors += sum(sum(some.errors.values()) for some in each)
        row(
            engine.name,
            ", ".join(f"{key} {value}" for key, value in setting.items()),
            f"{recall:.3f}",
            f"{load:,.0f}",
            *cells,
            errors,
        )
    for name, why in failed.items():
        print(f"\n{name}: {why}")
    ours = [engine for engine in ready if engine.offline]
    if ours:
        print()
        head("vecdb is so many times as fast as", *(f"{what}, {many}" for many in ("1 client", "16 clients") for what in ("queries/s", "p99")))  # fmt: skip
        for mine in ours:
            for engine in (each for each in ready if not each.offline):
                cells = []
                for many in (1, 16):
                    rates = [statistics.median(each.rate for each in answers[one, many]) for one in (mine, engine)]
                    slow = [statistics.median(each.ms(99) for each in answers[one, many]) for one in (mine, engine)]
                    cells += [ratio(rates[0], rates[1]), ratio(slow[1], slow[0])]
                row(engine.name + ("" if mine is ours[0] else f" ({mine.name})"), *cells)
    print(
        f"\n{rounds} rounds of {seconds:g} s each, one server at a time, started anew in each; 16 clients are 4 processes of 4 threads. Settings: the first "
        f"of each engine's whose recall over {len(queries):,} queries is at least {RECALL}. Graphs of peers: M 16, efConstruction 200. Load: peers through their "
        "servers, vecdb by the embedded API. Asked for: at least 2 times the queries a second of each, with 1 and with 16.\n"
    )


def _ran(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=3600)
    if done.returncode:
        raise OSError(f"{command[2]} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout


def _load(engine: Engine, folder: Path, port: int) -> float:
    return float(json.loads(_ran(engine.command("load", folder, port)).strip().splitlines()[-1])["seconds"])


def _tuned(engine: Engine, folder: Path, recall_of: Callable[[np.ndarray], float]) -> tuple[dict[str, Any], float]:
    """The first setting that is good enough, and its recall; the last one when none is."""
    with contextlib.ExitStack() as stack:
        if not engine.keeps:
            callers = stack.enter_context(Callers(stack.enter_context(Server(engine, folder)), 1))
        for setting in engine.settings:
            if engine.keeps:
                with Server(engine, folder) as server:
                    _ran(engine.command("keep", folder, server.port, json.dumps(setting)))
                with Server(engine, folder) as server, Callers(server, 1) as asked:
                    recall = recall_of(asked.found(setting))
            else:
                recall = recall_of(callers.found(setting))
            if recall >= RECALL:
                break
    return setting, recall


if __name__ == "__main__":
    {each.__name__: each for each in (echo,)}[sys.argv[1]](*sys.argv[2:])
