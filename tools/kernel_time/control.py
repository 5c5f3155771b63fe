"""Machine code with what it tells the scheduler, from ``cuobjdump --dump-sass``.

An instruction of Volta and later has 128 bits. Bits 105 to 125 are for the hardware that issues it:
how many cycles its warp waits before the next one (4 bits), whether another warp should come first
(1, inverted), the scoreboard that is released when the result is there (3, all ones for none), the
one that is released when the operands have been read (3), the scoreboards that must be free before
it issues (6, a mask), and the operands that stay in the register file's cache (4, a mask).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tools.cuda_check.sass import Instruction, function_of, instruction_of

SCOREBOARDS = 6
_FIRST_BIT = 105 - 64  # in the upper half
_NONE = 7

_UPPER_HALF = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/\s*$")


@dataclass(frozen=True)
class Control:
    """``result_at`` and ``operands_at``: scoreboards, or None. The last two are masks."""

    stall: int
    yields: bool
    result_at: int | None = None
    operands_at: int | None = None
    waits_for: int = 0
    reuse: int = 0

    @classmethod
    def of(cls, upper_half: int) -> Control:
        bits = upper_half >> _FIRST_BIT
        result_at, operands_at = bits >> 5 & 7, bits >> 8 & 7
        return cls(
            stall=bits & 15,
            yields=not bits >> 4 & 1,
            result_at=None if result_at == _NONE else result_at,
            operands_at=None if operands_at == _NONE else operands_at,
            waits_for=bits >> 11 & 63,
            reuse=bits >> 17 & 15,
        )


@dataclass(frozen=True)
class Coded:
    """An instruction with its control bits."""

    instruction: Instruction
    control: Control


class ListingError(Exception):
    """A listing is not as expected; the message says where."""


def parse(lines: Iterable[str]) -> Iterator[tuple[str, list[Coded]]]:
    """Mangled name and code of every kernel of a listing."""
    name, code = None, list[Coded]()
    pending: Instruction | None = None
    for line in lines:
        if (function := function_of(line)) is not None:
            if name is not None:
                yield name, code
            name, code, pending = function, [], None
        elif (instruction := instruction_of(line)) is not None:
            if pending is not None:
                raise ListingError(f"{name}: no upper half of the instruction at {pending}")
            pending = instruction
        elif pending is not None and (found := _UPPER_HALF.match(line)):
            code.append(Coded(pending, Control.of(int(found[1], 16))))
            pending = None
    if name is not None:
        yield name, code
