"""Every block of the documentation runs, page by page, in an empty folder; and a wheel runs the README's."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
ANY = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CLI = ROOT / "docs" / "cli.md"
# Pages of commands, which run in one shell; Python blocks that follow each other are one program there. What each leaves:
SHELL = {
    "cli.md": ("map.png", "map.html", "recall.png", "restored.db", "docs-2024.parquet", "vectors.ids.npy"),
    "server.md": ("copied.db", "audit.jsonl"),
    "grpc.md": (),
}


def blocks(page: Path) -> str:
    return "\n".join(BLOCK.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in SHELL], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    code = blocks(page)
    assert code.strip(), f"{page} shows no code"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("page", SHELL)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    """In one shell, so that they find what those before have made. Servers that are left over end with it."""
    script = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || :; wait' EXIT"]
    script.append(f"export PATH={Path(sys.executable).parent}:$PATH COLUMNS=100 PORT={free_port()} METRICS={free_port()}")
    before = ""
    for kind, code in ANY.findall((ROOT / "docs" / page).read_text(encoding="utf-8")):
        if kind == "python" == before:
            script[-1] = script[-1].removesuffix("END") + f"{code}END"
        else:
            script.append(code if kind == "sh" else f"{sys.executable} -W error - <<'END'\n{code}END")
        before = kind
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, check=False, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for name in SHELL[page]:
        assert (tmp_path / name).exists(), name


def test_the_configuration_on_its_page_has_every_setting_with_its_default() -> None:
    from vecdb.server.config import _TABLES, Config

    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    text = page.split("<<'TOML'\n")[1].split("\nTOML\n")[0]
    shown = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    assert {
        table: {name if name in _TABLES[table] else f"{table}_{name}" for name in told} for table, told in shown.items()
    } == _TABLES
    said = tomllib.loads(text)
    del said["server"]["db"], said["tls"]
    for table, told in said.items():
        for name, value in told.items():
            assert getattr(Config(), name if name in _TABLES[table] else f"{table}_{name}") == value, name


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def test_every_command_has_an_example_on_its_page() -> None:
    from vecdb.cli import app

    shown = "\n".join(code for kind, code in ANY.findall(CLI.read_text(encoding="utf-8")) if kind == "sh")
    names = commands_of(app())
    assert len(names) > 25
    assert "keys revoke" in names
    for name in names:
        assert f"vecdb {name} " in shown or f"vecdb {name}\n" in shown, name


def commands_of(group: Any) -> list[str]:
    """Of a Typer application, with those of its groups, as "keys list"."""
    names = [command.name or command.callback.__name__ for command in group.registered_commands]
    for inner in group.registered_groups:
        names += [f"{inner.name} {name}" for name in commands_of(inner.typer_instance)]
    return names


@pytest.mark.parametrize(
    "example",
    [
        "quickstart.py",
        "own_encoder.py",
        "how_near.py",
        "nightly.py",
        "load_files.py",
        "serve_and_search.py",
        "search_a_web_server.py",
    ],
)
def test_examples_run(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / example], cwd=tmp_path, check=True, capture_output=True
    )
    assert done.stdout


def test_the_recording_is_what_a_terminal_shows() -> None:
    """Of fewer rows, with numbers left out, and without the lines of progress, which come every ten seconds."""
    specification = importlib.util.spec_from_file_location("recording", ROOT / "examples" / "recording.py")
    assert specification is not None and specification.loader is not None
    recording = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(recording)

    def shape(text: str) -> list[str]:
        lines = [line for line in text.splitlines() if "MB/s" not in line and line != "…"]
        lines = [re.sub(r"[KMG]iB", "iB", line) for line in lines]
        return [re.sub(r"\W*([\d.,]+|-)(\W|$)", " # ", " ".join(line.split()))[:12] for line in lines]

    page = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = page.split(recording.BEGIN)[1].split(recording.END)[0]
    assert len(shape(shown)) > 15
    assert shape(shown) == shape(recording.record(20_000))


def test_links_between_pages_lead_somewhere() -> None:
    for page in [
        *PAGES,
        ROOT / "ARCHITECTURE.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        ROOT / "SECURITY.md",
        ROOT / "proto" / "README.md",
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_a_wheel_installs_without_a_compiler_and_runs_the_ten_lines(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", wheel]
    environment = {**os.environ, "CC": "/bin/false", "PYTHONPATH": ""}
    subprocess.run(install, check=True, env=environment)
    first = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))[0]
    done = subprocess.run(
        [python, "-W", "error", "-c", first], cwd=tmp_path, check=True, capture_output=True, text=True, env=environment
    )
    assert done.stdout.splitlines()[0].startswith("doc-7 1.0"), done.stdout
    packages = [python, "-c", "import vecdb, vecdb_index, vecdb_storage; print(vecdb.__file__)"]
    where = subprocess.run(packages, cwd=tmp_path, check=True, capture_output=True, text=True, env=environment).stdout
    assert str(tmp_path) in where
    for package in ("vecdb", "vecdb_index", "vecdb_storage"):
        assert list((tmp_path / "venv").rglob(f"site-packages/{package}/py.typed"))
