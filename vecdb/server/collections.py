"""The service `Collections`."""

from __future__ import annotations

from typing import Any

from ..collection import Collection
from ..embed import BUILT_IN
from ..errors import EncoderMismatch, InvalidInput
from ..wire import convert, messages
from .gate import Call
from .services import Answer, Served

DONE = messages.Done()


class _Absent:
    """Stands for an encoder that clients have, and this process does not: its name, fingerprint and dim, and no code."""

    def __init__(self, name: str, fingerprint: str, dim: int | None) -> None:
        self.name, self.fingerprint, self.dim = name, fingerprint, dim

    def encode(self, texts: Any) -> Any:
        raise EncoderMismatch(
            f"its texts were embedded by {self.name!r} ({self.fingerprint}), which clients run and not the server; open the "
            f"collection with that encoder: db.collection(name, embed=encoder)"
        )


def create(served: Served, call: Call, request: Any) -> Any:
    call.check_collection(request.name)
    schema: Any = {field.name: convert.from_field(field) for field in request.fields} or None
    if len(schema or ()) < len(request.fields):
        raise InvalidInput("two fields have one name")
    embed: Any = None
    if request.HasField("encoder"):
        encoder = request.encoder
        dim = None if encoder.sparse else encoder.dim
        embed = encoder.name if encoder.name in BUILT_IN else _Absent(encoder.name, encoder.fingerprint, dim)
    served.db.create_collection(request.name, schema, embed=embed, token=request.token or None)
    return info(served.db.collection(request.name))


def get(served: Served, call: Call, request: Any) -> Any:
    return info(served.collection(call, request.target))


def info(collection: Collection) -> Any:
    found = collection.info()
    made = messages.CollectionInfo(uuid=collection.uuid, name=found.name, seq=found.seq)
    for name in ("rows", "dead", "segments", "memtable_rows", "bytes", "ids", "flush_error"):
        value = getattr(found, name)
        if value is not None:
            setattr(made, name, value)
    for name, field in found.fields.items():
        made.fields.append(convert.to_field(name, field))
        made.indexes[name].CopyFrom(convert.to_figures(found.indexes[name], messages.IndexInfo))
    if found.encoder is not None:
        embedding = collection.embedding
        made.encoder.name, made.encoder.field = found.encoder, embedding.field
        made.encoder.fingerprint = embedding.fingerprint or ""
    return made


def list_(served: Served, call: Call, request: Any) -> Any:
    return messages.ListReply(names=[name for name in served.db.collections() if call.key.reaches(name)])


def drop(served: Served, call: Call, request: Any) -> Any:
    call.check_collection(request.name)
    with served.named(call, request.name):
        served.db.drop_collection(request.name, token=request.token or None)
    return DONE


def rename(served: Served, call: Call, request: Any) -> Any:
    call.check_collection(request.new)
    call.check_collection(request.old)
    with served.named(call, request.old):
        served.db.rename_collection(request.old, request.new, token=request.token or None)
    return DONE


def add_field(served: Served, call: Call, request: Any) -> Any:
    call.check_collection(request.collection)
    field = convert.from_field(request.field)
    with served.named(call, request.collection):
        served.db.add_field(request.collection, request.field.name, field, token=request.token or None)
    return DONE


def set_index(served: Served, call: Call, request: Any) -> Any:
    collection = served.collection(call, request.target)
    collection.set_index(convert.from_index(request.index), request.field or None, token=request.token or None)
    return DONE


def rebuild_index(served: Served, call: Call, request: Any) -> Any:
    served.collection(call, request.target).rebuild_index(request.field or None)
    return DONE


def flush(served: Served, call: Call, request: Any) -> Any:
    served.collection(call, request.target).flush(wait=request.wait)
    return DONE


def merge(served: Served, call: Call, request: Any) -> Any:
    served.collection(call, request.target).merge(wait=request.wait)
    return DONE


ANSWERS: dict[str, Answer] = {
    "Collections/Create": create,
    "Collections/Get": get,
    "Collections/List": list_,
    "Collections/Drop": drop,
    "Collections/Rename": rename,
    "Collections/AddField": add_field,
    "Collections/SetIndex": set_index,
    "Collections/RebuildIndex": rebuild_index,
    "Collections/Flush": flush,
    "Collections/Merge": merge,
}
