"""The parts of the report: what each does, and its share of the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "cuda" else "cpu"


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
        outcomes, total = children.case_by_case(
            section, run.torch_device, seconds, run.folder, run.environment
        )
        return Findings(outcomes, {"cases": total, "measured": len(outcomes)})

    return measure


def _tests(run: Run, seconds: float) -> Findings:
    if run.device == "emulated":
        raise SkippedError("`make test` runs them under the emulator")
    words = suite_run.command("cuda")
    return Findings([], suite_run.run(words, seconds, run.folder / "tests.log"))


def _sanitizer(run: Run, seconds: float) -> Findings:
    if run.device == "emulated":
        raise SkippedError("the emulator has checks of its own")
    return Findings([], {"tools": sanitizer.check(seconds, run.folder, run.torch_device)})


SECTIONS = (
    Section("build", "Build", None, _build, needs_build=False),
    Section("problems", "Small problems against float64", 6, _measured("problems")),
    Section("sweep", "Head dims by lengths", 40, _measured("sweep")),
    Section("grouped", "Grouped heads and packed sequences", 10, _measured("grouped")),
    Section("decode", "Decoding", 8, _measured("decode")),
    Section("calls", "What a call costs the host", 3, _measured("calls")),
    Section("masks", "Block masks", 18, _measured("masks")),
    Section("tests", "Tests on the GPU", 12, _tests),
    Section("sanitizer", "compute-sanitizer", 12, _sanitizer),
)
