"""How many faults of kernels the tests notice: mutation as a measure.

    python -m tools.mutants [--seed N] [--per-kernel N] [--count N] [-- PYTEST ARGUMENTS]

Builds the emulated kernels at 64, some of them with faults in hundreds of their PTX instructions
(``rewrite.py``), into ``build/mutants``. Of the faults that the selected tests come to, ``--count``
are drawn by seed and tried one by one. Leaves ``build/mutants/report.json`` and prints a table with
the survivors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
PACKAGE = BUILD / "package"
TESTS = ("tests/sm80", "tests/kvcache", "tests/attention", "-k", "emulated")


def build(seed: int, per_kernel: int, jobs: int) -> None:
    """The package with kernels that have faults, in ``PACKAGE``."""
    cmake = [sys.executable, "-m", "cmake"]
    options = {
        "FLASH_ATTN2_CUDA": "off",
        "FLASH_ATTN2_EMULATOR": "ON",
        "FLASH_ATTN2_HEAD_DIMS": "64",
        "FLASH_ATTN2_FAULTS": f"{seed},{per_kernel}",
        "FLASH_ATTN2_OUTPUT_DIR": str(PACKAGE / "flash_attn2"),
        "Python_EXECUTABLE": sys.executable,
    }
    ninja = Path(sys.executable).with_name("ninja")
    given = [f"-D{name}={value}" for name, value in options.items()]
    given += [f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja.exists() else []
    subprocess.run([*cmake, "-S", ROOT, "-B", BUILD, "-G", "Ninja", *given], check=True)
    targets = ["--target", "_cpu", "_sm80_emulated", "--parallel", str(jobs)]
    subprocess.run([*cmake, "--build", BUILD, *targets], check=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    python = ROOT / "flash_attn2"
    shutil.copytree(python, PACKAGE / "flash_attn2", ignore=ignored, dirs_exist_ok=True)


def run(seed: int, count: int, arguments: list[str]) -> int:
    """Tries the faults; in a process that has the package on its path."""
    import pytest

    from flash_attn2._impl import backends
    from tools.mutants.plugin import MutantsPlugin, read_mutants, summary

    module = backends.load("sm80-emulated").module
    plugin = MutantsPlugin(module, seed, count, read_mutants(ROOT / "build" / "nvcc"))
    paths = [str(ROOT / a) if a.startswith("tests/") else a for a in arguments]
    # -s: what tests print in processes of their own goes nowhere.
    options = ["-q", "-s", "--tb=no", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    pytest.main([*options, *paths], plugins=[plugin])
    (BUILD / "report.json").write_text(json.dumps(plugin.results, indent=1) + "\n")
    print(summary(plugin.results))
    return 0 if plugin.results else 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-kernel", type=int, default=100)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="compilers at a time")
    parser.add_argument("--in-package", action="store_true", help=argparse.SUPPRESS)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    given = parser.parse_args(arguments[:at])
    tests = arguments[at + 1 :] or list(TESTS)
    if given.in_package:
        return run(given.seed, given.count, tests)
    build(given.seed, given.per_kernel, given.jobs)
    environment = os.environ | {"PYTHONPATH": f"{PACKAGE}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "tools.mutants", *arguments[:at], "--in-package", "--", *tests]
    return subprocess.run(command, cwd=PACKAGE, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
