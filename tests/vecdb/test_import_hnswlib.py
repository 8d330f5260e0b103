"""Files of hnswlib: against hnswlib itself where it is installed, and against a writer of the documented layout everywhere.

A damaged file gives one typed error or, where the damage touches nothing that counts, the right points; never anything else.
"""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb.errors import (
    AlreadyExists,
    DuplicateId,
    InvalidId,
    InvalidInput,
    InvalidVector,
    NotFound,
    ReadOnly,
    StorageError,
)
from vecdb.index import HNSW
from vecdb.ingest.peers import hnswlib as ingest
from vecdb.ingest.peers.hnswlib import HnswlibFile, Progress

FIELDS = {  # offset and struct code of each field of the header
    "offset_level0": (0, "<Q"), "max_elements": (8, "<Q"), "count": (16, "<Q"), "element_bytes": (24, "<Q"),
    "label_offset": (32, "<Q"), "data_offset": (40, "<Q"), "max_level": (48, "<i"), "enter_point": (52, "<I"),
    "max_m": (56, "<Q"), "max_m0": (64, "<Q"), "m": (72, "<Q"), "mult": (80, "<d"), "ef_construction": (88, "<Q"),
}  # fmt: skip


def layout(
    vectors: Any, labels: Any = None, *, deleted: Any = (), m: int = 4, room: int = 3, levels: Any = None, seed: int = 0
) -> bytes:
    """A file as hnswlib 0.7 and 0.8 write it, byte by byte, with links drawn at random. levels: of each element."""
    vectors = np.ascontiguousarray(vectors, "<f4")
    (n, d), rng = vectors.shape, np.random.default_rng(seed)
    labels = range(n) if labels is None else labels
    levels = [2 if i == n // 2 else int(i % 7 == 3) for i in range(n)] if levels is None else list(levels)
    top = max(levels, default=-1)
    data = 4 + 8 * m
    header = (0, n + room, n, data + 4 * d + 8, data + 4 * d, data, top, levels.index(top) if n else 0xFFFFFFFF)
    parts = [struct.pack("<6QiI3QdQ", *header, m, 2 * m, m, 1 / math.log(m), 200)]

    def links(most: int) -> tuple[bytes, int]:
        used = int(rng.integers(0, most + 1))
        return b"".join(struct.pack("<I", int(x)) for x in [*rng.integers(0, n, used), *[0] * (most - used)]), used

    for i, label in enumerate(labels):
        others, used = links(2 * m)
        parts += [struct.pack("<HBB", used, i in deleted, 0), others, vectors[i].tobytes(), struct.pack("<Q", label)]
    for level in levels:
        parts.append(struct.pack("<I", level * (4 + 4 * m)))
        for _ in range(level):
            others, used = links(m)
            parts += [struct.pack("<I", used), others]
    return b"".join(parts)


def drawn(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "index.bin"


@pytest.fixture
def memory() -> Any:
    with vecdb.open(":memory:", threads=1) as opened:
        yield opened


def stored(collection: vecdb.Collection) -> dict[Any, bytes]:
    """id -> the bytes of its vector."""
    return {point.id: point.vector.tobytes() for point in collection.scroll(with_vectors=True) if point.vector is not None}


def expected(vectors: Any, labels: Any, deleted: Any = ()) -> dict[Any, bytes]:
    return {int(k): v.tobytes() for i, (k, v) in enumerate(zip(labels, vectors, strict=True)) if i not in deleted}


# -- the layout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize(("n", "d", "m"), [(0, 3, 16), (1, 1, 2), (2, 5, 3), (100, 7, 4), (1000, 32, 16), (13, 300, 64)])
def test_every_vector_arrives_bit_by_bit_under_its_label(memory: Any, path: Path, metric: Any, n: int, d: int, m: int) -> None:
    vectors = drawn(n, d)
    if metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.random.default_rng(1).permutation(5 * n)[:n] + 2**62
    path.write_bytes(layout(vectors, labels, m=m, room=50))
    docs = memory.import_hnswlib("docs", path, metric=metric)
    assert stored(docs) == expected(vectors, labels)
    assert docs.info().fields["vector"] == vecdb.Dense(d, metric)
    assert memory.collections() == ["docs"]


def test_deleted_elements_are_left_out_and_counted(memory: Any, path: Path) -> None:
    vectors, deleted = drawn(50, 4), {0, 7, 8, 49}
    path.write_bytes(layout(vectors, deleted=deleted))
    told: list[Progress] = []
    docs = memory.import_hnswlib("docs", path, metric="l2", batch=20, progress=told.append)
    assert stored(docs) == expected(vectors, range(50), deleted)
    assert [each.imported for each in told] == [20, 40, 46]
    assert told[-1] == Progress(46, 4, 50)
    path.write_bytes(layout(vectors, deleted=range(50)))
    assert memory.import_hnswlib("none", path, metric="l2", progress=told.append).count() == 0
    assert told[-1] == Progress(0, 50, 50)


@pytest.mark.parametrize("batch", [1, 7, 60, 61, 1000, None])
@pytest.mark.parametrize("piece", [4, 100, 400, 1 << 20])
def test_any_batch_and_any_piece_of_the_file_give_the_same_points(
    memory: Any, path: Path, monkeypatch: Any, batch: Any, piece: int
) -> None:
    monkeypatch.setattr(ingest, "_PIECE_BYTES", piece)
    vectors = drawn(61, 5)
    path.write_bytes(layout(vectors, deleted={3}, levels=[3, *([0, 0, 0, 1, 2, 0] * 10)]))
    docs = memory.import_hnswlib("docs", path, metric="ip", batch=batch)
    assert stored(docs) == expected(vectors, range(61), {3})


def test_fields_and_their_index_are_declared_as_in_dense(memory: Any, path: Path) -> None:
    whole = np.random.default_rng(0).integers(-128, 128, (30, 6)).astype(np.float32)
    path.write_bytes(layout(whole))
    docs = memory.import_hnswlib("a", path, metric="l2", dtype="i8", index=HNSW(m=8))
    assert docs.info().fields["vector"] == vecdb.Dense(6, "l2", "i8", HNSW(m=8))
    assert stored(docs) == expected(whole.astype(np.int8), range(30))
    half = memory.import_hnswlib("b", str(path), metric="ip", dtype="f16", index="flat")
    assert stored(half) == expected(whole.astype(np.float16), range(30))


def test_memory_is_bounded_by_the_batch_and_not_by_the_file(db: vecdb.Database, path: Path) -> None:
    vectors = drawn(2000, 64)
    record = layout(vectors, levels=[1, *[0] * 1999])
    body, tail = record[96 : 96 + 2000 * 300], record[96 + 2000 * 300 :]
    copies = 100  # 60 MB; labels occur again and again, so only the first of each 2000 live ones may be inserted
    header = bytearray(record[:96])
    struct.pack_into("<2Q", header, 8, copies * 2000, copies * 2000)
    with path.open("wb") as file:
        file.write(header)
        for _ in range(copies):
            file.write(body)
        file.write(tail + bytes(4 * 2000 * (copies - 1)))
    tracemalloc.start()
    try:
        with HnswlibFile(path) as opened:
            assert sum(len(some.labels) for some in opened.elements()) == copies * 2000
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < 24 << 20 < path.stat().st_size
        tracemalloc.reset_peak()
        with pytest.raises(DuplicateId):
            db.import_hnswlib("docs", path, metric="l2", batch=500)
        assert tracemalloc.get_traced_memory()[1] < 24 << 20
    finally:
        tracemalloc.stop()


# -- damage -----------------------------------------------------------------------------------------------


def right_or_refused(memory: Any, path: Path, points: Any) -> bool:
    """Whether the import was refused; if it was not, the points are right. Nothing of it stays."""
    refused = ""
    try:
        docs = memory.import_hnswlib("docs", path, metric="l2")
    except InvalidInput as error:
        refused = str(error)
    if refused:
        assert str(path) in refused
        assert memory.collections() == []
        return True
    assert points is None or stored(docs) == points
    memory.drop_collection("docs")
    return False


def test_a_file_cut_short_or_grown_is_refused(memory: Any, path: Path) -> None:
    whole = layout(drawn(60, 6), deleted={5})
    for length in [*range(0, len(whole), 97), *range(90, 104), *range(len(whole) - 9, len(whole))]:
        path.write_bytes(whole[:length])
        assert right_or_refused(memory, path, None), length
    for more in (b"\0", bytes(4), b"\1\0\0\0", bytes(4096), whole):
        path.write_bytes(whole + more)
        assert right_or_refused(memory, path, None), more
    path.write_bytes(layout(np.zeros((0, 6))) + bytes(4))
    with pytest.raises(InvalidInput, match="the links of its 0 elements end elsewhere"):
        memory.import_hnswlib("docs", path, metric="l2")


def test_any_flipped_bit_of_the_header_is_refused_or_does_not_matter(memory: Any, path: Path) -> None:
    vectors = drawn(60, 6)
    whole, points = layout(vectors, deleted={5}), expected(vectors, range(60), {5})
    passed = set()
    for bit in range(8 * 96):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if not right_or_refused(memory, path, points):
            passed.add(next(name for name, (at, code) in FIELDS.items() if 0 <= bit // 8 - at < struct.calcsize(code)))
    # What hnswlib would do on is not in the points; the last bits of mult are rounding.
    assert passed == {"max_elements", "enter_point", "mult", "ef_construction"}


def test_many_flipped_bytes_give_one_typed_error_or_the_right_points(memory: Any, path: Path) -> None:
    vectors, rng = drawn(60, 6), np.random.default_rng(5)
    whole, points = layout(vectors, deleted={5}), expected(vectors, range(60), {5})
    for _ in range(400):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, 96, rng.integers(1, 9))] = rng.integers(0, 256)
        path.write_bytes(damaged.tobytes())
        right_or_refused(memory, path, points)
    for _ in range(400):  # vectors and labels have no checksum: they may come out wrong, but nothing else may happen
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(96, len(whole), rng.integers(1, 9))] = rng.integers(0, 256)
        path.write_bytes(damaged.tobytes())
        right_or_refused(memory, path, None)
    for _ in range(100):
        path.write_bytes(rng.bytes(int(rng.integers(0, 5000))))
        assert right_or_refused(memory, path, None)


WRONG: list[tuple[str, Any, str]] = [
    ("offset_level0", 1, "it is 1, and hnswlib writes 0"),
    ("max_elements", 2**32 + 1, "32 bits"),
    ("max_elements", 59, "^.*count: it is 60, and max_elements is 59"),
    ("count", 2**63, "max_elements is 260"),
    ("count", 200, "at least"),
    ("count", 61, "upper layers of element 0"),
    ("count", 59, "upper layers of element 0"),
    ("count", 0, "enter_point"),
    ("element_bytes", 2**40, "the label ends at 68"),
    ("label_offset", 2**63, "1 to 65,535 numbers"),
    ("label_offset", 61, "numbers of 4 bytes"),
    ("label_offset", 36, "begins at 36"),
    ("data_offset", 40, "8 links take 36 bytes"),
    ("max_level", -1, "a layer 0"),
    ("max_level", 1, "max_level is 1"),
    ("max_level", 3, "highest element is in layer 2"),
    ("enter_point", 60, "there are 60 elements"),
    ("max_m", 5, "M is 4"),
    ("max_m0", 2**62, "twice M is 8"),
    ("m", 1, "from 2 to 32,767"),
    ("m", 2**63, "from 2 to 32,767"),
    ("mult", float("nan"), "1 / ln M"),
    ("mult", 0.0, "1 / ln M"),
    ("ef_construction", 3, "never less than M"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_a_wrong_header_is_named_by_file_and_field_and_what_to_do(
    memory: Any, path: Path, field: str, value: Any, message: str
) -> None:
    damaged = bytearray(layout(drawn(60, 6), room=200))
    struct.pack_into(FIELDS[field][1], damaged, FIELDS[field][0], value)
    path.write_bytes(damaged)
    with pytest.raises(InvalidInput, match=message) as caught:
        memory.import_hnswlib("docs", path, metric="l2")
    assert str(caught.value).startswith(f"{path}, {caught.value.field}: ")
    assert "copied or saved again" in str(caught.value)
    assert memory.collections() == []


def test_links_that_lead_nowhere_are_refused(memory: Any, path: Path) -> None:
    whole, size = layout(drawn(60, 6)), 68
    for offset, code, value, message in (
        (0, "<H", 9, "element 7: it has more links than the 8"),
        (2, "<B", 2, "element 7: its flags"),
        (3, "<B", 1, "element 7: its flags"),
        (0, "<HBBI", (1, 0, 0, 60), "element 7: a link leads to none of the 60"),
    ):
        damaged = bytearray(whole)
        values = value if isinstance(value, tuple) else (value,)
        struct.pack_into(code, damaged, 96 + 7 * size + offset, *values)
        path.write_bytes(damaged)
        with pytest.raises(InvalidInput, match=message):
            memory.import_hnswlib("docs", path, metric="l2")
    path.write_bytes(whole[: 96 + 60 * size] + struct.pack("<I", 21) + whole[96 + 60 * size + 4 :])
    with pytest.raises(InvalidInput, match="upper layers of element 0: they take 21 bytes"):
        memory.import_hnswlib("docs", path, metric="l2")


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(memory: Any, path: Path) -> None:
    path.write_bytes(layout(drawn(60, 6)))
    with HnswlibFile(path) as opened:
        os.truncate(path, 1000)
        with pytest.raises(InvalidInput, match="became shorter"):
            list(opened.elements())


# -- what an import refuses, and what it leaves ------------------------------------------------------------


def test_a_label_above_int64_is_refused_by_name(memory: Any, path: Path) -> None:
    path.write_bytes(layout(drawn(9, 2), [*range(8), 2**64 - 1]))
    with pytest.raises(InvalidId, match="point 18446744073709551615: .*element 8: its label does not fit int64") as caught:
        memory.import_hnswlib("docs", path, metric="l2", batch=3)
    assert (caught.value.point, memory.collections()) == (2**64 - 1, [])
    path.write_bytes(layout(drawn(9, 2), [*range(8), 2**64 - 1], deleted={8}))
    assert memory.import_hnswlib("docs", path, metric="l2").count() == 8


@pytest.mark.parametrize("batch", [2, None])
def test_a_label_of_two_elements_is_refused_wherever_they_are(memory: Any, path: Path, batch: Any) -> None:
    labels = [4, 5, 6, 7, 8, 5]
    path.write_bytes(layout(drawn(6, 2), labels))
    with pytest.raises(DuplicateId, match=r"point 5: .*two elements.*mark_deleted\(5\)"):
        memory.import_hnswlib("docs", path, metric="l2", batch=batch)
    assert memory.collections() == []
    path.write_bytes(layout(drawn(6, 2), labels, deleted={1}))
    assert memory.import_hnswlib("docs", path, metric="l2", batch=batch).count() == 5


def test_vectors_that_a_field_cannot_hold_are_named_by_file_and_label(memory: Any, path: Path) -> None:
    vectors = drawn(6, 3)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for value, metric, dtype, message in (
        (0, "cosine", "f32", "zero vector"),
        (np.nan, "cosine", "f32", "finite"),
        (np.inf, "cosine", "f32", "finite"),
        (2, "cosine", "f32", "element 5: its length is 3.46, and cosine indexes of hnswlib hold vectors of length 1"),
        (np.nan, "l2", "f32", "finite"),
        (1e30, "ip", "f32", "scale it down"),
        (7e4, "l2", "f16", "overflows f16"),
        (0.5, "l2", "i8", "quantise first or use f32"),
    ):
        damaged = vectors.copy() if dtype != "i8" else np.ones_like(vectors)
        damaged[5] = value
        path.write_bytes(layout(damaged, range(10, 16)))
        with pytest.raises(InvalidVector, match=message) as caught:
            memory.import_hnswlib("docs", path, metric=metric, dtype=dtype, batch=2)
        assert caught.value.point == 15 and str(path) in str(caught.value)
        assert memory.collections() == []


def test_mistakes_are_named_before_anything_is_written(memory: Any, path: Path, tmp_path: Path) -> None:
    path.write_bytes(layout(drawn(6, 3)))
    os.mkfifo(tmp_path / "pipe")
    bad: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (NotFound, "cannot read .*nowhere", {"path": tmp_path / "nowhere"}),
        (InvalidInput, "is no file", {"path": tmp_path}),
        (InvalidInput, "is no file", {"path": tmp_path / "pipe"}),
        (InvalidInput, "the path of an hnswlib file is needed, not 5", {"path": 5}),
        (InvalidInput, "null", {"path": "a\0b"}),
        (InvalidInput, "metric must be", {"metric": "L2"}),
        (InvalidInput, "dtype must be", {"dtype": "f64"}),
        (InvalidInput, "index", {"index": "nope"}),
        (InvalidInput, "batch must be", {"batch": 0}),
        (InvalidInput, "batch must be", {"batch": True}),
        (InvalidInput, "progress is called", {"progress": 3}),
        (InvalidInput, "cannot name a collection", {"name": "a b"}),
    ]
    for kind, message, wrong in bad:
        with pytest.raises(kind, match=message):
            memory.import_hnswlib(**{"name": "docs", "path": path, "metric": "l2", **wrong})
        assert memory.collections() == []


def test_a_file_that_cannot_be_read_is_a_storage_error(memory: Any, path: Path, monkeypatch: Any) -> None:
    path.write_bytes(layout(drawn(60, 6)))

    def fail(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    with HnswlibFile(path) as opened, monkeypatch.context() as broken:
        broken.setattr(os, "pread", fail)
        with pytest.raises(StorageError, match=f"cannot read {path}"):
            list(opened.elements())


def test_an_existing_collection_is_not_touched(db: vecdb.Database, path: Path, tmp_path: Path) -> None:
    path.write_bytes(layout(drawn(6, 3)))
    db.create_collection("docs", vecdb.Dense(2)).upsert(ids=["a"], vectors=[[1, 2]])
    with pytest.raises(AlreadyExists, match="collection 'docs' exists"):
        db.import_hnswlib("docs", path, metric="l2")
    db.create_collection("more.importing", vecdb.Dense(2))
    with pytest.raises(AlreadyExists, match="'more.importing' exists: 'more' is being imported now, or that was cut short"):
        db.import_hnswlib("more", path, metric="l2")
    with (
        vecdb.open(tmp_path / "db", read_only=True) as reader,
        pytest.raises(ReadOnly),
    ):
        reader.import_hnswlib("new", path, metric="l2")
    assert db.collections() == ["docs", "more.importing"] and db["docs"].count() == 1


def test_the_collection_appears_when_it_is_complete_or_not_at_all(db: vecdb.Database, path: Path) -> None:
    path.write_bytes(layout(drawn(30, 3)))
    seen: list[list[str]] = []

    def stop(progress: Progress) -> None:
        seen.append(db.collections())
        if progress.imported == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.import_hnswlib("docs", path, metric="l2", batch=10, progress=stop)
    assert (seen, db.collections()) == ([["docs.importing"], ["docs.importing"]], [])

    def race(progress: Progress) -> None:
        if progress.imported == 30:
            db.create_collection("docs", vecdb.Dense(9))

    with pytest.raises(AlreadyExists, match="'docs'"):
        db.import_hnswlib("docs", path, metric="l2", batch=10, progress=race)
    assert db.collections() == ["docs"] and db["docs"].count() == 0
    long = "n" * 128
    assert db.import_hnswlib(long, path, metric="l2").name == long


def test_a_killed_import_leaves_no_collection_of_that_name(path: Path, tmp_path: Path) -> None:
    path.write_bytes(layout(drawn(30, 3)))
    code = (
        "import os, sys, vecdb; db = vecdb.open(sys.argv[1])\n"
        "db.import_hnswlib('docs', sys.argv[2], metric='l2', batch=10, progress=lambda p: p.imported < 20 or os._exit(7))"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "db", path]).returncode == 7
    with vecdb.open(tmp_path / "db") as db:
        assert db.collections() == ["docs.importing"]
        db.drop_collection("docs.importing")
        assert db.import_hnswlib("docs", path, metric="l2").count() == 30


def test_points_are_searched_updated_and_kept_like_any_others(path: Path, tmp_path: Path) -> None:
    vectors = drawn(300, 8)
    path.write_bytes(layout(vectors, deleted={7}))
    with vecdb.open(tmp_path / "db") as db:
        docs = db.import_hnswlib("docs", path, metric="l2", batch=100)
        docs.update_payload([8], {"n": 1})
        docs.upsert(ids=[7], vectors=vectors[7:8])
    with vecdb.open(tmp_path / "db") as db:
        assert db["docs"].count() == 300 and db["docs"].count("n == 1") == 1
        order = np.argsort(((vectors.astype(np.float64) - vectors[8]) ** 2).sum(1))
        assert db["docs"].search(vectors[8], k=20, exact=True).ids == order[:20].tolist()


# -- hnswlib as the oracle --------------------------------------------------------------------------------


@pytest.fixture
def hnswlib() -> Any:
    return pytest.importorskip("hnswlib", reason="hnswlib, the oracle, is not installed: it needs a C++ compiler")


def made(hnswlib: Any, metric: str, n: int, d: int, m: int = 16, room: int = 0, **options: Any) -> Any:
    index = hnswlib.Index(metric, d)
    index.init_index(n + room, M=m, ef_construction=60, **options)
    index.set_num_threads(1)
    return index


def compare(hnswlib: Any, memory: Any, index: Any, path: Path, metric: Any, live: Any) -> None:
    """The import holds what hnswlib gives for the labels `live`, and nothing else; exact search finds what its brute force does."""
    index.save_index(str(path))
    docs = memory.import_hnswlib("docs", path, metric=metric, batch=200)
    vectors = np.array(index.get_items(live), np.float32).reshape(len(live), index.dim)
    assert stored(docs) == expected(vectors, live)
    if len(live):
        brute = hnswlib.BFIndex(metric, index.dim)
        brute.init_index(len(live))
        brute.add_items(vectors, live)
        queries, k = drawn(20, index.dim, seed=9), min(10, len(live))
        if metric == "cosine":  # its brute force leaves queries as they are
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        theirs, distances = brute.knn_query(queries, k)
        ours = docs.search_batch(queries, k=k, exact=True)
        scores = ours.scores.astype(np.float64) ** 2 if metric == "l2" else 1 - ours.scores.astype(np.float64)
        np.testing.assert_allclose(scores, distances, rtol=1e-4, atol=1e-5)
        # Both round, each in its own way: where two distances differ by less than that, either order is right.
        apart = np.diff(distances, axis=1, prepend=-np.inf, append=np.inf) > 1e-4 * np.maximum(1, abs(distances).max())
        clear = apart[:, :-1] & apart[:, 1:]
        clear[:, -1] = False  # the next one is not known
        assert clear.mean() > 0.5 or len(live) < 10
        assert (ours.ids[clear] == theirs[clear]).all()


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize(
    ("n", "d", "m", "room"), [(0, 4, 16, 5), (1, 1, 16, 0), (40, 3, 2, 7), (500, 17, 8, 1), (1500, 96, 32, 300)]
)
def test_an_import_equals_its_hnswlib_index(
    hnswlib: Any, memory: Any, path: Path, metric: str, n: int, d: int, m: int, room: int
) -> None:
    index = made(hnswlib, metric, n, d, m, room + 1)
    labels = np.random.default_rng(2).permutation(10 * n)[:n].astype(np.uint64)
    if n:
        index.add_items(3 * drawn(n, d), labels)
    compare(hnswlib, memory, index, path, metric, labels)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_elements_that_hnswlib_has_marked_updated_or_replaced(hnswlib: Any, memory: Any, path: Path, metric: str) -> None:
    index = made(hnswlib, metric, 400, 12, room=100, allow_replace_deleted=True)
    index.add_items(drawn(400, 12), np.arange(400))
    index.add_items(drawn(50, 12, seed=3), np.arange(50))  # existing labels: updated in place
    for label in range(100, 180):
        index.mark_deleted(label)
    index.unmark_deleted(179)
    index.add_items(drawn(30, 12, seed=4), np.arange(1000, 1030), replace_deleted=True)
    live = np.array(sorted({*range(400), *range(1000, 1030)} - set(range(100, 179))))
    compare(hnswlib, memory, index, path, metric, live)
    loaded = hnswlib.Index(metric, 12)
    loaded.load_index(str(path), max_elements=700)
    loaded.add_items(drawn(20, 12, seed=5), np.arange(2000, 2020))
    memory.drop_collection("docs")
    compare(hnswlib, memory, loaded, path, metric, np.array([*live, *range(2000, 2020)]))


def test_a_label_that_hnswlib_left_on_two_elements_is_refused_until_one_is_marked(
    hnswlib: Any, memory: Any, path: Path
) -> None:
    index = made(hnswlib, "l2", 20, 4, allow_replace_deleted=True)
    index.add_items(drawn(20, 4), np.arange(20))
    index.mark_deleted(3)
    index.add_items(drawn(1, 4, seed=1), [11], replace_deleted=True)
    index.save_index(str(path))
    with pytest.raises(DuplicateId, match="point 11"):
        memory.import_hnswlib("docs", path, metric="l2")
    loaded = hnswlib.Index("l2", 4)
    loaded.load_index(str(path))
    loaded.mark_deleted(11)
    loaded.save_index(str(path))
    assert memory.import_hnswlib("docs", path, metric="l2").count() == 19


def test_the_test_writer_writes_what_hnswlib_reads(hnswlib: Any, path: Path) -> None:
    vectors, labels = drawn(80, 9), np.arange(80) + 5
    path.write_bytes(layout(vectors, labels, deleted={4}))
    index = hnswlib.Index("l2", 9)
    index.load_index(str(path))
    assert index.get_current_count() == 80
    others = [label for i, label in enumerate(labels) if i != 4]
    np.testing.assert_array_equal(index.get_items(others), vectors[[i for i in range(80) if i != 4]])
    with pytest.raises(RuntimeError, match="Label not found"):
        index.get_items([9])


def test_what_hnswlib_writes_elsewhere_is_refused(hnswlib: Any, memory: Any, path: Path) -> None:
    import pickle

    brute = hnswlib.BFIndex("l2", 4)
    brute.init_index(20)
    brute.add_items(drawn(20, 4), np.arange(20))
    brute.save_index(str(path))
    assert right_or_refused(memory, path, None)
    index = made(hnswlib, "l2", 20, 4)
    index.add_items(drawn(20, 4))
    path.write_bytes(pickle.dumps(index))
    assert right_or_refused(memory, path, None)
