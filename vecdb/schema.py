"""Fields and metrics: what a collection is declared to hold.

`Dense(384, metric="cosine")` says that points carry 384 numbers each. In the catalogue a schema is JSON:

    {"fields": {"vector": {"kind": "dense", "dim": 384, "metric": "cosine", "dtype": "f32", "index": "auto"},
                "terms": {"kind": "sparse", "index": "auto"}},
     "ids": "str" | "int" | null}

Immutable values; safe in any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Literal, cast

from vecdb_index import registry

from .errors import InvalidInput

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
        object.__setattr__(self, "index", checked_index(self.index, "dense"))
        if why := getattr(self.index, "misfit", lambda dim: "")(self.dim):
            raise InvalidInput(f"index: {why}")

    @property
    def is_flat(self) -> bool:
        """Whether exact search was declared, so that nothing is built."""
        return bool(self.index != AUTO and self.index.backend == "flat")

    def to_json(self) -> dict[str, Any]:
        index = index_to_json(self.index)
        return {"kind": "dense", "dim": self.dim, "metric": self.metric, "dtype": self.dtype, "index": index}


def checked_metric(metric: str | None) -> Metric | None:
    """A metric, or None. Raises InvalidInput."""
    if metric is not None and metric not in METRICS:
        raise InvalidInput(f'metric must be "cosine", "ip" or "l2", not {metric!r}')
    return cast("Metric | None", metric)


@dataclass(frozen=True)
class Sparse:
    """A field of sparse vectors: a few components, whole numbers from 0 to 4,294,967,295, and a weight for each.

    Scores are inner products; a point that has no component of the query is no hit. index: parameters of a backend from
    `vecdb.index`, its name, or "auto": large segments get an index, small ones need none. Raises InvalidInput.
    """

    index: Any = AUTO
    metric: ClassVar[Metric] = "ip"

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", checked_index(self.index, "sparse"))

    @property
    def is_flat(self) -> bool:
        """Whether exact search was declared, so that nothing is built."""
        return bool(self.index != AUTO and self.index.backend == "flat")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "sparse", "index": index_to_json(self.index)}


Field = Dense | Sparse


def field_from_json(value: Mapping[str, Any]) -> Field:
    """A field as the catalogue has it."""
    index = value.get("index", AUTO)
    if index != AUTO:
        known = index["backend"] in registry.names()
        index = registry.params(index["backend"])(**index["params"]) if known else Unregistered(**index)
    if value["kind"] == "sparse":
        return Sparse(index)
    return Dense(value["dim"], value["metric"], value["dtype"], index)


def index_to_json(index: Any) -> Any:
    """An index as the catalogue has it."""
    if isinstance(index, Unregistered):
        return {"backend": index.backend, "params": index.params}
    return AUTO if index == AUTO else {"backend": index.backend, "params": asdict(index)}


@dataclass(frozen=True)
class Unregistered:
    """The index of a backend that this process has not registered: it is kept, and searches are exact."""

    backend: str
    params: dict[str, Any]


def checked_index(index: Any, kind: Literal["dense", "sparse"] | None = None) -> Any:
    """AUTO, or the parameters of a backend, of such vectors. Raises InvalidInput."""
    if index == AUTO:
        return AUTO
    if isinstance(index, str):
        try:
            index = registry.params(index)()
        except KeyError as error:
            raise InvalidInput(f'index: {error.args[0]}, or "auto"') from None
    name = getattr(index, "backend", None)
    if isinstance(name, str) and is_dataclass(index) and not isinstance(index, type):
        known = name in registry.names() and not isinstance(index, Unregistered)
        if kind is not None and known and not registry.serves(name, kind):
            raise InvalidInput(f"{name} is an index of {'dense' if kind == 'sparse' else 'sparse'} vectors")
        return index
    raise InvalidInput(
        f'index is parameters such as HNSW(m=24) from vecdb.index, the name of a backend, or "auto"; not {index!r}'
    )


def fields_of(schema: Field | Mapping[str, Field]) -> dict[str, Field]:
    """The fields that a user declared, by name. Raises InvalidInput."""
    fields = dict(schema) if isinstance(schema, Mapping) else {DEFAULT_FIELD: schema}
    if not fields:
        raise InvalidInput("a collection needs at least one vector field, such as Dense(384)")
    return {name: checked_field(name, declared) for name, declared in fields.items()}


def checked_field(name: str, declared: Field) -> Field:
    if not isinstance(name, str) or not _FIELD_NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} cannot name a field: use 1 to 64 of A-Z a-z 0-9 _ -, beginning with a letter, digit or _")
    if not isinstance(declared, Dense | Sparse):
        raise InvalidInput(f"it must be a Dense(...) or Sparse(...), not {type(declared).__name__}", field=name)
    return declared


def checked_name(name: object) -> str:
    """A collection's name. Raises InvalidInput."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot name a collection: use 1 to 128 of A-Z a-z 0-9 _ . -, beginning with a letter, digit or _"
        )
    return name
