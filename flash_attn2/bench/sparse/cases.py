"""What is measured: patterns, lengths, and with or without a backward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from flash_attn2.bench.cases import DTYPES
from flash_attn2.bench.modes import FORWARD, TRAINING, Mode
from flash_attn2.bench.sparse.patterns import PATTERNS
from flash_attn2.bench.suite import Outcome

PASSES = {mode.name: mode for mode in (FORWARD, TRAINING)}
GROUPS = {mode.name: mode.title.lower() for mode in PASSES.values()}


@dataclass(frozen=True)
class SparseCase:
    """Self-attention of one sequence, (1, seqlen, num_heads, head_dim), by a block mask."""

    name: str
    group: str  # a key of GROUPS: what runs
    dtype: str
    pattern: str  # a key of PATTERNS
    seqlen: int
    num_heads: int
    head_dim: int

    @staticmethod
    def of(outcome: Outcome) -> SparseCase:
        """That of a line of a record."""
        return SparseCase(**outcome["case"])

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def mode(self) -> Mode:
        return PASSES[self.group]

    @property
    def dense_flops(self) -> float:
        """Floating-point operations if every query saw every key."""
        return 4.0 * self.head_dim * self.num_heads * self.seqlen**2 * self.mode.flops

    @property
    def shape(self) -> str:
        """For people: `1 x 16384 x 2 x 64`."""
        return f"1 x {self.seqlen} x {self.num_heads} x {self.head_dim}"

    @property
    def description(self) -> tuple[str, str]:
        """For people: the shape, and `forward pass`."""
        return self.shape, GROUPS[self.group]


@dataclass(frozen=True)
class SparseProfile:
    """Every pattern at each of `seqlens`."""

    seqlens: tuple[int, ...]
    dtypes: tuple[str, ...]
    num_heads: int
    head_dims: tuple[int, ...] = (64,)
    patterns: tuple[str, ...] = tuple(PATTERNS)

    def select(
        self,
        seqlens: tuple[int, ...] | None,
        head_dims: tuple[int, ...] | None,
        dtypes: tuple[str, ...] | None,
    ) -> SparseProfile:
        """With such values; None: the profile's own."""
        given = {"seqlens": seqlens, "head_dims": head_dims, "dtypes": dtypes}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value}
        return replace(self, **changes)


PROFILES = {
    "cpu-demo": SparseProfile(
        seqlens=(1024, 4096),
        dtypes=("bfloat16",),
        num_heads=2,
        patterns=("bigbird", "documents", "random-10"),
    ),
    "cpu": SparseProfile(
        seqlens=(1024, 4096, 16384, 65536), dtypes=("float32", "bfloat16"), num_heads=2
    ),
    "cuda": SparseProfile(seqlens=(1024, 4096, 16384, 65536), dtypes=("bfloat16",), num_heads=12),
}
PROFILES["cuda-demo"] = replace(
    PROFILES["cuda"], seqlens=(4096, 16384), patterns=PROFILES["cpu-demo"].patterns
)


def build_cases(profile: SparseProfile) -> list[SparseCase]:
    """All cases of `profile`, in the order in which they run."""
    several = len(profile.head_dims) > 1
    return [
        SparseCase(
            name=f"{pattern}/{f'd{head_dim}/' if several else ''}s{seqlen}/{DTYPES[dtype]}/{group}",
            group=group,
            dtype=dtype,
            pattern=pattern,
            seqlen=seqlen,
            num_heads=profile.num_heads,
            head_dim=head_dim,
        )
        for group in GROUPS
        for dtype in profile.dtypes
        for pattern in profile.patterns
        for head_dim in profile.head_dims
        for seqlen in profile.seqlens
    ]
