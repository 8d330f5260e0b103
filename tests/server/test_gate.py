"""The one gate: every RPC of every kind asks for a key; roles, scopes, rates and sizes hold; what is out of scope stays unknown."""

from __future__ import annotations

import hmac
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from calls import about, ask, eventually, in_threads, names_a_collection, say, silent
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

import vecdb
from vecdb import Dense, errors
from vecdb.client.blocking import RemoteDatabase
from vecdb.server import gate as gate_module
from vecdb.server.keys import Keys, _hash
from vecdb.wire import failures, messages

METHODS = sorted(messages.METHODS.values(), key=lambda method: method.name)
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
HEALTH = "/grpc.health.v1.Health/"


def refusal(method: messages.Method, answer: Any) -> str:
    """The class of the error; of a stream of queries each has its own."""
    if method.name == "Search/SearchStream" and answer.code is grpc.StatusCode.OK:
        return str(messages.SearchStreamReply.FromString(answer.replies[0]).error.type)
    return type(answer.error).__name__


def reflected(channel: grpc.Channel, key: str | None) -> dict[str, tuple[bool, bool]]:
    """All RPCs that the server says that it has -> whether requests and replies are streams."""

    def asked(**what: str) -> Any:
        request = reflection_pb2.ServerReflectionRequest(**what).SerializeToString()
        answer = ask(channel, REFLECTION, request, key=key, client_streams=True, server_streams=True)
        assert answer.code is grpc.StatusCode.OK, answer
        return reflection_pb2.ServerReflectionResponse.FromString(answer.replies[0])

    found = {}
    for service in asked(list_services="").list_services_response.service:
        for data in asked(file_containing_symbol=service.name).file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            for each in file.service:
                for method in each.method:
                    path = f"/{file.package}.{each.name}/{method.name}"
                    found[path] = method.client_streaming, method.server_streaming
    return found


def test_every_rpc_that_the_server_tells_of_asks_for_a_key_but_those_of_the_health_service(
    serve: Callable[..., Any], channel_to: Callable[..., grpc.Channel], key_of: Callable[..., str]
) -> None:
    channel = channel_to(serve().port)
    paths = reflected(channel, key_of("read"))
    assert {method.path for method in METHODS} < paths.keys()
    assert {path.split("/")[1] for path in paths} == {*messages.SERVICES, "grpc.health.v1.Health", REFLECTION.split("/")[1]}
    assert len(set(paths.values())) == 4, "of every kind"
    for path, (client_streams, server_streams) in paths.items():
        for key in (None, "vk_AAAAAAAAAAAA_" + 43 * "x", "nonsense"):
            kind = {"client_streams": client_streams, "server_streams": server_streams}
            answer = ask(channel, path, b"", key=key, most=1, **kind)
            if path.startswith(HEALTH):
                assert answer.code in (grpc.StatusCode.OK, grpc.StatusCode.UNIMPLEMENTED), (path, answer)
            else:
                assert answer.code is grpc.StatusCode.UNAUTHENTICATED, (path, answer)
                assert isinstance(answer.error, errors.Unauthenticated)
                assert answer.trailers[failures.REQUEST_ID]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_rpc_declares_a_role_and_is_refused_to_keys_of_a_lesser_one(
    method: messages.Method, serve: Callable[..., Any], channel_to: Callable[..., grpc.Channel], key_of: Callable[..., str]
) -> None:
    channel = channel_to(serve().port)
    roles = {"read": messages.READ, "write": messages.WRITE, "admin": messages.ADMIN}
    assert method.role in roles.values()
    assert not (method.writes and method.role == messages.READ)
    for name, role in roles.items():
        code = say(channel, method.name, about(method, "absent"), key=key_of(name), most=1).code
        assert (code is grpc.StatusCode.PERMISSION_DENIED) == (role < method.role), (name, code)


@pytest.mark.parametrize("method", [m for m in METHODS if names_a_collection(m)], ids=lambda method: method.name)
def test_every_rpc_about_a_collection_is_refused_out_of_scope_whether_it_is_there_or_not(
    method: messages.Method,
    serve: Callable[..., Any],
    channel_to: Callable[..., grpc.Channel],
    key_of: Callable[..., str],
    filled: Callable[..., None],
) -> None:
    filled("hidden", rows=1)
    channel, key = channel_to(serve().port), key_of("admin", "docs*")
    for name in ("hidden", "absent"):
        answer = say(channel, method.name, about(method, name), key=key, most=1)
        assert refusal(method, answer) == "PermissionDenied", (name, answer)
    answer = say(channel, method.name, about(method, "docs-absent"), key=key, most=1)
    assert refusal(method, answer) != "PermissionDenied"
    assert "hidden" not in answer.details
    assert b"hidden" not in answer.trailers.get(failures.KEY, b"") + b"".join(answer.replies)


@pytest.mark.parametrize("method", [m for m in METHODS if m.name.startswith("Admin/")], ids=lambda method: method.name)
def test_what_concerns_the_whole_database_needs_a_key_for_all_of_it(
    method: messages.Method, serve: Callable[..., Any], channel_to: Callable[..., grpc.Channel], key_of: Callable[..., str]
) -> None:
    channel = channel_to(serve().port)
    code = say(channel, method.name, method.request(), key=key_of("admin", "docs"), most=1).code
    assert code is (grpc.StatusCode.OK if method.name == "Admin/Hello" else grpc.StatusCode.PERMISSION_DENIED)
    assert say(channel, method.name, method.request(), key=key_of("admin", "docs", "*"), most=1).code is grpc.StatusCode.OK


def test_a_uuid_reaches_no_further_than_a_name_and_tells_no_name(
    serve: Callable[..., Any], connect: Callable[..., RemoteDatabase], channel_to: Callable[..., Any],
    key_of: Callable[..., str], filled: Callable[..., None],
) -> None:  # fmt: skip
    filled("hidden", "docs")
    server = serve()
    uuid = connect(server.port, api_key=key_of("read"))["hidden"].uuid
    channel, key = channel_to(server.port), key_of("admin", "docs")
    by_target = [method for method in METHODS if b"docs" in about(method, "docs").SerializeToString()]
    checked = 0
    for method in by_target:
        request = about(method, "docs")
        place = request.search if method.name == "Search/SearchGroups" else request
        if "target" not in place.DESCRIPTOR.fields_by_name:
            continue
        place.target.uuid = uuid
        answer = say(channel, method.name, request, key=key, most=1)
        assert refusal(method, answer) == "NotFound", (method.name, answer)
        assert "hidden" not in answer.details
        assert b"hidden" not in answer.trailers.get(failures.KEY, b"") + b"".join(answer.replies)
        place.target.uuid = 16 * b"?"
        nothing = say(channel, method.name, request, key=key, most=1)
        assert (nothing.code, nothing.details) == (answer.code, answer.details), "as if there were none"
        checked += 1
    assert checked > 20


def test_a_collection_that_is_renamed_out_of_scope_is_out_of_reach(
    serve: Callable[..., Any], connect: Callable[..., RemoteDatabase], key_of: Callable[..., str], filled: Callable[..., None]
) -> None:
    filled("docs")
    server = serve()
    all_, some = (connect(server.port, api_key=key) for key in (key_of("write"), key_of("write", "docs")))
    docs = some["docs"]
    assert docs.count() == 20
    all_.rename_collection("docs", "hidden")
    with pytest.raises(errors.NotFound) as raised:
        docs.count()
    assert "hidden" not in str(raised.value)


def test_both_names_of_a_rename_are_to_be_in_scope(
    serve: Callable[..., Any], connect: Callable[..., RemoteDatabase], key_of: Callable[..., str], filled: Callable[..., None]
) -> None:
    filled("docs-1", "hidden")
    db = connect(serve().port, api_key=key_of("write", "docs-*"))
    for old, new in (("docs-1", "mine"), ("hidden", "docs-2"), ("docs-1", "hidden")):
        with pytest.raises(errors.PermissionDenied):
            db.rename_collection(old, new)
    db.rename_collection("docs-1", "docs-2")
    assert db.collections() == ["docs-2"], "the names in the key's scope, and no others"


def test_who_asks_for_what_is_not_there_learns_only_names_in_scope(
    serve: Callable[..., Any], connect: Callable[..., RemoteDatabase], key_of: Callable[..., str], filled: Callable[..., None]
) -> None:
    filled("docs-1", "hidden")
    db = connect(serve().port, api_key=key_of("write", "docs-*"))
    for attempt in (
        lambda: db["docs-9"],
        lambda: db.drop_collection("docs-9"),
        lambda: db.rename_collection("docs-9", "docs-8"),
        lambda: db.add_field("docs-9", "title", Dense(4)),
    ):
        with pytest.raises(errors.NotFound) as raised:
            attempt()
        assert "docs-9" in str(raised.value) and "docs-1" in str(raised.value)
        assert "hidden" not in str(raised.value) + repr(vars(raised.value))


def test_a_revoked_key_is_refused_by_the_next_request_and_by_the_next_message_of_a_stream(
    serve: Callable[..., Any], channel_to: Callable[..., Any], keys: Keys, key_of: Callable[..., str],
    filled: Callable[..., None],
) -> None:  # fmt: skip
    filled("docs")
    channel, key = channel_to(serve().port), key_of("read")
    count = messages.CountRequest(target=messages.Target(collection="docs"))
    assert say(channel, "Points/Count", count, key=key).code is grpc.StatusCode.OK
    query = messages.SearchRequest(target=messages.Target(collection="docs"), k=1)
    query.query.values.extend([1.0] * 8)
    revoked = threading.Event()

    def queries() -> Any:
        yield query.SerializeToString()
        revoked.wait(30)
        yield query.SerializeToString()

    path = messages.METHODS["Search/SearchStream"].path
    call = channel.stream_stream(path)(queries(), metadata=[("authorization", f"Bearer {key}")], timeout=30)
    assert next(call)
    keys.revoke(key.split("_")[1])
    assert say(channel, "Points/Count", count, key=key).code is grpc.StatusCode.UNAUTHENTICATED
    revoked.set()
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_expired_key_is_refused_like_one_that_never_was(
    serve: Callable[..., Any], channel_to: Callable[..., Any], key_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import vecdb.server.keys as keys_module

    channel, key = channel_to(serve().port), key_of("read", days=1)
    hello = messages.HelloRequest()
    assert say(channel, "Admin/Hello", hello, key=key).code is grpc.StatusCode.OK
    now = keys_module.time.time()
    monkeypatch.setattr(keys_module, "time", type("Time", (), {"time": lambda: now + 86_401, "monotonic": lambda: 0.0}))
    expired, unknown = (say(channel, "Admin/Hello", hello, key=each) for each in (key, "vk_AAAAAAAAAAAA_" + 43 * "x"))
    assert expired.code is unknown.code is grpc.StatusCode.UNAUTHENTICATED
    assert expired.details == unknown.details


def test_keys_whose_file_goes_away_leave_the_server_closed_until_it_is_back(
    serve: Callable[..., Any], channel_to: Callable[..., Any], keys: Keys, key_of: Callable[..., str], tmp_path: Path
) -> None:
    channel, key, hello = channel_to(serve().port), key_of("admin"), messages.HelloRequest()
    assert say(channel, "Admin/Hello", hello, key=key).code is grpc.StatusCode.OK
    os.rename(keys.path, tmp_path / "aside")
    for given in (key, None):
        assert say(channel, "Admin/Hello", hello, key=given).code is grpc.StatusCode.UNAUTHENTICATED
    os.rename(tmp_path / "aside", keys.path)  # the same file, unchanged
    assert say(channel, "Admin/Hello", hello, key=key).code is grpc.StatusCode.OK
    keys.path.write_text("not what it should be")
    for given in (key, None):
        assert say(channel, "Admin/Hello", hello, key=given).code is grpc.StatusCode.UNAUTHENTICATED
    os.unlink(keys.path)
    keys.path.symlink_to(keys.path)  # cannot be looked at, which is no reason to let anybody in
    for given in (key, None):
        assert say(channel, "Admin/Hello", hello, key=given).code is grpc.StatusCode.UNAUTHENTICATED
    os.unlink(keys.path)


def test_a_gate_that_cannot_read_its_keys_forgets_nobody_inside(
    serve: Callable[..., Any], channel_to: Callable[..., Any], keys: Keys, key_of: Callable[..., str]
) -> None:
    server = serve(queue=2)
    channel, key, hello = channel_to(server.port), key_of("admin"), messages.HelloRequest()
    text = keys.path.read_bytes()
    os.unlink(keys.path)
    keys.path.mkdir()
    for _ in range(8):
        assert say(channel, "Admin/Hello", hello, key=key).code is not grpc.StatusCode.OK
    os.rmdir(keys.path)
    keys.path.write_bytes(text)
    assert say(channel, "Admin/Hello", hello, key=key).code is grpc.StatusCode.OK
    eventually(lambda: server._gate.inside == 0, "nobody is inside")


def test_keys_that_are_made_while_a_server_runs_are_needed_from_then_on(
    serve: Callable[..., Any], channel_to: Callable[..., Any], path: Path
) -> None:
    channel, hello = channel_to(serve().port), messages.HelloRequest()
    assert say(channel, "Admin/Hello", hello).code is grpc.StatusCode.OK
    _, key = Keys(path / "keys.json").create("first", "read")
    assert say(channel, "Admin/Hello", hello).code is grpc.StatusCode.UNAUTHENTICATED
    assert say(channel, "Admin/Hello", hello, key=key).code is grpc.StatusCode.OK


def test_secrets_are_compared_in_constant_time_and_kept_as_hashes(
    keys: Keys, key_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[Any, Any]] = []

    def compare(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return one == other

    key = key_of("read")
    assert key.split("_", 2)[2] not in keys.path.read_text()
    assert os.stat(keys.path).st_mode & 0o077 == 0
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert keys.who(f"Bearer {key}").role == "read"
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    for text in (wrong, "vk_AAAAAAAAAAAA_" + 43 * "x", "nonsense"):
        with pytest.raises(errors.Unauthenticated):
            keys.who(f"Bearer {text}")
    assert len(compared) == 4, "also for keys that there are not"
    assert compared[0] == (_hash(key), _hash(key))
    assert all(len(one) == len(other) == 64 for one, other in compared)


def test_a_key_may_ask_only_so_often_and_is_told_when_to_come_again(
    serve: Callable[..., Any], channel_to: Callable[..., Any], key_of: Callable[..., str]
) -> None:
    channel, slow, other = channel_to(serve().port), key_of("read", rate=0.01), key_of("read")
    hello = messages.HelloRequest()
    assert say(channel, "Admin/Hello", hello, key=slow).code is grpc.StatusCode.OK
    answer = say(channel, "Admin/Hello", hello, key=slow)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert 0 < int(answer.trailers["grpc-retry-pushback-ms"]) <= 100_000
    assert 0 < answer.error.retry_after <= 100
    assert say(channel, "Admin/Hello", hello, key=other).code is grpc.StatusCode.OK


def test_messages_of_a_stream_count_against_the_rate_of_their_key(
    serve: Callable[..., Any], channel_to: Callable[..., Any], key_of: Callable[..., str], filled: Callable[..., None]
) -> None:
    filled("docs")
    channel, key = channel_to(serve().port), key_of("read", rate=3)
    query = messages.SearchRequest(target=messages.Target(collection="docs"), k=1)
    query.query.values.extend([1.0] * 8)
    answer = ask(
        channel, messages.METHODS["Search/SearchStream"].path, [query.SerializeToString()] * 1000, key=key,
        client_streams=True, server_streams=True,
    )  # fmt: skip
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "grpc-retry-pushback-ms" in answer.trailers


def test_a_key_may_send_only_messages_of_its_size(
    serve: Callable[..., Any], connect: Callable[..., RemoteDatabase], key_of: Callable[..., str], filled: Callable[..., None]
) -> None:
    filled("docs")
    docs = connect(serve().port, api_key=key_of("write", largest=5000))["docs"]
    docs.upsert(ids=[1], vectors=np.ones((1, 8)))
    with pytest.raises(errors.InvalidInput, match=r"5,000.*--max-message-mib"):
        docs.upsert(ids=range(1000), vectors=np.ones((1000, 8)))


def test_nobody_without_a_key_holds_a_thread_by_a_request_that_never_comes(
    serve: Callable[..., Any], channel_to: Callable[..., Any], key_of: Callable[..., str]
) -> None:
    server = serve(queue=2, streams=2)  # and 8 threads to spare
    channel, key = channel_to(server.port), key_of("read")
    requests = [silent() for _ in range(40)]
    calls = [channel.stream_unary(messages.METHODS["Points/Get"].path).future(each, timeout=30) for each, _ in requests]
    try:
        assert say(channel, "Admin/Hello", messages.HelloRequest(), key=key).code is grpc.StatusCode.OK
        for call in calls:
            assert call.exception().code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    finally:
        for _, ended in requests:
            ended.set()


def test_those_who_watch_health_without_a_key_leave_room_for_streams_of_others(
    serve: Callable[..., Any], channel_to: Callable[..., Any], connect: Callable[..., Any], key_of: Callable[..., str],
    filled: Callable[..., None],
) -> None:  # fmt: skip
    filled("docs")
    server = serve(streams=4)
    watch = channel_to(server.port).unary_stream(HEALTH + "Watch")
    watched = [watch(b"", timeout=30) for _ in range(20)]
    try:
        codes = in_threads(20, lambda n: _first(watched[n]))
        assert codes.count(grpc.StatusCode.OK) >= 1
        assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(list(connect(server.port, api_key=key_of("read"))["docs"].scroll())) == 20
    finally:
        for call in watched:
            call.cancel()


def _first(call: Any) -> grpc.StatusCode:
    try:
        assert health_pb2.HealthCheckResponse.FromString(next(call)).status
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_request_id_is_taken_over_if_it_can_be_a_header(
    serve: Callable[..., Any], channel_to: Callable[..., Any], keys: Keys
) -> None:
    channel = channel_to(serve().port)
    answer = say(channel, "Admin/Hello", messages.HelloRequest(), metadata=((failures.REQUEST_ID, "mine-7"),))
    assert answer.trailers[failures.REQUEST_ID] == answer.error.request_id == "mine-7"
    long = say(channel, "Admin/Hello", messages.HelloRequest(), metadata=((failures.REQUEST_ID, 65 * "x"),))
    assert long.trailers[failures.REQUEST_ID] != 65 * "x"

    class Context:
        def time_remaining(self) -> None: ...

    for odd in ("naïve", "a\nb", ""):
        made = gate_module.Call("Admin/Hello", Context(), {failures.REQUEST_ID: odd}).request_id  # type: ignore[arg-type]
        assert made.isascii() and made.isprintable() and len(made) == 16


def test_a_worker_that_starts_anew_still_knows_that_keys_are_needed(path: Path, keys: Keys) -> None:
    """Its parent knew; a file that went away meanwhile opens nothing."""
    os.unlink(keys.path)
    assert not Keys(path / "keys.json")
    with pytest.raises(errors.Unauthenticated):
        Keys(path / "keys.json", needed=True).who(None)


def test_no_key_file_where_one_was_named_is_a_mistake_and_no_open_door(tmp_path: Path) -> None:
    from vecdb.server.config import config_of

    with pytest.raises(errors.NotFound, match="nowhere.json"):
        config_of(db=str(tmp_path / "db"), keys=str(tmp_path / "nowhere.json"))


def test_names_are_checked_by_one_type_wherever_they_come_from(
    serve: Callable[..., Any], channel_to: Callable[..., Any], path: Path
) -> None:
    channel = channel_to(serve().port)
    names = ("../x", "/etc/passwd", "a/b", "", "-x", ".x", "x" * 129, "a\x00b", "ü", "http://x")
    for name in names:
        with pytest.raises(errors.InvalidInput):
            vecdb.schema.checked_name(name)
        request = messages.CreateRequest(name=name)
        request.fields.add(name="vector").dense.dim = 4
        assert say(channel, "Collections/Create", request).code is grpc.StatusCode.INVALID_ARGUMENT, name
    request = messages.CreateRequest(name="docs")
    request.fields.add(name="vector").dense.dim = 4
    assert say(channel, "Collections/Create", request).code is grpc.StatusCode.OK
    for name in names:
        rename = messages.RenameRequest(old="docs", new=name)
        assert say(channel, "Collections/Rename", rename).code is grpc.StatusCode.INVALID_ARGUMENT, name
    assert {each.name for each in path.parent.iterdir()} == {"db"}
    shutil.rmtree(path / "nothing", ignore_errors=True)
