"""Ctrl-C at any moment of a write: what was committed stays whole, and the queue goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vecdb_storage.store as store_module
from vecdb_storage.batch import Batch
from vecdb_storage.commit import ChangeCatalog, CommitQueue
from vecdb_storage.errors import StorageError
from vecdb_storage.registry import open_store

Rows = Callable[..., Batch]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Test runners may ignore the signal in their workers."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.parametrize("seconds", [0.05, 0.45, 0.75])
@pytest.mark.parametrize("company", [0, 2])
def test_an_interrupted_bulk_write_is_there_as_a_whole_or_not_at_all(
    tmp_path: Path, rows_of: Rows, schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch, seconds: float, company: int
) -> None:
    """The main thread waits in a group that another thread commits (company) or commits itself (no company)."""
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(["warm"]))
    commit = store._commit

    def slow(group: Any) -> None:
        time.sleep(0.2)
        commit(group)
        time.sleep(0.2)

    store.queue._commit = slow
    others = [threading.Thread(target=store.write, args=(uuid, rows_of([f"other-{i}"]))) for i in range(company)]
    for other in others:
        other.start()
        time.sleep(0.02)
    timer = interrupt_after(seconds)
    monkeypatch.setattr(store_module, "LEVEL0_BYTES", 0)
    with pytest.raises((KeyboardInterrupt, StorageError)):
        store.write(uuid, rows_of(["a", "b", "c"]))
        time.sleep(2)  # the interrupt comes after a write that was quick
    timer.join()
    for other in others:
        other.join(20)
        assert not other.is_alive(), "the queue stands still"
    monkeypatch.undo()
    store.queue._commit = commit
    store.write(uuid, rows_of(["after"]))
    seen = [place is not None for place in store.snapshot(uuid).find(["a", "b", "c"])]
    assert seen in ([True] * 3, [False] * 3)
    store.close()
    again = open_store(tmp_path / "db")
    assert again.verify().ok
    assert [place is not None for place in again.snapshot(uuid).find(["a", "b", "c"])] == seen
    expected = {"warm", "after", *(f"other-{i}" for i in range(company))}
    assert all(again.snapshot(uuid).find(sorted(expected)))
    again.close()


def test_a_leader_that_was_interrupted_before_it_took_a_group_leaves_the_queue_usable() -> None:
    queue = CommitQueue(lambda group: None)
    queue._led = True
    queue._lead()
    done = threading.Thread(target=queue.submit, args=(ChangeCatalog(lambda section: None),), daemon=True)
    done.start()
    done.join(20)
    assert not done.is_alive(), "the queue stands still"
