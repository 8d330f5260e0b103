"""The storage engine's rule, *a row is live iff no row or delete of its id has a higher seq*, in the cases that bend it.

A crash is a copy of the directory taken while the store is open: what a power cut after the last sync would leave.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.locks as locks_module
import vecdb_storage.store as store_module
from vecdb_storage.batch import Batch
from vecdb_storage.commit import DeleteRows, Request, WriteRows
from vecdb_storage.errors import (
    AlreadyExists,
    Closed,
    Corruption,
    InvalidInput,
    Locked,
    NewerFormat,
    NotFound,
    ReadOnly,
    StorageError,
)
from vecdb_storage.payloads import parse
from vecdb_storage.registry import open_store
from vecdb_storage.snapshot import Snapshot
from vecdb_storage.store import Store

Rows = Callable[..., Batch]
Schema = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = open_store(tmp_path / "db")
    yield opened
    opened.close()


def marks(snapshot: Snapshot) -> dict[Any, Any]:
    """id -> mark, found by scrolling, and checked against look-ups by id and the count."""
    found: dict[Any, Any] = {}
    for part, rows in snapshot.in_order():
        for key, row in zip(part.keys(rows), rows.tolist(), strict=True):
            assert key not in found, f"{key!r} is alive twice"
            found[key] = (parse(part.payload(row)) or {}).get("mark")
    assert snapshot.count == len(found)
    keys = list(found)
    for key, place in zip(keys, snapshot.find(keys), strict=True):
        assert place is not None
        assert (parse(place[0].payload(place[1])) or {}).get("mark") == found[key]
    return found


def after_crash(store: Store, tmp_path: Path, uuid: bytes) -> dict[Any, Any]:
    copy = tmp_path / f"crashed-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(store.path, copy)
    reopened = open_store(copy)
    try:
        assert reopened.verify().ok
        return marks(reopened.snapshot(uuid))
    finally:
        reopened.release()


def level0(store: Store, uuid: bytes, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes a batch as a level-0 segment however small it is."""
    with monkeypatch.context() as patched:
        patched.setattr(store_module, "LEVEL0_BYTES", 0)
        store.write(uuid, batch)


def test_a_delete_by_log_and_a_reinsert_by_level0_survive_a_crash_between(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["a", "b"], 1))
    store.flush()
    store.delete(uuid, ["a"])
    assert after_crash(store, tmp_path, uuid) == {"b": 1}
    level0(store, uuid, rows_of(["a"], 2), monkeypatch)
    assert after_crash(store, tmp_path, uuid) == marks(store.snapshot(uuid)) == {"a": 2, "b": 1}
    store.delete(uuid, ["a"])
    assert after_crash(store, tmp_path, uuid) == marks(store.snapshot(uuid)) == {"b": 1}
    store.flush()
    assert after_crash(store, tmp_path, uuid) == marks(store.snapshot(uuid)) == {"b": 1}


def test_a_row_in_the_log_under_a_later_level0_row_stays_dead_after_replay(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["a", "b"], 1))
    level0(store, uuid, rows_of(["a", "c"], 2), monkeypatch)
    assert after_crash(store, tmp_path, uuid) == {"a": 2, "b": 1, "c": 2}
    store.delete(uuid, ["a"])
    assert after_crash(store, tmp_path, uuid) == {"b": 1, "c": 2}
    store.write(uuid, rows_of(["a"], 3))
    assert after_crash(store, tmp_path, uuid) == {"a": 3, "b": 1, "c": 2}
    store.flush()
    assert after_crash(store, tmp_path, uuid) == marks(store.snapshot(uuid)) == {"a": 3, "b": 1, "c": 2}


def test_a_level0_row_under_a_later_log_row_is_dead_after_replay(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    level0(store, uuid, rows_of([1, 2], 1), monkeypatch)
    level0(store, uuid, rows_of([2, 3], 2), monkeypatch)
    store.write(uuid, rows_of([3], 3))
    assert after_crash(store, tmp_path, uuid) == marks(store.snapshot(uuid)) == {1: 1, 2: 2, 3: 3}


def test_two_writers_of_one_id_in_one_group_are_ordered_by_seq(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema
) -> None:
    uuid = store.create_collection("c", schema)
    first, second = rows_of(["x"], 1), rows_of(["x", "y"], 2)
    group = [Request(WriteRows(uuid, batch, False, record=batch.to_record())) for batch in (first, second)]
    group.append(Request(DeleteRows(uuid, ["y", "never"])))
    refused = rows_of(["new", "x"], 3)
    group.append(Request(WriteRows(uuid, refused, True, record=refused.to_record())))
    last = rows_of(["y"], 4)
    group.append(Request(WriteRows(uuid, last, True, record=last.to_record())))
    store._commit(group)
    assert [request.result for request in group] == [0, 1, 1, None, 0]
    assert isinstance(group[3].error, AlreadyExists)
    assert marks(store.snapshot(uuid)) == after_crash(store, tmp_path, uuid) == {"x": 2, "y": 4}


def test_a_delete_by_filter_spares_a_row_that_was_written_after_its_snapshot(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["a", "b", "c"], 1))
    seen = store.snapshot(uuid)
    store.write(uuid, rows_of(["b"], 2))
    assert store.delete(uuid, ["a", "b", "c"], as_of=seen.seq) == 2
    assert marks(store.snapshot(uuid)) == after_crash(store, tmp_path, uuid) == {"b": 2}
    assert marks(seen) == {"a": 1, "b": 1, "c": 1}, "a snapshot does not move"


@pytest.mark.parametrize("change", ["delete", "overwrite", "level0"])
def test_rows_that_die_while_their_memtable_is_flushed_stay_dead(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(list(range(100)), 1))
    write = store.flusher._write

    def meanwhile(*arguments: Any) -> Any:
        written = write(*arguments)
        if change == "delete":
            store.delete(uuid, [3, 5])
        elif change == "overwrite":
            store.write(uuid, rows_of([3, 5], 2))
        else:
            level0(store, uuid, rows_of([3, 5], 2), monkeypatch)
        return written

    monkeypatch.setattr(store.flusher, "_write", meanwhile)
    before = store.snapshot(uuid)
    store.flush()
    expected = dict.fromkeys(range(100), 1)
    assert marks(before) == expected
    if change == "delete":
        del expected[3], expected[5]
    else:
        expected |= {3: 2, 5: 2}
    assert marks(store.snapshot(uuid)) == after_crash(store, tmp_path, uuid) == expected


def test_a_flush_moves_the_log_and_leaves_nothing_to_replay(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["a", "b"], 1))
    store.delete(uuid, ["a"])
    store.flush()
    state = store.state(uuid)
    assert (len(state.segments), state.active.rows, state.manifest.flushed) == (1, 0, 2)
    with store.environment.read() as txn:
        assert list(store.environment.scan(txn, "log", uuid)) == []
    store.delete(uuid, ["b"])
    store.flush()
    assert marks(store.snapshot(uuid)) == {}


def test_a_forked_child_is_refused_and_its_parent_goes_on(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("c", schema)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.snapshot(uuid)
        except Closed as error:
            code = 0 if "fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.write(uuid, rows_of(["a"]))
    assert marks(store.snapshot(uuid)) == {"a": 0}
    with pytest.raises(Locked):  # the child's exit has not taken the parent's lock with it
        locks_module.WriterLock(store.path / "LOCK")


def test_a_second_open_in_one_process_shares_the_store(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("c", schema)
    again = open_store(store.path)
    through_a_link = store.path.parent / "link"
    through_a_link.symlink_to(store.path)
    third = open_store(through_a_link, read_only=True)
    assert again is store
    assert third is store
    again.write(uuid, rows_of(["a"]))
    again.release()
    third.release()
    assert marks(store.snapshot(uuid)) == {"a": 0}


def test_a_reader_that_is_reopened_for_writing_becomes_the_writer(tmp_path: Path, rows_of: Rows, schema: Schema) -> None:
    writer = open_store(tmp_path / "db")
    uuid = writer.create_collection("c", schema)
    writer.write(uuid, rows_of(["a"]))
    writer.release()
    reader = open_store(tmp_path / "db", read_only=True)
    with pytest.raises(ReadOnly):
        reader.write(uuid, rows_of(["b"]))
    writer = open_store(tmp_path / "db")
    writer.write(uuid, rows_of(["b"]))
    assert marks(reader.snapshot(uuid)) == {"a": 0, "b": 0}
    reader.release()
    writer.release()


def _follow(path: Path, asked: Any, answers: Any) -> None:
    store = open_store(path, read_only=True)
    while asked.get() is not None:
        names = store.collections()
        answers.put({name: marks(store.snapshot(uuid)) for name, uuid in names.items()})


def test_a_reader_process_sees_new_commits_without_reopening(
    store: Store, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("spawn")
    asked, answers = context.Queue(), context.Queue()
    process = context.Process(target=_follow, args=(store.path, asked, answers))
    process.start()

    def seen() -> Any:
        asked.put("look")
        return answers.get(timeout=60)

    try:
        assert seen() == {}
        uuid = store.create_collection("c", schema)
        assert seen() == {"c": {}}
        store.write(uuid, rows_of(["a", "b"], 1))
        assert seen() == {"c": {"a": 1, "b": 1}}
        level0(store, uuid, rows_of(["b", "c"], 2), monkeypatch)
        assert seen() == {"c": {"a": 1, "b": 2, "c": 2}}
        store.delete(uuid, ["a"])
        assert seen() == {"c": {"b": 2, "c": 2}}
        store.flush()
        assert seen() == {"c": {"b": 2, "c": 2}}
        store.rename_collection("c", "d")
        store.write(uuid, rows_of(["e"], 3))
        assert seen() == {"d": {"b": 2, "c": 2, "e": 3}}
        store.drop_collection("d")
        assert seen() == {}
    finally:
        asked.put(None)
        process.join(60)
    assert process.exitcode == 0


def test_a_second_writer_is_refused_with_the_owners_pid_and_host(store: Store) -> None:
    code = (
        "import sys; from vecdb_storage.registry import open_store; from vecdb_storage.errors import Locked\n"
        "try: open_store(sys.argv[1])\n"
        "except Locked as error: print(error.pid, error.host, error, sep='\\n')"
    )
    printed = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True).stdout
    pid, host, message = printed.splitlines()
    assert (int(pid), host) == (os.getpid(), os.uname().nodename)
    assert pid in message
    assert host in message
    assert "read_only=True" in message


def test_a_newer_format_is_refused_by_version(tmp_path: Path) -> None:
    open_store(tmp_path / "db").release()
    note = tmp_path / "db" / "VECDB"
    note.write_text(note.read_text().replace("format 1", "format 7").replace("vecdb 0.1.0", "vecdb 9.1"))
    with pytest.raises(NewerFormat, match=r"9\.1") as caught:
        open_store(tmp_path / "db")
    assert caught.value.needs == "9.1"


def test_ids_of_the_other_kind_are_refused_and_nothing_is_written(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of([1, 2]))
    with pytest.raises(InvalidInput, match="int"):
        store.write(uuid, rows_of(["a"]))
    assert marks(store.snapshot(uuid)) == {1: 0, 2: 0}
    assert store.delete(uuid, ["a"]) == 0


def test_insert_is_all_or_nothing(store: Store, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["a"]), insert=True)
    for bytes_of_level0 in (1 << 30, 0):
        monkeypatch.setattr(store_module, "LEVEL0_BYTES", bytes_of_level0)
        with pytest.raises(AlreadyExists, match="'a'"):
            store.write(uuid, rows_of(["b", "a"], 1), insert=True)
    assert marks(store.snapshot(uuid)) == {"a": 0}
    assert list((store.path / "segments").rglob("*.seg")) == []


def test_what_a_crash_left_is_deleted_and_strangers_are_reported(
    store: Store, tmp_path: Path, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    level0(store, uuid, rows_of(["a"], 1), monkeypatch)
    folder = store.path / "segments" / uuid.hex()
    named = next(folder.glob("*.seg"))
    shutil.copy(named, folder / "01ARZ3NDEKTSV4RRFFQ69G5FAV.seg")  # of this store, and named by no manifest
    (folder / "01ARZ3NDEKTSV4RRFFQ69G5FAW.seg.tmp").write_bytes(b"half")
    (folder / "stranger").write_bytes(b"not ours")
    gone = store.path / "segments" / "00" / "x.seg.tmp"
    gone.parent.mkdir()
    gone.write_bytes(b"")
    store.close()
    reopened = open_store(store.path)
    try:
        assert {p.name for p in folder.iterdir()} == {named.name, "stranger"}
        assert not gone.parent.exists()
        report = reopened.verify()
        assert [str(folder / "stranger") in str(d) for d in report.damage] == [True]
    finally:
        reopened.release()


def test_a_segment_that_is_gone_or_damaged_is_named_and_others_stay_usable(store: Store, rows_of: Rows, schema: Schema) -> None:
    good, bad = store.create_collection("good", schema), store.create_collection("bad", schema)
    for uuid in (good, bad):
        store.write(uuid, rows_of(["a"]))
    store.flush()
    file = next((store.path / "segments" / bad.hex()).glob("*.seg"))
    whole = file.read_bytes()
    store.close()
    for damaged in (None, whole[:-10], whole[: len(whole) // 2], b"", whole.replace(b"a", b"b", 1)):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        reopened = open_store(store.path)
        try:
            assert marks(reopened.snapshot(good)) == {"a": 0}
            with pytest.raises(Corruption, match=file.name):
                marks(reopened.snapshot(bad))
            assert not reopened.verify().ok
        finally:
            reopened.release()
    file.write_bytes(whole)
    reopened = open_store(store.path)
    assert reopened.verify().ok
    reopened.release()


def test_a_damaged_lmdb_file_is_refused_and_never_an_older_commit(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("c", schema)
    for key in range(5):
        store.write(uuid, rows_of([key]))
    store.close()
    meta = store.path / "meta-1.mdb"
    whole = meta.read_bytes()
    page = os.sysconf("SC_PAGE_SIZE")
    damages = [b"", whole[: page * 3], bytes(page) + whole[page:], whole[:page] + bytes(page) + whole[2 * page :]]
    for number in (0, 1):  # the transaction id of either meta page
        at = number * page + 16 + 24 + 96 + 8
        damages.append(whole[:at] + (10_000).to_bytes(8, "little") + whole[at + 8 :])
    for damage in damages:
        meta.write_bytes(damage)
        with pytest.raises(Corruption, match="meta-1"):
            open_store(store.path)
    meta.unlink()
    with pytest.raises(Corruption, match="missing"):
        open_store(store.path)
    meta.write_bytes(whole)
    reopened = open_store(store.path)
    assert marks(reopened.snapshot(uuid)) == dict.fromkeys(range(5), 0)
    reopened.release()


def test_a_flipped_byte_in_the_log_is_found_by_its_checksum(store: Store, rows_of: Rows, schema: Schema) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["needle-in-the-log"]))
    other = store.create_collection("other", schema)
    store.write(other, rows_of([1, 2], 7))
    store.close()
    meta = store.path / "meta-1.mdb"
    whole = meta.read_bytes()
    assert b"needle-in-the-log" in whole
    meta.write_bytes(whole.replace(b"needle-in-the-log", b"noodle-in-the-log"))  # pages that are free now have it, too
    again = open_store(store.path)
    with pytest.raises(Corruption, match="log"):
        again.snapshot(uuid)
    assert marks(again.snapshot(other)) == {1: 7, 2: 7}, "the other collection is usable"
    again.close()


def test_opening_what_is_no_database_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_store(tmp_path / "nothing", read_only=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match=r"notes\.txt"):
        open_store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_creation_cut_short_begins_again(tmp_path: Path) -> None:
    store = open_store(tmp_path / "db")
    store.close()
    (tmp_path / "db" / "VECDB").unlink()
    store = open_store(tmp_path / "db")
    assert store.collections() == {}
    store.close()


def test_snapshots_of_many_writers_are_whole(store: Store, rows_of: Rows, schema: Schema) -> None:
    """Each commit writes the same mark to five ids: no reader may ever see two marks."""
    uuid = store.create_collection("c", schema)
    keys = list(range(5))
    store.write(uuid, rows_of(keys, -1))
    stop = threading.Event()
    torn: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            seen = set(marks(store.snapshot(uuid)).values())
            if len(seen) != 1:
                torn.append(seen)

    readers = [threading.Thread(target=read) for _ in range(2)]
    writers = [
        threading.Thread(target=lambda n=n: [store.write(uuid, rows_of(keys, n * 1000 + i)) for i in range(40)])
        for n in range(4)
    ]
    for thread in readers + writers:
        thread.start()
    for n, thread in enumerate(writers):
        thread.join()
        if n == 1:
            store.flush()
    stop.set()
    for thread in readers:
        thread.join()
    assert torn == []
    assert store.queue.operations >= 161
    assert np.isin(list(marks(store.snapshot(uuid)).values()), [n * 1000 + 39 for n in range(4)]).all()


def _watch(path: Path, ready: Any, stop: Any, answers: Any) -> None:
    """Reads until told to stop: every look must show one whole commit, and never an older one than the look before."""
    store = open_store(path, read_only=True)
    uuid = store.collections()["c"]
    looks, newest, wrong = 0, -1, []
    ready.set()
    while not stop.is_set():
        seen = set(marks(store.snapshot(uuid)).values())
        if len(seen) != 1 or min(seen) < newest:
            wrong.append((newest, sorted(seen)))
            break
        looks, newest = looks + 1, max(seen)
    answers.put((looks, newest, wrong))


def test_a_reader_process_sees_whole_commits_in_their_order_beside_a_busy_writer(
    store: Store, rows_of: Rows, schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(20), 0))
    context = multiprocessing.get_context("spawn")
    ready, stop, answers = context.Event(), context.Event(), context.Queue()
    process = context.Process(target=_watch, args=(store.path, ready, stop, answers))
    process.start()
    assert ready.wait(60)
    for mark in range(1, 400):
        if mark % 50 == 7:
            level0(store, uuid, rows_of(range(20), mark), monkeypatch)
        else:
            store.write(uuid, rows_of(range(20), mark))
        if mark % 60 == 9:
            store.flush()
    stop.set()
    looks, newest, wrong = answers.get(timeout=60)
    process.join(60)
    assert wrong == []
    assert looks > 5
    assert newest > 0


def test_a_failed_commit_gives_back_what_it_replaced(tmp_path: Path, rows_of: Rows, schema: dict[str, Any]) -> None:
    """Memory is read anew from the disk, and nothing keeps what was there before, with the files that it maps."""
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["a", "b"]))
    store.flush()
    assert store.uuid_of("c") == uuid
    before = weakref.ref(store.states[uuid])

    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("no")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(store.environment, "commit", fail)
        with pytest.raises(StorageError, match="no"):
            store.write(uuid, rows_of(["c"]))
    gc.collect()
    assert before() is None
    assert store.uuid_of("c") == uuid and store.snapshot(uuid).count == 2
    store.close()
