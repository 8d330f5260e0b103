"""Reads a database from end to end and reports what is not as it was written. It changes nothing.

Runs beside writers and readers, on the snapshots published when it comes to each collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .arrayfile import ArrayFile, begun_at
from .errors import Corruption, NotFound, VecdbError
from .growing import SUFFIX as GROWING_SUFFIX
from .ids import Id
from .snapshot import Snapshot
from .vacuum import other_generations

if TYPE_CHECKING:
    from .store import Store


@dataclass(frozen=True)
class Report:
    """What `verify` found. ok is true when damage is empty."""

    files: int
    bytes: int
    damage: list[VecdbError] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.damage


def verify(store: Store, uuid: bytes | None = None) -> Report:
    """Everything of the database, or of one collection."""
    damage: list[VecdbError] = []
    files = length = 0
    try:
        store.check_tables()
    except Corruption as error:
        damage.append(error)
    for state in list(store.states.values()):
        if uuid is not None and state.uuid != uuid:
            continue
        if state.damage is not None:
            damage.append(state.damage)
            continue
        assert state.snapshot is not None
        snapshot = state.snapshot
        for part in snapshot.parts:
            segment = getattr(part, "segment", None)
            if segment is not None:
                files += 1
                length += segment.file.size
                damage += segment.verify()
                for file in part.indexes.values():  # type: ignore[attr-defined]
                    files += 1
                    try:
                        index = segment.index(file)
                        length += index.size
                        damage += index.verify()
                    except (Corruption, NotFound) as error:
                        damage.append(error)
        for extent in state.located:
            try:
                extent.read(store.files, store.folder(state.uuid))
            except (Corruption, NotFound) as error:
                damage.append(error)
        for name in state.schema.get("attachments", {}).values():
            files += 1
            try:
                attached = ArrayFile(store.files, store.folder(state.uuid) / name, store.uuid)
                length += attached.size
                damage += attached.verify()
            except (Corruption, NotFound) as error:
                damage.append(error)
        damage += _twice_alive(snapshot, state.name)
    if uuid is None:
        damage += _strangers(store)
    return Report(files, length + store.meta_bytes, damage)


def _strangers(store: Store) -> Iterator[VecdbError]:
    """Files that nothing names and that were too strange to delete."""
    with store.generation_lock:
        strange = [name for name in other_generations(store) if not name.endswith(".tmp")]
    if store.meta_named() == store.environment.path.name:  # else this reader is about to move over
        for name in strange:
            yield Corruption("VECDB does not name this file", file=str(store.path / name))
    root = store.path / "segments"
    named = {store.folder(s.uuid) / name for s in store.states.values() for name in store.files_of(s)}
    for folder in store.files.names(root):
        for name in store.files.names(root / folder):
            path = root / folder / name
            if path in named or name.endswith(".tmp") or (path.suffix == GROWING_SUFFIX and _is_ours(store, path)):
                continue
            yield Corruption("no manifest names this file", file=str(path))


def _is_ours(store: Store, path: Path) -> bool:
    """A growing file of this store, which a writer may be about to name, or the next one deletes."""
    try:
        return begun_at(store.files, path, store.uuid) is not None
    except VecdbError:  # it went meanwhile
        return True


def _twice_alive(snapshot: Snapshot, name: str) -> Iterator[VecdbError]:
    """Ids with more than one live row, which the rule of visibility forbids."""
    seen: set[Id] = set()
    for part, rows in snapshot.in_order():
        for key in part.keys(rows):
            if key in seen:
                yield Corruption(f"collection {name!r} has two live rows of {key!r}")
            seen.add(key)
