"""How many faults of kernels the tests notice: mutation as a measure.

    python -m tools.mutants [OPTIONS] [-- PYTEST ARGUMENTS]

Builds the emulated kernels of one or two buckets of head dims, some of which, of one family, have
faults in thousands of their PTX instructions (``rewrite.py``), into ``build/mutants/sm80`` or
``sm90``. Faults are of five strata (``faults.py``). Of those that the selected tests come to, all
of order and ``--count`` of each other stratum, drawn by seed, are tried one by one. What is known
from an earlier run of the same build is kept (``record.py``): only survivors are tried again.
Leaves ``report.json`` there and prints a table with the survivors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.plugin import MutantsPlugin, Selection, read_mutants
from tools.mutants.record import Record
from tools.mutants.report import summary

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "build" / "nvcc"


@dataclass(frozen=True)
class Family:
    """Kernels that get faults, what is built for them, and the tests that may notice."""

    name: str
    head_dims: str
    tests: tuple[str, ...]
    ptx: str  # the folder of their units

    @property
    def build(self) -> Path:
        return ROOT / "build" / "mutants" / self.name

    @property
    def package(self) -> Path:
        return self.build / "package"


FAMILIES = {
    "sm80": Family(
        "sm80", "32,64", ("tests", "-k", "(emulated or sm80) and not sm90"), "compute_80"
    ),
    "sm90": Family("sm90", "128", ("tests", "-k", "sm90"), "compute_90a"),
}


def build(family: Family, seed: int, per_kernel: int, head_dims: str, jobs: int) -> None:
    """The package with kernels that have faults."""
    cmake = [sys.executable, "-m", "cmake"]
    options = {
        "FLASH_ATTN2_CUDA": "off",
        "FLASH_ATTN2_EMULATOR": "ON",
        "FLASH_ATTN2_HEAD_DIMS": head_dims,
        "FLASH_ATTN2_FAULTS": f"{seed},{per_kernel}",
        "FLASH_ATTN2_FAULTS_FAMILY": family.name,
        "FLASH_ATTN2_OUTPUT_DIR": str(family.package / "flash_attn2"),
        "Python_EXECUTABLE": sys.executable,
    }
    ninja = Path(sys.executable).with_name("ninja")
    given = [f"-D{name}={value}" for name, value in options.items()]
    given += [f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja.exists() else []
    subprocess.run([*cmake, "-S", ROOT, "-B", family.build, "-G", "Ninja", *given], check=True)
    targets = ["--target", "_cpu", f"_{family.name}_emulated", "--parallel", str(jobs)]
    subprocess.run([*cmake, "--build", family.build, *targets], check=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    python = ROOT / "flash_attn2"
    shutil.copytree(python, family.package / "flash_attn2", ignore=ignored, dirs_exist_ok=True)


def run(family: Family, selection: Selection, arguments: list[str], jobs: int) -> int:
    """Tries the faults; in a process that has the package on its path."""
    import pytest

    from flash_attn2._impl import backends

    module = backends.load(f"{family.name}-emulated").module
    record = Record(family.build / "record.json", Path(module.__file__ or ""))
    mutants = read_mutants(UNITS / family.ptx)
    plugin = MutantsPlugin(module, selection, mutants, record, jobs)
    paths = [str(ROOT / a) if a.startswith("tests") else a for a in arguments]
    # -s: what tests print in processes of their own goes nowhere.
    options = ["-q", "-s", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    pytest.main([*options, *paths], plugins=[plugin])
    report = {"tests": arguments, "results": plugin.results, "not_met": plugin.not_met}
    (family.build / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(summary(plugin.results))
    return 0 if plugin.results else 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=__doc__)
    add = parser.add_argument
    add("--family", choices=FAMILIES, default="sm80", help="whose kernels (default %(default)s)")
    add("--seed", type=int, default=1)
    add("--per-kernel", type=int, default=100, help="built of each stratum of a kernel")
    add(
        "--head-dims",
        help="buckets that are built, 32,64 for sm80 (long lists are tested at 32), 128 for sm90"
        " (features are); tests at others are left out",
    )
    add(
        "--count",
        type=int,
        default=200,
        help="tried of each stratum but order, which is whole",
    )
    add(
        "--kernels",
        default="",
        metavar="REGEX",
        help="tried of these kernels only: a unit (split_hd64_plain_few), a space, a mangled name",
    )
    add("--numbers", default="", metavar="N,N...", help="try these faults instead")
    add("--seconds", type=float, help="processor time of tests that a fault gets; all by default")
    add("--jobs", type=int, default=2, help="compilers, and tests, at a time")
    add("--in-package", action="store_true", help=argparse.SUPPRESS)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:at])
    family = FAMILIES[given.family]
    tests = arguments[at + 1 :] or list(family.tests)
    if given.in_package:
        numbers = frozenset(map(int, given.numbers.split(","))) if given.numbers else frozenset()
        selection = Selection(given.seed, given.count, given.kernels, numbers, given.seconds)
        return run(family, selection, tests, given.jobs)
    head_dims = given.head_dims or family.head_dims
    build(family, given.seed, given.per_kernel, head_dims, given.jobs)
    environment = os.environ | {"PYTHONPATH": f"{family.package}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tools.mutants", *arguments[:at], "--in-package", "--", *tests]
    return subprocess.run(command, cwd=family.package, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
