"""The tests of the embedded API again, on clients of a server: what `vecdb.open` gives here is a connection.

Each test runs twice, with the blocking client and with that of asyncio, whose coroutines are awaited for it in a loop of another thread.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vecdb
from vecdb.client.collection import AsyncCollection, Prepared
from vecdb.server.config import config_of
from vecdb.server.serve import Server

_open = vecdb.open


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Awaited:
    """An object whose coroutines are awaited, so that tests can call it like an embedded one."""

    def __init__(self, loop: Loop, inner: Any) -> None:
        self._loop, self._inner = loop, inner

    def _settled(self, value: Any) -> Any:
        if inspect.iscoroutine(value):
            value = self._loop.wait(value)
        if inspect.isasyncgen(value):
            return self._iterate(value, self._step(value))
        return Awaited(self._loop, value) if isinstance(value, AsyncCollection | Prepared) else value

    def _step(self, points: Any) -> Any:
        async def step() -> Any:
            return await anext(points, None)

        return self._loop.wait(step())

    def _iterate(self, points: Any, first: Any) -> Iterator[Any]:
        while first is not None:
            yield first
            first = self._step(points)

    def __getattr__(self, name: str) -> Any:
        if name == "name":  # which no property can ask a server for without blocking its loop
            return self._settled(self._inner.info()).name
        found = getattr(self._inner, name)
        if name == "embedding":
            return Awaited(self._loop, found)
        return (lambda *a, **k: self._settled(found(*a, **k))) if callable(found) else found

    def __getitem__(self, name: str) -> Any:
        return self._settled(self._inner.collection(name))

    def __contains__(self, key: object) -> bool:
        if isinstance(self._inner, AsyncCollection):
            return isinstance(key, int | str) and self.get([key])[0] is not None
        return bool(self._settled(self._inner.has(key)))

    def __len__(self) -> int:
        return self.count() if isinstance(self._inner, AsyncCollection) else len(self.collections())

    def __iter__(self) -> Iterator[str]:
        return iter(self.collections())

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._inner)


@pytest.fixture(params=["blocking", "asyncio"], autouse=True)
def served(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Puts servers between tests and databases."""
    numbers = itertools.count()
    opened: dict[str, Server] = {}
    clients: list[Any] = []
    loop = Loop()

    def connect(server: Server) -> Any:
        url = f"grpc://127.0.0.1:{server.port}"
        if request.param == "blocking":
            client: Any = vecdb.connect(url, retries=1)
        else:
            client = Awaited(loop, loop.wait(vecdb.aio.connect(url, retries=1)))
        clients.append(client)
        return client

    def open_served(path: Any, read_only: bool = False, threads: int | None = None, **options: Any) -> Any:
        if read_only or options.keys() - {"recall_probe"}:
            return _open(path, read_only=read_only, threads=threads, **options)
        name = os.fspath(path)
        if name == ":memory:":
            name = str(tmp_path / f"memory-{next(numbers)}.db")
        server = opened.get(name)
        if server is None or not server.serving:
            server = opened[name] = Server(config_of(db=name, port=0, threads=threads, **options))
            server.start()
        return connect(server)

    monkeypatch.setattr(vecdb, "open", open_served)
    yield open_served
    for client in clients:
        client.close()
    for server in opened.values():
        server.stop()
        server.wait()
    loop.close()


@pytest.fixture
def db(served: Callable[..., Any], tmp_path: Path) -> Any:
    return served(tmp_path / "db")
