"""A server with a key, and two programs that share it: one blocking, one with an event loop. Both are in one file here."""

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import vecdb
import vecdb.aio
from vecdb import Dense, F

VECDB = Path(sys.executable).parent / "vecdb"
vectors = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)


def load(url: str, key: str) -> None:
    with vecdb.connect(url, api_key=key) as db:
        docs = db.create_collection("docs", Dense(64))
        docs.upsert(ids=range(2000), vectors=vectors, payloads=[{"year": 2000 + i % 25} for i in range(2000)])
        print(len(docs), "points are in")


async def ask(url: str, key: str) -> None:
    async with await vecdb.aio.connect(url, api_key=key, timeout=10) as db:
        docs = await db.collection("docs")
        for hits in await asyncio.gather(*(docs.search(vectors[i], k=3, where=F("year") >= 2010) for i in (12, 13, 14))):
            print([(hit.id, round(hit.score, 2), hit.payload["year"]) for hit in hits])
        try:
            await docs.delete(where=F("year") < 2010)
        except vecdb.errors.PermissionDenied as error:
            print(error)


with tempfile.TemporaryDirectory() as folder:
    db = os.path.join(folder, "my.db")

    def key(name: str, role: str) -> str:
        command = [VECDB, "keys", "create", name, "--role", role, "--db", db]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    writer, reader = key("loader", "write"), key("site", "read")
    command = [VECDB, "serve", "--db", db, "--port", "0", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"grpc://\S+", server.stdout.readline())[0]
            load(url, writer)
            asyncio.run(ask(url, reader))
        finally:
            server.terminate()
