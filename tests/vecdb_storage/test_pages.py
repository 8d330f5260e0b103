"""The check of LMDB's trees: sound files of every shape pass, and each kind of damage to their structure is found and named."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest
from vecdb_storage.errors import Corruption
from vecdb_storage.files import Files
from vecdb_storage.pages import check_tree
from vecdb_storage.registry import open_store

PAGE = 4096
pytestmark = pytest.mark.skipif(__import__("mmap").PAGESIZE != PAGE, reason="the test writes pages of 4 KiB")


def environment(path: Path) -> Any:
    return lmdb.open(str(path), subdir=False, map_size=1 << 30, max_dbs=16, meminit=False, sync=False)


def check(path: Path, env: Any) -> None:
    """As the engine keeps it: the file covers its last page."""
    length = (env.info()["last_pgno"] + 1) * PAGE
    with path.open("ab") as file:
        file.truncate(max(file.tell(), length))
    check_tree(Files(), path, env.info()["last_txnid"])


# -- sound files -----------------------------------------------------------------------------------


def keys_of(style: str, rng: random.Random) -> bytes:
    if style == "long":
        return rng.randbytes(rng.randint(1, 511))
    if style == "zeros":  # which NumPy drops at the end of its strings
        return bytes(rng.choice([0, 0, 0, 1, 255]) for _ in range(rng.randint(1, 60)))
    return rng.randbytes(20 if style == "uuid" else rng.randint(1, 6))


def grow(path: Path, seed: int) -> int:
    """A file after many commits of puts and deletes, some beside readers, some aborted; checked on the way. Its deepest tree."""
    rng = random.Random(seed)
    env = environment(path)
    tables = [env.open_db(b"table %d" % i) for i in range(3)]
    live: list[dict[bytes, None]] = [{} for _ in tables]
    style, longest = rng.choice(["short", "long", "zeros", "uuid"]), rng.choice([50, 500, 3000, 30_000])
    readers: list[Any] = []
    for _ in range(rng.randint(5, 60)):
        before = [dict(keys) for keys in live]
        with env.begin(write=True) as txn:
            deletes = rng.choice([0.3, 0.7])
            for _ in range(rng.choice([1, 5, 50, 300])):
                number = rng.randrange(3)
                if live[number] and rng.random() < deletes:
                    key = next(iter(live[number]))
                    del live[number][key]
                    txn.delete(key, db=tables[number])
                else:
                    key = keys_of(style, rng)
                    live[number][key] = None
                    txn.put(key, rng.randbytes(rng.randint(0, longest)), db=tables[number])
            if rng.random() < 0.1:
                txn.abort()
                live = before
        if rng.random() < 0.1:
            readers.append(env.begin())
        if readers and rng.random() < 0.1:
            readers.pop(rng.randrange(len(readers))).abort()
        if rng.random() < 0.3:
            check(path, env)
    check(path, env)
    with env.begin() as txn:
        deepest: int = max(txn.stat(table)["depth"] for table in tables)
    for reader in readers:
        reader.abort()
    env.close()
    return deepest


def test_sound_files_pass(tmp_path: Path) -> None:
    assert max(grow(tmp_path / str(seed), seed) for seed in range(12)) >= 3


@pytest.mark.slow
def test_many_more_sound_files_pass(tmp_path: Path) -> None:
    for seed in range(100, 400):
        grow(tmp_path / "file", seed)
        (tmp_path / "file").unlink()
        (tmp_path / "file-lock").unlink()


def test_a_deep_tree_passes_and_so_does_what_is_left_of_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    env = environment(path)
    table = env.open_db(b"table")
    keys = [i.to_bytes(4, "big") + bytes(500) for i in range(3000)]
    for step in range(0, len(keys), 500):
        with env.begin(write=True) as txn:
            for key in keys[step : step + 500]:
                txn.put(key, b"", db=table)
    with env.begin() as txn:
        assert txn.stat(table)["depth"] >= 4
    check(path, env)
    for key in random.Random(1).sample(keys, len(keys)):
        with env.begin(write=True) as txn:
            txn.delete(key, db=table)
        if key[3] % 16 == 0:
            check(path, env)
    with env.begin() as txn:
        assert txn.stat(table)["depth"] == 0
    check(path, env)
    env.close()


def test_the_check_is_quick(tmp_path: Path) -> None:
    env = environment(tmp_path / "file")
    table = env.open_db(b"table")
    for start in range(0, 20_000, 2000):
        with env.begin(write=True) as txn:
            for i in range(start, start + 2000):
                txn.put(random.Random(i).randbytes(16), bytes(200), db=table)
    check(tmp_path / "file", env)
    started = time.perf_counter()
    check(tmp_path / "file", env)
    assert time.perf_counter() - started < 0.5, "20,000 entries take some 15 ms"
    env.close()


# -- damaged files ---------------------------------------------------------------------------------


class Image:
    """A file in memory, read in the plainest way, and the places in it that can be damaged."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.meta = max((0, PAGE), key=lambda at: self.u64(at + 144))
        self.transaction = self.u64(self.meta + 144)
        self.trees = {"free": self.meta + 40, "main": self.meta + 88}
        self.pages: dict[str, dict[str, list[int]]] = {}
        for name in ("free", "main"):
            self._walk(name)
        for page in self.pages["main"]["leaf"]:
            for node in self.nodes(page):
                size = self.u16(node + 6)
                name = self.data[node + 8 : node + 8 + size].decode()
                self.trees[name] = node + 8 + size
        for name in self.trees.keys() - {"free", "main"}:
            self._walk(name)

    def u16(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 2], "little")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 4], "little")

    def u64(self, at: int) -> int:
        return int.from_bytes(self.data[at : at + 8], "little")

    def put(self, at: int, value: int, size: int) -> None:
        self.data[at : at + size] = value.to_bytes(size, "little")

    def add(self, at: int, value: int, size: int) -> None:
        self.put(at, int.from_bytes(self.data[at : at + size], "little") + value, size)

    def swap(self, a: int, b: int, size: int) -> None:
        self.data[a : a + size], self.data[b : b + size] = self.data[b : b + size], self.data[a : a + size]

    def nodes(self, page: int) -> list[int]:
        """Offsets in the file."""
        at = page * PAGE
        return [at + self.u16(at + 16 + 2 * i) for i in range((self.u16(at + 12) - 16) // 2)]

    def child(self, node: int) -> int:
        return self.u32(node) | self.u16(node + 4) << 32

    def value(self, node: int) -> int:
        return node + 8 + self.u16(node + 6)

    def _walk(self, name: str) -> None:
        found: dict[str, list[int]] = {"branch": [], "leaf": [], "overflow": [], "big": []}
        self.pages[name] = found
        level = [self.u64(self.trees[name] + 40)]
        for _ in range(self.u16(self.trees[name] + 6)):
            below = []
            for page in level:
                kind = {1: "branch", 2: "leaf"}[self.u16(page * PAGE + 10)]
                found[kind].append(page)
                for node in self.nodes(page):
                    if kind == "branch":
                        below.append(self.child(node))
                    elif self.u16(node + 4) & 1:
                        found["big"].append(node)
                        found["overflow"].append(self.u64(self.value(node)))
            level = below


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Trees of three levels, values with pages of their own, free lists both short and with pages of their own."""
    path = tmp_path_factory.mktemp("pages") / "file"
    env = environment(path)
    table, other = env.open_db(b"table"), env.open_db(b"other")
    env.open_db(b"empty")
    rng = random.Random(3)
    keys = [bytes([1 + i % 250]) + rng.randbytes(100) for i in range(1500)]
    with env.begin(write=True) as txn:
        for key in keys:
            txn.put(key, bytes(40), db=table)
        for i in range(60):
            txn.put(b"big %03d" % i, bytes(65_520), db=other)
    with env.begin(write=True) as txn:
        for i in range(50):
            txn.delete(b"big %03d" % i, db=other)
    for i in range(4):
        with env.begin(write=True) as txn:
            txn.put(b"big %03d" % (57 + i), bytes(9000), db=other)
    check(path, env)
    env.close()
    data = path.read_bytes()
    image = Image(data)
    assert len(image.pages["table"]["branch"]) > 3
    assert len(image.pages["other"]["overflow"]) > 5
    assert len(image.pages["free"]["leaf"]) == 1 and len(image.nodes(image.pages["free"]["leaf"][0])) > 2
    return data


def lists(image: Image) -> list[int]:
    """Where the page numbers of each record of the free list begin: with their count."""
    (leaf,) = image.pages["free"]["leaf"]
    found = []
    for node in image.nodes(leaf):
        at = image.value(node)
        found.append(image.u64(at) * PAGE + 16 if image.u16(node + 4) & 1 else at)
    return found


def a_list(image: Image, least: int = 2) -> int:
    return next(at for at in lists(image) if image.u64(at) >= least)


def table_leaf(image: Image, at: int = 5) -> int:
    return image.pages["table"]["leaf"][at] * PAGE


def table_branch(image: Image, at: int = 1) -> int:
    return image.pages["table"]["branch"][at] * PAGE


def node(image: Image, page: int, number: int = 3) -> int:
    return image.nodes(page // PAGE)[number]


def big(image: Image, number: int = 1) -> int:
    """The first page of a value, as an offset."""
    return image.pages["other"]["overflow"][number] * PAGE


Damage = Callable[[Image], None]
DAMAGES: dict[str, tuple[str, Damage]] = {
    # the meta page
    "meta: number": ("meta page", lambda f: f.put(f.meta, 7, 8)),
    "meta: kind of page": ("meta page", lambda f: f.put(f.meta + 10, 2, 2)),
    "meta: magic": ("meta page", lambda f: f.put(f.meta + 16, 7, 4)),
    "meta: version": ("version", lambda f: f.put(f.meta + 20, 2, 4)),
    "meta: size of a page": ("pages have", lambda f: f.put(f.meta + 40, 8192, 4)),
    "meta: flags": ("flags", lambda f: f.put(f.meta + 44, 0x400C, 2)),
    "meta: size of the map": ("in a map of", lambda f: f.put(f.meta + 32, PAGE, 8)),
    "meta: transaction": ("no meta page is of transaction", lambda f: f.add(f.meta + 144, 2, 8)),
    "meta: last page beyond the file": ("cut short", lambda f: f.add(f.meta + 136, 1 << 16, 8)),
    "meta: last page too early": ("outside the file", lambda f: f.put(f.meta + 136, 20, 8)),
    # headers
    "page: number": ("number of another", lambda f: f.add(table_leaf(f), 1, 8)),
    "page: a leaf as a branch": ("no leaf", lambda f: f.put(table_leaf(f) + 10, 1, 2)),
    "page: a leaf as another kind of leaf": ("no leaf", lambda f: f.put(table_leaf(f) + 10, 0x22, 2)),
    "page: a branch as a leaf": ("no branch", lambda f: f.put(table_branch(f) + 10, 2, 2)),
    "page: unknown flags": ("no branch", lambda f: f.put(table_branch(f) + 10, 0x11, 2)),
    "page: lower, odd": ("bounds", lambda f: f.add(table_leaf(f) + 12, 1, 2)),
    "page: lower, above upper": ("bounds", lambda f: f.put(table_leaf(f) + 12, 4000, 2)),
    "page: lower, no nodes": ("bounds", lambda f: f.put(table_leaf(f) + 12, 16, 2)),
    "page: lower, one node less": ("fill it|begin elsewhere", lambda f: f.add(table_leaf(f) + 12, -2, 2)),
    "page: a branch with one node": ("bounds", lambda f: f.put(table_branch(f) + 12, 18, 2)),
    "page: upper, odd": ("bounds", lambda f: f.add(table_leaf(f) + 14, 1, 2)),
    "page: upper, beyond the page": ("bounds", lambda f: f.put(table_leaf(f) + 14, PAGE + 2, 2)),
    "page: upper, too low": ("begin elsewhere", lambda f: f.add(table_leaf(f) + 14, -2, 2)),
    "page: upper, too high": ("outside the room", lambda f: f.add(table_leaf(f) + 14, 2, 2)),
    # nodes
    "node: begins in the header": ("outside the room", lambda f: f.put(table_leaf(f) + 18, 8, 2)),
    "node: begins beyond the page": ("outside the room", lambda f: f.put(table_leaf(f) + 18, 0xFFFE, 2)),
    "node: begins at an odd place": ("outside the room", lambda f: f.add(table_leaf(f) + 18, 1, 2)),
    "node: begins where another does": ("fill", lambda f: f.put(table_leaf(f) + 18, f.u16(table_leaf(f) + 16), 2)),
    "node: longer value": ("fill", lambda f: f.add(node(f, table_leaf(f)), 2, 2)),
    "node: value of 4 GiB": ("fill", lambda f: f.put(node(f, table_leaf(f)), 0xFFFF_FFFF, 4)),
    "node: shorter key": ("fill", lambda f: f.add(node(f, table_leaf(f)) + 6, -2, 2)),
    "node: no key": ("fill|empty", lambda f: f.put(node(f, table_leaf(f)) + 6, 0, 2)),
    "node: no key, but a longer value": (
        "empty", lambda f: (f.put(node(f, table_leaf(f)), 141, 2), f.put(node(f, table_leaf(f)) + 6, 0, 2))
    ),
    "node: a longer key in a branch": ("fill", lambda f: f.add(node(f, table_branch(f)) + 6, 2, 2)),
    "node: flag of a tree": ("flags", lambda f: f.put(node(f, table_leaf(f)) + 4, 2, 2)),
    "node: flag of duplicates": ("flags", lambda f: f.put(node(f, table_leaf(f)) + 4, 4, 2)),
    "node: flag of a value elsewhere": ("fill", lambda f: f.put(node(f, table_leaf(f)) + 4, 1, 2)),
    "node: flag of a value elsewhere, lost": ("fill", lambda f: f.put(f.pages["other"]["big"][1] + 4, 0, 2)),
    # order
    "keys: two changed places": ("do not ascend", lambda f: f.swap(table_leaf(f) + 18, table_leaf(f) + 20, 2)),
    "keys: two are the same": (
        "do not ascend",
        lambda f: f.data.__setitem__(slice(node(f, table_leaf(f), 3) + 8, node(f, table_leaf(f), 3) + 109),
                                     f.data[node(f, table_leaf(f), 4) + 8 : node(f, table_leaf(f), 4) + 109]),
    ),
    "keys: the first before its page": ("before the page", lambda f: f.put(node(f, table_leaf(f), 0) + 8, 0, 1)),
    "keys: the last behind its page": ("behind the page", lambda f: f.put(node(f, table_leaf(f), -1) + 8, 255, 1)),
    "keys: of a branch, changed places": ("do not ascend", lambda f: f.swap(table_branch(f) + 20, table_branch(f) + 22, 2)),
    "keys: of a branch, before the page": ("do not ascend", lambda f: f.put(node(f, table_branch(f, 2), 1) + 8, 0, 1)),
    "keys: of a branch, behind the page": ("behind the page", lambda f: f.put(node(f, table_branch(f, 1), -1) + 8, 255, 1)),
    "keys: two leaves changed places": (
        "before|behind", lambda f: f.swap(node(f, table_branch(f), 2), node(f, table_branch(f), 3), 6)
    ),
    # children
    "child: the meta page": ("outside the file", lambda f: f.put(node(f, table_branch(f)), 1, 6)),
    "child: beyond the file": ("outside the file", lambda f: f.put(node(f, table_branch(f)), 1 << 40, 6)),
    "child: another leaf": ("used twice", lambda f: f.put(node(f, table_branch(f)), f.child(node(f, table_branch(f), 2)), 6)),
    "child: a loop": ("used twice", lambda f: f.put(node(f, table_branch(f)), table_branch(f) // PAGE, 6)),
    "child: a page of another tree": ("used twice|number|no leaf", lambda f: f.put(node(f, table_branch(f)), f.pages["free"]["leaf"][0], 6)),
    "child: within a value": ("used twice|number|no leaf", lambda f: f.put(node(f, table_branch(f)), big(f) // PAGE + 1, 6)),
    # values with pages of their own
    "value: beyond the file": ("lies outside", lambda f: f.put(f.value(f.pages["other"]["big"][1]), 1 << 50, 8)),
    "value: the meta page": ("lies outside", lambda f: f.put(f.value(f.pages["other"]["big"][1]), 0, 8)),
    "value: of another key": ("used twice", lambda f: f.put(f.value(f.pages["other"]["big"][1]), big(f, 2) // PAGE, 8)),
    "value: a leaf": ("not the value", lambda f: f.put(f.value(f.pages["other"]["big"][1]), table_leaf(f) // PAGE, 8)),
    "value: number": ("not the value", lambda f: f.add(big(f), 1, 8)),
    "value: flags": ("not the value", lambda f: f.put(big(f) + 10, 6, 2)),
    "value: no pages": ("is said to have 0", lambda f: f.put(big(f) + 12, 0, 4)),
    "value: too few pages": ("is said to have", lambda f: f.add(big(f) + 12, -1, 4)),
    "value: a page too many": ("used twice|free|is said to have", lambda f: f.add(big(f) + 12, 1, 4)),
    "value: more pages than the file": ("is said to have", lambda f: f.put(big(f) + 12, 0xFFFF_FFFF, 4)),
    "value: longer than its pages": ("is said to have", lambda f: f.add(f.pages["other"]["big"][1], PAGE, 4)),
    # what is said of a tree
    "tree: flags": ("flags", lambda f: f.put(f.trees["table"] + 4, 4, 2)),
    "tree: flags of the tables": ("flags", lambda f: f.put(f.trees["main"] + 4, 4, 2)),
    "tree: deeper": ("no branch", lambda f: f.add(f.trees["table"] + 6, 1, 2)),
    "tree: less deep": ("no leaf", lambda f: f.add(f.trees["table"] + 6, -1, 2)),
    "tree: no levels": ("0 levels", lambda f: f.put(f.trees["table"] + 6, 0, 2)),
    "tree: too many levels": ("33 levels", lambda f: f.put(f.trees["table"] + 6, 33, 2)),
    "tree: branch pages": ("said to have", lambda f: f.add(f.trees["table"] + 8, 1, 8)),
    "tree: leaf pages": ("said to have", lambda f: f.add(f.trees["table"] + 16, -1, 8)),
    "tree: pages of values": ("said to have", lambda f: f.add(f.trees["other"] + 24, 1, 8)),
    "tree: entries": ("said to have", lambda f: f.add(f.trees["table"] + 32, 1, 8)),
    "tree: root beyond the file": ("root is outside", lambda f: f.put(f.trees["table"] + 40, 1 << 33, 8)),
    "tree: root a meta page": ("root is outside", lambda f: f.put(f.trees["table"] + 40, 1, 8)),
    "tree: root of another": ("used twice|said to have|no ", lambda f: f.swap(f.trees["table"] + 40, f.trees["other"] + 40, 8)),
    "tree: no root": ("said to have pages", lambda f: f.put(f.trees["table"] + 40, 2**64 - 1, 8)),
    "tree: an empty one with entries": ("said to have pages", lambda f: f.put(f.trees["empty"] + 32, 1, 8)),
    "tree: of the tables, an entry that is none": (
        "no table", lambda f: f.put(f.trees["table"] - 5 - 8 + 4, 0, 2)
    ),
    # the free list
    "free: a page beyond the file": ("listed as free, but outside", lambda f: f.put(a_list(f) + 8, 1 << 30, 8)),
    "free: a meta page": ("listed as free, but outside", lambda f: f.put(a_list(f) + 8 * f.u64(a_list(f)), 1, 8)),
    "free: twice": ("do not descend", lambda f: f.put(a_list(f) + 16, f.u64(a_list(f) + 8), 8)),
    "free: twice, in two records": (
        "listed twice", lambda f: f.put(lists(f)[0] + 8, max(f.u64(at + 8) for at in lists(f)), 8)
        if f.u64(lists(f)[0] + 8) != max(f.u64(at + 8) for at in lists(f))
        else f.put(lists(f)[-1] + 8, f.u64(lists(f)[0] + 8), 8),
    ),
    "free: not sorted": ("do not descend", lambda f: f.swap(a_list(f) + 8, a_list(f) + 16, 8)),
    "free: more than there is room for": ("not as many", lambda f: f.add(a_list(f), 1 << 20, 8)),
    "free: by a transaction to come": ("still to come", lambda f: f.add(node(f, f.pages["free"]["leaf"][0] * PAGE, -1) + 8, 50, 8)),
    "free: by transactions out of order": ("do not ascend", lambda f: f.put(node(f, f.pages["free"]["leaf"][0] * PAGE, 0) + 8, 200, 1)),
    "free: in use": ("but in use", lambda f: in_use(f)),
}  # fmt: skip


def in_use(image: Image) -> None:
    """A page of a table among the free ones, where it sorts."""
    used = {page for tree in image.pages.values() for kind in ("branch", "leaf") for page in tree[kind]}
    for at in lists(image):
        pages = [image.u64(at + 8 + 8 * i) for i in range(image.u64(at))]
        for i, page in enumerate(pages):
            above = pages[i - 1] if i else 1 << 40
            below = pages[i + 1] if i + 1 < len(pages) else 0
            for other in used:
                if below < other < above and other != page:
                    image.put(at + 8 + 8 * i, other, 8)
                    return
    raise AssertionError("no place for it")


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(sound: bytes, tmp_path: Path, name: str) -> None:
    message, damage = DAMAGES[name]
    image = Image(sound)
    check_tree(Files(), write(tmp_path, image), image.transaction)
    damage(image)
    assert image.data != sound
    with pytest.raises(Corruption, match=message) as caught:
        check_tree(Files(), write(tmp_path, image), image.transaction)
    assert "page" in str(caught.value) and "restore a backup" in str(caught.value)
    assert caught.value.file == str(tmp_path / "damaged")


def write(folder: Path, image: Image) -> Path:
    path = folder / "damaged"
    path.write_bytes(image.data)
    return path


# -- what passes does no harm ----------------------------------------------------------------------

FUZZ = r"""
import random, sys
from pathlib import Path
import lmdb
from vecdb_storage.errors import Corruption
from vecdb_storage.files import Files
from vecdb_storage.pages import check_tree

source, target, transaction, seed, tries = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), *map(int, sys.argv[3:])
pages = [n for n in range(len(source) // 4096) if source[n * 4096 + 10] in (1, 2, 4, 8)]
rng = random.Random(seed)
passed = 0
for number in range(tries):
    data = bytearray(source)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        page = rng.choice(pages) * 4096
        # Mostly where the structure is: the header, the offsets, the nodes of the first few.
        at = page + rng.choice([rng.randrange(16), rng.randrange(160), rng.randrange(4096)])
        if rng.random() < 0.5:
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at] = rng.randrange(256)
    target.write_bytes(data)
    try:
        check_tree(Files(), target, transaction)
    except Corruption:
        continue
    passed += 1
    print(number, flush=True)
    env = lmdb.open(str(target), subdir=False, map_size=1 << 30, max_dbs=16, sync=False)
    try:
        names = [key for key, _ in env.begin().cursor()]
        for name in names:
            with env.begin(write=True) as txn:
                table = env.open_db(name, txn=txn)
                held = [(bytes(k), bytes(v)) for k, v in txn.cursor(db=table)]
                for key, _ in held[::3]:
                    txn.delete(key, db=table)
                for i in range(50):
                    txn.put(b"%d" % i, bytes(rng.randrange(5000)), db=table)
    except lmdb.Error:
        pass
    env.close()
print("passed", passed)
"""


def fuzz(sound: bytes, tmp_path: Path, seed: int, tries: int) -> int:
    (tmp_path / "sound").write_bytes(sound)
    arguments = [str(tmp_path / "sound"), str(tmp_path / "target"), str(Image(sound).transaction), str(seed), str(tries)]
    child = subprocess.run([sys.executable, "-c", FUZZ, *arguments], capture_output=True, text=True, timeout=3600)
    assert child.returncode == 0, f"after {child.stdout.splitlines()[-1:]} of seed {seed}: {child.stderr[-2000:]}"
    return int(child.stdout.split()[-1])


def test_lmdb_survives_whatever_passes(sound: bytes, tmp_path: Path, record_property: Any) -> None:
    passed = fuzz(sound, tmp_path, 1, 400)
    record_property("tried", 400)
    record_property("passed", passed)
    assert 0 < passed < 400


@pytest.mark.slow
def test_lmdb_survives_whatever_passes_for_long(sound: bytes, tmp_path: Path, record_property: Any) -> None:
    passed = sum(fuzz(sound, tmp_path, seed, 5000) for seed in range(2, 6))
    record_property("tried", 20_000)
    record_property("passed", passed)


# -- at open ---------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path: Path, rows_of: Any, schema: dict[str, Any]) -> Iterator[Path]:
    store = open_store(tmp_path / "db")
    uuid = store.create_collection("c", schema)
    for key in range(20):
        store.write(uuid, rows_of([key]))
    store.release()
    return tmp_path / "db"


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("table", ["free", "main", "log", "meta", "catalog", "manifest"])
def test_an_open_refuses_a_damaged_page(stored: Path, table: str, read_only: bool) -> None:
    meta = stored / "meta-1.mdb"
    image = Image(meta.read_bytes())
    page = image.pages[table]["leaf"][0]
    image.put(page * PAGE + 14, 3, 2)
    meta.write_bytes(image.data)
    with pytest.raises(Corruption, match=f"page {page} "):
        open_store(stored, read_only=read_only)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_table_whose_name_is_damaged_is_not_made_again(stored: Path, read_only: bool) -> None:
    meta = stored / "meta-1.mdb"
    data = meta.read_bytes()
    image = Image(data)
    at = image.trees["log"] - 3
    assert data[at : at + 3] == b"log"
    meta.write_bytes(data[:at] + b"lof" + data[at + 3 :])
    with pytest.raises(Corruption, match="meta-1"):
        open_store(stored, read_only=read_only)


def test_a_newest_meta_page_that_claims_to_be_an_older_one_is_refused(stored: Path) -> None:
    """Its transaction less 2 is one less than the other's: so LMDB would show the commit before, and no one would know."""
    meta = stored / "meta-1.mdb"
    image = Image(meta.read_bytes())
    struct.pack_into("<Q", image.data, image.meta + 144, image.transaction - 2)
    meta.write_bytes(image.data)
    for read_only in (False, True):
        with pytest.raises(Corruption, match="holds a later one"):
            open_store(stored, read_only=read_only)


WRITER = """
import sys
from vecdb_storage.registry import open_store
store = open_store(sys.argv[1])
print("open", flush=True)
number = 0
while True:
    store.create_collection(f"more {number}", {"fields": {}, "ids": None})
    number += 1
    if number > 20:
        store.drop_collection(f"more {number - 20}")
"""


def test_readers_open_beside_a_busy_writer(stored: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(stored)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"open\n"
        seen = set()
        for _ in range(60):
            store = open_store(stored, read_only=True)
            assert "c" in store.collections()
            seen.add(store.last_transaction())
            store.release()
        assert writer.poll() is None
        assert len(seen) > 5
    finally:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
