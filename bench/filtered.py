"""Search with a filter beside other engines: recall@10, full answers, and the rate. Run by `python -m bench filtered`.

A filter lets through the rows whose attribute is below a bound: 50, 10, 1 and 0.1 % of them. Three kinds of attributes:

- random: nothing to do with the vectors.
- clustered: rows sorted by the nearest of 100 centroids; what passes is some whole clusters, and queries come from everywhere.
- far: the queries are divided into eight groups, each has an attribute of its own, and what passes for a group are the rows
  farthest from its middle: the filter forbids what the query is near to.

Each engine has a process of its own, builds one index, and answers with one thread: many queries in one call, and one at a time; of
vecdb that is `search_batch` and `search`, asked for a recall of 0.95. The others have no recall to ask for: each is given the least
setting of its grid that reaches 0.95 *on these very queries*, which is to its advantage, or the one that finds most where none does.
A filter is prepared before the clock starts: vecdb keeps its bitmap, hnswlib gets a set, usearch an array of flags, LanceDB has
indexes of the attributes.

- hnswlib (M=16, efConstruction=200): a filter function in Python, ef from 10 to 2,560.
- usearch (connectivity 16, expansion 128, f32): its Python binding has no filter, so more is fetched than is asked, from 16 up to
  8,192, and the rest is thrown away. Many at once only; that rate is compared with both of vecdb's.
- LanceDB: IVF_HNSW_SQ, prefilter, on one core; from its defaults to ef=300 and refine_factor=20, and, when it is faster at that
  recall, without its index.
- qdrant-client's local mode: exact, in Python, over a twentieth of the points, eight queries, one at a time, one turn; shown, not
  compared.

A pass is given as many queries as it can answer in about an eighth of a second, at most 2,000, at least 16, and 128 where many in a
call are much faster (vecdb, LanceDB). Rates are medians of rounds in which the engines take turns; the ratio is vecdb's rate over that
of the fastest other engine whose setting has a recall of 0.95, asked in the same way, round by round.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .__main__ import head, row
from .engines import Engine
from .sets import (
    DataSet,
    Truth,
    centroids,
    clustered_ranks,
    data_sets,
    far_ranks,
    nearest,
    pointed,
    random_ranks,
    synthetic,
    truth_of,
)

K = 10
RECALL = 0.95
SHARES = (0.5, 0.1, 0.01, 0.001)
GROUPS = 8
MOST, FEWEST, TRIED = 2_000, 16, 32  # queries of a pass; to try a setting
SECONDS = 0.12  # of a pass, about
CALLS = {"vecdb": 128, "lancedb": 128}  # queries of a pass at least, of engines that gain much from many in a call
SAMPLED = {"qdrant": 20}  # is given so many times fewer points
# Settings to try: families of them, each from the least to the most that it finds.
GRIDS: dict[str, list[list[dict[str, Any]]]] = {
    "vecdb": [[{}]],
    "hnswlib": [[{"ef": ef} for ef in (10, 20, 40, 80, 160, 320, 640, 1280, 2560)]],
    "usearch": [[{"fetch": 2**i} for i in range(4, 14)]],
    "lancedb": [
        [{"way": "index", **more} for more in ({}, {"refine": 5}, {"ef": 100, "refine": 10}, {"ef": 300, "refine": 20})],
        [{"way": "flat"}],
    ],
    "qdrant": [],
}
ONE = ", one at a time"


@dataclass(frozen=True)
class Filter:
    """Rows pass whose attribute is below a bound; asked by some of the queries."""

    attribute: str
    below: int
    queries: np.ndarray


class Rows:
    """The rows that an engine is given, their attributes, and the right answers under a filter."""

    def __init__(self, data: DataSet) -> None:
        self.data = data
        self.truths: dict[tuple[str, int], Truth] = {}

    @cached_property
    def groups(self) -> np.ndarray:
        """The group of each query, by the nearest of some centroids of the rows."""
        return nearest(pointed(self.data.queries, self.data.metric), self._middles)

    @cached_property
    def _middles(self) -> np.ndarray:
        return centroids(pointed(self.data.base, self.data.metric), GROUPS)

    @cached_property
    def attributes(self) -> dict[str, np.ndarray]:
        base, metric = self.data.base, self.data.metric
        points = pointed(self.data.queries, metric)
        far = {}
        for group in range(GROUPS):
            mine = points[self.groups == group]
            if len(mine):
                far[f"far{group}"] = far_ranks(base, metric, mine.mean(axis=0))
        return {"random": random_ranks(len(base)), "clustered": clustered_ranks(base, metric), **far}

    def filters(self, kind: str, share: float) -> list[Filter]:
        below = max(1, round(share * len(self.data.base)))
        return [Filter(name, below, self._asking(name)) for name in self.attributes if name.startswith(kind)]

    def _asking(self, attribute: str) -> np.ndarray:
        """The queries that use an attribute."""
        if attribute.startswith("far"):
            return np.flatnonzero(self.groups == int(attribute[3:]))
        return np.arange(len(self.data.queries))

    def judge(self, some: list[Filter], found: np.ndarray) -> tuple[float, int]:
        """Recall, and the fewest rows found for a query. Raises AssertionError when one does not pass the filter."""
        recalls, at = [], 0
        for each in some:
            mine = found[at : at + len(each.queries)]
            at += len(mine)
            values = self.attributes[each.attribute]
            assert (values[mine[mine >= 0]] < each.below).all(), "found what the filter forbids"
            truth = self._truth(each.attribute, each.below)
            recalls.append(Truth(truth.rows[each.queries], truth.keys[each.queries]).recalls(mine, K))
        return float(np.concatenate(recalls).mean()), int((found >= 0).sum(axis=1).min())

    def _truth(self, attribute: str, below: int) -> Truth:
        """Of all queries; those that do not use the attribute have no right answers."""
        if (attribute, below) not in self.truths:
            data, asking, passing = self.data, self._asking(attribute), np.flatnonzero(self.attributes[attribute] < below)
            some = truth_of(data.base, data.queries[asking], data.metric, K, passing)
            shape = len(data.queries), some.rows.shape[1]
            whole = Truth(np.full(shape, -1), np.full(shape, -np.inf, np.float32))
            whole.rows[asking], whole.keys[asking] = some.rows, some.keys
            self.truths[attribute, below] = whole
        return self.truths[attribute, below]


def some_of(filters: list[Filter], count: int) -> list[Filter]:
    """The filters with about `count` queries in all, spread evenly over each one's."""
    total, taken = sum(len(each.queries) for each in filters), []
    for each in filters:
        mine = min(len(each.queries), max(1, round(count * len(each.queries) / total)))
        taken.append(Filter(each.attribute, each.below, each.queries[np.linspace(0, len(each.queries) - 1, mine).astype(int)]))
    return taken


@dataclass(frozen=True)
class Pass:
    """What came of one. filters: with the queries that were asked."""

    setting: dict[str, Any]
    filters: list[Filter]
    rate: float
    recall: float
    fewest: int
    cpu: float  # share of the wall's time


class Rival:
    """One line of a table: an engine with a setting, asked many queries at once or one at a time."""

    def __init__(self, name: str, engine: Engine, rows: Rows, single: bool) -> None:
        self.name, self._engine, self._rows, self._single = name, engine, rows, single
        self.chosen: Pass
        self.reaches = False  # the recall
        self.done = False  # takes no more turns
        self.turns: list[Pass] = []

    def choose(self, filters: list[Filter], families: list[list[dict[str, Any]]]) -> None:
        """The fastest of each family's first setting that reaches the recall, or the one that finds most."""
        best = []
        for family in families:
            tried: list[Pass] = []
            for setting in family:
                tried.append(self._pass(setting, some_of(filters, min(TRIED, self._fitting(tried)))))
                if tried[-1].recall >= RECALL or setting is family[-1]:  # then with more queries
                    tried[-1] = self._measured(setting, filters)
                if tried[-1].recall >= RECALL:
                    break
            best.append(tried[-1] if tried[-1].recall >= RECALL else max(reversed(tried), key=lambda each: each.recall))
        reaching = [each for each in best if each.recall >= RECALL]
        self.reaches = bool(reaching)
        self.chosen = max(reaching, key=lambda each: each.rate) if reaching else max(best, key=lambda each: each.recall)

    @staticmethod
    def _fitting(tried: list[Pass]) -> int:
        """How many queries fit into a pass, by the last one."""
        return int(np.clip(SECONDS * tried[-1].rate, FEWEST, MOST)) if tried else TRIED

    def take_one(self, filters: list[Filter]) -> None:
        """The only turn of an engine that has no settings, and no time for more."""
        self.chosen, self.done = self._pass({}, filters), True
        self.turns.append(self.chosen)

    def take_turn(self) -> None:
        self.turns.append(self._pass(self.chosen.setting, self.chosen.filters))

    def _measured(self, setting: dict[str, Any], filters: list[Filter]) -> Pass:
        """A pass of about the right length."""
        count = CALLS.get(self.name, FEWEST)
        while True:
            done = self._pass(setting, some_of(filters, count))
            fitting = self._fitting([done])
            if fitting < 1.5 * count:  # also where it takes longer
                return done
            count = fitting

    def _pass(self, setting: dict[str, Any], some: list[Filter]) -> Pass:
        groups = [[each.attribute, each.below, each.queries.tolist()] for each in some]
        done = self._engine.run({"setting": setting, "single": self._single, "groups": groups})
        found = np.load(done["ids"])
        recall, fewest = self._rows.judge(some, found)
        return Pass(setting, some, len(found) / done["seconds"], recall, fewest, done["cpu"] / done["seconds"])

    @property
    def rate(self) -> float:
        return statistics.median(turn.rate for turn in self.turns)


def measure(rounds: int, kinds: list[str], most: int | None) -> None:
    for data in data_sets([kind for kind in kinds if kind == "images"], most):
        _measure(rounds, data)
    if "synthetic" in kinds:
        data = synthetic(100_000 if most is None else most)
        _measure(rounds, data)


def _measure(rounds: int, data: DataSet) -> None:
    data = DataSet(data.kind, data.base, data.queries[:MOST], data.metric)
    rows, sampled = {1: Rows(data)}, set(SAMPLED.values())
    for times in sampled:
        some = np.sort(np.random.default_rng(11).permutation(len(data.base))[: len(data.base) // times])
        rows[times] = Rows(DataSet(data.kind, data.base[some], data.queries, data.metric))
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as work:
        engines: dict[str, Engine] = {}
        print(f"## Search with a filter, {data.name}, k={K}, one thread\n")
        for times, each in rows.items():
            folder = Path(work) / str(times)
            folder.mkdir()
            np.save(folder / "base.npy", each.data.base)
            np.save(folder / "queries.npy", each.data.queries)
            np.savez(folder / "attributes.npz", **each.attributes)
        for name in GRIDS:
            try:
                engines[name] = Engine(f"filtered_{name}", name, Path(work) / str(SAMPLED.get(name, 1)), data.metric)
            except OSError as error:
                print(f"{name}: {error}", file=sys.stderr)
        print("Built: " + ", ".join(f"{name} {engine.built['seconds']:.0f} s" for name, engine in engines.items()) + ".\n")
        for kind in ("random", "clustered", "far"):
            print(f"### {kind.capitalize()} attribute\n")
            head("passes", "engine", "setting", f"recall@{K}", "fewest found", "queries", "QPS", "x the fastest other at 0.95")
            shares = []
            for share in SHARES:
                rivals = _rivals(engines, rows, kind, share)
                for _ in range(rounds):
                    for rival in rivals:
                        if not rival.done:
                            rival.take_turn()
                _show(share, rivals, rows)
                shares += [turn.cpu for rival in rivals for turn in rival.turns]
            print(
                f"\n{rounds} rounds. Passes whose CPU time was under 0.9 of the wall's: {sum(each < 0.9 for each in shares)}, "
                f"above 1.1: {sum(each > 1.1 for each in shares)}, of {len(shares)}.\n",
                flush=True,
            )
        for engine in engines.values():
            engine.close()


def _rivals(engines: dict[str, Engine], rows: dict[int, Rows], kind: str, share: float) -> list[Rival]:
    """With the settings that they will have. An engine whose process ends is left out from then on."""
    rivals = []
    for name, engine in list(engines.items()):
        mine = rows[SAMPLED.get(name, 1)]
        filters = mine.filters(kind, share)
        many, one = Rival(name, engine, mine, False), Rival(name + ONE, engine, mine, True)
        try:
            if name in SAMPLED:
                one.take_one(some_of(filters, GROUPS))
                rivals.append(one)
                continue
            many.choose(filters, GRIDS[name])
            rivals.append(many)
            if name != "usearch":
                one.choose(filters, GRIDS[name])
                rivals.append(one)
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)
            del engines[name]
    return rivals


def _show(share: float, rivals: list[Rival], rows: dict[int, Rows]) -> None:
    for rival in rivals:
        engine, ratio = rival.name.removesuffix(ONE), ""
        points = len(rows[SAMPLED.get(engine, 1)].data.base)
        if engine == "vecdb":
            others = [each for each in rivals if each.reaches and each.name.removesuffix(ONE) not in ("vecdb", *SAMPLED)]
            alike = [each for each in others if each.name == "usearch" or each.name.endswith(ONE) == rival.name.endswith(ONE)]
            best = max(alike, key=lambda each: each.rate, default=None)
            ratios = [] if best is None else [a.rate / b.rate for a, b in zip(rival.turns, best.turns, strict=True)]
            ratio = "no other reaches it"
            if best is not None:
                name = best.name.removesuffix(ONE)
                ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}] {name}"
        chosen = rival.chosen
        row(
            f"{100 * share:g} %",
            rival.name if engine not in SAMPLED else f"{rival.name} ({points:,} points)",
            ", ".join(f"{key} {value}" for key, value in chosen.setting.items()),
            f"{chosen.recall:.3f}",
            f"{chosen.fewest} of {min(K, max(1, round(share * points)))}",
            f"{sum(len(each.queries) for each in chosen.filters):,}",
            f"{rival.rate:,.0f}",
            ratio,
        )
