"""`python -m bench sparse [--sets NAME …] [--engines NAME …] [--k K] [--tail] [--rounds R] [--core C]`: sparse vectors beside peers.

Data like SPLADE's (`splade_like.py`) are made once, under ~/.cache/vecdb-data/sparse; so are the indexes of peers. The set "real" is
an NPZ file of your own (`--real`), with doc_indptr, doc_indices, doc_values and the same of queries. Each engine runs in a process of its own, on one pinned core, over batches; those of ours read their index from a mapped
file. What each engine can be set to is chosen on a thousand queries (tune), and measured on another thousand (test), the engines
taking turns. Latencies are CPU time of the process, beside wall time; at a recall@10, between the two settings around it, on the
frontier of each round. Ratios are medians of rounds. Exact searches: --engines vecdb-exact scipy bmp, whose bmp is exact for
weights of eight bits, with alpha 1. --tail: single calls, and their 99th percentiles at the settings of each target.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from . import __main__ as runner
from .splade_like import make, tell

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("VECDB_BENCH_DATA", Path.home() / ".cache" / "vecdb-data")) / "sparse"
SETS = {"100k": 100_000, "300k": 300_000, "1m": 1_000_000, "real": 3_000}
TARGETS = (0.90, 0.95, 0.97, 0.99)
ENVIRONMENTS = {"pyseismic": ["pyseismic-lsr==0.5.4"], "sindi": ["pyvsag"], "bmp": ["bmp"], "kannolo": ["kannolo"]}
FOLDERS = {"sindi": "pyvsag"}  # of environments, where they are named otherwise


def seismic_builds(n: int) -> list[dict[str, Any]]:
    """Lists as long as the authors' for MS MARCO, in proportion to the rows."""
    average = max(20, round(n * 4.4e-4))
    longer = average * 3 // 2
    return [
        {"n_postings": average, "max_fraction": 8.0, "centroid_fraction": 0.2, "summary_energy": 0.5, "min_cluster_size": 2},
        {"n_postings": longer, "max_fraction": 8.0, "centroid_fraction": 0.1, "summary_energy": 0.4, "min_cluster_size": 2},
    ]


def builds(engine: str, n: int) -> list[dict[str, Any]]:
    return {
        "pyseismic": seismic_builds(n),
        "sindi": [{"window": 50_000, "prune": prune} for prune in (0.3, 0.5)],
        "bmp": [{"block": 32}],
        "kannolo": [{"m": 32, "ef_construction": 200}],
        "vecdb": [{}],
        "vecdb-knn": [{"knn": 8}],
        "vecdb-exact": [{"exact": "lists"}],
        "scipy": [{}],
    }[engine]


def grid(engine: str, k: int) -> list[dict[str, Any]]:
    def product(**values: Any) -> list[dict[str, Any]]:
        return [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]

    return {
        "pyseismic": product(cut=[2, 3, 4, 5, 6, 8, 10, 12], heap_factor=[0.7, 0.8, 0.9, 1.0]),
        "sindi": product(query_prune=[0.0, 0.2, 0.4], term_prune=[0.0, 0.1], n_candidate=[2 * k, 5 * k, 10 * k]),
        "bmp": product(alpha=[0.6, 0.7, 0.8, 0.9, 1.0]),
        "kannolo": product(ef=[10, 15, 20, 30, 40, 60, 80, 120]),
        "vecdb": product(
            cut=[2, 3, 4, 5, 6, 8, 10, 12, 16, 24], factor=[0.6, 0.7, 0.8, 0.9, 1.0, 1.1], head=[0.3, 0.4, 0.5, 0.6, 0.7]
        ),
        "vecdb-knn": product(
            cut=[1, 2, 3, 4, 5, 6, 8, 12], factor=[0.8, 0.9, 1.0, 1.1, 1.2], head=[0.4, 0.5, 0.6, 0.7], near=[2, 4, 8]
        ),
        "vecdb-exact": [{"exact": True}],
        "scipy": [{}],
    }[engine]


# -- data ------------------------------------------------------------------------------------------------------


def folder_of(name: str, real: Path | None) -> Path:
    """The folder of a set, made if need be."""
    folder = CACHE / name
    if (folder / "ready").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if name == "real":
        if real is None:
            raise SystemExit("the set real needs --real FILE.npz")
        with np.load(real) as file:
            docs = tuple(file[f"doc_{part}"] for part in ("indptr", "indices", "values"))
            asked = tuple(file[f"query_{part}"] for part in ("indptr", "indices", "values"))
    else:
        docs, asked = make(SETS[name], 2_000)
        tell(docs, asked)
    half = (len(asked[0]) - 1) // 2
    write(folder, "docs", docs)
    write(folder, "tune", some(asked, 0, half))
    write(folder, "test", some(asked, half, 2 * half))
    truth(folder)
    (folder / "ready").touch()
    return folder


def csr(path: Path) -> tuple[Any, ...]:
    with np.load(path) as file:
        return tuple(file[part] for part in ("indptr", "indices", "values"))


def some(rows: tuple[Any, ...], first: int, last: int) -> tuple[Any, ...]:
    indptr, indices, values = rows
    part = slice(int(indptr[first]), int(indptr[last]))
    return indptr[first : last + 1] - indptr[first], indices[part], values[part]


def write(folder: Path, name: str, rows: tuple[Any, ...]) -> None:
    indptr, indices, values = rows
    values = values.astype(np.float32)
    np.savez(folder / f"{name}.npz", indptr=indptr.astype(np.int64), indices=indices, values=values)
    with open(folder / f"{name}.bin", "wb") as file:
        file.write(np.uint32(len(indptr) - 1).tobytes())
        for a, b in itertools.pairwise(indptr.tolist()):
            file.write(np.uint32(b - a).tobytes() + indices[a:b].astype("<u4").tobytes() + values[a:b].tobytes())


def truth_of(folder: Path, part: str, k: int) -> Path:
    """The file of the exact best of each query."""
    path = folder / (f"{part}.truth.npy" if k == 10 else f"{part}.truth-{k}.npy")
    if not path.exists():
        truth(folder, k)
    return path


def truth(folder: Path, k: int = 10) -> None:
    """The exact best of each query, by SciPy in float64."""
    from scipy.sparse import csr_matrix

    def matrix(rows: tuple[Any, ...]) -> Any:
        indptr, indices, values = rows
        return csr_matrix((values.astype(np.float64), indices.astype(np.int32), indptr), (len(indptr) - 1, 1 << 15))

    by_term = matrix(csr(folder / "docs.npz")).T.tocsr()
    for part in ("tune", "test"):
        asked = matrix(csr(folder / f"{part}.npz"))
        scores = ((asked[q] @ by_term).toarray()[0] for q in range(asked.shape[0]))
        np.save(
            folder / (f"{part}.truth.npy" if k == 10 else f"{part}.truth-{k}.npy"),
            np.stack([np.argpartition(-each, k)[:k] for each in scores]),
        )


# -- engines -----------------------------------------------------------------------------------------------------


def sources() -> str:
    """A hash of what builds our index."""
    found = hashlib.sha256()
    for source in sorted((HERE.parent / "index" / "vecdb_index" / "seismic").glob("*.py")):
        if source.name != "search.py":
            found.update(source.read_bytes())
    return found.hexdigest()[:12]


class Engine:
    """One build of an engine, in a process of its own."""

    def __init__(self, name: str, build: dict[str, Any], folder: Path, core: int) -> None:
        self.name, self.build, self.folder = name, build, folder
        environments = name in ENVIRONMENTS
        if environments:
            runner.ENVIRONMENTS[FOLDERS.get(name, name)] = ENVIRONMENTS[name]
        python = runner.python_of(FOLDERS.get(name, name)) if environments else sys.executable
        if python is None:
            raise RuntimeError(f"{name} could not be installed")
        own = os.pathsep.join(str(HERE.parent / each) for each in ("", "index", "storage"))
        variables = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": "" if environments else own}
        if name.startswith("vecdb"):
            variables["BENCH_SOURCES"] = sources()
        command = [
            "taskset",
            "-c",
            str(core),
            python,
            str(HERE / "peers" / "sparse_ann.py"),
            name,
            str(folder),
            json.dumps(build),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, text=True)
        self._rows = tempfile.mktemp(suffix=".npy")
        self.took = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # libraries print what they like
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended")

    def run(self, part: str, params: dict[str, Any], k: int = 10) -> tuple[float, float, float]:
        """(recall, CPU microseconds a query, wall microseconds a query)."""
        assert self._process.stdin is not None
        print(json.dumps({"queries": part, "params": params, "k": k, "rows": self._rows}), file=self._process.stdin, flush=True)
        answer = self._answer()
        rows, exact = np.load(self._rows), np.load(truth_of(self.folder, part, k))
        hits = sum(len(set(mine) & set(best)) for mine, best in zip(rows.tolist(), exact.tolist(), strict=True))
        return hits / exact.size, answer["cpu"] / len(exact) * 1e6, answer["seconds"] / len(exact) * 1e6

    def tail(self, part: str, params: dict[str, Any], k: int) -> tuple[float, float]:
        """(median, 99th percentile) of single calls, microseconds of wall time; each query at the best of three."""
        assert self._process.stdin is not None
        print(json.dumps({"each": part, "params": params, "k": k}), file=self._process.stdin, flush=True)
        took = self._answer()["each"]
        median, high = np.percentile(took, [50, 99]) * 1e6 if took else (np.nan, np.nan)
        return float(median), float(high)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def frontier(points: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of (recall, time, …) those that no other beats, by recall ascending."""
    best: list[tuple[Any, ...]] = []
    for point in sorted(points, key=lambda each: (-each[0], each[1])):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best[::-1]


def at_recall(points: list[tuple[Any, ...]], target: float) -> float | None:
    """The time at a recall, between the two points of the frontier around it."""
    curve = frontier(points)
    if not curve or curve[-1][0] < target:
        return None
    if curve[0][0] >= target:
        return float(curve[0][1])
    for (low, fast, *_), (high, slow, *_) in itertools.pairwise(curve):
        if low <= target <= high:
            return float(fast * (slow / fast) ** ((target - low) / (high - low)))
    return None


def tuned(engine: Engine, settings: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """The settings near the frontier, by the tuning queries."""
    points = []
    for params in settings:
        engine.run("tune", params, k)
        recall, cpu, _ = min((engine.run("tune", params, k) for _ in range(2)), key=lambda each: each[1])
        points.append((recall, cpu, params))
    slower = [(recall, cpu * 1.05, params) for recall, cpu, params in frontier(points)]
    near = [each for each in points if not any(r >= each[0] and c < each[1] for r, c, _ in slower)]
    return [params for recall, _, params in near if recall >= 0.8] or [params for _, _, params in near]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench sparse", description=__doc__)
    parser.add_argument("--sets", nargs="+", default=["100k", "300k"], choices=list(SETS))
    parser.add_argument("--engines", nargs="+", default=["vecdb", "pyseismic", "sindi", "bmp", "kannolo"])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--tail", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--real", type=Path, help="vectors of your own, of the set real")
    options = parser.parse_args(arguments)
    for name in options.sets:
        compare(name, options)


def compare(name: str, options: argparse.Namespace) -> None:
    folder = folder_of(name, options.real)
    print(f"\n## {name}: {SETS[name]:,} rows, load {os.getloadavg()[0]:.2f}\n", flush=True)
    runner.head("engine", "build", "seconds", "CPU s", "MB", "settings")
    running: list[tuple[Engine, list[dict[str, Any]]]] = []
    for engine_name in options.engines:
        for build in builds(engine_name, SETS[name]):
            engine = Engine(engine_name, build, folder, options.core)
            chosen = tuned(engine, grid(engine_name, options.k), options.k)
            running.append((engine, chosen))
            size = "–" if engine.took["bytes"] is None else f"{engine.took['bytes'] / 1e6:.0f}"
            about = " ".join(f"{key}={value}" for key, value in build.items()) or "as by default"
            runner.row(engine_name, about, f"{engine.took['seconds']:.1f}", f"{engine.took['cpu']:.1f}", size, len(chosen))
    rounds: list[dict[str, list[tuple[Any, ...]]]] = []
    for turn in range(options.rounds):
        points: dict[str, list[tuple[Any, ...]]] = {}
        for engine, chosen in running[:: 1 if turn % 2 else -1]:
            for params in chosen:
                recall, cpu, wall = engine.run("test", params, options.k)
                points.setdefault(engine.name, []).append((recall, cpu, wall, params, engine.build))
        rounds.append(points)
    print()
    runner.head(
        f"recall@{options.k}", *(f"{each} µs" for each in options.engines), *(f"÷ {each}" for each in options.engines[1:])
    )
    for target in TARGETS:
        mine = {each: [at_recall(points[each], target) for points in rounds] for each in options.engines}
        cells = [statistics.median(times) if None not in times else None for times in mine.values()]
        ratios = []
        for each in options.engines[1:]:
            pairs = [a / b for a, b in zip(mine[options.engines[0]], mine[each], strict=True) if a and b]
            ratios.append(f"{statistics.median(pairs):.2f} [{min(pairs):.2f}–{max(pairs):.2f}]" if pairs else "–")
        runner.row(f"{target:.2f}", *("–" if cell is None else f"{cell:.0f}" for cell in cells), *ratios)
    if options.tail:
        tails(running, rounds[-1], options.k)
    for engine, _ in running:
        engine.close()
    every = [point for points in rounds for each in points.values() for point in each]
    print(f"\nwall ÷ CPU {statistics.median(wall / cpu for _, cpu, wall, *_ in every):.3f}; {time.strftime('%Y-%m-%d %H:%M')}")
    for each in options.engines:
        print(f"\n{each}, last round, the frontier:")
        for recall, cpu, _, params, build in frontier(rounds[-1][each]):
            print(f"  {recall:.4f} {cpu:7.1f} µs {params} {build}")
    _plot(
        name if options.k == 10 else f"{name}-{options.k}",
        options.k,
        {each: frontier([point[:2] for points in rounds for point in points[each]]) for each in options.engines},
    )


def tails(running: list[Any], points: dict[str, list[tuple[Any, ...]]], k: int) -> None:
    """Of single calls, at the quickest setting that reaches each target."""
    print()
    runner.head("recall", "engine", "median of single calls, µs", "p99, µs", "p99 ÷ the first engine's")
    for target in TARGETS:
        first = None
        for name, mine in points.items():
            fit = [point for point in mine if point[0] >= target and type(point[3]) is dict]
            if not fit:
                continue
            _, _, _, params, build = min(fit, key=lambda each: each[1])
            (engine,) = (each for each, _ in running if each.name == name and each.build == build)
            median, high = engine.tail("test", params, k)
            first = first or high
            runner.row(f"{target:.2f}", name, f"{median:.0f}", f"{high:.0f}", f"{high / first:.2f}")


def _plot(name: str, k: int, curves: dict[str, list[tuple[Any, ...]]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for label, curve in curves.items():
        shown = [(recall, time) for recall, time in curve if recall >= 0.8]
        if shown:
            axes.plot(
                *zip(*shown, strict=True), marker="o", markersize=3, linewidth=2.4 if label == "vecdb" else 1.2, label=label
            )
    axes.set(yscale="log", xlabel=f"recall@{k}", ylabel="µs a query, one thread (CPU time)", title=f"{name}: sparse vectors")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    path = HERE / "results" / f"sparse-{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"\nPlot: {path}")
