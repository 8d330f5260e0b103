"""API keys: who may call what, and how much of it.

A key is `vk_<id>_<secret>`, of which the file holds the SHA-256: a secret has 256 bits of chance, so nothing slower is
needed, and whoever reads the file cannot call with it. The file is JSON beside the database, `keys.json`, written as a whole
under a lock by `vecdb keys`; servers look at it before every request and read it again when it has changed, so that a
revoked key is refused by the next request. `Keys` is safe in any thread; several processes may use one file.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import Corruption, InvalidInput, NotFound, PermissionDenied, StorageError, Unauthenticated
from ..wire import messages

log = logging.getLogger("vecdb.server")
FILE = "keys.json"
ROLES = {"read": messages.READ, "write": messages.WRITE, "admin": messages.ADMIN}
_ROLE_NAMES = {number: name for name, number in ROLES.items()}
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_SCOPE = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")
_KEY = re.compile(r"vk_([A-Za-z0-9]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Key:
    """What is known of a key. collections: patterns as of file names, "*" for all. rate: requests a second; largest: bytes of
    a message; None where there is no limit. expires: in seconds since 1970.
    """

    id: str
    name: str
    sha256: str
    role: str
    collections: tuple[str, ...] = ("*",)
    rate: float | None = None
    largest: int | None = None
    created: float = 0.0
    expires: float | None = None

    def reaches(self, collection: str) -> bool:
        return any(fnmatchcase(collection, pattern) for pattern in self.collections)

    def check_role(self, needed: int, method: str) -> None:
        if ROLES[self.role] < needed:
            raise PermissionDenied(f"{method} needs a key with the role {_ROLE_NAMES[needed]}; {self.name!r} has {self.role}")

    def check_collection(self, collection: str) -> None:
        if not self.reaches(collection):
            raise PermissionDenied(
                f"the key {self.name!r} is for the collections {', '.join(self.collections)}, not for {collection!r}"
            )


ANYBODY = Key("", "anybody", "", "admin")  # where no keys are in use, which only loopback may be without


class Keys:
    """The keys of one file, as they are now."""

    def __init__(self, path: Path, *, needed: bool = False) -> None:
        """needed: keys are in use, though the file may have gone. Raises Corruption when it is no file of keys."""
        self.path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = () if needed else None
        self._keys: dict[str, Key] = {}
        if path.is_file():
            _read(path)
        self._refresh()

    def __bool__(self) -> bool:
        """Whether keys are in use: also when all have been revoked."""
        self._refresh()
        return self._seen is not None

    def who(self, authorization: str | None) -> Key:
        """The key that an `authorization` header carries. Raises Unauthenticated, which never says what was wrong with it."""
        self._refresh()
        if self._seen is None:
            return ANYBODY
        if not authorization:
            raise Unauthenticated("an API key is needed: vecdb.connect(…, api_key=…), or VECDB_API_KEY in the environment")
        scheme, _, secret = authorization.partition(" ")
        found = _KEY.fullmatch(secret.strip()) if scheme.lower() == "bearer" else None
        key = self._keys.get(found[1]) if found is not None else None
        # An unknown id takes as long as a wrong secret.
        right = hmac.compare_digest(_hash(secret.strip()), key.sha256 if key is not None else _hash(""))
        if key is None or not right or (key.expires is not None and time.time() >= key.expires):
            raise Unauthenticated("the API key is not known here, was revoked, or has expired")
        return key

    def all(self) -> list[Key]:
        self._refresh()
        return sorted(self._keys.values(), key=lambda key: (key.created, key.name))

    def create(
        self,
        name: str,
        role: str,
        collections: tuple[str, ...] = ("*",),
        *,
        rate: float | None = None,
        largest: int | None = None,
        days: float | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its text, which is shown once and kept nowhere. Raises InvalidInput, StorageError.

        Several keys may have one name, so that the next can be handed out before the last is revoked.
        """
        if role not in ROLES:
            raise InvalidInput(f"a role is read, write or admin, not {role!r}")
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"{name!r} cannot name a key: use 1 to 64 of A-Z a-z 0-9 _ . @ -")
        for pattern in collections:
            if not _SCOPE.fullmatch(pattern):
                raise InvalidInput(f"{pattern!r} is no name of a collection, nor one with * and ?")
        if not collections:
            raise InvalidInput("a key is for some collections; '*' means all")
        for said, value in (("rate", rate), ("largest", largest), ("days", days)):
            if value is not None and not value > 0:
                raise InvalidInput(f"{said} must be above 0, not {value!r}")
        key_id, secret = "".join(secrets.choice(_LETTERS) for _ in range(12)), secrets.token_urlsafe(32)
        text, now = f"vk_{key_id}_{secret}", time.time()
        expires = None if days is None else now + 86_400 * days
        key = Key(key_id, name, _hash(text), role, tuple(collections), rate, largest, now, expires)
        with self._changing() as keys:
            keys[key_id] = key
        return key, text

    def revoke(self, which: str) -> list[Key]:
        """Takes away the key of that id, or all of that name. Returns them. Raises NotFound."""
        with self._changing() as keys:
            gone = [key for key in keys.values() if which in (key.id, key.name)]
            if not gone:
                raise NotFound(f"no key has the name or id {which!r}; `vecdb keys list` shows them")
            for key in gone:
                del keys[key.id]
        return gone

    def _refresh(self) -> None:
        """A file that goes away or is spoilt while a server runs does not open its doors: nobody is known until it is well."""
        seen: tuple[int, ...] = ()
        keys: dict[str, Key] = {}
        try:
            found = os.stat(self.path)
            seen = (found.st_mtime_ns, found.st_ino, found.st_size)
            if seen != self._seen:
                keys = _read(self.path)
        except (OSError, Corruption) as error:
            if isinstance(error, FileNotFoundError):
                seen = ()
                if self._seen is None:
                    return
            if seen != self._seen:
                log.error("keys cannot be read; nobody is let in", extra={"file": str(self.path), "reason": str(error)})
        if seen != self._seen:
            with self._lock:
                self._keys, self._seen = keys, seen

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        try:
            with open(self.path.with_suffix(".lock"), "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                keys = _read(self.path) if self.path.exists() else {}
                yield keys
                _write(self.path, keys)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}", file=str(self.path)) from None
        self._refresh()


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Key]:
    try:
        told = json.loads(path.read_bytes())
        keys = [Key(**{**each, "collections": tuple(each["collections"])}) for each in told["keys"]]
        if any(key.role not in ROLES for key in keys):
            raise ValueError("unknown role")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corruption(f"it is no file of keys: {error}", file=str(path)) from None
    return {key.id: key for key in keys}


def _write(path: Path, keys: dict[str, Key]) -> None:
    """As a whole or not at all, for the owner's eyes only."""
    told: dict[str, Any] = {"format": 1, "keys": [asdict(key) for key in keys.values()]}
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".keys-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(told, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Buckets:
    """How many requests each key has left: a token bucket of one second for each, refilled at its rate."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, key: Key) -> float:
        """0 when the request may go on, else the seconds after which it may come again."""
        if key.rate is None:
            return 0.0
        now, most = time.monotonic(), max(1.0, key.rate)
        with self._lock:
            left, at = self._left.get(key.id, (most, now))
            left = min(most, left + (now - at) * key.rate)
            if left < 1:
                self._left[key.id] = left, now
                return (1 - left) / key.rate
            self._left[key.id] = left - 1, now
            return 0.0


def without_secret(key: Key) -> dict[str, Any]:
    """What may be shown of a key."""
    return {name: value for name, value in asdict(replace(key, sha256="")).items() if name != "sha256"}
