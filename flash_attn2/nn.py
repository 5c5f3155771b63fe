"""PyTorch modules over the attention functions: `Attention` and `RotaryEmbedding`.

Both take dense tensors (batch, seqlen, ...) and packed ones (total, ...), whose sequences lie one
after another at the rows that `cu_seqlens`, int32 (batch + 1,), names. `unpad_input` and
`pad_input` lead from a padded batch to packed tensors and back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flash_attn2 import _checks
from flash_attn2.functional import flash_attn_func, flash_attn_varlen_func

__all__ = ["Attention", "RotaryEmbedding", "alibi_slopes"]


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> Tensor:
    """The slopes of Press et al. 2021, float32 (num_heads,).

    For n heads, n a power of two, they are 2^(-8/n), 2^(-16/n), ..., 2^-8. Other numbers of heads
    have those of the power of two below, and then every other one of the power of two above.
    """

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 1 << (num_heads.bit_length() - 1)
    slopes = geometric(below) + geometric(2 * below)[::2]
    return torch.tensor(slopes[:num_heads], dtype=torch.float32, device=device)


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (Su et al. 2021) of queries and keys.

    Rotates pair i of the first `dim` elements of each head by the angle
    position / scaling_factor * base^(-2 i / dim), and leaves the other elements as they are.

        dim             even, at most head_dim
        base            wavelengths are from 2 pi to nearly 2 pi * base positions
        interleaved     pair i is elements (2 i, 2 i + 1), as in GPT-J, or by default elements
                        (i, i + dim / 2), as in GPT-NeoX and Llama
        scaling_factor  above 1: positions interpolated for longer contexts (Chen et al. 2023)

    It has no parameters and no state. Layers may share one instance, and so its table of cosines
    and sines, which is float32 whatever the dtype of the module, and grows when needed.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if dim <= 0 or dim % 2 != 0:
            raise ValueError(f"dim must be even and positive, got {dim}")
        if not (base > 0 and scaling_factor > 0):
            raise ValueError(
                f"base and scaling_factor must be positive, got {base} and {scaling_factor}"
            )
        self.dim = dim
        self.base = base
        self.interleaved = interleaved
        self.scaling_factor = scaling_factor
        self._table: Tensor | None = None  # no buffer: those follow the dtype of the module

    def forward(self, x: Tensor, *, offset: int = 0, cu_seqlens: Tensor | None = None) -> Tensor:
        """Rotates x, (batch, seqlen, num_heads, head_dim) or packed (total, num_heads, head_dim).

        Positions count from `offset` in every sequence; packed tensors need `cu_seqlens`. The
        result has the dtype of x and is computed in float32 or better.
        """
        if x.ndim != (4 if cu_seqlens is None else 3):
            raise ValueError(
                "x must be (batch, seqlen, num_heads, head_dim), or (total, num_heads, head_dim) "
                f"with cu_seqlens, got shape {tuple(x.shape)}"
            )
        if x.shape[-1] < self.dim:
            raise ValueError(f"x must have a head_dim of at least {self.dim}, got {x.shape[-1]}")
        if offset < 0:
            raise ValueError(f"offset must not be negative, got {offset}")
        rows = x.shape[-3]
        rotations = self._rotations(offset + rows, x.device)
        if cu_seqlens is None:
            rotations = rotations[:, offset:]
        else:
            rotations = rotations[:, offset + _positions(cu_seqlens, rows)]
        cos, sin = rotations.unsqueeze(-2)
        rotated, rest = x[..., : self.dim], x[..., self.dim :]
        if self.interleaved:
            a, b = rotated[..., ::2], rotated[..., 1::2]
            rotated = torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        else:
            a, b = rotated.chunk(2, -1)
            rotated = torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        rotated = rotated.to(x.dtype)
        return torch.cat((rotated, rest), -1) if rest.shape[-1] else rotated

    def _rotations(self, count: int, device: torch.device) -> Tensor:
        """Cosines and sines of the positions below `count`: float32 (2, count, dim / 2)."""
        if torch.compiler.is_compiling():  # compilers fuse the computation; a table would be state
            return self._compute(count, device)
        table = self._table
        if table is None or table.shape[1] < count or table.device != device:
            with torch.inference_mode(False):  # what evaluation caches must serve training too
                self._table = table = self._compute(1 << count.bit_length(), device)
        return table[:, :count]

    def _compute(self, count: int, device: torch.device) -> Tensor:
        # In float64: at position 100,000, float32 angles would be off by 0.004.
        index = torch.arange(0, self.dim, 2, dtype=torch.float64, device=device)
        position = torch.arange(count, dtype=torch.float64, device=device) / self.scaling_factor
        angles = position[:, None] * self.base ** (-index / self.dim)
        return torch.stack((angles.cos(), angles.sin())).float()

    def extra_repr(self) -> str:
        text = f"{self.dim}, base={self.base:g}"
        if self.interleaved:
            text += ", interleaved=True"
        if self.scaling_factor != 1.0:
            text += f", scaling_factor={self.scaling_factor:g}"
        return text


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values.

        embed_dim      width of input and output
        num_heads      query heads
        num_heads_kv   key and value heads, a divisor of num_heads; None: num_heads (multi-head),
                       fewer: grouped queries, 1: multi-query
        head_dim       at most 256; None: embed_dim / num_heads
        bias           of the fused projection
        out_bias       of the output projection; None: as `bias`
        dropout        probability of dropping a softmax entry, in training mode
        softmax_scale, causal, window_size, softcap, deterministic
                       as in `flash_attn2.flash_attn_func`
        alibi          True: a bias by distance with `alibi_slopes(num_heads)`; or the slopes
                       themselves, (num_heads,)
        sink           a learnable logit per head joins the softmax denominator
        rotary         position embedding of queries and keys

    The parameters are `qkv_proj.weight` ((num_heads + 2 num_heads_kv) * head_dim, embed_dim), its
    rows by head: all queries, then keys, then values; `out_proj.weight`, the biases, and `sink`
    (num_heads,), float32. For cross-attention call the functions.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi: bool | Tensor = False,
        sink: bool = False,
        rotary: RotaryEmbedding | None = None,
        deterministic: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_heads_kv, head_dim = _sizes(embed_dim, num_heads, num_heads_kv, head_dim)
        if rotary is not None and rotary.dim > head_dim:
            raise ValueError(f"rotary must turn at most head_dim = {head_dim}, got {rotary.dim}")
        # What the functions would refuse is refused here.
        _checks.make_options(dropout, softmax_scale, causal, window_size, softcap, None, None)
        _checks.check_numbers(dropout, softmax_scale, softcap)

        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_heads_kv = num_heads_kv
        self.head_dim = head_dim
        self.dropout = dropout
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.window_size = window_size
        self.softcap = softcap
        self.deterministic = deterministic

        width, width_qkv = num_heads * head_dim, (num_heads + 2 * num_heads_kv) * head_dim
        out_bias = bias if out_bias is None else out_bias
        self.qkv_proj = nn.Linear(embed_dim, width_qkv, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(width, embed_dim, out_bias, device=device, dtype=dtype)
        self.rotary = rotary
        self.sink = nn.Parameter(torch.zeros(num_heads, device=device)) if sink else None
        self._alibi = alibi
        self.alibi_slopes: Tensor | None
        self.register_buffer("alibi_slopes", self._slopes(device), persistent=False)

    def reset_parameters(self) -> None:
        """Draws the projections anew, as `nn.Linear` does, and sets the sink to 0."""
        self.qkv_proj.reset_parameters()
        self.out_proj.reset_parameters()
        if self.sink is not None:
            nn.init.zeros_(self.sink)
        if self.alibi_slopes is not None:  # uninitialised after `to_empty`
            self.alibi_slopes = self._slopes(self.alibi_slopes.device)

    def _slopes(self, device: torch.device | str | None) -> Tensor | None:
        if not isinstance(self._alibi, Tensor):
            return alibi_slopes(self.num_heads, device) if self._alibi else None
        if self._alibi.shape != (self.num_heads,):
            raise ValueError(
                f"alibi must be ({self.num_heads},), got shape {tuple(self._alibi.shape)}"
            )
        return self._alibi.detach().to(device=device, dtype=torch.float32)

    def forward(
        self, x: Tensor, *, cu_seqlens: Tensor | None = None, max_seqlen: int | None = None
    ) -> Tensor:
        """Attends within each sequence of x; the result has the shape of x.

        x is (batch, seqlen, embed_dim), or packed (total, embed_dim) with `cu_seqlens` and an
        upper bound of the lengths, `max_seqlen`.
        """
        if (cu_seqlens is None) != (max_seqlen is None):
            raise ValueError("cu_seqlens and max_seqlen go together: packed x needs both")
        q, k, v = self.project(x, cu_seqlens=cu_seqlens)
        options: dict[str, Any] = {
            "dropout_p": self.dropout if self.training else 0.0,
            "softmax_scale": self.softmax_scale,
            "causal": self.causal,
            "window_size": self.window_size,
            "softcap": self.softcap,
            "alibi_slopes": None if self.alibi_slopes is None else self.alibi_slopes.float(),
            "deterministic": self.deterministic,
            "sink": None if self.sink is None else self.sink.float(),
        }
        out: Any
        if cu_seqlens is None or max_seqlen is None:
            out = flash_attn_func(q, k, v, **options)
        else:
            lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
            out = flash_attn_varlen_func(q, k, v, *lengths, **options)
        return self.out_proj(out.flatten(-2))  # type: ignore[no-any-return]

    def project(
        self, x: Tensor, *, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, (..., heads, head_dim), rotated if there is a `rotary`."""
        if x.ndim != (3 if cu_seqlens is None else 2) or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must be (batch, seqlen, {self.embed_dim}), or (total, {self.embed_dim}) with "
                f"cu_seqlens, got shape {tuple(x.shape)}"
            )
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        if self.rotary is not None:
            qk, v = qkv.split((self.num_heads + self.num_heads_kv, self.num_heads_kv), -2)
            qk = self.rotary(qk, cu_seqlens=cu_seqlens)
            q, k = qk.split((self.num_heads, self.num_heads_kv), -2)
        else:
            q, k, v = qkv.split((self.num_heads, self.num_heads_kv, self.num_heads_kv), -2)
        return q, k, v

    def extra_repr(self) -> str:
        text = f"{self.embed_dim}, num_heads={self.num_heads}, num_heads_kv={self.num_heads_kv}"
        text += f", head_dim={self.head_dim}"
        for name, default in _DEFAULTS.items():
            if (value := getattr(self, name)) != default:
                text += f", {name}={value}"
        for name in ("alibi_slopes", "sink"):
            if getattr(self, name) is not None:
                text += f", {name}=({self.num_heads},)"
        return text


_DEFAULTS = {  # of what `extra_repr` shows where it is not the default
    "dropout": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "deterministic": False,
}


def _sizes(
    embed_dim: int, num_heads: int, num_heads_kv: int | None, head_dim: int | None
) -> tuple[int, int]:
    """num_heads_kv and head_dim, with their defaults, after checks of all four."""
    num_heads_kv = num_heads if num_heads_kv is None else num_heads_kv
    if embed_dim <= 0 or num_heads <= 0:
        raise ValueError(
            f"embed_dim and num_heads must be positive, got {embed_dim} and {num_heads}"
        )
    if num_heads_kv <= 0 or num_heads % num_heads_kv != 0:
        raise ValueError(
            f"num_heads must be a multiple of num_heads_kv, got {num_heads} and {num_heads_kv}"
        )
    if head_dim is None:
        head_dim, rest = divmod(embed_dim, num_heads)
        if rest:
            raise ValueError(
                "embed_dim must be a multiple of num_heads where head_dim is not given, "
                f"got {embed_dim} and {num_heads}"
            )
    if not 1 <= head_dim <= _checks.MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be from 1 to {_checks.MAX_HEAD_DIM}, got {head_dim}")
    return num_heads_kv, head_dim


def _positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """The position of each of `total` packed rows in its sequence."""
    rows = torch.arange(total, dtype=torch.int32, device=cu_seqlens.device)
    sequences = torch.searchsorted(cu_seqlens, rows, right=True) - 1
    return rows - cu_seqlens[sequences]
