"""The public attention functions, positional-compatible with flash-attn 2.8.

All of them compute, for each query head `h` and its key/value head `h // group`,

    softmax(softcap(softmax_scale * q @ k^T) + biases + mask) @ v

exactly, tile by tile (FlashAttention-2, Dao 2023), in memory linear in the sequence length. Values
may have heads of another width than queries and keys, head_dim_v, which is then that of out: up to
576 for q and k and 512 for v on the CPU. CUDA kernels are built for both up to 512, over KV caches
for as much as on the CPU, and say so with NotImplementedError. Values that are a view of the
leading columns of keys are read once, on the CPU and by CUDA kernels over wide KV caches. What
their options mean and what their defaults are stands in the docstring of each
(`help(flash_attn_func)`).

Both biases are of dense tensors and go with everything else, each other included.

A query that sees no key, or only scores of -inf, gives output 0 and lse -inf (the sink, where there
is one).

out and lse have gradients with respect to the tensors of queries, keys and values, as they were
given (packed ones get one packed gradient), to sink and to both biases, in their dtypes; those of
biases are the same bits in every run, and computed only where a bias requires grad. Attention is
recomputed for them: of a call nothing is kept but its tensors, out, lse and the 16 bytes that make
the dropout mask.
Logits may have any size up to the largest float32: out and lse are right. So are the gradients on
the CPU; on CUDA they are finite, and the share of a row may be too small by 2^-21 * |lse| of it,
which counts beside the rounding of the dtype from |lse| of about 500 (float16) or 4000 (bfloat16).
alibi_slopes get no gradient (a relative_bias does), and there is neither a second derivative nor
forward mode (jvp, jacfwd, dual tensors): NotImplementedError.

dtypes: float16 and bfloat16 everywhere, float32 and float64 on the CPU; inside torch.autocast,
float32 becomes its dtype. Tensors may have any strides; a last stride other than 1 costs a copy.
Errors: TypeError and ValueError name the argument.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from flash_attn2 import reference
from flash_attn2._impl.arguments import (
    named_only,
    refuse_keywords,
    require_bool,
    require_tensor,
    require_tensors,
)
from flash_attn2._impl.autograd import attend, attend_directly
from flash_attn2._impl.block_mask import require_lengths
from flash_attn2._impl.dtensors import is_dtensor
from flash_attn2._impl.forms import DENSE, VARLEN, Form
from flash_attn2._impl.given_out import placed, with_out
from flash_attn2._impl.jagged import attend as attend_jagged
from flash_attn2._impl.jagged import is_jagged
from flash_attn2._impl.option_docs import with_options
from flash_attn2._impl.options import (
    bound_of,
    make_options,
    make_seqlens,
    make_used,
    require_qkvpacked,
    rows_of,
)
from flash_attn2._impl.problem import NO_PAGES, NO_SEQLENS, Problem, unpacked
from flash_attn2.kvcache import attend_over_pages
from flash_attn2.masks import BlockMask

Attention = Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


@with_options
@named_only
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
    seqused_q: Tensor | None = None,
    return_lse: bool = False,
    block_mask: BlockMask | None = None,
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    **unknown: NoReturn,
) -> Attention:
    """Attention of dense tensors.

    q is (batch, seqlen_q, num_heads, head_dim), k is (batch, seqlen_k, num_heads_kv, head_dim) with
    num_heads a multiple of num_heads_kv, and v (batch, seqlen_k, num_heads_kv, head_dim_v);
    head_dim is at most 576 and head_dim_v 512. Returns out (batch, seqlen_q, num_heads,
    head_dim_v), or (out, lse (batch, num_heads, seqlen_q)), or (out, lse, probs).

    They may be nested tensors of layout torch.jagged with sequences of their own lengths, and out
    and lse are then nested as q is; without seqused_q, block_mask and biases.
    """
    if unknown:
        refuse_keywords(flash_attn_func, unknown)
    out = None
    if (
        alibi_slopes is None
        and sink is None
        and seqused_q is None
        and block_mask is None
        and bias is None
        and relative_bias is None
        and return_attn_probs is False
        and return_lse is False
        and type(deterministic) is bool
    ):
        direct_options = dropout_p, softmax_scale, causal, window_size, softcap
        done, out = attend_directly(q, k, v, direct_options, deterministic)
        if done:
            return out  # type: ignore[return-value]
    if type(q) is not Tensor and is_jagged(q):
        return attend_jagged(  # type: ignore[no-any-return]
            *(flash_attn_varlen_func, q, k, v),
            {
                "seqused_q": seqused_q,
                "block_mask": block_mask,
                "bias": bias,
                "relative_bias": relative_bias,
            },
            dropout_p=dropout_p,
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
            deterministic=deterministic,
            return_attn_probs=return_attn_probs,
            sink=sink,
            return_lse=return_lse,
        )
    require_tensors(("q", "k", "v"), q, k, v)
    options = make_options(
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        sink,
        deterministic,
        block_mask,
        bias,
        relative_bias,
    )
    if block_mask is not None:
        require_lengths(block_mask, q, k)
    seqs_q = NO_SEQLENS if seqused_q is None else make_used(seqused_q)
    p = Problem(q, k, v, seqs_q, NO_SEQLENS, options, NO_PAGES, out=out)
    if return_lse is False and return_attn_probs is False:
        return attend(DENSE, p)[0]
    return _with_more(DENSE, p, return_lse, return_attn_probs)


@with_options
@named_only
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
    seqused_q: Tensor | None = None,
    return_lse: bool = False,
    block_mask: BlockMask | None = None,
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    **unknown: NoReturn,
) -> Attention:
    """`flash_attn_func` with k and v in one tensor (batch, seqlen_k, 2, num_heads_kv, head_dim)."""
    if unknown:
        refuse_keywords(flash_attn_kvpacked_func, unknown)
    require_tensor("q", q)
    require_qkvpacked("kv", kv, ("batch", "seqlen_k", 2, "num_heads_kv", "head_dim"))
    options = make_options(
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        sink,
        deterministic,
        block_mask,
        bias,
        relative_bias,
    )
    if block_mask is not None:
        require_lengths(block_mask, q, kv)
    p = Problem(q, kv, None, make_used(seqused_q), NO_SEQLENS, options, NO_PAGES)
    if return_lse is False and return_attn_probs is False:
        return attend(DENSE, p)[0]
    return _with_more(DENSE, p, return_lse, return_attn_probs)


@with_options
@named_only
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
    seqused_q: Tensor | None = None,
    return_lse: bool = False,
    block_mask: BlockMask | None = None,
    bias: Tensor | None = None,
    relative_bias: Tensor | None = None,
    **unknown: NoReturn,
) -> Attention:
    """`flash_attn_func` with q, k and v in one tensor (batch, seqlen, 3, num_heads, head_dim)."""
    if unknown:
        refuse_keywords(flash_attn_qkvpacked_func, unknown)
    require_qkvpacked("qkv", qkv, ("batch", "seqlen", 3, "num_heads", "head_dim"))
    options = make_options(
        dropout_p,
        softmax_scale,
        causal,
        window_size,
        softcap,
        alibi_slopes,
        sink,
        deterministic,
        block_mask,
        bias,
        relative_bias,
    )
    if block_mask is not None:
        require_lengths(block_mask, qkv, qkv)
    p = Problem(qkv, None, None, make_used(seqused_q), NO_SEQLENS, options, NO_PAGES)
    if return_lse is False and return_attn_probs is False:
        return attend(DENSE, p)[0]
    return _with_more(DENSE, p, return_lse, return_attn_probs)


@with_options
@named_only
def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
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
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    **unknown: NoReturn,
) -> Attention:
    """Attention of sequences of different lengths, packed one after another.

    q is (total_q, num_heads, head_dim), k is (total_k, num_heads_kv, head_dim), v the same with
    head_dim_v; widths are those of `flash_attn_func`. Sequence b holds rows cu_seqlens[b] to
    cu_seqlens[b + 1]; both are int32 (batch + 1,) and start at 0, and max_seqlen_q and max_seqlen_k
    are upper bounds of the lengths. Of the keys of sequence b only the first seqused_k[b] count
    (int32 (batch,)), as do the first seqused_q[b] of its queries. Sequences may be empty. Returns
    out (total_q, num_heads, head_dim_v), or (out, lse (num_heads, total_q)), or (out, lse, probs);
    with dropout probs is (batch, num_heads, max_seqlen_q, max_seqlen_k), 0 outside the sequences.

    max_seqlen_q and max_seqlen_k may be None: the longest sequence on the CPU, and on a GPU, where
    asking would wait, the number of rows, which costs CTAs without work. They may also be tensors
    without dimensions: on a GPU reading them waits for the device, except while torch.compile
    traces or a CUDA graph is captured, when the numbers of rows serve as bounds.

    out is memory for the result, of its shape and dtype, for calls without a gradient
    (NotImplementedError otherwise); it is what is returned. Where it shares memory with an input,
    the result is computed elsewhere and copied.

    On the CPU the contents of cu_seqlens and seqused are checked, and rows past cu_seqlens_q[-1]
    are 0. On a GPU they are clamped to the tensors, and those rows are unspecified. Gradients of
    rows that belong to no sequence, and of keys that do not count, are 0 everywhere.

    With block_table, int32 (batch, pages), k and v are (num_pages, page_size, num_heads_kv,
    head_dim) and (..., head_dim_v), and cu_seqlens_k or seqused_k give only the numbers of keys.
    Pages are those of `flash_attn_with_kvcache`, which see; there is neither dropout nor a
    gradient, nor seqused_q.
    """
    if unknown:
        refuse_keywords(flash_attn_varlen_func, unknown)
    require_tensors(("q", "k", "v"), q, k, v)
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink, deterministic
    )
    if block_table is not None:
        require_tensor("block_table", block_table)
    seqs_q, seqs_k = make_seqlens(
        *(cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k),
        *(q, k, block_table),
    )
    p = Problem(q, k, v, seqs_q, seqs_k, options, NO_PAGES)
    if block_table is not None:
        return _over_pages(p, block_table, return_lse, return_attn_probs, out)
    if out is None and return_lse is False and return_attn_probs is False:
        return attend(VARLEN, p)[0]
    return _varlen_with_more(p, return_lse, return_attn_probs, out)


@with_options
@named_only
def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
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
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    **unknown: NoReturn,
) -> Attention:
    """`flash_attn_varlen_func` with k and v in one tensor (total_k, 2, num_heads_kv, head_dim)."""
    if unknown:
        refuse_keywords(flash_attn_varlen_kvpacked_func, unknown)
    require_tensor("q", q)
    require_qkvpacked("kv", kv, ("total_k", 2, "num_heads_kv", "head_dim"))
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink, deterministic
    )
    seqlens = make_seqlens(
        *(cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k),
        *(q, kv),
    )
    p = Problem(q, kv, None, *seqlens, options, NO_PAGES)
    if out is None and return_lse is False and return_attn_probs is False:
        return attend(VARLEN, p)[0]
    return _varlen_with_more(p, return_lse, return_attn_probs, out)


@with_options
@named_only
def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | None = None,
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
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    **unknown: NoReturn,
) -> Attention:
    """`flash_attn_varlen_func` with q, k and v in one tensor (total, 3, num_heads, head_dim)."""
    if unknown:
        refuse_keywords(flash_attn_varlen_qkvpacked_func, unknown)
    require_qkvpacked("qkv", qkv, ("total", 3, "num_heads", "head_dim"))
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink, deterministic
    )
    require_tensor("cu_seqlens", cu_seqlens)
    max_seqlen = bound_of("max_seqlen", max_seqlen, cu_seqlens, rows_of(qkv))
    seqlens = make_seqlens(
        *(cu_seqlens, cu_seqlens, seqused_q, seqused_k, max_seqlen, max_seqlen), *(qkv, qkv)
    )
    p = Problem(qkv, None, None, *seqlens, options, NO_PAGES)
    if out is None and return_lse is False and return_attn_probs is False:
        return attend(VARLEN, p)[0]
    return _varlen_with_more(p, return_lse, return_attn_probs, out)


def _varlen_with_more(
    p: Problem, return_lse: bool, return_attn_probs: bool, out: Tensor | None
) -> Attention:
    """`_with_more`, in memory of the caller's."""
    if out is None:
        return _with_more(VARLEN, p, return_lse, return_attn_probs)
    result = _with_more(VARLEN, with_out(VARLEN, p, out), return_lse, return_attn_probs)
    return placed(out, result)  # type: ignore[no-any-return]


def _with_more(form: Form, p: Problem, return_lse: bool, return_attn_probs: bool) -> Attention:
    """out and what else is asked for."""
    _require_flags(return_lse, return_attn_probs)
    if return_attn_probs and p.options.dropout.drop_prob > 0 and is_dtensor(p.q):
        raise NotImplementedError(
            "return_attn_probs must be False with dropout and DTensors, whose devices have no "
            "matrix of the whole: call it on local tensors, x.to_local()"
        )
    out, lse, rng_state = attend(form, p)
    if not return_attn_probs or p.options.dropout.drop_prob == 0:
        return _without_probs(out, lse, return_lse, return_attn_probs)
    q, k, _ = unpacked(p.q, p.k, p.v)
    with torch.no_grad(), torch.autocast("cuda" if q.is_cuda else "cpu", enabled=False):
        q, k = q.to(out.dtype), k.to(out.dtype)
        if form is DENSE:
            used = p.seqs_q.seqused
            return out, lse, reference.probabilities(q, k, p.options, rng_state, used)
        packing = reference.packing_of(p.seqs_q, p.seqs_k)
        return out, lse, reference.varlen_probabilities(q, k, packing, p.options, rng_state)


def _over_pages(
    p: Problem,
    block_table: Tensor,
    return_lse: bool,
    return_attn_probs: bool,
    given: Tensor | None,
) -> Attention:
    _require_flags(return_lse, return_attn_probs)
    if given is not None:
        p = with_out(VARLEN, p, given)
    out, lse = attend_over_pages(p, block_table)
    if given is not None:
        out = placed(given, out)
    return _without_probs(out, lse, return_lse, return_attn_probs)


def _without_probs(
    out: Tensor, lse: Tensor, return_lse: bool, return_attn_probs: bool
) -> Attention:
    """What is asked for, where probs are empty."""
    if return_attn_probs:
        return out, lse, out.detach().new_empty(0)
    return (out, lse) if return_lse else out


def _require_flags(return_lse: bool, return_attn_probs: bool) -> None:
    require_bool("return_lse", return_lse)
    require_bool("return_attn_probs", return_attn_probs)
