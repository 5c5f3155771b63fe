"""Translation units of CUDA kernels: their PTX, machine code, and objects of the host's code.

What is made of a unit lies in a folder of its own, ``<folder>/compute_<arch>/<unit>/``. What has
not changed is not made again. Reading CuTe's headers takes a compiler longer than most kernels: it
compiles units of one kernel together, and the host's code of all of them, apart from the kernels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tools.nvcc.split import split_ptx
from tools.nvcc.steps import (
    Step,
    Taken,
    last_taken,
    listed_inputs,
    locked,
    take,
    take_together,
    write_depfile,
)
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


@dataclass(frozen=True)
class _Call:
    """Of nvcc, with a unit of this text; ``outputs`` are named after it, the last is asked for."""

    toolchain: Toolchain
    arch: str
    words: tuple[str, ...]
    text: str
    outputs: tuple[Path, ...]

    @property
    def source(self) -> Path:
        return self.outputs[-1].with_suffix(".cu")

    @property
    def depfile(self) -> Path:
        return self.outputs[-1].with_suffix(".d")

    @property
    def record(self) -> Path:
        return self.outputs[-1].with_suffix(".json")

    def step(self) -> Step:
        """The call itself; its source is written."""
        write_if_changed(self.source, self.text)
        for_arch = f"-gencode=arch=compute_{self.arch},code=compute_{self.arch}"
        files = ("-MD", "-MF", self.depfile, self.source, "-o", self.outputs[-1])
        command = self.toolchain.command(for_arch, *self.words, *files)
        return Step(tuple(command), self.toolchain.identity, (), self.outputs, self.depfile)

    def take(self) -> Taken:
        with locked(self.source.parent):
            return take(self.step(), self.record)


def compile_fronts(
    toolchain: Toolchain, texts: Mapping[str, str], folder: Path, arch: str, flags: Sequence[str]
) -> dict[str, Front]:
    """Compile units, whose texts are given by name, to PTX for ``compute_<arch>``.

    Those that are not up to date are compiled as one, and their PTX is cut into theirs: reading
    CuTe's headers takes longer than a kernel does, and variants of a kernel have much in common.
    Raises ``CompileError`` with nvcc's output if it fails.
    """
    words = (*flags, LINES, "-ptx")
    calls = {
        name: _Call(toolchain, arch, words, text, (_made(folder, arch, name, "ptx"),))
        for name, text in texts.items()
    }
    with ExitStack() as locks:
        for name in sorted(calls):
            locks.enter_context(locked(calls[name].source.parent))
        steps = {name: call.step() for name, call in calls.items()}
        stale = [name for name in calls if last_taken(steps[name], calls[name].record) is None]
        if len(stale) > 1:
            _compile_together({name: calls[name] for name in stale}, steps)
        fronts = {}
        for name, call in calls.items():
            fronts[name] = Front(arch, call.outputs[-1], take(steps[name], call.record))
        return fronts


def _compile_together(calls: Mapping[str, _Call], steps: Mapping[str, Step]) -> None:
    """Compile units as one, beside the first of them."""
    first = next(iter(calls.values()))
    together = dataclasses.replace(
        first,
        text="\n".join(call.text for call in calls.values()),
        outputs=(first.source.with_name("together.ptx"),),
    )
    ptx = together.outputs[0]

    def hand_out() -> None:
        inputs = listed_inputs(together.depfile.read_text())
        for name, text in split_ptx(ptx.read_text(), list(calls)).items():
            call = calls[name]
            call.outputs[-1].write_text(text)
            own = (call.source if path == together.source else path for path in inputs)
            write_depfile(call.depfile, call.outputs[-1], own)

    command = together.step().command
    take_together({call.record: steps[name] for name, call in calls.items()}, command, hand_out)
    for path in (together.source, together.depfile, ptx):
        path.unlink()


def _made(folder: Path, arch: str, name: str, kind: str) -> Path:
    return folder / f"compute_{arch}" / name / f"{name}.{kind}"


def compile_host(
    toolchain: Toolchain, name: str, text: str, folder: Path, arch: str, flags: Sequence[str]
) -> Path:
    """An object of the host's code of units, which is there for their kernels' PTX to join.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    host_object = _made(folder, arch, name, "o")
    _Call(toolchain, arch, (*flags, _OF_SHARED_OBJECTS, "-c"), text, (host_object,)).take()
    return host_object


def compile_program(
    toolchain: Toolchain, name: str, text: str, folder: Path, arch: str, flags: Sequence[str]
) -> Program:
    """Both of one unit in one run, for kernels that no other unit can name.

    Raises ``CompileError`` with nvcc's output if it fails.
    """
    ptx, host_object = (_made(folder, arch, name, kind) for kind in ("ptx", "o"))
    kept = ("--keep", "--keep-dir", str(ptx.parent))
    words = (*flags, LINES, _OF_SHARED_OBJECTS, *kept, "-c")
    _Call(toolchain, arch, words, text, (ptx, host_object)).take()
    for kind in _STEPS_OF_NVCC:
        for path in ptx.parent.glob(f"{name}{kind}"):
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
