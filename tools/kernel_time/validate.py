"""Compare the model with what was published of FlashAttention-2.

    python -m tools.kernel_time.validate FOLDER [--machine A100|H100]

FOLDER holds machine code of FlashAttention-2's float16 kernels, one kernel a file, such as
``fwd_hd64_full.sm_80.cubin`` or ``bwd_hd128_causal.sm_90.cubin``: explicit instantiations of its
``flash_fwd_kernel`` and ``flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel`` with the tiles below and
everything even. Files that are missing are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_check.listing import disassemble
from tools.kernel_time.control import parse
from tools.kernel_time.device import Kernel, protocol_problem, row_kernels_seconds
from tools.kernel_time.machines import MACHINES, POLICIES, Machine
from tools.kernel_time.paths import paths_of
from tools.kernel_time.published import A100_BOTH, H100_BACKWARD, H100_FORWARD, LENGTHS
from tools.kernel_time.simulation import Simulation
from tools.kernel_time.tiles import Counts, Tile, TileError
from tools.kernel_time.turns import SEEDS, Turns
from tools.nvcc.toolchain import find_or_fetch

# Of FlashAttention-2 on devices with much shared memory: queries, keys, warps, CTAs on an SM.
_TILES = {
    ("fwd", 64): (128, 128, 4, 2),
    ("fwd", 128): (128, 64, 4, 2),
    ("fwd", 256): (128, 64, 8, 1),
    ("bwd", 64): (128, 128, 8, 1),
    ("bwd", 128): (64, 128, 8, 1),
}


@dataclass(frozen=True)
class Row:
    """TFLOP/s at ``LENGTHS``; the kinds count together."""

    kinds: tuple[str, ...]
    head_dim: int
    causal: bool
    published: tuple[int, ...]


ROWS = {
    "A100": [Row(("fwd", "bwd"), *key, numbers) for key, numbers in A100_BOTH.items()],
    "H100": [Row(("fwd",), *key, numbers) for key, numbers in H100_FORWARD.items()]
    + [Row(("bwd",), *key, numbers) for key, numbers in H100_BACKWARD.items()],
}


def their_tile(kind: str, head_dim: int) -> Tile:
    """Of their tiles only the MMAs of a turn are told: by these the loop is found."""
    block_m, block_n, warps, _ = _TILES[kind, head_dim]
    products = (2 if kind == "fwd" else 5) * block_m * block_n * head_dim
    turn = Counts(mmas=products // (16 * 8 * 16 * warps))
    return Tile(kind, head_dim, block_m, block_n, warps, Counts(), turn, Counts())


def file_of(folder: Path, kind: str, row: Row, machine: Machine) -> Path:
    mask = "causal" if row.causal else "full"
    return folder / f"{kind}_hd{row.head_dim}_{mask}.sm_{machine.arch}.cubin"


def their_kernel(
    cubin: Path, kind: str, row: Row, machine: Machine, policy: str, seeds: tuple[int, ...]
) -> Kernel:
    """The kernel with tensor-core instructions of a file, with its costs."""
    tile = their_tile(kind, row.head_dim)
    listing = disassemble(find_or_fetch("cuobjdump"), cubin)
    codes = [
        code
        for _, code in parse(listing.splitlines())
        if any(coded.instruction.kind == "mma" for coded in code)
    ]
    if len(codes) != 1:
        raise TileError(f"{cubin} has {len(codes)} kernels with MMAs, not one")
    paths = paths_of(codes[0], tile, peels=True)
    slots = _TILES[kind, row.head_dim][3]
    turns = Turns(Simulation(paths, machine.sm), tile.warps, slots, policy, seeds)
    return Kernel(tile, turns.cost(), paths.peeled, last_first=False)


def together(machine: Machine, kernels: Sequence[Kernel], row: Row) -> Iterator[float]:
    """TFLOP/s of a row's kinds, one after the other."""
    for length in LENGTHS:
        problem = protocol_problem(length, row.head_dim, row.causal)
        seconds = sum(kernel.launch_seconds(machine, problem) for kernel in kernels)
        if "bwd" in row.kinds:
            seconds += row_kernels_seconds(machine, problem)
        yield sum(problem.flop(kind) for kind in row.kinds) / seconds / 1e12


def errors(predicted: Sequence[float], published: Sequence[int]) -> list[float]:
    return [is_ / was - 1 for is_, was in zip(predicted, published, strict=True)]


def line(row: Row, policy: str, predicted: Sequence[float]) -> str:
    name = f"{'+'.join(row.kinds)} {row.head_dim} {'causal' if row.causal else 'full'}"
    off = "/".join(f"{error:+.1%}" for error in errors(predicted, row.published))
    said = "/".join(f"{value:.0f}" for value in predicted)
    return f"{name}, {policy}: published {'/'.join(map(str, row.published))}, model {said}, {off}"


def validate(folder: Path, machine: Machine, policy: str, seeds: tuple[int, ...]) -> list[float]:
    """Print a line for each row that there are files of; all errors."""
    found = []
    for row in ROWS[machine.name]:
        files = [file_of(folder, kind, row, machine) for kind in row.kinds]
        if not all(file.is_file() for file in files):
            continue
        kernels = [
            their_kernel(file, kind, row, machine, policy, seeds)
            for file, kind in zip(files, row.kinds, strict=True)
        ]
        predicted = list(together(machine, kernels, row))
        print(line(row, policy, predicted), flush=True)
        found += errors(predicted, row.published)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.kernel_time.validate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--machine", choices=ROWS, default="A100")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="simulations to average")
    arguments = parser.parse_args(argv)
    machine, seeds = MACHINES[arguments.machine], tuple(range(arguments.seeds))
    for policy in POLICIES:
        found = validate(arguments.folder, machine, policy, seeds)
        if not found:
            print(f"no kernel of sm_{machine.arch} in {arguments.folder}", file=sys.stderr)
            return 1
        sizes = [abs(error) for error in found]
        print(
            f"{policy}: {len(found)} points, median error {statistics.median(sizes):.1%}, "
            f"largest {max(sizes):.1%}, mean {statistics.mean(found):+.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
