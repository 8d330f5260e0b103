"""Texts -> vectors: one small contract, and what a collection needs to keep to it.

An encoder turns texts into vectors. Its name and fingerprint are stored with the collection, because vectors of two
encoders do not mix: texts and queries that would be embedded by another one are refused by name. Two are built in, "tfidf" for
dense vectors and "bm25" for sparse ones: they are fitted on the user's own first texts and kept with the collection; nothing
is downloaded.

An Embedding belongs to one Collection and is safe in any thread, if its encoder is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from vecdb_index.contract import Queries

from ..errors import DimensionMismatch, EncoderMismatch, InvalidInput
from ..schema import DEFAULT_FIELD, Dense, Field, Sparse, field_from_json, fields_of
from ..sparse import checked_queries

if TYPE_CHECKING:
    from vecdb_storage.store import Store

TFIDF, BM25 = BUILT_IN = "tfidf", "bm25"
TFIDF_DIM = 256
Vectors = dict[str, Any]
TEXT = "text"  # the payload key under which a point's text is kept


@runtime_checkable
class Encoder(Protocol):
    """Anything that embeds texts. fingerprint: changes whenever the same text would get another vector.

    dim: None of an encoder whose vectors are sparse. One that encodes queries otherwise has `encode_queries`, too.
    """

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int | None: ...

    def encode(self, texts: Sequence[str]) -> Any:
        """(n,) texts -> (n, dim) float32; or what a field of sparse vectors takes."""


@dataclass(frozen=True)
class Identity:
    """What is known of an encoder before it is used. fingerprint: None of one that is yet to be fitted. dim: None, too."""

    name: str
    fingerprint: str | None
    dim: int | None
    sparse: bool


def declare(schema: Field | Mapping[str, Field] | None, embed: str | Encoder) -> dict[str, Any]:
    """The stored schema of a collection whose texts `embed` encodes. Raises InvalidInput or DimensionMismatch."""
    encoder = identity_of(embed)
    if schema is None:
        schema = Sparse() if encoder.sparse else Dense(encoder.dim or TFIDF_DIM)
    fields = fields_of(schema)
    field = _field_of(fields, encoder)
    declared = fields[field]
    if isinstance(declared, Dense):
        if encoder.name == TFIDF and declared.dtype == "i8":
            raise InvalidInput('"tfidf" gives fractions, which an i8 field cannot hold; use f32 or f16', field=field)
        if encoder.dim is not None and declared.dim != encoder.dim:
            raise DimensionMismatch(
                f"encoder {encoder.name!r} gives {encoder.dim} numbers, the field has {declared.dim}", field=field
            )
    return {
        "fields": {key: each.to_json() for key, each in fields.items()},
        "ids": None,
        "embed": {"name": encoder.name, "fingerprint": encoder.fingerprint, "field": field},
    }


def _field_of(fields: Mapping[str, Field], encoder: Identity) -> str:
    """The field that texts go to: the unnamed one, or the only one of the encoder's kind. Raises InvalidInput."""
    fitting = [name for name, each in fields.items() if isinstance(each, Sparse) == encoder.sparse]
    if not fitting:
        kind, other = ("sparse", "dense") if encoder.sparse else ("dense", "sparse")
        raise InvalidInput(
            f"encoder {encoder.name!r} gives {kind} vectors, and the field has {other} ones", field=next(iter(fields))
        )
    if DEFAULT_FIELD not in fitting and len(fitting) > 1:
        raise InvalidInput(f"texts are embedded into one field: name it {DEFAULT_FIELD!r}, or declare only one")
    return DEFAULT_FIELD if DEFAULT_FIELD in fitting else fitting[0]


def identity_of(embed: object) -> Identity:
    """Raises InvalidInput when it is no encoder."""
    if isinstance(embed, str):
        if embed not in BUILT_IN:
            known = " or ".join(f'"{name}"' for name in BUILT_IN)
            raise InvalidInput(f"no encoder is called {embed!r}: use {known}, or give an encoder object")
        return Identity(embed, None, None, embed == BM25)
    if not isinstance(embed, Encoder):
        raise InvalidInput(f"{type(embed).__name__} is no encoder: it needs name, fingerprint, dim and encode(texts)")
    for said, value in (("name", embed.name), ("fingerprint", embed.fingerprint)):
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"an encoder's {said} is a string that is not empty, not {value!r}")
    if embed.name in BUILT_IN:
        raise InvalidInput(f"the name {embed.name!r} belongs to the built-in encoder; give yours another")
    return Identity(embed.name, embed.fingerprint, embed.dim, embed.dim is None)


class Embedding:
    """The encoder of one collection: given by the user, fitted on the first texts, or read back from disk."""

    def __init__(self, store: Store, uuid: bytes) -> None:
        """Raises InvalidInput when the collection was created without an encoder."""
        self._store, self._uuid = store, uuid
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        if "embed" not in store.state(uuid).schema:
            raise InvalidInput("this collection has no encoder, so give vectors; texts need create_collection(name, embed=…)")

    @property
    def field(self) -> str:
        """Where the vectors of texts go."""
        found: str = self._schema()["embed"]["field"]
        return found

    @property
    def fingerprint(self) -> str | None:
        """Of the encoder; None of a built-in one before it is fitted."""
        found: str | None = self._schema()["embed"]["fingerprint"]
        return found

    def adopt(self, encoder: str | Encoder) -> None:
        """Uses this encoder object from now on. Raises EncoderMismatch when the texts were embedded by another."""
        from .encoders import same_kind

        given = identity_of(encoder)
        declared = self._schema()["embed"]
        other = given.fingerprint is not None and given.fingerprint != declared["fingerprint"]
        if not same_kind(given.name, declared["name"]) or other:
            raise EncoderMismatch(
                f"its texts were embedded by {declared['name']!r} ({declared['fingerprint']}), "
                f"not by {given.name!r} ({given.fingerprint}); give that encoder, or embed the texts anew"
            )
        if not isinstance(encoder, str):
            self._encoder = encoder

    def of_points(self, texts: Sequence[str], payloads: Any, accept: Callable[[Vectors, Any], object]) -> tuple[Vectors, Any]:
        """Vectors by field, and payloads that hold the texts; the caller's own are left as they are.

        accept: raises if points with such vectors and payloads would be refused. Asked before the encoder is fitted,
        which happens once: texts that are not written must not decide it.
        """
        texts = checked_texts(texts)
        rows = with_texts(payloads, texts)
        schema = self._schema()
        field = schema["embed"]["field"]
        declared = field_from_json(schema["fields"][field])
        if not texts:
            return {field: stand_ins(declared, 0)}, rows
        encoder = self._ready()
        if encoder is None:
            accept({field: stand_ins(declared, len(texts))}, rows)
            encoder = self._fitted(texts)
        return {field: encoded(encoder, texts)}, rows

    def of_queries(self, texts: Sequence[str]) -> Queries:
        """(m, dim) float32, or sparse ones. Raises EncoderMismatch when the collection's encoder is not at hand."""
        texts = checked_texts(texts)
        encoder = self._ready()
        if encoder is None:
            raise InvalidInput("its encoder is fitted on the first texts; write some before you search by text")
        found: Queries = encoded_queries(encoder, texts, self.field)
        return found

    def _schema(self) -> dict[str, Any]:
        """As of the newest commit: an encoder that is being attached does not count until it is durable."""
        return self._store.snapshot(self._uuid).schema

    def _ready(self) -> Encoder | None:
        """The encoder, read from disk if need be; None when it has not been fitted yet."""
        if self._encoder is not None:
            return self._encoder
        declared = self._schema()["embed"]
        if declared["name"] not in BUILT_IN:
            raise EncoderMismatch(
                f"its texts were embedded by {declared['name']!r} ({declared['fingerprint']}); open the collection with that "
                f"encoder: db.collection(name, embed=encoder)"
            )
        if declared["fingerprint"] is None:
            return None
        encoder = _built_in(declared["name"]).from_arrays(self._store.attachment(self._uuid, "encoder"))
        if encoder.fingerprint != declared["fingerprint"]:
            raise EncoderMismatch(f"its encoder on disk is {encoder.fingerprint}, not {declared['fingerprint']}")
        self._encoder = encoder
        return self._encoder

    def _fitted(self, texts: Sequence[str]) -> Encoder:
        """The encoder, fitted on these texts if they are the collection's first."""
        encoder = self._ready()
        if encoder is not None:
            return encoder
        with self._lock:
            encoder = self._ready()
            if encoder is not None:
                return encoder
            schema = self._schema()
            kind, field = _built_in(schema["embed"]["name"]), schema["fields"][schema["embed"]["field"]]
            fitted = kind.fit(texts, field["dim"]) if field["kind"] == "dense" else kind.fit(texts)

            def settle(now: dict[str, Any]) -> dict[str, Any]:
                if now["embed"]["fingerprint"] is not None:
                    return now  # somebody was first; theirs is used
                return {**now, "embed": {**now["embed"], "fingerprint": fitted.fingerprint}}

            self._store.attach(self._uuid, "encoder", fitted.to_arrays(), settle)
            encoder = self._ready()
            assert encoder is not None
            return encoder


def _built_in(name: str) -> Any:
    """The class of a built-in encoder."""
    from importlib import import_module

    return getattr(import_module("." + name, __package__), name.capitalize())


def stand_ins(declared: Field, count: int) -> Any:
    """Vectors that a field takes, in the place of those that are yet to be made."""
    return [{0: 1.0}] * count if isinstance(declared, Sparse) else np.ones((count, declared.dim), np.float32)


def encoded(encoder: Encoder, texts: Sequence[str]) -> Any:
    """The vectors of texts that are stored: (n, dim) float32, or sparse ones. Raises DimensionMismatch."""
    if encoder.dim is None:
        return encoder.encode(texts)
    vectors = np.asarray(encoder.encode(texts), np.float32)
    if vectors.shape != (len(texts), encoder.dim):
        raise DimensionMismatch(
            f"encoder {encoder.name!r} gave {vectors.shape} for {len(texts)} texts of {encoder.dim} numbers each"
        )
    return vectors


def encoded_queries(encoder: Encoder, texts: Sequence[str], field: str) -> Any:
    """The vectors of texts that are searched for, as searches take them. Raises DimensionMismatch, InvalidVector."""
    if encoder.dim is not None:
        return encoded(encoder, texts)
    return checked_queries(getattr(encoder, "encode_queries", encoder.encode)(texts), field)


def checked_texts(texts: Any) -> Sequence[str]:
    if isinstance(texts, str):
        texts = [texts]
    elif hasattr(texts, "to_pylist"):
        texts = texts.to_pylist()
    elif not isinstance(texts, Sequence):
        texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"a text is a string that is not blank, not {text!r}", point=position)
    checked: Sequence[str] = texts
    return checked


def with_texts(payloads: Any, texts: Sequence[str]) -> Any:
    """Payloads, as rows or as columns, with the texts in them. A row that is no dict is left to be refused later."""
    if payloads is None or isinstance(payloads, Mapping):
        if payloads and list(payloads.get(TEXT, texts)) != list(texts):
            raise InvalidInput(f"the payload's {TEXT!r} is taken by the text itself; name that column otherwise")
        return {**(payloads or {}), TEXT: list(texts)}
    rows = list(payloads)
    if len(rows) != len(texts):
        raise InvalidInput(f"{len(rows)} payloads for {len(texts)} texts")
    for position, (row, text) in enumerate(zip(rows, texts, strict=True)):
        if isinstance(row, Mapping) and row.get(TEXT, text) != text:
            raise InvalidInput(f"the payload's {TEXT!r} is taken by the text itself; name that key otherwise", point=position)
    return [
        {**(row or {}), TEXT: text} if row is None or isinstance(row, Mapping) else row
        for row, text in zip(rows, texts, strict=True)
    ]
