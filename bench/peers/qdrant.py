import uuid

from data import DIM, ingest


def opened(path):
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=path)
    client.create_collection("docs", vectors_config=models.VectorParams(size=DIM, distance=models.Distance.COSINE))

    def write(ids, x, payloads):
        # Its ids are ints or UUIDs; the string id goes into the payload.
        keys = [str(uuid.uuid5(uuid.NAMESPACE_OID, key)) for key in ids]
        rows = [{"key": key, **p} for key, p in zip(ids, payloads, strict=True)]
        client.upsert("docs", points=models.Batch(ids=keys, vectors=x.tolist(), payloads=rows))

    return write, client.close


if __name__ == "__main__":
    ingest("see syncs", opened)
