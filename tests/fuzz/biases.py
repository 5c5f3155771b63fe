"""Biases of problems: what they broadcast over, and how they lie in memory."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from .layout import PLAIN, Layout, Spec, drawn_layout, short_repr


@dataclass(frozen=True)
class Biases:
    """What `bias` and `relative_bias` are like."""

    rank: int = 0  # of bias; 0: there is none
    ones: tuple[int, ...] = ()  # dimensions of size 1, counted from the last
    float32: bool = False  # else in the dtype of q
    values: str = "normal"
    layout: Layout = PLAIN
    relative: str = ""  # or one or all: its heads

    def __repr__(self) -> str:
        return short_repr(self)


NO_BIASES = Biases()


def drawn_biases(draw: random.Random) -> Biases:
    rank = draw.choice((0, 1, 2, 3, 4, 4, 4))
    return Biases(
        rank=rank,
        ones=tuple(dim for dim in range(-rank, 0) if draw.random() < 0.4),
        float32=draw.random() < 0.5,
        values=draw.choice(("normal", "normal", "wide", "hiding")),
        layout=drawn_layout(draw),
        relative=draw.choice(("", "one", "all")) if rank else draw.choice(("one", "all")),
    )


def bias_specs(
    biases: Biases, size: tuple[int, int, int, int], dtype: torch.dtype, seed: int
) -> dict[str, Any]:
    """The arguments for scores of this size."""
    specs = {}
    _, heads, seqlen_q, seqlen_k = size
    if biases.rank:
        shape = [1 if dim in biases.ones else size[dim] for dim in range(-biases.rank, 0)]
        specs["bias"] = Spec(
            "bias",
            tuple(shape),
            torch.float32 if biases.float32 else dtype,
            biases.values,
            biases.layout,
            seed,
        )
    if biases.relative:
        diagonals = seqlen_q + seqlen_k - 1 if seqlen_q and seqlen_k else 0
        shape = [heads if biases.relative == "all" else 1, diagonals]
        specs["relative_bias"] = Spec(
            "relative_bias", tuple(shape), torch.float32, layout=biases.layout, seed=seed + 1
        )
    return specs
