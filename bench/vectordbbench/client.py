"""vecdb as a database of VectorDBBench: its two configurations and its client, over vecdb's public API (see README.md).

A client is copied into several processes. Each opens the database in `init`: the one that loads may write, those that search only
read, which vecdb allows any number of. What is open never leaves a process.
"""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from vectordb_bench.backend.clients.api import DBCaseConfig, DBConfig, MetricType, VectorDB
from vectordb_bench.backend.filter import FilterOp

import vecdb
from vecdb.errors import VecdbError

METRICS = {MetricType.COSINE: "cosine", MetricType.L2: "l2", MetricType.IP: "ip"}


class VecDBConfig(DBConfig):
    """path: the folder of the database."""

    path: str

    def to_dict(self):
        return {"path": self.path}


class VecDBCaseConfig(BaseModel, DBCaseConfig):
    """recall: what is asked of searches; vecdb chooses the effort. metric_type is set by the case."""

    metric_type: MetricType | None = None
    index: str = "hnsw"
    recall: float = 0.95

    def index_param(self):
        return {"metric": METRICS[self.metric_type or MetricType.COSINE], "index": self.index}

    def search_param(self):
        return {"recall": self.recall}


class VecDB(VectorDB):
    name = "VecDB"
    supported_filter_types = [FilterOp.NonFilter, FilterOp.NumGE, FilterOp.StrEqual]  # noqa: RUF012
    thread_safe = True

    def __init__(
        self, dim, db_config, db_case_config, collection_name="vector_bench", drop_old=False, with_scalar_labels=False, **kwargs
    ):
        self.path, self.collection_name, self.with_scalar_labels = db_config["path"], collection_name, with_scalar_labels
        self.dim = dim
        self.search_params, self.where, self.read_only = db_case_config.search_param(), None, False
        self.db = self.docs = None
        if drop_old or not (Path(self.path) / "VECDB").exists():
            with vecdb.open(self.path) as db:
                if collection_name in db:
                    db.drop_collection(collection_name)
                db.create_collection(collection_name, vecdb.Dense(dim, **db_case_config.index_param()))

    @contextmanager
    def init(self):
        # A searcher is one of many processes, as many as the runner wants to be busy, so each has one thread.
        with vecdb.open(self.path, read_only=self.read_only, threads=1 if self.read_only else None) as db:
            self.db, self.docs = db, db.collection(self.collection_name)
            if self.read_only:  # a new process loads its kernels at the first search, which is part of connecting
                self.docs.search(np.ones(self.dim, np.float32), k=1, with_payload=False, **self.search_params)
            try:
                yield
            finally:
                self.db = self.docs = None

    def insert_embeddings(self, embeddings, metadata, labels_data=None, **kwargs):
        """One commit, which is on the disk when this returns."""
        payloads = [{"id": number} for number in metadata]
        if self.with_scalar_labels:
            payloads = [{**payload, "label": label} for payload, label in zip(payloads, labels_data, strict=True)]
        try:
            self.docs.upsert(ids=metadata, vectors=np.asarray(embeddings, np.float32), payloads=payloads)
        except VecdbError as error:
            return 0, error
        return len(metadata), None

    def optimize(self, data_size=None):
        """Until every row is in a segment, and every segment has its index."""
        self.docs.flush()

    def prepare_filter(self, filters):
        """Called before searches; the runner of concurrent ones calls it before `init` too, which then opens to read only."""
        self.read_only = True
        if filters.type == FilterOp.NumGE:
            self.where = vecdb.F("id") >= filters.int_value
        elif filters.type == FilterOp.StrEqual:
            self.where = vecdb.F("label") == filters.label_value
        else:
            self.where = None

    def search_embedding(self, query, k=100, **kwargs):
        return self.docs.search(query, k=k, where=self.where, with_payload=False, **self.search_params).ids
