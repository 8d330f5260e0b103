"""CSV and TSV, with a header. Types are those of the first MiB; what does not fit them later is a row that is unread.

Blocks of whole records are parsed by pyarrow. Where a block cannot be, its columns are read as bytes and converted one by one,
to find the rows at fault.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from ...errors import InvalidFile, InvalidInput
from ..sources import Source
from . import Limits, Options, Piece, Place, Unread
from .text import Blocks

_SHOWN = 200
_LOOKED_AT = 1 << 20  # bytes from which types are taken
_ZEROS = r"^[+-]?0\d|^\+"  # of numbers that say more than their value
_LONG = _ZEROS + r"|^-?\d{16,}$"  # likewise as floats, which also round whole numbers of so many digits
_PADDED = rb"(?:^|[%b\n\"])(?:[+-]?0\d|\+|[+-]?\d{16})"  # where such a value may be, of some delimiter
_DELIMITERS = ",;\t|"  # usual ones
_BOM = b"\xef\xbb\xbf"


class Csv:
    def __init__(self, source: Source, options: Options) -> None:
        self._source = source
        said = options.delimiter
        if said is not None and (len(said.encode()) != 1 or said in '"\r\n'):
            raise InvalidInput(f"a delimiter is one ASCII character, and no quote or end of a line; not {said!r}")
        self._delimiter = said or ("\t" if source.format == "tsv" else ",")
        self._guessed = said is None
        self._numbers = re.compile(_PADDED % re.escape(self._delimiter.encode()))
        self._limits = options.limits
        self._blocks = Blocks(source, options.limits, quoted=True)
        self._names: list[str] = []
        self._types: dict[str, Any] = {}
        self._asked = {name: _TYPES[kind] for name, kind in options.types.items()}
        self._said = frozenset(self._asked)

    @property
    def rows(self) -> None:
        return None

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        row = start.row
        if not self._names and self._source.can_be_resumed:
            self._look()
        for offset, block, size in self._blocks.from_offset(start.offset):
            if offset == 0:
                block, offset = self._without_header(block)
            for records, share in self._split(block, most):
                offset += len(records)
                table, unread, count = self._parsed(records, row)
                after = Place(row + count, offset)
                numbers: Any = range(row, row + count)
                if unread:
                    lost = {each.row for each in unread}
                    numbers = [number for number in numbers if number not in lost]
                yield Piece(table, numbers, after, round(size * share), unread)
                row += count

    def _look(self) -> None:
        """Takes header and types from the beginning of the file: always the same, wherever it is read from."""
        blocks = Blocks(self._source, Limits(_LOOKED_AT, self._limits.line), quoted=True)
        try:
            for _, block, _ in blocks.from_offset(0):
                self._parsed(self._without_header(block)[0], 0)
                return
        finally:
            blocks.close()

    def _split(self, block: bytes, most: int | None) -> Iterator[tuple[bytes, float]]:
        """A block in parts of at most so many records, and their shares of it."""
        if most is None:
            yield block, 1.0
            return
        start = 0
        while start < len(block):
            end, quotes = start, 0
            for _ in range(most):
                while True:  # to the end of a record
                    newline = block.find(b"\n", end) + 1 or len(block)
                    quotes += block.count(b'"', end, newline)
                    end = newline
                    if quotes % 2 == 0 or end == len(block):
                        break
                if end == len(block):
                    break
            yield block[start:end], (end - start) / len(block)
            start = end

    def _without_header(self, block: bytes) -> tuple[bytes, int]:
        (header, _), *_ = self._split(block, 1)
        try:
            text = header.removeprefix(_BOM).decode()
        except UnicodeDecodeError as error:
            raise InvalidFile(
                f"its header is not UTF-8 ({error.reason}); `iconv -t utf-8` converts it", file=self._source.name
            ) from None
        names = next(csv.reader(io.StringIO(text), delimiter=self._delimiter), [])
        if self._guessed and len(names) == 1 and (other := next((each for each in _DELIMITERS if each in names[0]), None)):
            raise InvalidFile(
                f"its columns seem to be delimited by {other!r}; say --delimiter {other!r} (in Python, delimiter={other!r})",
                file=self._source.name,
            )
        if not names or len(set(names)) != len(names) or not all(names):
            raise InvalidFile(f"its first line is to name each column once; it is {text[:_SHOWN]!r}", file=self._source.name)
        unknown = [name for name in self._asked if name not in names]
        if unknown:
            raise InvalidFile(f"there is no column {unknown[0]!r}, of which a type was given", file=self._source.name)
        self._names = names
        return block[len(header) :], len(header)

    # -- records -------------------------------------------------------------------------------------

    def _parsed(self, records: bytes, first: int) -> tuple[Any, list[Unread], int]:
        """The rows that can be read, those that cannot, and how many there are together."""
        ragged: list[Any] = []
        try:
            table = self._arrow(records, self._types or self._asked, ragged)
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return self._empty(), [], 0
            return self._by_column(records, first)
        if ragged or (padded := self._padded(records, table)):
            if not self._types and not ragged:  # a column of such values is one of texts
                self._asked |= dict.fromkeys(padded, pa.string())
                return self._parsed(records, first)
            return self._by_column(records, first)
        binary = [field.name for field in table.schema if pa.types.is_binary(field.type)]
        if binary and not self._types:  # texts that are not UTF-8: these rows are named
            self._asked |= dict.fromkeys(binary, pa.string())
            return self._by_column(records, first)
        if not self._types:
            self._types = {field.name: pa.string() if pa.types.is_null(field.type) else field.type for field in table.schema}
            table = table.cast(pa.schema(list(self._types.items())))
        return _as_batch(table), [], table.num_rows

    def _empty(self) -> Any:
        return _as_batch(pa.table({name: pa.array([], self._types.get(name, pa.string())) for name in self._names}))

    def _padded(self, records: bytes, table: Any) -> list[str]:
        """Columns of numbers in which some value, such as 007 or a whole number of 20 digits, would not come back as it was."""
        numbers = [
            column.name for column in table.schema
            if (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)) and column.name not in self._said
        ]  # fmt: skip
        if not numbers or not self._numbers.search(records):
            return []
        texts = self._arrow(records, dict.fromkeys(numbers, pa.string()), [], only=numbers)
        return [name for name in numbers if not _keeps(texts.column(name), table.schema.field(name).type)]

    def _arrow(self, records: bytes, types: dict[str, Any], ragged: list[Any], only: list[str] | None = None) -> Any:
        def note(row: Any) -> str:
            ragged.append(row)
            return "skip"

        return arrow_csv.read_csv(
            pa.BufferReader(records),
            arrow_csv.ReadOptions(column_names=self._names, use_threads=False, block_size=len(records) + 1),
            arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True, invalid_row_handler=note),
            arrow_csv.ConvertOptions(
                column_types=types,
                include_columns=only or [],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )

    def _by_column(self, records: bytes, first: int) -> tuple[Any, list[Unread], int]:
        ragged: list[Any] = []
        table = self._arrow(records, dict.fromkeys(self._names, pa.binary()), ragged)
        count = table.num_rows + len(ragged)
        unread = [
            Unread(
                first + row.number - 1,
                f"it has {row.actual_columns} columns, and the header names {row.expected_columns}",
                text=row.text[:_SHOWN],
            )
            for row in ragged
        ]
        lost = {each.row for each in unread}
        numbers = [number for number in range(first, first + count) if number not in lost]
        if not self._types:
            self._types = {name: self._asked.get(name) or _guess(table.column(name)) for name in self._names}
        columns = {}
        bad: dict[int, tuple[str, str]] = {}
        for name in self._names:
            columns[name], wrong = _converted(
                table.column(name).combine_chunks(), self._types[name], as_said=name in self._said
            )
            for at, text in wrong:
                bad.setdefault(at, (name, text))
        keep = pa.array([at for at in range(table.num_rows) if at not in bad], pa.int64())
        unread += [
            Unread(numbers[at], _why(text, self._types[name]), column=name, text=text[:_SHOWN])
            for at, (name, text) in bad.items()
        ]
        kept = pa.table(columns).take(keep)
        return _as_batch(kept), sorted(unread, key=lambda each: each.row), count

    def close(self) -> None:
        self._blocks.close()


_TYPES = {
    "string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "time": pa.timestamp("us", "UTC"),
}  # fmt: skip


def _as_batch(table: Any) -> Any:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)


def _why(text: str, kind: Any) -> str:
    if kind == pa.string():
        return "it is not UTF-8; `iconv -t utf-8` converts the file"
    said = next((name for name, each in _TYPES.items() if each == kind), str(kind))
    return f"{text[:40]!r} is no {said}, as the column is by its first rows; if it is text, say --type COLUMN=string"


def _guess(column: Any) -> Any:
    """The type of most values: what a column is, some of whose values cannot be read."""
    sample = [text.decode(errors="replace") for text in column.to_pylist()[:1000] if text]
    for kind in (pa.int64(), pa.float64(), pa.bool_()):
        right = sum(_fits(text, kind) for text in sample)
        if sample and right > 0.9 * len(sample) and _keeps(pa.array(sample), kind):
            return kind
    return pa.string()


def _fits(text: str, kind: Any) -> bool:
    try:
        pa.scalar(text).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _keeps(column: Any, kind: Any) -> bool:
    """Whether texts say no more than their values as numbers of this kind."""
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        return True
    return not pc.any(pc.match_substring_regex(column, _ZEROS if pa.types.is_integer(kind) else _LONG)).as_py()


def _converted(column: Any, kind: Any, *, as_said: bool) -> tuple[Any, list[tuple[int, str]]]:
    """A column of bytes as `kind`, null where that cannot be, and those places with their text. as_said: the user said so."""
    empty = pc.equal(pc.binary_length(column), 0)
    column = pc.if_else(empty, pa.scalar(None, pa.binary()), column)
    wrong: list[tuple[int, str]] = []

    def convert(part: Any, start: int) -> list[Any]:
        try:
            texts = part.cast(pa.string())
            if not as_said and not _keeps(texts, kind):
                raise pa.ArrowInvalid(_ZEROS)
            return [texts.cast(kind)]
        except pa.ArrowInvalid:
            if len(part) == 1:
                wrong.append((start, part[0].as_py().decode(errors="replace")))
                return [pa.nulls(1, kind)]
            half = len(part) // 2
            return convert(part[:half], start) + convert(part[half:], start + half)

    return pa.concat_arrays(convert(column, 0)) if len(column) else pa.array([], kind), wrong
