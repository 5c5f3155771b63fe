"""What is compared: flash_attn2, PyTorch's SDPA and standard attention.

Every contender gets its inputs in the layout that suits it and may prepare masks, padding and
indices beforehand: only `Call.run` is timed. Where SDPA can express a case in several ways, each
is a variant, and the fastest one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

import flash_attn2
from flash_attn2.bench.cases import Case
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import UnavailableError

SDPA = "SDPA"
STANDARD = "standard"


@dataclass(frozen=True)
class Layout:
    """How a contender arranges the rows (total, heads, head_dim) of q, k, v and its result."""

    from_rows: Callable[[Tensor], Tensor]
    to_rows: Callable[[Tensor], Tensor]


PACKED = Layout(lambda rows: rows, lambda packed: packed)


def rows_first(batch: int) -> Layout:
    """(batch, seqlen, heads, head_dim)"""
    return Layout(
        lambda rows: rows.view(batch, -1, *rows.shape[1:]), lambda dense: dense.flatten(0, 1)
    )


def heads_first(batch: int) -> Layout:
    """(batch, heads, seqlen, head_dim)"""
    dense = rows_first(batch)
    return Layout(
        lambda rows: dense.from_rows(rows).transpose(1, 2),
        lambda heads: dense.to_rows(heads.transpose(1, 2)),
    )


def padded(seqlens: Sequence[int]) -> Layout:
    """(batch, heads, longest seqlen, head_dim), with zeros behind each sequence."""

    def from_rows(rows: Tensor) -> Tensor:
        sequences = torch.split(rows, list(seqlens))
        return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True).transpose(1, 2)

    def to_rows(heads: Tensor) -> Tensor:
        return torch.cat(
            [one[:, :seqlen].transpose(0, 1) for one, seqlen in zip(heads, seqlens, strict=True)]
        )

    return Layout(from_rows, to_rows)


Batch = tuple[Tensor, Tensor, Tensor]  # q, k, v


@dataclass(frozen=True)
class Problem:
    """The tensors of a case as rows: (total, heads, head_dim).

    `k` and `v` have num_heads_kv heads; `v` and the result head_dim_v columns. `grad_out` is the
    gradient of the result, or None where only the forward pass is run.
    """

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor | None

    @staticmethod
    def create(case: Case, device: str, random: bool = True, *, gradients: bool = False) -> Problem:
        """Normally distributed tensors, or constant ones where the values do not matter."""
        generator = torch.Generator(device).manual_seed(0)

        def tensor(num_heads: int, width: int) -> Tensor:
            shape = (case.total, num_heads, width)
            empty = torch.empty(shape, dtype=case.torch_dtype, device=device)
            return empty.normal_(generator=generator) if random else empty.fill_(0.5)

        keys, values = case.widths
        q, k = tensor(case.num_heads, keys), tensor(case.num_heads_kv, keys)
        v = tensor(case.num_heads_kv, values)
        return Problem(case, q, k, v, tensor(case.num_heads, values) if gradients else None)

    def sequences(self) -> Iterator[Batch]:
        """`q`, `k` and `v` of each sequence, (seqlen, heads, its width)."""
        lengths = list(self.case.seqlens)
        yield from zip(
            *(torch.split(rows, lengths) for rows in (self.q, self.k, self.v)), strict=True
        )

    def inputs(self, layout: Layout) -> Batch:
        """`q`, `k` and `v` as a contender reads them."""
        return self.arrange(layout, (self.q, self.k, self.v))

    def arrange(self, layout: Layout, batch: Batch) -> Batch:
        """Rows as a contender reads them: leaves of its graph, where there are gradients."""
        q, k, v = (layout.from_rows(rows) for rows in batch)
        if self.grad_out is None:
            return q, k, v
        return q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()


@dataclass(frozen=True)
class Call:
    run: Callable[[], Any]  # a tensor
    layout: Layout  # of the result
    inputs: Sequence[Batch]  # of each batch that it runs
    input_layout: Layout  # of one of them

    def rows(self, result: Tensor) -> Tensor:
        """(total, num_heads, head_dim_v)"""
        return self.layout.to_rows(result)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What is differentiated: q, k, v of the first batch, of the second one, and so on."""
        return tuple(tensor for batch in self.inputs for tensor in batch)


# The ways in which a contender can run a problem; each prepares what it needs.
Variants = Mapping[str, Callable[[], Call]]


def _flash_attn2(problem: Problem) -> Variants:
    case = problem.case
    options: dict[str, Any] = {
        "dropout_p": case.dropout_p,
        "causal": case.causal,
        "window_size": case.window_size,
        "softcap": case.softcap,
    }

    def dense() -> Call:
        layout = rows_first(len(case.seqlens))
        q, k, v = inputs = problem.inputs(layout)
        return Call(
            lambda: flash_attn2.flash_attn_func(q, k, v, **options), layout, [inputs], layout
        )

    def varlen() -> Call:
        q, k, v = inputs = problem.inputs(PACKED)
        lengths = torch.tensor([0, *case.seqlens], dtype=torch.int32)
        cu_seqlens = lengths.cumsum(0, dtype=torch.int32).to(q.device)
        longest = max(case.seqlens)
        return Call(
            lambda: flash_attn2.flash_attn_varlen_func(
                q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options
            ),
            PACKED,
            [inputs],
            PACKED,
        )

    return {"": varlen if case.packed else dense}


def _sdpa(problem: Problem) -> Variants:
    case = problem.case
    if case.softcap:
        raise UnavailableError("no softcap")
    if case.packed:
        return {
            "loop": lambda: _sdpa_loop(problem),
            "padded": lambda: _sdpa_padded(problem),
        }
    return {"mask" if case.window_left >= 0 else "": lambda: _sdpa_dense(problem)}


def _sdpa_dense(problem: Problem) -> Call:
    case = problem.case
    layout = heads_first(len(case.seqlens))
    q, k, v = inputs = problem.inputs(layout)
    options = _sdpa_options(case, case.seqlens[0], q.device)
    return Call(lambda: scaled_dot_product_attention(q, k, v, **options), layout, [inputs], layout)


def _sdpa_loop(problem: Problem) -> Call:
    case = problem.case
    layout = heads_first(1)
    sequences = [problem.arrange(layout, batch) for batch in problem.sequences()]
    options = [_sdpa_options(case, seqlen, problem.q.device) for seqlen in case.seqlens]

    def run() -> Tensor:
        outs = [
            layout.to_rows(scaled_dot_product_attention(q, k, v, **option))
            for (q, k, v), option in zip(sequences, options, strict=True)
        ]
        return torch.cat(outs)

    return Call(run, PACKED, sequences, layout)


def _sdpa_padded(problem: Problem) -> Call:
    case = problem.case
    layout = padded(case.seqlens)
    q, k, v = inputs = problem.inputs(layout)
    longest = max(case.seqlens)
    lengths = torch.tensor(case.seqlens, device=q.device)
    mask = torch.arange(longest, device=q.device) < lengths[:, None, None, None]
    visible = visible_mask(case, longest, q.device)
    if visible is not None:
        mask = mask & visible
    options: dict[str, Any] = {
        "attn_mask": mask,
        "dropout_p": case.dropout_p,
        "enable_gqa": case.group_size > 1,
    }
    return Call(lambda: scaled_dot_product_attention(q, k, v, **options), layout, [inputs], layout)


def _sdpa_options(case: Case, seqlen: int, device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {"dropout_p": case.dropout_p, "enable_gqa": case.group_size > 1}
    if 0 <= case.window_left < seqlen - 1:
        options["attn_mask"] = visible_mask(case, seqlen, device)
    else:
        options["is_causal"] = case.causal
    return options


def score_bytes(case: Case) -> int:
    """Size of the largest score matrix that standard attention would materialise."""
    batch = 1 if case.packed else len(case.seqlens)
    return batch * case.num_heads * max(case.seqlens) ** 2 * case.torch_dtype.itemsize


def _standard(problem: Problem) -> Variants:
    """softmax(Q Kᵀ) V as eager PyTorch models compute it."""
    return {"loop" if problem.case.packed else "": lambda: _standard_call(problem)}


def _standard_call(problem: Problem) -> Call:
    case = problem.case
    if case.packed:
        layout = rows_first(1)
        batches = [problem.arrange(layout, batch) for batch in problem.sequences()]
    else:
        layout = rows_first(len(case.seqlens))
        batches = [problem.inputs(layout)]
    hidden = [
        None if (visible := visible_mask(case, q.shape[1], q.device)) is None else ~visible
        for q, _, _ in batches
    ]

    def run() -> Tensor:
        outs = [
            standard_attention(*qkv, mask, case.softcap, case.dropout_p)
            for qkv, mask in zip(batches, hidden, strict=True)
        ]
        return torch.cat(outs, dim=1) if case.packed else outs[0]

    return Call(run, layout, batches, layout)


def standard_attention(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, softcap: float, dropout_p: float = 0.0
) -> Tensor:
    """Attention with the whole score matrix in memory.

    `q`, `k`, `v` (batch, seqlen, heads, head_dim); `hidden` (seqlen, seqlen) marks the pairs to
    mask. In place where autograd can do with it.
    """
    group = q.shape[2] // k.shape[2]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if group > 1:
        k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if softcap:
        scores = scores.div_(softcap).tanh_()
        scores = scores * softcap if scores.requires_grad else scores.mul_(softcap)
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -torch.inf)
    probs = scores.softmax(-1)
    if dropout_p:
        probs = dropout(probs, dropout_p)
    out: Tensor = probs @ v
    return out.transpose(1, 2)


def visible_mask(case: Case, seqlen: int, device: torch.device) -> Tensor | None:
    """(seqlen, seqlen) bool, true where a query sees a key; None if it sees all of them."""
    if not case.causal and case.window_left < 0:
        return None
    mask = torch.ones(seqlen, seqlen, dtype=torch.bool, device=device)
    if case.causal:
        mask = mask.tril_()
    if case.window_left >= 0:
        mask = mask.triu_(-case.window_left)
    return mask


# By name; each gives its ways to run a problem, or raises UnavailableError.
CONTENDERS: Mapping[str, Callable[[Problem], Variants]] = {
    FLASH_ATTN2: _flash_attn2,
    SDPA: _sdpa,
    STANDARD: _standard,
}
