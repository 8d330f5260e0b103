"""rabitqlib's SymphonyQG: built by two threads, searched by one. setting: ef.

Its search adds an inner product of the plain rows to the estimates of its codes; cosine is that of rows at length one.
"""

import numpy as np
from protocol import serve
from rabitqlib import SymqgIndex

DEGREE, EF_CONSTRUCTION = 32, 200


def unit(vectors, metric):
    return vectors / np.linalg.norm(vectors, axis=1)[:, None] if metric == "cosine" else vectors


def build(base, metric):
    index = SymqgIndex(base.shape[1], DEGREE, "l2")
    index.build(np.ascontiguousarray(unit(base, metric), np.float32), EF_CONSTRUCTION, 2)
    return index, metric


def search(index, queries, ef):
    built, metric = index
    found = built.search_batch(np.ascontiguousarray(unit(queries, metric), np.float32), 10, int(ef), 1)
    return found[0] if np.asarray(found[0]).dtype.kind in "iu" else found[1]


if __name__ == "__main__":
    serve(build, search)
