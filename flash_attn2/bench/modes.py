"""What is measured of a case: the forward pass, the backward pass, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import Call


@dataclass(frozen=True)
class Mode:
    """Products are counted as in the FlashAttention papers, by whose columns they go over."""

    name: str  # as --mode takes it
    title: str
    of_keys: int
    of_values: int

    @property
    def flops(self) -> float:
        """In forward passes, where values are as wide as keys."""
        return (self.of_keys + self.of_values) / 2

    def flops_of(self, case: Case) -> float:
        """Floating-point operations, for the visible pairs of queries and keys only."""
        keys, values = case.widths
        return 2.0 * (self.of_keys * keys + self.of_values * values) * case.pairs

    @property
    def gradients(self) -> bool:
        return self.of_keys > 1


FORWARD = Mode("fwd", "Forward pass", 1, 1)
BACKWARD = Mode("bwd", "Backward pass", 3, 2)  # scores, dQ and dK; dP and dV
TRAINING = Mode("fwd+bwd", "Forward and backward pass", 4, 3)
MODES: Mapping[str, Mode] = {mode.name: mode for mode in (FORWARD, BACKWARD, TRAINING)}
# Beside those, as --mode takes them: of other cases altogether.
DECODE = "decode"
SPARSE = "sparse"


def timed(mode: Mode, call: Call, grad_out: Tensor | None) -> Callable[[], Any]:
    """What to put between two readings of a clock; all else is done here.

    `grad_out` (total, num_heads, head_dim_v) is the gradient of the call's rows, where the mode has
    a backward pass. That pass alone runs again and again over the graph of one forward pass.
    """
    if grad_out is None:
        return call.run
    grad_result = call.layout.from_rows(grad_out)
    if mode == TRAINING:
        return lambda: torch.autograd.grad(call.run(), call.leaves, grad_result)
    result = call.run()
    return lambda: torch.autograd.grad(result, call.leaves, grad_result, retain_graph=True)


def gradients(call: Call, grad_out: Tensor) -> dict[str, Tensor]:
    """Of q, k and v, each as rows (total, heads, its width)."""
    grad_result = call.layout.from_rows(grad_out)
    parts = torch.autograd.grad(call.run(), call.leaves, grad_result)
    return {
        name: torch.cat([call.input_layout.to_rows(part) for part in parts[index::3]])
        for index, name in enumerate(("grad_q", "grad_k", "grad_v"))
    }
