"""What an index delivers for its effort, measured: curves of recall, and the effort to give for a recall that is asked.

Queries are rows of the segment, held out while the index is built and measured, and added then: so they are of the very
distribution that is stored, and the index has not met them. (Rows that a graph holds already are no measure: they are found
too easily; and when they are hidden from the walk, their neighbours lack the links that led through them: on the image set
that reads 0.938 where fresh queries get 0.959.) For a few k and selectivities the recall is measured at rising efforts;
promised is the lower 95 % bound of its mean, since a sample is only a sample. What it took is measured, too, beside exact
searches of the same rows: the planner goes by that. Any thread.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import AnyRows, Bitmap, Control, ExactSearcher, Hits, Keys, Queries, Searcher, SparseRows, Trial
from vecdb_storage.vectors import SparseVectors

from ..errors import InvalidInput, Unsupported
from ..sparse import like_queries

KS = (1, 10, 100)
_BETWEEN, _FASTER = 0.03, 3  # a selectivity that is measured only where the index was so many times as fast at the one before
SELECTIVITIES = (1.0, 0.1, _BETWEEN, 0.01)
EFFORTS = tuple(round(i / 16, 4) for i in range(17))
QUERIES, FILTERED_QUERIES = 2000, 600
_LEAST, _POINT = 300, 0.2  # a point of a curve is made of so many queries at least, and takes about so many seconds
_FAR = 0.7  # times as many queries, or as few, make the points of a curve too long or too poor
_WIDTH = 50  # characters of a bar
_FEWEST = 20  # queries, below which nothing is measured
ENOUGH = 0.9995  # recall beyond which no more effort is tried
_NEARLY, _IN_VAIN = 0.99, 2  # recall from which it is not tried either once so many more efforts have found nothing more
_HOPELESS = 2  # efforts one after the other at which a search took longer than an exact one; one may be a busy machine's
_Z = 1.645  # of the lower bound
_K, _USUAL, _REPEATS, _TOGETHER = 10, 0.95, 19, 256  # of searches whose time is taken
FEW = 8  # queries up to which exact searches stream over the rows one by one


@dataclass(frozen=True)
class Curve:
    """Recall at rising efforts, for one k and selectivity.

    lows: the lower bound of its mean. seconds: of one query, of many asked together on one thread. queries: how many.
    """

    k: int
    selectivity: float
    queries: int
    efforts: tuple[float, ...]
    recalls: tuple[float, ...]
    lows: tuple[float, ...]
    seconds: tuple[float, ...]

    def pace(self, searcher: Searcher, effort: float) -> float:
        """How many times what the searcher's model says a query took."""
        measured = min(effort, self.efforts[-1])
        model = searcher.cost(self.k, measured, self.selectivity, self.queries)
        return float(np.interp(measured, self.efforts, self.seconds)) / model

    def low_at(self, effort: float) -> float:
        """The lower bound of the recall at an effort; beyond those measured, that of the last."""
        return float(np.interp(effort, self.efforts, np.maximum.accumulate(self.lows)))

    def effort_for(self, recall: float, share: float = 1.0) -> tuple[float, float]:
        """The least effort whose lower bound reaches `recall`, between those measured, and the recall expected of it."""
        means = np.array(self.recalls)
        lows = np.maximum.accumulate(means - (means - np.array(self.lows)) * math.sqrt(share))
        if recall <= lows[0]:
            return self.efforts[0], self.recalls[0]
        if recall > lows[-1]:
            return 1.0 if self.efforts[-1] >= 1 else min(1.0, self.efforts[-1] + 0.125), self.recalls[-1]
        at = int(np.searchsorted(lows, recall))
        share = (recall - lows[at - 1]) / max(1e-9, lows[at] - lows[at - 1])
        between = [a[at - 1] + share * (a[at] - a[at - 1]) for a in (self.efforts, self.recalls)]
        return float(between[0]), float(between[1])


@dataclass(frozen=True, eq=False)
class Calibration:
    """The curves of one index; without any, efforts are guessed, and `known` is false.

    exact: (selectivity, queries asked together, seconds for each) of exact searches of the same rows, k being 10. single:
    (selectivity, effort, seconds) of queries that are asked of the index one at a time, likewise.
    """

    curves: tuple[Curve, ...]
    exact: tuple[tuple[float, int, float], ...] = ()
    single: tuple[tuple[float, float, float], ...] = ()

    @property
    def known(self) -> bool:
        return bool(self.curves)

    def effort_for(self, recall: float, k: int, selectivity: float, share: float = 1.0) -> tuple[float, float | None]:
        """The effort to give, and the recall to expect of it; None when nothing was measured. Between the selectivities that
        were measured it is between what these need; where one of them was never seen to reach the recall, what rows passing
        as few as here would do is taken to lie between what both did at the same effort.

        share: of all rows, that this index is over. Of the k best of all about k times share are here, and only these have to
        be found; and as errors of several indexes average out, the bound on their mean is so much tighter.
        """
        k = max(1, math.ceil(k * share))
        if not self.curves:
            return min(1.0, 0.3 - 0.25 * math.log10(max(1e-4, 1 - recall)) / 4 + 0.1), None
        near = min((curve.k for curve in self.curves), key=lambda one: abs(math.log(one / k)))
        curves = sorted((curve for curve in self.curves if curve.k == near), key=lambda curve: curve.selectivity)
        after = sum(curve.selectivity < selectivity for curve in curves)
        if after in (0, len(curves)):
            return curves[min(after, len(curves) - 1)].effort_for(recall, share)
        sparse, dense = curves[after - 1 : after + 1]
        least, most, here = (math.log(each) for each in (sparse.selectivity, dense.selectivity, selectivity))
        weight = (here - least) / (most - least)
        (effort, expected), (more, better) = sparse.effort_for(recall, share), dense.effort_for(recall, share)
        if min(expected, better) < recall:
            return _blend(sparse, dense, weight).effort_for(recall, share)
        return effort + weight * (more - effort), expected + weight * (better - expected)

    def seconds(
        self, searcher: Searcher, k: int, effort: float, selectivity: float, queries: int, spread: float = 1.0
    ) -> float:
        """What a query takes: the searcher's own model, at the pace that was measured for selectivities nearby."""
        near = min((curve.k for curve in self.curves), key=lambda one: abs(math.log(one / k)), default=0)
        if queries <= FEW and self.single:
            paces = [(at, spent / searcher.cost(_K, tried, at, 1)) for at, tried, spent in self.single]
        else:
            paces = [(curve.selectivity, curve.pace(searcher, effort)) for curve in self.curves if curve.k == near]
        return searcher.cost(k, effort, selectivity, queries, spread) * _between(paces, selectivity)

    def exact_seconds(self, exact: ExactSearcher, k: int, selectivity: float, queries: int) -> float:
        """Likewise of an exact search."""
        several = queries > FEW
        paces = [
            (each, spent / exact.cost(_K, 1.0, each, asked)) for each, asked, spent in self.exact if (asked > FEW) == several
        ]
        return exact.cost(k, 1.0, selectivity, queries) * _between(paces, selectivity)

    def to_json(self) -> dict[str, Any]:
        return {"curves": [asdict(curve) for curve in self.curves], "exact": self.exact, "single": self.single}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Calibration:
        curves = []
        for each in value["curves"]:
            lists = (tuple(map(float, each[name])) for name in ("efforts", "recalls", "lows", "seconds"))
            curves.append(Curve(each["k"], each["selectivity"], each["queries"], *lists))
        exact = tuple((float(each), int(asked), float(spent)) for each, asked, spent in value["exact"])
        single = tuple((float(at), float(tried), float(spent)) for at, tried, spent in value["single"])
        return Calibration(tuple(curves), exact, single)


def _blend(sparse: Curve, dense: Curve, weight: float) -> Curve:
    """The curve between two of other selectivities; weight: of the second."""
    efforts = sorted({*sparse.efforts, *dense.efforts})
    lists = []
    for name in ("recalls", "lows", "seconds"):
        of_sparse, of_dense = (np.interp(efforts, each.efforts, getattr(each, name)) for each in (sparse, dense))
        lists.append(tuple((of_sparse + weight * (of_dense - of_sparse)).tolist()))
    selectivity = sparse.selectivity ** (1 - weight) * dense.selectivity**weight
    return Curve(sparse.k, selectivity, min(sparse.queries, dense.queries), tuple(efforts), *lists)


def _between(paces: list[tuple[float, float]], selectivity: float) -> float:
    """The pace at a selectivity, between those measured; 1 where none was."""
    if not paces:
        return 1.0
    at, measured = zip(*sorted(paces), strict=True)
    return float(np.exp(np.interp(math.log(max(selectivity, 1e-9)), np.log(at), np.log(measured))))


@dataclass(frozen=True)
class Report:
    """What a field delivers for the user's own queries; printed, a picture of recall against effort.

    curves: one for each k. rows, segments: of the collection when it was measured.
    """

    field: str
    curves: tuple[Curve, ...]
    rows: int
    segments: int

    def __str__(self) -> str:
        lines = [
            f"recall of field {self.field!r}, {self.rows:,} points in {self.segments} segments; ░ up to the lower 95 % bound"
        ]
        for curve in self.curves:
            lines.append(f"k={curve.k}, {curve.queries} queries")
            for effort, recall, low in zip(curve.efforts, curve.recalls, curve.lows, strict=True):
                bar = "█" * round(_WIDTH * max(0.0, low)) + "░" * (round(_WIDTH * recall) - round(_WIDTH * max(0.0, low)))
                lines.append(f"  effort {effort:.3f} {bar:<{_WIDTH}} {recall:.4f} (at least {low:.4f})")
        return "\n".join(lines)

    def save(self, path: str) -> None:
        """The picture as a PNG. Needs matplotlib (`pip install "vecdb[plot]"`). Raises Unsupported without it, InvalidInput."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise Unsupported('pictures need matplotlib: pip install "vecdb[plot]"') from None
        if os.path.splitext(path)[1].lower() != ".png":
            raise InvalidInput(f"the picture is a PNG: name it so, not {os.fspath(path)!r}")
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(
            xlabel="effort", ylabel="recall", title=f"{self.field}: recall on {self.curves[0].queries} queries"
        )
        for curve in self.curves:
            (line,) = axes.plot(curve.efforts, curve.recalls, marker="o", label=f"k={curve.k}")
            axes.fill_between(curve.efforts, curve.lows, curve.recalls, alpha=0.2, color=line.get_color())
        axes.grid(alpha=0.3)
        axes.legend()
        try:
            figure.savefig(path, dpi=120)
        except OSError as error:
            raise InvalidInput(f"the picture cannot be written to {os.fspath(path)!r}: {error.strerror}") from None


class Calibrating:
    """A trial that measures an index while it is built. calibration: filled in when it has been run."""

    def __init__(self, rows: AnyRows, *, threads: int = 1, seed: int = 0, control: Control | None = None) -> None:
        n = len(rows)
        there = np.arange(n) if rows.present is None else np.flatnonzero(_flags(rows.present, n))
        self._rng = np.random.default_rng(seed)
        held = self._rng.permutation(there)[: min(QUERIES, len(there) // 10)]
        self._queries = as_queries(rows, held)
        self._threads, self._control = threads, control
        self.trial = Trial(np.sort(held), self._run)
        self.calibration = Calibration(())

    def _run(self, searcher: Searcher, rows: AnyRows) -> None:
        if len(self._queries) < _FEWEST:
            return
        assert rows.present is not None
        there = _flags(rows.present, len(rows))
        curves: list[Curve] = []
        exact: list[tuple[float, int, float]] = []
        single: list[tuple[float, float, float]] = []
        self._warm(searcher, _words(there))
        threads = self._threads if self._control is None else self._control.threads(self._threads)
        faster = 0.0  # than an exact search was the index, at the selectivity before
        with ThreadPoolExecutor(threads) as pool:
            for selectivity in SELECTIVITIES:
                if selectivity == _BETWEEN and faster < _FASTER:
                    continue
                flags = there if selectivity == 1 else there & (self._rng.random(len(rows)) < selectivity)
                ks = [k for k in KS if k < flags.sum()]
                if not ks:
                    continue
                allowed = None if selectivity == 1 else _words(flags)
                one = self._single(partial(searcher.exact.search, k=_K, allowed=allowed))
                exact += [(selectivity, 1, one), (selectivity, *self._many(searcher, allowed))]
                more = self._curves(searcher, selectivity, allowed, ks, one, pool)
                curves += more
                if _K in ks:
                    effort, _ = more[ks.index(_K)].effort_for(_USUAL)
                    search = partial(searcher.search, k=_K, effort=effort, allowed=allowed)
                    single.append((selectivity, effort, self._single(search)))
                    faster = one / single[-1][2]
        self.calibration = Calibration(tuple(curves), tuple(exact), tuple(single))

    def _warm(self, searcher: Searcher, allowed: Bitmap) -> None:
        """Whatever is compiled or read for the first time is so before anything is timed."""
        for each in (searcher, searcher.exact):
            for queries in (self._queries[:1], self._queries[: FEW + 1]):
                for words in (None, allowed):
                    each.search(queries, _K, 0.5, words, control=self._control)

    def _curves(
        self,
        searcher: Searcher,
        selectivity: float,
        allowed: Bitmap | None,
        ks: list[int],
        most: float,
        pool: ThreadPoolExecutor,
    ) -> list[Curve]:
        """The curves of one selectivity, side by side. most: seconds of an exact search."""
        queries = self._queries if selectivity == 1 else self._queries[:FILTERED_QUERIES]
        started, some = time.perf_counter(), queries[:_LEAST]
        searcher.search(some, ks[0], EFFORTS[0], allowed, control=self._control)
        queries = queries[: at_a_point((time.perf_counter() - started) / len(some))]
        ends = np.linspace(0, len(queries), min(len(queries), self._threads) + 1).astype(int).tolist()
        shares = [queries[first:last] for first, last in itertools.pairwise(ends)]
        true = np.concatenate(list(pool.map(partial(self._true, searcher, ks[-1], allowed), shares)))

        def find(k: int, effort: float, some: Queries) -> Hits:
            return searcher.search(some, k, effort, allowed, control=self._control)

        return list(pool.map(lambda k: curve_of(k, selectivity, queries, true[:, k - 1], partial(find, k), most), ks))

    def _true(self, searcher: Searcher, k: int, allowed: Bitmap | None, queries: Queries) -> Keys:
        return searcher.exact.search(queries, k, allowed=allowed, control=self._control).keys

    def _single(self, search: Callable[..., Hits]) -> float:
        """Seconds that a query takes, of queries one by one: the median."""
        times = []
        for at in range(_REPEATS):
            started = time.perf_counter()
            search(queries=self._queries[at : at + 1])
            times.append(time.perf_counter() - started)
        return float(np.median(times))

    def _many(self, searcher: Searcher, allowed: Bitmap | None) -> tuple[int, float]:
        """How many queries were searched for exactly together, and the seconds that each took."""
        started, queries = time.perf_counter(), self._queries[:_TOGETHER]
        searcher.exact.search(queries, _K, allowed=allowed, control=self._control)
        return len(queries), (time.perf_counter() - started) / len(queries)


def as_queries(rows: AnyRows, numbers: npt.NDArray[np.int64]) -> Queries:
    """Some stored rows, to be searched for."""
    if isinstance(rows, SparseRows):
        return like_queries(SparseVectors(rows.offsets, rows.indices, rows.weights)[numbers])
    return rows.vectors[numbers].astype(np.float32)


def at_a_point(seconds: float) -> int:
    """How many queries a point of a curve is made of, at most, where one takes so long."""
    return max(_LEAST, int(_POINT / max(seconds, 1e-9)))


def at_the_next(queries: int, seconds: float, most: int) -> int:
    """How many queries the next point is made of, of `most`, when one took so long at the last, which was made of so many.

    As many, unless far fewer or far more are worth it: only recalls of the same queries tell whether more effort finds more.
    """
    worth = at_a_point(seconds)
    return queries if _FAR * queries <= worth <= queries / _FAR else min(most, worth)


def curve_of(k: int, selectivity: float, queries: Queries, kth: Keys, find: Callable[[float, Any], Hits], most: float) -> Curve:
    """Recall of `find` at rising efforts, until it is as good as complete, or slower than an exact search: `most` seconds.

    kth: (m,) the k-th best key of each query. Where queries take long, a point is made of fewer of them.
    """
    per, slower, some = 0.0, 0, len(queries)

    def measure(effort: float) -> tuple[npt.NDArray[np.float64], float] | None:
        nonlocal per, slower, some
        if slower >= _HOPELESS:
            return None
        some = at_the_next(some, per, len(queries))
        started = time.perf_counter()
        found = find(effort, queries[:some])
        per = (time.perf_counter() - started) / some
        slower = slower + 1 if per > most else 0
        return np.minimum(1.0, np.count_nonzero(found.keys >= kth[:some, None], axis=1) / k), per

    return curve(k, selectivity, measure)


def curve(k: int, selectivity: float, measure: Callable[[float], tuple[npt.NDArray[np.float64], float] | None]) -> Curve:
    """measure: an effort -> (m,) the recall of each query, and the seconds that one took; None to go no further."""
    efforts, recalls, lows, seconds, counts = [], [], [], [], []
    for effort in EFFORTS:
        measured = measure(effort)
        if measured is None:
            break
        each, spent = measured
        mean = float(each.mean())
        counts.append(len(each))
        efforts.append(effort)
        recalls.append(mean)
        seconds.append(spent)
        lows.append(mean - _Z * float(each.std(ddof=1)) / math.sqrt(len(each)))
        before = -1 - _IN_VAIN
        of_the_same = len(counts) > _IN_VAIN and counts[-1] == counts[before]
        if lows[-1] >= ENOUGH or (of_the_same and _NEARLY <= mean <= recalls[before]):
            break
    return Curve(k, selectivity, max(counts, default=0), tuple(efforts), tuple(recalls), tuple(lows), tuple(seconds))


def _flags(words: Bitmap, n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _words(flags: npt.NDArray[np.bool_]) -> Bitmap:
    padded = np.zeros(-(-len(flags) // 64) * 64, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)
