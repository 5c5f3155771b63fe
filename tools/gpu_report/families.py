"""Whose kernels run a call: as the native module's own plan of it says."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from flash_attn2._impl import backends
from flash_attn2._impl.backends import Backend

Plans = dict[str, str]  # in words, by entry point: forward, backward


@contextlib.contextmanager
def only_planned() -> Iterator[Plans]:
    """Meanwhile kernels are planned and none runs: results are whatever was in memory. Gives the
    plans; of several calls of an entry point, that of the first."""
    plans: Plans = {}

    def plan(self: Backend, entry_point: Callable[..., None], problem: Any, device: Any) -> None:
        name = entry_point.__name__
        words = getattr(self.module, f"plan_{name}")
        if name in plans:
            return
        if self.name == "cuda":
            with torch.cuda.device(device):
                plans[name] = words(problem, torch.cuda.current_stream().cuda_stream)
        else:
            plans[name] = words(problem, torch.get_num_threads())

    with contextlib.ExitStack() as stack:
        stack.callback(setattr, Backend, "run", Backend.run)
        Backend.run = plan  # type: ignore[method-assign]
        yield plans


def plans_of(call: Callable[[], object]) -> Plans:
    """What a call would run; of CPU tensors, only where CUDA kernels compute them."""
    with only_planned() as plans:
        call()
    return plans


def families(plans: Mapping[str, str]) -> dict[str, str]:
    """By pass. Plans of sm90 name it; all that it does not serve is sm80's."""
    return {
        name: "sm90" if re.search(r"\bsm90\b", words) else "sm80" for name, words in plans.items()
    }


def runs_cuda_kernels(device: str) -> bool:
    """Whether tensors of the device are computed by CUDA kernels, be it in the emulator."""
    return bool(backends.serving(torch.empty(0, device=device)).aligned)


def in_words(of_passes: Mapping[str, str]) -> str:
    """`sm80`, or who runs which pass; nothing where nobody was asked."""
    if len(set(of_passes.values())) > 1:
        return ", ".join(f"{family} {name}" for name, family in of_passes.items())
    return next(iter(of_passes.values()), "")
