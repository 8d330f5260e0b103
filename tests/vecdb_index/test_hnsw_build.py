"""What a graph is, whatever its rows: all of them can be reached, from few entries, also when many are the same."""

from __future__ import annotations

import numpy as np
import pytest
from vecdb_index.contract import Budget, Control, Rows, Trial
from vecdb_index.hnsw import build
from vecdb_index.hnsw.backend import BACKEND
from vecdb_index.hnsw.params import HNSW


def test_copies_of_a_row_are_reached_from_few_entries_also_those_that_were_held_out() -> None:
    """Of rows that are the same all link to the same few, so that nothing leads to most of them unless it is seen to."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.standard_normal((500, 16)), np.repeat(rng.standard_normal((5, 16)), 800, axis=0)])
    vectors = vectors.astype(np.float32)
    rows = Rows(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32), "l2")
    seen = []
    trial = Trial(np.arange(0, len(rows), 20), lambda searcher, others: seen.append(searcher.search(vectors[:5], 10)))
    arrays = BACKEND.build(rows, {}, HNSW(), Budget(), lambda share: None, trial)
    adj, deg, entries = (np.asarray(arrays[name]).astype(np.int64) for name in ("adj", "deg", "entries"))
    reached = np.zeros(len(rows), np.bool_)
    waiting = entries.tolist()
    reached[entries] = True
    while waiting:
        row = waiting.pop()
        for other in adj[row, : deg[row]].tolist():
            if not reached[other]:
                reached[other] = True
                waiting.append(other)
    assert seen and reached.all()
    assert len(entries) < 100, "4,000 rows are copies"


def test_a_graph_is_the_same_however_many_threads_are_left_to_its_build() -> None:
    """A control that gives fewer threads, and more again, while it is built: each row is inserted, once."""
    vectors = np.random.default_rng(0).standard_normal((6000, 16)).astype(np.float32)
    rows = Rows(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32), "l2")
    given = []

    class Changing(Control):
        def threads(self, most: int) -> int:
            given.append(1 + len(given) % most)
            return given[-1]

    built = [BACKEND.build(rows, {}, HNSW(), Budget(4, control=control), lambda _: None) for control in (Control(), Changing())]
    assert len(given) > 30 and set(given) == {1, 2, 3, 4}
    assert built[0].keys() == built[1].keys()
    for name, array in built[0].items():
        assert array.tobytes() == built[1][name].tobytes(), name


def test_the_large_arrays_of_a_build_lie_where_its_caller_wants_them() -> None:
    """And what is said to be filled in once is not changed while links are."""
    vectors = np.random.default_rng(0).standard_normal((6000, 64)).astype(np.float32)
    rows = Rows(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32), "l2")
    given: list[tuple[np.ndarray, bool]] = []
    seen: list[list[bytes]] = []

    def room(size: int, once: bool) -> np.ndarray:
        given.append((np.zeros(size, np.uint8), once))
        return given[-1][0]

    def progress(share: float) -> None:
        if share > 0.02:
            seen.append([array.tobytes() for array, once in given if once])

    here, there = (
        BACKEND.build(rows, {}, HNSW(), budget, shown)
        for budget, shown in ((Budget(), lambda _: None), (Budget(room=room), progress))
    )
    assert {name for name, array in there.items() if any(np.shares_memory(array, mine) for mine, _ in given)} == {
        "codes", "near", "adj"
    }  # fmt: skip
    assert [once for _, once in given].count(True) == 2 and len(seen) > 3
    assert all(each == seen[0] for each in seen)
    for name, array in here.items():
        assert array.tobytes() == there[name].tobytes(), name


def test_a_graph_is_the_same_wherever_its_work_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows are so long that each is linked to by more rows of a batch than a task has."""
    vectors = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    vectors[:20] *= 10
    rows = Rows(vectors, np.linalg.norm(vectors, axis=1).astype(np.float32), "ip")
    made = []
    for task, threads in ((10**6, 1), (64, 1), (1, 1), (1, 2)):
        monkeypatch.setattr(build, "_TASK", task)
        made.append(BACKEND.build(rows, {}, HNSW(m=8), Budget(threads=threads), lambda share: None))
    assert all(np.array_equal(made[0][name], each[name]) for each in made[1:] for name in made[0])
