"""JSON lines: an object on each line. Blank lines are no rows, but have numbers, so that a row's number is that of its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from ...errors import InvalidFile
from ..sources import Source
from . import Options, Piece, Place, Unread
from .text import Blocks

_SHOWN = 200  # characters of a line that is no JSON


class JsonLines:
    def __init__(self, source: Source, options: Options) -> None:
        self._source = source
        self._blocks = Blocks(source, options.limits)

    @property
    def rows(self) -> None:
        return None

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        row = start.row
        for offset, block, size in self._blocks.from_offset(start.offset):
            lines = block.split(b"\n")
            if lines[-1] == b"":
                lines.pop()
            step = most or max(1, len(lines))
            for at in range(0, len(lines), step):
                some = lines[at : at + step]
                offset += sum(map(len, some)) + len(some)
                after = Place(row + len(some), offset)
                yield self._piece(some, row, after, size * len(some) // len(lines))
                row += len(some)

    def _piece(self, lines: list[bytes], row: int, after: Place, size: int) -> Piece:
        if row == 0 and lines and lines[0].lstrip(b"\xef\xbb\xbf \t")[:1] == b"[":
            raise InvalidFile(
                "it is one JSON array, and an object on each line is needed; `jq -c '.[]'` makes that of it",
                file=self._source.name,
            )
        try:
            rows = list(map(orjson.loads, lines))
            if set(map(type, rows)) == {dict}:
                return Piece(rows, range(row, row + len(rows)), after, size)
        except orjson.JSONDecodeError:
            pass
        return self._one_by_one(lines, row, after, size)

    def _one_by_one(self, lines: list[bytes], first: int, after: Place, size: int) -> Piece:
        rows: list[Mapping[str, Any]] = []
        numbers: list[int] = []
        unread = []
        for number, line in enumerate(lines, first):
            if not line.strip():
                continue
            try:
                value = orjson.loads(line)
                if isinstance(value, dict):
                    rows.append(value)
                    numbers.append(number)
                    continue
                reason = f"an object is needed, and it is {type(value).__name__}"
            except orjson.JSONDecodeError as error:
                reason = f"it is no JSON: {error}"
            unread.append(Unread(number, reason, text=line[:_SHOWN].decode(errors="replace")))
        return Piece(rows, numbers, after, size, unread)

    def close(self) -> None:
        self._blocks.close()
