"""What an index delivers for its effort, measured: curves of recall, and the effort to give for a recall that is asked.

Queries are rows of the segment, held out while the index is built and measured, and added then: so they are of the very
distribution that is stored, and the index has not met them. (Rows that a graph holds already are no measure: they are found
too easily; and when they are hidden from the walk, their neighbours lack the links that led through them: on the image set
that reads 0.938 where fresh queries get 0.959.) For a few k and selectivities the recall is measured at rising efforts;
promised is the lower 95 % bound of its mean, since a sample is only a sample. Any thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import Bitmap, Control, Hits, Rows, Searcher, Trial

from ..errors import Unsupported

KS = (1, 10, 100)
SELECTIVITIES = (1.0, 0.1, 0.01)
EFFORTS = tuple(round(i / 16, 4) for i in range(17))
QUERIES = 600
_WIDTH = 50  # characters of a bar
_FEWEST = 20  # queries, below which nothing is measured
ENOUGH = 0.998  # recall beyond which no more effort is tried
_Z = 1.645  # of the lower bound


@dataclass(frozen=True)
class Curve:
    """Recall at rising efforts, for one k and selectivity. low: the lower bound of its mean; queries: how many were asked."""

    k: int
    selectivity: float
    queries: int
    efforts: tuple[float, ...]
    recalls: tuple[float, ...]
    lows: tuple[float, ...]

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


@dataclass(frozen=True)
class Calibration:
    """The curves of one index; without any, efforts are guessed, and `known` is false."""

    curves: tuple[Curve, ...]

    @property
    def known(self) -> bool:
        return bool(self.curves)

    def effort_for(self, recall: float, k: int, selectivity: float, share: float = 1.0) -> tuple[float, float | None]:
        """The effort to give, and the recall to expect of it; None when nothing was measured.

        share: of all rows, that this index is over. Of the k best of all about k times share are here, and only these have to
        be found; and as errors of several indexes average out, the bound on their mean is so much tighter.
        """
        k = max(1, math.ceil(k * share))
        if not self.curves:
            return min(1.0, 0.3 - 0.25 * math.log10(max(1e-4, 1 - recall)) / 4 + 0.1), None
        curve = min(self.curves, key=lambda c: abs(math.log(c.k / k)) + abs(math.log(c.selectivity / max(selectivity, 1e-4))))
        return curve.effort_for(recall, share)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(curve) for curve in self.curves]

    @staticmethod
    def from_json(value: Sequence[dict[str, Any]]) -> Calibration:
        curves = []
        for each in value:
            lists = (tuple(each[name]) for name in ("efforts", "recalls", "lows"))
            curves.append(Curve(each["k"], each["selectivity"], each["queries"], *lists))
        return Calibration(tuple(curves))


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
        """The picture as a PNG. Needs matplotlib (`pip install "vecdb[plot]"`); raises Unsupported without it."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise Unsupported('pictures need matplotlib: pip install "vecdb[plot]"') from None
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(
            xlabel="effort", ylabel="recall", title=f"{self.field}: recall on {self.curves[0].queries} queries"
        )
        for curve in self.curves:
            (line,) = axes.plot(curve.efforts, curve.recalls, marker="o", label=f"k={curve.k}")
            axes.fill_between(curve.efforts, curve.lows, curve.recalls, alpha=0.2, color=line.get_color())
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)


class Calibrating:
    """A trial that measures an index while it is built. calibration: filled in when it has been run."""

    def __init__(self, rows: Rows, exact: Callable[[Rows], Searcher], *, seed: int = 0, control: Control | None = None) -> None:
        """exact: makes a flat searcher."""
        n = len(rows)
        there = np.arange(n) if rows.present is None else np.flatnonzero(_flags(rows.present, n))
        self._rng = np.random.default_rng(seed)
        held = np.sort(self._rng.permutation(there)[: min(QUERIES, len(there) // 10)])
        self._queries = rows.vectors[held].astype(np.float32)
        self._exact, self._control = exact, control
        self.trial = Trial(held, self._run)
        self.calibration = Calibration(())

    def _run(self, searcher: Searcher, rows: Rows) -> None:
        if len(self._queries) < _FEWEST:
            return
        exact = self._exact(rows)
        assert rows.present is not None
        there = _flags(rows.present, len(rows))
        curves = []
        for selectivity in SELECTIVITIES:
            flags = there if selectivity == 1 else there & (self._rng.random(len(rows)) < selectivity)
            allowed = None if selectivity == 1 else _words(flags)
            for k in KS:
                if flags.sum() <= k:
                    continue
                truth = exact.search(self._queries, k, allowed=allowed, control=self._control)

                def find(effort: float, k: int = k, allowed: Bitmap | None = allowed) -> Hits:
                    return searcher.search(self._queries, k, effort, allowed, control=self._control)

                curves.append(curve_of(k, selectivity, truth, find))
        self.calibration = Calibration(tuple(curves))


def curve_of(k: int, selectivity: float, truth: Hits, find: Callable[[float], Hits]) -> Curve:
    """Recall of `find` at rising efforts, until it is as good as complete."""
    return curve(k, selectivity, lambda effort: recall_of(find(effort), truth))


def curve(k: int, selectivity: float, recalls_at: Callable[[float], npt.NDArray[np.float64]]) -> Curve:
    """recalls_at: an effort -> (m,) the recall of each query."""
    efforts, recalls, lows = [], [], []
    for effort in EFFORTS:
        each = recalls_at(effort)
        mean = float(each.mean())
        efforts.append(effort)
        recalls.append(mean)
        lows.append(mean - _Z * float(each.std(ddof=1)) / math.sqrt(len(each)))
        if lows[-1] >= ENOUGH:
            break
    return Curve(k, selectivity, len(each), tuple(efforts), tuple(recalls), tuple(lows))


def recall_of(found: Hits, truth: Hits) -> npt.NDArray[np.float64]:
    """(m,) the share of the true hits that came; of rows with equal keys any will do."""
    out = np.ones(len(truth.keys))
    for q, length in enumerate(truth.lengths.tolist()):
        if length:
            kth = truth.keys[q, length - 1]
            out[q] = min(length, np.count_nonzero(found.keys[q, : found.lengths[q]] >= kth)) / length
    return out


def _flags(words: Bitmap, n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(np.ascontiguousarray(words).view(np.uint8), count=n, bitorder="little").view(np.bool_)


def _words(flags: npt.NDArray[np.bool_]) -> Bitmap:
    padded = np.zeros(-(-len(flags) // 64) * 64, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little").view(np.uint64)
