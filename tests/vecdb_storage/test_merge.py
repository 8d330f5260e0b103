"""Merges change nothing that can be seen but the number of segments, whatever is written meanwhile."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.merge as merge_module
import vecdb_storage.store as store_module
from hypothesis import given
from hypothesis import strategies as st
from vecdb_storage.batch import Batch
from vecdb_storage.errors import DiskFull, NotFound
from vecdb_storage.files import Files
from vecdb_storage.merge import FAN, FAN_OF_SMALL, MOST_DEAD, SPREAD, Candidate, bins, choose
from vecdb_storage.payloads import parse
from vecdb_storage.registry import open_store
from vecdb_storage.snapshot import Snapshot
from vecdb_storage.store import Store

Rows = Callable[..., Batch]
Schema = dict[str, Any]
MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "db")
    yield opened
    opened.close()


def content(snapshot: Snapshot) -> list[tuple[Any, Any, list[float]]]:
    """(id, mark, vector) by ascending seq."""
    found = []
    for part, rows in snapshot.in_order():
        stored = part.field("vector")
        assert stored is not None
        for key, row in zip(part.keys(rows), rows.tolist(), strict=True):
            found.append((key, (parse(part.payload(row)) or {}).get("mark"), stored.vectors[row].tolist()))
    return found


def after_crash(store: Store, tmp_path: Path, uuid: bytes) -> list[Any]:
    copy = tmp_path / f"crashed-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(store.path, copy)
    reopened = open_store(copy)
    try:
        assert reopened.verify().ok
        return content(reopened.snapshot(uuid))
    finally:
        reopened.release()


def files_of(store: Store) -> set[str]:
    return {file.name for file in (store.path / "segments").rglob("*") if file.is_file()}


# -- the policy ---------------------------------------------------------------------------------------------


_numbers = itertools.count()


def settle(segments: list[Candidate], searched: bool = False) -> tuple[list[Candidate], int]:
    """What the policy makes of some segments in the end, and the bytes that it writes."""
    written = 0
    for _ in range(10_000):
        names = set(choose(segments, searched))
        if not names:
            return segments, written
        chosen = [each for each in segments if each.name in names]
        live = sum(each.rows - each.dead for each in chosen)
        size = sum(each.bytes * (each.rows - each.dead) // max(1, each.rows) for each in chosen)
        segments = [each for each in segments if each.name not in names]
        if live:
            segments.append(Candidate(f"m{next(_numbers)}", live, 0, size))
            written += size
    raise AssertionError("it never comes to rest")


def test_a_steady_load_is_written_again_at_most_once_for_each_factor_of_eight() -> None:
    segments: list[Candidate] = []
    total = 0
    for number in range(FAN**3):
        segments.append(Candidate(f"f{number}", 1000, 0, 64 * MIB))
        segments, written = settle(segments)
        total += written
        assert len(segments) <= 3 * FAN
    assert total <= 3 * FAN**3 * 64 * MIB


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 1), st.integers(1, 1 << 34)), max_size=60))
def test_the_policy_comes_to_rest_with_few_segments_and_little_that_is_dead(some: list[tuple[int, float, int]]) -> None:
    segments = [Candidate(str(i), rows, int(rows * dead), size) for i, (rows, dead, size) in enumerate(some)]
    settled, _ = settle(segments)
    assert sum(s.rows - s.dead for s in settled) == sum(s.rows - s.dead for s in segments), "no live row comes or goes"
    assert all(each.share_dead < MOST_DEAD for each in settled)
    small = sorted(each.live_bytes for each in settled)
    for start in range(len(small) - FAN + 1):
        window = small[start : start + FAN]
        assert window[-1] > SPREAD * window[0] or sum(window) > merge_module.LARGEST_BYTES


def test_searches_of_a_collection_that_is_written_go_through_few_segments() -> None:
    """Those that rows in memory become while they are searched; rows are written again once for each factor of four."""
    segments: list[Candidate] = []
    most = total = 0
    for number in range(64):
        segments, written = settle([*segments, Candidate(f"f{number}", 1000, 0, 8 * MIB)], searched=True)
        most, total = max(most, len(segments)), total + written
    assert most < 3 * FAN_OF_SMALL
    assert total <= 2 * 64 * 8 * MIB
    assert choose([Candidate(str(i), 1000, 0, 64 * MIB) for i in range(FAN - 1)], searched=True) == []
    assert choose([Candidate(str(i), 1000, 0, 8 * MIB) for i in range(FAN - 1)]) == []


def test_what_is_merged_on_request_is_as_little_as_makes_as_few_as_may_be() -> None:
    one = Candidate("one", 10, 0, 10 * MIB)
    assert bins([one]) == []
    assert bins([Candidate("worn", 10, 1, 10 * MIB)]) == [["worn"]]
    assert sorted(bins([one, Candidate("two", 10, 0, MIB)])[0]) == ["one", "two"]
    large = [Candidate(f"l{i}", 10, 0, 9 << 30) for i in range(3)]
    assert bins(large) == [], "two would be larger than a segment may be"


# -- what can be seen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int", "str"])
def test_rows_and_their_order_stay(
    store: Store, tmp_path: Path, schema: Schema, rows_of: Rows, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name: Callable[[int], Any] = int if kind == "int" else "schlüssel-{}".format
    uuid = store.create_collection("c", schema)
    chance = random.Random(5)
    for turn in range(12):
        level0 = turn % 3 == 2
        monkeypatch.setattr(store_module, "LEVEL0_BYTES", 0 if level0 else 1 << 30)
        batch = rows_of([name(i) for i in chance.sample(range(60), 20)], turn)
        vectors = np.arange(80, dtype=np.float32).reshape(20, 4) + turn
        fields = {"vector": type(batch.fields["vector"])(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32))}
        payloads = [p if i % 5 else b"" for i, p in enumerate(batch.payloads)]
        store.write(uuid, Batch(batch.keys, fields, payloads))
        if not level0 and turn % 2:
            store.flush()
    store.delete(uuid, [name(i) for i in range(10)])
    before = content(store.snapshot(uuid))
    held = store.snapshot(uuid)
    assert len(held.parts) > 4
    store.merge(uuid)
    assert content(store.snapshot(uuid)) == content(held) == before
    assert len(store.state(uuid).segments) == 1
    assert after_crash(store, tmp_path, uuid) == before
    store.flush()
    store.merge(uuid)
    assert content(store.snapshot(uuid)) == before
    (segment,) = store.state(uuid).segments
    assert segment.rows == len(before), "no dead row is left"
    assert files_of(store) == {f"{segment.name}.seg"}
    assert list(segment.verify()) == []
    found = store.snapshot(uuid).find([key for key, _, _ in before])
    assert all(place is not None for place in found)


def test_a_field_that_some_segments_lack(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = store.create_collection("c", schema)
    store.write(uuid, rows_of(range(5), 1))
    store.flush()
    extra = {**schema["fields"], "late": {**schema["fields"]["vector"], "dim": 2}}
    store.alter_schema(uuid, lambda old: {**old, "fields": extra})
    batch = rows_of(range(5, 10), 2)
    late = type(batch.fields["vector"])(
        np.full((5, 2), 7, np.float32), np.full(5, 9.9, np.float32), np.array([True, False, True, True, False])
    )
    store.write(uuid, Batch(batch.keys, {**batch.fields, "late": late}, batch.payloads))
    store.flush()
    store.merge(uuid)
    (segment,) = store.state(uuid).segments
    stored = segment.field("late")
    assert stored is not None
    assert stored.has(np.arange(10)).tolist() == [False] * 5 + [True, False, True, True, False]
    assert stored.vectors[5].tolist() == [7, 7] and stored.norms[7] == np.float32(9.9)


class Between(Files):
    """Calls `act` once, when a merge has written some of its file."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[], None] | None = None

    def sync(self, fd: int, path: Path) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()
        super().sync(fd, path)


@pytest.fixture
def between(tmp_path: Path) -> Iterator[tuple[Store, Between]]:
    files = Between()
    opened = open_store(tmp_path / "between", files=files)
    yield opened, files
    opened.close()


def some_segments(store: Store, schema: Schema, rows_of: Rows) -> bytes:
    uuid = store.create_collection("c", schema)
    for turn in range(4):
        store.write(uuid, rows_of(range(turn * 10, turn * 10 + 10), turn))
        store.flush()
    return uuid


def test_rows_that_die_while_a_merge_is_written_are_dead_in_it(
    between: tuple[Store, Between], tmp_path: Path, schema: Schema, rows_of: Rows
) -> None:
    store, files = between
    uuid = some_segments(store, schema, rows_of)

    def meanwhile() -> None:
        store.delete(uuid, [3, 17, 39])
        store.write(uuid, rows_of([5, 25, 100], "new"))

    files.act = meanwhile
    store.merge(uuid)
    expected = {i: i // 10 for i in range(40)} | {5: "new", 25: "new", 100: "new"}
    for gone in (3, 17, 39):
        del expected[gone]
    assert {key: mark for key, mark, _ in content(store.snapshot(uuid))} == expected
    assert {key: mark for key, mark, _ in after_crash(store, tmp_path, uuid)} == expected
    store.flush()
    assert {key: mark for key, mark, _ in after_crash(store, tmp_path, uuid)} == expected
    (merged,) = [segment for segment in store.state(uuid).segments if segment.rows == 40]
    assert store.state(uuid).tombstones[merged.name].count == 5


@pytest.mark.parametrize("what", ["drop", "delete all"])
def test_a_merge_whose_collection_changes_under_it(
    between: tuple[Store, Between], schema: Schema, rows_of: Rows, what: str
) -> None:
    store, files = between
    uuid = some_segments(store, schema, rows_of)
    files.act = lambda: store.drop_collection("c") if what == "drop" else (store.delete(uuid, list(range(40))), None)[1]
    store.merge(uuid)
    if what == "drop":
        assert store.collections() == {} and files_of(store) == set()
        with pytest.raises(NotFound):
            store.snapshot(uuid)
    else:
        assert content(store.snapshot(uuid)) == []
        store.merge(uuid)
        assert store.state(uuid).segments == [] and files_of(store) == set()


def test_an_index_of_a_segment_that_is_merged_goes_with_it(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = some_segments(store, schema, rows_of)
    segment = store.state(uuid).segments[0].name
    store.add_index(uuid, segment, "vector", {"a": np.arange(3)}, {"backend": "x"})
    store.merge(uuid)
    with pytest.raises(NotFound):
        store.add_index(uuid, segment, "vector", {"a": np.arange(3)}, {"backend": "x"})
    (left,) = store.state(uuid).segments
    assert files_of(store) == {f"{left.name}.seg"}


def test_a_finisher_may_give_the_merge_its_indexes_first(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = some_segments(store, schema, rows_of)
    seen: list[int] = []

    def finish(merged: Any) -> bool:
        seen.append(len(store.state(uuid).segments))
        file = store.write_index(uuid, merged.segment.name, "vector", {"a": np.arange(3)}, {"backend": "x"})
        store.delete(uuid, [0])
        assert store.merger.commit(merged, {"vector": file})
        return True

    store.merger.finisher = finish
    store.merge(uuid)
    assert seen == [4], "until it is finished, the old segments serve"
    (entry,) = store.state(uuid).manifest.segments
    assert files_of(store) == set(entry.files) and len(entry.files) == 2
    assert len(content(store.snapshot(uuid))) == 39
    assert store.verify().ok


def test_readers_of_another_process_hold_what_they_have_and_follow(
    store: Store, schema: Schema, rows_of: Rows, reader_of: Any
) -> None:
    uuid = some_segments(store, schema, rows_of)
    reader = reader_of(store.path)
    reader.ask(f"hold({uuid.hex()!r})")
    store.delete(uuid, [0, 39])
    store.merge(uuid)
    assert reader.ask("ids('', held)") == set(range(40))
    assert reader.ids(uuid) == set(range(1, 39))
    assert reader.ask(f"len(store.state(bytes.fromhex({uuid.hex()!r})).segments)") == 1


def test_background_merges_keep_the_number_of_segments_and_the_dead_rows_small(
    store: Store, schema: Schema, rows_of: Rows
) -> None:
    uuid = store.create_collection("c", schema)
    for turn in range(40):
        store.write(uuid, rows_of(range(turn % 10 * 5, turn % 10 * 5 + 20), turn))
        store.flush()
    expected = content(store.snapshot(uuid))
    for _ in range(3):  # until the thread has nothing to do, however slow it is
        while choose(merge_module.candidates(store.state(uuid))) or store.merger._busy:
            assert store.merger.error is None
            store.merger._merge_what_should_be(uuid)
    assert content(store.snapshot(uuid)) == expected
    assert len(store.state(uuid).segments) < FAN
    store.merger.stop()
    assert files_of(store) == {f"{segment.name}.seg" for segment in store.state(uuid).segments}


def test_a_collection_that_is_searched_is_merged_sooner(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = store.create_collection("c", schema)
    some_flushed(store, uuid, rows_of, FAN_OF_SMALL)
    store.merger._merge_what_should_be(uuid)
    assert len(store.state(uuid).segments) == FAN_OF_SMALL
    store.merger.searched(uuid)
    store.merger._merge_what_should_be(uuid)
    assert len(store.state(uuid).segments) == 1
    assert {key for key, _, _ in content(store.snapshot(uuid))} == set(range(FAN_OF_SMALL))


def test_the_rows_of_a_merge_are_known_before_and_while_it_is_made(
    store: Store, schema: Schema, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.merger, "wake", lambda touched: None)  # it is done by hand here
    uuid = store.create_collection("c", schema)
    some_flushed(store, uuid, rows_of, FAN_OF_SMALL)
    names = [segment.name for segment in store.state(uuid).segments]
    assert [store.merger.planned(uuid, name) for name in names] == [0] * FAN_OF_SMALL
    store.merger.searched(uuid)
    assert [store.merger.planned(uuid, name) for name in names] == [FAN_OF_SMALL] * FAN_OF_SMALL
    taken: list[Any] = []
    store.merger.finisher = lambda merged: taken.append(merged) is None
    store.merger._merge_what_should_be(uuid)
    store.merger._searched.clear()
    assert [store.merger.planned(uuid, name) for name in names] == [FAN_OF_SMALL] * FAN_OF_SMALL
    store.merger.commit(taken[0], {})
    assert [store.merger.planned(uuid, name) for name in [*names, taken[0].segment.name]] == [0] * (FAN_OF_SMALL + 1)


def test_a_merge_that_somebody_counts_on_begins(
    store: Store, schema: Schema, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another change: since the last one it was only searched."""
    uuid = store.create_collection("c", schema)
    with monkeypatch.context() as patched:
        patched.setattr(store.merger, "wake", lambda touched: None)  # as if it had looked at these, and found nothing to do
        some_flushed(store, uuid, rows_of, FAN_OF_SMALL)
    store.merger._searched[uuid] = math.inf
    assert store.merger.planned(uuid, store.state(uuid).segments[0].name) == FAN_OF_SMALL
    waited(lambda: len(store.state(uuid).segments) == 1)


def test_nobody_counts_on_merges_that_fail(
    store: Store, schema: Schema, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = store.create_collection("c", schema)
    told: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Files, "free_bytes", lambda self, path: 0)
        some_flushed(store, uuid, rows_of, FAN_OF_SMALL)
        names = [segment.name for segment in store.state(uuid).segments]
        store.merger._searched[uuid] = math.inf
        store.listeners.append(lambda touched: told.append(store.merger.planned(uuid, names[0])) if uuid in touched else None)
        store.merger.planned(uuid, names[0])
        waited(lambda: store.merger.error is not None and bool(told))
    assert told == [0] and [store.merger.planned(uuid, name) for name in names] == [0] * FAN_OF_SMALL


def waited(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def some_flushed(store: Store, uuid: bytes, rows_of: Rows, count: int) -> None:
    for number in range(count):
        store.write(uuid, rows_of(range(number, number + 1)))
        store.flush()


# -- what goes wrong -----------------------------------------------------------------------------------------


def test_a_full_disk_is_met_before_anything_is_written(
    store: Store, schema: Schema, rows_of: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    uuid = some_segments(store, schema, rows_of)
    before, files = content(store.snapshot(uuid)), files_of(store)
    with monkeypatch.context() as patched:
        patched.setattr(Files, "free_bytes", lambda self, path: 1000)
        with pytest.raises(DiskFull, match="free some space"):
            store.merge(uuid)
    assert content(store.snapshot(uuid)) == before and files_of(store) == files
    store.merge(uuid)
    assert content(store.snapshot(uuid)) == before


def test_a_damaged_segment_is_left_alone_and_the_others_are_merged(store: Store, schema: Schema, rows_of: Rows) -> None:
    uuid = store.create_collection("c", schema)
    for turn in range(FAN + 1):
        store.write(uuid, rows_of(range(turn * 10, turn * 10 + 10), "payload to find" + str(turn)))
        store.flush()
    store.merger.stop()  # it is done by hand here
    store.merger._stopping.clear()
    store.close()
    damaged = sorted((store.path / "segments").rglob("*.seg"))[0]
    data = damaged.read_bytes()
    damaged.write_bytes(data.replace(b"payload to find0", b"payload to lose0", 1))
    again = open_store(store.path)
    names: Sequence[str] = [segment.name for segment in again.state(uuid).segments]
    with pytest.raises(Exception, match="not what was written"):
        again.merger._begin(uuid, names[:FAN])
    assert again.merger._damaged == {damaged.stem}
    again.merger._merge_what_should_be(uuid)
    assert sorted(segment.rows for segment in again.state(uuid).segments) == [10, 10 * FAN]
    assert not again.verify().ok
    again.close()


def test_a_reader_that_verifies_is_not_alarmed_by_what_the_writer_replaces(
    store: Store, schema: Schema, rows_of: Rows, reader_of: Any
) -> None:
    some_segments(store, schema, rows_of)
    reader = reader_of(store.path)
    # The look at what is newest comes before the merge, and everything else after it.
    reader.ask("setattr(store, 'refresh', lambda first=iter([0]): next(first, None) is None and type(store).refresh(store))")
    store.merge(next(iter(store.states)))
    assert reader.ask("[str(found) for found in store.verify().damage]") == []
