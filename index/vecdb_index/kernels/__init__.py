"""Numba kernels: plain functions on arrays that release the GIL. Importing a module here loads Numba.

`compile` decorates them and finds their cache; `distances` is the one place where a key is computed; `scan` streams
over rows for one query; `tile` multiplies blocks of rows with tiles of queries; `select` keeps the best.
"""
