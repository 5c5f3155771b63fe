"""What a plan costs: rows, bytes, work and memory of each rank, and a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flash_attn2.distributed.cluster import BothPasses, Cluster, Timing, timing
from flash_attn2.distributed.traffic import Elements, Traffic

BACKWARD = 2.5  # of the forward pass's work: five products beside two


def max_over_mean(values: Tensor) -> float:
    """1 where all are 0."""
    mean = float(values.double().mean())
    return float(values.max()) / mean if mean > 0 else 1.0


@dataclass(frozen=True)
class PlanReport:
    """Of one attention (one layer) under a plan. What is of each rank is a tensor (ranks,)."""

    description: str
    """The plan, in words."""
    cluster: Cluster
    rows: Tensor
    """int64: tokens of each rank."""
    traffic: Traffic
    """int64: bytes that each rank sends."""
    forward_flops: Tensor
    """float64: multiplications and additions of visible pairs; backward 2.5 times as many."""
    memory_bytes: Tensor
    """int64: beside its own rows of q, k, v and out, what a rank holds during the forward pass."""
    forward: Timing
    backward: Timing

    @property
    def forward_bytes(self) -> Tensor:
        return self.traffic.forward

    @property
    def backward_bytes(self) -> Tensor:
        return self.traffic.backward

    @property
    def backward_flops(self) -> Tensor:
        return self.forward_flops * BACKWARD

    @property
    def balance(self) -> float:
        """Work of the rank with most, over the mean."""
        return max_over_mean(self.forward_flops)

    @property
    def row_balance(self) -> float:
        """Likewise of tokens, by which all but attention goes."""
        return max_over_mean(self.rows)

    @property
    def both(self) -> BothPasses:
        """Forward and backward."""
        return BothPasses(self.forward, self.backward)

    def __str__(self) -> str:
        lines = [self.description]
        for name, values, unit in (
            ("rows", self.rows, ""),
            ("sent, forward", self.forward_bytes, "B"),
            ("sent, backward", self.backward_bytes, "B"),
            ("work, forward", self.forward_flops, "FLOP"),
            ("held, forward", self.memory_bytes, "B"),
        ):
            mean = human(float(values.double().mean()), unit)
            most = human(float(values.max()), unit)
            even = f"max / mean {max_over_mean(values):.3f}"
            lines.append(f"  {name:<15} {mean:>12} a rank, most {most}, {even}")
        passes: dict[str, Timing | BothPasses] = {
            "forward": self.forward,
            "forward+backward": self.both,
        }
        for name, one in passes.items():
            lines.append(
                f"  {name:<17} {one.total * 1e3:.3g} ms predicted, {one.share:.1%} of ideal, "
                f"{one.hidden:.0%} of keys and values hidden"
            )
        return "\n".join(lines)


def human(value: float, unit: str) -> str:
    """Three digits and a decimal prefix."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size and (unit or size < 1e6):
            digits = f"{value / size:.3g}" if value < 999.5 * size else f"{value / size:.0f}"
            return f"{digits} {prefix}{unit}".rstrip()
    return f"{value:.4g} {unit}".rstrip()


def predicted(
    cluster: Cluster,
    scheme: str,
    flops: Tensor,
    sent: Traffic,
    degrees: tuple[int, int],
    slices: int,
) -> tuple[Timing, Timing]:
    """Forward and backward."""
    most, mean = float(flops.max()), float(flops.mean())
    passes = (
        (1.0, sent.exchange_forward, sent.outer_forward),
        (BACKWARD, sent.exchange_backward, sent.outer_backward),
    )
    forward, backward = (
        timing(
            cluster,
            scheme,
            flops=(factor * most, factor * mean),
            exchange=int(exchange.max()),
            outer=int(outer.max()),
            degrees=degrees,
            slices=slices,
        )
        for factor, exchange, outer in passes
    )
    return forward, backward


def memory(
    scheme: str,
    whole: Tensor,
    of_q: Tensor,
    of_kv: Tensor,
    size: Elements,
    exchanged: bool,
    kv_heads_at_once: int,
    gathered: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """int64 bytes beside a rank's own rows, of (outer ranks, ranks that share heads).

    whole (outer ranks, 1): rows of all that share heads. Exchanged: they hold queries, keys, values
    and results of these rows. A ring: two buffers of keys and values, and partial results; a
    gather: keys and values in places of the whole sequence, of the KV heads computed, and those on
    their way of the next, of as many rows as `gathered` says that are sent and that are received.
    """
    kv = size.row + size.row_v
    held = whole * (of_q + of_kv) * kv if exchanged else 0 * whole * of_q
    if scheme == "ring" and whole.shape[0] > 1:
        partial_out = size.batch * size.head_dim_v * size.partial
        held = held + 2 * whole.max() * of_kv * kv + whole * of_q * partial_out
    elif gathered is not None and whole.shape[0] > 1:
        rows = (whole.sum() + sum(gathered))[:, None]
        held = held + rows * of_kv.clamp(max=kv_heads_at_once) * kv
    return held
