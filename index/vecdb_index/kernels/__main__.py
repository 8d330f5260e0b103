"""`python -m vecdb_index.kernels`: compiles every kernel ahead, so that no search has to wait for it."""

from vecdb_index.warmup import warmup

warmup()
