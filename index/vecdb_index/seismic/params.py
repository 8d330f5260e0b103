"""Parameters of the index of sparse rows. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar


@dataclass(frozen=True)
class Seismic:
    """Lists of rows by component, pruned and cut into blocks of like rows: the usual choice for learned sparse vectors.

    postings: how many lists a row stands in, on average; more cost memory and build time and help recall; 0 for 14, and more
    in segments of fewer than 100,000 rows. max_fraction: the longest list, as a multiple of the mean one. centroids: blocks of
    a list, as a share of its rows. min_cluster: blocks of so few rows are given up. energy: the share of a block's weight that
    its summary keeps. exact: how exact searches go: by whole "lists", which take 3 bytes a component, or by a "scan" of all,
    which takes none and a hundred times as long. knn: how many of the rows most like it are kept for each row, 4 bytes each,
    and scored where it is found.
    """

    backend: ClassVar[str] = "seismic"

    postings: int = 0
    max_fraction: float = 8.0
    centroids: float = 0.15
    min_cluster: int = 2
    energy: float = 0.4
    exact: str = "lists"
    knn: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.postings, int) or not 0 <= self.postings <= 65_535:
            raise ValueError(f"postings must be a whole number from 0 to 65,535, not {self.postings!r}")
        if not isinstance(self.min_cluster, int) or not 0 <= self.min_cluster <= 1000:
            raise ValueError(f"min_cluster must be a whole number from 0 to 1,000, not {self.min_cluster!r}")
        if not isinstance(self.knn, int) or not 0 <= self.knn <= 32:
            raise ValueError(f"knn must be a whole number from 0 to 32, not {self.knn!r}")
        if self.exact not in ("scan", "lists"):
            raise ValueError(f'exact must be "scan" or "lists", not {self.exact!r}')
        for name, value, least, most in (
            ("max_fraction", self.max_fraction, 1.0, 1e9),
            ("centroids", self.centroids, 0.001, 1.0),
            ("energy", self.energy, 0.01, 1.0),
        ):
            if not isinstance(value, int | float) or not isfinite(value) or not least <= value <= most:
                raise ValueError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")

    def kept(self, rows: int) -> int:
        """How many lists a row stands in, in a segment of so many: short lists that are pruned too find too little."""
        return self.postings or min(60, max(14, round(14 * (100_000 / max(1, rows)) ** 0.4)))
