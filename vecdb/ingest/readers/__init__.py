"""Readers: one for each format of file, behind one small contract.

A Reader gives the rows of one Source in order, in Pieces, from any place where an earlier Piece has ended. Pieces are Arrow
record batches where the format has types, and lists of dicts where it has none (JSON). A row that cannot be read at all is
`Unread` and stands beside the others; a file that cannot be read on raises InvalidFile. Readers belong to one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ...errors import Unsupported
from ..sources import Source

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Place:
    """Between two rows of a file. row: how many are before. offset: where the reader finds it; its own."""

    row: int = 0
    offset: int = 0


START = Place()


@dataclass(frozen=True)
class Unread:
    """A row that could not be read. text: the beginning of it."""

    row: int
    reason: str
    column: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class Piece:
    """Consecutive rows. numbers: of each row in its file, without those in `unread`. bytes: of the file, read for it."""

    rows: pa.RecordBatch | Sequence[Mapping[str, Any]]
    numbers: Sequence[int]
    after: Place
    bytes: int
    unread: Sequence[Unread] = ()

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True)
class Limits:
    """What a reader may use. piece: bytes of a Piece in memory, about. line: the longest line of a text, in bytes."""

    piece: int = 8 << 20
    line: int = 64 << 20


@dataclass(frozen=True)
class Options:
    """What the user says of files, where they do not. dataset: of an HDF5 file. ids: a file beside an NPY file. types: of the
    columns of a CSV file: "string", "int", "float", "bool", "time". delimiter: of its columns; a comma, or in TSV a tab.
    """

    dataset: str | None = None
    ids: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    limits: Limits = field(default_factory=Limits)


class Reader(Protocol):
    @property
    def rows(self) -> int | None:
        """Of the whole file, where it says that before it is read."""

    def read(self, start: Place, most: int | None = None) -> Iterator[Piece]:
        """Pieces from a place on, of at most so many rows. Raises InvalidFile, StorageError."""

    def close(self) -> None: ...


class FileReader:
    """What readers of files that are not text have in common: the open file, which is closed where its beginning is refused."""

    def __init__(self, source: Source, options: Options) -> None:
        self._source, self._options, self._limits = source, options, options.limits
        self._file: Any = source.open()
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        """Reads what the file says of itself."""
        raise NotImplementedError

    def close(self) -> None:
        self._file.close()


@runtime_checkable
class Pruning(Protocol):
    """A Reader of a format in which columns lie apart."""

    def prune(self, choose: Callable[[Sequence[str]], list[str]]) -> None:
        """Only the columns that `choose` takes of all are read from now on."""


_MODULES = {
    "parquet": ("parquet", "Parquet"),
    "arrow": ("arrow", "Arrow"),
    "jsonl": ("json_lines", "JsonLines"),
    "csv": ("csv", "Csv"),
    "tsv": ("csv", "Csv"),
    "npy": ("numpy", "Npy"),
    "npz": ("sparse", "CsrNpz"),
    "seismic": ("sparse", "Seismic"),
    "fvecs": ("vecs", "Vecs"),
    "bvecs": ("vecs", "Vecs"),
    "ivecs": ("vecs", "Vecs"),
    "fbin": ("vecs", "Bin"),
    "u8bin": ("vecs", "Bin"),
    "i8bin": ("vecs", "Bin"),
    "hdf5": ("hdf5", "Hdf5"),
}


def open_reader(source: Source, options: Options) -> Reader:
    """The reader of a file. Raises InvalidFile, NotFound, StorageError, Unsupported."""
    from importlib import import_module

    from ..reading import reading

    module, name = _MODULES[source.format]
    with reading(source.name):
        try:
            reader: Reader = getattr(import_module("." + module, __name__), name)(source, options)
        except ImportError as error:
            raise Unsupported(f"{source.name}: {error}") from error
    return reader
