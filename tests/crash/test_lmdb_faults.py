"""The system's calls fail under LMDB and under the engine alike: errors are typed, nothing acknowledged is lost, the store goes on.

A child process runs the workload. strace lets the n-th call of a kind fail in it, or the kernel refuses files above some
length (RLIMIT_FSIZE). The child checks itself after each step, and journals what it begins and what was acknowledged; its
parent opens what it leaves behind.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from vecdb_storage.registry import open_store
from workload import Model, check_backup, check_whole, steps

CALLS = ("fdatasync", "fsync", "msync", "pwrite64", "pwritev", "pwritev2", "fallocate", "ftruncate")
# Of LMDB, for which a write that is cut short has failed. strace only claims that 100 bytes were written, and the engine's own
# writes (pwritev2) go on after them, as they must; `test_faults` cuts those short.
WRITES = ("pwrite64", "pwritev")
SHARES = 8
Injection = tuple[str, str, int]  # call, what becomes of it, which one

CHILD = """
import json, os, resource, signal, sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import pytest
from vecdb_storage.errors import VecdbError
from vecdb_storage.files import Files
from workload import Subject, settle, steps

folder, limit = Path(sys.argv[2]), int(sys.argv[3])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = os.open(folder / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(**entry):
    os.write(journal, json.dumps(entry).encode() + b"\\n")

def limited(act):
    "The same act, for which files may not become longer than `limit` when it is tried first."
    tried = False
    def acting(subject):
        nonlocal tried
        failed = None
        if limit and not tried:
            tried = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            return act(subject)
        except VecdbError as error:
            failed = type(error).__name__
            raise
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if failed:
                note(error=failed)
    return acting

subject, model = Subject(folder / "db", Files(), pytest.MonkeyPatch()), {}
for number, step in enumerate(steps(folder / "outside")):
    note(begins=number)
    model = settle(subject, replace(step, act=limited(step.act)), model, 2)
    note(done=number)
subject.close()
note(finished=True)
"""


def run_child(folder: Path, *, before: Sequence[str] = (), limit: int = 0) -> list[dict[str, object]]:
    """The child's journal; and the database that it left is checked."""
    (folder / "outside").mkdir(parents=True)
    child = subprocess.run(
        [*before, sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder), str(limit)],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    journal = [json.loads(line) for line in (folder / "journal").read_text().splitlines()]
    assert journal[-1] == {"finished": True}, child.stderr[-3000:]
    models: list[Model] = [{}]
    for step in steps(folder / "outside"):
        models.append(step.after(models[-1]))
        if step.backup is not None:
            check_backup(step.backup, step.backup.with_name(f"restored-{len(models)}"), models[-1])
    store = open_store(folder / "db")
    check_whole(store, [models[-1]])
    store.release()
    shutil.rmtree(folder)
    return journal


# -- strace ----------------------------------------------------------------------------------------------


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed: calls of LMDB cannot be made to fail")
    probe = subprocess.run(
        [found, "-f", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", "true"], capture_output=True
    )
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.decode(errors='replace').strip()}")
    return found


def injections(strace: str, scratch: Path) -> tuple[list[Injection], list[int]]:
    """Every call that the workload reaches, with each thing that may become of it. strace counts in each thread for itself.

    Also: which pwrite64 of the main thread write a meta page.
    """
    log = scratch / "calls"
    run_child(scratch / "well", before=[strace, "-f", "-qq", "-e", f"trace={','.join(CALLS)}", "-o", str(log)])
    counts = Counter(re.findall(rf"^(\d+) +({'|'.join(CALLS)})\(", log.read_text(), re.MULTILINE))
    reached = {call: max((n for (_, name), n in counts.items() if name == call), default=0) for call in CALLS}
    every = [
        (call, outcome, number)
        for call, most in reached.items()
        for outcome in ("error=EIO", "error=ENOSPC", *(["retval=100"] if call in WRITES else []))
        for number in range(1, most + 1)
    ]
    # Those that write a meta page: short, and near the beginning of the file. LMDB wants to be opened again when one fails.
    writes = re.findall(r"^(\d+) +pwrite64\(\d+, .*, (\d+), (\d+)\) += ", log.read_text(), re.MULTILINE)
    first = writes[0][0]
    own = [int(length) < 4096 and int(offset) < 8192 for thread, length, offset in writes if thread == first]
    metas = [number for number, meta in enumerate(own, 1) if meta]
    return every, metas


def inject(strace: str, scratch: Path, chosen: Iterable[Injection]) -> None:
    for call, outcome, number in chosen:
        rule = f"inject={call}:{outcome}:when={number}"
        try:
            run_child(scratch / "ill", before=[strace, "-f", "-qq", "-e", f"trace={call}", "-e", rule, "-o", "/dev/null"])
        except BaseException as error:
            error.add_note(rule)
            raise


def test_a_failed_call_under_lmdb_loses_nothing(strace: str, scratch: Path, counted: Any) -> None:
    every, metas = injections(strace, scratch)
    middle = metas[len(metas) // 2]
    chosen = [each for each in every if each[0] == "pwrite64" and each[2] in (middle - 1, middle)]
    inject(strace, scratch, [*chosen, *random.Random(3).sample(every, 4)])
    counted("system calls that failed under LMDB", len(chosen) + 4)


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_failed_calls_under_lmdb_lose_nothing(strace: str, scratch: Path, counted: Any, share: int) -> None:
    every, _ = injections(strace, scratch)
    assert len(every) >= 400
    inject(strace, scratch, every[share::SHARES])
    counted("system calls that failed under LMDB", len(every[share::SHARES]))


# -- a limit on the length of files ----------------------------------------------------------------------


def refused(scratch: Path, limits: Iterable[int]) -> int:
    """How many steps failed."""
    return sum("error" in entry for limit in limits for entry in run_child(scratch / str(limit), limit=limit))


def test_a_limit_on_the_length_of_files_loses_nothing(scratch: Path, counted: Any) -> None:
    steps = refused(scratch, [700, 300_000, 1_100_000])
    assert steps > 10
    counted("steps that a limit on the length of files refused", steps)


@pytest.mark.slow
def test_limits_on_the_length_of_files_lose_nothing(scratch: Path, counted: Any) -> None:
    limits = [*range(64, 4096, 331), *range(4096, 40_000, 1777), *range(40_000, 4_000_000, 97_777)]
    steps = refused(scratch, limits)
    assert steps > 500
    counted("steps that a limit on the length of files refused", steps)
