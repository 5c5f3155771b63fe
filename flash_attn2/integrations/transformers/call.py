"""A call of the attention function in the words of this package."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.observe import wants_gradient
from flash_attn2._impl.problem import out_shape
from flash_attn2._impl.widths import widest


class Call:
    """Tensors (batch, seqlen, heads, head_dim) and options of one call."""

    def __init__(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.name = name  # of the layer's class, for errors
        self.q = q
        self.k = k
        self.v = v
        self.causal = False
        self.window: int | None = None
        self.options: dict[str, Any] = {}  # of all functions
        self.training: dict[str, Any] = {}  # of those that have gradients
        self.bias: Tensor | None = None  # of dense tensors only

    def set_pattern(self, causal: bool, window: int | None) -> None:
        """window: how many keys a query sees to each side, itself among them; None: all."""
        self.causal, self.window = causal, window
        self.options["causal"] = causal
        self.options["window_size"] = (-1, -1) if window is None else (window - 1, window - 1)

    def keep_keys(self, seqlen_k: int) -> None:
        """The first ones; a cache may have room for more."""
        if seqlen_k < self.k.shape[1]:
            self.k, self.v = self.k[:, :seqlen_k], self.v[:, :seqlen_k]
        if self.bias is not None and seqlen_k < self.bias.shape[-1]:
            self.bias = self.bias[..., :seqlen_k]

    def add_bias(self, bias: Tensor) -> None:
        """(batch or 1, heads or 1, seqlen_q or 1, seqlen_k), to the scores."""
        if bias.dtype not in (self.q.dtype, torch.float32):
            bias = bias.to(self.q.dtype)
        self.bias = bias if self.bias is None else self.bias + bias

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(batch, seqlen_q, heads, head_dim of values)."""
        return out_shape(self.q, self.v)

    @property
    def decodes(self) -> bool:
        """Whether this is one query of each sequence, and no gradient is asked for: its keys are
        then worked on in parts."""
        return (
            self.q.shape[1] == 1
            and not self.training
            and self.bias is None
            and not (self.q.is_cuda and (self.q.shape[-1] % 8 or self.v.shape[-1] % 8))
            and not wants_gradient(self.q, self.k, self.v)
        )


def make_call(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    s_aux: Tensor | None,
    deterministic: bool | None,
) -> Call:
    """Of tensors (batch, heads, seqlen, head_dim), in one dtype, batch and width of heads.

    ValueError for heads that are too wide.
    """
    name = type(module).__name__
    head_dim = query.shape[-1]
    widths = (("head_dim", head_dim), ("head_dim of values", value.shape[-1]))
    limits = widest(query)
    for (what, columns), most in zip(widths, limits, strict=True):
        if columns > most:
            raise ValueError(
                f"{what} of {name} must be at most {most} on {query.device.type} with "
                f'attn_implementation="flash_attn2", got {columns}: use "sdpa" or "eager"'
            )
    if not query.dtype == key.dtype == value.dtype and not torch.is_autocast_enabled(
        query.device.type
    ):
        # Norms and rotary embeddings in float32 leave queries and keys so; values are as the model.
        query, key = query.to(value.dtype), key.to(value.dtype)
    tensors = (x.transpose(1, 2) for x in (query, key, value))
    call = Call(name, *_one_batch(*tensors))
    call.options = {
        "softmax_scale": head_dim**-0.5 if scaling is None else scaling,
        "softcap": softcap or 0.0,
        "sink": None if s_aux is None else s_aux.float().flatten(),
    }
    if dropout:
        call.training["dropout_p"] = dropout
    if deterministic:
        call.training["deterministic"] = True
    return call


def _one_batch(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Learned queries may come as a batch of one."""
    if q.shape[0] == 1 and k.shape[0] != 1:
        q = q.expand(k.shape[0], -1, -1, -1)
    return q, k, v
