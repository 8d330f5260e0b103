"""Chroma's bulk path: upserts of the largest batch that it takes."""

import json
import sys
import time

sys.path.pop(0)  # this folder has a chromadb.py of its own
import chromadb
import numpy as np
import pyarrow.parquet as pq


def main(path, target, rows):
    started, left = time.perf_counter(), int(rows)
    client = chromadb.PersistentClient(target)
    docs = client.create_collection("docs", metadata={"hnsw:space": "cosine"})
    for batch in pq.ParquetFile(path).iter_batches(min(left, client.get_max_batch_size())):
        batch = batch.slice(0, left)
        vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
        payloads = batch.select(["title", "year", "lang"]).to_pylist()
        docs.upsert(ids=batch.column("id").to_pylist(), embeddings=np.ascontiguousarray(vectors), metadatas=payloads)
        left -= len(batch)
        if left <= 0:
            break
    print(json.dumps({"seconds": time.perf_counter() - started}))


main(*sys.argv[1:])
