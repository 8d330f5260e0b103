"""The one place where a key of sparse vectors is computed: the inner product of a query and a stored row.

Products of float32 weights are summed in float64, in the order of the row's components, and rounded once: so the same bits
come out whoever calls, alone or in a batch. A query is laid out as a small hash table, which stays in a core's nearest cache
whatever the components are: `slots` (s,) uint32 and `values` (s,) float32, s a power of two, at most a fourth in use; value 0
where a slot is free.
"""

from __future__ import annotations

import numpy as np

from .bitmap import next_allowed
from .compile import brief, kernel
from .select import offer

LEAST_SLOTS = 64
_LIKELY = 1 << 13  # bytes that tell, by the lower bits of a component, whether the query may have it
_SPREAD = np.uint32(2654435761)  # Knuth's multiplier: the upper bits of the product depend on all of the component


def slots_for(components: int) -> int:
    """The size of the table of a query with so many components."""
    return max(LEAST_SLOTS, 1 << (4 * components - 1).bit_length() if components else 0)


@kernel
def lay_out(indices, weights, start, stop, slots, values, shift):
    """Makes the table of a query; slots and values are cleared first."""
    values[:] = np.float32(0)
    mask = np.uint32(len(slots) - 1)
    for j in range(np.uint64(start), np.uint64(stop)):
        at = np.uint32(indices[j] * _SPREAD) >> shift
        while values[at] != 0:
            at = (at + np.uint32(1)) & mask
        slots[at], values[at] = indices[j], weights[j]


@kernel
def weight_of(slots, values, shift, component):
    """The query's weight of a component, 0 when it has none."""
    at = np.uint32(component * _SPREAD) >> shift
    mask = np.uint32(len(slots) - 1)
    while values[at] != 0:
        if slots[at] == component:
            return values[at]
        at = (at + np.uint32(1)) & mask
    return np.float32(0)


@kernel
def shift_of(slots):
    """By how many bits a product is shifted to become a place in the table."""
    bits, size = 0, len(slots)
    while (1 << bits) < size:
        bits += 1
    return np.uint32(32 - bits)


@kernel
def product(slots, values, shift, indices, weights, start, stop):
    """(inner product, components in common) of the query and the row indices[start:stop]."""
    total, common = np.float64(0), 0
    for j in range(np.uint64(start), np.uint64(stop)):
        weight = weight_of(slots, values, shift, indices[j])
        if weight != 0:
            total += np.float64(weight) * np.float64(weights[j])
            common += 1
    return np.float32(total), common


@kernel
def scan_sparse(
    asked, asked_indices, asked_weights, slots, values, offsets, indices, weights, allowed, start, stop,
    keys, rows, sizes, dropped, floors,
):  # fmt: skip
    """Offers rows start..stop to the heap of each query. allowed: bitmap words, empty for all. Returns rows scored."""
    scored, shift = 0, shift_of(slots)
    likely = np.zeros(_LIKELY, np.uint8)
    for q in range(len(asked) - 1):
        lay_out(asked_indices, asked_weights, asked[q], asked[q + 1], slots, values, shift)
        _mark(asked_indices, asked[q], asked[q + 1], likely, np.uint8(1))
        floor = floors[q % len(floors)]
        row = next_allowed(allowed, start, stop)
        while row < stop:
            key, common = _likely_product(likely, slots, values, shift, indices, weights, offsets[row], offsets[row + 1])
            if common and key >= floor:
                offer(keys, rows, sizes, dropped, q, key, row)
            scored += 1
            row = next_allowed(allowed, row + 1, stop)
        _mark(asked_indices, asked[q], asked[q + 1], likely, np.uint8(0))
    return scored


@kernel
def _mark(indices, start, stop, likely, value):
    for j in range(np.uint64(start), np.uint64(stop)):
        likely[np.uint64(indices[j] % np.uint32(_LIKELY))] = value


@kernel
def _likely_product(likely, slots, values, shift, indices, weights, start, stop):
    """What `product` gives, in a third of the time.

    Few rows have much in common with a query, so eight components are asked about at once.
    """
    total, common = np.float64(0), 0
    first, last, eight = np.uint64(start), np.uint64(stop), np.uint64(8)
    while first < last:
        end = min(last, first + eight)
        if end == first + eight:
            some = np.uint8(0)
            for i in range(eight):
                some |= likely[np.uint64(indices[first + i] % np.uint32(_LIKELY))]
            if some == 0:
                first = end
                continue
        for j in range(first, end):
            if likely[np.uint64(indices[j] % np.uint32(_LIKELY))]:
                weight = weight_of(slots, values, shift, indices[j])
                if weight != 0:
                    total += np.float64(weight) * np.float64(weights[j])
                    common += 1
        first = end
    return np.float32(total), common


@brief
def with_product(slots, values, asked_indices, asked_weights, first, last, offsets, indices, weights, allowed, key, found):
    """Marks in `found` (n,) bool the allowed rows whose key for the query is exactly `key`."""
    shift = shift_of(slots)
    lay_out(asked_indices, asked_weights, first, last, slots, values, shift)
    row = next_allowed(allowed, 0, len(found))
    while row < len(found):
        mine, common = product(slots, values, shift, indices, weights, offsets[row], offsets[row + 1])
        found[row] = common > 0 and mine == key
        row = next_allowed(allowed, row + 1, len(found))
