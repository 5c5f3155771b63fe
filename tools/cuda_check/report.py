"""The result of the check: per kernel, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.cuda_check.compiler import RegisterShares, Resources
from tools.cuda_check.loops import MainLoop
from tools.nvcc.units import has_main_loop


def short_name(name: str) -> str:
    """A kernel's demangled name without return type, namespaces and function arguments.

    ``void a::entry<a::Sum<b::half_t>, 32>(a::Args)`` is ``entry<Sum<half_t>, 32>``.
    """
    depth = 0
    for index, character in enumerate(name):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            name = name[:index]
            break
    return re.sub(r"(?:\w+::)+", "", name.removeprefix("void ")).replace(" >", ">")


def has_wgmma(loop: MainLoop) -> bool:
    return any(instruction.base_opcode == "HGMMA" for instruction in loop.hot_path)


@dataclass(frozen=True)
class LoopReport:
    """A main loop: counts of its hot path, local-memory accesses of its whole body.

    ``late_exponentials``: of loops whose products are asynchronous, see ``MainLoop``.
    """

    first_address: int
    last_address: int
    instructions: int
    mmas: int
    instructions_per_mma: float
    local_accesses: int
    mix: dict[str, int]
    late_exponentials: int = 0

    @classmethod
    def of(cls, loop: MainLoop) -> LoopReport:
        return cls(
            first_address=loop.first,
            last_address=loop.last,
            instructions=len(loop.hot_path),
            mmas=loop.mix["mma"],
            instructions_per_mma=round(loop.instructions_per_mma, 3),
            local_accesses=loop.local_accesses,
            mix=dict(loop.mix.most_common()),
            late_exponentials=loop.late_exponentials if has_wgmma(loop) else 0,
        )


@dataclass(frozen=True)
class KernelReport:
    """One kernel for one architecture; ``main_loops[0]`` is the steady one.

    ``instance`` is its name in csrc/instances.cmake, ``name`` that of its function.
    ``compile_seconds`` and ``compiler_peak_bytes`` are those of its translation unit.
    """

    instance: str
    arch: str
    name: str
    shared_bytes: int
    resources: Resources
    main_loops: tuple[LoopReport, ...]
    compile_seconds: float
    compiler_peak_bytes: int
    register_shares: RegisterShares | str | None = None

    @property
    def label(self) -> str:
        """The unit's name, with the function's where the unit may have several kernels."""
        if has_main_loop(self.instance):
            return self.instance
        return f"{self.instance}: {short_name(self.name)}"

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


_COLUMNS = (
    ("arch", 5),
    ("regs", 5),
    ("spills", 7),
    ("smem", 7),
    ("loop", 6),
    ("mma", 5),
    ("per mma", 8),
    ("local", 6),
    ("masked", 7),
    ("s", 6),
    ("GB", 5),
)


def _cells(report: KernelReport) -> tuple[str, ...]:
    resources = report.resources
    steady = report.main_loops[0] if report.main_loops else None
    masked = report.main_loops[-1] if len(report.main_loops) > 1 else None
    return (
        report.arch,
        str(resources.registers),
        str(resources.spill_store_bytes + resources.spill_load_bytes),
        str(report.shared_bytes),
        str(steady.instructions) if steady else "-",
        str(steady.mmas) if steady else "-",
        f"{steady.instructions_per_mma:.2f}" if steady else "-",
        str(steady.local_accesses) if steady else "-",
        f"{masked.instructions_per_mma:.2f}" if masked else "-",
        f"{report.compile_seconds:.1f}",
        f"{report.compiler_peak_bytes / 1e9:.2f}",
    )


def table(reports: Sequence[KernelReport]) -> str:
    """A line per kernel.

    ``spills``: bytes stored and loaded anywhere. ``smem``: bytes of shared memory. ``loop``,
    ``mma``, ``per mma``, ``local``: of the steady loop. ``masked``: instructions per MMA of the
    dearest other loop. ``s``, ``GB``: compile time and the compiler's peak memory.
    """
    rows = [("kernel", tuple(name for name, _ in _COLUMNS))]
    rows += [(report.label, _cells(report)) for report in reports]
    label_width = max(len(label) for label, _ in rows) + 2
    return "\n".join(
        label.ljust(label_width)
        + "".join(cell.rjust(width) for cell, (_, width) in zip(cells, _COLUMNS, strict=True))
        for label, cells in rows
    )
