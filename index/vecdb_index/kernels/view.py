"""Arrays that a kernel is told the addresses of, so that one call can go through any number of segments.

Whoever hands out an `address_of` an array keeps that array until the call is over.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from numba import types
from numba.np import arrayobj

from .compile import intrinsic


def address_of(array: npt.NDArray[Any]) -> int:
    """Where a C-contiguous array begins."""
    return int(array.__array_interface__["data"][0])


@intrinsic
def view(typing: Any, address: Any, shape: Any, kind: Any) -> Any:
    """A read-only array at an address. shape: a tuple of int64. kind: a dtype, or any array of that dtype."""
    return _array(address, shape, kind, readonly=True)


@intrinsic
def room(typing: Any, address: Any, shape: Any, kind: Any) -> Any:
    """Like `view`, to be written to."""
    return _array(address, shape, kind, readonly=False)


def _array(address: Any, shape: Any, kind: Any, readonly: bool) -> Any:
    item = kind.dtype if isinstance(kind, types.Array) else kind.instance_type
    made = types.Array(item, len(shape), "C", readonly=readonly)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, shape, _ = arguments
        value = context.get_data_type(item)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(value))
        lengths = [builder.extract_value(shape, axis) for axis in range(made.ndim)]
        strides = [itemsize]
        for length in reversed(lengths[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        array = context.make_array(made)(context, builder)
        data = builder.inttoptr(address, value.as_pointer())
        arrayobj.populate_array(array, data=data, shape=lengths, strides=strides, itemsize=itemsize, meminfo=None)
        return array._getvalue()

    return made(types.int64, types.UniTuple(types.int64, len(shape)), kind), codegen
