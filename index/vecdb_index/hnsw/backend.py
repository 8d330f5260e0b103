"""The graph as an index backend."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import Arrays, Budget, Part, Progress, Rows, Searcher, Trial
from .build import build
from .params import HNSW
from .search import HNSWSearcher


class _HNSWBackend:
    name, version, kind, params = "hnsw", 4, "dense", HNSW

    def train(self, sample: Rows, params: HNSW, budget: Budget, before: Arrays | None = None) -> Arrays:
        return {}

    def build(
        self, rows: Rows, trained: Arrays, params: HNSW, budget: Budget, progress: Progress, trial: Trial | None = None
    ) -> Arrays:
        return build(rows, params, budget, progress, trial)

    def merge(
        self, parts: Sequence[Part], rows: Rows, trained: Arrays, params: HNSW, budget: Budget, trial: Trial | None = None
    ) -> Arrays | None:
        return None  # a graph without its dead rows loses recall little by little; a new one does not

    def open(self, arrays: Arrays, trained: Arrays, rows: Rows, params: HNSW) -> Searcher:
        return HNSWSearcher(arrays, rows, params)


BACKEND = _HNSWBackend()
