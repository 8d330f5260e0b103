"""hnswlib: built by two threads, searched by one. setting: ef."""

import hnswlib
from protocol import serve


def build(base, metric):
    index = hnswlib.Index(metric, base.shape[1])
    index.init_index(len(base), M=16, ef_construction=200)
    index.set_num_threads(2)
    index.add_items(base)
    index.set_num_threads(1)
    return index


def search(index, queries, ef):
    index.set_ef(int(ef))
    return index.knn_query(queries, 10)[0]


if __name__ == "__main__":
    serve(build, search)
