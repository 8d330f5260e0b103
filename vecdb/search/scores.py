"""What is reported of hits in the place of the metric's own score, told by the bits of an index: its, surprise, likelihood.

`vecdb_index.mib.scores` says what they are. Hits stay in their rank. The bits of a row are those of its segment's index; of
rows that lie elsewhere (in memory, or in a segment whose index is yet to be built) they are made when they are asked for, by
the encoder of the segment with most rows. Estimates of several segments are compared as keys. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from vecdb_index.contract import Bitmap, Queries, Rows, SparseRows
from vecdb_index.flat.backend import exactly
from vecdb_index.mib.gate import NEAREST
from vecdb_index.mib.scan import Bits
from vecdb_index.mib.scores import FEWEST, LEAST_ROWS, Null, Question, its, likelihood, sampled, taken
from vecdb_index.mib.search import MIBSearcher
from vecdb_storage.segment import StoredField
from vecdb_storage.snapshot import Part, SegmentPart, Snapshot

from ..errors import InvalidInput
from ..hits import band
from ..schema import AUTO
from . import bitmaps
from .executor import Answer, Found
from .indexes import index_of, rows_of
from .planner import Asked

_LOOKED_AT = 4 * NEAREST  # rows of a part without bits, of which the ten best estimates are taken
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Here:
    """A part with rows of the field. rows: live ones that have a vector. allowed: those of them that may be found.

    index: None where it has none of bits.
    """

    part: Part
    stored: StoredField
    rows: Bitmap
    allowed: Bitmap
    index: MIBSearcher | None


class _Asked:
    """One query, put to the encoder of each index once."""

    def __init__(self, parts: Sequence[_Here], lender: MIBSearcher, vector: npt.NDArray[np.float32]) -> None:
        """lender: whose encoder is for rows that have no bits. vector: (1, d)."""
        self._parts, self.lender, self.vector = parts, lender, vector
        self._questions: dict[int, Question] = {}

    def of(self, index: MIBSearcher) -> Question:
        question = self._questions.get(id(index))
        if question is None:
            question = self._questions[id(index)] = Question(index.encoder, self.vector)
        return question

    def told(self, hits: Sequence[Found], tell: Callable[[MIBSearcher, Question, Bits], Values]) -> Values:
        """What `tell` says of the hits of each part, by their codes; in the order of the hits."""
        found = np.empty(len(hits), np.float64)
        for here in self._parts:
            mine = [at for at, hit in enumerate(hits) if hit.part is here.part]
            if not mine:
                continue
            rows = np.array([hits[at].row for at in mine], np.int64)
            index = self.lender if here.index is None else here.index
            found[mine] = tell(index, self.of(index), self.coded(here, rows))
        return found

    def coded(self, here: _Here, rows: npt.NDArray[np.int64]) -> Bits:
        """The codes of some rows of a part; the lender's, where it has none."""
        if here.index is not None:
            return taken(here.index.bits, rows)
        vectors, norms = (np.ascontiguousarray(each[rows]) for each in (here.stored.vectors, here.stored.norms))
        return Bits(*self.lender.encoder.coded(Rows(vectors, norms, self.lender.rows.metric)), len(rows))


_Tell = Callable[[_Asked, Sequence[Found]], Values]


def report(snapshot: Snapshot, asked: Asked, queries: Queries, answer: Answer, score: str) -> None:
    """Puts the score that was asked for, "its", "surprise" or "likelihood", beside each hit, and of its the label.

    Raises InvalidInput where the field has no bits, or too few rows; Cancelled, DeadlineReached.
    """
    _check(asked, score)
    assert not isinstance(queries, SparseRows)
    answer.reported = np.full((len(queries), asked.k), np.nan, np.float32)
    if not any(answer[at] for at in range(len(queries))):
        return
    parts = _parts(snapshot, asked)
    lender = max((here.index for here in parts if here.index is not None), key=lambda index: len(index.rows), default=None)
    if lender is None:
        raise InvalidInput(
            f'it has no index of bits yet, by which score="{score}" is told: flush() waits for one', field=asked.field
        )
    tell = _TELL[score](parts, asked)
    for at in range(len(queries)):
        if asked.control is not None:
            asked.control.poll()
        hits = answer[at]
        values = tell(_Asked(parts, lender, queries[at : at + 1]), hits).astype(np.float32)
        answer.reported[at, : len(hits)] = values
        for hit, value in zip(hits, values.tolist(), strict=True):
            hit.reported, hit.label = value, band(value) if score == "its" else None


def _check(asked: Asked, score: str) -> None:
    """The field is declared to have bits."""
    index = asked.declared.index
    if index == AUTO or index.backend != "mib":
        named = f'"{AUTO}"' if index == AUTO else index.backend
        raise InvalidInput(
            f'score="{score}" is told by an index of bits, and its index is {named}: set_index("mib") and flush(), '
            "or leave score= out",
            field=asked.field,
        )


def _parts(snapshot: Snapshot, asked: Asked) -> list[_Here]:
    found = []
    for part in snapshot.parts:
        stored = part.field(asked.field) if part.rows else None
        if stored is None:
            continue
        rows = rows_of(stored, asked.declared.metric)
        searcher = index_of(part, asked.field, rows).searcher if isinstance(part, SegmentPart) else None
        live, allowed = (
            _words(words, stored, part.rows)
            for words in (bitmaps.allowed(part, None), bitmaps.allowed(part, asked.where, asked.without))
        )
        found.append(_Here(part, stored, live, allowed, searcher if isinstance(searcher, MIBSearcher) else None))
    return found


def _words(words: Bitmap | None, stored: StoredField, rows: int) -> Bitmap:
    """Of those that have a vector, as a bitmap where that is all, too."""
    if words is None:
        words = np.packbits(np.arange(-(-rows // 64) * 64) < rows, bitorder="little").view(np.uint64)
    return words if stored.present is None else words & stored.present


def _its(parts: Sequence[_Here], asked: Asked) -> _Tell:
    return lambda query, hits: query.told(hits, lambda _, question, some: its(question, some))


def _estimates(query: _Asked, hits: Sequence[Found]) -> Values:
    return query.told(hits, lambda _, question, some: _in_order(question, some))


def _in_order(question: Question, some: Bits) -> Values:
    keys, rows = question.estimated(some)
    return keys[np.argsort(rows)]


def _surprise(parts: Sequence[_Here], asked: Asked) -> _Tell:
    rows = sum(bitmaps.count(here.rows, here.part.rows) for here in parts)
    null = [(here.index, here.rows & sampled(here.index.bits)) for here in parts if here.index is not None]
    there = sum(bitmaps.count(words, 0) for _, words in null)
    if there < FEWEST:
        raise InvalidInput(
            f'score="surprise" goes by {FEWEST} rows or more that have bits, and there are {there:,}: leave score= out',
            field=asked.field,
        )

    def tell(query: _Asked, hits: Sequence[Found]) -> Values:
        keys = [query.of(index).estimated(index.bits, words)[0] for index, words in null]
        return Null(np.sort(np.concatenate(keys))).surprise(_estimates(query, hits), rows)

    return tell


def _best(query: _Asked, here: _Here, asked: Asked) -> Values:
    """The ten best estimates of rows of a part that may be found; where it has no bits, of those that are nearest."""
    if here.index is not None:
        return query.of(here.index).estimated(here.index.bits, here.allowed, NEAREST)[0]
    rows = rows_of(here.stored, asked.declared.metric)
    found = exactly(rows).search(query.vector, _LOOKED_AT, allowed=here.allowed, control=asked.control)
    some = query.coded(here, found.rows[0, : int(found.lengths[0])])
    return query.of(query.lender).estimated(some, count=NEAREST)[0]


def _likelihood(parts: Sequence[_Here], asked: Asked) -> _Tell:
    measured = [here.index for here in parts if here.index is not None and len(here.index.likelihood)]
    if not measured:
        raise InvalidInput(
            f'score="likelihood" is measured on segments of {LEAST_ROWS:,} rows or more, and there is none: '
            "merge(), or leave score= out",
            field=asked.field,
        )
    largest = max(measured, key=lambda index: len(index.rows))
    rows = {id(here.index): bitmaps.count(here.rows, here.part.rows) for here in parts}
    total = sum(bitmaps.count(here.allowed, here.part.rows) for here in parts)

    def tell(query: _Asked, hits: Sequence[Found]) -> Values:
        if total <= NEAREST:  # then all are among the nearest
            return np.ones(len(hits), np.float64)
        best = np.concatenate([_best(query, here, asked) for here in parts])
        tenth = float(np.sort(best)[-NEAREST])

        def by_bits(index: MIBSearcher, question: Question, some: Bits) -> Values:
            told = index if len(index.likelihood) else largest
            return likelihood(told.likelihood, question, _in_order(question, some), tenth, rows[id(told)] / total)

        return query.told(hits, by_bits)

    return tell


_TELL: dict[str, Callable[[Sequence[_Here], Asked], _Tell]] = {
    "its": _its, "surprise": _surprise, "likelihood": _likelihood,
}  # fmt: skip
