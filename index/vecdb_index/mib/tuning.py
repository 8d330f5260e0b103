"""Which plan of a scan is the fastest on this machine, for codes of a width: measured, and kept with the compiled kernels.

The first build or merge of an index whose codes are more than caches hold measures it, in about a second, if there is memory;
`vecdb bench kernels` does so at any time, and prints what it saw. Until then, and where no file can be written, a plan serves
that is good on machines with AVX2. No plan changes an answer. Safe in any thread, and in several processes: the file is
replaced whole.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from llvmlite import binding

from ..codec.bits import BLOCK, TERMS
from ..codec.int4 import by_lines
from ..kernels.compile import cache_folder
from ..kernels.distances import read_only
from .scan import TOGETHER, Bits, Lists, Plan, scan

WORTH = 16 << 20  # bytes of codes that no cache holds: from there on a build measures
_TILES = (64 << 10, 128 << 10, 256 << 10, 512 << 10)
_AHEADS = (0, 2048, 4096, 8192)
_NARROW = 1536  # dimensions up to which four queries go together; beyond, their tables fill the nearest cache
_ALONE, _BATCH = 64 << 20, 8 << 20  # bytes of codes that are scanned, for one query and for several
MEMORY = 2 * (_ALONE + _BATCH)  # bytes that a measurement takes, at most
_QUERIES, _COUNT, _ROUNDS = 16, 100, 5
_SURELY = 0.97  # of the time of the usual plan, that another must take to replace it
_FILE = "plans.json"
_log = logging.getLogger("vecdb")
_lock = threading.Lock()
_known: dict[int, Plan] | None = None


@dataclass(frozen=True)
class Tried:
    """A plan, and how many rows a second it scanned, for each query; the other half of a plan made no difference to it."""

    queries: int
    plan: Plan
    rate: float


def usual(width: int) -> Plan:
    """What serves where nothing was measured."""
    return Plan(TOGETHER if width <= _NARROW else TOGETHER // 2, 128 << 10, 4096)


def plan_of(width: int, size: int = 1 << 62) -> Plan:
    """The plan for codes of so many bits, of which there are `size` bytes. Measures nothing."""
    plan = _plans().get(width) or usual(width)
    return plan if size >= WORTH else plan._replace(ahead=0)


def tuned(width: int) -> Plan:
    """The plan for codes of so many bits, which is measured if it was not before."""
    if width not in _plans():
        measure(width)
    return plan_of(width)


def measure(width: int) -> list[Tried]:
    """Tries all plans, and keeps the best. Takes MEMORY meanwhile."""
    rng, plan = np.random.default_rng(0), usual(width)
    tables = rng.integers(0, 15, (_QUERIES, width // 4, 16), dtype=np.uint8)
    terms = np.zeros((_QUERIES, TERMS))
    terms[:, 0] = 1
    alone, batch = _made(width, _ALONE), _made(width, _BATCH)
    plans = [plan._replace(ahead=ahead) for ahead in _AHEADS]
    found = _timed(1, plans, alone, tables, terms)
    best = plan._replace(ahead=_chosen(found, plan).ahead)
    plans = [Plan(together, tile, best.ahead) for together in (1, 2, TOGETHER) for tile in _TILES]
    together = _timed(_QUERIES, plans, batch, tables, terms)
    best = best._replace(**{name: getattr(_chosen(together, best), name) for name in ("together", "tile")})
    _keep(width, best)
    return found + together


def _made(width: int, size: int) -> Bits:
    blocks = max(1, size // (BLOCK * (width // 8 + 8)))
    codes = by_lines((blocks, width // 8 * BLOCK), np.uint8).reshape(blocks, width // 8, BLOCK)
    codes[:] = np.random.default_rng(1).integers(0, 256, codes.shape[1:], dtype=np.uint8)
    factors = np.ones((blocks, 2, BLOCK), np.float32)
    return Bits(read_only(codes), read_only(factors), blocks * BLOCK)


def _timed(queries: int, plans: list[Plan], bits: Bits, tables: np.ndarray, terms: np.ndarray) -> list[Tried]:
    """Each plan in turn, several times over; the least time counts, since what disturbs only adds."""
    least, words = [np.inf] * len(plans), read_only(np.zeros(0, np.uint64))
    for _ in range(_ROUNDS):
        for i, plan in enumerate(plans):
            lists = Lists.of(queries, _COUNT)
            started = time.perf_counter()
            scan(tables[:queries], terms[:queries], *bits, words, 0, len(bits.codes), plan, *lists)
            least[i] = min(least[i], time.perf_counter() - started)
    return [Tried(queries, plan, queries * bits.n / seconds) for plan, seconds in zip(plans, least, strict=True)]


def _chosen(tried: list[Tried], before: Plan) -> Plan:
    """The fastest, unless the plan that there was is about as fast."""
    known = next(each.rate for each in tried if each.plan == before)
    best = max(tried, key=lambda each: each.rate)
    return best.plan if known < _SURELY * best.rate else before


def _plans() -> dict[int, Plan]:
    global _known
    if _known is not None:
        return _known
    with _lock:
        if _known is None:
            _known = _read()
        return _known


def _path() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / _FILE


def _read() -> dict[int, Plan]:
    """What was measured on this kind of processor; nothing of a file that is none."""
    path = _path()
    try:
        said = {} if path is None else json.loads(path.read_bytes())[binding.get_host_cpu_name()]
        plans = {int(width): Plan(*map(int, numbers)) for width, numbers in said.items()}
        return {width: plan for width, plan in plans.items() if _possible(plan)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _possible(plan: Plan) -> bool:
    return plan.together in (1, 2, TOGETHER) and 0 < plan.tile < 1 << 40 and 0 <= plan.ahead < 1 << 20


def _keep(width: int, plan: Plan) -> None:
    """For this process, and for others where a file can be written. Of two that write at once the last one's is kept."""
    known = _plans()
    with _lock:
        known[width] = plan
        if (path := _path()) is None:
            return
        try:
            try:
                all_ = json.loads(path.read_bytes())
            except (OSError, ValueError):
                all_ = {}
            all_ = all_ if isinstance(all_, dict) else {}
            all_[binding.get_host_cpu_name()] = {str(each): list(mine) for each, mine in known.items()}
            handle, name = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(handle, "w") as file:
                json.dump(all_, file)
            os.replace(name, path)
        except OSError as error:
            _log.info("the fastest plan of a scan is measured again by the next process: %s", error)
