"""Writes that are sent again, as a retried network call is: applied once, and then answered as the first time.

The caller names a write by a `Token`. `Once` is the operation that carries it through the commit section: where the token
has an entry, the operation is not run and its result is that of the first time; else it is run, and the entry is put into the
same transaction. Operations of a group run one after the other in one transaction, so a repetition sees the original beside it.
An operation that is refused leaves no entry.

In the table `checkpoint`, under a uuid that no collection has, so that checkpoints and entries never meet:

    16 zeros "once." place (16) token (1 to 64) part (u32)              JSON: at (ms since 1970), call, result, of?, made?
    16 zeros "time." at (u64) place (16) token (1 to 64) part (u32)     empty; so that old entries are found without a search

Integers are big-endian. place: the collection whose token it is, with which its entries go; or 16 zeros, of the database. The
key holds the token itself and no hash of it: two tokens are never taken for one.

Entries count for a day by the wall clock, which may jump: one from the future is new. `Tokens` belongs to one Store, and is
used under its commit lock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from .commit import Operation, Section
from .environment import Environment, Transaction
from .errors import Corruption, InvalidInput, StorageError
from .growing import Placing

if TYPE_CHECKING:
    from .store import Store

DATABASE = bytes(16)  # the place of tokens that belong to no collection
KEPT = 24 * 3600 * 1000  # milliseconds
_TABLE = "checkpoint"
_ENTRIES, _TIMES = bytes(16) + b"once.", bytes(16) + b"time."
_INTERVAL = 600.0  # seconds between two purges
_PIECE, _PAUSE = 256, 0.05  # entries that one commit purges, and seconds until the next one does, where more are left
_PIECES_AT_OPEN = 80
_ENTRY_BYTES = 1024  # of an entry and its time, at most

Made = tuple[str, int]


@dataclass(frozen=True)
class Token:
    """Names a write, so that it is applied once.

    value: 1 to 64 bytes. call: what it is used for; the same token for another call is a mistake, and refused. place: uuid of
    the collection, or DATABASE. part: which commit of a call that makes several. of: a checksum of what the call is about, if
    that is known. made: the first of the ids that the call made, and how many follow each other from there; an entry has the
    ids of the first time in these few bytes, however many they are.
    """

    value: bytes
    call: str
    place: bytes = DATABASE
    part: int = 0
    of: int | None = None
    made: Made | None = None

    @property
    def key(self) -> bytes:
        return self.place + self.value + self.part.to_bytes(4, "big")

    def refused(self, was: str) -> InvalidInput:
        return InvalidInput(f"token {self.value!r} was used for another call ({was}, now {self.call}); give each call its own")


@dataclass(frozen=True)
class Kept:
    """What an entry holds of a write. again: this was a repetition."""

    result: Any
    made: Made | None
    again: bool


@dataclass
class Once:
    """An operation that is applied unless its token was seen. Result: a `Kept`."""

    operation: Operation
    token: Token
    tokens: Tokens
    _again: bool = field(default=False, init=False)

    @property
    def room(self) -> int:
        return self.operation.room + _ENTRY_BYTES  # a purge gives room, and is small enough for what is kept in reserve

    @property
    def size(self) -> int:
        return 0 if self._again else self.operation.size

    @property
    def frees(self) -> bool:
        return self.operation.frees

    @property
    def placing(self) -> Placing | None:
        return None if self._again else self.operation.placing

    def run(self, section: Section) -> Kept:
        environment, txn, now = section.environment, section.txn, clock()
        entry = _entry(environment, txn, self.token)
        if entry is not None and not _is_old(entry, now):
            kept = _kept(self.token, entry)
            self._again = True
            return kept
        result = self.operation.run(section)
        if entry is not None:
            environment.delete(txn, _TABLE, _time_key(entry["at"], self.token.key))
        value = {"at": now, "call": self.token.call, "result": result}
        if self.token.of is not None:
            value["of"] = self.token.of
        if self.token.made is not None:
            value["made"] = self.token.made
        _put(environment, txn, self.token.key, value)
        self.tokens.purge_if_due(environment, txn)
        return Kept(result, self.token.made, again=False)


class Tokens:
    """The entries of a store, and when to look for old ones again."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._due = 0.0

    def kept(self, token: Token) -> Kept | None:
        """What the first write of that token has left. Raises InvalidInput where it was another call.

        A write that is under way is waited for: an entry in a transaction that may yet fail is not taken for kept.
        """
        with self._store.commit_lock, self._store.environment.read() as txn:
            entry = _entry(self._store.environment, txn, token)
            return None if entry is None or _is_old(entry, clock()) else _kept(token, entry)

    def purge_if_due(self, environment: Environment, txn: Transaction) -> None:
        """A little of it, within a commit, so that no writer waits long."""
        if time.monotonic() >= self._due:
            done = purge(environment, txn, _PIECE)
            self._due = time.monotonic() + (_PAUSE if done == _PIECE else _INTERVAL)

    def purge_at_open(self) -> None:
        """What is left after some pieces goes while the store is used. A disk that is too full for it does not matter."""
        environment, left = self._store.environment, False
        try:
            for _ in range(_PIECES_AT_OPEN):
                with environment.read() as txn:
                    left = any(_strays(environment, txn, clock(), 1))
                if not left:
                    break
                environment.commit(1 << 16, lambda txn: purge(environment, txn, _PIECE), frees=True)
        except StorageError as error:
            if error.outcome == "unknown":
                raise
        self._due = time.monotonic() + (0 if left else _INTERVAL)


def clock() -> int:
    """Milliseconds since 1970, as entries have it."""
    return time.time_ns() // 1_000_000


def delete_entries(environment: Environment, txn: Transaction, uuid: bytes) -> None:
    """Those of a collection's own tokens. Their times are left to the purge."""
    environment.delete_prefix(txn, _TABLE, _ENTRIES + uuid)


def purge(environment: Environment, txn: Transaction, most: int) -> int:
    """Deletes up to `most` entries that are too old; returns how many were looked at.

    Entries that are more than a day ahead were made while the clock was wrong, and would stay for as long as it was: they are
    from now. Those that are less ahead stay as they are, so that a clock that swings does not age them.
    """
    now = clock()
    old, ahead = _strays(environment, txn, now, most)
    for key in old:
        environment.delete(txn, _TABLE, _ENTRIES + key[len(_TIMES) + 8 :])
        environment.delete(txn, _TABLE, key)
    for key in ahead:
        environment.delete(txn, _TABLE, key)
        with suppress(Corruption):  # whoever asks for it is told; others' commits must not fail of it
            value = environment.get(txn, _TABLE, _ENTRIES + key[len(_TIMES) + 8 :])
            if value is not None:  # else its collection was dropped
                _put(environment, txn, key[len(_TIMES) + 8 :], {**orjson.loads(value), "at": now})
    return len(old) + len(ahead)


def _strays(environment: Environment, txn: Transaction, now: int, most: int) -> tuple[list[bytes], list[bytes]]:
    """The keys of times that are too old, and of those that are too far ahead; up to `most` of them all."""
    old = environment.keys(txn, _TABLE, _TIMES, most, until=_TIMES + _u64(now - KEPT + 1))
    return old, environment.keys(txn, _TABLE, _TIMES, most - len(old), start=_u64(now + KEPT + 1))


def _entry(environment: Environment, txn: Transaction, token: Token) -> dict[str, Any] | None:
    value = environment.get(txn, _TABLE, _ENTRIES + token.key)
    entry: dict[str, Any] | None = None if value is None else orjson.loads(value)
    return entry


def _put(environment: Environment, txn: Transaction, key: bytes, entry: dict[str, Any]) -> None:
    environment.put(txn, _TABLE, _ENTRIES + key, orjson.dumps(entry))
    environment.put(txn, _TABLE, _time_key(entry["at"], key), b"")


def _is_old(entry: dict[str, Any], now: int) -> bool:
    """By its own time, and not by whether it was purged yet: so the answer does not hang on when that happens."""
    return bool(now - entry["at"] >= KEPT)


def _kept(token: Token, entry: dict[str, Any]) -> Kept:
    if entry["call"] != token.call:
        raise token.refused(entry["call"])
    if token.of is not None and entry.get("of") is not None and token.of != entry["of"]:
        raise token.refused(f"{entry['call']} of other points")
    made = entry.get("made")
    return Kept(entry["result"], None if made is None else (made[0], made[1]), again=True)


def _time_key(at: int, key: bytes) -> bytes:
    return _TIMES + _u64(at) + key


def _u64(number: int) -> bytes:
    return max(0, number).to_bytes(8, "big")
