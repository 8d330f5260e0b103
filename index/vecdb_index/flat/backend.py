"""Exact search as an index backend: nothing is built or stored."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import AnyRows, Arrays, Budget, ExactSearcher, Part, Progress, Searcher, SparseRows, Trial
from .params import Flat
from .search import FlatSearcher
from .sparse import SparseSearcher


def exactly(rows: AnyRows) -> ExactSearcher:
    """An exact searcher over rows as they lie."""
    return SparseSearcher(rows) if isinstance(rows, SparseRows) else FlatSearcher(rows)


class _FlatBackend:
    name, version, kind, params = "flat", 1, "dense", Flat

    def train(self, sample: AnyRows, params: Flat, budget: Budget, before: Arrays | None = None) -> Arrays:
        return {}

    def build(
        self, rows: AnyRows, trained: Arrays, params: Flat, budget: Budget, progress: Progress, trial: Trial | None = None
    ) -> Arrays:
        budget.control.poll()
        if trial is not None:
            trial.run(exactly(trial.others(rows)), trial.others(rows))
        progress(1.0)
        return {}

    def merge(
        self, parts: Sequence[Part], rows: AnyRows, trained: Arrays, params: Flat, budget: Budget, trial: Trial | None = None
    ) -> Arrays | None:
        if trial is not None:
            trial.run(exactly(trial.others(rows)), trial.others(rows))
        return {}

    def open(self, arrays: Arrays, trained: Arrays, rows: AnyRows, params: Flat) -> Searcher:
        return exactly(rows)


BACKEND = _FlatBackend()
