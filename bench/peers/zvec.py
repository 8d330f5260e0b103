import sys

from data import DIM, ingest


def opened(path):
    here = sys.path.pop(0)
    import zvec

    sys.path.insert(0, here)
    schema = zvec.CollectionSchema(
        name="docs",
        fields=[
            zvec.FieldSchema("title", zvec.DataType.STRING),
            zvec.FieldSchema("year", zvec.DataType.INT64),
            zvec.FieldSchema("lang", zvec.DataType.STRING),
        ],
        vectors=zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, DIM),
    )
    docs = zvec.create_and_open(path=path, schema=schema)

    def write(ids, x, payloads):
        for i in range(0, len(ids), 1000):
            rows = zip(ids[i : i + 1000], x[i : i + 1000], payloads[i : i + 1000], strict=True)
            results = docs.insert([zvec.Doc(id=k, vectors={"vector": v.tolist()}, fields=p) for k, v, p in rows])
            assert all(result.ok() for result in results)

    return write, lambda: None


if __name__ == "__main__":
    ingest("see syncs", opened)
