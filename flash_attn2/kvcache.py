"""Attention over a KV cache, for inference."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from flash_attn2._impl import cache_checks, cache_values
from flash_attn2._impl.arguments import (
    as_bound,
    as_int,
    named_only,
    refuse_keywords,
    require_bool,
    require_tensor,
    require_tensors,
    traced,
)
from flash_attn2._impl.autograd import attend, tables_in_autocast, to_autocast_dtype
from flash_attn2._impl.forms import KVCACHE, KVCACHE_APPEND
from flash_attn2._impl.given_out import placed, with_out
from flash_attn2._impl.observe import ordinary
from flash_attn2._impl.options import make_options, rows_of
from flash_attn2._impl.problem import (
    MAX_SPLITS,
    NO_PAGES,
    NO_QUANTISED,
    Append,
    PagedKV,
    Problem,
    QuantisedKV,
    Rotary,
    SeqLens,
)
from flash_attn2._impl.quantised import for_append
from flash_attn2._impl.widths import keys_hold_values

_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)


@named_only
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    sink: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    return_lse: bool = False,
    out: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    **unknown: NoReturn,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of new queries over a cache of keys and values, which first takes in new ones.

    q is (batch, seqlen_q, num_heads, head_dim), k_cache is (batch_cache, seqlen_cache,
    num_heads_kv, head_dim) with batch_cache >= batch, v_cache the same with head_dim_v; widths are
    those of `flash_attn_func`. Returns out (batch, seqlen_q, num_heads, head_dim_v), or (out, lse
    (batch, num_heads, seqlen_q)) with return_lse, or return_softmax_lse as flash-attn
    calls it. softmax_scale, causal, window_size, softcap,
    alibi_slopes and sink mean what they mean in `flash_attn_func`; masks and ALiBi are aligned to
    the last key that counts, so that the queries are the last of their sequence.

    Lengths. cache_seqlens, an integer or int32 (batch,), says how many rows of the cache each
    sequence holds before the call; None: all of them. cache_leftpad, int32 (batch,), says how many
    rows in front do not count; cache_seqlens includes them. What the cache holds elsewhere is not
    read.

    Append. k and v, (batch, seqlen_new, num_heads_kv, head_dim or head_dim_v), are written into the
    cache behind the cache_seqlens rows, in place, and count in this call; cache_seqlens itself is
    not changed. Nothing is written by a call that is refused. Every argument is read as it was
    before: what shares memory with a cache is copied first. Caches that overlap each other, or
    themselves, are refused, but for a v_cache that is k_cache[..., :head_dim_v]: keys that hold the
    values (of MLA's latents, for one) are one cache, which is written once. v is then None, or
    k[..., :head_dim_v], and there are no rotary tables, which would turn the values. (Compiled,
    from PyTorch 2.6 on.)

    Caches of 8 bits. With q in float16, bfloat16 or float32, both caches may be
    torch.float8_e4m3fn, float8_e5m2 or int8: codes, each of which stands for its number times a
    scale of k_descale or v_descale. These are float32 with positive numbers, by heads and, in
    shapes of their own for each,
        sequences      (batch, num_heads_kv), expanded where one is for all
        pages          (num_pages, num_heads_kv) or (num_pages, 1, num_heads_kv), of a dense cache
                       (batch_cache, 1, num_heads_kv)
        tokens         (num_pages, page_size, num_heads_kv), (batch_cache, seqlen_cache,
                       num_heads_kv)
    An append divides rows of k and v, rotated, by their scales, and rounds to the nearest code.
    Numbers beyond the largest one become that, and infinities do; NaN becomes 0 in int8. Scales of
    sequences and pages are only read. Those of tokens are computed, so that the largest finite
    entry of a row of a head gets the largest code (448, 57344, 127), and written: what they held is
    not looked at. Of keys that hold the values there is one scale: v_descale is k_descale. NaN and
    infinities in a cache do what they do in one of bfloat16. Kernels for CUDA take q in float16 and
    bfloat16, and in float16 hold values as far as that reaches, 65504. In host memory a scale of a
    sequence or a page in use that is not a positive number is a ValueError; one of a token, and any
    on a GPU, makes the results that depend on it NaN.

    Rotary embedding. With rotary_cos and rotary_sin, (positions, rotary_dim / 2) in float32 or in
    q's dtype, the first rotary_dim entries of each head of k and q turn; k and v must be given.
    Positions are those in the cache, padding included: row i of k is at cache_seqlens + i. With
    `causal` or a window so is row i of q, otherwise all of q is at cache_seqlens. The arithmetic is
    in float32.

    NOTE: rotary_interleaved is True by default here, as in flash-attn: pairs are entries
    (2 i, 2 i + 1). `RotaryEmbedding` and `apply_rotary_emb` have interleaved=False by default, as
    there too: pairs (i, i + rotary_dim / 2), those of Llama and most others. Where they made the
    prompt's keys, or the model is such a one, pass rotary_interleaved=False: a mixture gives wrong
    results without an error. `nn.Attention` with a cache passes what its embedding says.

    Where sequences lie. cache_batch_idx, int32 (batch,), gives the row of the cache of each
    sequence; None: 0, 1, 2 ... With block_table, int32 (batch, pages), the caches are (num_pages,
    page_size, num_heads_kv, head_dim or head_dim_v) with any page_size from 1, and position j of
    sequence b is row j % page_size of page block_table[b, j // page_size]. Sequences may share
    pages. Entries of the table past the end of a sequence are not looked at.

    Packed queries. With cu_seqlens_q, int32 (batch + 1,), q is (total_q, num_heads, head_dim) and
    lse (num_heads, total_q), as in `flash_attn_varlen_func`: sequences with one query and with
    many go in one call. k and v are then (total_new, num_heads_kv, ...), with their own
    cu_seqlens_k_new where it differs from cu_seqlens_q. max_seqlen_q bounds the number of queries
    of a sequence; None: the exact bound on the CPU, total_q on a GPU, where asking would wait.

    cache_seqlens and max_seqlen_q may be an int, a NumPy integer, or an integer tensor without
    dimensions. On a GPU, cache_seqlens is then used where it lies, and reading max_seqlen_q waits
    for the device; during compilation and capture total_q is taken instead.

    out is memory for the result, of its shape and dtype; it is what is returned. Where it shares
    memory with an input, the result is computed elsewhere and copied. Tensors that require grad are
    refused with it in grad mode.

    num_splits is the number of parts that the keys of a sequence are cut into, to be worked on at
    once and merged: 1 to 128, or 0 to have it chosen. It does not change the result beyond
    rounding; for a given number, results do not depend on the rest of the batch.

    The caches are used where they lie and never copied: their last stride is 1, and on a GPU
    widths are multiples of 8 and rows start on 16 bytes. Lengths and tables on a GPU are not
    read by the host: a call can be captured in a CUDA graph. There, reads are confined to the
    tensors, new rows that have no place are dropped, and positions past the rotary tables take
    their last row. On the CPU all of that is a ValueError, as are two new rows in one place.

    There is no gradient. In grad mode a call with tensors that require grad runs, and only a
    backward pass through its results raises NotImplementedError; but an append raises it at once
    if k, v, the rotary tables or a cache require grad, since what is written could not pass the
    gradient on. A tangent of forward-mode differentiation raises it too, in every mode. torch.vmap
    maps calls without an append. Inside torch.autocast, q, k and v get its dtype, which
    must be that of the cache, and so do rotary tables that are not float32.
    """
    if unknown:
        refuse_keywords(flash_attn_with_kvcache, unknown)
    require_tensors(
        _TENSORS,
        *(q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_batch_idx, cache_leftpad),
        *(block_table, cu_seqlens_q, cu_seqlens_k_new, k_descale, v_descale),
    )
    flags: tuple[Any, ...] = rotary_interleaved, return_softmax_lse, return_lse
    if not type(flags[0]) is type(flags[1]) is type(flags[2]) is bool:
        require_bool("rotary_interleaved", rotary_interleaved)
        require_bool("return_softmax_lse", return_softmax_lse)
        require_bool("return_lse", return_lse)
    options = make_options(0.0, softmax_scale, causal, window_size, softcap, alibi_slopes, sink)
    if type(num_splits) is not int or not 0 <= num_splits <= MAX_SPLITS:
        num_splits = as_int("num_splits", num_splits)
        cache_checks.check_splits(num_splits)
    if max_seqlen_q is not None:
        max_seqlen_q = as_bound("max_seqlen_q", max_seqlen_q, rows_of(q))
        cache_checks.check_seqlen("max_seqlen_q", max_seqlen_q)
    if k is None and v is not None:
        cache_checks.check_together("k", k, "v", v)
    if (rotary_cos is None) != (rotary_sin is None):
        cache_checks.check_together("rotary_cos", rotary_cos, "rotary_sin", rotary_sin)
    device_type = "cuda" if q.is_cuda else "cpu"
    if torch.is_autocast_enabled(device_type):
        values_in_k = k is not None and v is not None and ordinary() and keys_hold_values(k, v)
        q, k, v = to_autocast_dtype(device_type, q, k, v)
        if values_in_k:
            v = k[..., : v.shape[-1]]
        rotary_cos, rotary_sin = tables_in_autocast(device_type, rotary_cos, rotary_sin)
    form, append, appended = KVCACHE, None, 0
    if k is not None:
        advances = options.window.left >= 0 or options.window.right >= 0
        rotary = Rotary(rotary_cos, rotary_sin, rotary_interleaved)
        form, append = KVCACHE_APPEND, Append(k, v, rotary, advances)
        if cu_seqlens_k_new is None:
            cu_seqlens_k_new = cu_seqlens_q
        if cu_seqlens_k_new is None:
            appended = k.shape[1] if k.ndim == 4 else 0
    elif rotary_cos is not None:
        raise ValueError("rotary_cos must come with k, whose rows say where q is, got k=None")
    elif cu_seqlens_k_new is not None:
        raise ValueError("cu_seqlens_k_new must come with k, got k=None")
    used: Any = cache_seqlens
    rows = None
    if cache_seqlens is not None and (
        type(cache_seqlens) is not Tensor
        or cache_seqlens.ndim != 1
        or cache_seqlens.layout is not torch.strided
        or cache_seqlens.is_nested
    ):
        used, rows = _cache_lengths(cache_seqlens, q, cu_seqlens_q)
    pages = NO_PAGES
    if block_table is not None or cache_batch_idx is not None:
        pages = PagedKV(block_table, cache_batch_idx)
    seqs_q = SeqLens(cu_seqlens_q, None, max_seqlen_q)
    seqs_k = SeqLens(None, used, rows, cache_leftpad, cu_seqlens_k_new, appended)
    scales = NO_QUANTISED
    if k_descale is not None or v_descale is not None:
        scales = QuantisedKV(k_descale, v_descale)
        if append is not None:
            scales = QuantisedKV(for_append(k_descale, k_cache), for_append(v_descale, v_cache))
    p = Problem(q, k_cache, v_cache, seqs_q, seqs_k, options, pages, num_splits, append, scales)
    if out is not None:
        p = with_out(form, p, out)
    result, lse, *_ = attend(form, p)
    if out is not None:
        result = placed(out, result)
    return (result, lse) if return_softmax_lse or return_lse else result


_TENSORS = (
    *("q", "k_cache", "v_cache", "?k", "?v", "?rotary_cos", "?rotary_sin", "?cache_batch_idx"),
    *("?cache_leftpad", "?block_table", "?cu_seqlens_q", "?cu_seqlens_k_new"),
    *("?k_descale", "?v_descale"),
)


def attend_over_pages(p: Problem, block_table: Tensor) -> tuple[Tensor, Tensor]:
    """`flash_attn_varlen_func` of keys in pages: out and lse."""
    if p.options.dropout.drop_prob != 0:
        raise NotImplementedError(
            f"dropout_p must be 0 with block_table, got {p.options.dropout.drop_prob}: paged keys "
            "are for inference"
        )
    if p.seqs_q.seqused is not None:
        raise NotImplementedError(
            "seqused_q must be None with block_table, got a tensor: leave out the rows that do not "
            "count"
        )
    device_type = "cuda" if p.q.is_cuda else "cpu"
    if torch.is_autocast_enabled(device_type):
        (q,) = to_autocast_dtype(device_type, p.q)
        p = Problem(q, p.k, p.v, p.seqs_q, p.seqs_k, p.options, NO_PAGES, out=p.out)
    cu_seqlens_k, used, longest, *_ = p.seqs_k
    assert p.k is not None
    assert cu_seqlens_k is not None
    assert longest is not None
    cache_checks.check_paged(p, block_table)
    cache_values.check_paged_lengths(p, block_table)
    if used is None:
        used = cu_seqlens_k.diff()
    pages = PagedKV(block_table[:, : -(-longest // p.k.shape[1])], None, True)
    seqs_k = SeqLens(None, used)
    p = Problem(
        p.q, p.k, p.v, p.seqs_q, seqs_k, p.options, pages, quantised=NO_QUANTISED, out=p.out
    )
    out, lse, *_ = attend(KVCACHE, p)
    return out, lse


def _cache_lengths(
    cache_seqlens: Any, q: Tensor, cu_seqlens_q: Tensor | None
) -> tuple[Tensor | None, int | None]:
    """One for each sequence, or one for all of them."""
    if isinstance(cache_seqlens, Tensor):
        require_tensor("cache_seqlens", cache_seqlens)
        if cache_seqlens.ndim != 0:
            return cache_seqlens, None
        if not _known(cache_seqlens) and cache_seqlens.dtype in _INTEGERS:
            # The same for all, without waiting for it; 64 bits may not fit into 32.
            shape = q.shape if cu_seqlens_q is None else cu_seqlens_q[1:].shape
            seqlens = cache_seqlens.clamp(-1, 2**31 - 1).to(torch.int32)
            return seqlens.expand(shape[:1]), None
    try:
        seqlen = as_int("cache_seqlens", cache_seqlens)
    except TypeError:
        raise TypeError(
            "cache_seqlens must be an int or an int32 torch.Tensor (batch,), "
            f"got {type(cache_seqlens).__name__}"
        ) from None
    cache_checks.check_seqlen("cache_seqlens", seqlen)
    return None, seqlen


def _known(x: Tensor) -> bool:
    """Whether the value can be had without waiting and without ending a trace."""
    return x.is_cpu and type(x) is Tensor and not (torch.compiler.is_compiling() or traced())
