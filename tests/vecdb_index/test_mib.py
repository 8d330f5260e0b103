"""The index of bits: what comes is the exact order of the rows whose bits say most, however the work is divided."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vecdb_index.codec.bits import LEVELS, TERMS, report, unpacked, width_of
from vecdb_index.codec.planes import refine, values
from vecdb_index.conformance import CASES, bitmap, check, drawn, recall, same, stored
from vecdb_index.contract import Budget, Control, Damaged, NeedsMemory, Part, Trial
from vecdb_index.flat.search import FlatSearcher
from vecdb_index.kernels.distances import METRICS
from vecdb_index.kernels.select import read
from vecdb_index.mib.backend import BACKEND
from vecdb_index.mib.gate import RECALLS, best_of, lists_of, measured, verdict_of
from vecdb_index.mib.margin import Decline
from vecdb_index.mib.params import MIB
from vecdb_index.mib.scan import Lists, Plan, fast_pair, fast_sums, plain_pair, plain_scan, plain_sums, scan, shorten
from vecdb_index.mib.search import MIBSearcher
from vecdb_index.mib.tuning import usual

METRIC = pytest.mark.parametrize("metric", METRICS)
NONE = np.zeros(0, np.uint64)


def opened(rows: Any, rotation: str = "hadamard", bits: int | str = 1) -> MIBSearcher:
    params = MIB(rotation, bits)
    return MIBSearcher(BACKEND.build(rows, {}, params, Budget(), lambda share: None), {}, rows, params)


def estimates(searcher: MIBSearcher, queries: np.ndarray) -> np.ndarray:
    """(m, n) in float64, by unpacked bits; the step of the tables included."""
    n = len(searcher.rows)
    bits = unpacked(searcher.bits.codes, n)
    scale, add = searcher.bits.factors.transpose(1, 0, 2).reshape(2, -1)[:, :n].astype(np.float64)
    _, tables, terms, _ = searcher.encoder.ask(queries)
    columns = bits.reshape(n, -1, 4) @ np.array([1, 2, 4, 8])
    sums = np.stack([table.astype(np.int64)[np.arange(len(table)), columns].sum(axis=1) for table in tables])
    step, bias, share = terms.T[:3, :, None]
    found: np.ndarray = scale * (step * sums + bias) + share * add
    return found


def listed(
    searcher: MIBSearcher, queries: np.ndarray, count: int, kernel: Any = scan, words: Any = NONE, step: int = 1 << 30,
    room: int = 0, plan: Plan | None = None, **margin: Any,
) -> list[np.ndarray]:  # fmt: skip
    """The rows of each query's short list, the best first."""
    m, blocks = len(queries), len(searcher.bits.codes)
    _, tables, terms, _ = searcher.encoder.ask(queries)
    lists = Lists.of(m, count, **margin)
    if room:
        lists = lists._replace(entries=np.empty((m, room), np.uint64), due=np.full(m, room))
    plan = plan or usual(searcher.encoder.width)
    for first in range(0, blocks, step):
        kernel(tables, terms, *searcher.bits, words, first, min(blocks, first + step), plan, *lists)
    shorten(*lists)
    entries = [np.sort(each[:size]) for each, size in zip(*lists[:2], strict=True)]
    return [((each >> np.uint64(1)) & np.uint64(0x7FFF_FFFF)).astype(np.int64) for each in entries]


@METRIC
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), d=st.sampled_from([1, 63, 65, 384, 1028]), n=st.integers(33, 700), m=st.integers(1, 9),
    count=st.integers(1, 30), share=st.sampled_from([1.0, 0.5, 0.02]),
)  # fmt: skip
def test_short_lists_are_the_best_of_the_full_ranking(
    metric: Any, seed: int, d: int, n: int, m: int, count: int, share: float
) -> None:
    """Filtered after it, where there is a bitmap; by either kernel, and in any division of the work."""
    searcher, queries = opened(stored(drawn(n, d, seed) + 0.1, metric)), drawn(m, d, seed + 1)
    flags = np.random.default_rng(seed).random(n) < share
    words = NONE if share == 1 else bitmap(flags)
    whole, two_blocks = listed(searcher, queries, count, words=words), Plan(4, 1 << 17, 0)
    for others in (
        listed(searcher, queries, count, plain_scan, words),
        listed(searcher, queries, count, words=words, step=1),
        listed(searcher, queries, count, words=words, plan=Plan(1, 1, 0)),
        listed(searcher, queries, count, words=words, plan=Plan(2, 1 << 12, 8192)),
        listed(searcher, queries, count, words=words, plan=Plan(4, 1 << 13, 64)),
        listed(searcher, queries, count, words=words, step=3, room=count + 1),
        [listed(searcher, queries[q : q + 1], count, words=words)[0] for q in range(m)],
        [listed(searcher, queries[q : q + 1], count, words=words, plan=two_blocks)[0] for q in range(m)],
        [listed(searcher, queries[q : q + 1], count, plain_scan, words, plan=two_blocks)[0] for q in range(m)],
    ):
        assert all(np.array_equal(a, b) for a, b in zip(whole, others, strict=True))
    ranks = estimates(searcher, queries)
    for mine, rank in zip(whole, ranks, strict=True):
        assert len(mine) == min(count, int(flags.sum()) if share < 1 else n)
        assert len(set(mine.tolist())) == len(mine) and (share == 1 or flags[mine].all())
        best = np.sort(rank if share == 1 else rank[flags])[::-1][: len(mine)]
        near = 1e-5 * np.abs(rank).max()  # kernels rank in float32
        assert (np.abs(rank[mine] - best) <= near).all()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(1, 700), count=st.integers(2, 60), near=st.integers(1, 60),
    reach=st.sampled_from([0.0, 0.01, 0.1, 1.0, 100.0]), step=st.integers(1, 9), room=st.integers(1, 40),
)  # fmt: skip
def test_short_lists_by_a_margin_are_what_lies_within_it(
    seed: int, n: int, count: int, near: int, reach: float, step: int, room: int
) -> None:
    """Of the best `count`: the `near` first, and those whose estimates are less than `reach` below the last of these. There are
    equal rows among them.
    """
    near, rows = min(near, count), drawn(n, 65, seed)
    rows[: n // 3] = rows[n // 3 : 2 * (n // 3)]
    searcher, queries = opened(stored(rows, "ip")), drawn(5, 65, seed + 1)
    lists = Lists.of(5, n + 1)
    _, tables, terms, _ = searcher.encoder.ask(queries)
    scan(tables, terms, *searcher.bits, NONE, 0, len(searcher.bits.codes), usual(128), *lists)
    margin = {"near": near, "reach": np.linspace(reach / 2, reach, 5, dtype=np.float32)}
    found = listed(searcher, queries, count, **margin)
    for q, mine in enumerate(found):
        keys, order = read(np.sort(lists.entries[q, :n])[:count])
        kept = keys > keys[min(near, len(keys)) - 1] - margin["reach"][q]
        kept[:near] = True
        assert mine.tolist() == order[kept].tolist()
    for kernel, each in (
        (plain_scan, {"step": step}),
        (scan, {"step": step, "room": count + room}),
        (scan, {"plan": Plan(2, 1, 0)}),
    ):
        again = listed(searcher, queries, count, kernel, **each, **margin)
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("width", [64, 384, 1024, 1536, 3072, 4160, 65_536])
def test_the_greatest_sums_do_not_overflow(width: int) -> None:
    """All bits set, and tables with as much as they may have."""
    columns = width // 4
    codes = np.full((1, width // 8, 32), 255, np.uint8)
    tables = np.zeros((4, columns, 16), np.uint8)
    tables[:, :, 15] = min(LEVELS, 65_535 // columns)
    for first, together in ((0, 1), (0, 2), (0, 4)):
        fast, plain = np.zeros((4, 32), np.uint16), np.zeros((4, 32), np.uint16)
        fast_sums(codes, 0, tables, first, together, 0, fast)
        plain_sums(codes, 0, tables, first, together, 4096, plain)
        assert (plain[:together] == columns * int(tables[0, 0, 15])).all()
        assert np.array_equal(fast, plain)
    twice = np.repeat(codes, 2, axis=0)
    fast_pair(twice, 0, tables, 0, 0, fast)
    plain_pair(twice, 0, tables, 0, 0, plain)
    assert np.array_equal(fast[:2], plain[:2]) and (plain[:2] == columns * int(tables[0, 0, 15])).all()


def test_both_kernels_find_the_same_sums() -> None:
    rng = np.random.default_rng(0)
    for width in (64, 128, 448, 1088):
        codes = rng.integers(0, 256, (3, width // 8, 32), dtype=np.uint8)
        tables = rng.integers(0, LEVELS + 1, (5, width // 4, 16), dtype=np.uint8)
        for block, first, together in ((0, 0, 4), (1, 1, 4), (2, 3, 2), (2, 4, 1)):
            fast, plain = np.zeros((4, 32), np.uint16), np.zeros((4, 32), np.uint16)
            fast_sums(codes, block, tables, first, together, 0, fast)
            plain_sums(codes, block, tables, first, together, 4096, plain)
            assert np.array_equal(fast, plain)
        for block, q in ((0, 0), (1, 4)):
            fast_pair(codes, block, tables, q, 0, fast)
            plain_pair(codes, block, tables, q, 0, plain)
            assert np.array_equal(fast[:2], plain[:2])


@METRIC
@pytest.mark.parametrize("d", [1, 63, 65, 384, 4097])
def test_keys_are_those_of_the_exact_search(metric: Any, d: int) -> None:
    rows, queries = stored(drawn(300, d) + 0.1, metric), drawn(6, d, seed=1)
    searcher, exact = opened(rows), FlatSearcher(rows)
    hits, every = searcher.look(queries, 10, 60), exact.search(queries, 300)
    check(hits, rows, queries, 10)
    for q in range(6):
        known = dict(zip(every.rows[q].tolist(), every.keys[q].view(np.uint32).tolist(), strict=True))
        assert hits.keys[q].view(np.uint32).tolist() == [known[row] for row in hits.rows[q].tolist()]
    assert same(searcher.search(queries, 10, 1.0), exact.search(queries, 10))


def test_bits_find_what_is_near() -> None:
    rows, queries = stored(drawn(4000, 128), "cosine"), drawn(50, 128, seed=1)
    searcher = opened(rows)
    found = [recall(searcher.look(queries, 10, short), rows, queries, 10) for short in (10, 100, 1000)]
    assert found == sorted(found) and found[1] > 0.5 and found[2] > 0.99


def test_batches_and_polls_change_nothing() -> None:
    rows, queries = stored(drawn(9000, 64), "l2"), drawn(150, 64, seed=1)
    searcher, words = opened(rows), bitmap(np.arange(9000) % 3 == 0)
    for allowed in (NONE, words):
        batch = searcher.look(queries, 10, 100, allowed)
        assert same(batch, searcher.look(queries, 10, 100, allowed, control=Control()))
        for q in range(0, 150, 29):
            one = searcher.look(queries[q : q + 1], 10, 100, allowed)
            assert np.array_equal(one.keys[0], batch.keys[q]) and np.array_equal(one.rows[0], batch.rows[q])


@pytest.mark.parametrize("case", [case for case in CASES if "cost" not in case.__name__], ids=lambda case: case.__name__)
def test_the_contract_is_kept_by_bits_too(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows so few and short would be searched exactly."""
    monkeypatch.setattr(MIBSearcher, "_pays", lambda self, k, short: True)
    case(BACKEND)


def test_equal_rows_come_in_their_order() -> None:
    rows, queries = stored(np.ones((5000, 64)), "l2"), drawn(3, 64, seed=1)
    assert (opened(rows).look(queries, 10, 50).rows == np.arange(10)).all()
    twins = np.repeat(drawn(1000, 64), 3, axis=0)
    hits = opened(stored(twins, "l2")).look(queries, 9, 90)
    assert all(row[::3].tolist() == (row[2::3] - 2).tolist() for row in hits.rows), "of the same key, by row"


def test_a_block_without_allowed_rows_is_not_read() -> None:
    rows, queries = stored(drawn(20_000, 64), "cosine"), drawn(1, 64, seed=1)
    searcher = opened(rows)
    everywhere = searcher.look(queries, 5, 20)
    flags = np.zeros(20_000, np.bool_)
    flags[640:960] = True
    near = searcher.look(queries, 5, 20, bitmap(flags))
    each = everywhere.seen["bytes of codes"] // (20_000 // 32)
    assert near.seen["bytes of codes"] == 10 * each and 5 <= near.seen["rows in short lists"] <= 80
    assert near.bytes == near.seen["bytes of codes"] + near.seen["rows in short lists"] * rows.vectors[:1].nbytes
    assert searcher.search(queries, 5, 0.5, bitmap(np.zeros(20_000, np.bool_))).lengths[0] == 0


def test_auto_tries_rotations_and_keeps_its_table() -> None:
    """Numbers of very different spread: without a rotation half of the bits say nothing."""
    skewed = drawn(6000, 64) * np.r_[np.full(8, 30.0), np.full(56, 0.3)]
    arrays = BACKEND.build(stored(skewed, "l2"), {}, MIB(), Budget(), lambda share: None)
    table = arrays["trial"]
    assert table.shape == (3, 5) and ((table >= 0) & (table <= 1)).all() and (np.diff(table, axis=1) >= 0).all()
    assert table[1:].mean() > table[0].mean() and arrays["encoder"][0] != 0
    few = BACKEND.build(stored(skewed[:500], "l2"), {}, MIB(), Budget(), lambda share: None)
    assert few["trial"].shape == (0, 5)


@pytest.mark.parametrize("rotation", ["none", "hadamard", "dense", "pca", "itq", "auto"])
def test_threads_change_no_byte(rotation: str) -> None:
    rows, params = stored(drawn(9000, 96), "cosine"), MIB(rotation, 3)
    one, two = (BACKEND.build(rows, {}, params, Budget(threads=t), lambda share: None) for t in (1, 2))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one) and one.keys() == two.keys()


@pytest.mark.parametrize("bits", [1, 3])
def test_merged_codes_are_copied_where_one_encoder_made_them(bits: int) -> None:
    vectors = drawn(1500, 65)
    whole, params = stored(vectors, "l2"), MIB("hadamard", bits)
    trained = BACKEND.train(whole, params, Budget())
    kept = np.random.default_rng(0).random(1500) < 0.8
    to = np.where(kept, np.cumsum(kept) - 1, -1)
    parts = []
    for first, last in ((0, 700), (700, 1500)):
        some = stored(vectors[first:last], "l2")
        arrays = BACKEND.build(some, trained, params, Budget(), lambda share: None)
        parts.append(Part(some, arrays, to[first:last]))
    rows = stored(vectors[kept], "l2")
    merged = BACKEND.merge(parts, rows, trained, params, Budget())
    anew = BACKEND.build(rows, trained, params, Budget(), lambda share: None)
    assert merged is not None and merged.keys() == anew.keys()
    assert all(merged[name].tobytes() == anew[name].tobytes() for name in anew)
    deeper = BACKEND.train(whole, MIB("hadamard", 4), Budget())
    assert BACKEND.merge(parts, rows, deeper, params, Budget()) is None
    other = BACKEND.train(rows, MIB("dense", bits), Budget())
    assert BACKEND.merge(parts, rows, other, params, Budget()) is None
    with pytest.raises(Damaged, match="another encoder"):
        BACKEND.open(merged, other, rows, params)


def test_an_encoder_is_kept_until_its_bits_say_less() -> None:
    """Of rows like those that it knew, more or fewer of them; not of rows that lie elsewhere."""
    params, budget = MIB("none"), Budget()
    made = drawn(8300, 48) + 1
    known = BACKEND.train(stored(made[:5000], "l2"), params, budget)
    for like in (made[5000:8000], made[8000:]):
        again = BACKEND.train(stored(like, "l2"), params, budget, known)
        assert all(np.array_equal(again[name], known[name]) for name in ("encoder", "centre", "unit", "entropy"))
        assert again["bits"] == 1 and len(again["gate"]) == (len(like) > 2000)
    moved = stored(made[5000:8000] - 2, "l2")
    anew = BACKEND.train(moved, params, budget, known)
    assert all(np.array_equal(anew[name], each) for name, each in BACKEND.train(moved, params, budget).items())
    assert anew["encoder"][1] != known["encoder"][1] and np.abs(anew["centre"] - known["centre"]).max() > 0.05
    little = BACKEND.train(stored(made[:1], "l2"), params, budget)
    most = stored(made[:5000], "l2")
    assert BACKEND.train(most, params, budget, little)["encoder"][1] == known["encoder"][1], "what knew one row is not kept"
    few = stored(made[5000:5001] - 2, "l2")
    assert BACKEND.train(few, params, budget, known)["encoder"][1] == known["encoder"][1], "one row says nothing"


def test_a_merge_is_measured_as_a_build_is() -> None:
    rows, params = stored(drawn(1200, 64), "cosine"), MIB("hadamard", 2)
    trained = BACKEND.train(rows, params, Budget())
    arrays = BACKEND.build(rows, trained, params, Budget(), lambda share: None)
    seen: list[Any] = []
    trial = Trial(np.arange(0, 1200, 12), lambda searcher, others: seen.append((searcher, others)))
    merged = BACKEND.merge([Part(rows, arrays, np.arange(1200))], rows, trained, params, Budget(), trial)
    assert merged is not None and merged["codes"].tobytes() == arrays["codes"].tobytes()
    ((searcher, others),) = seen
    assert searcher._count == 1100 and others.present is not None
    with pytest.raises(NeedsMemory):
        BACKEND.merge([Part(rows, arrays, np.arange(1200))], rows, trained, params, Budget(memory=1))


def test_bits_are_bought_only_where_they_pay() -> None:
    assert not opened(stored(drawn(2000, 16), "l2"))._pays(10, 100)
    searcher = opened(stored(drawn(40_000, 256), "cosine"))
    assert searcher._pays(10, 100) and not searcher._pays(10, 39_000)
    costs = [searcher.cost(10, effort, 1.0) for effort in np.linspace(0, 1, 21)]
    assert costs == sorted(costs)
    assert searcher.cost(10, 0.3, 0.001) < searcher.cost(10, 0.3, 1.0) / 2
    assert searcher.listed(10, 0.0) == 10 and searcher.listed(10, 1.0) == 10_000 and searcher.listed(30_000, 0.5) == 30_000


@pytest.mark.parametrize("wrong", ["sideways", "", None])
def test_rotations_are_checked(wrong: Any) -> None:
    with pytest.raises(ValueError, match="rotation must be one of auto, none"):
        MIB(wrong)


@pytest.mark.parametrize("wrong", [0, 9, -1, 1.5, "2", None, True])
def test_numbers_of_bits_are_checked(wrong: Any) -> None:
    with pytest.raises(ValueError, match="bits must be auto, or 1 to 8"):
        MIB(bits=wrong)


def test_terms_have_their_places() -> None:
    searcher = opened(stored(drawn(100, 20), "ip"))
    assert searcher.encoder.ask(drawn(2, 20))[2].shape == (2, TERMS)


# -- whether bits serve ------------------------------------------------------------------------------------------


def like_texts(n: int, d: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    spread = np.linspace(1.5, 0.5, d)
    centres = rng.standard_normal((n // 200, d)) * rng.uniform(0.3, 1.2, (n // 200, 1))
    return ((centres[rng.integers(0, len(centres), n)] + 0.6 * rng.standard_normal((n, d))) * spread).astype(np.float32)


def like_images(n: int, side: int) -> np.ndarray:
    """Waves of light and shade in whole numbers from 0 to 255: neighbouring pixels say nearly the same."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    images = np.zeros((n, side, side))
    for _ in range(3):
        turns, phase, size = rng.uniform(0.2, 1, (2, n, 1, 1)), rng.uniform(0, 6.3, (n, 1, 1)), rng.exponential(40, (n, 1, 1))
        images += size * (1 + np.cos(6.3 * (turns[0] * x + turns[1] * y) + phase))
    images *= rng.uniform(0.1, 1, (n, 1, 1))  # of light
    return np.rint(np.clip(images, 0, 255)).reshape(n, -1).astype(np.float32)


def test_the_gate_tells_texts_from_images() -> None:
    good, bad = opened(stored(like_texts(6000, 256), "cosine")), opened(stored(like_images(12_000, 5), "l2"))
    assert good.verdict is not None and good.verdict.says == "ok" and good.advice == ""
    assert bad.verdict is not None and bad.verdict.says == "other backend" and "hnsw" in bad.advice
    assert good.figures["effective bits"] > 80 > 20 > bad.figures["effective bits"]
    few = opened(stored(like_images(1000, 8), "l2"))
    assert few.verdict is None and few.advice == "" and "short list for 0.99" not in few.figures


@pytest.mark.parametrize("made", [like_texts(24_000, 128), like_images(24_000, 8)], ids=["texts", "images"])
def test_the_short_list_that_the_gate_says_is_long_enough(made: np.ndarray) -> None:
    """On four times the rows of the sample, and queries that nobody has seen; it is no more than a few times what it takes."""
    rows, queries = stored(made[:23_700], "l2"), made[23_700:]
    gate, searcher = opened(stored(made[:6000], "l2")).gate[1], opened(rows)
    for wanted, short in zip(RECALLS, lists_of(gate, len(rows)), strict=True):
        found = recall(searcher.look(queries, 10, short), rows, queries, 10)
        assert found >= wanted - 0.03
        assert recall(searcher.look(queries, 10, max(10, short // 6)), rows, queries, 10) < wanted or short < 100


def test_lengths_grow_with_the_rows_as_they_did_in_the_sample() -> None:
    rows = np.array([1000.0, 2000.0, 4000.0])
    gate = np.c_[rows, rows / 20, np.sqrt(rows)]
    assert lists_of(gate, 4000) == (200, 64) and lists_of(gate, 40_000) == (2000, 200)
    assert lists_of(np.c_[rows, rows * 0 + 50, rows**2 / 1000], 400_000) == (500, 400_000), "between the root and the number"
    assert lists_of(gate, 7) == (7, 7) and lists_of(gate, 0) == (0, 0)


def test_verdicts() -> None:
    def says(low: float, high: float, rows: int = 100_000, d: int = 256) -> str | None:
        lengths = np.array([rows / 4, rows / 2, rows])
        verdict = verdict_of({1: np.c_[lengths, [[low, high]] * 3]}, 1, rows, width_of(d), d, 4 * d)
        return None if verdict is None else verdict.says

    assert says(100, 1000) == "ok" and says(100, 1001) == "more bits" and says(1001, 1001) == "other backend"
    assert says(100, 200, 10_000) == "ok", "a list that is short is no burden, whatever its share"
    assert says(10, 10, 100_000, 16) == "other backend", "codes of 64 bits and 8 bytes for 16 bytes"
    assert verdict_of({}, 1, 100_000, 256, 256, 1024) is None
    sizes = [25e3, 5e4, 1e5]
    gate = {1: np.c_[sizes, [[100, 2000]] * 3], 4: np.c_[sizes, [[12, 20]] * 3]}
    one, four = (verdict_of(gate, bits, 100_000, 256, 256, 1024) for bits in (1, 4))
    assert one is not None and one.says == "more bits" and one.later == (317, 6325)
    assert "0.99 takes short lists of 2,000 rows (2.0%)" in one.advice(4) and "MIB(bits=4)" in one.advice(4)
    assert "MIB" not in one.advice(None) and "hnsw" in one.advice(None)
    assert four is not None and four.says == "ok" and four.advice(None) == ""
    assert four.read[1] == 100_000 * (32 + 8) + 2000 * (4 * 32 + 4) + 20 * 1024
    assert best_of([one, four]) is four and best_of([None, one]) is one and best_of([None]) is None


def test_ranks_in_a_part_are_those_of_its_rows() -> None:
    """Estimates in the true order of all rows: the ten nearest of each part are its first ten."""
    rng = np.random.default_rng(0)
    orders = np.array([rng.permutation(4000) for _ in range(20)])
    assert measured(orders[:, :120], orders[:, :1000], 4000).tolist() == [[1000, 10, 10], [2000, 10, 10], [4000, 10, 10]]
    never = measured(orders[:, :120], orders[:, 3000:], 4000)
    assert never[-1].tolist() == [4000, 4000, 4000], "what is in no list counts as last"


def test_figures_say_what_the_bits_are_like(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = np.ones(5000, np.bool_)
    flags[3::7] = False
    vectors = drawn(5000, 100)
    vectors[~flags] = 0
    rows = stored(vectors, "ip", present=flags)
    params = MIB()
    arrays = BACKEND.build(rows, {}, params, Budget(), lambda share: None)
    searcher = MIBSearcher(arrays, {}, rows, params)
    monkeypatch.setattr("vecdb_index.mib.search._LOOKED_AT", 1 << 20)
    bits = unpacked(searcher.bits.codes, 5000)[flags]
    if searcher.encoder.rotation != "hadamard":
        bits = bits[:, :100]
    said, figures = report(bits), searcher.figures
    assert figures["entropy of a bit"] == said.entropy and figures["entropy of a bit, least"] == said.least
    assert figures["correlation of bits"] == said.correlation
    assert figures["effective bits"] == pytest.approx(said.effective, rel=0.2), "of fewer pairs"
    assert figures["bytes a row"] == 128 // 8 + 8
    assert figures["found in 100 by itq"] == pytest.approx(arrays["trial"][2, 3])
    empty = stored(np.zeros((0, 5)), "ip")
    assert "entropy of a bit" not in opened(empty).figures


@pytest.mark.parametrize("name", ["trial", "gate", "depths", "planes", "scales", "of", "entropy"])
def test_damaged_trials_and_codes_are_refused(name: str) -> None:
    rows = stored(drawn(3000, 64), "l2")
    arrays = BACKEND.build(rows, {}, MIB(bits=2), Budget(), lambda share: None)
    for wrong in (np.concatenate([arrays[name], arrays[name]]), arrays[name] * np.nan, arrays[name].astype(np.int64)):
        with pytest.raises(Damaged):
            BACKEND.open({**arrays, name: wrong}, {}, rows, MIB())


# -- more bits than one ------------------------------------------------------------------------------------------


@METRIC
@pytest.mark.parametrize("d", [1, 63, 65, 384])
@pytest.mark.parametrize("bits", [2, 5, 8])
def test_more_bits_order_a_list_as_their_estimates_do(metric: Any, d: int, bits: int) -> None:
    """In float64, by unpacked codes; the first bit is that of the scan."""
    rows, queries = stored(drawn(500, d) + 0.1, metric), drawn(4, d, seed=1)
    searcher = opened(rows, bits=bits)
    codes = values(searcher._planes, searcher.encoder.width)
    assert np.array_equal(codes >= 1 << bits - 1, unpacked(searcher.bits.codes, 500))
    _, _, terms, turned = searcher.encoder.ask(queries)
    scale, add = searcher._scales.astype(np.float64), searcher.bits.factors[:, 1].reshape(-1)[:500].astype(np.float64)
    exact = scale * (turned.astype(np.float64) @ (codes - (2**bits - 1) / 2).T) + terms[:, 2:3] * add
    lists = np.tile(np.arange(500, dtype=np.uint64) << np.uint64(1), (4, 1))
    sizes = np.full(4, 500)
    assert refine(turned, terms, searcher._planes, searcher._scales, searcher.bits.factors, 30, lists, sizes) == 2000
    assert sizes.tolist() == [30] * 4
    for mine, estimate in zip(lists, exact, strict=True):
        found = (np.sort(mine[:30]) >> np.uint64(1)).astype(np.int64) & 0x7FFF_FFFF
        near = 1e-5 * np.abs(estimate).max()
        assert (np.abs(estimate[found] - np.sort(estimate)[::-1][:30]) <= near).all()


@METRIC
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_each_bit_halves_the_error(metric: Any, rotation: str) -> None:
    """Of normal numbers, for which a grid of B bits is best."""
    rows, queries = stored(drawn(800, 128), metric), drawn(20, 128, seed=1)
    errors = []
    for bits in range(2, 9):
        searcher = opened(rows, rotation, bits)
        ready, _, terms, turned = searcher.encoder.ask(queries)
        centred = values(searcher._planes, 128) - (2**bits - 1) / 2
        estimate = searcher._scales * (turned @ centred.T) + terms[:, 2:3] * searcher.bits.factors[:, 1].reshape(-1)[:800]
        keys = (ready[:, None] * rows.vectors).sum(axis=2) / (rows.norms if metric == "cosine" else 1)
        if metric == "l2":
            keys = -((ready[:, None] - rows.vectors) ** 2).sum(axis=2)
        errors.append(float(np.std(estimate * terms[:, 3:4] + terms[:, 4:5] - keys) / np.std(keys)))
    assert all(0.4 < after / before < 0.65 for before, after in itertools.pairwise(errors)) and errors[0] < 0.4


@METRIC
def test_more_bits_find_the_same_in_fewer_rows(metric: Any) -> None:
    rows, queries = stored(drawn(8000, 48) + 1, metric), drawn(200, 48, seed=1) + 1
    one, four = opened(rows), opened(rows, bits=4)
    assert four.compared(10, 1000) < 400, "or there is nothing to compare"
    every, few = (each.look(queries, 10, 1000) for each in (one, four))
    assert few.seen["rows looked at by all bits"] == every.seen["rows in short lists"]
    assert few.seen["rows in short lists"] == 200 * four.compared(10, 1000)
    assert recall(few, rows, queries, 10) >= recall(every, rows, queries, 10) - 0.01
    assert recall(few, rows, queries, 10) > recall(one.look(queries, 10, four.compared(10, 1000)), rows, queries, 10)
    for q in range(0, 200, 37):
        alone = four.look(queries[q : q + 1], 10, 1000)
        assert np.array_equal(alone.keys[0], few.keys[q]) and np.array_equal(alone.rows[0], few.rows[q])


@pytest.mark.parametrize("case", [case for case in CASES if "cost" not in case.__name__], ids=lambda case: case.__name__)
def test_the_contract_is_kept_by_more_bits_too(case: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MIBSearcher, "_pays", lambda self, k, short: True)
    monkeypatch.setattr(BACKEND, "params", lambda *given, **named: MIB(*given, **{"bits": 2, **named}), raising=False)
    case(BACKEND)


def test_bits_are_added_where_one_is_too_little() -> None:
    """And not where it serves. What was looked at is kept."""
    texts, images = stored(like_texts(6000, 256), "cosine"), stored(like_images(12_000, 5), "l2")
    good, bad = (opened(rows, bits="auto") for rows in (texts, images))
    assert good.depth == 1 and list(good.gate) == [1]
    one = opened(images)
    assert one.verdict is not None and one.verdict.says != "ok"
    assert bad.depth > 1 and bad.verdict is not None and bad.verdict.says == "ok" and bad.advice == ""
    assert f"MIB(bits={bad.depth})" in one.advice
    assert opened(stored(drawn(300, 32), "l2"), bits="auto").depth == 1, "too few rows to say"


def test_memory_of_more_bits_is_counted() -> None:
    rows = stored(drawn(4000, 256), "l2")
    with pytest.raises(NeedsMemory) as more:
        BACKEND.build(rows, {}, MIB(bits=8), Budget(memory=1), lambda share: None)
    with pytest.raises(NeedsMemory) as less:
        BACKEND.build(rows, {}, MIB(bits=1), Budget(memory=1), lambda share: None)
    assert more.value.needed - less.value.needed == 4000 * (8 * 32 + 4)


@METRIC
@pytest.mark.parametrize("rotation", ["none", "hadamard", "itq"])
@pytest.mark.parametrize("bits", [1, 3])
def test_bits_of_a_prefix_let_whole_vectors_be_compared(metric: Any, rotation: str, bits: int) -> None:
    """Of vectors that say most in their first numbers: keys are those of the whole, and short lists find nearly all."""
    made = drawn(6000, 200) * np.float32(0.97) ** np.arange(200, dtype=np.float32)
    rows, queries = stored(made, metric), made[::300] + np.float32(0.02) * drawn(20, 200, seed=1)
    params = MIB(rotation, bits, prefix=100)
    arrays = BACKEND.build(rows, {}, params, Budget(), lambda share: None)
    searcher = BACKEND.open(arrays, {}, rows, params)
    assert isinstance(searcher, MIBSearcher) and arrays["codes"].shape == (188, 16, 32)
    assert searcher.lists.width == 128 and searcher.encoder.dimensions == (128 if rotation == "hadamard" else 100)
    exact = FlatSearcher(rows).search(queries, 10)
    hits = searcher.look(queries, 10, 200)
    check(hits, rows, queries, 10)
    assert recall(hits, rows, queries, 10) > 0.97 and same(searcher.search(queries, 10, 1.0), exact)
    assert searcher.figures["bytes a row"] == 16 + 8 + (bits * 16 + 4 if bits > 1 else 0)
    other = stored(drawn(6000, 100), metric)
    with pytest.raises(Damaged):
        BACKEND.open(arrays, {}, other, params)


def of_many_sizes(n: int, d: int) -> np.ndarray:
    """Clusters that are the smaller the later, as Zipf has it."""
    rng, share = np.random.default_rng(0), 1 / np.arange(1, n // 100 + 1)
    centres = rng.standard_normal((len(share), d))
    return (centres[rng.choice(len(share), n, p=share / share.sum())] + 0.7 * rng.standard_normal((n, d))).astype(np.float32)


def test_lists_by_a_margin_are_as_long_as_is_said_on_the_mean_and_find_more() -> None:
    """Than lists that are all of one length, of queries like the rows; where a margin finds less, it is not gone by."""
    made = of_many_sizes(12_500, 128)
    rows, queries = stored(made[500:], "cosine"), made[:500]
    searcher = opened(rows)
    arrays = BACKEND.build(rows, {}, MIB("hadamard", 1), Budget(), lambda share: None)
    fixed = BACKEND.open({**arrays, "decline": arrays["decline"][:0]}, {}, rows, MIB("hadamard", 1))
    assert isinstance(fixed, MIBSearcher) and fixed.lists.most(100) == 100 and searcher.lists.most(100) == 400
    for short in (100, 200, 400):
        hits = searcher.look(queries, 10, short)
        mean = hits.seen["rows in short lists"] / 500
        assert 0.8 * short < mean < 1.3 * short
        assert recall(hits, rows, queries, 10) > recall(fixed.look(queries, 10, round(mean)), rows, queries, 10) + 0.01
    for k, short in ((1, 5), (10, 10), (20, 15), (10, 501), (10, searcher.lists.decline.least - 1)):
        assert same(searcher.look(queries, k, short), fixed.look(queries, k, short)), "told by their length alone"
    alike = opened(stored(like_images(12_000, 8), "l2"))
    assert alike.lists.most(20) == 20 and alike.look(made[:1, :64], 10, 20).seen["rows in short lists"] == 20


def test_the_decline_of_estimates_is_looked_at() -> None:
    rows = stored(drawn(3000, 64), "l2")
    arrays = BACKEND.build(rows, {}, MIB("none", 1), Budget(), lambda share: None)
    table = arrays["decline"]
    assert Decline.of(table).table().tolist() == table.tolist() and Decline.of(table[:0]) == Decline()
    falls = replace(Decline.of(table), least=15)
    assert falls.between(10, 500) > falls.between(10, 499) > falls.between(10, 40) > falls.between(20, 40) > 0  # type: ignore[operator]
    assert falls.between(10, 10) is None and falls.between(9, 40) is None and Decline().between(10, 50) is None
    assert falls.between(10, 501) is None and falls.between(10, 14) is None and Decline(falls.falls).between(10, 500) is None
    assert falls.between(10, 20) == table[2] and falls.between(10, 500) == table[-2]
    first, last = np.eye(1, len(table), 0)[0], np.eye(1, len(table), len(table) - 1)[0]
    for wrong in (
        table[:-1], table[None], table.astype(np.float32), table * np.nan, table[::-1], table + first, table + last, 0 * table,
    ):  # fmt: skip
        with pytest.raises(Damaged, match="decline"):
            BACKEND.open({**arrays, "decline": wrong}, {}, rows, MIB("none", 1))
    few = stored(drawn(500, 64), "l2")
    assert BACKEND.build(few, {}, MIB("none", 1), Budget(), lambda share: None)["decline"].shape == (0,)
