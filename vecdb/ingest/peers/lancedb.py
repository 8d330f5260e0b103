"""A directory of `lancedb.connect`: its tables, in their latest version. Also one table of it, a folder that ends in .lance.

    fixed-size lists of floats      fields of vectors, under their names: f16 as f16, f32 and f64 as f32, the latter only if no
                                    number changes by that
    id, _id, uuid, key, …           the id, if its column has whole numbers or texts (`mapping.py` has the names); else rows are
                                    numbered from 0
    all other columns               the payload, nulls and nested values as well; times as `Collection.upsert` stores them

A column's metric is that of its index, and where there is none l2, as in a search of lancedb. Refused are columns that are no
JSON: bytes, decimals, times of day, durations, maps. Not kept: older versions, tags, indexes, embedding functions. lancedb does
not write when it reads. Tables are read a batch at a time, of one version.

Called by `import_from`, in any thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InvalidFile, InvalidInput, InvalidVector, NotFound
from ...schema import Dense, Metric
from ..mapping import ROW, Wanted, columns_of, settle
from ..readers import START, Piece
from . import Rows, Table, chosen, foreign, rows_at_once

_ENDING = ".lance"
_METRICS: dict[str, Metric] = {"l2": "l2", "cosine": "cosine", "dot": "ip"}


@contextmanager
def tables(path: str, only: str | None, metric: Metric | None) -> Iterator[list[Table]]:
    """Raises NotFound, InvalidFile, InvalidInput."""
    if not os.path.exists(path):
        raise NotFound(f"{path}: there is no such directory")
    folder = Path(path)
    if folder.name.endswith(_ENDING) and _is_table(folder):
        folder, names = folder.resolve().parent, [folder.resolve().name.removesuffix(_ENDING)]
    else:
        names = sorted(each.name.removesuffix(_ENDING) for each in folder.glob("*" + _ENDING) if _is_table(each))
    if not names:
        raise InvalidFile(f"it is no directory of lancedb: there is no table in it, a folder that ends in {_ENDING}", file=path)
    names = chosen(path, names, only)
    with foreign(path, "lancedb"):
        import lancedb

        database = lancedb.connect(folder)
        opened = {name: database.open_table(name) for name in names}
    yield [_table(path, name, table, metric) for name, table in opened.items()]


def _is_table(folder: Path) -> bool:
    return (folder / "_versions").is_dir()


def _table(path: str, name: str, table: Any, metric: Metric | None) -> Table:
    import pyarrow as pa

    with foreign(path, "lancedb"):
        schema, total = table.schema, table.count_rows()
    where = f"{path}, {name!r}"
    fields = {}
    for column in schema:
        kind = column.type
        if pa.types.is_fixed_size_list(kind) and pa.types.is_floating(kind.value_type):
            with foreign(path, "lancedb"):
                said = metric or _metric(where, table, column.name)
            fields[column.name] = Dense(kind.list_size, said, "f16" if pa.types.is_float16(kind.value_type) else "f32")
        elif (why := _not_json(kind)) is not None:
            raise InvalidInput(
                f"{where}: column {column.name!r} is {column.type}, and {why} cannot be in a payload; convert it in another "
                f"table, or drop it there"
            )
    if not fields:
        raise InvalidInput(f"{where}: no column has vectors, as fixed-size lists of floats; say --only to import another table")
    return Table(name, fields, total, _batches(path, name, table, fields, total))


def _metric(where: str, table: Any, column: str) -> Metric:
    for index in table.list_indices():
        if list(index.columns) == [column]:
            stats = table.index_stats(index.name)
            said = None if stats is None else stats.distance_type
            if said is not None and said not in _METRICS:
                raise InvalidInput(f"{where}: the distance of column {column!r} is {said}; say --metric cosine, ip or l2")
            if said is not None:
                return _METRICS[said]
    return "l2"


def _not_json(kind: Any) -> str | None:
    """What a value of this type is, where JSON has no such value."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _not_json(kind.storage_type)
    for test, name in (
        (types.is_binary, "bytes"), (types.is_large_binary, "bytes"), (types.is_fixed_size_binary, "bytes"),
        (types.is_decimal, "a decimal"), (types.is_time, "a time of day"), (types.is_duration, "a duration"),
        (types.is_interval, "an interval"), (types.is_map, "a map"),
    ):  # fmt: skip
        if test(kind):
            return name
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _not_json(kind.value_type)
    if types.is_struct(kind):
        return next((why for at in range(kind.num_fields) if (why := _not_json(kind.field(at).type)) is not None), None)
    return None


def _batches(path: str, name: str, table: Any, fields: dict[str, Dense], total: int) -> Iterator[Rows]:
    step, done = rows_at_once(fields), 0
    key: str | None = None
    while done < total:
        # pages, since a scan of the whole table reads ahead as fast as the disk allows; lancedb goes to a page at once
        with foreign(path, "lancedb"):
            page = table.search().offset(done).limit(step).to_arrow()
        if not page.num_rows:
            raise InvalidFile(f"{name!r} has {total:,} rows, and {done:,} could be read", file=path)
        (batch,) = page.combine_chunks().to_batches(max_chunksize=page.num_rows)
        if key is None:
            wanted = Wanted(vectors={column: column for column in fields}, payload=())
            columns = columns_of(Piece(batch.slice(0, 1000), (), START, 0))
            key = settle(columns, wanted, None, path, embeds=False).id
        ids = list(range(done, done + batch.num_rows)) if key == ROW else batch.column(key).to_pylist()
        vectors = {column: _vectors(f"{path}, {name!r}", column, batch.column(column), ids) for column in fields}
        with foreign(path, "pyarrow"):
            payloads = batch.drop_columns([*fields, *([] if key == ROW else [key])]).to_pylist()
        done += batch.num_rows
        yield Rows(ids, vectors, payloads or [{}] * len(ids))


def _vectors(where: str, name: str, column: Any, ids: list[Any]) -> Any:
    """(n, d) numbers; where rows are null, a list with None in their place."""
    there = np.asarray(column.is_valid())
    flat = column.flatten()  # of the rows that are not null
    if flat.null_count:
        raise InvalidVector(f"some vectors have nulls among their numbers; replace them there (in {where})", field=name)
    numbers = flat.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    if numbers.dtype == np.float64:
        with np.errstate(over="ignore"):
            narrow = numbers.astype(np.float32)
        changed = (narrow != numbers) & ~np.isnan(numbers)
        if changed.any():
            row, at = map(int, np.argwhere(changed)[0])
            raise InvalidVector(
                f"{numbers[row, at]!r} at {at} is no f32, as vectors are stored here; cast the column to float32 there, in "
                f"another table (in {where})",
                point=ids[int(np.flatnonzero(there)[row])],
                field=name,
            )
        numbers = narrow
    if there.all():
        return numbers
    rows = iter(numbers)
    return [next(rows) if each else None for each in there]
