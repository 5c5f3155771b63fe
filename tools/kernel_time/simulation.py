"""The simulator of one SM: compiled when it is first needed, then run on paths."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tools.kernel_time import costs
from tools.kernel_time.machines import POLICIES, Sm
from tools.kernel_time.paths import Paths, Step
from tools.nvcc.steps import Step as BuildStep
from tools.nvcc.steps import locked, take

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = Path(__file__).parent / "sm"

# What a CTA runs: how often each part, in this order.
PARTS = ("prologue", "masked", "steady", "epilogue")


@dataclass(frozen=True)
class Run:
    """What was counted. ``busy`` goes by unit, ``waits`` (cycles of warps) by reason; ``ctas`` has
    the first and last cycle of each."""

    cycles: int
    issued: int
    register_reads: int
    shared_busy: int
    busy: dict[str, int]
    waits: dict[str, int]
    ctas: list[tuple[int, int]]


class SimulationError(Exception):
    """The simulator failed; the message holds what it said."""


@cache
def simulator() -> Path:
    """The program, compiled by ``$CXX`` or ``c++``."""
    folder = ROOT / "build" / "kernel-time"
    compiler = os.environ.get("CXX", "c++")
    program = folder / "sm"
    command = (compiler, "-std=c++20", "-O2", str(_SOURCES / "main.cpp"), "-o", str(program))
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    with locked(folder):
        step = BuildStep(command, version.stdout, tuple(sorted(_SOURCES.iterdir())), (program,))
        take(step, folder / "sm.json")
    return program


class Simulation:
    """One kernel on one kind of SM."""

    def __init__(self, paths: Paths, sm: Sm) -> None:
        self.paths, self.sm = paths, sm
        parts = {part: getattr(paths, part) for part in PARTS}
        self._index = {
            part: index for index, part in enumerate(part for part in PARTS if parts[part])
        }
        self._lines: list[str] = [f"constant {k} {v}" for k, v in sm.simulated().items()]
        for part, index in self._index.items():
            self._lines += costs.lines(index, parts[part], sm)

    @property
    def has_masked(self) -> bool:
        return "masked" in self._index

    def run(
        self,
        ctas: Sequence[Mapping[str, int]],
        warps: int,
        slots: int,
        policy: str,
        seed: int,
    ) -> Run:
        """Run CTAs of ``warps`` warps, ``slots`` of them at a time, one after the other.

        Each CTA is given by how often it runs each of ``PARTS``.
        """
        lines = [*self._lines, f"constant greedy {POLICIES.index(policy)}", f"constant seed {seed}"]
        for cta in ctas:
            parts = [(self._index[part], cta[part]) for part in PARTS if cta.get(part, 0) > 0]
            lines.append("cta " + " ".join(f"{index} {count}" for index, count in parts))
        lines.append(f"run {warps} {slots}")
        return _run(lines)


def run_steps(
    parts: Sequence[tuple[Sequence[Step], int]], warps: int, sm: Sm, policy: str = POLICIES[0]
) -> Run:
    """One CTA that goes through the given paths so many times each."""
    lines = [f"constant {k} {v}" for k, v in sm.simulated().items()]
    lines += [f"constant greedy {POLICIES.index(policy)}", "constant seed 0"]
    for index, (steps, _) in enumerate(parts):
        lines += costs.lines(index, steps, sm)
    lines.append("cta " + " ".join(f"{index} {count}" for index, (_, count) in enumerate(parts)))
    return _run([*lines, f"run {warps} 1"])


def _run(lines: Sequence[str]) -> Run:
    text = "\n".join(lines) + "\n"
    done = subprocess.run([simulator()], input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise SimulationError(done.stderr.strip())
    fields = json.loads(done.stdout)
    return Run(**fields | {"ctas": [(first, last) for first, last in fields["ctas"]]})
