"""`flash_attn.layers.rotary`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flash_attn2.rotary import apply_rotary_emb

__all__ = [
    "RotaryEmbedding",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
]

apply_rotary_emb_func = apply_rotary_emb


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """Turns queries and keys of qkv in place, and returns it.

    qkv is (batch, seqlen, 3, num_heads, head_dim), or (batch, seqlen, num_heads_q + 2 *
    num_heads_kv, head_dim) with num_heads_q. cos_k and sin_k are those of the keys, if they have
    others. The rest is as in `flash_attn2.apply_rotary_emb`.
    """
    if qkv.ndim == 5 and qkv.shape[2] == 3:
        q, k, _ = qkv.unbind(2)
    elif qkv.ndim == 4 and num_heads_q is not None and (qkv.shape[2] - num_heads_q) % 2 == 0:
        num_heads_kv = (qkv.shape[2] - num_heads_q) // 2
        q, k, _ = torch.split(qkv, [num_heads_q, num_heads_kv, num_heads_kv], 2)
    else:
        raise ValueError(
            "qkv must be (batch, seqlen, 3, num_heads, head_dim), or (batch, seqlen, num_heads_q + "
            f"2 * num_heads_kv, head_dim) with num_heads_q, got shape {tuple(qkv.shape)} and "
            f"num_heads_q={num_heads_q}"
        )
    # Both before anything is written, which autograd would complain of.
    turned_q = apply_rotary_emb(q, cos, sin, interleaved, seqlen_offsets=seqlen_offsets)
    cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
    turned_k = apply_rotary_emb(k, cos_k, sin_k, interleaved, seqlen_offsets=seqlen_offsets)
    if qkv.ndim == 5:
        qkv[:, :, 0] = turned_q
        qkv[:, :, 1] = turned_k
    else:
        qkv[:, :, : q.shape[2]] = turned_q
        qkv[:, :, q.shape[2] : q.shape[2] + k.shape[2]] = turned_k
    return qkv


def apply_rotary_emb_kv_(
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
) -> Tensor:
    """Turns the keys of kv, (batch, seqlen, 2, num_heads_kv, head_dim), in place; returns it."""
    if kv.ndim != 5 or kv.shape[2] != 2:
        raise ValueError(
            f"kv must be (batch, seqlen, 2, num_heads_kv, head_dim), got shape {tuple(kv.shape)}"
        )
    k = kv[:, :, 0]
    kv[:, :, 0] = apply_rotary_emb(k, cos, sin, interleaved, seqlen_offsets=seqlen_offsets)
    return kv


class RotaryEmbedding(nn.Module):
    """Turns qkv, or q and kv, in place; with the arguments and attributes of flash-attn's.

    `flash_attn2.nn.RotaryEmbedding` is what new programs should use. With `scale_base`, XPos (Sun
    et al. 2022). Tables are computed in float64 and rounded to the dtype of qkv, as in flash-attn.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scale_base = scale_base
        even = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
        scale = None if scale_base is None else (even + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("inv_freq", self.base ** (-even / dim), persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None
        self._cos_k_cached: Tensor | None = None
        self._sin_k_cached: Tensor | None = None

    def _update_cos_sin_cache(
        self,
        seqlen: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Tables of `seqlen` positions at least, there and of this dtype."""
        kept = self._cos_cached
        if (
            kept is not None
            and seqlen <= self._seq_len_cached
            and kept.device == device
            and kept.dtype == dtype
            and not (self.training and kept.is_inference())
        ):
            return
        self._seq_len_cached = seqlen
        even = torch.arange(0, self.dim, 2, device=device, dtype=torch.float64)
        position = torch.arange(seqlen, device=device, dtype=torch.float64)
        angles = torch.outer(position, self.base ** (-even / self.dim))
        cos, sin = angles.cos(), angles.sin()
        if self.scale_base is None:
            self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)
            return
        power = (position - seqlen // 2) / self.scale_base
        scale = ((even + 0.4 * self.dim) / (1.4 * self.dim)) ** power[:, None]
        self._cos_cached, self._sin_cached = (cos * scale).to(dtype), (sin * scale).to(dtype)
        self._cos_k_cached, self._sin_k_cached = (cos / scale).to(dtype), (sin / scale).to(dtype)

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """qkv as in `apply_rotary_emb_qkv_`; or q (batch, seqlen, num_heads, head_dim), and kv.

        With a tensor as seqlen_offset, max_seqlen says how long the tables must be.
        """
        if max_seqlen is not None:
            self._update_cos_sin_cache(max_seqlen, qkv.device, qkv.dtype)
        elif isinstance(seqlen_offset, int):
            self._update_cos_sin_cache(qkv.shape[1] + seqlen_offset, qkv.device, qkv.dtype)
        cos, sin = self._cos_cached, self._sin_cached
        if cos is None or sin is None:
            raise ValueError("max_seqlen must be given with a tensor as seqlen_offset, got None")
        if kv is None:
            return apply_rotary_emb_qkv_(
                *(qkv, cos, sin, self._cos_k_cached, self._sin_k_cached),
                *(self.interleaved, seqlen_offset, num_heads_q),
            )
        cos_k = cos if self._cos_k_cached is None else self._cos_k_cached
        sin_k = sin if self._sin_k_cached is None else self._sin_k_cached
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, True, seqlen_offset)
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, self.interleaved, seqlen_offset)
