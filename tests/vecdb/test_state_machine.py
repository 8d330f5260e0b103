"""The whole API beside a dict, in any order Hypothesis thinks of, reopening at random."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.growing as growing_module
import vecdb_storage.store as store_module
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import vecdb
from vecdb import Dense, F, Sparse
from vecdb.errors import AlreadyExists

DIM = 5
ids = st.integers(0, 25)
colours = st.sampled_from(["red", "green", None, 3])
vectors = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM).filter(any)
payloads = st.fixed_dictionaries(
    {}, optional={"n": st.integers(0, 9), "colour": colours, "deep": st.fixed_dictionaries({"n": st.integers(0, 3)})}
)
weights = st.dictionaries(st.integers(0, 7).map(lambda n: n * 613_566_756), st.sampled_from([-2, 1, 3]), max_size=5)
points = st.dictionaries(ids, st.tuples(vectors, payloads, st.none() | weights), min_size=1, max_size=8)


class Model(RuleBasedStateMachine):
    """`model` is what the database must hold: id -> (vector, payload, sparse vector or None), in the order of writing."""

    sparse = False  # whether there is a second field, of sparse vectors, which points may lack

    @initialize()
    def create(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vecdb-model-"))
        self.db = vecdb.open(self.folder / "db")
        dense = Dense(DIM, metric="l2")
        self.docs = self.db.create_collection("docs", {"vector": dense, "terms": Sparse()} if self.sparse else dense)
        self.model: dict[int, tuple[list[int], dict[str, Any], dict[int, int] | None]] = {}

    def teardown(self) -> None:
        self.db.close()
        shutil.rmtree(self.folder)

    def _put(self, some: dict[int, Any]) -> None:
        for key, (vector, payload, terms) in some.items():
            self.model.pop(key, None)
            self.model[key] = vector, payload, terms if self.sparse else None

    @rule(some=points, insert=st.booleans(), way=st.sampled_from(["log", "growing", "level0"]))
    def write(self, some: dict[int, Any], insert: bool, way: str) -> None:
        dense = [v for v, _, _ in some.values()]
        arguments = {
            "ids": list(some),
            "vectors": {"vector": dense, "terms": [t for _, _, t in some.values()]} if self.sparse else dense,
            "payloads": [p for _, p, _ in some.values()],
        }
        patched = pytest.MonkeyPatch()
        if way == "level0":
            patched.setattr(store_module, "LEVEL0_BYTES", 0)
        elif way == "growing":
            patched.setattr(growing_module, "GROWING_BYTES", 0)
        try:
            if insert and some.keys() & self.model.keys():
                with pytest.raises(AlreadyExists):
                    self.docs.insert(**arguments)
            else:
                assert (self.docs.insert if insert else self.docs.upsert)(**arguments) == list(some)
                self._put(some)
        finally:
            patched.undo()

    @rule(some=st.lists(ids, max_size=6))
    def delete(self, some: list[int]) -> None:
        there = set(some) & self.model.keys()
        assert self.docs.delete(some) == len(there)
        for key in there:
            del self.model[key]

    @rule(least=st.integers(0, 9))
    def delete_where(self, least: int) -> None:
        gone = [key for key, (_, p, _) in self.model.items() if "n" in p and p["n"] >= least]
        assert self.docs.delete(where=F("n") >= least) == len(gone)
        for key in gone:
            del self.model[key]

    @rule(some=st.lists(ids, max_size=4, unique=True), payload=payloads, replace=st.booleans())
    def update_payload(self, some: list[int], payload: dict[str, Any], replace: bool) -> None:
        there = [key for key in some if key in self.model]
        assert self.docs.update_payload(some, payload, replace=replace) == len(there)
        for key in there:
            vector, old, terms = self.model[key]
            self._put({key: (vector, payload if replace else {**old, **payload}, terms)})

    @rule()
    def flush(self) -> None:
        self.docs.flush()

    @rule()
    def merge(self) -> None:
        self.docs.merge()

    @rule(whole=st.booleans())
    def vacuum(self, whole: bool) -> None:
        (self.db if whole else self.docs).vacuum()

    @rule(read_only=st.booleans())
    def reopen(self, read_only: bool) -> None:
        self.db.close()
        if read_only:
            with vecdb.open(self.folder / "db", read_only=True) as reader:
                assert {p.id for p in reader["docs"].scroll()} == self.model.keys()
        self.db = vecdb.open(self.folder / "db")
        self.docs = self.db.collection("docs")

    @rule(query=vectors, k=st.integers(1, 30), least=st.none() | st.integers(0, 9))
    def search(self, query: list[int], k: int, least: int | None) -> None:
        where = None if least is None else (F("n") >= least) | F("colour").is_null()
        allowed = [
            (float(np.sum((np.array(v) - np.array(query)) ** 2)) ** 0.5, key)
            for key, (v, p, _) in self.model.items()
            if least is None or ("n" in p and p["n"] >= least) or ("colour" in p and p["colour"] is None)
        ]
        hits = self.docs.search(query, k=k, where=where, field="vector")
        assert [(pytest.approx(score), key) for score, key in sorted(allowed)[:k]] == [(h.score, h.id) for h in hits]
        assert self.docs.count(where) == len(allowed)
        assert all(h.payload == self.model[h.id][1] for h in hits)

    @rule(query=weights, k=st.integers(1, 30), least=st.none() | st.integers(0, 9))
    def search_by_terms(self, query: dict[int, int], k: int, least: int | None) -> None:
        if not self.sparse:
            return
        where = None if least is None else F("n") >= least
        allowed = [
            (-float(sum(query[term] * terms[term] for term in query.keys() & terms.keys())), key)
            for key, (_, p, terms) in self.model.items()
            if terms is not None and query.keys() & terms.keys() and (least is None or ("n" in p and p["n"] >= least))
        ]
        hits = self.docs.search(query, k=k, where=where, field="terms")
        assert [(-score, key) for score, key in sorted(allowed)[:k]] == [(h.score, h.id) for h in hits]

    @rule(some=st.lists(ids, max_size=6))
    def get(self, some: list[int]) -> None:
        for key, point in zip(some, self.docs.get(some), strict=True):
            expected = self.model.get(key)
            assert (point is None) == (expected is None)
            if point is not None and expected is not None:
                assert (point.id, *_stored(point)) == (key, *expected)

    @rule()
    def verify(self) -> None:
        assert self.docs.verify().ok

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        if not hasattr(self, "docs"):
            return
        found = {p.id: _stored(p) for p in self.docs.scroll(with_vectors=True)}
        assert found == self.model
        assert self.docs.count() == len(self.model)


def _stored(point: Any) -> tuple[list[int], Any, dict[int, int] | None]:
    terms = point.vectors.get("terms")
    return point.vectors["vector"].tolist(), point.payload, None if terms is None else terms.to_dict()


class SparseModel(Model):
    sparse = True


Model.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
SparseModel.TestCase.settings = Model.TestCase.settings
test_the_api_agrees_with_a_dict = Model.TestCase
test_a_sparse_field_beside_a_dense_one_agrees_with_a_dict = SparseModel.TestCase
