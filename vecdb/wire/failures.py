"""Errors <-> statuses: the tree of `vecdb.errors` over the wire, and back, with class, message and attributes.

A status code says to any client what kind of error it is; `vecdb-error-bin` in the trailing metadata says it whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
import orjson

from .. import errors
from ..errors import VecdbError
from . import messages

KEY = "vecdb-error-bin"
REQUEST_ID = "x-request-id"
PUSHBACK = "grpc-retry-pushback-ms"  # gRPC's own name for "come again after so long"

_CODES = (
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (errors.ReadOnly, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Locked, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.NewerFormat, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Closed, grpc.StatusCode.UNAVAILABLE),
    (errors.Corruption, grpc.StatusCode.DATA_LOSS),
    (errors.DiskFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.StorageError, grpc.StatusCode.INTERNAL),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.CursorExpired, grpc.StatusCode.ABORTED),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied, grpc.StatusCode.PERMISSION_DENIED),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    (errors.EncoderFailed, grpc.StatusCode.UNAVAILABLE),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
)

# Of a server that is not vecdb's, or of a connection: what the code alone says.
_KINDS = {
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInput,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.ABORTED: errors.CursorExpired,
}


def code_of(error: VecdbError) -> grpc.StatusCode:
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)


def to_error(error: VecdbError, request_id: str) -> Any:
    attributes = {name: value for name, value in vars(error).items() if not name.startswith("_")}
    return messages.Error(
        type=type(error).__name__,
        message=str(error),
        attributes=orjson.dumps(attributes, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY),
        request_id=request_id,
    )


def from_error(message: Any) -> VecdbError:
    """The error as it was raised on the server. A class that this version does not know is a VecdbError."""
    kind: Any = getattr(errors, message.type, VecdbError)
    if not (isinstance(kind, type) and issubclass(kind, VecdbError)):
        kind = VecdbError
    error: VecdbError = kind.__new__(kind, message.message)  # classes differ in what they are made of, and all keep it
    try:
        attributes = orjson.loads(message.attributes or b"{}")
    except orjson.JSONDecodeError:
        attributes = {}
    if isinstance(attributes, dict):
        for name, value in attributes.items():
            if name.isidentifier() and not name.startswith("_") and not hasattr(BaseException, name):
                setattr(error, name, value)
    error.request_id = message.request_id or None
    return error


def from_status(code: grpc.StatusCode, details: str | None, trailers: Iterable[tuple[str, Any]] | None) -> VecdbError:
    """What a call that failed says."""
    found = dict(trailers or ())
    data = found.get(KEY)
    if data is not None:
        try:
            whole = from_error(messages.Error.FromString(data))
        except Exception:  # of somebody else
            pass
        else:
            if isinstance(whole, errors.Overloaded):
                whole.retry_after = _seconds(found.get(PUSHBACK))
            return whole
    kind: Any = _KINDS.get(code, errors.Unavailable if code is grpc.StatusCode.UNAVAILABLE else VecdbError)
    text = details or code.name
    error: VecdbError = kind(text if kind is not VecdbError else f"{code.name}: {text}")
    error.request_id = found.get(REQUEST_ID)
    return error


def _seconds(milliseconds: Any) -> float | None:
    try:
        return int(milliseconds) / 1000
    except (TypeError, ValueError):
        return None
