"""The documentation on this machine, searched: `make demo`.

Reads the docstrings of the standard library and of the installed packages (parsed, never imported), writes them as texts into
`demo.db`, and searches them five times in plain English, with and without a filter. Everything printed is measured here.
"""

from __future__ import annotations

import ast
import logging
import shutil
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np

import vecdb
from vecdb import F

PATH = Path("demo.db")
MOST = 50_000
BATCH = 5_000
WIDTH = 100
QUESTIONS: list[tuple[str, vecdb.F | Any, str]] = [
    ("read a csv file row by row", F("package") == "stdlib", "in the standard library"),
    ("eigenvalues of a symmetric matrix", F("kind") == "function", "functions only"),
    ("run a subprocess and capture its output", F("parameters") <= 2, "at most two parameters"),
    ("nearest neighbors of a point", F("package").in_(["sklearn", "scipy"]), "in sklearn or scipy"),
    (
        "parse a date and time from a string",
        (F("lines") < 10) & F("module").startswith("datetime"),
        "short, in datetime",
    ),
]


def passages(job: tuple[str, str, str]) -> list[dict[str, Any]]:
    """The docstrings of one source file, as points."""
    package, module, file = job
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return []
    found: list[dict[str, Any]] = []

    def visit(node: Any, qualname: str, kind: str) -> None:
        text = ast.get_docstring(node)
        if text and len(text.split()) >= 5:
            arguments = node.args if kind == "function" else None
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) if arguments else 0
            title = f"{module}.{qualname}" if qualname else module
            found.append(
                {
                    "id": f"{package}:{title}"[:500],
                    "text": f"{qualname or module}: {text}"[:2000],
                    "package": package, "module": module, "name": title, "kind": kind,
                    "lines": text.count("\n") + 1, "parameters": count,
                }
            )  # fmt: skip
        for child in getattr(node, "body", []):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
                inner = "class" if isinstance(child, ast.ClassDef) else "function"
                visit(child, f"{qualname}.{child.name}" if qualname else child.name, inner)

    visit(tree, "", "module")
    return found


def sources() -> list[tuple[str, str, str]]:
    """(package, module, file) of the standard library, then of installed packages."""
    paths = sysconfig.get_paths()
    jobs = []
    for package, root in (("stdlib", Path(paths["stdlib"])), ("", Path(paths["purelib"]))):
        for file in sorted(root.rglob("*.py")):
            parts = file.relative_to(root).parts
            skipped = {"test", "tests", "idlelib", "lib2to3", "__pycache__", "_vendor", "pip", "setuptools"}
            if skipped & set(parts) or (package and "site-packages" in parts) or any(p.startswith("test_") for p in parts):
                continue
            module = ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
            jobs.append((package or parts[0].removesuffix(".py"), module, str(file)))
    return jobs


def bar(label: str, done: int, total: int, started: float) -> None:
    """One line that grows on a terminal, and a line now and then elsewhere."""
    share = done / max(1, total)
    line = f"  {label:<22} {'█' * int(30 * share):<30} {done:>7,} of {total:,}  {time.perf_counter() - started:5.1f} s"
    if sys.stdout.isatty():
        print("\r" + line, end="\n" if done >= total else "", flush=True)
    elif done >= total or int(10 * share) != bar.__dict__.get(label):
        bar.__dict__[label] = int(10 * share)
        print(line, flush=True)


def harvest() -> list[dict[str, Any]]:
    jobs, started = sources(), time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    ids: set[str] = set()
    with Pool() as pool:
        for number, points in enumerate(pool.imap(passages, jobs, chunksize=16), 1):
            for point in points:
                if point["id"] not in ids and len(found) < MOST:
                    ids.add(point["id"])
                    found.setdefault(point["text"], point)
            if number % 50 == 0 or number == len(jobs):
                bar("reading sources", number, len(jobs), started)
            if len(found) >= MOST:
                bar("reading sources", len(jobs), len(jobs), started)
                pool.terminate()
                break
    return list(found.values())


def batches(points: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(points), BATCH):
        yield points[start : start + BATCH]


def best(vectors: Any, query: Any, allowed: Any, k: int) -> set[Any]:
    """Exact search in NumPy, which knows nothing of the engine."""
    with np.errstate(all="ignore"):
        scores = np.where(allowed, vectors @ query / np.linalg.norm(vectors, axis=1), -np.inf)
    return set(np.argsort(-scores, kind="stable")[:k].tolist())


def clear() -> None:
    """Deletes the database of an earlier run. Another's, or one that is in use, is left alone."""
    if not (PATH / "VECDB").exists():
        return
    try:
        with vecdb.open(PATH) as db:
            foreign = [name for name in db.collections() if name != "docs" or db.collection(name).info().encoder != "tfidf"]
    except vecdb.errors.VecdbError as error:
        sys.exit(f"{PATH} is there and cannot be replaced: {error}")
    if foreign:
        sys.exit(f"{PATH} is not this demo's: it holds {', '.join(foreign)}. Move it away, or run this in another directory")
    shutil.rmtree(PATH)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="  (%(message)s)")
    began = time.perf_counter()
    clear()
    print(f"vecdb {vecdb.__version__}: the documentation on this machine\n")
    points = harvest()
    packages = len({point["package"] for point in points})
    print(f"  {len(points):,} passages of {packages} packages\n")

    db = vecdb.open(PATH)
    docs = db.create_collection("docs", embed="tfidf")
    # The encoder is fitted on the first texts: so they are an even sample of all.
    order = np.random.default_rng(0).permutation(len(points))
    points = [points[i] for i in order]
    started, written = time.perf_counter(), 0
    for batch in [points[: 4 * BATCH], *batches(points[4 * BATCH :])]:
        payloads = [{key: value for key, value in point.items() if key not in ("id", "text")} for point in batch]
        docs.upsert(ids=[point["id"] for point in batch], texts=[point["text"] for point in batch], payloads=payloads)
        written += len(batch)
        bar("embedding, writing", written, len(points), started)
    docs.flush(wait=False)
    spent = time.perf_counter() - started
    print(f"  {len(points) / spent:,.0f} passages/s, embedding included; each batch was durable before the next began\n")

    started = time.perf_counter()
    db.resume_indexing()
    waiting = threading.Thread(target=docs.flush)
    waiting.start()
    while waiting.is_alive():
        bar("building the index", int(100 * (docs.info().indexes["vector"].building or 0)), 100, started)
        waiting.join(0.2)
    index = docs.info().indexes["vector"]
    bar("building the index", 100, 100, started)
    print(f"  {index.why}; {index.segments} of {docs.info().segments} segments, {index.bytes / 1e6:.1f} MB\n")

    stored = list(docs.scroll(with_vectors=True))
    vectors = np.stack([point.vector for point in stored])
    rows = {point.id: row for row, point in enumerate(stored)}
    docs.search("warm up: load the kernels")
    hits_found = hits_wanted = 0
    for question, where, said in QUESTIONS:
        print("─" * WIDTH)
        query = docs.embedding.of_queries([question])[0]
        for condition, label in ((None, "everywhere"), (where, said)):
            started = time.perf_counter()
            hits = docs.search(question, k=3, where=condition)
            total = 1000 * (time.perf_counter() - started)
            started = time.perf_counter()
            ten = docs.search(query, k=10, where=condition, with_payload=False)
            bare = 1000 * (time.perf_counter() - started)
            allowed = np.ones(len(stored), bool) if condition is None else np.zeros(len(stored), bool)
            if condition is not None:
                allowed[[rows[p.id] for p in docs.scroll(where=condition, with_payload=False)]] = True
            wanted = best(vectors, query, allowed, min(10, int(allowed.sum())))
            found = {rows[i] for i in ten.ids}
            hits_found, hits_wanted = hits_found + len(found & wanted), hits_wanted + len(wanted)
            print(f"“{question}”, {label}")
            print(f"   {int(allowed.sum()):,} candidates, {total:.1f} ms with embedding, {bare:.1f} ms without")
            for hit in hits:
                first = " ".join(hit.payload["text"].split())
                name = hit.payload["name"]
                name = name if len(name) <= 40 else "…" + name[-39:]
                print(f"   {hit.score:.3f}  {name:<40}  {first[: WIDTH - 54]}")
    print("─" * WIDTH)
    print(f"recall@10 against exact search in NumPy: {hits_found / max(1, hits_wanted):.3f} ({hits_found} of {hits_wanted})")
    compare(docs, [point["text"].split(".")[0] for point in points[:: max(1, len(points) // 600)][:600]])
    files = sum(file.stat().st_blocks * 512 for file in PATH.rglob("*") if file.is_file())
    raw = sum(len(point["text"].encode()) for point in points) + vectors.nbytes
    print(f"on disk: {files / 1e6:.1f} MB, for {raw / 1e6:.1f} MB of texts and vectors")
    db.close()
    print(f"all of it took {time.perf_counter() - began:.0f} s\n")
    print("Now try it yourself, in .venv/bin/python:\n")
    print(TRY)


def compare(docs: vecdb.Collection, texts: list[str]) -> None:
    """Recall that is asked and delivered, and the time of a search beside the exact one.

    Short questions are unlike the passages by which the index was calibrated when it was built, so half of them calibrate it.
    """
    asked = docs.embedding.of_queries([text for text in texts if text.strip()])
    docs.calibrate(asked[::2])
    queries = asked[1::2]
    timed = {}
    for recall in (1.0, 0.99, 0.95, 0.9):
        started = time.perf_counter()
        found = [docs.search(query, k=10, recall=recall, with_payload=False).ids for query in queries]
        timed[recall] = found, 1000 * (time.perf_counter() - started) / len(queries)
    true, slow = timed[1.0]
    print(f"after `calibrate` with {len(asked[::2])} questions, of {len(queries)} others:")
    for recall, (found, spent) in timed.items():
        delivered = np.mean([len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(found, true, strict=True)])
        print(
            f"  asked {recall:.2f}, delivered {delivered:.3f}: {spent:.2f} ms a search, {slow / spent:.1f} x the exact one's speed"
        )


TRY = """\
    import vecdb
    from vecdb import F

    db = vecdb.open("demo.db")
    docs = db.collection("docs")
    for hit in docs.search("compress a file", k=5, where=F("lines") >= 3):
        print(f"{hit.score:.3f}", hit.payload["name"])
    print(docs.count("package == 'stdlib'"), docs.info().rows)
    print(docs.search("open a socket", explain=True).plan)
    db.close()
"""


if __name__ == "__main__":
    main()
