"""Plans of scans: measured once for a machine and a width, kept, and never needed for an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index.conformance import drawn, stored
from vecdb_index.contract import Budget, Part
from vecdb_index.mib import build, tuning
from vecdb_index.mib.backend import BACKEND
from vecdb_index.mib.params import MIB
from vecdb_index.mib.scan import Plan
from vecdb_index.mib.search import MIBSearcher
from vecdb_index.mib.tuning import measure, plan_of, tuned, usual


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and codes so few that a measurement takes no time."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(tuning, "_known", None)
    monkeypatch.setattr(tuning, "_ALONE", 1 << 16)
    monkeypatch.setattr(tuning, "_BATCH", 1 << 15)
    return tmp_path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process, that has read nothing yet."""
    monkeypatch.setattr(tuning, "_known", None)


def test_where_nothing_was_measured_the_usual_plan_serves(folder: Path) -> None:
    assert plan_of(384) == usual(384) == Plan(4, 128 << 10, 4096) and usual(4096).together == 2
    assert plan_of(384, 1 << 20) == Plan(4, 128 << 10, 0), "of codes that a cache holds nothing is asked for ahead"
    assert not list(folder.iterdir())


def test_the_fastest_plan_is_kept_for_other_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a clock tells that says what we like: here, that the last plan tried of each kind takes no time."""
    monkeypatch.setattr(tuning, "_timed", lambda queries, plans, *_: [
        tuning.Tried(queries, plan, 100.0 if plan == plans[-1] else 1.0) for plan in plans
    ])  # fmt: skip
    tried = measure(384)
    assert {each.queries for each in tried} == {1, 16}
    assert plan_of(384) == Plan(4, 512 << 10, 8192)
    forget(monkeypatch)
    assert plan_of(384) == Plan(4, 512 << 10, 8192) and plan_of(768) == usual(768)
    measure(768)
    forget(monkeypatch)
    assert plan_of(384) == plan_of(768) == Plan(4, 512 << 10, 8192)
    assert [each.name for each in folder.iterdir()] == ["plans.json"]


def test_a_plan_that_is_about_as_fast_is_not_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_timed", lambda queries, plans, *_: [
        tuning.Tried(queries, plan, 1.0 if plan == usual(256) else 1.02) for plan in plans
    ])  # fmt: skip
    measure(256)
    assert plan_of(256) == usual(256)


def test_it_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned(128)
    monkeypatch.setattr(tuning, "measure", lambda width: pytest.fail("again"))
    assert tuned(128) == first
    forget(monkeypatch)
    assert tuned(128) == first


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"[]", b"null", b'{"CPU": []}', b'{"CPU": {"384": 5}}', b'{"CPU": {"384": [3, 1024, 0]}}',
        b'{"CPU": {"384": [4, 0, 0]}}', b'{"CPU": {"384": [4, 1024, -1]}}', b'{"CPU": {"x": [4, 1024, 0]}}', b"\xff\xfe",
    ],
)  # fmt: skip
def test_a_file_that_is_none_is_as_good_as_none(folder: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "plans.json").write_bytes(text.replace(b"CPU", tuning.binding.get_host_cpu_name().encode()))
    assert plan_of(384) == usual(384)
    measure(128)
    forget(monkeypatch)
    assert plan_of(384) == usual(384)
    assert list(json.loads((folder / "plans.json").read_bytes()).popitem()[1]) == ["128"]


@pytest.mark.parametrize("what", ["no folder", "a folder that cannot be written"])
def test_where_nothing_can_be_kept_it_serves_this_process(what: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = None if what == "no folder" else folder / "gone"
    monkeypatch.setattr(tuning, "cache_folder", lambda: gone)
    measure(128)
    monkeypatch.setattr(tuning, "measure", lambda width: pytest.fail("again"))
    tuned(128)


def test_only_builds_of_many_codes_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(build, "tuned", seen.append)
    rows, bits = stored(drawn(300, 100), "cosine"), MIB(bits=1)
    BACKEND.build(rows, {}, bits, Budget(), lambda share: None)
    assert not seen
    monkeypatch.setattr(build, "WORTH", 300 * 128 // 8)
    enough = build.memory_of(rows, 1) + tuning.MEMORY
    BACKEND.build(rows, {}, bits, Budget(memory=enough - 1), lambda share: None)
    assert not seen, "there is no memory for it"
    for memory in (None, enough):
        BACKEND.build(rows, {}, bits, Budget(memory=memory), lambda share: None)
    assert seen == [128, 128]
    known = BACKEND.train(rows, bits, Budget())
    part = Part(rows, BACKEND.build(rows, known, bits, Budget(memory=enough - 1), lambda share: None), np.arange(300))
    assert BACKEND.merge([part], rows, known, bits, Budget(memory=enough)) is not None and seen == [128, 128, 128]


def test_no_plan_changes_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "WORTH", 0)  # or nothing is asked for ahead
    rows, queries = stored(drawn(5000, 100), "l2"), drawn(11, 100, seed=1)
    found = []
    for plan in (usual(128), Plan(1, 1, 0), Plan(2, 1 << 12, 4096), Plan(4, 1 << 30, 8192)):
        monkeypatch.setattr(tuning, "_known", {128: plan})
        searcher = BACKEND.open(BACKEND.build(rows, {}, MIB(bits=1), Budget(), lambda share: None), {}, rows, MIB(bits=1))
        assert isinstance(searcher, MIBSearcher)
        for each in (queries, queries[:1]):
            hits = searcher.look(each, 10, 60)
            found.append((hits.rows, hits.keys))
    exact = searcher.exact.search(queries, 10)
    assert not np.array_equal(found[0][0], exact.rows), "or lists let everything through, and nothing is compared"
    assert all(np.array_equal(a[:1], b) for a, b in zip(found[0], found[1], strict=True))
    found = found[::2]
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
