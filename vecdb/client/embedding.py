"""Texts -> vectors for a collection on a server: by an encoder of this process, or by the server where it has one.

A server makes vectors by "tfidf" only, which is fitted on the collection's own texts and kept with it. Any other encoder is the
client's, and held to the one that the texts were embedded by. Belongs to one collection; as safe as its encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import EncoderMismatch, InvalidInput

if TYPE_CHECKING:
    from ..embed import Encoder
    from .collection import AsyncCollection


class AsyncEmbedding:
    """The encoder of a collection: one that the caller has given, or the server's."""

    def __init__(self, collection: AsyncCollection) -> None:
        self._collection = collection
        self._encoder: Encoder | None = None

    def adopt(self, encoder: str | Encoder, declared: Any) -> None:
        """Raises EncoderMismatch when the texts were embedded by another."""
        from ..embed import identity_of
        from ..embed.encoders import same_kind

        name, fingerprint, dim = identity_of(encoder)
        if declared is None:
            raise InvalidInput("this collection has no encoder, so give vectors; texts need create_collection(name, embed=…)")
        if not same_kind(name, declared.name) or (dim is not None and fingerprint != declared.fingerprint):
            raise EncoderMismatch(
                f"its texts were embedded by {declared.name!r} ({declared.fingerprint}), not by {name!r} ({fingerprint}); "
                f"give that encoder, or embed the texts anew"
            )
        if not isinstance(encoder, str):
            self._encoder = encoder

    async def of_points(self, texts: Any, payloads: Any, accept: Callable[[Any, Any], object]) -> tuple[dict[str, Any], Any]:
        from ..embed import checked_texts, with_texts

        texts = checked_texts(texts)
        rows = with_texts(payloads, texts)
        field = await self._field()
        if not texts:
            return {field: np.zeros((0, self._collection.known[field].dim), np.float32)}, rows
        accept({field: np.ones((len(texts), self._collection.known[field].dim), np.float32)}, rows)
        if self._encoder is not None:
            return {field: np.asarray(self._encoder.encode(texts), np.float32)}, rows
        return {field: await self._collection.embed_by_server("Points/Fit", texts)}, rows

    async def of_queries(self, texts: Any) -> npt.NDArray[np.float32]:
        from ..embed import checked_texts

        texts = checked_texts(texts)
        if self._encoder is not None:
            return np.asarray(self._encoder.encode(texts), np.float32)
        return await self._collection.embed_by_server("Points/Embed", texts)

    @property
    def here(self) -> bool:
        """Whether texts are embedded in this process."""
        return self._encoder is not None

    async def _field(self) -> str:
        found = await self._collection.described()
        if not found.HasField("encoder"):
            raise InvalidInput("this collection has no encoder, so give vectors; texts need create_collection(name, embed=…)")
        return str(found.encoder.field)
