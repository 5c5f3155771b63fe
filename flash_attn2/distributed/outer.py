"""What rings and gathers share: ranks with rows of their own, and the calls of parts of rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl.problem import Positions, Problem
from flash_attn2._impl.schema import FORWARD
from flash_attn2.distributed.exchange import Parties, gathered
from flash_attn2.distributed.plan import ContextPlan


class Part(NamedTuple):
    """Rows that lie one after the other in the sequence."""

    start: int
    """The first one's place there."""
    first: int
    """Its place among the rank's rows."""
    rows: int

    @property
    def end(self) -> int:
        """Behind the last one's place in the sequence."""
        return self.start + self.rows

    def of(self, x: Tensor, dim: int) -> Tensor:
        """Those rows of a rank's."""
        return x.narrow(dim, self.first, self.rows)

    def of_whole(self, x: Tensor, dim: int) -> Tensor:
        """Those rows of the whole sequence."""
        return x.narrow(dim, self.start, self.rows)


Incoming = tuple[Tensor, "Tensor | None"]
"""Gradients of out and lse."""


class Outer:
    """Ranks that have different rows, as one of them sees them. Those that share heads are one
    rank here, with the rows of all of them."""

    def __init__(self, plan: ContextPlan) -> None:
        ranks = plan.ranks
        self.group = ranks.group if ranks.outer_group is None else ranks.outer_group
        self.size = ranks.outer
        self.index = plan.rank // ranks.heads
        self.seqlen = plan.seqlen
        self._plan = plan

    @cached_property
    def parts(self) -> tuple[tuple[Part, ...], ...]:
        """Of each rank, in their order there."""
        return tuple(_parts(self._plan.outer_ranges.of(rank)) for rank in range(self.size))

    @property
    def own(self) -> tuple[Part, ...]:
        return self.parts[self.index]

    def rows(self, rank: int) -> int:
        return sum(part.rows for part in self.parts[rank])

    @cached_property
    def sent(self) -> tuple[tuple[Part, ...], ...]:
        """Of a gather: own rows whose keys each rank needs."""
        return tuple(self._needed(rank, self.index) for rank in range(self.size))

    @cached_property
    def got(self) -> tuple[tuple[Part, ...], ...]:
        """Of a gather: rows of each rank whose keys are needed here."""
        return tuple(self._needed(self.index, rank) for rank in range(self.size))

    def _needed(self, rank: int, of: int) -> tuple[Part, ...]:
        """Rows of `of` whose keys the queries of `rank` see, one after the other."""
        needed = self._plan.needed_keys
        assert needed is not None
        return _common(self.parts[of], needed.of(rank))

    def grad_of_sink(
        self, sink: Tensor | None, results: tuple[Tensor, Tensor], incoming: Incoming
    ) -> Tensor | None:
        """Summed over all rows; None without a sink."""
        if sink is None:
            return None
        return self.summed(_grad_of_sink(sink, *results, *incoming))

    def summed(self, part: Tensor) -> Tensor:
        """The sum over the ranks, in their order, of tensors of one shape."""
        if self.size == 1:
            return part
        flat = part.reshape(1, -1)
        parties = Parties(self.group, self.index, (0,) * self.size)
        return gathered(parties, flat, ((0,),) * self.size, 1).view(part.shape)


def _parts(ranges: Iterable[tuple[int, int]]) -> tuple[Part, ...]:
    found: list[Part] = []
    rows = 0
    for start, end in ranges:
        if found and found[-1].end == start:
            last = found.pop()
            found.append(last._replace(rows=last.rows + end - start))
        else:
            found.append(Part(start, rows, end - start))
        rows += end - start
    return tuple(found)


def _common(parts: Sequence[Part], ranges: Sequence[tuple[int, int]]) -> tuple[Part, ...]:
    """What lies in ranges, which are in order, of parts."""
    found = []
    for part in parts:
        i = bisect_right(ranges, part.start, key=itemgetter(1))  # the first that ends behind
        while i < len(ranges) and ranges[i][0] < part.end:
            start, end = max(part.start, ranges[i][0]), min(part.end, ranges[i][1])
            found.append(Part(start, part.first + start - part.start, end - start))
            i += 1
    return tuple(found)


class Call(NamedTuple):
    """What the calls of a rank's heads have in common: arguments of flash_attn2::forward by name,
    for these heads, with the rank's rows of a bias that has rows."""

    options: dict[str, Any]
    rng_state: Tensor | None
    seqlen: int
    bias_has_rows: bool
    """Whether bias holds the rank's rows, rather than one for all."""

    def problem(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        of_q: Part,
        of_k: Part,
        results: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    ) -> Problem:
        """Of rows of q and k that are these parts of the sequence."""
        given = {**self.options, "q": q, "k": k, "v": v, "given_rng_state": self.rng_state}
        if given["bias"] is not None:
            given["bias"] = self.bias_part(given["bias"], of_q, of_k)
        values = zip(FORWARD.names, FORWARD.defaults, strict=True)
        p = FORWARD.unflatten([given.get(name, default) for name, default in values])
        positions = Positions(of_q.start, of_k.start, self.seqlen, self.seqlen)
        out, lse = results
        return p._replace(out=out, lse=lse, positions=positions)

    def bias_part(self, bias: Tensor, of_q: Part, of_k: Part) -> Tensor:
        """Of `bias`, or what is shaped like it."""
        rows = of_q.of(bias, 2) if self.bias_has_rows else bias
        return rows if bias.shape[3] == 1 else of_k.of_whole(rows, 3)

    def without_sink(self) -> Call:
        return self._replace(options={**self.options, "sink": None})

    def of_heads(self, heads: slice, num_heads: int) -> Call:
        """For some of the `num_heads` heads."""
        options = dict(self.options)
        for name, dim in HEAD_DIMS.items():
            x = options.get(name)
            if x is not None and x.shape[dim] == num_heads:
                options[name] = x.narrow(dim, heads.start, heads.stop - heads.start)
        options["head_start"] += heads.start
        return self._replace(options=options)


# Where arguments have heads, from the end.
HEAD_DIMS = {
    "alibi_slopes": -1,
    "sink": -1,
    "bias": -3,
    "relative_bias": -2,
    "block_mask_offsets": -2,
}


class OuterGradients(NamedTuple):
    """Of a rank's rows and heads; those of sink, relative_bias and a bias for all rows are summed
    over all rows. None where not wanted."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink: Tensor | None
    bias: Tensor | None
    relative_bias: Tensor | None


def finished_biases(
    outer: Outer, call: Call, sums: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of bias and relative_bias in their dtypes, summed over all rows where they are for
    all."""
    bias, relative_bias = sums
    if bias is not None:
        whole = bias if call.bias_has_rows else outer.summed(bias)
        bias = whole.to(call.options["bias"].dtype)
    if relative_bias is not None:
        relative_bias = outer.summed(relative_bias).to(call.options["relative_bias"].dtype)
    return bias, relative_bias


def _grad_of_sink(
    sink: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> Tensor:
    """(num_heads,), float32, from final results (batch, rows, heads, ...) and lse (batch, heads,
    rows): the sink is a key without a value, which counts once for each row."""
    delta = (grad_out.double() * out.double()).sum(-1).transpose(1, 2)
    if grad_lse is not None:
        delta = delta - grad_lse.double()
    probs = (sink.double()[:, None] - lse.double()).exp()
    probs = torch.where(lse == -torch.inf, 0.0, probs)
    return -(probs * delta).sum((0, 2)).float()


def concatenated(parts: Sequence[Tensor], dim: int, like: Tensor) -> Tensor:
    """Like torch.cat, of none, too: then an empty tensor shaped as `like` but for `dim`."""
    return torch.cat(list(parts), dim) if parts else like.narrow(dim, 0, 0)
