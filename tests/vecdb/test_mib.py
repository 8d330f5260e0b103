"""The index of bits behind the API."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index.mib.params import MIB
from vecdb_index.mib.search import MIBSearcher

import vecdb
from vecdb import Dense, F
from vecdb.cli import main
from vecdb.errors import PoorlyServed
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
