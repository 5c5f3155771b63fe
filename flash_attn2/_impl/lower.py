"""A `problem` -> the nested dictionary that native modules read (csrc/bindings/params.cpp).

Names are those of csrc/core/params.h, tensors become addresses and strides; what has its default
may be left out. Addresses are taken here and nowhere else, of tensors that the caller holds until
the kernel has run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.biases import lower_bias, lower_relative_bias
from flash_attn2._impl.problem import (
    MAX_SEQLEN,
    NO_SCORE_MOD,
    UNLIMITED,
    Append,
    BlockMask,
    PagedKV,
    Problem,
    ScoreMod,
    SeqLens,
)
from flash_attn2._impl.quantised import lower_quantised
from flash_attn2._impl.tensors import SURELY_MEMORY, require_memory

Fields = dict[str, Any]

# What C++ calls a TensorRef; other tensors are pointers.
_ROWS = frozenset(
    ("q", "k", "v", "out", "new_k", "new_v", "grad_out", "grad_q", "grad_k", "grad_v")
)


def lower(
    p: Problem,
    dtype_name: str,
    out: Tensor,
    lse: Tensor,
    rng_state: Tensor | None,
    head_dim: int,
    over_cache: bool = False,
) -> Fields:
    """FwdParams of readable tensors; head_dim is that before any padding.

    Of a part of sequences, an lse in float64 is that of partial results.
    """
    q, k, v, seqs_q, seqs_k, options, pages, num_splits, _, quantised, *_ = p
    batch_start, head_start, num_heads_total = p[-3:]
    scale, (left, right), score_mod, sink, (drop_prob, _), _, mask = options
    assert k is not None
    assert v is not None
    shape, cu_seqlens_q = q.shape, seqs_q.cu_seqlens
    fields: Fields = {
        "dtype": dtype_name,
        "num_heads": shape[-2],
        "num_heads_kv": k.shape[-2],
        "head_dim": shape[-1],
        "softmax_scale": head_dim**-0.5 if scale is None else scale,
        "lse": lse.data_ptr(),
    }
    if v.shape[-1] != shape[-1]:
        fields["head_dim_v"] = v.shape[-1]
    for name, rows in (("q", q), ("k", k), ("v", v), ("out", out)):
        pointer, strides = rows.data_ptr(), rows.stride()
        if pointer < SURELY_MEMORY:
            require_memory(name, rows)
        batch_stride = strides[0] if len(strides) == 4 else 0
        fields[name] = pointer, batch_stride, strides[-3], strides[-2]
    groups: list[Fields] = []  # inner dictionaries that hold tensors
    if cu_seqlens_q is None:
        fields["batch"] = shape[0]
        of_q: Fields = {"seqused": seqs_q.seqused, "max_seqlen": shape[1]}
    else:
        fields["batch"] = cu_seqlens_q.shape[0] - 1
        of_q = {
            "cu_seqlens": cu_seqlens_q,
            "seqused": seqs_q.seqused,
            "max_seqlen": seqs_q.max_seqlen,
            "total": shape[0],
        }
    groups.append(of_q)
    if over_cache:
        if cu_seqlens_q is not None and seqs_q.max_seqlen is None:
            of_q["max_seqlen"] = longest(cu_seqlens_q, shape[0])
        of_k = _of_cache(k, seqs_k, pages)
        groups.append(of_k)
        fields |= {"over_cache": not pages.of_varlen, "num_splits": num_splits}
        table = pages.batch_idx if pages.block_table is None else pages.block_table
        if table is not None and of_k["max_seqlen"] != 0:
            fields["pages"] = of_pages = {
                "block_table": table,  # or batch_idx: a table of one page for each sequence
                "table_stride": table.stride(0),
                "page_size": k.shape[1],
                "num_pages": k.shape[0],
            }
            groups.append(of_pages)
        if quantised is not None and quantised.k_descale is not None:
            fields["quantised"] = lower_quantised(quantised, p)
    elif seqs_k.cu_seqlens is None:
        of_k = {"max_seqlen": k.shape[1]}
    else:
        of_k = {
            "cu_seqlens": seqs_k.cu_seqlens,
            "seqused": seqs_k.seqused,
            "max_seqlen": seqs_k.max_seqlen,
            "total": k.shape[0],
        }
        groups.append(of_k)
    fields["seqs_q"], fields["seqs_k"] = of_q, of_k
    if left != UNLIMITED or right != UNLIMITED:
        fields["window"] = {"left": left, "right": right}
    if mask.row_offsets is not None:
        fields["block_mask"] = _of_block_mask(mask)
    if score_mod is not NO_SCORE_MOD:
        fields["score_mod"] = of_scores = _of_score_mod(score_mod, p)
        groups.append(of_scores)
    if sink is not None:
        groups.append(of_sink := {"sink": sink})
    if rng_state is not None:
        fields["dropout"] = of_dropout = {"drop_prob": drop_prob, "rng_state": rng_state}
        groups.append(of_dropout)
        if batch_start or head_start or num_heads_total is not None:
            fields |= {"batch_start": batch_start, "head_start": head_start}
            fields["num_heads_total"] = num_heads_total or shape[-2]
    if p.positions is not None:
        fields |= {"batch_start": batch_start, "head_start": head_start}
        fields["num_heads_total"] = num_heads_total or shape[-2]
        fields["positions"] = p.positions._asdict()
        if lse.dtype == torch.float64:
            fields["partial_lse"] = fields.pop("lse")
    if groups:
        with_addresses(*groups)
    if sink is not None:
        fields |= of_sink
    return fields


def _of_cache(k_cache: Tensor, seqs_k: SeqLens, pages: PagedKV) -> Fields:
    """SeqLens of a cache."""
    _, seqused, held, leftpad, cu_appended, appended = seqs_k
    if seqused is None and held is not None:
        rows = held + appended
    elif k_cache.shape[0] == 0:
        rows = 0
    else:
        table = pages.block_table
        rows = k_cache.shape[1] * (1 if table is None else table.shape[1])
    return {
        "seqused": seqused,
        "max_seqlen": rows,
        "leftpad": leftpad,
        "cu_appended": cu_appended,
        "appended": appended if cu_appended is None else 0,
    }


def rows_to_diagonal(p: Problem) -> int:
    """For `lower_relative_bias`: rows of q, or of a part so many that its entries are those of the
    whole at its first query and key."""
    if p.positions is None:
        return p.q.shape[1]
    q_start, k_start, seqlen_q, _ = p.positions
    return seqlen_q + k_start - q_start


def _of_score_mod(score_mod: ScoreMod, p: Problem) -> Fields:
    """ScoreMod; of dense queries where there are biases."""
    softcap, slopes, bias, relative_bias = score_mod
    fields: Fields = {"softcap": softcap, "alibi_slopes": slopes}
    if slopes is not None and slopes.ndim == 2:
        fields["alibi_batch_stride"] = slopes.stride(0)
    if bias is not None:
        fields["bias"] = lower_bias(bias)
    if relative_bias is not None:
        fields["relative_bias"] = lower_relative_bias(relative_bias, rows_to_diagonal(p))
    return fields


def _of_block_mask(mask: BlockMask) -> Fields:
    """BlockMask of contiguous tensors."""
    offsets, cols, _, bits = mask
    assert offsets is not None
    assert cols is not None
    assert bits is not None
    batch, heads, count = offsets.shape
    fields: Fields = dict(mask._asdict())
    with_addresses(fields)
    return fields | {
        "batch_stride": heads * count if batch > 1 else 0,
        "heads": heads,
        "num_entries": cols.shape[0],
        "num_tiles": bits.shape[0],
    }


def lower_append(append: Append, seqs_k: SeqLens, q: Tensor) -> Fields:
    """What AppendParams has beside the problem whose q are the rotated ones of these."""
    new_k, new_v, (cos, sin, interleaved), q_advances = append
    cu_seqlens = seqs_k.cu_appended
    of_new: Fields = {"max_seqlen": seqs_k.appended}
    if cu_seqlens is not None:
        rows = new_k.shape[0]
        of_new = {"cu_seqlens": cu_seqlens, "max_seqlen": longest(cu_seqlens, rows), "total": rows}
    fields: Fields = {"new_k": new_k, "new_v": new_v}
    tables: Fields = {"cos": cos, "sin": sin}
    if cos is not None:
        fields["q"] = q
    with_addresses(fields, tables, of_new)
    if new_v is None:
        fields["new_v"] = 0, 0, 0, 0
    fields["seqs_new"] = of_new
    if cos is not None:
        fields["q_advances"] = q_advances
        tables |= {"rows": cos.shape[0], "dim": 2 * cos.shape[1], "interleaved": interleaved}
        if cos.dtype is not q.dtype:
            tables["float32"] = True
        fields["rotary"] = tables
    return fields


def with_addresses(*groups: Fields) -> None:
    """Changes tensors to what the native module takes for them, and None to 0, in place.

    Callers have checked that there is memory, by name; this is for those who have not.
    """
    for group in groups:
        for name, value in group.items():
            if value is None:
                group[name] = 0
            elif isinstance(value, Tensor):
                pointer = value.data_ptr()
                if pointer < SURELY_MEMORY:
                    require_memory(name, value)
                if name in _ROWS:
                    strides = value.stride()
                    batch_stride = strides[0] if len(strides) == 4 else 0
                    group[name] = pointer, batch_stride, strides[-3], strides[-2]
                else:
                    group[name] = pointer


def longest(cu_seqlens: Tensor, total: int) -> int:
    """An upper bound of the lengths: exact in host memory, `total` where asking would wait."""
    if not cu_seqlens.is_cpu or cu_seqlens.shape[0] == 1:
        return min(total, MAX_SEQLEN)
    return min(max(0, int(cu_seqlens.diff().max())), total)
