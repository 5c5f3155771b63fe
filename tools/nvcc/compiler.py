"""Translation units of CUDA kernels: one run of nvcc for all that is made of them.

What is made of a unit lies in a folder of its own, ``<folder>/compute_<arch>/<unit>/``: its PTX, an
object of its host code, and machine code. What has not changed is not made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.nvcc.steps import Step, Taken, locked, take
from tools.nvcc.toolchain import Toolchain

# Of PTX: the lines of the sources that it comes from. Of host objects: they go into shared ones.
FRONT_FLAGS = ("-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden")

# What --keep leaves beside the PTX: tens of megabytes a unit.
_STEPS_OF_NVCC = (".cpp[14].ii", ".cudafe1.*", ".fatbin*", ".module_id")


@dataclass(frozen=True)
class Front:
    """What the compiler's front end made of a unit: PTX, and an object of the host's code.

    The object registers the unit's kernels and holds their PTX, but no machine code.
    """

    arch: str
    ptx: Path
    host_object: Path
    taken: Taken


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


def compile_front(
    toolchain: Toolchain, name: str, text: str, folder: Path, arch: str, flags: Sequence[str]
) -> Front:
    """Compile the unit ``name``, whose text is given, to PTX for ``compute_<arch>``.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    folder = folder / f"compute_{arch}" / name
    source, ptx, host_object, depfile = (
        folder / f"{name}{suffix}" for suffix in (".cu", ".ptx", ".o", ".d")
    )
    command = toolchain.command(
        f"-gencode=arch=compute_{arch},code=compute_{arch}",
        *(*flags, *FRONT_FLAGS),
        *("--keep", "--keep-dir", folder, "-MD", "-MF", depfile),
        *("-c", source, "-o", host_object),
    )
    with locked(folder):
        write_if_changed(source, text)
        step = Step(tuple(command), toolchain.identity, (), (ptx, host_object), depfile)
        taken = take(step, folder / f"{name}.json")
        for kind in _STEPS_OF_NVCC:
            for path in folder.glob(f"{name}{kind}"):
                path.unlink()
    return Front(arch, ptx, host_object, taken)


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
