"""Calls to a server: one connection, retries with backoff where a retry is safe, and errors of `vecdb.errors`.

A call that failed on its way is made again when it only reads, or carries a token by which the server knows it again: a
write whose reply was lost is not applied twice. Both channels have the same coroutines; those of `Blocking` never wait for
anything but the call itself, so that `run` can drive them to their end without an event loop. Safe in any thread
(`Blocking`), or in the tasks of one event loop (`Waiting`).
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc

from ..errors import (
    Cancelled,
    Closed,
    CursorExpired,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Overloaded,
    Unavailable,
    VecdbError,
)
from ..wire import failures, messages

T = TypeVar("T")
_FIRST, _LONGEST = 0.05, 2.0  # seconds between tries
PORT = 7700


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that waits for nothing returns."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    coroutine.close()
    raise AssertionError("a blocking call cannot wait")


@dataclass(frozen=True)
class Address:
    """Where a server is, and how it is spoken to. target: as gRPC says it."""

    target: str
    secure: bool
    api_key: str | None
    ca: bytes | None
    cert: bytes | None
    key: bytes | None
    timeout: float | None
    retries: int

    @staticmethod
    def of(
        url: str,
        api_key: str | None,
        ca: str | None,
        cert: str | None,
        key: str | None,
        timeout: float | None,
        retries: int,
    ) -> Address:
        """Raises InvalidInput, NotFound."""
        told = urlsplit(url)
        try:
            port = told.port or PORT
        except ValueError:
            port = 0
        if told.scheme not in ("grpc", "grpcs") or not told.hostname or not port or told.path.strip("/") or told.query:
            raise InvalidInput(f"{url!r} is no server: say grpc://host:port, or grpcs://host:port for TLS")
        secure = told.scheme == "grpcs"
        if not secure and (ca or cert or key):
            raise InvalidInput("certificates go with grpcs://")
        if (cert is None) != (key is None):
            raise InvalidInput("a client's certificate goes with its key: cert= and key=")
        if timeout is not None and not timeout > 0:
            raise InvalidInput(f"timeout must be a number of seconds above 0, not {timeout!r}")
        if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise InvalidInput("the API key is no such key: it is a text that begins with vk_")
        host = f"[{told.hostname}]" if ":" in told.hostname else told.hostname
        return Address(f"{host}:{port}", secure, api_key, _file(ca), _file(cert), _file(key), timeout, retries)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    def options(self) -> list[tuple[str, Any]]:
        return [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.enable_retries", 0),  # they are made here, where it is known what is safe
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, so that many clients use many workers
        ]

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


def _file(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from None


class Channel:
    """What both channels share: when to try again."""

    def __init__(self, address: Address, grpc_or_aio: Any) -> None:
        self.address = address
        self.closed = False
        made = grpc_or_aio.secure_channel if address.secure else grpc_or_aio.insecure_channel
        secrets = (address.credentials(),) if address.secure else ()
        self._channel = made(address.target, *secrets, options=address.options())
        self._unary = {m.name: self._channel.unary_unary(m.path) for m in messages.METHODS.values()}
        self._replies = {m.name: self._channel.unary_stream(m.path) for m in messages.METHODS.values()}
        self._requests = {m.name: self._channel.stream_unary(m.path) for m in messages.METHODS.values()}

    async def call(self, name: str, request: Any, *, timeout: float | None = None, again: bool | None = None) -> Any:
        """A call with one request and one reply. name: "Points/Get". timeout: seconds, over all tries.

        again: whether a call that failed on its way may be made again; default: when it changes nothing, or has a token.
        """
        method = messages.METHODS[name]
        if again is None:
            again = not method.writes or bool(getattr(request, "token", b""))
        data = request.SerializeToString()
        return method.reply.FromString(await self._tried(lambda rest: self._once(method, data, rest), timeout, again))

    async def send(self, name: str, requests: Callable[[], Iterator[Any]]) -> Any:
        """A call with a stream of requests, each of which has a token, and one reply. requests: begins them anew."""
        method = messages.METHODS[name]

        def begun(rest: float | None) -> Awaitable[bytes]:
            return self._all(method, (each.SerializeToString() for each in requests()), rest)

        return method.reply.FromString(await self._tried(begun, None, again=True))

    async def _tried(self, call: Callable[[float | None], Awaitable[bytes]], timeout: float | None, again: bool) -> bytes:
        """The reply to a call that is told how many seconds are left for it."""
        timeout = self.address.timeout if timeout is None else timeout
        until = None if timeout is None else time.monotonic() + timeout
        pause = _FIRST
        for left in range(self.address.retries, -1, -1):
            self.check_open()
            rest = None if until is None else until - time.monotonic()
            if timeout is not None and rest is not None and rest <= 0:  # which gRPC would round up, and might answer in time
                raise _late(timeout)
            try:
                return await call(None if rest is None else max(0.001, rest))
            except grpc.RpcError as failed:
                error = error_of(failed)
            # What was sent away was not begun; what is unavailable may have been.
            worth = isinstance(error, Overloaded) and error.retry_after is not None
            worth = worth or (isinstance(error, Unavailable) and again)
            if isinstance(error, DeadlineExceeded) and timeout is not None:
                error = _late(timeout)
            if not worth or not left:
                raise error from None
            wait = max(getattr(error, "retry_after", None) or 0.0, pause * random.uniform(0.5, 1))
            if until is not None and time.monotonic() + wait >= until:
                raise error from None
            await self._sleep(wait)
            pause = min(2 * pause, _LONGEST)
        raise AssertionError("there is a last try")

    def check_open(self) -> None:
        if self.closed:
            raise Closed(f"the connection to {self.address.target} was closed; connect again")

    @abstractmethod
    async def _once(self, method: messages.Method, data: bytes, timeout: float | None) -> bytes: ...

    @abstractmethod
    async def _all(self, method: messages.Method, data: Iterator[bytes], timeout: float | None) -> bytes: ...

    @abstractmethod
    async def _sleep(self, seconds: float) -> None: ...

    @abstractmethod
    def stream(self, name: str, request: Any) -> AsyncIterator[Any]:
        """The replies to one request, which is sent when the first is asked for. Raises as they come."""

    @abstractmethod
    async def close(self) -> None: ...


class Blocking(Channel):
    """By gRPC's own threads."""

    def __init__(self, address: Address) -> None:
        super().__init__(address, grpc)

    async def _all(self, method: messages.Method, data: Iterator[bytes], timeout: float | None) -> bytes:
        found: bytes = self._requests[method.name](data, timeout=timeout, metadata=self.address.metadata)
        return found

    async def _once(self, method: messages.Method, data: bytes, timeout: float | None) -> bytes:
        found: bytes = self._unary[method.name](data, timeout=timeout, metadata=self.address.metadata)
        return found

    async def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    async def stream(self, name: str, request: Any) -> AsyncIterator[Any]:
        self.check_open()
        method = messages.METHODS[name]
        replies = self._replies[name](request.SerializeToString(), metadata=self.address.metadata)
        try:
            for data in replies:
                yield method.reply.FromString(data)
        except grpc.RpcError as failed:
            raise _of_stream(error_of(failed)) from None
        finally:
            replies.cancel()

    async def close(self) -> None:
        self.closed = True
        self._channel.close()


class Waiting(Channel):
    """By an event loop."""

    def __init__(self, address: Address) -> None:
        from grpc import aio

        super().__init__(address, aio)

    async def _all(self, method: messages.Method, data: Iterator[bytes], timeout: float | None) -> bytes:
        found: bytes = await self._requests[method.name](data, timeout=timeout, metadata=self.address.metadata)
        return found

    async def _once(self, method: messages.Method, data: bytes, timeout: float | None) -> bytes:
        found: bytes = await self._unary[method.name](data, timeout=timeout, metadata=self.address.metadata)
        return found

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def stream(self, name: str, request: Any) -> AsyncIterator[Any]:
        self.check_open()
        method = messages.METHODS[name]
        replies = self._replies[name](request.SerializeToString(), metadata=self.address.metadata)
        try:
            async for data in replies:
                yield method.reply.FromString(data)
        except grpc.RpcError as failed:
            raise _of_stream(error_of(failed)) from None
        finally:
            replies.cancel()

    async def close(self) -> None:
        self.closed = True
        await self._channel.close()


def error_of(failed: Any) -> VecdbError:
    """What a failed call of gRPC means."""
    error = failures.from_status(failed.code(), failed.details(), failed.trailing_metadata())
    if isinstance(error, Overloaded) and "larger than max" in str(error):
        return InvalidInput(
            f"{error}: the server takes so much in a message (its setting max_message_mib); send less at a time"
        )
    if isinstance(error, Overloaded) and "Concurrent RPC limit" in str(error):  # gRPC's own, before the server had a say
        error.retry_after = _FIRST
    if isinstance(error, DeadlineExceeded) and failed.code().name == str(error):
        return DeadlineExceeded("no answer came within the timeout")
    return error


def _late(timeout: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the call took longer than {timeout:g} s; give it more time, or ask for less")


def _of_stream(error: VecdbError) -> VecdbError:
    """A server that ends a stream in which nothing moves cannot say why; nobody else cancels here."""
    if isinstance(error, Cancelled):
        return CursorExpired("the server ended the stream, which was left unread for too long; begin it again")
    return error
