"""The planner's arithmetic: what was measured when an index was built decides, between and beyond the points that were measured."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher
from vecdb_storage.payloads import parse

import vecdb
from vecdb.filters import F
from vecdb.schema import Dense
from vecdb.search import bitmaps, calibrate, copies, executor, whole
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


@pytest.mark.parametrize(
    ("found", "counts", "tried"),
    [
        ([0.5, 0.9, 0.995, 0.996, 0.996, 0.996, 0.997], [600] * 7, 6),
        ([0.5, 0.9, 0.995, 0.996, 0.996, 0.996, 0.997], [600, 600, 600, 600, 500, 400, 300], 9),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.92], [600] * 6, 17),
    ],
)
def test_no_more_effort_is_tried_once_it_is_in_vain(found: list[float], counts: list[int], tried: int) -> None:
    """Of the same queries; and where much is missing, whatever it costs."""
    asked: list[float] = []

    def measure(effort: float) -> tuple[np.ndarray, float]:
        at = min(len(asked), len(found) - 1)
        asked.append(effort)
        each = np.zeros(counts[at])
        each[: round(found[at] * counts[at])] = 1
        each[-1] += found[at] * counts[at] - each.sum()
        return each, 1e-3

    curve = calibrate.curve(10, 1.0, measure)
    assert len(asked) == len(curve.efforts) == tried
    assert curve.queries == counts[0]


def test_an_index_is_not_given_up_just_below_a_selectivity_at_which_it_is_good() -> None:
    """It was measured at a sparser one, too, but not to the end: an exact search was faster there."""
    efforts = (0.0, 0.5, 1.0)
    dense = Curve(10, 0.1, 600, efforts, (0.8, 0.96, 1.0), (0.8, 0.96, 1.0), (1e-4, 2e-4, 3e-4))
    sparse = Curve(10, 0.01, 600, efforts[:2], (0.5, 0.6), (0.5, 0.6), (4e-4, 5e-4))
    measured = Calibration((dense, sparse))
    before = 0.0
    for share in (0.1, 0.099, 0.09, 0.08):
        effort, expected = measured.effort_for(0.95, 10, share)
        assert expected is not None and 0.95 <= expected < 0.97
        assert before < effort < 1, "the fewer are allowed, the more effort"
        before = effort
    # A tenth of the way to the sparse one (0.6 at most) the dense one has to be so much better.
    effort = 0.5 + 0.5 * ((0.95 - 0.1 * 0.6) / 0.9 - 0.96) / (1 - 0.96)
    assert measured.effort_for(0.95, 10, 10**-1.1) == pytest.approx((effort, 0.95))
    for share in (0.03, 0.011, 0.01, 0.001):
        effort, expected = measured.effort_for(0.95, 10, share)
        assert expected is not None and expected < 0.95


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


def test_after_a_write_only_what_it_changed_is_planned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []
    me, anew = threading.get_ident(), executor._planned_anew

    def noted(part: Any, *rest: Any) -> Any:
        if threading.get_ident() == me:  # and not a thread that measures whole searches
            planned.append(part)
        return anew(part, *rest)

    monkeypatch.setattr(executor, "_planned_anew", noted)
    vectors = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", Dense(16, index="hnsw"))
        for first in range(0, 3000, 1000):
            payloads = [{"even": at % 2 == 0} for at in range(first, first + 1000)]
            docs.upsert(ids=range(first, first + 1000), vectors=vectors[first : first + 1000], payloads=payloads)
            docs.flush()

        def ask() -> list[Any]:
            """The parts that were planned anew for the same question; its answer is that of brute force."""
            planned.clear()
            found = docs.search(vectors[1500], k=5, where="even == true", exact=True)
            live = {point.id: point.vectors["vector"] for point in docs.scroll("even == true", with_vectors=True)}
            unit = {name: vector / np.linalg.norm(vector) for name, vector in live.items()}
            nearest = sorted(unit, key=lambda name: -float(unit[name] @ vectors[1500]))
            assert found.ids == nearest[:5]
            return list(planned)

        assert len(ask()) == len(ask()) == 3, "a filter may never be asked again"
        assert ask() == []
        docs.delete([1500])
        segments = docs._snapshot().parts
        assert ask() == [segments[1]]
        assert ask() == []
        docs.upsert(ids=[5000], vectors=[vectors[1500]], payloads=[{"even": True}])
        assert ask() == [docs._snapshot().parts[3]]
        docs.delete([2000, 5000])
        assert [part for part in ask() if part in docs._snapshot().parts[:3]] == [docs._snapshot().parts[2]]


def test_plans_of_one_declaration_are_none_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "_HOPELESS", 1000)  # what is quicker, the clock does not say here
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *about: 1.0)
    vectors = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", Dense(16, index="hnsw"))
        docs.upsert(ids=range(1000), vectors=vectors)
        docs.flush()

        def way() -> str:
            return str(docs.search(vectors[7], k=5, recall=0.5, explain=True).plan.parts[0].way)

        assert all("index" in way() for _ in range(3))
        db.pause_indexing()
        before = docs._snapshot().parts
        docs.set_index("flat")
        assert docs._snapshot().parts == before, "its index is still there"
        assert way() == "exact scan"


def test_a_segment_without_its_index_gets_a_copy_of_its_rows_by_the_second_search() -> None:
    vectors = np.random.default_rng(0).standard_normal((6000, 64)).astype(np.float32)
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", Dense(64, index="hnsw"))
        db.pause_indexing()
        docs.upsert(ids=range(6000), vectors=vectors)
        docs.flush()
        (part,) = docs._snapshot().parts
        for _ in range(3):
            docs.search(vectors[0], k=1)
        (planned,) = (planned for _, planned in executor._plans[docs._snapshot()].known.popitem()[1])
        assert planned.whole.codes is not None
        assert planned.whole is copies._kept[part.segment]["vector"].searcher  # type: ignore[attr-defined]


def test_what_is_known_of_rows_in_memory_serves_older_snapshots() -> None:
    """Rows that came after a snapshot are not among those that it allows, however many are known by then."""
    where = F("a") < 5
    with vecdb.open(":memory:", threads=1) as db:
        docs = db.create_collection("docs", Dense(2, metric="l2"))
        docs.upsert(ids=[-1], vectors=[[0, 0]], payloads=[{"a": 7}])
        rng, parts, rows = np.random.default_rng(5), [], [7]
        for count in (1, 61, 1, 1, 7, 300, 64, 2000, 3, 200):
            values = rng.integers(0, 10, count).tolist()
            ids = range(len(rows), len(rows) + count)
            docs.upsert(ids=ids, vectors=np.zeros((count, 2)), payloads=[{"a": value} for value in values])
            rows += values
            parts.append(docs._snapshot().parts[-1])
        assert len({part.block for part in parts}) < len(parts), "some are of the same block"  # type: ignore[attr-defined]
        for at in rng.integers(0, len(parts), 60).tolist():
            part = parts[at]
            stored = [parse(part.payload(row)) for row in range(part.rows)]
            flags = np.array([bool(payload) and payload["a"] < 5 for payload in stored])
            padded = np.zeros(-(-part.rows // 64) * 64, np.bool_)
            padded[: part.rows] = flags
            words = bitmaps.passing(part, where)
            assert words.tolist() == np.packbits(padded, bitorder="little").view(np.uint64).tolist()


@pytest.mark.parametrize("sizes", [(16_000, 500, 500, 500), (10_000, 3_000, 2_000), (500, 500, 500, 500, 9_000)])
@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_recall_is_delivered_by_one_large_segment_and_small_ones(
    sizes: tuple[int, ...], shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole searches are measured on rows that are searched for in other segments; of most rows these are the small ones.

    shift: how far rows of the small segments lie from those of the large one, and from the queries.
    """
    # However fast the machine is, curves are measured to their end, and indexes are searched.
    monkeypatch.setattr(calibrate, "_HOPELESS", 1000)
    monkeypatch.setattr(whole, "_HOPELESS", np.inf)
    monkeypatch.setattr(Calibration, "exact_seconds", lambda *about: 1.0)
    rng, dim = np.random.default_rng(1), 24
    vectors, queries = (rng.standard_normal((count, dim)).astype(np.float32) for count in (sum(sizes), 2000))
    with vecdb.open(":memory:", threads=2) as db:
        docs = db.create_collection("docs", Dense(dim, metric="l2", index="hnsw"))
        first = 0
        for size in sizes:
            if size != max(sizes):
                vectors[first : first + size] += shift
            docs.upsert(ids=range(first, first + size), vectors=vectors[first : first + size])
            docs.flush()
            first += size

        def settled() -> bool:
            index = docs.info().indexes["vector"]
            return index.calibrated is not None and not index.outgrown and index.segments == len(sizes)

        until = time.monotonic() + 60
        while not settled():
            assert time.monotonic() < until
            time.sleep(0.02)
        true = docs.search_batch(queries, k=10, exact=True).ids
        for recall in (0.8, 0.9):
            found = docs.search_batch(queries, k=10, recall=recall, explain=True)
            shared = [len(set(a) & set(b)) / 10 for a, b in zip(found.ids.tolist(), true.tolist(), strict=True)]
            assert np.mean(shared) >= recall - 0.02, found.plan
            assert all(part.way.startswith("index") for part in found.plan.parts)
