"""Blocks of a memtable that are made larger: whoever holds a snapshot sees what was there, rows and deaths, as a dict saw it."""

from __future__ import annotations

from typing import Any

import numpy as np
from vecdb_storage.memtable import Block
from vecdb_storage.snapshot import BlockPart, Snapshot, live_rows

import vecdb
from vecdb import Dense, Sparse

Points = dict[int, tuple[int, Any, Any]]


def seen(snapshot: Snapshot) -> Points:
    """id -> payload's n, the dense vector, the sparse one or None."""
    found: Points = {}
    for part in snapshot.parts:
        dense, sparse = part.field("dense"), part.field("sparse")
        assert dense is not None
        for row in live_rows(part).tolist():
            there = sparse is not None and (sparse.present is None or int(sparse.present[row >> 6]) >> (row & 63) & 1)
            words = sparse.vectors[row : row + 1] if there and sparse is not None else None
            flat = None if words is None else tuple(words.tight().indices.tolist())  # type: ignore[union-attr]
            found[int(part.key(row))] = (int(part.payload(row)[5:-1]), float(dense.vectors[row][0]), flat)
    return found


def test_snapshots_hold_while_blocks_are_made_larger() -> None:
    rng = np.random.default_rng(0)
    points: Points = {}
    kept: list[tuple[Snapshot, Points, set[int]]] = []
    blocks: set[Block] = set()
    with vecdb.open(":memory:") as db:
        docs = db.create_collection("docs", {"dense": Dense(8, metric="ip", index="flat"), "sparse": Sparse()})
        for n in range(160):
            ids = np.unique(rng.integers(0, 9000, 40)).tolist()
            given: list[Any] = [{at % 50: 1.0, 60 + n: 2.0} if at % 3 else None for at in ids]
            vectors = {"dense": np.full((len(ids), 8), n, np.float32), "sparse": given}
            docs.upsert(ids=ids, vectors=vectors, payloads=[{"n": n}] * len(ids))
            points.update({at: (n, float(n), (at % 50, 60 + n) if at % 3 else None) for at in ids})
            gone = rng.integers(0, 9000, 5).tolist()
            docs.delete(gone)
            points = {at: point for at, point in points.items() if at not in gone}
            snapshot = docs._snapshot()
            blocks |= {part.block for part in snapshot.parts if isinstance(part, BlockPart)}
            if n % 16 == 0:
                kept.append((snapshot, points.copy(), set(gone)))
        assert len(blocks) > 1 and [type(part) for part in snapshot.parts] == [BlockPart], "one, larger each time"
        for snapshot, then, gone_then in kept:
            assert seen(snapshot) == then and snapshot.count == len(then)
            places = snapshot.find([*then, *gone_then])
            assert [place is not None for place in places] == [True] * len(then) + [False] * len(gone_then)
            for (at, _), place in zip(then.items(), places, strict=False):
                assert place is not None and place[0].key(place[1]) == at
        docs.flush()
        assert seen(docs._snapshot()) == points
