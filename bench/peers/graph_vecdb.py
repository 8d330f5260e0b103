"""vecdb's graph by its own backend, without the product: built by two threads, searched by one. setting: ef."""

import sys

here = sys.path.pop(0)  # this folder has a vecdb.py of its own

import math  # noqa: E402

import numpy as np  # noqa: E402
from vecdb_index.contract import Budget, Rows  # noqa: E402
from vecdb_index.hnsw.backend import BACKEND  # noqa: E402
from vecdb_index.hnsw.params import HNSW  # noqa: E402
from vecdb_index.hnsw.search import LEAST_EF, MOST_EF  # noqa: E402


def rows_of(base, metric):
    return Rows(base, np.linalg.norm(base, axis=1).astype(np.float32), metric)


def build(base, metric):
    rows = rows_of(base, metric)
    return BACKEND.open(BACKEND.build(rows, {}, HNSW(), Budget(threads=2), lambda share: None), {}, rows, HNSW())


def search(index, queries, ef):
    return index.search(queries, 10, math.log(ef / LEAST_EF) / math.log(MOST_EF / LEAST_EF)).rows


if __name__ == "__main__":
    build(np.random.default_rng(0).standard_normal((300, 8), np.float32), sys.argv[2])  # compiles
    sys.path.append(here)
    from protocol import serve

    serve(build, search)
