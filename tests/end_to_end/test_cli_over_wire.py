"""Every command of the command line with `--db grpc://…`: the same as with a path, or a clear word on why not."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import vecdb
from vecdb import Dense
from vecdb.cli import app


def _beside(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert specification is not None and specification.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


serving: Any = _beside("serving")
ROWS, DIM = 300, 8
IDS = [f"doc-{i}" for i in range(ROWS)]

# What is run of each command, in this order, with FOLDER for a folder that differs between the two runs. `--db` comes last.
COMMANDS: dict[str, list[list[str]]] = {
    "create": [["create", "made", "--dim", "4", "--dtype", "f16"], ["create", "fields", "--field", "a:3", "--field", "b:2:l2"]],
    "list": [["list", "--json"], ["list"]],
    "ingest": [
        ["ingest", "rows.jsonl", "-c", "rows", "--dry-run", "--json"],
        ["ingest", "rows.jsonl", "-c", "rows", "--metric", "l2"],
        ["ingest", "rows.jsonl", "-c", "rows", "--insert"],
        ["ingest", "texts.jsonl", "-c", "texts", "--embed", "tfidf", "--text", "body", "--json"],
        ["ingest", "bad.jsonl", "-c", "bad", "--on-error", "skip", "--rejects", "FOLDER/rejects.jsonl"],
    ],
    "import": [["import", "items.csv", "--from", "pgvector-csv", "--metric", "l2", "--json"]],
    "info": [["info", "rows"], ["info", "nothing"]],
    "stats": [],  # below: figures of files differ
    "search": [
        ["search", "docs", "--like", "doc-7", "-k", "5", "--json"],
        ["search", "docs", "--vector", "[1,2,3,4,5,6,7,8]", "--where", "year >= 2010", "--exact", "--with-vectors", "--json"],
        ["search", "texts", "cats and dogs", "-k", "2"],
        ["search", "docs", "--vector", "[1,2]"],
        ["search", "docs", "--like", "doc-7", "--where", "year >="],
    ],
    "hybrid": [
        ["hybrid", "docs", "--by", "vector=[1,2,3,4,5,6,7,8]", "--where", "year >= 2010", "--with-vectors", "--json"],
        ["hybrid", "texts", "--by", "vector=cats and dogs", "-k", "2"],
        ["hybrid", "docs", "--by", "body=[1,2]"],
    ],
    "explain": [],  # below: it has times
    "get": [["get", "docs", "doc-1", "doc-2", "--with-vectors", "--json"], ["get", "docs", "doc-1", "doc-none"]],
    "scroll": [["scroll", "docs", "--where", "year == 2003"], ["scroll", "docs", "--limit", "3", "--with-vectors"]],
    "delete": [["delete", "docs", "doc-299", "--yes"], ["delete", "docs", "--where", "year == 2024", "--yes", "--json"]],
    "embed": [["embed", "a cat", "--collection", "texts"]],
    "export": [["export", "docs", "--out", "FOLDER/out.jsonl"], ["export", "docs", "--out", "FOLDER/out.npy", "--json"]],
    "verify": [["verify", "docs"]],
    "vacuum": [],
    "backup": [],
    "restore": [],
    "rebuild": [["rebuild", "docs"], ["rebuild", "docs", "--index", "flat"]],
    "calibrate": [["calibrate", "docs", "--sample", "40"]],
    "doctor": [],
    "warmup": [],
    "bench": [],
    "map": [["map", "docs", "--out", "FOLDER/map.html", "--color", "year"]],
    "drop": [["drop", "made", "--yes"], ["drop", "made", "--yes"]],
    "serve": [],
    "keys create": [],
    "keys list": [],
    "keys revoke": [],
}


def commands_of(group: Any) -> list[str]:
    names = [command.name or command.callback.__name__ for command in group.registered_commands]
    for inner in group.registered_groups:
        names += [f"{inner.name} {name}" for name in commands_of(inner.typer_instance)]
    return names


def _rows(collection: Any) -> None:
    vectors = np.random.default_rng(3).standard_normal((ROWS, DIM)).astype(np.float32)
    collection.upsert(ids=IDS, vectors=vectors, payloads=[{"year": 2000 + i % 25} for i in range(ROWS)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wire")
    with vecdb.open(folder / "here.db") as db:
        _rows(db.create_collection("docs", Dense(DIM)))
    shutil.copytree(folder / "here.db", folder / "there.db")
    with open(folder / "rows.jsonl", "w") as file:
        for i in range(50):
            print(json.dumps({"id": i, "vector": [i, 1.5, -i], "room": f"room {i % 3}"}), file=file)
    with open(folder / "texts.jsonl", "w") as file:
        for i, text in enumerate(["the cat sat on the mat", "stocks fell on Friday", "dogs chase cats", "rain on Monday"] * 5):
            print(json.dumps({"id": i, "body": text}), file=file)
    (folder / "bad.jsonl").write_text('{"id": 1, "vector": [1, 2]}\n{"id": 2, "vector": [1]}\n{"id": 3, "vector": [3, 4]}\n')
    (folder / "items.csv").write_text('id,embedding,title\n1,"[1,2,3]",one\n2,"[3,2,1]",two\n')
    for name in ("near_", "far_"):
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Any]:
    with serving.Process(place / "there.db") as made:
        yield made


@pytest.fixture(scope="module")
def there(server: Any, place: Path) -> Callable[..., Any]:
    return lambda *arguments, **how: serving.run(*arguments, "--db", server.url, cwd=place, **how)


def test_every_command_is_run_here() -> None:
    assert set(commands_of(app())) == set(COMMANDS)


# In one test, since those that come later find what those before have made.
def test_commands_say_the_same_over_the_wire_as_with_a_path(place: Path, server: Any) -> None:
    def shape(text: str, folder: str, db: str) -> str:
        text = text.replace(folder, "FOLDER").replace(db, "DB")
        text = re.sub(r'"seconds":[\d.]+|[\d,.]+ (s|rows/s|MB/s|ms|[KMG]?i?B)\b|memtable|[\d.]+e-\d+', "#", text)
        return re.sub(r"all rows are in; indexes.*\n|indexing .*\n|compiling .*\n", "", text)

    def one(command: list[str], folder: str, db: str) -> tuple[str, tuple[int, str, str]]:
        done = serving.run(*(each.replace("FOLDER", folder) for each in command), "--db", db, cwd=place, check=False)
        assert done.returncode != 70, done.stderr
        return folder, (done.returncode, shape(done.stdout, folder, db), shape(done.stderr, folder, db))

    different = []
    for commands in COMMANDS.values():
        for command in commands:
            with ThreadPoolExecutor(2) as both:
                said = dict(both.map(lambda run: one(command, *run), [("near_", "here.db"), ("far_", server.url)]))
            if command[0] in ("calibrate", "info", "list"):  # figures of files and times are in it
                said = {
                    name: (code, re.sub(r"[\d.,]+|-{2,}| +", "", out), errors) for name, (code, out, errors) in said.items()
                }
            if said["near_"] != said["far_"]:
                different.append((command, said["near_"], said["far_"]))
    assert not different, "\n".join(f"{command}\n  here  {here}\n  there {there}" for command, here, there in different)
    for name in ("out.jsonl", "out.npy", "rejects.jsonl"):
        assert (place / "near_" / name).read_bytes() == (place / "far_" / name).read_bytes(), name


def test_figures_have_the_same_names(place: Path, there: Callable[..., Any]) -> None:
    def names(text: str) -> set[str]:
        """Without the quotients, which are there once something was written."""
        return {name for name in json.loads(text) if not name.endswith("_amplification")}

    here = serving.run("stats", "--json", "--db", place / "here.db").stdout
    assert names(there("stats", "--json").stdout) == names(here) and len(names(here)) > 10
    told = json.loads(there("explain", "docs", "--like", "doc-7", "--json").stdout)
    assert set(told) == set(
        json.loads(serving.run("explain", "docs", "--like", "doc-7", "--json", "--db", place / "here.db").stdout)
    )
    assert json.loads(there("vacuum", "--json").stdout)["after"] > 0


def test_a_backup_comes_over_and_is_restored(place: Path, server: Any, there: Callable[..., Any]) -> None:
    assert json.loads(there("backup", "copy", "--json").stdout)["files"] > 1
    serving.run("restore", "copy", "restored.db", cwd=place)
    assert "doc-1" in serving.run("get", "docs", "doc-1", "--db", "restored.db", cwd=place).stdout
    again = there("backup", "copy", check=False)
    assert again.returncode == 9 and "not empty" in again.stderr
    for options in (["--link"], ["--earlier", "copy"]):
        refused = there("backup", "other", *options, check=False)
        assert refused.returncode == 8 and "over the wire" in refused.stderr
        assert not (place / "other").exists()
    onto = serving.run("restore", "copy", server.url, cwd=place, check=False)
    assert onto.returncode == 8 and "a directory" in onto.stderr
    assert not list(place.glob("grpc*"))


def test_doctor_looks_at_this_machine_and_at_the_way(place: Path, server: Any, there: Callable[..., Any]) -> None:
    facts = {each["name"]: each["value"] for each in json.loads(there("doctor", "--json").stdout)["facts"]}
    assert facts["server"] == server.url and facts["round trip"].endswith(" ms")
    assert not list(place.glob("grpc*"))
    gone = serving.run("doctor", "--db", "grpc://127.0.0.1:1", check=False, cwd=place)
    assert gone.returncode == 10 and len(gone.stderr.splitlines()) == 1


def test_warmup_takes_no_database(place: Path, server: Any) -> None:
    serving.run("warmup", VECDB_DB=server.url)
    assert serving.run("warmup", "--db", server.url, check=False).returncode == 2


def test_codes_are_exported_where_the_database_is(place: Path, there: Callable[..., Any]) -> None:
    refused = there("export", "docs", "--codes", "codes", check=False)
    assert refused.returncode == 8 and "where the database is" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not (place / "codes").exists()


def test_bench_is_measured_through_the_client(there: Callable[..., Any]) -> None:
    rows = json.loads(there("bench", "docs", "--queries", "20", "--json").stdout)
    assert [row["delivered"] for row in rows][-1] == 1.0
    refused = there("bench", "docs", "--threads", "2", check=False)
    assert refused.returncode == 8 and "server" in refused.stderr


@pytest.mark.parametrize("command", [["create", "one"], ["list"], ["revoke", "one"]])
def test_keys_are_made_where_the_server_is(command: list[str], there: Callable[..., Any]) -> None:
    refused = there("keys", *command, check=False)
    assert refused.returncode == 8 and "on the machine of the server" in refused.stderr


def test_a_server_is_not_served(place: Path, there: Callable[..., Any]) -> None:
    refused = there("serve", check=False)
    assert refused.returncode == 8 and "path" in refused.stderr
    assert not list(place.glob("grpc*"))


def test_a_key_that_may_write_loads_files(place: Path, tmp_path: Path) -> None:
    """Without admin's rights, and without leaving the server's indexing paused when it is cut short."""
    db = tmp_path / "db"
    serving.run("create", "other", "--db", db, "--dim", 3)
    key = serving.run("keys", "create", "loader", "--role", "write", "--collection", "rows", "--db", db).stdout.strip()
    with serving.Process(db) as one:
        done = serving.run("ingest", "rows.jsonl", "-c", "rows", "--db", one.url, cwd=place, VECDB_API_KEY=key)
        assert "50 points of 50 rows" in done.stderr
        refused = serving.run(
            "ingest", "rows.jsonl", "-c", "others", "--db", one.url, cwd=place, VECDB_API_KEY=key, check=False
        )
        assert refused.returncode == 10 and "not for 'others'" in refused.stderr


def test_mistakes_in_addresses_are_told_in_one_line(place: Path) -> None:
    for url, code in (("grpc://127.0.0.1:1", 10), ("grpc://", 4), ("grpc://localhost:99999", 4), ("grpc://h:1/path", 4)):
        done = serving.run("list", "--db", url, check=False, cwd=place)
        assert done.returncode == code and len(done.stderr.splitlines()) == 1, (url, done)
    assert not list(place.glob("grpc*"))
