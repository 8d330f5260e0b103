"""vecdb's server, `vecdb serve`, over gRPC. Loaded by the embedded API before it is started. setting: keywords of `search`."""

import os
import sys

here = sys.path.pop(0)  # this folder has a vecdb.py of its own

import numpy as np  # noqa: E402

import vecdb  # noqa: E402

sys.path.append(here)

from calling import K, main  # noqa: E402


def serve(folder, port, arguments):
    command = ["-m", "vecdb", "serve", "--db", f"{folder}/data", "--host", "127.0.0.1", "--port", str(port), *arguments]
    os.execv(sys.executable, [sys.executable, *command])


def load(folder, port, base):
    with vecdb.open(f"{folder}/data") as db:
        docs = db.create_collection("docs", vecdb.Dense(base.shape[1], index="hnsw"))
        docs.upsert(ids=np.arange(len(base)), vectors=base)
        docs.flush()


def connect(port, retries=6):
    docs = vecdb.connect(f"grpc://127.0.0.1:{port}", retries=int(retries))["docs"]
    return lambda query, setting: docs.search(query, k=K, with_payload=False, **setting).ids


main(serve, load, connect)
