"""`verify` finds whatever is damaged and says what is lost; `repair` keeps every point that can still be read, and no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import vecdb_storage.arrayfile as arrayfile_module
import vecdb_storage.repair as repair_module
import vecdb_storage.store as store_module
from vecdb_storage.arrayfile import ArrayFile
from vecdb_storage.files import Files
from vecdb_storage.verify import Damage

import vecdb
from vecdb import Dense, F
from vecdb.errors import Corruption, ReadOnly

ROWS, DIM = 300, 8
BLOCK = 256


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a damaged block is a small part of a small segment."""
    monkeypatch.setattr(arrayfile_module, "BLOCK", BLOCK)
    monkeypatch.setattr(repair_module, "BLOCK", BLOCK)


def payload(i: int) -> dict[str, Any]:
    return {"n": i, "colour": ["red", "green"][i % 2], "text": f"text number {i}"}


def vectors(count: int = ROWS) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((count, DIM)).astype(np.float32)


def make(path: Path, kind: str = "int") -> None:
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(DIM, metric="l2", index="hnsw"))
        ids: Any = range(ROWS) if kind == "int" else [f"point {i}" for i in range(ROWS)]
        docs.upsert(ids=ids, vectors=vectors(), payloads=[payload(i) for i in range(ROWS)])
        docs.flush()
        docs.delete([ids[5], ids[299]])
        db.create_collection("other", Dense(2)).upsert(ids=[1], vectors=[[1, 2]])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrayfile_module, "BLOCK", BLOCK)
        make(folder / "int", "int")
        make(folder / "str", "str")
    return folder


def number(key: Any) -> int:
    return int(key) if isinstance(key, int) else int(key.split()[1])


def segment_of(path: Path) -> Path:
    (segment,) = path.rglob("*.seg")
    return segment


def flip(file: Path, offset: int) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 0x55
    file.write_bytes(data)


def check_what_is_left(db: vecdb.Database, lost: set[int]) -> None:
    docs = db["docs"]
    found = {number(p.id): p for p in docs.scroll(with_vectors=True)}
    assert found.keys() == set(range(ROWS)) - {5, 299} - lost
    all_vectors = vectors()
    for i, point in found.items():
        assert point.payload == payload(i)
        np.testing.assert_array_equal(point.vector, all_vectors[i])
    wanted = next(i for i in found if i % 2)
    assert docs.count(F("colour") == "green") == sum(i % 2 for i in found)
    assert number(docs.search(all_vectors[wanted], k=1)[0].id) == wanted
    assert number(docs.search(all_vectors[wanted], k=1, exact=True)[0].id) == wanted
    keys = [p.id for p in found.values()]
    assert all(docs.get(keys))
    assert db["other"].count() == 1


ARRAYS = {
    "int": ["id.int", "id.hash", "id.row", "id.filter", "payload.offsets", "payload.bytes", "field.vector.vectors",
            "field.vector.norms", "col.0.ints", "col.1.codes", "col.2.text.bytes"],
    "str": ["id.offsets", "id.bytes"],
}  # fmt: skip
MADE_AGAIN = ("id.hash", "id.row", "id.filter", "field.vector.norms", "col.0.ints", "col.1.codes", "col.2.text.bytes")


@pytest.mark.parametrize(("kind", "array"), [(kind, array) for kind, arrays in ARRAYS.items() for array in arrays])
def test_a_damaged_block_costs_the_points_in_it_and_no_other(made: Path, tmp_path: Path, kind: str, array: str) -> None:
    path = tmp_path / "db"
    shutil.copytree(made / kind, path)
    file = segment_of(path)
    opened = ArrayFile(Files(), file)
    entry = opened.entry(array)

    assert len(entry["xxh3"]) > 1, "there must be blocks that are not damaged"
    flip(file, entry["offset"] + BLOCK + 10)
    with vecdb.open(path) as db:
        report = db.verify()
        assert not report.ok
        assert any(array in found.problem or "cannot be read" in found.problem for found in report.damage)
        assert all(
            found.collection == "docs" and found.kind == "segment" and found.file == str(file) for found in report.damage
        )
        report = db.verify(repair=True)
        assert report.ok and report.damage, "what was repaired is told, and is damaged no more"
        lost = {number(key) for key in report.damage[0].ids}
        unknown = report.damage[0].unknown
        if array in MADE_AGAIN:
            assert not lost and not unknown
        elif array.startswith("id."):
            assert not lost and 0 < unknown < ROWS / 2
        else:
            assert not unknown and 0 < len(lost) < ROWS / 2
        if unknown:
            left = {number(p.id) for p in db["docs"].scroll()}
            lost = set(range(ROWS)) - {5, 299} - left
            assert len(lost) == unknown
        db["docs"].flush()
        check_what_is_left(db, lost)
        assert db.verify().damage == []
        note = json.loads(next(path.rglob("quarantine/*/*.json")).read_text())
        assert note["collection"] == "docs" and {number(key) for key in note["lost"]} | lost == lost
        assert next(path.rglob("quarantine/*/*.seg")).stat().st_size == opened.size
    with vecdb.open(path) as db:
        check_what_is_left(db, lost)
        db["docs"].upsert(
            ids=list(report.damage[0].ids) or ["new" if kind == "str" else 9999],
            vectors=vectors(max(1, len(report.damage[0].ids))),
        )
        assert db.verify().damage == []


@pytest.mark.parametrize("what", ["footer", "header", "directory", "cut", "gone", "empty"])
def test_a_segment_that_cannot_be_opened(made: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / "db"
    shutil.copytree(made / "int", path)
    file = segment_of(path)
    data = file.read_bytes()
    match what:
        case "footer":
            flip(file, len(data) - 20)
        case "header":
            flip(file, 30)
        case "directory":
            flip(file, len(data) - 200)
        case "cut":
            file.write_bytes(data[: len(data) // 2])
        case "gone":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    with vecdb.open(path) as db:
        assert db["other"].count() == 1, "other collections are not touched by it"
        with pytest.raises(Corruption):
            db["docs"].count()
        (found,) = db.verify().damage
        assert found.kind == "segment" and found.collection == "docs" and found.file == str(file)
        (found,) = db.verify(repair=True).damage
        assert found.repaired is not None
        if what == "header":  # nothing in it is needed
            assert (found.ids, found.unknown) == ((), 0)
            check_what_is_left(db, set())
        else:
            assert ROWS - 2 <= found.unknown <= ROWS  # the log cannot say which of them were dead
            assert db["docs"].count() == 0
        assert db.verify().damage == []
        db["docs"].upsert(ids=[1], vectors=[[1] * DIM])
    with vecdb.open(path) as db:
        assert db["docs"].count() == (1 if what != "header" else ROWS - 2)
        assert db.verify().damage == []


def test_lost_rows_do_not_bring_older_ones_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has version 1 of a point, a level-0 segment version 2. When that is lost, version 1 must not appear."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index="flat"))
        docs.upsert(ids=range(ROWS), vectors=vectors(), payloads=[{"version": 1}] * ROWS)
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "LEVEL0_BYTES", 0)
            docs.upsert(ids=range(ROWS), vectors=vectors(), payloads=[{"version": 2, "n": i} for i in range(ROWS)])
        assert docs.info().dead == ROWS, "version 1 is in the log"
    file = segment_of(tmp_path / "db")
    entry = ArrayFile(Files(), file).entry("payload.bytes")
    flip(file, entry["offset"] + BLOCK + 10)
    with vecdb.open(tmp_path / "db") as db:
        (found,) = db.verify(repair=True).damage
        lost = {int(key) for key in found.ids}  # type: ignore[arg-type]
        assert 0 < len(lost) < 40
        for _ in range(2):
            points = list(db["docs"].scroll())
            assert {p.payload["version"] for p in points} == {2}
            assert {p.id for p in points} == set(range(ROWS)) - lost
            db.flush()
    with vecdb.open(tmp_path / "db") as db:
        assert {p.id for p in db["docs"].scroll()} == set(range(ROWS)) - lost


def test_a_damaged_index_is_built_again(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "db"
    shutil.copytree(made / "int", path)
    (file,) = path.rglob("*.idx")
    flip(file, 300)
    with vecdb.open(path) as db:
        db.pause_indexing()
        (found,) = db.verify().damage
        assert found.kind == "index" and found.lost == "nothing" and found.file == str(file)
        assert db.verify(repair=True).ok
        assert db.verify().damage == []
        db.resume_indexing()
        db["docs"].flush()
        check_what_is_left(db, set())
        assert list(path.rglob("*.idx")) != [file] and db.verify().damage == []


def test_an_index_of_other_rows_is_found_though_its_checksums_are_right(tmp_path: Path) -> None:
    some = vectors(5000)
    with vecdb.open(tmp_path / "db") as db:
        store = db._store
        for name, rows in (("docs", some), ("twin", some[::-1].copy())):
            db.create_collection(name, Dense(DIM, metric="l2", index="hnsw")).upsert(ids=range(5000), vectors=rows)
            db[name].flush()
        assert db.verify().damage == []
        state, other = store.state(db["docs"]._uuid), store.state(db["twin"]._uuid)
        opened = other.segments[0].index(other.manifest.segments[0].indexes["vector"])
        meta = {key: value for key, value in opened.meta.items() if key not in ("kind", "field")}
        arrays = {name: opened.array(name).copy() for name in opened.names()}
        db.pause_indexing()
        store.add_index(state.uuid, state.segments[0].name, "vector", arrays, meta)
        (found,) = db.verify().damage
        assert found.kind == "index" and found.collection == "docs"
        assert db.verify(repair=True).ok and db.verify().damage == []


def damage_value(path: Path, table: bytes, at: int) -> bytes:
    """Changes a value of LMDB; returns its key."""
    (meta,) = path.glob("meta-*.mdb")
    with lmdb.open(str(meta), subdir=False, max_dbs=16, map_size=1 << 30) as env:
        base = env.open_db(table)
        names = env.open_db(b"meta")
        with env.begin(write=True) as txn:
            key, value = list(txn.cursor(db=base))[at]
            changed = bytearray(value)
            changed[-1] ^= 1
            txn.put(key, bytes(changed), db=base)
            # The engine looks whether the last transaction was its own.
            import xxhash

            number = txn.id().to_bytes(8, "big")
            inner = xxhash.xxh3_64_intdigest(number).to_bytes(8, "little")
            txn.put(b"txn", xxhash.xxh3_64_intdigest(b"txn" + inner).to_bytes(8, "little") + number, db=names)
    return key


def test_a_damaged_log_record_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(2))
        for i in range(3):
            docs.upsert(ids=[i], vectors=[[1, i]])
        db.create_collection("other", Dense(2)).upsert(ids=[1], vectors=[[1, 2]])
    with vecdb.open(path) as db:
        at = sorted([(db["docs"]._uuid, "docs"), (db["other"]._uuid, "other")]).index((db["docs"]._uuid, "docs"))
    key = damage_value(path, b"log", 1 if at == 0 else 2)
    with vecdb.open(path) as db:
        assert db["other"].count() == 1
        with pytest.raises(Corruption):
            db["docs"].count()
        with pytest.raises(Corruption):
            db["docs"].upsert(ids=[9], vectors=[[1, 1]])
        found = [each for each in db.verify().damage if each.kind == "log"]
        assert len(found) == 1 and found[0].collection == "docs"
        report = db.verify(repair=True)
        assert any(f"commits {int.from_bytes(key[16:24], 'big')} left the log" in str(each) for each in report.damage)
        assert {p.id for p in db["docs"].scroll()} == {0, 2}
        assert db.verify().damage == []
    with vecdb.open(path) as db:
        assert db["docs"].count() == 2
        assert next(path.rglob("quarantine/*/log-*")).stat().st_size > 0


@pytest.mark.parametrize("table", [b"manifest", b"tombstones"])
def test_what_cannot_be_made_again_is_reported_and_left(made: Path, tmp_path: Path, table: bytes) -> None:
    path = tmp_path / "db"
    shutil.copytree(made / "int", path)
    with vecdb.open(path) as db:
        db["docs"].flush()
        db["other"].flush()
        uuids = sorted([db["docs"]._uuid, db["other"]._uuid])
        at = uuids.index(db["docs"]._uuid) if table == b"manifest" else 0
    before = {file.name for file in (path / "segments").rglob("*") if file.is_file()}
    damage_value(path, table, at)
    with vecdb.open(path) as db:
        assert db["other"].count() == 1
        with pytest.raises(Corruption):
            db["docs"].count()
        report = db.verify(repair=True)
        assert not report.ok and any("restore a backup" in str(found) for found in report.damage)
    assert {file.name for file in (path / "segments").rglob("*") if file.is_file()} == before, "nothing is deleted"


def test_only_a_writer_repairs(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "int", tmp_path / "db")
    with vecdb.open(tmp_path / "db", read_only=True) as db:
        seen: list[tuple[int, int]] = []
        assert db.verify(progress=lambda *at: seen.append(at)).damage == []
        assert seen[-1][0] == seen[-1][1] > 0 and [at for at, _ in seen] == sorted(at for at, _ in seen)
        with pytest.raises(ReadOnly):
            db.verify(repair=True)
    assert (
        str(Damage("it hurts", "segment", "rest", "sleep", collection="c"))
        == "collection 'c': it hurts. Lost: sleep. To do: rest."
    )
