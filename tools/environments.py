"""Virtual environments under build/, with other releases or libraries than the development one."""

from __future__ import annotations

import hashlib
import subprocess
import venv
from collections.abc import Collection, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ("einops", "numpy", "setuptools", "hypothesis", "pytest", "pytest-xdist")
# Those of the pins that no torch has an opinion on.
PINNED = (
    "einops",
    "execnet",
    "hypothesis",
    "iniconfig",
    "packaging",
    "pluggy",
    "pytest",
    "pytest-xdist",
    "sortedcontainers",
)


def pins(constraints: str, names: Collection[str]) -> str:
    """Lines of a constraints file that are of these packages."""
    lines = [line for line in constraints.splitlines() if line.split("==")[0] in names]
    return "\n".join(lines) + "\n"


def install(name: str, wanted: Sequence[str], pinned: Collection[str]) -> Path:
    """The interpreter of build/<name>, which has `wanted`; what is there is used again."""
    directory = ROOT / "build" / name
    constraints = pins((ROOT / "constraints.txt").read_text(), pinned)
    state = hashlib.sha256("\n".join((constraints, *wanted)).encode()).hexdigest()
    python, stamp = directory / "bin" / "python", directory / ".stamp"
    if stamp.exists() and stamp.read_text() == state:
        return python
    venv.create(directory, with_pip=True, clear=True)
    (directory / "constraints.txt").write_text(constraints)
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install"]
    pip += ["--quiet", "-c", directory / "constraints.txt"]
    subprocess.run([*pip, *wanted], check=True)
    stamp.write_text(state)
    return python
