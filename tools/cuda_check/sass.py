"""Machine code as ``cuobjdump --dump-sass`` prints it, parsed into instructions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# What an instruction is for, by its opcode without suffixes ("HMMA" of "HMMA.16816.F32"). Whatever
# is not listed is arithmetic or a move on integers and predicates: "integer".
_CLASSES = {
    "mma": "HMMA HGMMA IMMA QGMMA DMMA OMMA",
    "ldmatrix": "LDSM",
    "shared": "LDS STS STSM ATOMS",
    "async_copy": "LDGSTS UTMALDG UTMASTG UBLKCP",
    "global": "LDG STG RED REDG ATOM ATOMG",
    "local": "LDL STL",
    "mufu": "MUFU",
    "float": "FFMA FMUL FADD FMNMX FMNMX3 FSEL FSETP FSET FCHK HADD2 HMUL2 HFMA2 HMNMX2 HSETP2",
    "convert": "F2F F2FP F2I F2IP I2F I2FP FRND PRMT",
    "shuffle": "SHFL VOTE VOTEU REDUX MATCH",
    "sync": "BAR DEPBAR LDGDEPBAR WARPSYNC WARPGROUP SYNCS MEMBAR BSSY BSYNC BREAK",
    "branch": "BRA BRX JMP CALL RET EXIT",
}
_CLASS_OF = {opcode: name for name, opcodes in _CLASSES.items() for opcode in opcodes.split()}

_FUNCTION = re.compile(r"\s*Function : (\S+)")
_INSTRUCTION = re.compile(
    r"\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+"
    r"(?:(?P<predicate>@!?U?P(?:\d+|T))\s+)?"
    r"(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_TARGET = re.compile(r"(?:^|[\s,(])0x([0-9a-f]+)\)?$")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    ``opcode`` has its suffixes (``HMMA.16816.F32.BF16``), ``predicate`` is what guards it
    (``@!P0``) or an empty string.
    """

    address: int
    opcode: str
    operands: str = ""
    predicate: str = ""

    @property
    def base_opcode(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def kind(self) -> str:
        """``mma``, ``ldmatrix``, ``local``, ...: see the table above."""
        if self.base_opcode == "HGMMA" and self.operands.startswith("RZ,"):
            return "sync"  # no product: it ends a group of those that were branched around
        return _CLASS_OF.get(self.base_opcode, "integer")

    @property
    def branch_target(self) -> int | None:
        """The address that a ``BRA`` may jump to, or None for any other instruction."""
        if self.base_opcode != "BRA":
            return None
        target = _TARGET.search(self.operands)
        return int(target[1], 16) if target else None

    @property
    def falls_through(self) -> bool:
        """Whether the next instruction may be executed after this one."""
        if self.base_opcode not in {"BRA", "BRX", "JMP", "EXIT", "RET"}:
            return True
        # A branch may take its condition as an operand: "BRA P0, 0x10", "BRA.DIV UR4, 0x10".
        return bool(self.predicate) or (self.base_opcode == "BRA" and "," in self.operands)


@dataclass(frozen=True)
class Kernel:
    """A function of the machine code, by its mangled name."""

    name: str
    instructions: tuple[Instruction, ...]


def function_of(line: str) -> str | None:
    """The mangled name of the function that starts at this line of a listing."""
    found = _FUNCTION.match(line)
    return found[1] if found else None


def instruction_of(line: str) -> Instruction | None:
    """The instruction that a line of a listing shows."""
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    return Instruction(
        address=int(found["address"], 16),
        opcode=found["opcode"],
        operands=found["operands"].strip(),
        predicate=found["predicate"] or "",
    )


def parse(lines: Iterable[str]) -> Iterator[Kernel]:
    """The kernels in the output of ``cuobjdump --dump-sass``."""
    name = None
    instructions: list[Instruction] = []
    for line in lines:
        if (function := function_of(line)) is not None:
            if name is not None:
                yield Kernel(name, tuple(instructions))
            name, instructions = function, []
        elif (found := instruction_of(line)) is not None:
            instructions.append(found)
    if name is not None:
        yield Kernel(name, tuple(instructions))
