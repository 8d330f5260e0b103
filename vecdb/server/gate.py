"""What every request of every kind passes, before and after it is answered.

A `Gate` is the server's one interceptor. It counts who is inside and sends others away; finds out whose key it is and whether
its role, rate and sizes allow the call; gives the call its deadline, its cancel flag and a request id; and turns what is
raised into statuses. Then it counts, logs, and writes to the audit log. Reflection passes it like all else, and only the
standard health service needs no key, since those who probe have none; it says SERVING or not, and has places of its own, so
that nobody without a key can take those of others.

All methods are streams of requests to gRPC, also those with one request, which is the same on the wire: a key is looked at
before a message is waited for, so that who sends headers and nothing more holds no thread unless the key is good, and then
not for longer than `stream_idle`.

Replies and requests are bytes here: services take them apart (`Call.parse`), so that what is malformed is refused with the same
typed errors as everything else. A Gate is safe in any thread; a Call belongs to its request.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from vecdb_index import contract
from vecdb_index.contract import Control

from .. import errors
from ..errors import Cancelled, DeadlineExceeded, InvalidInput, Overloaded, PermissionDenied, Unsupported, VecdbError
from ..wire import failures, messages
from . import telemetry
from .config import MIB, Config
from .keys import ANYBODY, Buckets, Key, Keys

OPEN = {"grpc.health.v1.Health"}  # services that need no key
PROBES = 8  # places of those
_LONGEST_NAME = 128  # of a collection, in a log
_FOREVER = 1e8  # seconds: more is no deadline
_PAUSE = 0.05  # what is told to those who are sent away
_LONGEST_MESSAGE = 1500  # bytes, of a status: headers are bounded
_LARGEST_DETAILS = 3000
_NEVER = float("inf")

log = logging.getLogger("vecdb.server")
audit = logging.getLogger("vecdb.audit")


class Call:
    """One request: who asks, until when, and what it is called in the logs.

    Stands where gRPC's context does, and passes on what it is asked of it.
    """

    def __init__(self, method: str, context: grpc.ServicerContext, metadata: dict[str, Any]) -> None:
        self.method, self.context, self.metadata = method, context, metadata
        given = str(metadata.get(failures.REQUEST_ID, ""))
        fits = 0 < len(given) <= 64 and given.isascii() and given.isprintable()
        self.request_id = given if fits else f"{random.getrandbits(64):016x}"
        left = context.time_remaining()
        self.deadline = None if left is None or left > _FOREVER else time.monotonic() + left
        self.control = Control(self.deadline)
        self.key: Key = ANYBODY
        self.collection = ""  # for the logs
        self.waits = time.monotonic()  # since when, for a message to go in or out
        self.expired = False
        self.bytes = 0
        self.stages: list[tuple[str, float]] = []
        self.began = self._mark = time.perf_counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def parse(self, kind: Any, data: bytes) -> Any:
        """A message. Raises InvalidInput."""
        try:
            return kind.FromString(data)
        except DecodeError:
            raise InvalidInput(f"the request is no {kind.DESCRIPTOR.full_name}") from None

    def stage(self, name: str) -> None:
        """What was done since the last stage ended was this."""
        now = time.perf_counter()
        self.stages.append((name, now - self._mark))
        self._mark = now

    def check_whole(self) -> None:
        """The key may have the database as a whole, whatever collections there are."""
        if "*" not in self.key.collections:
            raise PermissionDenied(
                f"{self.method} is of the whole database, and the key {self.key.name!r} is for the collections "
                f"{', '.join(self.key.collections)}"
            )

    def check_collection(self, name: str) -> None:
        self.collection = name[:_LONGEST_NAME]
        self.key.check_collection(name)


class Gate(grpc.ServerInterceptor):  # type: ignore[misc]
    """See above."""

    def __init__(self, config: Config, keys: Keys, metrics: telemetry.Metrics, *, inner: bool = False) -> None:
        """inner: what comes by a socket of this machine was sent on by other workers, whose gates counted and noted it."""
        self._config, self._keys, self._metrics, self._inner = config, keys, metrics, inner
        self._buckets = Buckets()
        self._lock = threading.Lock()
        self._inside = {"requests": 0, "streams": 0, "probes": 0}
        self._most = {"requests": config.queue, "streams": config.streams, "probes": PROBES}
        self._bytes = 0
        self._calls: set[Call] = set()
        self._watched: set[Call] = set()  # probes
        self._handlers: dict[str, Any] = {}
        self._ended = threading.Event()
        threading.Thread(target=self._end_idle_calls, name="vecdb-idle", daemon=True).start()

    def close(self) -> None:
        self._ended.set()

    def end_probes(self) -> None:
        """Those who watch the health of a server that ends would keep it from ending."""
        with self._lock:
            watched = list(self._watched)
        for call in watched:
            call.context.cancel()

    @property
    def inside(self) -> int:
        return sum(self._inside.values())

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        found = self._handlers.get(details.method)
        if found is None:
            handler = continuation(details)
            if handler is None:
                return None
            found = self._handlers[details.method] = self._guarded(details.method, handler)
        return found

    def _guarded(self, path: str, handler: Any) -> Any:
        service = path.split("/")[1]
        method = messages.METHODS.get(path.removeprefix(f"/{messages.PACKAGE}."))
        name = method.name if method is not None else path[1:]
        role = method.role if method is not None else messages.READ
        writes = method is not None and method.writes
        if method is not None and not role:
            raise AssertionError(f"{path} declares no role")
        streams = handler.request_streaming or handler.response_streaming
        kind = "probes" if service in OPEN else "streams" if streams else "requests"
        serializers = handler.request_deserializer, handler.response_serializer
        behaviour = next(
            each for each in (handler.unary_unary, handler.unary_stream, handler.stream_unary, handler.stream_stream) if each
        )

        def enter(context: grpc.ServicerContext) -> Call:
            call = Call(name, context, dict(context.invocation_metadata()))
            try:
                self._admit(call, kind)
            except VecdbError as error:
                self._abort(call, error)
            try:
                if service not in OPEN:
                    call.key = self._keys.who(_text(call.metadata.get("authorization")))
                    call.key.check_role(role, name)
                    self._check_rate(call)
                if not context.add_callback(call.control.cancel):
                    raise Cancelled("the caller has gone")
            except Exception as error:
                self._leave(call, kind, writes, error)
                self._abort(call, error)
            return call

        def several(call: Call, requests: Any) -> Iterator[Any]:
            number = 0
            while True:
                call.waits = time.monotonic()
                try:
                    request = next(requests, None)
                except Exception:  # the stream was cut off
                    raise Cancelled("the caller has gone") from None
                call.waits = _NEVER
                if request is None:
                    return
                if number:
                    call.key = self._keys.who(_text(call.metadata.get("authorization")))
                    self._check_rate(call)
                number += 1
                self._check_size(call, request)
                yield request

        def one(call: Call, requests: Any) -> Any:
            request = next(several(call, requests), None)
            if request is None:
                raise InvalidInput("the call has no request")
            return request

        take = several if handler.request_streaming else one

        def to_one(request: Any, context: grpc.ServicerContext) -> Any:
            call = enter(context)
            failed: BaseException | None = None
            try:
                with telemetry.span(call):
                    return behaviour(take(call, request), call)
            except Exception as error:
                failed = _typed(error)
            finally:
                self._leave(call, kind, writes, failed)
            self._abort(call, failed)

        def to_several(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            call = enter(context)
            failed: BaseException | None = None
            try:
                with telemetry.span(call):
                    for reply in behaviour(take(call, request), call):
                        call.waits = time.monotonic()
                        yield reply
                        call.waits = _NEVER
            except GeneratorExit:
                failed = Cancelled("the caller has gone")
                raise
            except Exception as error:
                failed = _typed(error)
            finally:
                self._leave(call, kind, writes, failed)
            if failed is not None:
                self._abort(call, failed)

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(to_several, *serializers)
        return grpc.stream_unary_rpc_method_handler(to_one, *serializers)

    # -- on the way in -----------------------------------------------------------------------------------

    def _admit(self, call: Call, kind: str) -> None:
        most = self._most[kind]
        with self._lock:
            if self._inside[kind] >= most:
                self._metrics.shed.labels("queue" if kind == "requests" else kind).inc()
                raise Overloaded(f"{most} {kind} are under way already; come again in {_PAUSE:g} s", retry_after=_PAUSE)
            self._inside[kind] += 1
            (self._watched if kind == "probes" else self._calls).add(call)

    def _check_rate(self, call: Call) -> None:
        if self._is_sent_on(call):
            return
        wait = self._buckets.take(call.key)
        if wait:
            self._metrics.shed.labels("rate").inc()
            raise Overloaded(
                f"the key {call.key.name!r} may ask {call.key.rate:g} times a second; come again in {wait:.3g} s",
                retry_after=wait,
            )

    def _check_size(self, call: Call, request: Any) -> None:
        size = len(request) if isinstance(request, bytes) else request.ByteSize()
        if call.key.largest is not None and size > call.key.largest:
            raise InvalidInput(
                f"the message has {size:,} bytes, and the key {call.key.name!r} may send {call.key.largest:,}; "
                f"send less at a time, or have a key made with another --max-message-mib"
            )
        if size > self._config.largest_message:
            raise InvalidInput(
                f"the message has {size:,} bytes, and this server takes {self._config.max_message_mib} MiB "
                f"(max_message_mib, or serve --max-message-mib): send fewer points at a time"
            )
        with self._lock:
            if call not in self._calls and call not in self._watched:
                raise Cancelled("the call has ended")
            self._bytes += size - call.bytes
            call.bytes = size
            full = self._bytes > self._config.in_flight_mib * MIB and self._bytes > size
        if full:
            self._metrics.shed.labels("bytes").inc()
            raise Overloaded(
                f"messages of more than in_flight_mib = {self._config.in_flight_mib} MiB are under way already",
                retry_after=_PAUSE,
            )

    # -- on the way out ----------------------------------------------------------------------------------

    def _leave(self, call: Call, kind: str, writes: bool, failed: BaseException | None) -> None:
        with self._lock:
            self._inside[kind] -= 1
            self._bytes -= call.bytes
            self._calls.discard(call)
            self._watched.discard(call)
        if failed is not None and not isinstance(failed, VecdbError):
            log.error("%s failed", call.method, exc_info=failed, extra={"request_id": call.request_id})
        if failed is not None:  # its frames hold the snapshot of what failed, and are held by themselves
            failed.__traceback__ = failed.__context__ = failed.__cause__ = None
        code = "OK" if failed is None else _code(failed).name
        self._metrics.seen(call, code, time.perf_counter() - call.began)
        writes = writes or (call.method.startswith("Admin/") and call.method != "Admin/Hello")
        if writes and not self._is_sent_on(call):
            audit.info(call.method, extra=self._fields(call, code))
        if self._config.log_requests or time.perf_counter() - call.began > self._config.slow:
            log.info(call.method, extra=self._fields(call, code))

    def _is_sent_on(self, call: Call) -> bool:
        """By another worker."""
        return self._inner and call.context.peer().startswith("unix:")

    def _fields(self, call: Call, code: str) -> dict[str, Any]:
        return {
            "request_id": call.request_id,
            "key": call.key.name,
            "key_id": call.key.id,
            "peer": call.context.peer(),
            "collection": call.collection,
            "status": code,
            "milliseconds": round(1000 * (time.perf_counter() - call.began), 3),
        }

    def _abort(self, call: Call, failed: BaseException | None) -> None:
        """Ends the call with a status; gRPC raises to that end."""
        if isinstance(failed, VecdbError):
            error = failed
            if call.expired:
                error = errors.CursorExpired(f"nothing moved for {self._config.stream_idle:g} s; begin again")
        else:
            error = VecdbError(f"the server failed; it is in its log as {call.request_id}")
        told = failures.to_error(error, call.request_id)
        if len(told.attributes) > _LARGEST_DETAILS:
            told.attributes = b""
        told.message = _cut(told.message, lambda letter: len(letter.encode()))
        trailers = [(failures.KEY, told.SerializeToString()), (failures.REQUEST_ID, call.request_id)]
        if isinstance(error, Overloaded) and error.retry_after is not None:
            trailers.append((failures.PUSHBACK, str(max(1, round(1000 * error.retry_after)))))
        call.context.set_trailing_metadata(trailers)
        call.context.abort(_code(failed if failed is None or not call.expired else error), _cut(told.message, _escaped))

    def _end_idle_calls(self) -> None:
        """A call whose caller neither sends nor takes what is waited for holds a thread, and may hold a snapshot."""
        while not self._ended.wait(min(1.0, self._config.stream_idle / 4)):
            before = time.monotonic() - self._config.stream_idle
            with self._lock:
                idle = [call for call in self._calls if call.waits < before]
            for call in idle:
                call.expired = True
                call.control.cancel()
                call.context.cancel()


def _typed(error: Exception) -> Exception:
    """What stopped work between two blocks, as callers know it."""
    if isinstance(error, contract.Cancelled):
        return Cancelled("the caller no longer wanted it")
    if isinstance(error, contract.DeadlineReached):
        return DeadlineExceeded("the call took longer than its caller would wait")
    if isinstance(error, contract.Overloaded):
        return Overloaded(f"the server has no room: {error}")
    if isinstance(error, NotImplementedError):  # of the health service, which has more methods than are needed
        return Unsupported("this server has no such method")
    return error


def _code(error: BaseException | None) -> grpc.StatusCode:
    if isinstance(error, VecdbError):
        return failures.code_of(error)
    return grpc.StatusCode.INTERNAL


def _cut(text: str, size: Callable[[str], int]) -> str:
    """As much of it as has room in a header. size: bytes of a letter there."""
    room = _LONGEST_MESSAGE
    for at, letter in enumerate(text[:_LONGEST_MESSAGE]):
        room -= size(letter)
        if room < 0:
            return text[:at]
    return text[:_LONGEST_MESSAGE]


def _escaped(letter: str) -> int:
    return 1 if " " <= letter <= "~" and letter != "%" else 3 * len(letter.encode())


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
