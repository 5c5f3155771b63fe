"""Multi-head attention with projections."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from flash_attn2._impl.arguments import (
    as_int,
    named_only,
    refuse_keywords,
    require_bool,
)
from flash_attn2._impl.dtensors import is_dtensor, split_heads
from flash_attn2._impl.multihead import check_multihead, fill
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.options import bound_of, make_options, rows_of
from flash_attn2._impl.problem import MAX_HEAD_DIM, MAX_HEAD_DIM_V
from flash_attn2._impl.rotary import RotaryEmbedding
from flash_attn2._impl.rotation import check_sequences
from flash_attn2.functional import flash_attn_func, flash_attn_varlen_func
from flash_attn2.inference import Step
from flash_attn2.masks import BlockMask
from flash_attn2.nn.checks import check_bound, check_input, check_rotary
from flash_attn2.nn.over_cache import attend_over_cache, check_mode, check_step
from flash_attn2.nn.slopes import given_slopes


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values.

        embed_dim      width of input and output
        num_heads      query heads
        num_heads_kv   key and value heads, a divisor of num_heads; None: num_heads (multi-head),
                       fewer: grouped queries, 1: multi-query
        head_dim       of queries and keys, at most 576; None: embed_dim / num_heads
        head_dim_v     of values, at most 512; None: head_dim. CUDA kernels are built for widths up
                       to 512
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

    The parameters are `qkv_proj.weight` ((num_heads + num_heads_kv) * head_dim + num_heads_kv *
    head_dim_v, embed_dim), its rows by head: all queries, then keys, then values;
    `out_proj.weight`, the biases, and `sink` (num_heads,). `sink` is created in float32 whatever
    `dtype` is, and used in float32; but `.bfloat16()` and the like convert it as they do every
    parameter. `alibi_slopes`, float32 (num_heads,) or None, is no state: it is on the device of the
    parameters, and no conversion, `to_empty` or state dict changes it. For cross-attention call the
    functions.
    """

    @named_only
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_heads_kv: int | None = None,
        head_dim: int | None = None,
        *,
        head_dim_v: int | None = None,
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
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            refuse_keywords(Attention, unknown)
        super().__init__()
        embed_dim, num_heads = as_int("embed_dim", embed_dim), as_int("num_heads", num_heads)
        num_heads_kv, head_dim = _sizes(embed_dim, num_heads, num_heads_kv, head_dim)
        head_dim_v = _width_of_values(head_dim_v, head_dim)
        for name, value in (("bias", bias), ("sink", sink)):
            require_bool(name, value)
        if out_bias is not None:
            require_bool("out_bias", out_bias)
        check_rotary(rotary, "head_dim", head_dim, "head_dim")
        # What the functions would refuse is refused here.
        make_options(
            dropout, softmax_scale, causal, window_size, softcap, None, None, deterministic
        )

        slopes = given_slopes(alibi, num_heads)  # before anything random is drawn

        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_heads_kv = num_heads_kv
        self.head_dim = head_dim
        self.head_dim_v = head_dim_v
        self.dropout = dropout
        self.softmax_scale = softmax_scale
        self.causal = causal
        self.window_size = tuple(window_size)
        self.softcap = softcap
        self.deterministic = deterministic

        out_bias = bias if out_bias is None else out_bias
        width = sum(self._widths())
        self.qkv_proj = nn.Linear(embed_dim, width, bias, device=device, dtype=dtype)
        width = num_heads * head_dim_v
        self.out_proj = nn.Linear(width, embed_dim, out_bias, device=device, dtype=dtype)
        self.rotary = rotary
        zeros = torch.zeros(num_heads, device=device, dtype=torch.float32) if sink else None
        self.sink = None if zeros is None else nn.Parameter(zeros)
        self._slopes = slopes
        self._placed_slopes: Tensor | None = None
        self._place_slopes()

    @classmethod
    def from_multihead(
        cls,
        module: nn.MultiheadAttention,
        *,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        deterministic: bool = False,
    ) -> Attention:
        """A layer that gives for x what `module(x, x, x)` gives, with copies of its parameters,
        and its dropout, dtype, device and mode.

        TypeError for another module. ValueError where it has batch_first=False, as this layer takes
        (batch, seqlen, embed_dim), or kdim, vdim, add_bias_kv or add_zero_attn.
        """
        check_multihead(module)
        weight = module.in_proj_weight
        layer = cls(
            module.embed_dim,
            module.num_heads,
            bias=module.in_proj_bias is not None,
            out_bias=module.out_proj.bias is not None,
            dropout=module.dropout,
            causal=causal,
            window_size=window_size,
            deterministic=deterministic,
            device=weight.device,
            dtype=weight.dtype,
        )
        fill(layer, module)
        return layer

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
        placed, keepable = self._placed_slopes, ordinary()
        usable = keepable or torch.compiler.is_dynamo_compiling()
        if usable and placed is not None and placed.device == device:
            return placed
        if not keepable:
            return torch.tensor(self._slopes, dtype=torch.float32, device=device)
        with torch.inference_mode(False):
            placed = torch.tensor(self._slopes, dtype=torch.float32, device=device)
        if is_ordinary(placed):
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
        self,
        x: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        block_mask: BlockMask | None = None,
        bias: Tensor | None = None,
        relative_bias: Tensor | None = None,
        cache: tuple[Tensor, ...] | None = None,
        step: Step | None = None,
    ) -> Tensor:
        """Attends within each sequence of x; the result has the shape of x.

        x is (batch, seqlen, embed_dim), or packed (total, embed_dim) with `cu_seqlens` and, if it
        is known, an upper bound of the lengths, `max_seqlen`. `block_mask`, of dense x, is that of
        `flash_attn_func`: it takes the place of `causal` and `window_size`, which the module must
        not have beside it. `bias` and `relative_bias`, of dense x too, are those of
        `flash_attn_func`.

        For generation, x holds new tokens of many sequences, packed (total, embed_dim) as `step`,
        what `PagedKVCache.append` returned, has them: whole prompts, pieces of them, single tokens,
        in one call. `cache` is this layer's, `PagedKVCache.layers[i]`, which takes in their keys
        and values (of 8 bits, `(*layers[i], *descales[i])`); queries then see all that their
        sequence holds. The results are those of the whole sequences at once. It needs a causal
        layer without dropout (`eval()`), and no gradient: `torch.no_grad()` or
        `torch.inference_mode()`.
        """
        if cache is not None or step is not None:
            others = {
                "cu_seqlens": cu_seqlens,
                "max_seqlen": max_seqlen,
                "block_mask": block_mask,
                "bias": bias,
                "relative_bias": relative_bias,
            }
            check_step(cache, step, others)
            looks_ahead = not self.causal and self.window_size[1] != 0
            check_mode(self, looks_ahead, self.dropout)
            return self._attend_over_cache(x, cache, step)  # type: ignore[arg-type]
        check_bound(cu_seqlens, max_seqlen)
        if cu_seqlens is not None:
            for name, value in (
                ("block_mask", block_mask),
                ("bias", bias),
                ("relative_bias", relative_bias),
            ):
                if value is not None:
                    raise ValueError(
                        f"{name} must come without cu_seqlens: packed sequences are one sequence, "
                        "x of shape (1, total, embed_dim), with a mask by "
                        "masks.documents(cu_seqlens)"
                    )
            check_input(x, self.qkv_proj, self.embed_dim, packed=True)
            check_sequences(cu_seqlens, x)
            max_seqlen = bound_of("max_seqlen", max_seqlen, cu_seqlens, rows_of(x))
        q, k, v = self.project(x, cu_seqlens=cu_seqlens)
        options = self._options(x.device)
        options["dropout_p"] = self.dropout if self.training else 0.0
        options["deterministic"] = self.deterministic
        out: Any
        if cu_seqlens is None or max_seqlen is None:
            out = flash_attn_func(
                q,
                k,
                v,
                **options,
                block_mask=block_mask,
                bias=bias,
                relative_bias=relative_bias,
            )
        else:
            lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
            out = flash_attn_varlen_func(q, k, v, *lengths, **options)
        return self.out_proj(out.flatten(-2))  # type: ignore[no-any-return]

    if TYPE_CHECKING:  # nn.Module says of a call that it takes and returns anything
        __call__ = forward

    def _options(self, device: torch.device) -> dict[str, Any]:
        """What all attention functions take."""
        return {
            "softmax_scale": self.softmax_scale,
            "causal": self.causal,
            "window_size": self.window_size,
            "softcap": self.softcap,
            "alibi_slopes": self._slopes_on(device),
            "sink": None if self.sink is None else self.sink.float(),
        }

    def _attend_over_cache(self, x: Tensor, cache: tuple[Tensor, ...], step: Step) -> Tensor:
        check_input(x, self.qkv_proj, self.embed_dim, packed=True)
        qk, v = self._heads(self.qkv_proj(x))
        q, k = qk.split((self.num_heads, self.num_heads_kv), -2)  # type: ignore[no-untyped-call]
        options = self._options(x.device)
        if self.rotary is not None:
            positions = step.block_table.shape[1] * cache[0].shape[1]
            cos, sin = self.rotary.tables(positions, torch.float32, x.device)
            options["rotary_cos"], options["rotary_sin"] = cos, sin
            options["rotary_interleaved"] = self.rotary.interleaved
        out = attend_over_cache(q, k, v, cache, step, options)
        return self.out_proj(out.flatten(-2))  # type: ignore[no-any-return]

    def project(
        self, x: Tensor, *, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x, (..., heads, head_dim or head_dim_v), rotated if there is
        a `rotary`."""
        check_input(x, self.qkv_proj, self.embed_dim, packed=cu_seqlens is not None)
        qkv = self.qkv_proj(x)
        if qkv.shape[-1] != sum(self._widths()):
            heads = self.num_heads + 2 * self.num_heads_kv
            raise ValueError(
                f"qkv_proj must give {sum(self._widths())} columns, of {heads} heads, got "
                f"{qkv.shape[-1]}: under ColwiseParallel it needs use_local_output=False"
            )
        if is_dtensor(qkv):
            return self._split_dtensor(qkv, cu_seqlens)
        qk, v = self._heads(qkv)
        if self.rotary is not None:
            qk = self.rotary(qk, cu_seqlens=cu_seqlens)
        q, k = qk.split((self.num_heads, self.num_heads_kv), -2)  # type: ignore[no-untyped-call]
        return q, k, v

    def _widths(self) -> tuple[int, int]:
        """Columns of queries and keys, and of values."""
        heads = self.num_heads + self.num_heads_kv
        return heads * self.head_dim, self.num_heads_kv * self.head_dim_v

    def _heads(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """Heads of queries and of keys behind them, and those of values."""
        qk, v = qkv.split(self._widths(), -1)  # type: ignore[no-untyped-call]
        q_and_k: Tensor = qk.unflatten(-1, (-1, self.head_dim))
        return q_and_k, v.unflatten(-1, (-1, self.head_dim_v))

    def _split_dtensor(
        self, qkv: Tensor, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.head_dim_v != self.head_dim:
            raise NotImplementedError(
                f"head_dim_v must be head_dim, {self.head_dim}, where a DTensor is cut by heads, "
                f"got {self.head_dim_v}"
            )
        rotary = self.rotary
        rotate = None if rotary is None else partial(rotary, cu_seqlens=cu_seqlens)
        counts = (self.num_heads, self.num_heads_kv, self.num_heads_kv)
        heads = qkv.unflatten(-1, (-1, self.head_dim))  # type: ignore[no-untyped-call]
        q, k, v = split_heads(heads, counts, rotate)
        return q, k, v

    def extra_repr(self) -> str:
        text = f"{self.embed_dim}, num_heads={self.num_heads}, num_heads_kv={self.num_heads_kv}"
        text += f", head_dim={self.head_dim}"
        if self.head_dim_v != self.head_dim:
            text += f", head_dim_v={self.head_dim_v}"
        for name, default in _DEFAULTS.items():
            if (value := getattr(self, name)) != default:
                text += f", {name}={value}"
        for name, value in (("alibi_slopes", self._slopes), ("sink", self.sink)):
            if value is not None:
                text += f", {name}=({self.num_heads},)"
        return text


_MAX_SIZE = 2**31 - 1

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
    num_heads_kv = num_heads if num_heads_kv is None else as_int("num_heads_kv", num_heads_kv)
    if embed_dim <= 0 or num_heads <= 0:
        raise ValueError(
            f"embed_dim and num_heads must be positive, got {embed_dim} and {num_heads}"
        )
    if max(embed_dim, num_heads) > _MAX_SIZE:
        raise ValueError(
            f"embed_dim and num_heads must be at most {_MAX_SIZE}, got {embed_dim} and {num_heads}"
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
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be from 1 to {MAX_HEAD_DIM}, got {head_dim}")
    return num_heads_kv, head_dim


def _width_of_values(head_dim_v: int | None, head_dim: int) -> int:
    head_dim_v = head_dim if head_dim_v is None else as_int("head_dim_v", head_dim_v)
    if not 1 <= head_dim_v <= MAX_HEAD_DIM_V:
        raise ValueError(
            f"head_dim_v, or head_dim without it, must be from 1 to {MAX_HEAD_DIM_V}, got "
            f"{head_dim_v}"
        )
    return head_dim_v
