"""Bitmaps of rows: uint64 words, bit i % 64 of word i // 64; as an argument of kernels no words at all stand for all rows.

What is called once a search keeps the interpreter: NumPy lets go of it for a moment from 500 words on, and whoever waits for
it starts to wait again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compile import brief, kernel
from .distances import read_only

ALL = read_only(np.zeros(0, np.uint64))  # of rows, to kernels


def ones(words: npt.NDArray[np.uint64]) -> int:
    """How many rows are in it."""
    return int(_ones(read_only(np.ascontiguousarray(words))))


def both(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The rows that are in two of the same length."""
    out = np.empty_like(a)
    _both(read_only(np.ascontiguousarray(a)), read_only(np.ascontiguousarray(b)), out)
    return out


@kernel
def count(word):
    """How many bits of a word are set."""
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))


@brief
def _ones(words):
    total = 0
    for word in words:
        total += count(word)
    return total


@brief
def _both(a, b, out):
    for i in range(len(out)):
        out[i] = a[i] & b[i]


@kernel
def is_allowed(allowed, row):
    return (allowed[row >> 6] >> np.uint64(row & 63)) & np.uint64(1)


@kernel
def next_allowed(allowed, row, stop):
    """The first allowed row from `row` on, or `stop`. allowed: bitmap words, empty for all."""
    if len(allowed) == 0:
        return row
    while row < stop:
        bits = allowed[row >> 6] >> np.uint64(row & 63)
        if bits:
            return min(stop, row + lowest(bits))
        row = ((row >> 6) + 1) << 6
    return stop


@kernel
def lowest(bits):
    """Position of the lowest set bit of a word that has one: the count of ones below it."""
    return count((bits & (~bits + np.uint64(1))) - np.uint64(1))
