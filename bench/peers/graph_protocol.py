"""One engine's process in the graph benchmark: builds, says how long it took, then answers passes named by a setting."""

import json
import os
import sys
import time

import numpy as np


def serve(build, search):
    """build(base, metric) -> index; search(index, queries, setting) -> (m, 10) rows."""
    folder, metric = sys.argv[1], sys.argv[2]
    base, queries = np.load(f"{folder}/base.npy"), np.load(f"{folder}/queries.npy")
    started, cpu = time.perf_counter(), time.process_time()
    index = build(base, metric)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}), flush=True)
    for line in sys.stdin:
        setting = float(line)
        search(index, queries[:100], setting)  # warm
        started, cpu = time.perf_counter(), time.process_time()
        found = search(index, queries, setting)
        seconds, spent = time.perf_counter() - started, time.process_time() - cpu
        path = f"{folder}/found-{os.getpid()}.npy"
        np.save(path, np.asarray(found, np.int64))
        print(json.dumps({"seconds": seconds, "cpu": spent, "ids": path}), flush=True)
