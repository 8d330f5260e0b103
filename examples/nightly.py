"""What a nightly job does: verify, an incremental backup, a drill that restores it, and the figures to watch.

python examples/nightly.py [folder]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

import vecdb
from vecdb import Dense


def nightly(db: vecdb.Database, backups: Path, name: str) -> None:
    report = db.verify()
    if not report.ok:
        raise SystemExit("\n".join(map(str, report.damage)))  # and somebody is called
    earlier = max((path for path in backups.glob("*") if (path / "BACKUP").exists()), default=None)
    made = db.backup(backups / name, earlier=earlier)
    print(f"{name}: {made.files} files, {made.bytes:,} bytes, of which {made.copied:,} were copied")
    vecdb.restore(backups / name, backups / "drill")  # a backup that was never restored is none
    with vecdb.open(backups / "drill", read_only=True) as drill:
        assert len(drill.collections()) == len(db.collections())
    shutil.rmtree(backups / "drill")


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with vecdb.open(folder / "my.db") as db:
        docs = db.create_collection("docs", Dense(32))
        for night in ("2026-01-01", "2026-01-02", "2026-01-03"):
            docs.upsert(vectors=rng.standard_normal((5000, 32)))
            docs.flush()
            nightly(db, folder / "backups", night)
        docs.delete([point.id for point in docs.scroll(limit=4000)])
        done = db.vacuum()
        print(f"vacuum: {done.before:,} bytes before, {done.after:,} after")
        info = db.info()
        print(f"write amplification {info.write_amplification:.2f}, {info.segments} segments, {info.dead_rows} dead rows")


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "nightly-example")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    main(target)
