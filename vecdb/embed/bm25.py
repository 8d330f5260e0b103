"""The offline encoder of sparse vectors: BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009).

A word's component is a 32-bit hash of it, so there is no vocabulary that a new word could be missing from. The inner product of
a text's vector and a query's is the BM25 score of the query's words:

    sum over words of idf x tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))

Each side carries the square root of idf, so that an index sees in the weights which words matter. How rare words are, and the
mean length, are taken from the texts that it is fitted on; a word that these lack counts as the rarest. A Bm25 never changes
once it is fitted; safe in any thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from vecdb_storage.vectors import SparseVectors

from ..errors import Corruption
from .words import words_of

K1, B = 1.2, 0.75


def component_of(word: str) -> int:
    return int(xxhash.xxh32_intdigest(word.encode()))


class Bm25:
    """components: (t,) uint32, ascending, of the words it was fitted on. texts: (t,) uint32, in how many each was.

    count, length: how many texts, and their mean number of words.
    """

    name = "bm25"
    dim = None  # its vectors are sparse

    def __init__(self, components: npt.NDArray[np.uint32], texts: npt.NDArray[np.uint32], count: int, length: float) -> None:
        self.components, self.texts, self.count, self.length = components, texts, count, length

    @staticmethod
    def fit(texts: Sequence[str]) -> Bm25:
        """Counts words. The same texts give the same encoder."""
        seen: Counter[int] = Counter()
        total = 0
        for text in texts:
            words = words_of(text)
            total += len(words)
            seen.update({component_of(word) for word in set(words)})
        components = np.array(sorted(seen), np.uint32)
        return Bm25(
            components,
            np.array([seen[each] for each in components.tolist()], np.uint32),
            len(texts),
            max(1.0, total / max(1, len(texts))),
        )

    @cached_property
    def fingerprint(self) -> str:
        digest = xxhash.xxh3_64(f"bm25 1 {K1} {B}".encode())
        for array in self.to_arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return str(digest.hexdigest())

    @cached_property
    def _roots(self) -> dict[int, float]:
        """The square root of each word's idf."""
        share = (self.count - self.texts + 0.5) / (self.texts + 0.5)
        return dict(zip(self.components.tolist(), np.sqrt(np.log1p(np.maximum(share, 0.0))).tolist(), strict=True))

    @cached_property
    def _rarest(self) -> float:
        return float(np.sqrt(np.log1p((self.count + 0.5) / 0.5)))

    def encode(self, texts: Sequence[str]) -> SparseVectors:
        """Texts as they are stored."""

        def weight(times: int, words: int) -> float:
            return times * (K1 + 1) / (times + K1 * (1 - B + B * words / self.length))

        return self._vectors(texts, weight)

    def encode_queries(self, texts: Sequence[str]) -> SparseVectors:
        """Texts that are searched for."""
        return self._vectors(texts, lambda times, words: float(times))

    def _vectors(self, texts: Sequence[str], weight: Callable[[int, int], float]) -> SparseVectors:
        roots, rarest = self._roots, self._rarest
        rows = []
        for text in texts:
            words = words_of(text)
            sums: dict[int, float] = {}
            for word, times in Counter(words).items():
                component = component_of(word)
                sums[component] = sums.get(component, 0.0) + weight(times, len(words)) * roots.get(component, rarest)
            rows.append(sorted(sums.items()))
        offsets = np.zeros(len(rows) + 1, np.uint64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        flat = [pair for row in rows for pair in row]
        indices = np.array([component for component, _ in flat], np.uint32)
        return SparseVectors(offsets, indices, np.array([each for _, each in flat], np.float32))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The encoder as named arrays: components u32, texts u32, count u64, length f64."""
        return {
            "components": self.components,
            "texts": self.texts,
            "count": np.array([self.count], np.uint64),
            "length": np.array([self.length], np.float64),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Bm25:
        """The inverse of `to_arrays`. Raises Corruption."""
        components, texts = arrays["components"], arrays["texts"]
        if (
            components.shape != texts.shape
            or components.ndim != 1
            or (arrays["count"].shape, arrays["length"].shape) != ((1,), (1,))
        ):
            raise Corruption("an encoder's arrays do not fit each other")
        return Bm25(components, texts, int(arrays["count"][0]), float(arrays["length"][0]))
