"""Files into a collection: what is understood is shown first, a wrong row is written down, a second run has nothing to do twice.

python examples/load_files.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np

import vecdb
from vecdb.ingest.plan import plan_of

with tempfile.TemporaryDirectory() as folder:
    day = Path(folder) / "2024-05-01.jsonl"
    rng = np.random.default_rng(0)
    with day.open("w") as file:
        for number in range(1000):
            vector = rng.standard_normal(16).tolist() if number != 500 else [1.0, 2.0]  # one row is wrong
            print(json.dumps({"doc_id": f"doc-{number}", "embedding": vector, "lang": "en"}), file=file)

    with vecdb.open(Path(folder) / "my.db") as db:
        plan = plan_of(db, "docs", Path(folder), on_error="skip", rejects=str(Path(folder) / "rejects.jsonl"))
        print("id:", plan.mapped.id, " vectors:", plan.mapped.vectors, " the first row:", plan.first_points(1)[0]["payload"])
        summary = plan.run(lambda now: print(f"{now.rows} rows, {now.points} points") if now.rows % 500 == 0 else None)
        print(f"{summary.points} points of {summary.rows} rows; {summary.skipped} skipped:")
        print(Path(folder, "rejects.jsonl").read_text().strip())
        print(db["docs"].search(rng.standard_normal(16), k=2))
