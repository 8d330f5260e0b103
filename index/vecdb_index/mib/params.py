"""Parameters of the index of bits. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

CHOICES = ("auto", "none", "hadamard", "dense", "pca", "itq")


@dataclass(frozen=True)
class MIB:
    """Every row as one bit a dimension, all of which every search reads: cheap to build, and the same cost for any query.

    rotation: what makes bits say more: "none", "hadamard", "dense" (for comparison), "pca", "itq"; "auto" tries none, hadamard
    and itq on rows that are held out, and keeps the cheapest that finds as much as the best.
    """

    backend: ClassVar[str] = "mib"

    rotation: str = "auto"

    def __post_init__(self) -> None:
        if self.rotation not in CHOICES:
            raise ValueError(f"rotation must be one of {', '.join(CHOICES)}, not {self.rotation!r}")
