"""The index of bits behind the API."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index import registry
from vecdb_index.crew import Crew
from vecdb_index.mib.params import MIB
from vecdb_index.mib.search import MIBSearcher
from vecdb_storage.snapshot import SegmentPart

import vecdb
from vecdb import Dense, F
from vecdb.cli import main
from vecdb.errors import InvalidInput, PoorlyServed
from vecdb.search import calibrate, whole
from vecdb.search.calibrate import Calibration

DIM = 64


@pytest.fixture(autouse=True)
def _by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a choice, the bits: these collections are so small that the clock would decide otherwise."""
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)
    monkeypatch.setattr(MIBSearcher, "_pays", lambda self, k, short: True)
    monkeypatch.setattr(calibrate, "_HOPELESS", 1e9)
    monkeypatch.setattr(whole, "_HOPELESS", 1e9)


def drawn(n: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).standard_normal((40, DIM)) * 1.5
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, 40, n)] + rng.standard_normal((n, DIM))).astype(np.float32)


VECTORS, QUERIES = drawn(6000, 1), drawn(300, 2)


def filled(db: vecdb.Database, vectors: np.ndarray = VECTORS, metric: Any = "cosine") -> vecdb.Collection:
    docs = db.create_collection("docs", Dense(vectors.shape[1], metric=metric, index=MIB()))
    docs.upsert(ids=range(len(vectors)), vectors=vectors, payloads=[{"n": i % 10} for i in range(len(vectors))])
    return docs


@pytest.fixture
def docs(db: vecdb.Database) -> vecdb.Collection:
    made = filled(db)
    made.flush()
    return made


def best(queries: np.ndarray, flags: np.ndarray, k: int = 10) -> list[list[int]]:
    """By cosine, in float64."""
    rows = VECTORS.astype(np.float64)
    keys = queries.astype(np.float64) @ (rows / np.linalg.norm(rows, axis=1)[:, None]).T
    keys[:, ~flags] = -np.inf
    found: list[list[int]] = np.argsort(-keys, axis=1, kind="stable")[:, :k].tolist()
    return found


def _info(path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["info", "docs", "--db", str(path)])
    assert stopped.value.code == 0


def share(found: Any, true: list[list[int]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, true, strict=True)]))


def test_exact_searches_are_exact_and_others_deliver_what_is_asked(docs: vecdb.Collection) -> None:
    true = best(QUERIES, np.ones(6000, np.bool_))
    assert [list(ids) for ids in docs.search_batch(QUERIES, k=10, exact=True).ids] == true
    for recall in (0.9, 0.95, 0.99):
        found = docs.search_batch(QUERIES, k=10, recall=recall, explain=True)
        assert found.plan is not None and found.plan.recall_expected is not None and found.plan.recall_expected >= recall
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.ids, true, strict=True)]
        assert np.mean(shares) >= recall - 3 * np.std(shares) / np.sqrt(len(shares))


def test_deleted_points_and_filters(docs: vecdb.Collection) -> None:
    docs.delete(range(0, 6000, 3))
    at = np.arange(6000)
    live = at % 3 > 0
    assert share(docs.search_batch(QUERIES, k=10, recall=0.95).ids, best(QUERIES, live)) >= 0.93
    for where, flags in ((F("n") == 4, at % 10 == 4), (F("n") < 5, at % 10 < 5)):
        found = docs.search_batch(QUERIES, k=10, recall=0.95, where=where)
        assert all(flags[list(ids)].all() and live[list(ids)].all() for ids in found.ids)
        assert share(found.ids, best(QUERIES, live & flags)) >= 0.9
        exact = docs.search_batch(QUERIES, k=10, exact=True, where=where)
        assert [list(ids) for ids in exact.ids] == best(QUERIES, live & flags)


def test_new_points_are_found_at_once(docs: vecdb.Collection) -> None:
    docs.upsert(ids=[6000, 7], vectors=[QUERIES[0], QUERIES[1]])
    assert docs.search(QUERIES[0], k=1).ids == [6000] and docs.search(QUERIES[1], k=1).ids == [7]


def test_a_plan_tells_of_short_lists_and_codes(docs: vecdb.Collection) -> None:
    plan = docs.search(QUERIES[0], recall=0.95, explain=True).plan
    assert plan is not None
    (part,) = plan.parts
    assert part.way.startswith("index") and part.seen["bytes of codes"] == -(-6000 // 32) * 32 * (DIM // 8 + 8)
    assert 10 <= part.seen["rows in short lists"] < 1500 and "rows in short lists" in str(plan)
    assert list(part.stages) == ["tables", "scan", "rows"] and all(spent >= 0 for spent in part.stages.values())
    assert part.bound is not None and -1 < part.bound < 1 and "rows not compared are estimated at 0." in str(plan)
    together = docs.search_batch(QUERIES[:3], recall=0.95, explain=True).plan
    assert together is not None and together.parts[0].bound is None and "estimated at" not in str(together)


def test_threads_share_a_query_where_there_is_much_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, scanned = set(), MIBSearcher._scanned

    def spied(self: MIBSearcher, *arguments: Any) -> Any:
        seen.add(self._crew is not None)
        return scanned(self, *arguments)

    with vecdb.open(tmp_path / "db", threads=3) as db:
        docs = filled(db)
        docs.flush()
        monkeypatch.setattr(MIBSearcher, "_scanned", spied)

        def answers() -> list[Any]:
            asked = [(query, where) for query in QUERIES[:10] for where in (None, F("n") < 3)]
            return [[(hit.id, hit.score) for hit in docs.search(query, recall=0.95, where=where)] for query, where in asked]

        alone = answers()
        assert seen == {False}, "so little is not worth a thread"
        monkeypatch.setattr(Crew, "pieces", lambda self, seconds, worth=0: self.threads)
        seen.clear()
        assert answers() == alone and seen == {True}


def test_figures_are_shown_and_last(
    docs: vecdb.Collection, db: vecdb.Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs.search(QUERIES[0])
    figures = docs.info().indexes["vector"].figures
    assert 0.9 < figures["entropy of a bit"] <= 1 and 10 <= figures["short list for 0.95"] <= figures["short list for 0.99"]
    before = docs.search_batch(QUERIES, k=10, recall=0.95)
    path = tmp_path / "db"
    db.close()
    with vecdb.open(path) as again:
        after = again["docs"].search_batch(QUERIES, k=10, recall=0.95)
        assert np.array_equal(after.ids, before.ids) and np.array_equal(after.scores, before.scores)
        assert again["docs"].info().indexes["vector"].figures == figures
    _info(path)
    shown = capsys.readouterr().out
    assert "entropy of a bit" in shown and "short list for 0.99" in shown
    assert "share of the 10 nearest in lists of" in shown and "█" in shown
    shares = [value for name, value in figures.items() if name.startswith("share of bits of entropy")]
    assert len(shares) == 4 and np.isclose(sum(shares), 1)
    found = {name: value for name, value in figures.items() if name.startswith("share of the 10 nearest")}
    assert len(found) > 3 and list(found.values()) == sorted(found.values()) and max(found.values()) > 0.95


def test_vectors_that_bits_serve_badly_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few numbers, all positive, that say nearly the same."""
    rng = np.random.default_rng(0)
    light = rng.uniform(0, 255, (8000, 2)) @ rng.uniform(0, 1, (2, 16)) + rng.uniform(0, 4, (8000, 16))
    with vecdb.open(tmp_path / "db") as db:
        docs = filled(db, np.rint(light).astype(np.float32), "l2")
        with pytest.warns(
            PoorlyServed,
            match="field 'vector': one bit of each number serves these vectors badly, hnsw or flat would do better",
        ):
            docs.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            docs.flush()  # it was said
        assert "serves these vectors badly" in docs.info().indexes["vector"].advice
        plan = docs.search(light[0], recall=0.9, explain=True).plan
        assert plan is not None and "serves these vectors badly" in str(plan)
    _info(tmp_path / "db")
    assert "badly" in capsys.readouterr().out


def segments_of(docs: vecdb.Collection, pieces: list[np.ndarray]) -> None:
    """A flush for each."""
    at = 0
    for piece in pieces:
        docs.upsert(ids=range(at, at + len(piece)), vectors=piece)
        docs.flush()
        at += len(piece)


def encoders(docs: vecdb.Collection) -> list[int]:
    parts = [part for part in docs._snapshot().parts if isinstance(part, SegmentPart)]
    return [int(part.segment.index(part.indexes["vector"]).array("of")[0]) for part in parts]


def test_merges_copy_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows alike, whose segments have one encoder. What is found is what a search of the float vectors finds."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB()))
        segments_of(docs, [VECTORS[:2600], VECTORS[2600:4000], VECTORS[4000:]])
        assert len(encoders(docs)) == 3 and len(set(encoders(docs))) == 1
        docs.delete(range(0, 6000, 3))

        def build(*_: Any) -> None:
            raise AssertionError("codes were made anew")

        monkeypatch.setattr(type(registry.backend("mib")), "build", build)
        before = encoders(docs)[0]
        docs.merge()
        info = docs.info().indexes["vector"]
        assert encoders(docs) == [before] and (info.segments, info.error) == (1, None) and docs.info().dead == 0
        live = np.arange(6000) % 3 > 0
        found = docs.search_batch(QUERIES, k=10, recall=0.95, explain=True)
        assert found.plan is not None and found.plan.parts[0].way.startswith("index")
        assert share(found.ids, best(QUERIES, live)) >= 0.93


def test_rows_of_another_distribution_get_an_encoder_of_their_own(db: vecdb.Database) -> None:
    """What they are asked for is delivered, before a merge and after it; and figures tell how much bits say of them."""
    offset = np.r_[np.full(DIM // 2, 6.0), np.full(DIM // 2, -6.0)].astype(np.float32)
    moved, queries = drawn(4000, 3) + offset, drawn(200, 4) + offset
    docs = db.create_collection("docs", Dense(DIM, metric="l2", index=MIB()))
    segments_of(docs, [VECTORS, moved])
    assert len(set(encoders(docs))) == 2
    docs.search(queries[0])
    for _ in range(2):
        true = docs.search_batch(queries, k=10, exact=True).ids
        assert min(true[0]) >= 6000, "new rows are asked for"
        found = docs.search_batch(queries, k=10, recall=0.95, explain=True)
        assert found.plan is not None and all(part.way.startswith("index") for part in found.plan.parts)
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.ids, true, strict=True)]
        assert np.mean(shares) >= 0.95 - 3 * np.std(shares) / np.sqrt(len(shares))
        docs.merge()
    assert len(encoders(docs)) == 1
    figures = docs.info().indexes["vector"].figures
    assert 0 < figures["entropy of a bit"] <= 1 and 0 < figures["entropy of a bit, of the rows that the encoder knew"] <= 1


def test_an_index_that_cannot_be_of_such_vectors_is_refused(db: vecdb.Database) -> None:
    with pytest.raises(InvalidInput, match="prefix=65 is more than the 64 numbers of a vector"):
        Dense(64, index=MIB(prefix=65))
    few = db.create_collection("few", Dense(64, index=MIB(prefix=64)))
    with pytest.raises(InvalidInput, match="prefix=65"):
        few.set_index(MIB(prefix=65))
    few.set_index(MIB(prefix=10, centre="median"))
    assert few.info().fields["vector"].index == MIB(prefix=10, centre="median")
    for wrong in ({"prefix": -1}, {"prefix": True}, {"prefix": 1.5}, {"centre": "mode"}):
        with pytest.raises(ValueError, match="prefix|centre"):
            MIB(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("params", [MIB(prefix=40), MIB(centre="median"), MIB("itq", 2, "median", 60)], ids=str)
def test_codes_of_a_prefix_or_about_a_median_answer_as_others(db: vecdb.Database, params: MIB) -> None:
    """Found, merged and, where numbers after the prefix say little, to the recall that is asked."""
    scale = np.float32(0.95) ** np.arange(DIM, dtype=np.float32)
    made = np.random.default_rng(3).standard_normal((9000, DIM), np.float32) * scale
    docs = db.create_collection("some", Dense(DIM, metric="l2", index=params))
    for start in (0, 3000, 6000):
        docs.upsert(ids=np.arange(start, start + 3000), vectors=made[start : start + 3000])
        docs.flush()
    queries = made[::450] + np.float32(0.01)
    for _ in range(2):
        exact = docs.search_batch(queries, k=10, exact=True)
        found = docs.search_batch(queries, k=10, recall=0.95)
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found.ids.tolist(), exact.ids.tolist(), strict=True)]
        assert np.mean(shares) >= 0.9
        docs.merge()
