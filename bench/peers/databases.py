"""Whole databases, each in a process of its own: `python databases.py NAME FOLDER METRIC THREADS BUILD` (see `adapter.py`).

Each writes the rows through its public bulk API into a folder, and `fit` ends when its index is ready. Ids are row numbers; what
comes back is ids, without vectors or payloads. Where an API takes many queries in one call, a pass is one call, else one each.

None but vecdb can be told reliably how many threads to search with, so the process is held to as many cores: a database with
threads of its own has them all on one core in a pass of one thread. Builds have all cores.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from adapter import Adapter, main


class Database(Adapter):
    """A folder `path`. `_build(base, metric, threads, **build)` leaves it ready for searches."""

    def fit(self, base, threads, **build):
        self.path = tempfile.mkdtemp(dir=self.folder) + "/db"
        self.cores = sorted(os.sched_getaffinity(0))
        self._build(base, threads, **build)

    def set_threads(self, threads):
        self.threads = threads
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), self.cores[:threads])

    def query_batch(self, queries, k):
        """Where there is no call for many: one each, by as many threads."""
        if self.threads == 1:
            return [self.query(query, k) for query in queries]
        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(lambda query: self.query(query, k), queries))

    def bytes_on_disk(self):
        return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(self.path) for name in names)


class Vecdb(Database):
    """Setting: the recall that is asked."""

    warm = {"recall": 0.9}  # noqa: RUF012

    def _build(self, base, threads):
        import vecdb

        with vecdb.open(self.path, threads=threads) as db:
            docs = db.create_collection("docs", vecdb.Dense(base.shape[1], metric=self.metric, index="hnsw"))
            docs.upsert(ids=np.arange(len(base)), vectors=base)
            docs.flush()
        self.db, self.open = None, vecdb.open
        self.set_threads(1)

    def set_threads(self, threads):
        """It can be told, when it is opened."""
        if self.db is None or self.threads != threads:
            if self.db is not None:
                self.db.close()
            self.db, self.threads = self.open(self.path, threads=threads), threads
            self.docs = self.db.collection("docs")

    def set_query_params(self, recall):
        self.recall = recall

    def query_batch(self, queries, k):
        return self.docs.search_batch(queries, k=k, recall=self.recall, with_payload=False).ids

    def query(self, query, k):
        return np.array(self.docs.search(query, k=k, recall=self.recall, with_payload=False).ids)


class Lancedb(Database):
    """index: HnswSq (one partition, as its documentation recommends below a million rows), IvfPq, … with their arguments.

    Settings: ef, nprobes, refine: how many times k are compared again by their rows. ef is at least so many, which it insists on.
    """

    def _build(self, base, threads, index="HnswSq", **parameters):
        import lancedb
        import lancedb.index as kinds
        import pyarrow as pa

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(base.reshape(-1)), base.shape[1])
        rows = pa.table({"id": np.arange(len(base)), "vector": vectors})
        self.table = lancedb.connect(self.path).create_table("docs", rows)
        self.kind = {"ip": "dot"}.get(self.metric, self.metric)
        config = getattr(kinds, index)(distance_type=self.kind, **parameters)
        self.table.create_index("vector", config=config)
        self.table.wait_for_index([self.table.list_indices()[0].name])

    def set_query_params(self, **params):
        self.params = params

    def _answer(self, queries, k):
        asked = self.table.search(queries).distance_type(self.kind).limit(k).select(["id", "_distance"])
        refine, ef, nprobes = (self.params.get(name) for name in ("refine", "ef", "nprobes"))
        if refine:
            asked = asked.refine_factor(refine)
        if ef is not None:
            asked = asked.ef(max(ef, k * (refine or 1)))
        if nprobes is not None:
            asked = asked.nprobes(nprobes)
        return asked.to_arrow()

    def query_batch(self, queries, k):
        answer = self._answer(queries, k)
        ids, numbers = answer["id"].to_numpy(), answer["query_index"].to_numpy()
        order = np.argsort(numbers, kind="stable")
        return np.split(ids[order], np.searchsorted(numbers[order], np.arange(1, len(queries))))

    def query(self, query, k):
        return self._answer(query, k)["id"].to_numpy()


class Chroma(Database):
    """Setting: ef. It is the collection's, and in force from when the index is loaded: by another client, after this one closed."""

    def _build(self, base, threads, m=16, ef_construction=200):
        import chromadb

        self.open = chromadb.PersistentClient
        self.ef = None
        self.client = client = self.open(self.path)
        hnsw = {"space": self.metric, "max_neighbors": m, "ef_construction": ef_construction, "num_threads": threads}
        self.docs = client.create_collection("docs", embedding_function=None, configuration={"hnsw": hnsw})
        most = client.get_max_batch_size()
        for start in range(0, len(base), most):
            some = base[start : start + most]
            self.docs.add(ids=[str(start + i) for i in range(len(some))], embeddings=some)

    def set_query_params(self, ef):
        if ef != self.ef:
            self.docs.modify(configuration={"hnsw": {"ef_search": int(ef)}})
            self.client.close()
            self.client, self.ef = self.open(self.path), ef
            self.docs = self.client.get_collection("docs", embedding_function=None)

    def query_batch(self, queries, k):
        found = self.docs.query(query_embeddings=queries, n_results=k, include=[])["ids"]
        return [np.array(each, np.int64) for each in found]


class MilvusLite(Database):
    """index: HNSW, IVF_FLAT and others that faiss does for it. Settings are those of the index: ef, nprobe."""

    def _build(self, base, threads, index="HNSW", **parameters):
        from pymilvus import DataType, MilvusClient

        os.mkdir(self.path)
        self.client = MilvusClient(self.path + "/milvus.db")
        schema = self.client.create_schema()
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=base.shape[1])
        self.client.create_collection("docs", schema=schema)
        batch = 8_000_000 // base.shape[1]  # its messages are limited to 64 MiB
        for start in range(0, len(base), batch):
            self.client.insert("docs", [{"id": start + i, "vector": x} for i, x in enumerate(base[start : start + batch])])
        self.client.flush("docs")
        wanted = self.client.prepare_index_params()
        wanted.add_index("vector", index_type=index, metric_type=self.metric.upper(), params=parameters)
        self.client.create_index("docs", wanted)
        self.client.load_collection("docs")

    def set_query_params(self, **params):
        self.params = {"metric_type": self.metric.upper(), "params": params}

    def query_batch(self, queries, k):
        found = self.client.search("docs", data=list(queries), anns_field="vector", limit=k, search_params=self.params)
        return [[hit["id"] for hit in hits] for hits in found]


class QdrantLocal(Database):
    """The local mode of its client: NumPy over all rows, so it is exact. No setting."""

    def _build(self, base, threads):
        from qdrant_client import QdrantClient, models

        kind = {"cosine": models.Distance.COSINE, "l2": models.Distance.EUCLID, "ip": models.Distance.DOT}[self.metric]
        self.client = QdrantClient(path=self.path)
        self.client.create_collection("docs", vectors_config=models.VectorParams(size=base.shape[1], distance=kind))
        self.client.upload_collection("docs", vectors=base, ids=range(len(base)))

    def query(self, query, k):
        points = self.client.query_points("docs", query=query, limit=k, with_payload=False).points
        return [point.id for point in points]


class Zvec(Database):
    """Setting: ef. Searched through its path of least latency, for which a collection is opened to read only."""

    def _build(self, base, threads, m=50, ef_construction=500, quantize=None):
        import zvec

        self.zvec = zvec
        kind = {"cosine": zvec.MetricType.COSINE, "l2": zvec.MetricType.L2, "ip": zvec.MetricType.IP}[self.metric]
        about = {"metric_type": kind, "m": m, "ef_construction": ef_construction}
        if quantize is not None:
            about["quantize_type"] = getattr(zvec.QuantizeType, quantize)
        index = zvec.HnswIndexParam(**about)
        vector = zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, base.shape[1], index_param=index)
        docs = zvec.create_and_open(path=self.path, schema=zvec.CollectionSchema(name="docs", vectors=vector))
        for start in range(0, len(base), 1000):
            some = base[start : start + 1000]
            results = docs.insert([zvec.Doc(id=str(start + i), vectors={"vector": x}) for i, x in enumerate(some)])
            assert all(result.ok() for result in results)
        docs.optimize()
        docs.close()
        self.docs = zvec.open(self.path, zvec.CollectionOption(read_only=True))

    def set_query_params(self, ef):
        self.ef = int(ef)

    def query(self, query, k):
        asked = self.zvec.Query("vector", vector=query, param=self.zvec.HnswQueryParam(ef=self.ef))
        found = self.docs.query_internal_ids(asked, topk=k)
        return [int(each) for each in self.docs.resolve_internal_ids(found[found >= 0])]


ADAPTERS = {
    "vecdb-api": Vecdb, "lancedb": Lancedb, "chromadb": Chroma, "milvus-lite": MilvusLite, "qdrant": QdrantLocal, "zvec": Zvec,
}  # fmt: skip


if __name__ == "__main__":
    main(ADAPTERS)
