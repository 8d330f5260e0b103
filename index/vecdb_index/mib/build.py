"""Builds an index of bits: an encoder, learned from a sample, then the codes of all rows, in blocks that threads share.

Which rotation serves a field best is measured, not believed: rows that are held out are queries against a sample of the others,
and what share of their ten nearest are among the best estimates is told by `trial` (see `layout`). The cheapest rotation is
kept whose short lists for 0.9, 0.95 and 0.99 of them are at most a twentieth longer than the shortest. From the same queries,
`gate` tells whether bits serve at all, and how many of a dimension it takes. An encoder of the field's other rows is kept where
bits say as much of these rows as of those: then merges copy codes.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from ..codec import planes as more
from ..codec.bits import BLOCK, TERMS, Encoder, copy_rows, entropies, unpacked, width_of
from ..contract import Arrays, Budget, NeedsMemory, Part, Progress, Rows, Trial
from ..flat.search import FlatSearcher
from ..kernels.bitmap import ones
from ..kernels.distances import read_only
from ..kernels.select import MAX_ROWS, read
from .gate import KNOWN, NEAREST, PARTS, RECALLS, Gate, Verdict, best_of, measured, verdict_of
from .layout import LISTS, TRIED, entropy_in, more_bits_in, opened
from .params import MIB
from .sample import evenly
from .scan import Bits, Lists, scan, shorten
from .scores import fitted, fitting
from .search import MIBSearcher
from .tuning import MEMORY, WORTH, plan_of, tuned

_LEARNED, _LEARNED_BYTES = 16_384, 32 << 20  # rows that an encoder is learned from, and their bytes as float32, at most
_LEAST_TRIED = 2000  # rows; of fewer no rotation is the better one for sure
_PROBES, _MOST_PROBES = 200, 512  # queries of the gate, and of a trial, whose lists are shorter
_LOOKED_AT = 2000  # rows for the entropy of bits
_LONGEST = 1000  # rows of a short list in a trial
_LISTED = 4  # a short list may be such a part of a sample; beyond, bits surely do not serve
_WIDEST_TRIED = 512  # dimensions up to which itq is tried: beyond, it takes longer to learn than all codes take
_SHARES = (0.9, 0.95, 0.99)  # of the nearest, by whose short lists rotations are compared
_WITHIN = math.log(1.05)  # of the shortest, on a geometric mean, that a cheaper one may take
_FEW = 256  # rows, of which no encoder is learned where there is one
_DRIFTED = 0.98  # of the entropy that bits had: below it, an encoder is learned anew
_DEEPER = (2, 4, 8)  # bits a dimension that are looked at where one is too little
_TASK = 4096  # rows to a task
_UNTRIED = np.zeros((0, len(LISTS)), np.float32)


def train(rows: Rows, params: MIB, budget: Budget, before: Arrays | None = None) -> dict[str, npt.NDArray[Any]]:
    """The encoder of a field, as arrays. before: of other rows of it. Raises Cancelled."""
    sample = _sample(rows)
    budget.control.poll()
    known = None if before is None else _kept(before, rows, sample)
    given = "hadamard" if params.rotation == "auto" else params.rotation
    if len(sample) < _LEAST_TRIED:
        bits = 1 if params.bits == "auto" else int(params.bits)
        if known is None or before is None:
            encoder = Encoder.of(rows, sample, given, budget.seed, params.centre, params.prefix)
            return {**_learned(encoder, rows, sample, _UNTRIED), **_chosen({}, bits)}
        return {**_of_others(before), **_chosen({}, int(before["bits"][0]))}
    held = np.zeros(len(sample), np.bool_)
    many = min(_MOST_PROBES, max(_PROBES, len(sample) // 32))
    held[np.linspace(0, len(sample) - 1, many).astype(np.int64)] = True
    others = sample[~held]
    some = Rows(np.ascontiguousarray(rows.vectors[others]), rows.norms[others], rows.metric)
    queries = np.ascontiguousarray(rows.vectors[sample[held]], np.float32)
    near = FlatSearcher(some).search(queries, KNOWN, control=budget.control).rows
    if known is not None:
        encoder, trial = known, _UNTRIED
    elif params.rotation == "auto":
        encoder, trial = _tried(rows, others, some, queries, near[:, :NEAREST], params, budget)
    else:
        encoder, trial = Encoder.of(rows, others, given, budget.seed, params.centre, params.prefix), _UNTRIED
    budget.control.poll()
    queries, near = queries[:: many // _PROBES], near[:: many // _PROBES]
    gate = {1: measured(near, short_lists(encoder, some, queries, len(some) // _LISTED), len(some))}
    count, d, row_bytes = (
        len(rows) if rows.present is None else ones(rows.present),
        rows.vectors.shape[1],
        rows.vectors[:1].nbytes,
    )

    def verdict(depth: int) -> Verdict | None:
        if depth not in gate:
            budget.control.poll()
            listed = short_lists(encoder, some, queries, len(some) // _LISTED, depth)
            gate[depth] = measured(near, listed, len(some))
        return verdict_of(gate, depth, count, encoder.width, d, row_bytes)

    if params.bits not in ("auto", 1):
        verdict(bits := int(params.bits))
    else:
        looked_at: list[Verdict | None] = []
        for depth in (1, *_DEEPER):
            looked_at.append(each := verdict(depth))
            if each is None or each.says == "ok":
                break
        best = best_of(looked_at)
        bits = best.bits if params.bits == "auto" and best is not None else 1
    about = _learned(encoder, rows, sample, trial) if known is None or before is None else _of_others(before)
    return {**about, **_chosen(gate, bits)}


def _kept(before: Arrays, rows: Rows, sample: npt.NDArray[np.int64]) -> Encoder | None:
    """The encoder of other rows, if its bits say as much of these, or these are too few to tell."""
    encoder = Encoder.opened(before, rows)
    if len(sample) < _FEW:
        return encoder
    entropy, learned = entropy_in({}, before)
    if learned < min(_LEAST_TRIED, len(sample)):  # of a first small segment, say: these tell more
        return None
    return encoder if _entropy(encoder, rows, sample) >= _DRIFTED * entropy else None


def _of_others(before: Arrays) -> dict[str, npt.NDArray[Any]]:
    """What is kept with an encoder that is kept."""
    return {name: np.array(before[name]) for name in ("encoder", "unit", "centre", "signs", "matrix", "entropy", "trial")}


def _learned(
    encoder: Encoder, rows: Rows, sample: npt.NDArray[np.int64], trial: npt.NDArray[np.float32]
) -> dict[str, npt.NDArray[Any]]:
    entropy = np.array([_entropy(encoder, rows, sample), len(sample)], np.float64)
    return {**encoder.arrays(), "entropy": entropy, "trial": trial}


def _entropy(encoder: Encoder, rows: Rows, sample: npt.NDArray[np.int64]) -> float:
    """Of a bit, of some rows; 0 of none."""
    some = sample[:: max(1, -(-len(sample) // max(256, min(_LOOKED_AT, _LEARNED_BYTES // rows.vectors.shape[1]))))]
    if len(some) < 2:
        return 0.0
    few = Rows(np.ascontiguousarray(rows.vectors[some]), rows.norms[some], rows.metric)
    codes, factors = encoder.room(len(few))
    encoder.fill(few, 0, len(few), codes, factors)
    return float(entropies(unpacked(codes, len(few))[:, : encoder.dimensions]).mean())


def _chosen(gate: Gate, bits: int) -> dict[str, npt.NDArray[Any]]:
    shape = (0, len(PARTS), 1 + len(RECALLS))
    tables = np.stack(list(gate.values())) if gate else np.zeros(shape, np.float64)
    return {"bits": np.array([bits], np.uint32), "depths": np.array(list(gate), np.uint32), "gate": tables}


def _sample(rows: Rows) -> npt.NDArray[np.int64]:
    """Rows that an encoder is learned from."""
    return evenly(rows, max(256, min(_LEARNED, _LEARNED_BYTES // (4 * max(1, rows.vectors.shape[1])))))[0]


def _tried(
    rows: Rows, others: npt.NDArray[np.int64], some: Rows, queries: npt.NDArray[np.float32], true: npt.NDArray[np.int64],
    params: MIB, budget: Budget,
) -> tuple[Encoder, npt.NDArray[np.float32]]:  # fmt: skip
    """The encoder that is chosen, and how each one did. some: the others of the rows. true: the nearest of each query."""
    trial, encoders = np.full((len(TRIED), len(LISTS)), -1, np.float32), dict[int, Encoder]()
    lengths: dict[int, float] = {}
    for i, rotation in enumerate(TRIED):
        budget.control.poll()
        if rotation == "itq" and (params.prefix or rows.vectors.shape[1]) > _WIDEST_TRIED:
            continue
        encoder = encoders[i] = Encoder.of(rows, others, rotation, budget.seed, params.centre, params.prefix)
        places = _places(true, short_lists(encoder, some, queries, min(_LONGEST, len(some) // _LISTED)))
        trial[i] = [(places < length).mean() for length in LISTS]
        lengths[i] = np.log([places[math.ceil(share * len(places)) - 1] + 1 for share in _SHARES]).mean()
    chosen = next(i for i in encoders if lengths[i] <= min(lengths.values()) + _WITHIN)
    return encoders[chosen], trial


def _places(true: npt.NDArray[np.int64], listed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """At which places of lists the nearest are, ascending; those that are in none count as the next."""
    found = [np.flatnonzero(np.isin(best, mine)) for mine, best in zip(true, listed, strict=True)]
    missing = np.full(true.size - sum(map(len, found)), listed.shape[1])
    return np.sort(np.concatenate([*found, missing]))


def short_lists(
    encoder: Encoder, rows: Rows, queries: npt.NDArray[np.float32], count: int, depth: int = 1
) -> npt.NDArray[np.int64]:
    """(m, count) rows by the estimates of their bits, the best first; there are more rows than that. depth: bits by which those
    that the first let through are ordered.
    """
    codes, factors = encoder.coded(rows)
    _, tables, terms, turned = encoder.ask(queries)
    lists, every = Lists.of(len(queries), count), read_only(np.zeros(0, np.uint64))
    scan(tables, terms, codes, factors, len(rows), every, 0, len(codes), plan_of(encoder.width, codes.nbytes), *lists)
    shorten(*lists)
    if depth > 1:
        planes, scales = more.room(encoder, len(rows), depth)
        more.fill(encoder, rows, 0, len(rows), planes, scales)
        more.refine(turned, terms, read_only(planes), read_only(scales), factors, count, *lists[:2])
    entries = np.array([np.sort(each[:size]) for each, size in zip(*lists[:2], strict=True)])
    return read(entries)[1]


def memory_of(rows: Rows, threads: int, bits: int = 1) -> int:
    """About how many bytes a build takes beside its rows; bits: a dimension."""
    n, d = rows.vectors.shape
    width = width_of(d)
    sampled = min(n, max(256, min(_LEARNED, _LEARNED_BYTES // (4 * max(1, d)))))
    learning = 40 * sampled * d + 24 * min(d, n, 4096) ** 2
    planes = bits * width // 8 + 4 if bits > 1 else 0
    probes = min(_MOST_PROBES, max(_PROBES, sampled // 32))
    needed: int = n * (width // 8 + 8 + planes) + threads * 8 * width * BLOCK + learning + 4 * TERMS * width * probes
    listed = max(_PROBES * sampled // _LISTED, probes * min(_LONGEST, sampled // _LISTED))
    needed += sampled * (width + 4) + 24 * listed + 8 * probes * KNOWN + (1 << 20)
    needed += fitting(n, width, threads)
    return needed


def build(rows: Rows, trained: Arrays, params: MIB, budget: Budget, progress: Progress, trial: Trial | None = None) -> Arrays:
    """See the module. Raises NeedsMemory, which for bits="auto" may be when the sample was looked at, Cancelled, ValueError for
    2^31 rows or more.
    """
    n = len(rows)
    if n >= MAX_ROWS:
        raise ValueError(f"an index of bits holds fewer than {MAX_ROWS:,} rows; this segment has {n:,}")
    _check_memory(rows, 1 if params.bits == "auto" else int(params.bits), budget)
    budget.control.poll()
    learned = {} if trained else train(rows, params, budget)
    encoder, depth = Encoder.opened(trained or learned, rows), int((trained or learned)["bits"][0])
    _check_memory(rows, depth, budget)
    progress(0.1)
    codes, factors = encoder.room(n)
    deeper = more.room(encoder, n, depth) if depth > 1 else None

    def fill(start: int) -> None:
        budget.control.poll()
        encoder.fill(rows, start, min(n, start + _TASK), codes, factors)
        if deeper is not None:
            more.fill(encoder, rows, start, min(n, start + _TASK), *deeper)

    with ThreadPoolExecutor(budget.control.threads(budget.threads)) as pool:
        for start, _ in zip(range(0, n, _TASK), pool.map(fill, range(0, n, _TASK)), strict=True):
            progress(0.1 + 0.7 * min(n, start + _TASK) / n)
    arrays = {**learned, **_stored(encoder, rows, codes, factors, deeper, budget)}
    _measure(arrays, trained, rows, params, trial)
    progress(1.0)
    return arrays


def _check_memory(rows: Rows, bits: int, budget: Budget) -> None:
    needed = memory_of(rows, budget.threads, bits)
    if budget.memory is not None and needed > budget.memory:
        raise NeedsMemory(needed, budget.memory)


def _stored(
    encoder: Encoder, rows: Rows, codes: npt.NDArray[np.uint8], factors: npt.NDArray[np.float32],
    deeper: tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]] | None, budget: Budget,
) -> dict[str, npt.NDArray[Any]]:  # fmt: skip
    """Codes of all rows, and what is measured of the first bits; and of this machine, if these are the first so many."""
    depth = 1 if deeper is None else 8 * deeper[0].shape[1] // encoder.width
    if codes.nbytes >= WORTH and (budget.memory is None or memory_of(rows, budget.threads, depth) + MEMORY <= budget.memory):
        tuned(encoder.width)
    likelihood, decline = fitted(encoder, Bits(read_only(codes), read_only(factors), len(rows)), rows, budget)
    arrays: dict[str, npt.NDArray[Any]] = {
        "codes": codes,
        "factors": factors,
        "of": np.array([encoder.check, len(rows), depth], np.uint32),
        "likelihood": likelihood,
        "decline": decline.table(),
    }
    return arrays if deeper is None else {**arrays, "planes": deeper[0], "scales": deeper[1]}


def merge(
    parts: list[Part], rows: Rows, trained: Arrays, params: MIB, budget: Budget, trial: Trial | None = None
) -> Arrays | None:
    """The codes of the parts at their new places, if they are all of the encoder; else None. Raises NeedsMemory, Cancelled."""
    if not trained:
        return None
    encoder, depth = Encoder.opened(trained, rows), int(trained["bits"][0])
    _check_memory(rows, depth, budget)
    codes, factors = encoder.room(len(rows))
    deeper = more.room(encoder, len(rows), depth) if depth > 1 else None
    for part in parts:
        assert isinstance(part.rows, Rows)
        if "encoder" in part.arrays or part.arrays["of"][[0, 2]].tolist() != [encoder.check, depth]:
            return None
        budget.control.poll()
        _, bits = opened(part.arrays, trained, part.rows)
        old = np.flatnonzero(part.moved >= 0)
        new = part.moved[old].astype(np.int64)
        copy_rows(bits.codes, bits.factors, old, codes, factors, new)
        if deeper is not None:
            _, planes, scales = more_bits_in(part.arrays, part.rows, encoder)
            deeper[0][new], deeper[1][new] = planes[old], scales[old]
    arrays = _stored(encoder, rows, codes, factors, deeper, budget)
    _measure(arrays, trained, rows, params, trial)
    return arrays


def _measure(arrays: Arrays, trained: Arrays, rows: Rows, params: MIB, trial: Trial | None) -> None:
    """Runs the trial, if there is one. Where a row lies depends on no other, so it may be run when all is done."""
    if trial is not None:
        others = trial.others(rows)
        trial.run(MIBSearcher(arrays, trained, others, params, held=len(trial.rows)), others)
