"""What the scores of bits say, and what is so: its, surprise and likelihood. Run by `python -m bench scores`.

Each set is one collection, or four segments of it where that is said; queries are like the rows, and nothing was chosen by them.
Figures are of points that an exact search for the best `K` finds, so that scores of rows that bits find badly count, too.

- its: of the points in each band, the share that is among the ten nearest of its query, and their similarity.
- surprise: a query whose numbers change places has nothing to do with the rows, but for chance. Of such queries the share of
  which any point is more surprising than t bits is to be 2^-t at most. Beside it, what neighbours of queries as they are get.
- likelihood: points by the likelihood that is reported, and the share of them that is among the ten nearest; the bar is that
  share, and the mark what was reported. Brier: the mean squared difference, beside that of the share of all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vecdb
from vecdb.hits import BANDS, band
from vecdb.index import MIB

from .__main__ import head, row
from .sets import DataSet, data_sets

K, NEAREST = 1000, 10
QUERIES, SEGMENTS = 300, 4
_BITS = (0, 1, 2, 3, 4, 6)  # of surprise
_PLACES = (1, 3, 10, 30, 100, 1000)  # of neighbours
_BINS, _WIDTH = 10, 40


def measure(rounds: int, kinds: list[str], most: int | None) -> None:
    """rounds: nothing here is timed."""
    for each in data_sets(kinds, most):
        queries = (each.queries if each.held is None else each.held)[:QUERIES]
        with vecdb.open(":memory:") as db:
            docs = _collection(db, "one", each, 1)
            _its(docs, each, queries)
            _surprise(docs, each, queries)
            _likelihood(docs, each, queries, "one segment")
            if each.held is not None:
                _likelihood(docs, each, each.queries[:QUERIES], "one segment, queries that are unlike the rows")
            _likelihood(_collection(db, "several", each, SEGMENTS), each, queries, f"{SEGMENTS} segments")


def _collection(db: Any, name: str, each: DataSet, segments: int) -> Any:
    docs = db.create_collection(name, vecdb.Dense(each.base.shape[1], metric=each.metric, index=MIB()))
    for rows in np.array_split(np.arange(len(each.base)), segments):
        docs.upsert(ids=rows, vectors=each.base[rows])
        docs.flush()
    return docs


def _found(docs: Any, queries: np.ndarray, score: str | None = None) -> np.ndarray:
    """(m, K): what is reported of the best, best first."""
    scores: np.ndarray = docs.search_batch(queries, K, exact=True, score=score, with_payload=False).scores
    return scores


def _its(docs: Any, each: DataSet, queries: np.ndarray) -> None:
    print(f"\n## its: {each.name}, the {K:,} nearest of {len(queries)} queries\n")
    its, own = _found(docs, queries, "its"), _found(docs, queries)
    near = np.arange(K) < NEAREST
    labels = np.array([[band(value) for value in mine] for mine in its.tolist()])
    head(
        "band", "points", f"of them among the {NEAREST} nearest", f"of the {NEAREST} nearest, are in it", f"{each.metric}, mean"
    )
    for _, label in BANDS:
        mine = labels == label
        if mine.any():
            share, there = mine[:, near].sum() / mine.sum(), mine[:, near].mean()
            row(label, f"{mine.sum():,}", f"{share:.3f} {_bar(share)}", f"{there:.3f}", f"{own[mine].mean():.3f}")


def _surprise(docs: Any, each: DataSet, queries: np.ndarray) -> None:
    print(f"\n## surprise: {each.name}, {len(queries)} queries, shuffled\n")
    rng = np.random.default_rng(0)
    best = np.nanmax(_found(docs, np.stack([rng.permutation(query) for query in queries]), "surprise"), axis=1)
    head("more than bits", "queries at most", "queries")
    for bits in _BITS:
        share = float((best > bits).mean())
        row(bits, f"{2.0**-bits:.3f}", f"{share:.3f} {_bar(share, 2.0**-bits)}")
    own = _found(docs, queries, "surprise")
    print("\nOf queries as they are, the median of the neighbour that is the\n")
    head(*(f"{place:,}." for place in _PLACES))
    row(*(f"{np.median(own[:, place - 1]):.1f}" for place in _PLACES))


def _likelihood(docs: Any, each: DataSet, queries: np.ndarray, of: str) -> None:
    print(f"\n## likelihood: {each.name}, {of}, the {K:,} nearest of {len(queries)} queries\n")
    said, true = _found(docs, queries, "likelihood"), np.broadcast_to(np.arange(K) < NEAREST, (len(queries), K))
    head("reported", "points", "mean", f"among the {NEAREST} nearest")
    bins = np.minimum(_BINS - 1, (said * _BINS).astype(np.int64))
    for at in range(_BINS):
        if (mine := bins == at).any():
            share, mean = float(true[mine].mean()), float(said[mine].mean())
            row(
                f"{at / _BINS:.1f} to {(at + 1) / _BINS:.1f}",
                f"{mine.sum():,}",
                f"{mean:.3f}",
                f"{share:.3f} {_bar(share, mean)}",
            )
    base = NEAREST / K
    print(f"\nBrier {np.square(said - true).mean():.5f}; of {base} for all, {base * (1 - base):.5f}")


def _bar(share: float, mark: float | None = None) -> str:
    """A share as a bar, and a number to compare it with as a mark."""
    cells = list("█" * round(_WIDTH * share) + "·" * (_WIDTH - round(_WIDTH * share)))
    if mark is not None:
        cells[min(_WIDTH - 1, round(_WIDTH * mark))] = "┃"
    return "".join(cells)
