"""Faults of PTX instructions: what may stand in the place of one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tools.ptx_emulator.statements import split_operands

_LINE = re.compile(r"\s*(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*([^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);\s*$")
_COMPARISONS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}
_COMPARISONS |= {"ltu": "leu", "leu": "ltu", "gtu": "geu", "geu": "gtu", "equ": "neu", "neu": "equ"}
_COMPARISONS |= {"lo": "ls", "ls": "lo", "hi": "hs", "hs": "hi"}
_SWAPPED = {"add": "sub", "sub": "add", "max": "min", "min": "max", "and": "or", "or": "and"}
_ORDERING = re.compile(r"bar(rier)?\.|cp\.async\.(wait|commit)|fence|membar")
_WRITING = re.compile(r"st\.(global|shared|weak|relaxed|release|volatile)|red\.|cp\.async\.c[ag]")
_ACCESS = re.compile(r"(ld|st)\.(?!param|local|const)|ldmatrix|cp\.async\.c[ag]|red\.")
_NUMBERS = ("f32", "s32", "u32", "b32", "s64", "u64", "b64")
_KEPT = re.compile(r"(add|sub|mul|mad|fma|shl|shr|ex2|neg|xor|and|or)\.")


@dataclass(frozen=True)
class Instruction:
    """An instruction on a line of its own; ``guard`` is the predicate that it stands under."""

    guard: str
    guard_is_negated: bool
    opcode: str
    operands: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.opcode} {', '.join(self.operands)}".strip()


@dataclass(frozen=True)
class Fault:
    """``kind`` and ``instead``: other instructions, None where the guard is what changes.

    ``guard`` then is ``negate``, ``always`` or ``never``. ``late``: the instruction comes after
    the next one.
    """

    kind: str
    instead: tuple[str, ...] | None = None
    guard: str = ""
    late: bool = False


def parse(line: str) -> Instruction | None:
    """The instruction on a line; None where there is none, or more than one."""
    found = _LINE.fullmatch(line)
    if found is None or found[3].startswith("."):
        return None
    operands = tuple(split_operands(found[4]))
    return Instruction(found[2] or "", found[1] == "!", found[3], operands)


def faults(instruction: Instruction) -> Iterator[Fault]:
    """All faults that may be made of an instruction."""
    opcode, operands = instruction.opcode, instruction.operands
    if instruction.guard:
        for guard in ("negate", "always", "never"):
            yield Fault(f"guard: {guard}", guard=guard)
    if _ORDERING.match(opcode):
        yield Fault("dropped order", ())
        if not instruction.guard:
            yield Fault("late order", late=True)
    elif _WRITING.match(opcode):
        yield Fault("dropped write", ())
    if opcode.startswith("cp.async.wait_group"):
        yield Fault("wait for fewer", (f"{opcode} {int(operands[0]) + 1}",))
    if _ACCESS.match(opcode):
        yield from _shifted(instruction)
    yield from _computed(instruction)


def _shifted(instruction: Instruction) -> Iterator[Fault]:
    """Addresses 16 bytes on."""
    for at, operand in enumerate(instruction.operands):
        found = re.fullmatch(r"\[(%\w+)(?:\+(-?\d+))?\]", operand)
        if found:
            moved = list(instruction.operands)
            moved[at] = f"[{found[1]}+{int(found[2] or 0) + 16}]"
            what = "source" if at or instruction.opcode.startswith("ld") else "target"
            yield Fault(f"shifted {what}", (f"{instruction.opcode} {', '.join(moved)}",))


def _computed(instruction: Instruction) -> Iterator[Fault]:
    opcode, operands = instruction.opcode, instruction.operands
    base, *modifiers = opcode.split(".")
    kind = modifiers[-1] if modifiers else ""
    rest = ", ".join(operands)
    if base == "setp":
        other = _COMPARISONS.get(modifiers[0])
        if other:
            yield Fault("comparison", (f"{'.'.join([base, other, *modifiers[1:]])} {rest}",))
    elif base == "selp":
        swapped = (operands[0], operands[2], operands[1], operands[3])
        yield Fault("selection", (f"{opcode} {', '.join(swapped)}",))
    elif base == "mma":
        results, addends = (split_operands(operands[i][1:-1]) for i in (0, 3))
        pairs = zip(results, addends, strict=True)
        yield Fault("dropped mma", tuple(f"mov.f32 {d}, {c}" for d, c in pairs))
    elif kind in _NUMBERS:
        if base in _SWAPPED:
            yield Fault("operation", (f"{'.'.join([_SWAPPED[base], *modifiers])} {rest}",))
        if _KEPT.match(opcode) and "wide" not in modifiers and operands[1].startswith("%"):
            move = "b64" if kind.endswith("64") else "f32" if kind == "f32" else "b32"
            yield Fault("dropped operation", (f"mov.{move} {operands[0]}, {operands[1]}",))
    if base in ("add", "mul", "mad", "shl", "shr", "and", "mov", "setp") and kind[0:1] in "sub":
        last = operands[-1] if operands else ""
        if re.fullmatch(r"-?\d+", last) and kind != "pred":
            changed = ", ".join((*operands[:-1], str(int(last) + 1)))
            yield Fault("constant", (f"{opcode} {changed}",))
