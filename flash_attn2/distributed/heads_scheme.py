"""What every scheme is on the outside: ranks that share rows exchange them for heads, each attends
for its heads, and results go back. In scheme "heads" that is over the whole sequence; in others, by
a ring or a gather of those that have other rows, and of one rank's rows there may be one owner.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl import launch
from flash_attn2._impl.dtensors import share_rng_state
from flash_attn2.distributed.exchange import Parties, Table, gathered, to_heads, to_rows
from flash_attn2.distributed.gather import Gather
from flash_attn2.distributed.head_shares import HeadShare
from flash_attn2.distributed.kv_heads import expanded, reduced
from flash_attn2.distributed.outer import Call
from flash_attn2.distributed.plan import ContextPlan
from flash_attn2.distributed.ring import Ring
from flash_attn2.masks.leaves import Window


class Numbers(NamedTuple):
    """Options of a call that are no tensors."""

    softmax_scale: float | None
    softcap: float
    dropout_p: float
    deterministic: bool
    with_lse: bool


class Tensors(NamedTuple):
    """Options that are tensors, as the caller has them: per head and whole on each rank, but for
    the rows of bias."""

    alibi_slopes: Tensor | None
    sink: Tensor | None
    bias: Tensor | None
    relative_bias: Tensor | None


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass: tensors of the own heads, and the state of
    dropout. Empty ones where there is none."""

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor
    out: Tensor
    lse: Tensor
    rng_state: Tensor


SAVED_NAMES = Saved._fields


class Gradients(NamedTuple):
    """Like the tensors of the caller; None where not asked for."""

    q: Tensor
    k: Tensor
    v: Tensor
    sink: Tensor | None
    bias: Tensor | None
    relative_bias: Tensor | None


class HeadsScheme:
    """The heads of one rank of a plan, and how they get there."""

    def __init__(self, plan: ContextPlan) -> None:
        self._plan = plan
        self._shares = plan.head_shares
        ranks = plan.ranks
        first = plan.rank // ranks.heads * ranks.heads
        group = ranks.heads_group if ranks.group is None else ranks.group
        rows = plan.rows[first : first + ranks.heads]
        self._parties = Parties(group, plan.rank - first, rows)
        self._outer = self._make_outer()
        self._of_q: Table = tuple(tuple(range(x.begin, x.end)) for x in self._shares)
        self._of_kv: Table = tuple(share.different_kv for share in self._shares)

    @property
    def share(self) -> HeadShare:
        return self._shares[self._parties.rank]

    def _make_outer(self) -> Ring | Gather | None:
        plan = self._plan
        if plan.scheme == "heads":
            return None
        if plan.scheme == "gather":
            return Gather(plan.outer, self.share, plan.kv_heads_at_once)
        assert isinstance(plan.pattern, Window)
        return Ring(plan.outer, self.share, plan.pattern)

    # Forward

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, tensors: Tensors, numbers: Numbers
    ) -> tuple[Tensor, Tensor, Saved]:
        """out, lse (empty without with_lse) and what to save."""
        rng_state = self._rng_state(q.device, numbers.dropout_p)
        sent, tables = [q, k, v], [self._of_q, self._of_kv, self._of_kv]
        exchanged = tensors.bias is not None and self._has_rows(tensors.bias)
        if exchanged:
            assert tensors.bias is not None
            bias = _four(tensors.bias).transpose(1, 2)
            sent.append(bias)
            tables.append(self._heads_of(bias.shape[2]))
        q, k, v, *rest = to_heads(self._parties, sent, tables)
        empty = q.new_empty(0)
        bias = rest[0].transpose(1, 2).contiguous() if exchanged else empty
        if self._outer is not None:
            call = self._call(q, tensors, bias, numbers, rng_state)
            out, lse = self._outer.forward(q, k, v, call)
        elif self.share.size:
            out, lse, _ = torch.ops.flash_attn2.forward(
                *(q, expanded(self.share, k), expanded(self.share, v)),
                **self._options(q, tensors, bias, numbers),
                given_rng_state=rng_state,
            )
        else:
            out = q.new_empty((*q.shape[:3], v.shape[3]))
            lse = q.new_empty((q.shape[0], 0, q.shape[1]), dtype=torch.float32)
        back = [out] if not numbers.with_lse else [out, _column(lse.float())]
        tables, heads = [self._of_q] * len(back), [self._plan.num_heads] * len(back)
        own_out, *own_lse = to_rows(self._parties, back, tables, heads)
        state = empty.new_empty(0, dtype=torch.int64) if rng_state is None else rng_state
        own = own_lse[0].squeeze(-1).transpose(1, 2).contiguous() if own_lse else _no_lse(q)
        return own_out, own, Saved(q, k, v, bias, out, lse, state)

    def _rng_state(self, device: torch.device, dropout_p: float) -> Tensor | None:
        """The first rank's, for all. Every rank draws, so that their generators stay in step, and
        what is computed again, with its generator set back, gets the same."""
        if dropout_p == 0:
            return None
        state = launch.draw_rng_state(device)
        for group in self._plan.ranks.groups:
            if group.size() > 1:
                share_rng_state(state, group)
        return state

    def _has_rows(self, bias: Tensor) -> bool:
        """Whether it holds this rank's rows, rather than one for all. (A rank of one row takes one
        for its own; where others have more and one for all, they disagree, which is an error.)"""
        return bias.ndim > 1 and bias.shape[-2] == self._plan.rows[self._plan.rank]

    def _heads_of(self, heads: int) -> Table:
        """Of a tensor of so many: one for each head, or one for all."""
        return self._of_q if heads == self._plan.num_heads else tuple((0,) for _ in self._shares)

    def _call(
        self,
        q: Tensor,
        tensors: Tensors,
        bias: Tensor,
        numbers: Numbers,
        rng_state: Tensor | None,
    ) -> Call:
        """Likewise, as rings and gathers take it."""
        options = self._options(q, tensors, bias, numbers)
        return Call(options, rng_state, self._plan.seqlen, bias.ndim == 4)

    def _options(
        self, q: Tensor, tensors: Tensors, bias: Tensor, numbers: Numbers
    ) -> dict[str, Any]:
        """Of the call for the own heads, forward or backward."""
        heads = slice(self.share.begin, self.share.end)
        pattern = self._plan.pattern
        window = pattern if isinstance(pattern, Window) else Window(-1, -1)
        slopes, sink, given, relative = tensors
        if bias.ndim != 4 and given is not None:  # one for all rows
            given = _four(given)
            bias = given[:, heads] if given.shape[1] == self._plan.num_heads else given
        if relative is not None and relative.shape[0] == self._plan.num_heads:
            relative = relative[heads]
        return {
            "softmax_scale": numbers.softmax_scale,
            "window_left": window.left,
            "window_right": window.right,
            "softcap": numbers.softcap,
            "alibi_slopes": None if slopes is None else slopes[..., heads],
            "sink": None if sink is None else sink[heads],
            "dropout_p": numbers.dropout_p,
            "deterministic": numbers.deterministic,
            **self._mask(q.device),
            "bias": None if given is None else bias,
            "relative_bias": relative,
            "head_start": self.share.begin,
            "num_heads_total": self._plan.num_heads,
        }

    def _mask(self, device: torch.device) -> dict[str, Tensor]:
        """The lists of the own heads."""
        mask = self._plan.block_mask(device)
        if mask is None:
            return {}
        offsets = mask.row_offsets
        if mask.heads > 1:
            each = self._plan.num_heads // mask.heads
            heads = [head // each for head in range(self.share.begin, self.share.end)]
            offsets = offsets[:, heads]
        return {
            "block_mask_offsets": offsets,
            "block_mask_cols": mask.cols,
            "block_mask_tiles": mask.tiles,
            "block_mask_bits": mask.bits,
        }

    def saved_shapes(
        self, batch: int, head_dim: int, head_dim_v: int, bias: Tensor | None
    ) -> dict[str, tuple[int, ...]]:
        """Of the tensors in `Saved`, but for the state of dropout."""
        seqlen, heads = sum(self._parties.rows), self.share.size
        rows, kv = (batch, seqlen), len(self.share.different_kv)
        shapes = {
            "q": (*rows, heads, head_dim),
            "k": (*rows, kv, head_dim),
            "v": (*rows, kv, head_dim_v),
            "bias": (0,),
            "out": (*rows, heads, head_dim_v),
            "lse": (batch, heads, seqlen),
        }
        if bias is not None and self._has_rows(bias):
            of_batch, of_heads, _, cols = _four(bias).shape
            own = len(self._heads_of(of_heads)[self._plan.rank])
            shapes["bias"] = (of_batch, own, seqlen, cols)
        return shapes

    @property
    def lse_dtype(self) -> torch.dtype:
        """Of the lse that is saved."""
        return torch.float32 if self._outer is None else self._outer.lse_dtype

    # Backward

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        saved: Saved,
        tensors: Tensors,
        numbers: Numbers,
        wanted: tuple[bool, bool, bool],
    ) -> Gradients:
        """`wanted`: of sink, bias and relative_bias."""
        sent = [grad_out.to(saved.q.dtype)]
        if numbers.with_lse and grad_lse is not None:
            sent.append(_column(grad_lse.float()))
        grad_out, *lse = to_heads(self._parties, sent, [self._of_q] * len(sent))
        grad_lse = lse[0].squeeze(-1).transpose(1, 2).contiguous() if lse else None
        grads, of_biases = self._local_gradients(
            grad_out, grad_lse, saved, tensors, numbers, wanted
        )
        grad_q, grad_k, grad_v, grad_sink = grads
        back, tables = [grad_q, grad_k, grad_v], [self._of_q, self._of_kv, self._of_kv]
        heads = [self._plan.num_heads, self._plan.num_heads_kv, self._plan.num_heads_kv]
        exchanged = wanted[1] and saved.bias.ndim == 4
        if exchanged:
            assert tensors.bias is not None
            back.append(of_biases[0].transpose(1, 2))
            tables.append(self._heads_of(_four(tensors.bias).shape[1]))
            heads.append(_four(tensors.bias).shape[1])
        grad_q, grad_k, grad_v, *rest = to_rows(self._parties, back, tables, heads)
        bias = relative = sink = None
        if wanted[0]:
            sink = self._summed(grad_sink[:, None], self._plan.num_heads).flatten()
        if exchanged:
            assert tensors.bias is not None
            bias = rest[0].transpose(1, 2).contiguous().view(tensors.bias.shape)
        elif wanted[1]:
            bias = self._summed_bias(of_biases[0], tensors.bias)
        if wanted[2]:
            assert tensors.relative_bias is not None
            relative = self._summed(of_biases[1], tensors.relative_bias.shape[0])
        return Gradients(grad_q, grad_k, grad_v, sink, bias, relative)

    def _local_gradients(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        saved: Saved,
        tensors: Tensors,
        numbers: Numbers,
        wanted: tuple[bool, bool, bool],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Of q, k, v and sink, and of both biases, of the own heads."""
        rng_state = saved.rng_state if numbers.dropout_p else None
        options = self._options(saved.q, tensors, saved.bias, numbers)
        if self._outer is not None:
            own = self._call(saved.q, tensors, saved.bias, numbers, rng_state)
            results = saved.q, saved.k, saved.v, saved.out, saved.lse
            found = self._outer.backward(grad_out, grad_lse, results, own, wanted)
            none = saved.lse.new_empty(0, dtype=torch.float32)
            sink, *of_biases = (none if x is None else x for x in found[3:])
            return [*found[:3], sink], of_biases
        if not self.share.size:
            empty = [torch.zeros_like(x) for x in (saved.q, saved.k, saved.v)]
            return [*empty, saved.lse.new_empty(0)], _no_gradients(options, wanted)
        k, v = (expanded(self.share, x) for x in (saved.k, saved.v))
        call = (
            *(grad_out, grad_lse, saved.q, k, v),
            *(saved.out, saved.lse, rng_state),
        )
        grad_q, grad_k, grad_v, grad_sink = torch.ops.flash_attn2.backward(*call, **options)
        of_biases = [grad_q.new_empty(0)] * 2
        if wanted[1] or wanted[2]:
            of_biases = list(
                torch.ops.flash_attn2.bias_backward(
                    *call, **options, of_bias=wanted[1], of_relative_bias=wanted[2]
                )
            )
        grad_k, grad_v = (reduced(self.share, x) for x in (grad_k, grad_v))
        return [grad_q, grad_k, grad_v, grad_sink], of_biases

    def _summed(self, part: Tensor, heads: int) -> Tensor:
        """(own heads or 1, size) -> (heads, size), over all ranks."""
        return gathered(self._parties, part, self._heads_of(heads), heads)

    def _summed_bias(self, part: Tensor, bias: Tensor | None) -> Tensor:
        """Of a bias that is one for all rows."""
        assert bias is not None
        batch, heads, rows, cols = _four(bias).shape
        by_heads = part.transpose(0, 1).reshape(part.shape[1], batch * rows * cols)
        whole = self._summed(by_heads, heads)
        return whole.view(heads, batch, rows, cols).transpose(0, 1).reshape(bias.shape)


def _four(bias: Tensor) -> Tensor:
    """As (batch, heads, rows, keys), each of which may be 1."""
    return bias[(None,) * (4 - bias.ndim)]


def _column(lse: Tensor) -> Tensor:
    """(batch, heads, rows) as the other tensors are."""
    return lse.transpose(1, 2).unsqueeze(-1)


def _no_lse(q: Tensor) -> Tensor:
    return q.new_empty(0, dtype=torch.float32)


def _no_gradients(options: dict[str, Any], wanted: tuple[bool, bool, bool]) -> list[Tensor]:
    """Of both biases, where a rank has no heads."""
    return [
        torch.zeros_like(options[name]) if want else torch.empty(0)
        for name, want in zip(("bias", "relative_bias"), wanted[1:], strict=True)
    ]
