"""Predictions of kernels: from machine code to TFLOP/s."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_check import listing
from tools.cuda_check.compiler import Compilation
from tools.kernel_time.control import Coded, parse
from tools.kernel_time.device import GROUP, Kernel, protocol_problem, teraflops
from tools.kernel_time.machines import Machine, slots
from tools.kernel_time.paths import Paths, paths_of
from tools.kernel_time.published import LENGTHS, checked_error
from tools.kernel_time.simulation import Simulation
from tools.kernel_time.tiles import Tile, TileError, tile_of
from tools.kernel_time.turns import SEEDS, CtaCost, Steady, Turns
from tools.nvcc.units import instance_of

# A unit that is busy for so much of the time is what limits a kernel; otherwise, what its warps
# wait for most.
_LIMITING = 0.85
_NO_OBSTACLE = ("empty", "not selected")


@dataclass(frozen=True)
class Subject:
    """A kernel, read from its machine code, for one architecture."""

    instance: str
    arch: str
    tile: Tile
    paths: Paths
    registers: int
    shared_bytes: int

    @property
    def is_plain(self) -> bool:
        return "_plain_" in self.instance

    @property
    def is_small(self) -> bool:
        return "_small_" in self.instance


@dataclass(frozen=True)
class Refusal:
    """A kernel that has no prediction: its machine code does not do what its tile says."""

    instance: str
    arch: str
    reason: str

    def __str__(self) -> str:
        return f"{self.instance} for sm_{self.arch}: {self.reason}"


@dataclass(frozen=True)
class Prediction:
    """What the model says of a kernel on a machine under one policy.

    ``cycles_per_tile``: of an SM, full of such CTAs, for one steady turn of one of them.
    ``full`` and ``causal``: TFLOP/s at ``LENGTHS``; likewise with ``GROUP`` heads a KV head.
    """

    instance: str
    machine: str
    policy: str
    slots: int
    cycles_per_tile: float
    bottleneck: str
    full: tuple[float, ...]
    causal: tuple[float, ...]
    grouped_full: tuple[float, ...]
    grouped_causal: tuple[float, ...]
    error: str
    cost: CtaCost
    steady: Steady

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def subjects_of(
    cuobjdump: Path, unit: str, compilation: Compilation, element: str
) -> Iterator[Subject | Refusal]:
    """The kernels of a unit with such elements, or why one is none."""
    text = listing.disassemble(cuobjdump, compilation.cubin)
    for name, code in parse(text.splitlines()):
        instance = instance_of(unit, name)
        if name in compilation.resources and instance.endswith(f"_{element}"):
            yield _subject(instance, name, code, compilation)


def _subject(
    instance: str, name: str, code: Sequence[Coded], compilation: Compilation
) -> Subject | Refusal:
    try:
        tile = tile_of(name)
        paths = paths_of(code, tile)
    except TileError as error:
        return Refusal(instance, compilation.arch, str(error))
    registers = compilation.resources[name].registers
    return Subject(instance, compilation.arch, tile, paths, registers, compilation.shared_bytes)


def slots_of(subject: Subject, machine: Machine) -> int:
    """CTAs of a kernel that an SM holds; 0 if none fits."""
    return slots(machine, subject.tile.warps, subject.registers, subject.shared_bytes)


def predict(
    subject: Subject, machine: Machine, policy: str, seeds: tuple[int, ...] = SEEDS
) -> Prediction:
    """Simulate a kernel, of which at least one CTA must fit an SM of the machine."""
    fitting = slots_of(subject, machine)
    if fitting == 0:
        raise ValueError(f"{subject.instance} does not fit an SM of {machine.name}")
    simulation = Simulation(subject.paths, machine.sm)
    turns = Turns(simulation, subject.tile.warps, fitting, policy, seeds)
    cost, steady = turns.cost(), turns.steady()
    kernel = Kernel(subject.tile, cost, subject.paths.peeled)
    tile = subject.tile

    def at_lengths(causal: bool, group: int = 1) -> tuple[float, ...]:
        problems = (protocol_problem(length, tile.head_dim, causal, group) for length in LENGTHS)
        return tuple(round(teraflops(machine, kernel, problem), 1) for problem in problems)

    return Prediction(
        instance=subject.instance,
        machine=machine.name,
        policy=policy,
        slots=fitting,
        cycles_per_tile=cost.steady / fitting,
        bottleneck=bottleneck(steady),
        full=at_lengths(causal=False),
        causal=at_lengths(causal=True),
        grouped_full=at_lengths(causal=False, group=GROUP),
        grouped_causal=at_lengths(causal=True, group=GROUP),
        error=checked_error(machine.name, tile.kind, tile.head_dim, subject.is_plain),
        cost=cost,
        steady=steady,
    )


def bottleneck(steady: Steady) -> str:
    """In words, what most of the time goes by."""
    unit = max(steady.busy, key=lambda name: steady.busy[name])
    if steady.busy[unit] >= _LIMITING:
        return f"{unit} {steady.busy[unit]:.0%} busy"
    waits = {name: share for name, share in steady.waits.items() if name not in _NO_OBSTACLE}
    longest = sorted(waits, key=lambda name: waits[name], reverse=True)[:2]
    return "warps wait: " + ", ".join(f"{name} {waits[name]:.0%}" for name in longest)
