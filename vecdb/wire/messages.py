"""The messages and methods of `proto/vecdb/v1`, made from its compiled description.

`contract.binpb` is what protoc makes of the proto files (`make proto`; a test holds the two together). Classes are made of
it when this module is loaded, so that any version of protobuf will do: `messages.SearchRequest`. Safe in any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "vecdb.v1"

READ, WRITE, ADMIN = 1, 2, 3  # Role


@dataclass(frozen=True)
class Method:
    """An RPC. path: "/vecdb.v1.Points/Upsert". role, writes: what the contract declares of it."""

    path: str
    request: Any
    reply: Any
    client_streams: bool
    server_streams: bool
    role: int
    writes: bool

    @property
    def name(self) -> str:
        """ "Points/Upsert"."""
        return self.path.removeprefix(f"/{PACKAGE}.")


def _load() -> tuple[dict[str, Any], dict[str, Method]]:
    described = descriptor_pb2.FileDescriptorSet.FromString(files(__package__).joinpath("contract.binpb").read_bytes())
    pool = descriptor_pool.Default()
    names = [file.name for file in described.file if file.package == PACKAGE]
    for file in described.file:
        if file.package == PACKAGE:
            pool.AddSerializedFile(file.SerializeToString())
    found = [pool.FindFileByName(name) for name in names]
    classes = {name: message_factory.GetMessageClass(m) for file in found for name, m in file.message_types_by_name.items()}
    rule = pool.FindExtensionByName(f"{PACKAGE}.rule")
    methods = {}
    for file in found:
        for service in file.services_by_name.values():
            for method in service.methods:
                declared = method.GetOptions().Extensions[rule]
                made = Method(
                    f"/{service.full_name}/{method.name}",
                    classes[method.input_type.name],
                    classes[method.output_type.name],
                    method.client_streaming,
                    method.server_streaming,
                    declared.role,
                    declared.writes,
                )
                methods[made.name] = made
    return classes, methods


_classes, METHODS = _load()
SERVICES = tuple(sorted({method.path.split("/")[1] for method in METHODS.values()}))


def __getattr__(name: str) -> Any:
    try:
        return _classes[name]
    except KeyError:
        raise AttributeError(f"there is no message {name!r} in {PACKAGE}") from None
