"""Predict how long the CUDA kernels take, from their machine code; no GPU is needed.

A developer's tool: what it says is good to about 10%, and for comparing two kernels where they
differ by as much under both policies. docs/notes/timing.md says how it works and how far it was
from what was published.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools import third_party
from tools.cuda_check.compiler import Unreadable, compile_units
from tools.kernel_time.control import ListingError
from tools.kernel_time.machines import MACHINES, POLICIES, Machine
from tools.kernel_time.predict import (
    Prediction,
    Refusal,
    Subject,
    predict,
    slots_of,
    subjects_of,
)
from tools.kernel_time.published import LENGTHS
from tools.kernel_time.report import table
from tools.kernel_time.simulation import SimulationError
from tools.kernel_time.turns import SEEDS
from tools.nvcc.instances import generate_instances
from tools.nvcc.steps import CompileError
from tools.nvcc.toolchain import ToolchainError, find_or_fetch, find_toolchain

ROOT = Path(__file__).resolve().parents[2]
_MODELLED = ("fwd_", "bwd_hd")
# From csrc/sm80/tiles.h: with less shared memory a block, devices take the small tiles.
_LARGE_BYTES = 160 * 1024


def constant(text: str) -> tuple[str, float]:
    """``name=value`` of a constant of an SM."""
    name, _, value = text.partition("=")
    fields = {field.name: field for field in dataclasses.fields(MACHINES["A100"].sm)}
    if name not in fields or name == "matrix_latency":
        raise argparse.ArgumentTypeError(f"no constant {name!r}: {', '.join(fields)}")
    try:
        number = float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no value for {name}") from None
    return name, int(number) if number.is_integer() else number


def changed(machine: Machine, constants: Sequence[tuple[str, float]]) -> Machine:
    """The machine with other constants of its SMs."""
    return dataclasses.replace(machine, sm=dataclasses.replace(machine.sm, **dict(constants)))  # type: ignore[arg-type]


def serves(subject: Subject, machine: Machine, subjects: Sequence[Subject]) -> bool:
    """Whether a machine would run the kernel: it fits, and its twin is not for this machine."""
    if subject.arch != machine.arch or slots_of(subject, machine) == 0:
        return False
    if machine.block_bytes >= _LARGE_BYTES:
        return not subject.is_small or all(other.is_small for other in subjects)
    names = {other.instance for other in subjects}
    twin = subject.instance.rsplit("_", 1)
    return subject.is_small or f"{twin[0]}_small_{twin[1]}" not in names


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tools.kernel_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilers and simulators at a time")
    parser.add_argument("--machines", nargs="+", choices=MACHINES, default=["A100"])
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--filter", default="_plain", help="only units whose name holds this")
    parser.add_argument("--element", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="simulations to average")
    parser.add_argument(
        "--set",
        nargs="+",
        type=constant,
        default=[],
        metavar="NAME=VALUE",
        help="other constants of an SM",
    )
    parser.add_argument("-o", "--output", type=Path, help="write a record (JSON) here")
    parser.add_argument("--units", type=Path, default=ROOT / "build" / "nvcc")
    return parser.parse_args(argv)


def read_kernels(
    arguments: argparse.Namespace, pool: ThreadPoolExecutor
) -> Iterator[Subject | Refusal]:
    """Compile what is asked for, and find its paths."""
    third_party.main(["cutlass"])
    toolchain, cuobjdump = find_toolchain(), find_or_fetch("cuobjdump")
    units = arguments.units.resolve()
    instances = generate_instances(units, arguments.filter)
    groups = [group for group in instances.groups if group[0].stem.startswith(_MODELLED)]
    archs = sorted({MACHINES[name].arch for name in arguments.machines} | {"80"})

    def read(group: Sequence[Path]) -> list[Subject | Refusal]:
        archs_of = dict.fromkeys(group, archs)
        subjects: list[Subject | Refusal] = []
        for unit, found in compile_units(toolchain, archs_of, units, instances.flags):
            if isinstance(found, Unreadable):
                subjects.append(Refusal(unit, found.arch, found.reason))
            else:
                subjects += subjects_of(cuobjdump, unit, found, arguments.element)
        return subjects

    for subjects in pool.map(read, groups):
        yield from subjects


def predict_all(arguments: argparse.Namespace) -> tuple[list[Prediction], list[Refusal]]:
    machines = [changed(MACHINES[name], arguments.set) for name in arguments.machines]
    seeds = tuple(range(arguments.seeds))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        kernels = list(read_kernels(arguments, pool))
        refusals = [kernel for kernel in kernels if isinstance(kernel, Refusal)]
        subjects = [kernel for kernel in kernels if isinstance(kernel, Subject)]
        pending = [
            pool.submit(predict, subject, machine, policy, seeds)
            for machine in machines
            for subject in subjects
            if serves(subject, machine, subjects)
            for policy in arguments.policies
        ]
        return [future.result() for future in pending], refusals


def record(arguments: argparse.Namespace, predictions: Sequence[Prediction]) -> dict[str, object]:
    machines = {name: changed(MACHINES[name], arguments.set) for name in arguments.machines}
    return {
        "kind": "kernel_time",
        "nvcc": find_toolchain(checked=False).nvcc_version,
        "seeds": arguments.seeds,
        "lengths": LENGTHS,
        "machines": {name: dataclasses.asdict(machine) for name, machine in machines.items()},
        "predictions": [prediction.to_json() for prediction in predictions],
    }


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        predictions, refusals = predict_all(arguments)
    except (ToolchainError, CompileError, ListingError, SimulationError) as error:
        print(error, file=sys.stderr)
        return 1
    if not predictions and not refusals:
        print(f"no kernel of {arguments.filter!r} for {', '.join(arguments.machines)}")
        return 1
    if predictions:
        print(table(predictions))
    if arguments.output:
        text = json.dumps(record(arguments, predictions), indent=1)
        arguments.output.write_text(text + "\n")
    for refusal in refusals:
        print(refusal, file=sys.stderr)
    return 1 if refusals else 0


if __name__ == "__main__":
    sys.exit(main())
