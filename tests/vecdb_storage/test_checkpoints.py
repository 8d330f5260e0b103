"""Checkpoints are durable with the rows of their commit, and not without; they go with their collection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vecdb_storage.batch import Batch
from vecdb_storage.errors import AlreadyExists, NotFound
from vecdb_storage.registry import open_store


def test_checkpoints_are_kept_with_the_rows_of_their_commit(
    tmp_path: Path, schema: dict[str, Any], rows_of: Callable[..., Batch]
) -> None:
    store = open_store(tmp_path / "db")
    docs, other = store.create_collection("docs", schema), store.create_collection("other", schema)
    store.write(docs, rows_of([1, 2]), checkpoints={b"a": b"1", b"b": b"x"})
    with pytest.raises(AlreadyExists):
        store.write(docs, rows_of([2, 3]), insert=True, checkpoints={b"a": b"2"})
    assert store.checkpoints(docs) == {b"a": b"1", b"b": b"x"}
    store.write(docs, rows_of([]), checkpoints={b"b": b"no rows"})
    store.set_checkpoints(other, {b"a": b"of another"})
    large = rows_of(range(10, 100), dim=4)
    store.write(docs, large, checkpoints={b"a": b"3"})
    store.vacuum()
    store.release()
    store = open_store(tmp_path / "db")
    assert store.checkpoints(docs) == {b"a": b"3", b"b": b"no rows"}
    assert store.checkpoints(docs, b"b") == {b"b": b"no rows"}
    store.set_checkpoints(docs, {b"b": None})
    assert store.checkpoints(docs) == {b"a": b"3"}
    store.drop_collection("docs")
    assert store.checkpoints(docs) == {}
    assert store.checkpoints(other) == {b"a": b"of another"}
    with pytest.raises(NotFound):
        store.set_checkpoints(docs, {b"a": b"gone"})
    store.release()
