"""Attention written out in full: the definition that every kernel is tested against.

Dense PyTorch code in the dtype of its inputs, quadratic memory, every option. In float64 it is
the reference, in the tensors' own dtype the standard implementation whose error the tolerance
rule is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from flash_attn2._checks import make_options
from flash_attn2._launch import Options, Packing

_LOW_32 = 0xFFFFFFFF


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
    dropped = (torch.tensor(dropout_p, dtype=torch.float32).double() * 65536 + 0.5).long()
    return bits < 65536 - dropped.clamp(min=1).to(bits.device)


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
    if options.softcap > 0:
        s = options.softcap * torch.tanh(s / options.softcap)
    if options.alibi_slopes is not None:
        slopes = options.alibi_slopes.to(s.dtype)[..., None, None]
        s = s - slopes * (diagonal - col).abs()

    visible = ((row < end_q) & (col < end_k)).expand(s.shape)
    if options.window_left >= 0:
        visible = visible & (col >= diagonal - options.window_left)
    if options.window_right >= 0:
        visible = visible & (col <= diagonal + options.window_right)
    return s.masked_fill(~visible, -torch.inf), visible


def softmax(s: Tensor, visible: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Probabilities and lse of modified scores; rows without keys have 0 and -inf."""
    seqlen_k = s.shape[-1]
    nothing = ~visible.any(-1, keepdim=True)
    if sink is not None:
        logits = sink.to(s.dtype)[:, None, None].expand(*s.shape[:3], 1)
        s = torch.cat([s, logits], -1)
        nothing = nothing & (logits == -torch.inf)
    # Finite scores, since the derivative of the softmax of -inf alone is NaN.
    s = s.masked_fill(nothing, 0)
    probs = torch.softmax(s, -1)[..., :seqlen_k].masked_fill(~visible, 0)
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
    rng_state: Tensor | None = None,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`flash_attn_func`: out, lse and probs (as return_attn_probs gives it), all in q's dtype.

    rng_state (2,) is (seed, offset) of the dropout mask; lengths_q and lengths_k (batch,) say how
    many rows of each sequence count.
    """
    options = make_options(
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, sink
    )
    s, visible = scores(q, k, options, lengths_q, lengths_k)
    probs, lse = softmax(s, visible, sink)
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
    dense_q, lengths_q = _to_dense(q, packing.cu_seqlens_q, packing.max_seqlen_q)
    dense_k, lengths_k = _to_dense(k, *_keys(packing))
    dense_v, _ = _to_dense(v, *_keys(packing))
    out, lse, probs = attention_reference(
        dense_q, dense_k, dense_v, lengths_q=lengths_q, lengths_k=lengths_k, **options
    )
    rows = _rows(packing.cu_seqlens_q, packing.max_seqlen_q)
    exists = rows < packing.cu_seqlens_q[1:, None]
    packed_out = torch.zeros_like(q)
    packed_out[rows[exists]] = out[exists]
    packed_lse = lse.new_full((q.shape[1], q.shape[0]), -torch.inf)
    packed_lse[:, rows[exists]] = rearrange(lse, "b h i -> h b i")[:, exists]
    return packed_out, packed_lse, probs


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
    if options.dropout_p > 0:
        probs = negate_dropped(probs, rng_state, options.dropout_p)
    return probs.to(q.dtype)


def varlen_probabilities(
    q: Tensor, k: Tensor, packing: Packing, options: Options, rng_state: Tensor | None = None
) -> Tensor:
    """As `probabilities`, of packed tensors: (batch, num_heads, max_seqlen_q, max_seqlen_k)."""
    dense_q, lengths_q = _to_dense(q, packing.cu_seqlens_q, packing.max_seqlen_q)
    dense_k, lengths_k = _to_dense(k, *_keys(packing))
    return probabilities(dense_q, dense_k, options, rng_state, lengths_q, lengths_k)


def _per_query_head(k: Tensor, q: Tensor) -> Tensor:
    return repeat(k, "b j h d -> b j (h g) d", g=q.shape[2] // k.shape[2])


def _rows(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Row of the packed tensor that holds (sequence, position)."""
    return cu_seqlens[:-1, None] + torch.arange(max_seqlen, device=cu_seqlens.device)


def _keys(packing: Packing) -> tuple[Tensor, int, Tensor | None]:
    return packing.cu_seqlens_k, packing.max_seqlen_k, packing.seqused_k


def _to_dense(
    x: Tensor, cu_seqlens: Tensor, max_seqlen: int, used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(total, ...) -> (batch, max_seqlen, ...) with zeros past each sequence, and the lengths."""
    lengths = cu_seqlens.diff() if used is None else used
    rows, ends = _rows(cu_seqlens, max_seqlen), (cu_seqlens[:-1] + lengths)[:, None]
    zero_row = x.new_zeros(1, *x.shape[1:])
    return torch.cat([x, zero_row])[torch.where(rows < ends, rows, x.shape[0])], lengths
