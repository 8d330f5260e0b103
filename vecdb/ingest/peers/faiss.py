"""A file of `faiss.write_index`, as one collection with the file's name and the field "vector".

    IndexFlat, IndexIVFFlat, IndexHNSWFlat, IndexNSGFlat, IndexRefineFlat     vectors bit by bit
    PQ, SQ, RaBitQ, LSH …, also in IVF and HNSW; behind OPQ, PCA, rotations   what faiss reconstructs; a warning says so
    IndexIDMap and IndexIDMap2 of these, ids of IVF                           ids; else positions from 0
    others, such as fast-scan IVF                                             refused

Inner product is "ip", L2 is "l2", whatever the vectors were scaled to: say "cosine" where that is what they are for. Other
metrics are refused unless one is said. Not kept: the index itself, its parameters and its training. The file is mapped and not
read where faiss can do that, so memory is a batch; it must not be changed meanwhile.

faiss ends the process where some of its loops meet an error or a type that they are not made for. So it is asked to reconstruct
only vectors of the types above, and first one by itself. Called by `import_from`, in any thread.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidFile, InvalidInput, NotFound, Unsupported
from ...schema import DEFAULT_FIELD, Dense, Metric
from ..reading import reading
from . import Rows, Table, chosen, foreign, rows_at_once

_log = logging.getLogger("vecdb")

_Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]  # ids (n,), vectors (n, d)


@contextmanager
def tables(path: str, only: str | None, metric: Metric | None) -> Iterator[list[Table]]:
    """Raises NotFound, InvalidFile, InvalidInput, Unsupported, StorageError."""
    if not os.path.exists(path):
        raise NotFound(f"{path}: there is no such file")
    if not os.path.isfile(path):  # to open a pipe would wait for ever
        raise InvalidFile("it is no file; give one that faiss.write_index wrote", file=path)
    with reading(path), open(path, "rb") as file:
        magic = file.read(4)
    if magic[:2] == b"IB":
        raise Unsupported(f"{path}: it holds a binary index, and there are no fields of bits; only others can be imported")
    if len(magic) < 4 or magic[:1] != b"I" or not magic.isalnum():
        raise InvalidFile("it is no file of faiss.write_index: those begin with the code of an index", file=path)
    (name,) = chosen(path, [Path(path).stem], only)
    with foreign(path, "faiss"):
        import faiss

        index = faiss.read_index(path, getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        metrics: dict[int, Metric] = {faiss.METRIC_INNER_PRODUCT: "ip", faiss.METRIC_L2: "l2"}
        said = metrics.get(index.metric_type)
        kind = type(index).__name__
        fields = {DEFAULT_FIELD: Dense(index.d, metric or said or "l2")}
    if metric is None and said is None:
        raise InvalidInput(f"{path}: its metric is number {index.metric_type} of faiss; say --metric cosine, ip or l2")
    parts, exact = _parts(path, faiss, index, rows_at_once(fields))
    if not exact and index.ntotal:
        _log.warning("%s: an %s keeps no vectors, only codes: those imported are approximations of what was added", path, kind)
    yield [Table(name, fields, int(index.ntotal), _batches(path, index, parts))]


def _batches(path: str, index: Any, parts: Iterator[_Part]) -> Iterator[Rows]:
    """index: what `parts` point into lives as long as it does."""
    done = 0
    with foreign(path, "faiss"):
        for ids, vectors in parts:
            done += len(ids)
            yield Rows(ids, {DEFAULT_FIELD: vectors}, None)
        if done != index.ntotal:
            raise InvalidFile(f"it has {index.ntotal:,} vectors, of which {done:,} could be read", file=path)


def _parts(path: str, faiss: Any, index: Any, step: int) -> tuple[Iterator[_Part], bool]:
    """The vectors of an index with their ids, and whether they are what was added, bit by bit. Raises Unsupported."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexIDMap):
        inner, exact = _parts(path, faiss, index.index, step)
        return _renamed(faiss, index, inner), exact
    if isinstance(index, faiss.IndexPreTransform):
        inner, _ = _parts(path, faiss, index.index, step)
        return _transformed_back(path, faiss, index, inner), False
    if isinstance(index, faiss.IndexRefine):
        return _parts(path, faiss, index.refine_index, step)
    if isinstance(index, faiss.IndexHNSW | faiss.IndexNSG):
        return _parts(path, faiss, index.storage, step)
    if type(index) is faiss.IndexIVFFlat:
        return _lists(path, faiss, index, step, True), True
    if isinstance(index, _types(faiss, "IndexIVFPQ", "IndexIVFScalarQuantizer", "IndexIVFRaBitQ")):
        return _lists(path, faiss, index, step, False), False
    exact = isinstance(index, faiss.IndexFlat)
    if not isinstance(index, _types(faiss, "IndexFlatCodes", "IndexPQFastScan")):
        raise _unsupported(path, index)
    _check(path, index)
    return _positions(index.ntotal, step, lambda start, n: index.reconstruct_n(start, n)), exact


def _types(faiss: Any, *names: str) -> tuple[Any, ...]:
    """Those that this version of faiss has."""
    return tuple(getattr(faiss, name) for name in names if hasattr(faiss, name))


def _unsupported(path: str, index: Any) -> Unsupported:
    return Unsupported(
        f"{path}: vectors cannot be reconstructed from an {type(index).__name__}; import them from where they came"
    )


def _check(path: str, index: Any) -> None:
    """Raises Unsupported where one vector cannot be reconstructed: then none can."""
    if index.ntotal:
        try:
            index.reconstruct(0)
        except RuntimeError:
            raise _unsupported(path, index) from None


def _one_by_one(reconstruct: Callable[..., Any], numbers: range) -> npt.NDArray[np.float32]:
    return np.stack([reconstruct(number) for number in numbers])


def _positions(total: int, step: int, read: Callable[[int, int], npt.NDArray[np.float32]]) -> Iterator[_Part]:
    for start in range(0, total, step):
        count = min(step, total - start)
        yield np.arange(start, start + count, dtype=np.int64), read(start, count)


def _renamed(faiss: Any, index: Any, parts: Iterator[_Part]) -> Iterator[_Part]:
    names = faiss.rev_swig_ptr(index.id_map.data(), index.ntotal) if index.ntotal else np.empty(0, np.int64)
    for positions, vectors in parts:
        yield names[positions].copy(), vectors


def _transformed_back(path: str, faiss: Any, index: Any, parts: Iterator[_Part]) -> Iterator[_Part]:
    for ids, inner in parts:
        given, vectors = np.ascontiguousarray(inner), np.empty((len(ids), index.d), np.float32)
        try:
            index.reverse_chain(len(ids), faiss.swig_ptr(given), faiss.swig_ptr(vectors))
        except RuntimeError:
            raise _unsupported(path, index) from None
        yield ids, vectors


def _lists(path: str, faiss: Any, index: Any, step: int, exact: bool) -> Iterator[_Part]:
    """An inverted file, list after list. Its codes are the vectors themselves where it is `exact`."""
    lists = index.invlists
    for number in range(index.nlist):
        size = lists.list_size(number)
        if not size:
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
        codes = faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size) if exact else None
        for start in range(0, size, step):
            end = min(start + step, size)
            if codes is not None:
                data = codes[start * lists.code_size : end * lists.code_size]
                vectors = data.view(np.float32).reshape(-1, index.d).copy()
            else:
                vectors = _one_by_one(lambda at, n=number: _reconstructed(path, faiss, index, n, at), range(start, end))
            yield ids[start:end].copy(), vectors


def _reconstructed(path: str, faiss: Any, index: Any, number: int, at: int) -> Any:
    vector = np.empty(index.d, np.float32)
    try:
        index.reconstruct_from_offset(number, at, faiss.swig_ptr(vector))
    except RuntimeError:
        raise _unsupported(path, index) from None
    return vector
