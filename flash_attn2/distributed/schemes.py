"""The schemes that a cluster could run one attention by, as rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flash_attn2.distributed.cluster import Cluster
from flash_attn2.distributed.plan import ContextPlan, context_plan
from flash_attn2.distributed.report import PlanReport, human
from flash_attn2.io.report import markdown
from flash_attn2.masks import Pattern
from flash_attn2.masks.leaves import Window


@dataclass(frozen=True)
class Attention:
    """One layer's attention, and who computes it."""

    seqlen: int
    ranks: int
    num_heads: int
    num_heads_kv: int
    head_dim: int
    pattern: Pattern
    cluster: Cluster


@dataclass(frozen=True)
class Row:
    """A scheme and what it costs."""

    plan: ContextPlan
    report: PlanReport

    @property
    def scheme(self) -> str:
        """In words."""
        outer, heads = self.plan.ranks.outer, self.plan.ranks.heads
        if self.plan.scheme == "heads":
            return f"heads {heads}"
        return f"{self.plan.scheme} {outer}" + (f" x heads {heads}" if heads > 1 else "")


def rows(attention: Attention) -> list[Row]:
    """The fastest first. Heads are shared by all ranks, or by those of a node or a part of it."""
    a = attention
    outer = ["ring", "gather"] if isinstance(a.pattern, Window) else ["gather"]
    plans = []
    for shared in _degrees(a):
        ranks: Any = (a.ranks // shared, shared)
        for scheme in ["heads"] if shared == a.ranks else outer:
            plans.append(
                context_plan(
                    ranks,
                    a.seqlen,
                    pattern=a.pattern,
                    num_heads=a.num_heads,
                    num_heads_kv=a.num_heads_kv,
                    scheme=scheme,  # type: ignore[arg-type]
                )
            )
    found = [Row(x, x.report(head_dim=a.head_dim, cluster=a.cluster)) for x in plans]
    return sorted(found, key=lambda row: row.report.both.total)


def _degrees(a: Attention) -> list[int]:
    """Numbers of ranks that share heads: within a node, as many as KV heads or a divisor, and all
    that have at least a head."""
    most = min(a.cluster.node_size, a.num_heads)
    found = {1, *(x for x in (2, 4, 8, a.num_heads_kv) if x <= most and a.ranks % x == 0)}
    if a.ranks <= a.num_heads:
        found.add(a.ranks)
    return sorted(found)


HEADER = (
    *("scheme", "rows", "work max/mean", "sent fwd", "sent bwd", "held", "hidden"),
    *("fwd", "fwd+bwd", "of ideal fwd", "fwd+bwd"),
)


def cells(row: Row) -> tuple[str, ...]:
    report = row.report
    sent = (int(x.max()) for x in (report.forward_bytes, report.backward_bytes))
    return (
        row.scheme,
        row.plan.balance,
        f"{report.balance:.3f}",
        *(human(x, "B") for x in sent),
        human(int(report.memory_bytes.max()), "B"),
        f"{report.both.hidden:.0%}",
        seconds(report.forward.total),
        seconds(report.both.total),
        f"{report.forward.share:.1%}",
        f"{report.both.share:.1%}",
    )


def seconds(value: float) -> str:
    """Three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def table(found: Sequence[Row]) -> str:
    """Bytes and memory of the rank with most."""
    return markdown(HEADER, [cells(row) for row in found])
