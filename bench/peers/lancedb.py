import sys

from data import DIM, ingest


def opened(path):
    here = sys.path.pop(0)  # this folder has a lancedb.py of its own
    import lancedb
    import pyarrow as pa

    sys.path.insert(0, here)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("vector", pa.list_(pa.float32(), DIM)),
            ("title", pa.string()),
            ("year", pa.int64()),
            ("lang", pa.string()),
        ]
    )
    table = lancedb.connect(path).create_table("docs", schema=schema)

    def write(ids, x, payloads):
        columns = {key: [p[key] for p in payloads] for key in ("title", "year", "lang")}
        vector = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), DIM)
        table.add(pa.table({"id": ids, "vector": vector, **columns}, schema=schema))

    return write, lambda: None


if __name__ == "__main__":
    ingest("see syncs", opened)
