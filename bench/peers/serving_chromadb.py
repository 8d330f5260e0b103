"""Chroma's server, `chroma run`, over HTTP. setting: ef, which the collection has, so it is kept and not handed to a search."""

import os
import sys

here = sys.path.pop(0)  # this folder has a chromadb.py of its own

import chromadb  # noqa: E402

sys.path.append(here)

from calling import K, main  # noqa: E402

BATCH = 5000


def serve(folder, port, arguments):
    program = os.path.join(os.path.dirname(sys.executable), "chroma")
    os.execv(program, [program, "run", "--path", f"{folder}/data", "--host", "127.0.0.1", "--port", str(port), *arguments])


def load(folder, port, base):
    docs = chromadb.HttpClient("127.0.0.1", port).create_collection(
        "docs",
        configuration={"hnsw": {"space": "cosine", "max_neighbors": 16, "ef_construction": 200}},
        embedding_function=None,
    )
    for start in range(0, len(base), BATCH):
        some = base[start : start + BATCH]
        docs.add(ids=[str(start + i) for i in range(len(some))], embeddings=some)
    docs.query(query_embeddings=base[:1], n_results=K, include=["distances"])


def keep(port, setting):
    docs = chromadb.HttpClient("127.0.0.1", port).get_collection("docs", embedding_function=None)
    docs.modify(configuration={"hnsw": {"ef_search": setting["ef"]}})


def connect(port):
    docs = chromadb.HttpClient("127.0.0.1", port).get_collection("docs", embedding_function=None)

    def search(query, setting):
        found = docs.query(query_embeddings=[query], n_results=K, include=["distances"])
        return [int(each) for each in found["ids"][0]]

    return search


main(serve, load, connect, keep)
