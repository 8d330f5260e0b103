"""Text files, as blocks of whole records: what JSON lines and CSV have in common.

A Place's offset counts the decompressed bytes before a record. In a plain local file it is gone to at once; elsewhere what is
before it is read, decompressed and dropped. Memory is bounded by the piece and by the longest record that is allowed, whatever
the file decompresses to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...errors import InvalidFile
from ..reading import reading
from ..sources import STDIN, Source, read_fully
from . import Limits

_SKIPPED = 1 << 20  # bytes that are dropped at once


class Blocks:
    """A stream of blocks, each of whole records. quoted: newlines between double quotes are no ends."""

    def __init__(self, source: Source, limits: Limits, *, quoted: bool = False) -> None:
        self._source, self._limits, self._quoted = source, limits, quoted
        self._stream: Any
        self._stream, self._beneath = source.open_text()
        self._used = False

    def from_offset(self, offset: int) -> Iterator[tuple[int, bytes, int]]:
        """(offset, records, bytes of the file), from an offset at which a record begins. Raises InvalidFile, StorageError."""
        with reading(self._source.name):
            if offset or self._used:
                self._go_to(offset)
            self._used = True
            before, kept = self._told(), b""
            while True:
                data = read_fully(self._stream, self._limits.piece)
                block = kept + data
                end = len(block) if len(data) < self._limits.piece else last_end(block, quoted=self._quoted)
                if end:
                    told = self._told()
                    yield offset, block[:end], told - before
                    before = told
                offset, kept = offset + end, block[end:]
                if len(data) < self._limits.piece:
                    return
                if len(kept) > self._limits.line:
                    raise InvalidFile(
                        f"the record that begins at byte {offset:,} has more than {self._limits.line:,} bytes; if that is "
                        f"right, say --max-line-mib, and else look for a quote or a newline that is missing",
                        file=self._source.name,
                    )

    def _go_to(self, offset: int) -> None:
        if self._source.url == STDIN:
            raise InvalidFile("it can be read only once, from its beginning", file=self._source.name)
        if self._source.compression is None:
            self._stream.seek(offset)
            return
        self.close()
        self._stream, self._beneath = self._source.open_text()
        left = offset
        while left:
            dropped = len(read_fully(self._stream, min(left, _SKIPPED)))
            if not dropped:
                raise InvalidFile(f"it ends before byte {offset:,}, to which it was read before", file=self._source.name)
            left -= dropped

    def _told(self) -> int:
        return self._beneath.tell()

    def close(self) -> None:
        try:
            if self._stream is not self._beneath:
                self._stream.close()  # which may complain of what it has not read
        except OSError:
            pass
        finally:
            self._beneath.close()


def last_end(block: bytes, *, quoted: bool) -> int:
    """Where the last whole record of a block ends that begins with one."""
    end = block.rfind(b"\n") + 1
    if not quoted:
        return end
    quotes = block.count(b'"', 0, end)
    while end and quotes % 2:
        earlier = block.rfind(b"\n", 0, end - 1) + 1
        quotes -= block.count(b'"', earlier, end)
        end = earlier
    return end
