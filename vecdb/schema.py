"""Fields and metrics: what a collection is declared to hold.

`Dense(384, metric="cosine")` says that points carry 384 numbers each. In the catalogue a schema is JSON:

    {"fields": {"vector": {"kind": "dense", "dim": 384, "metric": "cosine", "dtype": "f32", "index": "auto"}},
     "ids": "str" | "int" | null}

Immutable values; safe in any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal, cast

from vecdb_index import registry

from .errors import InvalidInput, Unsupported

Metric = Literal["cosine", "ip", "l2"]
Dtype = Literal["f32", "f16", "i8"]

METRICS = ("cosine", "ip", "l2")
DEFAULT_FIELD = "vector"
AUTO = "auto"
MAX_DIM = 65_535
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Dense:
    """A field of dense vectors.

    dim: numbers per vector, 1 to 65,535. metric: "cosine", "ip" (inner product) or "l2" (Euclidean distance).
    dtype: how they are stored: "f32", "f16" (half the size, about three digits), or "i8" (integers, never rescaled).
    index: parameters of a backend from `vecdb.index`, its name, or "auto": large segments get a graph, small ones need none.
    Raises InvalidInput.
    """

    dim: int
    metric: Metric = "cosine"
    dtype: Dtype = "f32"
    index: Any = AUTO

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or not 1 <= self.dim <= MAX_DIM:
            raise InvalidInput(f"dim must be a whole number from 1 to {MAX_DIM:,}, not {self.dim!r}")
        if checked_metric(self.metric) is None:
            raise InvalidInput('metric must be "cosine", "ip" or "l2", not None')
        if self.dtype not in ("f32", "f16", "i8"):
            raise InvalidInput(f'dtype must be "f32", "f16" or "i8", not {self.dtype!r}')
        object.__setattr__(self, "index", checked_index(self.index))

    @property
    def is_flat(self) -> bool:
        """Whether exact search was declared, so that nothing is built."""
        return bool(self.index != AUTO and self.index.backend == "flat")

    def to_json(self) -> dict[str, Any]:
        index: Any = AUTO
        if isinstance(self.index, Unregistered):
            index = {"backend": self.index.backend, "params": self.index.params}
        elif self.index != AUTO:
            index = {"backend": self.index.backend, "params": asdict(self.index)}
        return {"kind": "dense", "dim": self.dim, "metric": self.metric, "dtype": self.dtype, "index": index}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Dense:
        index = value.get("index", AUTO)
        if index != AUTO:
            known = index["backend"] in registry.names()
            index = registry.params(index["backend"])(**index["params"]) if known else Unregistered(**index)
        return Dense(value["dim"], value["metric"], value["dtype"], index)


def checked_metric(metric: str | None) -> Metric | None:
    """A metric, or None. Raises InvalidInput."""
    if metric is not None and metric not in METRICS:
        raise InvalidInput(f'metric must be "cosine", "ip" or "l2", not {metric!r}')
    return cast("Metric | None", metric)


@dataclass(frozen=True)
class Sparse:
    """A field of sparse vectors. Declared so that schemas can name it; no backend of this version stores one."""


@dataclass(frozen=True)
class Unregistered:
    """The index of a backend that this process has not registered: it is kept, and searches are exact."""

    backend: str
    params: dict[str, Any]


def checked_index(index: Any) -> Any:
    """AUTO, or the parameters of a backend. Raises InvalidInput."""
    if index == AUTO:
        return AUTO
    if isinstance(index, str):
        try:
            return registry.params(index)()
        except KeyError as error:
            raise InvalidInput(f'index: {error.args[0]}, or "auto"') from None
    if isinstance(getattr(index, "backend", None), str) and is_dataclass(index) and not isinstance(index, type):
        return index
    raise InvalidInput(
        f'index is parameters such as HNSW(m=24) from vecdb.index, the name of a backend, or "auto"; not {index!r}'
    )


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
