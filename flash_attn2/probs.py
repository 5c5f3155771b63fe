"""The matrix of softmax entries, for a look at what attends to what.

No kernel ever forms it. These functions do, in plain PyTorch, in memory quadratic in the sequence
length. Arguments mean what they mean in `flash_attn2.functional`; there is no dropout.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from flash_attn2 import reference
from flash_attn2._impl import checks
from flash_attn2._impl.arguments import named_only, refuse_keywords, require_tensor
from flash_attn2._impl.block_mask import require_lengths
from flash_attn2._impl.options import make_options, make_seqlens
from flash_attn2._impl.problem import NO_PAGES, NO_SEQLENS, Problem
from flash_attn2._impl.tensors import in_memory, require_allocated
from flash_attn2.masks import BlockMask


@named_only
def attention_probs(
    q: Tensor,
    k: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    *,
    sink: Tensor | None = None,
    block_mask: BlockMask | None = None,
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    **unknown: NoReturn,
) -> Tensor:
    """The softmax that `flash_attn_func` multiplies v by.

    q is (batch, seqlen_q, num_heads, head_dim), k is (batch, seqlen_k, num_heads_kv, head_dim).
    Returns (batch, num_heads, seqlen_q, seqlen_k) in q's dtype, computed in float32 or better;
    it has gradients. Rows sum up to 1, to less with a sink, and to 0 where a query sees no key.
    Raises TypeError and ValueError as `flash_attn_func` does.
    """
    if unknown:
        refuse_keywords(attention_probs, unknown)
    require_tensor("q", q)
    require_tensor("k", k)
    options = make_options(
        0.0,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        sink,
        block_mask=block_mask,
        bias=bias,
        relative_bias=relative_bias,
    )
    if block_mask is not None:
        require_lengths(block_mask, q, k)
    checks.explain_dense(Problem(q, k, _any_values(k), NO_SEQLENS, NO_SEQLENS, options, NO_PAGES))
    require_allocated(
        q=q, k=k, alibi_slopes=alibi_slopes, sink=sink, bias=bias, relative_bias=relative_bias
    )
    return reference.probabilities(q, k, options)


@named_only
def varlen_attention_probs(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    *,
    sink: Tensor | None = None,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    **unknown: NoReturn,
) -> Tensor:
    """The softmax that `flash_attn_varlen_func` multiplies v by.

    q is (total_q, num_heads, head_dim), k is (total_k, num_heads_kv, head_dim). Returns (batch,
    num_heads, max_seqlen_q, max_seqlen_k), 0 outside the sequences; otherwise as
    `attention_probs`.
    """
    if unknown:
        refuse_keywords(varlen_attention_probs, unknown)
    require_tensor("q", q)
    require_tensor("k", k)
    options = make_options(0.0, softmax_scale, causal, window_size, softcap, alibi_slopes, sink)
    seqs_q, seqs_k = make_seqlens(
        cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, q, k
    )
    checks.explain_varlen(Problem(q, k, _any_values(k), seqs_q, seqs_k, options, NO_PAGES))
    require_allocated(q=q, k=k, alibi_slopes=alibi_slopes, sink=sink)
    if q.is_cpu and not torch.compiler.is_compiling():
        seqs_q = seqs_q._replace(
            cu_seqlens=in_memory("cu_seqlens_q", cu_seqlens_q),
            seqused=None if seqused_q is None else in_memory("seqused_q", seqused_q),
        )
        seqs_k = seqs_k._replace(
            cu_seqlens=in_memory("cu_seqlens_k", cu_seqlens_k),
            seqused=None if seqused_k is None else in_memory("seqused_k", seqused_k),
        )
    checks.check_lengths(Problem(q, k, k, seqs_q, seqs_k, options, NO_PAGES))
    packing = reference.packing_of(seqs_q, seqs_k)
    return reference.varlen_probabilities(q, k, packing, options)


def _any_values(k: Tensor) -> Tensor:
    """Of keys that are alone: as narrow as any may be."""
    require_allocated(k=k)  # PyTorch would not survive a view of what is not
    return k if k.ndim == 0 else k[..., :1]
