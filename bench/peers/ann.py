"""Nearest-neighbour indexes behind one adapter, each in a process of its own: `python ann.py NAME FOLDER METRIC THREADS BUILD`.

An adapter has `fit`, `set_query_params`, `query_batch`, `query` and `bytes_on_disk`, much as ann-benchmarks' BaseANN. FOLDER
holds base.npy, tune.npy and test.npy; BUILD is JSON. The program builds, says what that took, and then answers one pass a line;
the other side of the pipe is `bench/engines.py`. NumPy and the engine's own library only.
"""

import json
import os
import resource
import sys
import tempfile
import time

here = sys.path.pop(0)  # this folder has files that are named like libraries

import numpy as np  # noqa: E402

FAISS_METRICS = {"l2": "METRIC_L2", "cosine": "METRIC_INNER_PRODUCT", "ip": "METRIC_INNER_PRODUCT"}


def unit(vectors, metric):
    """As libraries without a cosine want it: rows at length one, for inner products or for l2."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1)[:, None] if metric == "cosine" else vectors


class Adapter:
    """metric: cosine, ip or l2. Keyword arguments are the parameters of the build."""

    def __init__(self, metric, folder):
        self.metric, self.folder = metric, folder

    def fit(self, base, threads, **build): ...

    def set_query_params(self, **params): ...

    threads = 1

    def set_threads(self, threads):
        self.threads = threads

    def query_batch(self, queries, k):
        """(m, k) rows."""
        return np.stack([self.query(query, k) for query in queries])

    def query(self, query, k):
        return self.query_batch(query[None], k)[0]

    def bytes_on_disk(self):
        return None


class Hnswlib(Adapter):
    def fit(self, base, threads, m=16, ef_construction=200):
        import hnswlib

        self.index = hnswlib.Index(self.metric, base.shape[1])
        self.index.init_index(len(base), M=m, ef_construction=ef_construction, random_seed=1)
        self.index.set_num_threads(threads)
        self.index.add_items(base)

    def set_threads(self, threads):
        self.index.set_num_threads(threads)

    def set_query_params(self, ef):
        self.index.set_ef(int(ef))

    def query_batch(self, queries, k):
        return self.index.knn_query(queries, k)[0]

    def bytes_on_disk(self):
        return saved(self.index.save_index)


class Faiss(Adapter):
    """factory: as `faiss.index_factory` has it, D/4 for a fourth of the dimensions. Settings are those of faiss.ParameterSpace."""

    def fit(self, base, threads, factory, train=100_000, ef_construction=None):
        import faiss

        self.faiss = faiss
        faiss.omp_set_num_threads(threads)
        base = unit(base, self.metric)
        factory = factory.replace("D/4", str(base.shape[1] // 4))
        self.index = faiss.index_factory(base.shape[1], factory, getattr(faiss, FAISS_METRICS[self.metric]))
        if ef_construction is not None:
            inner = faiss.downcast_index(self.index)
            inner.hnsw.efConstruction = ef_construction
        self.index.train(base[:train])
        self.index.add(base)

    def set_threads(self, threads):
        self.faiss.omp_set_num_threads(threads)

    def set_query_params(self, **params):
        for name, value in params.items():
            inner = self.faiss.downcast_index(self.index)
            if name == "search_L":
                inner.nsg.search_L = int(value)
            else:
                self.faiss.ParameterSpace().set_index_parameter(self.index, name, float(value))

    def query_batch(self, queries, k):
        return self.index.search(unit(queries, self.metric), k)[1]

    def bytes_on_disk(self):
        return saved(lambda path: self.faiss.write_index(self.index, path))


class Usearch(Adapter):
    def fit(self, base, threads, connectivity=16, expansion_add=200, dtype="f32"):
        from usearch.index import Index

        kind = {"cosine": "cos", "l2": "l2sq", "ip": "ip"}[self.metric]
        self.index = Index(ndim=base.shape[1], metric=kind, dtype=dtype, connectivity=connectivity, expansion_add=expansion_add)
        self.index.add(np.arange(len(base)), base, threads=threads)

    def set_query_params(self, expansion_search):
        self.index.expansion_search = int(expansion_search)

    def query_batch(self, queries, k):
        return self.index.search(queries, k, threads=self.threads).keys.astype(np.int64).reshape(len(queries), -1)

    def bytes_on_disk(self):
        return saved(self.index.save)


class Voyager(Adapter):
    def fit(self, base, threads, m=16, ef_construction=200):
        from voyager import Index, Space

        space = {"l2": Space.Euclidean, "cosine": Space.Cosine, "ip": Space.InnerProduct}[self.metric]
        self.index = Index(space, base.shape[1], M=m, ef_construction=ef_construction)
        self.index.add_items(base, num_threads=threads)

    def set_query_params(self, ef):
        self.ef = int(ef)

    def query_batch(self, queries, k):
        return self.index.query(queries, k, num_threads=self.threads, query_ef=max(self.ef, k))[0].astype(np.int64)

    def bytes_on_disk(self):
        return saved(self.index.save)


class Scann(Adapter):
    def fit(self, base, threads, leaves=None, dimensions_per_block=2, threshold=0.2):
        import scann

        base = unit(base, self.metric)
        leaves = leaves or int(np.sqrt(len(base)))
        measure = "squared_l2" if self.metric == "l2" else "dot_product"
        builder = scann.scann_ops_pybind.builder(base, 10, measure).set_n_training_threads(threads)
        builder = builder.tree(leaves, num_leaves_to_search=10, training_sample_size=len(base))
        builder = builder.score_ah(dimensions_per_block, anisotropic_quantization_threshold=threshold)
        self.index = builder.reorder(100).build()

    def set_query_params(self, leaves, reorder):
        self.leaves, self.reorder = int(leaves), int(reorder)

    def query_batch(self, queries, k):
        about = {"final_num_neighbors": k, "pre_reorder_num_neighbors": self.reorder, "leaves_to_search": self.leaves}
        call = self.index.search_batched if self.threads == 1 else self.index.search_batched_parallel
        return call(unit(queries, self.metric), **about)[0].astype(np.int64)

    def query(self, query, k):
        about = {"final_num_neighbors": k, "pre_reorder_num_neighbors": self.reorder, "leaves_to_search": self.leaves}
        return self.index.search(unit(query[None], self.metric)[0], **about)[0].astype(np.int64)


class Symqg(Adapter):
    """rabitqlib's SymphonyQG; cosine as l2 of rows at length one."""

    def fit(self, base, threads, degree=32, ef_construction=200, bits=0):
        from rabitqlib import SymqgIndex

        self.index = SymqgIndex(base.shape[1], degree, "l2", bits)
        self.index.build(unit(base, self.metric), ef_construction, threads)

    def set_query_params(self, ef):
        self.ef = int(ef)

    def query_batch(self, queries, k):
        found = self.index.search_batch(unit(queries, self.metric), k, max(self.ef, k), self.threads)
        return next(part for part in map(np.asarray, found) if part.dtype.kind in "iu").astype(np.int64)

    def bytes_on_disk(self):
        return saved(self.index.save)


class Svs(Adapter):
    """Vamana over float32 rows: the library refuses LVQ and LeanVec on processors that are not Intel's."""

    def fit(self, base, threads, degree=64, window=200):
        import svs

        parameters = svs.VamanaBuildParameters(graph_max_degree=degree, window_size=window)
        self.index = svs.Vamana.build(parameters, unit(base, self.metric), svs.DistanceType.L2, num_threads=threads)

    def set_threads(self, threads):
        self.index.num_threads = threads

    def set_query_params(self, window):
        self.index.search_window_size = int(window)

    def query_batch(self, queries, k):
        return self.index.search(unit(queries, self.metric), k)[0].astype(np.int64)


class Ngt(Adapter):
    """The graph (ANNG) over float32 rows; one query a call. Its quantised form needs a program that the wheel lacks."""

    def fit(self, base, threads, edges=30):
        import ngtpy

        path = tempfile.mkdtemp(dir=self.folder) + "/ngt"
        ngtpy.create(path, base.shape[1], distance_type="L2", edge_size_for_creation=edges, edge_size_for_search=-2)
        self.index = ngtpy.Index(path, zero_based_numbering=True)
        self.index.batch_insert(unit(base, self.metric), num_threads=threads)

    def set_query_params(self, epsilon):
        self.epsilon = float(epsilon)

    def query_batch(self, queries, k):
        queries = unit(queries, self.metric)
        return np.stack([self._found(query, k) for query in queries])

    def _found(self, query, k):
        return np.array(self.index.search(query, k, epsilon=self.epsilon, with_distance=False), np.int64)


class Vecdb(Adapter):
    """The graph by its own backend, in memory, without the product. Setting: ef."""

    def fit(self, base, threads, **build):
        from vecdb_index.contract import Budget, Rows
        from vecdb_index.hnsw.backend import BACKEND
        from vecdb_index.hnsw.params import HNSW
        from vecdb_index.hnsw.search import LEAST_EF, MOST_EF

        params = HNSW(**build)
        rows = Rows(base, np.linalg.norm(base, axis=1).astype(np.float32), self.metric)
        self.arrays = BACKEND.build(rows, {}, params, Budget(threads=threads), lambda share: None)
        self.index = BACKEND.open(self.arrays, {}, rows, params)
        self.range = LEAST_EF, MOST_EF

    def set_query_params(self, ef):
        least, most = self.range
        self.effort = float(np.log(ef / least) / np.log(most / least))

    def query_batch(self, queries, k):
        if self.threads == 1:
            return self.index.search(queries, k, self.effort).rows
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self.threads) as pool:
            parts = np.array_split(queries, 4 * self.threads)
            return np.concatenate(list(pool.map(lambda some: self.index.search(some, k, self.effort).rows, parts)))

    def bytes_on_disk(self):
        return sum(array.nbytes for array in self.arrays.values())


class VecdbApi(Adapter):
    """vecdb through its public API: a database on disk. Setting: the recall that is asked."""

    def fit(self, base, threads):
        import vecdb

        self.path = tempfile.mkdtemp(dir=self.folder) + "/db"
        with vecdb.open(self.path, threads=threads) as db:
            docs = db.create_collection("docs", vecdb.Dense(base.shape[1], metric=self.metric, index="hnsw"))
            docs.upsert(ids=np.arange(len(base)), vectors=base)
            docs.flush()
        self.db, self.open = None, vecdb.open
        self.set_threads(1)

    def set_threads(self, threads):
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

    def bytes_on_disk(self):
        return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(self.path) for name in names)


def saved(save):
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
        path = folder + "/index"
        save(path)
        return os.path.getsize(path)


ADAPTERS = {
    "hnswlib": Hnswlib, "faiss": Faiss, "usearch": Usearch, "voyager": Voyager, "scann": Scann, "rabitqlib": Symqg, "svs": Svs,
    "ngt": Ngt, "vecdb": Vecdb, "vecdb-api": VecdbApi,
}  # fmt: skip


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main():
    name, folder, metric, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    build = json.loads(sys.argv[5])
    adapter = ADAPTERS[name](metric, folder)
    small = np.random.default_rng(0).standard_normal((3000, 96), np.float32)
    if name.startswith("vecdb"):  # compiles, which happens once on a machine
        warm = ADAPTERS[name](metric, folder)
        warm.fit(small, threads, **build)
        warm.set_query_params(**({"ef": 20} if name == "vecdb" else {"recall": 0.9}))
        warm.query_batch(small[:100], 10)
    base = np.load(f"{folder}/base.npy")
    queries = {part: np.load(f"{folder}/{part}.npy") for part in ("tune", "test")}
    before = resident()
    started, cpu = time.perf_counter(), time.process_time()
    adapter.fit(base, threads, **build)
    took = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = {"resident": resident() - before, "peak": peak - before, "disk": adapter.bytes_on_disk(), "rows": len(base)}
    print(json.dumps({**took, **memory}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        asked, k = queries[request["queries"]], request["k"]
        adapter.set_threads(request["threads"])
        adapter.set_query_params(**request["params"])
        adapter.query_batch(asked[:100], k)  # warm
        times = []
        started, cpu = time.perf_counter(), time.process_time()
        if request["single"]:
            found = []
            for query in asked:
                begun = time.perf_counter()
                found.append(adapter.query(query, k))
                times.append(time.perf_counter() - begun)
        else:
            found = adapter.query_batch(asked, k)
        took = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
        rows = np.full((len(asked), k), -1, np.int64)
        for row, mine in zip(rows, found, strict=True):
            row[: len(mine)] = np.asarray(mine)[:k].astype(np.int64)
        path = f"{folder}/found-{os.getpid()}.npy"
        np.save(path, rows)
        quantiles = np.percentile(times, [50, 95, 99]).tolist() if times else None
        print(json.dumps({**took, "ids": path, "quantiles": quantiles, "resident": resident() - before}), flush=True)


if __name__ == "__main__":
    main()
