"""A cluster, and how long one attention takes on it by a plain model."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cluster:
    """What GPUs and links reach in practice. ValueError for what is not positive and finite."""

    flops: float = 400e12
    """A GPU's, in attention, a second."""
    node_bandwidth: float = 200e9
    """Bytes a second that a GPU sends within its node."""
    network_bandwidth: float = 50e9
    """And to other nodes."""
    node_size: int = 8
    """GPUs of a node."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{field.name} must be positive and finite, got {value}")
        if self.node_size != int(self.node_size):
            raise ValueError(f"node_size must be an integer, got {self.node_size}")

    def bandwidth(self, ranks: int) -> float:
        """Among so many neighbours."""
        return self.node_bandwidth if ranks <= self.node_size else self.network_bandwidth


@dataclass(frozen=True)
class Timing:
    """Seconds of one direction."""

    compute: float
    """Of the rank with most work."""
    exchange: float
    """Between rows and heads, which waits for kernels, and they for it."""
    outer: float
    """Sending keys, values and their gradients, beside kernels."""
    first: float
    """The part of `outer` that no kernel can run beside."""
    ideal: float
    """The work of all, evenly spread, without any sending."""

    @property
    def hidden(self) -> float:
        """The share of `outer` that kernels hide; 1 where nothing is sent."""
        if self.outer == 0:
            return 1.0
        return min(self.compute, self.outer - self.first) / self.outer

    @property
    def total(self) -> float:
        return self.exchange + max(self.compute + self.first, self.outer)

    @property
    def share(self) -> float:
        """Of the ideal speed."""
        return self.ideal / self.total if self.total > 0 else 1.0


@dataclass(frozen=True)
class BothPasses:
    """Forward and then backward; the names of `Timing`."""

    forward: Timing
    backward: Timing

    @property
    def hidden(self) -> float:
        outer = self.forward.outer + self.backward.outer
        if outer == 0:
            return 1.0
        passes = (self.forward, self.backward)
        return sum(one.hidden * one.outer for one in passes) / outer

    @property
    def total(self) -> float:
        return self.forward.total + self.backward.total

    @property
    def share(self) -> float:
        ideal = self.forward.ideal + self.backward.ideal
        return ideal / self.total if self.total > 0 else 1.0


def timing(
    cluster: Cluster,
    scheme: str,
    flops: tuple[float, float],
    exchange: int,
    outer: int,
    degrees: tuple[int, int],
    slices: int,
) -> Timing:
    """flops: of the rank with most, and the mean; bytes of the rank that sends most; ranks of the
    outer scheme and those that share heads. A gather comes in so many slices of heads, the first of
    which is waited for; a ring begins with what each has."""
    of_outer, of_heads = degrees
    seconds = outer / cluster.bandwidth(of_outer * of_heads)
    first = seconds / slices if scheme == "gather" else 0.0
    return Timing(
        compute=flops[0] / cluster.flops,
        exchange=exchange / cluster.bandwidth(of_heads),
        outer=seconds,
        first=first,
        ideal=flops[1] / cluster.flops,
    )
