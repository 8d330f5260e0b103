"""Search against brute force in float64: metrics, dtypes, filters, deletes, segments, ties, batches, threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.store as store_module
from hypothesis import given, settings
from hypothesis import strategies as st

import vecdb
from vecdb import Dense, F
from vecdb.errors import DimensionMismatch, InvalidFilter, InvalidInput, InvalidVector, NotFound

METRICS = ["cosine", "ip", "l2"]


def scores(metric: str, query: np.ndarray, stored: np.ndarray) -> np.ndarray:
    q, x = query.astype(np.float64), stored.astype(np.float64)
    if metric == "l2":
        return np.linalg.norm(x - q, axis=1)
    products = x @ q
    return products / np.linalg.norm(x, axis=1) / np.linalg.norm(q) if metric == "cosine" else products


def check(hits: Any, metric: str, query: np.ndarray, vectors: dict[Any, np.ndarray], k: int) -> None:
    """hits are the k best of `vectors` (id -> stored vector), best first, equal scores by id."""
    assert len(hits) == min(k, len(vectors))
    if not vectors:
        return
    keys = list(vectors)
    true = dict(zip(keys, scores(metric, query, np.stack([vectors[key] for key in keys])), strict=True))
    sign = 1 if metric == "l2" else -1
    best = sorted(sign * s for s in true.values())[:k]
    size = float(np.linalg.norm(query)) * max(float(np.linalg.norm(v.astype(np.float64))) for v in vectors.values())
    close = 1e-5 * (1 if metric == "cosine" else max(size, 1e-30) if metric == "ip" else max(size, 1.0) ** 0.5 + 1)
    assert len(set(hits.ids)) == len(hits)
    np.testing.assert_allclose([true[key] for key in hits.ids], hits.scores, rtol=1e-4, atol=close)
    np.testing.assert_allclose([sign * true[key] for key in hits.ids], best, rtol=1e-4, atol=close)
    order = [(sign * hit.score, hit.id) for hit in hits]
    assert order == sorted(order), "best first, ties by id"


@pytest.fixture(params=["one segment", "twelve segments", "memtable", "mixed"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fill(docs: Any, layout: str, ids: list[Any], vectors: np.ndarray, payloads: list[Any]) -> None:
    pieces = {"one segment": 1, "memtable": 1, "twelve segments": 12, "mixed": 3}[layout]
    for part in np.array_split(np.arange(len(ids)), pieces):
        docs.upsert(ids=[ids[i] for i in part], vectors=vectors[part], payloads=[payloads[i] for i in part])
        if layout != "memtable" and not (layout == "mixed" and part[-1] == len(ids) - 1):
            docs.flush()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_the_answer_is_that_of_brute_force(layout: str, metric: str, dtype: str, rng: np.random.Generator) -> None:
    n, d = 700, 24
    given = rng.integers(-128, 128, (n, d)) if dtype == "i8" else rng.standard_normal((n, d))
    given[given.any(axis=1) == 0] = 1
    stored = given.astype({"f32": np.float32, "f16": np.float16, "i8": np.int8}[dtype])
    payloads = [{"n": i, "even": i % 2 == 0, "tags": [f"t{i % 7}"]} for i in range(n)]
    queries = rng.standard_normal((9, d)).astype(np.float32)
    with vecdb.open(":memory:", threads=2) as db:
        docs = db.create_collection("docs", Dense(d, metric=metric, dtype=dtype))
        fill(docs, layout, list(range(n)), given, payloads)
        again = rng.permutation(n)[:100].tolist()
        docs.upsert(ids=again, vectors=given[again][:, ::-1], payloads=[payloads[i] for i in again])
        dead = set(rng.permutation(n)[:150].tolist())
        assert docs.delete(sorted(dead)) == len(dead)
        alive = {i: stored[i][::-1] if i in set(again) else stored[i] for i in range(n) if i not in dead}
        filters: list[tuple[Any, Any]] = [
            (None, lambda i: True),
            (F("n") < 350, lambda i: i < 350),
            (
                (F("n") >= 100) & (F("even") == True) & ~F("tags").contains("t3"),
                lambda i: i >= 100 and i % 2 == 0 and i % 7 != 3,
            ),  # noqa: E712
            (F("n").in_([1, 5, 600]), lambda i: i in (1, 5, 600)),
            ("n > 10000", lambda i: False),
        ]
        for where, passes in filters:
            allowed = {i: v for i, v in alive.items() if passes(i)}
            assert docs.count(where) == len(allowed)
            batch = docs.search_batch(queries, k=10, where=where)
            for at, query in enumerate(queries):
                check(batch[at], metric, query, allowed, 10)
                single = docs.search(query, k=10, where=where)
                assert (single.ids, single.scores) == (batch[at].ids, batch[at].scores), "a batch is its singles, bit for bit"
                assert [hit.payload for hit in single] == [payloads[i] for i in single.ids]
                length = batch.lengths[at]
                assert list(batch.ids[at, :length]) == single.ids
                assert batch.ids[at, length:].tolist() == [None] * (10 - length)
                assert np.isnan(batch.scores[at, length:]).all()
        check(docs.search(queries[0], k=5000), metric, queries[0], alive, 5000)


def test_equal_scores_are_ordered_by_id_over_segments_batches_and_places(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Duplicates of one vector, spread over level-0 segments, flushed ones and the memtable: the least ids win."""
    vector = rng.standard_normal(33).astype(np.float32)
    ids = [f"{i:03d}" for i in rng.permutation(200)]
    with vecdb.open(":memory:") as db:
        docs = db.create_collection("docs", Dense(33))
        for start in range(0, 200, 20):
            with monkeypatch.context() as patched:
                if start % 40:
                    patched.setattr(store_module, "LEVEL0_BYTES", 0)
                docs.upsert(ids=ids[start : start + 20], vectors=np.tile(vector, (20, 1)))
            if start % 60 == 0:
                docs.flush()
        docs.upsert(ids=["zzz"], vectors=[vector * 2])
        docs.upsert(ids=["other"], vectors=[-vector])
        assert docs.search(vector, k=7).ids == [f"{i:03d}" for i in range(7)]
        assert docs.search_batch(np.tile(vector, (5, 1)), k=7).ids.tolist() == [[f"{i:03d}" for i in range(7)]] * 5
        docs.delete([f"{i:03d}" for i in range(0, 200, 2)])
        assert docs.search(vector, k=3).ids == ["001", "003", "005"]
        assert docs.search(vector, k=300).ids[-2:] == ["zzz", "other"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_how_rows_are_spread_changes_nothing(data: st.DataObject) -> None:
    """Permuting rows, splitting them over segments, dead rows, threads: same ids, same bits."""
    n, d = data.draw(st.integers(1, 60)), data.draw(st.sampled_from([1, 3, 16, 17, 70]))
    metric = data.draw(st.sampled_from(METRICS))
    values = data.draw(st.lists(st.integers(-2, 2), min_size=n * d, max_size=n * d))
    vectors = np.array(values, np.float32).reshape(n, d)
    vectors[~vectors.any(axis=1)] = 1
    order = data.draw(st.permutations(range(n)))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    query = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=d, max_size=d)), np.float32)
    if not query.any():
        query[0] = 1
    answers = []
    for permutation, ends, threads in ((range(n), [n], 1), (order, [*cuts, n], 3)):
        with vecdb.open(":memory:", threads=threads) as db:
            docs = db.create_collection("docs", Dense(d, metric=metric))
            start = 0
            for end in ends:
                some = [permutation[i] for i in range(start, end)]
                if some:
                    if threads > 1:
                        docs.upsert(ids=some, vectors=vectors[some][:, ::-1] + 0.5 * (vectors[some] == 7))
                    docs.upsert(ids=some, vectors=vectors[some])
                    if end % 2:
                        docs.flush()
                start = end
            hits = docs.search(query, k=8)
            check(hits, metric, query, dict(enumerate(vectors)), 8)
            answers.append((hits.ids, hits.scores))
            batch = docs.search_batch(np.stack([query] * 4), k=8)
            assert (batch[3].ids, batch[3].scores) == answers[-1]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 63, 64, 65, 1000, 65_535])
def test_every_dimension_works(d: int, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((20, d)).astype(np.float32)
    with vecdb.open(":memory:") as db:
        for metric in METRICS:
            docs = db.create_collection(metric, Dense(d, metric=metric))
            docs.upsert(ids=range(20), vectors=vectors)
            docs.flush()
            batch = docs.search_batch(vectors[:5], k=4)
            for at in range(5):
                check(batch[at], metric, vectors[at], dict(enumerate(vectors)), 4)
                assert docs.search(vectors[at], k=4).scores == batch[at].scores


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [1e-18, 1e-8, 1.0, 1e8, 1e17])
def test_huge_and_tiny_vectors_keep_their_order(metric: str, size: float, rng: np.random.Generator) -> None:
    vectors = (rng.standard_normal((50, 20)) * size * 10 ** rng.uniform(-1, 1, (50, 1))).astype(np.float32)
    queries = (rng.standard_normal((4, 20)) * size).astype(np.float32)
    with vecdb.open(":memory:") as db:
        docs = db.create_collection("docs", Dense(20, metric=metric))
        docs.upsert(ids=range(50), vectors=vectors)
        batch = docs.search_batch(queries, k=5)
        for at, query in enumerate(queries):
            true = scores(metric, query, vectors)
            best = np.sort(true)[:5] if metric == "l2" else -np.sort(-true)[:5]
            np.testing.assert_allclose(batch.scores[at], best, rtol=1e-3)


def test_several_fields_some_of_them_absent(rng: np.random.Generator) -> None:
    with vecdb.open(":memory:") as db:
        docs = db.create_collection("docs", {"title": Dense(4), "body": Dense(6, metric="l2")})
        titles, bodies = (
            rng.standard_normal((30, 4)).astype(np.float32),
            rng.standard_normal((30, 6)).astype(np.float32),
        )
        docs.upsert(
            [
                {
                    "id": i,
                    "vectors": {**({"title": titles[i]} if i % 3 else {}), **({"body": bodies[i]} if i % 2 else {})},
                }
                for i in range(30)
                if i % 3 or i % 2
            ]
        )
        for flushed in (False, True):
            if flushed:
                docs.flush()
            check(
                docs.search(titles[1], k=50, field="title"),
                "cosine",
                titles[1],
                {i: titles[i] for i in range(30) if i % 3},
                50,
            )
            check(
                docs.search(bodies[1], k=5, field="body"),
                "l2",
                bodies[1],
                {i: bodies[i] for i in range(30) if i % 2},
                5,
            )
            with pytest.raises(InvalidInput, match="title, body"):
                docs.search(titles[0])
            with pytest.raises(InvalidInput, match="nope"):
                docs.search(titles[0], field="nope")
            three = docs.get([3])[0]
            assert three is not None
            assert list(three.vectors) == ["body"]
            assert three.vector is not None
        db.add_field("docs", "extra", Dense(2))
        assert docs.search([1, 2], field="extra") is not None
        assert len(docs.search([1, 2], field="extra")) == 0
        docs.upsert([{"id": 100, "vectors": {"extra": [1, 2], "title": titles[0]}}])
        assert docs.search([1, 2], field="extra").ids == [100]
        docs.flush()
        assert docs.search([1, 2], field="extra").ids == [100]
        with pytest.raises(vecdb.errors.AlreadyExists):
            db.add_field("docs", "extra", Dense(2))


def test_thresholds_groups_vectors_and_recommendations(db: vecdb.Database, rng: np.random.Generator) -> None:
    docs = db.create_collection("docs", Dense(8))
    vectors = rng.standard_normal((300, 8)).astype(np.float32)
    payloads = [{"g": f"g{i % 20}"} if i % 11 else {} if i % 2 else {"g": None} for i in range(300)]
    docs.upsert(ids=range(300), vectors=vectors, payloads=payloads)
    query = vectors[7]
    all_hits = docs.search(query, k=300, with_vectors=True)
    np.testing.assert_array_equal(all_hits[0].vector, query)
    above = docs.search(query, k=300, score_threshold=0.2)
    assert above.ids == [hit.id for hit in all_hits if hit.score >= 0.2]
    assert docs.search_batch([query], k=300, score_threshold=0.2).lengths.tolist() == [len(above)]
    expected: dict[Any, list[Any]] = {}
    for hit in all_hits:
        if hit.payload.get("g") is not None:
            expected.setdefault(hit.payload["g"], []).append(hit.id)
    for k in (3, 20, 50):
        groups = docs.search(query, k=k, group_by="g", group_size=2)
        assert [(g.value, g.hits.ids) for g in groups] == [(value, ids[:2]) for value, ids in list(expected.items())[:k]]
    mixed = db.create_collection("mixed", Dense(2))
    mixed.upsert(ids=range(5), vectors=np.ones((5, 2)), payloads=[{"g": g} for g in (True, 1, 1.0, "1", False)])
    assert [(g.value, g.hits.ids) for g in mixed.search([1, 1], group_by="g")] == [
        (True, [0]),
        (1, [1, 2]),
        ("1", [3]),
        (False, [4]),
    ]
    hits = docs.recommend(positive=[7, vectors[8]], negative=[9], k=5)
    unit = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    wanted = unit[[7, 8]].mean(0)
    target = 2 * wanted - unit[9]
    check(hits, "cosine", target, {i: v for i, v in enumerate(vectors) if i not in (7, 9)}, 5)
    with pytest.raises(NotFound, match="1000"):
        docs.recommend(positive=[1000])
    with pytest.raises(InvalidInput):
        docs.recommend(positive=[])
    l2 = db.create_collection("l2", Dense(8, metric="l2"))
    l2.upsert(ids=range(300), vectors=vectors)
    near = l2.search(query, k=300, score_threshold=2.0)
    assert near.ids == [hit.id for hit in l2.search(query, k=300) if hit.score <= 2.0]
    assert 0 < len(near) < 300


def test_explain_tells_what_was_done(db: vecdb.Database, rng: np.random.Generator) -> None:
    docs = db.create_collection("docs", Dense(8))
    docs.upsert(ids=range(100), vectors=rng.standard_normal((100, 8)), payloads=[{"n": i} for i in range(100)])
    docs.flush()
    docs.upsert(ids=[100], vectors=rng.standard_normal((1, 8)), payloads=[{"n": 100}])
    plan = docs.search(np.ones(8), k=3, where=F("n") >= 90, recall=0.99, explain=True).plan
    assert [(p.kind, p.rows, p.allowed, p.scored) for p in plan.parts] == [
        ("segment", 100, 10, 10),
        ("memtable", 1, 1, 1),
    ]
    assert (plan.recall_asked, plan.recall_expected, plan.where) == (0.99, 1.0, "n >= 90")
    printed = str(plan)
    assert "10 allowed" in printed
    assert "n >= 90" in printed
    assert docs.search(np.ones(8)).plan is None


def test_wrong_queries_are_refused_by_name(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", Dense(3))
    docs.upsert(ids=[1], vectors=[[1, 2, 3]])
    for query, error in [
        ([1, 2], DimensionMismatch), ([1, 2, np.nan], InvalidVector), ([0, 0, 0], InvalidVector), ([1, 2, 1e39], InvalidVector),
        (["a", "b", "c"], InvalidVector), ([[1, 2, 3]], DimensionMismatch), (5, InvalidInput), ("text", InvalidInput), (None, InvalidInput),
    ]:  # fmt: skip
        with pytest.raises(error):
            docs.search(query)
    for options in ({"k": 0}, {"k": -1}, {"k": 1.5}, {"k": True}, {"recall": 0}, {"recall": 1.1}, {"recall": "x"}):
        with pytest.raises(InvalidInput):
            docs.search([1, 2, 3], **options)
    with pytest.raises(InvalidFilter):
        docs.search([1, 2, 3], where="year >")
    with pytest.raises(InvalidVector, match="1"):
        docs.search_batch([[1, 2, 3], [np.inf, 0, 0]])
    assert docs.search_batch(np.zeros((0, 3))).ids.shape == (0, 10)


def test_an_empty_collection_has_no_hits(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", Dense(3))
    assert list(docs.search([1, 2, 3])) == []
    assert docs.search_batch([[1, 2, 3]]).lengths.tolist() == [0]
    assert docs.count() == 0
    assert list(docs.scroll()) == []
    assert docs.search([1, 2, 3], group_by="x") == []


def test_hits_as_tables(db: vecdb.Database, tmp_path: Path) -> None:
    docs = db.create_collection("docs", Dense(2))
    docs.upsert(ids=["a", "b"], vectors=[[1, 0], [0, 1]], payloads=[{"t": "x"}, {"t": "y"}])
    hits = docs.search([1, 0])
    assert hits.to_arrow().to_pydict() == {"id": ["a", "b"], "score": [1.0, 0.0], "payload": ['{"t":"x"}', '{"t":"y"}']}
    assert hits.to_pandas().to_dict("list") == {"id": ["a", "b"], "score": [1.0, 0.0], "t": ["x", "y"]}
