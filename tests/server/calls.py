"""Calls beneath the client: bytes to any RPC of any kind, and the status that comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor

from vecdb.wire import failures, messages

PATIENCE = 30.0  # seconds: a bound, and no measure of anything


@dataclass
class Answer:
    """What came back. error: as the trailers say it whole."""

    code: grpc.StatusCode
    details: str
    trailers: dict[str, Any]
    replies: list[bytes] = field(default_factory=list)

    @property
    def error(self) -> Any:
        return failures.from_status(self.code, self.details, self.trailers.items())


def ask(
    channel: grpc.Channel,
    path: str,
    data: bytes | Iterable[bytes],
    *,
    key: str | None = None,
    timeout: float = PATIENCE,
    client_streams: bool = False,
    server_streams: bool = False,
    most: int = 1_000_000,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Answer:
    """Calls `path`, and reads up to `most` replies."""
    make = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }[client_streams, server_streams]
    if key is not None:
        metadata = (*metadata, ("authorization", f"Bearer {key}"))
    if client_streams and isinstance(data, bytes):
        data = [data]
    if client_streams:
        data = iter(data)
    replies: list[bytes] = []
    try:
        if server_streams:
            call = make(path)(data, timeout=timeout, metadata=metadata)
            for reply in call:
                replies.append(reply)
                if len(replies) >= most:
                    call.cancel()
                    return Answer(grpc.StatusCode.OK, "", {}, replies)
            return Answer(call.code(), call.details(), dict(call.trailing_metadata()), replies)
        reply, call = make(path).with_call(data, timeout=timeout, metadata=metadata)
        return Answer(grpc.StatusCode.OK, "", dict(call.trailing_metadata()), [reply])
    except grpc.RpcError as error:
        failed: Any = error
        return Answer(failed.code(), failed.details() or "", dict(failed.trailing_metadata() or ()), replies)


def say(channel: grpc.Channel, name: str, request: Any, **how: Any) -> Answer:
    """As `ask`, with messages. name: "Points/Get"."""
    method = messages.METHODS[name]
    data = request.SerializeToString()
    return ask(channel, method.path, data, client_streams=method.client_streams, server_streams=method.server_streams, **how)


def about(method: messages.Method, collection: str) -> Any:
    """A request of the method in which every place for a collection's name has this one."""
    return _named(method.request(), collection)


def _named(message: Any, collection: str) -> Any:
    for described in message.DESCRIPTOR.fields:
        if described.type == FieldDescriptor.TYPE_MESSAGE and not described.is_repeated:
            inner = described.message_type
            if inner.name == "Target":
                getattr(message, described.name).collection = collection
            elif any(each.message_type is not None and each.message_type.name == "Target" for each in inner.fields):
                _named(getattr(message, described.name), collection)
        elif described.name in ("name", "collection", "old", "new"):
            setattr(message, described.name, collection)
    return message


def names_a_collection(method: messages.Method) -> bool:
    return about(method, "x").ByteSize() > 0


def eventually(true: Callable[[], Any], what: str) -> None:
    """It becomes true, some time."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, f"it is still not so: {what}"
        time.sleep(0.01)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What work(0) … work(count - 1) return, side by side; an error is raised."""
    found: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            found[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def silent(*first: bytes) -> tuple[Iterator[bytes], threading.Event]:
    """Requests of which some come and then none, and no end; and the event that ends them."""
    ended = threading.Event()

    def requests() -> Iterator[bytes]:
        yield from first
        ended.wait(PATIENCE)

    return requests(), ended
