"""Every file of a database, damaged in every way: the answer is right, or a typed error, or `verify` has found the damage.

A child process takes one damage after another: it links the sound files into a new folder, damages one, opens the database
(read-only and for writing by turns), asks everything, verifies and, as a writer, writes, flushes and opens again. What it was
told is compared with what the sound database said. It names each try before it begins, so that a child that dies, or does not
come back, is a finding too. All of it follows from the seed and the number of the try:

    python tests/crash/test_damaged_files.py damage|lies <seed> <number>    repeats one

*Damage* is what disks and people do to bytes. A *lie* is a directory, a log record or a manifest that says what is not so, under
checksums that are right: then no checksum can help, and all that is asked is that nothing but a typed error leaves.
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import random
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DIM = 8
PAGE = 4096
LIMIT = 30.0  # seconds for one try; most take a hundredth of one
DAMAGE = ("seg", "meta", "idx", "arr", "growing", "VECDB", "LOCK", "lock")
LIES = ("seg lie", "idx lie", "arr lie", "log lie", "manifest lie")
KINDS = {"damage": DAMAGE, "lies": LIES}
INDEXED = ("numbers", "terms")


# -- the sound database ----------------------------------------------------------------------------


def build(path: Path) -> None:
    """Three collections with every kind of file: segments of both kinds, tombstones, columns of every type, an index of each
    kind, an encoder, a growing file, and a log."""
    import lmdb
    import vecdb_storage.growing as growing
    import vecdb_storage.store as store

    import vecdb
    from vecdb import Dense, Sparse
    from vecdb.index import HNSW, Seismic

    rng = np.random.default_rng(5)

    def payload(i: int, mark: int) -> dict[str, Any] | None:
        if i % 7 == 3:
            return None
        mixed: Any = [i, f"text {i}", None, i / 4, True][i % 5]
        day = f"2024-0{1 + i % 9}-1{i % 9}"
        return {
            "n": i,
            "mark": mark,
            "name": f"name {i % 11}",
            "when": day,
            "tags": [f"t{i % 3}", i],
            "mixed": mixed,
            "in": {"x": i / 8},
        }

    with vecdb.open(path) as db:
        numbers = db.create_collection("numbers", Dense(DIM, metric="l2", index=HNSW(m=4, ef_construction=16)))

        def put(ids: range, mark: int) -> None:
            vectors = rng.standard_normal((len(ids), DIM)).astype(np.float32)
            numbers.upsert(ids=ids, vectors=vectors, payloads=[payload(i, mark) for i in ids])

        terms = db.create_collection("terms", {"vector": Sparse(index=Seismic(postings=3))})

        def put_terms(ids: range, mark: int) -> None:
            """Some of more components than have their tail in a record's head, and of all 32 bits."""
            chosen = [np.append(rng.choice(90, int(rng.integers(3, 60)), replace=False), 4_000_000_000 + i) for i in ids]
            vectors = [(each, rng.integers(1, 1000, len(each)) / 256) for each in chosen]
            terms.upsert(ids=ids, vectors=vectors, payloads=[{"n": i, "mark": mark} for i in ids])

        put(range(40), 1)
        numbers.flush()
        put_terms(range(50), 7)
        terms.flush()
        db.pause_indexing()  # the other segments are searched exactly
        store.LEVEL0_BYTES = 0
        put(range(30, 60), 2)
        store.LEVEL0_BYTES = 8 << 20
        numbers.delete([3, 35])
        numbers.flush()
        growing.GROWING_BYTES = 0
        put(range(50, 66), 3)
        growing.GROWING_BYTES = 1 << 20
        put(range(5, 8), 4)
        numbers.delete([55])
        put_terms(range(45, 55), 8)
        terms.delete([4])
        words = db.create_collection(
            "words", {"vector": Dense(DIM), "side": Dense(DIM, metric="ip", dtype="f16")}, embed="tfidf"
        )
        texts = [
            f"the {a} {b} of the {c}" for a in ("red", "old", "small") for b in ("house", "river") for c in ("north", "sea")
        ]
        words.upsert(
            ids=[f"id-{i}" for i in range(len(texts))], texts=texts, payloads=[payload(i, 5) or {} for i in range(len(texts))]
        )
        words.flush()
        words.upsert(
            {"id": f"id-{i}", "vectors": {"side": rng.standard_normal(DIM)}, "payload": payload(i, 6)} for i in range(8, 20)
        )
        words.delete(["id-2", "id-9"])
        words.flush()
        words.upsert([{"id": "späť", "vectors": {"vector": rng.standard_normal(DIM)}, "payload": {"name": "ž"}}])
    (path / "meta-1.mdb-lock").touch()
    with lmdb.open(str(path / "meta-1.mdb"), subdir=False, readonly=True, lock=False) as env:
        used = (env.info()["last_pgno"] + 1) * PAGE
    os.truncate(path / "meta-1.mdb", used)  # it is kept longer, for later; copies are quicker like this


def plain(points: Any) -> dict[Any, Any]:
    """By id, what can be compared."""
    return {
        p.id: (p.payload, {f: v.to_dict() if hasattr(v, "to_dict") else v.tolist() for f, v in p.vectors.items()})
        for p in points
        if p is not None
    }


def question(name: str) -> Any:
    if name == "terms":
        return {**{each: 0.25 + each / 64 for each in range(0, 90, 7)}, 4_000_000_007: 2.0, 17: 1.0}
    return np.linspace(-1, 1, DIM, dtype=np.float32)


def ask(db: Any) -> dict[str, Any]:
    """Everything the database can be asked, as plain values."""
    from vecdb import F

    answers: dict[str, Any] = {"collections": db.collections()}
    for name, fields in (("numbers", ["vector"]), ("words", ["vector", "side"]), ("terms", ["vector"])):
        docs, query = db.collection(name), question(name)
        answers[f"{name} count"] = docs.count(), len(docs)
        points = list(docs.scroll(with_vectors=True))
        answers[f"{name} points"] = plain(points)
        answers[f"{name} order"] = [p.id for p in points]
        wanted: list[Any] = ["id-1", "id-2", "id-12", "späť", "?"] if name == "words" else [1, 3, 4, 35, 52, 55, 64, 99]
        answers[f"{name} get"] = [p and plain([p]) for p in docs.get(wanted)]
        filters = {
            "n": F("n") >= 10, "mark": F("mark").in_([2, 3, 6]), "name": F("name") == "name 4", "prefix": F("name").startswith("name 1"),
            "when": F("when") < "2024-05-01", "tags": F("tags").contains("t1"), "mixed": F("mixed") == 1.25, "in": F("in.x") > 2,
            "not": ~F("mark").exists(), "both": (F("n") < 20) & ~(F("mark") == 1),
        }  # fmt: skip
        for label, where in filters.items() if name != "terms" else ():
            answers[f"{name} where {label}"] = docs.count(where)
        for field in fields:
            for k in (3, 50):
                hits = docs.search(query, k=k, field=field, exact=True)
                answers[f"{name} {field} exact {k}"] = [(h.id, h.score) for h in hits]
            hits = docs.search(query, k=10, field=field, where=F("n") >= 10, exact=True)
            answers[f"{name} {field} exact, filtered"] = [(h.id, h.score) for h in hits]
    answers["text"] = [(h.id, h.score) for h in db.collection("words").search("the old river", k=3, field="vector", exact=True)]
    return answers


def by_index(db: Any, name: str) -> list[tuple[Any, float]]:
    """What an index may leave out, but never make up."""
    return [(h.id, h.score) for h in db.collection(name).search(question(name), k=10, recall=0.5)]


# -- damage ----------------------------------------------------------------------------------------


def spot(rng: random.Random, data: bytes) -> int:
    """A place where something is, mostly: a file of LMDB has room at its end."""
    for _ in range(20):
        at = rng.randrange(len(data))
        if any(data[at & ~63 : (at | 63) + 1]):
            return at
    return rng.randrange(len(data))


def damage(rng: random.Random, data: bytes, others: list[bytes]) -> tuple[str, bytes]:
    """others: files of the same kind."""
    if not data:
        return "grown", rng.randbytes(rng.choice([1, 100, 5000]))
    at, other = spot(rng, data), spot(rng, data)
    length = min(rng.choice([1, 8, 64, 512, PAGE]), len(data) - max(at, other))
    changed = bytearray(data)
    match rng.randrange(10):
        case 0 | 1:
            changed[at] ^= 1 << rng.randrange(8)
            return f"bit at {at}", bytes(changed)
        case 2:
            changed[at] = rng.choice([0, 255, rng.randrange(256)])
            return f"byte at {at}", bytes(changed)
        case 3:
            cut = rng.choice([0, 1, at, len(data) - 1, len(data) - rng.randrange(1, 200)])
            return f"cut to {max(0, cut)}", data[: max(0, cut)]
        case 4:
            more = rng.choice([1, 64, PAGE])
            return f"longer by {more}", data + (bytes(more) if rng.random() < 0.5 else rng.randbytes(more))
        case 5:
            changed[at : at + length], changed[other : other + length] = data[other : other + length], data[at : at + length]
            return f"{length} at {at} and {other} changed places", bytes(changed)
        case 6:
            changed[other : other + length] = data[at : at + length]
            return f"{length} at {at} also at {other}", bytes(changed)
        case 7:
            if rng.random() < 0.5:
                at, length = at // PAGE * PAGE, PAGE
            changed[at : at + length] = bytes(len(changed[at : at + length]))
            return f"{length} zeros at {at}", bytes(changed)
        case 8:
            changed[at : at + length] = rng.randbytes(length)
            return f"{length} random at {at}", bytes(changed)
        case _:
            if not others:
                return "empty", b""
            return "another file of its kind", rng.choice(others)


# -- lies ------------------------------------------------------------------------------------------

STRANGE: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, -0.0, 1e308, "", "x", "0", [], [[]], [-1],
    [0], [1, 1, 1], [2**40, 2**40], [2**63 - 1, 2], [[8]], {}, {"a": {}}, "O", "|O", "|V0", "<f8", "|S0", "<U0", "<M8[s]", "i4,f4", "<f2", "|b1", ">i8", "<c16",
    "/etc/passwd", "../../x",
]  # fmt: skip


def lie(rng: random.Random, value: Any) -> tuple[str, Any]:
    """A JSON value of which one place, anywhere, says something else."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(value)
    node, key = rng.choice(places)
    old = node[key]
    match rng.randrange(6):
        case 0:
            del node[key]
            return f"without {key!r}", value
        case 1 if isinstance(node, dict):
            del node[key]
            node[rng.choice([str(key) + "x", "offset", "rows", "bytes", ""])] = old
            return f"{key!r} renamed", value
        case 2 if isinstance(old, int):
            node[key] = rng.choice([old + 1, old - 1, -old, old * 2, old + 8, old + 64, old << 32])
        case 3:
            node_, key_ = rng.choice(places)
            node[key] = (
                json.loads(json.dumps(node_[key_]))
                if key_ in node_ or (isinstance(node_, list) and key_ < len(node_))
                else None
            )
        case _:
            node[key] = rng.choice(STRANGE)
    return f"{key!r}: {str(old)[:60]} -> {str(node[key])[:60]}", value


def array_lie(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    """An array file with another directory or header, all checksums right; or with one of its arrays changed."""
    import orjson
    from vecdb_storage.arrayfile import BLOCK, checksum

    footer = struct.Struct("<8sIIQQQ16sQ")
    magic, version, zero, at, length, _, uuid, _ = footer.unpack(data[-64:])
    body, directory = bytearray(data[:at]), orjson.loads(data[at : at + length])
    text: bytes | None = None
    match rng.randrange(12):
        case 0 | 1:  # what the bytes of an array say
            filled = [entry for entry in directory["arrays"] if entry["bytes"]]
            entry = rng.choice(filled)
            start, size = entry["offset"], entry["bytes"]
            for _ in range(rng.choice([1, 1, 8])):
                where = start + rng.randrange(size)
                body[where] = rng.choice([0, 255, body[where] ^ (1 << rng.randrange(8)), rng.randrange(256)])
            entry["xxh3"] = [checksum(bytes(body[start : start + size][i : i + BLOCK])) for i in range(0, size, BLOCK)]
            label = f"the bytes of {entry['name']}"
        case 2:
            offset, length_, strange = at, length, [0, 1, 2**63, 2**64 - 1, len(data), at + 1]
            if rng.random() < 0.5:
                offset = rng.choice(strange)
            else:
                length_ = rng.choice(strange)
            foot = footer.pack(magic, version, zero, offset, length_, checksum(data[offset : offset + length_]), uuid, 0)[:-8]
            return f"directory of {length_} at {offset}", data[:-64] + foot + checksum(foot).to_bytes(8, "little")
        case 3:
            text = rng.choice([b"", b"{}", b"[]", b"null", b"1", b"[" * 5000, b'{"meta":1,"arrays":[]}', b'{"meta":{},"arrays":{}}',
                               b'{"meta":{},"arrays":[1]}', b'{"meta":{},"arrays":[{}]}', b"\xff" * 9])  # fmt: skip
            label = f"directory {text[:20]!r}"
        case 4:
            some, other = rng.choice(directory["arrays"]), rng.choice(directory["arrays"])
            some["name"], other["name"] = other["name"], some["name"]
            label = f"{some['name']} and {other['name']} changed names"
        case 5:
            entry = rng.choice(directory["arrays"])  # the same bytes as other numbers
            width = rng.choice([w for w in (1, 2, 4, 8) if entry["bytes"] % w == 0])
            entry["dtype"], entry["shape"] = rng.choice("iuf" if width > 1 else "iu"), [entry["bytes"] // width]
            entry["dtype"] = f"<{entry['dtype']}{width}"
            label = f"{entry['name']} as {entry['dtype']}"
        case 6 | 7:
            label, directory["meta"] = lie(rng, directory["meta"])
        case _:
            label, directory = lie(rng, directory)
    text = json.dumps(directory).encode() if text is None else text
    padding = bytes(-(at + len(text)) % 64)
    foot = footer.pack(magic, version, zero, at, len(text), checksum(text), uuid, 0)[:-8]
    return label, bytes(body) + text + padding + foot + checksum(foot).to_bytes(8, "little")


def table_lie(rng: random.Random, meta: Path, table: str) -> str:
    """A value of an LMDB table, with its checksum: a manifest, or a log record of one part."""
    import lmdb
    import orjson
    from vecdb_storage.environment import _sum

    env = lmdb.open(str(meta), subdir=False, max_dbs=16, map_size=1 << 30, sync=False)
    with env.begin(write=True) as txn:
        handle = env.open_db(table.encode(), txn=txn)
        key, value = rng.choice([(bytes(k), bytes(v)[8:]) for k, v in txn.cursor(db=handle)])
        if table == "manifest":
            label, changed = lie(rng, orjson.loads(value))
            value = json.dumps(changed).encode()
        elif rng.random() < 0.1:
            label = "its length"
            value = rng.choice([0, 1, 2**63, 2**64 - 1, len(value)]).to_bytes(8, "little") + value[8:]
        elif rng.random() < 0.3:
            label, value = damage(rng, value, [])
        else:
            length = int.from_bytes(value[:8], "little")
            label, changed = lie(rng, orjson.loads(value[8 : 8 + length]))
            head = json.dumps(changed).encode()
            head += b" " * (-(8 + len(head)) % 8)
            value = len(head).to_bytes(8, "little") + head + value[8 + length :]
        txn.put(key, _sum(key, value) + value, db=handle)
        name = env.open_db(b"meta", txn=txn)
        number = txn.id().to_bytes(8, "big")
        txn.put(b"txn", _sum(b"txn", number) + number, db=name)
    env.close()
    return f"{table}: {label}"


# -- one try, in the child -------------------------------------------------------------------------


@cache
def files_of(sound: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {kind: [] for kind in DAMAGE}
    for path in sorted(p for p in sound.rglob("*") if p.is_file()):
        kind = {".mdb": "meta", ".mdb-lock": "lock"}.get(path.suffix, path.suffix.removeprefix(".") or path.name)
        found[kind].append(path)
    return found


def prepare(sound: Path, folder: Path, rng: random.Random, kind: str) -> str:
    """A copy of the sound database with one damage or lie. Says which."""
    files = files_of(sound)
    what, _, lying = kind.partition(" ")
    table = what if what in ("log", "manifest") else None
    chosen = rng.choice(files["meta" if table else what])
    for path in (p for paths in files.values() for p in paths):
        target = folder / path.relative_to(sound)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path == chosen or path.name in ("LOCK", "meta-1.mdb", "meta-1.mdb-lock"):  # these are written in place
            shutil.copyfile(path, target)
        else:
            os.link(path, target)
    target = folder / chosen.relative_to(sound)
    if table:
        return table_lie(rng, target, table)
    data = target.read_bytes()
    if lying:
        label, changed = array_lie(rng, data)
    elif rng.random() < 0.05:
        label, changed = "gone", b""
        target.unlink()
        return f"{chosen.name}: gone"
    else:
        label, changed = damage(rng, data, [p.read_bytes() for p in files[what] if p != chosen])
    target.write_bytes(changed)
    return f"{chosen.name}: {label}"


def kind_of(which: str, number: int) -> str:
    return KINDS[which][number % len(KINDS[which])]


def attempt(sound: Path, folder: Path, which: str, seed: int, number: int, oracle: dict[str, Any]) -> tuple[str, str]:
    """(outcome, damage). Outcomes: right, refused, found (by verify), lied to; anything else is a defect and begins with !."""
    import vecdb
    from vecdb.errors import VecdbError

    rng = random.Random(f"{seed}/{number}")
    kind = kind_of(which, number)
    label = prepare(sound, folder, rng, kind)
    read_only = rng.random() < 0.5
    refused: list[str] = []

    def compare(db: Any, expected: dict[str, Any], truth: dict[str, dict[Any, float]]) -> tuple[list[str], bool]:
        """Which answers are wrong, and whether verify found something."""
        wrong = []
        try:
            for name, answer in ask(db).items():
                if answer != expected[name]:
                    wrong.append(f"{name}: {str(answer)[:200]} instead of {str(expected[name])[:200]}")
        except VecdbError as error:
            refused.append(repr(error))
            wrong += rest_of(db, expected)
        for name in INDEXED:
            try:
                hits = by_index(db, name)
                right = truth[name]
                if len(hits) != 10 or any(right.get(key) != score for key, score in hits) or len(dict(hits)) != 10:
                    wrong.append(f"{name} by index: {hits}")
            except VecdbError as error:
                refused.append(repr(error))
        return wrong, not db.verify().ok

    def rest_of(db: Any, expected: dict[str, Any]) -> list[str]:
        """Collections that are not damaged answer all the same."""
        wrong = []
        for name in ("numbers", "words", "terms"):
            try:
                points = plain(db.collection(name).scroll(with_vectors=True))
                if points != expected[f"{name} points"]:
                    wrong.append(f"{name} points, after an error")
            except VecdbError as error:
                refused.append(repr(error))
        return wrong

    truth = {name: dict(oracle[f"{name} vector all"]) for name in INDEXED}
    try:
        with vecdb.open(folder, read_only=read_only) as db:
            if not read_only and not kind.startswith("idx"):
                db.pause_indexing()
            wrong, found = compare(db, oracle, truth)
            if not read_only:
                try:
                    db.collection("numbers").upsert(ids=[1000], vectors=[[9.0] * DIM], payloads=[{"mark": "new"}])
                    db.collection("numbers").flush()
                except VecdbError as error:
                    refused.append(repr(error))
        if not read_only:
            with vecdb.open(folder, read_only=True) as db:
                try:
                    new = db.collection("numbers").get([1000])[0]
                    if not refused and (new is None or new.payload != {"mark": "new"}):
                        wrong.append("the point that was written last")
                    rest = db.collection("numbers").scroll(with_vectors=True)
                    points = plain(p for p in rest if p.id != 1000)
                    if points != oracle["numbers points"]:
                        wrong.append("numbers points, after a flush")
                except VecdbError as error:
                    refused.append(repr(error))
                found |= not db.verify().ok
    except VecdbError as error:
        return "refused", f"{label} ({type(error).__name__}: {str(error)[:150]})"
    if wrong:
        if kind.endswith("lie"):
            return "lied to", label
        return ("found" if found else "! a wrong answer that verify does not find"), f"{label}: {'; '.join(wrong)}"
    return "refused" if refused else "right", label


def child(sound: Path, work: Path, which: str, seed: int, first: int, stop: int) -> None:
    """Tries first..stop. Before each a line with its number, after it one with the outcome."""
    from vecdb_index.flat.sparse import SparseSearcher
    from vecdb_index.seismic import search

    import vecdb
    from vecdb.search.calibrate import Calibration

    faulthandler.enable()
    Calibration.exact_seconds = lambda *_: 1e3  # type: ignore[method-assign, assignment]  # so that the index is chosen
    SparseSearcher.cost = lambda *_: 1e3  # type: ignore[method-assign]  # and that of exact searches
    search._FEW = 0
    oracle = pickle.loads((sound.parent / "oracle").read_bytes())
    with vecdb.open(sound, read_only=True) as db:  # kernels may have to be compiled, which takes its time
        assert ask(db) == {name: answer for name, answer in oracle.items() if not name.endswith(" vector all")}
        for name in INDEXED:
            by_index(db, name)
    for number in range(first, stop):
        print(f"try {number}", flush=True)
        faulthandler.dump_traceback_later(LIMIT - 1, exit=True)
        folder = work / str(number)
        folder.mkdir()
        try:
            outcome, label = attempt(sound, folder, which, seed, number, oracle)
        except Exception:
            outcome, label = "! not a typed error", traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([number, kind_of(which, number), outcome, label]), flush=True)
        shutil.rmtree(folder, ignore_errors=True)


# -- the parent ------------------------------------------------------------------------------------


class Tries:
    """A child over a range of tries, begun again behind each that ends it."""

    def __init__(self, sound: Path, work: Path, which: str, seed: int, first: int, stop: int) -> None:
        self._arguments, self._which, self._stop = [str(sound), str(work), which, str(seed)], which, stop
        self.errors = work / f"stderr-{first}"
        self._start(first)

    def _start(self, first: int) -> None:
        self.current, self._buffer = first, b""
        command = [sys.executable, __file__, *self._arguments, str(first), str(self._stop)]
        with self.errors.open("wb") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        self._heard = time.monotonic() + 600  # it has to compile kernels first

    def lines(self, wait: float) -> list[list[Any]] | None:
        """Outcomes so far; None at the end."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], wait)
        if not readable:
            if time.monotonic() - self._heard > LIMIT + 5:
                self._process.kill()
            return []
        data = os.read(self._process.stdout.fileno(), 1 << 16)
        self._heard = max(self._heard, time.monotonic())
        if data:
            *whole, self._buffer = (self._buffer + data).split(b"\n")
            for line in whole:
                if line.startswith(b"try "):
                    self.current = int(line[4:])
            return [json.loads(line) for line in whole if line.startswith(b"[")]
        code = self._process.wait()
        self._process.stdout.close()
        if code == 0:
            return None
        said = self.errors.read_text(errors="replace")[-3000:]
        dead = [self.current, kind_of(self._which, self.current), f"! the process ended with {code}", said]
        if self.current + 1 >= self._stop:
            self._stop = 0
            self._start(1)  # nothing is left to try
        else:
            self._start(self.current + 1)
        return [dead]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    memory = "/dev/shm"  # the disk need not be waited for
    folder = Path(
        tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path_factory.mktemp("damaged"), prefix="damaged-")
    )
    subprocess.run([sys.executable, __file__, str(folder / "sound")], check=True)
    yield folder / "sound"
    shutil.rmtree(folder, ignore_errors=True)


def run(sound: Path, which: str, seed: int, tries: int, counted: Callable[[str, int], None]) -> Counter[tuple[str, str]]:
    """All tries, in two processes. How many of each kind came to which outcome."""
    present = {kind: len(paths) for kind, paths in files_of(sound).items()}
    assert all(present.values()) and present["seg"] >= 3, present
    work = sound.parent / which
    work.mkdir(exist_ok=True)
    share = -(-tries // 2)
    running = [Tries(sound, work, which, seed, first, min(tries, first + share)) for first in range(0, tries, share)]
    outcomes: Counter[tuple[str, str]] = Counter()
    defects = []
    while running:
        for some in list(running):
            lines = some.lines(0.2)
            if lines is None:
                running.remove(some)
                continue
            for number, kind, outcome, label in lines:
                outcomes[kind, outcome] += 1
                if outcome.startswith("!"):
                    defects.append(f"{which} {seed} {number}: {kind}: {outcome[2:]}: {label}")
    for kind in KINDS[which]:
        counted(f"damaged files tried, {which}: {kind}", sum(n for (k, _), n in outcomes.items() if k == kind))
    assert not defects, f"{len(defects)} defects:\n" + "\n".join(sorted(defects)[:40])
    assert sum(outcomes.values()) == tries
    return outcomes


def noticed(outcomes: Counter[tuple[str, str]]) -> None:
    """Most damage shows; what does not is in bytes that mean nothing, or in files that may be lost."""
    for kind in ("seg", "meta", "arr", "growing", "VECDB"):
        assert outcomes[kind, "refused"] + outcomes[kind, "found"], f"no damage of {kind} was noticed"
    for kind in ("idx", "LOCK", "lock"):
        assert not outcomes[kind, "refused"], f"an answer was refused for want of {kind}"


def test_damage_is_refused_or_found(sound: Path, counted: Any) -> None:
    noticed(run(sound, "damage", 1, 360, counted))


def test_lies_lead_to_nothing_but_typed_errors(sound: Path, counted: Any) -> None:
    run(sound, "lies", 1, 160, counted)


@pytest.mark.slow
def test_damage_is_refused_or_found_for_long(sound: Path, counted: Any) -> None:
    noticed(run(sound, "damage", 2, 16_000, counted))


@pytest.mark.slow
def test_lies_lead_to_nothing_but_typed_errors_for_long(sound: Path, counted: Any) -> None:
    run(sound, "lies", 2, 10_000, counted)


def main() -> None:
    arguments = sys.argv[1:]
    if len(arguments) == 6:
        child(Path(arguments[0]), Path(arguments[1]), arguments[2], *map(int, arguments[3:]))
        return
    if len(arguments) == 1:
        import vecdb

        sound = Path(arguments[0])
        build(sound)
        with vecdb.open(sound, read_only=True) as db:
            assert db.verify().ok
            oracle = ask(db)
            for name in INDEXED:
                hits = db.collection(name).search(question(name), k=1000, exact=True)
                oracle[f"{name} vector all"] = [(h.id, h.score) for h in hits]
        (sound.parent / "oracle").write_bytes(pickle.dumps(oracle))
        return
    with tempfile.TemporaryDirectory() as folder:
        sound, work = Path(folder) / "sound", Path(folder) / "work"
        work.mkdir()
        subprocess.run([sys.executable, __file__, str(sound)], check=True)
        seed, number = map(int, arguments[1:])
        child(sound, work, arguments[0], seed, number, number + 1)


if __name__ == "__main__":
    main()
