"""vecdb as an algorithm of ann-benchmarks: what goes by its public API, into `ann_benchmarks/algorithms/vecdb/` (see README.md).

The build argument is `m`, the links of a row in the graph; the query argument is the recall that is asked, for which vecdb
chooses the effort itself. Queries one by one are searched by one thread; a batch, by all cores.
"""

import os
import shutil
import tempfile

import numpy
import psutil

from ..base.module import BaseANN

METRICS = {"angular": "cosine", "euclidean": "l2"}


class VecDB(BaseANN):
    def __init__(self, metric, m):
        if metric not in METRICS:
            raise NotImplementedError(f"vecdb has no metric {metric!r}")
        self.metric, self.m = METRICS[metric], m
        self.folder, self.db, self.threads = None, None, None
        self.name = f"vecdb(m={m})"

    def fit(self, rows):
        import vecdb
        from vecdb.index import HNSW

        self.folder = tempfile.mkdtemp(prefix="vecdb-")
        self._open(os.cpu_count())
        dense = vecdb.Dense(rows.shape[1], metric=self.metric, index=HNSW(m=self.m))
        self.docs = self.db.create_collection("docs", dense)
        self.docs.upsert(ids=numpy.arange(len(rows)), vectors=rows)
        self.docs.flush()  # until the index is built and calibrated
        self._open(1)

    def _open(self, threads):
        """The database is told how many threads it has when it is opened."""
        import vecdb

        if self.threads != threads:
            if self.db is not None:
                self.db.close()
            self.db, self.threads = vecdb.open(os.path.join(self.folder, "db"), threads=threads), threads
            self.docs = self.db.collection("docs") if "docs" in self.db else None

    def set_query_arguments(self, recall):
        self.recall = recall
        self.name = f"vecdb(m={self.m}, recall={recall})"
        self._open(1)

    def query(self, v, n):
        return self.docs.search(v, k=n, recall=self.recall, with_payload=False).ids

    def prepare_batch_query(self, queries, n):
        """Not timed by the runner."""
        self._open(os.cpu_count())
        self.queries, self.n = queries, n

    def run_batch_query(self):
        self.res = self.docs.search_batch(self.queries, k=self.n, recall=self.recall, with_payload=False)

    def batch_query(self, queries, n):
        self.prepare_batch_query(queries, n)
        self.run_batch_query()

    def get_batch_results(self):
        return [ids[:length] for ids, length in zip(self.res.ids.tolist(), self.res.lengths, strict=True)]

    def get_memory_usage(self):
        """KiB resident, which counts the pages of mapped files that were read."""
        return psutil.Process().memory_info().rss / 1024

    def done(self):
        if self.db is not None:
            self.db.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __str__(self):
        return self.name
