"""How storage holds up over time. Run by `python -m bench endurance`, or part by part: `python -m bench endurance --parts space`.

- space: 50 rounds of overwriting all points, then what the directory takes beside a fresh one of the same points, as it is and after
  `vacuum`.
- load: 2 million points (`--points`) in batches of 1,000: bytes that the process wrote, by the kernel's account (/proc/self/io), over
  the bytes of ids, vectors and payloads; merges and their indexes included, waited for.
- crash: a process is killed with a log of 64 MiB that was not flushed; how long the next open takes.
- verify: `verify` of what `load` left, beside reading the same files by plain reads, from the page cache and from the disk.
- sustained: 20 minutes (`--minutes`) of inserts, overwrites, deletes and filtered searches on 1 million points: anonymous memory, the
  p99 of searches beside the quiet one, and the longest write.

Each part runs in processes of its own, so that memory and bytes are those of the part alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .__main__ import head, row

PARTS = ("space", "load", "crash", "verify", "sustained")
DIM = 128
MIB = 1 << 20


def tables(parts: list[str], points: int, minutes: float) -> None:
    print("## Endurance\n")
    with tempfile.TemporaryDirectory(prefix="vecdb-bench-", dir=os.environ.get("VECDB_BENCH_DIR")) as name:
        work = Path(name)
        if "space" in parts:
            space(work)
        if "load" in parts or "verify" in parts:
            load(work, points)
        if "verify" in parts:
            verifying(work)
        if "crash" in parts:
            crash(work)
        if "sustained" in parts:
            sustained(work, minutes)


def child(part: str, *arguments: object) -> dict[str, Any]:
    """A part in a process of its own; its last line is JSON."""
    command = [sys.executable, "-m", "bench.endurance", part, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if part != "fill":
        assert done.returncode == 0, done.stdout
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def batch(rng: np.random.Generator, ids: Any) -> dict[str, Any]:
    """Points as `upsert` takes them: DIM floats, and a payload of three fields."""
    vectors = rng.standard_normal((len(ids), DIM), np.float32)
    payloads = [{"n": int(i), "group": f"g{i % 97}", "score": float(i % 1000) / 7} for i in ids]
    return {"ids": ids, "vectors": vectors, "payloads": payloads}


# -- space -----------------------------------------------------------------------------------------------


def space(work: Path) -> None:
    print("### Space after 50 rounds of overwriting all points (100,000 x 128 f32, batches of 1,000)\n")
    fresh = child("rounds", work / "fresh", 1)
    worn = child("rounds", work / "worn", 50)
    head("", "MiB", "x fresh")
    for what, bytes_ in (
        ("fresh, flushed", fresh["before"]),
        ("after 50 rounds", worn["before"]),
        ("and `vacuum`", worn["after"]),
    ):
        row(what, f"{bytes_ / MIB:,.0f}", f"{bytes_ / fresh['before']:.2f}")
    row("the largest on the way", f"{worn['largest'] / MIB:,.0f}", f"{worn['largest'] / fresh['before']:.2f}")
    print(
        f"\nWrite amplification of the 50 rounds: {worn['amplification']:.2f}; vacuum took {worn['seconds']:.1f} s.\n",
        flush=True,
    )


def rounds(path: str, count: str) -> None:
    import vecdb
    from vecdb import Dense

    rng, largest = np.random.default_rng(1), 0
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(DIM, index="flat"))
        for _ in range(int(count)):
            for start in range(0, 100_000, 1000):
                docs.upsert(**batch(rng, range(start, start + 1000)))
            largest = max(largest, size_of(Path(path)))
        if int(count) == 1:
            docs.flush()
        before = size_of(Path(path))
        amplification = db.info().write_amplification
        started = time.perf_counter()
        if int(count) > 1:
            db.vacuum()
        seconds = time.perf_counter() - started
        assert docs.count() == 100_000
    print(json.dumps({
        "before": before, "after": size_of(Path(path)), "largest": largest, "seconds": seconds, "amplification": amplification,
    }))  # fmt: skip


# -- write amplification -----------------------------------------------------------------------------------


def load(work: Path, points: int) -> None:
    print(f"### Write amplification: {points:,} points x {DIM} f32 in batches of 1,000\n")
    figures = child("loading", work / "loaded", points)
    head("", "MiB", "x accepted")
    accepted = figures["accepted"]
    for what, key in (
        ("ids, vectors and payloads", "accepted"), ("written, as the engine counts", "counted"),
        ("written, as the kernel counts, when the last batch was acknowledged", "at the end"),
        ("and when merges had come to rest, without indexes", "at rest"),
    ):  # fmt: skip
        row(what, f"{figures[key] / MIB:,.0f}", f"{figures[key] / accepted:.2f}")
    print(
        f"\n{figures['segments']} segments at rest; {points / figures['seconds']:,.0f} points/s; {figures['merges']} merges took "
        f"{figures['merge seconds']:.0f} s, {figures['flushes']} flushes {figures['flush seconds']:.0f} s.\n",
        flush=True,
    )


def written_by_this_process() -> int:
    """Bytes that the kernel was told to write, page cache included."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("write_bytes"):
            return int(line.split()[1])
    return 0


def loading(path: str, points: str) -> None:
    import vecdb
    from vecdb import Dense

    rng = np.random.default_rng(2)
    with vecdb.open(path) as db:
        docs = db.create_collection("docs", Dense(DIM, index="flat"))
        before = written_by_this_process()
        started = time.perf_counter()
        for start in range(0, int(points), 1000):
            docs.upsert(**batch(rng, range(start, start + 1000)))
        seconds = time.perf_counter() - started
        at_end = written_by_this_process() - before
        settle(db)
        info = db.info()
        print(json.dumps({
            "accepted": info.bytes_accepted, "counted": info.bytes_written, "at the end": at_end,
            "at rest": written_by_this_process() - before, "segments": docs.info().segments, "seconds": seconds,
            "merges": info.merges, "merge seconds": info.merge_seconds, "flushes": info.flushes, "flush seconds": info.flush_seconds,
        }))  # fmt: skip


def settle(db: Any) -> None:
    """Waits until nothing is being merged for two seconds."""
    quiet = 0
    while quiet < 4:
        before = db.info()
        time.sleep(0.5)
        after = db.info()
        quiet = quiet + 1 if (before.merges, after.merging) == (after.merges, 0) else 0


# -- open after a crash ---------------------------------------------------------------------------------------


def crash(work: Path) -> None:
    print("### Open after a crash, with a log of 64 MiB that was not flushed\n")
    head("batches of", "rows in the log", "log, MiB", "open, s")
    for size in (10, 1000):
        path = work / f"crashed-{size}"
        figures = child("fill", path, size)
        times = [child("opened", path)["seconds"] for _ in range(3)]
        row(size, f"{figures['rows']:,}", f"{figures['bytes'] / MIB:.0f}", f"{sorted(times)[1]:.2f}")
    print(flush=True)


def fill(path: str, size: str) -> None:
    import vecdb_storage.flush as flush_module

    import vecdb
    from vecdb import Dense

    rng, written = np.random.default_rng(3), 0
    limit, flush_module.MEMTABLE_BYTES = flush_module.MEMTABLE_BYTES, 1 << 40
    db = vecdb.open(path)
    docs = db.create_collection("docs", Dense(DIM, index="flat"))
    while db.info().log_bytes < limit:
        for _ in range(max(1, 1000 // int(size))):
            docs.upsert(**batch(rng, range(written, written + int(size))))
            written += int(size)
    print(json.dumps({"rows": written, "bytes": db.info().log_bytes}), flush=True)
    os.kill(os.getpid(), 9)


def opened(path: str) -> None:
    import vecdb

    started = time.perf_counter()
    db = vecdb.open(path)
    seconds = time.perf_counter() - started
    assert db["docs"].count() > 0
    print(json.dumps({"seconds": seconds}), flush=True)
    os._exit(0)


# -- verify -------------------------------------------------------------------------------------------------


def verifying(work: Path) -> None:
    print("### `verify` beside plain reads of the same files\n")
    head("", "read, GiB/s", "verify, GiB/s", "ratio")
    for cold in (True, False):
        reads, verifies = [], []
        for _ in range(3):
            for times, part in ((reads, "reading"), (verifies, "verified")):
                if cold:
                    drop_cache(work / "loaded")
                figures = child(part, work / "loaded")
                times.append(figures["bytes"] / figures["seconds"] / (1 << 30))
        read, verified = sorted(reads)[1], sorted(verifies)[1]
        row("from the disk" if cold else "from the page cache", f"{read:.2f}", f"{verified:.2f}", f"{verified / read:.2f}")
    print(flush=True)


def drop_cache(path: Path) -> None:
    """The files leave the page cache, so that the next read comes from the disk."""
    for file in path.rglob("*"):
        if file.is_file():
            fd = os.open(file, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def reading(path: str) -> None:
    """As fast as plain reads go: 4 MiB at a time, one after the other."""
    started, length = time.perf_counter(), 0
    buffer = bytearray(4 * MIB)
    for file in sorted(Path(path).rglob("*")):
        if file.is_file():
            with file.open("rb", buffering=0) as opened_file:
                while count := opened_file.readinto(buffer):
                    length += count
    print(json.dumps({"bytes": length, "seconds": time.perf_counter() - started}))


def verified(path: str) -> None:
    import vecdb

    with vecdb.open(path, read_only=True) as db:
        started = time.perf_counter()
        report = db.verify()
        seconds = time.perf_counter() - started
        assert report.ok, report.damage
        print(json.dumps({"bytes": report.bytes, "seconds": seconds}))


# -- sustained load -------------------------------------------------------------------------------------------


RATE = 500  # points a second that are written under sustained load
CONTROL = 100  # searches after which the control is run
CENTRES = 2000


def clustered(rng: np.random.Generator, centres: np.ndarray, ids: Any) -> dict[str, Any]:
    """Points around centres, as embeddings lie, and not all over the space."""
    points = batch(rng, ids)
    points["vectors"] = centres[rng.integers(0, len(centres), len(ids))] + 0.5 * points["vectors"]
    return points


def sustained(work: Path, minutes: float) -> None:
    print(f"### {minutes:g} minutes of mixed load on 1,000,000 points x {DIM} f32 around {CENTRES:,} centres, HNSW\n")
    print(
        f"One thread writes {RATE} points a second in batches of 100: half of them overwrite, the others are new, and as many old ones are "
        "deleted. Another searches (k=10, recall 0.95, every other one with a filter that a tenth of the points pass). Quiet: the same "
        "searches before, and nothing else. The control: 20,000 numbers of the largest file, here and there, now and then between searches; "
        "it shows how the machine's own pace moves.\n"
    )
    figures = child("mixed", work / "mixed", minutes)
    head(
        "minute",
        "RssAnon, MiB",
        "search p50, ms",
        "search p99, ms",
        "the control, ms",
        "longest write, s",
        "points written a second",
        "segments",
        "dead",
    )
    quiet = figures["quiet"]
    row(
        "quiet",
        f"{quiet['rss'] / MIB:,.0f}",
        f"{quiet['p50'] * 1e3:.2f}",
        f"{quiet['p99'] * 1e3:.2f}",
        f"{quiet['control'] * 1e3:.2f}",
        "",
        "",
        "",
        "",
    )
    for at, each in enumerate(figures["minutes"]):
        row(
            at + 1, f"{each['rss'] / MIB:,.0f}", f"{each['p50'] * 1e3:.2f}", f"{each['p99'] * 1e3:.2f}", f"{each['control'] * 1e3:.2f}", f"{each['stall']:.2f}",
            f"{each['rate']:,.0f}", each["segments"], f"{each['dead']:,}",
        )  # fmt: skip
    half = figures["minutes"][len(figures["minutes"]) // 2 :]
    rss = [each["rss"] for each in half]
    print(
        f"\nLast half: RssAnon {min(rss) / MIB:,.0f} to {max(rss) / MIB:,.0f} MiB (± {(max(rss) - min(rss)) / (max(rss) + min(rss)):.0%}). "
        f"Over all: search p99 {figures['p99'] * 1e3:.2f} ms, {figures['p99'] / quiet['p99']:.1f} x quiet; longest write "
        f"{max(each['stall'] for each in figures['minutes']):.2f} s.\n",
        flush=True,
    )


def mixed(path: str, minutes: str, points: str = "1000000") -> None:
    import threading

    import vecdb
    from vecdb import Dense, F
    from vecdb.index import HNSW

    rng, rows = np.random.default_rng(4), int(points)
    db = vecdb.open(path)
    docs = db.create_collection("docs", Dense(DIM, index=HNSW()))
    db.pause_indexing()
    centres = rng.standard_normal((CENTRES, DIM), np.float32)
    for start in range(0, rows, 20_000):
        docs.upsert(**clustered(rng, centres, range(start, start + 20_000)))
    docs.flush()
    docs.merge()
    db.resume_indexing()
    docs.flush()
    queries = clustered(rng, centres, range(2000))["vectors"]
    tenth = F("score") < 1000 / 7 / 10

    largest = np.memmap(max(Path(path).rglob("*.seg"), key=lambda file: file.stat().st_size), np.uint32, "r")
    places = rng.integers(0, len(largest), 20_000)
    controls: list[float] = []

    def searches(until: float, into: list[float]) -> None:
        at = 0
        controls.clear()
        while time.monotonic() < until:
            started = time.perf_counter()
            docs.search(queries[at % len(queries)], k=10, recall=0.95, where=tenth if at % 2 else None)
            into.append(time.perf_counter() - started)
            at += 1
            if at % CONTROL == 0:
                started = time.perf_counter()
                largest[places].max()
                controls.append(time.perf_counter() - started)
            time.sleep(0.002)

    warm: list[float] = []
    searches(time.monotonic() + 3, warm)
    quiet: list[float] = []
    searches(time.monotonic() + 20, quiet)
    report: dict[str, Any] = {"quiet": {**percentiles(quiet), "control": median(controls), "rss": anonymous()}, "minutes": []}
    print(json.dumps(report), file=sys.stderr, flush=True)
    stop, written, longest = threading.Event(), [0], [0.0]

    def write() -> None:
        chance, newest, oldest = np.random.default_rng(5), rows, 0
        due = time.monotonic()
        while not stop.is_set():
            due = max(due + 100 / RATE, time.monotonic() - 1)
            started = time.perf_counter()
            if chance.random() < 0.5:
                docs.upsert(**clustered(chance, centres, np.unique(chance.integers(oldest, newest, 100))))
            else:
                docs.upsert(**clustered(chance, centres, range(newest, newest + 100)))
                newest += 100
                longest[0] = max(longest[0], time.perf_counter() - started)
                started = time.perf_counter()
                docs.delete(list(range(oldest, oldest + 100)))
                oldest += 100
            longest[0] = max(longest[0], time.perf_counter() - started)
            written[0] += 100
            time.sleep(max(0.0, due - time.monotonic()))

    writer = threading.Thread(target=write)
    writer.start()
    everything: list[float] = []
    for _ in range(round(float(minutes))):
        times: list[float] = []
        written[0], longest[0] = 0, 0.0
        searches(time.monotonic() + 60, times)
        everything += times
        info = docs.info()
        report["minutes"].append({
            **percentiles(times), "control": median(controls), "rss": anonymous(), "stall": longest[0], "rate": written[0] / 60, "segments": info.segments,
            "dead": info.dead,
        })  # fmt: skip
        print(json.dumps(report["minutes"][-1]), file=sys.stderr, flush=True)
    stop.set()
    writer.join()
    report |= percentiles(everything)
    print(json.dumps(report), flush=True)
    db.close()


def percentiles(times: list[float]) -> dict[str, float]:
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def anonymous() -> int:
    """Bytes of anonymous memory of this process that are in RAM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    {f.__name__: f for f in (rounds, loading, fill, opened, reading, verified, mixed)}[sys.argv[1]](*sys.argv[2:])
