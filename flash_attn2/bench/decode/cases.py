"""What is measured: batch, length of the cache, heads that share keys, and page size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from flash_attn2.bench.cases import DTYPES
from flash_attn2.bench.suite import Outcome

GROUPS = {
    "batch": "batch",
    "kv_length": "keys per sequence",
    "group": "query heads per key head",
    "page_size": "page size",
}
_PREFIXES = {"batch": "b", "kv_length": "s", "group": "g", "page_size": "p"}


@dataclass(frozen=True)
class DecodeCase:
    """`batch` sequences with `seqlen_k` keys each; one query of each."""

    name: str
    group: str  # a key of GROUPS: what it varies
    dtype: str
    batch: int
    seqlen_k: int
    num_heads: int
    num_heads_kv: int
    head_dim: int
    page_size: int = 0  # 0: one piece per sequence

    @staticmethod
    def of(outcome: Outcome) -> DecodeCase:
        """That of a line of a record."""
        return DecodeCase(**outcome["case"])

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_heads_kv

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values that count, each of which has to be read once."""
        rows = 2 * self.batch * self.seqlen_k * self.num_heads_kv
        return rows * self.head_dim * self.torch_dtype.itemsize

    @property
    def varied(self) -> int:
        """The value of what this case's group varies."""
        values = {
            "batch": self.batch,
            "kv_length": self.seqlen_k,
            "group": self.group_size,
            "page_size": self.page_size,
        }
        return values[self.group]

    @property
    def description(self) -> tuple[str, str]:
        """For people: `8 x 8192 x 32/8 x 128` and `pages of 16`."""
        shape = f"{self.batch} x {self.seqlen_k} x {self.num_heads}/{self.num_heads_kv}"
        pages = f"pages of {self.page_size}" if self.page_size else "contiguous"
        return f"{shape} x {self.head_dim}", pages


@dataclass(frozen=True)
class DecodeProfile:
    """The values of each sweep. Elsewhere there are `batch` sequences of each of `base_seqlens`."""

    batches: tuple[int, ...]
    seqlens_k: tuple[int, ...]
    group_sizes: tuple[int, ...]
    page_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    batch: int
    base_seqlens: tuple[int, ...]
    num_heads: int = 32  # with 8 key heads and a head dim of 128, those of Llama 3 8B
    num_heads_kv: int = 8
    head_dim: int = 128

    def select(
        self, seqlens: tuple[int, ...] | None, dtypes: tuple[str, ...] | None
    ) -> DecodeProfile:
        """With such values in every sweep; None: the profile's own."""
        changes: dict[str, Any] = {"dtypes": dtypes} if dtypes else {}
        if seqlens:
            changes |= {"seqlens_k": seqlens, "base_seqlens": seqlens}
        return replace(self, **changes)


PROFILES = {
    "cpu-demo": DecodeProfile(
        batches=(1, 4, 16),
        seqlens_k=(1024, 4096, 8192),
        group_sizes=(1, 8),
        page_sizes=(16, 256),
        dtypes=("bfloat16",),
        batch=8,
        base_seqlens=(2048,),
    ),
    "cpu": DecodeProfile(
        batches=(1, 2, 4, 8, 16, 32),
        seqlens_k=(512, 1024, 2048, 4096, 8192, 16384),
        group_sizes=(1, 2, 4, 8, 16, 32),
        page_sizes=(0, 1, 16, 64, 256, 1024),
        dtypes=("float32", "bfloat16"),
        batch=8,
        base_seqlens=(4096,),
    ),
    "cuda": DecodeProfile(
        batches=(1, 4, 16, 64, 128),
        seqlens_k=(512, 2048, 8192, 32768, 131072),
        group_sizes=(1, 2, 4, 8, 16, 32),
        page_sizes=(0, 1, 16, 64, 256, 1024),
        dtypes=("bfloat16",),
        batch=16,
        base_seqlens=(8192,),
    ),
}
PROFILES["cuda-demo"] = replace(
    PROFILES["cuda"],
    batches=(1, 16, 128),
    seqlens_k=(2048, 8192, 32768),
    group_sizes=(1, 8),
    page_sizes=(16, 256),
)


def build_cases(profile: DecodeProfile) -> list[DecodeCase]:
    """All cases of `profile`, in the order in which they run."""
    return [
        case
        for dtype in profile.dtypes
        for group in GROUPS
        for seqlen in (profile.base_seqlens if group != "kv_length" else profile.seqlens_k)
        for case in _sweep(profile, dtype, group, seqlen)
    ]


def _sweep(profile: DecodeProfile, dtype: str, group: str, seqlen_k: int) -> Iterator[DecodeCase]:
    """Cases of one length."""
    base = DecodeCase(
        "",
        group,
        dtype,
        profile.batch,
        seqlen_k,
        profile.num_heads,
        profile.num_heads_kv,
        profile.head_dim,
    )
    sweeps: dict[str, list[dict[str, Any]]] = {
        "batch": [{"batch": batch} for batch in profile.batches],
        "kv_length": [{}],
        "group": [{"num_heads_kv": profile.num_heads // size} for size in profile.group_sizes],
        "page_size": [{"page_size": size} for size in profile.page_sizes],
    }
    several = group != "kv_length" and len(profile.base_seqlens) > 1
    length = f"/s{seqlen_k}" if several else ""
    for changes in sweeps[group]:
        case = replace(base, **changes)
        name = f"decode/{_PREFIXES[group]}{case.varied}{length}/{DTYPES[dtype]}"
        yield replace(case, name=name)
