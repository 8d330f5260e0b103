"""Replies that are lost on their way: the client asks again, and what it asked for is in exactly once.

Between client and server is a proxy that hands on bytes, and throws away each n-th reply after the server has made it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

import vecdb
from vecdb import Dense, errors
from vecdb.wire import failures, messages


class Lossy(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Hands on calls to a server; of every `nth` that was answered, the reply is lost."""

    def __init__(self, target: str, nth: int) -> None:
        self._channel = grpc.insecure_channel(target, [("grpc.max_receive_message_length", -1)])
        self._nth, self._lock = nth, threading.Lock()
        self.calls = self.lost = 0
        self.spared = {"/vecdb.v1.Admin/Hello"}
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=(self,), options=[("grpc.max_receive_message_length", -1)])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._channel.close()

    def service(self, details: Any) -> Any:
        path = details.method
        method = messages.METHODS[path.removeprefix("/vecdb.v1.")]
        if method.server_streams:

            def several(data: bytes, context: Any) -> Iterator[bytes]:
                yield from self._channel.unary_stream(path)(data, metadata=context.invocation_metadata())

            return grpc.unary_stream_rpc_method_handler(several)

        def one(data: Any, context: Any) -> bytes:
            metadata = [(k, v) for k, v in context.invocation_metadata() if k == "authorization"]
            call = (self._channel.stream_unary if method.client_streams else self._channel.unary_unary)(path)
            try:
                reply: bytes = call(iter(list(data)) if method.client_streams else data, metadata=metadata)
            except grpc.RpcError as failed:
                trailers = [(k, v) for k, v in failed.trailing_metadata() if k in (failures.KEY, failures.PUSHBACK)]  # type: ignore[attr-defined]
                context.set_trailing_metadata(trailers)
                context.abort(failed.code(), failed.details())  # type: ignore[attr-defined]
            with self._lock:
                self.calls += path not in self.spared
                lost = path not in self.spared and self.calls % self._nth == 0
                self.lost += lost
            if lost:
                context.abort(grpc.StatusCode.UNAVAILABLE, "the reply was lost")
            return reply

        made = grpc.stream_unary_rpc_method_handler if method.client_streams else grpc.unary_unary_rpc_method_handler
        return made(one)


@pytest.fixture
def lossy(serving: Any) -> Iterator[Callable[[int], tuple[Any, Lossy]]]:
    """lossy(n) -> a client behind a proxy that loses each n-th reply, and the proxy."""
    begun: list[Any] = []

    def make(nth: int, **settings: Any) -> tuple[Any, Lossy]:
        proxy = Lossy(serving(**settings).target, nth)
        db = vecdb.connect(f"grpc://127.0.0.1:{proxy.port}", retries=8)
        begun.extend([proxy, db])
        return db, proxy

    yield make
    for each in reversed(begun):
        each.close()


@pytest.mark.parametrize(("nth", "seed"), [(2, 1), (3, 2), (5, 3)])
def test_nothing_is_lost_and_nothing_is_applied_twice(lossy: Any, nth: int, seed: int) -> None:
    db, proxy = lossy(nth)
    chance = random.Random(seed)
    docs, beside = db.create_collection("docs", Dense(4, metric="l2")), {}
    for number in range(150):
        keys = chance.sample(range(30), chance.randint(1, 6))
        rows = [[key, number, 1, 1] for key in keys]
        there = [key for key in keys if key in beside]
        match chance.choice(["upsert", "upsert", "points", "insert", "delete", "where", "payload", "each"]):
            case "upsert":
                assert docs.upsert(ids=keys, vectors=rows, payloads=[{"n": number}] * len(keys)) == keys
                beside |= {key: {"n": number} for key in keys}
            case "points":
                given = [{"id": key, "vector": row, "payload": {"n": number}} for key, row in zip(keys, rows, strict=True)]
                assert docs.upsert(given) == keys
                beside |= {key: {"n": number} for key in keys}
            case "insert" if there:
                with pytest.raises(errors.AlreadyExists):
                    docs.insert(ids=keys, vectors=rows)
            case "insert":
                docs.insert(ids=keys, vectors=rows, payloads=[{"n": number}] * len(keys))
                beside |= {key: {"n": number} for key in keys}
            case "delete":
                assert docs.delete(keys) == len(there)
                beside = {key: value for key, value in beside.items() if key not in keys}
            case "where":
                gone = [key for key, value in beside.items() if value.get("n", number) < number - 40]
                assert docs.delete(where=vecdb.F("n") < number - 40) == len(gone)
                beside = {key: value for key, value in beside.items() if key not in gone}
            case "payload":
                assert docs.update_payload(keys, {"m": number}) == len(there)
                beside |= {key: {**beside[key], "m": number} for key in there}
            case _:
                assert docs.update_payload(keys, [{"m": key} for key in keys], replace=True) == len(there)
                beside |= {key: {"m": key} for key in there}
        if number % 25 == 0:
            assert {point.id: point.payload for point in docs.scroll()} == beside
    assert {point.id: point.payload for point in docs.scroll()} == beside
    assert proxy.lost >= 150 // nth - 10


def test_points_without_ids_are_in_once(lossy: Any) -> None:
    db, proxy = lossy(2)
    docs = db.create_collection("docs", Dense(4, metric="l2"))
    written = [docs.upsert(vectors=np.ones((5, 4)), payloads=[{"n": n}] * 5) for n in range(20)]
    written += [docs.upsert([{"vector": [1, 2, 3, 4]} for _ in range(3)]) for _ in range(10)]
    keys = [key for some in written for key in some]
    assert sorted(point.id for point in docs.scroll()) == sorted(keys)
    assert len(set(keys)) == 130
    assert proxy.lost > 20


def test_collections_are_made_dropped_and_renamed_once(lossy: Any) -> None:
    db, proxy = lossy(2)
    for number in range(12):
        made = db.create_collection(f"c{number}", Dense(4))
        db.rename_collection(f"c{number}", f"d{number}")
        db.add_field(f"d{number}", "more", Dense(2))
        made.set_index("flat", "more")
        assert set(db[f"d{number}"].fields) == {"vector", "more"}
        with pytest.raises(errors.AlreadyExists):
            db.create_collection(f"d{number}", Dense(4))
        if number % 2:
            db.drop_collection(f"d{number}")
            with pytest.raises(errors.NotFound):
                db.drop_collection(f"d{number}")
    assert db.collections() == sorted(f"d{number}" for number in range(0, 12, 2))
    assert proxy.lost > 20


def test_writes_of_several_messages_are_in_once(lossy: Any) -> None:
    db, proxy = lossy(2, max_message_mib=1)
    docs = db.create_collection("docs", Dense(256, metric="l2", index="flat"))
    vectors = np.ones((4000, 256), np.float32)
    vectors[:, 0] = np.arange(4000)
    for _ in range(3):
        docs.upsert(ids=np.arange(4000), vectors=vectors)
    docs.insert(ids=np.arange(4000, 8000), vectors=vectors)
    assert docs.count() == 8000
    assert proxy.lost >= 2


def test_many_threads_lose_nothing(lossy: Any) -> None:
    db, proxy = lossy(3)
    docs = db.create_collection("docs", Dense(4, metric="l2"))

    def write(thread: int) -> list[Any]:
        return [docs.insert(ids=[1000 * thread + n], vectors=[[1, 2, 3, 4]])[0] for n in range(40)]

    with ThreadPoolExecutor(6) as pool:
        written = [key for some in pool.map(write, range(6)) for key in some]
    assert sorted(point.id for point in docs.scroll()) == sorted(written)
    assert proxy.lost > 50


def test_the_same_request_with_the_same_token_is_carried_out_once(serving: Any) -> None:
    served = serving()
    wire = served.wire()
    field = messages.Field(name="vector", dense=messages.Dense(dim=2))
    create = messages.CreateRequest(name="a", fields=[field], token=b"1")
    first, second = wire.ask("Collections/Create", create)[0], wire.ask("Collections/Create", create)[0]
    assert first.uuid == second.uuid
    rows = messages.Matrix(dim=2, values=[1, 2])
    columns = messages.Columns(ids=messages.Ids(numbers=[1]), vectors={"vector": rows})
    insert = messages.UpsertRequest(target=messages.Target(collection="a"), columns=columns, insert=True, token=b"2")
    assert [wire.ask("Points/Upsert", insert)[0].applied for _ in range(3)] == [1, 1, 1]
    drop = messages.DropRequest(name="a", token=b"3")
    for _ in range(3):
        wire.ask("Collections/Drop", drop)
    assert isinstance(wire.error("Collections/Drop", messages.DropRequest(name="a", token=b"4")), errors.NotFound)
