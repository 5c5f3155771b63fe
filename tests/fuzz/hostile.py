"""Lengths, tables and positions that lead anywhere, for kernels that no check stands in front of.

On a GPU nobody reads such values before the kernel does. On the CPU checks do; the kernels hold all
the same, for what another thread writes while a call runs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from flash_attn2._impl import cache_values, forms

from .masks import tensors_of

LIMITS = (-(2**31), -(2**30), -17, -1, 0, 1, 2, 31, 100, 321, 10**6, 2**30, 2**31 - 1)
LIMITS_64 = (*LIMITS, -(2**63), -(2**40), 2**33 + 1, 2**62, 2**63 - 1)


def make_hostile(arguments: dict[str, Any], seed: int) -> None:
    """Replaces many of the integers, in place."""
    draw = random.Random(seed)
    tensors = [x for x in arguments.values() if isinstance(x, Tensor) and x.dtype == torch.int32]
    if "block_mask" in arguments:  # whose lists were checked when it was made
        tensors += tensors_of(arguments["block_mask"])[:3]
    share = draw.choice((0.1, 0.5, 1.0))
    for tensor in tensors:
        flat = tensor.view(-1)
        for i in range(flat.numel()):
            if draw.random() < share:
                flat[i] = draw.choice(LIMITS_64 if tensor.dtype == torch.int64 else LIMITS)


@contextmanager
def unchecked() -> Iterator[None]:
    """Nobody looks at values."""
    with (
        mock.patch.object(forms.VARLEN, "check_values", None),
        mock.patch.object(forms.KVCACHE, "check_values", cache_values.check_layout),
        mock.patch.object(forms.KVCACHE_APPEND, "check_values", cache_values.check_layout),
        mock.patch.object(cache_values, "check_paged_lengths"),
    ):
        yield
