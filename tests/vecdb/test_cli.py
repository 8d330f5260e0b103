"""The command line: what it prints, what it exits with, and that it says one line where something is wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from vecdb_index.mib import tuning

import vecdb
from vecdb import Dense, Sparse
from vecdb.cli import main
from vecdb.index import Seismic

DIM = 8


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a database `my.db` of collection "docs", and a Parquet file of the same points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VECDB_DB", "my.db")
    vectors = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    pq.write_table(
        pa.table({
            "id": [f"p{i}" for i in range(300)],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
            "year": [1990 + i % 30 for i in range(300)],
            "lang": [("en", "de", "fr")[i % 3] for i in range(300)],
        }),
        "docs.parquet",
    )  # fmt: skip
    with vecdb.open("my.db") as db:
        db.ingest("docs", "docs.parquet")
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    code = stopped.value.code
    assert isinstance(code, int)
    return code


def say(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """stdout of a command that ends with `code`."""
    capsys.readouterr()
    assert run(*arguments) == code, capsys.readouterr().err
    return capsys.readouterr().out


def facts(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(say(capsys, *arguments, "--json", code=code))


def wrong(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line on stderr."""
    capsys.readouterr()
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("vecdb: ")
    return line


def test_hybrid_and_figures_of_sparse_vectors(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    sparse = [
        {int(c): float(w) for c, w in zip(rng.choice(300, 8, False), rng.random(8) + 0.1, strict=True)} for _ in range(900)
    ]
    with vecdb.open("h.db") as db:
        docs = db.create_collection("both", {"body": Dense(3), "terms": Sparse(index=Seismic())})
        docs.upsert(ids=range(900), vectors={"body": rng.standard_normal((900, 3)), "terms": sparse})
        docs.flush()
        query = {"body": [1.0, 0.5, 0.0], "terms": sparse[17]}
        expected = docs.search_hybrid(query, k=4, weights={"terms": 2.0}, fuse="relative")
        first = docs.search_hybrid(query, k=1)[0].id
    by = ("--by", "body=[1, 0.5, 0]", "--by", f"terms={json.dumps(sparse[17])}", "--db", "h.db")
    found = facts(capsys, "hybrid", "both", *by, "-k", "4", "--weight", "terms=2", "--fuse", "relative")
    assert [(hit["id"], hit["score"]) for hit in found] == [(hit.id, pytest.approx(hit.score)) for hit in expected]
    assert say(capsys, "hybrid", "both", *by).splitlines()[1].startswith(f"{first} ")
    plan = facts(capsys, "hybrid", "both", *by, "--explain")
    assert [each["field"] for each in plan["plans"]] == ["body", "terms"]
    assert "ranked together by rrf" in say(capsys, "hybrid", "both", *by, "--explain")
    assert "say FIELD=" in wrong(capsys, 4, "hybrid", "both", "--by", "terms", "--db", "h.db")
    assert "FIELD=NUMBER" in wrong(capsys, 4, "hybrid", "both", *by, "--weight", "terms=much")
    assert "twice" in wrong(capsys, 4, "hybrid", "both", *by, "--by", "terms={}")
    told = facts(capsys, "stats", "--collection", "both", "--db", "h.db")
    assert told["vectors"] == 900 and told["index"]["lists"] == 300
    assert told["index"]["postings"] == 900 * 8  # so few rows stand in the lists of all their components
    assert sum(told["index"]["arrays"].values()) <= told["index"]["bytes"]
    assert {"heads", "posts", "entries", "bounds"} <= set(told["index"]["arrays"])
    shown = say(capsys, "stats", "--collection", "both", "--db", "h.db")
    assert "heads" in shown and "longest" in shown


def test_search_is_the_search_of_the_api(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with vecdb.open("my.db", read_only=True) as db:
        docs = db["docs"]
        vector = docs.get("p7")[0].vector
        near = [hit for hit in docs.search(vector, 6, where="lang == 'en' and year >= 2000") if hit.id != "p7"][:5]
        exact = docs.search(vector, 3, exact=True)
    found = facts(capsys, "search", "docs", "--like", "p7", "-k", "5", "--where", "lang == 'en' and year >= 2000")
    assert [(hit["id"], pytest.approx(hit["score"]), hit["payload"]) for hit in found] == [
        (h.id, h.score, h.payload) for h in near
    ]
    assert vector is not None
    found = facts(capsys, "search", "docs", "--vector", json.dumps(vector.tolist()), "-k", "3", "--exact", "--with-vectors")
    assert [hit["id"] for hit in found] == [hit.id for hit in exact]
    assert found[0]["vectors"]["vector"] == pytest.approx(vector.tolist())
    np.save("q.npy", vector[None])
    assert [hit["id"] for hit in facts(capsys, "search", "docs", "--vector", "@q.npy", "-k", "3")] == [hit.id for hit in exact]
    text = say(capsys, "search", "docs", "--like", "p7", "-k", "2")
    assert "score" in text
    assert "year: " in text
    assert "recall 0.95" in say(capsys, "explain", "docs", "--like", "p7")


def test_a_search_imports_nothing_that_numba_only_looks_for_and_ends_without_looking_for_garbage(data: Path) -> None:
    code = """
import gc, sys
from vecdb.cli import main
seen = []
gc.callbacks.append(lambda phase, about: seen.append(about["generation"]))
sys.argv = ["vecdb", "search", "docs", "--like", "p7", "--exact"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
assert "numba" in sys.modules and 2 not in seen
assert not {"cffi", "yaml"} & sys.modules.keys(), "they are hidden from Numba, and not left so"
import yaml
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_command_alone_is_prepared_and_help_shows_all(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECDB_DEBUG", "")  # which --debug sets, and is to be taken away again
    assert "--like" in say(capsys, "search", "--help")
    assert "create" in say(capsys, "keys", "--help")
    shown = say(capsys, "--help")
    assert all(name in shown for name in ("search", "ingest", "import", "list", "keys", "map"))
    assert run("serach") == 2
    assert "No such command 'serach'" in capsys.readouterr().err
    assert say(capsys, "--debug", "list").startswith("collection")


@pytest.mark.parametrize("command", [["search", "--like", "p7"], ["scroll"], ["delete", "--yes"]])
def test_where_nothing_is_found_keys_that_no_point_has_are_told(
    data: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    def told(where: str) -> list[str]:
        capsys.readouterr()
        assert run(command[0], "docs", *command[1:], "--where", where) == 0
        said = capsys.readouterr()
        assert "p7" not in said.out
        return [line for line in said.err.splitlines() if line.startswith("nothing found")]

    (line,) = told("yaer >= 1990 and lang == 'en' or not (author.name == 'K')")[:1]
    assert "'yaer'" in line and "vecdb scroll docs" in line
    assert len(told("yaer >= 1990 and lang == 'en' or not (author.name == 'K') and yaer < 3")) == 2
    assert told("year >= 3000") == [], "it is there, and only not so great"


def test_get_scroll_and_delete(data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert facts(capsys, "get", "docs", "p3")["payload"] == {"year": 1993, "lang": "en"}
    assert say(capsys, "get", "docs", "p3", "nope", code=1)
    lines = say(capsys, "scroll", "docs", "--where", "year == 1995", "--with-vectors").splitlines()
    assert len(lines) == 10
    assert len(json.loads(lines[0])["vectors"]["vector"]) == DIM
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert run("delete", "docs", "p3") == 130, "nobody said yes"
    assert facts(capsys, "delete", "docs", "p3", "p4", "nope", "--yes") == {"deleted": 2}
    assert facts(capsys, "delete", "docs", "--where", "year == 1995", "--yes") == {"deleted": 10}
    assert facts(capsys, "info", "docs")["rows"] == 288
    assert "ids" in wrong(capsys, 4, "delete", "docs")


def test_collections(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say(capsys, "create", "films", "--field", "title:4", "--field", "plot:8:ip:f16:flat")
    said = facts(capsys, "info", "films")
    assert said["fields"]["plot"]["metric"] == "ip"
    assert said["fields"]["plot"]["index"]["backend"] == "flat"
    assert [each["name"] for each in facts(capsys, "list")] == ["docs", "films"]
    assert "docs" in say(capsys, "list")
    assert facts(capsys, "stats")["vecdb.storage.bytes_on_disk"] > 0
    assert "exists" in wrong(capsys, 9, "create", "docs", "--dim", "4")
    say(capsys, "drop", "films", "--yes")
    assert "films" not in say(capsys, "list")
    assert "no collection" in wrong(capsys, 3, "info", "films")
    assert "--dim" in wrong(capsys, 4, "create", "more")
    assert "NAME:DIM" in wrong(capsys, 4, "create", "more", "--field", "x")


def test_errors_are_one_line_and_a_code(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no database" in wrong(capsys, 3, "list", "--db", "nope.db")
    assert not Path("nope.db").exists()
    assert "at 8" in wrong(capsys, 4, "search", "docs", "--like", "p1", "--where", "year >= twenty")
    assert "numbers" in wrong(capsys, 4, "search", "docs", "--vector", "[1, 2]")
    assert "--like" in wrong(capsys, 4, "search", "docs")
    assert "no such file" in wrong(capsys, 3, "ingest", "none.parquet", "-c", "docs")
    assert "no encoder is called" in wrong(capsys, 4, "ingest", "docs.parquet", "-c", "x", "--embed", "what")
    assert "--on-error" in wrong(capsys, 4, "ingest", "docs.parquet", "-c", "x", "--on-error", "ignore")
    assert run("ingest") == 2
    assert run("--help") == 0
    assert run("--version") == 0
    with vecdb.open("my.db") as db:
        db.create_collection("more", Dense(2))
        code = "from vecdb.cli import main; main(['drop', 'docs', '--yes'])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 5
        assert "process" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_an_ingest_shows_its_plan_and_says_what_it_did(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("ingest", "docs.parquet", "-c", "new", "--dry-run", "--rename", "year=when", "--without", "lang") == 0
    shown = capsys.readouterr()
    assert "column 'id'" in shown.err
    assert "when" in shown.err
    assert json.loads(shown.out.splitlines()[0])["payload"] == {"when": 1990}
    with vecdb.open("my.db", read_only=True) as db:
        assert "new" not in db
    plan = facts(capsys, "ingest", "docs.parquet", "-c", "new", "--dry-run", "--db", "other.db")
    assert plan["creates"]["vector"]["dim"] == DIM
    assert not Path("other.db").exists()
    done = facts(capsys, "ingest", "docs.parquet", "-c", "new", "--rename", "year=when", "--without", "lang")
    assert (done["points"], done["rows"], done["skipped"]) == (300, 300, 0)
    assert facts(capsys, "get", "new", "p9")["payload"] == {"when": 1999}
    assert "no collection" in wrong(capsys, 3, "ingest", "docs.parquet", "-c", "none", "--no-create")
    again = facts(capsys, "ingest", "docs.parquet", "-c", "new", "--dry-run")
    assert again["looked_up"] == again["there_already"] > 0
    assert run("ingest", "docs.parquet", "-c", "new", "--dry-run") == 0
    assert "are there already: these points are replaced" in capsys.readouterr().err
    assert run("ingest", "docs.parquet", "-c", "new", "--dry-run", "--insert") == 0
    assert "are there already: an error for each" in capsys.readouterr().err


def test_upkeep(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, "verify")["ok"]
    say(capsys, "backup", "b1")
    say(capsys, "backup", "b2", "--earlier", "b1")
    say(capsys, "restore", "b2", "back.db")
    assert facts(capsys, "info", "docs", "--db", "back.db")["rows"] == 300
    assert facts(capsys, "vacuum")["after"] > 0
    say(capsys, "rebuild", "docs", "--index", "hnsw")
    assert facts(capsys, "info", "docs")["indexes"]["vector"]["segments"] == 1
    assert "recall of field" in say(capsys, "calibrate", "docs", "--sample", "50", "--picture", "curve.png")
    assert Path("curve.png").stat().st_size > 1000
    (segment,) = Path("my.db/segments").glob("*/*.seg")
    whole = bytearray(segment.read_bytes())
    whole[len(whole) // 3] ^= 1
    segment.write_bytes(whole)
    found = facts(capsys, "verify", code=1)
    assert found["damage"]
    assert "what to do" in say(capsys, "verify", code=1)


def test_files_out(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, "export", "docs", "--out", "out.parquet", "--where", "lang == 'de'")["points"] == 100
    assert pq.read_table("out.parquet").num_rows == 100
    lines = say(capsys, "export", "docs", "--out", "-").splitlines()
    assert len(lines) == 300
    assert "overwrite" in wrong(capsys, 9, "export", "docs", "--out", "out.parquet")
    assert ".parquet" in wrong(capsys, 4, "export", "docs", "--out", "out.xlsx")


def test_kernels_are_measured_and_the_fastest_plans_kept(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a database, and with one that has no collection of that name; one that has is measured itself."""
    monkeypatch.setattr(tuning, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(tuning, "_known", None)
    for size in ("_ALONE", "_BATCH"):
        monkeypatch.setattr(tuning, size, 1 << 16)
    monkeypatch.delenv("VECDB_DB", raising=False)
    for more in ((), ("--db", "my.db")):
        rows = facts(capsys, "bench", "kernels", "--width", "100", "--width", "128", *more)
        assert {row["bits"] for row in rows} == {128} and {row["queries"] for row in rows} == {1, 16}
        assert all(row["million rows a second"] > 0 for row in rows)
        alone, together = ([row for row in rows if row["queries"] == n and row["kept"]] for n in (1, 16))
        plan = tuning.plan_of(128)
        assert [row["asked for ahead, bytes"] for row in alone] == [plan.ahead]
        assert [(row["together"], row["KiB at a time"] << 10) for row in together] == [plan[:2]]
    assert [each.name for each in tmp_path.glob("plans*")] == ["plans.json"]
    assert "--db" in wrong(capsys, 4, "bench", "docs")
    say(capsys, "create", "kernels", "--dim", "3", "--db", "my.db")
    assert "no point" in wrong(capsys, 4, "bench", "kernels", "--db", "my.db")


def test_machine_and_map(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "doctor")
    assert {"cores", "kernel cache", "sync of 4 KiB"} <= {each["name"] for each in found["facts"]}
    say(capsys, "warmup")
    rows = facts(capsys, "bench", "docs", "--queries", "20")
    assert [row["asked"] for row in rows] == ["recall 0.9", "recall 0.95", "recall 0.99", "exact"]
    assert rows[-1]["delivered"] == 1
    with vecdb.open("my.db") as db:
        db["docs"].update_payload(["p1"], {"lang": "</script><b>$x_y"})
    say(capsys, "map", "docs", "--out", "map.html", "--color", "lang")
    page = Path("map.html").read_text()
    assert "</script><b>" not in page
    assert page.count("</script>") == 1
    assert "http" not in page, "it loads nothing"
    say(capsys, "map", "docs", "--out", "map.png", "--color", "lang", "--sample", "50")
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
    assert ".png or .html" in wrong(capsys, 4, "map", "docs", "--out", "map.svg")
    assert "pca or umap" in wrong(capsys, 4, "map", "docs", "--out", "new.html", "--method", "tsne")


def test_the_plane_is_that_of_most_variance() -> None:
    from vecdb.picture import project

    rng = np.random.default_rng(0)
    flat = np.zeros((400, 20))
    flat[:, 3], flat[:, 11] = 5 * rng.standard_normal(400), 2 * rng.standard_normal(400)
    plane = project(flat + 1e-3 * rng.standard_normal(flat.shape))
    assert plane.explained is not None
    assert plane.explained > 0.999
    assert plane.xy[:, 0].var() > plane.xy[:, 1].var()
    spread = flat[:, [3, 11]] - flat[:, [3, 11]].mean(axis=0)
    _, left, *_ = np.linalg.lstsq(plane.xy, spread, rcond=None)
    assert (left < 0.01).all(), "both directions lie in the plane"


def test_colours_and_widths_keep_to_the_terminal(data: Path) -> None:
    code = "from vecdb.cli import main; main(['list'])"
    for environment, widest in (({"NO_COLOR": "1", "COLUMNS": "40"}, 40), ({"COLUMNS": "200"}, 200)):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
        )
        assert max(map(len, done.stdout.splitlines())) <= widest
        assert "\x1b" not in done.stdout


# Presses Ctrl-C by itself, after a number of acknowledged pieces and not after a time.
INTERRUPTED = """
import os, signal
from vecdb.cli import main
from vecdb.index import Seismic
from vecdb.writes import Prepared
signal.signal(signal.SIGINT, signal.default_int_handler)  # which those that are started in the background ignore
left, whole = 20, Prepared.commit
def commit(self, *args, **kwargs):
    global left
    replaced = whole(self, *args, **kwargs)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGINT)
    return replaced
Prepared.commit = commit
main(['ingest', 'many.jsonl', '-c', 'many', '--batch-mib', '0.02', '--no-wait'])
"""


def test_ctrl_c_stops_an_ingest_and_what_was_acknowledged_stays(data: Path) -> None:
    rows = [{"id": i, "vector": [float(i), 1.0], "n": i} for i in range(60_000)]
    Path("many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    process = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stderr=subprocess.PIPE, text=True)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert "stays" in error
    with vecdb.open("my.db") as db:
        assert 500 < len(db["many"]) < 60_000
        db.ingest("many", "many.jsonl")
        assert [point.payload["n"] for point in db["many"].scroll()] == list(range(60_000))
