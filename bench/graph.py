"""Graph search beside hnswlib at equal recall, one thread. Run by `python -m bench graph`.

Each engine runs in a process of its own, which builds once and then answers one pass at a time, so that passes take turns. The
rate at a recall is interpolated (log rate over recall) on each engine's own curve, round by round; the ratio is the median of
rounds. Settings are the same grids for every data set; nothing is chosen by looking at the results.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from vecdb_index.contract import Rows
from vecdb_index.flat.search import FlatSearcher

from .__main__ import HERE, head, python_of, row

RECALLS = (0.90, 0.95, 0.99)
GRIDS: dict[str, tuple[float, ...]] = {
    "hnswlib": (10, 12, 14, 17, 20, 25, 32, 45, 64, 100, 160, 250),
    "vecdb kernel": (5, 7, 9, 11, 14, 17, 20, 25, 32, 45, 64, 100, 160, 250),
    "vecdb search_batch": (0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.996),
}
SCRIPTS = {"hnswlib": "graph_hnswlib", "vecdb kernel": "graph_vecdb", "vecdb search_batch": "graph_vecdb_api"}


def data_sets() -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """name -> (base, queries that were never looked at, metric). Images are there if somebody has put them there."""
    sets = {}
    images = Path(os.environ.get("VECDB_DATA", Path.home() / ".cache" / "vecdb-data")) / "images784"
    if (images / "base.npy").exists():
        sets["images 60,000 x 784, l2"] = np.load(images / "base.npy"), np.load(images / "query_test.npy")[:2000], "l2"
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((200, 24)).astype(np.float32)
    spread = rng.standard_normal((24, 128)).astype(np.float32)
    made = (centres[rng.integers(0, 200, 52_000)] + 0.6 * rng.standard_normal((52_000, 24), np.float32)) @ spread
    made += 0.3 * rng.standard_normal(made.shape, np.float32)
    sets["synthetic 50,000 x 128, cosine"] = made[:50_000], made[50_000:], "cosine"
    return sets


class Engine:
    """A process that has built its index."""

    def __init__(self, name: str, folder: Path, metric: str) -> None:
        python = sys.executable if name != "hnswlib" else python_of("hnswlib")
        if python is None:
            raise OSError("could not be installed")
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
        command = [python, str(HERE / "peers" / f"{SCRIPTS[name]}.py"), str(folder), metric]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.built = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError("its process ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self, setting: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{setting}\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()


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


def graph(rounds: int) -> None:
    for name, (base, queries, metric) in data_sets().items():
        with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as work:
            folder = Path(work)
            np.save(folder / "base.npy", base)
            np.save(folder / "queries.npy", queries)
            rows = Rows(base, np.linalg.norm(base, axis=1).astype(np.float32), metric)  # type: ignore[arg-type]
            truth = FlatSearcher(rows).search(queries, 10)
            engines: dict[str, Engine] = {}
            for engine in GRIDS:
                try:
                    engines[engine] = Engine(engine, folder, metric)
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
                        found = np.load(done["ids"])
                        hit = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth.rows, strict=True)])
                        curve.append((float(hit), len(queries) / done["seconds"]))
                    curves[engine].append(curve)
            for process in engines.values():
                process.close()
        print(f"## Graph search, {name}, recall@10, one thread\n")
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
