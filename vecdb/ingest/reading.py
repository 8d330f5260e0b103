"""Turns whatever goes wrong while a file is read into one typed error that names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InvalidFile, NotFound, StorageError, VecdbError


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Errors of the operating system, of servers and of parsers, met in the block, become typed ones that name the file."""
    try:
        yield
    except VecdbError:
        raise
    except FileNotFoundError:
        raise NotFound(f"{file}: there is no such file") from None
    except (IsADirectoryError, PermissionError) as error:
        raise StorageError(f"{file}: {error.strerror}", file=file) from error
    except (OSError, EOFError) as error:
        # pyarrow's own errors of damaged files are OSErrors without a number
        if getattr(error, "errno", None) is None:
            raise InvalidFile(f"it cannot be read: {_one_line(error)}", file=file) from error
        raise StorageError(f"{file}: {getattr(error, 'strerror', None) or error}", file=file) from error
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise InvalidFile(f"it cannot be read: {_one_line(error)}", file=file) from error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 400 else text[:400] + " …"
