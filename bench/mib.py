"""Searches by bits beside memory, faiss and BLAS, one thread; and through the API. Run by `python -m bench mib [--parts …] [--rounds R]`.

Codes: random ones, more than a processor keeps at hand: how fast they are scanned, as a share of the rate at which as many bytes
(of codes alone, and with the factors) are read, and beside faiss `IndexBinaryFlat`, which compares bits with bits. Texts: the
least short list of those tried whose recall of the ten nearest is 0.99, beside exact searches and faiss `IndexRaBitQFastScan`
with rows compared exactly after it, its own list chosen likewise. Parameters of both are chosen on queries that are not measured.
Encoders: how long short lists have to be under each, beside what `auto` chose, and under bits that are compared with bits.
Encoding: rows a second. Memory: what a build takes beside what it makes, and what a process holds that searches a database on
disk. Through the API: recall asked and delivered of all sets, filters that allow some rows, drawn at random or one after
another, and threads that search at once. Exported codes: bytes and requests of a query.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from vecdb_index.codec import planes
from vecdb_index.codec.bits import Encoder
from vecdb_index.codec.int4 import by_lines
from vecdb_index.contract import Budget, Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.kernels.distances import read_only
from vecdb_index.mib.backend import BACKEND
from vecdb_index.mib.build import TRIED, short_lists
from vecdb_index.mib.params import MIB
from vecdb_index.mib.scan import Lists, scan
from vecdb_index.mib.search import MIBSearcher
from vecdb_index.mib.tuning import tuned
from vecdb_index.warmup import warmup

import vecdb

from .__main__ import head, interleaved, ratio, row
from .flat import read
from .sets import Judged, data_sets, judged

K, BATCH, ASKED, CLIENTS = 10, 64, 0.99, 64
_LISTED = 3000  # rows among which the nearest are sought
LISTS = (10, 20, 30, 40, 50, 70, 100, 140, 200, 300, 500, 1000, 2000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.mib")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    warmup()
    for part in options.parts:
        title, measure, kinds = PARTS[part]
        print(f"## {title} (`--parts {part}`)\n")
        for each in data_sets(kinds, options.rows) if kinds else [options.rows]:
            measure(each, options.rounds)
        print()


def _faiss() -> Any:
    """On one thread. Ends the program where it is not installed."""
    try:
        import faiss
    except ImportError:
        sys.exit("faiss is not installed: pip install 'vecdb[bench]'")
    faiss.omp_set_num_threads(1)
    return faiss


def _codes(rows: int | None, rounds: int) -> None:
    head(
        "codes",
        "one: share of reading codes",
        "with factors",
        "one: times as fast as faiss binary",
        f"batch of {BATCH}: likewise",
        "two threads: times one",
    )
    for n, d in ((2_000_000, 384), (1_000_000, 1024)):
        _codes_of(_faiss(), min(n, rows or n), d, rounds)


def _judgements(_: int | None, __: int) -> None:
    head("set", "exact", "one bit", "four bits")
    for judgement in judged():
        _judged(judgement)


def _codes_of(faiss: Any, n: int, d: int, rounds: int) -> None:
    rng, blocks = np.random.default_rng(0), -(-n // 32)
    codes = by_lines((blocks, 4 * d), np.uint8).reshape(blocks, d // 8, 32)
    codes[:] = rng.integers(0, 256, codes.shape, dtype=np.uint8)
    factors = by_lines((blocks, 64), np.float32).reshape(blocks, 2, 32)
    factors[:, 0] = 1 + 0.05 * rng.random((blocks, 32))
    binary = faiss.IndexBinaryFlat(d)
    for start in range(0, n, 1 << 18):
        binary.add(rng.integers(0, 256, (min(1 << 18, n - start), d // 8), dtype=np.uint8))
    none = Rows(np.zeros((0, d), np.float32), np.zeros(0, np.float32), "ip")
    _, tables, terms, _ = Encoder.of(none, np.arange(0), "none").ask(rng.standard_normal((BATCH, d)).astype(np.float32))
    bits = rng.integers(0, 256, (BATCH, d // 8), dtype=np.uint8)
    about = read_only(codes), read_only(factors), n, read_only(np.zeros(0, np.uint64)), 0, blocks, tuned(d)

    def ours(m: int) -> None:
        scan(tables[:m], terms[:m], *about, *Lists.of(m, 100))

    def divided() -> None:
        halves = [(tables[q : q + BATCH // 2], terms[q : q + BATCH // 2]) for q in (0, BATCH // 2)]
        list(pool.map(lambda half: scan(*half, *about, *Lists.of(BATCH // 2, 100)), halves))

    pool = ThreadPoolExecutor(2)
    words, more = codes.reshape(-1).view(np.int64), factors.reshape(-1).view(np.int64)
    calls = {
        "read": lambda: read(words), "read all": lambda: (read(words), read(more)), "one": lambda: ours(1),
        "faiss": lambda: binary.search(bits[:1], K), "batch": lambda: ours(BATCH), "faiss batch": lambda: binary.search(bits, K),
        "divided": divided,
    }  # fmt: skip
    times = interleaved(rounds, calls)
    pool.shutdown()
    shares = ratio(times["read"], times["one"]), ratio(times["read all"], times["one"])
    faster = ratio(times["faiss"], times["one"]), ratio(times["faiss batch"], times["batch"])
    row(f"{n:,} x {d}", *shares, *faster, ratio(times["batch"], times["divided"]))


def _encoders(each: Any, _: int) -> None:
    base = np.ascontiguousarray(each.base / np.linalg.norm(each.base, axis=1, keepdims=True))
    queries = np.ascontiguousarray(each.queries[:512] / np.linalg.norm(each.queries[:512], axis=1, keepdims=True), np.float32)
    stored, n = Rows(base, np.linalg.norm(base, axis=1), "cosine"), len(base)
    true, sample = FlatSearcher(stored).search(queries, K).rows, np.arange(0, n, max(1, n // 16_384))

    def places(listed: np.ndarray) -> np.ndarray:
        """Where the nearest of all queries lie, ascending; as many as are listed if they do not."""
        found = (listed[:, :, None] == true[:, None]).argmax(axis=1) + np.where(
            (listed[:, :, None] == true[:, None]).any(axis=1), 0, listed.shape[1]
        )
        return np.sort(found.reshape(-1))

    def told(name: str, listed: np.ndarray, searcher: MIBSearcher | None = None) -> None:
        where = places(listed)
        lengths = [int(where[int(np.ceil(share * len(where))) - 1]) + 1 for share in (0.9, 0.95, ASKED)]
        row(f"{each.name.split()[0]}: {name}", *lengths, "" if searcher is None else _by_margin(searcher, queries, true))

    head("encoder", "0.90", "0.95", str(ASKED), f"{ASKED}, by a margin, on the mean")
    build = BACKEND.build(stored, {}, MIB(bits=1), Budget(), lambda share: None)
    chosen = MIBSearcher(build, {}, stored, MIB(bits=1))
    by_mean = [(rotation, "mean") for rotation in ("none", "hadamard", "itq", "pca")]
    for rotation, centre in (*by_mean, ("none", "median"), ("itq", "median")):
        encoder = Encoder.of(stored, sample, rotation, 0, centre)
        told(f"{rotation}, {centre}", short_lists(encoder, stored, queries, _LISTED))
    told(f"auto: {chosen.encoder.rotation}", short_lists(chosen.encoder, stored, queries, _LISTED), chosen)
    half = Encoder.of(stored, sample, "none", prefix=base.shape[1] // 2)
    told("none, half of the numbers", short_lists(half, stored, queries, _LISTED))
    told("none, four bits", short_lists(Encoder.of(stored, sample, "none"), stored, queries, _LISTED, 4))
    rows, asked = (np.packbits(some > 0, axis=1) for some in (base, queries))
    far = np.stack([np.bitwise_count(rows ^ query).sum(axis=1, dtype=np.int64) for query in asked])
    told("signs, compared with signs", np.argsort(far, axis=1, kind="stable")[:, :_LISTED])


def _by_margin(searcher: MIBSearcher, queries: np.ndarray, true: np.ndarray) -> str:
    """The mean length of lists by a margin that find as much as is asked."""
    low, high = K, 500
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _recall(searcher.look(queries, K, middle).rows, true) >= ASKED else (middle + 1, high)
    return f"{searcher.look(queries, K, low).seen['rows in short lists'] / len(queries):.0f}"


def _memory(each: Any, _: int) -> None:
    """By the allocations of NumPy, and by what the system says of a process that only searches."""
    base = np.ascontiguousarray(each.base, np.float32)
    rows = Rows(base, np.linalg.norm(base, axis=1), "cosine")
    learned = BACKEND.train(rows, MIB(bits=1), Budget())
    tracemalloc.start()
    arrays = BACKEND.build(rows, learned, MIB(bits=1), Budget(), lambda share: None)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    made = sum(array.nbytes for array in arrays.values())
    beside, made = (most - made) / 2**20, made / 2**20
    print(f"a build of {len(base):,} x {base.shape[1]} took {beside:.1f} MiB beside the {made:.1f} MiB it made\n")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "db")
        with vecdb.open(path) as db:
            docs = db.create_collection("docs", vecdb.Dense(base.shape[1], index=MIB()))
            docs.upsert(ids=np.arange(len(base)), vectors=base)
            docs.flush()
        np.save(Path(folder) / "queries.npy", each.queries[:100])
        told = subprocess.run([sys.executable, "-c", _HELD, path, folder], stdout=subprocess.PIPE, text=True, check=True)
    anonymous, codes, touched = (float(number) for number in told.stdout.split())
    print(
        f"searches of the {base.nbytes / 2**20:.0f} MiB on disk: {anonymous / 2**20:.1f} MiB of the process's own memory, and of "
        f"files {codes / 2**20:.1f} MiB of codes, together {(anonymous + codes) / base.nbytes:.3f} of the vectors' bytes; with the "
        f"pages of vectors that 100 queries touch, which the system may drop at any time, {touched / base.nbytes:.3f}\n"
    )


# In a process of its own: what it holds beyond what it held when the database was open and nothing was searched.
_HELD = """
import sys
from pathlib import Path
import numpy as np
import vecdb
from vecdb.index import MIB
def held(name):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
queries = np.load(Path(sys.argv[2]) / "queries.npy")
with vecdb.open(":memory:", threads=1) as other:  # kernels, which every process holds
    warm = other.create_collection("warm", vecdb.Dense(queries.shape[1], index=MIB(bits=1)))
    warm.upsert(ids=range(40_000), vectors=np.random.default_rng(0).standard_normal((40_000, queries.shape[1])))
    warm.flush()
    warm.search(queries[0])
with vecdb.open(sys.argv[1], threads=1, read_only=True) as db:
    docs = db["docs"]
    own, all_ = held("RssAnon"), held("VmRSS")
    for query in queries:
        docs.search(query, 10)
    info = docs.info().indexes["vector"]
    print(held("RssAnon") - own, info.bytes, held("VmRSS") - all_)
"""


def _delivered(rows: int | None, _: int) -> None:
    """Through the API, with what the search expected and the lower bound of what 512 queries show."""
    head("collection", *(f"{asked}: expected, delivered (95 % interval)" for asked in (0.9, 0.95, 0.99)))
    sets = [
        (each.name.split()[0], each.base, each.queries) for each in data_sets(["text", "text200k", "minilm50k", "minilm"], rows)
    ]
    sets += [(each.name, each.base, each.queries) for each in judged()]
    for name, base, queries in sets:
        queries = np.ascontiguousarray(queries[:512], np.float32)
        with vecdb.open(":memory:", threads=2) as db:
            docs = db.create_collection("docs", vecdb.Dense(base.shape[1], index=MIB()))
            docs.upsert(ids=np.arange(len(base)), vectors=base)
            docs.flush()
            exact, cells = docs.search_batch(queries, K, exact=True).ids, []
            for asked in (0.9, 0.95, 0.99):
                found = [docs.search(query, K, recall=asked, explain=True) for query in queries]
                each_recall = [len(set(hits.ids) & set(best)) / K for hits, best in zip(found, exact.tolist(), strict=True)]
                mean, error = np.mean(each_recall), 1.96 * np.std(each_recall) / np.sqrt(len(queries))
                ways = {part.way.split(",")[0] for hits in found for part in hits.plan.parts}
                how = "" if ways == {"index"} else f", {' and '.join(sorted(ways))}"
                cells.append(f"{found[0].plan.recall_expected:.3f}, {mean:.4f} (± {error:.4f}){how}")
        row(f"{name}, {len(base):,} x {base.shape[1]}", *cells)


def _judged(each: Judged) -> None:
    rows = Rows(np.ascontiguousarray(each.base), np.linalg.norm(each.base, axis=1), "cosine")
    exact = each.ndcg(FlatSearcher(rows).search(each.queries, K).rows)
    cells = [f"{exact:.4f}"]
    for bits in (1, 4):
        params = MIB(bits=bits)
        searcher = MIBSearcher(BACKEND.build(rows, {}, params, Budget(), lambda share: None), {}, rows, params)
        found = each.ndcg(searcher.look(each.queries, K, 50).rows)
        cells.append(f"{found:.4f} ({found / exact:.2%}; {searcher.compared(K, 50)} rows compared)")
    row(each.name, *cells)


def _encoding(_: int | None, rounds: int) -> None:
    """Codes of 100,000 rows of 384 numbers. Learning the encoder is apart."""
    n, d = 100_000, 384
    x = np.random.default_rng(0).standard_normal((n, d), np.float32)
    rows = Rows(x, np.linalg.norm(x, axis=1), "cosine")
    head("rotation", "one bit: rows/s", "four bits: rows/s", "learned in, s")
    for rotation in ("none", "hadamard", "itq"):
        started = time.perf_counter()
        encoder = Encoder.of(rows, np.arange(0, n, 12), rotation)
        learned = time.perf_counter() - started
        one, four = encoder.room(n), planes.room(encoder, n, 4)
        calls = {
            "one": partial(encoder.fill, rows, 0, n, *one),
            "four": partial(planes.fill, encoder, rows, 0, n, *four),
        }
        times = interleaved(rounds, calls)
        row(rotation, f"{n / times['one']:,.0f}", f"{n / (times['one'] + times['four']):,.0f}", f"{learned:.1f}")


def _clients(each: Any, rounds: int) -> None:
    """Searches one by one from many threads, beside what as many together take; and one alone, of one thread and of two."""
    queries = np.ascontiguousarray(each.queries[: BATCH * 8], np.float32)
    few, waits, same = queries[:CLIENTS], list[float](), list[bool]()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "db")
        with vecdb.open(path, threads=2) as db:
            docs = db.create_collection("docs", vecdb.Dense(each.base.shape[1], index=MIB()))
            for start in range(0, len(each.base), 1 << 17):
                some = slice(start, start + (1 << 17))
                docs.upsert(ids=np.arange(len(each.base))[some], vectors=each.base[some])
            docs.flush()
            docs.merge()
        alone: dict[int, float] = {}
        for threads in (1, 2):
            with vecdb.open(path, threads=threads) as db:
                docs = db["docs"]
                if threads == 1:
                    together = interleaved(rounds, {"batch": partial(docs.search_batch, few, K)})["batch"]
                alone[threads] = interleaved(rounds, {"one": lambda docs=docs: [docs.search(query, K) for query in few]})["one"]
                hits = [docs.search(query, K).ids for query in queries]

                def client(number: int, docs: Any = docs, hits: Any = hits) -> None:
                    for at in range(number, len(queries), CLIENTS):
                        started = time.perf_counter()
                        ids = docs.search(queries[at], K).ids
                        waits.append(time.perf_counter() - started)
                        same.append(ids == hits[at])

                for _ in range(rounds if threads == 2 else 0):
                    with ThreadPoolExecutor(CLIENTS) as pool:
                        list(pool.map(client, range(CLIENTS)))
    p50, p99 = (1e3 * np.percentile(waits, at) for at in (50, 99))
    print(
        f"{each.name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms; {CLIENTS} together take one thread {1e3 * together:.1f} ms, so p99 is "
        f"{p99 / (500 * together):.2f} times what two threads would need; the same hits as alone: {np.mean(same):.2%}; one search "
        f"at a time {1e3 * alone[1] / CLIENTS:.2f} ms of one thread, {1e3 * alone[2] / CLIENTS:.2f} of two\n"
    )


def _many_clients(each: Any, rounds: int) -> None:
    """With ten rows about each: codes that are more than caches hold."""
    base = each.base / np.linalg.norm(each.base, axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    near = [base + 0.05 * (i > 0) * rng.standard_normal(base.shape, dtype=np.float32) for i in range(10)]
    _clients(replace(each, kind=f"{each.kind} ten times over", base=np.concatenate(near).astype(np.float32)), rounds)


def _recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([np.isin(mine, best).sum() / K for mine, best in zip(found, true, strict=True)]))


def _texts(each: Any, rounds: int) -> None:
    faiss = _faiss()
    base = np.ascontiguousarray(each.base / np.linalg.norm(each.base, axis=1, keepdims=True))
    stored = Rows(base, np.linalg.norm(base, axis=1), "cosine")
    queries = np.ascontiguousarray(each.queries / np.linalg.norm(each.queries, axis=1, keepdims=True))
    tune, queries = queries[::2], queries[1::2][: BATCH * 8]
    exact = FlatSearcher(stored)
    best, asked = exact.search(tune, K).rows, exact.search(queries, K).rows
    started = time.perf_counter()
    arrays = BACKEND.build(stored, {}, MIB(), Budget(), lambda share: None)
    built = time.perf_counter() - started
    searcher = MIBSearcher(arrays, {}, stored, MIB())
    fast = faiss.IndexRaBitQFastScan(base.shape[1], faiss.METRIC_INNER_PRODUCT)
    fast.train(base)
    fast.add(base)
    refined = faiss.IndexRefineFlat(fast, faiss.swig_ptr(base))

    def of_faiss(some: np.ndarray, short: int) -> np.ndarray:
        refined.k_factor = short / K
        found: np.ndarray = refined.search(some, K)[1]
        return found

    ours = next((c for c in LISTS if _recall(searcher.look(tune, K, c).rows, best) >= ASKED), LISTS[-1])
    theirs = next((c for c in LISTS if _recall(of_faiss(tune, c), best) >= ASKED), LISTS[-1])
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)

    def blas() -> np.ndarray:
        scores = queries[:BATCH] @ base.T
        some = np.argpartition(-scores, K, axis=1)[:, :K]
        return np.take_along_axis(scores, some, 1)

    turn = iter(range(1 << 60))

    def one() -> np.ndarray:
        q = next(turn) % len(queries)
        return queries[q : q + 1]

    few = range(32)
    calls = {
        "one": lambda: [searcher.look(one(), K, ours) for _ in few], "faiss flat": lambda: [flat.search(one(), K) for _ in few],
        "faiss RaBitQ": lambda: [of_faiss(one(), theirs) for _ in few], "exact": lambda: [exact.search(one(), K) for _ in few],
        "batch": lambda: searcher.look(queries[:BATCH], K, ours), "faiss flat batch": lambda: flat.search(queries[:BATCH], K),
        "faiss RaBitQ batch": lambda: of_faiss(queries[:BATCH], theirs), "blas": blas,
        "exact batch": lambda: exact.search(queries[:BATCH], K),
    }  # fmt: skip
    times = interleaved(rounds, calls)
    print(
        f"{each.name}: rotation {searcher.encoder.rotation}, built in {built:.1f} s; a query takes "
        f"{times['one'] / len(few) * 1e6:.0f} us here, of a batch {times['batch'] / BATCH * 1e6:.0f}. Short lists: {ours} here, "
        f"{theirs} of faiss; recall {_recall(searcher.look(queries, K, ours).rows, asked):.4f} and "
        f"{_recall(of_faiss(queries, theirs), asked):.4f}\n"
    )
    head("times as fast as", "one query", f"a batch of {BATCH}")
    row("faiss flat", ratio(times["faiss flat"], times["one"]), ratio(times["faiss flat batch"], times["batch"]))
    row("NumPy's BLAS", "", ratio(times["blas"], times["batch"]))
    row(
        "faiss RaBitQFastScan, refined",
        ratio(times["faiss RaBitQ"], times["one"]),
        ratio(times["faiss RaBitQ batch"], times["batch"]),
    )
    row("our exact search", ratio(times["exact"], times["one"]), ratio(times["exact batch"], times["batch"]))
    print("\nWhat `auto` saw: shares of the ten nearest in short lists of 10, 20, 50, 100 and 200 rows\n")
    head("rotation", "10", "20", "50", "100", "200")
    for name, shares in zip(TRIED, arrays["trial"], strict=False):
        row(name, *(f"{share:.3f}" if share >= 0 else "not tried" for share in shares))


def _api(each: Any, rounds: int) -> None:
    """A collection of the texts with an index of bits."""
    queries, n = np.ascontiguousarray(each.queries[: BATCH * 8], np.float32), len(each.base)
    order = np.random.default_rng(0).permutation(n)
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", vecdb.Dense(each.base.shape[1], index=MIB()))
        docs.upsert(ids=np.arange(n), vectors=each.base, payloads=[{"at": i, "drawn": int(order[i])} for i in range(n)])
        docs.flush()

        def search(**how: Any) -> Any:
            return docs.search_batch(queries, K, with_payload=False, **how)

        exact = search(exact=True)
        head("recall asked", "delivered", "µs a query of a batch", "exact, µs")
        for asked in (0.9, 0.95, 0.99):
            times = interleaved(rounds, {"bits": lambda asked=asked: search(recall=asked), "exact": lambda: search(exact=True)})
            about = (f"{times[name] / len(queries) * 1e6:.0f}" for name in ("bits", "exact"))
            row(asked, f"{_recall(search(recall=asked).ids, exact.ids):.4f}", *about)
        print()
        head("allowed", "drawn at random: time ÷ without a filter", "recall", "one after another: time", "recall")
        for share in (0.1, 0.01, 0.001):
            cells = []
            for field in ("drawn", "at"):
                where = vecdb.F(field) < int(n * share)
                times = interleaved(rounds, {"all": lambda: search(), "some": lambda where=where: search(where=where)})
                found, right = search(where=where), search(where=where, exact=True)
                assert (found.lengths == right.lengths).all()
                cells += [ratio(times["some"], times["all"]), f"{_recall(found.ids, right.ids):.4f}"]
            row(f"{share:.1%}", *cells)


def _afar(each: Any, _: int) -> None:
    """Bytes and requests of queries without a cache, each beside what the bound allows; nothing here is a time."""
    queries, n = np.ascontiguousarray(each.queries[:64], np.float32), len(each.base)
    with tempfile.TemporaryDirectory() as folder, vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", vecdb.Dense(each.base.shape[1], index=MIB()))
        docs.upsert(ids=np.arange(n), vectors=each.base, payloads=[{"at": i} for i in range(n)])
        docs.flush()
        docs.merge()  # one object
        done = docs.export_codes(folder)
        exact = docs.search_batch(queries, K, exact=True, with_payload=False).ids
        print(
            f"{each.name}: {n:,} x {each.base.shape[1]}, {done.bytes / 1e6:.1f} MB of files, {each.base.nbytes / 1e6:.1f} MB of vectors\n"
        )
        head("recall asked", "delivered", "opening: bytes", "requests", "a query: bytes", "requests", "rows in its short list")
        for asked in (0.9, 0.95, 0.99):
            with vecdb.open_codes(folder) as there:
                search = partial(there.search, k=K, recall=asked, with_payload=False, explain=True)
                first, again = search(queries[0]).plan, search(queries[0]).plan
                hits = [search(query) for query in queries]
                read = [hit.plan.transfer for hit in hits]
                row(
                    asked, f"{_recall(np.array([hit.ids for hit in hits]), exact):.4f}",
                    f"{first.transfer.bytes - again.transfer.bytes:,}", first.transfer.requests - again.transfer.requests,
                    f"{np.mean([one.bytes for one in read]):,.0f}", f"{np.mean([one.requests for one in read]):.1f}",
                    f"{np.mean([sum(part.seen.get('rows in short lists', 0) for part in hit.plan.parts) for hit in hits]):.0f}",
                )  # fmt: skip


_TEXTS = ["text", "text200k", "minilm50k", "minilm"]
# What is printed above each part, what measures it, and the sets that it is measured of.
PARTS: dict[str, tuple[str, Callable[[Any, int], None], list[str]]] = {
    "codes": ("Codes alone, k=10, short lists of 100, one thread", _codes, []),
    "texts": (f"Texts, recall@{K} of at least {ASKED} on queries that chose nothing, one thread", _texts, _TEXTS),
    "encoders": (f"Encoders: rows in short lists that find so much of the {K} nearest, of 512 queries", _encoders, _TEXTS),
    "judged": ("nDCG@10 of judged texts: short lists of 50, then rows", _judgements, []),
    "encoding": ("Encoding, factors included, one thread", _encoding, []),
    "memory": ("Memory, one thread", _memory, ["text", "text200k"]),
    "delivered": ("Recall asked and delivered: queries that no build has seen", _delivered, []),
    "api": ("Through the API", _api, ["text"]),
    "clients": (f"{CLIENTS} threads that search at once, two of kernels", _clients, ["text", "text200k"]),
    "many": (f"{CLIENTS} threads that search two million rows at once, two of kernels", _many_clients, ["text200k"]),
    "afar": ("Exported codes, searched from afar: what a query reads, counted", _afar, ["text"]),
}

if __name__ == "__main__":
    main()
