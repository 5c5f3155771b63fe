"""What flash_attn2 does in a case of the benchmark's suites, once: to have it planned."""

from __future__ import annotations

import contextlib

import torch

from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import Problem
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import DecodeProblem
from flash_attn2.bench.modes import BACKWARD, Mode, timed
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.sparse.cases import SparseCase
from flash_attn2.bench.sparse.contenders import SparseProblem, contenders
from tools.gpu_report.contenders import ATTENTION, DECODING


def passes(mode: Mode) -> tuple[str, ...]:
    """Those that are timed."""
    if mode == BACKWARD:
        return ("backward",)
    return ("forward", "backward") if mode.gradients else ("forward",)


def attend(case: Case, mode: Mode, device: str) -> None:
    with contextlib.nullcontext() if mode.gradients else torch.inference_mode():
        problem = Problem.create(case, device, gradients=mode.gradients)
        (build,) = ATTENTION[FLASH_ATTN2](problem).values()
        timed(mode, build(), problem.grad_out)()


def attend_masked(case: SparseCase, device: str) -> None:
    with contextlib.nullcontext() if case.mode.gradients else torch.no_grad():
        problem = SparseProblem.create(case, device)
        (build,) = contenders(0, ())[FLASH_ATTN2](problem).values()
        build().timed(problem.grad_out)()


@torch.inference_mode()
def decode(case: DecodeCase, device: str, cold_bytes: int | None) -> None:
    problem = DecodeProblem.create(case, device, cold_bytes)
    DECODING[FLASH_ATTN2](problem).timed()()
