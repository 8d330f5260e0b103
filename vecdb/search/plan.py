"""What a search did, for `explain=True`: one line for each part of the snapshot, printed as a tree."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field as default


@dataclass(frozen=True)
class PartPlan:
    """kind: "segment" or "memtable". rows: stored. allowed: live and passing the filter. way: how it was searched, and why.

    expected: recall by the calibration, None when nothing was measured. scored: rows compared. bytes: of vectors read. seen:
    what else the index tells of its work. stages: of this, in ms of all threads. bound: of a single query whose index
    estimates rows: the best score that a row was estimated at which was not compared; None where there is none.
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
    stages: dict[str, float] = default(default_factory=dict)
    bound: float | None = None


@dataclass
class Explained:
    """What a search tells of itself. certified: see Plan; checking: the seconds that this took."""

    parts: list[PartPlan] = default(default_factory=list)
    certified: int | None = None
    checking: float = 0.0


@dataclass(frozen=True)
class Transfer:
    """What a search of published codes read. bytes, requests: over the network, also of requests that failed and were made
    again (`retries`), and for the first search of opening the collection. hits, hit_bytes: of the local cache. cpu: ms of all
    threads of this process, for each query.
    """

    bytes: int
    requests: int
    retries: int
    hits: int
    hit_bytes: int
    cpu: float

    def __str__(self) -> str:
        again = f", {self.retries:,} of them again" if self.retries else ""
        kept = f"; {self.hit_bytes:,} bytes in {self.hits:,} pieces from the cache" if self.hits else ""
        return f"read {self.bytes:,} bytes in {self.requests:,} requests{again}{kept}; {self.cpu:.2f} ms of CPU a query"


@dataclass(frozen=True)
class Plan:
    """queries, k, field, metric and filter as asked; recall: asked, and expected of this plan; stages in ms.

    certified: for how many of the queries the answer was checked to be the exact one: nothing that was left out has a better
    score than the last hit. None where that would have taken long. transfer: of published codes.
    """

    field: str
    metric: str
    queries: int
    k: int
    where: str | None
    recall_asked: float
    seq: int
    parts: list[PartPlan] = default(default_factory=list)
    stages: dict[str, float] = default(default_factory=dict)
    certified: int | None = None
    transfer: Transfer | None = None

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
            more = [f"{count:,} {what}" for what, count in part.seen.items()]
            more += [f"{stage} {spent:.2f} ms" for stage, spent in part.stages.items()]
            if part.bound is not None:
                more.append(f"rows not compared are estimated at {part.bound:.4g} at best")
            if more:
                lines.append("│  " + ", ".join(more))
        if self.certified is not None:
            lines.append(f"├─ exact, as a check has shown, for {self.certified:,} of {self.queries:,}")
        if self.transfer is not None:
            lines.append(f"├─ {self.transfer}")
        lines.append("└─ " + ", ".join(f"{stage} {spent:.2f} ms" for stage, spent in self.stages.items()))
        return "\n".join(lines)


@dataclass(frozen=True)
class HybridPlan:
    """Of a hybrid search. fuse, weights: how hits were ranked together. plans: of the search of each field that took part."""

    fuse: str
    weights: dict[str, float]
    plans: list[Plan]

    def __str__(self) -> str:
        shares = ", ".join(f"{plan.field} x {self.weights.get(plan.field, 1):g}" for plan in self.plans)
        return "\n".join([f"ranked together by {self.fuse}: {shares or 'nothing was asked'}", *map(str, self.plans)])
