"""Writes that reach a worker which only reads: sent on to the one process that writes, as they are.

Requests and replies stay bytes. The caller's key, deadline and request id go along, and statuses come back whole, so it
makes no difference to a client which worker it is connected to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import grpc

from ..errors import Cancelled, VecdbError
from ..wire import failures, messages
from .gate import Call
from .services import handler_of

_PASSED = {"authorization", failures.REQUEST_ID, "traceparent", "tracestate"}
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_START = 15.0  # seconds for a writer that is being started


class Writer:
    """The connection to the process that writes. Safe in any thread."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [*_UNLIMITED, ("grpc.initial_reconnect_backoff_ms", 100)])

    def close(self) -> None:
        self._channel.close()

    def handler(self, method: messages.Method) -> Any:
        """A handler of gRPC for one method."""
        make = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }[method.client_streams, method.server_streams]
        remote = make(method.path)

        def begin(data: Any, call: Call) -> Any:
            metadata = [(key, value) for key, value in call.metadata.items() if key in _PASSED and key != failures.REQUEST_ID]
            metadata.append((failures.REQUEST_ID, call.request_id))
            left = None if call.deadline is None else max(0.001, call.deadline - time.monotonic())
            begun = remote.future if not method.server_streams else remote
            under_way = begun(data, metadata=metadata, timeout=left, wait_for_ready=left is None or left > _START)
            call.context.add_callback(under_way.cancel)
            return under_way

        def one(data: Any, call: Call) -> bytes:
            sent = _Sent(data) if method.client_streams else data
            under_way = begin(sent, call)
            try:
                reply: bytes = under_way.result()
            except grpc.RpcError:
                raise getattr(sent, "error", None) or _error_of(under_way) from None
            except grpc.FutureCancelledError:
                raise Cancelled("the caller has gone") from None
            return reply

        def several(data: Any, call: Call) -> Iterator[bytes]:
            under_way = begin(data, call)
            try:
                yield from under_way
            except grpc.RpcError:
                raise _error_of(under_way) from None

        return handler_of(method, several if method.server_streams else one)


class _Sent:
    """Requests on their way. gRPC does not say why there came no more of them; this keeps it."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self._requests = requests
        self.error: VecdbError | None = None

    def __iter__(self) -> _Sent:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._requests)
        except VecdbError as error:
            self.error = error
            raise


def _error_of(under_way: Any) -> Exception:
    return failures.from_status(under_way.code(), under_way.details(), under_way.trailing_metadata())
