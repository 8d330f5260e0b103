"""Makes the recording in the README: a Parquet file, `vecdb ingest` of it, and a search, as a terminal shows them.

    python examples/recording.py            prints it
    python examples/recording.py README.md  puts it there, between the marks

The file is large so that there is progress to see; nothing of it is kept.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 128
COMMANDS = (
    "vecdb ingest articles.parquet --db my.db --collection articles",
    "vecdb search articles --db my.db --like article-7 -k 3 --where \"year >= 2015 and lang == 'en'\"",
    "vecdb info articles --db my.db",
)
BEGIN, END = "<!-- recording: python examples/recording.py README.md -->\n```console\n", "```\n<!-- end of recording -->\n"


def record(rows: int) -> str:
    """What the commands print, each after its own line."""
    with tempfile.TemporaryDirectory(prefix="vecdb-recording-") as folder:
        _write(Path(folder) / "articles.parquet", rows)
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "150"}
        environment.pop("VECDB_DB", None)
        shown = []
        for command in COMMANDS:
            done = subprocess.run(
                command,
                shell=True,
                cwd=folder,
                env=environment,
                check=True,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            lines = without_indexing([line.rstrip() for line in done.stdout.splitlines()])
            shown.append("\n".join([f"$ {command}", *lines]))
        return "\n\n".join(shown) + "\n"


def without_indexing(lines: list[str]) -> list[str]:
    """The many lines of progress while indexes are built are one "…"."""
    kept = ["…" if line.startswith("indexing ") else line for line in lines]
    return [line for line, before in zip(kept, [None, *kept], strict=False) if (line, before) != ("…", "…")]


def _write(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1000, DIM), np.float32)
    schema = pa.schema([
        ("id", pa.string()), ("embedding", pa.list_(pa.float32(), DIM)), ("title", pa.string()), ("year", pa.int64()), ("lang", pa.string()),
    ])  # fmt: skip
    with pq.ParquetWriter(path, schema, use_dictionary=["lang"]) as writer:
        for start in range(0, rows, 50_000):
            count = min(50_000, rows - start)
            topic = rng.integers(0, len(centres), count)
            vectors = centres[topic] + 0.5 * rng.standard_normal((count, DIM), np.float32)
            writer.write_table(pa.table({
                "id": [f"article-{start + i}" for i in range(count)],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIM),
                "title": [f"On topic {t}, part {start + i}" for i, t in enumerate(topic.tolist())],
                "year": rng.integers(1990, 2025, count),
                "lang": [("en", "de", "fr")[i % 3] for i in range(count)],
            }, schema=schema))  # fmt: skip


def main() -> None:
    recorded = record(1_000_000)
    if len(sys.argv) == 1:
        print(recorded, end="")
        return
    page = Path(sys.argv[1])
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    assert pattern.search(text), f"{page} has no marks"
    page.write_text(pattern.sub(lambda _: BEGIN + recorded + END, text), encoding="utf-8")


if __name__ == "__main__":
    main()
