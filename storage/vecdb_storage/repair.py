"""Repairs what `verify` found: makes again what can be made again, and puts the rest into quarantine.

    index       leaves the manifest, and is built again
    segment     its rows are read one block at a time; those that are whole become new segments, the others are lost. Id tables,
                columns and norms are made again from ids, payloads and vectors
    log record  leaves the log; what it wrote is lost, and what it replaced or deleted may be back

The files that are replaced go to `quarantine/` in the database's folder, with a note (JSON) that says which points are lost; no
row is ever guessed. Everything else stays as it is, for a backup. Belongs to one run of `verify`, in one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from . import ids as ids_module
from .arrayfile import BLOCK, ArrayFile
from .batch import Packed, unpack_bits
from .commit import Section
from .environment import Transaction
from .errors import Corruption, NotFound, VecdbError
from .ids import Id
from .manifest import SUFFIX, SegmentEntry
from .memtable import GatheredField
from .places import Folder
from .segment import SegmentWriter
from .tombstones import from_chunks
from .ulid import ulid
from .vectors import SparseVectors, Vectors, form_of, norms_of

if TYPE_CHECKING:
    from .state import CollectionState
    from .store import Store
    from .verify import Damage

QUARANTINE = "quarantine"
_ROWS = 250_000  # of one new segment, so that memory stays bounded
Rows = npt.NDArray[np.int64]


def repaired(store: Store, damage: Sequence[Damage]) -> list[Damage]:
    """The same findings, with what was done about them."""
    done: dict[int, Damage] = {}
    with store.merger.lock:
        segments: dict[tuple[str | None, str], list[int]] = {}
        for number, found in enumerate(damage):
            if found.kind == "segment" and found.segment is not None:
                segments.setdefault((found.collection, found.segment), []).append(number)
            elif found.kind == "index" and found.file is not None:
                done[number] = _without_index(store, found)
        for numbers in segments.values():
            done |= zip(numbers, _without_segment(store, [damage[n] for n in numbers]), strict=True)
        for number, found in enumerate(damage):
            if found.kind == "log" and found.array == "log" and found.collection is not None:
                done[number] = _without_records(store, found)
    return [done.get(number, found) for number, found in enumerate(damage)]


def _state_of(store: Store, collection: str | None) -> CollectionState:
    state = next((state for state in store.states.values() if state.name == collection), None)
    if state is None:
        raise NotFound(f"collection {collection!r} is gone")
    return state


def _without_index(store: Store, found: Damage) -> Damage:
    state = _state_of(store, found.collection)
    assert found.file is not None
    file = Path(found.file).name
    for entry in state.manifest.segments:
        for name, kept in entry.indexes.items():
            if kept == file:
                store.drop_index(state.uuid, entry.name, name)
    return replace(found, repaired="the index was dropped, and is built again")


# -- segments ----------------------------------------------------------------------------------------------


@dataclass
class _Salvage:
    """What can still be read of a segment. rows: of the file. lost (rows,) bool. nameless (rows,) bool: their ids are lost."""

    file: ArrayFile
    rows: int
    lost: npt.NDArray[np.bool_]
    nameless: npt.NDArray[np.bool_]
    arrays: dict[str, Any] = field(default_factory=dict)

    def bad(self, name: str) -> npt.NDArray[np.bool_]:
        """For each byte range of BLOCK of an array, whether it is damaged."""
        entry = self.file.entry(name)
        flags = np.zeros(len(entry["xxh3"]), np.bool_)
        for block in range(len(flags)):
            try:
                self.file.check(name, block * BLOCK, min(entry["bytes"], (block + 1) * BLOCK))
            except Corruption:
                flags[block] = True
        return flags

    def touches(self, name: str, starts: Rows, stops: Rows) -> npt.NDArray[np.bool_]:
        """For each byte range (start, stop) of an array, whether it lies in a damaged block."""
        bad = np.concatenate([[0], np.cumsum(self.bad(name))])
        first, last = np.minimum(starts // BLOCK, len(bad) - 1), np.minimum(-(-stops // BLOCK), len(bad) - 1)
        touched: npt.NDArray[np.bool_] = bad[np.maximum(first, last)] > bad[first]
        return touched

    def of_rows(self, name: str, extra: int = 0) -> npt.NDArray[np.bool_]:
        """For each row, whether its item of an array is in a damaged block. extra: items after it that it needs."""
        array = self.file.unchecked(name)
        size = array.nbytes // max(1, len(array))
        starts = np.arange(self.rows, dtype=np.int64) * size
        return self.touches(name, starts, starts + size * (1 + extra))


def _salvage(file: ArrayFile) -> _Salvage:
    """Which rows are whole."""
    rows = int(file.meta["rows"])
    found = _Salvage(file, rows, np.zeros(rows, np.bool_), np.zeros(rows, np.bool_))
    if "id.int" in file:
        found.nameless |= found.of_rows("id.int")
    else:
        found.nameless |= found.of_rows("id.offsets", 1)
        offsets = file.unchecked("id.offsets").astype(np.int64)
        starts, stops = offsets[:-1].copy(), offsets[1:].copy()
        starts[found.nameless] = stops[found.nameless] = 0
        found.nameless |= found.touches("id.bytes", starts, stops)
    found.lost |= found.nameless
    if "seq" in file:
        found.lost |= found.of_rows("seq")
    unsure = found.of_rows("payload.offsets", 1)
    offsets = file.unchecked("payload.offsets").astype(np.int64)
    starts, stops = offsets[:-1].copy(), offsets[1:].copy()
    starts[unsure] = stops[unsure] = 0
    found.lost |= unsure | found.touches("payload.bytes", starts, stops)
    for name in file.meta["fields"]:
        found.lost |= _vectors_lost(found, name)
        present = f"field.{name}.present"
        if present in file and found.bad(present).any():
            # Rows that have something there have the field; of zeros nobody can tell.
            found.lost |= ~_has_any(found, name)
    return found


def _vectors(found: _Salvage, name: str) -> Vectors:
    """As they lie in the file; of sparse rows only those that are not lost may be looked at."""
    file, base = found.file, f"field.{name}."
    if base + "vectors" in file:
        return file.unchecked(base + "vectors")
    return SparseVectors(file.unchecked(base + "offsets"), file.unchecked(base + "indices"), file.unchecked(base + "weights"))


def _vectors_lost(found: _Salvage, name: str) -> npt.NDArray[np.bool_]:
    vectors = _vectors(found, name)
    if isinstance(vectors, np.ndarray):
        return found.of_rows(f"field.{name}.vectors")
    lost = found.of_rows(f"field.{name}.offsets", 1)
    offsets = vectors.offsets.astype(np.int64)
    starts, stops = 4 * offsets[:-1], 4 * offsets[1:]
    starts[lost] = stops[lost] = 0
    for array in ("indices", "weights"):
        lost |= found.touches(f"field.{name}.{array}", starts, stops)
    return lost


def _has_any(found: _Salvage, name: str) -> npt.NDArray[np.bool_]:
    """For each row, whether there is something in its vector."""
    vectors = _vectors(found, name)
    if isinstance(vectors, np.ndarray):
        return np.array([vectors[row].any() for row in range(found.rows)], np.bool_)
    some: npt.NDArray[np.bool_] = vectors.offsets[1:] > vectors.offsets[:-1]
    return some


def _without_segment(store: Store, damage: list[Damage]) -> list[Damage]:
    state = _state_of(store, damage[0].collection)
    name = damage[0].segment
    entry = next((entry for entry in state.manifest.segments if entry.name == name), None)
    if entry is None:
        return [replace(found, repaired="the segment had left the collection meanwhile") for found in damage]
    path = store.segment_path(state.uuid, entry.name)
    tombstones = _tombstones(store, state, entry)
    ids: list[Id] = []
    unknown = 0
    new: list[SegmentEntry] = []
    try:
        found = _salvage(ArrayFile(store.files, path, store.uuid, check_header=False))
    except VecdbError:  # not even the directory of its arrays can be read
        unknown = entry.rows - tombstones.count
    else:
        live = ~tombstones.is_dead(np.arange(found.rows))
        unknown = int(np.count_nonzero(live & found.nameless))
        ids = _keys(found, np.flatnonzero(live & found.lost & ~found.nameless))
        new = [_rewrite(store, state, found, entry, rows) for rows in _chunks(np.flatnonzero(live & ~found.lost))]
    note = {
        "collection": state.name, "uuid": state.uuid.hex(), "segment": entry.name, "rows": entry.rows,
        "problems": [each.problem for each in damage], "lost": ids, "lost without id": unknown,
    }  # fmt: skip
    _quarantine(store, state, entry.name + SUFFIX, path, note)

    def run(txn: Transaction) -> Section:
        section = Section(store.environment, txn, store.states, store.seq)
        kept = tuple(each for each in state.manifest.segments if each.name != entry.name)
        section.put_manifest(state, replace(state.manifest, segments=(*kept, *new)))
        store.environment.delete_prefix(txn, "tombstones", entry.name.encode())
        section.drop_files(f"segments/{state.uuid.hex()}/{file}" for file in entry.files)
        return section

    with store.commit_lock:
        store.transact(1 << 20, run)
        store.recover(reopen=False)
    store.garbage.sweep()
    if entry.seq is not None and ids:
        with suppress(VecdbError):  # the log may hold older rows of what was lost, and they must not come back
            store.delete(state.uuid, ids, as_of=entry.seq)
    rest = f"{sum(each.rows for each in new):,} points were written anew, {len(ids) + unknown:,} are lost"
    if entry.seq is not None and unknown:
        rest += ", and older versions of these, which were in the log, may have come back"
    text = f"{rest}; the damaged file is in {QUARANTINE}/"
    return [replace(each, ids=tuple(ids), unknown=unknown, repaired=text) for each in damage]


def _tombstones(store: Store, state: CollectionState, entry: SegmentEntry) -> Any:
    """As memory has them; or, where the segment could not be opened, as LMDB has them."""
    known = state.tombstones.get(entry.name)
    if known is not None and state.damage is None:
        return known
    with store.environment.read() as txn:
        chunks = {
            int.from_bytes(key[-4:], "big"): np.frombuffer(chunk, np.uint64)
            for key, chunk in store.environment.scan(txn, "tombstones", entry.name.encode())
        }
    return from_chunks(entry.rows, chunks)


def _chunks(rows: Rows) -> Iterator[Rows]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]


def _keys(found: _Salvage, rows: Rows) -> list[Id]:
    file = found.file
    if "id.int" in file:
        ints: list[Id] = file.unchecked("id.int")[rows].tolist()
        return ints
    return list(ids_module.StrIds(file.unchecked("id.offsets"), file.unchecked("id.bytes")).at(rows))


def _rewrite(store: Store, state: CollectionState, found: _Salvage, entry: SegmentEntry, rows: Rows) -> SegmentEntry:
    """Whole rows as a segment of their own."""
    file = found.file
    keys = _keys(found, rows)
    offsets, data = file.unchecked("payload.offsets"), file.unchecked("payload.bytes")
    payloads = [data[int(offsets[row]) : int(offsets[row + 1])].tobytes() for row in rows.tolist()]
    path = store.segment_path(state.uuid, ulid())
    writer = SegmentWriter(store.files, path, store.uuid, store.last_transaction())
    try:
        writer.add_gathered({name: _field(found, name, rows) for name in file.meta["fields"]})
        seqs = file.unchecked("seq")[rows] if "seq" in file else np.full(len(rows), entry.seq, np.uint64)
        length = writer.finish(Packed.of(keys, payloads), seqs)
    except BaseException:
        writer.abandon()
        raise
    return SegmentEntry(path.name.removesuffix(SUFFIX), len(rows), None, length)


def _field(found: _Salvage, name: str, rows: Rows) -> GatheredField:
    file = found.file
    vectors = _vectors(found, name)
    norms = file.unchecked(f"field.{name}.norms")[rows].copy()
    again = found.of_rows(f"field.{name}.norms")[rows]
    if again.any():
        norms[again] = norms_of(vectors[rows[again]])
    present = np.ones(len(rows), np.bool_)
    if f"field.{name}.present" in file:
        if found.bad(f"field.{name}.present").any():
            present = _has_any(found, name)[rows]
        else:
            present = unpack_bits(file.unchecked(f"field.{name}.present"), found.rows)[rows]
    pieces = [vectors[some] for some in np.array_split(rows, max(1, len(rows) // 4096))]
    return GatheredField(form_of(vectors), norms, present, lambda: iter(pieces))


def _quarantine(store: Store, state: CollectionState, name: str, path: Path, note: dict[str, Any]) -> None:
    """A damaged file under another name, with a note beside it; on the disk before anything else changes."""
    folder = Folder(store.files, store.path / QUARANTINE)
    base = f"{state.uuid.hex()}/{name}"
    if store.files.exists(path) and not folder.link(base, path):
        folder.write(base, Folder(store.files, path.parent).read(path.name))
    folder.finish(f"{base}.json", orjson.dumps(note, option=orjson.OPT_INDENT_2))


# -- the log -----------------------------------------------------------------------------------------------


def _without_records(store: Store, found: Damage) -> Damage:
    """Log records of which a part is damaged leave the log."""
    state = _state_of(store, found.collection)
    with store.environment.read() as txn:
        damaged = {key[16:24] for key, _ in store.environment.damaged(txn, "log") if key[:16] == state.uuid}
    for seq in sorted(damaged):
        prefix = state.uuid + seq
        with store.environment.read() as txn:
            raw = store.environment.raw(txn, "log", prefix)
        number = int.from_bytes(seq, "big")
        note = {"collection": state.name, "uuid": state.uuid.hex(), "commit": number, "problems": [found.problem]}
        folder = Folder(store.files, store.path / QUARANTINE)
        folder.write(f"{state.uuid.hex()}/log-{number}", [raw])
        folder.finish(f"{state.uuid.hex()}/log-{number}.json", orjson.dumps(note, option=orjson.OPT_INDENT_2))

        def run(txn: Transaction, prefix: bytes = prefix) -> Section:
            store.environment.delete_prefix(txn, "log", prefix)
            return Section(store.environment, txn, store.states, store.seq)

        with store.commit_lock:
            store.transact(1 << 20, run)
            store.recover(reopen=False)
    text = (
        f"commits {', '.join(str(int.from_bytes(s, 'big')) for s in sorted(damaged))} left the log"
        if damaged
        else "with another"
    )
    return replace(found, repaired=f"{text}; what they replaced or deleted may be back; the bytes are in {QUARANTINE}/")
