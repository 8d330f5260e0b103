"""Embeddings over HTTP, by OpenAI's protocol: theirs, or a server of your own that speaks it (vLLM, Ollama, llama.cpp, ...).

Texts leave this machine. The key is read from the environment for each request, and is kept nowhere: not in this object, nor
in a log, an error or the database. Requests are at most 256 texts or about 200 kB; what may pass (a full server, a broken
connection) is tried again, each time after a longer wait of random length, and what will not is an error at once. Redirects
are not followed, because the key would go with them. The standard library does all this, so nothing has to be installed. An
OpenAI is safe in any thread.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import logging
import os
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ..errors import DimensionMismatch, EncoderFailed, InvalidInput, NotFound, Overloaded, Unauthenticated, VecdbError
from .models import one_line

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
_DEFAULT_URL = "https://api.openai.com/v1"
_MOST_TEXTS = 256  # of a request
_MOST_BYTES = 200_000  # of a request's texts; one longer text goes alone, for the server to judge
_TRIES = 6
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_LONGEST_ASKED = 120.0  # seconds that a server may ask us to wait; if it wants more, the caller is told instead
_PASSING = {408, 409, 429}  # and all of 5xx
_LARGEST_REPLY = 1 << 28
_log = logging.getLogger("vecdb")
_sleep = time.sleep


class OpenAI:
    """model: its name there. base_url: default the environment's OPENAI_BASE_URL, else OpenAI's own.

    The key is the environment's OPENAI_API_KEY; a server that wants none may go without. dimensions: how many numbers to ask
    for, of models that can give fewer. timeout: seconds for one try, after six of which it is over. Raises InvalidInput; the
    first use may raise all that `encode` does.
    """

    def __init__(
        self, model: str, base_url: str | None = None, *, dimensions: int | None = None, timeout: float = 60.0
    ) -> None:
        if not model.strip():
            raise InvalidInput("a model is its name, not an empty text")
        if dimensions is not None and dimensions < 1:
            raise InvalidInput(f"dimensions is at least 1, not {dimensions}")
        if not timeout > 0:
            raise InvalidInput(f"timeout is a number of seconds above 0, not {timeout}")
        self.model = model
        self.base_url = _checked_url(base_url or os.environ.get(BASE_URL) or _DEFAULT_URL)
        self.timeout = timeout
        self._asked = dimensions
        self._dim = dimensions
        self._opener = urllib.request.build_opener(_NoRedirects)
        self.name = f"openai:{model}"
        self.fingerprint = f"{model} at {self.base_url}, {'all' if dimensions is None else dimensions} dimensions"

    def __repr__(self) -> str:
        return f"OpenAI({self.model!r}, {self.base_url!r}, dimensions={self._asked})"

    @property
    def dim(self) -> int:
        """How many numbers a vector has. Where that is not known yet, one text is embedded to see it."""
        if self._dim is None:
            self.encode(["dimensions"])
        assert self._dim is not None
        return self._dim

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n,) texts -> (n, dim) float32.

        Raises Unauthenticated, NotFound (no such model), InvalidInput (the server refuses the texts), Overloaded,
        EncoderFailed (no connection, or a reply that is no vectors), DimensionMismatch.
        """
        found = [self._vectors(batch) for batch in _batches(texts)]
        return np.concatenate(found) if found else np.zeros((0, self.dim), np.float32)

    def _vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        asked: dict[str, Any] = {"model": self.model, "input": list(texts)}
        if self._asked is not None:
            asked["dimensions"] = self._asked
        vectors = self._parsed(self._post(json.dumps(asked).encode()), len(texts))
        if self._dim is None:
            self._dim = vectors.shape[1]
        if vectors.shape[1] != self._dim:
            raise DimensionMismatch(f"{self._server} gave vectors of {vectors.shape[1]} numbers, and {self._dim} are wanted")
        return vectors

    @property
    def _server(self) -> str:
        return f"{self.name} at {self.base_url}"

    def _parsed(self, reply: bytes, count: int) -> npt.NDArray[np.float32]:
        """The vectors, in the order of the texts."""
        try:
            rows = orjson.loads(reply)["data"]
            order = [row["index"] for row in rows]
            vectors = [row["embedding"] for row in rows]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise EncoderFailed(f"{self._server} gave a reply that is no list of embeddings") from None
        if len(rows) != count:
            raise EncoderFailed(f"{self._server} gave {len(rows)} vectors for {count} texts")
        if any(type(at) is not int for at in order) or sorted(order) != list(range(count)):
            raise EncoderFailed(f"{self._server} did not say which vector belongs to which of {count} texts")
        try:
            with np.errstate(over="ignore"):
                found = np.asarray(vectors, np.float32)
        except (TypeError, ValueError):
            found = np.empty(0, np.float32)
        if found.ndim != 2 or not found.size:
            raise EncoderFailed(f"{self._server} gave vectors that are not all of one length, or not of numbers")
        if not np.isfinite(found).all():
            raise EncoderFailed(f"{self._server} gave a vector with numbers that are not finite")
        sorted_: npt.NDArray[np.float32] = np.empty_like(found)
        sorted_[order] = found
        return sorted_

    # -- requests ------------------------------------------------------------------------------------------

    def _post(self, body: bytes) -> bytes:
        """The reply to it, tried until it is there or is not worth another try."""
        for again in range(_TRIES):
            try:
                return self._once(body)
            except _Passing as passing:
                wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2**again) * random.uniform(0.5, 1)
                if passing.wait is not None:
                    wait = max(passing.wait, wait)
                if again == _TRIES - 1 or wait > _LONGEST_ASKED:
                    asked = f", and asks to wait {wait:.0f} s" if wait > _LONGEST_ASKED else ""
                    raise passing.lasting(f"{self._server}: {passing}{asked} (tries: {again + 1})") from None
                _log.warning("%s: %s; try %d of %d in %.1f s", self._server, passing, again + 2, _TRIES, wait)
                _sleep(wait)
        raise AssertionError

    def _once(self, body: bytes) -> bytes:
        """One try. Raises _Passing if another may go better."""
        request = urllib.request.Request(
            self.base_url + "/embeddings", body, {"Content-Type": "application/json", "User-Agent": "vecdb"}, method="POST"
        )
        key = self._key()
        if key is not None:
            # Unredirected headers are not handed on to any other host, whatever an opener may do.
            request.add_unredirected_header("Authorization", f"Bearer {key}")
        until = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as reply:
                return self._read(reply, until)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, key, until) from None
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise EncoderFailed(f"{self._server}: its certificate is not valid: {reason.verify_message}") from None
            if isinstance(reason, TimeoutError):
                raise _Passing(f"no reply within {self.timeout:g} s", EncoderFailed) from None
            raise _Passing(f"no connection: {_told(reason, key)}", EncoderFailed) from None

    def _read(self, reply: Any, until: float) -> bytes:
        """The body. A server that sends a byte now and then does not keep us longer than one that sends none."""
        parts, size = [], 0
        while part := reply.read1(1 << 20):
            parts.append(part)
            size += len(part)
            if size > _LARGEST_REPLY:
                raise EncoderFailed(f"{self._server} gave a reply of more than {_LARGEST_REPLY >> 20} MiB")
            if time.monotonic() > until:
                raise TimeoutError
        if reply.length:  # read1, unlike read, takes a body that was cut for the end of it
            raise http.client.IncompleteRead(b"", reply.length)
        return b"".join(parts)

    def _refusal(self, error: urllib.error.HTTPError, key: str | None, until: float) -> Exception:
        if error.code in (401, 403):  # the reply is not repeated: it may quote the key
            said = "refuses the key of" if key is not None else "wants a key: set"
            return Unauthenticated(f"{self._server} {said} {KEY} (status {error.code})")
        code, said = "", error.reason
        try:
            told = orjson.loads(self._read(error, until))["error"]
            code, said = (told.get("code") or "", told.get("message") or said) if isinstance(told, dict) else ("", told)
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, VecdbError):
            pass  # the status says enough
        said = f"status {error.code}, {_told(said, key)}"
        if code == "insufficient_quota":  # a 429 that will not pass
            return Overloaded(f"{self._server}: {said}")
        if error.code in _PASSING or error.code >= 500:
            lasting = Overloaded if error.code in (429, 503) else EncoderFailed
            return _Passing(said, lasting, _retry_after(error.headers.get("Retry-After")))
        if error.code == 404:
            return NotFound(f"{self._server}: {said}")
        if error.code >= 400:
            return InvalidInput(f"{self._server}: {said}")
        return EncoderFailed(f"{self._server}: {said}; say the base URL that it redirects to, if you trust it")

    def _key(self) -> str | None:
        key = os.environ.get(KEY, "").strip()
        if not key:
            if self.base_url == _DEFAULT_URL:
                raise Unauthenticated(f"{self._server} wants a key: set {KEY}")
            return None
        if not key.isascii() or not key.isprintable() or " " in key:  # the library would quote it in its error
            raise Unauthenticated(f"{KEY} holds characters that no key has")
        return key


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an HTTPError, like any other status that is no success."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Passing(Exception):
    """A try that failed and may be repeated. lasting: what to raise when no try is left. wait: what the server asks for."""

    def __init__(self, message: str, lasting: type[VecdbError], wait: float | None = None) -> None:
        super().__init__(message)
        self.lasting, self.wait = lasting, wait


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for at, text in enumerate(texts):
        length = len(text.encode("utf-8", "surrogatepass"))
        if at > start and (at - start == _MOST_TEXTS or size + length > _MOST_BYTES):
            yield texts[start:at]
            start, size = at, 0
        size += length
    if start < len(texts):
        yield texts[start:]


def _retry_after(said: str | None) -> float | None:
    """Seconds, from either form of the header (RFC 9110, section 10.2.3)."""
    if said is None:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None


def _told(error: object, key: str | None) -> str:
    """What a server or a library said, in one line and without the key: a part of it would be left if it were cut first."""
    return one_line(str(error).replace(key, "[key]") if key else error)


def _checked_url(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urllib.parse.urlsplit(""), None
    # What is refused is not shown: it may hold a password.
    if parts.scheme not in ("http", "https") or not host or any(not "!" <= each <= "~" for each in url.strip()):
        raise InvalidInput(f"a base URL (argument or {BASE_URL}) is like {_DEFAULT_URL}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidInput(f"a base URL has no user, password, query or fragment; a key goes into {KEY}")
    return url.strip().rstrip("/")
