"""Exported codes answer as the database at home does, and read no more than they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vecdb_index.mib.params import MIB
from vecdb_index.mib.search import ShortLists

import vecdb
from vecdb import Dense
from vecdb.errors import (
    Corruption,
    InvalidInput,
)
from vecdb.serverless import layout, segment
from vecdb.serverless.reader import GAP, RANGE, runs_of

from .afar import DIM, PAYS, QUERIES, RangesServer, check_same, drawn, header_of, serving, settle, the_object


@pytest.mark.parametrize("how", [{}, {"recall": 0.8}, {"recall": 0.99}, {"k": 1}, {"k": 100}, {"exact": True}, {"k": 10_000}])
def test_answers_are_those_of_the_database(home: vecdb.Collection, served: RangesServer, how: dict[str, Any]) -> None:
    with vecdb.open_codes(served.url) as there:
        check_same(there, home, **how)


def test_a_search_by_codes_is_one_and_its_short_list_is_that_at_home(home: vecdb.Collection, served: RangesServer) -> None:
    with vecdb.open_codes(served.url) as there:
        mine, right = (each.search(QUERIES[0], explain=True).plan for each in (there, home))
    assert mine is not None and right is not None
    (part,), (at_home,) = mine.parts, right.parts
    assert part.way.startswith("codes") and at_home.way.startswith("index")
    for what in ("rows in short lists", "bytes of codes"):
        assert part.seen[what] == at_home.seen[what]
    assert mine.recall_expected == right.recall_expected


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "i8"])
def test_metrics_and_dtypes(tmp_path: Path, metric: Any, dtype: Any) -> None:
    vectors, queries = drawn(2500, 3, 40), drawn(20, 4, 40)
    if dtype == "i8":
        vectors, queries = np.rint(20 * vectors).clip(-127, 127), np.rint(20 * queries)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(40, metric=metric, dtype=dtype, index=MIB(rotation="hadamard")))
        docs.upsert(ids=[f"doc-{i}" for i in range(2500)], vectors=vectors, payloads=[{"n": i} for i in range(2500)])
        docs.flush()
        docs.delete([f"doc-{i}" for i in range(100)])
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs, queries)
            check_same(there, docs, queries, exact=True, k=3)
            assert np.array_equal(
                there.search(queries[0], with_vectors=True)[0].vector, docs.search(queries[0], with_vectors=True)[0].vector
            )


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_several_bits_a_dimension_cut_the_short_list_first(
    tmp_path: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, metric="l2", index=MIB(rotation="hadamard", bits=bits)))
        docs.upsert(ids=range(4000), vectors=np.repeat(drawn(2000, 3), 2, axis=0), payloads=[{"n": i} for i in range(4000)])
        docs.flush()
        docs.delete(range(0, 4000, 9))
        docs.export_codes(tmp_path / "codes")
        with serving(tmp_path / "codes") as server, vecdb.open_codes(server.url) as there:
            for how in ({}, {"recall": 0.8, "k": 1}, {"recall": 0.99}):
                check_same(there, docs, **how)
            mine, right = (each.search(QUERIES[0], recall=0.99, explain=True).plan.parts[0] for each in (there, docs))
            assert mine.seen["rows looked at by all bits"] > mine.seen["rows in short lists"] >= 10
            assert {name: mine.seen[name] for name in right.seen} == right.seen
            monkeypatch.setattr(segment, "_MEMORY", 1 << 16)  # a few queries at a time
            check_same(there, docs)
        path = the_object(tmp_path / "codes")
        section = header_of(path).sections["planes:vector"]
        data, found = path.read_bytes(), list[str]()
        expected = docs.search_batch(QUERIES)
        for place in np.random.default_rng(0).integers(section.offset, section.offset + section.length, 15).tolist():
            path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
            with vecdb.open_codes(tmp_path / "codes") as there:
                try:
                    assert np.array_equal(there.search_batch(QUERIES).ids, expected.ids)
                except Corruption as error:
                    found.append(str(error))
        assert len(found) > 5 and all("planes:vector" in each for each in found)


def test_several_segments_and_two_fields_one_of_which_some_points_lack(tmp_path: Path) -> None:
    """Fields of their own metric and width; ids are texts, and one is not ASCII."""
    first, second = drawn(2400, 5), drawn(2400, 6, 33)
    with vecdb.open(tmp_path / "db") as db:
        fields = {"a": Dense(DIM, index=MIB()), "b": Dense(33, metric="l2", dtype="f16", index=MIB(rotation="none"))}
        docs = db.create_collection("docs", {**fields, "plain": Dense(2)})
        for start in range(0, 2400, 1200):
            points = [
                {
                    "id": f"dök-{i}",
                    "vectors": {"a": first[i], "plain": [1, 2], **({"b": second[i]} if i % 3 else {})},
                    "payload": {"n": i},
                }
                for i in range(start, start + 1200)
            ]
            docs.upsert(points)
            docs.flush()
        docs.delete(["dök-0", "dök-1", "dök-2399"])
        assert docs.info().segments == 2
        settle(docs)
        docs.export_codes(tmp_path / "codes")
        with serving(tmp_path / "codes") as server, vecdb.open_codes(server.url) as there:
            check_same(there, docs, field="a")
            check_same(there, docs, drawn(20, 7, 33), field="b")
            check_same(there, docs, drawn(20, 7, 33), field="b", exact=True)
            assert set(there.fields) == {"a", "b"}
            hit, right = (each.search(first[7], k=1, field="a", with_vectors=["a", "b"])[0] for each in (there, docs))
            assert hit.vectors.keys() == right.vectors.keys()
            assert all(np.array_equal(hit.vectors[name], right.vectors[name]) for name in hit.vectors)
            as_stored = [each.search(first[7], field="a", with_payload="json")[0].payload for each in (there, docs)]
            assert as_stored[0] == as_stored[1] and isinstance(as_stored[0], bytes)
            with pytest.raises(InvalidInput, match="field"):
                there.search(first[0])
            with pytest.raises(InvalidInput, match="no such field"):
                there.search([1, 2], field="plain")


@pytest.mark.filterwarnings("ignore::vecdb.errors.PoorlyServed")
@pytest.mark.parametrize("params", [MIB("none", 1), MIB("hadamard", 1, "median", 30), MIB("itq", 2, prefix=50)], ids=str)
def test_lists_by_a_margin_of_a_prefix_or_about_a_median_are_those_at_home(tmp_path: Path, params: MIB) -> None:
    """Of clusters of many sizes, for which lists go by a margin; also where codes arrive in several ranges."""
    rng, share = np.random.default_rng(0), 1 / np.arange(1, 61)
    clusters, scale = rng.standard_normal((60, DIM)), 0.98 ** np.arange(DIM)
    made = (clusters[rng.choice(60, 6040, p=share / share.sum())] + 0.7 * rng.standard_normal((6040, DIM))) * scale
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=params))
        docs.upsert(ids=range(6000), vectors=made[40:], payloads=[{"n": i} for i in range(6000)])
        docs.flush()
        docs.delete(range(0, 6000, 11))
        docs.export_codes(tmp_path / "codes")
        lists = header_of(the_object(tmp_path / "codes")).fields["vector"].lists
        assert lists.width == 64 and lists.decline.least <= 300
        with serving(tmp_path / "codes") as server, vecdb.open_codes(server.url) as there:
            lengths = set()
            for recall in (0.8, 0.95, 0.99):
                check_same(there, docs, made[:40], recall=recall)
                for query in made[:5]:
                    mine, right = (each.search(query, recall=recall, explain=True).plan.parts[0].seen for each in (there, docs))
                    assert {name: mine[name] for name in right} == right
                    lengths.add(right.get("rows looked at by all bits", right["rows in short lists"]))
            assert len(lengths) > 3, "lists of one length for each recall"
        assert there.info().indexes["vector"].bytes == -(-6000 // 32) * layout.block_bytes(64)


@pytest.mark.parametrize(("dim", "rows"), [(1, 300), (63, 1), (65, 33), (65, 1000), (4097, 70)])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
def test_widths_and_numbers_of_rows_that_fit_nothing(tmp_path: Path, dim: int, rows: int, rotation: str) -> None:
    vectors, queries = drawn(rows, 20, dim), drawn(10, 21, dim)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(dim, metric="l2", index=MIB(rotation=rotation)))
        docs.upsert(ids=range(rows), vectors=vectors, payloads=[{"n": i} for i in range(rows)])
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "codes") as there:
            for how in ({}, {"k": 1, "recall": 0.5}, {"exact": True}, {"k": rows + 5}):
                check_same(there, docs, queries, **how)


@pytest.mark.parametrize("duplicates", [1, 50, 2500])
def test_ties_are_settled_as_at_home(tmp_path: Path, duplicates: int) -> None:
    vectors = np.repeat(drawn(2500 // duplicates, 8), duplicates, axis=0)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=np.random.default_rng(0).permutation(2500), vectors=vectors)
        docs.flush()
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "codes") as there:
            for how in ({}, {"exact": True}, {"k": 60}):
                check_same(there, docs, **how)


def test_tiny_collections_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As at home, where codes save no time; with the rule that is in force outside these tests."""
    monkeypatch.setattr(ShortLists, "pays", PAYS)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(3, index=MIB()))
        docs.export_codes(tmp_path / "empty")
        docs.upsert(ids=range(5), vectors=[[1, 2, i] for i in range(5)])
        docs.export_codes(tmp_path / "codes")
        with vecdb.open_codes(tmp_path / "empty") as none:
            assert none.search([1, 2, 3]).ids == [] and len(none) == 0
            assert none.search_batch([[1, 2, 3]], k=3).ids.tolist() == [[None] * 3]
        with vecdb.open_codes(tmp_path / "codes") as there:
            check_same(there, docs, np.eye(3, dtype=np.float32), k=10)
            assert len(there.search([1, 2, 3], k=10)) == 5


def test_arrival_in_any_order_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stripes come one by one, in an order that is drawn, with many equal estimates among them; and few queries at a time."""
    from vecdb.serverless import reader

    monkeypatch.setattr(reader, "RANGE", 1)
    monkeypatch.setattr(segment, "RANGE", 1)
    monkeypatch.setattr(segment, "_TOGETHER", 7)
    ahead = reader.ObjectReader._ahead

    def shuffled(self: Any, starts: Any, get: Any) -> Any:
        found = list(ahead(self, starts, get))
        return iter([found[i] for i in rng.permutation(len(found))])

    monkeypatch.setattr(layout, "PIECE", 8 << 10)
    monkeypatch.setattr(reader.ObjectReader, "_ahead", shuffled)
    with vecdb.open(tmp_path / "db") as db:
        docs = db.create_collection("docs", Dense(DIM, index=MIB(rotation="none")))
        docs.upsert(ids=np.random.default_rng(0).permutation(5000), vectors=np.repeat(drawn(250, 8), 20, axis=0))
        docs.export_codes(tmp_path / "codes")
        assert len(header_of(the_object(tmp_path / "codes")).sections["codes:vector"].sums) > 5
        for seed in range(3):
            rng = np.random.default_rng(seed)
            with vecdb.open_codes(tmp_path / "codes") as there:
                check_same(there, docs)
                check_same(there, docs, k=31)
                check_same(there, docs, QUERIES[:2], exact=True, k=31)
                monkeypatch.setattr(segment, "_MEMORY", 1 << 16)  # and but a few queries to a pass over the codes
                check_same(there, docs, k=31)
                monkeypatch.setattr(segment, "_MEMORY", 256 << 20)


@pytest.fixture(scope="module")
def large(_by_index: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[vecdb.Collection, Path]]:
    """Rows that are long beside their codes: 60,000 of 512 numbers, of which the codes are 4 MiB."""
    folder = tmp_path_factory.mktemp("large")
    with vecdb.open(folder / "db") as db:
        docs = db.create_collection("docs", Dense(512, dtype="i8", metric="ip", index=MIB(rotation="none")))
        docs.upsert(ids=range(60_000), vectors=np.rint(20 * drawn(60_000, 9, 512)).clip(-127, 127))
        docs.flush()
        docs.export_codes(folder / "codes")
        yield docs, folder / "codes"


def test_a_cold_search_reads_codes_and_the_rows_of_its_short_list(large: tuple[vecdb.Collection, Path]) -> None:
    """The bounds that are promised: 1.1 times the bytes, and requests for codes / 4 MiB, 20, and one for each run of rows."""
    home, folder = large
    query = drawn(1, 10, 512)[0]
    header = header_of(the_object(folder))
    manifest = (folder / layout.MANIFEST).stat().st_size
    with serving(folder) as server, vecdb.open_codes(server.url) as there:
        hits = there.search(query, explain=True, with_payload=False)
        assert hits.ids == home.search(query).ids
        plan, seen = hits.plan, list(server.seen)
        assert plan is not None and plan.transfer is not None
        assert plan.transfer.requests == len(seen) and plan.transfer.bytes == server.sent
        rows, codes = header.sections["rows:vector"], header.sections["codes:vector"]
        listed = plan.parts[0].seen["rows in short lists"] * header.fields["vector"].record.itemsize
        opening = manifest + max(layout.PREFIX, header.body)
        assert server.sent <= 1.1 * (codes.length + opening + listed)
        runs = [each for each in seen if each[0] != layout.MANIFEST and each[1] >= rows.offset]
        assert 0 < len(runs) <= plan.parts[0].seen["rows in short lists"]
        assert len(seen) <= codes.length / (4 << 20) + 20 + len(runs)
        assert all(length <= RANGE for _, _, length in seen)


def test_a_second_search_reads_nothing_again(home: vecdb.Collection, served: RangesServer) -> None:
    for turn in range(2):  # a second opening reads the manifest, and all else from the cache
        with vecdb.open_codes(served.url) as there:
            served.reset()
            first = there.search(QUERIES[0], explain=True)
            assert first.ids == home.search(QUERIES[0]).ids
            assert bool(served.seen) == (turn == 0)
            transfer = first.plan.transfer
            assert (transfer.hits > 0) == (turn == 1) and transfer.cpu > 0
            assert "requests" in str(first.plan)


def test_runs_join_rows_that_are_near_and_stay_within_what_may_be_wasted() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        lengths, gaps = rng.integers(0, 5000, 60), rng.integers(0, 2 * GAP, 60)
        ends = np.cumsum(lengths + gaps)
        starts, spare = ends - lengths, int(rng.integers(0, 40 * GAP))
        runs = list(runs_of(starts, ends, spare))
        assert [first for first, _ in runs[1:]] == [last for _, last in runs[:-1]] and (runs[0][0], runs[-1][1]) == (0, 60)
        read = sum(int(ends[last - 1] - starts[first]) for first, last in runs)
        assert read - lengths.sum() <= spare
        joined = [int(starts[i + 1] - ends[i]) for first, last in runs for i in range(first, last - 1)]
        assert all(gap < GAP for gap in joined)
    assert list(runs_of(np.array([0, 10]), np.array([RANGE, RANGE + 10]), 100)) == [(0, 1), (1, 2)]
    assert list(runs_of(np.zeros(0, np.int64), np.zeros(0, np.int64), 100)) == []


def test_what_was_deleted_is_not_exported(codes: Path, home: vecdb.Collection) -> None:
    data = the_object(codes).read_bytes()
    assert b'"of 8"' in data and b'"of 7"' not in data and b'"of 0"' not in data
    header = header_of(the_object(codes))
    records = header.sections["rows:vector"]
    rows = np.frombuffer(data[records.offset : records.offset + records.length], header.fields["vector"].record)
    assert not rows["vector"][::7].any() and rows["vector"][1].any() and not rows["id"][7]
