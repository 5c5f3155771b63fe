"""Attention written out in full: the definition that every kernel is tested against.

Dense PyTorch code in the dtype of its inputs, quadratic memory, every option. In float64 it is
the reference, in the tensors' own dtype the standard implementation whose error the tolerance
rule is about.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from flash_attn2._impl.options import make_options
from flash_attn2._impl.problem import BLOCK, Options, SeqLens
from flash_attn2._impl.problem import BlockMask as Lists
from flash_attn2._impl.quantised import LARGEST
from flash_attn2.masks import BlockMask
from flash_attn2.masks.words import num_blocks

_LOW_32 = 0xFFFFFFFF


class Packing(NamedTuple):
    """Where the sequences of varlen tensors lie, and upper bounds of their lengths."""

    cu_seqlens_q: Tensor  # int32 (batch + 1,)
    cu_seqlens_k: Tensor  # int32 (batch + 1,)
    seqused_k: Tensor | None  # int32 (batch,): keys that count
    max_seqlen_q: int
    max_seqlen_k: int
    seqused_q: Tensor | None = None  # int32 (batch,): queries that count


def packing_of(seqs_q: SeqLens, seqs_k: SeqLens) -> Packing:
    """Of a varlen call."""
    assert seqs_q.cu_seqlens is not None
    assert seqs_k.cu_seqlens is not None
    assert seqs_q.max_seqlen is not None
    assert seqs_k.max_seqlen is not None
    return Packing(
        seqs_q.cu_seqlens,
        seqs_k.cu_seqlens,
        seqs_k.seqused,
        seqs_q.max_seqlen,
        seqs_k.max_seqlen,
        seqs_q.seqused,
    )


def philox(counter: list[Tensor], key: Tensor) -> list[Tensor]:
    """Philox4x32-7 of core/philox.h: four 32-bit words, in int64 tensors that broadcast."""
    x, y, z, w = counter
    key_0, key_1 = key & _LOW_32, (key >> 32) & _LOW_32
    for _ in range(7):
        a, b = 0xD2511F53 * x, 0xCD9E8D57 * z
        x, z = ((b >> 32) & _LOW_32) ^ y ^ key_0, ((a >> 32) & _LOW_32) ^ w ^ key_1
        y, w = b & _LOW_32, a & _LOW_32
        key_0, key_1 = (key_0 + 0x9E3779B9) & _LOW_32, (key_1 + 0xBB67AE85) & _LOW_32
    return [x, y, z, w]


def dropout_keep(rng_state: Tensor, shape: Sequence[int], dropout_p: float) -> Tensor:
    """The mask of core/dropout.h: bool (batch, num_heads, seqlen_q, seqlen_k), True where kept."""
    seed, offset = rng_state
    batch, num_heads, seqlen_q, seqlen_k = shape

    def index(count: int) -> Tensor:
        return torch.arange(count, device=rng_state.device)

    batch_head = rearrange(index(batch * num_heads), "(b h) -> b h 1 1", h=num_heads)
    col_groups = index((seqlen_k + 31) // 32 * 4)
    stream = (offset ^ (offset >> 32)) & _LOW_32
    words = torch.stack(
        philox([index(seqlen_q)[:, None], col_groups, batch_head, stream], seed), -1
    )
    col = index(seqlen_k)
    word = words[..., (col >> 5) * 4 + ((col >> 1) & 3), (col >> 3) & 3]
    bits = (word >> (16 * (col & 1))) & 0xFFFF
    return bits < 65536 - max(1, int(dropout_p * 65536 + 0.5))


def scores(
    q: Tensor,
    k: Tensor,
    options: Options,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Modified scores (batch, num_heads, seqlen_q, seqlen_k), and which of them are visible.

    q and k are dense; lengths_q and lengths_k (batch,) say how many of their rows count.
    """
    seqlen_q, seqlen_k = q.shape[1], k.shape[1]
    row = torch.arange(seqlen_q, device=q.device)[:, None]
    col = torch.arange(seqlen_k, device=q.device)
    end_q = seqlen_q if lengths_q is None else rearrange(lengths_q, "b -> b 1 1 1")
    end_k = seqlen_k if lengths_k is None else rearrange(lengths_k, "b -> b 1 1 1")
    diagonal = row + end_k - end_q

    scale = q.shape[-1] ** -0.5 if options.softmax_scale is None else options.softmax_scale
    s = einsum(q, _per_query_head(k, q), "b i h d, b j h d -> b h i j") * scale
    softcap, slopes, bias, relative_bias = options.score_mod
    if softcap > 0:
        s = softcap * torch.tanh(s / softcap)
    if slopes is not None:
        s = s - slopes.to(s.dtype)[..., None, None] * (diagonal - col).abs()
    if bias is not None:
        s = s + bias.to(s.dtype)
    if relative_bias is not None:
        s = s + relative_bias.to(s.dtype)[:, col - row + seqlen_q - 1]

    visible = ((row < end_q) & (col < end_k)).expand(s.shape)
    left, right = options.window
    if left >= 0:
        visible = visible & (col >= diagonal - left)
    if right >= 0:
        visible = visible & (col <= diagonal + right)
    if options.block_mask.row_offsets is not None:
        pairs = listed_pairs(options.block_mask, seqlen_q, seqlen_k)
        visible = visible & repeat(pairs, "b h i j -> b (h g) i j", g=q.shape[2] // pairs.shape[1])
    return s.masked_fill(~visible, -torch.inf), visible


def listed_pairs(mask: Lists, seqlen_q: int, seqlen_k: int) -> Tensor:
    """The pairs of query and key that lists of blocks make visible: bool (batch or 1, heads,
    seqlen_q, seqlen_k).

    Lists follow one another, as in every `masks.BlockMask`.
    """
    offsets, cols, tiles, bits = mask.row_offsets, mask.cols, mask.tiles, mask.bits
    assert offsets is not None
    assert cols is not None
    assert tiles is not None
    assert bits is not None
    batch, heads, _ = offsets.shape
    # The tile of each block, by rows of blocks; -1, the last tile below, where it is not listed.
    ends = offsets[..., 1:].flatten().contiguous()
    entry = torch.arange(cols.shape[0], device=cols.device)
    row = torch.searchsorted(ends, entry, right=True)
    table = torch.full((ends.shape[0], num_blocks(seqlen_k)), -1, device=cols.device)
    table[row, cols.long()] = tiles.long()
    seen = (bits[..., None] >> torch.arange(BLOCK, device=bits.device)) & 1 == 1
    seen = torch.cat([seen, torch.zeros_like(seen[:1])])
    table = rearrange(table, "(b h i) j -> b h i j", b=batch, h=heads)
    pairs = rearrange(seen[table], "b h i j row col -> b h (i row) (j col)")
    return pairs[:, :, :seqlen_q, :seqlen_k]


def softmax(s: Tensor, visible: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and lse of modified scores; rows without keys, or with scores of -inf alone,
    have 0 and -inf."""
    seqlen_k = s.shape[-1]
    if sink is not None:
        logits = sink.to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
        s = torch.cat([s, logits], -1)
    nothing = (s == -torch.inf).all(-1, keepdim=True)
    # Finite scores, since the derivative of the softmax of -inf alone is NaN.
    s = s.masked_fill(nothing, 0)
    probs = torch.softmax(s, -1)[..., :seqlen_k].masked_fill(~visible | nothing, 0)
    return probs, torch.logsumexp(s, -1).masked_fill(nothing.squeeze(-1), -torch.inf)


def negate_dropped(probs: Tensor, rng_state: Tensor | None, dropout_p: float) -> Tensor:
    """Probabilities (batch, num_heads, seqlen_q, seqlen_k), negative where dropout drops them."""
    assert rng_state is not None
    return torch.where(dropout_keep(rng_state, probs.shape, dropout_p), probs, -probs)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
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
    rng_state: Tensor | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`flash_attn_func`: out, lse and probs (as return_attn_probs gives it), all in q's dtype.

    rng_state (2,) is (seed, offset) of the dropout mask; lengths_q and lengths_k (batch,) say how
    many rows of each sequence count.
    """
    options = make_options(
        dropout_p,
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
    s, visible = scores(q, k, options, lengths_q, lengths_k)
    probs, lse = softmax(s, visible, sink)
    if lengths_q is not None:  # what does not count has no lse, with a sink either
        beyond = torch.arange(q.shape[1], device=q.device) >= lengths_q[:, None]
        lse = lse.masked_fill(rearrange(beyond, "b i -> b 1 i"), -torch.inf)
    weights = probs
    if dropout_p > 0:
        probs = negate_dropped(probs, rng_state, dropout_p)
        weights = probs.clamp(min=0) / (1 - dropout_p)
    out = einsum(weights, _per_query_head(v, q), "b h i j, b j h d -> b i h d")
    return out, lse, probs


def varlen_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`flash_attn_varlen_func`; options as for `attention_reference`, lengths excepted."""
    dense_q, lengths_q = _to_dense(q, *_queries(packing))
    dense_k, lengths_k = _to_dense(k, *_keys(packing))
    dense_v, _ = _to_dense(v, *_keys(packing))
    out, lse, probs = attention_reference(
        dense_q, dense_k, dense_v, lengths_q=lengths_q, lengths_k=lengths_k, **options
    )
    return *_to_packed(out, lse, packing.cu_seqlens_q, q.shape[0]), probs


def rotated(
    x: Tensor, rotary_cos: Tensor, rotary_sin: Tensor, positions: Tensor, interleaved: bool
) -> Tensor:
    """Rows (batch, seqlen, num_heads, head_dim) turned by their positions (batch, seqlen).

    Bit for bit as the kernels do it: each product and each sum is rounded to float32 (of float64:
    to float64), the result to x's dtype. Entries of a head past rotary_dim stay as they are.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table[positions].to(dtype)[:, :, None] for table in (rotary_cos, rotary_sin))
    rotary_dim = 2 * rotary_cos.shape[1]
    turning, rest = x[..., :rotary_dim].to(dtype), x[..., rotary_dim:]
    entries = "(pair two)" if interleaved else "(two pair)"
    x_0, x_1 = rearrange(turning, f"... {entries} -> two ... pair", two=2)
    turned = torch.stack([x_0 * cos - x_1 * sin, x_0 * sin + x_1 * cos])
    turned = rearrange(turned, f"two ... pair -> ... {entries}")
    return torch.cat([turned.to(x.dtype), rest], -1)


def gathered(cache: Tensor, table: Tensor, first: Tensor, lengths: Tensor, seqlen: int) -> Tensor:
    """Rows of a cache as (batch, seqlen, ...): `lengths` of each sequence from `first` on, then
    zeros, whatever the cache and the table hold there."""
    num_pages, page_size = cache.shape[:2]
    row = torch.arange(seqlen, device=cache.device)
    position = first[:, None] + row
    column = (position // page_size).clamp(max=table.shape[1] - 1)
    page = table.long().gather(1, column).clamp(0, num_pages - 1)
    beyond = rearrange(row >= lengths[:, None], "b j -> b j 1 1")
    return cache[page, position % page_size].masked_fill(beyond, 0)


def quantised(x: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The codes of x / scales in float8_e4m3fn, float8_e5m2 or int8, bit for bit as appends write
    them: the quotient in float32, rounded to nearest even, saturating. NaN becomes 0 in int8.
    """
    quotient = x.float() / scales
    if dtype is torch.int8:
        return quotient.nan_to_num(0.0, torch.inf, -torch.inf).clamp(-128, 127).round().to(dtype)
    return quotient.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def row_scales(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The scales (...) that appends compute for rows x (..., head_dim): the largest finite entry
    gets the largest code. Rows without any, or of zeros, have 1.
    """
    magnitude = x.float().abs().nan_to_num(0.0, 0.0).amax(-1)
    smallest = torch.finfo(torch.float32).tiny
    scales = (magnitude / torch.tensor(LARGEST[dtype])).clamp(min=smallest)
    return scales.masked_fill(magnitude == 0, 1.0)


def dequantised(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """What codes (..., head_dim) with scales (...) stand for."""
    wide = torch.promote_types(dtype, torch.float32)
    return (codes.to(wide) * scales.to(wide)[..., None]).to(dtype)


def _appended(
    cache: Tensor,
    scales: Tensor | None,
    computed: bool,
    place: tuple[Tensor, Tensor],
    sequence: Tensor,
    x: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """A cache, and its scales by sequences or rows of the cache, with rows x at `place`."""
    if scales is None:
        return cache.index_put(place, x), None
    if scales.ndim == 2:
        factors = scales[sequence]
    elif computed:
        factors = row_scales(x, cache.dtype)
        scales = scales.index_put(place, factors)
    else:
        factors = scales[place[0], 0]
    codes = quantised(x, factors[..., None], cache.dtype).view(torch.uint8)
    return cache.view(torch.uint8).index_put(place, codes).view(cache.dtype), scales


def kvcache_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    *,
    rotary_interleaved: bool = True,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[Tensor, ...]:
    """`flash_attn_with_kvcache`: out, lse, and copies of the caches as the call leaves them. k
    without v is for values that are the leading columns of keys.

    With k_descale and v_descale the caches hold codes of 8 bits, and scales follow the caches.

    Rotation and append are in the dtype of the tensors, attention in `dtype` (None: the same);
    options as for `attention_reference`, lengths excepted.
    """
    total_q = q.shape[0]
    q, lengths_q = _dense_rows(q, cu_seqlens_q)
    table = torch.arange(q.shape[0], device=q.device)[:, None]  # a page is a row of the batch
    if cache_batch_idx is not None:
        table = cache_batch_idx[:, None]
    if block_table is not None:
        table = block_table
    held: Any = table.shape[1] * k_cache.shape[1] if cache_seqlens is None else cache_seqlens
    ends = torch.zeros_like(lengths_q) + held
    given = k_descale, v_descale
    computed = [x is not None and x.ndim == 3 and x.shape[1] == k_cache.shape[1] for x in given]
    k_descale, v_descale = (  # of pages: (num_pages, 1, num_heads_kv)
        x[:, None] if x is not None and x.ndim == 2 and x.shape[0] != q.shape[0] else x
        for x in given
    )

    if k is not None:
        cu_seqlens_new = cu_seqlens_q if cu_seqlens_k_new is None else cu_seqlens_k_new
        k, lengths_new = _dense_rows(k, cu_seqlens_new)
        if rotary_cos is not None and rotary_sin is not None:
            row_q, row_k = (torch.arange(x.shape[1], device=q.device) for x in (q, k))
            if not options.get("causal") and max(options.get("window_size", (-1, -1))) < 0:
                row_q = torch.zeros_like(row_q)
            turn = functools.partial(rotated, rotary_cos=rotary_cos, rotary_sin=rotary_sin)
            last = rotary_cos.shape[0] - 1  # for rows past the end of a sequence
            at_q, at_k = ((ends[:, None] + row).clamp(max=last) for row in (row_q, row_k))
            q = turn(q, positions=at_q, interleaved=rotary_interleaved)
            k = turn(k, positions=at_k, interleaved=rotary_interleaved)
        exists = torch.arange(k.shape[1], device=q.device) < lengths_new[:, None]
        sequence, row = exists.nonzero(as_tuple=True)
        position, page_size = ends[sequence] + row, k_cache.shape[1]
        place = table[sequence, position // page_size].long(), position % page_size
        k_cache, k_descale = _appended(k_cache, k_descale, computed[0], place, sequence, k[exists])
        if v is None:  # keys hold the values
            v_cache, v_descale = k_cache[..., : v_cache.shape[-1]], k_descale
        else:
            v, _ = _dense_rows(v, cu_seqlens_new)
            v_cache, v_descale = _appended(
                v_cache, v_descale, computed[1], place, sequence, v[exists]
            )
        ends = ends + lengths_new

    first = torch.zeros_like(ends) if cache_leftpad is None else cache_leftpad.long()
    lengths_k = ends - first
    dtype = dtype or q.dtype
    dense = functools.partial(
        _keys_of_cache, table=table, first=first, lengths=lengths_k, seqlen=int(lengths_k.max())
    )
    dense_k = dense(k_cache, k_descale, dtype)
    dense_v = dense(v_cache, v_descale, dtype)
    q = q.to(dtype)
    out, lse, _ = attention_reference(
        q, dense_k, dense_v, lengths_q=lengths_q, lengths_k=lengths_k, **options
    )
    if cu_seqlens_q is not None:
        out, lse = _to_packed(out, lse, cu_seqlens_q, total_q)
    if k_descale is None or v_descale is None:
        return out, lse, k_cache, v_cache
    left = (x.reshape(of.shape) for x, of in zip((k_descale, v_descale), given, strict=True))  # type: ignore[union-attr]
    return out, lse, k_cache, v_cache, *left


def _keys_of_cache(cache: Tensor, scales: Tensor | None, dtype: torch.dtype, **rows: Any) -> Tensor:
    """`gathered` in `dtype`, of codes multiplied by their scales."""
    if scales is None:
        return gathered(cache, **rows).to(dtype)
    if scales.ndim == 3:
        return gathered(dequantised(cache, scales.expand(cache.shape[:-1]), dtype), **rows)
    codes = gathered(cache.to(torch.float32), **rows)
    return dequantised(codes, scales[:, None].expand(codes.shape[:-1]), dtype)


def probabilities(
    q: Tensor,
    k: Tensor,
    options: Options,
    rng_state: Tensor | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
) -> Tensor:
    """The probs of `attention_reference`, computed in float32 or better, in q's dtype."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    s, visible = scores(q.to(dtype), k.to(dtype), options, lengths_q, lengths_k)
    probs, _ = softmax(s, visible, options.sink)
    if (drop_prob := options.dropout.drop_prob) > 0:
        probs = negate_dropped(probs, rng_state, drop_prob)
    return probs.to(q.dtype)


def varlen_probabilities(
    q: Tensor, k: Tensor, packing: Packing, options: Options, rng_state: Tensor | None = None
) -> Tensor:
    """As `probabilities`, of packed tensors: (batch, num_heads, max_seqlen_q, max_seqlen_k)."""
    dense_q, lengths_q = _to_dense(q, *_queries(packing))
    dense_k, lengths_k = _to_dense(k, *_keys(packing))
    return probabilities(dense_q, dense_k, options, rng_state, lengths_q, lengths_k)


def _per_query_head(k: Tensor, q: Tensor) -> Tensor:
    return repeat(k, "b j h d -> b j (h g) d", g=q.shape[2] // k.shape[2])


def _rows(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Row of the packed tensor that holds (sequence, position)."""
    return cu_seqlens[:-1, None] + torch.arange(max_seqlen, device=cu_seqlens.device)


def _queries(packing: Packing) -> tuple[Tensor, int, Tensor | None]:
    return packing.cu_seqlens_q, packing.max_seqlen_q, packing.seqused_q


def _keys(packing: Packing) -> tuple[Tensor, int, Tensor | None]:
    return packing.cu_seqlens_k, packing.max_seqlen_k, packing.seqused_k


def _dense_rows(x: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Dense rows, and how many of each sequence count, of a tensor that is dense or packed."""
    if cu_seqlens is None:
        return x, torch.full((x.shape[0],), x.shape[1], device=x.device)
    return _to_dense(x, cu_seqlens, int(cu_seqlens.diff().max()))


def _to_packed(out: Tensor, lse: Tensor, cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """(batch, seqlen, ...) -> (total, ...), and lse (num_heads, total): 0 and -inf in rows that
    belong to no sequence."""
    rows = _rows(cu_seqlens, out.shape[1])
    exists = rows < cu_seqlens[1:, None]
    packed_out = out.new_zeros(total, *out.shape[2:])
    packed_out[rows[exists]] = out[exists]
    packed_lse = lse.new_full((lse.shape[1], total), -torch.inf)
    packed_lse[:, rows[exists]] = rearrange(lse, "b h i -> h b i")[:, exists]
    return packed_out, packed_lse


def _to_dense(
    x: Tensor, cu_seqlens: Tensor, max_seqlen: int, used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(total, ...) -> (batch, max_seqlen, ...) with zeros past each sequence, and the lengths."""
    lengths = cu_seqlens.diff() if used is None else used
    rows, ends = _rows(cu_seqlens, max_seqlen), (cu_seqlens[:-1] + lengths)[:, None]
    zero_row = x.new_zeros(1, *x.shape[1:])
    return torch.cat([x, zero_row])[torch.where(rows < ends, rows, x.shape[0])], lengths
