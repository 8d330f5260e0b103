"""Indexes of sparse vectors behind the API: whatever rows are like, and whatever happens to an index, no answer is wrong."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index.contract import Cancelled, Control, DeadlineReached
from vecdb_index.flat import sparse as flat
from vecdb_index.registry import backend
from vecdb_index.seismic import search
from vecdb_storage.arrayfile import ArrayFile
from vecdb_storage.files import Files

import vecdb
from vecdb import Dense, F, Sparse, errors
from vecdb.errors import DeadlineExceeded
from vecdb.search import calibrate, whole
from vecdb.search.calibrate import Calibration
from vecdb.search.stopping import stopped_by
from vecdb.upkeep import indexing

scipy_sparse = pytest.importorskip("scipy.sparse")
N, COMMON, RARE = 2000, 300, 40  # rows; components that many of them have, and such as only one has


@pytest.fixture(autouse=True)
def _by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a choice, the pruned lists: these collections are so small that other ways might be as quick."""
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)
    monkeypatch.setattr(calibrate, "_HOPELESS", 1e9)
    monkeypatch.setattr(calibrate, "QUERIES", 60)
    monkeypatch.setattr(whole, "is_due", lambda *_: False)  # which takes its time
    monkeypatch.setattr(search, "_FEW", 0)


@pytest.fixture(scope="module")
def rows() -> list[dict[int, float]]:
    """More components in all than an index has slots, anywhere from 0 to 2^32 - 1."""
    return drawn(N, RARE, 1)


def drawn(count: int, rare: int, seed: int) -> list[dict[int, float]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        components = np.concatenate([rng.choice(COMMON, 12, replace=False), rng.integers(COMMON, 2**32, rare)])
        made.append(dict(zip(components.tolist(), rng.gamma(1.2, 0.5, 12 + rare).astype(np.float32).tolist(), strict=True)))
    return made


@pytest.fixture(scope="module")
def queries(rows: Any) -> list[dict[int, float]]:
    """Common components, and some of a row's own."""
    rng = np.random.default_rng(2)
    made = []
    for row in rng.integers(0, N, 12).tolist():
        own = list(rows[row])[12:15]
        components = [*rng.choice(COMMON, 8, replace=False).tolist(), *own]
        made.append(dict(zip(components, rng.uniform(0.2, 2, 11).astype(np.float32).tolist(), strict=True)))
    return made


def best(rows: Any, query: Any, k: int) -> list[tuple[int, float]]:
    """(id, score) in float64; rows: by id, or in order."""
    pairs = rows.items() if isinstance(rows, dict) else enumerate(rows)
    found = [
        (-float(np.float32(sum(weight * row.get(each, 0.0) for each, weight in query.items()))), key)
        for key, row in pairs
        if not query.keys().isdisjoint(row)
    ]
    return [(key, -score) for score, key in sorted(found)[:k]]


def pairs(hits: Any) -> list[tuple[int, float]]:
    return [(hit.id, hit.score) for hit in hits]


def filled(db: Any, rows: Any, index: Any = "seismic") -> Any:
    docs = db.create_collection("docs", Sparse(index=index))
    docs.upsert(ids=range(len(rows)), vectors=rows, payloads=[{"n": i % 100} for i in range(len(rows))])
    docs.flush()
    return docs


def ways(docs: Any, query: Any, **options: Any) -> list[str]:
    return [part.way.split(",")[0] for part in docs.search(query, explain=True, **options).plan.parts]


def check(docs: Any, rows: Any, queries: Any, k: int = 10) -> None:
    """Exact answers are those of float64; those of an index hold such rows, with their scores, in the same order."""
    for query in queries:
        every = best(rows, query, len(rows))
        assert pairs(docs.search(query, k=k, exact=True)) == every[:k]
        found, right = pairs(docs.search(query, k=k, recall=0.9)), dict(every)
        assert len(found) == min(k, len(every)) and len(dict(found)) == len(found)
        assert all(right[key] == score for key, score in found)
        assert found == sorted(found, key=lambda hit: (-hit[1], hit[0]))


# -- what is on disk -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> Path:
    path = tmp_path_factory.mktemp("sound") / "db"
    with vecdb.open(path) as db:
        filled(db, rows)
    return path


@pytest.fixture
def copied(sound: Path, tmp_path: Path) -> Callable[[], Path]:
    """Databases like the sound one, to be damaged."""
    numbers = iter(range(1000))

    def copy() -> Path:
        return Path(shutil.copytree(sound, tmp_path / f"copy-{next(numbers)}", ignore=shutil.ignore_patterns("LOCK")))

    return copy


def index_file(path: Path) -> Path:
    (file,) = path.rglob("*.idx")
    return file


def test_each_damaged_array_is_named_searched_around_and_built_again(
    copied: Any, sound: Path, rows: Any, queries: Any, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = ArrayFile(Files(), index_file(sound))
    names = [name for name in arrays.names() if arrays.entry(name)["bytes"]]
    assert {"terms", "slots", "lists", "whole", "sections", "blocks", "posts", "heads", "tails", "unit"} <= set(names)
    rng = np.random.default_rng(4)
    for name in names:
        for cut in (False, True):
            path, entry = copied(), arrays.entry(name)
            file, at = index_file(path), int(entry["offset"]) + int(rng.integers(entry["bytes"]))
            data = bytearray(file.read_bytes())
            data[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(data[:at] if cut else data)
            caplog.clear()
            with vecdb.open(path, read_only=True) as reader, caplog.at_level(logging.WARNING, "vecdb"):
                assert ways(reader["docs"], queries[0]) == ["exact scan"], name
                check(reader["docs"], rows, queries[:2])
                damage = reader.verify().damage
                assert len(damage) == 1 and str(file.name) in str(damage[0])
            (said,) = {record.getMessage() for record in caplog.records}
            assert "index cannot be used" in said and (cut or (f"{name}" in said and f"{name}" in str(damage[0]))), said
            if name in ("posts", "terms", "unit"):
                with vecdb.open(path) as db:
                    check(db["docs"], rows, queries[:2])
                    db["docs"].flush()
                    assert ways(db["docs"], queries[0]) == ["index"]
                    check(db["docs"], rows, queries[:2])
                    assert db.verify().ok
                    assert index_file(path) != file


@pytest.mark.parametrize("version", [0, 10_000])
def test_an_index_of_another_version_is_searched_around_and_built_again(
    copied: Any, rows: Any, queries: Any, version: int
) -> None:
    """Its arrays would be right for this version, and give wrong answers."""
    path = copied()
    with vecdb.open(path) as db:
        db.pause_indexing()
        docs: Any = db["docs"]
        (part,) = docs._snapshot().parts
        opened = part.segment.index(part.indexes["vector"])
        arrays = {name: opened.array(name) for name in opened.names()}
        arrays["posts"] = np.zeros_like(arrays["posts"])
        meta = {**{key: value for key, value in opened.meta.items() if key not in ("kind", "field")}, "version": version}
        docs._store.add_index(docs._uuid, part.segment.name, "vector", arrays, meta)
    other = index_file(path)
    with vecdb.open(path, read_only=True) as reader:
        plan = reader["docs"].search(queries[0], explain=True).plan
        assert plan.parts[0].way == "exact scan" and f"version {version}" in plan.parts[0].why
        check(reader["docs"], rows, queries)
    with vecdb.open(path) as db:
        docs = db["docs"]
        check(docs, rows, queries[:2])
        docs.flush()
        assert ways(docs, queries[0]) == ["index"]
        check(docs, rows, queries)
    assert index_file(path) != other
    assert ArrayFile(Files(), index_file(path)).meta["version"] == backend("seismic").version


def test_files_of_a_later_format_are_refused_or_searched_around(copied: Any, rows: Any, queries: Any) -> None:
    from vecdb_storage.arrayfile import checksum

    def later(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-56:-52] = (2).to_bytes(4, "little")
        data[-8:] = checksum(bytes(data[-64:-8])).to_bytes(8, "little")
        file.write_bytes(data)

    path = copied()
    later(index_file(path))
    with vecdb.open(path, read_only=True) as reader:
        check(reader["docs"], rows, queries[:3])
    with vecdb.open(path) as db:
        db["docs"].flush()
        assert ways(db["docs"], queries[0]) == ["index"]
    path = copied()
    (segment,) = path.rglob("*.seg")
    later(segment)
    with pytest.raises(errors.NewerFormat), vecdb.open(path, read_only=True) as reader:
        reader["docs"].search(queries[0])


def test_a_build_beyond_its_memory_says_so_and_is_made_when_there_is_more(
    tmp_path: Path, rows: Any, queries: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_AGAIN", 0.3)
    with vecdb.open(tmp_path / "db", memory_limit=1000) as db:
        docs = filled(db, rows)
        said = docs.info().indexes["vector"]
        assert said.segments == 0 and "needs about" in said.error and "1,000" in said.error
        assert docs.count() == N and ways(docs, queries[0]) == ["exact scan"]
        check(docs, rows, queries[:2])
        docs._indexer._memory_limit = None
        until = time.monotonic() + 60
        while docs.info().indexes["vector"].segments == 0:
            assert time.monotonic() < until, "it was not tried again"
            time.sleep(0.02)
        assert docs.info().indexes["vector"].error is None
        check(docs, rows, queries[:2])


# -- searches that are stopped -------------------------------------------------------------------------------------


class Stopping(Control):
    """Raises an error at its `polls`-th poll."""

    def __init__(self, polls: int, error: type[Exception]) -> None:
        super().__init__()
        self.left, self._error = polls, error

    def poll(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise self._error


@pytest.mark.parametrize("index", ["flat", "seismic"])
@pytest.mark.parametrize(("raised", "expected"), [(DeadlineReached, DeadlineExceeded), (Cancelled, errors.Cancelled)])
def test_a_search_that_is_stopped_midway_says_so_and_later_ones_are_right(
    tmp_path: Path, rows: Any, queries: Any, monkeypatch: pytest.MonkeyPatch, index: str, raised: Any, expected: Any
) -> None:
    monkeypatch.setattr(flat, "_POLL", 1 << 12)
    monkeypatch.setattr(search, "_POLL", 2)
    with vecdb.open(tmp_path / "db", threads=1) as db:
        docs = filled(db, rows, index)
        for exact in (True, False):
            before = docs.search_batch(queries, k=20, exact=exact)
            counting = Stopping(1 << 40, raised)
            with stopped_by(counting):
                docs.search_batch(queries, k=20, exact=exact)
            polls = (1 << 40) - counting.left
            assert polls >= 5, "it could not be stopped midway"
            for at in (1, 2, polls // 2, polls):
                with stopped_by(Stopping(at, raised)), pytest.raises(expected):
                    docs.search_batch(queries, k=20, exact=exact)
                after = docs.search_batch(queries, k=20, exact=exact)
                assert after.ids.tolist() == before.ids.tolist() and after.scores.tolist() == before.scores.tolist()
        check(docs, rows, queries)


@pytest.mark.parametrize("index", ["flat", "seismic"])
def test_a_search_keeps_its_deadline(db: Any, rows: Any, queries: Any, index: str) -> None:
    docs = filled(db, rows, index)
    for exact in (False, True):
        with pytest.raises(DeadlineExceeded, match="took longer than 1e-09 s"):
            docs.search_batch(queries, k=5, timeout=1e-9, exact=exact)
        assert docs.search_batch(queries, k=5, timeout=60, exact=exact).lengths.all()
    check(docs, rows, queries[:3])


# -- rows and queries of every kind ----------------------------------------------------------------------------------


def test_segments_that_lack_components_of_a_query(db: Any) -> None:
    """Four segments and the memtable, each with components of its own and some that all have."""
    docs = db.create_collection("docs", Sparse(index="seismic"))
    known: dict[int, Any] = {}
    for part in range(5):
        first = 1000 * part
        own = {
            first + i: {7: 1 + i / 256, 10**8 * (part + 1) + i % 50: 1 + i % 3 + i / 512, 10**9 * part + 500: 1 - i / 1024}
            for i in range(400)
        }
        docs.upsert(ids=list(own), vectors=list(own.values()))
        known |= own
        if part < 4:
            docs.flush()
    assert docs.info().indexes["vector"].segments == 4
    asked: list[dict[int, float]] = [
        {10**8 + 3: 1.0},
        {10**8 + 3: 1.0, 3 * 10**8 + 4: 2.0, 2**32 - 1: 9.0},
        {7: 1.0, 5 * 10**8 + 9: 1.0},
        {7: 0.25, 10**8 + 1: 1.0, 10**9 + 500: 3.0},
        {2**32 - 1: 1.0, 12345: 1.0},
    ]
    for k in (3, 60):
        check(docs, known, asked, k)
    assert pairs(docs.search(asked[4], k=5)) == []
    docs.merge()
    check(docs, known, asked, 20)


def test_more_hits_are_asked_for_than_there_are(db: Any, rows: Any, queries: Any) -> None:
    docs = db.create_collection("docs", Sparse(index="seismic"))
    for start in (0, 300):
        docs.upsert(ids=range(start, start + 300), vectors=rows[start : start + 300])
        docs.flush()
    docs.upsert(ids=range(600, 650), vectors=rows[600:650])
    docs.delete(range(0, 650, 9))
    known = {i: rows[i] for i in range(650) if i % 9}
    for k in (600, 5000):
        check(docs, known, queries[:4], k)
        batch = docs.search_batch(queries[:4], k=k, recall=0.9)
        assert batch.lengths.tolist() == [len(best(known, query, k)) for query in queries[:4]]


def test_a_document_of_very_many_components(db: Any, rows: Any, queries: Any) -> None:
    rng = np.random.default_rng(3)
    long = dict(zip(range(0, 180_000, 3), rng.uniform(0.1, 2, 60_000).astype(np.float32).tolist(), strict=True))
    known = [*rows[:500], long, *rows[500:550]]
    docs = filled(db, known)
    assert docs.get(500)[0].vector.to_dict() == long
    check(docs, known, [*queries[:3], dict.fromkeys(list(long)[::5000], 1.0)])
    found = pairs(docs.search(long, k=3))
    assert found[0][0] == 500 and found[0][1] == pytest.approx(sum(weight**2 for weight in long.values()), rel=1e-6)


def test_ties_of_several_segments_are_in_the_order_of_ids(db: Any) -> None:
    """All weights are equal, and one list holds every document."""
    docs = db.create_collection("docs", Sparse(index="seismic"))
    known: dict[int, Any] = {}
    order = np.random.default_rng(5).permutation(1500).tolist()
    for start in range(0, 1500, 500):
        own = {i: {1: 1.0, 2 + i % 7: 1.0} for i in order[start : start + 500]}
        docs.upsert(ids=list(own), vectors=list(own.values()))
        docs.flush()
        known |= own
    check(docs, known, [{1: 1.0}, {1: 1.0, 4: 1.0}, {4: 2.0, 5: 2.0}], 30)
    assert docs.search({1: 1.0}, k=30, exact=True).ids == list(range(30))


def test_very_many_copies_of_one_vector(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact search gives those with the least ids; that of an index has the same scores, in the order of ids."""
    monkeypatch.setattr(calibrate, "QUERIES", 20)  # of each of which an exact search compares all rows
    n, others = 100_000, 25
    rng = np.random.default_rng(6)
    one = {i * 3: 1 + i / 64 for i in range(30)}
    odd = [
        dict(zip(rng.choice(90, 20, replace=False).tolist(), rng.integers(1, 256, 20) / 256, strict=True))
        for _ in range(others)
    ]
    odd[7] = {key: 2 * weight for key, weight in one.items()}
    ids = rng.permutation(n + others).tolist()
    matrix = scipy_sparse.vstack(
        [
            scipy_sparse.csr_matrix((np.tile(list(one.values()), n), np.tile(list(one), n), np.arange(n + 1) * 30), (n, 90)),
            scipy_sparse.csr_matrix([[row.get(i, 0.0) for i in range(90)] for row in odd], dtype=np.float32),
        ]
    ).tocsr()
    docs = db.create_collection("docs", Sparse(index="seismic"))
    docs.upsert(ids=ids, vectors=matrix)
    docs.flush()
    copies = sorted(ids[:n])
    rest = dict(zip(ids[n:], odd, strict=True))
    for query in (one, {0: 1.0, 3: 0.5}, odd[3]):
        known = {**dict.fromkeys(copies[:60], one), **rest}
        for k in (1, 50):
            expected = best(known, query, k)
            assert pairs(docs.search(query, k=k, exact=True)) == expected
            found = pairs(docs.search(query, k=k, recall=0.99))
            assert len(dict(found)) == k and found == sorted(found, key=lambda hit: (-hit[1], hit[0]))
            right = dict(best({**rest, -1: one}, query, others + 1))
            assert all(score == right[key if key in rest else -1] for key, score in found)
            if query is not odd[3]:
                assert [score for _, score in found] == [score for _, score in expected]


@pytest.mark.slow
def test_ten_million_components(db: Any) -> None:
    rng = np.random.default_rng(7)
    n, rare, common, vocabulary, topics = 200_000, 50, 20, 30_000, 300
    of_topics = rng.integers(0, vocabulary, (topics, 150))
    mine = of_topics[rng.integers(0, topics, n)[:, None], rng.integers(0, 150, (n, common))]
    indices = np.concatenate([mine, rng.integers(vocabulary, 2**32, (n, rare))], axis=1).ravel()
    weights = rng.gamma(1.2, 0.5, len(indices)).astype(np.float32) + np.float32(0.01)
    matrix = scipy_sparse.csr_matrix((weights, indices, np.arange(n + 1) * (rare + common)), (n, 2**32))
    matrix.sum_duplicates()
    assert len(np.unique(matrix.indices)) > 9_900_000
    docs = db.create_collection("docs", Sparse(index="seismic"))
    docs.upsert(ids=np.arange(n), vectors=matrix)
    docs.flush()
    assert docs.info().indexes["vector"].rows == n and docs.info().indexes["vector"].error is None
    owner = np.repeat(np.arange(n), np.diff(matrix.indptr))
    shares = []
    for row in rng.integers(0, n, 30).tolist():
        own = matrix[row]
        chosen = rng.permutation(own.nnz)[:20]
        query = dict(zip(own.indices[chosen].tolist(), own.data[chosen].astype(float).tolist(), strict=True))
        asked = np.array(sorted(query))
        at = np.searchsorted(asked, matrix.indices).clip(max=len(asked) - 1)
        there = np.flatnonzero(asked[at] == matrix.indices)
        values = np.array([query[each] for each in asked.tolist()])[at[there]] * matrix.data[there].astype(np.float64)
        scores = np.bincount(owner[there], values, n).astype(np.float32)
        order = np.lexsort((np.arange(n), -scores))[:10].tolist()
        assert pairs(docs.search(query, k=10, exact=True)) == [(key, float(scores[key])) for key in order]
        found = pairs(docs.search(query, k=10, recall=0.99))
        assert found[0][0] == order[0] and all(score == float(scores[key]) for key, score in found)
        shares.append(len({key for key, _ in found} & set(order)) / 10)
    assert np.mean(shares) >= 0.9, shares


# -- hybrid searches -------------------------------------------------------------------------------------------------


def test_hybrid_searches_by_indexes_that_find_nothing(db: Any, rows: Any, queries: Any) -> None:
    docs = db.create_collection("docs", {"terms": Sparse(index="seismic"), "body": Dense(4, metric="l2", index="hnsw")})
    body = np.random.default_rng(8).standard_normal((1000, 4)).astype(np.float32)
    docs.upsert(ids=range(1000), vectors={"terms": rows[:1000], "body": body}, payloads=[{"n": i % 10} for i in range(1000)])
    docs.flush()
    asked: dict[str, Any] = {"terms": queries[0], "body": body[3]}
    assert docs.search_hybrid(asked, k=5, where="n == 3").ids
    for where in (F("n") == 99, "n == 3 and n == 4"):
        for fuse in ("rrf", "relative"):
            assert docs.search_hybrid(asked, k=5, where=where, fuse=fuse).ids == []
        for exact in (True, False):
            assert docs.search(queries[0], k=5, field="terms", where=where, exact=exact).ids == []
    for nothing in ({}, {2**32 - 1: 1.0}):
        assert docs.search_hybrid({"terms": nothing}, k=5).ids == []
        assert docs.search_hybrid({"terms": nothing, "body": None}, k=5).ids == []
    empty = db.create_collection("empty", {"terms": Sparse(), "body": Dense(4)})
    assert empty.search_hybrid(asked, k=5).ids == []
    half = db.create_collection("half", {"terms": Sparse(index="seismic"), "body": Dense(4, metric="l2")})
    half.upsert([{"id": i, "vectors": {"body": body[i]}} for i in range(50)])
    half.flush()
    nearest = [hit.id for hit in half.search(body[3], k=5, field="body")]
    assert half.search_hybrid(asked, k=5).ids == nearest
