"""Sparse vectors as users give and get them: components, whole numbers from 0 to 4,294,967,295, and a weight for each.

What is given may be a SciPy sparse matrix, or rows, each a dict {component: weight}, a pair (components, weights), or a
SparseVector. Components may come in any order; those that occur twice in a row are added up, and weights of zero are left out.
Values are not changed after construction; functions are safe in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from vecdb_index.contract import SparseRows
from vecdb_storage.batch import FieldRows
from vecdb_storage.vectors import SparseVectors, norms_of

from .errors import InvalidInput, InvalidVector

MAX_COMPONENT = 2**32 - 1
_OF_A_QUERY = 40  # components; of SPLADE's queries 44, of its documents 120
LARGEST_WEIGHT = 1e16  # sums of products of such weights stay finite in float32


class SparseVector:
    """One sparse vector. indices: (nnz,) uint32, ascending, each once. values: (nnz,) float32, none of them zero."""

    __slots__ = ("indices", "values")

    def __init__(self, indices: Any, values: Any) -> None:
        """Components and their weights, in any order. Raises InvalidVector."""
        rows = _checked([(indices, values)], None, lambda at: {})
        self.indices, self.values = rows.indices, rows.weights

    @classmethod
    def of(cls, row: SparseVectors) -> SparseVector:
        """The only one of some stored rows, in arrays of its own."""
        self, own = cls.__new__(cls), row.copy()
        self.indices, self.values = own.indices, own.weights
        return self

    @classmethod
    def checked(cls, row: Any, name: str | None) -> SparseVector:
        """From whatever a row may be given as, of a field. Raises InvalidVector."""
        return cls.of(_checked([row], name, lambda at: {}))

    def __len__(self) -> int:
        """How many components it has."""
        return len(self.indices)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """As a pair: indices, values."""
        return iter((self.indices, self.values))

    def to_dict(self) -> dict[int, float]:
        return dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseVector):
            return NotImplemented
        return np.array_equal(self.indices, other.indices) and np.array_equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(f"{component}: {value:.6g}" for component, value in [*self.to_dict().items()][:6])
        return f"SparseVector({{{shown}{', …' if len(self) > 6 else ''}}})"


# -- checked -----------------------------------------------------------------------------------------------


def checked_rows(values: Any, name: str, ids: Sequence[Any], present: npt.NDArray[np.bool_] | None = None) -> FieldRows:
    """Rows as stored. Raises InvalidVector or InvalidInput, naming the first point that is wrong."""
    rows = _checked(values, name, lambda at: {"point": ids[at]})
    if len(rows) != len(ids):
        raise InvalidInput(f"{len(rows)} vectors for {len(ids)} ids", field=name)
    return FieldRows(rows, norms_of(rows), present)


def checked_queries(queries: Any, name: str) -> SparseRows:
    """Queries as searchers take them. Raises InvalidVector or InvalidInput naming the query by its position."""
    if isinstance(queries, SparseVector) or (
        isinstance(queries, tuple) and len(queries) == 2 and all(map(_is_numbers, queries))
    ):
        raise InvalidInput("give a list of sparse vectors; for a single one use search", field=name)
    return as_rows(_checked(queries, name, lambda at: {"query": at}))


def as_rows(vectors: SparseVectors, present: Any = None) -> SparseRows:
    return SparseRows(vectors.offsets, vectors.indices, vectors.weights, present)


def like_queries(rows: SparseVectors) -> SparseRows:
    """Stored rows as if they were queries: the heaviest components of each, as many as an encoder gives a query."""
    if int(rows.lengths.max(initial=0)) > _OF_A_QUERY:
        tight = rows.tight()
        owner = np.repeat(np.arange(len(rows)), rows.lengths)
        order = np.lexsort((-np.abs(tight.weights), owner))
        rank = np.arange(len(order)) - tight.offsets[:-1].astype(np.int64)[owner]
        chosen = np.sort(order[rank < _OF_A_QUERY])
        offsets = np.zeros(len(rows) + 1, np.uint64)
        np.cumsum(np.bincount(owner[chosen], minlength=len(rows)), out=offsets[1:])
        rows = SparseVectors(offsets, tight.indices[chosen], tight.weights[chosen])
    return as_rows(rows)


def _is_numbers(values: Any) -> bool:
    return hasattr(values, "__len__") and not isinstance(values, Mapping | str) and not (len(values) and np.ndim(values[0]))


def _checked(values: Any, name: str | None, where: Any) -> SparseVectors:
    """where: position of a row -> how an error says which it is."""
    if isinstance(values, Unchecked | SparseVectors):
        tight = values.tight() if isinstance(values, SparseVectors) else values
        lengths, indices, weights = tight.lengths, tight.indices, tight.weights
    elif hasattr(values, "tocsr"):  # SciPy's sparse matrices and arrays, of which nothing need be imported
        matrix = values.tocsr()
        pointer = np.asarray(matrix.indptr)
        lengths = np.diff(pointer)
        indices, weights = np.asarray(matrix.indices)[: pointer[-1]], np.asarray(matrix.data)[: pointer[-1]]
    else:
        if isinstance(values, str | bytes | Mapping) or not hasattr(values, "__iter__"):
            raise InvalidInput(
                f"sparse vectors are a SciPy sparse matrix, or a list of rows: dicts {{component: weight}} or pairs "
                f"(components, weights); not {type(values).__name__}", field=name,
            )  # fmt: skip
        lengths, indices, weights = _gathered(values, name, where)
    return _settled(lengths, indices, weights, name, where)


def _gathered(rows: Any, name: str | None, where: Any) -> tuple[Any, Any, Any]:
    """Rows one by one as lengths, components and weights."""
    lengths, indices, weights = [], [np.zeros(0, np.int64)], [np.zeros(0, np.float64)]
    for at, row in enumerate(rows):
        if hasattr(row, "tocsr"):
            row = row.tocsr()
            mine: Any = (row.indices, row.data) if len(row.shape) == 1 or row.shape[0] == 1 else None
        elif isinstance(row, SparseVectors):  # one of those that an encoder made
            mine = (row.tight().indices, row.tight().weights) if len(row) == 1 else None
        elif isinstance(row, Mapping):
            mine = (list(row.keys()), list(row.values()))
        else:
            mine = row
        try:
            components, values = mine
            components, values = np.asarray(components), np.asarray(values)
        except (TypeError, ValueError):
            components = values = np.zeros((0, 0))
        if components.ndim != 1 or components.shape != values.shape:
            raise InvalidVector(
                f"a sparse vector is {{component: weight}} or a pair (components, weights) of one length, not {row!r:.60}",
                field=name, **where(at),
            )  # fmt: skip
        if len(components) and components.dtype.kind not in "iu":
            strange = next((c for c in list(mine[0]) if isinstance(c, bool) or not isinstance(c, int | np.integer)), mine[0])
            raise InvalidVector(f"component {strange!r} is no whole number", field=name, **where(at))
        if len(values) and values.dtype.kind not in "fiu":
            strange = next(v for v in values.tolist() if isinstance(v, bool) or not isinstance(v, int | float))
            raise InvalidVector(f"the weight {strange!r} is no number", field=name, **where(at))
        lengths.append(len(components))
        indices.append(components if len(components) else indices[0])
        weights.append(values if len(values) else weights[0])
    # uint64 beside int64 becomes float64, in which every component that is allowed is exact.
    return np.array(lengths, np.int64), np.concatenate(indices), np.concatenate(weights)


def _settled(lengths: Any, indices: Any, weights: Any, name: str | None, where: Any) -> SparseVectors:
    """Checked, in order, each component once, without zeros."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    whole = indices == np.trunc(indices)  # one that is null in a column comes as NaN

    def refuse(flags: Any, why: Any) -> None:
        if flags.any():
            at = int(np.flatnonzero(flags)[0])
            raise InvalidVector(why(at), field=name, **where(int(owner[at])))

    refuse(
        (indices < 0) | (indices > MAX_COMPONENT), lambda at: f"component {indices[at]:.0f} is not from 0 to {MAX_COMPONENT:,}"
    )
    if weights.dtype.kind not in "fiu":
        raise InvalidVector(f"weights are numbers, not {weights.dtype}", field=name)
    refuse(~whole, lambda at: f"component {indices[at]} is no whole number")
    exact = weights.astype(np.float64)
    refuse(~np.isfinite(exact), lambda at: f"the weight of component {indices[at]:.0f} is {weights[at]}; it must be finite")
    components = indices.astype(np.uint32)
    follow = (components[1:] > components[:-1]) | (owner[1:] != owner[:-1])
    if not follow.all():
        order = np.lexsort((components, owner))
        components, exact, owner = components[order], exact[order], owner[order]
        first = np.concatenate([[True], (components[1:] != components[:-1]) | (owner[1:] != owner[:-1])])
        if not first.all():
            exact = np.add.reduceat(exact, np.flatnonzero(first))
            components, owner = components[first], owner[first]
    refuse(
        np.abs(exact) > LARGEST_WEIGHT,
        lambda at: f"the weight of component {components[at]} is {exact[at]:g}; scores of weights beyond 1e16 overflow",
    )
    stored = exact.astype(np.float32)
    kept = stored != 0
    if not kept.all():
        components, stored, owner = components[kept], stored[kept], owner[kept]
    offsets = np.zeros(len(lengths) + 1, np.uint64)
    np.cumsum(np.bincount(owner, minlength=len(lengths)), out=offsets[1:])
    return SparseVectors(offsets, components, stored)


def is_sparse_column(kind: Any) -> bool:
    """Whether an Arrow type is one of sparse vectors, as `rows_of_column` reads them."""
    import pyarrow as pa

    types = pa.types
    if types.is_map(kind):
        return bool(types.is_integer(kind.key_type) and (types.is_floating(kind.item_type) or types.is_integer(kind.item_type)))
    if not types.is_struct(kind) or kind.num_fields != 2:
        return False
    first, second = (kind.field(at).type for at in range(2))
    lists = all(types.is_list(each) or types.is_large_list(each) for each in (first, second))
    return bool(lists and types.is_integer(first.value_type) and types.is_floating(second.value_type))


def is_sparse(value: Mapping[Any, Any]) -> bool:
    """Whether a JSON object may be a sparse vector: {"17": 0.5}, or {"indices": [17], "values": [0.5]}, or empty."""
    if value.keys() == {"indices", "values"}:
        return isinstance(value["indices"], list) and isinstance(value["values"], list)
    return all(key.isdecimal() for key in value) and all(type(each) in (int, float) for each in value.values())


def from_json(value: Mapping[Any, Any], tokens: Mapping[str, int] | None = None) -> Any:
    """A JSON object as a row; one that is none comes back as it is, to be refused with its point. tokens: their components."""
    if tokens is not None:
        return {tokens.get(token, token): weight for token, weight in value.items()}
    if not is_sparse(value):
        return value
    if value.keys() == {"indices", "values"}:
        return value["indices"], value["values"]
    return {int(component): weight for component, weight in value.items()}


def tokens_of(path: str) -> dict[str, int]:
    """Tokens and their components: of a JSON file {token: component}, or of a text with a token in each line, from 0 on."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        lines = {} if path.endswith(".json") else {token: at for at, token in enumerate(text.splitlines())}
        tokens = lines or orjson.loads(text)
    except (OSError, UnicodeDecodeError, orjson.JSONDecodeError) as error:
        raise InvalidInput(f"{path}: tokens cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(tokens, dict) or not all(type(each) is int and 0 <= each <= MAX_COMPONENT for each in tokens.values()):
        raise InvalidInput(f"{path}: it is a JSON object {{token: component}}, components from 0 to {MAX_COMPONENT:,}")
    return tokens


def rows_of_column(column: Any, name: str) -> Any:
    """An Arrow column of sparse vectors: structs of two lists, components and weights (whatever their names), or maps."""
    import pyarrow as pa

    column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    kind = column.type
    if not is_sparse_column(kind):
        raise InvalidVector(
            f"the column has type {kind}; a sparse vector is a struct of two lists, components and weights, or a map",
            field=name,
        )
    if pa.types.is_map(kind):
        if column.null_count:
            return [None if row is None else dict(row) for row in column.to_pylist()]
        lengths = np.diff(np.asarray(column.offsets))
        return _unsettled(lengths, column.keys, column.items)
    first, second = (column.field(at) for at in range(2))
    if column.null_count or first.null_count or second.null_count:
        names = [kind.field(at).name for at in range(2)]
        return [
            None if row is None or row[names[0]] is None else tuple(row[each] for each in names) for row in column.to_pylist()
        ]
    lengths = np.diff(np.asarray(first.offsets))
    if not np.array_equal(lengths, np.diff(np.asarray(second.offsets))):
        return [tuple(row.values()) for row in column.to_pylist()]  # so that the error names the point
    return _unsettled(lengths, first.flatten(), second.flatten())


def _unsettled(lengths: Any, indices: Any, weights: Any) -> Unchecked:
    return Unchecked(lengths.astype(np.int64), indices.to_numpy(zero_copy_only=False), weights.to_numpy(zero_copy_only=False))


class Unchecked:
    """Rows as they came, end to end. lengths: (n,) components of each; they add up to those that there are."""

    def __init__(self, lengths: Any, indices: Any, weights: Any) -> None:
        self.lengths, self.indices, self.weights = lengths, indices, weights

    def __len__(self) -> int:
        return len(self.lengths)

    def rows(self) -> list[tuple[Any, Any]]:
        """One by one."""
        ends = np.cumsum(self.lengths)[:-1]
        return list(zip(np.split(self.indices, ends), np.split(self.weights, ends), strict=True))

    @staticmethod
    def concat(parts: Sequence[Unchecked]) -> Unchecked:
        return Unchecked(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("lengths", "indices", "weights"))
        )


@dataclass(frozen=True)
class Statistics:
    """Of some sparse vectors. components: of a vector, the mean, and what 5 % and 95 % of them have at most. distinct: of all.

    mass: the share of the weight, by amount, that lies in the heaviest 1, 5, 10, 20 and 50 components of a vector, the mean.
    common: the share of vectors that have the most common component, the tenth, and the hundredth.
    """

    vectors: int
    components: tuple[float, int, int]
    distinct: int
    mass: dict[int, float]
    common: dict[int, float]


def statistics_of(vectors: Sequence[SparseVector]) -> Statistics:
    """Figures that say how sparse vectors are, and how much of them matters."""
    sizes = np.array([len(each) for each in vectors] or [0])
    low, high = np.percentile(sizes, [5, 95]).astype(int).tolist()
    tops = (1, 5, 10, 20, 50)
    falling = [np.sort(np.abs(each.values.astype(np.float64)))[::-1] for each in vectors if len(each)]
    shares = [[float(each[:top].sum() / each.sum()) for top in tops] for each in falling] or [[0.0] * len(tops)]
    every = np.concatenate([np.zeros(0, np.uint32), *(each.indices for each in vectors)])
    _, counts = np.unique(every, return_counts=True)
    shown = np.sort(counts)[::-1] / max(1, len(vectors))
    common = {rank: round(float(shown[rank - 1]), 4) for rank in (1, 10, 100) if rank <= len(shown)}
    mass = dict(zip(tops, np.mean(shares, axis=0).round(3).tolist(), strict=True))
    return Statistics(len(vectors), (round(float(sizes.mean()), 1), low, high), len(counts), mass, common)


def one_of(vectors: Any, at: int) -> Any:
    """A row of a matrix, or of sparse rows as a SparseVector."""
    if isinstance(vectors, np.ndarray):
        return vectors[at]
    return SparseVector.of(SparseVectors(vectors.offsets, vectors.indices, vectors.weights)[at])


def centred(positive: Sequence[Any], negative: Sequence[Any]) -> Any:
    """The mean of positive examples, moved away from the mean of negative ones by their difference. Of one kind all."""
    if not isinstance(positive[0], SparseVector):
        query = np.stack(positive).mean(axis=0)
        return query + (query - np.stack(negative).mean(axis=0)) if len(negative) else query
    shares = [(2 if len(negative) else 1) / len(positive)] * len(positive) + [-1 / max(1, len(negative))] * len(negative)
    vectors = [*positive, *negative]
    weights = [share * each.values.astype(np.float64) for each, share in zip(vectors, shares, strict=True)]
    return SparseVector(np.concatenate([each.indices for each in vectors]), np.concatenate(weights))
