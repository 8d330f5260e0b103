"""The parameters of the index backends: what `Dense(384, index=HNSW(m=24))` and `Sparse(index=Seismic())` are made of.

Imports nothing heavy.
"""

from __future__ import annotations

from vecdb_index.flat.params import Flat
from vecdb_index.hnsw.params import HNSW
from vecdb_index.mib.params import MIB
from vecdb_index.seismic.params import Seismic

__all__ = ["HNSW", "MIB", "Flat", "Seismic"]
