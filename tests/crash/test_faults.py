"""Every call to the file system fails once, in turn: the state is as before or as after, and the store goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vecdb_storage.growing as growing_module
import vecdb_storage.store as store_module
from vecdb_storage.batch import Batch
from vecdb_storage.columns import parse
from vecdb_storage.errors import DiskFull, StorageError
from vecdb_storage.files import Files
from vecdb_storage.registry import open_store
from vecdb_storage.store import Store

Rows = Callable[..., Batch]
FAILING = (
    "create",
    "write",
    "write_through",
    "sync",
    "sync_directory",
    "rename",
    "unlink",
    "make_directory",
    "extend",
    "map",
    "open",
    "read_at",
)


class Faulty(Files):
    """Raises in the n-th call of those that can fail, once armed."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails_at = -1
        self.failed = ""

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in FAILING or self.fails_at < 0:
            return method

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.fails_at:
                self.failed = name
                if name in ("write", "write_through"):  # half of it gets there
                    method(arguments[0], bytes(memoryview(arguments[1]).cast("B"))[: len(arguments[1]) // 2], arguments[2])
                raise DiskFull(f"injected into {name}")
            return method(*arguments)

        return call


def marks(store: Store, uuid: bytes) -> dict[Any, Any]:
    """id -> mark. A read that fails is an error and no answer; the next one is whole again."""
    try:
        return _marks(store, uuid)
    except StorageError:
        return _marks(store, uuid)


def _marks(store: Store, uuid: bytes) -> dict[Any, Any]:
    snapshot = store.snapshot(uuid)
    found = {}
    for part, rows in snapshot.in_order():
        for key, row in zip(part.keys(rows), rows.tolist(), strict=True):
            assert key not in found
            found[key] = (parse(part.payload(row)) or {})["mark"]
    return found


def workload(store: Store, uuid: bytes, rows_of: Rows, patched: pytest.MonkeyPatch) -> tuple[dict[Any, Any], int]:
    """Steps of every kind; a step that raises StorageError must have changed nothing. Returns the model and the failures."""
    model: dict[Any, Any] = {}
    failures = 0

    def step(act: Callable[[], Any], after: dict[Any, Any]) -> None:
        nonlocal model, failures
        try:
            act()
            model = after
        except StorageError:
            failures += 1
        assert marks(store, uuid) == model

    for turn in range(2):
        step(lambda: store.write(uuid, rows_of(range(10), turn)), {**model, **dict.fromkeys(range(10), turn)})
        patched.setattr(store_module, "LEVEL0_BYTES", 0)
        step(lambda: store.write(uuid, rows_of(range(5, 15), turn + 10)), {**model, **dict.fromkeys(range(5, 15), turn + 10)})
        patched.setattr(store_module, "LEVEL0_BYTES", 1 << 30)
        patched.setattr(growing_module, "GROWING_BYTES", 0)
        for shift in range(2):  # the second time around alone, so that the flush can complete the file
            if shift != turn:
                step(lambda: store.flush(), model)
            grown = range(8 + shift, 12 + shift)
            step(lambda ids=grown: store.write(uuid, rows_of(ids, turn + 20)), {**model, **dict.fromkeys(grown, turn + 20)})  # type: ignore[misc]
        patched.setattr(growing_module, "GROWING_BYTES", 1 << 30)
        if turn:
            step(lambda: store.flush(), model)
        step(lambda: store.delete(uuid, [1, 6, 12]), {k: v for k, v in model.items() if k not in (1, 6, 12)})
        step(lambda: store.flush(), model)
    step(lambda: store.write(uuid, rows_of([3], 99)), {**model, 3: 99})
    return model, failures


def test_a_fault_at_every_call_leaves_the_state_before_or_after(
    tmp_path: Path, rows_of: Rows, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: set[str] = set()
    number = 1
    while True:
        files = Faulty()
        path = tmp_path / str(number)
        store = open_store(path, files=files)
        uuid = store.create_collection("c", schema)
        files.fails_at = number
        model, failures = workload(store, uuid, rows_of, monkeypatch)
        reached = files.calls >= number
        files.fails_at = -1
        assert marks(store, uuid) == model
        store.close()
        again = open_store(path)
        assert marks(again, uuid) == model
        assert again.verify().ok
        named = {entry.name + ".seg" for entry in again.state(uuid).manifest.segments}
        assert {f.name for f in (path / "segments").rglob("*") if f.is_file()} == named
        again.close()
        if not reached:
            assert failures == 0
            break
        tried.add(files.failed)
        number += 1
    assert number > 60, "the workload must reach many calls"
    assert {"create", "write", "sync", "sync_directory", "rename", "map"} <= tried


@pytest.mark.parametrize(("reached_the_disk", "outcome"), [(False, "failed"), (False, "unknown"), (True, "unknown")])
def test_a_commit_that_fails_is_looked_up_on_disk(
    tmp_path: Path, rows_of: Rows, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch, reached_the_disk: bool, outcome: str
) -> None:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of([1, 2], 1))
    commit = type(store.environment).commit

    def failing(environment: Any, room: int, write: Any) -> Any:
        monkeypatch.undo()
        if reached_the_disk:
            commit(environment, room, write)
        raise StorageError("injected", outcome=outcome)

    monkeypatch.setattr(type(store.environment), "commit", failing)
    with pytest.raises(StorageError) as caught:
        store.write(uuid, rows_of([2, 3], 2))
    assert caught.value.outcome == outcome
    expected = {1: 1, 2: 2, 3: 2} if reached_the_disk else {1: 1, 2: 1}
    if outcome == "unknown":
        assert ("is there" if reached_the_disk else "is not there") in str(caught.value)
    assert marks(store, uuid) == expected
    store.write(uuid, rows_of([4], 3))
    assert marks(store, uuid) == {**expected, 4: 3}
    store.close()
    again = open_store(tmp_path / "db")
    assert marks(again, uuid) == {**expected, 4: 3}
    again.close()
