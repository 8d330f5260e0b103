"""Nearest-neighbour indexes, each in a process of its own: `python ann.py NAME FOLDER METRIC THREADS BUILD` (see `adapter.py`).

NumPy and the engine's own library only, which is imported when it is built: this folder has files that are named like libraries.
"""

import os
import sys
import tempfile

import numpy as np
from adapter import Adapter, main

FAISS_METRICS = {"l2": "METRIC_L2", "cosine": "METRIC_INNER_PRODUCT", "ip": "METRIC_INNER_PRODUCT"}


def unit(vectors, metric):
    """As libraries without a cosine want it: rows at length one, for inner products or for l2."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1)[:, None] if metric == "cosine" else vectors


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


def refined(base, listed, queries, k, metric):
    """The best k of each query's listed rows, by NumPy. base, queries: as `unit` gives them."""
    some = base[listed]
    keys = np.einsum("qcd,qd->qc", some, queries)
    if metric == "l2":
        keys = 2 * keys - (some**2).sum(axis=2)
    return np.take_along_axis(listed, np.argsort(-keys, axis=1, kind="stable")[:, :k], 1)


class UsearchBits(Adapter):
    """All rows as signs about their mean, compared by Hamming; the best `short` of them are compared themselves."""

    def fit(self, base, threads):
        self.base = unit(base, self.metric)
        self.centre = self.base.mean(axis=0)
        self.bits = np.packbits(self.base > self.centre, axis=1)

    def set_query_params(self, short):
        self.short = int(short)

    def query_batch(self, queries, k):
        from usearch.index import MetricKind, search

        queries = unit(queries, self.metric)
        bits = np.packbits(queries > self.centre, axis=1)
        listed = search(self.bits, bits, self.short, MetricKind.Hamming, exact=True, threads=self.threads).keys
        return refined(self.base, listed.astype(np.int64).reshape(len(queries), -1), queries, k, self.metric)

    def bytes_on_disk(self):
        return self.bits.nbytes


class Turbovec(Adapter):
    """Codes of some bits a dimension; the best `short` of them are compared themselves."""

    def fit(self, base, threads, bits=4):
        from turbovec import TurboQuantIndex

        self.base = unit(base, self.metric)
        self.index = TurboQuantIndex(base.shape[1], bits)
        self.index.add(self.base)

    def set_query_params(self, short):
        self.short = int(short)

    def query_batch(self, queries, k):
        queries = unit(queries, self.metric)
        listed = np.asarray(self.index.search(queries, self.short)[1]).astype(np.int64)
        return refined(self.base, listed, queries, k, self.metric)

    def bytes_on_disk(self):
        return saved(self.index.write)


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

    warm = {"ef": 20}  # noqa: RUF012

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


class VecdbMIB(Adapter):
    """The bits by their own backend. Setting: short, the rows of short lists."""

    warm = {"short": 20}  # noqa: RUF012

    def fit(self, base, threads, **build):
        from vecdb_index.contract import Budget, Rows
        from vecdb_index.mib.backend import BACKEND
        from vecdb_index.mib.params import MIB

        params = MIB(**build)
        rows = Rows(base, np.linalg.norm(base, axis=1).astype(np.float32), self.metric)
        self.arrays = BACKEND.build(rows, {}, params, Budget(threads=threads), lambda share: None)
        self.index = BACKEND.open(self.arrays, {}, rows, params)

    def set_query_params(self, short):
        self.short = int(short)

    def query_batch(self, queries, k):
        return self.index.look(queries, k, self.short).rows

    def bytes_on_disk(self):
        return sum(array.nbytes for array in self.arrays.values())


def saved(save):
    with tempfile.TemporaryDirectory(dir=sys.argv[2]) as folder:
        path = folder + "/index"
        save(path)
        return os.path.getsize(path)


ADAPTERS = {
    "hnswlib": Hnswlib, "faiss": Faiss, "usearch": Usearch, "voyager": Voyager, "scann": Scann, "rabitqlib": Symqg, "svs": Svs,
    "ngt": Ngt, "vecdb": Vecdb, "usearch-bits": UsearchBits, "turbovec": Turbovec, "vecdb-mib": VecdbMIB,
}  # fmt: skip


if __name__ == "__main__":
    main(ADAPTERS)
