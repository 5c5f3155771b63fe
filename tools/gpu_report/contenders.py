"""Who is compared on a GPU: SDPA by each of its backends, and flash-attn where it is installed."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flash_attn2.bench.contenders import (
    CONTENDERS,
    PACKED,
    SDPA,
    Call,
    Problem,
    Variants,
    rows_first,
)
from flash_attn2.bench.decode.contenders import CONTENDERS as OVER_CACHE
from flash_attn2.bench.decode.contenders import DecodeCall, DecodeProblem
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import UnavailableError

SDPA_FLASH = "SDPA flash"
FLASH_ATTN = "flash-attn"
_BACKENDS = {
    SDPA_FLASH: "FLASH_ATTENTION",
    "SDPA cuDNN": "CUDNN_ATTENTION",
    "SDPA efficient": "EFFICIENT_ATTENTION",
}


def _by_backend(name: str, problem: Problem) -> Variants:
    """SDPA's ways to run a problem, all of them by one backend."""
    backend = getattr(SDPBackend, _BACKENDS[name], None)
    if backend is None:
        raise UnavailableError(f"not in torch {torch.__version__}")
    return {
        variant: functools.partial(_held_to, backend, build)
        for variant, build in CONTENDERS[SDPA](problem).items()
    }


def _held_to(backend: SDPBackend, build: Callable[[], Call]) -> Call:
    call = build()

    def run() -> Any:
        with sdpa_kernel(backend):
            return call.run()

    return dataclasses.replace(call, run=run)


def installed_flash_attn() -> ModuleType:
    """UnavailableError where it is not there, or is what flash_attn2 offers in its place."""
    try:
        module = importlib.import_module("flash_attn")
    except Exception as error:  # one that was built for another torch fails in many ways
        raise UnavailableError(f"not installed ({type(error).__name__})") from error
    if "flash_attn2" in (getattr(module, "__file__", None) or "flash_attn2"):
        raise UnavailableError("it is flash_attn2's own")
    return module


def _flash_attn(problem: Problem) -> Variants:
    module = installed_flash_attn()
    case = problem.case
    if not case.packed:
        layout = rows_first(len(case.seqlens))

        def dense() -> Call:
            q, k, v = inputs = problem.inputs(layout)
            return Call(
                lambda: module.flash_attn_func(q, k, v, causal=case.causal),
                layout,
                [inputs],
                layout,
            )

        return {"": dense}

    def packed() -> Call:
        q, k, v = inputs = problem.inputs(PACKED)
        ends = torch.tensor([0, *case.seqlens], device=q.device).cumsum(0).int()
        longest = max(case.seqlens)
        return Call(
            lambda: module.flash_attn_varlen_func(
                q, k, v, ends, ends, longest, longest, causal=case.causal
            ),
            PACKED,
            [inputs],
            PACKED,
        )

    return {"": packed}


def _flash_attn_over_cache(problem: DecodeProblem) -> DecodeCall:
    module = installed_flash_attn()
    if problem.case.page_size % 256:
        raise UnavailableError("pages of 256")

    def attend(k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = module.flash_attn_with_kvcache(
            problem.q, k, v, cache_seqlens=problem.cache_seqlens, block_table=problem.block_table
        )
        return out

    return DecodeCall(attend, problem.layers)


ATTENTION: Mapping[str, Callable[[Problem], Variants]] = {
    FLASH_ATTN2: CONTENDERS[FLASH_ATTN2],
    **{name: functools.partial(_by_backend, name) for name in _BACKENDS},
    FLASH_ATTN: _flash_attn,
}
DECODING: Mapping[str, Callable[[DecodeProblem], DecodeCall]] = {
    **OVER_CACHE,
    FLASH_ATTN: _flash_attn_over_cache,
}
