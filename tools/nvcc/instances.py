"""The translation units of CUDA kernels that csrc/instances.cmake lists."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tools import third_party
from tools.nvcc.units import any_instance, has_main_loop, shared_variable

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Instances:
    """The generated translation units and how to compile them.

    ``groups`` are units of one kernel, which are compiled together; ``arch_of``: families whose
    kernels are for one architecture, such as 90a, and that.
    """

    groups: tuple[tuple[Path, ...], ...]
    flags: tuple[str, ...]
    arch_of: dict[str, str]

    @property
    def sources(self) -> list[Path]:
        return [source for group in self.groups for source in group]


def generate_instances(output_dir: Path, name_filter: str) -> Instances:
    """Have CMake write the translation units; keep those whose name holds ``name_filter``."""
    script = ROOT / "cmake" / "list_instances.cmake"
    cmake = [sys.executable, "-m", "cmake"]
    subprocess.run([*cmake, f"-DOUTPUT_DIR={output_dir}", "-P", script], check=True)
    lines = [line.split(" ", 1) for line in (output_dir / "instances.txt").read_text().splitlines()]
    groups = [map(Path, value.split(";")) for kind, value in lines if kind == "group"]
    flags = [value for kind, value in lines if kind == "flag"]
    flags += [f"-I{ROOT / 'csrc'}", f"-isystem={third_party.THIRD_PARTY / 'cutlass' / 'include'}"]
    arch_of = dict(value.split() for kind, value in lines if kind == "arch")
    kept = (tuple(unit for unit in group if name_filter in unit.stem) for group in groups)
    return Instances(tuple(group for group in kept if group), tuple(flags), arch_of)


def with_shared_bytes(source: Path) -> str:
    """Text of a translation unit, with a variable for what its launches take of shared memory.

    That is the host's business, and would not be seen in device code otherwise. Instances of
    kernels with a main loop tell; for the others it is 0.
    """
    name = f"fa2::{source.parent.name}::{any_instance(source.stem)}"
    shared_bytes = f"{name}.smem_bytes" if has_main_loop(source.stem) else "0"
    # In braces: without, its host counterpart is a declaration only.
    variable = f"__device__ int {shared_variable(source.stem)} = {shared_bytes};"
    return f'{source.read_text()}\nextern "C" {{\n{variable}\n}}\n'
