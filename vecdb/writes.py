"""Writes of points: batches that are checked, in one commit or chunk by chunk, each applied once however often it is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vecdb_storage.ahead import Ahead
from vecdb_storage.batch import Batch
from vecdb_storage.ids import Id
from vecdb_storage.once import Token
from vecdb_storage.store import Store
from vecdb_storage.ulid import series

from .points import checked_checkpoints, checked_token, chunks_of, ids_of_first, token_of
from .schema import Field


@dataclass
class Prepared:
    """A batch that is checked, and whose vectors may be on their way to disk. Belongs to one thread at a time."""

    store: Store
    uuid: bytes
    batch: Batch
    ahead: Ahead
    made: bool = False  # the ids were, since none were given

    def commit(
        self,
        *,
        insert: bool = False,
        checkpoints: Mapping[bytes, bytes | None] | None = None,
        token: bytes | None = None,
    ) -> int:
        """One commit: the points, and how far a loader is, so that it can be resumed. Returns how many points were replaced.

        checkpoints: token of at most 400 bytes -> value, or None to take it away. Raises as `upsert` and `insert`.
        token: as in `upsert`, and shared with it: what one of them has applied is a repetition to the other.
        """
        try:
            once = checked_token(token, call_of(insert), self.uuid)
            if once is not None:
                once = token_of(once, self.batch.keys, self.batch.keys if self.made else ())
            replaced = self.store.write(
                self.uuid,
                self.batch,
                insert=insert,
                ahead=self.ahead,
                checkpoints=checked_checkpoints(checkpoints or {}),
                token=once,
            )
            if once is not None and self.made:
                kept = self.store.kept(once)
                self.batch = replace(self.batch, keys=ids_of_first(once, kept, self.batch.keys, self.batch.keys))
            return replaced
        finally:
            self.ahead.release()

    @property
    def ids(self) -> list[Id]:
        """Of the points, in order; after a commit that was a repetition, those of the first."""
        return list(self.batch.keys)

    def release(self) -> None:
        """It is not wanted any more; nothing of it is left. Harmless when committed."""
        self.ahead.release()


def write_chunks(
    store: Store, uuid: bytes, fields: Mapping[str, Field], points: Any, once: Token | None, *, insert: bool
) -> Iterator[Sequence[Id]]:
    """Writes points as `chunks_of` gives them, a commit for each chunk; says the ids of each once it is in."""
    for part, chunk in enumerate(chunks_of(points, fields)):
        batch, made = chunk(fields)
        if once is None:
            store.write(uuid, batch, insert=insert)
            yield batch.keys
        else:
            one = token_of(once, batch.keys, made, part)
            store.write(uuid, batch, insert=insert, token=one)
            yield ids_of_first(one, store.kept(one) if made else None, batch.keys, made)


def written_before(store: Store, once: Token, ids: list[Id] | None) -> list[Id] | None:
    """The ids that the first call with this token returned, if there was one. ids: those that are given now."""
    kept = store.kept(once if ids is None else token_of(once, ids, ()))
    if kept is None:
        return None
    if ids is not None:
        return list(ids)
    if kept.made is None:
        raise once.refused(f"{once.call} of points with ids")
    return [*series(*kept.made)]


def call_of(insert: bool) -> str:
    """What a token is used for."""
    return "insert" if insert else "upsert"
