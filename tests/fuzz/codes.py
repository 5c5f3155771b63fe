"""Caches of 8 bits and their scales."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flash_attn2.reference import quantised, row_scales

from .layout import PLAIN, Spec
from .memory import guarded, guarded_copy

CODES = ("float8_e4m3fn", "float8_e5m2", "int8")
UNITS = ("sequence", "page", "row")
# Of what does not follow from rows; most numbers of a normal distribution do not saturate.
SCALE = {"float8_e4m3fn": 1 / 256, "float8_e5m2": 1 / 2**15, "int8": 1 / 64}


@dataclass(frozen=True)
class CodeSpec:
    """The codes of a tensor of numbers, in its layout."""

    numbers: Spec  # in float32
    code: str
    unit: str

    def build(self, behind: bool) -> Tensor:
        spec, code = self.numbers, getattr(torch, self.code)
        numbers = replace(spec, layout=PLAIN).build(behind)
        scales = row_scales(numbers, code)[..., None] if self.unit == "row" else SCALE[self.code]
        codes = quantised(numbers, torch.as_tensor(scales), code).view(torch.uint8)
        memory = guarded(spec.count, torch.uint8, behind)
        if spec.count == 0:
            return memory.view(spec.size).view(code)
        return (
            memory.as_strided(spec.size, spec.strides, spec.layout.offset).copy_(codes).view(code)
        )


@dataclass(frozen=True)
class ScaleSpec:
    """The scales of such a cache."""

    codes: CodeSpec
    batch: int

    def build(self, behind: bool) -> Tensor:
        numbers, unit, name = self.codes.numbers, self.codes.unit, self.codes.code
        if unit == "row":
            rows = replace(numbers, layout=PLAIN).build(behind)
            return guarded_copy(row_scales(rows, getattr(torch, name)), behind)
        num_pages, _, heads, _ = numbers.size
        size = (self.batch, heads) if unit == "sequence" else (num_pages, 1, heads)
        torch.manual_seed(numbers.seed + 20)
        return guarded_copy(SCALE[name] * (0.5 + torch.rand(size)), behind)


def drawn_codes(draw: random.Random) -> dict[str, str]:
    """Fields of a use of a cache."""
    return {"codes": draw.choice(CODES), "scales": draw.choice(UNITS)}
