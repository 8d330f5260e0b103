"""vecdb, through its public API."""

from data import DIM, ingest


def opened(path):
    import vecdb

    db = vecdb.open(path)
    docs = db.create_collection("docs", vecdb.Dense(DIM, index="flat"))
    return lambda ids, x, payloads: docs.upsert(ids=ids, vectors=x, payloads=payloads), db.close


if __name__ == "__main__":
    import sys

    sys.path.remove(sys.path[0])  # this folder has a vecdb.py of its own
    ingest("sync of data, name and log before the call returns", opened)
