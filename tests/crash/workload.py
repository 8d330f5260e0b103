"""What the fault and power-loss tests let the engine do: every kind of write, each with what must be visible after it.

A `Step` acts on a `Subject`, the store under test, which it may also close and open again; `after` says what the database
then holds, from what it held before. What it holds is a `Model`: collection name -> marks by id, and the value attached.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vecdb_storage.ahead as ahead_module
import vecdb_storage.growing as growing_module
import vecdb_storage.store as store_module
from vecdb_storage.backup import restore
from vecdb_storage.batch import Batch
from vecdb_storage.errors import AlreadyExists, VecdbError
from vecdb_storage.files import Files
from vecdb_storage.merge import Merger
from vecdb_storage.payloads import parse
from vecdb_storage.registry import open_store
from vecdb_storage.store import Store

from vecdb.points import batch_from_arrays
from vecdb.schema import Dense, Sparse

DIM = 4
FIELD = Dense(DIM)
SCHEMA = {"fields": {"vector": FIELD.to_json()}, "ids": None}
SPARSE = "sparse"  # a collection that has a field of sparse vectors, too
SPARSE_SCHEMA = {"fields": {"vector": FIELD.to_json(), "terms": Sparse().to_json()}, "ids": None}
NEVER = 1 << 30


@dataclass(frozen=True)
class Collection:
    """marks: id -> mark. attached: what `attach` kept."""

    marks: dict[int, int] = field(default_factory=dict)
    attached: int | None = None

    def with_marks(self, ids: Iterable[int], mark: int) -> Collection:
        return replace(self, marks={**self.marks, **dict.fromkeys(ids, mark)})

    def without(self, ids: Iterable[int]) -> Collection:
        gone = set(ids)
        return replace(self, marks={key: mark for key, mark in self.marks.items() if key not in gone})


Model = dict[str, Collection]


class Subject:
    """The store under test, and its files; opened by the first step."""

    def __init__(self, path: Path, files: Files, patched: pytest.MonkeyPatch) -> None:
        self.path, self.files, self.patched = path, files, patched
        self._store: Store | None = None
        patched.setattr(Merger, "wake", lambda *_: None)  # merges are steps, so that calls can be counted

    @property
    def store(self) -> Store:
        """Opened if it is not open, or no longer usable."""
        if self._store is not None and self._store.closed is not None:
            self.close()
        if self._store is None:
            self._store = open_store(self.path, files=self.files)
        return self._store

    def close(self) -> None:
        if self._store is not None:
            store, self._store = self._store, None
            store.release()

    def uuid(self, name: str) -> bytes:
        return self.store.collections()[name]

    def sizes(self, *, level0: int = NEVER, growing: int = NEVER, early: int = NEVER) -> None:
        """From which sizes on a batch takes which way; early: is begun as a segment before the rest of it is there."""
        self.patched.setattr(store_module, "LEVEL0_BYTES", level0)
        self.patched.setattr(ahead_module, "LEVEL0_BYTES", early)
        self.patched.setattr(growing_module, "GROWING_BYTES", growing)


def rows(ids: Sequence[int], mark: int, name: str = "docs") -> Batch:
    """Rows whose vectors and payloads all say id and mark."""
    vectors: dict[str, Any] = {"vector": np.array([[key, mark, 1, 1] for key in ids], np.float32)}
    fields: dict[str, Any] = {"vector": FIELD}
    if name == SPARSE:
        vectors["terms"], fields["terms"] = [{key: mark + 1, 1000 + key: 1} for key in ids], Sparse()
    return batch_from_arrays(fields, list(ids), vectors, [{"mark": mark} for _ in ids])


def contents(store: Store) -> Model:
    """All that the store shows, read in every way there is; a row whose parts belong to different writes is an error."""
    model: Model = {}
    for name, uuid in store.collections().items():
        marks: dict[int, int] = {}
        snapshot = store.snapshot(uuid)
        for part, numbers in snapshot.in_order():
            stored = part.field("vector")
            assert stored is not None
            for key, row in zip(part.keys(numbers), numbers.tolist(), strict=True):
                assert key not in marks, f"{key} is there twice"
                marks[key] = (parse(part.payload(row)) or {})["mark"]
                vector: Any = stored.vectors[row]
                assert vector[0] == key, "a vector belongs to another point"
                if name == SPARSE:
                    terms: Any = part.field("terms")
                    found = terms.vectors[row].tight()
                    assert (found.indices.tolist(), found.weights.tolist()) == ([key, 1000 + key], [vector[1] + 1, 1])
        assert snapshot.count == len(marks)
        assert all(place is not None for place in snapshot.find(list(marks)))
        attached = None
        if "table" in store.state(uuid).schema.get("attachments", {}):
            attached = int(store.attachment(uuid, "table")["value"][0])
        model[name] = Collection(marks, attached)
    return model


def orphans(store: Store) -> list[str]:
    """What lies in the database's folder and belongs to nothing."""
    named = {store.folder(state.uuid) / name for state in store.states.values() for name in store.files_of(state)}
    meta = store.environment.path
    named |= {store.path / "VECDB", store.path / "LOCK", meta, meta.with_name(meta.name + "-lock")}
    folders = {store.folder(state.uuid) for state in store.states.values()} | {store.path / "segments"}
    found = (set(store.path.rglob("*")) - named) - folders
    return sorted(str(path.relative_to(store.path)) for path in found)


def check_whole(store: Store, expected: Sequence[Model]) -> Model:
    """The store shows one of the expected states, is undamaged, and its folder holds nothing else. Returns that state."""
    shown = contents(store)
    assert shown in expected, f"shown: {shown}\nexpected one of: {expected}"
    report = store.verify()
    assert report.ok, report.damage
    assert orphans(store) == []
    return shown


# -- steps -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """act: may raise a VecdbError, and has then changed nothing, or all. backup: the folder that it fills."""

    name: str
    act: Callable[[Subject], Any]
    after: Callable[[Model], Model] = lambda model: model
    backup: Path | None = None


def write(ids: Sequence[int], mark: int, name: str = "docs", **sizes: int) -> Step:
    def act(subject: Subject) -> None:
        subject.sizes(**sizes)
        uuid = subject.uuid(name)
        batch = rows(ids, mark, name)
        if "early" in sizes:
            ahead = subject.store.begin(uuid)
            ahead.add_fields(batch.fields)
            subject.store.write(uuid, batch, ahead=ahead)
        else:
            subject.store.write(uuid, batch)

    return Step(f"write {mark} {sizes}", act, _changed(name, lambda kept: kept.with_marks(ids, mark)))


def refused(ids: Sequence[int], **sizes: int) -> Step:
    """An insert of ids that exist."""

    def act(subject: Subject) -> None:
        subject.sizes(**sizes)
        with pytest.raises(AlreadyExists):
            subject.store.write(subject.uuid("docs"), rows(ids, -1), insert=True)

    return Step(f"refused {sizes}", act)


def delete(ids: Sequence[int]) -> Step:
    return Step("delete", lambda s: s.store.delete(s.uuid("docs"), ids), _changed("docs", lambda kept: kept.without(ids)))


def change_payloads(ids: Sequence[int], mark: int) -> Step:
    def act(subject: Subject) -> None:
        subject.store.change_payloads(subject.uuid("docs"), ids, lambda key, old: b'{"mark":%d}' % mark)

    def after(kept: Collection) -> Collection:
        return kept.with_marks([key for key in ids if key in kept.marks], mark)

    return Step("change payloads", act, _changed("docs", after))


def flush() -> Step:
    return Step("flush", lambda subject: subject.store.flush())


def index(value: int) -> Step:
    """One index for each segment."""

    def act(subject: Subject) -> None:
        store, uuid = subject.store, subject.uuid("docs")
        for entry in store.state(uuid).manifest.segments:
            store.add_index(uuid, entry.name, "vector", {"links": np.full(2000, value)}, {"backend": "none"})

    return Step("add index", act)


def drop_index() -> Step:
    def act(subject: Subject) -> None:
        store, uuid = subject.store, subject.uuid("docs")
        store.drop_index(uuid, store.state(uuid).manifest.segments[0].name, "vector")

    return Step("drop index", act)


def attach(value: int) -> Step:
    def act(subject: Subject) -> None:
        subject.store.attach(subject.uuid("docs"), "table", {"value": np.array([value])}, lambda schema: {**schema, "v": value})

    return Step("attach", act, _changed("docs", lambda kept: replace(kept, attached=value)))


def create(name: str) -> Step:
    schema = SPARSE_SCHEMA if name == SPARSE else SCHEMA
    return Step(
        f"create {name}", lambda s: s.store.create_collection(name, schema), lambda model: {**model, name: Collection()}
    )


def rename(old: str, new: str) -> Step:
    def after(model: Model) -> Model:
        return {new if name == old else name: kept for name, kept in model.items()}

    return Step("rename", lambda subject: subject.store.rename_collection(old, new), after)


def drop(name: str) -> Step:
    def after(model: Model) -> Model:
        return {other: kept for other, kept in model.items() if other != name}

    return Step("drop", lambda subject: subject.store.drop_collection(name), after)


def reopen() -> Step:
    def act(subject: Subject) -> None:
        subject.close()
        assert subject.store.closed is None

    return Step("reopen", act)


def merge(name: str = "docs") -> Step:
    return Step("merge", lambda subject: subject.store.merge(subject.uuid(name)))


def vacuum() -> Step:
    return Step("vacuum", lambda subject: subject.store.vacuum())


def backup(destination: Path) -> Step:
    def act(subject: Subject) -> None:
        shutil.rmtree(destination, ignore_errors=True)  # of a backup that failed nothing can be used
        subject.store.backup(destination)

    return Step("backup", act, backup=destination)


def check_backup(location: Path, destination: Path, model: Model) -> None:
    """What is restored from a backup is what it was made of."""
    store = open_store(restore(location, destination))
    check_whole(store, [model])
    store.release()


def steps(outside: Path) -> list[Step]:
    """The whole workload. outside: an existing folder for backups."""
    first, turns = range(10), []
    for turn in range(2):
        turns += [
            write(first, turn),
            write(range(5, 15), turn + 10, level0=0),
            write(range(4, 8), turn + 20, early=0),
            refused([5], level0=0),
            refused([5], growing=0),
            write(range(8, 12), turn + 30, growing=0),
            write(range(9, 13), turn + 40, growing=0),
            flush(),  # copies: rows of the growing file have died
            attach(turn),
            write(range(10, 13), turn + 50, growing=0),
            flush(),  # completes the growing file
            index(turn),
            change_payloads([3, 11, 77], turn + 60),
            delete([1, 6, 12]),
            flush(),
            index(turn + 2),
            drop_index(),
        ]
        turns += [merge(), write([2, 3], turn + 70), merge(), backup(outside / f"backup-{turn}")]
        if not turn:
            turns += [
                create("other"),
                write(range(20), 3, "other", growing=0),
                rename("docs", "aside"),
                rename("aside", "docs"),
            ]
            turns += [write(range(5), 4, "other", level0=0), write([1], 5, "other", growing=0), reopen(), drop("other")]
            turns += [
                create(SPARSE),
                write(range(6), 6, SPARSE),
                write(range(3, 9), 7, SPARSE, early=0),
                flush(),
                merge(SPARSE),
            ]
        turns += [vacuum(), write([2, 3], turn + 80)]
    return [Step("open", lambda subject: subject.store), create("docs"), *turns, reopen(), write([3], 99)]


def _changed(name: str, change: Callable[[Collection], Collection]) -> Callable[[Model], Model]:
    return lambda model: {**model, name: change(model[name])}


def settle(subject: Subject, step: Step, before: Model, failures: int) -> Model:
    """Runs a step in which up to `failures` calls may fail: again, for as long as it has had no effect. Returns the state.

    After each failure the state is the one before the step or the one after it, and what the error says.
    """
    after = step.after(before)
    for _ in range(failures + 1):
        try:
            step.act(subject)
        except VecdbError as error:
            found = patiently(subject, failures)
            allowed = [before] if getattr(error, "outcome", None) == "failed" else [before, after]
            if found not in allowed:
                raise AssertionError(f"{step.name}: shown: {found}\nallowed: {allowed}") from error
            if found == after and after != before:
                return after
        else:
            return after
    raise AssertionError(f"{step.name} goes on failing when the disk is well again")


def patiently(subject: Subject, failures: int) -> Model:
    """What the store shows. A read that fails is an error and no answer; later ones are whole again."""
    for left in range(failures, -1, -1):
        try:
            return contents(subject.store)
        except VecdbError:
            if not left:
                raise
    raise AssertionError
