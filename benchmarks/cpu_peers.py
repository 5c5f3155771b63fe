"""How flash_attn2 and each of its peers in the CPU table run a row."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cpu_peak import peak
from cpu_rows import BIAS, BOOL_MASK, FLEX, LOOP, NESTED, PEAK, SDPA, Row
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

import flash_attn2
from flash_attn2.bench import timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import (
    CONTENDERS,
    Call,
    Problem,
    heads_first,
    rows_first,
    visible_mask,
)
from flash_attn2.bench.modes import timed
from flash_attn2.bench.race import FLASH_ATTN2


class Timed(NamedTuple):
    run: timing.Run
    work: float  # floating-point operations, or bytes that are read
    variant: str = ""  # which of several ways it is, for the record


def build(name: str, row: Row, problem: Problem) -> Timed:
    """What `name` does for one measurement; raises where it cannot."""
    if name == PEAK:
        fastest = peak(row.case.torch_dtype)
        return Timed(fastest.run, fastest.run(), fastest.instructions)
    return Timed(_BUILDERS[name](row, problem), row.mode.flops_of(row.case))


def _flash_attn2(row: Row, problem: Problem) -> timing.Run:
    if not row.alibi:
        return _timed(row, problem, CONTENDERS[FLASH_ATTN2](problem)[""]())
    q, k, v = problem.inputs(rows_first(len(row.case.seqlens)))
    options: dict[str, Any] = {
        "causal": row.case.causal,
        "alibi_slopes": _slopes(row.case.num_heads),
    }
    return lambda: flash_attn2.flash_attn_func(q, k, v, **options)


def _sdpa(row: Row, problem: Problem) -> timing.Run:
    """The faster way, where there are several."""
    variants = CONTENDERS[SDPA](problem).values()
    runs = [_timed(row, problem, variant()) for variant in variants]
    if len(runs) == 1:
        return runs[0]
    return min(runs, key=lambda run: timing.estimate(run, timing.CpuClock()))


def _sdpa_loop(row: Row, problem: Problem) -> timing.Run:
    return _timed(row, problem, CONTENDERS[SDPA](problem)["loop"]())


def _timed(row: Row, problem: Problem, call: Call) -> timing.Run:
    return timed(row.mode, call, problem.grad_out)


def _bias(row: Row, problem: Problem) -> timing.Run:
    case = row.case
    q, k, v = problem.inputs(heads_first(len(case.seqlens)))
    rows = torch.arange(case.seqlens[0])
    bias = _slopes(case.num_heads)[:, None, None] * -(rows[:, None] - rows).abs()
    visible = visible_mask(case, case.seqlens[0], q.device)
    if visible is not None:
        bias.masked_fill_(~visible, -torch.inf)
    bias = bias.to(q.dtype)[None]  # SDPA's flash kernel takes 2 or 4 dimensions
    return lambda: scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _slopes(num_heads: int) -> Tensor:
    return 2 ** (-8 * torch.arange(1, num_heads + 1) / num_heads)


def _nested(row: Row, problem: Problem) -> timing.Run:
    q, k, v = (
        torch.nested.nested_tensor(list(tensors), layout=torch.jagged).transpose(1, 2)
        for tensors in zip(*problem.sequences(), strict=True)
    )
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=row.case.causal)


def _flex(row: Row, problem: Problem) -> timing.Run:
    case = row.case
    layout = heads_first(1 if case.packed else len(case.seqlens))
    q, k, v = problem.arrange(layout, (problem.q, problem.k, problem.v))
    visible = _visible(case)
    seqlen = q.shape[2]
    options: dict[str, Any] = {"enable_gqa": case.group_size > 1}
    if visible is not None:
        options["block_mask"] = create_block_mask(visible, None, None, seqlen, seqlen, "cpu")
    if softcap := case.softcap:
        options["score_mod"] = lambda score, *_: softcap * torch.tanh(score / softcap)
    torch.compiler.reset()  # or it runs uncompiled after eight shapes
    attend = torch.compile(flex_attention, dynamic=False)
    run = functools.partial(attend, q, k, v, **options)
    for threads in row.threads:  # it is compiled for a number of threads
        torch.set_num_threads(threads)
        run()
    return run


def _visible(case: Case) -> Callable[..., Tensor] | None:
    """The mask of a case as flex_attention takes it."""
    document = torch.arange(len(case.seqlens)).repeat_interleave(torch.tensor(case.seqlens))
    # torch 2.5 asks for whole blocks of 128 rows.
    document = torch.nn.functional.pad(document, (0, 127), value=-1)

    def visible(batch: Tensor, head: Tensor, row: Tensor, col: Tensor) -> Tensor:
        seen = row >= col if case.causal else row >= 0
        if case.window_left >= 0:
            seen = seen & (row - col <= case.window_left)
        if case.packed:
            seen = seen & (document[row] == document[col])
        return seen

    return visible if case.causal or case.packed or case.window_left >= 0 else None


_BUILDERS: dict[str, Callable[[Row, Problem], timing.Run]] = {
    FLASH_ATTN2: _flash_attn2,
    SDPA: _sdpa,
    LOOP: _sdpa_loop,
    BOOL_MASK: _sdpa,
    BIAS: _bias,
    FLEX: _flex,
    NESTED: _nested,
}
