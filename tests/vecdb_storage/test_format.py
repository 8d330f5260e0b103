"""FORMAT.md is enough: a reader written from that page alone, sharing no code with the engine, finds every row."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import vecdb_storage.growing as growing_module
import vecdb_storage.store as store_module
import xxhash

import vecdb
from vecdb import Dense

xxh3 = xxhash.xxh3_64_intdigest


def array_file(path: Path, store: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    data = path.read_bytes()
    assert data[:8] == b"VECDBARR"
    assert struct.unpack_from("<I", data, 8) == (1,)
    zeros, owner, begun, more, head = struct.unpack_from("<4s16sQ16sQ", data, 12)
    assert (zeros, owner, more, head) == (bytes(4), store, bytes(16), xxh3(data[:56]))
    assert begun > 0
    footer = data[-64:]
    magic, version, zero, at, length, checksum, uuid, own = struct.unpack("<8sIIQQQ16sQ", footer)
    assert (magic, version, zero, uuid) == (b"VECDBEND", 1, 0, store)
    assert own == xxh3(footer[:56])
    assert xxh3(data[at : at + length]) == checksum
    directory = json.loads(data[at : at + length])
    arrays, covered = {}, 64
    for entry in directory["arrays"]:
        offset, size = entry["offset"], entry["bytes"]
        assert offset % 64 == 0
        assert not any(data[covered:offset]), "gaps are zeros"
        covered = offset + size
        raw = data[offset:covered]
        assert [xxh3(raw[i : i + (4 << 20)]) for i in range(0, size, 4 << 20)] == entry["xxh3"]
        arrays[entry["name"]] = np.frombuffer(raw, entry["dtype"]).reshape(entry["shape"])
    assert not any(data[covered:at])
    assert not any(data[at + length : -64])
    assert (at + length + 63) // 64 * 64 + 64 == len(data)
    return directory["meta"], arrays


def ids_in(arrays: dict[str, np.ndarray], prefix: str = "") -> list[Any]:
    if prefix + "id.int" in arrays:
        return arrays[prefix + "id.int"].tolist()
    if prefix + "id.offsets" not in arrays:
        return []
    ends, data = arrays[prefix + "id.offsets"].tolist(), arrays[prefix + "id.bytes"].tobytes()
    return [data[a:b].decode() for a, b in zip(ends, ends[1:], strict=False)]


def hash_of(key: Any) -> int:
    if isinstance(key, str):
        return xxh3(key.encode())
    mask = 2**64 - 1
    z = (key + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def bit(words: np.ndarray, i: int) -> bool:
    return bool(int(words[i // 64]) >> (i % 64) & 1)


def rows_in(arrays: dict[str, np.ndarray], fields: list[str]) -> list[tuple[Any, dict[str, Any], dict[str, list[float]]]]:
    """(id, payload, vectors) of each row."""
    rows = []
    ends, data = arrays["payload.offsets"].tolist(), arrays["payload.bytes"].tobytes()
    for i, key in enumerate(ids_in(arrays)):
        vectors = {}
        for name in fields:
            present = arrays.get(f"field.{name}.present")
            if present is None or bit(present, i):
                vectors[name] = arrays[f"field.{name}.vectors"][i].tolist()
                norm = np.linalg.norm(arrays[f"field.{name}.vectors"][i].astype(np.float64))
                assert arrays[f"field.{name}.norms"][i] == pytest.approx(norm)
        text = data[ends[i] : ends[i + 1]]
        rows.append((key, json.loads(text) if text else {}, vectors))
    return rows


def check_columns(meta: dict[str, Any], arrays: dict[str, np.ndarray], payloads: list[Any]) -> None:
    """Every value of the columned paths stands where the page says."""

    def kind(value: Any) -> int:
        return {type(None): 1, bool: 2, int: 3, float: 4, str: 5, list: 6, dict: 7}[type(value)]

    def check(prefix: str, entry: dict[str, Any], cells: list[Any]) -> None:
        assert entry["rows"] == len(cells)
        expected = [0 if cell is gone else kind(cell) for cell in cells]
        kinds = arrays[prefix + "kinds"].tolist() if entry["kind"] is None else [entry["kind"]] * len(cells)
        assert kinds == expected
        for code, name in ((2, "bools"), (3, "ints"), (4, "floats")):
            if code in expected:
                assert arrays[prefix + name].tolist() == [c for c, k in zip(cells, expected, strict=True) if k == code]
        if 5 in expected:
            ends, data = arrays[prefix + "text.offsets"].tolist(), arrays[prefix + "text.bytes"].tobytes()
            entries = [data[a:b] for a, b in zip(ends, ends[1:], strict=False)]
            assert entries == sorted(set(entries))
            assert [entries[c].decode() for c in arrays[prefix + "codes"]] == [
                c for c, k in zip(cells, expected, strict=True) if k == 5
            ]
        if 6 in expected:
            lists = [c for c, k in zip(cells, expected, strict=True) if k == 6]
            assert np.diff(arrays[prefix + "item.offsets"].astype(int)).tolist() == [len(c) for c in lists]
            check(prefix + "item.", entry["item"], [e for c in lists for e in c])

    gone = object()
    for i, entry in enumerate(meta["columns"]):
        cells = []
        for payload in payloads:
            value = payload
            for key in entry["path"].split("."):
                value = value[key] if isinstance(value, dict) and key in value else gone
            cells.append(value)
        check(f"col.{i}.", entry, cells)


def read(path: Path) -> dict[str, dict[Any, Any]]:
    """collection -> id -> (payload, vectors)."""
    note = dict(line.split(" ", 1) for line in (path / "VECDB").read_text().splitlines())
    assert note["format"] == "1"
    store = bytes.fromhex(note["uuid"])
    environment = lmdb.open(str(path / note["meta"]), subdir=False, readonly=True, lock=False, max_dbs=16)
    tables: dict[str, dict[bytes, bytes]] = {}
    handles = {name: environment.open_db(name.encode(), create=False) for name in (
        "meta", "catalog", "manifest", "tombstones", "log", "garbage", "checkpoint")}  # fmt: skip
    with environment.begin() as txn:
        for name, handle in handles.items():
            tables[name] = {}
            for key, value in txn.cursor(db=handle):
                assert struct.unpack("<Q", value[:8])[0] == xxh3(key + struct.pack("<Q", xxh3(value[8:])))
                tables[name][key] = value[8:]
        assert int.from_bytes(tables["meta"][b"txn"], "big") == txn.id()
    environment.close()
    assert tables["meta"][b"uuid"] == store
    last = int.from_bytes(tables["meta"][b"seq"], "big")
    found: dict[str, dict[Any, Any]] = {}
    for name, value in tables["catalog"].items():
        entry = json.loads(value)
        uuid = bytes.fromhex(entry["uuid"])
        manifest = json.loads(tables["manifest"][uuid])
        rows: list[tuple[int, Any, Any, Any]] = []  # seq, id, payload, vectors
        deletes: list[tuple[int, Any]] = []
        for segment in manifest["segments"]:
            file = path / "segments" / uuid.hex() / (segment["name"] + ".seg")
            assert file.stat().st_size == segment["bytes"]
            meta, arrays = array_file(file, store)
            assert meta["rows"] == segment["rows"]
            stored = rows_in(arrays, meta["fields"])
            check_columns(meta["columns"], arrays, [payload for _, payload, _ in stored])
            hashes = [hash_of(key) for key, _, _ in stored]
            assert arrays["id.hash"].tolist() == sorted(hashes)
            assert [hashes[row] for row in arrays["id.row"]] == sorted(hashes)
            width = (len(arrays["id.filter"]) * 8).bit_length() - 1
            assert width == max(3, (16 * len(hashes) - 1).bit_length())
            places = {h >> (64 - width) for h in hashes}
            assert {i for i in range(1 << width) if arrays["id.filter"][i // 8] >> (i % 8) & 1} == places
            seqs = arrays["seq"].tolist() if segment["seq"] is None else [segment["seq"]] * len(stored)
            assert seqs == sorted(seqs)
            for i, (key, payload, vectors) in enumerate(stored):
                chunk = tables["tombstones"].get(segment["name"].encode() + struct.pack(">I", i // 65_536))
                if chunk is None or not bit(np.frombuffer(chunk, "<u8"), i % 65_536):
                    rows.append((seqs[i], key, payload, vectors))
        records: dict[int, bytes] = {}
        for key, part in sorted(tables["log"].items()):
            if key[:16] == uuid:
                seq, number = struct.unpack(">QI", key[16:])
                assert len(part) <= 65_512
                assert manifest["flushed"] < seq <= last
                records[seq] = records.get(seq, b"") + part
                assert number == (len(records[seq]) - 1) // 65_512
        for seq, record in records.items():
            length = struct.unpack_from("<Q", record)[0]
            head = json.loads(record[8 : 8 + length])
            arrays = {
                e["name"]: np.frombuffer(
                    record, e["dtype"], e["bytes"] // np.dtype(e["dtype"]).itemsize, 8 + length + e["offset"]
                ).reshape(e["shape"])
                for e in head["arrays"]
            }
            if "extent" in head["meta"]:
                e = head["meta"]["extent"]
                files = [path / "segments" / uuid.hex() / (e["name"] + suffix) for suffix in (".growing", ".seg")]
                data = next(file for file in files if file.exists()).read_bytes()
                raw = data[e["offset"] : e["offset"] + e["rows"] * e["dim"] * np.dtype(e["dtype"]).itemsize]
                assert xxh3(raw) == e["xxh3"]
                (field,) = head["meta"]["fields"]
                arrays[f"field.{field}.vectors"] = np.frombuffer(raw, e["dtype"]).reshape(e["rows"], e["dim"])
            deletes += [(seq - 0.5, key) for key in ids_in(arrays, "delete.")]  # before the rows of the same record
            if "payload.offsets" in arrays:
                rows += [(seq, *row) for row in rows_in(arrays, head["meta"]["fields"])]
        newest: dict[Any, float] = {}
        for seq, key, *_ in [*rows, *deletes]:
            newest[key] = max(newest.get(key, -1), seq)
        found[name.decode()] = {key: (payload, vectors) for seq, key, payload, vectors in rows if newest[key] == seq}
    return found


def test_a_database_is_read_by_its_description_alone(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "db"
    db = vecdb.open(path)
    words = db.create_collection("words", Dense(5, metric="l2", dtype="f16"))
    films = db.create_collection("films", {"title": Dense(3), "plot": Dense(4, metric="ip", dtype="i8")})
    payload_of = {
        0: {"n": 1, "s": "x", "t": "2024-01-02", "deep": {"er": [1, "two", None]}}, 1: {"n": 2.5, "b": True}, 2: {}, 3: {"n": None, "s": "ü"},
    }  # fmt: skip
    for turn in range(4):
        if turn % 2:
            monkeypatch.setattr(store_module, "LEVEL0_BYTES", 0)
        else:
            monkeypatch.undo()
        ids = [f"wörd-{i}" for i in rng.permutation(60)[:40]]
        words.upsert(ids=ids, vectors=rng.standard_normal((40, 5)), payloads=[payload_of[i % 4] for i in range(40)])
        films.upsert(
            {
                "id": int(i) - 5,
                "vectors": {"plot": rng.integers(-9, 9, 4), **({"title": rng.standard_normal(3)} if i % 3 else {})},
                "payload": {"turn": turn},
            }
            for i in rng.permutation(30)[:20]
        )
        if turn < 3:
            db.flush()
        words.delete([f"wörd-{i}" for i in range(turn, 60, 9)])
        films.delete(where={"turn": {"$lt": turn}} if turn == 2 else "turn > 99")
    monkeypatch.undo()
    monkeypatch.setattr(growing_module, "GROWING_BYTES", 0)
    grown = db.create_collection("grown", Dense(7, dtype="f16"))
    for turn in range(4):
        grown.upsert(ids=range(turn * 5, turn * 5 + 5), vectors=rng.standard_normal((5, 7)), payloads=[{"turn": turn}] * 5)
        if turn == 1:
            db.flush()  # completes the growing file; what follows is in another
    assert {file.suffix for file in (path / "segments" / grown._uuid.hex()).iterdir()} == {".seg", ".growing"}
    monkeypatch.undo()
    big = db.create_collection("big", Dense(3000))
    big.upsert(ids=range(50), vectors=rng.standard_normal((50, 3000)))  # a log record of many parts
    expected = {
        name: {p.id: (p.payload, {f: v.tolist() for f, v in p.vectors.items()}) for p in db[name].scroll(with_vectors=True)}
        for name in db.collections()
    }
    db.close()
    assert sum(map(len, expected.values())) > 100
    assert read(path) == expected


def test_nothing_that_this_process_had_in_memory_gets_into_files(tmp_path: Path) -> None:
    """LMDB writes whole pages; their unused room must not be what the heap held before."""
    code = f"""
import vecdb
marker = "".join(["sec", "ret-of-", "the-heap"])
with vecdb.open({str(tmp_path / "db")!r}) as db:
    docs = db.create_collection("docs", vecdb.Dense(2))
    for i in range(30):
        freed = [(marker * 1000)[:size] for size in range(3000, 9000, 500) for _ in range(10)]
        del freed
        docs.upsert(ids=[i], vectors=[[1, i]])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    files = [file for file in (tmp_path / "db").rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if b"secret-of-the-heap" in file.read_bytes()]
