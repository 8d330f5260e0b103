"""The wire contract: compiled from proto/ as it is, documented word for word, and never changed under those who use it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parent.parent.parent
PROTO = ROOT / "proto"
RELEASES = sorted((PROTO / "releases").glob("*.binpb"))
OURS = "vecdb/v1/"
_OPTIONAL, _REPEATED = 1, 3  # labels
_RULE = 50700


@cache
def _compiled() -> FileDescriptorSet:
    """proto/, with its comments."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "contract.binpb"
        files = [str(path) for path in sorted((PROTO / "vecdb" / "v1").glob("*.proto"))]
        include = Path(protoc.__file__).parent / "_proto"
        code = protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", "--include_source_info", f"-o{out}", *files])
        assert code == 0
        return FileDescriptorSet.FromString(out.read_bytes())


def read(path: Path) -> FileDescriptorSet:
    return FileDescriptorSet.FromString(path.read_bytes())


def copy(contract: FileDescriptorSet) -> FileDescriptorSet:
    made = FileDescriptorSet()
    made.CopyFrom(contract)
    return made


def test_the_compiled_contract_is_that_of_the_protos() -> None:
    here = copy(_compiled())
    for file in here.file:
        file.ClearField("source_code_info")
    there = read(ROOT / "vecdb" / "wire" / "contract.binpb")
    assert {file.name: file for file in here.file} == {file.name: file for file in there.file}, "say `make proto`"


# -- documented ----------------------------------------------------------------------------------------------

# Words that say all there is to say, with the messages around them.
OBVIOUS = {
    "target", "parts", "index", "names", "ids", "with_vectors", "where", "count", "points", "columns", "texts", "vectors", "prefix",
    "checkpoints", "id", "hits", "plan", "groups", "vector",
}  # fmt: skip


def undocumented(contract: FileDescriptorSet) -> Iterator[str]:
    """What has no comment before or behind it, nor stands in a list right below something that has one."""
    for file in contract.file:
        if not file.name.startswith(OURS):
            continue
        told = {
            tuple(place.path): bool(place.leading_comments.strip() or place.trailing_comments.strip())
            for place in file.source_code_info.location
        }
        lines = {
            tuple(place.path): (place.span[0], place.span[2] if len(place.span) == 4 else place.span[0])
            for place in file.source_code_info.location
        }

        def said(path: tuple[int, ...], before: tuple[int, ...] | None, told: Any = told, lines: Any = lines) -> bool:
            """Or by the comment of those before it, without a line between."""
            if told.get(path):
                return True
            return before is not None and lines[before][1] + 1 == lines[path][0] and before in listed

        def message(path: tuple[int, ...], found: Any, name: str) -> Iterator[str]:
            if not (told.get(path) or _requests(name)):
                yield name
            before = None
            for at, field in enumerate(found.field):
                place = (*path, 2, at)
                if said(place, before):
                    listed.add(place)
                elif field.name not in OBVIOUS:
                    yield f"{name}.{field.name}"
                before = place
            for at, inner in enumerate(found.nested_type):
                if not inner.options.map_entry:
                    yield from message((*path, 3, at), inner, f"{name}.{inner.name}")
            for at, inner in enumerate(found.enum_type):
                yield from enum((*path, 4, at), inner, f"{name}.{inner.name}")

        def enum(path: tuple[int, ...], found: Any, name: str, told: Any = told) -> Iterator[str]:
            if not told.get(path) and not any(told.get((*path, 2, at)) for at in range(len(found.value))):
                yield name

        listed: set[tuple[int, ...]] = set()
        for at, each in enumerate(file.message_type):
            yield from message((4, at), each, each.name)
        for at, each in enumerate(file.enum_type):
            yield from enum((5, at), each, each.name)
        for at, service in enumerate(file.service):
            before = None
            for number, method in enumerate(service.method):
                place = (6, at, 2, number)
                if said(place, before):
                    listed.add(place)
                else:
                    yield f"{service.name}.{method.name}"
                before = place


def _requests(name: str) -> bool:
    """What is described beside its RPC."""
    return name.endswith(("Request", "Reply"))


def test_everything_in_the_contract_is_documented() -> None:
    assert list(undocumented(_compiled())) == []


def test_what_has_no_comment_is_found() -> None:
    bare = copy(_compiled())
    for file in bare.file:
        for place in file.source_code_info.location:
            place.ClearField("leading_comments")
            place.ClearField("trailing_comments")
    missing = set(undocumented(bare))
    assert {"Points.Upsert", "Point", "UpsertRequest.insert", "Role", "Filter.Compare", "DatabaseStats.flushes"} <= missing


# -- not broken ----------------------------------------------------------------------------------------------


def _all(contract: FileDescriptorSet) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Messages, enums and RPCs by name."""
    messages: dict[str, Any] = {}
    enums: dict[str, Any] = {}
    methods: dict[str, Any] = {}

    def gather(prefix: str, found: Any) -> None:
        messages[f"{prefix}{found.name}"] = found
        for inner in found.nested_type:
            gather(f"{prefix}{found.name}.", inner)
        for inner in found.enum_type:
            enums[f"{prefix}{found.name}.{inner.name}"] = inner

    for file in contract.file:
        if file.name.startswith(OURS):
            for message in file.message_type:
                gather("", message)
            enums |= {enum.name: enum for enum in file.enum_type}
            methods |= {f"{service.name}/{method.name}": method for service in file.service for method in service.method}
    return messages, enums, methods


@cache
def _options() -> Any:
    """MethodOptions, as far as the contract adds to them; so that a contract which does not compile can be read, too."""
    file = FileDescriptorProto(name="options.proto", syntax="proto3")
    rule = file.message_type.add(name="Rule")
    rule.field.add(name="role", number=1, type=5, label=_OPTIONAL)
    options = file.message_type.add(name="Options")
    options.field.add(name="rule", number=_RULE, type=11, type_name=".Rule", label=_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Options"))


def _rules(contract: FileDescriptorSet) -> dict[str, int]:
    """RPC -> the least role, 0 where none is declared."""
    methods = _all(contract)[2]
    return {name: _options().FromString(method.options.SerializeToString()).rule.role for name, method in methods.items()}


def broken(before: FileDescriptorSet, after: FileDescriptorSet) -> list[str]:
    """What of `before` somebody may use and `after` would take away or change."""
    found: list[str] = []
    old_messages, old_enums, old_methods = _all(before)
    messages, enums, methods = _all(after)
    for name, old in old_messages.items():
        if name not in messages:
            found.append(f"message {name} is gone")
            continue
        new = messages[name]
        fields = {field.number: field for field in new.field}
        for field in old.field:
            said = f"field {name}.{field.name} = {field.number}"
            if field.number not in fields:
                numbers = any(each.start <= field.number < each.end for each in new.reserved_range)
                if not (numbers and field.name in new.reserved_name):
                    found.append(f"{said} is gone and not reserved")
                continue
            now = fields[field.number]
            for what in ("name", "type", "type_name", "label", "proto3_optional"):
                if getattr(now, what) != getattr(field, what):
                    found.append(f"{said}: its {what} is another")
            if _group(old, field) != _group(new, now):
                found.append(f"{said}: its oneof is another")
        for gap in old.reserved_range:
            if any(gap.start <= number < gap.end for number in fields):
                found.append(f"message {name} uses a reserved number")
    for name, old in old_enums.items():
        if name not in enums:
            found.append(f"enum {name} is gone")
            continue
        values = {value.number: value.name for value in enums[name].value}
        found += [
            f"enum {name}: {value.name} is gone or another" for value in old.value if values.get(value.number) != value.name
        ]
    old_rules, rules = _rules(before), _rules(after)
    for name, old in old_methods.items():
        if name not in methods:
            found.append(f"rpc {name} is gone")
            continue
        new = methods[name]
        if (old.client_streaming, old.server_streaming) != (new.client_streaming, new.server_streaming):
            found.append(f"rpc {name} streams otherwise")
        if (old.input_type, old.output_type) != (new.input_type, new.output_type):
            found.append(f"rpc {name} has other messages")
        if rules[name] < old_rules[name]:
            found.append(f"rpc {name} asks for a lesser role")
        if rules[name] > old_rules[name]:
            found.append(f"rpc {name} asks for a greater role")
    found += [f"rpc {name} asks for no role" for name, rule in rules.items() if not rule]
    return found


def _group(message: Any, field: Any) -> str | None:
    """The oneof that a field is in, if people can see it."""
    if not field.HasField("oneof_index") or field.proto3_optional:
        return None
    name: str = message.oneof_decl[field.oneof_index].name
    return name


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_what_was_released_still_holds(release: Path) -> None:
    assert broken(read(release), _compiled()) == []


def test_there_is_the_contract_of_a_release() -> None:
    assert "0.1.0" in {path.stem for path in RELEASES}


def _message(contract: FileDescriptorSet, name: str) -> Any:
    return _all(contract)[0][name]


def _field(contract: FileDescriptorSet, message: str, name: str) -> Any:
    return next(field for field in _message(contract, message).field if field.name == name)


def _drop(items: Any, name: str) -> None:
    del items[next(at for at, each in enumerate(items) if each.name == name)]


def _service(contract: FileDescriptorSet, name: str) -> Any:
    return next(service for file in contract.file for service in file.service if service.name == name)


def _file(contract: FileDescriptorSet, name: str) -> Any:
    return next(file for file in contract.file if file.name == f"{OURS}{name}.proto")


def _role(contract: FileDescriptorSet, name: str, role: int) -> None:
    made = _options()()
    made.rule.role = role
    _all(contract)[2][name].options.ParseFromString(made.SerializeToString())


def _set(contract: FileDescriptorSet, message: str, field: str, **values: Any) -> None:
    for name, value in values.items():
        setattr(_field(contract, message, field), name, value)


def _reserved_without_name(contract: FileDescriptorSet) -> None:
    message = _message(contract, "Point")
    _drop(message.field, "text")
    message.reserved_range.add(start=4, end=5)


BREAKS: dict[str, tuple[Callable[[FileDescriptorSet], Any], str]] = {
    "a field has another name": (lambda c: _set(c, "Point", "payload", name="document"), "its name is another"),
    "a field has another type": (lambda c: _set(c, "SearchRequest", "k", type=3), "its type is another"),
    "a field has another message": (lambda c: _set(c, "SearchRequest", "query", type_name=".vecdb.v1.Matrix"), "its type_name"),
    "a field is repeated": (lambda c: _set(c, "Point", "payload", label=_REPEATED), "its label is another"),
    "a field has lost its presence": (lambda c: _set(c, "Options", "recall", proto3_optional=False), "proto3_optional"),
    "a field has another number": (lambda c: _set(c, "Point", "text", number=9), "field Point.text = 4 is gone and not reserved"),
    "a field is gone": (lambda c: _drop(_message(c, "Point").field, "text"), "gone and not reserved"),
    "a field's number alone is reserved": (_reserved_without_name, "gone and not reserved"),
    "a field is in no oneof": (lambda c: _field(c, "Id", "text").ClearField("oneof_index"), "its oneof is another"),
    "a message is gone": (lambda c: _drop(_file(c, "points").message_type, "CountReply"), "message CountReply is gone"),
    "an inner message is gone": (lambda c: _drop(_message(c, "Filter").nested_type, "In"), "message Filter.In is gone"),
    "an enum is gone": (lambda c: _drop(_file(c, "collections").enum_type, "Metric"), "enum Metric is gone"),
    "a value is gone": (lambda c: _drop(_all(c)[1]["Dtype"].value, "DTYPE_I8"), "DTYPE_I8 is gone or another"),
    "a value is another": (lambda c: setattr(_all(c)[1]["Metric"].value[1], "name", "METRIC_DOT"), "METRIC_COSINE is gone"),
    "an rpc is gone": (lambda c: _drop(_service(c, "Points").method, "Count"), "rpc Points/Count is gone"),
    "an rpc streams": (lambda c: setattr(_all(c)[2]["Points/Get"], "server_streaming", True), "Points/Get streams otherwise"),
    "an rpc replies otherwise": (
        lambda c: setattr(_all(c)[2]["Points/Count"], "output_type", ".vecdb.v1.Done"), "has other messages",
    ),
    "an rpc asks for a lesser role": (lambda c: _role(c, "Admin/Vacuum", 1), "asks for a lesser role"),
    "an rpc asks for a greater role": (lambda c: _role(c, "Search/Search", 3), "asks for a greater role"),
    "an rpc asks for no role": (lambda c: _role(c, "Search/Search", 0), "asks for no role"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_each_kind_of_break_is_caught(name: str) -> None:
    mutate, told = BREAKS[name]
    changed = copy(_compiled())
    mutate(changed)
    found = broken(_compiled(), changed)
    assert any(told in each for each in found), found


def test_what_is_added_or_reserved_breaks_nothing() -> None:
    changed = copy(_compiled())
    _message(changed, "Point").field.add(name="added", number=17, type=9, label=_OPTIONAL)
    _drop(_message(changed, "SearchRequest").field, "text")
    _message(changed, "SearchRequest").reserved_range.add(start=3, end=4)
    _message(changed, "SearchRequest").reserved_name.append("text")
    _all(changed)[1]["Metric"].value.add(name="METRIC_HAMMING", number=4)
    assert broken(_compiled(), changed) == []
    again = copy(changed)
    _message(again, "SearchRequest").field.add(name="other", number=3, type=9, label=_OPTIONAL)
    del _message(again, "SearchRequest").reserved_range[:]
    assert any("uses a reserved number" in each for each in broken(changed, again))
