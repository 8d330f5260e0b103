"""Filters on payloads: written as expressions of `F`, dicts or texts; evaluated over typed columns.

`expression` says what a filter means, `parser` reads its three forms, `evaluate` runs it over the columns of a
segment and `plain` over a single payload.
"""

from __future__ import annotations

from vecdb_storage.payloads import split_path

from .evaluate import evaluate
from .expression import Expression, F, dict_of, paths_of, text_of
from .parser import parse
from .plain import predicate_of

__all__ = ["Expression", "F", "dict_of", "evaluate", "parse", "paths_of", "predicate_of", "split_path", "text_of"]
