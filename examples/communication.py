"""Bytes that a rank sends while it runs something, as PyTorch's profiler sees them (gloo, CPU)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

ITEMSIZE = {"unsigned char": 1, "c10::BFloat16": 2, "c10::Half": 2, "int": 4, "float": 4}
ITEMSIZE |= {"long int": 8, "long": 8, "double": 8}


def bytes_sent(step: Callable[[], object], rank: int, ranks: int) -> dict[str, int]:
    """By kind: "messages" to single ranks and what all_to_all exchanges, and "collectives", for
    which each rank sends what it does where they go around a ring."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write to the terminal
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        step()
    sent = {"messages": 0, "collectives": 0}
    for event in profile.profiler.kineto_results.events():
        name = event.name()
        if name == "c10d::alltoall_base_":
            sent["messages"] += _exchanged(event, rank)
        elif name == "gloo:send":
            sent["messages"] += _input_bytes(event)
        elif name == "gloo:all_gather":  # its own part, to all others
            sent["collectives"] += (ranks - 1) * _input_bytes(event)
        elif name == "gloo:all_reduce":  # summed by parts, and those gathered
            sent["collectives"] += 2 * (ranks - 1) * _input_bytes(event) // ranks
        elif name == "gloo:reduce_scatter":
            sent["collectives"] += (ranks - 1) * _input_bytes(event) // ranks
    return sent


def _input_bytes(event: Any) -> int:
    return ITEMSIZE[event.dtypes()[0]] * torch.Size(event.shapes()[0]).numel()


def _exchanged(event: Any, rank: int) -> int:
    """All but the rank's part for itself, by the sizes of the parts that it sends."""
    sizes = event.concrete_inputs()[4]
    return ITEMSIZE[event.dtypes()[1]] * (sum(sizes) - sizes[rank])
