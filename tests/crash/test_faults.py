"""Every call to the file system fails once, in turn: the state is as before or as after, and the store goes on."""

from __future__ import annotations

import gc
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import vecdb_storage.flush as flush_module
from disk import Fault, Faulty
from vecdb_storage.batch import Batch
from vecdb_storage.errors import StorageError
from vecdb_storage.files import Files
from vecdb_storage.payloads import parse
from vecdb_storage.registry import open_store
from vecdb_storage.segment import Segment
from vecdb_storage.snapshot import Snapshot
from vecdb_storage.state import CollectionState
from vecdb_storage.store import Store
from workload import Model, Subject, check_backup, check_whole, patiently, settle, steps

Rows = Callable[..., Batch]
Point = tuple[int, Fault]


def run(folder: Path, files: Faulty, patched: pytest.MonkeyPatch) -> None:
    """The workload, with a fault on its way; and what is there when the disk is well again."""
    outside = folder / "outside"
    outside.mkdir(parents=True)
    subject = Subject(folder / "db", files, patched)
    model: Model = {}
    for step in steps(outside):
        after = settle(subject, step, model, files.fault.failures)
        model = after
        if files.reached:
            assert patiently(subject, files.fault.failures) == model, step.name
        if step.backup is not None:
            check_backup(step.backup, folder / f"restored-{model['docs'].attached}", model)
    subject.close()
    again = open_store(folder / "db")
    check_whole(again, [model])
    again.release()


def points(scratch: Path, patched: pytest.MonkeyPatch) -> list[Point]:
    """Everything that can go wrong, once each: call by call."""
    files = Faulty()
    run(scratch / "well", files, patched)
    return [(n, fault) for n, method in enumerate(files.calls, 1) for fault in Fault if fault.may_befall(method)]


def befall(scratch: Path, chosen: list[Point], patched: pytest.MonkeyPatch) -> Counter[str]:
    """Runs the workload once for each point. Returns how often each method failed."""
    failed: Counter[str] = Counter()
    for number, fault in chosen:
        files = Faulty(number, fault)
        run(scratch / "ill", files, patched)
        assert files.reached, f"{number} of {fault}"
        failed[files.calls[number - 1]] += 1
        shutil.rmtree(scratch / "ill")
    return failed


def test_a_fault_at_any_call_leaves_the_state_before_or_after(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any
) -> None:
    every = points(scratch, monkeypatch)
    befall(scratch, random.Random(1).sample(every, 75), monkeypatch)
    counted("faults in calls to the file system", 75)


def test_errors_leave_no_segment_to_the_collector(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is held by a frame of its own trace would keep all that these frames hold, deleted files among it."""
    garbage: list[Any] = gc.garbage
    for number, fault in random.Random(2).sample(points(scratch, monkeypatch), 50):
        gc.collect()
        gc.disable()
        try:
            befall(scratch, [(number, fault)], monkeypatch)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = {type(each) for each in garbage} & {Segment, CollectionState, Snapshot}
        finally:
            gc.set_debug(0)
            garbage.clear()
            gc.enable()
        assert not left, f"{number} of {fault}"


@pytest.mark.slow
@pytest.mark.parametrize("share", range(8))
def test_a_fault_at_every_call_leaves_the_state_before_or_after(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any, share: int
) -> None:
    every = points(scratch, monkeypatch)
    assert len(every) >= 1600, "the workload must reach many calls"
    failed = befall(scratch, every[share::8], monkeypatch)
    counted("faults in calls to the file system", len(every[share::8]))
    assert {"create", "write", "write_through", "sync", "sync_directory", "rename", "map", "read_at", "unlink"} <= failed.keys()


def test_writes_that_are_cut_short_are_gone_on_with(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each writes half of what it was given, as a signal may make it do."""
    write, pwritev, cut = os.write, os.pwritev, Counter[str]()

    def half(data: Any) -> Any:
        return memoryview(data)[: -(-len(data) // 2)]

    def cut_write(fd: int, data: Any) -> int:
        cut["write"] += 1
        return write(fd, half(data))

    def cut_pwritev(fd: int, buffers: Any, *rest: int) -> int:
        cut["pwritev"] += 1
        return pwritev(fd, [half(buffers[0])], *rest)

    monkeypatch.setattr(os, "write", cut_write)
    monkeypatch.setattr(os, "pwritev", cut_pwritev)
    run(scratch / "well", Faulty(), monkeypatch)
    assert cut["write"] > 1000 and cut["pwritev"] > 50

    def cut_pwrite(fd: int, data: Any, offset: int) -> int:
        cut["pwrite"] += 1
        return pwrite(fd, half(data), offset)

    pwrite, whole = os.pwrite, scratch / "whole"
    monkeypatch.setattr(os, "pwrite", cut_pwrite)
    whole.write_bytes(bytes(100))
    Files().patch(whole, 10, bytes(range(1, 51)))
    assert whole.read_bytes() == bytes(10) + bytes(range(1, 51)) + bytes(40) and cut["pwrite"] > 2


def marks(store: Store, uuid: bytes) -> dict[Any, Any]:
    """id -> mark."""
    snapshot = store.snapshot(uuid)
    found = {}
    for part, rows in snapshot.in_order():
        for key, row in zip(part.keys(rows), rows.tolist(), strict=True):
            assert key not in found
            found[key] = (parse(part.payload(row)) or {})["mark"]
    return found


@pytest.mark.parametrize(("reached_the_disk", "outcome"), [(False, "failed"), (False, "unknown"), (True, "unknown")])
def test_a_commit_that_fails_is_looked_up_on_disk(
    tmp_path: Path, rows_of: Rows, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch, reached_the_disk: bool, outcome: str
) -> None:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of([1, 2], 1))
    commit = type(store.environment).commit

    def failing(*arguments: Any, **named: Any) -> Any:
        monkeypatch.undo()
        if reached_the_disk:
            commit(*arguments, **named)
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


def test_a_database_that_was_left_with_full_memtables_takes_writes(
    tmp_path: Path, rows_of: Rows, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(100), 1))
    store.release()
    monkeypatch.setattr(flush_module, "MEMTABLE_BYTES", 1000)  # so many rows are in the log that writers are held back
    again = open_store(tmp_path / "db")
    writer = threading.Thread(target=again.write, args=(uuid, rows_of([1], 2)), daemon=True)
    writer.start()
    writer.join(30)
    assert not writer.is_alive(), "the writer waits for a flush that nobody has begun"
    assert marks(again, uuid)[1] == 2
    again.release()
