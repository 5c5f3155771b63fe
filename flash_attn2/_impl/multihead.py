"""What a torch.nn.MultiheadAttention says to a layer that is to compute the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def check_multihead(module: Any) -> None:
    """TypeError for other modules, ValueError for what `nn.Attention` has no place for."""
    if not isinstance(module, nn.MultiheadAttention):
        raise TypeError(
            f"module must be a torch.nn.MultiheadAttention, got {type(module).__name__}"
        )
    for wrong, what in (
        (
            not module.batch_first,
            "batch_first=True (set the attribute if x comes as (batch, seqlen, embed_dim))",
        ),
        (
            module.in_proj_weight is None,
            f"kdim and vdim of embed_dim, {module.embed_dim}: for cross-attention of other widths "
            "call the functions",
        ),
        (module.bias_k is not None or module.bias_v is not None, "add_bias_kv=False"),
        (module.add_zero_attn, "add_zero_attn=False"),
    ):
        if wrong:
            raise ValueError(f"module must have {what}")


def fill(layer: Any, module: nn.MultiheadAttention) -> None:
    """Copies the parameters; both hold all queries, then keys, then values, by heads."""
    pairs = (
        (layer.qkv_proj.weight, module.in_proj_weight),
        (layer.qkv_proj.bias, module.in_proj_bias),
        (layer.out_proj.weight, module.out_proj.weight),
        (layer.out_proj.bias, module.out_proj.bias),
    )
    with torch.no_grad():
        for ours, theirs in pairs:
            if ours is not None:
                ours.copy_(theirs)
                ours.requires_grad_(theirs.requires_grad)
    layer.train(module.training)
