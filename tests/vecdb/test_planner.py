"""The planner's arithmetic: what was measured when an index was built decides, between and beyond the points that were measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher

import vecdb
from vecdb.schema import Dense
from vecdb.search import copies, executor
from vecdb.search.calibrate import Calibration, Curve
from vecdb.search.indexes import Index
from vecdb.search.planner import Asked, way_of

N = 64_000


class Walk:
    """A searcher whose model says a microsecond for each of 100 rows, more where fewer are allowed."""

    def __init__(self, rows: Rows) -> None:
        self.rows, self.exact = rows, FlatSearcher(rows)

    def spread(self, allowed: Any) -> float:
        return 1.0

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        return 100e-6 * (1 + 9 * effort) / selectivity


class Part:
    rows = N


@pytest.fixture(scope="module")
def rows() -> Rows:
    vectors = np.random.default_rng(0).standard_normal((N, 16), np.float32)
    return Rows(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32), "l2")


def calibration(pace: float, exact: tuple[tuple[float, int, float], ...] = ()) -> Calibration:
    """Recall from 0.5 at no effort to 1 at all of it, and a walk that takes `pace` times what its model says."""
    efforts = tuple(np.linspace(0, 1, 11).tolist())
    recalls = tuple(0.5 + effort / 2 for effort in efforts)
    curves = [
        Curve(10, s, 600, efforts, recalls, recalls, tuple(pace * 100e-6 * (1 + 9 * effort) / s for effort in efforts))
        for s in (1.0, 0.1, 0.01)
    ]
    return Calibration(tuple(curves), exact)


def way(rows: Rows, measured: Calibration, share: float = 1.0, recall: float = 0.9, queries: int = 1) -> Any:
    walk = Walk(rows)
    asked = Asked("vector", Dense(16, metric="l2", index="hnsw"), 10, recall)
    return way_of(Part(), asked, Index(walk, measured), walk.exact, round(share * N), None, 1.0, queries)  # type: ignore[arg-type]


def test_the_model_is_corrected_by_what_was_measured(rows: Rows) -> None:
    walk = Walk(rows)
    for pace in (0.01, 1.0, 30.0):
        measured = calibration(pace)
        for share in (1.0, 0.3, 0.1, 0.02, 0.001):
            for effort in (0.0, 0.45, 1.0):
                model = walk.cost(10, effort, share, 1)
                assert measured.seconds(walk, 10, effort, share, 1) == pytest.approx(pace * model)  # type: ignore[arg-type]


def test_a_pace_between_two_measured_selectivities_lies_between_theirs(rows: Rows) -> None:
    flat = FlatSearcher(rows)
    points = tuple((s, 1, pace * flat.cost(10, 1.0, s, 1)) for s, pace in ((1.0, 2.0), (0.1, 8.0), (0.01, 0.5)))
    measured = calibration(1.0, points)
    for share, least, most in ((1.0, 2, 2), (0.3, 2, 8), (0.1, 8, 8), (0.05, 0.5, 8), (0.01, 0.5, 0.5), (0.001, 0.5, 0.5)):
        pace = measured.exact_seconds(flat, 10, share, 1) / flat.cost(10, 1.0, share, 1)
        assert least * 0.999 <= pace <= most * 1.001
    assert measured.exact_seconds(flat, 10, 1.0, 100) == flat.cost(10, 1.0, 1.0, 100), "of many queries nothing was measured"


def test_the_cheaper_way_is_taken_at_the_least_effort_that_will_do(rows: Rows) -> None:
    chosen = way(rows, calibration(1e-6), recall=0.9)
    assert chosen.searcher is not None
    assert chosen.effort == pytest.approx(0.8)
    assert chosen.expected == pytest.approx(0.9)
    assert way(rows, calibration(1e6)).searcher is None
    # The dearer walks are, the sooner an exact search of the rows that are allowed takes over.
    turns = [
        min(s for s in np.geomspace(0.001, 1, 30) if way(rows, calibration(pace), float(s)).searcher) for pace in (0.01, 0.1)
    ]
    assert turns[0] < turns[1]


def test_a_decision_is_kept_and_one_for_another_question_is_not_taken_for_it(rows: Rows) -> None:
    walk, measured = Walk(rows), calibration(0.01)
    index = Index(walk, measured)  # type: ignore[arg-type]
    declared = Dense(16, metric="l2", index="hnsw")
    efforts = {
        recall: way_of(Part(), Asked("vector", declared, 10, recall), index, walk.exact, N, None, 1.0, 1).effort  # type: ignore[arg-type]
        for recall in (0.6, 0.8, 0.95)
    }
    assert efforts == {0.6: pytest.approx(0.2), 0.8: pytest.approx(0.6), 0.95: pytest.approx(0.9)}
    again = way_of(Part(), Asked("vector", declared, 10, 0.6), index, walk.exact, N, None, 1.0, 1)  # type: ignore[arg-type]
    assert again.effort == pytest.approx(0.2)
    assert len(index.ways) == 3


def test_measurements_survive_being_stored() -> None:
    import orjson

    measured = calibration(2.0, ((1.0, 1, 1e-3), (1.0, 600, 1e-4)))
    again = Calibration.from_json(orjson.loads(orjson.dumps(measured.to_json())))
    assert (again.curves, again.exact) == (measured.curves, measured.exact)


def test_rows_that_lie_together_cost_what_is_read_of_them(rows: Rows) -> None:
    """An index whose cost goes by where allowed rows lie is preferred where these are together, and not where they are not."""

    class Blocks(Walk):
        def spread(self, allowed: Any) -> float:
            return float(np.count_nonzero(allowed)) / len(allowed)

        def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
            return 1e-3 * spread

    index = Blocks(rows)
    asked = Asked("vector", Dense(16, metric="l2", index="hnsw"), 10, 0.9)
    exact = index.exact.cost(10, 1.0, 0.05, 1)
    known, words = Index(index, Calibration(())), np.zeros(-(-N // 64), np.uint64)  # type: ignore[arg-type]
    assert 1e-3 * 0.05 * 1.3 < exact < 1e-3, "so that it is decided by that alone"
    everywhere, together = words | np.uint64(7), words.copy()
    together[: len(words) // 20] = ~np.uint64(0)
    for _ in range(2):  # decisions are kept
        assert way_of(Part(), asked, known, index.exact, N // 20, everywhere, 1.0, 1).searcher is None  # type: ignore[arg-type]
        assert way_of(Part(), asked, known, index.exact, N // 20, together, 1.0, 1).searcher is index  # type: ignore[arg-type]


def test_between_selectivities_that_were_measured_the_effort_is_between_theirs() -> None:
    efforts = (0.0, 0.5, 1.0)

    def curve(selectivity: float, recalls: tuple[float, ...]) -> Curve:
        return Curve(10, selectivity, 600, efforts, recalls, recalls, (1e-4, 2e-4, 3e-4))

    measured = Calibration((curve(1.0, (0.5, 0.9, 1.0)), curve(0.1, (0.9, 1.0, 1.0)), curve(0.01, (1.0, 1.0, 1.0))))
    given = [measured.effort_for(0.9, 10, share)[0] for share in (1.0, 10**-0.5, 0.1, 0.05, 0.01, 0.001)]
    assert given == pytest.approx([0.5, 0.25, 0.0, 0.0, 0.0, 0.0])
    assert measured.effort_for(0.95, 10, 10**-0.5) == pytest.approx((0.5, 0.95))


def test_a_question_that_is_asked_often_is_planned_anew_after_each_write(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    plan = executor._plan
    monkeypatch.setattr(executor, "_plan", lambda *arguments: planned.append(1) or plan(*arguments))
    vectors = np.random.default_rng(0).standard_normal((6000, 64)).astype(np.float32)
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", Dense(64))
        docs.upsert(ids=range(6000), vectors=vectors, payloads=[{"even": at % 2 == 0} for at in range(6000)])
        for where, nearest in ((None, 7), ("even == true", 8)):
            query = vectors[nearest]
            for _ in range(9):
                assert docs.search(query, k=1, where=where).ids == [nearest]
            # The first time copies of the rows are not made yet, or the filter may never be asked again.
            assert len(planned) == 2 * len(docs._snapshot().parts)
            planned.clear()
            docs.delete([nearest])
            docs.upsert(ids=[nearest + 10_000], vectors=[query], payloads=[{"even": True}])
            assert docs.search(query, k=1, where=where).ids == [nearest + 10_000]
            assert planned
            planned.clear()
        part = docs._snapshot().parts[0]
        assert copies._kept[part.block]["vector"].codes is not None  # type: ignore[attr-defined]
