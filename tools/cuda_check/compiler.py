"""Runs nvcc on one translation unit and reads what it tells about the kernels."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cuda_check.units import any_instance, has_main_loop


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of one kernel; sizes in bytes, per thread."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


@dataclass(frozen=True)
class Compilation:
    """A translation unit, compiled for one architecture.

    ``shared_bytes`` is what a launch of its kernel asks for, ``resources`` goes by mangled name.
    """

    arch: str
    cubin: Path
    seconds: float
    peak_rss_bytes: int
    shared_bytes: int
    resources: dict[str, Resources]


class CompileError(Exception):
    """nvcc failed; the message holds its output."""


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED_VARIABLE = "shared_bytes_of_a_launch"


def parse_ptxas(text: str) -> dict[str, Resources]:
    """Resources by mangled kernel name, from the output of ``ptxas -v``.

    Device functions that were not inlined have entries of their own there and are left out.
    """
    resources = {}
    for block in text.split("Compiling entry function ")[1:]:
        name = _ENTRY.match(f"Compiling entry function {block}")
        stack, registers = _STACK.search(block), _REGISTERS.search(block)
        if not (name and stack and registers):
            raise ValueError(f"unexpected ptxas output: {block.splitlines()[0]}")
        resources[name[1]] = Resources(
            registers=int(registers[1]),
            stack_bytes=int(stack[1]),
            spill_store_bytes=int(stack[2]),
            spill_load_bytes=int(stack[3]),
        )
    return resources


def parse_shared_bytes(ptx: str) -> int:
    """The value of the variable that ``with_shared_bytes`` adds."""
    found = re.search(rf"\.u32 {_SHARED_VARIABLE}(?: = (\d+))?;", ptx)
    if found is None:
        raise ValueError(f"no {_SHARED_VARIABLE} in the PTX")
    return int(found[1] or 0)  # PTX leaves a zero out


def with_shared_bytes(source: Path) -> str:
    """Text of a translation unit that adds to ``source`` what its launches take of shared memory.

    That is the host's business, and would not be seen in device code otherwise. Instances of
    kernels with a main loop tell; for the others it is 0.
    """
    family = source.parent.name
    name = f"fa2::{family}::{any_instance(source.stem)}"
    shared_bytes = f"{name}.smem_bytes" if has_main_loop(source.stem) else "0"
    variable = f'extern "C" __device__ int {_SHARED_VARIABLE}'
    return f'#include "{source}"\n{variable} = {shared_bytes};\n'


@dataclass(frozen=True)
class _Process:
    output: str
    seconds: float
    peak_rss_bytes: int


def _run(command: Sequence[str]) -> _Process:
    with tempfile.TemporaryFile("w+") as log:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        # wait4 counts the children that nvcc has waited for, hence cicc and ptxas.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read()
    if process.returncode != 0:
        raise CompileError(f"{' '.join(command)}\n{output}")
    return _Process(output, seconds, usage.ru_maxrss * 1024)


def compile_unit(
    nvcc: Path, source: Path, archs: Sequence[str], output_dir: Path, flags: Sequence[str]
) -> list[Compilation]:
    """Compile ``source`` for ``sm_<arch>`` of each of ``archs`` into ``output_dir``.

    As in a build, there is one PTX for all, of the oldest. ``seconds`` counts its making each time,
    ``peak_rss_bytes`` is that of nvcc's largest process. Raises ``CompileError`` with nvcc's output
    if it fails.
    """
    unit, ptx = (output_dir / f"{source.stem}{suffix}" for suffix in (".cu", ".ptx"))
    unit.write_text(with_shared_bytes(source))
    oldest = min(archs, key=int)
    front = _run([str(nvcc), f"-arch=sm_{oldest}", *flags, "-ptx", str(unit), "-o", str(ptx)])
    shared_bytes = parse_shared_bytes(ptx.read_text())

    def machine_code(arch: str) -> Compilation:
        cubin = output_dir / f"{source.stem}.sm_{arch}.cubin"
        to = [str(nvcc), f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v"]
        back = _run([*to, str(ptx), "-o", str(cubin)])
        return Compilation(
            arch=arch,
            cubin=cubin,
            seconds=front.seconds + back.seconds,
            peak_rss_bytes=max(front.peak_rss_bytes, back.peak_rss_bytes),
            shared_bytes=shared_bytes,
            resources=parse_ptxas(back.output),
        )

    return [machine_code(arch) for arch in archs]
