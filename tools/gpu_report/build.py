"""Builds the native modules in place, with what this machine has: no network, no pip."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.environments import ROOT
from tools.nvcc.toolchain import find

_HEADER = Path("cute", "tensor.hpp")


class BuildError(Exception):
    """Something is missing, or a step failed; the message says what, with the step's last words."""


@dataclass(frozen=True)
class Recipe:
    """What is built, and with what. `arch` None: no CUDA module, and nothing is compiled."""

    arch: str | None  # compute capability times ten
    folder: Path
    output: Path  # of the modules
    cutlass: Path | None = None  # None: as the environment says, or third_party
    head_dims: str = ""  # all
    jobs: int = os.cpu_count() or 2
    source: Path = ROOT
    target: str = "native_modules"


def program(name: str) -> str:
    """A program of this interpreter's environment, or of the machine. BuildError without one."""
    beside = Path(sys.executable).with_name(name)
    if beside.exists():
        return str(beside)
    if importlib.util.find_spec(name) is not None:  # the wheels of CMake and ninja
        module = importlib.import_module(name)
        for folder in ("CMAKE_BIN_DIR", "BIN_DIR"):
            found = Path(getattr(module, folder, ""), name)
            if found.is_file():
                return str(found)
    if path := shutil.which(name):
        return path
    raise BuildError(f"no {name} on this machine")


def cutlass_headers(given: Path | None) -> Path:
    """The folder of CUTLASS's headers. BuildError where there are none."""
    named = os.environ.get("FLASH_ATTN2_CUTLASS_INCLUDE_DIR")
    folder = given or Path(named or ROOT / "third_party" / "cutlass" / "include")
    if not (folder / _HEADER).is_file():
        raise BuildError(
            f"no CUTLASS headers in {folder}: --cutlass names the folder that holds {_HEADER}"
        )
    return folder.resolve()


def commands(recipe: Recipe) -> list[list[str]]:
    """The steps: configure and, where there is an architecture, compile."""
    cmake, ninja = program("cmake"), program("ninja")
    if importlib.util.find_spec("pybind11") is None:
        raise BuildError(
            "pybind11 3.0 is not installed: --packages names a folder that has it "
            "(pip install --target FOLDER pybind11)"
        )
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "FLASH_ATTN2_OUTPUT_DIR": str(recipe.output.resolve()),
        "FLASH_ATTN2_CUDA": "off",
    }
    if recipe.arch is not None:
        if find("nvcc") is None:
            raise BuildError("no nvcc on this machine: CUDA_HOME names the toolkit's folder")
        options |= {
            "FLASH_ATTN2_CUDA": "on",
            "FLASH_ATTN2_CUDA_ARCHS": recipe.arch,
            "FLASH_ATTN2_CUTLASS_INCLUDE_DIR": str(cutlass_headers(recipe.cutlass)),
        }
        if recipe.head_dims:
            options["FLASH_ATTN2_HEAD_DIMS"] = recipe.head_dims
    configure = [cmake, "-S", str(recipe.source), "-B", str(recipe.folder), "-G", "Ninja"]
    steps = [[*configure, *(f"-D{name}={value}" for name, value in options.items())]]
    if recipe.arch is not None:
        compile_all = [cmake, "--build", str(recipe.folder), "--parallel", str(recipe.jobs)]
        steps.append([*compile_all, "--target", recipe.target])
    return steps


def build(recipe: Recipe, log: Path, seconds: float | None = None) -> None:
    """Takes all steps, whose output goes to `log`. BuildError if one fails or takes too long."""
    steps = commands(recipe)
    recipe.folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        for step in steps:
            take(step, file.fileno(), seconds, log)


def take(
    step: Sequence[str],
    output: int,
    seconds: float | None,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Runs one step; BuildError, with the end of the log, if it fails."""
    words = "failed"
    try:
        done = subprocess.run(
            step, stdout=output, stderr=output, timeout=seconds, check=False, env=environment
        )
        if done.returncode == 0:
            return
    except subprocess.TimeoutExpired:
        words = f"took more than {seconds:.0f} s"
    last = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    raise BuildError(f"{' '.join(step)}\n{words}; its last words:\n{last}")
