"""Units of CUDA kernels for the kernel emulator: what the build makes of them, beside its objects.

    python -m tools.nvcc.emulated check --reason FILE
    python -m tools.nvcc.emulated units SOURCE.cu... --folder FOLDER --depfile FILE -- FLAG...
    python -m tools.nvcc.emulated program SOURCE.cu --folder FOLDER -- FLAG...
    python -m tools.nvcc.emulated host NAME SOURCE.cu... --folder FOLDER -- FLAG...

The first one says whether nvcc can be had and works: exit status 0, or 3 with the reason in FILE.
The second one has nvcc make PTX of units together, and translates it to C++; of a program it makes
the object of the host's code, too. The last one makes one object of the host's code of several
units. All of it goes to ``FOLDER/compute_<arch>/<unit>/``; what is up to date is left as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.rewrite import Draw, draw_faults
from tools.nvcc.compiler import compile_fronts, compile_host, compile_program, write_if_changed
from tools.nvcc.instances import ROOT, with_shared_bytes
from tools.nvcc.steps import (
    CompileError,
    Step,
    listed_inputs,
    locked,
    take,
    write_depfile,
)
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


def units(
    toolchain: Toolchain,
    sources: Sequence[Path],
    place: Place,
    depfile: Path,
    draws: Mapping[str, Draw],
) -> None:
    """Have the translated kernels of units up to date; ``draws``: of those that get faults."""
    texts = {source.stem: with_shared_bytes(source) for source in sources}
    fronts = compile_fronts(toolchain, texts, place.folder, place.arch, place.flags)
    for name, front in fronts.items():
        translate(draw_faults(front.ptx, draws[name]) if name in draws else front.ptx)
    rules = [front.ptx.with_suffix(".d").read_text() for front in fronts.values()]
    inputs = dict.fromkeys(path for rule in rules for path in listed_inputs(rule))
    first = next(iter(fronts.values()))
    write_depfile(depfile, first.ptx, inputs)


def program(toolchain: Toolchain, source: Path, place: Place) -> None:
    """Have a unit's translated kernels and its host's code up to date."""
    where = (place.folder, place.arch, place.flags)
    translate(compile_program(toolchain, source.stem, source.read_text(), *where).ptx)


def host(toolchain: Toolchain, name: str, sources: Sequence[Path], place: Place) -> None:
    """Have the object of the units' host code up to date."""
    text = "".join(f'#include "{source}"\n' for source in sources)
    compile_host(toolchain, name, text, place.folder, place.arch, place.flags)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.nvcc.emulated", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    of_check = commands.add_parser("check")
    of_check.add_argument("--reason", type=Path, required=True)
    of_units = commands.add_parser("units")
    of_units.add_argument("sources", type=Path, nargs="+")
    of_units.add_argument("--depfile", type=Path, required=True, help="of all of them")
    of_units.add_argument(
        "--faults", nargs=2, action="append", default=[], metavar=("UNIT", "SEED,PER_KERNEL,FIRST")
    )
    of_program = commands.add_parser("program")
    of_program.add_argument("source", type=Path)
    of_host = commands.add_parser("host")
    of_host.add_argument("name")
    of_host.add_argument("sources", type=Path, nargs="+")
    for command in (of_units, of_program, of_host):
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
        elif given.command == "program":
            program(toolchain, given.source.resolve(), place)
        else:
            sources = [source.resolve() for source in given.sources]
            draws = {unit: Draw.parse(draw) for unit, draw in given.faults}
            units(toolchain, sources, place, given.depfile, draws)
    except (CompileError, ToolchainError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
