"""Documents and queries that look like SPLADE's, where no real ones may be had: `python -m bench.splade_like --rows 300000 --out F`.

Writes F.docs.npz and F.queries.npz (CSR: indptr i64, indices u16, values f16), and prints its statistics beside real ones.

The vocabulary is BERT's in size, popular as Zipf and Mandelbrot have it. Topics have two levels: coarse ones of a few hundred terms,
fine ones (one for 60 documents) of terms of their coarse topic and of their own, each with a strength. A document draws about two
fifths of its terms from its fine topic, a third from its coarse one, the rest by popularity; terms are ranked by noisy strength, and
weights follow a profile by rank measured on real SPLADE vectors. A query takes the strongest terms of a document, with noise and a
few others, and has a profile of its own. Blocks of documents have random streams of their own, so that data can be made in pieces.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

WORDS = 30_522
BLOCK = 4096  # documents that share a random stream
FINE, COARSE, GLOBAL = 128, 384, 112  # terms of a fine and a coarse topic, and drawn by popularity
PER_TOPIC = 60
# Weights by rank: of real documents relative to their length, of real queries as they are.
DOCUMENT_RANKS = np.array(
    [0, 0.0066, 0.0131, 0.0197, 0.0328, 0.0525, 0.0657, 0.131, 0.197, 0.328, 0.493, 0.657, 0.79, 0.9, 1.0]
)
DOCUMENT_WEIGHTS = np.array([2.45, 2.255, 1.93, 1.77, 1.62, 1.40, 1.286, 0.957, 0.757, 0.491, 0.289, 0.16, 0.085, 0.04, 0.008])
QUERY_RANKS = np.array([1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 75, 110])
QUERY_WEIGHTS = 2.72 * np.array([1, 0.864, 0.745, 0.561, 0.364, 0.281, 0.18, 0.118, 0.065, 0.028, 0.012, 0.003])

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16], npt.NDArray[np.float16]]  # indptr, indices, values


class Topics:
    """What documents and queries are drawn from."""

    def __init__(self, seed: int, count: int) -> None:
        rng = np.random.default_rng([seed, 0])
        rank = np.arange(1, WORDS + 1)
        popularity = (rank + 30.0) ** -1.05
        order = rng.permutation(WORDS)  # popular terms have any number
        spread = np.empty(WORDS)
        spread[order] = popularity / popularity.sum()
        self.seed, self.by_popularity = seed, _cumulative(spread)
        coarse = max(16, min(600, count // 16))
        flatter = spread**0.55
        by_flatter = _cumulative(flatter / flatter.sum())
        self.coarse_terms = np.searchsorted(by_flatter, rng.random((coarse, COARSE))).astype(np.int32)
        self.coarse_strengths = rng.gamma(1.2, 1.0, (coarse, COARSE)).astype(np.float32)
        self.parents = rng.integers(0, coarse, count).astype(np.int32)
        own = np.searchsorted(by_flatter, rng.random((count, FINE))).astype(np.int32)
        chosen = rng.integers(0, COARSE, (count, FINE))
        inherited = rng.random((count, FINE)) < 0.55
        self.fine_terms = np.where(inherited, self.coarse_terms[self.parents[:, None], chosen], own).astype(np.int32)
        self.fine_strengths = (rng.gamma(1.5, 1.5, (count, FINE)) + 1.0).astype(np.float32)
        sizes = 1.0 / (np.arange(count) + 20.0) ** 0.35  # some topics are larger
        self.by_size = _cumulative(sizes / sizes.sum())

    def block(self, number: int, count: int) -> tuple[Any, Any, Any, Any, np.random.Generator]:
        """Documents of a block: (document, term, strength), by document and term; the topic of each; and the stream."""
        rng = np.random.default_rng([self.seed, 1, number])
        topics = np.searchsorted(self.by_size, rng.random(BLOCK)).astype(np.int32)
        lengths = np.clip(np.exp(rng.normal(4.645, 0.36, BLOCK)), 12, 400)
        fine = self.fine_strengths[topics] * np.exp(rng.normal(0, 0.55, (BLOCK, FINE)).astype(np.float32))
        parents = self.parents[topics]
        coarse = self.coarse_strengths[parents] * np.exp(rng.normal(0, 0.8, (BLOCK, COARSE)).astype(np.float32))
        others = np.searchsorted(self.by_popularity, rng.random((BLOCK, GLOBAL))).astype(np.int32)
        popular = rng.gamma(1.0, 0.55, (BLOCK, GLOBAL)).astype(np.float32)
        fine, coarse = _strongest(fine, 0.42 * lengths), _strongest(coarse, 0.42 * lengths)
        popular = np.where(np.arange(GLOBAL)[None] < (0.34 * lengths)[:, None], popular, 0)
        terms = np.concatenate([self.fine_terms[topics], self.coarse_terms[parents], others], 1)
        strengths = np.concatenate([fine, coarse, popular], 1)
        document, place = np.nonzero(strengths[:count])
        term, strength = terms[document, place], strengths[document, place]
        order = np.lexsort((-strength, document.astype(np.int64) * WORDS + term))
        document, term, strength = document[order], term[order], strength[order]
        key = document.astype(np.int64) * WORDS + term
        first = np.concatenate([[True], key[1:] != key[:-1]])
        return document[first], term[first], strength[first], topics[:count], rng

    def documents(self, count: int) -> Iterator[Rows]:
        for number in range(-(-count // BLOCK)):
            some = min(BLOCK, count - number * BLOCK)
            document, term, strength, _, rng = self.block(number, some)
            sizes = np.bincount(document, minlength=some)
            ends = np.concatenate([[0], np.cumsum(sizes)])
            order = np.lexsort((-strength, document))
            rank = np.empty(len(document), np.int64)
            rank[order] = np.arange(len(document)) - ends[document[order]]
            scale, bend = np.exp(rng.normal(0, 0.10, some)), np.exp(rng.normal(0, 0.18, some))
            relative = ((rank + 0.5) / sizes[document]) ** bend[document]
            weight = np.interp(relative, DOCUMENT_RANKS, DOCUMENT_WEIGHTS)
            weight *= scale[document] * np.exp(rng.normal(0, 0.06, len(document)))
            yield ends, term.astype(np.uint16), np.maximum(weight, 0.002).astype(np.float16)

    def queries(self, count: int, documents: int) -> Rows:
        rng = np.random.default_rng([self.seed, 2])
        asked = np.sort(rng.integers(0, documents, count))
        rows: list[tuple[Any, Any]] = []
        for number in np.unique(asked // BLOCK):
            document, term, strength, topics, _ = self.block(int(number), BLOCK)
            ends = np.concatenate([[0], np.cumsum(np.bincount(document, minlength=BLOCK))])
            for one in asked[asked // BLOCK == number] % BLOCK:
                mine = slice(ends[one], ends[one + 1])
                rows.append(self._query(term[mine], strength[mine], int(topics[one]), rng))
        rows = [rows[at] for at in np.random.default_rng([self.seed, 3]).permutation(len(rows))]
        ends = np.concatenate([[0], np.cumsum([len(terms) for terms, _ in rows])]).astype(np.int64)
        return ends, np.concatenate([terms for terms, _ in rows]), np.concatenate([weights for _, weights in rows])

    def _query(self, terms: Any, strengths: Any, topic: int, rng: np.random.Generator) -> tuple[Any, Any]:
        length = int(np.clip(np.exp(rng.normal(3.72, 0.40)), 6, 115))
        noisy = strengths * np.exp(rng.normal(0, 0.45, len(strengths)))
        found = {int(term): strength for term, strength in zip(terms, noisy, strict=True)}
        expanded = self.fine_strengths[topic] * np.exp(rng.normal(0, 0.9, FINE)) * 0.45
        for term, strength in zip(self.fine_terms[topic], expanded, strict=True):
            found[int(term)] = max(found.get(int(term), 0), strength)
        for term in np.searchsorted(self.by_popularity, rng.random(max(2, length // 8))):
            found[int(term)] = max(found.get(int(term), 0), rng.gamma(2.0, 1.2))
        best = sorted(found.items(), key=lambda each: (-each[1], each[0]))[:length]
        weights = np.interp(np.arange(1, len(best) + 1), QUERY_RANKS, QUERY_WEIGHTS)
        weights *= np.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.08, len(best)))
        order = np.argsort([term for term, _ in best])
        return np.array([best[at][0] for at in order], np.uint16), np.maximum(weights[order], 1e-3).astype(np.float16)


def _cumulative(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found = np.cumsum(shares)
    found[-1] = 1.0
    return found


def _strongest(strengths: Any, counts: Any) -> Any:
    """Only so many of each row, the others 0."""
    return np.where(np.argsort(np.argsort(-strengths, 1), 1) < counts[:, None], strengths, 0)


def make(rows: int, queries: int, seed: int = 1) -> tuple[Rows, Rows]:
    """Documents and queries."""
    topics = Topics(seed, max(64, rows // PER_TOPIC))
    parts = list(topics.documents(rows))
    starts = np.cumsum([0, *(ends[-1] for ends, _, _ in parts)])
    ends = np.concatenate([[0], *(ends[1:] + start for (ends, _, _), start in zip(parts, starts[:-1], strict=True))])
    documents = ends.astype(np.int64), np.concatenate([each[1] for each in parts]), np.concatenate([each[2] for each in parts])
    return documents, topics.queries(queries, rows)


def mass(rows: Rows, tops: tuple[int, ...], sample: int = 2000) -> list[float]:
    """The share of the weight of vectors that lies in their heaviest components: the mean."""
    ends, _, values = rows
    shares = []
    for at in range(min(sample, len(ends) - 1)):
        weights = np.sort(values[ends[at] : ends[at + 1]].astype(np.float32))[::-1]
        if len(weights):
            shares.append([weights[:top].sum() / weights.sum() for top in tops])
    return [round(float(each), 3) for each in np.mean(shares, axis=0)]


def tell(documents: Rows, queries: Rows) -> None:
    """Statistics, beside those of real vectors."""
    sizes, asked = np.diff(documents[0]), np.diff(queries[0])
    common = np.sort(np.bincount(documents[1], minlength=WORDS))[::-1] / len(sizes)
    low, high = np.percentile(sizes, [5, 95])
    print(f"components of a document: {sizes.mean():.1f} ({low:.0f} to {high:.0f}); published 119, 18 real ones 153")
    low, high = np.percentile(asked, [5, 95])
    print(f"components of a query: {asked.mean():.1f} ({low:.0f} to {high:.0f}); 6,980 real ones 43.9 (20 to 74)")
    print(f"weight in a document's top 10, 20, 30, 50: {mass(documents, (10, 20, 30, 50))}; real 0.248, 0.414, 0.541, 0.721")
    print(f"weight in a query's top 1, 5, 10, 20: {mass(queries, (1, 5, 10, 20))}; real 0.122, 0.459, 0.672, 0.859")
    print(f"share of documents that have the most common terms 1, 10, 100, 1,000: {common[[0, 9, 99, 999]].round(4).tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    made = make(options.rows, options.queries, options.seed)
    for name, (ends, indices, values) in zip(("docs", "queries"), made, strict=True):
        np.savez(f"{options.out}.{name}.npz", indptr=ends, indices=indices, values=values)
    tell(*made)


if __name__ == "__main__":
    main()
