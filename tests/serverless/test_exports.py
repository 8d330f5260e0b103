"""What is exported, where it may lie, what cannot be done with it, and the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from vecdb_index.mib.params import MIB
from vecdb_storage.files import Files

import vecdb
from vecdb import Dense, F
from vecdb.cli import main
from vecdb.errors import (
    AlreadyExists,
    Closed,
    DimensionMismatch,
    InvalidInput,
    NotFound,
    ReadOnly,
    StorageError,
    Unsupported,
)
from vecdb.serverless import layout

from .afar import DIM, QUERIES, check_same, drawn, serving, the_object


def test_fsspec_and_file_urls(home: vecdb.Collection, codes: Path) -> None:
    pytest.importorskip("fsspec")
    done = home.export_codes("memory://bucket/codes", overwrite=True)
    assert done.folder == "memory://bucket/codes" and done.objects == 1
    for where in ("memory://bucket/codes", codes.as_uri(), str(codes)):
        with vecdb.open_codes(where) as there:
            check_same(there, home)
            assert there.search(QUERIES[0], explain=True).plan.transfer.requests >= 0
    with pytest.raises(NotFound):
        vecdb.open_codes("memory://bucket/nothing")
    with pytest.raises((InvalidInput, Unsupported)):
        vecdb.open_codes("nosuch://bucket/codes")


def test_exports_again(home: vecdb.Collection, tmp_path: Path) -> None:
    """The same commit writes no object anew; another one does, and takes away what only the old manifest names."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=range(500), vectors=drawn(500, 11))
        first = docs.export_codes(tmp_path / "codes")
        assert first.written == first.bytes and first.points == 500
        with pytest.raises(AlreadyExists, match="overwrite"):
            docs.export_codes(tmp_path / "codes")
        again = docs.export_codes(tmp_path / "codes", overwrite=True)
        assert again.written < first.written / 10 and again.bytes == first.bytes
        damaged = the_object(tmp_path / "codes")
        kept = damaged.read_bytes()
        damaged.write_bytes(kept[:-100] + bytes(100))
        assert docs.export_codes(tmp_path / "codes", overwrite=True).written == first.bytes and damaged.read_bytes() == kept
        (tmp_path / "codes" / layout.MANIFEST).write_text("{}")
        docs.export_codes(tmp_path / "codes", overwrite=True)
        reader = vecdb.open_codes(tmp_path / "codes")
        before = the_object(tmp_path / "codes").name
        docs.delete([0, 1])
        told: list[tuple[int, int]] = []
        docs.export_codes(tmp_path / "codes", overwrite=True, progress=lambda done, total: told.append((done, total)))
        assert told and told[-1][0] == told[-1][1]
        assert the_object(tmp_path / "codes").name != before
        with reader, pytest.raises(NotFound, match="open it again"):
            reader.search(QUERIES[0])
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs)


def test_an_export_that_is_cut_short_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """At any write: readers see the old manifest, and its objects are there; the next export completes it."""
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=range(500), vectors=drawn(500, 11))
        docs.export_codes(tmp_path / "codes")
        before = docs.search(QUERIES[0])
        docs.delete(before.ids[:5])
        write, left = Files.write, 0

        def fail(self: Files, fd: int, data: Any, path: Path) -> None:
            nonlocal left
            left -= 1
            write(self, fd, bytes(data)[: len(data) // 2] if left < 0 else data, path)
            if left < 0:
                raise StorageError("the disk went away")

        with monkeypatch.context() as patch:
            left = 1000
            patch.setattr(Files, "write", fail)
            docs.export_codes(tmp_path / "elsewhere")
        taken, there_before = 1000 - left, set((tmp_path / "codes").iterdir())
        assert taken > 6
        for writes in range(taken):  # the last of which is that of the manifest
            left = writes
            with monkeypatch.context() as patch, pytest.raises(StorageError, match="went away"):
                patch.setattr(Files, "write", fail)
                docs.export_codes(tmp_path / "codes", overwrite=True)
            with vecdb.open_codes(tmp_path / "codes") as there:
                assert there.search(QUERIES[0]).ids == before.ids
            if writes < taken - 1:
                for new in set((tmp_path / "codes").iterdir()) - there_before:
                    new.unlink()  # what of it is complete would not be written again
        docs.export_codes(tmp_path / "codes", overwrite=True)
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with vecdb.open(tmp_path / "db") as db:
        plain = db.create_collection("plain", Dense(4))
        with pytest.raises(InvalidInput, match=r"set_index\(MIB\(\)\)"):
            plain.export_codes(tmp_path / "out")
        docs = db.create_collection("docs", {"a": Dense(4, index=MIB()), "b": Dense(4)})
        with pytest.raises(InvalidInput, match="field 'b'"):
            docs.export_codes(tmp_path / "out", field="b")
        with pytest.raises(InvalidInput, match="no such field"):
            docs.export_codes(tmp_path / "out", field="c")
        docs.upsert([{"id": i, "vectors": {"a": [1, 2, 3, i]}} for i in range(10)])
        with vecdb.open(tmp_path / "db", read_only=True) as beside, pytest.raises(InvalidInput, match="in memory.*flush"):
            beside["docs"].export_codes(tmp_path / "out")
        db.pause_indexing()
        with pytest.raises(Unsupported, match=r"field 'a'.*flush\(\)"):
            docs.export_codes(tmp_path / "out")
        db.resume_indexing()
        assert docs.export_codes(tmp_path / "out").points == 10
        with vecdb.open(tmp_path / "db", read_only=True) as beside:
            beside["docs"].export_codes(tmp_path / "beside")
    assert the_object(tmp_path / "out").read_bytes() == the_object(tmp_path / "beside").read_bytes()


def test_what_exported_codes_cannot_do_is_said(codes: Path) -> None:
    there = vecdb.open_codes(codes)
    for call, error in (
        (lambda: there.upsert([]), ReadOnly), (lambda: there.get([1]), Unsupported), (lambda: there.delete([1]), ReadOnly),
        (lambda: there.search(QUERIES[0], where=F("n") > 1), Unsupported), (lambda: there.search("text"), Unsupported),
        (lambda: there.search(QUERIES[0], score="its"), Unsupported), (lambda: there.search_batch(QUERIES, score="its"), Unsupported),
        (lambda: there.search(QUERIES[0], group_by="n"), Unsupported), (lambda: there.count(F("n") > 1), Unsupported),
        (lambda: there.search([1, 2]), DimensionMismatch), (lambda: there.search(QUERIES[0], k=0), InvalidInput),
        (lambda: there.search(QUERIES[0], recall=2), InvalidInput), (lambda: there.search(QUERIES[0], field="b"), InvalidInput),
        (lambda: there.search(QUERIES[0], with_vectors=["b"]), InvalidInput),
    ):  # fmt: skip
        with pytest.raises(error):
            call()
    with pytest.raises(AttributeError):
        there.nothing  # noqa: B018
    assert there.info().rows == there.count() == len(there) == 6000 - 858 and there.name == "docs"
    assert there.search(QUERIES[0], score_threshold=2).ids == []
    late = there.search_batch(QUERIES[:2])
    there.close()
    with pytest.raises(Closed):
        there.search(QUERIES[0])
    with pytest.raises(Closed):
        late[0]  # whose payloads were not read yet
    with pytest.raises(InvalidInput, match=r"open_codes"):
        vecdb.open("https://host/codes?sig=secret")
    with pytest.raises(InvalidInput, match="headers and timeout"):
        vecdb.open_codes("https://host/codes", options={"anon": True})


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, said.out, said.err


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, query = str(tmp_path / "db"), tmp_path / "codes", json.dumps(drawn(1, 12)[0].tolist())
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB()))
        docs.upsert(ids=range(3000), vectors=drawn(3000, 13), payloads=[{"n": i} for i in range(3000)])
    code, _, said = command(capsys, "export", "docs", "--db", path, "--codes", str(folder))
    assert code == 0 and "3,000 points in 1 objects" in said and "upload" in said
    code, out, _ = command(capsys, "export", "docs", "--db", path, "--codes", str(folder), "--overwrite", "--json")
    assert code == 0 and json.loads(out)["points"] == 3000
    code, right, _ = command(capsys, "search", "docs", "--db", path, "--vector", query, "--json", "-k", "3")
    with serving(folder) as server:
        for where in (server.url, str(folder)):
            code, out, said = command(
                capsys, "search", "docs", "--db", where, "--vector", query, "--json", "-k", "3", "--explain"
            )
            assert code == 0 and json.loads(out) == json.loads(right)
            assert re.search(r"read [\d,]+ bytes in \d+ requests.* ms of CPU a query", said)
        code, out, _ = command(capsys, "explain", "docs", "--db", server.url, "--vector", query, "--json")
        assert code == 0 and json.loads(out)["transfer"]["bytes"] > 0
        assert command(capsys, "info", "docs", "--db", server.url)[0] == 0
        assert command(capsys, "list", "--db", server.url)[0] == 0
        assert command(capsys, "search", "nothing", "--db", server.url, "--vector", query)[0] == 3
        assert command(capsys, "search", "docs", "--db", server.url, "--like", "1")[0] == 8
        assert command(capsys, "delete", "docs", "1", "--yes", "--db", server.url)[0] == 5
        assert command(capsys, "stats", "--db", server.url)[0] == 5
    for wrong in (["--codes", "x", "--out", "y.npy"], [], ["--codes", "x", "--where", "n > 1"]):
        assert command(capsys, "export", "docs", "--db", path, *wrong)[0] == 4


def test_urls_that_fsspec_cannot_open_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is missing, a protocol that nobody knows, and a server that is not there."""
    with pytest.raises(InvalidInput, match="nowhere"):
        vecdb.open_codes("nowhere://bucket/codes")

    def opening(error: Exception) -> Any:
        def url_to_fs(url: str, **options: Any) -> Any:
            raise error

        return url_to_fs

    monkeypatch.setattr("fsspec.core.url_to_fs", opening(ImportError("Install s3fs to access S3")))
    with pytest.raises(Unsupported, match=r"s3://bucket/codes: Install s3fs.*vecdb\[cloud\]"):
        vecdb.open_codes("s3://bucket/codes")
    monkeypatch.setattr("fsspec.core.url_to_fs", opening(OSError("Name or service not known")))
    with pytest.raises(StorageError, match="cannot reach ftp://there/codes: Name or service"):
        vecdb.open_codes("ftp://there/codes")
