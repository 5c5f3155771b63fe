"""Attention over several sets of keys, from the results over each of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.checks import FLOAT_DTYPES


def merge_attention(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What attention over all keys would have given, from results over parts of them.

    outs (batch, seqlen_q, num_heads, head_dim_v) each, lses (batch, num_heads, seqlen_q): what
    `return_lse=True` returns; or of the packed functions (total_q, num_heads, head_dim) and
    (num_heads, total_q). The parts may come in any order and see any keys, as long as no query sees
    one twice, with one softmax_scale. Give a sink to one of them only; dropout leaves lse as it is,
    so that each part may have its own.

    Returns (out, lse) like one of the parts, out in their common dtype, lse in float32, or float64
    of such parts. Rows that see nothing in all of them have out 0 and lse -inf. Differentiable in
    outs and lses, any number of times. TypeError and ValueError name the part that does not fit.

    After Rabe and Staats, https://arxiv.org/abs/2112.05682: out = sum(exp(lses - lse) * outs) with
    exp(lse) = sum(exp(lses)).
    """
    _check(outs, lses)
    logs = torch.stack(tuple(lses))
    if logs.dtype != torch.float64:
        logs = logs.float()
    largest = logs.detach().amax(0)
    base = torch.where(largest == -torch.inf, 0, largest)
    weights = (logs - base).exp()
    total = weights.sum(0)
    sees_keys = total > 0
    total = torch.where(sees_keys, total, 1)  # whose logarithm has a gradient
    lse = torch.where(sees_keys, base + total.log(), -torch.inf)
    shares = (weights / total).transpose(-1, -2).unsqueeze(-1)
    out = shares[0] * outs[0]
    for share, part in zip(shares[1:], outs[1:], strict=True):
        out = out + share * part
    return out.to(outs[0].dtype), lse


def _check(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    for name, parts in {"outs": outs, "lses": lses}.items():
        if not isinstance(parts, (list, tuple)):
            raise TypeError(f"{name} must be a list or tuple, got {type(parts).__name__}")
    if not outs or len(outs) != len(lses):
        raise ValueError(
            f"outs and lses must be as many, and at least one, got {len(outs)} and {len(lses)}"
        )
    for i, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        require_tensor(f"outs[{i}]", out)
        require_tensor(f"lses[{i}]", lse)
        if out.dtype not in FLOAT_DTYPES or out.dtype != outs[0].dtype:
            raise TypeError(f"outs[{i}] must have the dtype of outs[0], a float, got {out.dtype}")
        if lse.dtype not in FLOAT_DTYPES or lse.dtype != lses[0].dtype:
            raise TypeError(f"lses[{i}] must have the dtype of lses[0], a float, got {lse.dtype}")
        if out.ndim not in (3, 4) or out.shape != outs[0].shape:
            raise ValueError(
                f"outs[{i}] must have the shape of outs[0], (batch, seqlen_q, num_heads, head_dim) "
                f"or (total_q, num_heads, head_dim), got {tuple(out.shape)}"
            )
        expected = (*out.shape[:-3], out.shape[-2], out.shape[-3])
        if lse.shape != expected:
            raise ValueError(f"lses[{i}] must have shape {expected}, got {tuple(lse.shape)}")
        if out.device != outs[0].device or lse.device != outs[0].device:
            raise ValueError(
                f"outs[{i}] and lses[{i}] must be on the device of outs[0], {outs[0].device}, got "
                f"{out.device} and {lse.device}"
            )
