"""Faults of PTX instructions: what may stand in the place of one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from tools.ptx_emulator.statements import split_operands

# Kinds of faults, each drawn by itself. Of the first two all are built: what orders threads and
# copies, of which all are tried, too; under which predicates something happens.
STRATA = ("order", "guards", "predicates", "accesses", "values")
WHOLE_STRATA = ("order", "guards")
ORDER = "order"

SCRATCH = "%emu1"  # a register that faults may use

_CODE = r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*([^;{}]*(?:\{[^;{}]*\}[^;{}]*)*);"
_LINE = re.compile(rf"\s*(?:{_CODE}|\{{\s*{_CODE}\s*\}})\s*$")
_COMPARISONS = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq"}
_COMPARISONS |= {"ltu": "leu", "leu": "ltu", "gtu": "geu", "geu": "gtu", "equ": "neu", "neu": "equ"}
_COMPARISONS |= {"lo": "ls", "ls": "lo", "hi": "hs", "hs": "hi"}
_SWAPPED = {"add": "sub", "sub": "add", "max": "min", "min": "max", "and": "or", "or": "and"}
_ORDERING = re.compile(
    r"bar(rier)?\.|cp\.async\.(bulk\.)?(wait|commit)|fence|membar"
    r"|(st|ld|red|atom)\.(release|acquire|acq_rel)"
    r"|mbarrier\.|wgmma\.(fence|commit|wait)|setmaxnreg"
)
_WEAKER = re.compile(r"\.(release|acquire|acq_rel)\b")
_COPY = r"cp\.(reduce\.)?async\.(c[ag]|bulk\.(?!wait|commit))"
_WRITING = re.compile(rf"st\.(global|shared|weak|relaxed|volatile)|red\.|stmatrix|{_COPY}")
_ACCESS = re.compile(rf"(ld|st)\.(?!param|local|const)|(ld|st)matrix|{_COPY}|red\.|atom\.")
# What it matters to come before or after, where those are not all accesses and all that orders.
_ORDERED_WITH = {
    "cp.async.commit": ("cp.async.c", "cp.async.wait"),
    "cp.async.wait": ("bar", "cp.async.commit"),
    "cp.async.bulk.commit": ("cp.async.bulk", "cp.reduce.async.bulk"),
    "cp.async.bulk.wait": ("bar", "mbarrier", "cp.async.bulk.commit"),
    "wgmma.fence": ("wgmma",),
    "wgmma.commit": ("wgmma",),
    "wgmma.wait": ("wgmma", "bar", "mbarrier"),
    "mbarrier.init": ("bar", "mbarrier.arrive"),
    "setmaxnreg": (),
}
# Where another mbarrier may be.
_BYTES_OF_MBARRIER = 8
_NUMBERS = ("f32", "s32", "u32", "b32", "s64", "u64", "b64")
_KEPT = re.compile(r"(add|sub|mul|mad|fma|shl|shr|ex2|neg|xor|and|or)\.")
_WITHOUT_RESULTS = (
    *("st.", "stmatrix", "red.", "cp.", "bar", "bra", "ret", "fence", "membar"),
    *("wgmma.fence", "wgmma.commit", "wgmma.wait", "setmaxnreg"),
)
_WITH_CONSTANTS = ("add", "mul", "mad", "shl", "shr", "and", "mov", "setp")
_INTEGERS = ("s16", "u16", "b16", "s32", "u32", "b32", "s64", "u64", "b64")


@dataclass(frozen=True)
class Instruction:
    """An instruction on a line of its own; ``guard`` is the predicate that it stands under."""

    guard: str
    guard_is_negated: bool
    opcode: str
    operands: tuple[str, ...]

    @property
    def unguarded(self) -> str:
        return f"{self.opcode} {', '.join(self.operands)}".strip()

    @property
    def prefix(self) -> str:
        """Its guard, as it is written before the instruction."""
        return f"@{'!' if self.guard_is_negated else ''}{self.guard} " if self.guard else ""

    @property
    def text(self) -> str:
        return self.prefix + self.unguarded

    @property
    def orders(self) -> bool:
        """Whether it orders threads, accesses or copies."""
        return _ORDERING.match(self.opcode) is not None

    @property
    def accesses(self) -> bool:
        """Whether it reads or writes memory that threads share."""
        return _ACCESS.match(self.opcode) is not None

    def is_ordered_with(self, other: Instruction) -> bool:
        """Of what orders: whether it matters that it comes before or after another instruction."""
        for opcode, others in _ORDERED_WITH.items():
            if self.opcode.startswith(opcode):
                return other.opcode.startswith(others)
        if not self.opcode.startswith("bar"):
            return other.orders or other.accesses
        # What lies at a fixed place is the same for all threads from beginning to end.
        is_fixed = other.opcode.startswith("ld.") and other.operands[-1].startswith("[_")
        is_shared = re.search(r"\.shared\b", other.opcode) is not None
        waits = other.opcode.startswith(("cp.async.wait", "wgmma.wait"))
        return (is_shared and not is_fixed) or waits

    @property
    def registers(self) -> set[str]:
        return set(re.findall(r"%[a-z]+\d+", " ".join((self.guard, *self.operands))))

    @property
    def results(self) -> set[str]:
        """Registers that it writes; none where it is a store or the like."""
        if self.opcode.startswith(_WITHOUT_RESULTS):
            return set()
        return set(re.findall(r"%[a-z]+\d+", self.operands[0])) if self.operands else set()


@dataclass(frozen=True)
class Fault:
    """What stands in the place of an instruction: ``instead``, whole instructions.

    ``move``: the instruction itself comes ``late``, after the next one that it is ordered with,
    ``early``, before the last one, or after its next ``reader``.
    """

    stratum: str
    kind: str
    instead: tuple[str, ...] = ()
    move: str = ""


@cache
def parse(line: str) -> Instruction | None:
    """The instruction on a line; None where there is none, or more than one."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    negated, guard, opcode, rest = found.groups()[:4] if found[3] else found.groups()[4:]
    operands = tuple(split_operands(rest))
    return Instruction(guard or "", negated == "!", opcode, operands)


def faults(instruction: Instruction, near: Sequence[str] = ()) -> Iterator[Fault]:
    """All faults that may be made of an instruction.

    ``near``: registers that it may use by mistake.
    """
    if instruction.guard:
        other = "" if instruction.guard_is_negated else "!"
        text = instruction.unguarded
        yield Fault("guards", "guard: always", (text,))
        yield Fault("guards", "guard: never")
        yield Fault("guards", "guard: negate", (f"@{other}{instruction.guard} {text}",))
    for fault in _unguarded_faults(instruction, near):
        instead = tuple(instruction.prefix + text for text in fault.instead)
        yield Fault(fault.stratum, fault.kind, instead, fault.move)


def _unguarded_faults(instruction: Instruction, near: Sequence[str]) -> Iterator[Fault]:
    if instruction.orders:
        yield from _order(instruction)
    if instruction.accesses:
        yield from _access(instruction)
    yield from _computed(instruction)
    if instruction.results and not instruction.orders:
        yield Fault(_stratum(instruction), "late", move="reader")
    for operand in instruction.operands[1:]:
        for other in _others(operand, near):
            changed = [other if o == operand else o for o in instruction.operands[1:]]
            text = f"{instruction.opcode} {', '.join((instruction.operands[0], *changed))}"
            yield Fault(_stratum(instruction), "other register", (text,))


def _stratum(instruction: Instruction) -> str:
    if instruction.accesses:
        return "accesses"
    # A shuffle writes one beside its value.
    only_predicates = all(result.startswith("%p") for result in instruction.results)
    return "predicates" if instruction.results and only_predicates else "values"


def _others(operand: str, near: Sequence[str]) -> list[str]:
    """A register of the same kind, at most."""
    kind = re.fullmatch(r"(%[a-z]+)\d+", operand)
    return [n for n in near if kind and n != operand and n.rstrip("0123456789") == kind[1]][:1]


def _order(instruction: Instruction) -> Iterator[Fault]:
    opcode, operands = instruction.opcode, instruction.operands
    if _WEAKER.search(opcode) and not opcode.startswith("fence"):
        text = f"{_WEAKER.sub('.relaxed', opcode)} {', '.join(operands)}"
        yield Fault("order", "relaxed order", (text,))
        return
    if opcode.startswith("mbarrier"):
        yield from _mbarrier(instruction)
    if opcode.startswith("mbarrier.try_wait"):
        return
    yield Fault("order", "dropped order")
    if not instruction.guard:
        yield Fault("order", "late order", move="late")
        yield Fault("order", "early order", move="early")
    if opcode.startswith(("cp.async.wait_group", "cp.async.bulk.wait_group", "wgmma.wait_group")):
        yield Fault("order", "wait for fewer", (f"{opcode} {int(operands[0]) + 1}",))


def _mbarrier(instruction: Instruction) -> Iterator[Fault]:
    """The next mbarrier in memory; waits that do not wait, or for the phase before."""
    opcode, operands = instruction.opcode, instruction.operands
    moved = [_moved(operand, _BYTES_OF_MBARRIER) or operand for operand in operands]
    yield Fault("order", "other mbarrier", (f"{opcode} {', '.join(moved)}",))
    if opcode.startswith("mbarrier.try_wait.parity"):
        complete, _, parity = operands
        yield Fault("order", "dropped wait", (f"setp.eq.u32 {complete}, {parity}, {parity}",))
        other = f"xor.b32 {SCRATCH}, {parity}, 1"
        text = f"{opcode} {complete}, {operands[1]}, {SCRATCH}"
        yield Fault("order", "other parity", (other, text))


def _moved(operand: str, count: int) -> str:
    """An address so many bytes on; nothing where the operand is none."""
    found = re.fullmatch(r"\[([%\w$]+)(?:\+(-?\d+))?\]", operand)
    return f"[{found[1]}+{int(found[2] or 0) + count}]" if found else ""


def _access(instruction: Instruction) -> Iterator[Fault]:
    """Dropped writes, addresses 16 bytes on, and vectors in another order."""
    if _WRITING.match(instruction.opcode):
        yield Fault("accesses", "dropped write")
    for at, operand in enumerate(instruction.operands):
        changed = list(instruction.operands)
        moved = _moved(operand, 16)
        items = split_operands(operand[1:-1]) if operand.startswith("{") else []
        if moved:
            changed[at] = moved
            is_source = at or instruction.opcode.startswith("ld")
            kind = "shifted source" if is_source else "shifted target"
        elif len(set(items[:2])) == 2:
            changed[at] = "{" + ", ".join((items[1], items[0], *items[2:])) + "}"
            kind = "swapped items"
        else:
            continue
        yield Fault("accesses", kind, (f"{instruction.opcode} {', '.join(changed)}",))


def _computed(instruction: Instruction) -> Iterator[Fault]:
    opcode, operands = instruction.opcode, instruction.operands
    base, *modifiers = opcode.split(".")
    kind = modifiers[-1] if modifiers else ""
    rest = ", ".join(operands)
    if base == "setp":
        other = _COMPARISONS.get(modifiers[0])
        if other:
            text = f"{'.'.join([base, other, *modifiers[1:]])} {rest}"
            yield Fault("predicates", "comparison", (text,))
    elif base == "selp":
        swapped = (operands[0], operands[2], operands[1], operands[3])
        yield Fault("values", "selection", (f"{opcode} {', '.join(swapped)}",))
    elif opcode.startswith("wgmma.mma"):
        yield Fault("values", "dropped mma")
    elif base == "mma":
        results, addends = (split_operands(operands[i][1:-1]) for i in (0, 3))
        pairs = zip(results, addends, strict=True)
        yield Fault("values", "dropped mma", tuple(f"mov.f32 {d}, {c}" for d, c in pairs))
    elif kind == "pred" and base in _SWAPPED:
        yield Fault("predicates", "operation", (f"{_SWAPPED[base]}.pred {rest}",))
        for a in operands[1:]:
            yield Fault("predicates", "dropped operation", (f"and.pred {operands[0]}, {a}, {a}",))
    elif kind in _NUMBERS:
        if base in _SWAPPED:
            text = f"{'.'.join([_SWAPPED[base], *modifiers])} {rest}"
            yield Fault("values", "operation", (text,))
        if _KEPT.match(opcode) and "wide" not in modifiers and operands[1].startswith("%"):
            move = "b64" if kind.endswith("64") else "f32" if kind == "f32" else "b32"
            yield Fault(
                "values", "dropped operation", (f"mov.{move} {operands[0]}, {operands[1]}",)
            )
    last = operands[-1] if operands else ""
    takes_one = base in _WITH_CONSTANTS and kind in _INTEGERS
    if takes_one and re.fullmatch(r"-?\d+", last):
        changed = ", ".join((*operands[:-1], str(int(last) + 1)))
        yield Fault(_stratum(instruction), "constant", (f"{opcode} {changed}",))
