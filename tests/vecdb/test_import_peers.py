"""Databases and index files of other projects: each is made with that project's own library, and compared with what was put in.

The libraries are imported within tests only. Each test that imports also checks that no byte of the source has changed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import logging
import pickle
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb.cli import main
from vecdb.errors import (
    AlreadyExists,
    DimensionMismatch,
    DuplicateId,
    InvalidFile,
    InvalidId,
    InvalidInput,
    InvalidPayload,
    InvalidVector,
    NotFound,
    StorageError,
    Unsupported,
)
from vecdb.ingest import peers
from vecdb.ingest.peers import import_from

N = 320
PEERS = ("chroma", "lancedb", "qdrant", "faiss", "pgvector-csv")


def drawn(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def state(path: Path) -> dict[str, Any]:
    """Names, times and contents of all files at a path."""
    files = [path, *sorted(path.rglob("*"))]
    return {
        str(file): (file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).hexdigest()) if file.is_file() else file.is_dir()
        for file in files
    }


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    before = state(path)
    yield
    assert state(path) == before


def same(collection: Any, ids: Any, vectors: Mapping[str, Any], payloads: Any = None) -> None:
    """All points, bit by bit, and no others. vectors: field -> n vectors, or None where the point has none."""
    ids = list(ids)
    assert collection.count() == len(ids)
    assert set(collection.info().fields) == set(vectors)
    for at, point in enumerate(collection.get(ids)):
        assert point is not None, ids[at]
        assert point.id == ids[at] and type(point.id) is type(ids[at])
        expected = {field: each[at] for field, each in vectors.items() if each[at] is not None}
        assert set(point.vectors) == set(expected)
        for field, vector in expected.items():
            stored = point.vectors[field]
            assert stored.tobytes() == np.asarray(vector).astype(stored.dtype).tobytes(), (ids[at], field)
        want = {} if payloads is None else payloads[at] or {}
        assert point.payload == want
        assert json.dumps(point.payload, sort_keys=True) == json.dumps(want, sort_keys=True)  # 1 and 1.0, true and 1 differ


def metric_of(collection: Any, field: str = "vector") -> str:
    return str(collection.info().fields[field].metric)


# -- what all have in common -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PEERS)
def test_a_path_where_nothing_is_stays_so(db: vecdb.Database, tmp_path: Path, source: str) -> None:
    missing = tmp_path / "no" / "such.csv"
    with pytest.raises(NotFound, match="there is no such") as error:
        import_from(db, source, str(missing), metric="l2")
    assert "\n" not in str(error.value)
    assert not missing.parent.exists()
    assert not db.collections()


@pytest.mark.parametrize("source", PEERS)
@pytest.mark.parametrize("what", ["empty folder", "full folder", "text", "zeros", "nothing"])
def test_what_is_something_else_is_refused_and_left_as_it_is(
    db: vecdb.Database, tmp_path: Path, source: str, what: str
) -> None:
    path = tmp_path / "other.db"
    if what.endswith("folder"):
        path.mkdir()
        if what == "full folder":
            (path / "a.txt").write_text("hello")
            (path / "b").mkdir()
    else:
        path.write_bytes({"text": b"hello, world\n1,2\n", "zeros": bytes(1000), "nothing": b""}[what])
    with unchanged(path), pytest.raises(InvalidFile) as error:
        import_from(db, source, str(path), metric="l2")
    assert str(path) in str(error.value) or path.name in str(error.value)
    assert "\n" not in str(error.value)
    assert not db.collections()


@pytest.mark.parametrize(("source", "library"), [("chroma", "chromadb"), ("lancedb", "lancedb"), ("faiss", "faiss")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    db: vecdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "chroma.sqlite3").write_bytes(b"")
    (tmp_path / "t.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "x.faiss").write_bytes(b"IxF2")
    path = tmp_path / "x.faiss" if source == "faiss" else tmp_path
    with pytest.raises(Unsupported, match=rf"vecdb\[{peers.PEERS[source][1]}\]"):
        import_from(db, source, str(path))


def test_an_importer_that_does_not_exist(db: vecdb.Database) -> None:
    with pytest.raises(InvalidInput, match="chroma, lancedb"):
        import_from(db, "milvus", ".")


# -- Chroma ------------------------------------------------------------------------------------------------------


def quiet_chroma() -> Any:
    """Its library, without telemetry. Its clients are the caller's to close."""
    chromadb = pytest.importorskip("chromadb")
    from chromadb.config import Settings

    return lambda path: closing(chromadb.PersistentClient(str(path), settings=Settings(anonymized_telemetry=False)))


@pytest.fixture
def chroma(tmp_path: Path) -> Callable[[], Any]:
    """Opens a client of a directory "chroma"."""
    client = quiet_chroma()
    return lambda: client(tmp_path / "chroma")


def chroma_metadata(i: int) -> dict[str, Any] | None:
    return None if i % 7 == 0 else {"n": i, "f": i / 7, "ok": i % 2 == 0, "name": f"名前 {i} – ünï", "tags": ["ä", str(i)]}


def test_chroma_collections_are_what_chroma_gives_back(
    db: vecdb.Database, tmp_path: Path, chroma: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"é-{i}" for i in range(N)]
    given: dict[str, Any] = {}
    with chroma() as client:
        for at, space in enumerate(("cosine", "ip", "l2")):
            made = client.create_collection(
                f"in_{space}", configuration={"hnsw": {"space": space, "sync_threshold": 100, "batch_size": 50}}
            )
            vectors = drawn(N, 12, at)
            for start in range(0, N, 110):  # so that some are in the index, and others in the log only
                end = min(N, start + 110)
                made.add(
                    ids=ids[start:end],
                    embeddings=vectors[start:end],
                    metadatas=[chroma_metadata(i) for i in range(start, end)],
                    documents=[None if i % 5 == 0 else f'文書 {i}\n\t"quoted"' for i in range(start, end)],
                    uris=[None if i % 3 else f"file:///{i}" for i in range(start, end)],
                )
            made.delete(ids=[ids[3]])
            made.update(ids=[ids[4]], embeddings=[vectors[5]], metadatas=[{"n": -1}])
            given[space] = vectors
        old = client.create_collection("as_it_was_said_before", metadata={"hnsw:space": "cosine", "ü": 1})
        old.add(ids=["a"], embeddings=[[3.0, 4.0]])
        client.create_collection("never_filled")
        emptied = client.create_collection("emptied")
        emptied.add(ids=["a"], embeddings=[[1.0, 2.0, 3.0]])
        emptied.delete(ids=["a"])
        returned = {
            space: client.get_collection(f"in_{space}").get(include=["embeddings", "metadatas", "documents", "uris"])
            for space in given
        }
    monkeypatch.setattr("vecdb.ingest.peers.chroma._BATCH_BYTES", 12 * 4 * 100)
    seen: list[Any] = []
    with unchanged(tmp_path / "chroma"):
        done = import_from(
            db, "chroma", str(tmp_path / "chroma"), progress=lambda name, now, total: seen.append((name, now, total))
        )
    assert done == {"as_it_was_said_before": 1, "emptied": 0, "in_cosine": N - 1, "in_ip": N - 1, "in_l2": N - 1}
    assert [each for each in seen if each[0] == "in_ip"] == [("in_ip", n, N - 1) for n in (100, 200, 300, N - 1)]
    assert db["emptied"].info().fields["vector"].dim == 3
    assert metric_of(db["as_it_was_said_before"]) == "cosine"
    for space, vectors in given.items():
        peer, made = returned[space], db[f"in_{space}"]
        assert metric_of(made) == space
        payloads = []
        for metadata, document, uri in zip(peer["metadatas"], peer["documents"], peer["uris"], strict=True):
            added = {"document": document, "uri": uri}
            payloads.append({**(metadata or {}), **{key: value for key, value in added.items() if value is not None}})
        same(made, peer["ids"], {"vector": peer["embeddings"].astype(np.float32)}, payloads)
        expected = vectors.copy()
        expected[4] = vectors[5]
        if space != "cosine":
            expected = np.delete(expected, 3, 0)
            assert (np.stack([point.vector for point in made.get([key for key in ids if key != ids[3]])]) == expected).all()
        for i in (0, 1, 21, 319):
            want = dict(chroma_metadata(i) or {})
            want |= {} if i % 5 == 0 else {"document": f'文書 {i}\n\t"quoted"'}
            want |= {} if i % 3 else {"uri": f"file:///{i}"}
            assert made.get([ids[i]])[0].payload == want
    hit = db["in_l2"].search(given["l2"][50], k=1)[0]
    assert hit.id == ids[50]


def test_chroma_old_collections_have_the_metric_by_which_they_are_searched(
    db: vecdb.Database, tmp_path: Path, chroma: Any
) -> None:
    """Versions up to 0.6 wrote a configuration with l2 whatever was asked, no schema, and the truth beside the index."""
    spaces = {
        "in_cosine": {"hnsw:space": "cosine"},
        "in_ip": {"hnsw:space": "ip"},
        "in_l2": {"hnsw:space": "l2"},
        "default": {"k": 1},
    }
    with chroma() as client:
        for name, metadata in spaces.items():
            client.create_collection(name, metadata=metadata).add(ids=["a", "b"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
        both = client.create_collection("both", metadata={"hnsw:space": "ip"}, configuration={"hnsw": {"ef_search": 50}})
        both.add(ids=["a", "b"], embeddings=[[1.0, 2.0], [3.0, 4.0]])
    config = {
        "hnsw_configuration": {
            "space": "l2", "ef_construction": 100, "ef_search": 100, "num_threads": 2, "M": 16, "resize_factor": 1.2,
            "batch_size": 100, "sync_threshold": 1000, "_type": "HNSWConfigurationInternal",
        },
        "_type": "CollectionConfigurationInternal",
    }  # fmt: skip
    with closing(sqlite3.connect(tmp_path / "chroma" / "chroma.sqlite3")) as database, database:
        database.execute(
            "UPDATE collections SET schema_str = NULL, config_json_str = ? WHERE name != 'both'", [json.dumps(config)]
        )
        database.execute(
            "INSERT INTO segment_metadata (segment_id, key, str_value) SELECT s.id, m.key, m.str_value FROM segments s "
            "JOIN collections c ON c.id = s.collection JOIN collection_metadata m ON m.collection_id = c.id "
            "WHERE s.scope = 'VECTOR' AND m.key = 'hnsw:space' AND c.name != 'both'"
        )
    import_from(db, "chroma", str(tmp_path / "chroma"))
    q = np.array([1.0, 2.0])
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    distances = {
        "cosine": 1 - rows @ q / np.linalg.norm(rows, axis=1) / np.linalg.norm(q), "ip": 1 - rows @ q, "l2": ((rows - q) ** 2).sum(1),
    }  # fmt: skip
    with chroma() as client:
        for name in (*spaces, "both"):
            answer = client.get_collection(name).query(query_embeddings=[q], n_results=2, include=["distances"])
            expected = distances[metric_of(db[name])]
            assert np.allclose(answer["distances"][0], sorted(expected), atol=1e-5), name


def test_chroma_one_collection_by_the_command_line(tmp_path: Path, chroma: Any, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = drawn(N, 4)
    with chroma() as client:
        client.create_collection("other").add(ids=["x"], embeddings=[[1.0]])
        client.create_collection("mine").add(ids=[str(i) for i in range(N)], embeddings=vectors, documents=["ß"] * N)
    target, source = str(tmp_path / "new"), tmp_path / "chroma"
    with unchanged(source), pytest.raises(SystemExit) as end:
        main(
            [
                "import",
                str(source),
                "--from",
                "chroma",
                "--db",
                target,
                "--only",
                "mine",
                "-c",
                "NEW",
                "--metric",
                "ip",
                "--json",
            ]
        )
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"NEW": N}
    with vecdb.open(target, read_only=True) as db:
        assert db.collections() == ["NEW"]
        assert metric_of(db["NEW"]) == "ip"
        same(db["NEW"], [str(i) for i in range(N)], {"vector": vectors}, [{"document": "ß"}] * N)
    with pytest.raises(SystemExit) as end:
        main(["import", str(source), "--from", "chroma", "--db", target, "--only", "nobody"])
    assert end.value.code == 3
    assert "it has mine, other" in capsys.readouterr().err


def test_chroma_other_databases_are_not_forgotten(db: vecdb.Database, tmp_path: Path, chroma: Any) -> None:
    with chroma() as client:
        client.create_collection("first").add(ids=["a"], embeddings=[[1.0, 2.0]])
        client._admin_client.create_database("elsewhere")
        client.set_database("elsewhere")
        client.create_collection("second").add(ids=["b"], embeddings=[[3.0, 4.0]])
    assert import_from(db, "chroma", str(tmp_path / "chroma")) == {"first": 1, "second": 1}
    same(db["second"], ["b"], {"vector": [[3.0, 4.0]]})
    with chroma() as client:
        client.create_collection("second").add(ids=["c"], embeddings=[[3.0, 4.0]])
    with vecdb.open(":memory:") as other, pytest.raises(InvalidInput, match="2 tables called 'second'"):
        import_from(other, "chroma", str(tmp_path / "chroma"))


def test_chroma_what_cannot_be_kept(
    db: vecdb.Database, tmp_path: Path, chroma: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "chroma")
    with chroma() as client:
        client.create_collection("never_filled")
        clash = client.create_collection("clash")
        clash.add(ids=["ok", "two"], embeddings=[[1.0], [2.0]], metadatas=[{"document": 1}] * 2, documents=[None, "text"])
        zero = client.create_collection("zero", configuration={"hnsw": {"space": "cosine"}})
        zero.add(ids=["z"], embeddings=[[0.0, 0.0]])
    with pytest.raises(InvalidInput, match="point 'two'.*rename that key"):
        import_from(db, "chroma", path, only="clash")
    with pytest.raises(InvalidInput, match="never given a vector"):
        import_from(db, "chroma", path, only="never_filled")
    with pytest.raises(InvalidVector, match=r"point 'z'.*\(in 'zero' of"):
        import_from(db, "chroma", path, only="zero")
    assert not db.collections()  # nothing that is half there
    with pytest.raises(InvalidInput, match="say --only with --collection"):
        import_from(db, "chroma", path, collection="new")
    with caplog.at_level(logging.WARNING, "vecdb"), pytest.raises(InvalidInput, match="'two'"):
        import_from(db, "chroma", path, metric="l2")
    assert "'never_filled' is left out" in caplog.text
    assert import_from(db, "chroma", path, only="zero", collection="new", metric="ip") == {"new": 1}
    with pytest.raises(AlreadyExists, match="--collection"):
        import_from(db, "chroma", path, only="zero", collection="new", metric="ip")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with unchanged(tmp_path / "chroma"), pytest.raises(StorageError, match="set TMPDIR"):
        import_from(db, "chroma", path)


def test_chroma_damage_is_one_typed_error(db: vecdb.Database, tmp_path: Path, chroma: Any) -> None:
    with chroma() as client:
        client.create_collection("mine", configuration={"hnsw": {"sync_threshold": 10, "batch_size": 10}}).add(
            ids=[str(i) for i in range(N)], embeddings=drawn(N, 4)
        )
    path = tmp_path / "chroma"
    (index,) = path.glob("*/header.bin")
    index.write_bytes(b"\xff" * 100)
    with unchanged(path), pytest.raises(InvalidFile, match="chromadb cannot read it"):
        import_from(db, "chroma", str(path))
    whole = (path / "chroma.sqlite3").read_bytes()
    for bad in (whole[:5000], b"SQLite format 3\0" + bytes(5000)):
        (path / "chroma.sqlite3").write_bytes(bad)
        with unchanged(path), pytest.raises(InvalidFile):
            import_from(db, "chroma", str(path))
    (path / "chroma.sqlite3").unlink()
    (path / "chroma-collections.parquet").touch()
    with pytest.raises(InvalidFile, match="chroma-migrate"):
        import_from(db, "chroma", str(path))
    assert not db.collections()


# -- LanceDB -----------------------------------------------------------------------------------------------------


def fixed(vectors: Any, kind: Any = None, nulls: Any = ()) -> Any:
    import pyarrow as pa

    rows = [None if i in nulls else vector.tolist() for i, vector in enumerate(np.asarray(vectors, np.float64))]
    return pa.array(rows, pa.list_(kind or pa.float32(), np.shape(vectors)[1]))


@pytest.fixture
def lance(tmp_path: Path) -> Any:
    return pytest.importorskip("lancedb").connect(tmp_path / "lance")


def test_lancedb_tables_bit_by_bit(db: vecdb.Database, tmp_path: Path, lance: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    first, half, double = drawn(N, 8), drawn(N, 4, 1).astype(np.float16), drawn(N, 3, 2).astype(np.float64)
    payloads = [
        {
            "title": f"タイトル {i}" if i % 3 else None,
            "n": i, "x": i / 3, "ok": i % 2 == 0,
            "nested": {"tags": ["ä", None, str(i)], "deep": {"k": None if i % 4 else i}} if i % 5 else None,
            "codes": [1, 2, i],
            "multi": [[0.5, float(i)]] * (i % 3),
        }
        for i in range(N)
    ]  # fmt: skip
    ids = [f"é{i}" for i in range(N)]
    columns = {key: [payload[key] for payload in payloads] for key in payloads[0]}
    made = lance.create_table("named", pa.table({
        "_id": ids, "vector": fixed(first), "half": fixed(half, pa.float16(), {0, 7}),
        "double": fixed(double, pa.float64(), {7, 300}), **columns,
    }))  # fmt: skip
    made.delete("_id = 'é5'")
    made.add(pa.table({
        "_id": ["new"], "vector": fixed(first[:1]), "half": fixed(half[:1], pa.float16()),
        "double": fixed(double[:1], pa.float64()), **{key: column[:1] for key, column in columns.items()},
    }).cast(made.schema))  # fmt: skip
    lance.create_table("numbered", pa.table({"embedding": fixed(first), "n": range(N)}))
    lance.create_table("empty", schema=pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), 5))]))
    monkeypatch.setattr(peers, "_MOST_ROWS", 100)
    with unchanged(tmp_path / "lance"):
        done = import_from(db, "lancedb", str(tmp_path / "lance"))
    assert done == {"named": N, "numbered": N, "empty": 0}
    kept = [i for i in range(N) if i != 5] + [0]
    vectors = {
        "vector": first[kept],
        "half": [None if i in (0, 7) and at < N - 1 else half[i] for at, i in enumerate(kept)],
        "double": [None if i in (7, 300) else double[i] for i in kept],
    }
    same(db["named"], [ids[i] for i in kept[:-1]] + ["new"], vectors, [payloads[i] for i in kept])
    assert {name: field.dtype for name, field in db["named"].info().fields.items()} == {
        "vector": "f32", "half": "f16", "double": "f32",
    }  # fmt: skip
    same(db["numbered"], range(N), {"embedding": first}, [{"n": i} for i in range(N)])
    assert metric_of(db["numbered"], "embedding") == "l2"
    assert db["empty"].info().fields["vector"].dim == 5


def test_lancedb_the_metric_is_that_of_the_index(db: vecdb.Database, tmp_path: Path, lance: Any) -> None:
    import pyarrow as pa
    from lancedb.index import IvfFlat

    made = lance.create_table(
        "t", pa.table({"id": range(N), "a": fixed(drawn(N, 8)), "b": fixed(drawn(N, 8)), "c": fixed(drawn(N, 2))})
    )
    made.create_index("a", config=IvfFlat(distance_type="cosine", num_partitions=2))
    made.create_index("b", config=IvfFlat(distance_type="dot", num_partitions=2))
    with unchanged(tmp_path / "lance"):
        import_from(db, "lancedb", str(tmp_path / "lance"))
    assert {name: field.metric for name, field in db["t"].info().fields.items()} == {"a": "cosine", "b": "ip", "c": "l2"}
    import_from(db, "lancedb", str(tmp_path / "lance" / "t.lance"), collection="new", metric="cosine")
    assert {field.metric for field in db["new"].info().fields.values()} == {"cosine"}
    same(db["new"], range(N), {"a": drawn(N, 8), "b": drawn(N, 8), "c": drawn(N, 2)})


def test_lancedb_times_and_wide_texts(db: vecdb.Database, tmp_path: Path, lance: Any) -> None:
    import pyarrow as pa

    table = {
        "uuid": [str(uuid.UUID(int=i)) for i in range(3)], "v": fixed(drawn(3, 2)),
        "at": pa.array([0, 1_700_000_000_123_456, None], pa.timestamp("us", "UTC")), "day": pa.array([0, 1, 2], pa.date32()),
        "kind": pa.array(["a", "b", "a"]).dictionary_encode(), "wide": pa.array(["x" * 1000] * 3, pa.large_string()),
    }  # fmt: skip
    lance.create_table("t", pa.table(table))
    import_from(db, "lancedb", str(tmp_path / "lance"))
    shared = {"wide": "x" * 1000}
    same(db["t"], table["uuid"], {"v": drawn(3, 2)}, [
        {"at": "1970-01-01T00:00:00Z", "day": "1970-01-01", "kind": "a", **shared},
        {"at": "2023-11-14T22:13:20.123456Z", "day": "1970-01-02", "kind": "b", **shared},
        {"at": None, "day": "1970-01-03", "kind": "a", **shared},
    ])  # fmt: skip


def test_lancedb_what_cannot_be_kept(db: vecdb.Database, tmp_path: Path, lance: Any) -> None:
    import pyarrow as pa

    two, path = fixed(drawn(2, 2)), str(tmp_path / "lance")
    wide = np.array([[1.0, 0.1], [2.0, 3.0]])
    for name, columns, error, match in (
        ("bytes", {"v": two, "b": pa.array([b"x", None])}, InvalidInput, "column 'b' is binary, and bytes"),
        ("inside", {"v": two, "s": [{"b": [b"x"]}, None]}, InvalidInput, "column 's'.*bytes"),
        ("decimals", {"v": two, "d": pa.array([1, 2], pa.decimal128(5, 2))}, InvalidInput, "a decimal"),
        ("flat", {"id": [1, 2]}, InvalidInput, "no column has vectors"),
        ("wide", {"id": ["a", "b"], "v": fixed(wide, pa.float64())}, InvalidVector, "point 'a'.*0.1.* at 1 is no f32"),
        ("twice", {"id": [1, 1], "v": two}, DuplicateId, "'twice': the ids are not distinct"),
        ("no_id", {"id": ["a", None], "v": two}, InvalidId, "NoneType"),
        ("large", {"v": two, "u": pa.array([1, 2**64 - 1], pa.uint64())}, InvalidPayload, "must fit int64"),
        ("nan", {"v": two, "u": [1.0, float("nan")]}, InvalidPayload, "JSON has no nan"),
        ("odd name", {"my vector": two}, InvalidInput, "--collection NEW"),
        ("odd_column", {"my vector": two}, InvalidInput, "cannot name a field.*rename it there"),
        ("holes", {"v": pa.array([[1.0, None], [1.0, 2.0]], pa.list_(pa.float32(), 2))}, InvalidVector, "nulls among"),
    ):  # fmt: skip
        try:
            lance.create_table(name, pa.table(columns))
        except ValueError:  # lancedb itself does not take it
            assert name in ("odd name", "holes")
            continue
        with unchanged(tmp_path / "lance"), pytest.raises(error, match=match):
            import_from(db, "lancedb", path, only=name)
    with pytest.raises(NotFound, match="has no 'nobody'; it has bytes, "):
        import_from(db, "lancedb", path, only="nobody")
    assert not db.collections()
    (version,) = (tmp_path / "lance" / "flat.lance" / "_versions").glob("*.manifest")
    version.write_bytes(b"damaged")
    with pytest.raises(InvalidFile, match="lancedb cannot read it"):
        import_from(db, "lancedb", path, only="flat")


# -- Qdrant --------------------------------------------------------------------------------------------------------


@pytest.fixture
def qdrant(tmp_path: Path) -> Callable[[], Any]:
    client = pytest.importorskip("qdrant_client").QdrantClient
    return lambda: closing(client(path=str(tmp_path / "qdrant")))


def qdrant_payload(i: int) -> dict[str, Any] | None:
    return (
        None if i % 9 == 0 else {"n": i, "x": i / 3, "none": None, "ok": True, "深い": {"list": [1, None, {"k": "ü"}], "e": {}}}
    )


def test_qdrant_collections_bit_by_bit(
    db: vecdb.Database, tmp_path: Path, qdrant: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with qdrant() as client:
        from qdrant_client import models as m

        def config(size: int, distance: str) -> Any:
            return m.VectorParams(size=size, distance=m.Distance(distance))

        vectors, ids = drawn(N, 8), [str(uuid.UUID(int=i << 64)) for i in range(N)]
        client.create_collection("unnamed", vectors_config=config(8, "Cosine"))
        client.upsert("unnamed", [
            m.PointStruct(id=key, vector=vectors[i].tolist(), payload=qdrant_payload(i)) for i, key in enumerate(ids)
        ])  # fmt: skip
        client.delete("unnamed", points_selector=[ids[3]])
        returned = client.retrieve("unnamed", ids, with_vectors=True)
        first, second = drawn(N, 4, 1), drawn(N, 6, 2)
        client.create_collection("named", vectors_config={"a": config(4, "Dot"), "b-2": config(6, "Euclid")})
        client.upsert("named", [
            m.PointStruct(id=i, payload=qdrant_payload(i), vector={
                **({} if i % 4 == 0 else {"a": first[i].tolist()}), **({} if i % 6 == 0 else {"b-2": second[i].tolist()}),
            })
            for i in range(N)
        ])  # fmt: skip
        client.set_payload("named", {"added": "ß"}, points=[1])
        client.update_vectors("named", [m.PointVectors(id=2, vector={"a": second[0, :4].tolist()})])
        client.create_collection("mixed", vectors_config=config(2, "Euclid"))
        client.upsert("mixed", [m.PointStruct(id=key, vector=[1.0, 2.0]) for key in (7, ids[1])])
        client.create_collection("large", vectors_config=config(2, "Euclid"))
        client.upsert("large", [m.PointStruct(id=key, vector=[1.0, 0.1]) for key in (7, 2**64 - 1)])
        client.create_collection("empty", vectors_config=config(3, "Dot"))
        client.update_collection_aliases([m.CreateAliasOperation(
            create_alias=m.CreateAlias(collection_name="mixed", alias_name="also")
        )])  # fmt: skip
    monkeypatch.setattr("vecdb.ingest.peers.qdrant._MOST_ROWS", 100)
    path = str(tmp_path / "qdrant")
    with unchanged(tmp_path / "qdrant"), caplog.at_level(logging.WARNING, "vecdb"):
        done = import_from(db, "qdrant", path)
    assert done == {"unnamed": N - 1, "named": N, "mixed": 2, "large": 2, "empty": 0}
    kept = [i for i in range(N) if i != 3]
    same(db["unnamed"], [ids[i] for i in kept], {"vector": vectors[kept]}, [qdrant_payload(i) for i in kept])
    assert metric_of(db["unnamed"]) == "cosine"
    for record in returned:  # Qdrant itself scales them to length 1
        stored = db["unnamed"].get([record.id])[0].vector
        assert np.allclose(stored / np.linalg.norm(stored), record.vector, atol=1e-6)
    first[2] = second[0, :4]
    payloads = [qdrant_payload(i) or {} for i in range(N)]
    payloads[1] = {**payloads[1], "added": "ß"}
    same(db["named"], range(N), {
        "a": [None if i % 4 == 0 else first[i] for i in range(N)], "b-2": [None if i % 6 == 0 else second[i] for i in range(N)],
    }, payloads)  # fmt: skip
    assert {name: field.metric for name, field in db["named"].info().fields.items()} == {"a": "ip", "b-2": "l2"}
    same(db["mixed"], ["7", ids[1]], {"vector": [[1.0, 2.0]] * 2})
    same(db["large"], ["7", str(2**64 - 1)], {"vector": [[1.0, np.float32(0.1)]] * 2})
    assert caplog.text.count("all become strings") == 2
    assert db["empty"].info().fields["vector"].dim == 3
    assert import_from(db, "qdrant", path, only="also", collection="of_alias") == {"of_alias": 2}


def test_qdrant_is_read_while_it_is_open_elsewhere(
    db: vecdb.Database, tmp_path: Path, qdrant: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from qdrant_client import models as m

    with qdrant() as client:
        client.create_collection("mine", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        client.upsert("mine", [m.PointStruct(id=i, vector=[i, 1.0]) for i in range(N)])
        with unchanged(tmp_path / "qdrant"), pytest.raises(SystemExit) as end:
            main(["import", str(tmp_path / "qdrant"), "--from", "qdrant", "--db", str(tmp_path / "new"), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"mine": N}


def test_qdrant_what_cannot_be_kept(db: vecdb.Database, tmp_path: Path, qdrant: Any) -> None:
    from qdrant_client import models as m

    path = str(tmp_path / "qdrant")
    with qdrant() as client:
        client.create_collection("city", vectors_config=m.VectorParams(size=2, distance=m.Distance.MANHATTAN))
        client.upsert("city", [m.PointStruct(id=1, vector=[1.0, 2.0])])
        multi = m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM)
        client.create_collection(
            "multi", vectors_config={"m": m.VectorParams(size=2, distance=m.Distance.DOT, multivector_config=multi)}
        )
        client.create_collection("zero", vectors_config=m.VectorParams(size=2, distance=m.Distance.COSINE))
        client.upsert("zero", [m.PointStruct(id=5, vector=[0.0, 0.0])])
        client.create_collection("odd name", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
    for name, error, match in (
        ("city", InvalidInput, "Manhattan.*say --metric"),
        ("multi", Unsupported, "'m' is a multivector"),
        ("zero", InvalidVector, "point 5.*zero vector"),
        ("odd name", InvalidInput, "--only 'odd name' --collection NEW"),
        ("nobody", NotFound, "it has city, "),
        (None, InvalidInput, "Manhattan"),
    ):
        with unchanged(tmp_path / "qdrant"), pytest.raises(error, match=match):
            import_from(db, "qdrant", path, only=name)
    assert not db.collections()
    assert import_from(db, "qdrant", path, only="city", metric="l2") == {"city": 1}
    assert import_from(db, "qdrant", path, only="odd name", collection="even") == {"even": 0}


def test_qdrant_sparse_vectors_become_sparse_fields(db: vecdb.Database, tmp_path: Path, qdrant: Any) -> None:
    from qdrant_client import models as m

    with qdrant() as client:
        client.create_collection(
            "both",
            vectors_config={"d": m.VectorParams(size=2, distance=m.Distance.DOT)},
            sparse_vectors_config={"words": m.SparseVectorParams(modifier=m.Modifier.IDF)},
        )
        words = m.SparseVector(indices=[7, 3], values=[0.5, 2.0])
        client.upsert(
            "both",
            [m.PointStruct(id=1, vector={"d": [1.0, 2.0], "words": words}), m.PointStruct(id=2, vector={"d": [3.0, 4.0]})],
        )
        client.create_collection("words", vectors_config={}, sparse_vectors_config={"words": m.SparseVectorParams()})
        client.upsert("words", [m.PointStruct(id=1, vector={"words": words})])
    with unchanged(tmp_path / "qdrant"):
        assert import_from(db, "qdrant", str(tmp_path / "qdrant")) == {"both": 2, "words": 1}
    assert db["both"].get(1)[0].vectors["words"].to_dict() == {3: 2.0, 7: 0.5}
    assert set(db["both"].get(2)[0].vectors) == {"d"}
    assert [(hit.id, hit.score) for hit in db["words"].search({7: 2.0})] == [(1, 1.0)]


class _Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_qdrant_pickles_run_no_code_and_later_copies_count(
    db: vecdb.Database, tmp_path: Path, qdrant: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from qdrant_client import models as m

    key = str(uuid.UUID(int=171))
    with qdrant() as client:
        client.create_collection("mine", vectors_config=m.VectorParams(size=2, distance=m.Distance.DOT))
        client.upsert(
            "mine", [m.PointStruct(id=key, vector=[1.0, 2.0]), m.PointStruct(id=str(uuid.UUID(int=9)), vector=[5.0, 6.0])]
        )
    path, file = str(tmp_path / "qdrant"), tmp_path / "qdrant/collection/mine/storage.sqlite"

    def add(point_id: Any, point: Any) -> None:
        with closing(sqlite3.connect(file)) as database, database:
            stored = (base64.b64encode(pickle.dumps(point_id)).decode(), pickle.dumps(point))
            database.execute("INSERT OR REPLACE INTO points VALUES (?, ?)", stored)

    upper = key.upper()
    add(upper, m.PointStruct.model_construct(id=upper, vector=np.array([3.0, 4.0]), payload={"when": "now"}))
    assert import_from(db, "qdrant", path, collection="a") == {"a": 2}
    same(db["a"], [key, str(uuid.UUID(int=9))], {"vector": [[3.0, 4.0], [5.0, 6.0]]}, [{"when": "now"}, {}])
    add(77, m.PointStruct.model_construct(id=77, vector=[1.0, 2.0, 3.0], payload={}))
    with pytest.raises(DimensionMismatch, match="got 3 numbers"):
        import_from(db, "qdrant", path, collection="b")
    for bad in (_Evil(), m.PointStruct.model_construct(id=77, vector=[1.0, 2.0], payload={"x": _Evil()})):
        add(77, bad)
        with unchanged(tmp_path / "qdrant"), pytest.raises(InvalidFile, match=r"builtins.print is none that Qdrant stores"):
            import_from(db, "qdrant", path, collection="b")
    add(77, {"no": "point"})
    with pytest.raises(InvalidFile):
        import_from(db, "qdrant", path, collection="b")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InvalidFile, match="SQLite cannot read it"):
        import_from(db, "qdrant", path, collection="b")
    file.unlink()
    with pytest.raises(InvalidFile, match="a part of the directory is missing"):
        import_from(db, "qdrant", path, collection="b")
    file.with_name("storage.dbm").touch()
    with pytest.raises(InvalidFile, match=r"before 1\.1\.7"):
        import_from(db, "qdrant", path, collection="b")
    assert capsys.readouterr().out == "" and "b" not in db
    for meta in (
        "",
        "[]",
        "{}",
        '{"collections": []}',
        '{"collections": {"x": 1}}',
        '{"collections": {"x": {"vectors": {"size": "?"}}}}',
    ):
        (tmp_path / "qdrant/meta.json").write_text(meta)
        with pytest.raises((InvalidFile, InvalidInput, NotFound)):
            import_from(db, "qdrant", path)


# -- faiss ---------------------------------------------------------------------------------------------------------

# of SWIG, when it is imported by Python 3.12 and later
faiss_noise = pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
EXACT = (
    "Flat", "IDMap,Flat", "IDMap2,Flat", "IVF4,Flat", "IDMap,IVF4,Flat", "HNSW8,Flat", "NSG8,Flat", "Flat,RFlat", "PQ4x4,RFlat",
    "IDMap,HNSW8,Flat",
)  # fmt: skip
APPROXIMATE = (
    "PQ4x4", "SQ8", "SQfp16", "IVF4,PQ4x4", "IVF4,SQ8", "HNSW8,SQ8", "PCA8,Flat", "RR16,Flat", "OPQ4,PQ4x4", "LSH", "PQ4x4fs",
    "IDMap,SQ8", "IDMap2,PQ4x4", "RaBitQ", "IVF4,RaBitQ", "Flat,Refine(SQ8)", "PCA8,IVF4,Flat", "L2norm,Flat",
)  # fmt: skip


def faiss_file(path: Path, key: str, vectors: Any, ids: Any, metric: int = 1) -> None:
    import faiss

    index = faiss.index_factory(vectors.shape[1], key, metric)
    index.train(vectors)
    if key.startswith("IDMap") or "IVF" in key:
        index.add_with_ids(vectors, ids)
    else:
        index.add(vectors)
    faiss.write_index(index, str(path))


@faiss_noise
@pytest.mark.parametrize("key", EXACT)
def test_faiss_vectors_and_ids_bit_by_bit(
    db: vecdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    pytest.importorskip("faiss")
    vectors, ids = drawn(N, 16), np.random.default_rng(1).permutation(N) * 10**15 - 5
    faiss_file(tmp_path / "my.index", key, vectors, ids)
    monkeypatch.setattr(peers, "_MOST_ROWS", 100)
    with unchanged(tmp_path / "my.index"):
        assert import_from(db, "faiss", str(tmp_path / "my.index")) == {"my": N}
    has_ids = key.startswith(("IDMap", "IVF"))
    same(db["my"], ids.tolist() if has_ids else range(N), {"vector": vectors})
    assert metric_of(db["my"]) == "l2" and not caplog.text


@faiss_noise
@pytest.mark.parametrize("key", APPROXIMATE)
def test_faiss_approximations_are_what_faiss_reconstructs(
    db: vecdb.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    faiss = pytest.importorskip("faiss")
    vectors, ids = drawn(N, 16), np.arange(N) + 1000
    faiss_file(tmp_path / "my.index", key, vectors, ids)
    monkeypatch.setattr(peers, "_MOST_ROWS", 100)
    with unchanged(tmp_path / "my.index"):
        assert import_from(db, "faiss", str(tmp_path / "my.index")) == {"my": N}
    assert "approximations" in caplog.text
    index = whole = faiss.read_index(str(tmp_path / "my.index"))
    for wrapped in ("IDMap", "IDMap2"):
        if key.startswith(wrapped + ","):
            index = faiss.downcast_index(index.index)
    if key == "Flat,Refine(SQ8)":
        index = faiss.downcast_index(index.refine_index)
    if "IVF" in key:
        faiss.extract_index_ivf(index).set_direct_map_type(faiss.DirectMap.Hashtable)
    numbers = ids if "IVF" in key or key.startswith("IDMap") else np.arange(N)
    inner = ids if "IVF" in key else np.arange(N)
    stored = np.stack([point.vector for point in db["my"].get(numbers.tolist())])
    expected = np.stack([index.reconstruct(int(i)) for i in inner])
    assert whole.ntotal == N
    assert np.allclose(stored, expected, atol=1e-5)  # one by one, faiss sums transforms in another order
    assert "," in key.removeprefix("IDMap") or (stored == expected).all()


@faiss_noise
def test_faiss_metrics_and_names(db: vecdb.Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faiss = pytest.importorskip("faiss")
    vectors, path = drawn(N, 4), tmp_path / "my.index"
    faiss_file(path, "Flat", vectors, None, faiss.METRIC_INNER_PRODUCT)
    assert import_from(db, "faiss", str(path), collection="ip") == {"ip": N}
    assert import_from(db, "faiss", str(path), collection="cosine", metric="cosine", only="my") == {"cosine": N}
    assert (metric_of(db["ip"]), metric_of(db["cosine"])) == ("ip", "cosine")
    with pytest.raises(SystemExit) as end:
        main(["import", str(path), "--from", "faiss", "--db", str(tmp_path / "new"), "-c", "NEW", "--metric", "cosine"])
    assert end.value.code == 0 and f"{N} points in 'NEW'" in capsys.readouterr().err
    with pytest.raises(NotFound, match="it has my"):
        import_from(db, "faiss", str(path), only="other")
    faiss_file(path, "Flat", vectors, None, faiss.METRIC_L1)
    with pytest.raises(InvalidInput, match="say --metric"):
        import_from(db, "faiss", str(path))
    assert import_from(db, "faiss", str(path), metric="l2") == {"my": N}


@faiss_noise
@pytest.mark.parametrize("key", ["Flat", "IDMap,Flat", "IVF4,Flat", "HNSW8,Flat", "PQ4"])
def test_faiss_empty_indexes(db: vecdb.Database, tmp_path: Path, key: str) -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(16, key)
    faiss.write_index(index, str(tmp_path / "my.index"))
    assert import_from(db, "faiss", str(tmp_path / "my.index")) == {"my": 0}
    assert db["my"].info().fields["vector"].dim == 16


@faiss_noise
def test_faiss_what_cannot_be_kept(db: vecdb.Database, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    path, vectors = tmp_path / "my.index", drawn(N, 16)
    faiss_file(path, "IDMap,Flat", vectors, np.arange(N) // 2)
    with pytest.raises(DuplicateId, match="not distinct"):
        import_from(db, "faiss", str(path))
    vectors[5, 3] = np.nan
    faiss_file(path, "Flat", vectors, None)
    with pytest.raises(InvalidVector, match="point 5.*nan at 3"):
        import_from(db, "faiss", str(path))
    binary = faiss.IndexBinaryFlat(64)
    binary.add(np.zeros((3, 8), np.uint8))
    faiss.write_index_binary(binary, str(path))
    with pytest.raises(Unsupported, match="binary index"):
        import_from(db, "faiss", str(path))
    for key in ("IVF4,PQ4x4fs", "PCA8,IVF4,PQ4x4fs", "ITQ8,Flat"):
        faiss_file(path, key, drawn(N, 16), np.arange(N))
        with unchanged(path), pytest.raises(Unsupported, match="cannot be reconstructed from an Index"):
            import_from(db, "faiss", str(path))
    for key in ("Flat", "IDMap,Flat", "IVF4,Flat", "HNSW8,Flat", "PQ4x4"):
        faiss_file(path, key, drawn(N, 16), np.arange(N))
        whole = path.read_bytes()
        for bad in (whole[:10], whole[:60], whole[:-9], whole[: len(whole) // 2], b"Ixxx" + whole[4:]):
            path.write_bytes(bad)
            with unchanged(path), pytest.raises(InvalidFile, match="faiss cannot read it"):
                import_from(db, "faiss", str(path))
    assert not db.collections()


# -- pgvector ------------------------------------------------------------------------------------------------------


def pg_csv(path: Path, header: list[str], rows: Any) -> None:
    """As COPY … CSV HEADER writes: quotes where they are needed, nothing for null."""

    def cell(value: Any) -> str:
        if value is None:
            return ""
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if text == "" or any(c in text for c in ',"\n\r') else text

    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(header)
        file.writelines(",".join(map(cell, row)) + "\n" for row in rows)


def pg_vector(vector: Any) -> str:
    """float4 as PostgreSQL writes it: the shortest text that gives the same float4 again."""
    return "[" + ",".join(np.format_float_positional(x, unique=True, trim="-") for x in vector) + "]"


def test_pgvector_rows_bit_by_bit(db: vecdb.Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, half = drawn(N, 8), drawn(N, 4, 1).astype(np.float16)
    header = ["id", "embedding", "title", "meta", "zip", "n", "x", "price", "ok", "tags", "at", "json_list", "half"]
    rows, payloads = [], []
    for i in range(N):
        meta = None if i % 5 == 0 else {"a": [1, None, {"b": "ü"}], "n": i, "empty": {}}
        texts = {
            "title": None if i % 7 == 0 else "" if i % 7 == 1 else f'日本, "quoted"\nline {i}', "zip": f"{i:05}",
            "n": None if i % 11 == 0 else i * 10**15, "x": None if i % 3 == 0 else i / 7 * 10.0 ** (i % 30 - 15),
            "price": f"{i}.50", "ok": "t" if i % 2 else "f", "tags": f"{{a,{i}}}", "at": f"2024-01-{i % 28 + 1:02} 10:00:00+00",
            "json_list": f"[1, {i}]",
        }  # fmt: skip
        postgres = {**texts, "x": None if texts["x"] is None else f"{texts['x']!r}"}
        vector = None if i == 200 else pg_vector(first[i])
        rows.append([i - 5, vector, texts["title"], None if meta is None else json.dumps(meta, ensure_ascii=False),
                     *[postgres[key] for key in header[4:-1]], pg_vector(half[i].astype(np.float32))])  # fmt: skip
        payloads.append({**texts, "meta": meta})
    path = tmp_path / "items.csv"
    pg_csv(path, header, rows)
    with unchanged(path):
        assert import_from(db, "pgvector-csv", str(path), metric="cosine") == {"items": N}
    vectors = {"embedding": [None if i == 200 else first[i] for i in range(N)], "half": half.astype(np.float32)}
    same(db["items"], range(-5, N - 5), vectors, payloads)
    assert metric_of(db["items"], "half") == "cosine"
    with pytest.raises(SystemExit) as end:
        main(
            [
                "import",
                str(path),
                "--from",
                "pgvector-csv",
                "--db",
                str(tmp_path / "new"),
                "-c",
                "NEW",
                "--metric",
                "l2",
                "--json",
            ]
        )
    assert end.value.code == 0 and json.loads(capsys.readouterr().out) == {"NEW": N}


def test_pgvector_columns_are_what_all_their_values_are(db: vecdb.Database, tmp_path: Path) -> None:
    cells = {
        "v": ["[1,2]", "[3,4]", "[5,6]"], "ints": ["1", "-2", "9223372036854775807"], "big": ["1", "2", "9223372036854775808"],
        "late": ["1", "2", "x"], "floats": ["1.5", "-0", "1e+15"], "real": ["1.5", "2", "1.6777216e+07"],
        "exact": ["0.1", "0.10", "1"], "long": ["0.12345678901234567890", "1", "2"], "empties": ["{}", "{}", "{}"],
        "objects": ['{"a": 1}', "{}", '{"b": 12345678901234567}'], "arrays": ['{"a": 1}', "{1,2}", "{}"], "nan": ["1.5", "NaN", "2"],
        "nulls": [None, None, None], "plus": ["+1", "1", "2"],
    }  # fmt: skip
    path = tmp_path / "t.csv"
    pg_csv(path, list(cells), zip(*cells.values(), strict=True))
    import_from(db, "pgvector-csv", str(path), metric="l2")
    numbers = {
        "ints": [1, -2, 2**63 - 1], "floats": [1.5, -0.0, 1e15], "real": [1.5, 2.0, 16777216.0],
        "objects": [{"a": 1}, {}, {"b": 12345678901234567}],
    }  # fmt: skip
    expected = {**cells, **numbers}
    del expected["v"]
    same(
        db["t"],
        range(3),
        {"v": [[1, 2], [3, 4], [5, 6]]},
        [{key: column[i] for key, column in expected.items()} for i in range(3)],
    )


def test_pgvector_compressed_files_and_spaces(db: vecdb.Database, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(b'uuid,e\na,"[1, 2]"\nb,"[3, 4]"\n'))
    assert import_from(db, "pgvector-csv", str(tmp_path / "items.csv.gz"), metric="l2") == {"items": 2}
    same(db["items"], ["a", "b"], {"e": [[1, 2], [3, 4]]})
    (tmp_path / "plain").write_bytes(b'n,e\n1,"[1,2]"\n')
    assert import_from(db, "pgvector-csv", str(tmp_path / "plain"), metric="l2", only="plain") == {"plain": 1}
    same(db["plain"], [0], {"e": [[1, 2]]}, [{"n": 1}])


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("id,v\n", InvalidFile, "it has no rows"),
        ("id,v\n1,x\n", InvalidFile, "no column has vectors.*there are: id, v"),
        ('1,"[1,2]"\n2,"[3,4]"\n', InvalidFile, "is no header"),
        ('id,v\n1,"[1,2]"\n2,"[1,2,3]"\n', DimensionMismatch, r"row 1: got 3 numbers.*vector_dims\(v\) = 2"),
        ('id,v\n1,"[1,2]"\n2\n', InvalidFile, "row 1: it has 1 columns"),
        ('id,v\n1,"[1,2]"\n1,"[3,4]"\n', DuplicateId, "twice"),
        ('id,v\n1,"[1,2]"\n,"[3,4]"\n', InvalidId, "NoneType"),
        ('id,v\n1,"[1,1e60]"\n', InvalidVector, "point 1.*overflows"),
        ('id,v\n1,"[0,0]"\n', InvalidVector, "zero vector"),
        ("1\t[1,2]\n2\t[3,4]\n", InvalidFile, "t.csv"),
    ],
)  # fmt: skip
def test_pgvector_what_is_wrong_is_said(db: vecdb.Database, tmp_path: Path, text: str, error: Any, match: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with unchanged(path), pytest.raises(error, match=match):
        import_from(db, "pgvector-csv", str(path), metric="cosine")
    assert not db.collections()


def test_pgvector_the_metric_must_be_said(db: vecdb.Database, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,v\n1,"[1,2]"\n')
    with pytest.raises(InvalidInput, match="--metric cosine"):
        import_from(db, "pgvector-csv", str(tmp_path / "t.csv"))
    with pytest.raises(NotFound, match="it has t"):
        import_from(db, "pgvector-csv", str(tmp_path / "t.csv"), only="u", metric="l2")
