"""The Python interpreters of this machine that wheels are for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# As in pyproject.toml's classifiers.
SUPPORTED = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))

_ASKED = """
import sys, sysconfig
from pathlib import Path
header = Path(sysconfig.get_path("include"), "Python.h").exists()
free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
print(sys.implementation.name, *sys.version_info[:2], int(header), int(free))
"""


@dataclass(frozen=True)
class Interpreter:
    """A CPython with its headers."""

    path: Path
    version: tuple[int, int]

    @property
    def tag(self) -> str:
        """What wheels call it: cp311."""
        return "cp{}{}".format(*self.version)


class UnusableError(Exception):
    """No wheel can be built for an interpreter; the message says why."""


def ask(path: Path) -> Interpreter:
    """What `path` is. UnusableError where no wheel can be built for it."""
    try:
        answer = subprocess.run([path, "-c", _ASKED], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UnusableError(f"{path} does not run: {error}") from error
    name, major, minor, header, free_threaded = answer.stdout.split()
    version = int(major), int(minor)
    if name != "cpython" or version not in SUPPORTED or free_threaded == "1":
        what = f"{name} {major}.{minor}" + " without a GIL" * (free_threaded == "1")
        raise UnusableError(f"{path} is {what}: wheels are for CPython {supported()}")
    if header != "1":
        raise UnusableError(f"{path} has no Python.h: install its headers")
    return Interpreter(path, version)


def supported() -> str:
    """All versions, as a reader is told them."""
    return ", ".join("{}.{}".format(*version) for version in SUPPORTED)


def find() -> list[Interpreter]:
    """One usable interpreter for each supported version that this machine has one of."""
    found: dict[tuple[int, int], Interpreter] = {}
    for path in _candidates():
        try:
            interpreter = ask(path)
        except UnusableError:
            continue
        found.setdefault(interpreter.version, interpreter)
    return [found[version] for version in sorted(found)]


def _candidates() -> Iterable[Path]:
    """On the path first, then those that pyenv has installed."""
    for version in SUPPORTED:
        if (path := shutil.which("python{}.{}".format(*version))) is not None:
            yield Path(path)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob("versions/*/bin/python"), reverse=True)
