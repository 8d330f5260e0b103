"""vecdb through its public API: a database on disk, searched by one thread, asked for a recall of 0.95. No setting."""

import sys

here = sys.path.pop(0)  # this folder has a vecdb.py of its own

import numpy as np  # noqa: E402

import vecdb  # noqa: E402

sys.path.append(here)

from protocol import serve_filtered  # noqa: E402


def build(folder, base, metric, attributes):
    with vecdb.open(f"{folder}/db", threads=2) as db:
        docs = db.create_collection("docs", vecdb.Dense(base.shape[1], metric=metric))
        docs.upsert(
            ids=np.arange(len(base)), vectors=base, payloads={name: values.tolist() for name, values in attributes.items()}
        )
        docs.flush()
    return vecdb.open(f"{folder}/db", threads=1).collection("docs")


def filter_of(docs, attribute, values, below):
    return vecdb.F(attribute) < below


def search(docs, queries, where, setting):
    if len(queries) > 1:
        ids = docs.search_batch(queries, k=10, where=where, recall=0.95, with_payload=False).ids
        return np.where(ids == None, -1, ids).astype(np.int64)  # noqa: E711
    found = np.full((1, 10), -1)
    ids = docs.search(queries[0], k=10, where=where, recall=0.95, with_payload=False).ids
    found[0, : len(ids)] = ids
    return found


serve_filtered(build, filter_of, search)
