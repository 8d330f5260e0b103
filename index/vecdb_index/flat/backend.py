"""Exact search as an index backend: nothing is built or stored."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import Arrays, Budget, Part, Progress, Rows, Searcher, Trial
from .params import Flat
from .search import FlatSearcher


class _FlatBackend:
    name, version, kind, params = "flat", 1, "dense", Flat

    def train(self, sample: Rows, params: Flat, budget: Budget) -> Arrays:
        return {}

    def build(
        self, rows: Rows, trained: Arrays, params: Flat, budget: Budget, progress: Progress, trial: Trial | None = None
    ) -> Arrays:
        budget.control.poll()
        if trial is not None:
            trial.run(FlatSearcher(trial.others(rows)), trial.others(rows))
        progress(1.0)
        return {}

    def merge(self, parts: Sequence[Part], rows: Rows, trained: Arrays, params: Flat, budget: Budget) -> Arrays | None:
        return {}

    def open(self, arrays: Arrays, trained: Arrays, rows: Rows, params: Flat) -> Searcher:
        return FlatSearcher(rows)


BACKEND = _FlatBackend()
