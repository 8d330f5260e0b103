"""An engine's process in the benchmarks of graphs and filters: builds, says how long it took, then answers passes, one a line.

The other side of the pipe is `bench/engines.py`. NumPy only.
"""

import json
import os
import sys
import time

import numpy as np


def serve(build, search):
    """build(base, metric) -> index; search(index, queries, setting) -> (m, 10) rows. A line is a setting."""

    def run(index, queries, setting):
        search(index, queries[:100], setting)  # warm
        return lambda: search(index, queries, setting)

    _serve(lambda folder, base, metric: build(base, metric), run)


def serve_filtered(build, filter_of, search):
    """build(folder, base, metric, attributes) -> index; attributes: name -> (n,) int64.

    filter_of(index, attribute, values, below) -> whatever lets rows through whose value is below; made once, not timed, as a
    caller who asks again with the same filter would. search(index, queries, filter, setting) -> (m, 10) rows, -1 for none.
    A line is {"setting": …, "single": whether one query at a time, "groups": [[attribute, below, [queries]], …]}.
    """
    filters = {}
    columns = {}

    def built(folder, base, metric):
        columns.update(np.load(f"{folder}/attributes.npz"))
        return build(folder, base, metric, columns)

    def run(index, queries, request):
        setting, pieces = request["setting"], []
        for name, below, numbers in request["groups"]:
            step, new = 1 if request["single"] else len(numbers), (name, below) not in filters
            if new:
                filters[name, below] = filter_of(index, name, columns[name], below)
            if new or not pieces:  # warm
                search(index, queries[numbers[: min(2, step)]], filters[name, below], setting)
            pieces += [(queries[numbers[i : i + step]], filters[name, below]) for i in range(0, len(numbers), step)]
        return lambda: np.concatenate([search(index, some, where, setting) for some, where in pieces])

    _serve(built, run)


def _serve(build, run):
    """build(folder, base, metric) -> index; run(index, queries, request) -> what is timed."""
    folder, metric = sys.argv[1], sys.argv[2]
    base, queries = np.load(f"{folder}/base.npy"), np.load(f"{folder}/queries.npy")
    started, cpu = time.perf_counter(), time.process_time()
    index = build(folder, base, metric)
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}), flush=True)
    for line in sys.stdin:
        timed = run(index, queries, json.loads(line))
        started, cpu = time.perf_counter(), time.process_time()
        found = timed()
        seconds, spent = time.perf_counter() - started, time.process_time() - cpu
        path = f"{folder}/found-{os.getpid()}.npy"
        np.save(path, np.asarray(found, np.int64))
        print(json.dumps({"seconds": seconds, "cpu": spent, "ids": path}), flush=True)
