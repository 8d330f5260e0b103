"""What a search did, for `explain=True`: one line for each part of the snapshot, printed as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as default


@dataclass(frozen=True)
class PartPlan:
    """kind: "segment" or "memtable". rows: stored. allowed: live and passing the filter. way: how it was searched.

    scored: rows whose vectors were read. bytes: of vectors read.
    """

    kind: str
    rows: int
    allowed: int
    way: str
    scored: int
    bytes: int
    milliseconds: float


@dataclass(frozen=True)
class Plan:
    """queries, k, field, metric and filter as asked; recall: asked, and expected of this plan; stages in ms."""

    field: str
    metric: str
    queries: int
    k: int
    where: str | None
    recall_asked: float
    recall_expected: float
    why: str
    seq: int
    parts: list[PartPlan] = default(default_factory=list)
    stages: dict[str, float] = default(default_factory=dict)

    def __str__(self) -> str:
        asked = "exact" if self.recall_asked == 1 else f"recall {self.recall_asked:g}"
        lines = [
            f"search {self.field} ({self.metric}), {self.queries} quer{'y' if self.queries == 1 else 'ies'}, k={self.k}",
            f"├─ asked {asked}, expected recall {self.recall_expected:g}: {self.why}",
            f"├─ where {self.where or 'everything'}",
            f"├─ as of seq {self.seq}",
        ]
        for part in self.parts:
            share = f"{part.allowed / part.rows:.1%}" if part.rows else "none"
            lines.append(
                f"├─ {part.kind}: {part.rows:,} rows, {part.allowed:,} allowed ({share}); {part.way}: "
                f"{part.scored:,} scored, {part.bytes / 1e6:,.1f} MB, {part.milliseconds:.2f} ms"
            )
        lines.append("└─ " + ", ".join(f"{stage} {spent:.2f} ms" for stage, spent in self.stages.items()))
        return "\n".join(lines)
