"""What describes a step of a `PagedKVCache`, in one buffer, by one copy to the device."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

from flash_attn2._impl.pages import HeldTokens

_NO_PAGE = -1  # kernels drop what they would write there

StepTensors = tuple[Tensor, Tensor, Tensor]
"""cu_seqlens_q, cache_seqlens, block_table."""


class FixedStep:
    """Tensors of the largest step, over which every one is written, at the same addresses."""

    def __init__(self, max_batch: int, columns: int, device: torch.device) -> None:
        self.max_batch = max_batch
        self._columns = columns
        size = 1 + max_batch * (2 + columns)
        self._packed = torch.empty(size, dtype=torch.int32, device=device)

    def overwrite(self, tensors: StepTensors) -> StepTensors:
        """`tensors` of `max_batch` sequences, in their fixed places."""
        fixed = _unpack(self._packed, self.max_batch, self._columns)
        for to, new in zip(fixed, tensors, strict=True):
            to[..., : new.shape[-1]].copy_(new)
        return fixed


def step_tensors(
    held: Sequence[HeldTokens],
    seqlens: Sequence[int],
    counts: Sequence[int],
    rows: int,
    device: torch.device,
) -> StepTensors:
    """Of sequences that held `seqlens` tokens and get `counts` more; empty ones up to `rows`."""
    empty = rows - len(held)
    columns = max((len(sequence.pages) for sequence in held), default=1) or 1
    data = array("i", itertools.accumulate(counts, initial=0))
    data.extend([data[-1]] * empty)
    data.extend(seqlens)
    data.extend([0] * empty)
    none = array("i", [_NO_PAGE]) * columns
    for sequence in held:
        data += sequence.pages
        data += none[len(sequence.pages) :]
    data += none * empty
    if _len_torch_dispatch_stack() == 0:
        packed = torch.frombuffer(data, dtype=torch.int32)
    else:  # which a buffer gets past, FakeTensorMode for one
        packed = torch.tensor(data.tolist(), dtype=torch.int32)
    if device.type == "cuda":
        packed = packed.pin_memory()
    return _unpack(packed.to(device, non_blocking=True), rows, columns)


def _unpack(packed: Tensor, rows: int, columns: int) -> StepTensors:
    lengths, table = packed[: 2 * rows + 1], packed[2 * rows + 1 :]
    return lengths[: rows + 1], lengths[rows + 1 :], table.view(rows, columns)
