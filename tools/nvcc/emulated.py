"""Units of CUDA kernels for the kernel emulator: what the build makes of them, beside its objects.

    python -m tools.nvcc.emulated check --reason FILE
    python -m tools.nvcc.emulated unit SOURCE.cu --folder FOLDER [--as-is] -- FLAG...

The first one says whether nvcc can be had and works: exit status 0, or 3 with the reason in FILE.
The second one has nvcc make PTX and the object of the host's code, and translates the PTX to C++,
all in ``FOLDER/compute_<arch>/<unit>/``; what is up to date is left as it is. ``--as-is`` is for a
source that is no unit of csrc/instances.cmake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.mutants.rewrite import Draw, draw_faults
from tools.nvcc.compiler import compile_front, write_if_changed
from tools.nvcc.instances import ROOT, with_shared_bytes
from tools.nvcc.steps import CompileError, Step, locked, take
from tools.nvcc.toolchain import ToolchainError, find_toolchain

NO_NVCC = 3
_TRANSLATOR = ROOT / "tools" / "ptx_emulator"


def check(reason: Path) -> int:
    """Whether there is a toolchain; why not goes to ``reason``, which goes away if there is."""
    try:
        toolchain = find_toolchain()
    except ToolchainError as error:
        reason.parent.mkdir(parents=True, exist_ok=True)
        reason.write_text(f"{error}\n")
        print(error, file=sys.stderr)
        return NO_NVCC
    reason.unlink(missing_ok=True)
    print(toolchain.identity)
    return 0


def translate(ptx: Path) -> Path:
    """The C++ of a unit's PTX; where it would be the same, the file is left alone."""
    cpp = ptx.with_suffix(".ptx.cpp")
    made = cpp.with_suffix(".new")
    module = "tools.ptx_emulator.translate"
    command = (sys.executable, "-m", module, str(ptx), "-o", str(made))
    inputs = (ptx, *sorted(_TRANSLATOR.rglob("*.py")))
    with locked(ptx.parent):
        take(Step(command, sys.version, inputs, (made,)), cpp.with_suffix(".json"))
        write_if_changed(cpp, made.read_text())
    return cpp


def unit(
    source: Path, text: str, folder: Path, arch: str, flags: Sequence[str], draw: Draw | None
) -> int:
    """Have the files of a unit up to date, those with faults too where some are to be drawn."""
    try:
        toolchain = find_toolchain(checked=False)
        front = compile_front(toolchain, source.stem, text, folder, arch, flags)
        translate(front.ptx if draw is None else draw_faults(front.ptx, draw))
    except (CompileError, ToolchainError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.nvcc.emulated", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_check = commands.add_parser("check")
    of_check.add_argument("--reason", type=Path, required=True)
    of_unit = commands.add_parser("unit")
    of_unit.add_argument("source", type=Path)
    of_unit.add_argument("--folder", type=Path, required=True)
    of_unit.add_argument("--arch", default="80")
    of_unit.add_argument("--as-is", action="store_true")
    of_unit.add_argument("--faults", type=Draw.parse, metavar="SEED,PER_KERNEL,FIRST")
    own, flags = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    given = parser.parse_args(own)
    if given.command == "check":
        return check(given.reason)
    source = given.source.resolve()
    text = source.read_text() if given.as_is else with_shared_bytes(source)
    return unit(source, text, given.folder.resolve(), given.arch, flags, given.faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
