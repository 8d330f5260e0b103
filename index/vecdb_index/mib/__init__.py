"""Exhaustive search over one bit a dimension, then by the rows: `layout` has the arrays, `scan` the kernels."""
