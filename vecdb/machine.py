"""What this machine is: measured in a second or two, with a remark wherever something makes it slow; and kernels made ready.

Plain functions; safe in any thread.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vecdb_index import cores

_SYNCS = 15
_BYTES = 128 << 20  # written to measure the disk
_SLOW_SYNC = 0.02  # seconds
_FREE = 0.1  # of the disk, below which a remark is due


@dataclass(frozen=True)
class Fact:
    name: str
    value: Any


@dataclass
class Examination:
    """facts: what was found, in the order to be shown. remarks: what is slow or in the way, and what to do about it."""

    facts: list[Fact] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def warmup() -> None:
    """Compiles every kernel that is not compiled yet, so that no search has to wait for it."""
    from vecdb_index.warmup import warmup as compile_all

    compile_all()


def examine(database: str | None = None) -> Examination:
    """Looks at the machine, and at the disk of a database, or of the folder for temporary files. Leaves nothing there."""
    found = Examination()
    _processor(found)
    _compiler(found)
    _memory(found)
    _disk(found, database)
    _files(found)
    return found


def _processor(found: Examination) -> None:
    usable, all_cores = cores.usable(), os.cpu_count() or 1
    found.facts += [
        Fact("vecdb", _version()),
        Fact("python", platform.python_version()),
        Fact("system", f"{platform.system()} {platform.release()}"),
        Fact("processor", _model()),
        Fact("cores", f"{usable} of {all_cores} may be used" if usable < all_cores else all_cores),
    ]
    import llvmlite.binding as llvm

    features = {name for name, there in dict(llvm.get_host_cpu_features()).items() if there}
    wide = [name for name in ("avx512f", "avx512vnni", "avx2", "fma", "f16c", "neon", "dotprod") if name in features]
    found.facts.append(Fact("instructions", ", ".join(wide) or "none that are wide"))
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in features:
        found.remarks.append("this processor has no AVX2, for which the kernels are made: searches take several times as long")
    quota = _quota()
    if quota is not None:
        found.facts.append(Fact("CPU quota", f"{quota:.2g} cores"))
        if quota < usable:
            found.remarks.append(
                f"this container may use {quota:.2g} cores, but {usable} are seen: open with threads={max(1, int(quota))}"
            )
    load = os.getloadavg()[0]
    found.facts.append(Fact("load", f"{load:.1f}"))
    if load > 1.5 * usable:
        found.remarks.append(f"the machine is busy (load {load:.1f} on {usable} cores): what is measured here is too slow")


def _version() -> str:
    from . import __version__

    return __version__


def _model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _quota() -> float | None:
    """Cores that a container may use, by its cgroup."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


def _compiler(found: Examination) -> None:
    from vecdb_index.kernels.compile import cache_folder

    folder = cache_folder()
    if folder is None:
        found.facts.append(Fact("kernel cache", "none"))
        found.remarks.append(
            "no folder for compiled kernels can be written, so each process compiles them: set VECDB_CACHE_DIR to one that can"
        )
        return
    files = list(folder.rglob("*.nbi"))
    found.facts.append(Fact("kernel cache", f"{folder}, {len(files)} kernels"))
    if not files:
        found.remarks.append("kernels are not compiled yet; `vecdb warmup` does it, and else the first search")


def _memory(found: Examination) -> None:
    from .memory import available

    free = available()
    found.facts.append(Fact("memory", f"{free / 2**30:.1f} GiB are free"))
    if free < 1 << 30:
        found.remarks.append(f"only {free / 2**20:,.0f} MiB of memory are free: index builds may be refused; see memory_limit=")


def _disk(found: Examination, database: str | None) -> None:
    place = Path(database if database and os.path.isdir(database) else tempfile.gettempdir())
    usage = shutil.disk_usage(place)
    found.facts.append(Fact("disk", f"{place}: {usage.free / 2**30:,.1f} of {usage.total / 2**30:,.1f} GiB are free"))
    if usage.free < _FREE * usage.total:
        found.remarks.append(f"the disk of {place} is nearly full; merges and vacuum need room for copies")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            sync, rate = _syncs(file), _write_rate(file)
    except OSError as error:
        found.remarks.append(f"{place} cannot be written: {error.strerror}")
        return
    found.facts += [Fact("sync of 4 KiB", f"{1e3 * sync:.2f} ms"), Fact("writing with sync", f"{rate / 1e6:,.0f} MB/s")]
    if sync > _SLOW_SYNC:
        found.remarks.append(
            f"a sync takes {1e3 * sync:.0f} ms: single writes are that slow; write many points in a call, or from many threads"
        )


def _syncs(file: Any) -> float:
    times = []
    for _ in range(_SYNCS):
        began = time.perf_counter()
        os.pwrite(file.fileno(), os.urandom(4096), 0)
        os.fsync(file.fileno())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _write_rate(file: Any) -> float:
    block, began = os.urandom(8 << 20), time.perf_counter()
    for at in range(0, _BYTES, len(block)):
        os.pwrite(file.fileno(), block, at)
    os.fsync(file.fileno())
    return _BYTES / (time.perf_counter() - began)


def _files(found: Examination) -> None:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found.facts.append(Fact("open files", f"at most {soft:,}"))
    if soft < 256:
        found.remarks.append(f"only {soft} files may be open at once: `ulimit -n 1024`")
    try:
        most = int(Path("/proc/sys/vm/max_map_count").read_text())
        found.facts.append(Fact("mapped files", f"at most {most:,}"))
        if most < 65_530:
            found.remarks.append(
                f"only {most:,} mappings are allowed, and each segment is one: `sysctl vm.max_map_count=262144`"
            )
    except (OSError, ValueError):
        pass
