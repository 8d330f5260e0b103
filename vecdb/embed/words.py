"""Texts taken apart into words, for the encoders that need no model. Plain functions, safe in any thread."""

from __future__ import annotations

import re

TOKEN = r"(?u)\b\w+\b"
_TOKEN = re.compile(TOKEN)
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PLURAL = re.compile(r"(\w{3,}[^\Ws])s\b")


def simplified(text: str) -> str:
    """Lower case, names taken apart at underscores and capitals, plurals without their s."""
    return _PLURAL.sub(r"\1", _CAPITAL.sub(" ", text).replace("_", " ").lower())


def words_of(text: str) -> list[str]:
    """The words of a text, as `simplified` leaves them."""
    return _TOKEN.findall(simplified(text))
