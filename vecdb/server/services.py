"""What the services have in common: the database, whose collection is meant, and how methods become handlers of gRPC.

A service is a dict of functions by the names of its methods; each takes (Served, Call, request) and returns a reply, or is a
generator of them. Streams of requests come as iterators of messages. Everything is safe in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from vecdb_index.coalesce import Coalescer

from ..collection import Collection
from ..database import Database
from ..errors import InvalidInput, NotFound, PermissionDenied
from ..schema import Dense, Field
from ..search.stopping import stopped_by
from ..wire import messages
from .config import Config
from .gate import Call

_LARGEST_REPLY = 256 << 20  # bytes, about, of a reply that is not a stream
_HIT_BYTES = 200  # of a hit or point, about, without its vectors
_SPARSE_BYTES = 1000  # of a sparse vector, about
_NAMED = 20  # collections that an error names
Answer = Callable[["Served", Call, Any], Any]


@dataclass
class Served:
    """What requests are answered from."""

    db: Database
    config: Config
    coalescer: Coalescer[Any, Any]

    def collection(self, call: Call, target: Any) -> Collection:
        """The collection that is meant, if the key may have it. Raises NotFound, PermissionDenied, InvalidInput.

        A name that is not in the key's scope is refused before it is looked up, so that nobody learns what there is.
        """
        if target.uuid:
            if len(target.uuid) != 16:
                raise InvalidInput("a uuid has 16 bytes")
            try:
                found = self.db.collection_of(target.uuid)
                call.check_collection(found.name)
            except (NotFound, PermissionDenied):  # which of them, and its name, is nobody's business
                raise NotFound("no collection has this uuid, or the key is not for it") from None
            return found
        if not target.collection:
            raise InvalidInput("the request names no collection")
        call.check_collection(target.collection)
        with self.named(call, target.collection):
            return self.db.collection(target.collection)

    @contextmanager
    def named(self, call: Call, name: str) -> Iterator[None]:
        """Where a collection of that name is not found, the key is told only of those that it may have."""
        try:
            yield
        except NotFound:
            known = [each for each in self.db.collections() if call.key.reaches(each)]
            some = ", ".join(known[:_NAMED]) + (", …" if len(known) > _NAMED else "")
            raise NotFound(f"no collection {name!r}; there are: {some or 'none'}") from None

    def asked(self, call: Call, target: Any) -> Collection | None:
        """As `collection`, and None where none is named, which means all."""
        if target.uuid or target.collection:
            return self.collection(call, target)
        call.check_whole()
        return None


def _vector_bytes(field: Field) -> int:
    return 4 * field.dim if isinstance(field, Dense) else _SPARSE_BYTES


def bytes_of_a_point(collection: Collection, with_vectors: Any) -> int:
    """About, in a reply."""
    return _HIT_BYTES + (sum(map(_vector_bytes, collection.fields.values())) if with_vectors else 0)


def check_reply(collection: Collection, points: int, with_vectors: Any) -> None:
    """A reply of so many points has room in memory. Raises InvalidInput."""
    most = _LARGEST_REPLY // bytes_of_a_point(collection, with_vectors)
    if points > most:
        raise InvalidInput(
            f"the reply would have {points:,} points, and one holds {most:,} of this size: ask for fewer at a time, or scroll"
        )


class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc]
    """All methods of the contract, answered by `answers`, by name: "Points/Upsert"."""

    def __init__(self, served: Served, answers: dict[str, Answer]) -> None:
        missing = messages.METHODS.keys() - answers.keys()
        assert not missing, f"not answered: {missing}"
        self._handlers = {
            messages.METHODS[name].path: _handler(served, messages.METHODS[name], answer) for name, answer in answers.items()
        }

    def service(self, details: Any) -> Any:
        return self._handlers.get(details.method)


def handler_of(method: messages.Method, behaviour: Callable[[Any, Any], Any]) -> Any:
    """A handler of gRPC, of bytes."""
    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[method.client_streams, method.server_streams](behaviour)


def _handler(served: Served, method: messages.Method, answer: Answer) -> Any:
    def asked(call: Call, data: Any) -> Any:
        if method.client_streams:
            return (call.parse(method.request, each) for each in data)
        request = call.parse(method.request, data)
        call.stage("decode")
        return request

    def one(data: Any, call: Call) -> bytes:
        with stopped_by(call.control):
            reply = answer(served, call, asked(call, data))
        call.stage("answer")
        encoded: bytes = reply.SerializeToString()
        call.stage("encode")
        return encoded

    def several(data: Any, call: Call) -> Iterator[bytes]:
        # Set around each step and not around the whole, since a generator runs in the context of whoever asks for more.
        replies = answer(served, call, asked(call, data))
        try:
            while True:
                with stopped_by(call.control):
                    call.control.poll()
                    reply = next(replies, None)
                if reply is None:
                    return
                yield reply.SerializeToString()
        finally:
            replies.close()  # lets go of its snapshot

    return handler_of(method, several if method.server_streams else one)
