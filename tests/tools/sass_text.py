"""Hand-written machine code with control bits, in cuobjdump's format."""

from __future__ import annotations

from dataclasses import dataclass

from tools.kernel_time.control import Coded, parse
from tools.kernel_time.paths import Step


@dataclass(frozen=True)
class Line:
    """An instruction as text; the rest are its control bits."""

    text: str
    stall: int = 1
    yields: bool = False
    result_at: int = 7
    operands_at: int = 7
    waits_for: int = 0
    reuse: int = 0

    @property
    def upper_half(self) -> int:
        bits = self.stall | (not self.yields) << 4 | self.result_at << 5 | self.operands_at << 8
        return (bits | self.waits_for << 11 | self.reuse << 17) << 41


def listing(lines: list[Line], name: str = "_Z1kv") -> str:
    """Instructions at 0x0, 0x10 and so on."""
    text = [f"\t\tFunction : {name}", '\t.headerflags\t@"EF_CUDA_SM80"']
    for index, line in enumerate(lines):
        text.append(f"        /*{16 * index:04x}*/   {line.text} ;   /* 0x00000a0000017a02 */")
        text.append(f"                                        /* 0x{line.upper_half:016x} */")
    return "\n".join(text)


def code(lines: list[Line]) -> list[Coded]:
    ((_, coded),) = parse(listing(lines).splitlines())
    return coded


def steps(lines: list[Line]) -> list[Step]:
    """A path that passes through all the lines."""
    return [Step(coded) for coded in code(lines)]
