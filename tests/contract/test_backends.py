"""Every registered backend keeps the contract."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from vecdb_index.conformance import CASES
from vecdb_index.contract import Backend
from vecdb_index.registry import backend, names


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_backend(name: str, case: Callable[[Backend], None]) -> None:
    case(backend(name))


def test_unknown_backends_are_named() -> None:
    with pytest.raises(KeyError, match="no index backend 'nope'; there are flat, hnsw"):
        backend("nope")
