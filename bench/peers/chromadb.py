import sys

from data import ingest


def opened(path):
    here = sys.path.pop(0)
    import chromadb

    sys.path.insert(0, here)
    client = chromadb.PersistentClient(path)
    docs = client.create_collection("docs", metadata={"hnsw:space": "cosine"})
    most = client.get_max_batch_size()

    def write(ids, x, payloads):
        for i in range(0, len(ids), most):
            docs.upsert(ids=ids[i : i + most], embeddings=x[i : i + most], metadatas=payloads[i : i + most])

    return write, lambda: None


if __name__ == "__main__":
    ingest("see syncs", opened)
