"""The bits as an index backend."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import Arrays, Budget, Part, Progress, Rows, Searcher, Trial
from .build import build, merge, train
from .params import MIB
from .search import MIBSearcher


class _MIBBackend:
    name, version, kind, params = "mib", 3, "dense", MIB

    def train(self, sample: Rows, params: MIB, budget: Budget, before: Arrays | None = None) -> Arrays:
        return train(sample, params, budget, before)

    def build(
        self, rows: Rows, trained: Arrays, params: MIB, budget: Budget, progress: Progress, trial: Trial | None = None
    ) -> Arrays:
        return build(rows, trained, params, budget, progress, trial)

    def merge(
        self, parts: Sequence[Part], rows: Rows, trained: Arrays, params: MIB, budget: Budget, trial: Trial | None = None
    ) -> Arrays | None:
        return merge(list(parts), rows, trained, params, budget, trial)

    def open(self, arrays: Arrays, trained: Arrays, rows: Rows, params: MIB) -> Searcher:
        return MIBSearcher(arrays, trained, rows, params)


BACKEND = _MIBBackend()
