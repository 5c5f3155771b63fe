"""One tile's process: times a call whenever it is told to.

    python -m tools.gpu_tune.worker MODE HEAD_DIM SEQLEN MASK --device cuda

The package that is imported decides whose kernels run. Says first whether results are right; then,
for each line that it reads, the seconds of one call.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from flash_attn2.bench import accuracy, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import CONTENDERS, Problem
from flash_attn2.bench.modes import MODES, timed
from flash_attn2.bench.race import FLASH_ATTN2

_TOKENS, _WIDTH = 16384, 2048  # the FlashAttention-2 paper's protocol
_EMULATED_TOKENS = 32


def case_of(head_dim: int, seqlen: int, causal: bool, device: str) -> Case:
    tokens = _TOKENS if device == "cuda" else _EMULATED_TOKENS
    seqlen = min(seqlen, tokens)
    heads = _WIDTH // head_dim if device == "cuda" else 1
    return Case(
        "tile",
        "head_dim",
        "float16",
        heads,
        heads,
        head_dim,
        (seqlen,) * (tokens // seqlen),
        packed=False,
        causal=causal,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.gpu_tune.worker")
    parser.add_argument("mode", choices=tuple(MODES))
    parser.add_argument("head_dim", type=int)
    parser.add_argument("seqlen", type=int)
    parser.add_argument("mask", choices=("full", "causal"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args(arguments)
    mode = MODES[given.mode]
    case = case_of(given.head_dim, given.seqlen, given.mask == "causal", given.device)
    with contextlib.nullcontext() if mode.gradients else torch.inference_mode():
        problem = Problem.create(case, given.device, gradients=mode.gradients)
        call = CONTENDERS[FLASH_ATTN2](problem)[""]()
        if mode.gradients:
            errors = accuracy.measure_gradients(problem, {FLASH_ATTN2: call})
        else:
            errors = accuracy.measure(problem, {FLASH_ATTN2: call.rows(call.run())})
        run = timed(mode, call, problem.grad_out)
        clock = timing.clock(given.device)
        if given.device == "cuda":
            timing.estimate(run, clock)  # warms up
        is_right = errors.within_tolerance(FLASH_ATTN2)
        say({"right": is_right, "flops": case.flops * mode.flops})
        for _ in sys.stdin:
            say({"seconds": clock.measure(run, 1)})
    return 0


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
