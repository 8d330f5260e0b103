"""Parameters of exact search: there are none. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Flat:
    """No index: every allowed row is scored, every answer exact."""

    backend: ClassVar[str] = "flat"
