"""How each part of a snapshot is searched: exactly, or by its index, with or without a bitmap.

The cheaper way wins, by what the backends say a query costs, and how that compared with the clock when the index was built, at
the effort that the calibration of the index gives for the recall that was asked. Memtable blocks and segments without a usable
index are always searched exactly. Any thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from vecdb_index.contract import Bitmap, Control, ExactSearcher, Searcher
from vecdb_storage.snapshot import Part

from ..filters import Expression
from ..schema import Field
from .calibrate import FEW, Calibration
from .indexes import Index, said_by

_USUAL = 0.95  # recall for which indexes of a collection are compared
_STEPS = 8  # of the logarithm of selectivities, that are told apart
_DOUBT = 1.3  # by which an index must be better under a filter
_KEPT = 1000  # decisions of one index, and answers of calibrations


@dataclass(frozen=True)
class Asked:
    """What is asked of a field. recall: 1 for an exact answer. control: deadline and cancellation, None for neither.

    whole: the calibration of whole searches, if there is one; outgrown: it may not hold any more. effort: to be given to
    indexes whatever the recall, to measure. lead: what the index with most rows needs for the usual recall. An effort of a
    whole search is that of this index; one that needs less, having fewer rows, gets as much less of it.
    """

    field: str
    declared: Field
    k: int
    recall: float
    where: Expression | None = None
    without: Expression | None = None
    control: Control | None = None
    whole: Calibration | None = None
    outgrown: bool = False
    effort: float | None = None
    lead: float | None = None


@dataclass(frozen=True)
class Way:
    """How one part is searched. searcher: None for exactly. expected: recall, None when nothing was measured.

    seconds: that a query may take.
    """

    searcher: Searcher | None
    effort: float
    expected: float | None
    allowed: int
    why: str
    seconds: float

    @property
    def name(self) -> str:
        return "exact scan" if self.searcher is None else f"index, effort {self.effort:.2f}"


def way_of(
    part: Part, asked: Asked, index: Index, exact: ExactSearcher, allowed: int, words: Bitmap | None, share: float, queries: int
) -> Way:
    """exact: the exact searcher of the part's field. allowed: rows, 1 or more; words: which these are, None for all. share: of
    all rows, that are in this part.
    """
    selectivity = allowed / max(1, part.rows)
    why = ""
    if asked.recall >= 1:
        why = "exact was asked"
    elif asked.declared.is_flat:
        why = "as declared"
    elif index.searcher is None:
        why = index.why
    elif asked.effort is not None:
        spread = 1.0 if words is None else index.searcher.spread(words)
        effort = led(asked, index.calibration, asked.effort, share)
        seconds = index.searcher.cost(asked.k, effort, selectivity, queries, spread)
        return Way(index.searcher, effort, None, allowed, "the effort was given", seconds)
    if why:
        return Way(None, 1.0, 1.0, allowed, why, exact.cost(asked.k, 1.0, selectivity, queries))
    assert index.searcher is not None
    step, share = _rounded(selectivity, share)
    spread = 1.0 if words is None else _eighths(index.searcher.spread(words))
    question = asked.k, asked.recall, step, share, spread, queries > FEW, asked.whole, asked.outgrown, asked.lead
    decided = index.ways.get(question)
    if decided is None:
        if len(index.ways) > _KEPT:
            index.ways.clear()
        decided = index.ways[question] = _decide(asked, index, exact, math.exp(step / _STEPS), share, spread, queries)
    effort, expected, exactly, by_index, compared = decided
    # Allowed rows may lie elsewhere than the query; an exact search does not mind.
    if by_index * (_DOUBT if selectivity < 1 else 1) < exactly:
        return Way(index.searcher, effort, expected, allowed, compared, by_index)
    return Way(None, 1.0, 1.0, allowed, compared, exactly)


def effort_of(asked: Asked, measured: Calibration, selectivity: float, share: float) -> tuple[float, float | None]:
    """The effort that an index gets under these, and the recall to expect, wherever its rows lie; see `way_of`."""
    step, share = _rounded(selectivity, share)
    return _effort(asked, measured, math.exp(step / _STEPS), share)


def lead_of(measured: Calibration, k: int, share: float) -> float:
    """What `Asked.lead` is, where this is the index with most rows. share: of all rows, that it is over."""
    return _usual(measured, k, rounded(share))


@lru_cache(_KEPT)
def _usual(measured: Calibration, k: int, share: float) -> float:
    """The effort for the usual recall: asked for anew after each write."""
    return measured.effort_for(_USUAL, k, 1.0, share)[0]


def led(asked: Asked, measured: Calibration, effort: float, share: float) -> float:
    """The effort of an index, where the one with most rows is given `effort`."""
    if asked.lead is None:
        return effort
    return min(1.0, max(0.0, effort + lead_of(measured, asked.k, share) - asked.lead))


def _rounded(selectivity: float, share: float) -> tuple[int, float]:
    """What is told apart, so that decisions can be kept: a step of the selectivity, and the share."""
    return round(_STEPS * math.log(max(selectivity, 1e-9))), rounded(share)


def rounded(share: float) -> float:
    """A share of all rows, as far as shares are told apart."""
    return math.ceil(100 * share) / 100


def _eighths(spread: float) -> float:
    """As `_rounded`: up, and on a logarithmic scale."""
    return math.exp(math.ceil(_STEPS * math.log(max(spread, 1e-9))) / _STEPS)


def _decide(
    asked: Asked, index: Index, exact: ExactSearcher, selectivity: float, share: float, spread: float, queries: int
) -> tuple[float, float | None, float, float, str]:
    """The effort to give the index and the recall to expect, the seconds of an exact search and of that, and both in words."""
    assert index.searcher is not None
    effort, expected = _effort(asked, index.calibration, selectivity, share)
    by_index = index.calibration.seconds(index.searcher, asked.k, effort, selectivity, queries, spread)
    exactly = index.calibration.exact_seconds(exact, asked.k, selectivity, queries)
    compared = f"estimated for a query: {1e6 * exactly:,.0f} µs exactly, {1e6 * by_index:,.0f} µs by the index"
    if expected is not None and expected < asked.recall:
        by_index, compared = math.inf, f"the index was never seen to reach that recall; at most {expected:.3f}"
    if advice := said_by(index.searcher):
        compared += f"; {advice}"
    return effort, expected, exactly, by_index, compared


def _effort(asked: Asked, measured: Calibration, selectivity: float, share: float) -> tuple[float, float | None]:
    """The effort for the recall that is asked, and what to expect of it.

    Whole searches were measured over all segments and without a filter. Under a filter they add what they were
    harder by to what the index itself was found to need.
    """
    effort, expected = measured.effort_for(asked.recall, asked.k, selectivity, share)
    if asked.whole is None or not asked.whole.known:
        return effort, expected
    whole, whole_expected = asked.whole.effort_for(asked.recall, asked.k, 1.0)
    whole = led(asked, measured, whole, share)
    if asked.outgrown and whole < effort:
        return effort, expected
    if selectivity >= 0.5:
        return whole, whole_expected
    usual, _ = measured.effort_for(asked.recall, asked.k, 1.0, share)
    return min(1.0, effort + max(0.0, whole - usual)), expected
