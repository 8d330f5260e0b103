"""Long texts in parts that a model can embed: at paragraphs where that is possible, else at sentences, words, or anywhere."""

from __future__ import annotations

from ..errors import InvalidInput

_ENDS = ("\n\n", "\n", ". ", "! ", "? ", "; ", ", ", " ")


def split(text: str, size: int, overlap: int = 0) -> list[str]:
    """Parts of at most `size` characters, in order; each begins about `overlap` characters before the end of the one before.

    Nothing but white space at the ends of parts is lost. Raises InvalidInput where overlap is not less than half of size.
    """
    if size < 1 or not 0 <= overlap <= size // 2:
        raise InvalidInput(
            f"parts of {size} characters that overlap by {overlap}: size is 1 or more, overlap at most half of it"
        )
    parts, start = [], 0
    while start < len(text):
        end = len(text) if len(text) - start <= size else _end(text, start, start + size)
        if part := text[start:end].strip():
            parts.append(part)
        if end >= len(text):
            break
        start = max(start + 1, _begin(text, end - overlap, end)) if overlap else end
    return parts


def _end(text: str, start: int, limit: int) -> int:
    """Where the part that begins at `start` ends best, in its second half and not after `limit`."""
    middle = start + (limit - start) // 2
    for mark in _ENDS:
        found = text.rfind(mark, middle, limit)
        if found >= 0:
            return found + len(mark)
    return limit


def _begin(text: str, wanted: int, end: int) -> int:
    """The beginning of a word at or after `wanted`, before `end`."""
    found = text.find(" ", wanted, end)
    return found + 1 if found >= 0 else wanted
