"""What is compared: flash_attn2, PyTorch's SDPA and standard attention.

Every contender gets its inputs in the layout that suits it and may prepare masks, padding and
indices beforehand: only `Call.run` is timed. Where SDPA can express a case in several ways, each
is a variant, and the fastest one counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import flash_attn2
from flash_attn2.bench.cases import Case

FLASH_ATTN2 = "flash_attn2"
SDPA = "SDPA"
STANDARD = "standard"


class UnavailableError(Exception):
    """A contender cannot run a case; the message is the reason, in two or three words."""


@dataclass(frozen=True)
class Problem:
    """The tensors of a case, in flash-attn's layout.

    `q` is (batch, seqlen, num_heads, head_dim) or (total, num_heads, head_dim); `k` and `v` have
    num_heads_kv heads.
    """

    case: Case
    q: Tensor
    k: Tensor
    v: Tensor

    @staticmethod
    def create(case: Case, device: str, random: bool = True) -> Problem:
        """Normally distributed inputs, or constant ones where the values do not matter."""
        generator = torch.Generator(device).manual_seed(0)
        rows = (case.total,) if case.packed else (len(case.seqlens), case.seqlens[0])

        def tensor(num_heads: int) -> Tensor:
            shape = (*rows, num_heads, case.head_dim)
            empty = torch.empty(shape, dtype=case.torch_dtype, device=device)
            return empty.normal_(generator=generator) if random else empty.fill_(0.5)

        return Problem(
            case, tensor(case.num_heads), tensor(case.num_heads_kv), tensor(case.num_heads_kv)
        )

    def sequences(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`q`, `k` and `v` of each sequence, (seqlen, heads, head_dim)."""
        tensors = (self.q, self.k, self.v)
        if self.case.packed:
            lengths = list(self.case.seqlens)
            yield from zip(*(torch.split(tensor, lengths) for tensor in tensors), strict=True)
        else:
            yield from zip(*tensors, strict=True)


@dataclass(frozen=True)
class Call:
    run: Callable[[], Any]
    rows: Callable[[Any], Tensor]  # result of `run` -> (total, num_heads, head_dim)


# The ways in which a contender can run a problem; each prepares what it needs.
Variants = Mapping[str, Callable[[], Call]]


def _flash_attn2(problem: Problem) -> Variants:
    case, q, k, v = problem.case, problem.q, problem.k, problem.v
    options: dict[str, Any] = {
        "causal": case.causal,
        "window_size": case.window_size,
        "softcap": case.softcap,
    }

    def dense() -> Call:
        return Call(
            lambda: flash_attn2.flash_attn_func(q, k, v, **options), lambda out: out.flatten(0, 1)
        )

    def varlen() -> Call:
        lengths = torch.tensor([0, *case.seqlens], dtype=torch.int32)
        cu_seqlens = lengths.cumsum(0, dtype=torch.int32).to(q.device)
        longest = max(case.seqlens)
        return Call(
            lambda: flash_attn2.flash_attn_varlen_func(
                q, k, v, cu_seqlens, cu_seqlens, longest, longest, **options
            ),
            lambda out: out,
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
    q, k, v = (tensor.transpose(1, 2) for tensor in (problem.q, problem.k, problem.v))
    options = _sdpa_options(case, case.seqlens[0], q.device)
    return Call(
        lambda: scaled_dot_product_attention(q, k, v, **options),
        lambda out: out.transpose(1, 2).flatten(0, 1),
    )


def _sdpa_loop(problem: Problem) -> Call:
    case = problem.case
    sequences = [[tensor.transpose(0, 1)[None] for tensor in qkv] for qkv in problem.sequences()]
    options = [_sdpa_options(case, seqlen, problem.q.device) for seqlen in case.seqlens]

    def run() -> Tensor:
        outs = [
            scaled_dot_product_attention(q, k, v, **option)[0].transpose(0, 1)
            for (q, k, v), option in zip(sequences, options, strict=True)
        ]
        return torch.cat(outs)

    return Call(run, lambda out: out)


def _sdpa_padded(problem: Problem) -> Call:
    case = problem.case
    q, k, v = (
        torch.nn.utils.rnn.pad_sequence(list(tensors), batch_first=True).transpose(1, 2)
        for tensors in zip(*problem.sequences(), strict=True)
    )
    longest = max(case.seqlens)
    lengths = torch.tensor(case.seqlens, device=q.device)
    mask = torch.arange(longest, device=q.device) < lengths[:, None, None, None]
    visible = visible_mask(case, longest, q.device)
    if visible is not None:
        mask = mask & visible
    grouped = case.group_size > 1
    return Call(
        lambda: scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped),
        lambda out: torch.cat(
            [rows[:, :n].transpose(0, 1) for rows, n in zip(out, case.seqlens, strict=True)]
        ),
    )


def _sdpa_options(case: Case, seqlen: int, device: torch.device) -> dict[str, Any]:
    options: dict[str, Any] = {"enable_gqa": case.group_size > 1}
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
    batches = [(problem.q, problem.k, problem.v)]
    if case.packed:
        batches = [(q[None], k[None], v[None]) for q, k, v in problem.sequences()]
    hidden = [
        None if (visible := visible_mask(case, q.shape[1], q.device)) is None else ~visible
        for q, _, _ in batches
    ]

    def run() -> Tensor:
        outs = [
            standard_attention(*qkv, mask, case.softcap)
            for qkv, mask in zip(batches, hidden, strict=True)
        ]
        return torch.cat(outs, dim=1) if case.packed else outs[0]

    return Call(run, lambda out: out.flatten(0, 1))


def standard_attention(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, softcap: float
) -> Tensor:
    """Attention with the whole score matrix in memory.

    `q`, `k`, `v` as in Problem, dense; `hidden` (seqlen, seqlen) marks the pairs to mask.
    """
    group = q.shape[2] // k.shape[2]
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    if group > 1:
        k, v = (tensor.repeat_interleave(group, dim=1) for tensor in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if softcap:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if hidden is not None:
        scores = scores.masked_fill_(hidden, -torch.inf)
    out: Tensor = scores.softmax(-1) @ v
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
