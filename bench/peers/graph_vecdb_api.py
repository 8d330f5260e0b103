"""vecdb through its public API: a database on disk, one thread. setting: the recall that is asked."""

import sys

here = sys.path.pop(0)  # this folder has a vecdb.py of its own

import tempfile  # noqa: E402

import numpy as np  # noqa: E402

import vecdb  # noqa: E402


def build(base, metric):
    path = tempfile.mkdtemp(dir=sys.argv[1])
    with vecdb.open(path + "/db", threads=2) as db:
        docs = db.create_collection("docs", vecdb.Dense(base.shape[1], metric=metric, index="hnsw"))
        docs.upsert(ids=np.arange(len(base)), vectors=base)
        docs.flush()
    return vecdb.open(path + "/db", threads=1).collection("docs")


def search(docs, queries, recall):
    return docs.search_batch(queries, k=10, recall=recall, with_payload=False).ids


if __name__ == "__main__":
    build(np.random.default_rng(0).standard_normal((300, 8), np.float32), sys.argv[2])  # compiles
    sys.path.append(here)
    from protocol import serve

    serve(build, search)
