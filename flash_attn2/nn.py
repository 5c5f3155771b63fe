"""PyTorch modules over the attention functions: `Attention` and `RotaryEmbedding`.

Both take dense tensors (batch, seqlen, ...) and packed ones (total, ...), whose sequences lie one
after another at the rows that `cu_seqlens`, int32 (batch + 1,), names. `unpad_input` and
`pad_input` lead from a padded batch to packed tensors and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _get_tracing_state, _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

from flash_attn2 import _checks
from flash_attn2._arguments import as_bound, as_int, as_number, require_bool, require_tensor
from flash_attn2.functional import flash_attn_func, flash_attn_varlen_func

__all__ = ["Attention", "RotaryEmbedding", "alibi_slopes"]


def alibi_slopes(num_heads: int, device: torch.device | str | None = None) -> Tensor:
    """The slopes of Press et al. 2021, float32 (num_heads,).

    For n heads, n a power of two, they are 2^(-8/n), 2^(-16/n), ..., 2^-8. Other numbers of heads
    have those of the power of two below, and then every other one of the power of two above.
    """
    num_heads = as_int("num_heads", num_heads)
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    return torch.tensor(_alibi_slopes(num_heads), dtype=torch.float32, device=device)


def _alibi_slopes(num_heads: int) -> list[float]:
    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8 * (i + 1) / n) for i in range(n)]

    below = 1 << (num_heads.bit_length() - 1)
    slopes = geometric(below) + geometric(2 * below)[::2]
    return slopes[:num_heads]


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
    and sines, which is float32 whatever the dtype of the module, and grows when needed. Copies and
    pickles are without it; while something traces or transforms the call (torch.compile, export,
    torch.jit.trace, fake tensors, torch.func) it is neither made nor used.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        dim = as_int("dim", dim)
        base, scaling_factor = as_number("base", base), as_number("scaling_factor", scaling_factor)
        require_bool("interleaved", interleaved)
        if dim <= 0 or dim % 2 != 0:
            raise ValueError(f"dim must be even and positive, got {dim}")
        if not (0 < base < math.inf and 0 < scaling_factor < math.inf):
            raise ValueError(
                "base and scaling_factor must be positive and finite, "
                f"got {base} and {scaling_factor}"
            )
        self.dim = dim
        self.base = base
        self.interleaved = interleaved
        self.scaling_factor = scaling_factor
        self._table: Tensor | None = None  # no buffer: those follow the dtype of the module

    def forward(self, x: Tensor, *, offset: int = 0, cu_seqlens: Tensor | None = None) -> Tensor:
        """Rotates x, (batch, seqlen, num_heads, head_dim) or packed (total, num_heads, head_dim).

        Positions count from `offset` in every sequence. Packed tensors need `cu_seqlens`, int32
        (batch + 1,): where each sequence begins, from 0 on, and where the last one ends; rows from
        there on are returned, but with unspecified values. Its values are checked where host
        memory holds them. The result has the dtype of x and is computed in float32 or better.
        """
        require_tensor("x", x)
        if x.ndim != (4 if cu_seqlens is None else 3):
            raise ValueError(
                "x must be (batch, seqlen, num_heads, head_dim), or (total, num_heads, head_dim) "
                f"with cu_seqlens, got shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"x must be of floating point, got {x.dtype}")
        if x.shape[-1] < self.dim:
            raise ValueError(f"x must have a head_dim of at least {self.dim}, got {x.shape[-1]}")
        offset = as_int("offset", offset)
        if offset < 0:
            raise ValueError(f"offset must not be negative, got {offset}")
        rows = x.shape[-3]
        if cu_seqlens is not None:
            _check_sequences(cu_seqlens, x)
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
        if not _ordinary():  # a table would be one of fake, traced or transformed tensors
            return self._compute(count, device)
        table = self._table
        if table is None or table.shape[1] < count or table.device != device:
            with torch.inference_mode(False):  # what evaluation caches must serve training too
                table = self._compute(1 << count.bit_length(), device)
            if _is_real(table):
                self._table = table
        return table[:, :count]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    def _compute(self, count: int, device: torch.device) -> Tensor:
        # In float64: at position 100,000, float32 angles would be off by 0.004.
        index = torch.arange(0, self.dim, 2, dtype=torch.float64, device=device)
        position = torch.arange(count, device=device).double() / self.scaling_factor
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
                       themselves, (num_heads,), as a tensor or a sequence of numbers
        sink           a learnable logit per head joins the softmax denominator
        rotary         position embedding of queries and keys
        device, dtype  of the parameters, as of `nn.Linear`

    The parameters are `qkv_proj.weight` ((num_heads + 2 num_heads_kv) * head_dim, embed_dim), its
    rows by head: all queries, then keys, then values; `out_proj.weight`, the biases, and `sink`
    (num_heads,). `sink` is created in float32 whatever `dtype` is, and used in float32; but
    `.bfloat16()` and the like convert it as they do every parameter. `alibi_slopes`, float32
    (num_heads,) or None, is no state: it is on the device of the parameters, and no conversion,
    `to_empty` or state dict changes it. For cross-attention call the functions.
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
        alibi: bool | Tensor | Sequence[float] = False,
        sink: bool = False,
        rotary: RotaryEmbedding | None = None,
        deterministic: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        embed_dim, num_heads = as_int("embed_dim", embed_dim), as_int("num_heads", num_heads)
        num_heads_kv, head_dim = _sizes(embed_dim, num_heads, num_heads_kv, head_dim)
        for name, value in (("bias", bias), ("sink", sink)):
            require_bool(name, value)
        if out_bias is not None:
            require_bool("out_bias", out_bias)
        if rotary is not None and not isinstance(rotary, RotaryEmbedding):
            raise TypeError(
                "rotary must be a RotaryEmbedding, such as RotaryEmbedding(head_dim), or None, "
                f"got {rotary!r}"
            )
        if rotary is not None and rotary.dim > head_dim:
            raise ValueError(f"rotary must turn at most head_dim = {head_dim}, got {rotary.dim}")
        # What the functions would refuse is refused here.
        _checks.make_options(
            dropout, softmax_scale, causal, window_size, softcap, None, None, deterministic
        )

        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_heads_kv = num_heads_kv
        self.head_dim = head_dim
        self.dropout = dropout
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.window_size = tuple(window_size)
        self.softcap = softcap
        self.deterministic = deterministic

        width, width_qkv = num_heads * head_dim, (num_heads + 2 * num_heads_kv) * head_dim
        out_bias = bias if out_bias is None else out_bias
        self.qkv_proj = nn.Linear(embed_dim, width_qkv, bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(width, embed_dim, out_bias, device=device, dtype=dtype)
        self.rotary = rotary
        zeros = torch.zeros(num_heads, device=device, dtype=torch.float32) if sink else None
        self.sink = None if zeros is None else nn.Parameter(zeros)
        self._slopes = _given_slopes(alibi, num_heads)
        self._placed_slopes: Tensor | None = None
        self._place_slopes()

    @property
    def alibi_slopes(self) -> Tensor | None:
        """The slopes on the device of the parameters."""
        return self._slopes_on(self.qkv_proj.weight.device)

    def _slopes_on(self, device: torch.device) -> Tensor | None:
        """The slopes in float32, on this device.

        Numbers are what is kept, since buffers follow the dtype of the module, and are lost where
        their memory is allocated anew. The tensor made of them is kept for the next call, if it is
        one that nothing traces, fakes or transforms.
        """
        if self._slopes is None:
            return None
        placed, ordinary = self._placed_slopes, _ordinary()
        usable = ordinary or torch.compiler.is_dynamo_compiling()
        if usable and placed is not None and placed.device == device:
            return placed
        if not ordinary:
            return torch.tensor(self._slopes, dtype=torch.float32, device=device)
        with torch.inference_mode(False):
            placed = torch.tensor(self._slopes, dtype=torch.float32, device=device)
        if _is_real(placed):
            self._placed_slopes = placed
        return placed

    def _place_slopes(self) -> None:
        """Where they will be needed, so that a compiled call finds them there."""
        for parameter in self.parameters():
            self._slopes_on(parameter.device)
            return

    def _apply(self, fn: Any, recurse: bool = True) -> Attention:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place_slopes()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_placed_slopes": None}

    def reset_parameters(self) -> None:
        """Draws the projections anew, as `nn.Linear` does, and sets the sink to 0."""
        self.qkv_proj.reset_parameters()
        self.out_proj.reset_parameters()
        if self.sink is not None:
            nn.init.zeros_(self.sink)

    def forward(
        self, x: Tensor, *, cu_seqlens: Tensor | None = None, max_seqlen: int | None = None
    ) -> Tensor:
        """Attends within each sequence of x; the result has the shape of x.

        x is (batch, seqlen, embed_dim), or packed (total, embed_dim) with `cu_seqlens` and an
        upper bound of the lengths, `max_seqlen`.
        """
        if (cu_seqlens is None) != (max_seqlen is None):
            raise ValueError("cu_seqlens and max_seqlen go together: packed x needs both")
        if cu_seqlens is not None:
            self._check_input(x, packed=True)
            _check_sequences(cu_seqlens, x)
            max_seqlen = as_bound("max_seqlen", max_seqlen, _checks.rows_of(x))
        q, k, v = self.project(x, cu_seqlens=cu_seqlens)
        options: dict[str, Any] = {
            "dropout_p": self.dropout if self.training else 0.0,
            "softmax_scale": self.softmax_scale,
            "causal": self.causal,
            "window_size": self.window_size,
            "softcap": self.softcap,
            "alibi_slopes": self._slopes_on(x.device),
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
        self._check_input(x, packed=cu_seqlens is not None)
        qkv = self.qkv_proj(x).unflatten(-1, (-1, self.head_dim))
        if self.rotary is not None:
            qk, v = qkv.split((self.num_heads + self.num_heads_kv, self.num_heads_kv), -2)
            qk = self.rotary(qk, cu_seqlens=cu_seqlens)
            q, k = qk.split((self.num_heads, self.num_heads_kv), -2)
        else:
            q, k, v = qkv.split((self.num_heads, self.num_heads_kv, self.num_heads_kv), -2)
        return q, k, v

    def _check_input(self, x: Tensor, packed: bool) -> None:
        require_tensor("x", x)
        if x.ndim != (2 if packed else 3) or x.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must be (batch, seqlen, {self.embed_dim}), or (total, {self.embed_dim}) with "
                f"cu_seqlens, got shape {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        text = f"{self.embed_dim}, num_heads={self.num_heads}, num_heads_kv={self.num_heads_kv}"
        text += f", head_dim={self.head_dim}"
        for name, default in _DEFAULTS.items():
            if (value := getattr(self, name)) != default:
                text += f", {name}={value}"
        for name, value in (("alibi_slopes", self._slopes), ("sink", self.sink)):
            if value is not None:
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


def _given_slopes(alibi: Any, num_heads: int) -> tuple[float, ...] | None:
    """What `alibi` asks for, as numbers."""
    if isinstance(alibi, bool):
        return tuple(_alibi_slopes(num_heads)) if alibi else None
    if isinstance(alibi, Tensor):
        if alibi.is_meta or alibi.ndim != 1:
            raise ValueError(
                f"alibi must be ({num_heads},) with values, got shape {tuple(alibi.shape)} on "
                f"{alibi.device}"
            )
        alibi = alibi.detach().tolist()
    if not isinstance(alibi, (list, tuple)):
        raise TypeError(f"alibi must be True, False, or the slopes themselves, got {alibi!r}")
    if len(alibi) != num_heads:
        raise ValueError(f"alibi must be ({num_heads},), got shape ({len(alibi)},)")
    return tuple(as_number("alibi", slope) for slope in alibi)


def _sizes(
    embed_dim: int, num_heads: int, num_heads_kv: int | None, head_dim: int | None
) -> tuple[int, int]:
    """num_heads_kv and head_dim, with their defaults, after checks of all four."""
    num_heads_kv = num_heads if num_heads_kv is None else as_int("num_heads_kv", num_heads_kv)
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
    head_dim = as_int("head_dim", head_dim)
    if not 1 <= head_dim <= _checks.MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be from 1 to {_checks.MAX_HEAD_DIM}, got {head_dim}")
    return num_heads_kv, head_dim


def _ordinary() -> bool:
    """Whether tensors made now are what they seem: nothing traces, fakes or transforms them."""
    return not (
        torch.compiler.is_compiling()
        or _len_torch_dispatch_stack() != 0
        or _get_tracing_state() is not None
        or peek_interpreter_stack() is not None
    )


def _is_real(t: Tensor) -> bool:
    return type(t) is Tensor and not t.is_meta and not torch._is_functional_tensor(t)


def _check_sequences(cu_seqlens: Tensor, x: Tensor) -> None:
    """That these are offsets of sequences in the rows of packed x."""
    require_tensor("cu_seqlens", cu_seqlens)
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"cu_seqlens must be int32, got {cu_seqlens.dtype}")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(f"cu_seqlens must be (batch + 1,), got shape {tuple(cu_seqlens.shape)}")
    if cu_seqlens.device != x.device:
        raise ValueError(
            f"cu_seqlens must be on the device of x, {x.device}, got {cu_seqlens.device}"
        )
    if cu_seqlens.is_cpu and type(cu_seqlens) is Tensor and _ordinary():
        _checks._host_lengths("cu_seqlens", cu_seqlens, x.shape[0])


def _positions(cu_seqlens: Tensor, total: int) -> Tensor:
    """The position of each of `total` packed rows in its sequence."""
    rows = torch.arange(total, dtype=torch.int32, device=cu_seqlens.device)
    sequences = torch.searchsorted(cu_seqlens, rows, right=True) - 1
    return rows - cu_seqlens[sequences]
