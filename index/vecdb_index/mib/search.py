"""Searches the bits of one segment, then its rows.

Every allowed row is estimated from its bits (`scan`); the rows of the best estimates, the *short list*, are compared
themselves, in their order in the segment, by the kernel of all keys. The list goes by a *margin*: estimates may be so much
below that of the k-th best, in what errors go by (|q'|), and there are 4 C of them at most. The margin is what makes lists C
long on the mean, measured when the index was built (`Decline`): a query whose neighbours are close together has a longer list
than one whose neighbours stand out, and among few allowed rows, where estimates are further apart, it is shorter. Where a
dimension has more bits than one, the list is cut first, by the estimates of all of them (`codec.planes.refine`): to k (C /
k)^g, with the power g that made the lists of both stages as good as each other when the index was built. `effort` says how long
a list is, C, on a logarithmic scale from k to a fourth of the rows; at 1 the search is the exact one, and wherever that is the
quicker one. Where no more rows are allowed than a list would hold, they are searched exactly, which is the same answer. There
is no chance in it: the same rows come for any batch, thread or division of the work. So single queries of several threads go
together: those that find as many searches under way as there are cores wait for the next pass over the codes, and share it
(`coalesce`). And a search of few queries divides the codes among the threads of a crew, each with lists of its own, which are
shortened as one.

A MIBSearcher is safe in any thread: it holds views only, and a search its own lists (8 bytes for each of two short lists).
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..coalesce import Coalescer, Shared
from ..codec.bits import BLOCK, LENGTH, entropies, report, unpacked
from ..codec.planes import refine
from ..contract import Arrays, Bitmap, Control, Hits, Keys, Rows
from ..cores import usable
from ..crew import Crew
from ..flat.search import FlatSearcher
from ..kernels.bitmap import ALL, ones
from ..kernels.distances import METRICS, read_only
from .gate import LATER, NEAREST, RECALLS, Verdict, best_of, verdict_of
from .layout import LISTS, TRIED, entropy_in, measured_in, more_bits_in, opened
from .margin import MOST, Decline
from .params import MIB
from .scan import Lists, filled, rank, scan, shorten
from .scores import checked
from .tuning import plan_of

_SHARE = 0.25  # of the rows: the longest short list
_UNKNOWN, _LEAST_POWER, _SPARE = 0.5, 0.1, 1.2  # see `_power`: of few rows; at least; times what was measured
STREAMED = 4  # queries up to which the codes come at the speed of memory
_TILE = 64  # queries that pass over the codes together
_DIVIDED = 16  # queries of fewer than which a crew divides the codes
_WORTH = 500e-6  # seconds of a scan for which another thread is worth waking: each has lists of its own to fill
_RANGES = 4  # of codes to a thread, so that those who begin late leave some to others
_POLL = 1 << 22  # rows times queries between two looks at the deadline
_LOOKED_AT, _PAIRS = 1024, 2000  # rows whose bits are looked at for `figures`, and pairs of them
_ENTROPIES = (0.5, 0.9, 0.99, 1.0)  # of bits, that are counted apart


@dataclass(frozen=True)
class ShortLists:
    """How long the lists of n rows with codes of so many bits are, and what they take, wherever these rows lie.

    width: D. row_bytes: of a vector as stored. depth: bits a dimension. power: see `_power`. rest: share of rows that are not
    held out.
    """

    n: int
    width: int
    row_bytes: int
    depth: int
    power: float
    decline: Decline
    rest: float = 1.0

    @property
    def block_bytes(self) -> int:
        """Of the codes and factors of a block."""
        return BLOCK * (self.width // 8 + 8)

    @property
    def plane_bytes(self) -> int:
        """Of a row's further bits and their scale."""
        return self.depth * self.width // 8 + 4 if self.depth > 1 else 0

    def listed(self, k: int, effort: float) -> int:
        """How many rows are in a short list, on the mean, if so many are allowed."""
        return max(k, round(self.rest * k * (max(k, self.n * _SHARE) / max(1, k)) ** min(1.0, max(0.0, effort))))

    def empty(self, k: int, short: int, lengths: npt.NDArray[np.float64]) -> Lists:
        """Lists that will be `short` rows long, on the mean. lengths: |q'| of their queries."""
        near = max(k, NEAREST)
        margin = self.decline.between(near, short)
        if margin is None:
            return Lists.of(len(lengths), short)
        return Lists.of(len(lengths), self.most(short), near, (margin * lengths).astype(np.float32))

    def most(self, short: int) -> int:
        """How many rows are in a list, at most, if there are that many."""
        return short if self.decline.between(NEAREST, short) is None else min(MOST * short, max(short, self.n))

    def compared(self, k: int, short: int) -> int:
        """How many rows of such a list are compared themselves, at most where a dimension has several bits, else on the
        mean.
        """
        return short if self.depth == 1 else min(short, max(k, math.ceil(k * (short / max(1, k)) ** self.power)))

    def cost(self, k: int, short: int, selectivity: float, queries: int, spread: float = 1.0) -> float:
        """Seconds of a query, about."""
        blocks = self.n / BLOCK * (1 - (1 - min(1.0, selectivity)) ** BLOCK) * spread
        last = self.compared(k, short)
        between = short * (30e-9 + self.plane_bytes / 3e9) if last < short else 0.0
        return 25e-6 + blocks * self.block_cost(queries) + between + last * (90e-9 + self.row_bytes / 12e9)

    def block_cost(self, queries: int) -> float:
        """Seconds of a block, for each query."""
        return self.block_bytes / (16e9 if queries <= STREAMED else 30e9) + 10e-9

    def pays(self, exact: FlatSearcher, k: int, short: int) -> bool:
        """Whether bits save time. It must not depend on what else is asked: answers would. exact: of these rows; costs alone
        are asked of it.
        """
        return self.cost(k, short, 1.0, 1) < exact.cost(k, 1.0, 1.0)


class MIBSearcher:
    def __init__(self, arrays: Arrays, trained: Arrays, rows: Rows, params: MIB, held: int = 0) -> None:
        """held: rows that are left out while recall is measured. Short lists are shorter by their share then: among all rows
        so many more lie before those that are sought. Raises Damaged.
        """
        self.rows = rows
        self.encoder, self.bits = opened(arrays, trained, rows)
        self.depth, self._planes, self._scales = more_bits_in(arrays, rows, self.encoder)
        self._trial, self.gate = measured_in(arrays, trained)
        self._entropy, _ = entropy_in(arrays, trained)
        self.likelihood = checked(arrays["likelihood"])
        self.exact = FlatSearcher(rows)
        self._metric = METRICS[rows.metric]
        bits = rows.vectors.view(np.uint16) if rows.vectors.dtype == np.float16 else rows.vectors
        self._vectors, self._norms = read_only(bits), read_only(rows.norms)
        self._row_bytes = rows.vectors[:1].nbytes
        self._count = len(rows) if rows.present is None else ones(rows.present)
        self.verdict = self._verdict(self.depth)
        self.lists = ShortLists(
            len(rows), self.encoder.width, self._row_bytes, self.depth, _power(self.verdict), Decline.of(arrays["decline"]),
            self._count / (self._count + held) if held else 1.0,
        )  # fmt: skip
        self._company: Coalescer[_Asked, Hits] = Coalescer(usable())
        self._crew: Crew | None = None
        self.advice = "" if self.verdict is None else self.verdict.advice(self._better())

    def over(self, crew: Crew) -> MIBSearcher:
        """See contract.Searcher."""
        mine = copy.copy(self)
        mine._crew = crew
        return mine

    @property
    def planes(self) -> npt.NDArray[np.uint8]:
        """All bits of rows; see `layout`."""
        return self._planes

    @property
    def scales(self) -> npt.NDArray[np.float32]:
        """Of `planes`."""
        return self._scales

    def _verdict(self, depth: int) -> Verdict | None:
        return verdict_of(self.gate, depth, self._count, self.encoder.width, self.rows.vectors.shape[1], self._row_bytes)

    def _better(self) -> int | None:
        """How many bits a dimension would do, if others would."""
        best = best_of(self._verdict(depth) for depth in self.gate)
        return None if best is None or best.says != "ok" else best.bits

    @cached_property
    def figures(self) -> dict[str, float]:
        """See contract.Searcher. Found when they are first asked for: searches do without."""
        found = {
            f"rotation: {self.encoder.rotation}": 1.0,
            "bytes a row": self.lists.block_bytes / BLOCK + self.lists.plane_bytes,
        }
        found["bits of a dimension"] = self.depth
        for name, shares in zip(TRIED, self._trial, strict=False):
            if shares[0] >= 0:
                found[f"found in {LISTS[3]} by {name}"] = float(shares[3])
        found |= self._said_by_bits()
        if (verdict := self.verdict) is not None:
            for recall, short, later in zip(RECALLS, verdict.lists, verdict.later, strict=True):
                found[f"short list for {recall}"] = short
                found[f"short list for {recall} of {LATER} times the rows"] = later
            if self.depth > 1:
                found[f"rows that the first bits let through for {RECALLS[-1]}"] = verdict.passed[-1]
            found[f"bytes read for {RECALLS[-1]}"], found["bytes of an exact search of int8"] = verdict.read[-1], verdict.exact
        return found

    def _said_by_bits(self) -> dict[str, float]:
        """Of rows from all over the segment, whole blocks of them."""
        blocks = len(self.bits.codes)
        step = max(1, -(-blocks * BLOCK // _LOOKED_AT))
        some = np.arange(0, blocks, step)
        rows = (some[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
        bits = unpacked(self.bits.codes[some], len(rows))[(rows < len(self.rows)) & self._has(rows)]
        if len(bits) < 2:
            return {}
        bits = bits[:, : self.encoder.dimensions]
        said, each = report(bits, pairs=_PAIRS), entropies(bits)
        edges = [-1.0, *_ENTROPIES]
        among = {
            f"share of bits of entropy {max(low, 0):g} to {high:g}": float(((each > low) & (each <= high + 1e-9)).mean())
            for low, high in itertools.pairwise(edges)
        }
        return {
            "entropy of a bit": said.entropy,
            "entropy of a bit, least": said.least,
            "entropy of a bit, of the rows that the encoder knew": self._entropy,
            **among,
            "correlation of bits": said.correlation,
            "effective bits": said.effective,
        }

    def _has(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of them have a vector."""
        if self.rows.present is None:
            return np.ones(len(rows), np.bool_)
        inside = np.minimum(rows, len(self.rows) - 1)
        return (self.rows.present[inside // 64] >> (inside % 64).astype(np.uint64) & np.uint64(1)).astype(np.bool_)

    def listed(self, k: int, effort: float) -> int:
        """How many rows are in a short list, on the mean, if so many are allowed."""
        return self.lists.listed(k, effort)

    def compared(self, k: int, short: int) -> int:
        """See ShortLists."""
        return self.lists.compared(k, short)

    def search(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        effort: float = 1.0,
        allowed: Bitmap | None = None,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """See contract.Searcher."""
        m = len(queries)
        words, count = self._words(allowed)
        short = self.listed(k, effort)
        if effort >= 1 or count <= short or not (m and k and self._pays(k, short)):
            return self.exact.search(queries, k, 1.0, allowed, floor, control)
        if len(queries) > 1:
            return self.look(queries, k, short, words, floor, control)
        return self._in_company(queries, k, short, allowed, words, floor, control)

    def _in_company(
        self, query: npt.NDArray[np.float32], k: int, short: int, allowed: Bitmap | None, words: Bitmap, floor: Keys | None,
        control: Control | None,
    ) -> Hits:  # fmt: skip
        """A single query shares its pass over the codes with those of other threads."""
        mine = _Asked(query, filled(1, -np.inf) if floor is None else floor, control)

        def run(together: list[_Asked]) -> list[Hits]:
            if len(together) == 1:
                return [self.look(query, k, short, words, floor, control)]
            controls = [each.control for each in together]
            shared = None if None in controls else Shared([each for each in controls if each is not None])
            queries = np.concatenate([each.query for each in together])
            floors = np.concatenate([each.floor for each in together])
            return _apart(self.look(queries, k, short, words, floors, shared))

        # Whoever waits holds on to its bitmap, so no other has its number meanwhile.
        same = k, short, None if allowed is None else id(allowed)
        found = self._company.search(same, mine, None if control is None else control.deadline, run)
        if control is not None:
            control.poll()
        return found

    def look(
        self,
        queries: npt.NDArray[np.float32],
        k: int,
        short: int,
        words: Bitmap = ALL,
        floor: Keys | None = None,
        control: Control | None = None,
    ) -> Hits:
        """Searches by the bits, with short lists of so many rows on the mean, k or more. words: of allowed rows, which all have
        vectors.
        """
        m = len(queries)
        keys, rows = np.empty((m, k), np.float32), np.empty((m, k), np.int64)
        sizes, dropped, tied = np.zeros(m, np.int64), filled(m, np.nan), np.empty(m, np.bool_)
        lowest = read_only(filled(m, -np.inf) if floor is None else floor)
        last = self.compared(k, short)
        done = _Done()
        for start in range(0, m, _TILE):
            some = slice(start, min(m, start + _TILE))
            heaps = keys[some], rows[some], sizes[some], dropped[some], lowest[some], tied[some]
            self._tile(queries[some], k, short, last, words, heaps, control, done)
        coded = done.blocks * self.lists.block_bytes + done.passed * self.lists.plane_bytes
        seen = {"rows in short lists": done.compared, "bytes of codes": coded}
        if last < short:
            seen["rows looked at by all bits"] = done.passed
        read, bound = done.compared * self._row_bytes, done.bound if m == 1 and done.bound > -np.inf else None
        among = m * self._among(words)
        return Hits(keys, rows, sizes.astype(np.int32), tied, among, coded + read, seen, done.spent, bound)

    def _tile(
        self, queries: npt.NDArray[np.float32], k: int, short: int, last: int, words: Bitmap, heaps: tuple[Any, ...],
        control: Control | None, done: _Done,
    ) -> None:  # fmt: skip
        """Fills the heaps of some queries, and settles them. done: this is added."""
        started = time.perf_counter()
        ready, tables, terms, turned = self.encoder.ask(queries)
        asked = time.perf_counter()
        lists, read = self._scanned(tables, terms, k, short, words, control)
        if control is not None:
            control.poll()
        scanned = shortened = time.perf_counter()
        if last < short:
            shorten(*lists)
            done.passed += refine(turned, terms, self._planes, self._scales, self.bits.factors, last, *lists[:2])
            lists, shortened = lists.as_they_are(), time.perf_counter()
        done.blocks += read
        done.compared += rank(ready, self._vectors, self._norms, self._metric, *lists, *heaps)
        done.bound = float(lists.least[0]) * float(terms[0, 3]) + float(terms[0, 4])
        done.took("tables", asked - started)
        done.took("scan", scanned - asked)
        if last < short:
            done.took("all bits", shortened - scanned)
        done.took("rows", time.perf_counter() - shortened)

    def _scanned(
        self, tables: npt.NDArray[np.uint8], terms: npt.NDArray[np.float64], k: int, short: int, words: Bitmap,
        control: Control | None,
    ) -> tuple[Lists, int]:  # fmt: skip
        """Lists of some queries to which all rows were offered, and how many blocks were read."""
        m, blocks = len(tables), len(self.bits.codes)
        plan, lengths = plan_of(self.encoder.width, self.bits.codes.nbytes), terms[:, LENGTH]
        step = blocks if control is None else max(64, _POLL // (m * BLOCK))
        threads = 1
        if self._crew is not None and m < _DIVIDED:
            threads = self._crew.pieces(m * blocks * self.lists.block_cost(m), _WORTH)
        if threads > 1:
            step = min(step, -(-blocks // (_RANGES * threads)))
        ranges, parts = iter(range(0, blocks, step)), list[tuple[Lists, int]]()

        def offer() -> None:
            lists, read = self.lists.empty(k, short, lengths), 0
            for first in ranges:
                if control is not None:
                    control.poll()
                read += scan(tables, terms, *self.bits, words, first, min(blocks, first + step), plan, *lists)
            parts.append((lists, read))

        if threads > 1 and self._crew is not None:
            self._crew.run(offer, threads)
        else:
            offer()
        return Lists.together([lists for lists, _ in parts]), sum(read for _, read in parts)

    def rows_at(self, query: npt.NDArray[np.float32], key: float, allowed: Bitmap | None = None) -> npt.NDArray[np.int64]:
        """See FlatSearcher."""
        return self.exact.rows_at(query, key, allowed)

    def cost(self, k: int, effort: float, selectivity: float, queries: int = 1, spread: float = 1.0) -> float:
        """By the blocks in which a row is allowed, and the rows of the short list."""
        short = self.listed(k, effort)
        if effort >= 1 or selectivity * len(self.rows) <= short or not self._pays(k, short):
            return self.exact.cost(k, 1.0, selectivity, queries)
        return self.lists.cost(k, short, selectivity, queries, spread)

    def spread(self, allowed: Bitmap) -> float:
        """By the pairs of blocks in which a row is allowed, beside how many these were if rows lay anywhere."""
        among = ones(allowed) / max(1, len(self.rows))
        anywhere = 1 - (1 - min(1.0, among)) ** (2 * BLOCK)
        return min(1.0, np.count_nonzero(allowed) / max(1, len(allowed)) / anywhere) if anywhere > 0 else 1.0

    def _pays(self, k: int, short: int) -> bool:
        return self.lists.pays(self.exact, k, short)

    def _among(self, words: Bitmap) -> int:
        """How many rows a bitmap has."""
        return ones(words) if len(words) else len(self.rows)

    def _words(self, allowed: Bitmap | None) -> tuple[Bitmap, int]:
        """The bitmap that kernels go by, and how many rows it has."""
        present = self.rows.present
        if allowed is None:
            return (ALL if present is None else read_only(present)), self._count
        both = read_only(allowed if present is None else allowed & present)
        return both, self._among(both)


class _Done:
    """What was done for some queries. blocks: read, for those together that pass together. passed: rows looked at by all their
    bits. compared: rows of short lists. bound: what rows must be estimated above, by the first query. spent: seconds by stage.
    """

    __slots__ = ("blocks", "bound", "compared", "passed", "spent")

    def __init__(self) -> None:
        self.blocks = self.passed = self.compared = 0
        self.bound = -math.inf
        self.spent: dict[str, float] = {}

    def took(self, stage: str, seconds: float) -> None:
        self.spent[stage] = self.spent.get(stage, 0.0) + seconds


class _Asked(NamedTuple):
    """A query, (1, d), its floor, (1,), and what stops it."""

    query: npt.NDArray[np.float32]
    floor: Keys
    control: Control | None


def _apart(hits: Hits) -> list[Hits]:
    """The hits of each query. What was read for all is told of in equal shares."""
    m = len(hits.keys)
    scored, bytes_, seen = hits.scored // m, hits.bytes // m, {name: count // m for name, count in hits.seen.items()}
    spent, one = {stage: seconds / m for stage, seconds in hits.spent.items()}, [slice(q, q + 1) for q in range(m)]
    return [Hits(hits.keys[q], hits.rows[q], hits.lengths[q], hits.tied[q], scored, bytes_, seen, spent) for q in one]


def _power(verdict: Verdict | None) -> float:
    """Of the length of a list, by which the rows grow that are compared themselves. See the module."""
    if verdict is None:
        return _UNKNOWN
    passed, last = max(2.0, verdict.passed[-1] / NEAREST), max(1.0, verdict.lists[-1] / NEAREST)
    return min(1.0, max(_LEAST_POWER, math.log(_SPARE * last) / math.log(passed)))
