"""Every request of every kind passes the gate: key, role, scope, rate, size, names; and no request reaches beyond the database."""

from __future__ import annotations

import builtins
import hmac
import itertools
import json
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from served import fill

from vecdb import Dense, errors
from vecdb.client.channel import error_of
from vecdb.server.keys import Buckets, Key, Keys
from vecdb.wire import messages

DENIED, UNKNOWN_KEY = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED
ROLES = {"read": messages.READ, "write": messages.WRITE, "admin": messages.ADMIN}


def empty(name: str) -> bytes:
    return bytes(messages.METHODS[name].request().SerializeToString())


def reflected(wire: Any, key: bool = True) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    return next(iter(stub.ServerReflectionInfo(asked, metadata=wire.metadata if key else [], timeout=30)))


# -- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "garbage", "wrong secret", "unknown id", "expired", "revoked", "no bearer"])
def test_no_rpc_is_answered_without_a_key_that_is_good(serving: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("role", ["read", "write"])
def test_no_rpc_is_answered_below_its_role(serving: Any, role: str) -> None:
    served = serving()
    wire = served.wire(served.key(role))
    for name, method in messages.METHODS.items():
        found = wire.status(name, empty(name))
        assert (found is DENIED) == (method.role > ROLES[role]), name
        assert found is not UNKNOWN_KEY
    assert reflected(wire).list_services_response.service


def test_health_needs_no_key_and_says_only_whether_it_serves(serving: Any) -> None:
    served = serving()
    served.key()
    stub = health_pb2_grpc.HealthStub(served.wire().channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == health_pb2.HealthCheckResponse.SERVING


def test_those_without_a_key_cannot_take_the_places_of_others(serving: Any) -> None:
    served = serving(queue=4, streams=2)
    key = served.key()
    stub = health_pb2_grpc.HealthStub(served.wire().channel)
    watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(30)]
    wire = served.wire()
    silent = [wire.headers_only("Points/Count") for _ in range(40)]
    with served.connect(key) as db:
        db.create_collection("docs", Dense(4))
        assert list(db["docs"].scroll()) == []
        assert db["docs"].count() == 0
    for call in watches + silent:
        call.cancel()
    assert served.empty()


def test_a_revoked_key_is_refused_by_the_next_request(serving: Any) -> None:
    served = serving()
    other, key = served.key("read", name="other"), served.key("read", name="mine")
    wire, beside = served.wire(key), served.wire(other)
    wire.ask("Collections/List", empty("Collections/List"))
    served.keys.revoke("mine")
    assert wire.status("Collections/List", empty("Collections/List")) is UNKNOWN_KEY
    assert beside.status("Collections/List", empty("Collections/List")) is grpc.StatusCode.OK


def test_a_file_of_keys_that_goes_away_opens_no_doors(serving: Any) -> None:
    served = serving()
    wire = served.wire(served.key())
    assert wire.status("Admin/Hello", empty("Admin/Hello")) is grpc.StatusCode.OK
    away = served.keys.path.rename(served.keys.path.with_suffix(".away"))
    assert wire.status("Admin/Hello", empty("Admin/Hello")) is UNKNOWN_KEY
    assert served.wire().status("Admin/Hello", empty("Admin/Hello")) is UNKNOWN_KEY
    assert not Keys(served.keys.path)
    assert Keys(served.keys.path, needed=True)
    away.rename(served.keys.path)
    assert wire.status("Admin/Hello", empty("Admin/Hello")) is grpc.StatusCode.OK, "the very same file, back again"


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


def test_secrets_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, compared = Keys(tmp_path / "keys.json"), []
    _, text = keys.create("mine", "read")
    compare = hmac.compare_digest

    def seen(a: Any, b: Any) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    keys.who(f"Bearer {text}")
    for wrong in (text[:-1] + "x", f"vk_{'B' * 12}_{text.split('_', 2)[2]}", "rubbish"):
        with pytest.raises(errors.Unauthenticated):
            keys.who(f"Bearer {wrong}")
    assert len(compared) == 4, "an unknown id is told from a wrong secret by nobody"


# -- scopes --------------------------------------------------------------------------------------------------


@pytest.fixture
def scoped(serving: Any) -> Any:
    """A server with collections a1 and b1, and a wire with a key for a* only."""
    served = serving()
    admin = served.key()
    db = served.connect(admin)
    fill(db, "a1", 10)
    fill(db, "b1", 10)
    served.uuid = db["b1"].uuid
    served.db = db
    served.scoped_key = served.key("admin", "a*")
    served.scoped = served.wire(served.scoped_key)
    return served


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


@pytest.mark.parametrize("name", list(messages.METHODS))
def test_no_rpc_reaches_a_collection_out_of_scope(scoped: Any, name: str) -> None:
    by_name = targeted(name, messages.Target(collection="b1"))
    by_uuid = targeted(name, messages.Target(uuid=scoped.uuid))
    absent = targeted(name, messages.Target(uuid=bytes(16)))
    if by_name is not None:
        assert told(scoped.scoped, name, by_name) == "PermissionDenied"
    if by_uuid is not None:
        assert told(scoped.scoped, name, by_uuid) == "NotFound", "a uuid out of scope looks as one that is not there"
        assert told(scoped.scoped, name, absent) == "NotFound"
    if by_name is None and by_uuid is None:
        assert name in {
            "Collections/List", "Collections/Rename", "Admin/Hello", "Admin/Stats", "Admin/Backup", "Admin/FlushAll",
            "Admin/PauseIndexing", "Admin/ResumeIndexing",
        }  # fmt: skip
    assert scoped.db["b1"].count() == 10


def told(wire: Any, name: str, request: Any) -> str:
    """The class of the error; of the first reply that is one, in a stream of replies."""
    if name == "Search/SearchStream":
        return str(wire.ask(name, request)[0].error.type)
    error = wire.error(name, request)
    assert "b1" not in str(error) or isinstance(error, errors.PermissionDenied)
    return type(error).__name__


def test_both_names_of_a_rename_must_be_in_scope(scoped: Any) -> None:
    for old, new in (("a1", "b2"), ("b1", "a2"), ("b1", "b2")):
        assert scoped.scoped.status("Collections/Rename", messages.RenameRequest(old=old, new=new)) is DENIED
    assert scoped.db.collections() == ["a1", "b1"]
    assert scoped.scoped.status("Collections/Rename", messages.RenameRequest(old="a1", new="a2")) is grpc.StatusCode.OK


def test_lists_and_errors_name_only_what_is_in_scope(scoped: Any) -> None:
    wire = scoped.scoped
    assert list(wire.ask("Collections/List", empty("Collections/List"))[0].names) == ["a1"]
    for name in messages.METHODS:
        request = targeted(name, messages.Target(collection="a-missing"))
        if request is None or name == "Collections/Create" or name == "Search/SearchStream":
            continue
        error = wire.error(name, request)
        assert isinstance(error, errors.NotFound), name
        assert "a1" in str(error), name
        assert "b1" not in str(error), name
    error = wire.error("Collections/Rename", messages.RenameRequest(old="a-missing", new="a3"))
    assert "b1" not in str(error)


def test_the_whole_database_is_not_in_the_scope_of_some_collections(scoped: Any) -> None:
    for name in ("Admin/Backup", "Admin/Verify", "Admin/Vacuum"):
        assert scoped.scoped.status(name, empty(name)) is DENIED, name
    whole = scoped.wire(scoped.key())
    for name in ("Admin/Backup", "Admin/Verify", "Admin/Vacuum"):
        assert whole.status(name, empty(name)) is grpc.StatusCode.OK, name


# -- rates and sizes -----------------------------------------------------------------------------------------


def test_a_key_that_asks_too_often_is_told_when_to_come_again(serving: Any) -> None:
    served = serving()
    served.key()
    wire, other = served.wire(served.key("read", rate=2, name="often")), served.wire(served.key("read"))
    refused = None
    for _ in range(10):
        call = wire.begin("Collections/List", empty("Collections/List"))
        try:
            call.result()
        except grpc.RpcError:
            refused = call
    assert refused is not None
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    wait = int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"])
    assert 1 <= wait <= 500
    assert other.status("Collections/List", empty("Collections/List")) is grpc.StatusCode.OK
    error = next(e for _ in range(20) if (e := tried(wire)) is not None)
    assert isinstance(error, errors.Overloaded)
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 0.5


def tried(wire: Any) -> Any:
    try:
        wire.ask("Collections/List", empty("Collections/List"))
    except grpc.RpcError as failed:
        return error_of(failed)
    return None


def test_each_message_of_a_stream_counts_in_a_rate(serving: Any) -> None:
    served = serving()
    fill(served.connect(served.key()), "docs", 3)
    wire = served.wire(served.key("write", rate=3, name="often"))
    query = messages.SearchRequest(target=messages.Target(collection="docs"), query=messages.Vector(values=[1] * 4))
    error = wire.error("Search/SearchStream", *[query] * 20)
    assert isinstance(error, errors.Overloaded)


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


def test_a_message_above_the_limit_of_its_key_is_refused(serving: Any) -> None:
    served = serving()
    db = served.connect(served.key())
    fill(db, "docs", 3)
    wire = served.wire(served.key("write", largest=1000, name="small"))
    request = messages.DeleteRequest(target=messages.Target(collection="docs"), ids=messages.Ids(numbers=range(500)))
    error = wire.error("Points/Delete", request)
    assert isinstance(error, errors.InvalidInput)
    assert "max-message-mib" in str(error)
    assert db["docs"].count() == 3


# -- names ---------------------------------------------------------------------------------------------------

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


# -- nothing beyond the database ------------------------------------------------------------------------------

BACKENDS = [
    "os.system",
    "../../etc/passwd",
    "http://127.0.0.1:9/index",
    "builtins:eval",
    "__import__('os')",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_is_code_to_load(serving: Any, backend: str) -> None:
    wire = serving().wire()
    index = messages.Index(backend=backend, params=b'{"path": "/etc/passwd"}')
    fields = [messages.Field(name="vector", dense=messages.Dense(dim=2, index=index))]
    error = wire.error("Collections/Create", messages.CreateRequest(name="a", fields=fields))
    assert isinstance(error, errors.InvalidInput | errors.Unsupported)


@pytest.mark.parametrize("encoder", ["openai:text-embedding-3-small", "ollama:nomic", "sentence-transformers:x", "os:system"])
def test_no_request_makes_the_server_call_out_or_read_files(
    serving: Any, encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serving()
    wire = served.wire()
    wire.ask("Admin/Hello", empty("Admin/Hello"))
    reached: list[Any] = []
    for module, name in ((socket.socket, "connect"), (socket, "create_connection")):
        monkeypatch.setattr(module, name, lambda *a, **k: reached.append(a) or (_ for _ in ()).throw(OSError("closed")))
    loaded, load = [], builtins.__import__
    suspects = {"httpx", "requests", "openai", "ollama", "sentence_transformers", "torch", "fastembed", "model2vec"}

    def watched(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in suspects:
            loaded.append(name)
        return load(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watched)
    made = messages.Encoder(name=encoder, fingerprint="f", dim=4, field="vector")
    target = messages.Target(collection="a")
    wire.ask("Collections/Create", messages.CreateRequest(name="a", encoder=made))
    texts = messages.EmbedRequest(target=target, texts=["hello"])
    for name, request in {
        "Points/Embed": texts,
        "Points/Fit": texts,
        "Search/Search": messages.SearchRequest(target=target, text="hello"),
        "Search/SearchBatch": messages.SearchBatchRequest(target=target, texts=["hello"]),
        "Points/Upsert": messages.UpsertRequest(target=target, columns=messages.Columns(texts=["hello"])),
    }.items():
        assert isinstance(wire.error(name, request), errors.EncoderMismatch), name
    assert not reached
    assert not loaded


def test_every_rpc_declares_a_role() -> None:
    assert all(method.role in ROLES.values() for method in messages.METHODS.values())
    assert all(method.role >= messages.WRITE for method in messages.METHODS.values() if method.writes)
    kinds = {(method.client_streams, method.server_streams) for method in messages.METHODS.values()}
    assert kinds == set(itertools.product([False, True], repeat=2)), "all kinds are tested above"
