import os

from data import DIM, ingest


def opened(path):
    from pymilvus import DataType, MilvusClient

    os.makedirs(path)
    client = MilvusClient(os.path.join(path, "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=DIM)
    schema.add_field("title", DataType.VARCHAR, max_length=256)
    schema.add_field("year", DataType.INT64)
    schema.add_field("lang", DataType.VARCHAR, max_length=16)
    client.create_collection("docs", schema=schema)

    def write(ids, x, payloads):
        for i in range(0, len(ids), 5000):  # its messages are limited to 64 MiB
            rows = zip(ids[i : i + 5000], x[i : i + 5000], payloads[i : i + 5000], strict=True)
            client.insert("docs", [{"id": k, "vector": v, **p} for k, v, p in rows])

    return write, client.close


if __name__ == "__main__":
    ingest("see syncs", opened)
