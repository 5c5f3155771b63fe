"""PTX with faults that are chosen at run time: thousands in one compilation.

``emu.fault p, N`` sets a predicate where fault N is the chosen one, and notes that it was met.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.mutants.faults import SCRATCH, WHOLE_STRATA, Fault, Instruction, faults, parse

_CHOSEN = "%emu0"
_ENTRY = re.compile(r"^(?:\.\w+ )*\.entry (\w+)")
_FUNCTION = re.compile(r"^(?:\.\w+ )*\.func ")
# Lines between instructions that run nothing.
_NOTHING = re.compile(r"\s*(//.*|\.loc\s.*)?")
_LEAVING = ("bra", "ret", "exit", "call", "brx", "trap")
_NEAR = 30  # lines before an instruction, whose registers it may use by mistake


@dataclass(frozen=True)
class Mutant:
    """Fault ``number`` of an instruction, of a kernel by its mangled name.

    ``instead`` stands in its place; ``source`` is the place in the CUDA source, after ``.loc``.
    """

    number: int
    kernel: str
    line: int
    stratum: str
    kind: str
    instruction: str
    instead: str
    source: str


@dataclass(frozen=True)
class Draw:
    """Which faults, by seed: of a kernel and stratum up to so many, numbered from ``first``.

    Those of order and guards are all there.
    """

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


@dataclass
class _Place:
    """An instruction, the ``index``-th of its kernel, and all faults that it may get."""

    kernel: str
    index: int
    source: str
    instruction: Instruction
    faults: list[Fault]


@dataclass
class _Inserted:
    """What comes around a line."""

    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    has_end: bool = False  # for what stands in the line's place to go on


def with_faults(ptx: str, seed: int, per_kernel: int, first: int) -> tuple[str, list[Mutant]]:
    """PTX with faults in its kernels, numbered from ``first``.

    All those of order and guards; of the other strata, up to so many in each kernel, one of an
    instruction, drawn by seed. Kernels that differ by the type of their elements alone have the
    same faults in the same places.
    """
    lines = ptx.split("\n")
    places = dict(_places(lines))
    alike = _alike(places)
    drawn = _drawn(places, alike.keys(), random.Random(seed), per_kernel)
    mutants: list[Mutant] = []
    inserted: dict[int, _Inserted] = {}
    for at, chosen in sorted(drawn.items()):
        place = places[at]
        for fault in chosen:
            number = first + len(mutants)
            mutants.append(
                Mutant(
                    *(number, place.kernel, at + 1, fault.stratum, fault.kind),
                    *(place.instruction.text, "; ".join(fault.instead), place.source),
                )
            )
            nth = place.faults.index(fault)
            for kernel in alike[place.kernel]:
                other = places[kernel[place.index]]
                if len(other.faults) == len(place.faults):
                    _insert(lines, kernel[place.index], other, other.faults[nth], number, inserted)
    for at, around in inserted.items():
        if around.has_end:
            around.after.insert(0, f"$emu_end{at}:")
    return _text(lines, inserted), mutants


def _alike(places: dict[int, _Place]) -> dict[str, list[list[int]]]:
    """Kernels by the first one that is like them, itself included: lines of their instructions."""
    kernels: dict[str, list[int]] = {}
    for at, place in places.items():
        kernels.setdefault(place.kernel, []).append(at)
    firsts: dict[tuple[str, ...], str] = {}
    alike: dict[str, list[list[int]]] = {}
    for kernel, ats in kernels.items():
        opcodes = tuple(places[at].instruction.opcode.replace("bf16", "f16") for at in ats)
        alike.setdefault(firsts.setdefault(opcodes, kernel), []).append(ats)
    return alike


def _insert(
    lines: list[str],
    at: int,
    place: _Place,
    fault: Fault,
    number: int,
    inserted: dict[int, _Inserted],
) -> None:
    here = inserted.setdefault(at, _Inserted())
    here.before += _if_chosen(number, [*fault.instead, f"bra $emu_end{at}"])
    here.has_end = True
    _insert_moved(lines, at, fault, number, place.instruction, inserted)


def _if_chosen(number: int, instructions: list[str], name: str = "") -> list[str]:
    otherwise = f"$emu{number}{name}"
    jump = [f"emu.fault {_CHOSEN}, {number};", f"@!{_CHOSEN} bra {otherwise};"]
    return [*jump, *(f"{text};" for text in instructions), f"{otherwise}:"]


def _insert_moved(
    lines: list[str],
    at: int,
    fault: Fault,
    number: int,
    instruction: Instruction,
    inserted: dict[int, _Inserted],
) -> None:
    """The instruction itself, in another place, if the fault moves it there."""
    to = _moved_to(lines, at, fault.move) if fault.move else None
    if to is not None:
        moved = _if_chosen(number, [instruction.text], "m")
        place = inserted.setdefault(to, _Inserted())
        if to < at:
            place.before[:0] = moved
        else:
            place.after += moved


def _text(lines: list[str], inserted: dict[int, _Inserted]) -> str:
    result: list[str] = []
    opens = False
    for at, line in enumerate(lines):
        opens |= _ENTRY.match(line) is not None
        around = inserted.get(at, _Inserted())
        result += [*around.before, line, *around.after]
        if opens and line.strip() == "{":
            result += [f".reg .pred {_CHOSEN};", f".reg .b32 {SCRATCH};"]
            opens = False
    return "\n".join(result)


def _places(lines: list[str]) -> Iterator[tuple[int, _Place]]:
    """By index of the line: instructions of kernels with all their faults."""
    kernel, source, index = "", "", 0
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', "\n".join(lines), re.MULTILINE))
    for at, line in enumerate(lines):
        entry = _ENTRY.match(line)
        if entry or _FUNCTION.match(line):
            kernel, index = entry[1] if entry else "", 0
        located = re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line)
        if located:
            source = f"{'/'.join(files.get(located[1], '').split('/')[-2:])}:{located[2]}"
        instruction = parse(line) if kernel else None
        if instruction is not None:
            possible = [
                fault
                for fault in faults(instruction, _near(lines, at))
                if not fault.move or _moved_to(lines, at, fault.move) is not None
            ]
            yield at, _Place(kernel, index, source, instruction, possible)
            index += 1


def _drawn(
    places: dict[int, _Place], kernels: Collection[str], draw: random.Random, per_kernel: int
) -> dict[int, list[Fault]]:
    """By index of the line, in these kernels."""
    drawn: dict[int, list[Fault]] = {}
    strata: dict[tuple[str, str], list[int]] = {}
    for at, place in places.items():
        for fault in place.faults if place.kernel in kernels else ():
            if fault.stratum in WHOLE_STRATA:
                drawn.setdefault(at, []).append(fault)
            else:
                candidates = strata.setdefault((place.kernel, fault.stratum), [])
                if candidates[-1:] != [at]:
                    candidates.append(at)
    for (_, stratum), candidates in strata.items():
        for at in draw.sample(candidates, min(per_kernel, len(candidates))):
            options = [fault for fault in places[at].faults if fault.stratum == stratum]
            kinds = sorted({fault.kind for fault in options})
            kind = draw.choice(kinds)
            drawn.setdefault(at, []).append(
                draw.choice([fault for fault in options if fault.kind == kind])
            )
    return drawn


def _near(lines: list[str], at: int) -> list[str]:
    """Registers in the lines before one, the nearest first."""
    found: list[str] = []
    for line in reversed(lines[max(at - _NEAR, 0) : at]):
        if line.startswith(("{", ".")):
            break
        instruction = parse(line)
        if instruction is not None:
            found += sorted(instruction.results)
    return found


def _moved_to(lines: list[str], at: int, move: str) -> int | None:
    """The index of the line that an instruction moves behind, or before if it moves up.

    None where it cannot, since control flow comes first or there is nothing of that kind.
    """
    step = -1 if move == "early" else 1
    moved = parse(lines[at])
    if moved is None or moved.opcode.startswith(_LEAVING):
        return None
    other = at + step
    while 0 <= other < len(lines):
        met = parse(lines[other])
        if met is None:
            if not _NOTHING.fullmatch(lines[other]):
                return None
        elif met.guard or met.opcode.split(".")[0] in _LEAVING:
            return None
        elif move == "reader":
            if moved.results & met.results:
                return None
            if moved.results & met.registers:
                return other
        elif moved.is_ordered_with(met):
            return other
        other += step
    return None
