"""Texts: the offline encoder, what is kept of it, and the refusal of any other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import vecdb
from vecdb import Dense
from vecdb.embed.tfidf import Tfidf
from vecdb.errors import DimensionMismatch, EncoderMismatch, InvalidInput

TEXTS = [
    "the cat sat on the mat and watched the birds",
    "a dog barked at the mailman in the street",
    "binary search finds a value in a sorted array",
    "hash tables map keys to values in constant time",
    "the recipe needs flour, butter, sugar and two eggs",
    "bake the cake in a hot oven for forty minutes",
    "the stock market fell sharply after the announcement",
    "investors sold shares of banks and insurers",
]


class Letters:
    """A stand-in for a user's own model: how often each letter occurs."""

    dim = 27

    def __init__(self, fingerprint: str = "v1") -> None:
        self.name, self.fingerprint = "letters", fingerprint

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        return np.array([[1, *(text.count(chr(97 + i)) for i in range(26))] for text in texts], np.float32)


def test_each_text_finds_itself_and_its_kin(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", embed="tfidf")
    docs.upsert(ids=range(8), texts=TEXTS, payloads=[{"n": i} for i in range(8)])
    for i, text in enumerate(TEXTS):
        hit = docs.search(text)[0]
        assert (hit.id, hit.payload) == (i, {"n": i, "text": text})
    assert docs.search("sorted arrays and binary trees", k=1).ids == [2]
    assert docs.search_batch(["cake oven", "dog street"], k=1).ids.tolist() == [[5], [1]]
    assert len(docs.search("zzz unknown words", k=3)) == 3
    assert docs.info().encoder == "tfidf"


def test_the_encoder_is_kept_with_the_collection(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", embed="tfidf")
        with pytest.raises(InvalidInput, match="first texts"):
            docs.search("before the first text")
        docs.upsert(texts=TEXTS)
        before = docs.search("banks and shares")
        vectors = {p.payload["text"]: p.vector for p in docs.scroll(with_vectors=True)}
    with vecdb.open(tmp_path / "db", read_only=True) as db:
        docs = db.collection("docs")
        after = docs.search("banks and shares")
        assert (after.ids, after.scores) == (before.ids, before.scores)
        np.testing.assert_array_equal(docs.embedding.of_queries(TEXTS), np.stack([vectors[t] for t in TEXTS]))
        assert db.verify().ok
        assert len(list(tmp_path.rglob("*.arr"))) == 1
    with vecdb.open(tmp_path / "db") as db:
        db.collection("docs").upsert(texts=["more texts come later, about birds"])
        assert db.collection("docs").search("birds", k=2).scores[1] > 0.1
        db.drop_collection("docs")
        assert list(tmp_path.rglob("*.arr")) == []


def test_an_encoder_survives_its_arrays() -> None:
    fitted = Tfidf.fit(TEXTS, 16)
    again = Tfidf.from_arrays(fitted.to_arrays())
    assert again.fingerprint == fitted.fingerprint == Tfidf.fit(TEXTS, 16).fingerprint
    assert again.encode(TEXTS).tobytes() == fitted.encode(TEXTS).tobytes()
    assert Tfidf.fit(TEXTS[1:], 16).fingerprint != fitted.fingerprint
    np.testing.assert_array_equal(np.vstack([fitted.encode([t]) for t in TEXTS]), fitted.encode(TEXTS))


@pytest.mark.parametrize(
    "texts", [["one"], ["the"], ["the", "and of"], ["same", "same"], ["a b", "b c"], ["¿?"], ["ünïcödé 日本語"]]
)
def test_tiny_corpora_work(db: vecdb.Database, texts: list[str]) -> None:
    for dim in (1, 2, 256):
        docs = db.create_collection(f"docs{dim}", Dense(dim), embed="tfidf")
        docs.upsert(ids=range(len(texts)), texts=texts)
        assert len(docs.search(texts[0], k=5)) == len(texts)
        assert docs.search("something else").ids == list(range(len(texts)))


def test_first_texts_of_two_threads_get_one_encoder(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", embed="tfidf")
    threads = [threading.Thread(target=lambda i=i: docs.upsert(ids=[i], texts=[TEXTS[i]])) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    vectors = {p.id: p.vector for p in docs.scroll(with_vectors=True)}
    np.testing.assert_array_equal(docs.embedding.of_queries(TEXTS), np.stack([vectors[i] for i in range(8)]))
    assert db.verify().ok


def test_another_encoder_is_refused_by_name(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", embed=Letters())
        docs.upsert(ids=range(8), texts=TEXTS)
        assert docs.search(TEXTS[3])[0].id == 3
        assert docs.info().fields == {"vector": Dense(27)}
    with vecdb.open(tmp_path / "db") as db:
        with pytest.raises(EncoderMismatch, match=r"'letters' \(v1\).*embed=encoder"):
            db.collection("docs").search("text")
        with pytest.raises(EncoderMismatch, match="'letters'"):
            db.collection("docs").upsert(texts=["text"])
        with pytest.raises(EncoderMismatch, match="v2"):
            db.collection("docs", embed=Letters("v2"))
        assert db.collection("docs", embed=Letters()).search(TEXTS[3])[0].id == 3


def test_wrong_texts_and_encoders_are_refused(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", embed="tfidf")
    for texts in (["fine", ""], ["fine", "  "], ["fine", None], ["fine", 3]):
        with pytest.raises(InvalidInput, match="point 1"):
            docs.upsert(texts=texts)
    with pytest.raises(InvalidInput):
        docs.upsert(texts=["a"], vectors=[[1.0]])
    assert docs.count() == 0
    with pytest.raises(InvalidInput, match="word2vec"):
        db.create_collection("x", embed="word2vec")
    with pytest.raises(InvalidInput, match="no encoder"):
        db.create_collection("x", embed=object())  # type: ignore[arg-type]
    with pytest.raises(DimensionMismatch, match="27"):
        db.create_collection("x", Dense(5), embed=Letters())
    plain = db.create_collection("plain", Dense(3))
    for call in (
        lambda: plain.search("text"),
        lambda: plain.upsert(texts=["text"]),
        lambda: db.collection("plain", embed=Letters()),
    ):
        with pytest.raises(InvalidInput, match="no encoder"):
            call()
