"""PTX with faults that are chosen at run time: hundreds in one compilation.

``emu.fault p, N`` sets a predicate where fault N is the chosen one, and notes that it was met.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from tools.mutants.faults import Fault, Instruction, faults, parse

_CHOSEN, _GUARD, _NOT = "%emu0", "%emu1", "%emu2"
_ENTRY = re.compile(r"^(?:\.\w+ )*\.entry (\w+)")


@dataclass(frozen=True)
class Mutant:
    """Fault ``number`` of an instruction, of a kernel by its mangled name."""

    number: int
    kernel: str
    line: int
    kind: str
    instruction: str


@dataclass(frozen=True)
class Draw:
    """Which faults: by seed, up to so many of a kernel, numbered from ``first``."""

    seed: int
    per_kernel: int
    first: int

    @staticmethod
    def parse(text: str) -> Draw:
        return Draw(*map(int, text.split(",")))


def draw_faults(ptx: Path, draw: Draw) -> Path:
    """The file ``<name>.faults.ptx`` beside a PTX file, and the list of them, in JSON."""
    text, mutants = with_faults(ptx.read_text(), draw.seed, draw.per_kernel, draw.first)
    changed = ptx.with_suffix(".faults.ptx")
    changed.write_text(text)
    listed = [dataclasses.asdict(mutant) for mutant in mutants]
    changed.with_suffix(".json").write_text(json.dumps(listed, indent=1) + "\n")
    return changed


def _guarded(instruction: Instruction, under: str) -> list[str]:
    """``_GUARD``: a predicate and the instruction's own one."""
    if not instruction.guard:
        return [f"and.pred {_GUARD}, {under}, {under}"]
    lines, own = [], instruction.guard
    if instruction.guard_is_negated:
        lines, own = [f"not.pred {_NOT}, {own}"], _NOT
    return [*lines, f"and.pred {_GUARD}, {under}, {own}"]


def _other_guard(instruction: Instruction, guard: str) -> list[str]:
    """The instruction under a guard that is another one where the fault is chosen."""
    lines, own = [], instruction.guard
    if instruction.guard_is_negated:
        lines, own = [f"not.pred {_GUARD}, {own}"], _GUARD
    if guard == "never":
        lines += [f"not.pred {_NOT}, {_CHOSEN}", f"and.pred {_GUARD}, {own}, {_NOT}"]
    else:
        operation = "xor" if guard == "negate" else "or"
        lines += [f"{operation}.pred {_GUARD}, {own}, {_CHOSEN}"]
    return [*lines, f"@{_GUARD} {instruction.text}"]


def _with_fault(number: int, instruction: Instruction, fault: Fault) -> tuple[list[str], list[str]]:
    """Instructions in the place of one, and those after the next one."""
    lines = [f"emu.fault {_CHOSEN}, {number}"]
    if fault.guard:
        return [*lines, *_other_guard(instruction, fault.guard)], []
    kept = [f"not.pred {_NOT}, {_CHOSEN}"]
    if instruction.guard_is_negated:  # which needs _NOT itself
        kept = [f"not.pred {_GUARD}, {_CHOSEN}", f"not.pred {_NOT}, {instruction.guard}"]
        kept += [f"and.pred {_GUARD}, {_GUARD}, {_NOT}"]
    else:
        kept += _guarded(instruction, _NOT)
    lines += [*kept, f"@{_GUARD} {instruction.text}"]
    if fault.late:
        again = [f"emu.fault {_CHOSEN}, {number}", f"@{_CHOSEN} {instruction.text}"]
        return lines, again
    for instead in fault.instead or ():
        lines += [*_guarded(instruction, _CHOSEN), f"@{_GUARD} {instead}"]
    return lines, []


def with_faults(ptx: str, seed: int, per_kernel: int, first: int) -> tuple[str, list[Mutant]]:
    """PTX with up to so many faults in each kernel, numbered from ``first``.

    One fault of an instruction at most; instructions and faults are drawn by seed.
    """
    lines = ptx.split("\n")
    drawn = _drawn(lines, random.Random(seed), per_kernel)
    mutants: list[Mutant] = []
    result: list[str] = []
    later: list[str] = []
    opens = False
    for at, line in enumerate(lines):
        opens |= _ENTRY.match(line) is not None
        if opens and line.strip() == "{":
            result += [line, f".reg .pred {', '.join((_CHOSEN, _GUARD, _NOT))};"]
            opens = False
            continue
        if at not in drawn:
            result.append(line)
            if later and parse(line) is not None:
                result += later
                later = []
            continue
        kernel, instruction, fault = drawn[at]
        number = first + len(mutants)
        mutants.append(Mutant(number, kernel, at + 1, fault.kind, line.strip()))
        here, after = _with_fault(number, instruction, fault)
        result += [f"\t{x};" for x in here]
        result += later
        later = [f"\t{x};" for x in after]
    return "\n".join(result), mutants


def _drawn(
    lines: list[str], draw: random.Random, per_kernel: int
) -> dict[int, tuple[str, Instruction, Fault]]:
    """By index of the line."""
    candidates: dict[str, list[tuple[int, Instruction]]] = {}
    kernel = ""
    for at, line in enumerate(lines):
        entry = _ENTRY.match(line)
        kernel = (
            entry[1] if entry else "" if line.startswith((".func", ".visible .func")) else kernel
        )
        instruction = parse(line)
        if not kernel or instruction is None or not any(True for _ in faults(instruction)):
            continue
        candidates.setdefault(kernel, []).append((at, instruction))
    drawn = {}
    for kernel, places in candidates.items():
        for at, instruction in draw.sample(places, min(per_kernel, len(places))):
            options = [f for f in faults(instruction) if not f.late or _may_be_late(lines, at)]
            if options:
                drawn[at] = (kernel, instruction, draw.choice(options))
    return drawn


def _may_be_late(lines: list[str], at: int) -> bool:
    """Whether an instruction can come after the one on the next line with any."""
    for line in lines[at + 1 : at + 12]:
        if line.strip().endswith(":") or (line.strip() in "{}" and line.strip()):
            return False
        following = parse(line)
        if following is not None:
            return not following.guard and following.opcode.split(".")[0] not in (
                "bra",
                "ret",
                "exit",
            )
    return False
