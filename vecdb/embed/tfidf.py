"""The offline encoder: TF-IDF, reduced by a truncated SVD, fitted on the user's own texts.

Half of the coordinates are the strongest directions of the corpus (latent semantic analysis, Deerwester et al. 1990). These
alone would forget every rare word, and rare words are what people search for; so the other half is a random projection of
what the SVD leaves over (Johnson and Lindenstrauss 1984), by which the inner product of two vectors stays an unbiased
estimate of that of their TF-IDF rows. Words that the fit has not seen count nothing, so one more, constant coordinate keeps
every vector off zero; it is too small to move a ranking. A Tfidf never changes once it is fitted; safe in any thread.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from vecdb_storage.arrayfile import check_ends

from ..errors import Corruption, Unsupported
from .words import TOKEN, simplified

_MOST_TERMS = 30_000
_MOST_TEXTS = 50_000  # of a fit; a larger corpus is sampled evenly
_MANY_TEXTS = 10_000  # a fit of so many takes seconds, and says so
_CONSTANT = 1e-4
_STRIPE = 4096  # texts encoded at a time, which bounds memory
_log = logging.getLogger("vecdb")


def _sklearn() -> Any:
    try:
        import sklearn.decomposition
        import sklearn.feature_extraction.text
    except ImportError as error:
        raise Unsupported('embed="tfidf" needs scikit-learn: pip install "vecdb[text]"') from error
    return sklearn


def _directions(sklearn: Any, weights: Any, room: int) -> npt.NDArray[np.float32]:
    """(terms, at most room) float32: directions of the SVD, then random ones at right angles to them.

    Where there is room for every term, each is a direction of its own, and nothing is lost.
    """
    texts, terms = weights.shape
    if terms <= room:
        return np.eye(terms, dtype=np.float32)
    strongest = min(room // 2, texts - 1)
    random = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (terms, room - strongest))
    random /= np.float32(max(1, room - strongest) ** 0.5)
    if strongest < 1:
        return random
    svd = sklearn.decomposition.TruncatedSVD(strongest, n_iter=4, random_state=0)
    v = svd.fit(weights).components_.T.astype(np.float32)
    return np.hstack([v, random - v @ (v.T @ random)])


def _stop_words(sklearn: Any) -> list[str]:
    """English stop words, as `simplified` leaves them."""
    words = sklearn.feature_extraction.text.ENGLISH_STOP_WORDS
    return sorted({*words, *map(simplified, words)})


class Tfidf:
    """terms: the vocabulary, sorted. idf: (terms,) float32. components: (terms, rank) float32, rank < dim."""

    name = "tfidf"

    def __init__(self, terms: list[str], idf: npt.NDArray[np.float32], components: npt.NDArray[np.float32], dim: int) -> None:
        self.terms, self.idf, self.components, self.dim = terms, idf, components, dim

    @staticmethod
    def fit(texts: Sequence[str], dim: int = 256) -> Tfidf:
        """Learns vocabulary, weights and the strongest dim - 1 directions of `texts`. The same texts give the same encoder.

        Raises Unsupported without scikit-learn.
        """
        sklearn = _sklearn()
        started = time.perf_counter()
        step = -(-len(texts) // _MOST_TEXTS)
        sample = texts[:: max(1, step)]
        if len(sample) >= _MANY_TEXTS:
            _log.info("fitting the text encoder on %s texts", f"{len(sample):,}")
        vectoriser = sklearn.feature_extraction.text.TfidfVectorizer(
            sublinear_tf=True, stop_words=_stop_words(sklearn), max_features=_MOST_TERMS, dtype=np.float32,
            preprocessor=simplified, token_pattern=TOKEN,
        )  # fmt: skip
        try:
            weights = vectoriser.fit_transform(sample)
        except ValueError:  # nothing but stop words: every text is as good as any other
            return Tfidf([], np.zeros(0, np.float32), np.zeros((0, 0), np.float32), dim)
        components = _directions(sklearn, weights, dim - 1)
        order = sorted(vectoriser.vocabulary_, key=vectoriser.vocabulary_.__getitem__)
        if len(sample) >= _MANY_TEXTS:
            _log.info("fitted it in %.1f s: %s terms", time.perf_counter() - started, f"{len(order):,}")
        return Tfidf(order, vectoriser.idf_.astype(np.float32), np.ascontiguousarray(components), dim)

    @cached_property
    def fingerprint(self) -> str:
        digest = xxhash.xxh3_64(f"tfidf 1 {self.dim}".encode())
        for array in self.to_arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return str(digest.hexdigest())

    @cached_property
    def _counter(self) -> Any:
        counting = _sklearn().feature_extraction.text.CountVectorizer(
            vocabulary=self.terms, preprocessor=simplified, token_pattern=TOKEN, dtype=np.float32
        )  # stop words are not in the vocabulary: another scikit-learn with another list of them changes nothing
        counting.transform([""])  # reads the vocabulary now, so that threads find it read
        return counting

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) texts -> (n, dim) float32, none of them zero."""
        vectors = np.zeros((len(texts), self.dim), np.float32)
        vectors[:, -1] = _CONSTANT
        if not self.terms:
            return vectors
        for start in range(0, len(texts), _STRIPE):
            counts = self._counter.transform(texts[start : start + _STRIPE])
            counts.data = np.log(counts.data) + 1
            weighted = counts.multiply(self.idf).tocsr()
            lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
            projected = weighted @ self.components
            vectors[start : start + _STRIPE, : projected.shape[1]] = projected / np.maximum(lengths, 1e-12)[:, None]
        return vectors

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The encoder as named arrays: terms.offsets u64, terms.bytes u8, idf f32, components f32, dim u64."""
        text = "".join(self.terms).encode()
        offsets = np.zeros(len(self.terms) + 1, np.uint64)
        np.cumsum(np.array([len(term.encode()) for term in self.terms], np.uint64), out=offsets[1:])
        return {
            "terms.offsets": offsets,
            "terms.bytes": np.frombuffer(text, np.uint8),
            "idf": self.idf,
            "components": self.components,
            "dim": np.array([self.dim], np.uint64),
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Tfidf:
        """The inverse of `to_arrays`; the arrays may be mapped. Raises Corruption."""
        check_ends(arrays["terms.offsets"], arrays["terms.bytes"], "terms.offsets")
        data, offsets = arrays["terms.bytes"].tobytes(), arrays["terms.offsets"].tolist()
        try:
            terms = [data[a:b].decode() for a, b in itertools.pairwise(offsets)]
        except UnicodeDecodeError as error:
            raise Corruption(f"a term is no UTF-8: {error}", array="terms.bytes") from error
        shapes = arrays["idf"].shape, arrays["components"].shape[:1], arrays["components"].ndim, arrays["dim"].shape
        if shapes != ((len(terms),), (len(terms),), 2, (1,)):
            raise Corruption("an encoder's arrays do not fit each other")
        return Tfidf(terms, arrays["idf"], arrays["components"], int(arrays["dim"][0]))
