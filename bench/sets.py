"""The vectors that searches are measured on, the right answers, and the attributes that filters go by. NumPy and vecdb only.

Sets that cannot be made from a seed are read from `$VECDB_DATA` (default `~/.cache/vecdb-data`), and left out where they are not:

- `images784/`: `base.npy`, `query_test.npy`: pixels of pictures, l2; queries like the rows.
- `text-wordllama-100000/`: `base.npy`, `queries.npy`: passages of documentation, cosine; the queries are first sentences of
  documents, which are unlike the passages. 2,000 passages are held out as queries that are like the rows. Likewise
  `text-wordllama-200000/` (text200k), `text-minilm-20480/` and `text-minilm-54000/` (minilm, minilm50k), of another encoder.
- `judged-*/`: `base.npy`, `queries.npy`, and `grades.npy`, (n, 3): query, row, and how much this says about it, 0 where not listed.

No query is ever used to choose anything: not to build an index, not to calibrate, not to set a parameter of vecdb.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher

QUERIES = 2000  # at most
_BEYOND = 10  # rows after the k-th that are looked at, to know those that are as near as it


@dataclass(frozen=True)
class DataSet:
    """base: (n, d) float32. queries: (m, d). held: queries like the rows, where `queries` are not; otherwise None.

    chosen_on: other queries of the same kind, for choosing parameters of peers.
    """

    kind: str
    base: np.ndarray
    queries: np.ndarray
    metric: str
    held: np.ndarray | None = None
    chosen_on: np.ndarray | None = None

    @property
    def tune(self) -> np.ndarray:
        assert self.chosen_on is not None
        return self.chosen_on

    @property
    def name(self) -> str:
        return f"{self.kind} {len(self.base):,} x {self.base.shape[1]}, {self.metric}"


def data_sets(kinds: Sequence[str] = ("images", "synthetic", "text"), rows: int | None = None) -> Iterator[DataSet]:
    """The sets of these kinds that are there, one after the other. rows: at most so many of each."""
    made: dict[str, Callable[[], DataSet | None]] = {
        "images": _images, "synthetic": synthetic, "text": _text,
        "minilm": partial(_text, "text-minilm-20480", "minilm"), "text200k": partial(_text, "text-wordllama-200000", "text200k"),
        "minilm50k": partial(_text, "text-minilm-54000", "minilm50k"),
    }  # fmt: skip
    for kind in kinds:
        each = made[kind]()
        if each is None:
            print(f"{kind}: not at hand, left out (bench/sets.py says which files are looked for)", file=sys.stderr)
        else:
            yield replace(each, base=each.base[:rows])


def _folder(name: str) -> Path | None:
    folder = Path(os.environ.get("VECDB_DATA", Path.home() / ".cache" / "vecdb-data")) / name
    return folder if (folder / "base.npy").exists() else None


def _images() -> DataSet | None:
    folder = _folder("images784")
    if folder is None:
        return None
    base, test, tune = (np.load(folder / f"{name}.npy") for name in ("base", "query_test", "query_tune"))
    return DataSet("images", base, test[:QUERIES], "l2", chosen_on=tune[:QUERIES])


def _text(name: str = "text-wordllama-100000", kind: str = "text") -> DataSet | None:
    folder = _folder(name)
    if folder is None:
        return None
    base, queries = np.load(folder / "base.npy"), np.load(folder / "queries.npy")
    held = np.sort(np.random.default_rng(5).permutation(len(base))[:QUERIES])
    return DataSet(kind, np.delete(base, held, axis=0), queries[:QUERIES], "cosine", base[held])


@dataclass(frozen=True)
class Judged:
    """Rows and queries of which people have said how much they have to do with each other. grades: by query, then row."""

    name: str
    base: np.ndarray
    queries: np.ndarray
    grades: list[dict[int, int]]

    def ndcg(self, found: np.ndarray, k: int = 10) -> float:
        """Mean over the queries, with gains of 2^grade - 1. found: (m, k) row numbers, the best first."""
        discount = 1 / np.log2(np.arange(2, k + 2))
        scores = []
        for rows, grades in zip(found, self.grades, strict=True):
            gains = np.array([2.0 ** grades.get(int(row), 0) - 1 for row in rows[:k]])
            best = np.sort([2.0**grade - 1 for grade in grades.values()])[::-1][:k]
            scores.append((gains * discount[: len(gains)]).sum() / (best * discount[: len(best)]).sum())
        return float(np.mean(scores))


def judged() -> Iterator[Judged]:
    """Those that are at hand."""
    root = Path(os.environ.get("VECDB_DATA", Path.home() / ".cache" / "vecdb-data"))
    for folder in sorted(root.glob("judged-*")):
        base, queries, listed = (np.load(folder / f"{name}.npy") for name in ("base", "queries", "grades"))
        grades: list[dict[int, int]] = [{} for _ in queries]
        for query, row, grade in listed.tolist():
            grades[query][row] = grade
        yield Judged(folder.name.removeprefix("judged-"), base, queries, grades)


def synthetic(n: int = 50_000) -> DataSet:
    """200 clusters in a space of 24 dimensions, laid into 128, with noise in all of them."""
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((200, 24)).astype(np.float32)
    spread = rng.standard_normal((24, 128)).astype(np.float32)
    m = n + QUERIES
    made = (centres[rng.integers(0, 200, m)] + 0.6 * rng.standard_normal((m, 24), np.float32)) @ spread
    made += 0.3 * rng.standard_normal(made.shape, np.float32)
    return DataSet("synthetic", made[:n], made[n:], "cosine")


def loaded(described: dict[str, Any]) -> DataSet | None:
    """A set as a configuration has it: the name of one of the above, or paths, as `read` takes them; None where it is missing.

    name, and for others base, queries, metric (l2), tune (else half of the queries) and rows, at most so many.
    """
    rows, name = described.get("rows"), described["name"]
    if "base" in described:
        try:
            base, queries = read(described["base"]), read(described["queries"])
            tune = read(described["tune"]) if "tune" in described else None
        except FileNotFoundError:
            return None
        found = DataSet(name, base, queries, described.get("metric", "l2"), chosen_on=tune)
    else:
        sets = list(data_sets([name]))
        if not sets:
            return None
        found = sets[0]
    queries, tune = found.queries, found.chosen_on
    if tune is None:
        queries, tune = queries[1::2], queries[::2]
    pieces = (np.ascontiguousarray(each, np.float32) for each in (found.base[:rows], queries[: 2 * QUERIES], tune[:QUERIES]))
    base, queries, tune = pieces
    return DataSet(found.kind, base, queries, found.metric, chosen_on=tune)


def read(path: str) -> np.ndarray:
    """(n, d) vectors of a file: npy, npz (`file.npz:name`), HDF5 (`file.hdf5:name`), fvecs, bvecs, fbin, u8bin, i8bin."""
    file, _, key = path.partition(":")
    file = os.path.expanduser(file)
    if not os.path.exists(file):
        raise FileNotFoundError(file)
    kind = Path(file).suffix.lstrip(".")
    if kind == "npy":
        return np.load(file)
    if kind == "npz":
        with np.load(file) as arrays:
            return arrays[key or arrays.files[0]]
    if kind in ("hdf5", "h5"):
        import h5py

        with h5py.File(file) as opened:
            return opened[key or "train"][:]
    if kind in ("fvecs", "bvecs"):
        size, dtype = (4, np.float32) if kind == "fvecs" else (1, np.uint8)
        raw = np.fromfile(file, np.uint8)
        d = int(raw[:4].view(np.int32)[0])
        return np.ascontiguousarray(raw.reshape(-1, 4 + d * size)[:, 4:]).view(dtype)
    n, d = np.fromfile(file, np.uint32, 2)
    types = {"fbin": np.float32, "u8bin": np.uint8, "i8bin": np.int8}
    return np.fromfile(file, types[kind], int(n) * int(d), offset=8).reshape(int(n), int(d))


# -- a database over a set -----------------------------------------------------------------------------------------


def store(path: str | Path, data: DataSet, shares: Sequence[int] = (1,), payloads: dict[str, list[Any]] | None = None) -> int:
    """A database with one collection, "docs", over a set: batches of these shares, each in a segment of its own, with a graph.

    Ids are row numbers. payloads: columns. Returns how many segments there are.
    """
    import vecdb

    with vecdb.open(path) as db:
        docs = db.create_collection("docs", vecdb.Dense(data.base.shape[1], metric=data.metric, index="hnsw"))
        ends = (np.cumsum(shares) * len(data.base) // sum(shares)).tolist()
        for rows in np.split(np.arange(len(data.base)), ends[:-1]):
            some = None if payloads is None else {key: values[rows[0] : rows[-1] + 1] for key, values in payloads.items()}
            docs.upsert(ids=rows, vectors=data.base[rows[0] : rows[-1] + 1], payloads=some)
            docs.flush(wait=False)
        docs.flush()
        info = docs.info()
        index = info.indexes["vector"]
        if index.segments != info.segments or index.error is not None:
            print(f"{index.segments} of {info.segments} segments have an index: {index.error}", file=sys.stderr)
        return info.segments


# -- right answers -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The nearest rows of each query by exact search, (m, K), best first, and their keys; some more than k, -1 beyond the last."""

    rows: np.ndarray
    keys: np.ndarray

    def first(self, count: int | None) -> Truth:
        """Of the first so many queries."""
        return Truth(self.rows[:count], self.keys[:count])

    def recalls(self, found: np.ndarray, k: int) -> np.ndarray:
        """(m,) the share of the true k nearest in `found`, (m, >= k) row numbers, -1 for none; of equally near rows any will do."""
        there = np.minimum(k, np.count_nonzero(self.rows >= 0, axis=1))
        kth = np.take_along_axis(self.keys, np.maximum(0, there - 1)[:, None], 1)
        right = np.where((self.keys >= kth) & (self.rows >= 0), self.rows, -2)
        hits = [len(set(mine) & set(true)) for mine, true in zip(found[:, :k].tolist(), right.tolist(), strict=True)]
        return np.where(there > 0, np.minimum(hits, there) / np.maximum(1, there), 1.0)


def truth_of(base: np.ndarray, queries: np.ndarray, metric: str, k: int, allowed: np.ndarray | None = None) -> Truth:
    """allowed: the row numbers that may be found, ascending; None for all."""
    some = np.ascontiguousarray(base if allowed is None else base[allowed])
    rows = Rows(some, np.linalg.norm(some, axis=1).astype(np.float32), metric)  # type: ignore[arg-type]
    found = FlatSearcher(rows).search(np.ascontiguousarray(queries), min(k + _BEYOND, len(some)))
    numbers = found.rows if allowed is None else np.where(found.rows < 0, -1, allowed[found.rows])
    return Truth(numbers, found.keys)


def cached_truth(base: np.ndarray, queries: np.ndarray, metric: str, k: int) -> Truth:
    """As `truth_of`, kept by a hash of what it is of."""
    sha = hashlib.sha256(f"{metric} {k} {_BEYOND}".encode())
    for array in (base, queries):
        sha.update(str((array.shape, array.dtype)).encode())
        sha.update(np.ascontiguousarray(array).view(np.uint8).data)
    path = Path(os.environ.get("VECDB_DATA", Path.home() / ".cache" / "vecdb-data")) / "truth" / f"{sha.hexdigest()[:24]}.npz"
    if path.exists():
        with np.load(path) as kept:
            return Truth(kept["rows"], kept["keys"])
    truth = truth_of(base, queries, metric, k)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, rows=truth.rows, keys=truth.keys)
    return truth


# -- attributes ----------------------------------------------------------------------------------------------------

CLUSTERS = 100


def random_ranks(n: int, seed: int = 7) -> np.ndarray:
    """An attribute that has nothing to do with the vectors: (n,) each number below n once."""
    return np.random.default_rng(seed).permutation(n)


def clustered_ranks(base: np.ndarray, metric: str, clusters: int = CLUSTERS, seed: int = 7) -> np.ndarray:
    """An attribute that goes by clusters: a row's place when rows are sorted by their nearest of so many centroids."""
    points = pointed(base, metric)
    label = nearest(points, centroids(points, clusters, seed))
    return _ranks(np.lexsort((random_ranks(len(base), seed), label)))


def far_ranks(base: np.ndarray, metric: str, point: np.ndarray) -> np.ndarray:
    """An attribute that is low far from a point: a row's place when rows are sorted by their distance to it, farthest first."""
    points = pointed(base, metric)
    return _ranks(np.argsort(-np.linalg.norm(points - point, axis=1), kind="stable"))


def _ranks(order: np.ndarray) -> np.ndarray:
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def pointed(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Vectors as points whose Euclidean distance goes by the metric."""
    return vectors / np.linalg.norm(vectors, axis=1)[:, None] if metric == "cosine" else vectors


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) the number of each point's nearest centre."""
    half = 0.5 * (centres * centres).sum(axis=1)
    blocks = [np.argmax(points[i : i + 8192] @ centres.T - half, axis=1) for i in range(0, len(points), 8192)]
    return np.concatenate(blocks)


def centroids(points: np.ndarray, count: int, seed: int = 7) -> np.ndarray:
    """(count, d) by eight rounds of k-means over a sample."""
    rng = np.random.default_rng(seed)
    sample = points[rng.permutation(len(points))[:20_000]]
    centres = sample[:count].copy()
    for _ in range(8):
        label = nearest(sample, centres)
        for each in range(count):
            mine = sample[label == each]
            if len(mine):
                centres[each] = mine.mean(axis=0)
    return centres
