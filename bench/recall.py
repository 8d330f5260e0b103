"""Recall asked and delivered, and what it costs. Run by `python -m bench recall`.

Each set is written three times: into one segment, in twelve equal batches that are flushed into a segment each, and as merges
leave it: one large segment and small ones. Then recalls of
0.9, 0.95 and 0.99 are asked for k of 1, 10 and 100 of a batch of up to 2,000 queries that the engine has never seen, by one
thread; the share of the true k nearest that comes back is compared with exact search. Delivered is the mean over the queries,
with its 95 % interval (1.96 standard errors). The rate is the median of rounds, in which all searches of a set take turns.
"""

from __future__ import annotations

import math
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .__main__ import head, interleaved, row
from .sets import DataSet, Truth, data_sets, store, truth_of

RECALLS = (0.9, 0.95, 0.99)
KS = (1, 10, 100)
LAYOUTS = {"1": (1,), "12": (1,) * 12, "1 large, 6 small": (54, 1, 1, 1, 1, 1, 1)}  # shares of the rows
POINT = 0.01


def measure(rounds: int, kinds: list[str], most: int | None) -> None:
    import vecdb

    for data in data_sets(kinds, most):
        with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as work:
            opened, collections = [], {}
            for name, shares in LAYOUTS.items():
                path = Path(work) / str(len(opened))
                there = store(path, data, shares)
                opened.append(vecdb.open(path, threads=1))
                collections[name if there == len(shares) else f"{there} ({name} meant)"] = opened[-1].collection("docs")
            print(f"## Recall asked and delivered, {data.name}, one thread\n")
            if data.held is None:
                _table(rounds, collections, data, data.queries)
            else:
                print("Queries that are rows held out, and so like the rows:\n")
                _table(rounds, collections, data, data.held)
                print("Queries of another kind than the rows, of which nothing is promised:\n")
                _table(rounds, collections, data, data.queries)
            for database in opened:
                database.close()


def _table(rounds: int, collections: dict[str, Any], data: DataSet, queries: np.ndarray) -> None:
    """collections: by what segments they have."""
    truth = truth_of(data.base, queries, data.metric, max(KS))
    found: dict[tuple[str, int, float], Any] = {}

    def search(docs: Any, key: tuple[str, int, float]) -> None:
        found[key] = docs.search_batch(queries, k=key[1], recall=key[2], with_payload=False, explain=True)

    cases = [(segments, k, asked) for segments in collections for k in KS for asked in RECALLS]
    times = interleaved(rounds, {case: partial(search, collections[case[0]], case) for case in cases})  # type: ignore[misc]
    head("segments", "k", "asked", "delivered", "95 % interval", "within a point", "searched by", "QPS")
    outcomes: list[str] = []
    for segments, k, asked in cases:
        mean, half = _delivered(truth, found[segments, k, asked].ids, k)
        ways = _ways(found[segments, k, asked].plan)
        outcomes.append(_outcome(mean, asked, ways))
        rate = len(queries) / times[segments, k, asked]  # type: ignore[index]
        row(
            segments,
            k,
            asked,
            f"{mean:.4f}",
            f"{mean - half:.4f}–{min(1, mean + half):.4f}",
            outcomes[-1],
            ways,
            f"{rate:,.0f}",
        )
    within, below = outcomes.count("yes"), sum(outcome.startswith("**below") for outcome in outcomes)
    print(
        f"\n{rounds} rounds, {len(queries):,} queries. Of {len(outcomes)}: {within} within a point, "
        f"{len(outcomes) - within - below} above, {below} below.\n"
    )


def _delivered(truth: Truth, ids: np.ndarray, k: int) -> tuple[float, float]:
    """The mean recall, and half of its 95 % interval."""
    each = truth.recalls(np.where(ids == None, -1, ids).astype(np.int64), k)  # noqa: E711
    return float(each.mean()), 1.96 * float(each.std(ddof=1)) / math.sqrt(len(each))


def _ways(plan: Any) -> str:
    """How the segments were searched, in few words."""
    efforts = [re.search(r"effort ([0-9.]+)", part.way) for part in plan.parts]
    by_index = [float(each.group(1)) for each in efforts if each]
    exactly = len(efforts) - len(by_index)
    said = []
    if by_index:
        least, most = min(by_index), max(by_index)
        said.append(f"index, effort {least:.2f}" + (f" to {most:.2f}" if most > least else ""))
    if exactly:
        said.append("exact" if not by_index else f"{exactly} exactly")
    return ", ".join(said)


def _outcome(mean: float, asked: float, ways: str) -> str:
    if mean < asked - POINT:
        return f"**below by {100 * (asked - mean):.1f}**"
    if mean <= asked + POINT:
        return "yes"
    if ways == "exact":
        return "above: exact is cheaper"
    return "above: least effort" if ways == "index, effort 0.00" else f"above by {100 * (mean - asked):.1f}"
