"""Masks that the command line takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from flash_attn2.distributed.work import ALL
from flash_attn2.masks import Pattern, bigbird, causal, documents, longformer, window

FORMS = "causal, none, window:KEYS, documents:COUNT, bigbird, longformer"
_SEED = 0


def pattern_of(text: str, seqlen: int) -> Pattern:
    """A pattern of FORMS: a causal window of so many keys; so many causal documents of random
    lengths, always the same. ValueError for anything else."""
    name, _, number = text.partition(":")
    if name in ("window", "documents"):
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= seqlen:
            raise ValueError(f"--mask {name} must have a number from 1 to {seqlen}, got {text!r}")
        return window(int(number), 0) if name == "window" else _documents(int(number), seqlen)
    if text == "none":
        return ALL
    simple: dict[str, Callable[[], Pattern]] = {
        "causal": causal,
        "bigbird": bigbird,
        "longformer": longformer,
    }
    if text not in simple:
        raise ValueError(f"--mask must be one of {FORMS}, got {text!r}")
    return simple[text]()


def _documents(count: int, seqlen: int) -> Pattern:
    draw = torch.Generator().manual_seed(_SEED)
    cuts = torch.randperm(seqlen - 1, generator=draw)[: count - 1].add(1).sort().values
    ends = torch.tensor([0]), cuts, torch.tensor([seqlen])
    return documents(cu_seqlens=torch.cat(ends)) & causal()
