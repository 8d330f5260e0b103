"""Fixtures: a collection at home, its exported codes, a server of them, an empty cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from vecdb_index.mib.params import MIB
from vecdb_index.mib.search import ShortLists

import vecdb
from vecdb import Dense
from vecdb.search import calibrate, whole
from vecdb.search.calibrate import Calibration
from vecdb.serverless import transport

from .afar import DIM, ROWS, RangesServer, drawn, serving


@pytest.fixture(scope="module", autouse=True)
def _by_index() -> Iterator[None]:
    """At home, too, the bits: these collections are so small that the clock would decide otherwise. And no long pauses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Calibration, "exact_seconds", lambda *_: 1e3)
        patch.setattr(ShortLists, "pays", lambda *_: True)
        patch.setattr(calibrate, "_HOPELESS", 1e9)
        patch.setattr(whole, "_HOPELESS", 1e9)
        patch.setattr(transport, "PAUSE", 0.001)
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test; what was compiled stays where it is."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("vecdb.serverless.collection.cache_folder", lambda: folder)
    return folder


@pytest.fixture(scope="module")
def home(_by_index: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[vecdb.Collection]:
    """A collection of one segment with deleted rows, which no test changes."""
    with vecdb.open(tmp_path_factory.mktemp("home") / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(bits=1)))
        payloads = [{"n": i, "secret": f"of {i}"} for i in range(ROWS)]
        docs.upsert(ids=range(ROWS), vectors=drawn(ROWS, 1), payloads=payloads)
        docs.flush()
        docs.delete(range(0, ROWS, 7))
        yield docs


@pytest.fixture(scope="module")
def codes(home: vecdb.Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    home.export_codes(folder)
    return folder


@pytest.fixture
def served(codes: Path) -> Iterator[RangesServer]:
    with serving(codes) as server:
        yield server
