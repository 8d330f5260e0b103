"""hnswlib with a filter function: built by two threads, searched by one. setting: ef.

The function is the `__contains__` of a set of allowed labels, the cheapest there is in Python. Where hnswlib finds fewer than k
rows for a query it raises and gives none of them; such a query counts as having found nothing.
"""

import contextlib

import hnswlib
import numpy as np
from protocol import serve_filtered


def build(folder, base, metric, attributes):
    index = hnswlib.Index(metric, base.shape[1])
    index.init_index(len(base), M=16, ef_construction=200)
    index.set_num_threads(2)
    index.add_items(base)
    index.set_num_threads(1)
    return index


def filter_of(index, attribute, values, below):
    return set(np.flatnonzero(values < below).tolist()).__contains__


def search(index, queries, allowed, setting):
    index.set_ef(setting["ef"])
    try:
        return index.knn_query(queries, 10, filter=allowed)[0]
    except RuntimeError:
        found = np.full((len(queries), 10), -1)
        for row, query in zip(found, queries, strict=True):
            with contextlib.suppress(RuntimeError):
                row[:] = index.knn_query(query, 10, filter=allowed)[0]
        return found


serve_filtered(build, filter_of, search)
