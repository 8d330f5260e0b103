"""Indexes side by side: recall against queries per second. `python -m bench run CONFIG.toml` (see `configs/`).

`quick.toml` and `full.toml` are of indexes in libraries (`peers/ann.py`), `databases.toml` of whole databases
(`peers/databases.py`).

1. Each engine builds in a process of its own, one after the other, and stays: later, passes take turns.
2. Each setting of its grid answers the *tuning* queries once. Those settings are kept that lie around the asked recalls on its
   Pareto front; how many were tried is printed.
3. Rounds: each engine, in turn, answers the *test* queries with each kept setting, by one thread, in one call. At the setting
   around 0.95 also by all threads, and query by query. Rates at a recall are interpolated round by round (the logarithm of the
   rate over recall); the ratio is the median of rounds.

A pass that had less than 0.9 of a core, or before whose several threads a spin had less of theirs, was starved by somebody else; it
is run again, up to three times in all, and counted. Every pass is a line of
`results.jsonl`, with the machine, its load, the commit and the settings; plots are PNG files beside it (`--output`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from .engines import Engine
from .sets import Truth, cached_truth, loaded

STARVED, AGAIN = 0.9, 3  # CPU seconds of a thread and second below which a pass counts as starved; how often it is repeated


@dataclass
class Entry:
    """An engine as the configuration has it, its process, and what it answered."""

    label: str
    program: str  # an adapter of the script
    script: str  # in peers/
    environment: str
    build: dict[str, Any]
    grid: list[dict[str, Any]]
    queries: int | None = None  # of each pass the first so many, for an engine that would take hours
    process: Engine | None = None
    why: str = ""  # it is not in the table
    kept: list[dict[str, Any]] = field(default_factory=list)
    around: dict[str, Any] = field(default_factory=dict)  # the setting around recall 0.95
    curves: list[list[tuple[float, float]]] = field(default_factory=list)  # by round: recall, queries a second
    all_threads: list[float] = field(default_factory=list)  # by round: times the rate of one
    latencies: list[list[float]] = field(default_factory=list)


def at_recall(curve: list[tuple[float, float]], recall: float) -> float:
    """The rate at a recall, between the two points of the Pareto front around it; NaN beyond the curve."""
    points = front(curve)
    recalls = [reached for reached, _ in points]
    if not points or recall > recalls[-1]:
        return float("nan")
    if recall < recalls[0]:
        return points[0][1]
    return float(np.exp(np.interp(recall, recalls, np.log([rate for _, rate in points]))))


def front(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both, by recall ascending."""
    best: list[tuple[float, float]] = []
    for reached, rate in sorted(curve, key=lambda point: (-point[1], -point[0])):
        if not best or reached > best[-1][0]:
            best.append((reached, rate))
    return best


def kept_settings(tried: list[tuple[float, float, dict[str, Any]]], recalls: list[float]) -> list[dict[str, Any]]:
    """Around each recall the last setting of the front that misses it and the first two that reach it."""
    curve = front([(reached, rate) for reached, rate, _ in tried])
    chosen: set[int] = set()
    for recall in recalls:
        first = next((i for i, (reached, _) in enumerate(curve) if reached >= recall), len(curve) - 1)
        chosen |= {i for i in (first - 1, first, first + 1) if 0 <= i < len(curve)}
    by_point = {(reached, rate): params for reached, rate, params in tried}
    return [by_point[curve[i]] for i in sorted(chosen)]


def spin(threads: int, seconds: float = 0.3) -> float:
    """How many cores as many busy processes were given."""
    code = (
        f"import time\nbegun = time.perf_counter()\nwhile time.perf_counter() < begun + {seconds}: pass\n"
        "print(time.process_time() / (time.perf_counter() - begun))"
    )
    running = [subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(threads)]
    return sum(min(1.0, float(each.communicate()[0])) for each in running)


class Run:
    """One configuration. Results go to `folder`."""

    def __init__(self, path: Path, folder: Path) -> None:
        with path.open("rb") as file:
            self.config = tomllib.load(file)
        self.folder = folder
        self.rounds = int(self.config.get("rounds", 5))
        self.k = int(self.config.get("k", 10))
        self.recalls = [float(each) for each in self.config.get("recalls", [0.9, 0.95, 0.99])]
        self.threads = int(self.config.get("threads", os.cpu_count() or 1))
        self.baseline = str(self.config.get("baseline", "hnswlib"))
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        self.about = {
            "config": path.name, "commit": commit.stdout.strip(), "machine": machine(), "python": platform.python_version(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        }  # fmt: skip
        self.starved = 0

    def measure(self) -> None:
        for described in self.config["data"]:
            data = loaded(described)
            if data is None:
                print(
                    f"{described['name']}: not at hand, left out (bench/sets.py says which files are looked for)\n",
                    file=sys.stderr,
                )
                continue
            entries = [
                Entry(
                    each["label"], each["program"], each.get("script", "ann"), each.get("environment", each["program"]),
                    each.get("build", {}), combined(each.get("grid", {})), each.get("queries"),
                )
                for each in self.config["engine"]
            ]  # fmt: skip
            self.starved = 0
            with tempfile.TemporaryDirectory(prefix="vecdb-bench-") as work:
                for name, array in (("base", data.base), ("tune", data.tune), ("test", data.queries)):
                    np.save(Path(work) / f"{name}.npy", array)
                truths = {"tune": cached_truth(data.base, data.tune, data.metric, self.k)}
                truths["test"] = cached_truth(data.base, data.queries, data.metric, self.k)
                for entry in entries:
                    self._build(entry, Path(work), data, truths["tune"])
                running = [entry for entry in entries if entry.process is not None]
                for number in range(self.rounds):
                    for entry in running:
                        if not entry.why:
                            try:
                                self._round(entry, data, truths["test"], number)
                            except OSError as error:
                                entry.why = f"in round {number + 1}: {error}"
                for entry in running:
                    assert entry.process is not None
                    entry.process.close()
            self._tell(data, entries)

    def _build(self, entry: Entry, work: Path, data: Any, truth: Truth) -> None:
        print(f"{data.name}: building {entry.label} …", file=sys.stderr, flush=True)
        try:
            entry.process = Engine(
                entry.script, entry.environment, entry.program, work, data.metric, self.threads, json.dumps(entry.build)
            )  # fmt: skip
            self._record(data, entry, "build", entry.process.built)
            tried = []
            for params in entry.grid:
                done, reached = self._pass(entry, "tune", params, truth)
                tried.append((reached, done["queries"] / done["seconds"], params))
            entry.kept = kept_settings(tried, self.recalls)
            known = [(reached, params) for reached, _, params in tried if params in entry.kept]
            entry.around = min(known, key=lambda each: (each[0] < 0.95, abs(each[0] - 0.95)))[1]
        except OSError as error:
            entry.process, entry.why = None, str(error)

    def _pass(
        self, entry: Entry, queries: str, params: dict[str, Any], truth: Truth, threads: int = 1, single: bool = False
    ) -> Any:
        assert entry.process is not None
        truth = truth.first(entry.queries)
        request = {
            "queries": queries, "first": entry.queries, "params": params, "k": self.k, "threads": threads, "single": single,
        }  # fmt: skip
        for left in reversed(range(AGAIN)):
            # Whether several threads can keep several cores busy is the engine's affair; whether they were to be had, the spin says.
            given = spin(threads) / threads if threads > 1 else 1.0
            done = entry.process.run(request)
            done["spin"] = given * threads
            if min(given, done["cpu"] / done["seconds"]) >= STARVED or not left:
                break
            self.starved += 1
        recalls = truth.recalls(np.load(done["ids"]), self.k)
        done["queries"] = len(recalls)
        return done, float(recalls.mean())

    def _round(self, entry: Entry, data: Any, truth: Truth, number: int) -> None:
        curve, one = [], float("nan")
        for params in entry.kept:
            done, reached = self._pass(entry, "test", params, truth)
            curve.append((reached, done["queries"] / done["seconds"]))
            if params == entry.around:
                one = curve[-1][1]
            self._record(data, entry, "batch", {**done, "round": number, "params": params, "recall": reached})
        entry.curves.append(curve)
        if self.threads > 1:
            done, reached = self._pass(entry, "test", entry.around, truth, threads=self.threads)
            entry.all_threads.append(done["queries"] / done["seconds"] / one)
            told = {**done, "round": number, "params": entry.around, "recall": reached, "threads": self.threads}
            self._record(data, entry, "threads", told)
        done, reached = self._pass(entry, "test", entry.around, truth, single=True)
        entry.latencies.append(done["quantiles"])
        self._record(data, entry, "single", {**done, "round": number, "params": entry.around, "recall": reached})

    def _record(self, data: Any, entry: Entry, kind: str, figures: dict[str, Any]) -> None:
        line = {
            **self.about, "load": round(os.getloadavg()[0], 2), "data": data.name, "engine": entry.label, "build": entry.build,
            "kind": kind, **{key: value for key, value in figures.items() if key != "ids"},
        }  # fmt: skip
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    # -- what is shown ---------------------------------------------------------------------------------------------

    def _tell(self, data: Any, entries: list[Entry]) -> None:
        from .__main__ import head, row

        print(f"## {data.name}, recall@{self.k}, queries in one call, one thread\n")
        asked = [f"{recall:.2f}" for recall in self.recalls]
        head(
            "engine", f"build s ({self.threads} threads)", "CPU s", *(f"QPS at {each}" for each in asked),
            *(f"x {self.baseline} at {each}" for each in asked), f"x one thread by {self.threads}", "one query p50 / p99, µs",
            "bytes a row: resident, disk", "settings tried",
        )  # fmt: skip
        base = next((entry for entry in entries if entry.label == self.baseline), None)
        for entry in entries:
            if entry.why:
                row(entry.label, f"not measured: {entry.why}")
                continue
            assert entry.process is not None
            built = entry.process.built
            rates = {recall: [at_recall(curve, recall) for curve in entry.curves] for recall in self.recalls}
            cells = [f"{middle(rates[recall]):,.0f}" if middle(rates[recall]) > 0 else "not reached" for recall in self.recalls]
            cells += [ratios(entry, base, recall) for recall in self.recalls]
            scaled = f"{middle(entry.all_threads):.2f}" if entry.all_threads else "–"
            quantiles = np.median(np.array(entry.latencies), axis=0) * 1e6
            limited = f", {entry.queries:,} queries" if entry.queries else ""
            disk = "–" if built["disk"] is None else f"{built['disk'] / built['rows']:,.0f}"
            row(
                entry.label + limited, f"{built['seconds']:.1f}", f"{built['cpu']:.1f}", *cells, scaled,
                f"{quantiles[0]:.0f} / {quantiles[2]:.0f}", f"{built['resident'] / built['rows']:,.0f}, {disk}", len(entry.grid),
            )  # fmt: skip
        print(
            f"\n{self.rounds} rounds of {len(data.queries):,} test queries, settings chosen on {len(data.tune):,} others; medians [least–most]. "
            f"Starved passes, repeated: {self.starved}. Resident: with a copy of the rows where the index keeps one.\n"
        )
        ours = next((entry for name in ("vecdb", "vecdb-api") for entry in entries if entry.program == name), None)
        if ours is not None and not ours.why:
            head(f"{ours.label}, times", *asked)
            for entry in entries:
                if not entry.why and not entry.program.startswith("vecdb"):
                    row(entry.label, *(ratios(ours, entry, recall) for recall in self.recalls))
            print()
        self._plot(data, entries)

    def _plot(self, data: Any, entries: list[Entry]) -> None:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
        for entry in entries:
            if entry.why:
                continue
            merged = np.median(np.array(entry.curves), axis=0)
            points = np.array(front([(float(a), float(b)) for a, b in merged]))
            mine = entry.program.startswith("vecdb")
            axes.plot(points[:, 0], points[:, 1], marker="o", markersize=4, linewidth=2.4 if mine else 1.2, label=entry.label)
        axes.set(
            yscale="log", xlabel=f"recall@{self.k}", ylabel="queries per second, one thread", title=data.name,
            xlim=(max(0.8, axes.get_xlim()[0]), 1.0),
        )  # fmt: skip
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize=8)
        path = self.folder / f"{Path(self.about['config']).stem}-{data.kind}.png"
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
        print(f"Plot: {path}\n")


def ratios(entry: Entry, other: Entry | None, recall: float) -> str:
    """How many times the rate of the other at a recall, round by round: the median, least and most."""
    if other is None or other.why:
        return "–"
    pairs = [
        (at_recall(mine, recall), at_recall(theirs, recall)) for mine, theirs in zip(entry.curves, other.curves, strict=True)
    ]
    found = [mine / theirs for mine, theirs in pairs if mine > 0 and theirs > 0]
    return f"{statistics.median(found):.2f} [{min(found):.2f}–{max(found):.2f}]" if 2 * len(found) > len(pairs) else "–"


def middle(values: list[float]) -> float:
    there = [value for value in values if value == value]
    return statistics.median(there) if len(there) * 2 > len(values) else float("nan")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "results", help="folder of results.jsonl and plots"
    )
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    run = Run(options.config, options.output)
    print(
        f"{run.about['machine']}, Python {run.about['python']}, commit {run.about['commit']}, load {os.getloadavg()[0]:.2f}\n"
    )
    run.measure()


def combined(grid: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def machine() -> str:
    model = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores"
