"""The local mode of qdrant-client, in memory: NumPy over all points and Python over all payloads, so it is exact. No setting."""

import numpy as np
from protocol import serve_filtered
from qdrant_client import QdrantClient, models


def build(folder, base, metric, attributes):
    client = QdrantClient(":memory:")
    kind = {"cosine": models.Distance.COSINE, "l2": models.Distance.EUCLID, "ip": models.Distance.DOT}[metric]
    client.create_collection("docs", vectors_config=models.VectorParams(size=base.shape[1], distance=kind))
    for start in range(0, len(base), 1000):
        numbers = range(start, min(start + 1000, len(base)))
        payloads = [{name: int(values[i]) for name, values in attributes.items()} for i in numbers]
        vectors = base[start : start + 1000].tolist()
        client.upsert("docs", points=models.Batch(ids=list(numbers), vectors=vectors, payloads=payloads))
    return client


def filter_of(client, attribute, values, below):
    return models.Filter(must=[models.FieldCondition(key=attribute, range=models.Range(lt=below))])


def search(client, queries, where, setting):
    found = np.full((len(queries), 10), -1)
    for row, query in zip(found, queries, strict=True):
        points = client.query_points("docs", query=query, query_filter=where, limit=10, with_payload=False).points
        row[: len(points)] = [point.id for point in points]
    return found


serve_filtered(build, filter_of, search)
