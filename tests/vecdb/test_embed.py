"""Texts: the offline encoder, what is kept of it, and the refusal of any other."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

import vecdb
from vecdb import Dense
from vecdb.embed.tfidf import Tfidf
from vecdb.errors import DimensionMismatch, DuplicateId, EncoderMismatch, InvalidInput, InvalidPayload, VecdbError

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


def test_only_texts_that_are_written_decide_the_encoder(db: vecdb.Database) -> None:
    docs = db.create_collection("docs", embed="tfidf")
    assert docs.upsert(texts=[]) == []
    with pytest.raises(DuplicateId):
        docs.upsert(ids=[1, 1], texts=["neither of these", "is written"])
    with pytest.raises(InvalidPayload):
        docs.upsert(texts=["neither is", "this one"], payloads=[1, 2])
    with pytest.raises(InvalidInput, match="first texts"):
        docs.search("so nothing is fitted")
    docs.upsert(ids=(i for i in range(8)), texts=TEXTS)
    hits = docs.search("the cake in the oven", k=2)
    assert hits.ids[0] == 5 and hits.scores[0] > 2 * hits.scores[1]


def test_a_word_of_one_text_finds_it_in_a_large_corpus(db: vecdb.Database) -> None:
    rng = np.random.default_rng(0)
    docs = db.create_collection("docs", embed="tfidf")
    texts = [" ".join([*rng.choice([f"word{i}" for i in range(300)], 12), f"unique{i}x"]) for i in range(2000)]
    docs.upsert(ids=range(2000), texts=texts)
    assert [docs.search(f"unique{i}x", k=1).ids for i in range(0, 2000, 200)] == [[i] for i in range(0, 2000, 200)]
    codes = db.create_collection("codes", embed="tfidf")
    codes.upsert(ids=range(1200), texts=[f"item{i}x" for i in range(1200)])
    assert codes.search("item777x", k=1).ids == [777]


@pytest.mark.parametrize(
    "payloads", [{"n": np.arange(8)}, {"n": pa.array(range(8))}, {"n": list(range(8))}, [{"n": i} for i in range(8)]]
)
def test_payloads_in_any_form_keep_their_texts(db: vecdb.Database, payloads: Any) -> None:
    docs = db.create_collection("docs", embed="tfidf")
    docs.upsert(ids=range(8), texts=pa.array(TEXTS), payloads=payloads)
    assert [p.payload for p in docs.get(range(8))] == [{"n": i, "text": text} for i, text in enumerate(TEXTS)]
    assert "text" not in (payloads if isinstance(payloads, dict) else payloads[0])
    with pytest.raises(InvalidInput, match="2 values"):
        docs.upsert(texts=TEXTS, payloads={"n": [1, 2]})


def test_an_encoder_file_is_verified_and_a_leftover_one_is_deleted(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        db.create_collection("docs", embed="tfidf").upsert(ids=range(8), texts=TEXTS)
    [kept] = tmp_path.rglob("*.arr")
    shutil.copy(kept, kept.with_name("0" * 26 + ".arr"))
    with vecdb.open(tmp_path / "db") as db:
        assert list(tmp_path.rglob("*.arr")) == [kept]
        assert db.verify().ok
    damaged = bytearray(kept.read_bytes())
    damaged[300] ^= 1
    kept.write_bytes(damaged)
    with vecdb.open(tmp_path / "db") as db:
        assert kept.name in str(db.verify().damage)
        with pytest.raises(VecdbError, match="not what was written"):
            db.collection("docs").search("cake")


def test_a_fit_whose_commit_fails_leaves_nothing(db: vecdb.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = db.create_collection("docs", embed="tfidf")

    def refuse(*_: Any) -> Any:
        raise InvalidInput("not now")

    with monkeypatch.context() as patched:
        patched.setattr(db._store, "alter_schema", refuse)
        with pytest.raises(InvalidInput, match="not now"):
            docs.upsert(texts=TEXTS)
    assert list(db._store.path.rglob("*.arr*")) == [] and docs.count() == 0
    docs.upsert(ids=range(8), texts=TEXTS)
    assert docs.search(TEXTS[4], k=1).ids == [4]


def test_an_interrupt_does_not_delete_an_encoder_that_is_committed_after_it(
    db: vecdb.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = db.create_collection("docs", embed="tfidf")
    under_way: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        under_way.append(arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(db._store, "alter_schema", interrupted)
        with pytest.raises(KeyboardInterrupt):
            docs.upsert(texts=TEXTS)
    db._store.alter_schema(*under_way[0])
    docs.upsert(ids=range(8), texts=TEXTS)
    assert docs.search(TEXTS[4], k=1).ids == [4]
    assert db.verify().ok


def test_an_encoder_says_who_it_is(db: vecdb.Database) -> None:
    with pytest.raises(InvalidInput, match="fractions"):
        db.create_collection("x", Dense(16, dtype="i8"), embed="tfidf")
    for attribute, value in (("name", "tfidf"), ("name", ""), ("fingerprint", None)):
        encoder = Letters()
        setattr(encoder, attribute, value)
        with pytest.raises(InvalidInput, match=r"built-in|not empty"):
            db.create_collection("x", embed=encoder)
    db.create_collection("letters", embed=Letters())
    with pytest.raises(EncoderMismatch, match="'letters'"):
        db.collection("letters", embed="tfidf")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="no encoder"):
        db.collection("letters", embed=object())  # type: ignore[arg-type]
