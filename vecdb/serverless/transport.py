"""Ranges of files that lie elsewhere: on a web server, in a bucket, in a folder.

`folder_of(where)` gives a Folder for `http(s)://` (by the standard library; connections are kept open), for a path or `file://`,
and, by fsspec, for whatever else has a URL (`s3://`, `gs://`, `memory://`). A read is answered by just the bytes that were
asked for, or by an error that names file, part and remedy; that they are the right ones, the reader's checksums tell.

What goes wrong on the way is tried again, up to ATTEMPTS times with growing pauses: broken connections, timeouts, short
answers, 408, 429 and 5xx. A server that does not know ranges sends the whole file, once: it is kept for as long as the folder
is open, beyond 64 MiB in a temporary file. The first answer's ETag goes along as If-Match; where the file has another by then,
it is read without, since its bytes may be the same. No query of a URL, in which tokens may be, is in any error.

Safe in any thread.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import queue
import random
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from vecdb_index.contract import Control
from vecdb_storage.files import Files
from vecdb_storage.places import Place, place_of

from .. import __version__
from ..errors import (
    Corruption,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    StorageError,
    Unauthenticated,
    Unavailable,
    VecdbError,
)

ATTEMPTS = 5
PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds, before the second attempt, and at most
TIMEOUT = 30.0  # seconds, of a connection and of each read from it
_IN_MEMORY = 64 << 20
_REDIRECTS = 5
_AT_ONCE = 64 << 10  # bytes that are read of a body together
_KEPT = 16  # connections


@dataclass
class Tally:
    """What was read. bytes: over the network. requests: also those that failed. hits, hit_bytes: of the cache."""

    bytes: int = 0
    requests: int = 0
    retries: int = 0
    hits: int = 0
    hit_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, bytes: int = 0, requests: int = 0, retries: int = 0, hits: int = 0, hit_bytes: int = 0) -> None:
        with self._lock:
            self.bytes += bytes
            self.requests += requests
            self.retries += retries
            self.hits += hits
            self.hit_bytes += hit_bytes


class Folder(Protocol):
    """url: without what may be secret. is_local: so near that nothing need be kept."""

    url: str
    is_local: bool

    def read(self, name: str, start: int, stop: int, length: int, part: str, tally: Tally, control: Control | None) -> bytes:
        """Bytes start..stop of a file of `length` bytes. part: of the file, for errors.

        Raises NotFound, Corruption (another length), Unavailable, Overloaded, Unauthenticated, PermissionDenied, StorageError,
        and what `control` raises.
        """

    def whole(self, name: str, most: int, tally: Tally) -> bytes:
        """A small file, of at most `most` bytes. Raises likewise."""

    def close(self) -> None: ...


class _Again(Exception):
    """An attempt failed, and another may not. error: what is raised when none is left. after: seconds, if the server said."""

    def __init__(self, error: VecdbError, after: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.after = error, after


def persist(attempt: Callable[[], bytes], tally: Tally, control: Control | None = None) -> bytes:
    """The answer of the first attempt that succeeds."""
    for number in range(ATTEMPTS):
        if control is not None:
            control.poll()
        try:
            return attempt()
        except _Again as failed:
            if control is not None:
                control.poll()
            if number == ATTEMPTS - 1:
                raise failed.error from failed.__cause__
            pause = failed.after if failed.after is not None else PAUSE * 2**number * (0.5 + random.random())
        pause = min(LONGEST_PAUSE, pause)
        if control is not None and control.deadline is not None:
            pause = min(pause, max(0.0, control.deadline - time.monotonic()))
        tally.add(retries=1)
        time.sleep(pause)
    raise AssertionError


def folder_of(where: str, options: Mapping[str, Any] | None = None) -> Folder:
    """A folder of published files. options: for fsspec, or `headers` and `timeout` for http(s). Raises InvalidInput,
    Unsupported.
    """
    if where.startswith(("http://", "https://")):
        strange = set(options or {}) - {"headers", "timeout"}
        if strange:
            raise InvalidInput(f"options for http(s) are headers and timeout, not {', '.join(sorted(strange))}")
        return HttpFolder(where, **(options or {}))
    if where.startswith("file://"):
        where = unquote(urlsplit(where).path)
    return PlaceFolder(place_of(Files(), where, options), is_local="://" not in where)


class PlaceFolder:
    """A directory, or what fsspec reads."""

    def __init__(self, place: Place, is_local: bool) -> None:
        self.url, self._place, self.is_local = place.location, place, is_local

    def read(self, name: str, start: int, stop: int, length: int, part: str, tally: Tally, control: Control | None) -> bytes:
        where = f"{self.url}/{name}"

        def attempt() -> bytes:
            tally.add(requests=1)
            try:
                found = self._place.read_range(name, start, stop)
                tally.add(bytes=len(found))
                if len(found) == stop - start:
                    return found
                size = self._place.size(name)
            except NotFound as error:
                raise _gone(where, part) from error
            except StorageError as error:
                raise _Again(StorageError(f"{where}, {part}: {error}", file=where)) from error
            if size != length:
                raise _cut(where, part, size, length)
            raise _Again(_short(where, part, len(found), stop - start))

        return persist(attempt, tally, control)

    def whole(self, name: str, most: int, tally: Tally) -> bytes:
        def attempt() -> bytes:
            tally.add(requests=1)
            try:
                found = self._place.read_range(name, 0, most)
            except StorageError as error:
                raise _Again(error) from error
            tally.add(bytes=len(found))
            return found

        return persist(attempt, tally)

    def close(self) -> None: ...


class _Whole:
    """A file that came whole, since the server does not know ranges."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)

    def close(self) -> None:
        self._file.close()


class HttpFolder:
    """A folder on a web server."""

    is_local = False

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = TIMEOUT) -> None:
        """headers: that go with each request, such as Authorization. timeout: seconds. Raises InvalidInput."""
        parts = urlsplit(url)
        if not parts.hostname:
            raise InvalidInput(f"{url.partition('?')[0]}: there is no host in this URL")
        self._scheme, self._netloc = parts.scheme, parts.netloc.rpartition("@")[2]
        self._path, self._query = parts.path.rstrip("/"), parts.query
        self.url = urlunsplit((parts.scheme, self._netloc, self._path, "", ""))
        self._headers = {"Accept-Encoding": "identity", "User-Agent": f"vecdb/{__version__}", **(headers or {})}
        self._headers |= _authorization("Authorization", parts)
        self._proxies = getproxies()
        self._timeout = timeout
        self._free: queue.LifoQueue[tuple[str, http.client.HTTPConnection]] = queue.LifoQueue(_KEPT)
        self._lock = threading.Lock()
        self._etags: dict[str, str] = {}
        self._unsteady: set[str] = set()  # files that had several; of them, checksums alone tell
        self._wholes: dict[str, _Whole] = {}
        self._loading = threading.Lock()
        self._context: ssl.SSLContext | None = None

    def read(self, name: str, start: int, stop: int, length: int, part: str, tally: Tally, control: Control | None) -> bytes:
        kept = self._wholes.get(name)
        if kept is not None:
            return kept.read(start, stop)
        where = f"{self.url}/{name}"

        def attempt() -> bytes:
            kept = self._wholes.get(name)
            if kept is not None:
                return kept.read(start, stop)
            asked = {"Range": f"bytes={start}-{stop - 1}"}
            etag = self._etags.get(name)
            if etag is not None:
                asked["If-Match"] = etag
            within = self._timeout
            if control is not None and control.deadline is not None:
                within = min(within, max(0.01, control.deadline - time.monotonic()))
            return self._take(name, start, stop, length, part, asked, within, tally)

        try:
            return persist(attempt, tally, control)
        except VecdbError as error:
            error.add_note(f"while reading {part} of {where}")
            raise

    def _take(
        self, name: str, start: int, stop: int, length: int, part: str, asked: Mapping[str, str], within: float, tally: Tally
    ) -> bytes:
        """One attempt at a range. within: seconds that the server may take for each answer."""
        where = f"{self.url}/{name}"
        tally.add(requests=1)
        with self._sent(name, asked, where, part, within) as (answer, done):
            status = answer.status
            if status == 412 and "If-Match" in asked:
                self._unsteady.add(name)
                self._etags.pop(name, None)
                raise _Again(_replaced(where, part), after=0.0)
            if status == 416:
                raise _cut(where, part, _total(answer), length)
            if status == 200:
                return self._take_whole(name, start, stop, length, part, answer, done, tally)
            if status != 206:
                raise _refused(status, answer, where, part)
            if answer.headers.get("Content-Encoding", "identity") != "identity":
                raise StorageError(f"{where}, {part}: the server compresses what it sends; turn that off for it", file=where)
            said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
            if said is None or int(said[1]) != start or int(said[2]) > stop - 1:
                raise _Again(StorageError(f"{where}, {part}: the server sent another range than was asked for", file=where))
            if said[3] != "*" and int(said[3]) != length:
                raise _cut(where, part, int(said[3]), length)
            body = _body(answer, stop - start, where, part, tally)
            if len(body) != stop - start:
                raise _Again(_short(where, part, len(body), stop - start))
            done()
            etag = answer.headers.get("ETag")
            if etag is not None and not etag.startswith("W/") and name not in self._unsteady:
                self._etags[name] = etag
            return body

    def _take_whole(
        self, name: str, start: int, stop: int, length: int, part: str, answer: http.client.HTTPResponse,
        done: Callable[[], None], tally: Tally,
    ) -> bytes:  # fmt: skip
        """The server sends everything: it is kept, so that it need do so once."""
        where = f"{self.url}/{name}"
        with self._loading:
            kept = self._wholes.get(name)
            if kept is not None:  # another thread was sooner
                return kept.read(start, stop)
            said = answer.headers.get("Content-Length")
            if said is not None and said.isdigit() and int(said) != length:
                raise _cut(where, part, int(said), length)
            file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 (it is kept open)
            size = 0
            try:
                while size <= length and (piece := _some(answer, _AT_ONCE, where, part)):
                    size += len(piece)
                    tally.add(bytes=len(piece))
                    file.write(piece)
            except OSError as error:
                file.close()
                raise StorageError(f"{where}: the server knows no ranges, and its whole cannot be kept: {error}") from error
            except BaseException:
                file.close()
                raise
            if size != length:
                file.close()
                raise _Again(_short(where, part, size, length)) if size < length else _cut(where, part, size, length)
            done()
            kept = self._wholes[name] = _Whole(file)
            return kept.read(start, stop)

    def whole(self, name: str, most: int, tally: Tally) -> bytes:
        where = f"{self.url}/{name}"

        def attempt() -> bytes:
            tally.add(requests=1)
            with self._sent(name, {"Cache-Control": "no-cache"}, where, name, self._timeout) as (answer, done):
                if answer.status != 200:
                    raise _refused(answer.status, answer, where, name)
                body = _body(answer, most + 1, where, name, tally)
                said = answer.headers.get("Content-Length")
                if said is not None and said.isdigit() and int(said) > len(body):
                    raise _Again(_short(where, name, len(body), int(said)))
                done()
                return body

        return persist(attempt, tally)

    @contextlib.contextmanager
    def _sent(self, name: str, asked: Mapping[str, str], where: str, part: str, within: float) -> Any:
        """(the answer to a request, what is to be called when all of it was read)."""
        url = urlunsplit((self._scheme, self._netloc, f"{self._path}/{quote(name)}", self._query, ""))
        headers = {**self._headers, **asked}
        try:
            for _ in range(_REDIRECTS):
                parts = urlsplit(url)
                host = f"{parts.scheme}://{parts.netloc}"
                connection, answer = self._answered(
                    host, urlunsplit(("", "", parts.path or "/", parts.query, "")), headers, within
                )
                if answer.status not in (301, 302, 303, 307, 308) or not (to := answer.headers.get("Location")):
                    break
                connection.close()
                url = urljoin(url, to)
                if urlsplit(url).scheme not in ("http", "https") or (parts.scheme, urlsplit(url).scheme) == ("https", "http"):
                    raise StorageError(f"{where}, {part}: the server sends to where it is not safe to follow", file=where)
                if urlsplit(url).netloc != parts.netloc:  # what is secret is for one host
                    headers.pop("Authorization", None)
            else:
                raise StorageError(f"{where}, {part}: the server sends from one place to the next without an end", file=where)
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(f"{where}, {part}: the server's certificate is not to be trusted: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Again(
                Unavailable(f"{where}, {part}: the server cannot be reached: {_said(error)}; check URL and network")
            ) from error
        kept = False

        def done() -> None:
            nonlocal kept
            kept = answer.isclosed() and not answer.will_close

        try:
            yield answer, done
        finally:
            if kept:
                try:
                    self._free.put_nowait((host, connection))
                except queue.Full:
                    connection.close()
            else:
                connection.close()

    def _answered(
        self, host: str, target: str, headers: Mapping[str, str], within: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """A connection that was kept may have been closed by the server meanwhile: then it is asked on a new one."""
        while True:
            try:
                free, connection = self._free.get_nowait()
            except queue.Empty:
                break
            if free != host:
                connection.close()
                continue
            try:
                if connection.sock is not None:
                    connection.sock.settimeout(within)
                return connection, self._asked(connection, host, target, headers)
            except (http.client.RemoteDisconnected, ConnectionError, BrokenPipeError):
                connection.close()
            except BaseException:
                connection.close()
                raise
        connection = self._connected(host, within)
        try:
            return connection, self._asked(connection, host, target, headers)
        except BaseException:
            connection.close()
            raise

    def _asked(
        self, connection: http.client.HTTPConnection, host: str, target: str, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:  # fmt: skip
        """The answer to one request. To a proxy of http, the whole URL is said."""
        proxy = self._proxy_of(host) if host.startswith("http://") else None
        said = dict(headers)
        if proxy is not None:
            target, said = host + target, {**said, **_authorization("Proxy-Authorization", proxy)}
        connection.request("GET", target, headers=said)
        return connection.getresponse()

    def _connected(self, host: str, within: float) -> http.client.HTTPConnection:
        """A connection to a host, or to the environment's proxy for it (http_proxy, https_proxy, no_proxy)."""
        scheme, _, netloc = host.partition("://")
        proxy = self._proxy_of(host)
        to = netloc if proxy is None else proxy.netloc.rpartition("@")[2]
        if scheme == "http":
            return http.client.HTTPConnection(to, timeout=within)
        with self._lock:
            if self._context is None:
                self._context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(to, timeout=within, context=self._context)
        if proxy is not None:
            connection.set_tunnel(netloc, headers=_authorization("Proxy-Authorization", proxy))
        return connection

    def _proxy_of(self, host: str) -> SplitResult | None:
        parts = urlsplit(host)
        proxy = self._proxies.get(parts.scheme)
        return (
            None
            if not proxy or proxy_bypass(parts.hostname or "")
            else urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        )

    def close(self) -> None:
        while True:
            try:
                self._free.get_nowait()[1].close()
            except queue.Empty:
                break
        for kept in self._wholes.values():
            kept.close()


def _authorization(name: str, url: SplitResult) -> dict[str, str]:
    """The header that says user and password, where a URL has them."""
    if url.username is None:
        return {}
    said = f"{unquote(url.username)}:{unquote(url.password or '')}".encode()
    return {name: f"Basic {base64.b64encode(said).decode()}"}


def _some(answer: http.client.HTTPResponse, most: int, where: str, part: str) -> bytes:
    """More of a body. Raises _Again where the connection breaks."""
    try:
        return answer.read(most)
    except http.client.IncompleteRead as error:
        return error.partial
    except (OSError, http.client.HTTPException) as error:
        raise _Again(Unavailable(f"{where}, {part}: the connection broke: {_said(error)}")) from error


def _body(answer: http.client.HTTPResponse, most: int, where: str, part: str, tally: Tally) -> bytes:
    """A body, of which no more than `most` bytes are read."""
    parts, size = [], 0
    while size < most and (piece := _some(answer, most - size, where, part)):
        parts.append(piece)
        size += len(piece)
        tally.add(bytes=len(piece))
    if size == most and not answer.isclosed():
        _some(answer, 1, where, part)  # so that the answer is seen to have ended, and the connection can be kept
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _total(answer: http.client.HTTPResponse) -> int | None:
    said = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", "").strip())
    return None if said is None else int(said[1])


def _said(error: BaseException) -> str:
    return str(error) or ("it took too long" if isinstance(error, TimeoutError | socket.timeout) else type(error).__name__)


def _refused(status: int, answer: http.client.HTTPResponse, where: str, part: str) -> Exception:
    """What a status says that is no answer."""
    said = f"{where}, {part}: the server answered {status} {answer.reason or ''}".rstrip()
    if status in (404, 410):
        return _gone(where, part)
    if status == 401:
        return Unauthenticated(f'{said}; give its key, as in options={{"headers": {{"Authorization": …}}}}')
    if status == 403:
        return PermissionDenied(f"{said}; buckets say so of files that are not there, too")
    after = answer.headers.get("Retry-After", "")
    wait = float(after) if re.fullmatch(r"\d{1,4}", after) else None
    if status == 429:
        return _Again(Overloaded(f"{said}, {ATTEMPTS} times; ask later", retry_after=wait), wait)
    if status == 408 or status >= 500:
        return _Again(Unavailable(f"{said}, {ATTEMPTS} times; ask later"), wait)
    return StorageError(said, file=where)


def _gone(where: str, part: str) -> NotFound:
    return NotFound(f"{where}, {part}: it is not there; upload the whole folder, and open it again if it was exported anew")


def _cut(where: str, part: str, size: int | None, length: int) -> Corruption:
    has = "less" if size is None else f"{size:,}"
    return Corruption(
        f"the file has {has} bytes and not the {length:,} of its manifest; it was cut short or replaced: upload it again",
        file=where, array=part,
    )  # fmt: skip


def _short(where: str, part: str, size: int, asked: int) -> StorageError:
    said = f"{where}, {part}: {size:,} of {asked:,} bytes came, {ATTEMPTS} times; check the server, and what is between"
    return StorageError(said, file=where)


def _replaced(where: str, part: str) -> StorageError:
    return StorageError(f"{where}, {part}: the file is being replaced while it is read; open it again", file=where)
