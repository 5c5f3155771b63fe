"""Prints the peak extra memory of a forward and backward pass by the number of key-value heads.

    python benchmarks/gqa_memory.py [--device cuda] [--seqlen N] [--num-heads N] [--head-dim N]

"results" is what every contender must return: the output and the gradients of q, k and v. An
implementation that expands keys, values or their gradients to the query heads needs as much for
one key-value head as for many.
"""

from __future__ import annotations

import argparse

from flash_attn2.bench import memory
from flash_attn2.bench.cases import DTYPES, Case
from flash_attn2.bench.contenders import CONTENDERS, Problem
from flash_attn2.bench.modes import TRAINING
from flash_attn2.bench.report import format_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--num-heads", type=int, default=32)
    parser.add_argument("--head-dim", type=int, default=128)
    args = parser.parse_args()

    print(f"| query heads / key-value heads | results | {' | '.join(CONTENDERS)} |")
    print("|---|" + "---:|" * (len(CONTENDERS) + 1))
    for group in (1, 2, 4, 8, 16, 32, 64):
        if args.num_heads % group != 0:
            continue
        case = Case(
            "",
            "model",
            args.dtype,
            args.num_heads,
            args.num_heads // group,
            args.head_dim,
            (args.seqlen,),
            packed=False,
            causal=True,
        )
        cells = [f"{case.num_heads} / {case.num_heads_kv}", format_bytes(result_bytes(case))]
        for contender in CONTENDERS:
            problem = Problem.create(case, args.device, gradients=True)
            size = memory.peak(problem, contender, "", TRAINING)
            cells.append("n/a" if size is None else format_bytes(size))
        print(f"| {' | '.join(cells)} |", flush=True)


def result_bytes(case: Case) -> int:
    heads = 2 * case.num_heads + 2 * case.num_heads_kv
    return case.total * heads * case.head_dim * case.torch_dtype.itemsize


if __name__ == "__main__":
    main()
