"""Indexes of sparse vectors, each in a process of its own: `python sparse_ann.py NAME FOLDER BUILD`, BUILD as JSON.

FOLDER holds docs.npz, tune.npz and test.npz (CSR: indptr, indices, values), and the same as .bin in the form of Seismic's
authors. The program builds the index or loads what an earlier run saved, says what that took, and then answers one pass a line;
the other side of the pipe is `bench/sparse.py`. All on one thread. NumPy and the engine's own library only.
"""

import hashlib
import itertools
import json
import os
import sys
import tempfile
import time

import numpy as np

K = 10


def csr(path):
    with np.load(path) as file:
        return file["indptr"], file["indices"], file["values"].astype(np.float32)


class Sparse:
    """kept: the file of an index that was built before, or None where it is built each time."""

    def __init__(self, folder):
        self.folder = folder

    def fit(self, **build): ...

    def save(self, path): ...

    def load(self, path, **build): ...

    def rows(self, part, k, **params):
        """(seconds, CPU seconds, (m, k) rows, -1 where there is none)."""
        queries = self.queries(part)
        started, cpu = time.perf_counter(), time.process_time()
        found = self.batch(queries, k, **params)
        took = time.perf_counter() - started, time.process_time() - cpu
        return *took, self.ids(found, k)

    def queries(self, part):
        return csr(f"{self.folder}/{part}.npz")

    def singles(self, part, k, **params):
        """A function without arguments for each query, which searches it alone; none where that was not written."""
        return []

    def each(self, part, k, **params):
        """Seconds of each query alone, at the best of three."""
        calls, best = self.singles(part, k, **params), []
        for call in calls:
            took = []
            for _ in range(3):
                started = time.perf_counter()
                call()
                took.append(time.perf_counter() - started)
            best.append(min(took))
        return best


class Seismic(Sparse):
    def fit(self, **build):
        import seismic

        self.index = seismic.SeismicIndexRaw.build(f"{self.folder}/docs.bin", **build)

    def save(self, path):
        self.index.save(path)

    def load(self, path, **build):
        import seismic

        self.index = seismic.SeismicIndexRaw.load(path)

    def queries(self, part):
        return f"{self.folder}/{part}.bin"

    def batch(self, queries, k, cut, heap_factor, first_sorted=True):
        return self.index.batch_search(queries, k, cut, heap_factor, 0, first_sorted, num_threads=1)

    def singles(self, part, k, cut, heap_factor, first_sorted=True):
        indptr, indices, values = csr(f"{self.folder}/{part}.npz")
        rows = [(indices[a:b].astype(np.int32), values[a:b]) for a, b in itertools.pairwise(indptr)]
        return [lambda row=row: self.index.search(row[0], row[1], k, cut, heap_factor, 0, first_sorted) for row in rows]

    def ids(self, found, k):
        return np.array([[row for _, row in one] + [-1] * (k - len(one)) for one in found])


class Sindi(Sparse):
    """pyvsag: one call for each query is all there is."""

    def fit(self, window=50_000, prune=0.3):
        import pyvsag

        self.index = self._new(pyvsag, window, prune)
        indptr, indices, values = csr(f"{self.folder}/docs.npz")
        ids = np.arange(len(indptr) - 1, dtype=np.int64)
        self.index.build(indptr.astype(np.uint32), indices.astype(np.uint32), values, ids)

    def _new(self, pyvsag, window, prune):
        about = {
            "use_reorder": True,
            "term_id_limit": 31_000,
            "doc_prune_ratio": prune,
            "window_size": window,
            "use_quantization": True,
        }
        common = {"dtype": "sparse", "metric_type": "ip", "dim": 1024}
        return pyvsag.Index("sindi", json.dumps({**common, "index_param": about}))

    def save(self, path):
        self.index.save(path)

    def load(self, path, window=50_000, prune=0.3):
        import pyvsag

        self.index = self._new(pyvsag, window, prune)
        self.index.load(path)

    def queries(self, part):
        indptr, indices, values = super().queries(part)
        indices = indices.astype(np.uint32)
        return [
            (np.array([0, b - a], np.uint32), np.ascontiguousarray(indices[a:b]), np.ascontiguousarray(values[a:b]))
            for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)
        ]

    def batch(self, queries, k, query_prune, term_prune, n_candidate):
        about = json.dumps(
            {"sindi": {"query_prune_ratio": query_prune, "term_prune_ratio": term_prune, "n_candidate": n_candidate}}
        )
        return [self.index.knn_search(*query, k, about)[0].ravel() for query in queries]

    def singles(self, part, k, **params):
        return [lambda one=one: self.batch([one], k, **params) for one in self.queries(part)]

    def ids(self, found, k):
        return np.stack([np.concatenate([one, np.full(k - len(one), -1)]) for one in found])


class Bmp(Sparse):
    """Weights and queries as whole numbers: it takes no others. Its recall is held against that of the floats."""

    def fit(self, block=32):
        from bmp import Indexer

        self.path = tempfile.mktemp()
        indptr, indices, values = csr(f"{self.folder}/docs.npz")
        codes = np.maximum(1, np.rint(values * (255 / values.max()))).astype(int).tolist()
        names, bounds = [str(each) for each in indices.tolist()], indptr.tolist()
        indexer = Indexer(self.path, bsize=block, compress_range=True)
        for row in range(len(bounds) - 1):
            part = slice(bounds[row], bounds[row + 1])
            indexer.add_document(str(row), dict(zip(names[part], codes[part], strict=True)))
        indexer.finish()
        self._open(self.path)

    def _open(self, path):
        from bmp import Searcher

        self.index = Searcher(path)

    def save(self, path):
        os.replace(self.path, path)

    def load(self, path, **build):
        self._open(path)

    def queries(self, part):
        indptr, indices, values = super().queries(part)
        codes = np.maximum(1, np.rint(values * (255 / values.max()))).astype(int)
        return [
            {str(t): int(c) for t, c in zip(indices[a:b].tolist(), codes[a:b].tolist(), strict=True)}
            for a, b in zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)
        ]

    def batch(self, queries, k, alpha, beta=1.0):
        return [self.index.search(query, k=k, alpha=alpha, beta=beta) for query in queries]

    def ids(self, found, k):
        return np.array([[int(each) for each in one[0]][:k] + [-1] * (k - len(one[0])) for one in found])


class Kannolo(Sparse):
    """A graph."""

    def fit(self, m=32, ef_construction=200):
        import kannolo

        indptr, indices, values = csr(f"{self.folder}/docs.npz")
        about = {"m": m, "ef_construction": ef_construction}
        self.index = kannolo.SparsePlainHNSW.build_from_arrays(
            indices.astype(np.int32), values, indptr.astype(np.int64), **about
        )

    def save(self, path):
        self.index.save(path)

    def load(self, path, **build):
        import kannolo

        self.index = kannolo.SparsePlainHNSW.load(path)

    def queries(self, part):
        indptr, indices, values = super().queries(part)
        return indices.astype(np.int32), values, indptr.astype(np.int64)

    def batch(self, queries, k, ef):
        return self.index.batch_search(*queries, k, ef_search=ef, num_threads=1)

    def ids(self, found, k):
        rows = found[1] if isinstance(found, tuple) else found
        return np.asarray(rows).reshape(-1, k).astype(np.int64)


class Vecdb(Sparse):
    """Our own."""

    def _rows(self, part):
        from vecdb_index.contract import SparseRows

        indptr, indices, values = csr(f"{self.folder}/{part}.npz")
        return SparseRows(indptr.astype(np.uint64), indices.astype(np.uint32), values)

    def fit(self, **build):
        from vecdb_index.contract import Budget
        from vecdb_index.seismic.backend import BACKEND

        self.docs = self._rows("tune")
        self.arrays = BACKEND.build(self.docs, {}, BACKEND.params(**build), Budget(), lambda share: None)
        self._open(build)  # all is compiled
        self.started = time.perf_counter(), time.process_time()
        self.docs = self._rows("docs")
        self.arrays = BACKEND.build(self.docs, {}, BACKEND.params(**build), Budget(), lambda share: None)
        self._open(build)

    def _open(self, build):
        from vecdb_index.seismic.backend import BACKEND

        self.index = BACKEND.open(self.arrays, {}, self.docs, BACKEND.params(**build))
        few = self._rows("tune")
        self.index.nearly(few, K, 0.5, None, None, None)
        self.index.exact.search(few[:2], K)

    def save(self, path):
        """As a segment has them: one after another, each at a multiple of 64 bytes."""
        about, at = {}, 0
        with open(path, "wb") as file:
            for name, array in self.arrays.items():
                about[name] = at, array.dtype.str, array.shape
                file.write(np.ascontiguousarray(array).tobytes())
                at = -(-file.tell() // 64) * 64
                file.write(bytes(at - file.tell()))
        with open(f"{path}.json", "w") as file:
            json.dump(about, file)

    def load(self, path, **build):
        self.docs = self._rows("docs")
        with open(f"{path}.json") as file:
            about = json.load(file)
        mapped = np.memmap(path, np.uint8, "r")
        self.arrays = {}
        for name, (at, dtype, shape) in about.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self.arrays[name] = mapped[at : at + size].view(dtype).reshape(shape)
        self._open(build)

    def queries(self, part):
        return self._rows(part)

    def batch(self, queries, k, effort=None, exact=False, **settings):
        from vecdb_index.seismic.search import Settings

        if exact:
            return self.index.exact.search(queries, k)
        if effort is not None:
            return self.index.search(queries, k, effort)
        return self.index.search_with(Settings(**settings), queries, k)

    def singles(self, part, k, **settings):
        queries = self._rows(part)
        some = [queries[q : q + 1] for q in range(len(queries))]
        return [lambda one=one: self.batch(one, k, **settings) for one in some]

    def ids(self, found, k):
        return found.rows


class Scipy(Sparse):
    """Exact: the product of a query and all rows, then the best k."""

    def fit(self):
        from scipy.sparse import csr_matrix

        indptr, indices, values = csr(f"{self.folder}/docs.npz")
        self.by_term = csr_matrix((values, indices.astype(np.int32), indptr), (len(indptr) - 1, 1 << 15)).T.tocsr()

    def batch(self, queries, k):
        from scipy.sparse import csr_matrix

        indptr, indices, values = queries
        asked = csr_matrix((values, indices.astype(np.int32), indptr), (len(indptr) - 1, 1 << 15))
        found = []
        for q in range(len(indptr) - 1):
            product = asked[q] @ self.by_term
            best = np.argpartition(-product.data, k)[:k] if product.nnz > k else np.arange(product.nnz)
            found.append(product.indices[best])
        return found

    def ids(self, found, k):
        return np.stack([np.concatenate([one, np.full(k - len(one), -1)]) for one in found])


ENGINES = {
    "pyseismic": Seismic,
    "sindi": Sindi,
    "bmp": Bmp,
    "kannolo": Kannolo,
    "vecdb": Vecdb,
    "vecdb-knn": Vecdb,
    "vecdb-exact": Vecdb,
    "scipy": Scipy,
}


def main():
    sys.path.pop(0)  # the folder of the peers has files that are named like libraries
    name, folder, build = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    engine = ENGINES[name](folder)
    sources = os.environ.get("BENCH_SOURCES", "")  # of ours, a hash: an index that others built is not ours
    key = hashlib.sha256(json.dumps([name, build, sources], sort_keys=True).encode()).hexdigest()[:12]
    path = f"{folder}/{name}-{key}.index"
    if os.path.exists(f"{path}.took"):
        engine.load(path, **build)
        with open(f"{path}.took") as file:
            took = json.load(file)
    else:
        engine.started = time.perf_counter(), time.process_time()
        engine.fit(**build)
        took = {
            "seconds": time.perf_counter() - engine.started[0],
            "cpu": time.process_time() - engine.started[1],
            "bytes": None,
        }
        if type(engine).save is not Sparse.save:
            engine.save(path)
            took["bytes"] = os.path.getsize(path)
            engine.load(path, **build)
            with open(f"{path}.took", "w") as file:
                json.dump(took, file)
    print(json.dumps(took), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "each" in request:
            print(json.dumps({"each": engine.each(request["each"], request["k"], **request["params"])}), flush=True)
            continue
        seconds, cpu, rows = engine.rows(request["queries"], request["k"], **request["params"])
        np.save(request["rows"], rows)
        print(json.dumps({"seconds": seconds, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
