"""Graph search beside hnswlib at equal recall, one thread. Run by `python -m bench graph`.

Each engine runs in a process of its own, which builds once and then answers one pass at a time, so that passes take turns. The
rate at a recall is interpolated (log rate over recall) on each engine's own curve, round by round; the ratio is the median of
rounds. Settings are the same grids for every data set; nothing is chosen by looking at the results.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from .__main__ import head, row
from .engines import Engine
from .sets import data_sets, truth_of

RECALLS = (0.90, 0.95, 0.99)
GRIDS: dict[str, tuple[float, ...]] = {
    "hnswlib": (10, 12, 14, 17, 20, 25, 32, 45, 64, 100, 160, 250),
    "rabitqlib SymphonyQG": (10, 12, 14, 17, 20, 25, 32, 45, 64, 100, 160, 250),
    "vecdb kernel": (5, 7, 9, 11, 14, 17, 20, 25, 32, 45, 64, 100, 160, 250),
    "vecdb search_batch": (0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.996),
}
PROGRAMS = {  # and whose environment runs them
    "hnswlib": ("graph_hnswlib", "hnswlib"),
    "rabitqlib SymphonyQG": ("graph_rabitqlib", "rabitqlib"),
    "vecdb kernel": ("graph_vecdb", "vecdb"),
    "vecdb search_batch": ("graph_vecdb_api", "vecdb"),
}


def at_recall(curve: list[tuple[float, float]], recall: float) -> float:
    """The rate at a recall, between the two points of the Pareto front around it; NaN outside the curve."""
    front: list[tuple[float, float]] = []
    for reached, rate in sorted(curve, key=lambda p: (-p[1], -p[0])):
        if not front or reached > front[-1][0]:
            front.append((reached, rate))
    recalls = [reached for reached, _ in front]
    if len(front) < 2 or not recalls[0] <= recall <= recalls[-1]:
        return float(front[0][1]) if front and recall < recalls[0] else float("nan")
    return float(np.exp(np.interp(recall, recalls, np.log([rate for _, rate in front]))))


def measure(rounds: int, kinds: list[str], most: int | None) -> None:
    for data in data_sets(kinds, most):
        queries = data.queries
        with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as work:
            folder = Path(work)
            np.save(folder / "base.npy", data.base)
            np.save(folder / "queries.npy", queries)
            truth = truth_of(data.base, queries, data.metric, 10)
            engines: dict[str, Engine] = {}
            for engine in GRIDS:
                try:
                    engines[engine] = Engine(*PROGRAMS[engine], folder, data.metric)
                except OSError as error:
                    print(f"{engine}: {error}", file=sys.stderr)
            curves: dict[str, list[list[tuple[float, float]]]] = {engine: [] for engine in engines}
            starved = 0
            for _ in range(rounds):
                for engine, process in engines.items():
                    curve = []
                    for setting in GRIDS[engine]:
                        done = process.run(setting)
                        starved += done["cpu"] < 0.9 * done["seconds"]
                        hit = truth.recalls(np.load(done["ids"]), 10).mean()
                        curve.append((float(hit), len(queries) / done["seconds"]))
                    curves[engine].append(curve)
            for process in engines.values():
                process.close()
        print(f"## Graph search, {data.name}, recall@10, one thread\n")
        head(
            "engine",
            "build s (2 threads)",
            "CPU s",
            *(f"QPS at {r:.2f}" for r in RECALLS),
            *(f"x hnswlib at {r:.2f}" for r in RECALLS),
        )
        for engine, process in engines.items():
            rates = {r: [at_recall(curve, r) for curve in curves[engine]] for r in RECALLS}
            cells = [f"{statistics.median(rates[r]):,.0f}" for r in RECALLS]
            for r in RECALLS:
                peer = [at_recall(curve, r) for curve in curves.get("hnswlib", [])]
                ratios = [a / b for a, b in zip(rates[r], peer, strict=False)]
                cells.append(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}–{max(ratios):.2f}]" if ratios else "")
            row(engine, f"{process.built['seconds']:.1f}", f"{process.built['cpu']:.1f}", *cells)
        print(
            f"\n{rounds} rounds; {len(GRIDS['hnswlib'])} settings of hnswlib (M=16, efConstruction=200), {len(GRIDS['vecdb kernel'])} of vecdb (HNSW())."
        )
        print(f"Passes whose CPU time was under 0.9 of the wall's: {starved}.\n")
