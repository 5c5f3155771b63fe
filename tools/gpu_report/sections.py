"""The parts of the report: what each does, and its share of the time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from flash_attn2.bench.suite import Outcome
from tools.environments import ROOT
from tools.gpu_report import build, children, sanitizer, suite_run
from tools.gpu_report.build import Recipe
from tools.gpu_report.suite_run import SkippedError


@dataclass
class Run:
    """What parts need to know of the whole."""

    device: str  # "cuda" or "emulated"
    folder: Path  # of logs and of what is compiled
    cutlass: Path | None = None
    head_dims: str = ""
    arch: str = ""  # of the GPU
    is_built: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)  # of children
    family: str = ""  # whose kernels a part is about; empty: what every GPU has

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "cuda" else "cpu"

    def with_family(self, family: str) -> Run:
        """The same with the kernels of a family, and with files of its own."""
        emulated = self.device == "emulated"
        choice = (
            {"FLASH_ATTN2_BACKEND": f"{family}-emulated"}
            if emulated
            else {"FLASH_ATTN2_CUDA_FAMILY": family}
        )
        folder = self.folder / family
        folder.mkdir(exist_ok=True)
        environment = {**self.environment, **choice}
        return replace(self, folder=folder, environment=environment, family=family)


class Findings(NamedTuple):
    """What a part found: lines of the record, and what the record says of the part itself."""

    outcomes: list[Outcome]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    name: str
    title: str
    weight: float | None  # its share of the time; None: all that is left
    run: Callable[[Run, float], Findings]
    needs_build: bool = True
    family: str = ""  # of kernels, that are not those of every GPU

    def applies(self, run: Run) -> bool:
        """Whether the GPU has the kernels that this part is about."""
        return not self.family or run.device == "emulated" or run.arch == ARCHS[self.family]


# Compute capabilities, times ten, of families that run nowhere else.
ARCHS = {"sm90": "90"}


def _build(run: Run, seconds: float) -> Findings:
    """Nothing else can go on without it."""
    emulated = run.device == "emulated"
    folder = run.folder / "build" if emulated else ROOT / "build" / "gpu"
    output = folder / "modules" if emulated else ROOT / "flash_attn2"
    arch = None if emulated else run.arch
    recipe = Recipe(arch, folder, output, run.cutlass, run.head_dims)
    build.build(recipe, run.folder / "build.log", seconds)
    run.is_built = True
    compiled = "nothing was compiled: the emulated module is there" if emulated else "compiled"
    return Findings([], {"arch": recipe.arch, "done": compiled, "jobs": recipe.jobs})


def _measured(section: str) -> Callable[[Run, float], Findings]:
    """A section whose cases `worker` measures."""

    def measure(run: Run, seconds: float) -> Findings:
        outcomes, total, left_out = children.case_by_case(
            section, run.torch_device, seconds, run.folder, run.environment, run.family
        )
        if left_out and not total:
            raise SkippedError(f"{run.family} serves none of the {len(left_out)} cases")
        about = {"cases": total, "measured": len(outcomes)}
        return Findings(outcomes, {**about, "left_out": left_out} if left_out else about)

    return measure


def _tests(run: Run, seconds: float) -> Findings:
    if run.device == "emulated":
        raise SkippedError("`make test` runs them under the emulator")
    words = suite_run.command("cuda")
    log = run.folder / "tests.log"
    return Findings([], suite_run.run(words, seconds, log, run.environment))


def _sanitizer(run: Run, seconds: float) -> Findings:
    if run.device == "emulated":
        raise SkippedError("the emulator has checks of its own")
    found = sanitizer.check(seconds, run.folder, run.torch_device, run.environment, run.family)
    return Findings([], {"tools": found})


def _of_family(family: str, section: Section, weight: float) -> Section:
    """The same part once more, with the kernels of a family that is asked for."""

    def run(given: Run, seconds: float) -> Findings:
        outcomes, about = section.run(given.with_family(family), seconds)
        return Findings([{**one, "section": name} for one in outcomes], about)

    name = f"{section.name}-{family}"
    return replace(
        section,
        name=name,
        title=f"{section.title}: {family}",
        weight=weight,
        run=run,
        family=family,
    )


_PROBLEMS = Section("problems", "Small problems against float64", 6, _measured("problems"))
_SWEEP = Section("sweep", "Head dims by lengths", 40, _measured("sweep"))
_MASKS = Section("masks", "Block masks", 18, _measured("masks"))
_TESTS = Section("tests", "Tests on the GPU", 12, _tests)
_SANITIZER = Section("sanitizer", "compute-sanitizer", 12, _sanitizer)
_sm90 = functools.partial(_of_family, "sm90")

SECTIONS = (
    Section("build", "Build", None, _build, needs_build=False),
    _PROBLEMS,
    _sm90(_PROBLEMS, 6),
    _SWEEP,
    _sm90(_SWEEP, 30),
    Section("grouped", "Grouped heads and packed sequences", 10, _measured("grouped")),
    Section("decode", "Decoding", 8, _measured("decode")),
    Section("calls", "What a call costs the host", 3, _measured("calls")),
    _MASKS,
    _sm90(_MASKS, 8),
    _TESTS,
    _sm90(_TESTS, 10),
    _SANITIZER,
    _sm90(_SANITIZER, 10),
)
