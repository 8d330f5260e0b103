"""Clustered lists of sparse rows, searched approximately."""
