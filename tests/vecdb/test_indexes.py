"""Indexes behind the API: what is asked is delivered, and whatever happens to an index, no answer is lost."""

from __future__ import annotations

import gc
import itertools
import logging
import math
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from vecdb_index import registry
from vecdb_index.flat.search import FlatSearcher
from vecdb_storage import merge, store

import vecdb
from vecdb import Dense, F
from vecdb.errors import DeadlineExceeded, DiskFull, InvalidInput
from vecdb.index import HNSW, Flat
from vecdb.search import calibrate, copies, whole
from vecdb.search.calibrate import Calibration, Curve
from vecdb.search.indexes import index_of
from vecdb.upkeep import indexing, probing

DIM = 24


@pytest.fixture(autouse=True)
def _by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a choice, the index: these collections are so small that the clock might decide otherwise."""
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)
    monkeypatch.setattr(calibrate, "_HOPELESS", 1e9)
    monkeypatch.setattr(whole, "_HOPELESS", 1e9)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((30, DIM)) * 2
    return (centres[rng.integers(0, 30, 6000)] + rng.standard_normal((6000, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((30, DIM)) * 2
    rng = np.random.default_rng(2)
    return (centres[rng.integers(0, 30, 300)] + rng.standard_normal((300, DIM))).astype(np.float32)


def filled(db: vecdb.Database, vectors: np.ndarray, index: Any = "hnsw", metric: Any = "l2") -> vecdb.Collection:
    docs = db.create_collection("docs", Dense(DIM, metric=metric, index=index))
    docs.upsert(ids=range(len(vectors)), vectors=vectors, payloads=[{"n": i % 100} for i in range(len(vectors))])
    docs.flush()
    return docs


@pytest.fixture
def docs(db: vecdb.Database, vectors: np.ndarray) -> vecdb.Collection:
    return filled(db, vectors)


def ways(docs: vecdb.Collection, query: Any, **options: Any) -> list[str]:
    return [part.way.split(",")[0] for part in docs.search(query, explain=True, **options).plan.parts]


def share(found: Any, true: Any) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.ids, true.ids, strict=True)]))


def test_the_recall_that_is_asked_is_delivered(docs: vecdb.Collection, queries: np.ndarray) -> None:
    """On queries that nobody has seen. The allowance is three standard errors of 300 queries."""
    for k in (1, 10, 100):
        true = docs.search_batch(queries, k=k, exact=True)
        for recall in (0.8, 0.9, 0.95, 0.99):
            found = docs.search_batch(queries, k=k, recall=recall, explain=True)
            assert found.plan is not None and found.plan.recall_expected is not None
            assert found.plan.recall_expected >= recall
            each = [len(set(a) & set(b)) / k for a, b in zip(found.ids, true.ids, strict=True)]
            assert np.mean(each) >= recall - 3 * np.std(each) / len(each) ** 0.5, (k, recall)


def test_points_that_go_and_come_again_are_found_as_in_a_new_collection(db: vecdb.Database, vectors: np.ndarray) -> None:
    """Five times three tenths of the points are deleted, and written again."""
    docs, rng = filled(db, vectors), np.random.default_rng(3)
    for _ in range(5):
        some = rng.permutation(len(vectors))[: len(vectors) * 3 // 10]
        assert docs.delete(some) == len(some)
        docs.flush()
        docs.upsert(ids=some, vectors=vectors[some], payloads=[{"n": int(i) % 100} for i in some])
        docs.flush()
    docs.merge()
    # So many queries that half a point of recall is no chance.
    queries = vectors[rng.integers(0, len(vectors), 2000)] + rng.standard_normal((2000, DIM)).astype(np.float32)
    true = np.argsort((vectors**2).sum(axis=1) - 2 * queries @ vectors.T, axis=1)[:, :10]

    def recall(collection: vecdb.Collection, effort: float) -> float:
        (part,) = collection._store.snapshot(collection._uuid).parts
        searcher = index_of(part, "vector", None).searcher  # type: ignore[arg-type]
        assert searcher is not None
        found = [part.keys(rows) for rows in searcher.search(queries, 10, effort).rows]
        return float(np.mean([len(set(mine) & set(right)) / 10 for mine, right in zip(found, true.tolist(), strict=True)]))

    db.rename_collection("docs", "churned")
    fresh = filled(db, vectors)
    for effort in (0.2, 0.3):
        assert recall(docs, effort) >= recall(fresh, effort) - 0.005, (effort, recall(fresh, effort))


def test_an_index_saves_work(docs: vecdb.Collection, queries: np.ndarray) -> None:
    found = docs.search_batch(queries, k=10, recall=0.9, explain=True).plan
    assert found is not None
    assert sum(part.scored for part in found.parts) < len(queries) * docs.count() / 4
    assert "index" in str(found) and "expected" in str(found)
    assert docs.info().indexes["vector"].segments == 1


def test_exact_is_exact_beside_an_index(docs: vecdb.Collection, vectors: np.ndarray, queries: np.ndarray) -> None:
    for query in queries[:5]:
        truth = np.argsort(((vectors - query) ** 2).sum(1), kind="stable")[:10].tolist()
        assert docs.search(query, k=10, exact=True).ids == truth
        assert docs.search(query, k=10, recall=1.0).ids == truth
        assert ways(docs, query, exact=True) == ["exact scan"]


@pytest.mark.parametrize("where", ["n < 50", "n < 10", "n == 3", "n == 3 and n == 4"])
def test_k_hits_come_back_under_any_filter(docs: vecdb.Collection, queries: np.ndarray, where: str) -> None:
    docs.delete(range(0, 6000, 7))
    there = docs.count(where)
    batch = docs.search_batch(queries[:40], k=30, where=where, recall=0.95)
    assert batch.lengths.tolist() == [min(30, there)] * 40
    truth = docs.search_batch(queries[:40], k=30, where=where, exact=True)
    if there:
        assert share(batch, truth) >= 0.9
    for hit in docs.search(queries[0], k=30, where=where):
        assert hit.id % 7 != 0


def test_writes_during_a_build_appear_at_once(db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry.backend("hnsw")
    inside, go_on = threading.Event(), threading.Event()
    build = type(backend).build

    def slow(self: Any, *arguments: Any) -> Any:
        inside.set()
        assert go_on.wait(30)
        return build(self, *arguments)

    monkeypatch.setattr(type(backend), "build", slow)
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    docs.upsert(ids=range(2000), vectors=vectors[:2000])
    docs.flush(wait=False)
    assert inside.wait(30)
    assert ways(docs, vectors[5]) == ["exact scan"]
    docs.delete([5])
    docs.upsert(ids=[7, 9000], vectors=[vectors[5], vectors[5] + 0.001])
    assert docs.search(vectors[5], k=2).ids == [7, 9000]
    go_on.set()
    docs.flush()
    assert "index" in ways(docs, vectors[5])[0]
    assert docs.search(vectors[5], k=2).ids == [7, 9000]
    assert 5 not in docs.search(vectors[5], k=50, recall=0.99).ids


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_index_costs_no_answer_and_is_built_again(
    tmp_path: Path, vectors: np.ndarray, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with vecdb.open(tmp_path / "db") as db:
        filled(db, vectors[:3000])
    (file,) = (tmp_path / "db").rglob("*.idx")
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[200] ^= 0xFF
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        file.unlink()
    with vecdb.open(tmp_path / "db", read_only=True) as reader, caplog.at_level(logging.WARNING, "vecdb"):
        docs = reader["docs"]
        assert docs.search(vectors[1], k=1).ids == [1]
        assert ways(docs, vectors[1]) == ["exact scan"]
        assert not reader.verify().ok
    assert any("index cannot be used" in record.message for record in caplog.records)
    with vecdb.open(tmp_path / "db") as db:
        docs = db["docs"]
        docs.flush()
        assert ways(docs, vectors[1]) != ["exact scan"]
        assert docs.search(vectors[1], k=1).ids == [1]
        assert db.verify().ok
        assert len(list((tmp_path / "db").rglob("*.idx"))) == 1, "the damaged file is gone"


def test_an_index_can_be_changed_and_rebuilt_on_a_live_collection(
    docs: vecdb.Collection, vectors: np.ndarray, queries: np.ndarray
) -> None:
    folder = docs._store.folder(docs._uuid)
    first = next(folder.glob("*.idx"))
    assert docs._store.snapshot(docs._uuid).parts[0].segment.index(first.name).meta["params"]["m"] == HNSW().m  # type: ignore[attr-defined]
    docs.set_index(HNSW(m=8, ef_construction=60))
    assert docs.search(vectors[1], k=1).ids == [1]
    docs.flush()
    (second,) = folder.glob("*.idx")
    assert docs._store.snapshot(docs._uuid).parts[0].segment.index(second.name).meta["params"]["m"] == 8  # type: ignore[attr-defined]
    docs.rebuild_index()
    docs.flush()
    (third,) = folder.glob("*.idx")
    assert len({first.name, second.name, third.name}) == 3
    docs.set_index("flat")
    docs.flush()
    assert list(folder.glob("*.idx")) == []
    assert ways(docs, queries[0]) == ["exact scan"]
    assert docs.info().fields["vector"].index == Flat()
    for wrong in ("nope", 5, HNSW):
        with pytest.raises(InvalidInput, match="index"):
            docs.set_index(wrong)


def test_indexes_outlive_a_reopen_and_serve_readers(tmp_path: Path, vectors: np.ndarray) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = filled(db, vectors, HNSW(m=12, ef_construction=80))
        before = docs.search_batch(vectors[:20], k=5, recall=0.95)
    (file,) = (tmp_path / "db").rglob("*.idx")
    stamp = file.stat().st_mtime_ns
    for read_only in (True, False):
        with vecdb.open(tmp_path / "db", read_only=read_only) as db:
            docs = db["docs"]
            assert docs.info().fields["vector"].index == HNSW(m=12, ef_construction=80)
            after = docs.search_batch(vectors[:20], k=5, recall=0.95, explain=True)
            assert after.ids.tolist() == before.ids.tolist()
            assert after.plan is not None and after.plan.parts[0].way.startswith("index")
    assert file.stat().st_mtime_ns == stamp


def test_a_build_that_is_cut_short_leaves_nothing_and_begins_again(tmp_path: Path, vectors: np.ndarray) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
        docs.upsert(ids=range(6000), vectors=vectors)
        docs.flush(wait=False)
    assert {p.suffix for p in (tmp_path / "db").rglob("*") if p.is_file() and p.parent.parent.name == "segments"} <= {
        ".seg",
        ".idx",
    }
    with vecdb.open(tmp_path / "db") as db:
        docs = db["docs"]
        assert docs.search(vectors[3], k=1).ids == [3]
        docs.flush()
        assert docs.info().indexes["vector"].segments == 1


def test_builds_can_be_paused(db: vecdb.Database, vectors: np.ndarray) -> None:
    db.pause_indexing()
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    docs.upsert(ids=range(3000), vectors=vectors[:3000])
    docs.flush()
    assert docs.info().indexes["vector"].segments == 0
    assert docs.search(vectors[3], k=1).ids == [3]
    db.resume_indexing()
    docs.flush()
    assert docs.info().indexes["vector"].segments == 1


@pytest.mark.parametrize("why", ["many", "few", "flat", "paused", "unsearched"])
def test_rows_in_memory_that_take_searches_long_become_a_segment_with_an_index(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr(indexing, "_LONG_SCAN", 0.0)
    monkeypatch.setattr(indexing, "_SOONEST", 0.0)
    asked: list[bytes] = []
    soon = db._store.flusher.flush_soon
    monkeypatch.setattr(db._store.flusher, "flush_soon", lambda uuid: asked.append(uuid) or soon(uuid))
    if why == "paused":
        db.pause_indexing()
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="flat" if why == "flat" else "hnsw"))
    rows = 4000 if why == "few" else 6000
    docs.upsert(ids=range(rows), vectors=vectors[:rows], payloads=[{"n": i % 100} for i in range(rows)])
    if why != "unsearched":
        assert docs.search(vectors[7], k=1).ids == [7]
    assert asked == ([docs._uuid] if why == "many" else [])
    if why == "many":
        end = time.monotonic() + 60
        while docs.info().indexes["vector"].rows < rows and time.monotonic() < end:
            assert docs.search(vectors[7], k=1).ids == [7]
            time.sleep(0.01)
        assert ways(docs, vectors[7]) == ["index"] and docs.count() == rows
        assert len(set(asked)) == 1 and docs.info().segments == 1, "and not again, while it is being built"
        docs.upsert(ids=[7], vectors=vectors[9:10])
        assert docs.search(vectors[9], k=2).ids == [7, 9]


def test_builds_leave_a_core_to_searches_and_take_it_back(docs: vecdb.Collection, vectors: np.ndarray) -> None:
    indexer = docs._indexer
    assert indexer is not None
    for control in (indexer._control, indexer._merging):
        indexer._control.searched = -1e9
        assert [control.threads(most) for most in (1, 2, 8)] == [1, 2, 8]
        docs.search(vectors[3], k=1)
        indexer._control.searched += 60  # so that it is not over before it is looked at
        assert [control.threads(most) for most in (1, 2, 8)] == [1, 1, 7]


def test_a_build_that_cannot_have_its_memory_says_so(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "available", lambda: 2)
    docs = filled(db, vectors[:2000])
    assert "needs about" in (docs.info().indexes["vector"].error or "")
    assert docs.search(vectors[3], k=1).ids == [3]


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_every_metric_and_dtype_has_its_index(db: vecdb.Database, vectors: np.ndarray, metric: Any, dtype: Any) -> None:
    stored = np.rint(vectors[:3000] * 8).clip(-127, 127) if dtype == "i8" else vectors[:3000]
    docs = db.create_collection("docs", Dense(DIM, metric=metric, dtype=dtype, index=HNSW()))
    docs.upsert(ids=range(3000), vectors=stored)
    docs.flush()
    found = docs.search_batch(stored[:200], k=10, recall=0.95, explain=True)
    assert found.plan is not None and found.plan.parts[0].way.startswith("index")
    assert share(found, docs.search_batch(stored[:200], k=10, exact=True)) >= 0.92


def test_few_equal_and_lacking_rows_are_indexed_too(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", {"a": Dense(3, index="hnsw"), "b": Dense(2, metric="l2", index="hnsw")})
    docs.upsert([{"id": i, "vectors": {"a": [1, 2, 3]} if i % 3 else {"b": [1, 1]}} for i in range(90)])
    docs.flush()
    assert {name: each.segments for name, each in docs.info().indexes.items()} == {"a": 1, "b": 1}
    assert docs.search([1, 2, 3], k=99, field="a").ids == [i for i in range(90) if i % 3]
    assert docs.search([0, 0], k=5, field="b", where=F("x").exists()).ids == []


def test_auto_indexes_what_is_worth_it_and_says_why(db: vecdb.Database, vectors: np.ndarray) -> None:
    docs = filled(db, vectors[:1000], "auto")
    info = docs.info().indexes["vector"]
    assert (info.segments, info.error) == (0, None)
    assert "auto: exact" in info.why
    wide = db.create_collection("wide", Dense(1024))
    wide.upsert(ids=range(6000), vectors=np.random.default_rng(0).standard_normal((6000, 1024), np.float32))
    wide.flush()
    info = wide.info().indexes["vector"]
    assert (info.segments, info.rows) == (1, 6000)
    assert "auto: hnsw" in info.why


def test_a_search_keeps_its_deadline(docs: vecdb.Collection, queries: np.ndarray) -> None:
    assert docs.search_batch(queries, k=5, timeout=60).lengths.all()
    for exact in (False, True):
        with pytest.raises(DeadlineExceeded, match="took longer than 1e-09 s"):
            docs.search_batch(queries, k=5, timeout=1e-9, exact=exact)
    for wrong in (0, -1, "x", True):
        with pytest.raises(InvalidInput, match="timeout"):
            docs.search(queries[0], timeout=wrong)


def test_memtable_and_several_segments_are_one_answer(db: vecdb.Database, vectors: np.ndarray, queries: np.ndarray) -> None:
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    for start in range(0, 4000, 1000):
        docs.upsert(ids=range(start, start + 1000), vectors=vectors[start : start + 1000])
        docs.flush()
    docs.upsert(ids=range(4000, 4300), vectors=vectors[4000:4300])
    assert docs.info().indexes["vector"].segments == 4
    plan = docs.search(queries[0], explain=True).plan
    assert [part.kind for part in plan.parts][:5] == ["segment"] * 4 + ["memtable"]
    true = docs.search_batch(queries, k=10, exact=True)
    assert share(docs.search_batch(queries, k=10, recall=0.95), true) >= 0.93


def test_the_users_own_queries_decide_once_they_are_given(docs: vecdb.Collection, vectors: np.ndarray, tmp_path: Path) -> None:
    """Queries unlike the rows find less than was asked, until the engine is shown some of them."""
    rng = np.random.default_rng(5)
    shifted = (rng.standard_normal((400, DIM)) * 4).astype(np.float32)
    shown, fresh = shifted[:200], shifted[200:]
    true = docs.search_batch(fresh, k=10, exact=True)
    before = share(docs.search_batch(fresh, k=10, recall=0.95), true)
    report = docs.calibrate(shown)
    after = docs.search_batch(fresh, k=10, recall=0.95, explain=True)
    assert share(after, true) >= max(0.93, before - 0.01)
    assert [curve.k for curve in report.curves] == [1, 10, 100]
    assert "k=10, 200 queries" in str(report) and "█" in str(report)
    report.save(str(tmp_path / "recall.png"))
    assert (tmp_path / "recall.png").read_bytes()[:4] == b"\x89PNG"
    given = docs.calibrate(shown, truth=docs.search_batch(shown, k=10, exact=True).ids)
    assert [curve.k for curve in given.curves] == [1, 10]
    both = min(len(given.curves[1].recalls), len(report.curves[1].recalls))  # where an exact search is quicker, they end
    assert given.curves[1].recalls[:both] == pytest.approx(report.curves[1].recalls[:both], abs=0.02)
    with pytest.raises(InvalidInput, match="at least 20 queries"):
        docs.calibrate(shown[:5])
    with pytest.raises(InvalidInput, match="each of the 200 queries; it has 3 rows"):
        docs.calibrate(shown, truth=[[1], [2], [3]])


@dataclass(frozen=True)
class Turned:
    backend: ClassVar[str] = "turned"


class TurnedBackend:
    """Exact search of a backend that is nothing without what it has trained."""

    name, version, kind, params = "turned", 1, "dense", Turned

    def train(self, sample: Any, params: Any, budget: Any, before: Any = None) -> Any:
        return {"angle": np.array([len(sample)])}

    def build(self, rows: Any, trained: Any, params: Any, budget: Any, progress: Any, trial: Any = None) -> Any:
        return {"turned": trained["angle"] * 2}

    def merge(self, *_: Any, **__: Any) -> None:
        return None

    def open(self, arrays: Any, trained: Any, rows: Any, params: Any) -> Any:
        assert arrays["turned"][0] == 2 * trained["angle"][0] == 2 * len(rows)
        return FlatSearcher(rows)


def test_what_a_backend_trained_comes_back_and_one_that_is_not_registered_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_registered", {"turned": TurnedBackend()})
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(2, metric="l2", index=Turned()))
        docs.upsert(ids=range(50), vectors=np.arange(100).reshape(50, 2))
        docs.flush()
        info = docs.info().indexes["vector"]
        assert (info.segments, info.error) == (1, None)
        assert docs.verify().ok
    with vecdb.open(tmp_path / "db", read_only=True) as db:
        assert index_of(db["docs"]._snapshot().parts[0], "vector", None).searcher is not None  # type: ignore[arg-type]
    monkeypatch.setattr(registry, "_registered", {})
    with vecdb.open(tmp_path / "db") as db:
        docs = db["docs"]
        docs.flush()
        assert docs.search([0, 1], k=2).ids == [0, 1]
        assert ways(docs, [0, 1]) == ["exact scan"]
        docs.upsert(ids=[99], vectors=[[0, 1]])
        assert docs.info().indexes["vector"].segments == 1, "its index is kept"
    monkeypatch.setattr(registry, "_registered", {"turned": TurnedBackend()})
    with vecdb.open(tmp_path / "db") as db:
        assert db["docs"].info().fields["vector"].index == Turned()


def test_a_backend_that_breaks_is_named_and_waited_for_no_longer(db: vecdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: Any) -> Any:
        raise RuntimeError("it broke")

    monkeypatch.setattr(TurnedBackend, "build", build)
    monkeypatch.setattr(registry, "_registered", {"turned": TurnedBackend()})
    docs = db.create_collection("docs", Dense(2, metric="l2", index=Turned()))
    docs.upsert(ids=range(50), vectors=np.arange(100).reshape(50, 2))
    docs.flush()
    assert docs.info().indexes["vector"].error == "it broke"
    assert docs.search([0, 1], k=2).ids == [0, 1]


def test_rows_without_an_index_are_searched_by_a_copy_of_a_quarter_the_bytes(db: vecdb.Database) -> None:
    """From the second search on, in memory and in segments that wait for their index; with the same answers."""
    rng = np.random.default_rng(9)
    x = rng.standard_normal((9000, 64), np.float32)
    gc.collect()
    of_others = copies.size()
    db.pause_indexing()
    docs = db.create_collection("docs", Dense(64, index="hnsw"))
    docs.upsert(ids=range(5000), vectors=x[:5000])
    docs.flush(wait=False)
    docs.upsert(ids=range(5000, 7000), vectors=x[5000:7000])
    first = docs.search(x[0], k=5, explain=True)
    second = docs.search(x[0], k=5, explain=True)
    assert (second.ids, second.scores) == (first.ids, first.scores)
    for one, other in zip(first.plan.parts, second.plan.parts, strict=True):
        assert one.scored == other.scored == one.rows
        if one.rows >= 4096:
            assert other.bytes < one.bytes / 2
    docs.upsert(ids=range(7000, 9000), vectors=x[7000:])  # the block goes on growing
    docs.delete(ids=range(0, 9000, 3))
    alive = np.flatnonzero(np.arange(9000) % 3)
    unit = x / np.linalg.norm(x, axis=1)[:, None]
    for q in x[:20]:
        true = alive[np.argsort(-(unit[alive] @ q), kind="stable")[:5]]
        assert docs.search(q, k=5).ids == true.tolist()
    assert copies.size() - of_others >= 5000 * 64
    db.resume_indexing()
    docs.flush()
    docs.search(x[0], k=5)
    gc.collect()
    assert copies.size() <= of_others, "a copy goes with its rows, or when a search finds their index"


def waited(condition: Any, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)


def test_a_calibration_on_own_queries_is_outgrown_and_measured_again(
    db: vecdb.Database, vectors: np.ndarray, queries: np.ndarray
) -> None:
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    docs.upsert(ids=range(3000), vectors=vectors[:3000])
    docs.flush()
    docs.calibrate(queries)
    first = docs._measured(docs._snapshot(), "vector")
    assert docs.info().indexes["vector"].calibrated == 3000
    docs.upsert(ids=range(3000, 3300), vectors=vectors[3000:3300])
    docs.flush()
    assert docs.info().indexes["vector"].calibrated in (3000, 3300)  # a second segment may be reason enough
    docs.upsert(ids=range(3300, 6000), vectors=vectors[3300:])
    docs.flush()

    def settled() -> bool:  # it may be measured before the last index is there, and is outgrown by that
        info = docs.info().indexes["vector"]
        return info.calibrated == 6000 and not info.outgrown

    waited(settled)
    again = docs._measured(docs._snapshot(), "vector")
    assert [curve.recalls for curve in again.calibration.curves] != [curve.recalls for curve in first.calibration.curves]
    docs.calibrate(queries[:50])  # other queries take the place of those
    folder = Path(docs._store.folder(docs._uuid))
    assert len([name for name in folder.iterdir() if name.suffix == store.ATTACHMENT]) == 1


def test_a_calibration_with_given_truth_that_is_outgrown_says_so_and_gives_no_less_effort_than_the_index(
    db: vecdb.Database, vectors: np.ndarray, queries: np.ndarray
) -> None:
    docs = filled(db, vectors[:3000])
    true = docs.search_batch(queries, k=10, exact=True).ids
    docs.calibrate(queries, truth=true)
    docs.upsert(ids=range(3000, 6000), vectors=vectors[3000:])
    docs.flush()
    assert docs.info().indexes["vector"].outgrown
    found = docs.search_batch(queries, k=10, recall=0.95)
    assert share(found, docs.search_batch(queries, k=10, exact=True)) >= 0.93


def test_probed_recall_is_what_exact_searches_say(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    with vecdb.open(tmp_path / "db", recall_probe=1.0) as db:
        docs = filled(db, vectors)
        assert docs.info().indexes["vector"].probed is None
        found = [docs.search(q, k=10, recall=0.8) for q in queries[:40]]
        waited(lambda: (docs.info().indexes["vector"].probed or probing.Probed(0, 0, 0, 0, 0)).queries == 40)
        seen = docs.info().indexes["vector"].probed
        true = [docs.search(q, k=10, exact=True).ids for q in queries[:40]]
        delivered = np.mean([len(set(a.ids) & set(b)) / 10 for a, b in zip(found, true, strict=True)])
        assert seen.delivered == pytest.approx(delivered)
        assert seen.asked == pytest.approx(0.8)
        assert seen.low <= seen.delivered <= seen.high
        docs.search_batch(queries, k=5, where=F("n") < 50)  # of a batch one is enough; a filter goes along
        waited(lambda: docs.info().indexes["vector"].probed.queries == 41)
    with pytest.raises(InvalidInput, match="recall_probe"):
        vecdb.open(tmp_path / "other", recall_probe=2)


def test_a_memory_limit_of_the_user_is_kept_and_a_failed_build_is_tried_again(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_AGAIN", 0.3)
    with vecdb.open(tmp_path / "db", memory_limit=1000) as db:
        docs = filled(db, vectors)
        assert "1,000" in docs.info().indexes["vector"].error
        assert ways(docs, vectors[0]) == ["exact scan"]
        store, told = docs._indexer._store, []
        add = store.add_index

        def added(*args: Any) -> None:
            add(*args)
            told.append(docs.info().indexes["vector"])  # as soon as it is there

        monkeypatch.setattr(store, "add_index", added)
        docs._indexer._memory_limit = None
        waited(lambda: told)
        assert told[0].segments == 1 and told[0].error is None
    with pytest.raises(InvalidInput, match="memory_limit"):
        vecdb.open(tmp_path / "other", memory_limit=-1)


def test_with_several_segments_whole_searches_are_measured_and_deliver_what_is_asked(
    db: vecdb.Database, vectors: np.ndarray, queries: np.ndarray
) -> None:
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    for start in range(0, 6000, 1500):
        docs.upsert(ids=range(start, start + 1500), vectors=vectors[start : start + 1500])
        docs.flush()
    waited(lambda: docs.info().indexes["vector"].calibrated == 6000)
    by_rows = docs._measured(docs._snapshot(), "vector")
    assert by_rows.queries == "rows"
    assert [curve.k for curve in by_rows.calibration.curves] == [1, 10, 100]
    true = docs.search_batch(queries, k=10, exact=True)
    for recall in (0.8, 0.9, 0.95, 0.99):
        found = docs.search_batch(queries, k=10, recall=recall, explain=True)
        assert share(found, true) >= recall - 0.02
        assert {part.why for part in found.plan.parts if part.way.startswith("index")}
    docs.calibrate(queries)  # own queries take its place, and stay
    assert docs._measured(docs._snapshot(), "vector").queries == "kept"
    docs.set_index(HNSW(m=8))
    waited(lambda: not docs.info().indexes["vector"].outgrown and docs.info().indexes["vector"].building is None)
    assert docs._measured(docs._snapshot(), "vector").queries == "kept"


def test_small_segments_beside_large_ones_do_not_outgrow_what_was_measured(db: vecdb.Database, vectors: np.ndarray) -> None:
    """They hold few of anybody's best rows, however many they are; but where rows come to be spread otherwise, it is due."""
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=HNSW()))
    edges = [0, 4000, 4200, 4400, 4600, 4800]
    for start, stop in itertools.pairwise(edges):
        docs.upsert(ids=range(start, stop), vectors=vectors[start:stop])
        docs.flush()
        if stop == 4200:
            waited(lambda: docs.info().indexes["vector"].calibrated is not None)
    assert docs.info().segments == 5 and not docs.info().indexes["vector"].outgrown
    found = docs._measured(docs._snapshot(), "vector")
    assert found.rows == 4200 and found.spread == pytest.approx(4200**2 / (4000**2 + 200**2))
    db.pause_indexing()
    docs.upsert(ids=range(4800, 6000), vectors=vectors[4800:])
    docs.delete(range(1200))
    docs.flush(wait=False)
    assert docs.count() == 4800 and docs.info().indexes["vector"].outgrown


def test_points_of_a_curve_are_of_the_same_queries_unless_these_take_far_too_long() -> None:
    """And a machine that was busy for a moment costs one point its queries, not all that follow."""
    seconds = [0.0, 1e-4, 1.3e-4, 1e-3, 6e-4, 1e-4]
    queries, seen = 2000, []
    for each in seconds:
        queries = calibrate.at_the_next(queries, each, 2000)
        seen.append(queries)
    assert seen == [2000, 2000, 2000, 300, 300, 2000]


def test_a_calibration_before_the_index_is_there_does_not_count_for_it(
    db: vecdb.Database, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """It measured exact searches; taken for the index it would promise everything at no effort."""
    db.pause_indexing()
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    docs.upsert(ids=range(len(vectors)), vectors=vectors)
    docs.flush()
    assert docs.info().indexes["vector"].paused
    docs.calibrate(queries)
    db.resume_indexing()
    docs.flush()
    true = docs.search_batch(queries, k=10, exact=True)
    for _ in range(2):
        assert share(docs.search_batch(queries, k=10, recall=0.95), true) >= 0.93
        waited(lambda: not docs.info().indexes["vector"].outgrown)


def test_more_recall_than_an_index_was_seen_to_reach_is_got_by_an_exact_search(
    docs: vecdb.Collection, queries: np.ndarray
) -> None:
    poor = Calibration((Curve(10, 1.0, 600, (0.0, 0.5), (0.4, 0.7), (0.39, 0.69), (1e-6, 2e-6)),))
    found = index_of(docs._snapshot().parts[0], "vector", None)
    object.__setattr__(found, "calibration", poor)
    found.ways.clear()
    assert ways(docs, queries[0], recall=0.6)[0].startswith("index")
    assert ways(docs, queries[0], recall=0.9) == ["exact scan"]


def test_less_recall_costs_no_more(docs: vecdb.Collection, queries: np.ndarray) -> None:
    """Also where k is so large that a walk of little effort would not find k rows."""
    for k in (10, 100, 500):
        scored = [
            docs.search_batch(queries[:50], k=k, recall=recall, explain=True).plan.parts[0].scored
            for recall in (0.3, 0.6, 0.9, 0.99)
        ]
        assert scored == sorted(scored)


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ([[1]] * 5, "a row of ids for each of the 20 queries"),
        ([1] * 20, "query 0.*no list of ids"),
        ([[]] * 20, "query 0.*empty"),
        ([[1, 2]] * 19 + [[3, 3]], "query 19.*twice"),
        ([[1, 10**9]] * 20, "1000000000.*not in this collection"),
        ([["a"]] * 20, "'a'"),
    ],
)
def test_truth_that_cannot_be_is_refused(docs: vecdb.Collection, queries: np.ndarray, truth: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        docs.calibrate(queries[:20], truth=truth)
    assert docs.info().indexes["vector"].calibrated is None


def test_a_picture_that_cannot_be_and_an_answer_too_large_are_refused(
    docs: vecdb.Collection, queries: np.ndarray, tmp_path: Path
) -> None:
    report = docs.calibrate(queries[:20])
    for path in (tmp_path / "report.txt", tmp_path / "no" / "report.png"):
        with pytest.raises(InvalidInput, match="picture"):
            report.save(str(path))
    with pytest.raises(InvalidInput, match="ask for less"):
        docs.search_batch(queries[:2], k=10**9)
    with pytest.raises(InvalidInput, match="recall"):
        docs.search(queries[0], recall=True)


def test_a_build_that_is_not_wanted_any_more_is_given_up(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []
    add_index = store.Store.add_index
    monkeypatch.setattr(store.Store, "add_index", lambda *a: (built.append(a[5]["params"]), add_index(*a)))
    begun, go_on = threading.Event(), threading.Event()
    progress = indexing.Indexer._progress

    def held(self: Any, job: Any, share: float) -> None:
        progress(self, job, share)
        begun.set()
        assert go_on.wait(30)

    monkeypatch.setattr(indexing.Indexer, "_progress", held)
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    docs.upsert(ids=range(len(vectors)), vectors=vectors)
    docs.flush(wait=False)
    assert begun.wait(30)
    docs.set_index(HNSW(m=8))
    go_on.set()
    docs.flush()
    assert [params["m"] for params in built] == [8]
    assert docs.info().indexes["vector"].error is None


@pytest.mark.parametrize(("rows", "between"), [(500, True), (1000, False)])
def test_a_short_build_comes_between_the_steps_of_a_long_one(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, rows: int, between: bool
) -> None:
    """And rows in memory become a segment meanwhile, if its index will be there sooner."""
    for name, value in (("_LONG_SCAN", 0.0), ("_SOONEST", 0.0), ("AUTO_ROWS", 100)):
        monkeypatch.setattr(indexing, name, value)
    built: list[str] = []
    add_index, progress = store.Store.add_index, indexing.Indexer._progress
    monkeypatch.setattr(store.Store, "add_index", lambda *a: (built.append(a[2]), add_index(*a)))
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
    written: list[bool] = []

    def first(self: Any, job: Any, share: float) -> None:
        progress(self, job, share)
        if share and not written:
            written.append(True)
            docs.upsert(ids=range(9000, 9000 + rows), vectors=vectors[:rows])
            asked: list[bytes] = []
            with monkeypatch.context() as patched:
                patched.setattr(db._store.flusher, "flush_soon", asked.append)
                assert docs.search(vectors[1500], k=1).ids == [1500]
            assert bool(asked) == between
            docs.flush(wait=False)

    monkeypatch.setattr(indexing.Indexer, "_progress", first)
    docs.upsert(ids=range(len(vectors)), vectors=vectors)
    docs.flush()
    docs.flush()  # the first one does not wait for what was written meanwhile
    segments = {part.segment.name: part.rows for part in docs._snapshot().segments}
    assert [segments[name] for name in built] == ([rows, 6000] if between else [6000, rows])
    assert len(ways(docs, vectors[7])) == 2 and set(ways(docs, vectors[7])) == {"index"}


def test_a_failure_of_what_is_gone_does_not_keep_the_indexer_busy(
    tmp_path: Path, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_AGAIN", 0.05)
    with vecdb.open(tmp_path / "db", memory_limit=1000) as db:
        filled(db, vectors)
        indexer = db._indexer
        assert indexer._failed
        db.drop_collection("docs")
        waited(lambda: not indexer._failed)
        looks: list[int] = []
        look = indexing.Indexer._next
        monkeypatch.setattr(indexing.Indexer, "_next", lambda *a: (looks.append(1), look(*a))[1])
        time.sleep(0.5)
        assert len(looks) < 5


def segments_of(docs: vecdb.Collection, vectors: np.ndarray, count: int) -> None:
    for part in np.array_split(np.arange(len(vectors)), count):
        docs.upsert(ids=part.tolist(), vectors=vectors[part])
        docs.flush()


def test_a_merge_has_its_index_before_searches_find_it(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=HNSW()))
    segments_of(docs, vectors, 3)
    docs.delete(range(0, 6000, 50))
    built = indexing.Indexer._built
    seen: list[list[str]] = []

    def looking(indexer: Any, *about: Any) -> Any:
        seen.append(ways(docs, vectors[7]))
        docs.delete([11])  # while it is built
        return built(indexer, *about)

    monkeypatch.setattr(indexing.Indexer, "_built", looking)
    docs.merge()
    assert seen == [["index"] * 3], "until it is built, the old segments serve"
    assert [way.split()[0] for way in ways(docs, vectors[7])] == ["index"]
    assert docs.info().segments == 1 and docs.info().dead == 1
    true = docs.search_batch(vectors[:100], k=10, exact=True)
    found = docs.search_batch(vectors[:100], k=10, recall=0.95)
    assert 11 not in found.ids and np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true.ids, found.ids, strict=True)]) > 0.9
    assert db.verify().damage == []


@pytest.mark.parametrize("fails", [False, True])
def test_a_flush_waits_for_indexes_of_segments_that_are_about_to_be_merged(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """These get none of their own, for the merge will have one; unless it fails."""
    begin = merge.Merger._begin

    def late(merger: Any, uuid: bytes, names: Any) -> Any:
        time.sleep(0.5)
        if fails:
            raise DiskFull("a merge may need more")
        return begin(merger, uuid, names)

    monkeypatch.setattr(merge.Merger, "_begin", late)
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=HNSW()))
    db._store.merger._searched[docs._uuid] = math.inf  # so that few segments are enough
    segments_of(docs, vectors, merge.FAN_OF_SMALL)
    assert docs.info().segments == (merge.FAN_OF_SMALL if fails else 1)
    assert {way.split()[0] for way in ways(docs, vectors[7])} == {"index"}


def test_a_flush_does_not_wait_for_what_is_written_after_it(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a writer that is quicker than the indexes there is always a segment that lacks its own."""
    built, done, flushes = indexing.Indexer._built, threading.Event(), [0]

    def slow(*about: Any) -> Any:
        time.sleep(0.05)
        return built(*about)

    monkeypatch.setattr(indexing.Indexer, "_built", slow)
    monkeypatch.setattr(merge, "choose", lambda segments, searched=False: [])
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=HNSW()))
    docs.upsert(ids=range(100), vectors=vectors[:100])

    def write() -> None:
        while not done.is_set() and flushes[0] < 200:
            flushes[0] += 1
            docs.upsert(ids=range(100 * flushes[0], 100 * flushes[0] + 20), vectors=vectors[:20])
            docs.flush(wait=False)

    writer = threading.Thread(target=write)
    docs.flush(wait=False)
    writer.start()
    docs.flush()
    done.set()
    writer.join()
    assert 0 < flushes[0] < 200
    there = next(part for part in docs._snapshot().segments if part.rows == 100)
    assert "vector" in there.indexes


def test_a_merge_waits_for_no_index_while_indexing_is_paused(db: vecdb.Database, vectors: np.ndarray) -> None:
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=HNSW()))
    segments_of(docs, vectors, 3)
    started = threading.Event()
    taken = indexing.Indexer._finish

    def late(indexer: Any, merged: Any) -> None:
        db.pause_indexing()  # just as it is about to be built
        started.set()
        taken(indexer, merged)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing.Indexer, "_finish", late)
        docs.merge()
    assert started.is_set() and docs.info().segments == 1
    assert ways(docs, vectors[7]) == ["exact scan"]
    docs.delete(range(0, 6000, 3))
    docs.vacuum()
    assert docs.count() == 4000 and docs.info().dead == 0
    db.resume_indexing()
    docs.flush()
    assert [way.split()[0] for way in ways(docs, vectors[7])] == ["index"]


def test_a_merge_whose_index_cannot_be_built_is_made_without(
    db: vecdb.Database, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=HNSW()))
    segments_of(docs, vectors, 3)

    def failing(*arguments: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(indexing.Indexer, "_built", failing)
    with caplog.at_level(logging.WARNING, "vecdb"):
        docs.merge()
    assert docs.info().segments == 1 and ways(docs, vectors[7]) == ["exact scan"]
    assert any("merged segment" in record.message for record in caplog.records)


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads exist on Linux only")
def test_builds_run_at_a_lower_priority_than_the_application(docs: vecdb.Collection) -> None:
    builder = next(each.native_id for each in threading.enumerate() if each.name == "vecdb-index")
    assert builder is not None
    assert os.getpriority(os.PRIO_PROCESS, builder) > os.getpriority(os.PRIO_PROCESS, 0)
