"""One function's body in C++."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.ptx_emulator import types
from tools.ptx_emulator.errors import TranslationError
from tools.ptx_emulator.flow import Step, unwritten_reads
from tools.ptx_emulator.products import product_checks
from tools.ptx_emulator.statements import Statement, split_operands
from tools.ptx_emulator.table import SPECIAL_REGISTERS, translate

if TYPE_CHECKING:
    from tools.ptx_emulator.module import Function, Module

_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})|0[dD]([0-9a-fA-F]{16})")
_ADDRESS = re.compile(r"\[\s*([\w$%.]+)\s*(?:\+\s*(-?\w+))?\s*\]")
_INSTRUCTION = re.compile(r"(?:@(!?)([\w$%]+)\s+)?([a-z]\w*(?:(?:\.|::)\w+)*)\s*(.*)", re.DOTALL)
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_MANY = re.compile(r"([\w$%]+)<(\d+)>")
_ARRAY = re.compile(r"\.(?:local|param)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$%]+)(?:\[(\d+)\])?")


@dataclass(frozen=True)
class Register:
    name: str  # in the PTX
    cpp: str  # in the C++
    kind: str  # its C++ type


@dataclass(frozen=True)
class Array:
    """A variable of the function: local memory, a parameter of a call, or its own parameters."""

    address: str  # C++, of a char
    bytes: int


@dataclass
class Scope:
    """Names that a pair of braces declares."""

    registers: dict[str, Register] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    targets: dict[str, list[str]] = field(default_factory=dict)


class FunctionBody:
    """Translates the statements of a function, and keeps what its C++ needs besides them."""

    def __init__(self, module: Module, function: Function) -> None:
        self._module = module
        self._function = function
        self._line = function.line
        self._scopes: list[Scope] = []
        self._scope_count = 0
        self._arrays: list[str] = []
        self._registers: dict[str, Register] = {}  # by their C++ names
        self._steps: list[Step] = []
        self._step = Step("")
        self.shared_names: set[str] = set()
        self.callees: set[str] = set()
        self._names = {name for s in function.body for name in re.findall(r"%\w+", s.text)}

    def cpp(self) -> list[str]:
        """Lines of the C++ function, without its head."""
        outer = Scope(arrays=dict(self._function.arrays()))
        self._scopes = [outer]
        self._inner_labels = _labels(self._function.body)
        for statement in self._function.body:
            self._line = statement.line
            self._statement(statement)
        unwritten = unwritten_reads(self._steps)
        uses, lists = product_checks(
            self._steps, self._site_of, lambda register: self._registers[register].name
        )
        body = [
            self._step_text(step, [self._registers[name] for name in sorted(names)], use)
            for step, names, use in zip(self._steps, unwritten, uses, strict=True)
        ]
        return [*self._declarations(set().union(*unwritten)), *self._products(lists), *body]

    def _site_of(self, step: Step) -> str:
        return self._module.site(step.line, step.place)

    def _step_text(self, step: Step, unwritten: list[Register], use: str) -> str:
        """C++ of a step; first what it does with registers of wgmma.

        What it reads of predicates that may not be written is checked before.
        """
        checks = {
            register.cpp: f"check_written({self._site_of(step)}, "
            f'"{register.name}", {register.cpp}); '
            for register in unwritten
            if register.kind == "pred"
        }
        of_guard = checks.pop(step.guard, "")
        code = "".join(checks.values()) + use + step.code
        return f"{of_guard}if ({step.condition}) {{ {code} }}" if step.guard else code

    def _declarations(self, unwritten: set[str]) -> list[str]:
        """Of registers and arrays; what may be read before it is written starts as poison."""
        by_type: dict[str, list[str]] = {}
        for name, register in self._registers.items():
            kind, initial = register.kind, ""
            if name in unwritten:
                if kind == "pred":
                    kind = "Predicate"
                    self._module.headers.add("ptx/predicate.h")
                else:
                    initial = f" = {_POISON[kind]}"
            by_type.setdefault(kind, []).append(name + initial)
        lines = [_ARGUMENTS] if self._function.is_entry else []
        for kind, names in by_type.items():
            lines += [f"{kind} {', '.join(names[i : i + 16])};" for i in range(0, len(names), 16)]
        text = " ".join(step.code for step in self._steps)
        for declaration, word in (
            ("u32 carry = 0;", "carry"),
            ("u32 matrices[4];", "matrices"),
            ("MmaOperands mma;", "mma."),
        ):
            if word in text:
                lines.append(declaration)
        return [*lines, *self._arrays]

    def _products(self, lists: int) -> list[str]:
        """Declarations of how far the products are that have these lists of registers."""
        if not any(step.is_wgmma for step in self._steps):
            return []
        self._module.headers.add("ptx/wgmma_registers.h")
        return ["Wgmmas wgmmas;", *(f"WgmmaRegisters products{i};" for i in range(lists))]

    # ---- statements

    def _statement(self, statement: Statement) -> None:
        text = statement.text
        if text == "{":
            labels, targets = self._inner_labels[self._scope_count]
            self._scope_count += 1
            self._scopes.append(Scope(labels=labels, targets=targets))
        elif text == "}":
            self._scopes.pop()
        elif text.endswith(":"):
            label = self._label(text[:-1])
            self._steps.append(Step(f"{label}:;", label=label))
        elif re.match(r"\.loc\s", text):
            self._module.places.move_to(text)
        elif text.startswith(".reg"):
            self._declare_registers(text)
        elif text.startswith((".local", ".param")):
            self._declare_array(text)
        elif text.startswith(".shared"):
            self._module.declare_shared(text, self._line)
        elif text.startswith((".global", ".const")):
            self._module.declare_variable(text, self._line)
        elif not text.startswith((".pragma", ".branchtargets", ".callprototype", ".maxn")):
            self._instruction(text)

    def _instruction(self, text: str) -> None:
        found = _INSTRUCTION.fullmatch(text)
        if found is None:
            raise TranslationError(f"{self._module.file_name}:{self._line}: cannot read {text!r}")
        negated, guard, opcode, rest = found.groups()
        self._opcode = opcode
        self._step = Step("", line=self._line, place=self._module.places.current())
        self._module.opcodes[opcode] += 1
        self._step.is_wgmma = opcode.startswith("wgmma.")
        self._step.code = translate(self, opcode, split_operands(rest))
        if guard:
            self._step.condition = self.read(f"!{guard}" if negated else guard, "pred")
            self._step.guard = self._step.condition.lstrip("!")
        self._steps.append(self._step)

    def _declare_registers(self, text: str) -> None:
        found = _REGISTERS.fullmatch(text)
        if found is None:
            raise self.fail(f"cannot read {text!r}")
        kind = types.register_type(found[1])
        suffix = f"_{self._scope_count}" if len(self._scopes) > 2 else ""
        for item in split_operands(found[2]):
            many = _MANY.fullmatch(item)
            names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [item]
            for name in names:
                if name.startswith("%") and name not in self._names:
                    continue
                cpp = "$" + name.lstrip("%").replace("%", "$") + suffix
                register = Register(name, cpp, kind)
                self._scopes[-1].registers[name] = register
                self._registers[cpp] = register

    def _declare_array(self, text: str) -> None:
        found = _ARRAY.fullmatch(text)
        if found is None:
            raise self.fail(f"cannot read {text!r}")
        align, kind, name, count = found.groups()
        size = types.SIZES[kind] * int(count or 1)
        cpp = f"array{len(self._arrays)}"
        self._scopes[-1].arrays[name] = Array(cpp, size)
        declaration = f"alignas({max(int(align or 1), 16)}) u8 {cpp}[{max(size, 1)}];"
        if text.startswith(".local"):
            declaration += f" LocalMemory const memory_{cpp}({cpp}, {size});"
        self._arrays.append(declaration)

    # ---- what the table asks for

    def fail(self, what: str) -> TranslationError:
        """An error about the present instruction."""
        return TranslationError(f"{self._module.file_name}:{self._line}: {self._opcode}: {what}")

    def read(self, operand: str, kind: str) -> str:
        """C++ value of a source operand."""
        want = types.cpp_type(kind)
        if operand.startswith("!"):
            return f"!{self.read(operand[1:], kind)}"
        expression, have = self._source(operand, want)
        result = types.read_as(expression, have, want)
        if result is None:
            raise self.fail(f"{operand} is {have}, not {kind}")
        return result

    def _source(self, operand: str, want: str) -> tuple[str, str]:
        """C++ expression and its type."""
        register = self._find("registers", operand)
        if register is not None:
            self._step.reads.add(register.cpp)
            return register.cpp, register.kind
        if operand in SPECIAL_REGISTERS:
            kind, expression = SPECIAL_REGISTERS[operand]
            return expression, kind
        if _INTEGER.fullmatch(operand):
            return types.integer_literal(int(operand.rstrip("U"), 0), want), want
        number = _FLOAT.fullmatch(operand)
        if number:
            size = 4 if number[1] else 8
            return types.float_literal(int(number[1] or number[2], 16), size), f"f{8 * size}"
        base, _, offset = operand.partition("+")
        address = self._symbol(base.strip())
        if address is not None:
            return (f"({address} + {int(offset, 0)})" if offset else address), "u64"
        raise self.fail(f"unknown operand {operand}")

    def write(self, operand: str, kind: str, value: str) -> str:
        """C++ statement that gives a target operand its value."""
        if operand == "_":
            return f"(void)({value});"
        register = self._find("registers", operand)
        if register is None:
            raise self.fail(f"unknown target {operand}")
        self._step.writes.add(register.cpp)
        converted = types.write_as(value, types.cpp_type(kind), register.kind)
        if converted is None:
            raise self.fail(f"{operand} is {register.kind}, not {kind}")
        return f"{register.cpp} = {converted};"

    def multiplies(self, *lists: list[str]) -> None:
        """The instruction is a product with these lists of registers."""
        for names in lists:
            registers = [self._find("registers", name) for name in names]
            self._step.products.append(tuple(r.cpp for r in registers if r is not None))

    def items(self, operand: str) -> list[str]:
        """The operands in braces, or the one operand."""
        return split_operands(operand[1:-1]) if operand.startswith("{") else [operand]

    def address(self, operand: str) -> str:
        """C++ value of an address."""
        found = _ADDRESS.fullmatch(operand)
        if found is None:
            raise self.fail(f"cannot read the address {operand}")
        expression, kind = self._source(found[1], "u64")
        offset = int(found[2] or "0", 0)
        if not offset:
            return expression
        return f"{expression} + {kind}({offset})"

    def box(self, operand: str, rank: int) -> str:
        """C++ value of a box of a tensor: its map's address and first coordinates in brackets."""
        map_address, *braces = split_operands(operand[1:-1])
        first = self.items(braces[0]) if len(braces) == 1 else []
        if len(first) != rank:
            raise self.fail(f"a box of {rank} dimensions, not {operand}")
        values = ", ".join(self.read(item, "s32") for item in first)
        return f"TensorBox{{{self.address(f'[{map_address}]')}, {rank}, {{{values}}}}}"

    def static_address(self, operand: str, size: int) -> str | None:
        """C++ pointer to a parameter."""
        found = _ADDRESS.fullmatch(operand)
        array = self._find("arrays", found[1]) if found else None
        if found is None or array is None:
            return None
        offset = int(found[2] or "0", 0)
        if not 0 <= offset <= array.bytes - size:
            raise self.fail(f"{size} bytes at {offset} of {array.bytes}")
        return f"static_cast<void*>({array.address} + {offset})"

    def source_bytes(self, operand: str, whole: int) -> str:
        """How much a copy takes from its source: a number, or all or nothing by a predicate."""
        register = self._find("registers", operand.lstrip("!"))
        if register is not None and register.kind == "pred":
            return f"{self.read(operand, 'pred')} ? 0u : {whole}u"
        return self.read(operand, "u32")

    def site(self) -> str:
        """C++ pointer to where the instruction is."""
        return self._site_of(self._step)

    def jump(self, label: str) -> str:
        """C++ statement."""
        name = self._label(label)
        self._step.jumps.add(name)
        return f"goto {name};"

    def jump_targets(self, table: str) -> list[str]:
        """Labels of a ``.branchtargets`` directive."""
        found: list[str] | None = self._find("targets", table)
        if found is None:
            raise self.fail(f"no branch targets {table}")
        self._step.ends = True
        return found

    def end(self, *, of_thread: bool) -> str:
        """C++ statement that leaves the function, or ends the thread."""
        self._step.ends = True
        return "end_thread();" if of_thread and not self._function.is_entry else "return;"

    def call(self, result: str, name: str, arguments: list[str]) -> str:
        """C++ statement."""
        arrays = [self._find("arrays", item) for item in ([result] if result else []) + arguments]
        self.callees.add(name)
        given = []
        for array in arrays:
            if array is None:
                raise self.fail("only parameters in memory are supported")
            given.append(array.address)
        function = self._module.callee(name)
        if function is None:
            raise self.fail(f"calls {name}, which is not in this file")
        return f"{function}({', '.join(given)});"

    # ---- names

    def _find(self, what: str, name: str) -> Any:
        for scope in reversed(self._scopes):
            if name in getattr(scope, what):
                return getattr(scope, what)[name]
        return None

    def _label(self, name: str) -> str:
        label = self._find("labels", name)
        if label is None:
            raise self.fail(f"no label {name}")
        return str(label)

    def _symbol(self, name: str) -> str | None:
        """C++ value of a variable's address."""
        array = self._find("arrays", name)
        if array is not None:
            return f"address_of({array.address})"
        if self._module.is_shared(name):
            self.shared_names.add(name)
            return self._module.shared_address(self._function, name)
        return self._module.variable_address(name)


_ARGUMENTS = "[[maybe_unused]] auto* const args = static_cast<u8*>(const_cast<void*>(arguments));"

_POISON = {
    "f32": "as_f32(0xffffffffu)",
    "f64": "as_f64(0xffffffffffffffffull)",
    **{f"u{bits}": f"u{bits}(-1)" for bits in (8, 16, 32, 64, 128)},
}


def _labels(body: list[Statement]) -> list[tuple[dict[str, str], dict[str, list[str]]]]:
    """Of each scope in the order of their braces: labels, and lists of branch targets.

    Labels may be used before they stand.
    """
    scopes: list[tuple[dict[str, str], dict[str, list[str]]]] = []
    open_scopes: list[int] = []
    before = ""
    for statement in body:
        if statement.text == "{":
            open_scopes.append(len(scopes))
            scopes.append(({}, {}))
        elif statement.text == "}":
            open_scopes.pop()
        elif statement.text.endswith(":"):
            inner = f"_{open_scopes[-1]}" if len(open_scopes) > 1 else ""
            before = statement.text[:-1]
            name = "L" + re.sub(r"\W", "_", before) + inner
            scopes[open_scopes[-1]][0][before] = name
        elif statement.text.startswith(".branchtargets"):
            targets = statement.text.removeprefix(".branchtargets").split(",")
            scopes[open_scopes[-1]][1][before] = [t.strip() for t in targets]
    return scopes
