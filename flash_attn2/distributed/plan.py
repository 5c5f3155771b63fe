"""Which rank has which rows and heads of a sequence, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from flash_attn2._impl.arguments import as_int
from flash_attn2._impl.problem import MAX_SEQLEN
from flash_attn2.distributed import chunks, report, sharding
from flash_attn2.distributed.chunks import Ranges
from flash_attn2.distributed.cluster import Cluster
from flash_attn2.distributed.digest import digest
from flash_attn2.distributed.head_shares import HeadShare, head_shares
from flash_attn2.distributed.needed import needed_keys, rows_sent
from flash_attn2.distributed.ranks import Ranks, ranks_of
from flash_attn2.distributed.report import PlanReport
from flash_attn2.distributed.traffic import Elements, traffic
from flash_attn2.distributed.work import ALL, Work
from flash_attn2.masks import BlockMask, Pattern, causal
from flash_attn2.masks.leaves import Window

if TYPE_CHECKING:
    from flash_attn2.distributed.outer import Outer

__all__ = ["ContextPlan", "context_plan"]

Scheme = Literal["auto", "ring", "gather", "heads"]
Balance = Literal["auto", "zigzag", "greedy", "contiguous"]
_CAUSAL = causal()


@dataclass(frozen=True, eq=False, repr=False)
class ContextPlan:
    """How a sequence is divided among ranks; made by `context_plan`, and not changed.

    What depends on the rank is that of this process, or of `at(rank)`.
    """

    seqlen: int
    """Tokens of the whole sequence."""
    num_heads: int
    num_heads_kv: int
    pattern: Pattern
    """Which keys each query sees, of the whole sequence."""
    scheme: str
    """"ring", "gather" or "heads": how keys and values get to the queries."""
    balance: str
    """"zigzag", "greedy" or "contiguous": how rows are dealt out."""
    ranges: Ranges
    """Rows of each rank."""
    rows: tuple[int, ...]
    """How many each has."""
    ranks: Ranks
    signature: int
    """64 bits that are the same on all ranks that have the same plan."""
    key: str
    """By which ops find the plan of this process and group."""
    kv_heads_at_once: int = 1
    """Of a gather: KV heads whose keys and values come together."""

    # Rows

    @property
    def size(self) -> int:
        """Ranks."""
        return self.ranks.size

    @property
    def rank(self) -> int:
        """The rank that the plan is seen from. ValueError where it is nobody's: use `at`."""
        rank = self.ranks.rank
        if rank is None:
            raise ValueError("this plan is made of numbers and of no rank: use plan.at(rank)")
        return rank

    def at(self, rank: int) -> ContextPlan:
        """The plan as that rank sees it, which cannot communicate. ValueError if there is none."""
        rank = as_int("rank", rank)
        if not 0 <= rank < self.size:
            raise ValueError(f"rank must be from 0 to {self.size - 1}, got {rank}")
        return replace(self, ranks=Ranks(self.ranks.outer, self.ranks.heads, rank), key="")

    @cached_property
    def positions(self) -> Tensor:
        """int64 (rows,): where the rank's rows stand in the sequence, in its order; on the CPU."""
        return sharding.positions(self.ranges.of(self.rank))

    def shard(self, x: Tensor, dim: int) -> Tensor:
        """The rank's rows of a tensor whose dimension `dim` is the whole sequence; a view where
        they are one range, and differentiable. TypeError or ValueError for other tensors."""
        return sharding.shard(self, x, dim)

    def unshard(self, x: Tensor, dim: int) -> Tensor:
        """The whole sequence, on every rank, of what each has of it along `dim`. All ranks must
        call it. Without a gradient: NotImplementedError where x requires grad in grad mode.
        """
        return sharding.unshard(self, x, dim)

    # Heads

    @cached_property
    def head_shares(self) -> tuple[HeadShare, ...]:
        """Heads of each of the ranks that share rows."""
        return head_shares(self.num_heads, self.num_heads_kv, self.ranks.heads)

    # Rows and keys of the outer scheme

    @cached_property
    def outer(self) -> Outer:
        from flash_attn2.distributed.outer import Outer

        return Outer(self)

    @cached_property
    def outer_ranges(self) -> Ranges:
        """Rows of the ranks of the outer scheme: those that share heads are one."""
        return self.ranges._replace(offsets=self.ranges.offsets[:: self.ranks.heads].contiguous())

    @cached_property
    def needed_keys(self) -> Ranges | None:
        """Of a gather: keys that the queries of each rank of the outer scheme see, of any head."""
        if self.scheme != "gather":
            return None
        with torch.device("cpu"):
            mask = self.block_mask(torch.device("cpu"))
            pattern = self.pattern if mask is None else mask
            assert isinstance(pattern, (Window, BlockMask))
            return needed_keys(self.outer_ranges, pattern, self.seqlen)

    @cached_property
    def call_signature(self) -> int:
        """`signature`, and what ranks send to each other, which may be made of a function's
        values."""
        needed = self.needed_keys
        return digest(self.signature, None if needed is None else tuple(needed))

    # What it costs

    @cached_property
    def _rows_sent(self) -> tuple[Tensor, Tensor] | None:
        needed = self.needed_keys
        return None if needed is None else rows_sent(self.outer_ranges, needed, self.seqlen)

    @cached_property
    def _pairs(self) -> Tensor:
        """float64 (outer ranks,): visible pairs of the rows that ranks share the heads of."""
        work = self.ranges.work(Work(self.pattern, self.seqlen))
        return work.view(self.ranks.outer, self.ranks.heads).sum(1)

    def report(
        self,
        *,
        head_dim: int = 128,
        head_dim_v: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        batch: int = 1,
        with_lse: bool = False,
        cluster: Cluster | None = None,
    ) -> PlanReport:
        """Rows, bytes sent, work and memory of each rank for one attention of this size, and times
        that a plain model predicts on the cluster (None: `Cluster()`).

        head_dim_v is that of the values, where it is another. Bytes are exact; with_lse counts
        those of lse, too, and of its gradient. Print it.
        """
        head_dim_v = head_dim if head_dim_v is None else head_dim_v
        given = {"head_dim": head_dim, "head_dim_v": head_dim_v, "batch": batch}
        for name, value in given.items():
            _positive(name, value)
        size = Elements(batch, head_dim, head_dim_v, dtype.itemsize)
        cluster = cluster or Cluster()
        with torch.device("cpu"):
            rows = self.ranges.rows
            of_q = torch.tensor([share.size for share in self.head_shares])
            of_kv = torch.tensor([len(share.different_kv) for share in self.head_shares])
            sent = traffic(
                *(self.scheme, rows, self.head_shares, self.num_heads, size, with_lse),
                *(self._rows_sent,),
            )
            flops = (2.0 * batch * (head_dim + head_dim_v) * self._pairs[:, None] * of_q).flatten()
            whole = rows.view(self.ranks.outer, self.ranks.heads).sum(1, keepdim=True)
            at_once, exchanged = self.kv_heads_at_once, self.ranks.heads > 1
            held = report.memory(
                *(self.scheme, whole, of_q, of_kv, size, exchanged, at_once, self._rows_sent)
            )
            degrees = (self.ranks.outer, self.ranks.heads)
            slices = max(-(-int(of_kv.max()) // at_once), 1)
            forward, backward = report.predicted(
                *(cluster, self.scheme, flops, sent, degrees, slices)
            )
        return PlanReport(
            *(str(self), cluster, rows, sent, flops, held.flatten(), forward, backward)
        )

    # For the calls

    def block_mask(self, device: torch.device) -> BlockMask | None:
        """The pattern as a mask of the whole sequence; None where it is a window. Kept."""
        if isinstance(self.pattern, Window):
            return None
        masks: dict[torch.device, BlockMask] = self._masks
        if device not in masks:
            batch, heads = self.pattern.batch, self.pattern.heads
            masks[device] = self.pattern.build(self.seqlen, batch=batch, heads=heads, device=device)
        return masks[device]

    @cached_property
    def _masks(self) -> dict[torch.device, BlockMask]:
        return {}

    def __repr__(self) -> str:
        outer, heads = self.ranks.outer, self.ranks.heads
        degrees = [f"{self.scheme} of {outer}"] if self.scheme != "heads" else []
        if heads > 1 or self.scheme == "heads":
            degrees.append(f"heads of {heads}")
        here = "" if self.ranks.rank is None else f", rank {self.ranks.rank}"
        return (
            f"ContextPlan({' x '.join(degrees)}, {self.seqlen} tokens, {self.num_heads} heads on "
            f"{self.num_heads_kv}, {_short(self.pattern)}, {self.balance}{here})"
        )


def _short(pattern: Pattern) -> str:
    return "no mask" if pattern == ALL else repr(pattern)


def context_plan(
    ranks: Any,
    seqlen: int,
    *,
    pattern: Pattern | None = _CAUSAL,
    num_heads: int,
    num_heads_kv: int,
    scheme: Scheme = "auto",
    balance: Balance = "auto",
    chunk: int | None = None,
    ring_dim: str = "ring",
    heads_dim: str = "heads",
    head_dim: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    cluster: Cluster | None = None,
    memory_limit: int | None = None,
) -> ContextPlan:
    """Divides self-attention of `seqlen` tokens among ranks. Nothing is sent, and equal arguments
    give equal plans: every rank makes its own.

    ranks is a torch.distributed ProcessGroup or DeviceMesh: of one dimension, or of two, which
    `ring_dim` and `heads_dim` name: those of `heads_dim` share the heads of the same rows. Or, to
    look at a plan, a number of ranks or a pair (ring, heads).

    pattern says which keys each query sees: what `flash_attn2.masks` makes, None for all keys;
    packed sequences are `masks.documents(cu_seqlens=...) & masks.causal()`.

    scheme, of the ranks that have different rows:

        "ring"    keys and values go round; for masks.causal(), windows and None
        "gather"  every rank gets the keys and values that its queries see (by blocks of 64, of any
                  head), a slice of KV heads after the other: of as many heads as three slices of a
                  whole sequence of this head_dim and dtype take up to `memory_limit` bytes; None:
                  of one head
        "heads"   rows are exchanged for heads and back; any number of ranks, where KV heads are
                  sent to several if need be
        "auto"    what `report` predicts to be fastest, with this head_dim and dtype on `cluster`

    balance: "zigzag" (a part from the front and one from the back), "greedy" (chunks by the work
    that is counted in the pattern), "contiguous"; "auto" is zigzag for a ring under a causal mask
    or a window that ends at the diagonal, greedy for a gather, else contiguous. chunk is the number
    of rows of a greedy chunk; None: 2048, or fewer, so that work is even. Functions in a pattern
    are called to count it.

    TypeError or ValueError names the argument.
    """
    seqlen = as_int("seqlen", seqlen)
    if not 1 <= seqlen <= MAX_SEQLEN:
        raise ValueError(f"seqlen must be from 1 to {MAX_SEQLEN}, got {seqlen}")
    num_heads, num_heads_kv = (
        _positive("num_heads", num_heads),
        _positive("num_heads_kv", num_heads_kv),
    )
    if num_heads % num_heads_kv:
        raise ValueError(
            f"num_heads must be a multiple of num_heads_kv, got {num_heads} and {num_heads_kv}"
        )
    if pattern is None:
        pattern = ALL
    if not isinstance(pattern, Pattern):
        raise TypeError(
            "pattern must be made by flash_attn2.masks, as masks.causal(), or None, got "
            f"{type(pattern).__name__}"
        )
    if pattern.heads not in (1, num_heads_kv, num_heads):
        raise ValueError(
            f"pattern must have 1 head, num_heads_kv, {num_heads_kv}, or num_heads, {num_heads}, "
            f"got {pattern.heads}"
        )
    _require_one_of("scheme", scheme, Scheme)
    _require_one_of("balance", balance, Balance)
    if chunk is not None:
        chunk = _positive("chunk", chunk)
    members, both = ranks_of(ranks, ring_dim, heads_dim)
    if members.size == 1:
        members = members._replace(rank=0)
    if both and scheme == "heads" and members.outer > 1:
        raise ValueError(
            'scheme must be "ring", "gather" or "auto" for ranks of two dimensions, which share '
            'heads along one of them, got "heads"'
        )
    schemes = [scheme] if scheme != "auto" else _candidates(pattern, members, both)
    at_once = _kv_heads_at_once(memory_limit, 6 * seqlen * head_dim * dtype.itemsize)
    make = _Maker(seqlen, num_heads, num_heads_kv, pattern, balance, chunk, at_once)
    with torch.device("cpu"):
        plans = [make.plan(members, one) for one in schemes]

    def seconds(plan: ContextPlan) -> float:
        return plan.report(head_dim=head_dim, dtype=dtype, cluster=cluster).both.total

    plan = plans[0] if len(plans) == 1 else min(plans, key=seconds)
    if plan.ranks.rank is not None:
        _keep(plan)
    return plan


# Plans by their keys. Old ones are forgotten where there are very many.
_plans: dict[str, ContextPlan] = {}
_MOST_PLANS = 1024


def _keep(plan: ContextPlan) -> None:
    _plans.pop(plan.key, None)
    _plans[plan.key] = plan
    if len(_plans) > _MOST_PLANS:
        del _plans[next(iter(_plans))]


def plan_of_key(key: str) -> ContextPlan:
    """The plan that this process made. RuntimeError where there is none."""
    if key not in _plans:
        raise RuntimeError(f"this process has made no plan with the key {key!r}, or too many since")
    return _plans[key]


def _positive(name: str, value: Any) -> int:
    number = as_int(name, value)
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
    return number


def _kv_heads_at_once(limit: Any, of_one: int) -> int:
    """KV heads of which three slices fit, where those of one head have so many bytes."""
    if limit is None:
        return 1
    limit = _positive("memory_limit", limit)
    if limit < of_one:
        raise ValueError(
            f"memory_limit must be at least {of_one}, the bytes of keys and values of a KV head "
            "of the whole sequence that is computed, and of the next, sent and received, "
            f"got {limit}"
        )
    return int(limit // of_one)


def _require_one_of(name: str, value: Any, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}")


def _candidates(pattern: Pattern, members: Ranks, both: bool) -> list[str]:
    """The first of equals is taken."""
    found = ["heads"] if not both or members.outer == 1 else []
    if members.outer == 1:
        return found
    if isinstance(pattern, Window):
        found.append("ring")
    return [*found, "gather"]


@dataclass(frozen=True)
class _Maker:
    seqlen: int
    num_heads: int
    num_heads_kv: int
    pattern: Pattern
    balance: str
    chunk: int | None
    kv_heads_at_once: int

    def plan(self, members: Ranks, scheme: str) -> ContextPlan:
        if scheme == "ring" and not isinstance(self.pattern, Window):
            raise ValueError(
                "a ring takes masks.causal(), masks.window(...) or None as its pattern, got "
                f'{self.pattern!r}: use scheme "gather" or "heads"'
            )
        if scheme == "heads":
            members = members._replace(outer=1, heads=members.size)
        balance = self._balance_of(scheme)
        if balance == "zigzag":
            ranges = chunks.zigzag(self.seqlen, members.outer)
        elif balance == "greedy":
            work = Work(self.pattern, self.seqlen)
            ranges = chunks.greedy(work, self.seqlen, members.outer, self.chunk)
        else:
            ranges = chunks.contiguous(self.seqlen, members.outer)
        ranges = chunks.divided(ranges, members.heads)
        degrees = (members.outer, members.heads)
        whole = (self.seqlen, self.num_heads, self.num_heads_kv, self.pattern, scheme, balance)
        at_once = min(self.kv_heads_at_once, self.num_heads_kv) if scheme == "gather" else 1
        signature = digest(*whole, tuple(ranges), degrees, at_once)
        names = " ".join(group.group_name for group in members.groups)
        key = f"{signature:016x} {names} {members.rank}"
        rows = tuple(ranges.rows.tolist())
        return ContextPlan(*whole, ranges, rows, members, signature, key, at_once)

    def _balance_of(self, scheme: str) -> str:
        """ValueError for one that does not go with the scheme."""
        if scheme == "heads":
            if self.balance not in ("auto", "contiguous"):
                raise ValueError(
                    'balance must be "contiguous" for scheme "heads", whose ranks have all rows '
                    f"of their heads, got {self.balance!r}"
                )
            return "contiguous"
        if self.balance == "greedy" and scheme == "ring":
            raise ValueError('balance must be "zigzag" or "contiguous" for a ring, got "greedy"')
        if self.balance != "auto":
            return self.balance
        if scheme == "gather":
            return "greedy"
        assert isinstance(self.pattern, Window)
        return "zigzag" if self.pattern.right == 0 else "contiguous"
