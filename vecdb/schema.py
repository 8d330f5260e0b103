"""Fields and metrics: what a collection is declared to hold.

`Dense(384, metric="cosine")` says that points carry 384 numbers each. In the catalogue a schema is JSON:

    {"fields": {"vector": {"kind": "dense", "dim": 384, "metric": "cosine", "dtype": "f32"}}, "ids": "str" | "int" | null}

Immutable values; safe in any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import InvalidInput, Unsupported

Metric = Literal["cosine", "ip", "l2"]
Dtype = Literal["f32", "f16", "i8"]

DEFAULT_FIELD = "vector"
MAX_DIM = 65_535
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Dense:
    """A field of dense vectors.

    dim: numbers per vector, 1 to 65,535. metric: "cosine", "ip" (inner product) or "l2" (Euclidean distance).
    dtype: how they are stored: "f32", "f16" (half the size, about three digits), or "i8" (integers, never rescaled).
    Raises InvalidInput.
    """

    dim: int
    metric: Metric = "cosine"
    dtype: Dtype = "f32"

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or not 1 <= self.dim <= MAX_DIM:
            raise InvalidInput(f"dim must be a whole number from 1 to {MAX_DIM:,}, not {self.dim!r}")
        if self.metric not in ("cosine", "ip", "l2"):
            raise InvalidInput(f'metric must be "cosine", "ip" or "l2", not {self.metric!r}')
        if self.dtype not in ("f32", "f16", "i8"):
            raise InvalidInput(f'dtype must be "f32", "f16" or "i8", not {self.dtype!r}')

    def to_json(self) -> dict[str, Any]:
        return {"kind": "dense", "dim": self.dim, "metric": self.metric, "dtype": self.dtype}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Dense:
        return Dense(value["dim"], value["metric"], value["dtype"])


@dataclass(frozen=True)
class Sparse:
    """A field of sparse vectors. Declared so that schemas can name it; no backend of this version stores one."""


def fields_of(schema: Dense | Sparse | Mapping[str, Dense | Sparse]) -> dict[str, Dense]:
    """The fields that a user declared, by name. Raises InvalidInput or Unsupported."""
    fields = dict(schema) if isinstance(schema, Mapping) else {DEFAULT_FIELD: schema}
    if not fields:
        raise InvalidInput("a collection needs at least one vector field, such as Dense(384)")
    return {name: checked_field(name, declared) for name, declared in fields.items()}


def checked_field(name: str, declared: Dense | Sparse) -> Dense:
    if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot name a field: use 1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter, digit or _")
    if isinstance(declared, Sparse):
        raise Unsupported(f"field {name!r}: this version has no backend for sparse vectors")
    if not isinstance(declared, Dense):
        raise InvalidInput(f"it must be a Dense(...), not {type(declared).__name__}", field=name)
    return declared


def checked_name(name: object) -> str:
    """A collection's name. Raises InvalidInput."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot name a collection: use 1 to 128 of A-Z a-z 0-9 _ . -, beginning with a letter, digit or _"
        )
    return name
