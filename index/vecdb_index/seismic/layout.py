"""The arrays of an index of sparse rows, as they are stored and as kernels take them.

Weights are codes of eight bits in one unit for the segment, so scores of blocks and of rows are whole numbers that compare with
each other; keys of what is found are computed from the rows themselves. Inside, a component is a *term*: its place in `terms`,
or itself where that is empty. In records and summaries it is a *slot* of 16 bits, which is the term; of more than 65,536 terms,
the rare ones share slots, and a row's score may be a little too high.

    terms      u32 (T,)       the components that occur, ascending; empty where all are below 65,536
    slots      u16 (T,)       of each term; empty where slots are terms
    lists      u32 (T + 1,)   the sections of each term's list
    whole      u64 bitmap     terms whose lists hold all rows that have the term
    sections   u32 (S + 1, 2) the first block of each section, and its row in `directory`, NONE when it has no summaries
    first      u64 (S + 1,)   the first entry of each section
    directory  u16 (D, b + 1) where in a section the entries of slots s begin, by s // 256
    entries    u8             of each bucket of c entries: c times slot % 256, c blocks, counted from the section's, c codes
    blocks     u32 (B + 1,)   the first posting of each block
    posts      u32 (P,)       rows
    heads      u8 (n, 128)    of each row: where its tail begins, in fours of bytes (u32), how many components it has (u32), and
                              its 40 heaviest slots (u16), heaviest first, and their codes; what lies beyond them is 0
    tails      u8             of each row with more: their slots (u16), then their codes
    near       u32 (n, knn)   the rows most like each, or the row itself; there only with `knn`
    unit       f32 (2,)       the weight of a code of 1; and 1 when a weight is negative: then only exact searches are right

A row is met by the two cache lines of its head alone, and most are seen by them not to be worth their tails.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types

from ..contract import Arrays, Damaged
from ..kernels.compile import intrinsic, kernel
from ..kernels.distances import load, pointer, read_only

MAX_ROWS = 1 << 31
SLOTS = 1 << 16
HEAD = 128  # bytes
HEAVIEST = (HEAD - 8) // 3
PAD = 64  # bytes beyond the last entry, which loads of many at once may touch
NONE = np.uint32(0xFFFF_FFFF)
BLOCKS = 256  # of a section, at most
ENTRIES = 65_535  # likewise
NAMES = (
    "terms", "slots", "lists", "whole", "sections", "first", "directory", "entries", "blocks", "posts", "heads", "tails",
    "unit",
)  # fmt: skip


class Index(NamedTuple):
    """The arrays as kernels take them, all read-only; heads and tails in pieces of eight, sixteen and 32 bits."""

    terms: npt.NDArray[np.uint32]
    slots: npt.NDArray[np.uint16]
    lists: npt.NDArray[np.uint32]
    whole: npt.NDArray[np.uint64]
    sections: npt.NDArray[np.uint32]
    first: npt.NDArray[np.uint64]
    directory: npt.NDArray[np.uint16]
    entries: npt.NDArray[np.uint8]
    blocks: npt.NDArray[np.uint32]
    posts: npt.NDArray[np.uint32]
    head8: npt.NDArray[np.uint8]
    head16: npt.NDArray[np.uint16]
    head32: npt.NDArray[np.uint32]
    tail8: npt.NDArray[np.uint8]
    tail16: npt.NDArray[np.uint16]
    near: npt.NDArray[np.uint32]


_TYPES = {
    "terms": (np.uint32, 1), "slots": (np.uint16, 1), "lists": (np.uint32, 1), "whole": (np.uint64, 1),
    "sections": (np.uint32, 2), "first": (np.uint64, 1), "directory": (np.uint16, 2), "entries": (np.uint8, 1),
    "blocks": (np.uint32, 1), "posts": (np.uint32, 1), "heads": (np.uint8, 2), "tails": (np.uint8, 1), "unit": (np.float32, 1),
}  # fmt: skip


def opened(arrays: Arrays, n: int) -> tuple[Index, float, bool]:
    """The index of n rows, its unit, and whether a weight is negative. Raises Damaged where a kernel would run outside."""
    for name, (dtype, dimensions) in _TYPES.items():
        if name not in arrays:
            raise Damaged(f"there is no array {name!r}")
        if arrays[name].dtype != dtype or arrays[name].ndim != dimensions or not arrays[name].flags.c_contiguous:
            raise Damaged(f"{name!r} is {arrays[name].dtype} in {arrays[name].ndim} dimensions")
    a = {name: read_only(arrays[name]) for name in NAMES}
    terms, lists, sections, first, blocks = a["terms"], a["lists"], a["sections"], a["first"], a["blocks"]
    count, parts = len(lists) - 1, len(sections) - 1
    if count < 0 or parts < 0 or sections.shape[1] != 2 or len(blocks) < 1 or a["heads"].shape != (n, HEAD):
        raise Damaged(f"the index is of {len(a['heads'])} rows, the segment of {n}")
    if len(terms) not in (0, count) or (len(terms) and (terms[1:] <= terms[:-1]).any()):
        raise Damaged("its components are not in order")
    if len(a["slots"]) != (count if count > SLOTS else 0) or len(a["whole"]) != -(-count // 64):
        raise Damaged("what is known of its components is not of all")
    if not _rises(lists, parts) or not _rises(sections[:, 0], len(blocks) - 1) or not _rises(blocks, len(a["posts"])):
        raise Damaged("its lists, sections or blocks overlap")
    if len(first) != parts + 1 or not _rises(first, (len(a["entries"]) - PAD) // 3) or len(a["entries"]) < PAD:
        raise Damaged("its summaries overlap")
    if len(a["posts"]) and int(a["posts"].max()) >= n:
        raise Damaged("a posting is no row")
    _check_summaries(sections, first, a["directory"], a["slots"], count)
    heads, tails = a["heads"].view(np.uint32), a["tails"]
    if len(tails) % 4 or (n and not _inside(heads, len(tails))):
        raise Damaged("the record of a row ends outside the index")
    unit = a["unit"]
    if len(unit) != 2 or not np.isfinite(unit).all() or not unit[0] > 0:
        raise Damaged("it has no unit of weights")
    near = arrays.get("near", np.zeros((0, 0), np.uint32))
    if near.dtype != np.uint32 or near.ndim != 2 or not near.flags.c_contiguous or len(near) not in (0, n):
        raise Damaged("its neighbours are of other rows")
    if near.size and int(near.max()) >= n:
        raise Damaged("a neighbour is no row")
    records = a["heads"].reshape(-1), a["heads"].view(np.uint16).reshape(-1), heads.reshape(-1), tails, tails.view(np.uint16)
    index = Index(*(a[name] for name in NAMES[:10]), *(read_only(each) for each in (*records, near)))
    return index, float(unit[0]), bool(unit[1])


def _rises(starts: npt.NDArray[Any], end: int) -> bool:
    return int(starts[0]) == 0 and int(starts[-1]) == end and bool((starts[1:] >= starts[:-1]).all())


def _check_summaries(
    sections: npt.NDArray[np.uint32], first: npt.NDArray[np.uint64], directory: npt.NDArray[np.uint16],
    slots: npt.NDArray[np.uint16], count: int,
) -> None:  # fmt: skip
    if (np.diff(sections[:, 0].astype(np.int64)) > BLOCKS).any():
        raise Damaged("a section has more blocks than a byte can tell apart")
    rows, sizes = sections[:-1, 1], np.diff(first)
    there = rows != NONE
    if there.any():
        most = int(slots.max()) if len(slots) else count - 1
        if int(rows[there].max()) >= len(directory) or directory.shape[1] != most // 256 + 2:
            raise Damaged("a section's directory is not there")
    if (sizes[~there] != 0).any() or not (directory[rows[there], -1] == sizes[there]).all():
        raise Damaged("a section has other entries than its directory says")
    if directory.size and (directory[:, 0].any() or not (directory[:, 1:] >= directory[:, :-1]).all()):
        raise Damaged("a directory is not in order")


@kernel
def _inside(heads, size):
    """Whether all tails end within `size` bytes."""
    for row in range(heads.shape[0]):
        count = np.int64(heads[row, 1])
        if count > HEAVIEST and 4 * np.int64(heads[row, 0]) + 3 * (count - HEAVIEST) > size:
            return False
    return True


@kernel
def term_of(terms, count, component):
    """The term of a component, or -1. count: of all terms."""
    if len(terms) == 0:
        return np.int64(component) if component < count else np.int64(-1)
    low, high = 0, len(terms)
    while low < high:
        middle = (low + high) >> 1
        if terms[np.uint64(middle)] < component:
            low = middle + 1
        else:
            high = middle
    return low if low < len(terms) and terms[low] == component else np.int64(-1)


@kernel
def head_score(table, index, row):
    """The inner product, in codes, of a query's table and the heaviest components of a row."""
    total = np.int64(0)
    at8, at16 = np.uint64(row * HEAD + 8 + 2 * HEAVIEST), np.uint64(row * (HEAD // 2) + 4)
    # Of a number that is known ahead LLVM makes gathers, which are twelve times as slow.
    count = np.uint64(min(np.int64(index.head32[np.uint64(row * (HEAD // 4) + 1)]), np.int64(HEAVIEST)))
    for i in range(count):
        total += np.int64(table[np.uint64(index.head16[at16 + i])]) * np.int64(index.head8[at8 + i])
    return total


@kernel
def tail_score(table, index, row):
    """The same of the others."""
    total = np.int64(0)
    at = np.uint64(index.head32[np.uint64(row * (HEAD // 4))])
    count = np.uint64(np.int64(index.head32[np.uint64(row * (HEAD // 4) + 1)]) - HEAVIEST)
    at16, at8 = at * np.uint64(2), at * np.uint64(4) + count * np.uint64(2)
    for i in range(count):
        total += np.int64(table[np.uint64(index.tail16[at16 + i])]) * np.int64(index.tail8[at8 + i])
    return total


@kernel
def has_tail(index, row):
    return index.head32[np.uint64(row * (HEAD // 4) + 1)] > HEAVIEST


@intrinsic
def alike(typing: Any, array: Any, at: Any, byte: Any) -> Any:
    """Which of the 32 bytes from array[at] on are `byte`: a bit for each, the lowest for the first."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, word = ir.VectorType(ir.IntType(8), 32), ir.IntType(32)
        array, at, byte = arguments
        values = load(builder, pointer(context, builder, signature.args[0], array, at, vector), vector)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), byte, ir.Constant(word, 0))
        all_of = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(word, 32), [0] * 32))
        return builder.bitcast(builder.icmp_unsigned("==", values, all_of), word)

    return types.uint32(array, types.uint64, types.uint8), codegen


@intrinsic
def lowest(typing: Any, bits: Any) -> Any:
    """The place of the lowest bit of a word that has one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1)), ir.IntType(64))

    return types.uint64(types.uint32), codegen
