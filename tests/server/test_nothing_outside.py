"""No request makes the server read a path, fetch a URL, or load code: whatever strings it holds, they stay strings."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from calls import say
from google.protobuf.descriptor import FieldDescriptor
from vecdb_index import coalesce

import vecdb
from vecdb import Dense
from vecdb.wire import messages

MARK = "canary"
STRINGS = [
    MARK, f"/{MARK}", f"../../{MARK}", f"~/{MARK}.npy", f"file:///{MARK}", f"http://{MARK}.invalid/x", f"s3://{MARK}/x",
    f"openai:{MARK}", f"{MARK}.module:thing", f"onnx:/{MARK}", f"model2vec:{MARK}", f"unix:/{MARK}", f"@{MARK}", f"$({MARK})",
]  # fmt: skip

_seen: list[str] | None = None


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and (event in ("open", "import", "exec", "compile") or event.split(".")[0] in _DOORS):
        said = repr(arguments)
        if MARK in said:
            _seen.append(f"{event} {said[:300]}")


_DOORS = {"os", "shutil", "socket", "subprocess", "glob", "pathlib", "urllib", "tempfile", "mmap", "ctypes", "http"}


@pytest.fixture
def looked() -> Iterator[list[str]]:
    """What the interpreter was asked to open, import or connect to that has the mark in its name. Hooks are for ever."""
    global _seen
    if not getattr(sys, "_vecdb_looked", False):
        sys.addaudithook(_look)
        sys._vecdb_looked = True  # type: ignore[attr-defined]
    _seen = []
    yield _seen
    _seen = None


def filled_with(message: Any, text: str, depth: int = 0) -> Any:
    """Every string and every bytes in it, at any depth, says this."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None and depth < 4:
                filled_with(getattr(message, field.name)[text], text, depth + 1)
        elif field.message_type is not None:
            if depth < 4:
                inner = getattr(message, field.name)
                made = inner.add() if field.is_repeated else inner
                made.SetInParent()
                filled_with(made, text, depth + 1)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            value = text if field.type == FieldDescriptor.TYPE_STRING else f'{{"{text}": "{text}"}}'.encode()
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def test_the_hook_sees_what_is_opened_imported_and_connected_to(looked: list[str], tmp_path: Path) -> None:
    (tmp_path / MARK).write_text("x")
    with pytest.raises(ImportError):
        __import__(f"{MARK}_module")
    import socket

    with pytest.raises(OSError):
        socket.getaddrinfo(f"{MARK}.invalid", 80)
    assert {each.split()[0] for each in looked} >= {"open", "import", "socket.getaddrinfo"}


@pytest.mark.parametrize("name", sorted(messages.METHODS))
def test_strings_of_a_request_open_nothing(
    name: str, looked: list[str], serve: Callable[..., Any], channel_to: Callable[..., grpc.Channel]
) -> None:
    server = serve()
    channel = channel_to(server.port)
    server.db.create_collection(MARK, {MARK: Dense(4), "vector": Dense(4)})
    server.db.create_collection("docs", Dense(4)).upsert(ids=[1], vectors=[[1, 2, 3, 4]])
    for text in STRINGS:
        whole = filled_with(messages.METHODS[name].request(), text)
        for collection in (None, "docs"):
            if collection is not None and "target" in whole.DESCRIPTOR.fields_by_name:
                whole.target.Clear()
                whole.target.collection = collection
            answer = say(channel, name, whole, most=3)
            assert answer.code not in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), answer
    assert looked == []


def test_an_encoder_that_a_request_names_is_a_name_and_is_never_run(
    serve: Callable[..., Any], channel_to: Callable[..., grpc.Channel], looked: list[str]
) -> None:
    channel = channel_to(serve().port)
    for number, encoder in enumerate(STRINGS):
        made = messages.CreateRequest(name=f"c{number}")
        made.fields.add(name="vector").dense.dim = 4
        made.encoder.name, made.encoder.fingerprint, made.encoder.dim = encoder, encoder, 4
        assert say(channel, "Collections/Create", made).code is grpc.StatusCode.OK
        target = messages.Target(collection=f"c{number}")
        search = messages.SearchRequest(target=target, text="words")
        points = messages.UpsertRequest(target=target, columns=messages.Columns(texts=["words"]))
        for name, request in (
            ("Points/Embed", messages.EmbedRequest(target=target, texts=["words"])),
            ("Points/Fit", messages.EmbedRequest(target=target, texts=["words"])),
            ("Search/Search", search),
            ("Points/Upsert", points),
        ):
            answer = say(channel, name, request)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, (name, answer)
            assert isinstance(answer.error, vecdb.errors.EncoderMismatch)
    assert looked == []


def test_an_index_that_is_no_backend_is_refused(serve: Callable[..., Any], channel_to: Callable[..., grpc.Channel]) -> None:
    server = serve()
    channel = channel_to(server.port)
    server.db.create_collection("docs", Dense(4))
    for backend in (*STRINGS, "os", "..hnsw", "hnsw.backend", "Flat", "flat "):
        for params in (b"", b'{"m": 24}'):
            index = messages.Index(backend=backend, params=params)
            request = messages.SetIndexRequest(target=messages.Target(collection="docs"), index=index)
            assert say(channel, "Collections/SetIndex", request).code is grpc.StatusCode.INVALID_ARGUMENT
            made = messages.CreateRequest(name="more")
            field = made.fields.add(name="vector")
            field.dense.dim = 4
            field.dense.index.CopyFrom(index)
            assert say(channel, "Collections/Create", made).code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.db.collections() == ["docs"]


# What opens doors, by the module that may, and by the function in it; none takes anything of a request.
ALLOWED = {
    ("admin.py", "backup", "Path"),
    ("admin.py", "backup", "mkdtemp"),
    ("admin.py", "backup", "open"),
    ("admin.py", "backup", "rmtree"),
    ("convert.py", "_to_node", "Path"),  # a message of the contract, of that name
    ("messages.py", "_load", "files"),
    ("messages.py", "_load", "read_bytes"),
}
OPENING = {
    "open", "Path", "mkdtemp", "mkstemp", "rmtree", "unlink", "read_bytes", "read_text", "write_bytes", "write_text", "eval",
    "exec", "compile", "__import__", "import_module", "files", "urlopen", "Popen", "run_path", "loads_pickle", "memmap",
    "fromfile", "load", "dlopen", "CDLL", "ingest", "restore", "import_hnswlib", "open_url", "filesystem",
}  # fmt: skip
STRANGERS = {"urllib", "http", "socket", "subprocess", "importlib", "pickle", "marshal", "ctypes", "fsspec", "runpy"}


def test_the_code_that_answers_requests_opens_nothing_but_backups_of_its_own() -> None:
    root = Path(vecdb.__file__).parent
    answering = [root / "server" / f"{name}.py" for name in ("admin", "collections", "points", "searches", "services", "gate")]
    answering += [root / "server" / "forward.py", Path(coalesce.__file__), *sorted((root / "wire").glob("*.py"))]
    found = set()
    for path in answering:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                if path.name != "messages.py":  # which reads its own description
                    assert not {name.split(".")[0] for name in names} & STRANGERS, (path, names)
            if not isinstance(node, ast.FunctionDef):
                continue
            for call in ast.walk(node):
                if isinstance(call, ast.Call):
                    said = getattr(call.func, "id", getattr(call.func, "attr", ""))
                    if said in OPENING:
                        found.add((path.name, node.name, said))
                        inner = {each.id for each in ast.walk(call) if isinstance(each, ast.Name)}
                        assert not inner & {"request", "requests", "message", "data"}, (path.name, node.name, said)
    assert found == ALLOWED
