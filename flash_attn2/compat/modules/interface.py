"""`flash_attn.flash_attn_interface`: the functions, and the passes that they consist of.

The passes are ops, `torch.ops.flash_attn._flash_attn_forward` and so on, with the schemas that
flash-attn 2.8.3 registers, for every device. Those who call them (ring-flash-attn, diffusers) see
to gradients themselves.
"""

# No `from __future__ import annotations`: torch infers schemas from types.

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import reference
from flash_attn2._impl.options import make_options
from flash_attn2._impl.problem import Options, SeqLens, lse_shape, out_shape
from flash_attn2.compat.modules.functions import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__all__ = [
    "_flash_attn_backward",
    "_flash_attn_forward",
    "_flash_attn_varlen_backward",
    "_flash_attn_varlen_forward",
    "_wrapped_flash_attn_backward",
    "_wrapped_flash_attn_forward",
    "_wrapped_flash_attn_varlen_backward",
    "_wrapped_flash_attn_varlen_forward",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "maybe_contiguous",
]

_ops: Any = torch.ops.flash_attn2
_Results = tuple[Tensor, Tensor, Tensor, Tensor]  # out, softmax_lse, S_dmask, rng_state


def maybe_contiguous(x: Tensor | None) -> Tensor | None:
    """Unchanged if the last stride is 1."""
    return x.contiguous() if x is not None and x.stride(-1) != 1 else x


def _options(
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool = False,
) -> Options:
    window = max(window_size_left, -1), max(window_size_right, -1)
    return make_options(
        *(dropout_p, softmax_scale, causal, window, softcap, alibi_slopes, None, deterministic)
    )


def _values(options: Options) -> tuple[Any, ...]:
    """As the ops of flash_attn2 take them."""
    scale, (left, right), (softcap, slopes, *_), sink, dropout, deterministic, _ = options
    return scale, left, right, softcap, slopes, sink, dropout.drop_prob, deterministic


def _state(rng_state: Tensor) -> Tensor:
    """(seed, offset), also where there is no dropout."""
    return rng_state if rng_state.numel() else rng_state.new_zeros(2)


def _flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, softmax_lse (batch, num_heads, seqlen_q), S_dmask, rng_state (2,), without gradient.

    S_dmask is the matrix of `flash_attn_func(return_attn_probs=True)` if return_softmax, of the
    exact lengths; else empty.
    """
    options = _options(
        *(dropout_p, softmax_scale, causal, window_size_left, window_size_right),
        *(softcap, alibi_slopes),
    )
    out, lse, rng_state = _ops.forward(q, k, v, *_values(options))
    probs = q.new_empty(0)
    if return_softmax:
        probs = reference.probabilities(q, k, options, rng_state if dropout_p > 0 else None)
    return out, lse, probs, _state(rng_state)


def _flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """out, softmax_lse (num_heads, total_q), S_dmask, rng_state (2,), without gradient."""
    if leftpad_k is not None:
        raise NotImplementedError(
            "leftpad_k must be None, got a tensor: use flash_attn_with_kvcache with cache_leftpad"
        )
    options = _options(
        *(dropout_p, softmax_scale, causal, window_size_left, window_size_right),
        *(softcap, alibi_slopes),
    )
    probs, rng_state = q.new_empty(0), q.new_zeros(2, dtype=torch.int64)
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    if block_table is not None:
        window = options.window
        out, lse = flash_attn_varlen_func(  # type: ignore[misc]
            *(q, k, v, *lengths, dropout_p, softmax_scale, False, window, softcap, alibi_slopes),
            block_table=block_table,
            seqused_k=seqused_k,
            return_lse=True,
        )
        return out, lse, probs, rng_state
    lengths_of_op = cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k
    out, lse, rng_state = _ops.varlen_forward(q, k, v, *lengths_of_op, *_values(options))
    if zero_tensors and not q.is_cpu:  # there, rows of no sequence are unspecified
        beyond = torch.arange(q.shape[0], device=q.device) >= cu_seqlens_q[-1]
        out = out.masked_fill(beyond[:, None, None], 0)
        lse = lse.masked_fill(beyond, -torch.inf)
    if return_softmax:
        seqs_q = SeqLens(cu_seqlens_q, None, max_seqlen_q)
        packing = reference.packing_of(seqs_q, SeqLens(cu_seqlens_k, seqused_k, max_seqlen_k))
        state = rng_state if dropout_p > 0 else None
        probs = reference.varlen_probabilities(q, k, packing, options, state)
    return out, lse, probs, _state(rng_state)


def _flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Writes the gradients into those of dq, dk and dv that are given.

    Returns the sums of dout * out of each row, float32 (batch, num_heads, seqlen_q).
    """
    options = _options(
        *(dropout_p, softmax_scale, causal, window_size_left, window_size_right),
        *(softcap, alibi_slopes, deterministic),
    )
    results = dout, None, q, k, v, out, softmax_lse, rng_state if dropout_p > 0 else None
    _write((dq, dk, dv), _ops.backward(*results, *_values(options)))
    return _row_sums(dout, out)


def _flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """Likewise; returns (num_heads, total_q). Gradients of rows of no sequence are always 0."""
    options = _options(
        *(dropout_p, softmax_scale, causal, window_size_left, window_size_right),
        *(softcap, alibi_slopes, deterministic),
    )
    results = dout, None, q, k, v, out, softmax_lse, rng_state if dropout_p > 0 else None
    lengths = cu_seqlens_q, cu_seqlens_k, None, max_seqlen_q, max_seqlen_k
    _write((dq, dk, dv), _ops.varlen_backward(*results, *lengths, *_values(options)))
    return _row_sums(dout, out)


def _write(to: tuple[Tensor | None, ...], grads: tuple[Tensor, ...]) -> None:
    for tensor, grad in zip(to, grads, strict=False):
        if tensor is not None:
            tensor.copy_(grad)


def _row_sums(dout: Tensor, out: Tensor) -> Tensor:
    return (dout.float() * out.float()).sum(-1).transpose(-1, -2).contiguous()


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> _Results:
    lse = q.new_empty(lse_shape(q), dtype=torch.float32)
    out = q.new_empty(out_shape(q, v))
    return out, lse, q.new_empty(0), q.new_empty(2, dtype=torch.int64)


def _fake_dense_forward(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> _Results:
    out, lse, probs, rng_state = _fake_forward(q, k, v)
    if kwargs.get("return_softmax", args[-1] if args else False):
        probs = q.new_empty(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    return out, lse, probs, rng_state


def _fake_backward(dout: Tensor, q: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return q.new_empty(lse_shape(q), dtype=torch.float32)


def _register(
    function: Callable[..., Any], fake: Callable[..., Any], written: tuple[str, ...] = ()
) -> tuple[Any, Any]:
    """The op of that name, and the overloads that torch.ops has of it."""
    name = function.__name__
    op = torch.library.custom_op(f"flash_attn::{name}", function, mutates_args=written)
    op.register_fake(fake)
    return op, getattr(torch.ops.flash_attn, name)


_GRADS = ("dq", "dk", "dv")
_flash_attn_forward, _wrapped_flash_attn_forward = _register(
    _flash_attn_forward, _fake_dense_forward
)
_flash_attn_varlen_forward, _wrapped_flash_attn_varlen_forward = _register(
    _flash_attn_varlen_forward, _fake_forward
)
_flash_attn_backward, _wrapped_flash_attn_backward = _register(
    _flash_attn_backward, _fake_backward, _GRADS
)
_flash_attn_varlen_backward, _wrapped_flash_attn_varlen_backward = _register(
    _flash_attn_varlen_backward, _fake_backward, _GRADS
)
