"""Translation units of CUDA kernels: their PTX, machine code, and objects of the host's code.

What is made of a unit lies in a folder of its own, ``<folder>/compute_<arch>/<unit>/``. What has
not changed is not made again. The host's code of many units is compiled together, apart from their
kernels: reading CuTe's headers is most of what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.nvcc.steps import Step, Taken, locked, take
from tools.nvcc.toolchain import Toolchain

LINES = "-lineinfo"  # of the sources, in PTX
_OF_SHARED_OBJECTS = "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden"

# What --keep leaves beside the PTX: tens of megabytes a unit.
_STEPS_OF_NVCC = (".cpp[14].ii", ".cudafe1.*", ".fatbin*", ".module_id")


@dataclass(frozen=True)
class Front:
    """What the compiler's front end made of a unit."""

    arch: str
    ptx: Path
    taken: Taken


@dataclass(frozen=True)
class Program:
    """PTX of a unit, and an object of its host's code, which registers the kernels by name."""

    ptx: Path
    host_object: Path


@dataclass(frozen=True)
class MachineCode:
    """Machine code of a unit for ``sm_<arch>``; ``taken.output`` is what ``ptxas -v`` says."""

    arch: str
    cubin: Path
    taken: Taken


def write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _compile(
    toolchain: Toolchain, text: str, arch: str, words: Sequence[str], outputs: Sequence[Path]
) -> Taken:
    """Compile a unit of this text to the last of ``outputs``, which are named after it."""
    source, depfile, record = (outputs[-1].with_suffix(end) for end in (".cu", ".d", ".json"))
    for_arch = f"-gencode=arch=compute_{arch},code=compute_{arch}"
    files = ("-MD", "-MF", depfile, source, "-o", outputs[-1])
    command = toolchain.command(for_arch, *words, *files)
    with locked(source.parent):
        write_if_changed(source, text)
        return take(Step(tuple(command), toolchain.identity, (), tuple(outputs), depfile), record)


def compile_front(
    toolchain: Toolchain, name: str, text: str, folder: Path, arch: str, flags: Sequence[str]
) -> Front:
    """Compile the unit ``name``, whose text is given, to PTX for ``compute_<arch>``.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    ptx = folder / f"compute_{arch}" / name / f"{name}.ptx"
    taken = _compile(toolchain, text, arch, (*flags, LINES, "-ptx"), [ptx])
    return Front(arch, ptx, taken)


def compile_host(
    toolchain: Toolchain, name: str, text: str, folder: Path, arch: str, flags: Sequence[str]
) -> Path:
    """An object of the host's code of units, which is there for their kernels' PTX to join.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    host_object = folder / f"compute_{arch}" / name / f"{name}.o"
    _compile(toolchain, text, arch, (*flags, _OF_SHARED_OBJECTS, "-c"), [host_object])
    return host_object


def compile_program(
    toolchain: Toolchain, name: str, text: str, folder: Path, arch: str, flags: Sequence[str]
) -> Program:
    """Both of one unit in one run, for kernels that no other unit can name.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    folder = folder / f"compute_{arch}" / name
    ptx, host_object = folder / f"{name}.ptx", folder / f"{name}.o"
    words = (*flags, LINES, _OF_SHARED_OBJECTS, "--keep", "--keep-dir", str(folder), "-c")
    _compile(toolchain, text, arch, words, [ptx, host_object])
    for kind in _STEPS_OF_NVCC:
        for path in folder.glob(f"{name}{kind}"):
            path.unlink()
    return Program(ptx, host_object)


def compile_machine_code(toolchain: Toolchain, front: Front, arch: str) -> MachineCode:
    """Machine code for ``sm_<arch>`` of a unit's PTX, as a build makes it.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    cubin = front.ptx.with_suffix(f".sm_{arch}.cubin")
    command = toolchain.command(
        *(f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", front.ptx, "-o", cubin)
    )
    with locked(front.ptx.parent):
        step = Step(tuple(command), toolchain.identity, (front.ptx,), (cubin,))
        taken = take(step, cubin.with_suffix(".json"))
    return MachineCode(arch, cubin, taken)
