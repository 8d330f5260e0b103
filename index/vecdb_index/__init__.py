"""The index backends of vecdb: pure NumPy and Numba, knowing nothing of storage or of the product."""
