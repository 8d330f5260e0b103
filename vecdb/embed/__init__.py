"""Texts -> vectors: one small contract, and what a collection needs to keep to it.

An encoder turns texts into vectors. Its name and fingerprint are stored with the collection, because vectors of two
encoders do not mix: texts and queries that would be embedded by another one are refused by name. The offline
default, "tfidf", is fitted on the user's own first texts and kept with the collection; nothing is downloaded.

An Embedding belongs to one Collection and is safe in any thread, if its encoder is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import DimensionMismatch, EncoderMismatch, InvalidInput
from ..schema import DEFAULT_FIELD, Dense, Sparse, fields_of

if TYPE_CHECKING:
    from vecdb_storage.store import Store

TFIDF = "tfidf"
TFIDF_DIM = 256
Vectors = dict[str, npt.NDArray[np.float32]]
TEXT = "text"  # the payload key under which a point's text is kept


@runtime_checkable
class Encoder(Protocol):
    """Anything that embeds texts. fingerprint: changes whenever the same text would get another vector."""

    @property
    def name(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) texts -> (n, dim) float32."""


def declare(schema: Dense | Sparse | Mapping[str, Dense | Sparse] | None, embed: str | Encoder) -> dict[str, Any]:
    """The stored schema of a collection whose texts `embed` encodes. Raises InvalidInput or DimensionMismatch."""
    name, fingerprint, dim = identity_of(embed)
    fields = {DEFAULT_FIELD: Dense(dim or TFIDF_DIM)} if schema is None else fields_of(schema)
    if DEFAULT_FIELD not in fields and len(fields) > 1:
        raise InvalidInput(f"texts are embedded into one field: name it {DEFAULT_FIELD!r}, or declare only one")
    field = DEFAULT_FIELD if DEFAULT_FIELD in fields else next(iter(fields))
    if name == TFIDF and fields[field].dtype == "i8":
        raise InvalidInput('"tfidf" gives fractions, which an i8 field cannot hold; use f32 or f16', field=field)
    if dim is not None and fields[field].dim != dim:
        raise DimensionMismatch(f"encoder {name!r} gives {dim} numbers, the field has {fields[field].dim}", field=field)
    return {
        "fields": {key: declared.to_json() for key, declared in fields.items()},
        "ids": None,
        "embed": {"name": name, "fingerprint": fingerprint, "field": field},
    }


def identity_of(embed: object) -> tuple[str, str | None, int | None]:
    """Name, fingerprint and dim of an encoder; the last two are None for "tfidf", which is yet to be fitted."""
    if isinstance(embed, str):
        if embed != TFIDF:
            raise InvalidInput(f'no encoder is called {embed!r}: use "tfidf", or give an encoder object')
        return TFIDF, None, None
    if not isinstance(embed, Encoder):
        raise InvalidInput(f"{type(embed).__name__} is no encoder: it needs name, fingerprint, dim and encode(texts)")
    for said, value in (("name", embed.name), ("fingerprint", embed.fingerprint)):
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"an encoder's {said} is a string that is not empty, not {value!r}")
    if embed.name == TFIDF:
        raise InvalidInput(f"the name {TFIDF!r} belongs to the built-in encoder; give yours another")
    return embed.name, embed.fingerprint, embed.dim


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
        """Of the encoder; None before "tfidf" is fitted."""
        found: str | None = self._schema()["embed"]["fingerprint"]
        return found

    def adopt(self, encoder: str | Encoder) -> None:
        """Uses this encoder object from now on. Raises EncoderMismatch when the texts were embedded by another."""
        from .encoders import same_kind

        name, fingerprint, dim = identity_of(encoder)
        declared = self._schema()["embed"]
        if not same_kind(name, declared["name"]) or (dim is not None and fingerprint != declared["fingerprint"]):
            raise EncoderMismatch(
                f"its texts were embedded by {declared['name']!r} ({declared['fingerprint']}), "
                f"not by {name!r} ({fingerprint}); give that encoder, or embed the texts anew"
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
        dim = schema["fields"][field]["dim"]
        if not texts:
            return {field: np.zeros((0, dim), np.float32)}, rows
        encoder = self._ready()
        if encoder is None:
            accept({field: np.ones((len(texts), dim), np.float32)}, rows)
            encoder = self._fitted(texts)
        return {field: self._encode(encoder, texts)}, rows

    def of_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(m, dim) float32. Raises EncoderMismatch when the collection's encoder is not at hand."""
        texts = checked_texts(texts)
        encoder = self._ready()
        if encoder is None:
            raise InvalidInput("its encoder is fitted on the first texts; write some before you search by text")
        return self._encode(encoder, texts)

    def _encode(self, encoder: Encoder, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        vectors = np.asarray(encoder.encode(texts), np.float32)
        if vectors.shape != (len(texts), encoder.dim):
            raise DimensionMismatch(
                f"encoder {encoder.name!r} gave {vectors.shape} for {len(texts)} texts of {encoder.dim} numbers each"
            )
        return vectors

    def _schema(self) -> dict[str, Any]:
        """As of the newest commit: an encoder that is being attached does not count until it is durable."""
        return self._store.snapshot(self._uuid).schema

    def _ready(self) -> Encoder | None:
        """The encoder, read from disk if need be; None when it has not been fitted yet."""
        if self._encoder is not None:
            return self._encoder
        declared = self._schema()["embed"]
        if declared["name"] != TFIDF:
            raise EncoderMismatch(
                f"its texts were embedded by {declared['name']!r} ({declared['fingerprint']}); open the collection with that "
                f"encoder: db.collection(name, embed=encoder)"
            )
        if declared["fingerprint"] is None:
            return None
        from .tfidf import Tfidf

        encoder = Tfidf.from_arrays(self._store.attachment(self._uuid, "encoder"))
        if encoder.fingerprint != declared["fingerprint"]:
            raise EncoderMismatch(f"its encoder on disk is {encoder.fingerprint}, not {declared['fingerprint']}")
        self._encoder = encoder
        return encoder

    def _fitted(self, texts: Sequence[str]) -> Encoder:
        """The encoder, fitted on these texts if they are the collection's first."""
        encoder = self._ready()
        if encoder is not None:
            return encoder
        from .tfidf import Tfidf

        with self._lock:
            encoder = self._ready()
            if encoder is not None:
                return encoder
            schema = self._schema()
            fitted = Tfidf.fit(texts, schema["fields"][schema["embed"]["field"]]["dim"])

            def settle(now: dict[str, Any]) -> dict[str, Any]:
                if now["embed"]["fingerprint"] is not None:
                    return now  # somebody was first; theirs is used
                return {**now, "embed": {**now["embed"], "fingerprint": fitted.fingerprint}}

            self._store.attach(self._uuid, "encoder", fitted.to_arrays(), settle)
            encoder = self._ready()
            assert encoder is not None
            return encoder


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
