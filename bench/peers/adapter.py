"""One engine in a process of its own: `python SCRIPT.py NAME FOLDER METRIC THREADS BUILD`, where a script has its adapters.

An adapter has `fit`, `set_query_params`, `query_batch`, `query` and `bytes_on_disk`, much as ann-benchmarks' BaseANN. FOLDER
holds base.npy, tune.npy and test.npy; BUILD is JSON. The program builds, says what that took, and then answers one pass a line;
the other side of the pipe is `bench/engines.py`. NumPy only; an adapter imports its library in `fit`.
"""

import json
import os
import resource
import sys
import time

import numpy as np


class Adapter:
    """metric: cosine, ip or l2. Keyword arguments are the parameters of the build."""

    warm = None  # where something is compiled, once on a machine: the setting of a small search that compiles it all
    threads = 1

    def __init__(self, metric, folder):
        self.metric, self.folder = metric, folder

    def fit(self, base, threads, **build): ...

    def set_query_params(self, **params): ...

    def set_threads(self, threads):
        self.threads = threads

    def query_batch(self, queries, k):
        """(m, k) rows."""
        return np.stack([self.query(query, k) for query in queries])

    def query(self, query, k):
        return self.query_batch(query[None], k)[0]

    def bytes_on_disk(self):
        return None


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(adapters):
    """adapters: name -> class."""
    sys.path.pop(0)  # the folder of the peers has files that are named like libraries
    name, folder, metric, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    build = json.loads(sys.argv[5])
    adapter = adapters[name](metric, folder)
    if adapter.warm is not None:
        small = np.random.default_rng(0).standard_normal((3000, 96), np.float32)
        first = adapters[name](metric, folder)
        first.fit(small, threads, **build)
        first.set_query_params(**first.warm)
        first.query_batch(small[:100], 10)
    base = np.load(f"{folder}/base.npy")
    queries = {part: np.load(f"{folder}/{part}.npy") for part in ("tune", "test")}
    before = resident()
    started, cpu = time.perf_counter(), time.process_time()
    adapter.fit(base, threads, **build)
    took = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = {"resident": resident() - before, "peak": peak - before, "disk": adapter.bytes_on_disk(), "rows": len(base)}
    print(json.dumps({**took, **memory}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        asked, k = queries[request["queries"]][: request["first"]], request["k"]
        adapter.set_threads(request["threads"])
        adapter.set_query_params(**request["params"])
        adapter.query_batch(asked[:100], k)  # warm
        times = []
        started, cpu = time.perf_counter(), time.process_time()
        if request["single"]:
            found = []
            for query in asked:
                begun = time.perf_counter()
                found.append(adapter.query(query, k))
                times.append(time.perf_counter() - begun)
        else:
            found = adapter.query_batch(asked, k)
        took = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
        rows = np.full((len(asked), k), -1, np.int64)
        for row, mine in zip(rows, found, strict=True):
            row[: len(mine)] = np.asarray(mine)[:k].astype(np.int64)
        path = f"{folder}/found-{os.getpid()}.npy"
        np.save(path, rows)
        quantiles = np.percentile(times, [50, 95, 99]).tolist() if times else None
        print(json.dumps({**took, "ids": path, "quantiles": quantiles, "resident": resident() - before}), flush=True)
