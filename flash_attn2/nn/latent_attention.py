"""Multi-head latent attention (MLA)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from flash_attn2._impl.arguments import as_int, named_only, refuse_keywords, require_bool
from flash_attn2._impl.options import bound_of, make_options, rows_of
from flash_attn2._impl.problem import MAX_HEAD_DIM, MAX_HEAD_DIM_V
from flash_attn2._impl.rotary import RotaryEmbedding
from flash_attn2._impl.rotation import check_sequences
from flash_attn2.functional import flash_attn_func, flash_attn_varlen_func
from flash_attn2.inference import Step
from flash_attn2.nn.checks import check_bound, check_input, check_rotary
from flash_attn2.nn.over_cache import attend_over_cache, check_mode, check_step


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434, section 2.1).

    Keys and values of all heads are made from one latent per token, and a KV cache holds it alone,
    with one rotated key that all heads share.

        embed_dim         width of input and output
        num_heads         heads
        kv_lora_rank      width of the latent, at most 512
        qk_nope_head_dim  columns of queries and keys without a position
        qk_rope_head_dim  columns that `rotary` turns; its keys are the same for all heads
        v_head_dim        of values, at most 512
        q_lora_rank       width that queries are compressed to; None: one projection
        bias              of the projections from and to embed_dim, but for `q_proj`
        eps               of the RMS norms
        dropout           probability of dropping a softmax entry, in training mode
        softmax_scale     None: 1 / sqrt(qk_nope_head_dim + qk_rope_head_dim), in both forms
        causal, deterministic
                          as in `flash_attn2.flash_attn_func`
        rotary            a `RotaryEmbedding(qk_rope_head_dim)`; checkpoints of DeepSeek have
                          interleaved=True
        device, dtype     of the parameters, as of `nn.Linear`

    Sizes and parameters have the names of DeepSeek-V2 and V3, whose checkpoints load as they are:
    `q_proj`, or `q_a_proj`, `q_a_layernorm` and `q_b_proj`; `kv_a_proj_with_mqa`, `kv_a_layernorm`,
    `kv_b_proj`, `o_proj`.

    There are two forms of one function. Without a cache heads get keys and values of their own,
    qk_nope_head_dim + qk_rope_head_dim and v_head_dim wide (192 and 128 in those models). Over a
    cache `kv_b_proj` is absorbed into queries and results: all heads attend over the latents,
    kv_lora_rank + qk_rope_head_dim and kv_lora_rank wide (576 and 512), which are read once for all
    of them, on the CPU and, where they have more than 256 columns in 16 bits, on CUDA.
    """

    @named_only
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kv_lora_rank: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None = None,
        bias: bool = False,
        eps: float = 1e-6,
        dropout: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        rotary: RotaryEmbedding | None = None,
        deterministic: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            refuse_keywords(LatentAttention, unknown)
        super().__init__()
        self.embed_dim = _size("embed_dim", embed_dim)
        self.num_heads = _size("num_heads", num_heads)
        self.kv_lora_rank = _size("kv_lora_rank", kv_lora_rank, MAX_HEAD_DIM_V)
        self.qk_nope_head_dim = _size("qk_nope_head_dim", qk_nope_head_dim)
        self.qk_rope_head_dim = _size("qk_rope_head_dim", qk_rope_head_dim)
        self.v_head_dim = _size("v_head_dim", v_head_dim, MAX_HEAD_DIM_V)
        self.q_lora_rank = None if q_lora_rank is None else _size("q_lora_rank", q_lora_rank)
        self.qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim
        for name, width in (
            ("qk_nope_head_dim + qk_rope_head_dim", self.qk_head_dim),
            ("kv_lora_rank + qk_rope_head_dim", self.kv_lora_rank + self.qk_rope_head_dim),
        ):
            if width > MAX_HEAD_DIM:
                raise ValueError(f"{name} must be at most {MAX_HEAD_DIM}, got {width}")
        require_bool("bias", bias)
        check_rotary(rotary, "qk_rope_head_dim", self.qk_rope_head_dim, str(qk_rope_head_dim))
        # What the functions would refuse is refused here.
        make_options(dropout, softmax_scale, causal, (-1, -1), 0.0, None, None, deterministic)
        self.dropout = dropout
        self.softmax_scale = self.qk_head_dim**-0.5 if softmax_scale is None else softmax_scale
        self.causal = causal
        self.deterministic = deterministic
        self.rotary = rotary

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        width_q = self.num_heads * self.qk_head_dim
        if self.q_lora_rank is None:
            self.q_proj = nn.Linear(self.embed_dim, width_q, False, **factory)
        else:
            self.q_a_proj = nn.Linear(self.embed_dim, self.q_lora_rank, bias, **factory)
            self.q_a_layernorm = nn.RMSNorm(self.q_lora_rank, eps, **factory)
            self.q_b_proj = nn.Linear(self.q_lora_rank, width_q, False, **factory)
        width = self.kv_lora_rank + self.qk_rope_head_dim
        self.kv_a_proj_with_mqa = nn.Linear(self.embed_dim, width, bias, **factory)
        self.kv_a_layernorm = nn.RMSNorm(self.kv_lora_rank, eps, **factory)
        width = self.num_heads * (self.qk_nope_head_dim + self.v_head_dim)
        self.kv_b_proj = nn.Linear(self.kv_lora_rank, width, False, **factory)
        self.o_proj = nn.Linear(self.num_heads * self.v_head_dim, self.embed_dim, bias, **factory)

    def forward(
        self,
        x: Tensor,
        *,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        cache: tuple[Tensor, ...] | None = None,
        step: Step | None = None,
    ) -> Tensor:
        """Attends within each sequence of x; the result has the shape of x.

        x is (batch, seqlen, embed_dim), or packed (total, embed_dim) with `cu_seqlens` and, if it
        is known, an upper bound of the lengths, `max_seqlen`.

        For generation, x holds new tokens of many sequences, packed (total, embed_dim) as `step`,
        what `PagedKVCache.append` returned, has them. `cache` is `layers[i]` of

            PagedKVCache(num_layers, num_pages, page_size, 1, kv_lora_rank + qk_rope_head_dim,
                         head_dim_v=kv_lora_rank, shared_kv=True)

        or, with a `dtype` of 8 bits, `(*layers[i], *descales[i])`. The results are those of the
        whole sequences at once. It needs a causal layer without dropout (`eval()`), and no
        gradient: `torch.no_grad()` or `torch.inference_mode()`.
        """
        if cache is not None or step is not None:
            check_step(cache, step, {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen})
            check_mode(self, not self.causal, self.dropout)
            return self._absorbed(x, cache, step)  # type: ignore[arg-type]
        check_bound(cu_seqlens, max_seqlen)
        packed = cu_seqlens is not None
        check_input(x, self.kv_a_proj_with_mqa, self.embed_dim, packed)
        if cu_seqlens is not None:
            check_sequences(cu_seqlens, x)
            max_seqlen = bound_of("max_seqlen", max_seqlen, cu_seqlens, rows_of(x))
        q, k, v = self._expanded(*self.project(x, cu_seqlens=cu_seqlens))
        options: dict[str, Any] = {
            "dropout_p": self.dropout if self.training else 0.0,
            "softmax_scale": self.softmax_scale,
            "causal": self.causal,
            "deterministic": self.deterministic,
        }
        out: Any
        if cu_seqlens is None or max_seqlen is None:
            out = flash_attn_func(q, k, v, **options)
        else:
            lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
            out = flash_attn_varlen_func(q, k, v, *lengths, **options)
        return self.o_proj(out.flatten(-2))  # type: ignore[no-any-return]

    if TYPE_CHECKING:  # nn.Module says of a call that it takes and returns anything
        __call__ = forward

    def project(
        self, x: Tensor, *, cu_seqlens: Tensor | None = None, offset: int | Tensor = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (..., num_heads, qk_nope_head_dim + qk_rope_head_dim), latents (...,
        kv_lora_rank) and shared keys (..., 1, qk_rope_head_dim) of x, which are rotated if there is
        a `rotary`, from position `offset` of each sequence on."""
        if self.q_lora_rank is None:
            q = self.q_proj(x)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.unflatten(-1, (self.num_heads, self.qk_head_dim))
        latent, shared = self.kv_a_proj_with_mqa(x).split(
            (self.kv_lora_rank, self.qk_rope_head_dim), -1
        )
        shared = shared.unsqueeze(-2)
        if self.rotary is not None:
            q_nope, q_rope = q.split((self.qk_nope_head_dim, self.qk_rope_head_dim), -1)
            q_rope = self.rotary(q_rope, offset=offset, cu_seqlens=cu_seqlens)
            q = torch.cat((q_nope, q_rope), -1)
            shared = self.rotary(shared, offset=offset, cu_seqlens=cu_seqlens)
        return q, self.kv_a_layernorm(latent), shared

    def _expanded(self, q: Tensor, latent: Tensor, shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values of each head, beside the queries."""
        kv = self.kv_b_proj(latent).unflatten(-1, (self.num_heads, -1))
        k_nope, v = kv.split((self.qk_nope_head_dim, self.v_head_dim), -1)
        shared = shared.expand(*k_nope.shape[:-1], self.qk_rope_head_dim)
        return q, torch.cat((k_nope, shared.to(k_nope.dtype)), -1), v

    def _absorbed(self, x: Tensor, cache: tuple[Tensor, ...], step: Step) -> Tensor:
        """Over latents: q (W_k c) = (W_k^T q) c, and sums of W_v c are W_v times sums of c."""
        check_input(x, self.kv_a_proj_with_mqa, self.embed_dim, packed=True)
        _check_width(cache, self.kv_lora_rank, self.qk_rope_head_dim)
        q, latent, shared = self.project(x, cu_seqlens=step.cu_seqlens_q, offset=step.cache_seqlens)
        of_heads = self.kv_b_proj.weight.view(self.num_heads, -1, self.kv_lora_rank)
        w_k, w_v = of_heads[:, : self.qk_nope_head_dim], of_heads[:, self.qk_nope_head_dim :]
        q_nope, q_rope = q[..., : self.qk_nope_head_dim], q[..., self.qk_nope_head_dim :]
        q_latent = torch.einsum("thn,hnr->thr", q_nope, w_k)
        out = attend_over_cache(
            torch.cat((q_latent, q_rope.to(q_latent.dtype)), -1),
            torch.cat((latent.unsqueeze(-2), shared.to(latent.dtype)), -1),
            None,
            cache,
            step,
            {"softmax_scale": self.softmax_scale, "causal": True},
        )
        out = torch.einsum("thr,hvr->thv", out, w_v)
        return self.o_proj(out.flatten(-2))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        sizes = (
            "q_lora_rank",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
        )
        shown = [f"{name}={getattr(self, name)}" for name in sizes]
        if self.causal:
            shown.append("causal=True")
        return f"{self.embed_dim}, num_heads={self.num_heads}, {', '.join(shown)}"


_SHOWN = (
    *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "q_lora_rank"),
    *("dropout", "softmax_scale", "causal", "deterministic"),
)


def _size(name: str, value: Any, largest: int = 2**31 - 1) -> int:
    size = as_int(name, value)
    if not 1 <= size <= largest:
        raise ValueError(f"{name} must be from 1 to {largest}, got {size}")
    return size


def _check_width(cache: tuple[Tensor, ...], kv_lora_rank: int, qk_rope_head_dim: int) -> None:
    width = kv_lora_rank + qk_rope_head_dim
    got = [(x.shape[2], x.shape[3]) for x in cache[:2]]
    if got != [(1, width), (1, kv_lora_rank)]:
        raise ValueError(
            f"cache must hold latents of one head, {width} wide with values of {kv_lora_rank}, got "
            f"heads and widths {got[0]} and {got[1]}: it is a PagedKVCache(..., num_heads_kv=1, "
            f"head_dim={width}, head_dim_v={kv_lora_rank}, shared_kv=True)"
        )
