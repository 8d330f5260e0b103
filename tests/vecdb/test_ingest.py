"""Files of every format become the points that they hold; what is wrong is said with file, row and column; runs can be resumed."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vecdb
from vecdb import Dense
from vecdb.errors import AlreadyExists, InvalidFile, InvalidInput, NotFound
from vecdb.ingest.plan import plan_of
from vecdb.ingest.readers import START, Options, open_reader
from vecdb.ingest.sources import find
from vecdb.ingest.split import split

DIM, ROWS = 8, 500


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((ROWS, DIM)).astype(np.float32)
    return [
        {"id": f"p{i}", "vector": vectors[i].tolist(), "year": 1990 + i % 30, "title": f'title "{i}",\nline two'}
        | ({"price": i / 4} if i % 3 else {})
        for i in range(ROWS)
    ]


def model(rows: list[dict[str, Any]], *, ids: bool = True, payload: bool = True) -> dict[Any, Any]:
    """What the points are to be: id -> (vector, payload)."""
    return {
        row["id"] if ids else number: (
            np.array(row["vector"], np.float32).tobytes(),
            {key: value for key, value in row.items() if key not in ("id", "vector")} if payload else {},
        )
        for number, row in enumerate(rows)
    }


def points(collection: vecdb.Collection) -> dict[Any, Any]:
    return {
        point.id: (None if point.vector is None else point.vector.tobytes(), point.payload or {})
        for point in collection.scroll(with_vectors=True)
    }


def matrix(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["vector"] for row in rows], np.float32)


def arrow(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema([
        ("id", pa.string()), ("vector", pa.list_(pa.float32())), ("year", pa.int64()), ("title", pa.string()), ("price", pa.float64()),
    ]))  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv_of(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    import csv

    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "year", "title", "price", *(f"v{i}" for i in range(DIM))])
    for row in rows:
        writer.writerow([row["id"], row["year"], row["title"], row.get("price", ""), *row["vector"]])
    return out.getvalue().encode()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """`rows` as a file of the format that the name says."""
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(arrow(rows), path, row_group_size=90)
    elif name.endswith(".arrow"):
        with pa.ipc.new_file(path, arrow(rows).schema) as out:
            out.write_table(arrow(rows), max_chunksize=70)
    elif name.endswith(".arrows"):
        with pa.ipc.new_stream(path, arrow(rows).schema) as out:
            out.write_table(arrow(rows), max_chunksize=70)
    elif name.endswith(".feather"):
        import pyarrow.feather as feather

        feather.write_feather(arrow(rows), str(path))
    elif name.endswith(".jsonl"):
        path.write_bytes(lines(rows))
    elif name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines(rows)))
    elif name.endswith(".jsonl.bz2"):
        path.write_bytes(bz2.compress(lines(rows)))
    elif name.endswith(".jsonl.zst"):
        path.write_bytes(pa.Codec("zstd").compress(lines(rows), asbytes=True))
    elif name.endswith(".csv"):
        path.write_bytes(csv_of(rows))
    elif name.endswith(".tsv"):
        path.write_bytes(csv_of(rows, "\t"))
    elif name.endswith(".csv.gz"):
        path.write_bytes(gzip.compress(csv_of(rows)))
    elif name.endswith(".npy"):
        np.save(path, matrix(rows))
    elif name.endswith(".fbin"):
        path.write_bytes(np.array([len(rows), DIM], "<u4").tobytes() + matrix(rows).tobytes())
    elif name.endswith(".fvecs"):
        path.write_bytes(b"".join(np.int32(DIM).tobytes() + vector.tobytes() for vector in matrix(rows)))
    elif name.endswith(".hdf5"):
        import h5py

        with h5py.File(path, "w") as file:
            file["train"] = matrix(rows)
            file["test"] = matrix(rows)[:3]
    else:
        raise AssertionError(name)
    return path


WITH_IDS = (
    "a.parquet", "a.arrow", "a.arrows", "a.feather", "a.jsonl", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.zst", "a.csv", "a.tsv", "a.csv.gz",
)  # fmt: skip
VECTORS = ("a.npy", "a.fbin", "a.fvecs", "a.hdf5")


@pytest.mark.parametrize("name", WITH_IDS + VECTORS)
def test_every_format_becomes_the_points_that_it_holds(db: vecdb.Database, tmp_path: Path, rows: list[Any], name: str) -> None:
    file = write(tmp_path / name, rows)
    seen: list[Any] = []
    summary = db.ingest("docs", file, batch_bytes=4000, progress=seen.append)
    with_ids = name in WITH_IDS
    assert points(db["docs"]) == model(rows, ids=with_ids, payload=with_ids)
    assert (summary.rows, summary.points, summary.skipped, summary.replaced) == (ROWS, ROWS, 0, 0)
    assert len(seen) > 3
    assert seen[-1].rows == ROWS
    assert db["docs"].checkpoints() == {}


@pytest.mark.parametrize("name", WITH_IDS + VECTORS)
def test_a_run_that_was_cut_short_goes_on_where_it_ended(
    db: vecdb.Database, tmp_path: Path, rows: list[Any], name: str
) -> None:
    file = write(tmp_path / name, rows)
    stops, read = 0, 0

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(100):
        before = len(db["docs"]) if "docs" in db else 0
        try:
            summary = db.ingest("docs", file, batch_bytes=3000, progress=stop)
            break
        except KeyboardInterrupt:
            stops += 1
            assert len(db["docs"]) >= before
            read = max(read, len(db["docs"]))
    assert stops > 3
    assert summary.known > 0
    assert points(db["docs"]) == model(rows, ids=name in WITH_IDS, payload=name in WITH_IDS)


@pytest.mark.parametrize("name", WITH_IDS + VECTORS)
def test_readers_go_on_from_wherever_a_piece_has_ended(tmp_path: Path, rows: list[Any], name: str) -> None:
    (source,) = find([write(tmp_path / name, rows)])
    numbers, place = [], START
    while True:
        reader = open_reader(source, Options())
        pieces = reader.read(place, 37)
        piece = next(pieces, None)
        pieces.close()
        assert reader.rows in (None, ROWS)
        reader.close()
        if piece is None or piece.after == place:
            break
        numbers += list(piece.numbers)
        place = piece.after
    assert numbers == list(range(ROWS))


def test_other_vector_files(db: vecdb.Database, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    numbers = rng.integers(1, 100, (40, DIM))
    for name, dtype in (("a.bvecs", "u1"), ("a.ivecs", "<i4")):
        (tmp_path / name).write_bytes(b"".join(np.int32(DIM).tobytes() + each.astype(dtype).tobytes() for each in numbers))
    for name, dtype in (("a.u8bin", "u1"), ("a.i8bin", "i1")):
        (tmp_path / name).write_bytes(np.array([40, DIM], "<u4").tobytes() + numbers.astype(dtype).tobytes())
    for at, name in enumerate(("a.bvecs", "a.ivecs", "a.u8bin", "a.i8bin")):
        db.ingest(f"c{at}", tmp_path / name)
        assert db[f"c{at}"].info().fields["vector"].dtype == ("i8" if name == "a.i8bin" else "f32")
        assert [point.vector.tolist() for point in db[f"c{at}"].scroll(with_vectors=True)] == numbers.tolist()


def test_npy_with_ids_beside_it_and_structured_rows(db: vecdb.Database, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((20, DIM)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    np.save(tmp_path / "names.npy", np.array([f"é{i}" for i in range(20)]))
    db.ingest("a", tmp_path / "v.npy", ids=str(tmp_path / "names.npy"))
    assert db["a"].get("é7")[0].vector.tobytes() == vectors[7].tobytes()
    table = np.zeros(20, [("id", "<i8"), ("embedding", "<f4", DIM), ("year", "<i4"), ("lang", "U3")])
    table["id"], table["embedding"], table["year"], table["lang"] = np.arange(20) + 100, vectors, 1990, "en"
    np.save(tmp_path / "s.npy", table)
    db.ingest("b", tmp_path / "s.npy")
    assert db["b"].get(105)[0].payload == {"year": 1990, "lang": "en"}
    assert db["b"].get(105)[0].vector.tobytes() == vectors[5].tobytes()


def test_csr_rows_become_sparse_vectors(db: vecdb.Database, tmp_path: Path) -> None:
    from scipy import sparse

    dense = np.random.default_rng(1).random((30, 50)).astype(np.float32)
    dense[dense < 0.9] = 0
    dense[:, 0] = 1
    sparse.save_npz(tmp_path / "m.npz", sparse.csr_matrix(dense))
    db.ingest("docs", tmp_path / "m.npz")
    found = {point.id: point.vector.to_dict() for point in db["docs"].scroll(with_vectors=True)}
    assert found == {i: {int(at): float(dense[i, at]) for at in np.flatnonzero(dense[i])} for i in range(30)}


def test_types_of_arrow_become_plain_payloads(db: vecdb.Database, tmp_path: Path) -> None:
    from datetime import UTC, date, datetime
    from decimal import Decimal

    table = pa.table({
        "id": pa.array([1, 2], pa.uint32()),
        "emb": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64())),
        "when": [datetime(2020, 1, 2, tzinfo=UTC), None],
        "day": [date(2020, 1, 2), date(2021, 1, 2)],
        "cost": [Decimal("1.50"), Decimal("2.25")],
        "nan": [float("nan"), 1.5],
        "half": pa.array(np.array([0.5, 1.5], np.float16)),
        "lang": pa.array(["en", "de"]).dictionary_encode(),
        "tags": [["a", "b"], []],
        "inner": [{"a": 1}, {"a": 2}],
        "blob": [b"x", b"y"],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    plan = plan_of(db, "docs", tmp_path / "t.parquet")
    assert "blob" in plan.mapped.left_out
    plan.run()
    one, two = db["docs"].get([1, 2])
    assert one.payload == {
        "when": "2020-01-02T00:00:00Z", "day": "2020-01-02", "cost": 1.5, "half": 0.5, "lang": "en",
        "tags": ["a", "b"], "inner": {"a": 1},
    }  # fmt: skip
    assert two.payload == {
        "day": "2021-01-02", "cost": 2.25, "nan": 1.5, "half": 1.5, "lang": "de", "tags": [], "inner": {"a": 2},
    }  # fmt: skip


def test_what_the_user_says_of_columns(db: vecdb.Database, tmp_path: Path) -> None:
    data = [{"key": i, "a": [1.0, i], "b": [i, 2.0], "name": f"n{i}", "secret": "x"} for i in range(1, 9)]
    (tmp_path / "x.jsonl").write_bytes(lines(data))
    db.create_collection("docs", {"first": Dense(2), "second": Dense(2)})
    db.ingest(
        "docs",
        tmp_path / "x.jsonl",
        id="key",
        vectors={"first": "a", "second": "b"},
        without=["secret"],
        rename={"name": "called"},
    )
    point = db["docs"].get(3)[0]
    assert point.payload == {"called": "n3"}
    assert point.vectors["second"].tolist() == [3.0, 2.0]
    db.ingest("some", tmp_path / "x.jsonl", id="key", vectors={"vector": "b"}, payload=["name"])
    assert db["some"].get(3)[0].payload == {"name": "n3"}
    db.ingest("none", tmp_path / "x.jsonl", id=":ulid", vectors={"vector": "b"}, payload=[])
    assert [point.payload for point in db["none"].scroll()] == [{}] * 8
    assert all(len(point.id) == 26 for point in db["none"].scroll())


def test_guesses_are_shown_before_anything_is_written(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    plan = plan_of(db, "docs", write(tmp_path / "a.parquet", rows))
    assert (plan.mapped.id, plan.mapped.vectors) == ("id", {"vector": "vector"})
    first = plan.first_points(2)[1]
    assert first["id"] == "p1"
    assert np.allclose(first["vector"], rows[1]["vector"])
    assert first["payload"] == {"year": 1991, "title": rows[1]["title"], "price": 0.25}
    assert "docs" not in db


def test_files_folders_globs_and_stdin(
    db: vecdb.Database, tmp_path: Path, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    (data / "deep").mkdir(parents=True)
    write(data / "b.jsonl", rows[:200])
    write(data / "deep" / "c.parquet", rows[200:400])
    write(data / "a.csv", rows[400:])
    (data / "_SUCCESS").write_text("")
    (data / ".hidden.csv").write_text("no")
    db.ingest("folder", data)
    assert points(db["folder"]) == model(rows)
    db.ingest("glob", [str(data / "**" / "*.parquet"), data / "b.jsonl", str(data / "*.csv")])
    assert points(db["glob"]) == model(rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(rows))))
    db.ingest("piped", "-")
    assert points(db["piped"]) == model(rows)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(csv_of(rows))))
    db.ingest("csv", "-", format="csv", batch_bytes=3000)
    assert points(db["csv"]) == model(rows)
    for wrong in ("no.parquet", str(tmp_path / "*.parquet"), "file.what"):
        with pytest.raises((NotFound, InvalidInput), match=r"no|such|name"):
            db.ingest("docs", wrong)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """An HTTP server over a folder `web`, with ranges."""
    web = tmp_path / "web"
    web.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(web))

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            path = web / self.path.lstrip("/")
            if wanted is None or not path.is_file():
                return super().do_GET()
            first, last = wanted.removeprefix("bytes=").split("-")
            data = path.read_bytes()
            part = data[int(first) : int(last) + 1 if last else None]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
            return None

        def end_headers(self) -> None:
            self.send_header("Accept-Ranges", "bytes")
            super().end_headers()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()


@pytest.mark.filterwarnings("ignore")
def test_urls(db: vecdb.Database, tmp_path: Path, rows: list[Any], server: str) -> None:
    for name in ("a.parquet", "a.jsonl.gz", "a.npy"):
        write(tmp_path / "web" / name, rows)
    db.ingest("parquet", f"{server}/a.parquet", batch_bytes=8000)
    assert points(db["parquet"]) == model(rows)
    db.ingest("json", f"{server}/a.jsonl.gz")
    assert points(db["json"]) == model(rows)
    db.ingest("npy", f"{server}/a.npy")
    assert points(db["npy"]) == model(rows, ids=False, payload=False)
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/lake/one/a.jsonl", lines(rows[:100]))
    memory.pipe("/lake/b.jsonl", lines(rows[100:]))
    db.ingest("folder", "memory://lake")
    assert points(db["folder"]) == model(rows)
    with pytest.raises(NotFound):
        db.ingest("docs", f"{server}/none.parquet")


# -- what can be wrong -----------------------------------------------------------------------------------------


def refused(db: vecdb.Database, path: Path, **how: Any) -> InvalidFile:
    with pytest.raises(InvalidFile) as caught:
        db.ingest("docs", path, **how)
    assert "\n" not in str(caught.value)
    return caught.value


def test_wrong_rows_are_named_and_can_be_skipped(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    bad = [dict(row) for row in rows]
    bad[301]["vector"] = [1.0, float("nan"), *[0.0] * (DIM - 2)]
    bad[302]["vector"] = [1.0] * (DIM + 1)
    bad[305]["id"] = ""
    bad[306]["year"] = "x" * (2 << 20)
    text = lines(bad).split(b"\n")
    text[310] = b'{"id": "half'
    text[311] = b'{"id": "latin", "vector": [' + b"1," * (DIM - 1) + b'1], "title": "\xe9"}'
    text[312] = b"[1, 2]"
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join(text))
    error = refused(db, path, batch_bytes=4000)
    assert error.row == 301  # NaN is no JSON, so there is no column to name
    assert error.file.endswith("bad.jsonl")
    assert error.file in str(error)
    committed = points(db["docs"])
    assert committed.items() <= model(rows).items()
    assert len(committed) <= 301
    rejects = tmp_path / "rejects.jsonl"
    summary = db.ingest("docs", path, batch_bytes=4000, on_error="skip", rejects=str(rejects))
    expected = {301, 302, 305, 306, 310, 311, 312}
    said = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert {each["row"] for each in said} == expected
    assert len(said) == summary.skipped == len(expected)
    assert all(each["reason"] for each in said)
    kept = [row for number, row in enumerate(rows) if number not in expected]
    assert points(db["docs"]) == model(kept)


@pytest.mark.parametrize("delimiter", [";", "|", "\t", "^", "]"])
def test_csv_of_other_delimiters(db: vecdb.Database, tmp_path: Path, rows: list[Any], delimiter: str) -> None:
    coded = [{**row, "title": f"{at:03}"} for at, row in enumerate(rows)]  # which are texts, and no numbers
    (tmp_path / "a.csv").write_bytes(csv_of(coded, delimiter))
    if delimiter in ";|\t":
        with pytest.raises(InvalidFile, match=re.escape(f"say --delimiter {delimiter!r}")):
            db.ingest("docs", tmp_path / "a.csv")
    db.ingest("docs", tmp_path / "a.csv", delimiter=delimiter)
    assert points(db["docs"]) == model(coded)


@pytest.mark.parametrize("delimiter", ["", ";;", '"', "\n", "ä"])
def test_what_is_no_delimiter_is_refused(db: vecdb.Database, tmp_path: Path, rows: list[Any], delimiter: str) -> None:
    (tmp_path / "a.csv").write_bytes(csv_of(rows))
    with pytest.raises(InvalidInput, match="one ASCII character"):
        db.ingest("docs", tmp_path / "a.csv", delimiter=delimiter)


def test_csv_values_of_the_wrong_type_are_named(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    text = csv_of([{**row, "title": "t"} for row in rows]).split(b"\n")
    at = 400
    cells = text[at + 1].split(b",")
    cells[1] = b"abc"
    text[at + 1] = b",".join(cells)
    text[at + 2] = b"only,two"
    text[at + 3] = text[at + 3].replace(b",t,", b",\xff,")
    path = tmp_path / "bad.csv"
    path.write_bytes(b"\n".join(text))
    error = refused(db, path, batch_bytes=3000)
    assert (error.row, error.column) == (at, "year")
    summary = db.ingest("docs", path, batch_bytes=3000, on_error="skip", rejects=str(tmp_path / "r"))
    assert summary.skipped == 3
    said = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert [(each["row"], each["column"]) for each in said] == [(at, "year"), (at + 1, None), (at + 2, "title")]
    assert set(points(db["docs"])) == {row["id"] for number, row in enumerate(rows) if number not in (at, at + 1, at + 2)}
    db.ingest("typed", path, batch_bytes=3000, types={"year": "string"}, on_error="skip", rejects=str(tmp_path / "r2"))
    assert db["typed"].get(f"p{at}")[0].payload["year"] == "abc"


def test_numbers_that_say_more_than_their_value_stay_texts(db: vecdb.Database, tmp_path: Path) -> None:
    head, rest = ["id,zip,n,v0,v1"], [f"{i},{i:05},{i},1,{i}" for i in range(50)]
    (tmp_path / "a.csv").write_text("\n".join(head + rest))
    db.ingest("docs", tmp_path / "a.csv")
    assert db["docs"].get(7)[0].payload == {"zip": "00007", "n": 7}
    rest = [f"{i},{i + 10_000},{i},1,{i}" for i in range(120_000)]
    rest[110_000] = "110000,00042,1,1,1"
    (tmp_path / "b.csv").write_text("\n".join(head + rest))
    error = refused(db, tmp_path / "b.csv", restart=True)
    assert (error.row, error.column) == (110_000, "zip")
    db.ingest("typed", tmp_path / "b.csv", types={"zip": "string"})
    assert db["typed"].get(110_000)[0].payload["zip"] == "00042"


def test_a_line_is_a_row_whatever_lines_would_be_together(db: vecdb.Database, tmp_path: Path) -> None:
    """Two lines that only together are an object, and one that holds two: three lines, and none is a row."""
    (tmp_path / "a.jsonl").write_bytes(
        b'{"id": 1, "vector": [1, 1], "x": [1\n2]}\n{"id": 2}, {"id": 3}\n{"id": 4, "vector": [1, 1]}\n'
    )
    summary = db.ingest("docs", tmp_path / "a.jsonl", on_error="skip", rejects=str(tmp_path / "r"))
    assert (set(points(db["docs"])), summary.skipped) == ({4}, 3)


def test_an_ingest_that_is_stopped_leaves_no_file_of_what_was_on_its_way(db: vecdb.Database, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((40_000, 256)).astype(np.float32))

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.ingest("docs", tmp_path / "a.npy", batch_bytes=9 << 20, progress=stop)
    docs = db["docs"]
    named = docs._store.files_of(docs._store.state(docs._uuid))
    assert {file.name for file in docs._store.folder(docs._uuid).iterdir()} <= named
    with pytest.raises(InvalidInput, match="no 'piece'"):
        db.ingest("docs", tmp_path / "a.npy", piece=1)


def test_what_a_guess_must_not_lose(db: vecdb.Database, tmp_path: Path) -> None:
    (tmp_path / "big.csv").write_text('id,emb,big\na,"[1,2]",9007199254740993\nb,"[3,4]",123456789012345678901\n')
    db.ingest("big", tmp_path / "big.csv")
    assert [point.payload["big"] for point in db["big"].get(["a", "b"])] == ["9007199254740993", "123456789012345678901"]
    (tmp_path / "ragged.csv").write_text("id,zip,v0,v1\n1,007,1,2\n2,008,1,2,3\n3,009,1,2\n")
    db.ingest("ragged", tmp_path / "ragged.csv", on_error="skip", rejects=str(tmp_path / "r"))
    assert [point.payload["zip"] for point in db["ragged"].get([1, 3])] == ["007", "009"]
    (tmp_path / "mixed.csv").write_text("id,zip,v0,v1\n1,007,1,2\n2,8.5,1,2\n")
    db.ingest("mixed", tmp_path / "mixed.csv")
    assert [point.payload["zip"] for point in db["mixed"].get([1, 2])] == ["007", "8.5"]
    (tmp_path / "latin.csv").write_bytes(b"id,n,v0,v1\n1,caf\xe9,1,2\n2,tea,1,2\n")
    error = refused(db, tmp_path / "latin.csv")
    assert (error.row, error.column) == (0, "n")
    assert "iconv" in str(error)
    (tmp_path / "float.csv").write_text("id,v0,v1\n1.5,1,2\n2.0,2,3\n")
    assert "an id is an int or a str" in str(refused(db, tmp_path / "float.csv"))
    (tmp_path / "null.jsonl").write_bytes(lines([{"id": 1, "vector": [1, 2], "a": None}, {"id": 2, "vector": None}]))
    summary = db.ingest("null", tmp_path / "null.jsonl")
    assert summary.bare == 1
    assert db["null"].get(1)[0].payload == {"a": None}
    (tmp_path / "no.jsonl").write_bytes(b"a,b\n1,2\n")
    assert "--format" in str(refused(db, tmp_path / "no.jsonl"))


@pytest.mark.parametrize("name", [*WITH_IDS, *VECTORS])
def test_files_that_were_cut_short(db: vecdb.Database, tmp_path: Path, rows: list[Any], name: str) -> None:
    whole = write(tmp_path / name, rows).read_bytes()
    path = tmp_path / ("cut-" + name)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    if name in ("a.csv", "a.tsv"):  # a text without an end is a smaller text, unless its last line lacks columns
        with suppress(InvalidFile):
            db.ingest("docs", path, batch_bytes=4000)
    else:
        with pytest.raises(vecdb.errors.VecdbError, match=r"cut-a\.") as caught:
            db.ingest("docs", path, batch_bytes=4000)
        assert "\n" not in str(caught.value)
    there = points(db["docs"]) if "docs" in db else {}
    with_ids = name in WITH_IDS
    wrong = [key for key, value in there.items() if model(rows, ids=with_ids, payload=with_ids).get(key) != value]
    assert len(wrong) <= (1 if name in ("a.csv", "a.tsv") else 0)  # the last line of a text can be cut within a number


def test_columns_missing_in_one_of_many_files(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    write(tmp_path / "a.parquet", rows[:100])
    pq.write_table(arrow(rows[100:200]).drop_columns(["year"]), tmp_path / "b.parquet")
    summary = db.ingest("docs", [tmp_path / "a.parquet", tmp_path / "b.parquet"])
    ((file, columns),) = summary.missing.items()
    assert file.endswith("b.parquet")
    assert columns == ["year"]
    pq.write_table(arrow(rows[:100]).drop_columns(["vector"]), tmp_path / "c.parquet")
    with pytest.raises(InvalidFile, match=r"c\.parquet.*vector"):
        db.ingest("docs", [tmp_path / "a.parquet", tmp_path / "c.parquet"])
    other = [{**row, "vector": row["vector"][:3]} for row in rows[:5]]
    write(tmp_path / "d.parquet", other)
    with pytest.raises(InvalidFile, match=r"d\.parquet.*3 numbers"):
        db.ingest("docs", [tmp_path / "a.parquet", tmp_path / "d.parquet"], restart=True)


def test_ids_that_come_again(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    write(tmp_path / "a.jsonl", [*rows[:100], {**rows[5], "year": 1}])
    write(tmp_path / "b.jsonl", [{**rows[7], "year": 2}])
    summary = db.ingest("docs", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert summary.replaced == 2
    assert len(db["docs"]) == 100
    assert [point.payload["year"] for point in db["docs"].get(["p5", "p7"])] == [1, 2]
    with pytest.raises(InvalidFile, match=r"row 0.*there already"):
        db.ingest("docs", tmp_path / "b.jsonl", insert=True)
    write(tmp_path / "c.jsonl", rows[90:120])
    summary = db.ingest("docs", tmp_path / "c.jsonl", insert=True, on_error="skip", rejects=str(tmp_path / "r"))
    assert (summary.points, summary.skipped) == (20, 10)


def test_a_first_run_that_fails_before_anything_is_in_leaves_no_collection(
    db: vecdb.Database, tmp_path: Path, rows: list[Any]
) -> None:
    """Its fields are a guess from rows that were refused: the next run may guess others."""
    write(tmp_path / "rows.jsonl", [{**rows[0], "vector": [1.0, 2.0]}, {**rows[1], "vector": [1.0, 2.0, 3.0]}])
    with pytest.raises(InvalidFile):
        db.ingest("docs", tmp_path / "rows.jsonl")
    assert "docs" not in db
    write(tmp_path / "rows.jsonl", rows)
    plan = plan_of(db, "docs", tmp_path / "rows.jsonl", batch_bytes=4000)
    assert plan.created is not None

    def fail(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan.run(fail)
    there = points(db["docs"])
    assert there and there.items() < model(rows).items(), "what was committed stays"
    db.create_collection("mine", vecdb.Dense(DIM))
    write(tmp_path / "bad.jsonl", [{**rows[0], "vector": [1.0]}])
    with pytest.raises(InvalidInput):
        db.ingest("mine", tmp_path / "bad.jsonl")
    assert "mine" in db, "somebody else's"


def test_row_numbers_never_replace_points_that_are_there(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    write(tmp_path / "a.npy", rows[:100])
    write(tmp_path / "b.npy", rows[100:150])
    db.ingest("docs", [tmp_path / "a.npy", tmp_path / "b.npy"])
    assert points(db["docs"]) == model(rows[:150], ids=False, payload=False)
    with pytest.raises(InvalidInput, match="row numbers"):
        db.ingest("docs", tmp_path / "a.npy")
    db.ingest("docs", tmp_path / "a.npy", first_id=150)
    assert len(db["docs"]) == 250


def test_ids_of_another_kind_than_the_collections(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    write(tmp_path / "a.jsonl", rows[:10])
    write(tmp_path / "b.jsonl", [{**row, "id": i} for i, row in enumerate(rows[10:20])])
    with pytest.raises(InvalidFile, match=r"b\.jsonl, row 0: its id is 0, and the collection's ids are str"):
        db.ingest("docs", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert points(db["docs"]) == model(rows[:10])
    write(tmp_path / "c.jsonl", [{**rows[0], "id": 7}, *rows[1:5]])
    assert refused(db, tmp_path / "c.jsonl", restart=True).row == 0
    both = [tmp_path / "b.jsonl", tmp_path / "c.jsonl"]
    summary = db.ingest("docs", both, restart=True, on_error="skip", rejects=str(tmp_path / "r"))
    assert (summary.points, summary.skipped) == (4, 11)
    assert points(db["docs"]) == model(rows[:10])


def test_a_file_that_changes(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    path = write(tmp_path / "a.jsonl", rows)

    def change(_: Any) -> None:
        with path.open("ab") as file:
            file.write(lines(rows[:3]))

    error = refused(db, path, batch_bytes=8000, progress=change)
    assert "changed" in str(error)
    error = refused(db, path)
    assert "--restart" in str(error)
    db.ingest("docs", path, restart=True)
    assert points(db["docs"]).items() >= model(rows[3:]).items()


def test_other_options_do_not_go_on_with_what_was_begun(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    path = write(tmp_path / "a.jsonl", rows)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        db.ingest("docs", path, batch_bytes=8000, progress=stop)
    with pytest.raises(InvalidInput, match="other options"):
        db.ingest("docs", path, without=["year"])
    db.ingest("docs", path)
    assert points(db["docs"]) == model(rows)


def test_long_lines_and_bombs_are_bounded(db: vecdb.Database, tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))
    error = refused(db, path, line=1 << 20, batch_bytes=1 << 20)
    assert "more than 1,048,576 bytes" in str(error)
    path = tmp_path / "m.npz"
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.npy", "w", force_zip64=True) as member:
        for _ in range(4500):
            member.write(b"\0" * (1 << 20))
    assert "unpacked it has" in str(refused(db, path))


def test_a_missing_column_is_answered_with_what_there_is(db: vecdb.Database, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1, "text": "x"}\n')
    assert "--embed" in str(refused(db, tmp_path / "a.jsonl"))
    assert "'nope'" in str(refused(db, tmp_path / "a.jsonl", vectors={"vector": "nope"}))
    (tmp_path / "b.jsonl").write_bytes(b"")
    assert "no rows" in str(refused(db, tmp_path / "b.jsonl"))
    (tmp_path / "c.jsonl").write_bytes(b'[{"id": 1}]\n')
    assert "jq" in str(refused(db, tmp_path / "c.jsonl"))
    (tmp_path / "p.parquet").write_bytes(b"PAR1 nothing of the kind")
    assert "p.parquet" in str(refused(db, tmp_path / "p.parquet"))
    with pytest.raises(NotFound):
        db.ingest("docs", tmp_path / "a.jsonl", create=False)
    with pytest.raises(InvalidInput, match="no 'chunks'"):
        db.ingest("docs", tmp_path / "a.jsonl", chunks=5)
    assert "docs" not in db


# -- texts -------------------------------------------------------------------------------------------------------


def test_texts_are_embedded_and_split(db: vecdb.Database, tmp_path: Path) -> None:
    data = [
        {"id": i, "body": f"Document {i}. " + "The lake is blue and deep. " * 20 + f"Word{i}.", "lang": "en"} for i in range(40)
    ]
    data[3]["body"] = " "
    (tmp_path / "t.jsonl").write_bytes(lines(data))
    with pytest.raises(InvalidFile, match=r"row 3, column 'body'"):
        db.ingest("docs", tmp_path / "t.jsonl", embed="tfidf", text="body")
    summary = db.ingest("docs", tmp_path / "t.jsonl", embed="tfidf", text="body", on_error="skip", rejects=str(tmp_path / "r"))
    assert (summary.points, summary.skipped) == (39, 1)
    hit = db["docs"].search("document word7", k=3)
    assert 7 in {one.id for one in hit}
    assert db["docs"].get(7)[0].payload == {"text": data[7]["body"], "lang": "en"}
    summary = db.ingest(
        "parts",
        tmp_path / "t.jsonl",
        embed="tfidf",
        text="body",
        chunk=200,
        overlap=20,
        on_error="skip",
        rejects=str(tmp_path / "r"),
    )
    assert summary.points > 100
    part = db["parts"].get("7#1")[0]
    assert part.payload["of"] == 7
    assert part.payload["part"] == 1
    assert len(part.payload["text"]) <= 200


def test_parts_of_texts_lose_nothing() -> None:
    text = "".join(f"Sentence {i}. " for i in range(30)) + "\n\n" + "".join(f"word{i} " for i in range(100)) + str(7**300)
    for size, overlap in ((50, 0), (80, 20), (1000, 0), (5000, 100)):
        parts = split(text, size, overlap)
        assert all(0 < len(part) <= size for part in parts)
        begin, covered = 0, 0
        for part in parts:
            begin = text.find(part, begin)
            assert begin >= 0
            assert not text[covered:begin].strip()
            covered = max(covered, begin + len(part))
            begin += 1
        assert not text[covered:].strip()
    with pytest.raises(InvalidInput):
        split("x", 10, 6)


def test_two_ingests_into_one_collection(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    first, second = write(tmp_path / "a.jsonl", rows[:250]), write(tmp_path / "b.parquet", rows[250:])
    db.create_collection("docs", Dense(DIM))
    errors: list[BaseException] = []

    def load(path: Path) -> None:
        try:
            db.ingest("docs", path, batch_bytes=3000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=load, args=(path,)) for path in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert points(db["docs"]) == model(rows)


def test_exports_come_back_as_they_were(db: vecdb.Database, tmp_path: Path, rows: list[Any]) -> None:
    from vecdb.ingest.export import export

    odd = [{**row, "mixed": i if i % 2 else f"{i}", "deep": {"a": [i, None]}} for i, row in enumerate(rows)]
    write(tmp_path / "a.jsonl", odd)
    db.ingest("docs", tmp_path / "a.jsonl")
    for name in ("out.parquet", "out.jsonl"):
        assert export(db["docs"], tmp_path / name) == ROWS
        db.ingest(name, tmp_path / name)
        assert points(db[name]) == points(db["docs"])
        with pytest.raises(AlreadyExists):
            export(db["docs"], tmp_path / name)
    assert export(db["docs"], tmp_path / "out.npy", where="year < 2000") == len([row for row in rows if row["year"] < 2000])
    ids = np.load(tmp_path / "out.ids.npy")
    (tmp_path / "out.npy").rename(tmp_path / "kept.npy")
    with pytest.raises(AlreadyExists, match="ids"):
        export(db["docs"], tmp_path / "out.npy")
    (tmp_path / "kept.npy").rename(tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (len(ids), DIM)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]
