"""What index backends are given and what they give back. Imports NumPy alone: no kernel is loaded by naming a type.

A *backend* turns the rows of one segment into named arrays (`build`), which are stored as they are, and later into a *searcher*
over those arrays where they lie (`open`). It knows nothing of files, ids or payloads. `docs/backends.md` writes one.

Keys are larger-is-better inside the engine: cosine similarity, inner product, or minus the *squared* Euclidean
distance; `scores_of` turns them into the metric's own values. Bitmaps are uint64 words, bit i % 64 of word i // 64.
Values are immutable and safe in any thread, except that a Control may be cancelled from anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

Metric = Literal["cosine", "ip", "l2"]
Bitmap = npt.NDArray[np.uint64]
Keys = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]
Progress = Callable[[float], None]  # told the share that is done, 0 to 1


@dataclass(frozen=True, slots=True)
class Rows:
    """Stored vectors, as they lie in a segment or a memtable block.

    vectors: (n, d) float32, float16 or int8, C-contiguous, may be mapped read-only. norms: (n,) float32 Euclidean
    norms, within a relative d 2^-24: the bounds of searches rely on them. present: rows that have a vector; None for all.
    """

    vectors: npt.NDArray[Any]
    norms: npt.NDArray[np.float32]
    metric: Metric
    present: Bitmap | None = None

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Sparse vectors, as they lie in a segment or a memtable block; queries have the same form.

    Row i has the components indices[offsets[i] : offsets[i + 1]], ascending, each once, and their weights, finite and not zero;
    a row without any is found by no query. offsets: (n + 1,) uint64. indices: (nnz,) uint32. weights: (nnz,) float32. All may
    be mapped read-only. present: rows that have a vector; None for all. Keys are inner products; a row that has no component
    of the query is no hit.
    """

    offsets: npt.NDArray[np.uint64]
    indices: npt.NDArray[np.uint32]
    weights: npt.NDArray[np.float32]
    present: Bitmap | None = None

    metric: ClassVar[Metric] = "ip"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, at: int | slice) -> SparseRows:
        """One row, or some that follow each other; the first one's number is a multiple of 64 where not all are present."""
        first, last, _ = (at, at + 1, 1) if isinstance(at, int) else at.indices(len(self))
        present = None if self.present is None else self.present[first // 64 : -(-last // 64)]
        return SparseRows(self.offsets[first : last + 1], self.indices, self.weights, present)


AnyRows = Rows | SparseRows
Queries = npt.NDArray[np.float32] | SparseRows


@dataclass(frozen=True, slots=True)
class Hits:
    """The best rows of each query, by (key descending, row ascending).

    keys: (m, k) float32. rows: (m, k) int64, -1 beyond lengths. lengths: (m,) int32. tied: (m,) bool, true when a row that
    was left out is known to have exactly the key of the last hit. scored: rows compared with a query; bytes: of vectors read.
    seen: what else a backend has to tell of its work, by name, for `explain`. spent: seconds of its stages, of all threads.
    bound: of a single query, a key which the estimates of rows that were not compared do not exceed; None where there is none.
    """

    keys: Keys
    rows: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    tied: npt.NDArray[np.bool_]
    scored: int
    bytes: int
    seen: Mapping[str, int] = field(default_factory=dict)
    spent: Mapping[str, float] = field(default_factory=dict)
    bound: float | None = None


class Cancelled(Exception):
    """The work was cancelled through its Control."""


class DeadlineReached(Exception):
    """The work ran past the deadline of its Control."""


class Overloaded(Exception):
    """Too many searches wait for their turn. waiting: so many."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting:,} searches wait for their turn")
        self.waiting = waiting


class NeedsMemory(Exception):
    """A build would exceed its memory limit. needed, limit: bytes. Raised before any work is done."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"the build needs about {needed:,} bytes, its limit is {limit:,}")
        self.needed, self.limit = needed, limit


class Damaged(Exception):
    """The arrays of an index contradict each other or point outside it."""


class Control:
    """Stops work between blocks. deadline: a time.monotonic() value, or None."""

    __slots__ = ("_cancelled", "deadline")

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def poll(self) -> None:
        """Raises Cancelled or DeadlineReached."""
        if self._cancelled:
            raise Cancelled
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise DeadlineReached

    def threads(self, most: int) -> int:
        """How many threads work is best done by just now, 1 to `most`; asked again as it goes on."""
        return most


Room = Callable[[int, bool], npt.NDArray[np.uint8]]


def in_memory(size: int, once: bool) -> npt.NDArray[np.uint8]:
    """See Budget."""
    return np.zeros(size, np.uint8)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a build may use. threads: 1 or more, of which `control.threads(threads)` should work just now. memory: bytes beside
    the rows, None for no limit. seed: of all chance. control: to be polled between steps. room: (size,) zeros for the large
    arrays of a build, where its caller wants them to lie; once: they are filled in at the beginning and not changed later.
    """

    threads: int = 1
    memory: int | None = None
    seed: int = 0
    control: Control = field(default_factory=Control)
    room: Room = in_memory


@dataclass(frozen=True, slots=True)
class Trial:
    """A measurement on rows that are held out while it lasts, as queries that the index has never met.

    rows: (s,) int64, ascending. run: given a searcher over all other rows, and the Rows that those are; before the held
    rows are added, or, where a row's place in the index does not depend on others, at any time.
    """

    rows: npt.NDArray[np.int64]
    run: Callable[[Searcher, Any], None]

    def others(self, rows: Any) -> Any:
        """The rows without those that are held out."""
        n = len(rows)
        flags = np.ones(n, np.bool_) if rows.present is None else np.unpackbits(
            np.ascontiguousarray(rows.present).view(np.uint8), count=n, bitorder="little"
        ).view(np.bool_)  # fmt: skip
        flags[self.rows] = False
        padded = np.zeros(-(-n // 64) * 64, np.bool_)
        padded[:n] = flags
        return replace(rows, present=np.packbits(padded, bitorder="little").view(np.uint64))


@dataclass(frozen=True, slots=True)
class Part:
    """A segment that is merged. moved: (n,) integers, where each of its rows is in the merged one, -1 for rows left out."""

    rows: AnyRows
    arrays: Arrays
    moved: npt.NDArray[np.integer[Any]]


class Searcher(Protocol):
    """Searches the rows of one segment. Safe in any thread.

    exact: an exact searcher of the same rows; over what the index holds of them, where that is quicker. A searcher may have
    `figures`, a mapping of names to numbers: what people want to know of the index; `advice`, a text: why these rows are better
    served otherwise, and how, or "" where all is well; `over(crew)`: itself, with the work of a query divided among threads
    that are free (`vecdb_index.crew`), which changes no answer. Its class may have `search_all(parts, queries, k, floor,
    control)`: the Hits of several searchers of a field, in less time than one by one. `parts` are tuples of (searcher, effort,
    allowed); what one finds raises the floor of those after it.
    """

    @property
    def rows(self) -> Any: ...  # Rows or SparseRows

    @property
    def exact(self) -> ExactSearcher: ...

    def search(
        self,
        queries: Any,
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """The best k allowed rows that are found of each of the queries, (m, d) float32 or SparseRows; fewer only when fewer
        are allowed, or have a component of a sparse query.

        effort: 0 to 1, the backend's one knob, monotone in work. floor: (m,) keys; hits below them may be left out. Keys are
        exact: the same bits whatever the batch, the threads or the backend. Raises Cancelled, DeadlineReached.
        """

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """About how many seconds a query takes, of so many asked together, when this share of the rows is allowed, as `spread`
        says.
        """

    def spread(self, allowed: Bitmap) -> float:
        """Where allowed rows lie, as far as cost goes by that: 1 for anywhere, less where what is read of them is less."""


class ExactSearcher(Searcher, Protocol):
    """A searcher whose answers are exact whatever the effort.

    divides: into what work is best divided over threads; parts of the rows go on their own, or they share an index.
    """

    @property
    def divides(self) -> Literal["rows", "queries"]: ...

    def part(self, first: int, last: int) -> ExactSearcher:
        """A searcher of some of the rows; first: a multiple of 64."""

    def rows_at(self, query: Any, key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """The allowed rows whose key for one query, as `Queries` give it by its number, is exactly `key`, ascending."""


class Backend(Protocol):
    """A kind of index. Stateless, safe in any thread."""

    name: str
    version: int  # of the arrays; others are built anew
    kind: Literal["dense", "sparse"]  # of the rows; the registry's `serves` says so without loading it
    # A frozen dataclass of numbers and strings, all with defaults, and `backend`, a ClassVar: the name. It may have
    # `misfit(dim)`: why it is none for vectors of so many numbers, or "".
    params: type[Any]

    def train(self, sample: Any, params: Any, budget: Budget, before: Arrays | None = None) -> Arrays:
        """What is learned of a segment's rows: rotations, codebooks; {} for most.

        before: what was learned of others of the field, under the same parameters. A backend may keep to it where it serves
        these rows, too, so that codes can be copied when segments are merged.
        """

    def build(
        self, rows: Any, trained: Arrays, params: Any, budget: Budget, progress: Progress, trial: Trial | None = None
    ) -> Arrays:
        """The index of a segment. The same rows, parameters and seed give the same bytes for any number of threads.

        trial: is run once on the way. Raises NeedsMemory before any work, Cancelled.
        """

    def merge(
        self, parts: Sequence[Part], rows: Any, trained: Arrays, params: Any, budget: Budget, trial: Trial | None = None
    ) -> Arrays | None:
        """The index of merged segments from theirs; None where that is no better than to build it anew. trial: see `build`."""

    def open(self, arrays: Arrays, trained: Arrays, rows: Any, params: Any) -> Searcher:
        """A searcher over an index as it lies. Raises Damaged."""


def scores_of(keys: Keys, metric: Metric) -> Keys:
    """Keys as the metric's own values: similarities as they are, distances for l2."""
    return np.sqrt(np.maximum(-keys, 0)) if metric == "l2" else keys
