"""Bitmaps beside what NumPy says of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from vecdb_index.kernels.bitmap import both, lowest, ones

WORDS = st.integers(0, 70).flatmap(lambda n: st.tuples(*[arrays(np.uint64, n, elements=st.integers(0, 2**64 - 1))] * 2))


@settings(deadline=None)  # the first one compiles
@given(WORDS, st.integers(1, 3))
def test_counts_and_common_rows_are_those_of_numpy(words: tuple[np.ndarray, np.ndarray], step: int) -> None:
    a, b = (each[::step] for each in words)  # not of one piece, too
    assert ones(a) == int(np.bitwise_count(a).sum())
    assert np.array_equal(both(a, b), a & b)
    for word in a[a > 0].tolist():
        assert lowest(np.uint64(word)) == (word & -word).bit_length() - 1
