"""A server in this process, as tests see it: who is inside, connections to it, and calls of bytes without vecdb's client."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

import vecdb
from vecdb import Dense
from vecdb.server.keys import Keys
from vecdb.server.serve import Server
from vecdb.wire import failures, messages


def soon(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `true` says, as soon as it says something; at the end whatever it says."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return found


class Wire:
    """Calls of bytes by name, "Points/Get", over a connection of its own."""

    def __init__(self, target: str, key: str | None = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.insecure_channel(target, options)
        self.metadata = [] if key is None else [("authorization", f"Bearer {key}")]

    def begin(self, name: str, *requests: Any, timeout: float | None = 60, unended: threading.Event | None = None) -> Any:
        """A call that is under way. unended: a stream of requests does not end before this is set."""
        method = messages.METHODS[name]
        data = [each if isinstance(each, bytes) else each.SerializeToString() for each in requests]

        def stream() -> Iterator[bytes]:
            yield from data
            if unended is not None:
                unended.wait(60)

        asked: Any = stream() if method.client_streams else data[0]
        if method.server_streams:
            made = self.channel.stream_stream if method.client_streams else self.channel.unary_stream
            return made(method.path)(asked, timeout=timeout, metadata=self.metadata)
        made = self.channel.stream_unary if method.client_streams else self.channel.unary_unary
        return made(method.path).future(asked, timeout=timeout, metadata=self.metadata)

    def headers_only(self, name: str) -> Any:
        """A call that is begun, and whose request does not come."""
        return self.channel.stream_stream(messages.METHODS[name].path)(Never(), metadata=self.metadata)

    def ask(self, name: str, *requests: Any, timeout: float | None = 60) -> list[Any]:
        """The replies. Raises grpc.RpcError."""
        method = messages.METHODS[name]
        call = self.begin(name, *requests, timeout=timeout)
        replies = list(call) if method.server_streams else [call.result()]
        return [method.reply.FromString(each) for each in replies]

    def status(self, name: str, *requests: Any, timeout: float | None = 60) -> grpc.StatusCode:
        try:
            self.ask(name, *requests, timeout=timeout)
        except grpc.RpcError as failed:
            code: grpc.StatusCode = failed.code()  # type: ignore[attr-defined]
            return code
        return grpc.StatusCode.OK

    def error(self, name: str, *requests: Any) -> Any:
        """The error that the server told, whole."""
        with pytest.raises(grpc.RpcError) as raised:
            self.ask(name, *requests)
        failed: Any = raised.value
        return failures.from_status(failed.code(), failed.details(), failed.trailing_metadata())

    def close(self) -> None:
        self.channel.close()


class Never:
    """Requests that do not come, for some time."""

    def __init__(self) -> None:
        self._until = time.monotonic() + 20

    def __iter__(self) -> Never:
        return self

    def __next__(self) -> bytes:
        time.sleep(max(0.0, self._until - time.monotonic()))
        raise StopIteration


class Served:
    """A server in this process."""

    def __init__(self, server: Server) -> None:
        self.server, self.keys = server, Keys(server.config.keys_path)
        self._opened: list[Any] = []

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def inside(self) -> int:
        return self.server._gate.inside

    def empty(self) -> bool:
        """Whether soon nobody is inside any more."""
        return bool(soon(lambda: self.inside == 0))

    def snapshots_gone(self) -> bool:
        """Whether soon nobody holds an old state of the database, but for what waits for Python's collector."""

        def gone() -> bool:
            gc.collect()
            return self.server.db.info().oldest_snapshot_seconds == 0

        return bool(soon(gone))

    def wire(self, key: str | None = None) -> Wire:
        made = Wire(self.target, key)
        self._opened.append(made)
        return made

    def connect(self, key: str | None = None, **how: Any) -> Any:
        self._opened.append(vecdb.connect(f"grpc://{self.target}", api_key=key, **how))
        return self._opened[-1]

    def key(self, role: str = "admin", *collections: str, name: str = "someone", **limits: Any) -> str:
        return self.keys.create(name, role, collections or ("*",), **limits)[1]

    def close(self) -> None:
        for opened in self._opened:
            opened.close()
        self.server.stop()
        self.server.wait()


def fill(db: Any, name: str = "docs", count: int = 100, dim: int = 4, pad: int = 0) -> Any:
    """A collection of points whose vectors begin with their ids. pad: letters more in each payload."""
    docs = db.create_collection(name, Dense(dim, metric="l2", index="flat"))
    vectors = np.ones((count, dim), np.float32)
    vectors[:, 0] = np.arange(count)
    payloads = [{"n": n, **({"pad": "x" * pad} if pad else {})} for n in range(count)]
    docs.upsert(ids=np.arange(count), vectors=vectors, payloads=payloads)
    return docs
