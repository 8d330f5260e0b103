"""What searches report in the place of the metric's own score: the same for any batch, threads, kernel and process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index.mib import scores as of_bits
from vecdb_index.mib.params import MIB
from vecdb_index.mib.scan import plain_scan

import vecdb
from vecdb import Dense, F, Sparse
from vecdb.cli import main
from vecdb.errors import InvalidInput
from vecdb.hits import BANDS, band

DIM, ROWS = 48, 2500
SCORES = ("its", "surprise", "likelihood")


def drawn(n: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((25, DIM)) * 1.5
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 25, n)] + rng.standard_normal((n, DIM))).astype(np.float32)


VECTORS, QUERIES = drawn(ROWS, 1), drawn(12, 2)


def filled(db: Any, metric: Any = "cosine", name: str = "docs", n: int = ROWS, index: Any = None) -> Any:
    docs = db.create_collection(name, Dense(DIM, metric=metric, index=MIB() if index is None else index))
    docs.upsert(ids=range(n), vectors=VECTORS[:n], payloads=[{"n": i % 10} for i in range(n)])
    docs.flush()
    return docs


def values(docs: Any, queries: np.ndarray = QUERIES, **how: Any) -> dict[str, list[dict[Any, float]]]:
    """For each score and query: id -> what is reported, of an exact search."""
    found = {}
    for score in SCORES:
        batch = docs.search_batch(queries, 30, exact=True, score=score, **how)
        found[score] = [dict(zip(hits.ids, hits.scores, strict=True)) for hits in batch]
    return found


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_hits_stay_in_their_order_and_a_batch_reports_what_single_searches_do(db: Any, metric: Any) -> None:
    docs = filled(db, metric)
    plain = docs.search_batch(QUERIES, 30, exact=True)
    for score in SCORES:
        batch = docs.search_batch(QUERIES, 30, exact=True, score=score)
        assert np.array_equal(batch.ids, plain.ids)
        for at, query in enumerate(QUERIES):
            alone = docs.search(query, 30, exact=True, score=score)
            assert alone.ids == batch[at].ids == list(plain.ids[at])
            assert alone.scores == batch[at].scores == batch.scores[at].tolist()
            assert [hit.label for hit in alone] == [hit.label for hit in batch[at]]
            few = docs.search(query, 5, exact=True, score=score)
            assert few.scores == alone.scores[:5], "whatever k is"
            wanted = {hit.id: hit.score for hit in alone}
            assert all(wanted.get(hit.id, hit.score) == hit.score for hit in docs.search(query, 10, recall=0.5, score=score))
        if score == "surprise":
            assert np.isfinite(batch.scores).all() and len(np.unique(batch.scores)) > 50
        else:
            assert ((batch.scores >= 0) & (batch.scores <= 1)).all()


def test_scores_go_by_the_first_bit_of_a_dimension(db: Any) -> None:
    one, four = (filled(db, name=f"bits-{bits}", index=MIB(rotation="hadamard", bits=bits)) for bits in (1, 4))
    assert values(one) == values(four)


def test_its_is_that_of_the_signs_about_the_mean(db: Any) -> None:
    """Summed up from the vectors themselves, of rows in a segment and in memory, without a rotation."""
    docs = filled(db, "l2", n=700, index=MIB(rotation="none"))
    later = drawn(40, 5)
    docs.upsert(ids=range(700, 740), vectors=later)
    rows = np.r_[VECTORS[:700], later].astype(np.float64)
    middle = VECTORS[:700].astype(np.float64).mean(axis=0)

    def h(p: float) -> float:
        return -sum(x * math.log2(x) for x in (p, 1 - p) if x > 0)

    found = 0
    for query in QUERIES:
        asked = query > middle
        for hit in docs.search(query, 740, score="its"):
            row = rows[hit.id] > middle
            shares = np.array([[(asked & row).mean(), (asked & ~row).mean()], [(~asked & row).mean(), (~asked & ~row).mean()]])
            joint = -sum(x * math.log2(x) for x in shares.ravel() if x > 0)
            mutual = max(0.0, h(asked.mean()) + h(row.mean()) - joint)
            expected = math.sqrt(mutual / h(asked.mean())) if np.linalg.det(shares) > 1e-12 else 0.0
            # A number may lie so near the mean that rounding decides on which side.
            if np.abs(rows[hit.id] - middle).min() > 1e-4 and np.abs(query - middle).min() > 1e-4:
                found += hit.id >= 700
                assert hit.score == pytest.approx(expected, abs=1e-6)
    assert found > 100


def test_labels_are_the_bands_of_its(db: Any) -> None:
    docs = filled(db)
    hits = docs.search(VECTORS[3], ROWS, exact=True, score="its")
    assert hits[0].id == 3 and hits[0].score > 0.9 and hits[0].label == "Close Match"
    assert [hit.label for hit in hits] == [band(hit.score) for hit in hits]
    assert {hit.label for hit in hits} >= {"Close Match", "High Relevance", "Low Relevance", "Irrelevant"}
    assert {hit.label for hit in docs.search(VECTORS[3], 5, score="surprise")} == {None}
    assert hits.to_arrow().column("label").to_pylist() == [hit.label for hit in hits]
    assert list(hits.to_pandas()["label"]) == [hit.label for hit in hits]
    assert "label" not in docs.search(VECTORS[3]).to_arrow().column_names


def test_bands_are_those_that_were_published() -> None:
    limits = {0.894: "Close Match", 0.632: "Very High Relevance", 0.447: "High Relevance", 0.316: "Good Relevance",
              0.224: "Low Relevance", 0.1: "Very Low Relevance", 0.0: "Irrelevant"}  # fmt: skip
    assert dict(BANDS) == limits
    for (least, label), (_, lower) in zip(limits.items(), [*list(limits.items())[1:], (0, "")], strict=True):
        assert band(least) == label
        if least:
            assert band(np.nextafter(least, 0)) == lower
    assert band(1) == "Close Match"
    for share, (least, _) in zip((0.8, 0.4, 0.2, 0.1, 0.05, 0.01), BANDS, strict=False):
        assert least == pytest.approx(math.sqrt(share), abs=0.0006)
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(InvalidInput, match="from 0 to 1"):
            band(wrong)


def test_threads_the_plain_kernel_and_a_reopen_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with vecdb.open(tmp_path / "db", threads=2) as db:
        docs = filled(db)
        docs.upsert(ids=[ROWS], vectors=[QUERIES[0]])
        docs.delete([7, 8])
        before = values(docs)
        with monkeypatch.context() as patch:
            patch.setattr(of_bits, "scan", plain_scan)
            assert values(docs) == before
    with vecdb.open(tmp_path / "db", threads=1) as db:
        assert values(db["docs"]) == before


def test_rows_in_memory_have_the_scores_that_they_have_in_a_segment(db: Any) -> None:
    """By the encoder of the segment that is there: of a copy of a row, what is reported of the row."""
    docs = filled(db)
    docs.upsert(ids=range(ROWS, ROWS + 40), vectors=VECTORS[:40])
    for score in SCORES:
        for at in (0, 17, 39):
            hits = {hit.id: hit.score for hit in docs.search(VECTORS[at], 20, exact=True, score=score)}
            assert hits[at] == hits[ROWS + at]


def test_surprise_counts_live_rows_and_likelihood_those_that_may_be_found(db: Any) -> None:
    docs = filled(db)
    before = {hit.id: hit.score for hit in docs.search(QUERIES[0], 200, exact=True, score="surprise")}
    docs.upsert(ids=range(ROWS, 2 * ROWS), vectors=drawn(ROWS, 9))  # in memory: of twice as many it is one bit less
    after = {hit.id: hit.score for hit in docs.search(QUERIES[0], 400, exact=True, score="surprise")}
    both = before.keys() & after.keys()
    assert len(both) > 50
    assert all(before[key] - after[key] == pytest.approx(1, abs=1e-4) for key in both)
    docs.delete(range(ROWS, 2 * ROWS))
    assert {hit.id: hit.score for hit in docs.search(QUERIES[0], 200, exact=True, score="surprise")} == before
    everywhere = {hit.id: hit.score for hit in docs.search(QUERIES[0], 300, exact=True, score="likelihood")}
    some = {hit.id: hit.score for hit in docs.search(QUERIES[0], 20, exact=True, score="likelihood", where=F("n") == 3)}
    both = some.keys() & everywhere.keys()
    assert len(both) > 3 and all(some[key] >= everywhere[key] for key in both)
    assert sum(some[key] for key in both) > sum(everywhere[key] for key in both)
    few = docs.search(QUERIES[0], 20, exact=True, score="likelihood", where=F("id_is_not_there") == 3)
    assert few.ids == [] and few.scores == []
    docs.delete(range(9, ROWS))
    assert docs.search(QUERIES[0], 20, score="likelihood").scores == [1.0] * 9, "of nine rows all are among the ten nearest"


def test_likelihood_knows_of_rows_in_memory(db: Any) -> None:
    """Twenty that are nearer than any other: nothing else is one of the ten nearest now."""
    docs = filled(db)
    before = docs.search(QUERIES[0], 10, exact=True, score="likelihood").scores
    rng = np.random.default_rng(0)
    docs.upsert(ids=range(ROWS, ROWS + 20), vectors=QUERIES[0] + 0.01 * rng.standard_normal((20, DIM)).astype(np.float32))
    hits = docs.search(QUERIES[0], 30, exact=True, score="likelihood")
    assert set(hits.ids[:20]) == set(range(ROWS, ROWS + 20)) and min(hits.scores[:20]) > 0.2
    assert max(hits.scores[20:]) < 0.1 < max(before)


def test_several_segments_are_one(db: Any) -> None:
    """Of the same rows in two segments: encoders differ, and so do estimates, but a neighbour stays one."""
    one, two = filled(db), db.create_collection("two", Dense(DIM, index=MIB()))
    for start in (0, ROWS // 2):
        some = range(start, start + ROWS // 2)
        two.upsert(ids=some, vectors=VECTORS[some.start : some.stop])
        two.flush()
    queries = VECTORS[:60] + 0.5 * np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)
    for score, apart in (("its", 0.1), ("surprise", 1.5)):
        a, b = (docs.search_batch(queries, 10, exact=True, score=score) for docs in (one, two))
        assert np.array_equal(a.ids, b.ids)
        assert np.abs(a.scores - b.scores).mean() < apart
        assert np.corrcoef(a.scores.ravel(), b.scores.ravel())[0, 1] > 0.8


@pytest.mark.parametrize(("segments", "most"), [(1, 0.7), (2, 0.7), (4, 2.0)])
def test_likelihoods_of_a_query_add_up_to_ten(db: Any, segments: int, most: float) -> None:
    """On the whole, in several segments, too; where these are more than three, it is a little more."""
    n, rng = 10_000, np.random.default_rng(8)
    docs = db.create_collection("docs", Dense(DIM, index=MIB()))
    rows = drawn(n, 4)
    for some in np.array_split(rng.permutation(n), segments):
        docs.upsert(ids=some, vectors=rows[some])
        docs.flush()
    assert docs.info().segments == segments
    sums = np.nansum(docs.search_batch(drawn(300, 6), 500, exact=True, score="likelihood", with_payload=False).scores, axis=1)
    assert abs(sums.mean() - 10) <= most + 3 * sums.std() / np.sqrt(len(sums))


@pytest.mark.parametrize("score", SCORES)
def test_a_threshold_is_of_the_score_that_is_reported(db: Any, score: str) -> None:
    docs = filled(db, "l2")
    whole = docs.search_batch(QUERIES, 30, exact=True, score=score)
    least = float(np.median(whole.scores))
    cut = docs.search_batch(QUERIES, 30, exact=True, score=score, score_threshold=least)
    for at, query in enumerate(QUERIES):
        kept = [(hit.id, hit.score, hit.payload) for hit in whole[at] if hit.score >= least]
        assert [(hit.id, hit.score, hit.payload) for hit in cut[at]] == kept
        assert cut.lengths[at] == len(kept) and [key for key in cut.ids[at] if key is not None] == [key for key, _, _ in kept]
        assert np.isnan(cut.scores[at][len(kept) :]).all()
        alone = docs.search(query, 30, exact=True, score=score, score_threshold=least)
        assert [(hit.id, hit.score, hit.payload) for hit in alone] == kept
    assert 0 < cut.lengths.sum() < whole.lengths.sum()


def test_other_searches_and_plans(db: Any) -> None:
    docs = filled(db)
    hits = docs.recommend([3], k=5, score="its")
    assert len(hits) == 5 and all(hit.label == band(hit.score) for hit in hits)
    plan = docs.search(QUERIES[0], score="likelihood", explain=True).plan
    assert plan is not None and plan.stages["score"] > 0 and "score" in str(plan)
    assert "score" not in docs.search(QUERIES[0], explain=True).plan.stages
    with_vectors = docs.search(QUERIES[0], 3, score="its", with_vectors=True, with_payload=False)
    assert all(hit.vector is not None and hit.payload is None for hit in with_vectors)


@pytest.mark.parametrize("dtype", ["f16", "i8"])
def test_shorter_numbers_and_several_fields(db: Any, dtype: Any) -> None:
    rows = np.rint(10 * VECTORS).clip(-127, 127)
    docs = db.create_collection("docs", {"a": Dense(DIM, dtype=dtype, index=MIB()), "b": Dense(4)})
    docs.upsert(ids=range(ROWS), vectors={"a": [None if i % 5 == 0 else row for i, row in enumerate(rows)], "b": rows[:, :4]})
    docs.flush()
    for score in SCORES:
        hits = docs.search(rows[1], 3, field="a", score=score)
        assert hits.ids[0] == 1 and hits.scores[0] > (0.9 if score == "its" else 0.2)
    # In memory, with holes, and with points that are gone again.
    more = {"a": [None, rows[1], None, rows[1], rows[2]], "b": rows[:5, :4]}
    docs.upsert(ids=range(ROWS, ROWS + 5), vectors=more)
    docs.delete([ROWS + 3, 6])
    for score in SCORES:
        hits = docs.search(rows[1], 3, field="a", score=score, exact=True)
        assert set(hits.ids[:2]) == {1, ROWS + 1} and hits.scores[0] == hits.scores[1] >= hits.scores[2]
    with pytest.raises(InvalidInput, match="field 'b'.*its index is \"auto\": set_index"):
        docs.search(rows[1, :4], field="b", score="its")


def test_what_cannot_be_told_is_refused_with_a_remedy(db: Any) -> None:
    docs = filled(db, n=63)
    for wrong in ("ITS", "", 7, ["its"]):
        with pytest.raises(InvalidInput, match="score is one of its, surprise, likelihood"):
            docs.search(QUERIES[0], score=wrong)
        with pytest.raises(InvalidInput, match="score is one of its, surprise, likelihood"):
            docs.search_batch(QUERIES, score=wrong)
    with pytest.raises(InvalidInput, match="groups have the metric's own score"):
        docs.search(QUERIES[0], group_by="n", score="its")
    with pytest.raises(InvalidInput, match="goes by 64 rows or more that have bits, and there are 63"):
        docs.search(QUERIES[0], score="surprise")
    with pytest.raises(InvalidInput, match="segments of 2,000 rows or more"):
        docs.search(QUERIES[0], score="likelihood")
    assert len(docs.search(QUERIES[0], score="its")) == 10
    fresh = db.create_collection("fresh", Dense(DIM, index=MIB()))
    assert fresh.search(QUERIES[0], score="its").ids == []
    fresh.upsert(ids=range(5), vectors=VECTORS[:5])
    with pytest.raises(InvalidInput, match=r"no index of bits yet.*flush\(\)"):
        fresh.search(QUERIES[0], score="its")
    with pytest.raises(InvalidInput, match=r"no index of bits yet.*flush\(\)"):
        fresh.search_batch(QUERIES, score="its")
    for name, index in (("graph", "hnsw"), ("whole", "flat")):
        other = filled(db, name=name, n=100, index=index)
        with pytest.raises(InvalidInput, match=rf'its index is {index}: set_index\("mib"\) and flush\(\)'):
            other.search(QUERIES[0], score="its")
        other.set_index("mib")
        other.flush()
        assert len(other.search(QUERIES[0], score="its")) == 10
    words = db.create_collection("words", {"terms": Sparse()})
    words.upsert(ids=[1], vectors={"terms": [{3: 1.0}]})
    with pytest.raises(InvalidInput, match="told by an index of bits"):
        words.search({3: 1.0}, score="its")


def test_a_deadline_holds_while_scores_are_told(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vecdb_index.contract import Control, DeadlineReached

    docs = filled(db, n=300)
    polls = 0

    def poll(self: Control) -> None:
        nonlocal polls
        polls += 1
        if polls > 3:
            raise DeadlineReached

    monkeypatch.setattr(Control, "poll", poll)
    with pytest.raises(vecdb.errors.DeadlineExceeded):
        docs.search_batch(QUERIES, score="its", timeout=100)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = filled(db)
        expected = {score: docs.search(VECTORS[5], 4, exact=True, score=score) for score in SCORES}

    def run(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(
                ["search", "docs", "--db", str(tmp_path / "db"), "--vector", json.dumps(VECTORS[5].tolist()), "-k", "4", *more]
            )
        assert stopped.value.code == (4 if "--score=none" in more else 0)
        shown = capsys.readouterr()
        return shown.out + shown.err

    for score in SCORES:
        found = json.loads(run("--exact", "--score", score, "--json"))
        assert [(hit["id"], hit["score"]) for hit in found] == [(hit.id, pytest.approx(hit.score)) for hit in expected[score]]
        assert [hit.get("label") for hit in found] == [hit.label for hit in expected[score]]
    assert "label" in run("--score", "its") and "Close Match" in run("--score", "its")
    assert "label" not in run() and "label" not in run("--score", "surprise")
    assert "score is one of its, surprise, likelihood" in run("--score=none")
