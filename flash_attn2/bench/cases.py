"""What is measured: head dimensions, sequence lengths and the attention layers of real models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from flash_attn2.bench.corpus import Corpus
from flash_attn2.bench.suite import Outcome

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Widths(NamedTuple):
    """Columns of the heads of queries and keys, and of values: `192/128`, or `64` for both."""

    keys: int
    values: int

    @staticmethod
    def of(head_dim: int | Widths) -> Widths:
        return head_dim if isinstance(head_dim, Widths) else Widths(head_dim, head_dim)

    def __str__(self) -> str:
        return str(self.keys) if self.keys == self.values else f"{self.keys}/{self.values}"

    @property
    def head_dim_v(self) -> int | None:
        """As cases have it."""
        return None if self.keys == self.values else self.values


@dataclass(frozen=True)
class Case:
    """One self-attention problem; sequence `i` has `seqlens[i]` queries and as many keys."""

    name: str
    group: str  # "head_dim", "seqlen" or "model"
    dtype: str
    num_heads: int
    num_heads_kv: int
    head_dim: int
    seqlens: tuple[int, ...]
    packed: bool  # (total, heads, head_dim) with cu_seqlens, else (batch, seqlen, heads, head_dim)
    causal: bool
    window_left: int = -1  # keys that a query sees to its left; -1: all of them
    softcap: float = 0.0
    dropout_p: float = 0.0  # of one dense sequence only: see accuracy.measure_gradients
    head_dim_v: int | None = None  # None: as wide as keys

    @property
    def widths(self) -> Widths:
        return Widths(self.head_dim, self.head_dim_v or self.head_dim)

    @staticmethod
    def of(outcome: Outcome) -> Case:
        """That of a line of a record."""
        return Case(**outcome["case"] | {"seqlens": tuple(outcome["case"]["seqlens"])})

    @property
    def window_size(self) -> tuple[int, int]:
        return self.window_left, 0 if self.causal else -1

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def total(self) -> int:
        return sum(self.seqlens)

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_heads_kv

    @property
    def pairs(self) -> float:
        """Pairs of a query and a visible key, of all heads.

        As in the FlashAttention papers, with causal attention counted as half of the square.
        Windows and packed sequences are counted pair by pair.
        """
        if self.packed or self.window_left >= 0:
            pairs: float = sum(
                visible_pairs(n, self.window_left, self.causal) for n in self.seqlens
            )
        else:
            pairs = sum(n * n for n in self.seqlens) * (0.5 if self.causal else 1.0)
        return self.num_heads * pairs

    @property
    def flops(self) -> float:
        """Floating-point operations of the forward pass: 2 · (head_dim + head_dim_v) a pair."""
        return 2.0 * sum(self.widths) * self.pairs

    @property
    def description(self) -> tuple[str, str]:
        """For people: `8 x 1024 x 32/8 x 128` and `causal, window 512`."""
        rows = (
            f"{self.total} in {len(self.seqlens)}"
            if self.packed
            else f"{len(self.seqlens)} x {self.seqlens[0]}"
        )
        heads = str(self.num_heads)
        if self.num_heads_kv != self.num_heads:
            heads += f"/{self.num_heads_kv}"
        options = ["causal" if self.causal else "full"]
        if self.window_left >= 0:
            options.append(f"window {self.window_left}")
        if self.softcap:
            options.append(f"softcap {self.softcap:g}")
        if self.dropout_p:
            options.append(f"dropout {self.dropout_p:g}")
        return f"{rows} x {heads} x {self.widths}", ", ".join(options)


def visible_pairs(seqlen: int, window_left: int, causal: bool) -> int:
    """Pairs of a query and a key that it attends to, in one sequence of `seqlen` rows."""
    reach = seqlen - 1 if window_left < 0 else min(window_left, seqlen - 1)
    # Queries 0 … reach see all keys to their left, later ones see `reach` of them.
    left = reach * (reach + 1) // 2 + (seqlen - 1 - reach) * reach
    right = 0 if causal else seqlen * (seqlen - 1) // 2
    return left + seqlen + right


@dataclass(frozen=True)
class Model:
    """The attention layer of a published model, from its configuration file."""

    name: str
    num_heads: int
    num_heads_kv: int
    head_dim: int
    context: int  # longest sequence
    causal: bool = True
    window_left: int = -1
    softcap: float = 0.0
    dropout_p: float = 0.0  # in training
    head_dim_v: int | None = None  # None: as wide as keys

    def shard(self, ranks: int) -> Model:
        """What one of `ranks` tensor-parallel processes computes."""
        return replace(
            self,
            name=f"{self.name}/tp{ranks}" if ranks > 1 else self.name,
            num_heads=self.num_heads // ranks,
            num_heads_kv=self.num_heads_kv // ranks,
        )


LLAMA_3_8B = Model("llama-3-8b", 32, 8, 128, context=8192)
QWEN_2_5_7B = Model("qwen2.5-7b", 28, 4, 128, context=32768)
FALCON_7B = Model("falcon-7b", 71, 1, 64, context=2048)
GPT_J_6B = Model("gpt-j-6b", 16, 16, 256, context=2048)
CODEGEN_6B = Model("codegen-6b", 16, 16, 256, context=2048)
# Gemma 2 alternates layers with a window and layers without one.
GEMMA_2_9B_GLOBAL = Model("gemma-2-9b/global", 16, 8, 256, context=8192, softcap=50.0)
GEMMA_2_9B_LOCAL = replace(GEMMA_2_9B_GLOBAL, name="gemma-2-9b/local", window_left=4096)
PHI_3_MINI = Model("phi-3-mini", 32, 32, 96, context=4096, window_left=2047)
# Multi-head latent attention as training and prefill compute it: 128 columns of a key, and 64 that
# are rotated.
DEEPSEEK_V3 = Model("deepseek-v3", 128, 128, 192, context=131072, head_dim_v=128)
GPT_2 = Model("gpt2", 12, 12, 64, context=1024, dropout_p=0.1)
BERT_LARGE = Model("bert-large", 16, 16, 64, context=512, causal=False)
# Self-attention of the U-Net at 512 x 512 pixels: a latent image of 64 x 64, then 32 and 16.
STABLE_DIFFUSION = tuple(
    Model(f"stable-diffusion/{edge}x{edge}", 8, 8, head_dim, context=edge * edge, causal=False)
    for edge, head_dim in ((64, 40), (32, 80), (16, 160))
)

DOCUMENT_MODELS = (LLAMA_3_8B, QWEN_2_5_7B, FALCON_7B, GPT_J_6B, GEMMA_2_9B_GLOBAL)
PACKED_MODELS = (LLAMA_3_8B, CODEGEN_6B, BERT_LARGE)
SHARDED_MODELS = (DEEPSEEK_V3.shard(16),)
WINDOW_MODELS = (GEMMA_2_9B_LOCAL, PHI_3_MINI)


@dataclass(frozen=True)
class Profile:
    """How large the cases are. Lengths are in tokens (or bytes, see `Corpus`)."""

    head_dims: tuple[int | Widths, ...]
    head_dim_seqlens: tuple[int, ...]  # sequence lengths of the head-dim sweep
    seqlens: tuple[int, ...]
    seqlen_head_dims: tuple[int | Widths, ...]  # head dims of the sequence-length sweep
    sweep_rows: int  # batch · seqlen of both sweeps, where a sequence is not longer
    sweep_width: int  # num_heads · head_dim of both sweeps; 0: eight heads
    document: int  # length of the document that models read
    packed: int  # rows of a batch of packed documents
    images: int
    ranks: int  # tensor-parallel share of the models with a window, whose sequences are long
    masks: tuple[bool, ...] = (False, True)  # causal or not, in both sweeps
    sweep_dtypes: tuple[str, ...] = ("float32", "bfloat16")
    model_dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def select(
        self,
        seqlens: tuple[int, ...] | None,
        head_dims: tuple[Widths, ...] | None,
        dtypes: tuple[str, ...] | None,
    ) -> Profile:
        """With such values in every sweep; None: the profile's own."""
        changes: dict[str, Any] = {}
        if seqlens:
            changes |= {"seqlens": seqlens, "head_dim_seqlens": seqlens}
        if head_dims:
            changes |= {"head_dims": head_dims, "seqlen_head_dims": head_dims}
        if dtypes:
            changes |= {"sweep_dtypes": dtypes, "model_dtypes": dtypes}
        return replace(self, **changes)


PROFILES = {
    "cpu-demo": Profile(
        head_dims=(32, 64, 96, 128, Widths(192, 128), 192, 256),
        head_dim_seqlens=(1024,),
        seqlens=(128, 256, 512, 1024, 2048, 4096),
        seqlen_head_dims=(64,),
        sweep_rows=1,
        sweep_width=0,
        document=1024,
        packed=2048,
        images=1,
        ranks=8,
        masks=(True,),
        model_dtypes=("bfloat16",),
    ),
    "cpu": Profile(
        head_dims=(32, 40, 64, 80, 96, 128, 160, Widths(192, 128), 192, 256, 512),
        head_dim_seqlens=(2048,),
        seqlens=(128, 256, 512, 1024, 2048, 4096, 8192),
        seqlen_head_dims=(64, 128),
        sweep_rows=1,
        sweep_width=0,
        document=2048,
        packed=8192,
        images=2,
        ranks=4,
    ),
    # The sizes of the FlashAttention-2 paper: 16k tokens, a model width of 2048.
    "cuda": Profile(
        head_dims=(32, 40, 64, 80, 96, 128, 160, Widths(192, 128), 192, 256, 512),
        head_dim_seqlens=(4096,),
        seqlens=(512, 1024, 2048, 4096, 8192, 16384),
        seqlen_head_dims=(64, 128),
        sweep_rows=16384,
        sweep_width=2048,
        document=8192,
        packed=16384,
        images=16,
        ranks=1,
        sweep_dtypes=("bfloat16",),
        model_dtypes=("bfloat16",),
    ),
}
PROFILES["cuda-demo"] = replace(
    PROFILES["cuda"],
    head_dims=(64, 128, 256),
    seqlens=(1024, 4096, 16384),
    seqlen_head_dims=(128,),
    masks=(True,),
)


def build_cases(profile: Profile, corpus: Corpus, training: bool = False) -> list[Case]:
    """All cases of `profile`, in the order in which they run; for training also with dropout."""
    cases = [
        _sweep_case(profile, "head_dim", dtype, head_dim, seqlen, causal)
        for dtype in profile.sweep_dtypes
        for causal in profile.masks
        for seqlen in profile.head_dim_seqlens
        for head_dim in profile.head_dims
    ]
    cases += [
        _sweep_case(profile, "seqlen", dtype, head_dim, seqlen, causal)
        for dtype in profile.sweep_dtypes
        for causal in profile.masks
        for head_dim in profile.seqlen_head_dims
        for seqlen in profile.seqlens
    ]
    for dtype in profile.model_dtypes:
        cases += _model_cases(profile, corpus, dtype)
        if training:
            length = min(corpus.closest(profile.document), GPT_2.context)
            case = _model_case(GPT_2, "dropout", dtype, (length,))
            cases.append(replace(case, dropout_p=GPT_2.dropout_p))
    return cases


def _sweep_case(
    profile: Profile, group: str, dtype: str, head_dim: int | Widths, seqlen: int, causal: bool
) -> Case:
    widths = Widths.of(head_dim)
    num_heads = max(profile.sweep_width // widths.keys, 1) if profile.sweep_width else 8
    mask = "causal" if causal else "full"
    return Case(
        name=f"{group}/d{widths}/s{seqlen}/{mask}/{DTYPES[dtype]}",
        group=group,
        dtype=dtype,
        num_heads=num_heads,
        num_heads_kv=num_heads,
        head_dim=widths.keys,
        head_dim_v=widths.head_dim_v,
        seqlens=(seqlen,) * max(profile.sweep_rows // seqlen, 1),
        packed=False,
        causal=causal,
    )


def _model_cases(profile: Profile, corpus: Corpus, dtype: str) -> Iterator[Case]:
    for model in DOCUMENT_MODELS + SHARDED_MODELS:
        length = min(corpus.closest(profile.document), model.context)
        yield _model_case(model, "document", dtype, (length,))
    for model in WINDOW_MODELS:
        length = min(corpus.closest(model.window_left * 3 // 2), model.context)
        yield _model_case(model.shard(profile.ranks), "document", dtype, (length,))
    for model in PACKED_MODELS:
        lengths = corpus.packed(profile.packed, model.context)
        yield _model_case(model, "packed", dtype, lengths, packed=True)
    for model in STABLE_DIFFUSION:
        yield _model_case(model, "image", dtype, (model.context,) * profile.images)


def _model_case(
    model: Model, workload: str, dtype: str, seqlens: Sequence[int], packed: bool = False
) -> Case:
    return Case(
        name=f"{model.name}/{workload}/{DTYPES[dtype]}",
        group="model",
        dtype=dtype,
        num_heads=model.num_heads,
        num_heads_kv=model.num_heads_kv,
        head_dim=model.head_dim,
        head_dim_v=model.head_dim_v,
        seqlens=tuple(seqlens),
        packed=packed,
        causal=model.causal,
        window_left=model.window_left,
        softcap=model.softcap,
    )
