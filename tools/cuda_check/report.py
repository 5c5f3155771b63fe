"""The result of the check: per kernel, as JSON and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tools.cuda_check.compiler import Resources
from tools.cuda_check.loops import MainLoop


@dataclass(frozen=True)
class LoopReport:
    """A main loop: counts of its hot path, local-memory accesses of its whole body."""

    first_address: int
    last_address: int
    instructions: int
    mmas: int
    instructions_per_mma: float
    local_accesses: int
    mix: dict[str, int]

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
        )


@dataclass(frozen=True)
class KernelReport:
    """One kernel for one architecture; ``main_loops[0]`` is the steady one.

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

    def to_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


_COLUMNS = (
    ("kernel", 34),
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


def _row(cells: Iterable[object]) -> str:
    widths = [width for _, width in _COLUMNS]
    first, *rest = (str(cell) for cell in cells)
    return first.ljust(widths[0]) + "".join(
        cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)
    )


def table(reports: Sequence[KernelReport]) -> str:
    """A line per kernel.

    ``spills``: bytes stored and loaded anywhere. ``smem``: bytes of shared memory. ``loop``,
    ``mma``, ``per mma``, ``local``: of the steady loop. ``masked``: instructions per MMA of the
    dearest other loop. ``s``, ``GB``: compile time and the compiler's peak memory.
    """
    lines = [_row(name for name, _ in _COLUMNS)]
    for report in reports:
        resources = report.resources
        steady = report.main_loops[0] if report.main_loops else None
        masked = report.main_loops[-1] if len(report.main_loops) > 1 else None
        lines.append(
            _row(
                (
                    report.instance,
                    report.arch,
                    resources.registers,
                    resources.spill_store_bytes + resources.spill_load_bytes,
                    report.shared_bytes,
                    steady.instructions if steady else "-",
                    steady.mmas if steady else "-",
                    f"{steady.instructions_per_mma:.2f}" if steady else "-",
                    steady.local_accesses if steady else "-",
                    f"{masked.instructions_per_mma:.2f}" if masked else "-",
                    f"{report.compile_seconds:.1f}",
                    f"{report.compiler_peak_bytes / 1e9:.2f}",
                )
            )
        )
    return "\n".join(lines)
