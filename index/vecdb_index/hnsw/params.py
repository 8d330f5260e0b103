"""Parameters of the graph index. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class HNSW:
    """A navigable graph over the rows: the usual choice for vectors in memory.

    m: half the greatest number of links of a row; more cost memory (8 m bytes a row) and help hard data. ef_construction: how
    widely a new row looks for its links; more cost build time and help recall at the same effort.
    """

    backend: ClassVar[str] = "hnsw"

    m: int = 24
    ef_construction: int = 120

    def __post_init__(self) -> None:
        if not isinstance(self.m, int) or not 2 <= self.m <= 100:
            raise ValueError(f"m must be a whole number from 2 to 100, not {self.m!r}")
        if not isinstance(self.ef_construction, int) or not self.m <= self.ef_construction <= 10_000:
            raise ValueError(f"ef_construction must be a whole number from m to 10,000, not {self.ef_construction!r}")

    @property
    def degree(self) -> int:
        """The greatest number of links of a row."""
        return 2 * self.m
