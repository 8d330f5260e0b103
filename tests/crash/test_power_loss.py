"""The power goes at any moment: *acknowledged ⊆ visible ⊆ attempted*, and no batch is torn.

The workload is recorded once. After each entry of the journal some of the directories are laid out that the disk may then
hold (see disk.py), and the database is opened there.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from disk import Disk, FailingSync, Found, Image, Note, Recorder, Unsynced
from vecdb_storage.errors import VecdbError
from vecdb_storage.registry import open_store
from workload import (
    SCHEMA,
    Collection,
    Model,
    Step,
    Subject,
    check_backup,
    check_whole,
    contents,
    create,
    flush,
    rows,
    settle,
    steps,
    write,
)

SHARES = 8


@dataclass(frozen=True)
class Moment:
    """What is known of the database when the power goes. attempted: after the step that is under way.

    backups: those that were acknowledged, and what they must hold. under_way: a backup that was not yet.
    """

    acknowledged: Model
    attempted: Model
    backups: tuple[tuple[Path, Model], ...] = ()
    under_way: Path | None = None


def record(root: Path, path: Path, patched: pytest.MonkeyPatch) -> Recorder:
    """The workload, on a database at `path` below `root`; its journal has a Moment before and after each step."""
    recorder = Recorder(root, patched)
    outside = root / "outside"
    recorder.make_directory(outside)
    recorder.sync_directory(root)
    subject = Subject(path, recorder, patched)
    model: Model = {}
    backups: tuple[tuple[Path, Model], ...] = ()
    for step in steps(outside):
        after = step.after(model)
        place = step.backup and step.backup.relative_to(root)
        recorder.note(Moment(model, after, backups, place))
        step.act(subject)
        model = after
        assert contents(subject.store) == model
        if place is not None:
            backups = (*backups, (place, model))
        recorder.note(Moment(model, model, backups))
    subject.close()
    return recorder


def cuts(recorder: Recorder, seed: int, several: int) -> Iterator[tuple[int, Moment, Disk, list[Found]]]:
    """After each entry: what the disk may hold, and has not held at the entry before."""
    disk, chance = Disk(recorder.directories), random.Random(seed)
    moment = Moment({}, {})
    seen = set()
    for number, entry in enumerate(recorder.journal):
        disk.follow(entry)
        if isinstance(entry, Note):
            moment = entry.what
        for outcome in disk.outcomes(chance, several):
            key = id(moment), disk.key(outcome)
            if key not in seen:
                seen.add(key)
                yield number, moment, disk, outcome


def check(root: Path, path: Path, moment: Moment, image: Image) -> None:
    """Opens what is left, as a reader and as the writer, and goes on writing."""
    image.put(root)
    database = root / path
    allowed = [moment.acknowledged, moment.attempted]
    files = Unsynced()
    if (database / "VECDB").exists():
        reader = open_store(database, read_only=True, files=files)
        shown = contents(reader)
        reader.release()
        assert shown in allowed, f"a reader sees {shown}\nallowed: {allowed}"
        allowed = [shown]
    writer = open_store(database, files=files)
    model = check_whole(writer, allowed)
    uuid = writer.collections()["docs"] if "docs" in model else writer.create_collection("docs", SCHEMA)
    writer.write(uuid, rows([1, 50], 1000))
    writer.flush(uuid)
    model = {**model, "docs": model.get("docs", Collection()).with_marks([1, 50], 1000)}
    check_whole(writer, [model])
    writer.release()
    for number, (place, held) in enumerate(moment.backups):
        check_backup(root / place, root / f"restored-{number}", held)
    if moment.under_way is not None:
        with suppress(VecdbError):  # a part of a backup cannot be restored
            check_backup(root / moment.under_way, root / "restored", moment.acknowledged)


def survive(
    scratch: Path, path: str, patched: pytest.MonkeyPatch, *, several: int, most: int | None = None, share: int = 0
) -> int:
    """Cuts the power everywhere, or in `most` places; of all these, in one share of eight. Returns how many there were."""
    before, after = scratch / "before", scratch / "after"
    before.mkdir()
    recorder = record(before, before / path, patched)
    count = sum(1 for _ in cuts(recorder, 1, several))
    chosen = set(range(share, count, SHARES) if most is None else random.Random(2).sample(range(count), most))
    for place, (number, moment, disk, outcome) in enumerate(cuts(recorder, 1, several)):
        if place not in chosen:
            continue
        try:
            check(after, Path(path), moment, disk.image(outcome))
        except BaseException as error:
            error.add_note(f"entry {number} of the journal: {recorder.journal[number]!r:.300}\nthere: {outcome!r:.2000}")
            raise
        shutil.rmtree(after)
    return count


def test_a_power_cut_at_any_moment_loses_nothing(scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any) -> None:
    assert survive(scratch, "db", monkeypatch, several=4, most=100) >= 1000
    counted("power cuts", 100)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_a_power_cut_at_every_moment_loses_nothing(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any, share: int
) -> None:
    count = survive(scratch, "db", monkeypatch, several=12, share=share)
    assert count >= 5000
    counted("power cuts", len(range(share, count, SHARES)))


def test_a_power_cut_does_not_take_the_folders_that_were_made_for_a_database(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any
) -> None:
    survive(scratch, "some/where/db", monkeypatch, several=0, most=40)
    counted("power cuts", 40)


def test_what_a_failed_sync_left_behind_is_synced_later(scratch: Path, monkeypatch: pytest.MonkeyPatch, counted: Any) -> None:
    """The n-th sync fails, the step is tried again, and at the end the power goes."""
    work = [
        Step("open", lambda subject: subject.store),
        create("docs"),
        write(range(9), 1),
        write(range(20), 2, growing=0),
        flush(),
        write(range(5), 3, level0=0),
    ]
    fails_at = 0
    while True:
        fails_at += 1
        before, after = scratch / f"before-{fails_at}", scratch / f"after-{fails_at}"
        before.mkdir()
        recorder = FailingSync(before, monkeypatch, fails_at)
        subject, model = Subject(before / "db", recorder, monkeypatch), {}
        for step in work:
            model = settle(subject, step, model, 1)
        subject.close()
        disk = Disk(recorder.directories)
        for entry in recorder.journal:
            disk.follow(entry)
        try:
            check(after, Path("db"), Moment(model, model), disk.image([]))
        except BaseException as error:
            error.add_note(f"sync {fails_at} failed")
            raise
        if recorder.syncs < fails_at:
            break
    assert fails_at > 10
    counted("syncs that failed, and a power cut later", fails_at)
