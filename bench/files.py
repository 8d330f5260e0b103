"""`python -m bench files [--parts …]`: loading files, beside what the machine and other engines do with the same.

parquet     1 million x 384 f32, ids and three payload columns: `vecdb ingest`, the embedded API given the same table from memory,
            and the bulk paths of LanceDB and Chroma, all until it would survive a power cut
fbin        2 million x 96: beside a plain program that writes the same bytes with fdatasync, and one that copies them in memory
memory      RssAnon of `vecdb ingest` while it loads 10 GB, by default options
kills       ten SIGKILLs of `vecdb ingest` at random moments: how much of the file is read again
shell       seconds of `vecdb --help` and of `vecdb search`

Each program runs in a process of its own, rounds take turns, medians are reported. Inputs are in the page cache.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from .__main__ import head, python_of, ratio, row

PARTS = ("parquet", "fbin", "memory", "kills", "shell")
DIM = 384
GROUP = 65_536  # rows of a row group
MIB = 1 << 20


def tables(parts: list[str] | None, rounds: int, rows: int | None) -> None:
    print("## Files\n")
    for package in ("vecdb", "index", "storage"):  # as pip does when it installs them; imports may be forbidden to do it
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=1)
    with tempfile.TemporaryDirectory(prefix="vecdb-files-") as folder:
        work = Path(folder)
        for part in parts or PARTS:
            {"parquet": parquet, "fbin": fbin, "memory": memory, "kills": kills, "shell": shell}[part](work, rounds, rows)


def timed(command: list[str], **environment: str) -> tuple[float, str]:
    """Seconds and stdout of a command that must succeed."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-1000:])
    return time.perf_counter() - started, done.stdout


def vecdb(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vecdb", *map(str, arguments)]


def cached(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(64 * MIB):
            pass


# -- Parquet -------------------------------------------------------------------------------------------------


def write_parquet(path: Path, rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    schema = pa.schema([
        ("id", pa.string()), ("vector", pa.list_(pa.float32(), DIM)), ("title", pa.string()), ("year", pa.int64()), ("lang", pa.string()),
    ])  # fmt: skip
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["lang"]) as writer:
        for start in range(0, rows, GROUP):
            count = min(GROUP, rows - start)
            vectors = rng.standard_normal((count, DIM), np.float32)
            writer.write_table(pa.table({
                "id": [f"document-{start + i}" for i in range(count)],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
                "title": [f"the title of document {start + i}" for i in range(count)],
                "year": rng.integers(1990, 2025, count),
                "lang": [("en", "de", "fr", "es")[i % 4] for i in range(count)],
            }, schema=schema))  # fmt: skip


def parquet(work: Path, rounds: int, rows: int | None) -> None:
    rows = rows or 1_000_000
    path = work / "docs.parquet"
    write_parquet(path, rows)
    cached(path)
    print(
        f"### Parquet: {rows:,} x {DIM} f32, ids, three payload columns, {path.stat().st_size / MIB:,.0f} MiB (`--parts parquet`)\n"
    )
    few = max(2_000, rows // 50)  # Chroma would take all day
    programs: dict[str, list[str] | None] = {
        "vecdb ingest": vecdb("ingest", path, "--db", "{db}", "-c", "docs", "--index", "flat", "--no-wait", "--json"),
        "vecdb, upsert(table) from memory": [sys.executable, "-m", "bench.files", "bulk", str(path), "{db}"],
        "LanceDB, add of the file's batches, then fsync": _peer("lancedb", path, rows),
        f"Chroma, upsert, {few:,} of them": _peer("chromadb", path, few),
    }
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, command in programs.items():
            if command is None:
                continue
            target = work / "target"
            spent, said = timed([part.replace("{db}", str(target)) for part in command], PYTHONPATH=os.pathsep.join(sys.path))
            seconds[name].append(
                float(json.loads(said.splitlines()[-1]).get("seconds", spent)) if "ingest" not in name else spent
            )
            shutil.rmtree(target, ignore_errors=True)
    rates = {name: (few if "Chroma" in name else rows) / statistics.median(each) for name, each in seconds.items() if each}
    head("program", "rows a second, median", "vecdb ingest is so many times as fast")
    for name, rate in rates.items():
        row(name, f"{rate:,.0f}", ratio(rates["vecdb ingest"], rate))
    print(
        "\nSeconds of each round: "
        + "; ".join(f"{name} {', '.join(f'{one:.1f}' for one in each)}" for name, each in seconds.items())
    )
    print(
        "\n`vecdb ingest` is timed as a whole command, its start included. Asked for: 0.70 of the embedded API, more than both others.\n"
    )


def _peer(engine: str, path: Path, rows: int) -> list[str] | None:
    python = python_of(engine)
    return (
        None
        if python is None
        else [python, str(Path(__file__).parent / "peers" / f"files_{engine}.py"), str(path), "{db}", str(rows)]
    )


def bulk(path: str, target: str) -> None:
    """The API's own rate: a table in memory, 65,536 rows in a call."""
    import pyarrow.parquet as pq

    import vecdb as package

    table = pq.read_table(path).combine_chunks()
    with package.open(target) as db:
        docs = db.create_collection("docs", package.Dense(DIM, index="flat"))
        started = time.perf_counter()
        for first in range(0, table.num_rows, GROUP):
            docs.upsert(table.slice(first, GROUP))
        print(json.dumps({"seconds": time.perf_counter() - started}))


# -- fbin ------------------------------------------------------------------------------------------------------


def write_fbin(path: Path, rows: int, dim: int) -> None:
    rng = np.random.default_rng(2)
    with path.open("wb") as file:
        file.write(np.array([rows, dim], "<u4").tobytes())
        for start in range(0, rows, 100_000):
            file.write(rng.standard_normal((min(100_000, rows - start), dim), np.float32).tobytes())


def fbin(work: Path, rounds: int, rows: int | None) -> None:
    rows, dim = rows or 2_000_000, 96
    path = work / "vectors.fbin"
    write_fbin(path, rows, dim)
    cached(path)
    size = path.stat().st_size
    print(f"### fbin: {rows:,} x {dim}, {size / MIB:,.0f} MiB (`--parts fbin`)\n")
    seconds: dict[str, list[float]] = {"disk": [], "copy": [], "vecdb ingest": []}
    for _ in range(rounds):
        for name in ("disk", "copy"):
            _, said = timed(
                [sys.executable, "-m", "bench.files", name, str(path), str(work / "target")],
                PYTHONPATH=os.pathsep.join(sys.path),
            )
            seconds[name].append(json.loads(said)["seconds"])
            (work / "target").unlink(missing_ok=True)
        target = work / "target.db"
        command = vecdb("ingest", path, "--db", target, "-c", "docs", "--index", "flat", "--no-wait", "--json")
        _, said = timed(command)
        seconds["vecdb ingest"].append(json.loads(said.splitlines()[-1])["seconds"])
        shutil.rmtree(target)
    rates = {name: size / statistics.median(each) for name, each in seconds.items()}
    slower = min(rates["disk"], rates["copy"])
    head("program", "MiB/s, median", "of the slower of disk and copy")
    for name, rate in rates.items():
        row(name, f"{rate / MIB:,.0f}", ratio(rate, slower))
    print(
        "\n`disk` reads the file and writes its bytes, 8 MiB at a time, with fdatasync after each; `copy` reads it into memory. Asked for: 0.60.\n"
    )


def disk(path: str, target: str) -> None:
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as source, open(target, "wb", buffering=0) as out:
        while block := source.read(8 * MIB):
            out.write(block)
            os.fdatasync(out.fileno())
    print(json.dumps({"seconds": time.perf_counter() - started}))


def copy(path: str, target: str) -> None:
    started = time.perf_counter()
    with open(path, "rb", buffering=0) as source:
        while source.read(8 * MIB):
            pass
    print(json.dumps({"seconds": time.perf_counter() - started}))


# -- memory ------------------------------------------------------------------------------------------------------


def memory(work: Path, rounds: int, rows: int | None) -> None:
    rows = rows or 6_500_000
    path = work / "large.fbin"
    write_fbin(path, rows, DIM)
    print(f"### Memory: {rows:,} x {DIM}, {path.stat().st_size / 1e9:,.1f} GB, by default options (`--parts memory`)\n")
    command = vecdb("ingest", path, "--db", work / "large.db", "-c", "docs", "--index", "flat", "--no-wait", "--json")
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seen: list[int] = []
    watcher = threading.Thread(target=_watch, args=(process, seen))
    watcher.start()
    said, _ = process.communicate()
    watcher.join()
    seconds = time.perf_counter() - started
    done = json.loads(said.splitlines()[-1])
    assert done["points"] == rows, done
    head("greatest RssAnon, MiB", "in the last tenth, MiB", "seconds", "MB/s")
    row(
        f"{max(seen) / MIB:,.0f}",
        f"{max(seen[-max(1, len(seen) // 10) :]) / MIB:,.0f}",
        f"{seconds:,.0f}",
        f"{path.stat().st_size / seconds / 1e6:,.0f}",
    )
    print("\nAsked for: at most 1,024 MiB.\n")
    shutil.rmtree(work / "large.db")
    path.unlink()


def _watch(process: subprocess.Popen[Any], seen: list[int]) -> None:
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        seen += [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")]
        time.sleep(0.05)


# -- kills -----------------------------------------------------------------------------------------------------------


def kills(work: Path, rounds: int, rows: int | None) -> None:
    rows = rows or 1_000_000
    path, target, log = work / "kills.parquet", work / "kills.db", work / "kills.log"
    write_parquet(path, rows)
    cached(path)
    command = [sys.executable, "-m", "bench.files", "logged", str(path), str(target), str(log)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    log.unlink()
    log.with_suffix(".in").unlink()
    chance, done = np.random.default_rng(7), 0
    while True:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        if done < 10:
            time.sleep(0.6 + float(chance.uniform(0, seconds / 10)))
            if process.poll() is None:
                process.kill()
                done += 1
        process.wait()
        if log.with_suffix(".in").exists():
            break
    read = sum(map(int, log.read_text().split()))
    print(f"### Kills: Parquet of {rows:,} x {DIM} (`--parts kills`)\n")
    head("SIGKILLs", "rows read", "of the file", "seconds of one run without any")
    row(done, f"{read:,}", f"{read / rows:.3f}", f"{seconds:.1f}")
    print(
        "\nRows that were given to the loader; within a row group of Parquet, those before the place are decoded again and dropped. Asked for: at most 1.05.\n"
    )
    shutil.rmtree(target)


def logged(path: str, target: str, log: str) -> None:
    """An ingest that writes down how many rows each piece has that it reads."""
    import vecdb as package
    from vecdb.ingest import load

    out, whole = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), load.Run._file

    def counted(self: Any, state: Any, reader: Any) -> Any:
        made = whole(self, state, reader)
        while True:
            try:
                work = next(made)
            except StopIteration as end:
                return end.value
            os.write(out, f"{len(work.piece)}\n".encode())
            yield work

    load.Run._file = counted  # type: ignore[method-assign]
    with package.open(target) as db:
        db.ingest("docs", path, index="flat")
        Path(log).with_suffix(".in").touch()  # killed from here on, it would begin again, as whoever ingests a file twice does


# -- the shell -------------------------------------------------------------------------------------------------------


def shell(work: Path, rounds: int, rows: int | None) -> None:
    import vecdb as package

    path = work / "shell.db"
    vectors = np.random.default_rng(0).standard_normal((20_000, DIM), np.float32)
    with package.open(path) as db:
        docs = db.create_collection("docs", package.Dense(DIM, index="hnsw"))
        docs.upsert(ids=range(20_000), vectors=vectors, payloads=[{"n": i} for i in range(20_000)])
        docs.flush()
    print("### The shell (`--parts shell`)\n")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "vecdb --help": vecdb("--help"),
        "vecdb search --like 7": vecdb("search", "docs", "--like", "7", "--db", path),
    }
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(max(rounds, 5)):
        for name, command in commands.items():
            spent[name].append(timed(command)[0])
    head("command", "seconds, median", "best")
    for name, each in spent.items():
        row(f"`{name}`", f"{statistics.median(each):.2f}", f"{min(each):.2f}")
    print("\nAsked for: 0.3 s and 1.0 s.\n")


if __name__ == "__main__":
    {each.__name__: each for each in (bulk, disk, copy, logged)}[sys.argv[1]](*sys.argv[2:])
