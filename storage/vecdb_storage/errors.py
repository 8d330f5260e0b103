"""The errors that the storage engine itself can meet: the roots of the tree drawn in `vecdb/errors.py`.

They live here because the engine raises them and knows nothing of the product. Every class carries what it
reports as attributes, so that a caller can act on it without reading the message.
"""

from __future__ import annotations


class VecdbError(Exception):
    """Root of every error that vecdb raises on purpose.

    applied: how many points of an iterable had been committed when a later one was refused. request_id: what a server
    logged the request as, where there was one.
    """

    applied: int = 0
    request_id: str | None = None


def without_trace(error: VecdbError) -> VecdbError:
    """An error to keep: its trace would keep alive what the frames held, files that are mapped among it.

    Of an error that is raised, no frame in its trace may hold it for the same reason, itself or in something else: frames and
    error would wait for Python's collector together, and a full disk for the room of files that were deleted.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


class InvalidInput(VecdbError, ValueError):
    """The caller's data or arguments are wrong; nothing was written.

    point: the id (or position) of the offending point, when one can be named. query: the position of a query. field: the
    vector field or payload path.
    """

    def __init__(self, message: str, *, point: object = None, query: object = None, field: str | None = None) -> None:
        where = [f"{name} {one!r}" for name, one in (("point", point), ("query", query)) if one is not None]
        where += [f"field {field!r}"] if field is not None else []
        super().__init__(f"{', '.join(where)}: {message}" if where else message)
        self.reason = message
        self.point = point
        self.query = query
        self.field = field


class InvalidPayload(InvalidInput):
    """A payload is no JSON object, holds a value JSON cannot express, or is larger than 1 MiB."""


class DuplicateId(InvalidInput):
    """An id occurs twice in one batch."""


class AlreadyExists(VecdbError):
    """A collection, field or (for `insert`) point of that name is already there."""


class NotFound(VecdbError, KeyError):
    """No such database, collection, field or point."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class Locked(VecdbError):
    """Another process writes to this database. pid, host: its owner, as its lock file says."""

    def __init__(self, message: str, *, pid: int | None = None, host: str | None = None) -> None:
        super().__init__(message)
        self.pid = pid
        self.host = host


class Closed(VecdbError):
    """The database was closed, or this process is a fork of the one that opened it."""


class ReadOnly(VecdbError):
    """A write was asked of a database opened with `read_only=True`."""


class Corruption(VecdbError):
    """Bytes on disk are not what was written. file, array, block: where; nothing is guessed in their place."""

    def __init__(self, message: str, *, file: str | None = None, array: str | None = None, block: int | None = None) -> None:
        where = [part for part in (file, array, None if block is None else f"block {block}") if part]
        super().__init__(f"{', '.join(where)}: {message}" if where else message)
        self.file = file
        self.array = array
        self.block = block


class StorageError(VecdbError):
    """The operating system refused a read, write or sync.

    outcome: "failed" (the state is as before) or "unknown" (a sync failed: the store has re-read itself
    from disk, and what it then showed is in the message).
    """

    def __init__(self, message: str, *, outcome: str = "failed", file: str | None = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.file = file


class DiskFull(StorageError):
    """No space is left on the device; the state is as before the call."""


class Unsupported(VecdbError):
    """This platform cannot do it, or an optional package is missing; the message says which."""


class NewerFormat(VecdbError):
    """The files were written by a later version. needs: the version that can read them."""

    def __init__(self, message: str, *, needs: str) -> None:
        super().__init__(message)
        self.needs = needs
