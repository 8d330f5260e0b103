"""Parameters of the index of bits. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

MOST_BITS = 8
CHOICES = ("auto", "none", "hadamard", "dense", "pca", "itq")
CENTRES = ("mean", "median")


@dataclass(frozen=True)
class MIB:
    """Every row as one bit a dimension, all of which every search reads: cheap to build, and the same cost for any query.

    rotation: what makes bits say more: "none", "hadamard", "dense" (for comparison), "pca", "itq"; "auto" tries none, hadamard
    and itq on rows that are held out, and keeps the cheapest that finds as much as the best. bits: kept of each dimension; the
    first decides which rows are looked at, and where there are more, up to 8, all of them which are compared themselves. "auto"
    keeps one, unless rows that are held out say that this is too little, and how many are enough. centre: what rows are moved
    by before: their mean, or "median", which makes each bit one in half of the rows. prefix: how many of the first numbers have
    bits, where these say most of a vector (Matryoshka embeddings); 0: all. Vectors are compared whole in any case.
    """

    backend: ClassVar[str] = "mib"

    rotation: str = "auto"
    bits: int | str = "auto"
    centre: str = "mean"
    prefix: int = 0

    def __post_init__(self) -> None:
        if self.rotation not in CHOICES:
            raise ValueError(f"rotation must be one of {', '.join(CHOICES)}, not {self.rotation!r}")
        if self.bits != "auto" and (
            isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= MOST_BITS
        ):
            raise ValueError(f"bits must be auto, or 1 to {MOST_BITS}, not {self.bits!r}")
        if self.centre not in CENTRES:
            raise ValueError(f"centre must be {' or '.join(CENTRES)}, not {self.centre!r}")
        if isinstance(self.prefix, bool) or not isinstance(self.prefix, int) or self.prefix < 0:
            raise ValueError(f"prefix must be a number of dimensions, or 0 for all, not {self.prefix!r}")

    def misfit(self, dim: int) -> str:
        """Why this cannot be an index of vectors of so many numbers; nothing if it can."""
        return f"prefix={self.prefix} is more than the {dim} numbers of a vector" if self.prefix > dim else ""
