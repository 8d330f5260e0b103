"""usearch, whose Python binding has no filter: more is fetched than asked, and what may not be found is thrown away.

Built by two threads, searched by one, in float32. setting: how many are fetched.
"""

import numpy as np
from protocol import serve_filtered
from usearch.index import Index


def build(folder, base, metric, attributes):
    kind = {"cosine": "cos", "l2": "l2sq", "ip": "ip"}[metric]
    index = Index(ndim=base.shape[1], metric=kind, dtype="f32", connectivity=16, expansion_add=128)
    index.add(np.arange(len(base)), base, threads=2)
    return index


def filter_of(index, attribute, values, below):
    return values < below


def search(index, queries, allowed, setting):
    keys = index.search(queries, min(setting["fetch"], len(index)), threads=1).keys.reshape(len(queries), -1).astype(np.int64)
    found = np.full((len(queries), 10), -1)
    for row, mine in zip(found, keys, strict=True):
        kept = mine[allowed[mine]][:10]
        row[: len(kept)] = kept
    return found


serve_filtered(build, filter_of, search)
