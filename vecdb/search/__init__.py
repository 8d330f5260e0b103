"""The search path: a checked query and a snapshot in, the best hits out.

`plan` says what each part of the snapshot will do, `bitmaps` which of its rows are allowed, `executor` runs the
parts and merges their results.
"""
