"""Texts -> vectors for a collection on a server: by an encoder of this process, or by the server where it has one.

A server makes vectors by "tfidf" and "bm25" only, which are fitted on the collection's own texts and kept with it. Any other
encoder is the client's, and held to the one that the texts were embedded by. Belongs to one collection; as safe as its encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from vecdb_index.contract import Queries

from ..arguments import check_embedded
from ..errors import EncoderMismatch, InvalidInput
from ..sparse import checked_queries

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

        given = identity_of(encoder)
        if declared is None:
            raise InvalidInput("this collection has no encoder, so give vectors; texts need create_collection(name, embed=…)")
        other = given.fingerprint is not None and given.fingerprint != declared.fingerprint
        if not same_kind(given.name, declared.name) or other:
            raise EncoderMismatch(
                f"its texts were embedded by {declared.name!r} ({declared.fingerprint}), "
                f"not by {given.name!r} ({given.fingerprint}); give that encoder, or embed the texts anew"
            )
        if not isinstance(encoder, str):
            self._encoder = encoder

    async def of_points(self, texts: Any, payloads: Any, accept: Callable[[Any, Any], object]) -> tuple[dict[str, Any], Any]:
        from ..embed import checked_texts, encoded, stand_ins, with_texts

        texts = checked_texts(texts)
        rows = with_texts(payloads, texts)
        field = await self.field()
        declared = self._collection.known[field]
        if not texts:
            return {field: stand_ins(declared, 0)}, rows
        accept({field: stand_ins(declared, len(texts))}, rows)
        if self._encoder is not None:
            return {field: encoded(self._encoder, texts)}, rows
        return {field: await self._collection.embed_by_server("Points/Fit", texts)}, rows

    async def of_queries(self, texts: Any, field: str | None = None) -> Queries:
        """field: where they are searched for, if it was said."""
        from ..embed import checked_texts, encoded_queries

        texts = checked_texts(texts)
        if field is not None:
            check_embedded(await self.field(), field)
        if self._encoder is not None:
            here: Queries = encoded_queries(self._encoder, texts, field or "")
            return here
        found = await self._collection.embed_by_server("Points/Embed", texts)
        return found if isinstance(found, np.ndarray) else checked_queries(found, field or "")

    @property
    def here(self) -> bool:
        """Whether texts are embedded in this process."""
        return self._encoder is not None

    async def field(self) -> str:
        """Where the vectors of texts go."""
        found = await self._collection.described()
        if not found.HasField("encoder"):
            raise InvalidInput("this collection has no encoder, so give vectors; texts need create_collection(name, embed=…)")
        return str(found.encoder.field)
