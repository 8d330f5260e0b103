"""The B-trees of the LMDB file, checked page by page before LMDB is let at them.

LMDB has no checksums and believes its pages: a damaged one ends the process, makes it loop, or answers from the wrong place,
and a damaged list of free pages lets a writer overwrite live ones. The checksums in environment.py find a changed value or key
when it is read; this module finds a changed structure. `check_tree` walks the trees of one transaction (free list, tables, and
each table) level by level: it reads the pages of a level by pread, many at once, and compares them as arrays. Of values that
have pages of their own only the header is read. The layout, little-endian, is that of LMDB 0.9:

    page      u64 number, u16, u16 flags, then u16 lower, u16 upper, and a u16 offset for each node;
              or, where a value has its own pages, u32 number of these pages, then the value
    node      of a leaf: u32 length of the value, u16 flags, u16 length of the key, key, value (or u64 page of the value)
              of a branch: u48 page, u16 length of the key, key: the least that may stand below; ignored in the first node
    tree      u32, u16 flags, u16 depth, u64 branch pages, leaf pages, pages of values, entries, root
    meta      u32 magic, u32 version, u64, u64 size of the map, trees of the free list and of the tables, u64 last page,
              u64 transaction

Nodes fill a page from `upper` to its end without gaps. The key of a free list record is a transaction (u64), its value u64
count and so many pages, descending. Pure functions of the file; any thread, any process, but only while the pages of that
transaction are not used again: under the writer's lock, or with a reader's slot.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .errors import Corruption
from .files import Files

_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
_BIG, _TABLE = 1, 2  # flags of a node: the value has pages of its own, or is a tree
_HEAD, _NODE = 16, 8  # bytes of the headers
_INTEGER_KEYS, _NO_FOLDER = 0x08, 0x4000
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_NO_PAGE = 2**64 - 1
_MOST_DEPTH, _LONGEST_KEY = 32, 511
_TOGETHER = 256  # pages that are compared in one go
_GAP = 4  # pages that are read and thrown away rather than read around
_PAGE = struct.Struct("<QHHI")
_TREE = struct.Struct("<IHH5Q")
_META_HEAD = struct.Struct("<QHHI IIQQ")

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """What LMDB knows of one B-tree."""

    name: str
    flags: int
    depth: int
    branches: int
    leaves: int
    overflow: int
    entries: int
    root: int

    @staticmethod
    def parse(name: str, data: bytes) -> Tree:
        return Tree(name, *_TREE.unpack(data)[1:])


@dataclass(frozen=True)
class Meta:
    """One of the two meta pages: what the file holds as of `transaction`."""

    last_page: int
    transaction: int
    free: Tree
    tables: Tree


def parse_meta(page: bytes, number: int, file: str) -> Meta:
    """The meta page `number`, all of it compared with what this machine's LMDB writes. Raises Corruption."""
    size = mmap.PAGESIZE
    wrong = f"meta page {number} is damaged, so the last commit may be lost"
    if len(page) < _META_HEAD.size + 2 * _TREE.size + 16:
        raise Corruption(f"{wrong}; restore a backup", file=file)
    own, _, kind, _, magic, version, _, mapped = _META_HEAD.unpack_from(page)
    at = _META_HEAD.size
    page_size, flags, *_ = _TREE.unpack_from(page, at)
    if (own, kind, magic) != (number, _META, _MAGIC):
        raise Corruption(f"{wrong}; restore a backup", file=file)
    if version != _VERSION or flags & ~_NO_FOLDER != _INTEGER_KEYS:
        raise Corruption(f"{wrong}: it has LMDB's version {version}, flags {flags:#x}; restore a backup", file=file)
    if page_size != size:
        raise Corruption(
            f"{wrong}, or comes from another kind of machine: its pages have {page_size} bytes, here they have {size}; "
            f"restore a backup", file=file,
        )  # fmt: skip
    free = Tree.parse("free list", page[at : at + _TREE.size])
    tables = Tree.parse("tables", page[at + _TREE.size : at + 2 * _TREE.size])
    last_page, transaction = struct.unpack_from("<QQ", page, at + 2 * _TREE.size)
    if mapped % size or (last_page + 1) * size > mapped:
        raise Corruption(f"{wrong}: {last_page} pages in a map of {mapped} bytes; restore a backup", file=file)
    return Meta(last_page, transaction, free, tables)


def check_tree(files: Files, path: Path, transaction: int) -> None:
    """Compares everything that LMDB would follow in the trees of `transaction`. Raises Corruption that names the page."""
    size = mmap.PAGESIZE
    fd = files.open(path)
    try:
        head = files.read_at(fd, 0, 2 * size, path)
        metas = [parse_meta(head[n * size : (n + 1) * size], n, str(path)) for n in (0, 1)]
        meta = next((m for m in metas if m.transaction == transaction), None)
        if meta is None:
            raise Corruption(f"no meta page is of transaction {transaction}; restore a backup", file=str(path))
        if (meta.last_page + 1) * size > files.size(path):
            raise Corruption(f"it was cut short: page {meta.last_page} is in use; restore a backup", file=str(path))
        for number, other in enumerate(metas):
            if other is not meta and _Walk(files, fd, path, size, other).is_later():
                raise Corruption(
                    f"meta page {number} is damaged: it says it is of transaction {other.transaction}, but holds a later one; "
                    f"restore a backup", file=str(path),
                )  # fmt: skip
        _Walk(files, fd, path, size, meta).run()
    finally:
        files.close(fd)


@dataclass(frozen=True)
class _Nodes:
    """The nodes of some pages of one level, in key order. data: the pages, then zeros."""

    data: npt.NDArray[np.uint8]
    page: Numbers  # position among the pages, of each node
    first: npt.NDArray[np.bool_]  # of its page
    start: Numbers  # offset in data
    flags: Numbers
    keys: npt.NDArray[Any]  # S<longest>, filled up with zeros, which sort as memcmp does
    key_bytes: Numbers
    value_bytes: Numbers  # of leaves
    child: npt.NDArray[np.uint64]  # of branches

    def value_at(self, node: int) -> int:
        """Where the value of a leaf's node lies in data."""
        return int(self.start[node]) + _NODE + int(self.key_bytes[node])


class _Walk:
    """One check of one transaction."""

    def __init__(self, files: Files, fd: int, path: Path, size: int, meta: Meta) -> None:
        self._files, self._fd, self._path, self._size, self._meta = files, fd, path, size, meta
        self._used = np.zeros(meta.last_page + 1, np.bool_)
        self._used[:2] = True
        self._tree = meta.free

    def run(self) -> None:
        free: list[npt.NDArray[np.uint64]] = []
        for nodes, values in self._leaves(self._meta.free):
            free += [self._free_pages(nodes, i, values) for i in range(len(nodes.start))]
        tables: list[Tree] = []
        for nodes, _ in self._leaves(self._meta.tables):
            tables += [self._table(nodes, i) for i in range(len(nodes.start))]
        for table in tables:
            for _ in self._leaves(table):
                pass
        self._tree = self._meta.free
        if free:
            together = np.concatenate(free)
            wrong = (together < 2) | (together > self._meta.last_page)
            if wrong.any():
                self._fail(int(together[wrong.argmax()]), "it is listed as free, but outside the file")
            self._claim(together.astype(np.int64), "it is listed as free, but in use, or listed twice")

    def is_later(self) -> bool:
        """Whether the free list has pages that a later transaction freed, so that the newest commit would be passed over.

        Damage elsewhere is no answer: what only the older transaction holds is not in use any more.
        """
        with suppress(Corruption):
            for nodes, _ in self._leaves(self._meta.free):
                if self._freed_by(nodes, -1) > self._meta.transaction:
                    return True
        return False

    def _fail(self, page: int, what: str) -> NoReturn:
        raise Corruption(f"page {page} ({self._tree.name}): {what}; restore a backup", file=str(self._path))

    def _require(self, right: Any, pages: Numbers, what: str) -> None:
        """right: for each of `pages`."""
        if not right.all():
            self._fail(int(pages[int(np.argmin(right))]), what)

    def _claim(self, pages: Numbers, what: str = "it is used twice") -> None:
        """No page is part of two things."""
        taken = self._used[pages]
        if taken.any():
            self._fail(int(pages[taken.argmax()]), what)
        self._used[pages] = True
        if len(pages) > 1:
            ordered = np.sort(pages)
            again = ordered[1:] == ordered[:-1]
            if again.any():
                self._fail(int(ordered[again.argmax()]), what)

    # -- one tree ------------------------------------------------------------------------------------

    def _leaves(self, tree: Tree) -> Iterator[tuple[_Nodes, dict[int, int]]]:
        """Checks a tree. Yields the nodes of its leaves with the first page of each value that has its own, by node."""
        self._tree = tree
        if tree is not self._meta.free and tree.flags:
            self._fail(tree.root, f"the tree has flags {tree.flags:#x}, which no table has")
        counted = [0, 0, 0, 0]  # branch pages, leaf pages, pages of values, entries
        stated = [tree.branches, tree.leaves, tree.overflow, tree.entries]
        if tree.root == _NO_PAGE:
            if tree.depth or any(stated):
                self._fail(tree.root, "the tree is empty, but is said to have pages")
            return
        if not 2 <= tree.root <= self._meta.last_page:
            self._fail(tree.root, "the root is outside the file")
        if not 1 <= tree.depth <= _MOST_DEPTH:
            self._fail(tree.root, f"the tree is said to be {tree.depth} levels deep")
        pages, least = np.array([tree.root], np.int64), np.array([b""], "S1")
        least_bytes = np.zeros(1, np.int64)  # zeros at the end of a key count, but not when NumPy compares
        for level in range(1, tree.depth + 1):
            self._claim(pages)
            below: list[tuple[Numbers, npt.NDArray[Any], Numbers]] = []
            for at in range(0, len(pages), _TOGETHER):
                here = slice(at, at + _TOGETHER)
                nodes = self._read_nodes(pages[here], leaf=level == tree.depth)
                limits, limit_bytes = least[at : at + _TOGETHER + 1], least_bytes[at : at + _TOGETHER + 1]
                self._check_order(nodes, pages[here], limits, limit_bytes, leaf=level == tree.depth)
                if level < tree.depth:
                    below.append((nodes.child.astype(np.int64), *_bounded(nodes, limits, limit_bytes)))
                    counted[0] += len(pages[here])
                else:
                    values = self._check_values(nodes, pages[here], counted)
                    counted[1] += len(pages[here])
                    counted[3] += len(nodes.start)
                    yield nodes, values
                    self._tree = tree
            if below:
                pages, least, least_bytes = (np.concatenate(parts) for parts in zip(*below, strict=True))
        if counted != stated:
            self._fail(
                tree.root,
                f"the tree has {counted} branch pages, leaf pages, pages of values, entries, and is said to have {stated}",
            )

    def _read(self, pages: Numbers) -> npt.NDArray[np.uint8]:
        """Pages, one after another, and room for the longest key."""
        size = self._size
        data = np.zeros(len(pages) * size + _LONGEST_KEY + 1, np.uint8)
        rows = data[: len(pages) * size].reshape(-1, size)
        order = np.argsort(pages, kind="stable")
        ordered = pages[order]
        for run in np.split(np.arange(len(pages)), np.flatnonzero(np.diff(ordered) > _GAP) + 1):
            first, last = int(ordered[run[0]]), int(ordered[run[-1]])
            wanted = (last + 1 - first) * size
            read = self._files.read_at(self._fd, first * size, wanted, self._path)
            if len(read) < wanted:
                self._fail(last, "it cannot be read to its end")
            rows[order[run]] = np.frombuffer(read, np.uint8).reshape(-1, size)[ordered[run] - first]
        return data

    def _read_nodes(self, pages: Numbers, *, leaf: bool) -> _Nodes:
        """The nodes of pages, whose headers, offsets and sizes are checked: they fill their pages exactly."""
        size, data, count = self._size, self._read(pages), len(pages)
        whole = data[: count * size]
        words = whole.view("<u2")
        head = words.reshape(count, -1)[:, : _HEAD // 2].astype(np.int64)
        self._require(whole.view("<u8").reshape(count, -1)[:, 0] == pages, pages, "its header has the number of another page")
        self._require(
            head[:, 5] == (_LEAF if leaf else _BRANCH), pages, f"it is no {'leaf' if leaf else 'branch'}, by its flags"
        )
        lower, upper = head[:, 6], head[:, 7]
        least = (
            1 if leaf or self._tree is self._meta.free else 2
        )  # LMDB's own words: not all branches of the free list have two
        sane = (lower >= _HEAD + 2 * least) & (lower % 2 == 0) & (upper % 2 == 0) & (lower <= upper) & (upper < size)
        self._require(sane, pages, "the bounds of its nodes are damaged")
        counts = (lower - _HEAD) // 2
        ends = np.cumsum(counts)
        page = np.repeat(np.arange(count), counts)
        within = np.arange(int(ends[-1])) - (ends - counts)[page]
        offset = words.reshape(count, -1)[page, _HEAD // 2 + within].astype(np.int64)
        right = (offset >= upper[page]) & (offset <= size - _NODE) & (offset % 2 == 0)
        self._require(right, pages[page], "a node begins outside the room for nodes")
        start = page * size + offset
        place = start // 2
        low, high, flags, key_bytes = (words[place + i].astype(np.int64) for i in range(4))
        value_bytes = low | high << 16
        taken = _NODE + key_bytes
        if leaf:
            taken = taken + np.where(flags & _BIG, 8, value_bytes)
        taken += taken & 1
        order = np.argsort(start)
        stops = (start + taken)[order]
        # What follows a node is the next one, or the end of the page, which is where the next page's `upper` is counted from.
        last = np.append(page[order][1:] != page[order][:-1], True)
        following = np.where(last, (page[order] + 1) * size, np.append(start[order][1:], 0))
        self._require(stops == following, pages[page[order]], "its nodes do not fill it one after another")
        opening = np.append(0, np.flatnonzero(last)[:-1] + 1)
        self._require(start[order][opening] == np.arange(count) * size + upper, pages, "its nodes begin elsewhere than it says")
        first = within == 0
        nameless = first & (key_bytes == 0) & (not leaf)
        self._require((key_bytes >= 1) & (key_bytes <= _LONGEST_KEY) | nameless, pages[page], "a key is empty or too long")
        child = value_bytes.astype(np.uint64) | flags.astype(np.uint64) << np.uint64(32)
        if not leaf:
            inside = (child >= 2) & (child <= self._meta.last_page)
            self._require(inside, pages[page], "it leads outside the file")
        if self._tree is self._meta.free:
            self._require((key_bytes == 8) | nameless, pages[page], "a key is no transaction")
        keys = self._keys(data, start + _NODE, key_bytes)
        return _Nodes(data, page, first, start, flags, keys, key_bytes, value_bytes, child)

    def _keys(self, data: npt.NDArray[np.uint8], start: Numbers, length: Numbers) -> npt.NDArray[Any]:
        longest = max(1, int(length.max()))
        # A key at every byte, of which those that begin one are copied: no matrix of indices is needed.
        windows = np.ndarray((len(data) - longest + 1,), f"S{longest}", data, strides=(1,))
        keys = windows[start]
        letters = keys.view(np.uint8).reshape(-1, longest)
        if self._tree is self._meta.free and longest == 8:
            letters[:] = letters[:, ::-1].copy()  # integers, which compare like this
        letters[np.arange(longest) >= length[:, None]] = 0
        return keys

    def _check_order(
        self, nodes: _Nodes, pages: Numbers, limits: npt.NDArray[Any], limit_bytes: Numbers, *, leaf: bool
    ) -> None:
        """Keys ascend, and those of a page lie between its own limit and the next one's, if there is one."""
        keys, lengths, page = nodes.keys, nodes.key_bytes, nodes.page
        if not leaf:  # the key of a branch's first node is not looked at: what is below it has the branch's own limit
            keys, lengths = _bounded(nodes, limits, limit_bytes)
        follows = _below(keys[:-1], lengths[:-1], keys[1:], lengths[1:]) | nodes.first[1:]
        self._require(follows, pages[page[1:]], "its keys do not ascend")
        firsts = np.flatnonzero(nodes.first)
        own = ~_below(keys[firsts], lengths[firsts], limits[: len(pages)], limit_bytes[: len(pages)])
        self._require(own, pages, "a key sorts before the page")
        lasts = np.append(firsts[1:], len(keys))[: len(limits) - 1] - 1
        next_ = _below(keys[lasts], lengths[lasts], limits[1:], limit_bytes[1:])
        self._require(next_, pages, "a key sorts behind the page")

    # -- values --------------------------------------------------------------------------------------

    def _check_values(self, nodes: _Nodes, pages: Numbers, counted: list[int]) -> dict[int, int]:
        """Flags of nodes, and the values that have pages of their own: the first page of each, by node."""
        if self._tree is self._meta.tables:
            self._require(
                (nodes.flags == _TABLE) & (nodes.value_bytes == _TREE.size), pages[nodes.page], "it holds what is no table"
            )
            return {}
        self._require(nodes.flags & ~_BIG == 0, pages[nodes.page], "a node has flags that no table has")
        big = np.flatnonzero(nodes.flags)
        if not len(big):
            return {}
        at = nodes.start[big] + _NODE + nodes.key_bytes[big]
        firsts = nodes.data[at[:, None] + np.arange(8)].view("<u8")[:, 0]
        holder = pages[nodes.page[big]]
        self._require((firsts >= 2) & (firsts <= self._meta.last_page), holder, "a value of it lies outside the file")
        spans = []
        for first, length, by in zip(firsts.tolist(), nodes.value_bytes[big].tolist(), holder.tolist(), strict=True):
            head = self._files.read_at(self._fd, first * self._size, _HEAD, self._path)
            if len(head) < _HEAD:
                self._fail(first, "it cannot be read to its end")
            own, _, flags, span = _PAGE.unpack(head)
            if own != first or flags != _OVERFLOW:
                self._fail(first, f"it is not the value that page {by} says it is")
            # A value that shrinks within its transaction keeps its pages, so there may be more than it needs.
            if not -(-(_HEAD + length) // self._size) <= span <= self._meta.last_page + 1 - first:
                self._fail(first, f"a value of {length} bytes is said to have {span} pages")
            spans.append(span)
        if sum(spans) > len(self._used):
            self._fail(int(firsts[0]), "the values have more pages than the file")
        lengths = np.array(spans, np.int64)
        ends = np.cumsum(lengths)
        self._claim(np.repeat(firsts.astype(np.int64) - (ends - lengths), lengths) + np.arange(int(ends[-1])))
        counted[2] += int(ends[-1])
        return dict(zip(big.tolist(), firsts.tolist(), strict=True))

    def _freed_by(self, nodes: _Nodes, node: int) -> int:
        at = int(nodes.start[node]) + _NODE
        return int.from_bytes(nodes.data[at : at + 8].tobytes(), "little")

    def _free_pages(self, nodes: _Nodes, node: int, values: dict[int, int]) -> npt.NDArray[np.uint64]:
        """The pages that one record of the free list holds."""
        length, at = int(nodes.value_bytes[node]), nodes.value_at(node)
        if node in values:
            data = self._files.read_at(self._fd, values[node] * self._size + _HEAD, length, self._path)
        else:
            data = nodes.data[at : at + length].tobytes()
        freed_by = self._freed_by(nodes, node)
        if not 1 <= freed_by <= self._meta.transaction:
            self._fail(self._tree.root, f"pages were freed by transaction {freed_by}, which is still to come")
        numbers = np.frombuffer(data, "<u8", len(data) // 8)
        if len(data) != length or length % 8 or not len(numbers) or int(numbers[0]) > len(numbers) - 1:
            self._fail(self._tree.root, f"the pages that transaction {freed_by} freed are not as many as is said")
        pages = numbers[1 : 1 + int(numbers[0])]
        if np.any(pages[1:] >= pages[:-1]):
            self._fail(self._tree.root, f"the pages that transaction {freed_by} freed do not descend")
        return pages

    def _table(self, nodes: _Nodes, node: int) -> Tree:
        at = nodes.value_at(node)
        name = nodes.data[at - int(nodes.key_bytes[node]) : at].tobytes()
        return Tree.parse(f"table {name.decode(errors='replace')!r}", nodes.data[at : at + _TREE.size].tobytes())


def _below(a: npt.NDArray[Any], a_bytes: Numbers, b: npt.NDArray[Any], b_bytes: Numbers) -> npt.NDArray[np.bool_]:
    """Whether each key of a sorts before that of b. NumPy sees no difference in zeros at the end, so then lengths decide."""
    below: npt.NDArray[np.bool_] = (a < b) | ((a == b) & (a_bytes < b_bytes))
    return below


def _bounded(nodes: _Nodes, limits: npt.NDArray[Any], limit_bytes: Numbers) -> tuple[npt.NDArray[Any], Numbers]:
    """The least key below each node of a branch page: of a page's first node, which has none, the limit of the page."""
    keys = np.where(nodes.first, limits[nodes.page], nodes.keys)
    return keys, np.where(nodes.first, limit_bytes[nodes.page], nodes.key_bytes)
