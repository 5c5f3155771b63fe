"""What an instruction costs on an SM, as the simulator takes it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.cuda_check.sass import Instruction
from tools.kernel_time.control import Coded, ListingError
from tools.kernel_time.machines import Sm
from tools.kernel_time.paths import Step

_LANES = 32
_DATA_PATH = 128  # bytes of shared memory a cycle


@dataclass(frozen=True)
class Cost:
    """``unit`` is one of sm/program.h.

    ``shared_cycles``: of shared memory's data path; of a barrier, the warps that meet there, 0 for
    all of a CTA. ``extra``: of a wait for copies, its scoreboard times 256 plus the copies that may
    be left.
    """

    unit: str
    busy: int = 1
    shared_cycles: int = 0
    latency: int = 0
    bytes: int = 0
    extra: int = 0


def cost(coded: Coded, sm: Sm) -> Cost:
    """Of one warp's instruction. What is not listed is integer arithmetic.

    Raises ``ListingError`` for a wait that the simulator does not know.
    """
    instruction = coded.instruction
    opcode, base = instruction.opcode, instruction.base_opcode
    if base in _MEMORY:
        return _memory_cost(instruction, sm)
    if base == "HMMA":
        return Cost(
            "tensor", sm.tensor_busy // (1 if ".16816" in opcode else 2), 0, sm.tensor_latency
        )
    if base in {"MUFU", "F2I", "I2F", "F2F"}:
        return Cost("special", sm.special_busy, 0, sm.special_latency)
    if base in {"BAR", "DEPBAR", "LDGDEPBAR"}:
        return _sync_cost(instruction)
    if base in _BRANCHES:
        return Cost("branch")
    waits = coded.control.result_at is not None
    if base in _SPECIAL_REGISTERS and waits:
        return Cost("constant", 1, 0, sm.constant_latency)
    return _arithmetic_cost(instruction, waits, sm)


_BRANCHES = {"EXIT", "BRA", "BRX", "JMP", "CALL", "RET", "BSSY", "BSYNC", "WARPSYNC", "NOP"}
_BRANCHES |= {"YIELD", "BREAK", "BMOV"}
_SPECIAL_REGISTERS = {"S2R", "S2UR", "LDC", "CS2R", "B2R", "R2B", "VOTE"}
_MEMORY = {"LDSM", "STSM", "LDGSTS", "LDS", "STS", "LDL", "STL", "LDG", "STG", "RED", "REDG"}
_MEMORY |= {"ATOMG", "ATOMS", "SHFL", "MATCH"}


def _width(opcode: str) -> int:
    """Bytes of a thread."""
    return 16 if ".128" in opcode else 8 if ".64" in opcode else 4


def _memory_cost(instruction: Instruction, sm: Sm) -> Cost:
    opcode, base = instruction.opcode, instruction.base_opcode
    width = _width(opcode)
    moved = width * _LANES
    cycles = moved // _DATA_PATH
    if base in {"LDSM", "STSM"}:
        size = 2 if opcode.endswith(".4") else 1 if opcode.endswith(".2") else 0
        return Cost("shared", 1, 1 << size, sm.matrix_latency[size])
    if base in {"SHFL", "ATOMS", "MATCH"}:
        return Cost("shuffle", 1, 1, sm.shuffle_latency)
    if base == "LDS":
        return Cost("shared", 1, cycles, sm.shared_latency + width // 4 - 1)
    if base == "STS":
        return Cost("shared", 1, cycles, sm.shared_store_latency)
    if base in {"LDL", "STL"}:
        return Cost("local", 1, cycles, sm.local_latency)
    unit = {"LDGSTS": "copy", "LDG": "load", "STG": "store"}.get(base, "reduce")
    return Cost(unit, 1, cycles, 0, moved)


def _sync_cost(instruction: Instruction) -> Cost:
    base, operands = instruction.base_opcode, instruction.operands
    if base == "LDGDEPBAR":
        return Cost("commit")
    if base == "DEPBAR":
        found = re.match(r"SB(\d), 0x([0-9a-f]+)", operands)
        if found is None:
            raise ListingError(
                f"a wait that is not for a count of one scoreboard: DEPBAR {operands}"
            )
        return Cost("wait", extra=int(found[1]) << 8 | int(found[2], 16))
    if ".ARV" in instruction.opcode:
        return Cost("none")
    threads = re.search(r", 0x([0-9a-f]+)$", operands)
    return Cost("barrier", shared_cycles=int(threads[1], 16) // _LANES if threads else 0)


def _arithmetic_cost(instruction: Instruction, waits: bool, sm: Sm) -> Cost:
    opcode, base = instruction.opcode, instruction.base_opcode
    if re.fullmatch(r"U[A-Z0-9]+|R2UR|VOTEU", base):
        return Cost("uniform", sm.uniform_busy, 0, sm.uniform_latency)
    if base.startswith(("HFMA2", "HMUL2", "HADD2")):
        return Cost("float", sm.half_busy, 0, sm.arithmetic_latency)
    if base.startswith(("FFMA", "FMUL", "FADD", "IMAD")):
        twice = opcode.startswith(("IMAD.WIDE", "IMAD.HI"))
        return Cost("float", sm.float_busy * (2 if twice else 1), 0, sm.arithmetic_latency)
    if base == "F2FP":
        return Cost("integer", sm.convert_busy, 0, sm.arithmetic_latency)
    latency = sm.constant_latency if waits else sm.arithmetic_latency
    return Cost("integer", sm.integer_busy, 0, latency)


# ---- register reads

_REGISTER = re.compile(r"\bR(\d+)(\.64)?")


def _sources(instruction: Instruction) -> list[tuple[int, int, int]]:
    """Registers that are read: operand, first register, how many."""
    operands = instruction.operands.split(",")
    base = instruction.base_opcode
    stores = base.startswith(("ST", "RED", "ATOM"))
    matrix = ((4, 2, 4) if ".16816" in instruction.opcode else (2, 1, 4)) if base == "HMMA" else ()
    found = []
    for place, operand in enumerate(operands if stores else operands[1:]):
        is_stored = stores and place == len(operands) - 1
        for register in _REGISTER.finditer(operand):
            if place < len(matrix):
                count = matrix[place]
            elif register[2]:
                count = 2
            else:
                count = _width(instruction.opcode) // 4 if is_stored else 1
            found.append((place, int(register[1]), count))
    return found


def reads(coded: Coded, before: Coded | None) -> int:
    """Registers to be delivered: not those that the instruction before keeps for it."""
    kept = set()
    if before is not None and before.control.reuse:
        kept = {
            (place, register)
            for place, register, _ in _sources(before.instruction)
            if before.control.reuse >> place & 1
        }
    sources = _sources(coded.instruction)
    return sum(count for place, register, count in sources if (place, register) not in kept)


# ---- lines for the simulator


def lines(path: int, steps: Sequence[Step], sm: Sm) -> list[str]:
    """A path for the simulator, which numbers them."""
    text = []
    before = None
    for step in steps:
        control, own = step.coded.control, cost(step.coded, sm)
        extra = int(step.taken) if own.unit == "branch" else own.extra
        boards = [-1 if at is None else at for at in (control.result_at, control.operands_at)]
        words = (
            *("instruction", path, own.unit, own.busy, own.shared_cycles, own.latency, own.bytes),
            *(control.stall, int(control.yields), *boards, control.waits_for, extra),
            reads(step.coded, before),
        )
        text.append(" ".join(map(str, words)))
        before = step.coded
    return text
