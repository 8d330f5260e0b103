"""A file of `hnswlib.Index.save_index`, as a new collection. Neither hnswlib nor a compiler is needed.

Versions 0.7 and 0.8 write the same layout, little-endian, without a magic number, a version, a metric or a checksum:

    96 bytes                      the header, see `_HEADER`
    count x element_bytes         u16 links, u8 flags (bit 0: deleted), u8 zero; max_m0 u32 numbers of other elements;
                                  dim f32; u64 label
    count x                       u32 n, then the links in the upper layers: n / (4 max_m + 4) lists, often none

All that can be checked is what the parts say of each other, and nothing is used before it is: first the header and the lists of
the upper layers, whose lengths must end where the file does; then the links of each element as it is read. The file is read by
pread, a few MiB at a time, and not mapped: a file that is cut short meanwhile is then an error, where a map would end the
process. Memory is bounded by the batch; where none is given, by some hundred MiB.

Called by `Database.import_hnswlib`. An HnswlibFile belongs to one thread; `import_file` may be called in any.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from vecdb_storage.files import Files, typed

from ...errors import AlreadyExists, DuplicateId, InvalidId, InvalidInput, InvalidVector, VecdbError
from ...schema import MAX_DIM, Dense, Dtype, Metric

if TYPE_CHECKING:
    from ...api import Collection, Database

_HEADER = np.dtype(
    [
        ("offset_level0", "<u8"),  # 0
        ("max_elements", "<u8"),  # for which hnswlib had reserved memory
        ("count", "<u8"),
        ("element_bytes", "<u8"),
        ("label_offset", "<u8"),  # within an element, as the next
        ("data_offset", "<u8"),
        ("max_level", "<i4"),  # -1 in an empty file
        ("enter_point", "<u4"),  # likewise
        ("max_m", "<u8"),  # links of an element in an upper layer
        ("max_m0", "<u8"),  # and in the lowest
        ("m", "<u8"),
        ("mult", "<f8"),  # 1 / ln m
        ("ef_construction", "<u8"),
    ]
)
_MOST_M = 0xFFFF // 2  # the number of links is a u16, and the lowest layer has 2 m
_DELETED = 1 << 16  # in the first word of an element
_PIECE_BYTES = 4 << 20  # of the file, read at once
_BATCH_BYTES = 128 << 20  # of a commit; each becomes a segment, and few large ones are searched faster than many
_ROW_BYTES = 256  # of a row in memory beside its vector, roughly: its id as a Python value, hashes, offsets
_UNIT = 0.02  # how far the squared length of a vector that hnswlib normalised may be from 1

_log = logging.getLogger("vecdb")


@dataclass(frozen=True)
class Progress:
    """How far an import is: elements that are points now, that were left out as deleted, and that the file holds."""

    imported: int
    deleted: int
    total: int


@dataclass(frozen=True)
class Elements:
    """Consecutive elements that are not deleted. numbers, labels (n,) int64; vectors (n, d) float32. deleted: left out."""

    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float32]
    deleted: int


class HnswlibFile:
    """An open file whose header and upper layers have been checked. count: of its elements, the deleted ones among them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InvalidInput, NotFound, StorageError."""
        try:
            self.path = Path(path)
            with typed(self.path, "read"):
                mode = os.stat(self.path).st_mode
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the path of an hnswlib file is needed, not {path!r}: {error}") from None
        if not stat.S_ISREG(mode):  # to open a pipe would wait for ever
            raise InvalidInput(f"{self.path} is no file; give the one that hnswlib.Index.save_index wrote")
        self._files = Files()
        self._fd = self._files.open(self.path)
        try:
            self.size = os.fstat(self._fd).st_size
            self._check_header()
            self._check_upper_layers()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._files.close(self._fd)

    def __enter__(self) -> HnswlibFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # -- checks --------------------------------------------------------------------------------------

    def _wrong(self, field: str, why: str) -> InvalidInput:
        error = InvalidInput(
            f"{self.path}, {field}: {why}. Either the file is damaged, and is to be copied or saved again, or it is none of "
            f"hnswlib.Index.save_index: pickles, BFIndex and variants of hnswlib write other layouts"
        )
        error.field = field
        return error

    def _read(self, offset: int, length: int) -> bytes:
        data = self._files.read_at(self._fd, offset, length, self.path)
        if len(data) < length:
            raise self._wrong("size", f"it had {self.size:,} bytes, and became shorter while it was read")
        return data

    def _check_header(self) -> None:
        if self.size < _HEADER.itemsize:
            raise self._wrong("size", f"it has {self.size} bytes, and the header alone has {_HEADER.itemsize}")
        values: list[Any] = np.frombuffer(self._read(0, _HEADER.itemsize), _HEADER)[0].tolist()
        assert _HEADER.names is not None
        header = dict(zip(_HEADER.names, values, strict=True))
        m, max_m0, count = header["m"], header["max_m0"], header["count"]

        def check(field: str, right: bool, expected: str) -> None:
            if not right:
                value = header[field]
                raise self._wrong(field, f"it is {value if isinstance(value, float) else f'{value:,}'}, and {expected}")

        check("offset_level0", header["offset_level0"] == 0, "hnswlib writes 0")
        check("m", 2 <= m <= _MOST_M, f"hnswlib's M is from 2 to {_MOST_M:,}")
        check("max_m", header["max_m"] == m, f"M is {m:,}")
        check("max_m0", max_m0 == 2 * m, f"twice M is {2 * m:,}")
        check("mult", abs(header["mult"] * math.log(m) - 1) < 1e-9, f"1 / ln M is {1 / math.log(m)}")
        check("ef_construction", header["ef_construction"] >= m, f"it is never less than M, {m:,}")
        data_offset = 4 + 4 * max_m0
        check("data_offset", header["data_offset"] == data_offset, f"{max_m0:,} links take {data_offset:,} bytes")
        vector_bytes = header["label_offset"] - data_offset
        check(
            "label_offset",
            0 < vector_bytes <= 4 * MAX_DIM and vector_bytes % 4 == 0,
            f"the vector before it begins at {data_offset:,} and is of 1 to {MAX_DIM:,} numbers of 4 bytes",
        )
        element_bytes = header["label_offset"] + 8
        check("element_bytes", header["element_bytes"] == element_bytes, f"the label ends at {element_bytes:,}")
        check("max_elements", header["max_elements"] <= 1 << 32, "an element's number has 32 bits")
        check("count", count <= header["max_elements"], f"max_elements is {header['max_elements']:,}")
        least = _HEADER.itemsize + count * (element_bytes + 4)
        check("count", least <= self.size, f"so many elements take at least {least:,} bytes; the file has {self.size:,}")
        if count:
            check("enter_point", header["enter_point"] < count, f"there are {count:,} elements")
            check("max_level", header["max_level"] >= 0, "there are elements, so there is a layer 0")
        else:
            check("enter_point", header["enter_point"] == 0xFFFFFFFF, "there is no element")
            check("max_level", header["max_level"] == -1, "there is no element")
        self.count: int = count
        self.dim: int = vector_bytes // 4
        self._max_level, self._list_bytes = header["max_level"], 4 + 4 * header["max_m"]
        self._element = np.dtype(
            {
                "names": ["links", "vector", "label"],
                "formats": [("<u4", (1 + max_m0,)), ("<f4", (self.dim,)), "<u8"],
                "offsets": [0, data_offset, header["label_offset"]],
                "itemsize": element_bytes,
            }
        )

    def _check_upper_layers(self) -> None:
        """The links above the lowest layer: one length for each element, which lead exactly to the end of the file.

        All but one in m elements have none, and their lengths are runs of zeros that are passed at once.
        """
        first = _HEADER.itemsize + self.count * self._element.itemsize
        if (self.size - first) % 4:
            raise self._wrong("size", f"the links of the upper layers take {self.size - first:,} bytes, no multiple of 4")
        words, at, element, highest = (self.size - first) // 4, 0, 0, -1 if self.count == 0 else 0
        while at < words and element < self.count:
            window = np.frombuffer(self._read(first + 4 * at, min(_PIECE_BYTES, 4 * (words - at))), "<u4")
            lists, here = np.flatnonzero(window), 0
            while here < len(window) and element < self.count:
                found = int(np.searchsorted(lists, here))
                zeros = (int(lists[found]) if found < len(lists) else len(window)) - here
                zeros = min(zeros, self.count - element)
                element, here = element + zeros, here + zeros
                if here == len(window) or element == self.count:
                    break
                size = int(window[here])
                levels = size // self._list_bytes
                if size % self._list_bytes or levels > self._max_level:
                    lists_fit = f"a list takes {self._list_bytes:,}, and max_level is {self._max_level}"
                    raise self._wrong(f"upper layers of element {element:,}", f"they take {size:,} bytes; {lists_fit}")
                element, here, highest = element + 1, here + 1 + size // 4, max(highest, levels)
            at += here
        if element < self.count or at != words:
            raise self._wrong("size", f"it has {self.size:,} bytes, and the links of its {self.count:,} elements end elsewhere")
        if highest != self._max_level:
            raise self._wrong("max_level", f"it is {self._max_level}, and the highest element is in layer {highest}")

    # -- elements ------------------------------------------------------------------------------------

    def elements(self) -> Iterator[Elements]:
        """All elements in the order of the file, some MiB at a time. Raises InvalidInput, InvalidId, StorageError."""
        step = max(1, _PIECE_BYTES // self._element.itemsize)
        for start in range(0, self.count, step):
            rows = min(step, self.count - start)
            data = self._read(_HEADER.itemsize + start * self._element.itemsize, rows * self._element.itemsize)
            piece = np.frombuffer(data, self._element)
            first = piece["links"][:, 0]
            links, used = piece["links"][:, 1:], first & 0xFFFF
            inside = np.arange(links.shape[1]) < used[:, None]
            for strange, why in (
                (first >> 17 != 0, "its flags are none that hnswlib sets"),
                (used > links.shape[1], f"it has more links than the {links.shape[1]:,} of the header"),
                (((links >= self.count) & inside).any(1), f"a link leads to none of the {self.count:,} elements"),
            ):
                if strange.any():
                    raise self._wrong(f"links of element {start + int(strange.argmax()):,}", why)
            live = np.flatnonzero(first & _DELETED == 0)
            labels = piece["label"][live]
            numbers = live + start
            if len(labels) and int(labels.max()) > np.iinfo(np.int64).max:
                at = int(labels.argmax())
                raise InvalidId(
                    f"{self.path}, element {int(numbers[at]):,}: its label does not fit int64, as ids do; give it another "
                    f"in hnswlib, or mark it as deleted, and save the index again",
                    point=int(labels[at]),
                )
            yield Elements(numbers, labels.astype(np.int64), piece["vector"][live], rows - len(live))


def import_file(
    database: Database,
    name: str,
    path: str | os.PathLike[str],
    metric: Metric,
    dtype: Dtype,
    index: Any,
    batch: int | None,
    progress: Callable[[Progress], None] | None,
) -> Collection:
    """See `Database.import_hnswlib`, which has checked `name`.

    Points go to a collection of another name, which takes its own when it is complete: so there is never a half-filled one
    of that name, not even after a kill.
    """
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise InvalidInput(f"batch must be a whole number of points from 1 up, not {batch!r}")
    if progress is not None and not callable(progress):
        raise InvalidInput(f"progress is called with a Progress after each commit; {progress!r} cannot be")
    with HnswlibFile(path) as file:
        field = Dense(file.dim, metric, dtype, index)
        partial = f"{name[:118]}.importing"  # a name has 128 characters
        try:
            collection = database.create_collection(partial, field)
        except AlreadyExists:
            raise AlreadyExists(
                f"collection {partial!r} exists: {name!r} is being imported now, or that was cut short; if it was, drop it"
            ) from None
        try:
            rows = batch or max(1, _BATCH_BYTES // (4 * file.dim + _ROW_BYTES))
            done = _fill(collection, file, rows, metric, progress)
            database.rename_collection(partial, name)
        except BaseException:
            with suppress(VecdbError):  # what went wrong matters more; the name says that it is incomplete
                database.drop_collection(partial)
            raise
    _log.info(
        "imported %s points from %s; %s elements that are marked as deleted were left out",
        f"{done.imported:,}", file.path, f"{done.deleted:,}",
    )  # fmt: skip
    return collection


def _fill(
    collection: Collection, file: HnswlibFile, rows: int, metric: Metric, progress: Callable[[Progress], None] | None
) -> Progress:
    """Inserts all elements, `rows` in a commit, and returns how many there were."""
    rows = min(rows, max(1, file.count))
    numbers, labels = np.empty(rows, np.int64), np.empty(rows, np.int64)
    vectors = np.empty((rows, file.dim), np.float32)
    filled = imported = deleted = 0

    def commit() -> None:
        nonlocal filled, imported
        if filled:
            _insert(collection, file, numbers[:filled], labels[:filled], vectors[:filled], metric)
        imported, filled = imported + filled, 0
        if progress is not None:
            progress(Progress(imported, deleted, file.count))

    for some in file.elements():
        deleted += some.deleted
        taken = 0
        while taken < len(some.labels):
            if filled == rows:
                commit()
            fit = min(rows - filled, len(some.labels) - taken)
            for kept, new in ((numbers, some.numbers), (labels, some.labels), (vectors, some.vectors)):
                kept[filled : filled + fit] = new[taken : taken + fit]
            filled, taken = filled + fit, taken + fit
    commit()
    return Progress(imported, deleted, file.count)


def _insert(
    collection: Collection,
    file: HnswlibFile,
    numbers: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    metric: Metric,
) -> None:
    """One commit. Errors name the file and the element."""
    if metric == "cosine":
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.vecdot(vectors, vectors)
            odd = (squares > 0) & (abs(squares - 1) > _UNIT) & np.isfinite(squares)
        if odd.any():
            at = int(odd.argmax())
            raise InvalidVector(
                f"{file.path}, element {numbers[at]:,}: its length is {math.sqrt(squares[at]):.3g}, and cosine indexes of "
                f"hnswlib hold vectors of length 1; say the metric that the index was made with, 'ip' or 'l2'",
                point=int(labels[at]),
            )
    try:
        collection.insert(ids=labels, vectors=vectors)
    except (AlreadyExists, DuplicateId):
        label = _twice(collection, labels)
        raise DuplicateId(
            f"{file.path}: two elements that are not deleted have this label, as hnswlib leaves them where an existing label "
            f"was added with replace_deleted=True. In hnswlib, load_index, mark_deleted({label}), save_index leave one of them",
            point=label,
        ) from None
    except InvalidVector as error:
        raise InvalidVector(f"{file.path}: {error.reason}", point=error.point, field=error.field) from None


def _twice(collection: Collection, labels: npt.NDArray[np.int64]) -> int:
    """The first label that an earlier element of the batch or a point of the collection has."""
    known = collection.get(labels, with_vectors=False, with_payload=False)
    seen: set[int] = set()
    for label, point in zip(labels.tolist(), known, strict=True):
        if point is not None or label in seen:
            return int(label)
        seen.add(label)
    raise AssertionError("an insert was refused for labels that occur once")
