"""Numba kernels: plain functions on arrays that release the GIL. Importing a module here loads Numba.

`compile` decorates them and finds their cache; `distances` is the one place where a key is computed; `scan` streams over
rows for a few queries; `tile` finds the rows worth a look for many, by the multiplications of `product`; `select` keeps
the best.
"""
