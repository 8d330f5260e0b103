"""pymilvus against a server that speaks Milvus's protocol. setting: ef."""

import time

from calling import K
from pymilvus import DataType, MilvusClient

BATCH = 5000
PATIENCE = 180  # seconds until the server is ready


def _client(port):
    end = time.monotonic() + PATIENCE
    while True:
        try:
            client = MilvusClient(f"http://127.0.0.1:{port}")
            client.list_collections()
            return client
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def load(folder, port, base):
    client = _client(port)
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=base.shape[1])
    client.create_collection("docs", schema=schema, consistency_level="Eventually")
    for start in range(0, len(base), BATCH):
        client.insert("docs", [{"id": start + i, "vector": x} for i, x in enumerate(base[start : start + BATCH])])
    client.flush("docs")
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 200})
    client.create_index("docs", index)
    while client.describe_index("docs", "vector").get("pending_index_rows", 0):
        time.sleep(0.5)
    client.load_collection("docs")


def connect(port):
    client = _client(port)
    while (
        "NotLoad" in (state := str(client.get_load_state("docs")["state"])) or "Loading" in state
    ):  # after a start of the server
        if "NotLoad" in state:
            client.load_collection("docs")
        time.sleep(0.2)

    def search(query, setting):
        parameters = {"metric_type": "COSINE", "params": {"ef": setting["ef"]}}
        return [hit["id"] for hit in client.search("docs", data=[query], limit=K, search_params=parameters)[0]]

    return search
