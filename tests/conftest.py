"""What many tests need: a database in a folder of its own, and rows to put in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_storage.batch import Batch

import vecdb
from vecdb.points import batch_from_arrays
from vecdb.schema import Dense


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20_251)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[vecdb.Database]:
    with vecdb.open(tmp_path / "db") as opened:
        yield opened


@pytest.fixture
def rows_of() -> Callable[..., Batch]:
    """rows_of(keys, mark) -> a batch of 4-dimensional rows whose payloads say {"mark": mark}."""

    def make(keys: Sequence[Any], mark: Any = 0, dim: int = 4) -> Batch:
        vectors = np.ones((len(keys), dim), np.float32)
        return batch_from_arrays({"vector": Dense(dim)}, list(keys), vectors, [{"mark": mark}] * len(keys))

    return make


@pytest.fixture
def schema() -> dict[str, Any]:
    return {"fields": {"vector": Dense(4).to_json()}, "ids": None}
