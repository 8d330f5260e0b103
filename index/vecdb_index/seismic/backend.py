"""The lists of sparse rows as an index backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..contract import Arrays, Budget, Part, Progress, SparseRows, Trial
from .build import build
from .params import Seismic
from .search import SeismicSearcher


class _SeismicBackend:
    name, version, kind, params = "seismic", 1, "sparse", Seismic

    def train(self, sample: Any, params: Seismic, budget: Budget, before: Arrays | None = None) -> Arrays:
        return {}

    def build(
        self, rows: SparseRows, trained: Arrays, params: Seismic, budget: Budget, progress: Progress, trial: Trial | None = None
    ) -> Arrays:
        return build(rows, params, budget, progress, trial)

    def merge(
        self, parts: Sequence[Part], rows: Any, trained: Arrays, params: Seismic, budget: Budget, trial: Trial | None = None
    ) -> Arrays | None:
        return None  # what is kept of a list depends on all rows, and a new index takes seconds

    def open(self, arrays: Arrays, trained: Arrays, rows: SparseRows, params: Seismic) -> SeismicSearcher:
        return SeismicSearcher(arrays, rows, params)


BACKEND = _SeismicBackend()
