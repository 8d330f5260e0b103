"""Keys that are no good, and names that are none, are refused by every RPC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from vecdb import Dense, errors
from vecdb.server.keys import Buckets, Key, Keys
from vecdb.wire import convert, messages

UNKNOWN_KEY = grpc.StatusCode.UNAUTHENTICATED


def empty(name: str) -> bytes:
    return bytes(messages.METHODS[name].request().SerializeToString())


def reflected(wire: Any) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    return next(iter(stub.ServerReflectionInfo(asked, metadata=wire.metadata, timeout=30)))


@pytest.mark.parametrize("kind", ["none", "garbage", "wrong secret", "unknown id", "expired", "revoked", "no bearer"])
def test_no_rpc_is_answered_without_a_key_that_is_good(serving: Any, kind: str) -> None:
    served = serving()
    good = served.key()
    _, key_id, secret = good.split("_", 2)
    shown: str | None = {
        "none": None, "garbage": "vk_", "wrong secret": f"vk_{key_id}_{secret[::-1]}", "unknown id": f"vk_{'A' * 12}_{secret}",
    }.get(kind, good)  # fmt: skip
    if kind == "revoked":
        served.keys.revoke("someone")
    if kind == "expired":
        shown = served.key(days=1e-9)
    wire = served.wire(shown)
    if kind == "no bearer":
        wire.metadata = [("authorization", good)]
    for name in messages.METHODS:
        assert wire.status(name, empty(name)) is UNKNOWN_KEY, name
    with pytest.raises(grpc.RpcError) as refused:
        reflected(wire)
    assert refused.value.code() is UNKNOWN_KEY  # type: ignore[attr-defined]
    assert served.empty()


def test_a_file_of_keys_that_is_damaged_opens_no_doors(serving: Any) -> None:
    served = serving()
    wire = served.wire(served.key())
    served.keys.path.write_text("{")
    assert wire.status("Admin/Hello", empty("Admin/Hello")) is not grpc.StatusCode.OK
    assert served.wire().status("Admin/Hello", empty("Admin/Hello")) is not grpc.StatusCode.OK


def test_the_file_of_keys_holds_no_secret_and_is_for_its_owner_only(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    texts = [keys.create(f"k{n}", "read")[1] for n in range(20)]
    stored = keys.path.read_text()
    assert keys.path.stat().st_mode & 0o077 == 0
    for text in texts:
        assert text.split("_", 2)[2] not in stored
        assert text not in stored
    assert len({text.split("_", 2)[2] for text in texts}) == 20
    assert len(json.loads(stored)["keys"]) == 20


def targeted(name: str, target: Any) -> Any | None:
    """A request of that method with the target, where it has one."""
    kind = messages.METHODS[name].request
    fields = kind.DESCRIPTOR.fields_by_name
    if "target" in fields:
        return kind(target=target)
    if "search" in fields:
        return kind(search=messages.SearchRequest(target=target))
    if not target.uuid and "collection" in fields:
        return kind(collection=target.collection, field=messages.Field(name="f", dense=messages.Dense(dim=2)))
    if not target.uuid and "name" in fields:
        return (
            kind(name=target.collection, fields=[messages.Field(name="f", dense=messages.Dense(dim=2))])
            if "fields" in fields
            else kind(name=target.collection)
        )
    return None


def test_a_bucket_fills_at_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("vecdb.server.keys.time.monotonic", lambda: now[0])
    buckets, key = Buckets(), Key("id", "k", "", "read", rate=4)
    assert [buckets.take(key) for _ in range(4)] == [0, 0, 0, 0]
    wait = buckets.take(key)
    assert wait == pytest.approx(0.25)
    now[0] += wait
    assert buckets.take(key) == 0
    assert buckets.take(key) > 0


NAMES = ["", "../up", "a/b", "a\\b", "a\x00b", "a b", "-a", ".a", "é", "a" * 129, "x" * 300_000, "😀" * 20_000, "%n" * 900]


@pytest.mark.parametrize("bad", NAMES, ids=lambda name: f"{name[:4]!r}x{len(name)}")
def test_names_of_collections_are_checked(serving: Any, bad: str) -> None:
    served = serving()
    wire = served.wire()
    field = messages.Field(name="vector", dense=messages.Dense(dim=2))
    wire.ask("Collections/Create", messages.CreateRequest(name="good", fields=[field]))
    for name, request in {
        "Collections/Create": messages.CreateRequest(name=bad, fields=[field]),
        "Collections/Rename": messages.RenameRequest(old="good", new=bad),
    }.items():
        error = wire.error(name, request)
        assert isinstance(error, errors.InvalidInput), error
    for name in messages.METHODS:
        request = targeted(name, messages.Target(collection=bad))
        if request is not None and bad and name not in ("Search/SearchStream", "Collections/Create"):
            assert wire.status(name, request) in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), name
    assert wire.ask("Collections/List", empty("Collections/List"))[0].names == ["good"]


@pytest.mark.parametrize("bad", ["", "../up", "a/b", "a\x00b", "é", "a" * 65])
def test_names_of_fields_are_checked(serving: Any, bad: str) -> None:
    wire = serving().wire()
    fields = [messages.Field(name=bad, dense=messages.Dense(dim=2))]
    assert isinstance(wire.error("Collections/Create", messages.CreateRequest(name="a", fields=fields)), errors.InvalidInput)


def test_scores_of_bits_are_of_searches_of_one_field_without_groups(serving: Any) -> None:
    served = serving()
    served.connect().create_collection("docs", Dense(4, index="mib")).upsert(ids=[1], vectors=[[1, 0, 0, 0]])
    wire, target, options = served.wire(), messages.Target(collection="docs"), messages.Options(score="its")
    query = convert.to_vector(np.ones(4, np.float32))
    asked = messages.SearchRequest(target=target, query=query, options=options)
    wrong = grpc.StatusCode.INVALID_ARGUMENT
    hybrid = messages.SearchHybridRequest(
        target=target, queries=[messages.FieldQuery(field="vector", query=query)], options=options
    )
    assert wire.status("Search/SearchHybrid", hybrid) is wrong
    assert wire.status("Search/SearchGroups", messages.SearchGroupsRequest(search=asked, group_by="n")) is wrong
    asked.options.score = "likeness"
    assert wire.status("Search/Search", asked) is wrong
    asked.options.score = hybrid.options.score = ""
    assert wire.status("Search/Search", asked) is wire.status("Search/SearchHybrid", hybrid) is grpc.StatusCode.OK
