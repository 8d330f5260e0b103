"""Every error that vecdb raises on purpose, in one tree.

    VecdbError
    ├── InvalidInput (ValueError)        the caller's data is wrong; nothing was written
    │   ├── DimensionMismatch            a vector has another length than its field
    │   ├── InvalidVector                NaN, infinity, zero under cosine, overflow of the field's dtype
    │   ├── InvalidPayload               not a JSON object, or larger than 1 MiB
    │   ├── InvalidId                    neither int64 nor a string of 1 to 512 bytes, or of the other kind
    │   ├── DuplicateId                  an id occurs twice in one batch
    │   ├── InvalidFilter                `where=` cannot be understood
    │   ├── InvalidFile                  a file to ingest cannot be read, or a row of it cannot be a point
    │   └── EncoderMismatch              texts were embedded by another encoder than the one at hand
    ├── NotFound (KeyError)              no such database, collection, field or point
    ├── AlreadyExists                    a collection, field or point of that name is there
    ├── Locked                           another process writes to this database
    ├── Closed                           the database was closed, or this process is a fork
    ├── ReadOnly                         a write to a database opened read-only
    ├── Corruption                       bytes on disk are not what was written
    ├── StorageError                     the operating system refused a read, write or sync
    │   └── DiskFull
    ├── DeadlineExceeded                 a search took longer than its timeout
    ├── EncoderFailed                    a model's server cannot be reached, or its reply is not a vector for each text
    ├── Unauthenticated                  a server wants a key, or refuses the one that it was given
    ├── PermissionDenied                 the key's role or collections do not reach so far
    ├── Overloaded                       a server has no room, after several tries, or too many searches wait for their turn
    ├── Unavailable                      a server cannot be reached, or went away
    ├── CursorExpired                    a scroll over the wire was left unread for too long
    ├── Cancelled                        the caller no longer wanted it
    ├── NewerFormat                      written by a later version
    └── Unsupported                      this platform, or an optional package that is not installed

Classes carry what they report as attributes (`point`, `field`, `file`, `pid`, …). The part that the storage
engine raises is defined in `vecdb_storage.errors`.

PoorlyServed, that an index serves a field's vectors badly, is a warning; it never crosses the wire, nor is it in `__all__`.
"""

from __future__ import annotations

from vecdb_storage.errors import (
    AlreadyExists,
    Closed,
    Corruption,
    DiskFull,
    DuplicateId,
    InvalidInput,
    InvalidPayload,
    Locked,
    NewerFormat,
    NotFound,
    ReadOnly,
    StorageError,
    Unsupported,
    VecdbError,
)


class DimensionMismatch(InvalidInput):
    """A vector has another length than its field."""


class InvalidVector(InvalidInput):
    """A vector holds NaN or infinity, is zero under cosine, or does not fit the field's dtype."""


class InvalidId(InvalidInput):
    """An id is neither an int64 nor a string of 1 to 512 UTF-8 bytes, or is not of the collection's kind."""


class InvalidFilter(InvalidInput):
    """A `where=` expression cannot be understood. position: the offset in its text form, when known."""

    def __init__(self, message: str, *, field: str | None = None, position: int | None = None) -> None:
        super().__init__(message, field=field)
        self.position = position


class EncoderMismatch(InvalidInput):
    """The collection's texts were embedded by another encoder than the one at hand."""


class InvalidFile(InvalidInput):
    """A file that is to be ingested cannot be read as what it is said to be, or one of its rows cannot become a point.

    file: its name. row: counted from 0, as in the file of rejects; None where the file as a whole is wrong. column:
    its name, when one can be named.
    """

    def __init__(self, message: str, *, file: str, row: int | None = None, column: str | None = None) -> None:
        where = [file]
        where += [f"row {row:,}"] if row is not None else []
        where += [f"column {column!r}"] if column is not None else []
        super().__init__(f"{', '.join(where)}: {message}")
        self.reason = message
        self.file, self.row, self.column = file, row, column


class DeadlineExceeded(VecdbError):
    """A search took longer than its `timeout`."""


class EncoderFailed(VecdbError):
    """A model's server cannot be reached, or what it replies is not one vector for each text."""


class Unauthenticated(VecdbError):
    """A server wants a key, or refuses the one that it was given. The message never holds it."""


class PermissionDenied(VecdbError):
    """The role or the collections of the key do not reach so far."""


class Overloaded(VecdbError):
    """A server has no room for what was asked, after several tries; or too many threads search at once.

    retry_after: seconds, if it said so.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(VecdbError):
    """A server cannot be reached, or went away before it answered."""


class CursorExpired(VecdbError):
    """A scroll over the wire was left unread for too long, and its snapshot let go; begin it again."""


class Cancelled(VecdbError):
    """The caller no longer wanted it."""


class PoorlyServed(UserWarning):
    """An index was built as declared, and serves these vectors badly, as was measured. Says what would be better."""


__all__ = [
    "AlreadyExists",
    "Cancelled",
    "Closed",
    "Corruption",
    "CursorExpired",
    "DeadlineExceeded",
    "DimensionMismatch",
    "DiskFull",
    "DuplicateId",
    "EncoderFailed",
    "EncoderMismatch",
    "InvalidFile",
    "InvalidFilter",
    "InvalidId",
    "InvalidInput",
    "InvalidPayload",
    "InvalidVector",
    "Locked",
    "NewerFormat",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "ReadOnly",
    "StorageError",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "VecdbError",
]
