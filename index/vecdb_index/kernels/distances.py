"""The one place where a key is computed: dot product and squared distance of a float32 query and a stored row.

Written as explicit vector code, sixteen lanes wide with four accumulators, fused multiply-adds and a fixed order of
summation, without `fastmath`: so the same bits come out whoever calls, however wide the machine's registers are, alone
or in a batch. float16 (passed as uint16) and int8 rows are widened on the way. LLVM splits the lanes into what the CPU has.

    acc[j] (16 lanes)  takes elements 64 i + 16 j + lane;  the rest below 64 goes to acc[0] in sixteens;
    sum = fold((acc[0] + acc[1]) + (acc[2] + acc[3])), halves onto halves;  a rest below 16 is added one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils

from .compile import brief, intrinsic, kernel

COSINE, IP, L2 = 0, 1, 2
METRICS = {"cosine": COSINE, "ip": IP, "l2": L2}
LANES = 16
_F32 = ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)
_I64 = ir.IntType(64)
HALF = types.uint16  # Numba has no float16 on CPUs: kernels take its bits
_ITEMS = {types.float32: _F32, HALF: ir.IntType(16), types.int8: ir.IntType(8)}


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, for a float or a vector of them."""
    name = "llvm.fma.f32" if a.type == _F32 else f"llvm.fma.v{a.type.count}f32"
    signature = ir.FunctionType(a.type, [a.type] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [a, b, c])


def pointer(context: Any, builder: Any, array_type: Any, array: Any, element: Any, item: Any) -> Any:
    """Address of an array's element `element` (i64), as a pointer to `item`; the array is C-contiguous."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [element]), item.as_pointer())


def load(builder: Any, address: Any, item: Any) -> Any:
    """An unaligned load of `item` from a pointer to it."""
    value = builder.load(address)
    value.align = 1
    return value


def fetch(builder: Any, address: Any, *further: int) -> None:
    """Asks for the cache line at a byte address, and those at offsets to it. An address may be anything."""
    word = ir.IntType(32)
    called = ir.FunctionType(ir.VoidType(), [address.type, word, word, word])
    function = cgutils.get_or_insert_function(builder.module, called, "llvm.prefetch.p0")
    for offset in (0, *further):
        place = builder.gep(address, [ir.Constant(_I64, offset)])
        builder.call(function, [place, *(ir.Constant(word, value) for value in (0, 3, 1))])


def reduced(builder: Any, count: Any, step: Any, join: Any) -> Any:
    """step(at, accumulator) over 0..count in the order above, the four accumulators and their lanes joined by `join`.

    `step` is given vector accumulators for sixteen elements from `at` on, a float accumulator for a single one.
    """
    zero = ir.Constant(_VECTOR, [0.0] * LANES)
    slots = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]
    total = cgutils.alloca_once(builder, _F32)
    by_64 = builder.and_(count, ir.Constant(_I64, -64))
    by_16 = builder.and_(count, ir.Constant(_I64, -16))
    for slot in slots:
        builder.store(zero, slot)
    with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), by_64, ir.Constant(_I64, 64)) as (at, _):
        for j, slot in enumerate(slots):
            builder.store(step(builder.add(at, ir.Constant(_I64, 16 * j)), builder.load(slot)), slot)
    with cgutils.for_range_slice(builder, by_64, by_16, ir.Constant(_I64, 16)) as (at, _):
        builder.store(step(at, builder.load(slots[0])), slots[0])
    a, b, c, d = (builder.load(slot) for slot in slots)
    folded = join(join(a, b), join(c, d))
    width = LANES
    while width > 1:
        width //= 2
        low = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width)))
        high = ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(width, 2 * width)))
        folded = join(builder.shuffle_vector(folded, folded, low), builder.shuffle_vector(folded, folded, high))
    builder.store(builder.extract_element(folded, ir.Constant(ir.IntType(32), 0)), total)
    with cgutils.for_range_slice(builder, by_16, count, ir.Constant(_I64, 1)) as (at, _):
        builder.store(step(at, builder.load(total)), total)
    return builder.load(total)


def loaded(context: Any, builder: Any, array_type: Any, array: Any, at: Any, like: Any) -> Any:
    """The element at `at`, or sixteen if `like` is a vector, as float32; exact for float16 (its bits) and int8."""
    single, vector = _ITEMS[array_type.dtype], isinstance(like, ir.VectorType)
    item = ir.VectorType(single, LANES) if vector else single
    value = load(builder, pointer(context, builder, array_type, array, at, item), item)
    if single == _F32:
        return value
    if array_type.dtype == HALF:
        half = ir.VectorType(ir.HalfType(), LANES) if vector else ir.HalfType()
        return builder.fpext(builder.bitcast(value, half), like)
    return builder.sitofp(value, like)


@intrinsic
def pair(typing: Any, query: Any, query_at: Any, rows: Any, row_at: Any, count: Any, metric: Any, ahead: Any) -> Any:
    """Inner product, or for L2 minus the squared distance, of query[query_at:][:count] and rows[row_at:][:count].

    Both are flat arrays to it. While it reads, it asks for the cache lines `ahead` elements further on, a little at a
    time: the hardware's own prefetcher stops at pages, and a burst of requests would wait for itself. Returns float32.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        query_type, _, row_type, _, _, _, _ = signature.args
        query, query_at, rows, row_at, count, metric, ahead = arguments
        coming = builder.add(row_at, ahead)

        def both(at: Any, like: Any) -> Any:
            fetch(builder, pointer(context, builder, row_type, rows, builder.add(coming, at), ir.IntType(8)))
            q = loaded(context, builder, query_type, query, builder.add(query_at, at), like.type)
            return q, loaded(context, builder, row_type, rows, builder.add(row_at, at), like.type)

        def product(at: Any, accumulator: Any) -> Any:
            q, r = both(at, accumulator)
            return fma(builder, q, r, accumulator)

        def square(at: Any, accumulator: Any) -> Any:
            difference = builder.fsub(*both(at, accumulator))
            return fma(builder, difference, difference, accumulator)

        result = cgutils.alloca_once(builder, _F32)
        with builder.if_else(builder.icmp_signed("==", metric, ir.Constant(_I64, L2))) as (squared, otherwise):
            with squared:
                builder.store(builder.fneg(reduced(builder, count, square, builder.fadd)), result)
            with otherwise:
                builder.store(reduced(builder, count, product, builder.fadd), result)
        return builder.load(result)

    whole = types.int64
    return types.float32(query, whole, rows, whole, whole, whole, whole), codegen


@intrinsic
def prefetch(typing: Any, rows: Any, row_at: Any, count: Any) -> Any:
    """Asks for the cache lines of rows[row_at:][:count]. The hardware's own prefetcher stops at pages."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, row_at, count = arguments
        line = ir.Constant(_I64, 512 // signature.args[0].dtype.bitwidth)
        with cgutils.for_range_slice(builder, ir.Constant(_I64, 0), count, line) as (at, _):
            address = pointer(context, builder, signature.args[0], rows, builder.add(row_at, at), ir.IntType(8))
            fetch(builder, address)
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.int64), codegen


@kernel
def key_of(value, norm, metric):
    """The key that `pair` and the row's norm give. Larger is better; NaN ranks last."""
    key = value / norm if metric == COSINE else value
    return key if key == key else np.float32(-np.inf)


def prepared(queries: npt.NDArray[np.float32], metric: str) -> npt.NDArray[np.float32]:
    """Queries as the kernels take them: (m, d) float32, read-only, for cosine of length one."""
    queries = np.ascontiguousarray(queries, np.float32)
    if metric == "cosine":
        scaled = np.empty_like(queries)
        normalise(read_only(queries), scaled)
        queries = scaled
    return read_only(queries)


@brief
def normalise(queries, out):
    """out = the queries at length one."""
    for q in range(queries.shape[0]):
        square = np.float64(0)
        for value in queries[q]:
            square += np.float64(value) * np.float64(value)
        length = np.sqrt(square) if square > 0 else np.float64(1)
        for i in range(queries.shape[1]):
            out[q, i] = np.float32(queries[q, i] / length)


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view that nobody can write through: whoever owns the array, kernels see one type and are compiled once."""
    view = array.view()
    view.flags.writeable = False
    return view
