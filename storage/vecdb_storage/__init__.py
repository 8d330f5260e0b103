"""The storage engine of vecdb: LMDB for what changes, immutable segment files for what does not."""
