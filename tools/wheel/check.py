"""Whether a wheel holds what it should, and runs where only its dependencies are installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tools.environments import ROOT
from tools.wheel.interpreters import Interpreter

MOST_BYTES = 25 * 10**6
NEEDED = (
    *("flash_attn2/py.typed", "flash_attn2/__init__.py"),
    *("licenses/LICENSE", "licenses/cutlass.txt", "licenses/pybind11.txt"),
)


class WheelError(Exception):
    """What is wrong with a wheel."""


def contents(wheel: Path, cuda: bool) -> None:
    """WheelError if something is missing, too much or too large."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    modules = {Path(name).name.split(".")[0] for name in names if ".so" in Path(name).name}
    wanted = {"_cpu"} | ({"_cuda"} if cuda else set())
    if modules != wanted:
        raise WheelError(f"{wheel.name} has the libraries {sorted(modules)}, not {sorted(wanted)}")
    for needed in NEEDED:
        if not any(name.endswith(needed) for name in names):
            raise WheelError(f"{wheel.name} has no {needed}")
    files = (ROOT / "flash_attn2").rglob("*.py*")
    sources = {x.relative_to(ROOT).as_posix() for x in files if x.suffix in (".py", ".pyi")}
    held = {name for name in names if name.endswith((".py", ".pyi"))}
    if held != sources:
        raise WheelError(f"{wheel.name} and the sources differ in {sorted(held ^ sources)}")
    if (size := wheel.stat().st_size) > MOST_BYTES:
        raise WheelError(f"{wheel.name} has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")


def runs(wheel: Path, interpreter: Interpreter, directory: Path) -> None:
    """Install it in an environment of its own, made by `interpreter`, and call it there.

    CalledProcessError where that fails.
    """
    python = directory / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter.path, "-m", "venv", "--without-pip", directory], check=True)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    pip += ["--python", python, "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, "torch", "einops"], check=True)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", wheel], check=True)
    # Nothing of the checkout is to be found.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, ROOT / "tools" / "install_check.py"]
    subprocess.run(command, check=True, cwd=directory, env=variables)
