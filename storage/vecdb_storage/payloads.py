"""Payloads: JSON objects, how they are stored, and what a path and a time in them is.

A path is written as `columns` says. Pure functions, safe in any thread. What is stored was validated by `column_build`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import orjson

from .errors import Corruption

Payload = dict[str, Any]
ABSENT = object()
PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS

_PARSED = 2048  # payloads in one call of the parser, about 2 ms
_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)?)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def join_path(keys: Sequence[str]) -> str:
    """The string form of a path."""
    return ".".join(key.replace("\\", "\\\\").replace(".", "\\.") for key in keys)


def split_path(path: str) -> tuple[str, ...]:
    """The keys of a path's string form; a backslash makes the character after it plain."""
    keys, key, characters = [], "", iter(path)
    for character in characters:
        if character == "\\":
            key += next(characters, "\\")
        elif character == ".":
            keys.append(key)
            key = ""
        else:
            key += character
    return (*keys, key)


def micros_of(text: str) -> int | None:
    """Microseconds since 1970 UTC if `text` is an RFC 3339 date or date-time; without an offset it is UTC."""
    if text[4:5] != "-" or not _TIME.fullmatch(text):
        return None
    try:
        return micros(datetime.fromisoformat(text.upper()))
    except ValueError:  # the 31st of February
        return None


def micros(time: date) -> int:
    """Microseconds since 1970 UTC of a date (its midnight) or date-time; a naive one is UTC."""
    if not isinstance(time, datetime):
        time = datetime(time.year, time.month, time.day)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def rfc3339(time: date) -> str:
    """How a date or date-time is stored."""
    if not isinstance(time, datetime):
        return time.isoformat()
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """Date-times as strings, NumPy scalars and subclasses of plain types as plain values; None for no JSON value."""
    if isinstance(value, date):
        return rfc3339(value)
    if isinstance(value, np.generic):
        item = value.item()
        return item if type(item) in PLAIN else ABSENT
    kinds: tuple[Any, ...] = (bool, int, float, str, dict, list)
    for kind in kinds:
        if isinstance(value, kind) and not _is_enum(value):
            return kind(value)
    return ABSENT


def _is_enum(value: Any) -> bool:
    import enum

    return isinstance(value, enum.Enum)


def default(value: Any) -> Any:
    converted = plain(value)
    if converted is ABSENT:
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return converted


def encode(payload: Payload | None) -> bytes:
    """A payload as stored: compact JSON, b"" for none."""
    return b"" if payload is None else orjson.dumps(payload, default, OPTIONS)


def parse(stored: bytes) -> Payload | None:
    """The inverse of `encode`."""
    if not stored:
        return None
    try:
        payload: Payload = orjson.loads(stored)
    except orjson.JSONDecodeError as error:
        raise Corruption(f"a payload is no JSON: {error}") from error
    return payload


def parse_all(stored: Sequence[bytes]) -> list[Payload | None]:
    """`parse` of each, many in one call of the parser; other threads get their turn between calls."""
    payloads: list[Payload | None] = []
    for start in range(0, len(stored), _PARSED):
        some = [text or b"null" for text in stored[start : start + _PARSED]]
        try:
            payloads += orjson.loads(b"[" + b",".join(some) + b"]")
        except orjson.JSONDecodeError as error:
            raise Corruption(f"a payload is no JSON: {error}") from error
    return payloads
