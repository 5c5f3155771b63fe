"""Units of CUDA kernels for the kernel emulator: what the build makes of them, beside its objects.

    python -m tools.nvcc.emulated check --reason FILE
    python -m tools.nvcc.emulated unit SOURCE.cu --folder FOLDER [--program] -- FLAG...
    python -m tools.nvcc.emulated host NAME SOURCE.cu... --folder FOLDER -- FLAG...

The first one says whether nvcc can be had and works: exit status 0, or 3 with the reason in FILE.
The second one has nvcc make PTX, and translates it to C++; of a ``--program`` it makes the object
of the host's code, too. The third one makes one object of the host's code of several units. All of
it goes to ``FOLDER/compute_<arch>/<unit>/``; what is up to date is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.rewrite import Draw, draw_faults
from tools.nvcc.compiler import compile_front, compile_host, compile_program, write_if_changed
from tools.nvcc.instances import ROOT, with_shared_bytes
from tools.nvcc.steps import CompileError, Step, locked, take
from tools.nvcc.toolchain import (
    Toolchain,
    ToolchainError,
    check_host_compiler,
    find_toolchain,
)

NO_NVCC = 3
_TRANSLATOR = ROOT / "tools" / "ptx_emulator"


def check(reason: Path) -> int:
    """Whether there is a toolchain; why not goes to ``reason``, which goes away if there is.

    What has passed is not tried again.
    """
    passed = reason.with_name("toolchain.txt")
    try:
        toolchain = find_toolchain(checked=False)
        words = f"{toolchain.identity}: {toolchain.nvcc}, {toolchain.host_compiler}\n"
        if not passed.is_file() or passed.read_text() != words:
            check_host_compiler(toolchain)
            write_if_changed(passed, words)
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


@dataclass(frozen=True)
class Place:
    """Where the outputs of units go, for which architecture, and nvcc's flags."""

    folder: Path
    arch: str
    flags: Sequence[str]


def unit(toolchain: Toolchain, source: Path, place: Place, is_program: bool) -> Path:
    """Have the PTX of a unit up to date, and of a program the host's code, too."""
    name, where = source.stem, (place.folder, place.arch, place.flags)
    if is_program:
        return compile_program(toolchain, name, source.read_text(), *where).ptx
    return compile_front(toolchain, name, with_shared_bytes(source), *where).ptx


def host(toolchain: Toolchain, name: str, sources: Sequence[Path], place: Place) -> None:
    """Have the object of the units' host code up to date."""
    text = "".join(f'#include "{source}"\n' for source in sources)
    compile_host(toolchain, name, text, place.folder, place.arch, place.flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.nvcc.emulated", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_check = commands.add_parser("check")
    of_check.add_argument("--reason", type=Path, required=True)
    of_unit = commands.add_parser("unit")
    of_unit.add_argument("source", type=Path)
    of_unit.add_argument("--program", action="store_true")
    of_unit.add_argument("--faults", type=Draw.parse, metavar="SEED,PER_KERNEL,FIRST")
    of_host = commands.add_parser("host")
    of_host.add_argument("name")
    of_host.add_argument("sources", type=Path, nargs="+")
    for command in (of_unit, of_host):
        command.add_argument("--folder", type=Path, required=True)
        command.add_argument("--arch", default="80")
    return parser


def main(arguments: Sequence[str]) -> int:
    own, flags = list(arguments), []
    if "--" in own:
        at = own.index("--")
        own, flags = own[:at], own[at + 1 :]
    given = _parser().parse_args(own)
    if given.command == "check":
        return check(given.reason)
    place = Place(given.folder.resolve(), given.arch, flags)
    try:
        toolchain = find_toolchain(checked=False)
        if given.command == "host":
            host(toolchain, given.name, [source.resolve() for source in given.sources], place)
        else:
            ptx = unit(toolchain, given.source.resolve(), place, given.program)
            translate(ptx if given.faults is None else draw_faults(ptx, given.faults))
    except (CompileError, ToolchainError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
