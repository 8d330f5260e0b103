"""What a search did, for `explain=True`: one line for each part of the snapshot, printed as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as default


@dataclass(frozen=True)
class PartPlan:
    """kind: "segment" or "memtable". rows: stored. allowed: live and passing the filter. way: how it was searched, and why.

    expected: recall by the calibration, None when nothing was measured. scored: rows compared. bytes: of vectors read. seen:
    what else the index tells of its work.
    """

    kind: str
    rows: int
    allowed: int
    way: str
    why: str
    expected: float | None
    scored: int
    bytes: int
    milliseconds: float
    seen: dict[str, int] = default(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """queries, k, field, metric and filter as asked; recall: asked, and expected of this plan; stages in ms."""

    field: str
    metric: str
    queries: int
    k: int
    where: str | None
    recall_asked: float
    seq: int
    parts: list[PartPlan] = default(default_factory=list)
    stages: dict[str, float] = default(default_factory=dict)

    @property
    def recall_expected(self) -> float | None:
        """Of the whole answer: the parts', weighed by the rows they allow. None when some part was never measured."""
        known = [(part.expected, part.allowed) for part in self.parts]
        if any(expected is None for expected, _ in known):
            return None
        total = sum(allowed for _, allowed in known)
        return sum((expected or 0) * allowed for expected, allowed in known) / total if total else 1.0

    def __str__(self) -> str:
        asked = "exact" if self.recall_asked == 1 else f"recall {self.recall_asked:g}"
        expected = self.recall_expected
        lines = [
            f"search {self.field} ({self.metric}), {self.queries} quer{'y' if self.queries == 1 else 'ies'}, k={self.k}",
            f"├─ asked {asked}, expected {'unknown: not calibrated' if expected is None else f'{expected:.3f}'}",
            f"├─ where {self.where or 'everything'}",
            f"├─ as of seq {self.seq}",
        ]
        for part in self.parts:
            share = f"{part.allowed / part.rows:.1%}" if part.rows else "none"
            lines.append(
                f"├─ {part.kind}: {part.rows:,} rows, {part.allowed:,} allowed ({share}); {part.way}"
                f"{f' ({part.why})' if part.why else ''}: "
                f"{part.scored:,} scored, {part.bytes / 1e6:,.1f} MB, {part.milliseconds:.2f} ms"
            )
            if part.seen:
                lines.append("│  " + ", ".join(f"{count:,} {what}" for what, count in part.seen.items()))
        lines.append("└─ " + ", ".join(f"{stage} {spent:.2f} ms" for stage, spent in self.stages.items()))
        return "\n".join(lines)
