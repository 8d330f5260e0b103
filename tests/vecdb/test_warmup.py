"""After the warm-up nobody waits for a kernel: what a process does with a database needs none that was not compiled, or loaded."""

from __future__ import annotations

import subprocess
import sys

LIFE = """
import gc, tempfile
import numpy as np, vecdb
from numba.core.dispatcher import Dispatcher
from vecdb import Dense, F, Sparse
from vecdb.index import HNSW, MIB, Seismic
from vecdb_index.warmup import warmup

def kernels():
    all_of = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    ours = [(each.py_func.__module__, each.__name__, each) for each in all_of if each.py_func.__module__.startswith("vecdb")]
    return {(module, name, str(signature)) for module, name, each in ours for signature in each.signatures}

rng = np.random.default_rng(0)

def dense(n, dtype):
    drawn = rng.standard_normal((n, 32))
    return np.clip(drawn * 40, -127, 127).astype(np.int8) if dtype == "i8" else drawn.astype(np.float16 if dtype == "f16" else np.float32)

def sparse(n, dtype):
    return [dict(zip(rng.choice(500, 8, replace=False).tolist(), (rng.random(8) + 0.1).tolist())) for _ in range(n)]

def look(docs, draw):
    queries = draw(20, "f32")
    for asked in ({}, {"where": F("n") < 10}, {"where": (F("n") < 50) & (F("t") == "a"), "recall": 0.9}, {"exact": True}):
        docs.search(queries[0], k=10, explain=True, **asked)
        docs.search_batch(queries[:3], k=100, **asked)
        docs.search_batch(queries, k=10, **asked)
    docs.search(queries[0], k=3, group_by="t")

def live(docs, dtype, draw):
    for first in (0, 2000):
        docs.upsert(ids=range(first, first + 3000), vectors=draw(3000, dtype), payloads=[{"n": i % 100, "t": "ab"[i % 2]} for i in range(3000)])
        docs.delete(range(first, first + 100))
        look(docs, draw)  # also over rows in memory, and several parts
        docs.flush()
        look(docs, draw)
    docs.merge()
    look(docs, draw)

warmup()
before = kernels()
assert len(before) > 40
with tempfile.TemporaryDirectory() as folder, vecdb.open(folder) as db:
    for metric, dtype, index in (
        ("cosine", "f32", "flat"), ("l2", "f32", HNSW()), ("ip", "f32", MIB()), ("ip", "f16", HNSW()), ("cosine", "i8", HNSW()),
    ):
        live(db.create_collection(metric + dtype, Dense(32, metric=metric, dtype=dtype, index=index)), dtype, dense)
    for name, index in (("flat", "flat"), ("lists", Seismic())):
        live(db.create_collection(name, Sparse(index=index)), None, sparse)
print(*sorted(kernels() - before), sep="\\n")
"""


def test_a_database_needs_no_kernel_that_the_warm_up_has_not_made() -> None:
    done = subprocess.run([sys.executable, "-c", LIFE], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
