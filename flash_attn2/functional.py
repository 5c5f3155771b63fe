"""The public attention functions, positional-compatible with flash-attn 2.8.

All of them compute, for each query head `h` and its key/value head `h // group`,

    softmax(softcap(softmax_scale * q @ k^T) + bias + mask) @ v

exactly, tile by tile (FlashAttention-2, Dao 2023), in memory linear in the sequence length.
They share these arguments:

    dropout_p      probability in [0, 1) of dropping a softmax entry; applied whenever above 0
    softmax_scale  factor on the scores; None: 1 / sqrt(head_dim)
    causal         a query sees keys up to its own position, aligned to the bottom-right corner:
                   query i sees key j iff j <= i + seqlen_k - seqlen_q
    window_size    (left, right): query i sees keys from i + seqlen_k - seqlen_q - left to
                   i + seqlen_k - seqlen_q + right inclusive; -1: no bound; `causal` sets right to 0
    softcap        cap > 0: scores become cap * tanh(score / cap) (Gemma 2); 0: none
    alibi_slopes   float32 (num_heads,) or (batch, num_heads): the bias is
                   -slope * |i + seqlen_k - seqlen_q - j| (Press et al. 2021)
    deterministic  asks for a bitwise reproducible backward; the forward always is
    return_attn_probs  return (out, lse, probs); see below
    sink           float32 (num_heads,): a logit per head that joins the softmax denominator only

A query that sees no key gives output 0 and lse -inf (the sink, where there is one).

With `return_attn_probs`, lse is the natural-log normaliser in float32, and probs is the softmax
in q's dtype, (batch, num_heads, seqlen_q, seqlen_k), negative where dropout dropped the entry and
not scaled by 1 / (1 - dropout_p). It takes quadratic memory: a means of inspection.

dtypes: float16 and bfloat16 everywhere, float32 and float64 on the CPU. Tensors may have any
strides; a last stride other than 1 costs a copy. Errors: TypeError and ValueError name the
argument; NotImplementedError where a gradient would be needed, as backward comes with release 0.2.
"""

from __future__ import annotations

from torch import Tensor

from flash_attn2 import _checks, ops, reference
from flash_attn2._checks import make_options
from flash_attn2._launch import Options, Packing

Attention = Tensor | tuple[Tensor, Tensor, Tensor]


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sink: Tensor | None = None,
) -> Attention:
    """Attention of dense tensors.

    q is (batch, seqlen_q, num_heads, head_dim), k and v are (batch, seqlen_k, num_heads_kv,
    head_dim) with num_heads a multiple of num_heads_kv. Returns out, shaped as q, or
    (out, lse (batch, num_heads, seqlen_q), probs).
    """
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    return _dense(q, k, v, options, return_attn_probs)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sink: Tensor | None = None,
) -> Attention:
    """`flash_attn_func` with k and v in one tensor (batch, seqlen_k, 2, num_heads_kv, head_dim)."""
    k, v = _unpack("kv", kv, ("batch", "seqlen_k", 2, "num_heads_kv", "head_dim"))
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    return _dense(q, k, v, options, return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sink: Tensor | None = None,
) -> Attention:
    """`flash_attn_func` with q, k and v in one tensor (batch, seqlen, 3, num_heads, head_dim)."""
    q, k, v = _unpack("qkv", qkv, ("batch", "seqlen", 3, "num_heads", "head_dim"))
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    return _dense(q, k, v, options, return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    sink: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Attention:
    """Attention of sequences of different lengths, packed one after another.

    q is (total_q, num_heads, head_dim), k and v are (total_k, num_heads_kv, head_dim). Sequence b
    holds rows cu_seqlens[b] to cu_seqlens[b + 1]; both are int32 (batch + 1,) and start at 0, and
    max_seqlen_q and max_seqlen_k are upper bounds of the lengths. Of the keys of sequence b only
    the first seqused_k[b] count (int32 (batch,)). Sequences may be empty. Returns out, shaped as
    q, or (out, lse (num_heads, total_q), probs); probs is (batch, num_heads, max_seqlen_q,
    max_seqlen_k), 0 outside the sequences.

    On the CPU the contents of cu_seqlens and seqused_k are checked, and rows past cu_seqlens_q[-1]
    are 0. On a GPU they are clamped to the tensors, and those rows are unspecified.
    """
    if block_table is not None:
        raise NotImplementedError("block_table: paged keys and values come with release 0.3")
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    packing = Packing(cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k)
    return _varlen(q, k, v, packing, options, return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sink: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Attention:
    """`flash_attn_varlen_func` with k and v in one tensor (total_k, 2, num_heads_kv, head_dim)."""
    k, v = _unpack("kv", kv, ("total_k", 2, "num_heads_kv", "head_dim"))
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    packing = Packing(cu_seqlens_q, cu_seqlens_k, seqused_k, max_seqlen_q, max_seqlen_k)
    return _varlen(q, k, v, packing, options, return_attn_probs)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    sink: Tensor | None = None,
    seqused_k: Tensor | None = None,
) -> Attention:
    """`flash_attn_varlen_func` with q, k and v in one tensor (total, 3, num_heads, head_dim)."""
    q, k, v = _unpack("qkv", qkv, ("total", 3, "num_heads", "head_dim"))
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    packing = Packing(cu_seqlens, cu_seqlens, seqused_k, max_seqlen, max_seqlen)
    return _varlen(q, k, v, packing, options, return_attn_probs)


def _dense(q: Tensor, k: Tensor, v: Tensor, options: Options, return_attn_probs: bool) -> Attention:
    _checks.check_types(q, k, v, options)
    out, lse, rng_state = ops.forward(q, k, v, options)
    if not return_attn_probs:
        return out
    return out, lse, reference.probabilities(q, k, options, rng_state)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: Options, return_attn_probs: bool
) -> Attention:
    _checks.check_types(q, k, v, options)
    _checks.check_packing_types(packing)
    out, lse, rng_state = ops.varlen_forward(q, k, v, packing, options)
    if not return_attn_probs:
        return out
    return out, lse, reference.varlen_probabilities(q, k, packing, options, rng_state)


def _unpack(name: str, packed: Tensor, dims: tuple[str | int, ...]) -> tuple[Tensor, ...]:
    """Views of the tensors that `packed` holds along the only dimension of `dims` that is fixed."""
    _checks.require_tensor(name, packed)
    at = next(i for i, dim in enumerate(dims) if isinstance(dim, int))
    if packed.ndim != len(dims) or packed.shape[at] != dims[at]:
        raise ValueError(
            f"{name} must be ({', '.join(map(str, dims))}), got shape {tuple(packed.shape)}"
        )
    return packed.unbind(at)
