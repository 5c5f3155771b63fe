"""Rows of the table of instructions.

A form such as ``form("mul.wide.<T:s32|u32>", "wide = T T", "wide({a}) * wide({b})")`` says how an
instruction is spelled, what types its operands have, and what it computes, as a C++ expression:

* ``<T:s32|u32>`` binds a name to one of several modifiers, or sets of them (``INT``);
* ``[.ftz]`` may be there or not;
* operands, result first, have types by name, or by a name that the spelling binds; ``wide`` is
  ``T`` with twice the bits, ``bits`` is ``T`` without a sign, ``address`` one in brackets, as u64,
  ``box3`` a box of a tensor of three dimensions;
* in the expression, ``{a}``, ``{b}``, ... are the sources, ``{site}`` says where the instruction
  is, and a bound name is what it stands for. ``wide`` and ``T`` are C++ types there.

``.ftz`` flushes operands and result, ``.sat`` clamps the result, unless the expression names them.
Of several rows with one spelling, that one counts which takes as many operands. ``shared::cta`` is
``shared`` in spellings and modifiers. Instructions that do not fit have an ``operation``: a
function that writes the C++ itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tools.ptx_emulator import types

SETS = {
    "INT": "s16|u16|s32|u32|s64|u64",
    "INT32": "s32|u32",
    "INT32_64": "s32|u32|s64|u64",
    "BITS": "b16|b32|b64",
    "FLOAT": "f32|f64",
    "HALVES": "f16|f16x2|bf16|bf16x2",
    "HALF": "f16|bf16",
}
_SIGNED_WIDE = {16: "32", 32: "64", 64: "128"}


class Body(Protocol):
    """What the table sees of the function that is being translated."""

    def read(self, operand: str, kind: str) -> str:
        """C++ value, of the C++ type of ``kind``, of a source operand."""

    def write(self, operand: str, kind: str, value: str) -> str:
        """C++ statement that gives a value of this type to a target operand."""

    def items(self, operand: str) -> list[str]:
        """The operands in braces, or the one operand."""

    def multiplies(self, *lists: list[str]) -> None:
        """The instruction is a product with these lists of registers."""

    def address(self, operand: str) -> str:
        """C++ value, u64, of an address in brackets."""

    def box(self, operand: str, rank: int) -> str:
        """C++ value, TensorBox, of a tensor map's address and as many coordinates in brackets."""

    def static_address(self, operand: str, size: int) -> str | None:
        """C++ pointer where an address in brackets is that of a parameter of ``size`` bytes."""

    def source_bytes(self, operand: str, whole: int) -> str:
        """C++ value: how much a copy takes from its source; a predicate says all or nothing."""

    def site(self) -> str:
        """C++ pointer to where the instruction is."""

    def jump(self, label: str) -> str:
        """C++ statement."""

    def jump_targets(self, table: str) -> list[str]:
        """Labels of a ``.branchtargets`` directive."""

    def end(self, *, of_thread: bool) -> str:
        """C++ statement that leaves the function, or ends the thread."""

    def call(self, result: str, name: str, arguments: list[str]) -> str:
        """C++ statement."""

    def fail(self, what: str) -> Exception:
        """An error that names the PTX line."""


Operation = Callable[[Body, list[str], list[str]], str]
_operations: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Registers a function of (body, modifiers, operands) that returns C++ statements."""

    def register(function: Operation) -> Operation:
        for name in names:
            _operations[name] = function
        return function

    return register


def _regex(pattern: str) -> re.Pattern[str]:
    text = re.sub(r"\[\.(\w+)\]", r"(?P<\1>@\1)?", pattern)
    text = re.sub(r"<(\w+):([\w|:]+)>", lambda m: f"(?P<{m[1]}>{_choices(m[2])})", text)
    return re.compile(text.replace(".", r"\.").replace("@", r"\."))


def _choices(text: str) -> str:
    return "|".join(SETS.get(choice, choice) for choice in text.split("|"))


def _derived(bound: dict[str, str]) -> dict[str, str]:
    kind = bound.get("T", "")
    if kind in types.SIZES and kind not in ("pred", "b128"):
        bits = 8 * types.SIZES[kind]
        bound["bits"] = f"b{bits}"
        if kind[0] in "su" and bits in _SIGNED_WIDE:
            bound["wide"] = kind[0] + _SIGNED_WIDE[bits]
    return bound


@dataclass(frozen=True)
class Form:
    spelling: re.Pattern[str]
    targets: tuple[str, ...]
    sources: tuple[str, ...]
    expression: str

    def takes(self, operands: list[str]) -> bool:
        return len(operands) == len(self.targets) + len(self.sources)

    def apply(self, body: Body, found: re.Match[str], operands: list[str]) -> str:
        """C++ of the instruction."""
        bound = _derived({k: v.lstrip(".") for k, v in found.groupdict().items() if v})
        kinds = [bound.get(kind, kind) for kind in self.targets + self.sources]
        flush = "ftz" in bound and "{ftz}" not in self.expression
        values = dict(bound)
        first = len(self.targets)
        sources = zip(operands[first:], kinds[first:], strict=True)
        for name, (operand, kind) in zip("abcdefgh", sources, strict=False):
            value = _source(body, operand, kind)
            values[name] = f"flush({value})" if flush and kind == "f32" else value
        if "{site}" in self.expression:
            values["site"] = body.site()
        code = self.expression.format_map(_CppNames(values))
        if flush:
            code = f"flush({code})"
        if "sat" in bound and "{sat}" not in self.expression:
            code = f"saturate({code})"
        if not self.targets:
            return f"{code};"
        return body.write(operands[0], kinds[0], code)


def _source(body: Body, operand: str, kind: str) -> str:
    """C++ value of a source operand."""
    if kind == "address":
        return body.address(operand)
    if kind.startswith("box"):
        return body.box(operand, int(kind[3:]))
    return body.read(operand, kind)


class _CppNames(dict[str, str]):
    """Optional modifiers that are not there are empty."""

    def __missing__(self, key: str) -> str:
        return ""


_forms: dict[str, list[Form]] = {}


def form(pattern: str, signature: str, expression: str) -> None:
    """Adds a row."""
    targets, _, sources = signature.partition("=")
    row = Form(_regex(pattern), tuple(targets.split()), tuple(sources.split()), expression)
    _forms.setdefault(re.split(r"\W", pattern)[0], []).append(row)


def translate(body: Body, opcode: str, operands: list[str]) -> str:
    """C++ of an instruction. An error names it where the table does not have it."""
    opcode = opcode.replace("shared::cta", "shared")
    base, *modifiers = opcode.split(".")
    is_spelled = False
    for row in _forms.get(base, ()):
        found = row.spelling.fullmatch(opcode)
        if found and row.takes(operands):
            return row.apply(body, found, operands)
        is_spelled |= found is not None
    if is_spelled:
        raise body.fail(f"{len(operands)} operands")
    if base in _operations:
        return _operations[base](body, modifiers, operands)
    raise body.fail("the table of instructions does not have it")
