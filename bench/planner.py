"""What the planner chooses, beside the best of the plans it has. Run by `python -m bench planner`.

200 cases over the sets: a filter that lets through a range of a random or of a clustered attribute (see `sets.py`), its share of
the rows drawn log-uniformly from 0.0005 to 1; k log-uniformly from 1 to 100; a recall of 0.8, 0.9, 0.95 or 0.99. Each case is asked
of 20 queries, one at a time, by one thread, with the filter's bitmap made before; the drawing knows nothing of vectors or queries.

Four plans take turns: the planner's own choice; an exact search of the rows that pass; the index with the bitmap, at the
effort that the calibration gives; and the index without the bitmap, which is asked for so many hits that k of them should pass, by
two standard deviations, and of which the others are thrown away. These three are forced: the planner is asked as usual, so that all
pay for it, and then told otherwise. The last is a plan that vecdb does not have; it counts among the best
only where it found as much as the bitmap's plan or what was asked, and is not tried where it would fetch more than a tenth of all
rows. An exact search that is asked for (`exact=True`) has its turn, too: it gives the right answers, and shows what planning takes.

Times are medians over rounds of the sum over the queries of a case. "best" is the fastest of the three forced plans.
"""

from __future__ import annotations

import inspect
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .__main__ import head, row
from .sets import DataSet, clustered_ranks, data_sets, random_ranks, store

CASES = 200
QUERIES = 20
RECALLS = (0.8, 0.9, 0.95, 0.99)
LEAST_SHARE = 0.0005
MOST_K = 100
NEAR = 1.2
FETCHED = 10  # share of the rows, inverted, that filtering afterwards may fetch
SHORTEST = 0.01  # seconds of a measurement; shorter ones are repeated
PLANS = ("exact", "bitmap", "afterwards")  # those that are forced
KINDS = {"exact": "exact", "bitmap": "index", "afterwards": "index"}  # of search, that a plan needs


@dataclass
class Case:
    """attribute: of the filter, whose values from `first` up to below `last` pass. times: of each plan, a round each."""

    data: str
    attribute: str
    first: int
    last: int
    rows: int
    k: int
    recall: float
    queries: np.ndarray
    times: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, float] = field(default_factory=dict)  # recall of each plan
    chosen: str = ""

    @property
    def share(self) -> float:
        return (self.last - self.first) / self.rows

    def seconds(self, plan: str) -> float:
        return statistics.median(self.times[plan])

    @property
    def best(self) -> str:
        return min((plan for plan in PLANS if plan in self.times and self._counts(plan)), key=self.seconds)

    def _counts(self, plan: str) -> bool:
        return plan != "afterwards" or self.found[plan] >= min(self.recall, self.found.get("bitmap", 1.0))

    @property
    def ratio(self) -> float:
        return self.seconds("chosen") / self.seconds(self.best)


@contextmanager
def forced(kind: str | None) -> Iterator[None]:
    """Searches are exact, or go by the index at the effort that its calibration gives, whatever the planner chose; None: as it did."""
    from vecdb.search import executor, planner

    usual = executor.way_of
    arguments = inspect.signature(usual).bind
    efforts: dict[int, float] = {}  # by k

    def told(*given: Any) -> planner.Way:
        way = usual(*given)
        if way.searcher is not None and kind == "exact":
            return replace(way, searcher=None, effort=1.0, expected=1.0)
        if way.searcher is None and kind == "index":
            named = arguments(*given).arguments
            asked, index, share = named["asked"], named["index"], named["share"]
            if asked.k not in efforts:
                passing = way.allowed / named["part"].rows
                efforts[asked.k], _ = planner._effort(asked, index.calibration, passing, share)
            return replace(way, searcher=index.searcher, effort=efforts[asked.k])
        return way

    executor.way_of = told if kind else usual
    try:
        yield
    finally:
        executor.way_of = usual


def measure(rounds: int, kinds: list[str], most: int | None) -> None:
    import vecdb

    sets = list(data_sets(kinds, most))
    cases: list[Case] = []
    rng = np.random.default_rng(23)
    for number, data in enumerate(sets):
        count = CASES // len(sets) + (number < CASES % len(sets))
        columns = {"random": random_ranks(len(data.base)), "clustered": clustered_ranks(data.base, data.metric)}
        with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as work:
            store(work + "/db", data, payloads={name: values.tolist() for name, values in columns.items()})
            with vecdb.open(work + "/db", threads=1) as db:
                docs = db.collection("docs")
                for _ in range(count):
                    cases.append(_drawn(rng, data))
                    _run(docs, cases[-1], columns[cases[-1].attribute], rounds)
    _show(cases, rounds)


def _drawn(rng: np.random.Generator, data: DataSet) -> Case:
    n = len(data.base)
    passing = max(1, round(n * LEAST_SHARE ** rng.random()))
    first = int(rng.integers(0, n - passing + 1))
    return Case(
        data=data.kind,
        attribute=("random", "clustered")[int(rng.integers(2))],
        first=first,
        last=first + passing,
        rows=n,
        k=round(MOST_K ** rng.random()),
        recall=RECALLS[int(rng.integers(len(RECALLS)))],
        queries=data.queries[rng.permutation(len(data.queries))[:QUERIES]],
    )


def _run(docs: Any, case: Case, values: np.ndarray, rounds: int) -> None:
    """Measures a case."""
    import vecdb

    where = (vecdb.F(case.attribute) >= case.first) & (vecdb.F(case.attribute) < case.last)
    passes = (values >= case.first) & (values < case.last)
    wide = math.ceil((case.k + 2 * math.sqrt(case.k) + 2) / case.share)
    usual = {"k": case.k, "recall": case.recall, "with_payload": False}

    def afterwards(query: np.ndarray) -> list[int]:
        ids = docs.search_batch(query[None], **{**usual, "k": wide}).ids[0].astype(np.int64)
        kept: list[int] = ids[passes[ids]][: case.k].tolist()
        return kept

    def filtered(query: np.ndarray) -> list[int]:
        ids: list[int] = docs.search(query, where=where, **usual).ids
        return ids

    plans: dict[str, Callable[[np.ndarray], list[int]]] = {
        "chosen": filtered,
        "asked": lambda query: docs.search(query, where=where, k=case.k, exact=True, with_payload=False).ids,
        "exact": filtered,
        "bitmap": filtered,
        "afterwards": afterwards,
    }
    case.chosen = _way(docs, case.queries[0], where=where, **usual)
    for name, kind in KINDS.items():
        with forced(kind):
            wanted = {**usual, "k": wide} if name == "afterwards" else {**usual, "where": where}
            if _way(docs, case.queries[0], **wanted) != kind or (name == "afterwards" and FETCHED * wide > case.rows):
                del plans[name]
    found: dict[str, list[list[int]]] = {}
    names, repeats = list(plans), dict.fromkeys(plans, 1)
    for turn in range(rounds + 1):  # the first one warms
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with forced(KINDS.get(name)):
                started = time.perf_counter()
                for _ in range(repeats[name]):
                    found[name] = [plans[name](query) for query in case.queries]
                seconds = (time.perf_counter() - started) / repeats[name]
            if turn:
                case.times.setdefault(name, []).append(seconds)
            else:
                repeats[name] = math.ceil(SHORTEST / seconds)
    for name, mine in found.items():
        shares = [len(set(ids) & set(right)) / len(right) for ids, right in zip(mine, found["asked"], strict=True)]
        case.found[name] = float(np.mean(shares))


def _way(docs: Any, query: np.ndarray, **asked: Any) -> str:
    """Which of the plans a search is: exact or index."""
    ways = {part.way.split()[0].rstrip(",") for part in docs.search(query, explain=True, **asked).plan.parts}
    return ways.pop() if len(ways) == 1 else "mixed"


def _show(cases: list[Case], rounds: int) -> None:
    print(f"## The planner's choices beside the best plans: {len(cases)} cases of {QUERIES} queries, one thread\n")
    print("Total time of a plan over all cases of a set, over that of the best plan of each case.\n")
    head(
        "set",
        "cases",
        "chosen",
        "always exact",
        "always the bitmap",
        f"within {NEAR} x",
        "best: exact, bitmap, afterwards",
        "recall − asked",
    )
    for name in (*dict.fromkeys(case.data for case in cases), "all"):
        some = [case for case in cases if name in (case.data, "all")]
        best = sum(case.seconds(case.best) for case in some)
        totals = [
            f"{sum(case.seconds(plan) for case in some) / best:.2f}" if all(plan in case.times for case in some) else "–"
            for plan in ("chosen", "exact", "bitmap")
        ]
        near = sum(case.ratio <= NEAR for case in some) / len(some)
        wins = ", ".join(str(sum(case.best == plan for case in some)) for plan in PLANS)
        more = np.mean([case.found["chosen"] - case.recall for case in some])
        row(name, len(some), *totals, f"{100 * near:.0f} %", wins, f"{more:+.3f}")
    print("\nThe ten worst, by ratio:\n")
    head("set", "attribute", "passes", "k", "recall", "chosen", "best", "chosen, ms", "best, ms", "ratio")
    for case in sorted(cases, key=lambda case: -case.ratio)[:10]:
        times = (f"{1000 * case.seconds(plan) / QUERIES:.3f}" for plan in ("chosen", case.best))
        row(
            case.data, case.attribute, f"{100 * case.share:.2f} %", case.k, case.recall, case.chosen, case.best, *times,
            f"{case.ratio:.2f}",
        )  # fmt: skip
    planning = [case.seconds("exact") - case.seconds("asked") for case in cases if "exact" in case.times]
    print(
        f"\n{rounds} rounds. Planning: an exact search that is chosen takes {1e6 * statistics.median(planning) / QUERIES:.0f} µs more "
        "than one that is asked for (median of cases).\n"
    )
