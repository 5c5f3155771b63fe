"""A PTX file as a C++ file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from tools.ptx_emulator import types
from tools.ptx_emulator.body import Array, FunctionBody
from tools.ptx_emulator.errors import TranslationError
from tools.ptx_emulator.places import Chain, Places
from tools.ptx_emulator.statements import Statement, split_operands, statements
from tools.ptx_emulator.variables import Variable, identifier, parse_variable, shared_layout

_HEAD = re.compile(r"(?:\.\w+\s+)*\.(?:entry|func)\b")
_FUNCTION = re.compile(
    r"(?:\.(?:visible|extern|weak)\s+)*\.(?P<kind>entry|func)\s+(?:\.noreturn\s+)?"
    r"(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*(?:\((?P<params>.*?)\))?(?P<rest>[^()]*)",
    re.DOTALL,
)
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?"
    r"([\w$%]+)(?:\[(\d+)\])?"
)
_THREADS = re.compile(r"\.(?:maxntid|reqntid)\s+([\d, ]+)")
# Functions that nvcc calls and the emulator's runtime has.
_OF_THE_RUNTIME = {"__assertfail": "assert_fail", "vprintf": "print_format"}


@dataclass(frozen=True)
class Param:
    name: str
    offset: int
    bytes: int


@dataclass
class Function:
    name: str
    line: int
    is_entry: bool
    results: list[Param]
    params: list[Param]
    max_threads: int  # 0: no limit
    body: list[Statement] = field(default_factory=list)

    @property
    def cpp(self) -> str:
        return f"{'kernel' if self.is_entry else 'function'}_{identifier(self.name)}"

    @property
    def head(self) -> str:
        """Of its C++ function."""
        if self.is_entry:
            return f"void {self.cpp}(void const* arguments)"
        given = ", ".join(f"u8* {identifier(p.name)}" for p in self.results + self.params)
        return f"void {self.cpp}({given})"

    def arrays(self) -> dict[str, Array]:
        """Its parameters as the body sees them."""
        if self.is_entry:
            return {p.name: Array(f"(args + {p.offset})", p.bytes) for p in self.params}
        return {p.name: Array(identifier(p.name), p.bytes) for p in self.results + self.params}


class Module:
    """Translates a file; what the bodies of functions share."""

    def __init__(self, text: str, file_name: str) -> None:
        self.file_name = file_name
        self.opcodes: Counter[str] = Counter()
        self._statements = list(statements(text))
        self.places = Places(self._statements)
        self._functions: list[Function] = []
        self._variables: dict[str, Variable] = {}
        self._shared: dict[str, Variable] = {}
        self._used: set[str] = set()
        self._sites: list[tuple[int, int]] = []
        self.headers: set[str] = set()  # that some functions need

    def cpp(self) -> str:
        """Text of the C++ file."""
        self._read()
        bodies: list[str] = []
        shared_of: dict[str, set[str]] = {}
        callees: dict[str, set[str]] = {}
        for function in self._functions:
            self.places.start_function()
            body = FunctionBody(self, function)
            bodies += [f"{function.head} {{", *body.cpp(), "}", ""]
            shared_of[function.name] = body.shared_names
            callees[function.name] = body.callees
        users = self._users(shared_of, callees)
        static = [v for v in self._shared.values() if not v.is_extern]
        offsets, ends = shared_layout(static, users)
        lines = [
            f"// Translated from {self.file_name}.",
            '#include "ptx/ptx.h"',
            *(f'#include "{header}"' for header in sorted(self.headers)),
            "",
            "namespace {",
            "using namespace emu::ptx;",
            *self._place_tables(),
            *(f"constexpr u64 {self._shared[n].cpp} = {at};" for n, at in offsets.items()),
            *self._variable_definitions(),
            *(f"{f.head};" for f in self._functions),
            "",
            *bodies,
            *self._registration(ends, users),
            "}  // namespace",
        ]
        return "\n".join(lines) + "\n"

    # ---- reading

    def _read(self) -> None:
        position = 0
        while position < len(self._statements):
            statement = self._statements[position]
            text = statement.text
            position += 1
            if _HEAD.match(text):
                following = self._statements[position : position + 1]
                if following and following[0].text == "{":
                    end = _end_of_braces(self._statements, position)
                    function = self._function(statement)
                    function.body = self._statements[position:end]
                    self._functions.append(function)
                    position = end
            elif re.match(r"(?:\.\w+\s+)*\.shared\b", text):
                self.declare_shared(text, statement.line)
            elif re.match(r"(?:\.\w+\s+)*\.(?:global|const)\b", text):
                self.declare_variable(text, statement.line)

    def _function(self, statement: Statement) -> Function:
        found = _FUNCTION.fullmatch(statement.text)
        if found is None:
            raise self._error(statement.line, f"cannot read {statement.text!r}")
        threads = _THREADS.search(found["rest"])
        limit = 1 if threads else 0
        for number in threads[1].split(",") if threads else ():
            limit *= int(number)
        return Function(
            name=found["name"],
            line=statement.line,
            is_entry=found["kind"] == "entry",
            results=self._params(found["results"], statement.line),
            params=self._params(found["params"], statement.line),
            max_threads=limit,
        )

    def _params(self, text: str | None, line: int) -> list[Param]:
        params: list[Param] = []
        end = 0
        for item in split_operands(text or ""):
            found = _PARAM.fullmatch(item)
            if found is None:
                raise self._error(line, f"cannot read the parameter {item!r}")
            align, kind, name, count = found.groups()
            size = types.SIZES[kind] * int(count or 1)
            aligned = int(align or types.SIZES[kind])
            offset = -(-end // aligned) * aligned
            params.append(Param(name, offset, size))
            end = offset + size
        return params

    def _error(self, line: int, what: str) -> TranslationError:
        return TranslationError(f"{self.file_name}:{line}: {what}")

    # ---- what bodies ask for

    def declare_shared(self, text: str, line: int) -> None:
        """Take the declaration of a shared variable."""
        variable = parse_variable(text, f"{self.file_name}:{line}")
        self._shared[variable.name] = variable

    def declare_variable(self, text: str, line: int) -> None:
        """Take the declaration of a global or constant variable."""
        variable = parse_variable(text, f"{self.file_name}:{line}")
        self._variables[variable.name] = variable

    def is_shared(self, name: str) -> bool:
        """Whether a name is that of a shared variable."""
        return name in self._shared

    def shared_address(self, function: Function, name: str) -> str:
        """C++ value: its offset."""
        variable = self._shared[name]
        return "u64(dynamic_shared_start())" if variable.is_extern else variable.cpp

    def variable_address(self, name: str) -> str | None:
        """C++ value, or None where there is no such variable."""
        if name not in self._variables:
            return None
        self._used.add(name)
        return f"address_of({self._variables[name].cpp})"

    def callee(self, name: str) -> str | None:
        """C++ name of a device function."""
        for function in self._functions:
            if function.name == name and not function.is_entry:
                return function.cpp
        return _OF_THE_RUNTIME.get(name)

    def site(self, line: int, place: Chain) -> str:
        """C++ pointer to a new site."""
        self._sites.append((line, self.places.index(place)))
        return f"sites + {len(self._sites) - 1}"

    # ---- parts of the file

    def _users(
        self, shared_of: dict[str, set[str]], callees: dict[str, set[str]]
    ) -> dict[str, set[str]]:
        """The kernels that use each shared variable, themselves or in what they call."""
        users: dict[str, set[str]] = {}
        for kernel in (f for f in self._functions if f.is_entry):
            seen: set[str] = set()
            pending = [kernel.name]
            while pending:
                name = pending.pop()
                if name in seen:
                    continue
                seen.add(name)
                pending += callees.get(name, ())
                for variable in shared_of.get(name, ()):
                    users.setdefault(variable, set()).add(kernel.name)
        return users

    def _place_tables(self) -> list[str]:
        files = [f'  "{name}",' for name in self.places.files]
        places = [f"  {{{p.file}, {p.line}, {p.caller}}}," for p in self.places.places]
        sites = [f"  {{{line}, {place}}}," for line, place in self._sites]
        return [
            *("char const* const files[] = {", *files, "  nullptr};"),
            *("Place const places[] = {", *places, "  {0, 0, -1}};"),
            *("Site const sites[] = {", *sites, "  {0, -1}};"),
        ]

    def _variable_definitions(self) -> list[str]:
        lines = []
        for variable in (self._variables[name] for name in sorted(self._used)):
            if variable.is_extern:
                raise self._error(0, f"{variable.name} is not in this file")
            initial = ""
            if variable.initial is not None:
                initial = " = {" + ",".join(map(str, variable.initial)) + "}"
            lines.append(
                f"alignas({max(variable.align, 16)}) u8 "
                f"{variable.cpp}[{max(variable.size, 1)}]{initial};"
            )
        return lines

    def _registration(self, ends: dict[str, int], users: dict[str, set[str]]) -> list[str]:
        dynamic = [v for v in self._shared.values() if v.is_extern]
        entries = []
        lines = []
        for number, kernel in enumerate(f for f in self._functions if f.is_entry):
            used = (v.align for v in dynamic if kernel.name in users.get(v.name, ()))
            align = max(used, default=1)
            static = -(-ends.get(kernel.name, 0) // align) * align
            layout = ", ".join(f"{{{p.offset}, {p.bytes}}}" for p in kernel.params)
            lines.append(f"Param const params{number}[] = {{{layout or '{0, 0}'}}};")
            entries.append(
                f'  {{"{kernel.name}", {kernel.cpp}, params{number}, {len(kernel.params)}, '
                f"{static}, {kernel.max_threads}}},"
            )
        variables = [
            f'  {{"{v.name}", {v.cpp}, {v.size}, {"true" if v.space == "global" else "false"}}},'
            for v in (self._variables[name] for name in sorted(self._used))
        ]
        return [
            *lines,
            *("Entry const entries[] = {", *entries, "  {nullptr, nullptr, nullptr, 0, 0, 0}};"),
            *("Variable const variables[] = {", *variables, "  {nullptr, nullptr, 0, false}};"),
            "Module const module(files, places, sites, "
            f"{len(self._sites)}, entries, {len(entries)}, variables, {len(variables)});",
        ]


def _end_of_braces(module: list[Statement], start: int) -> int:
    """Index after the brace that closes the one at ``start``."""
    depth = 0
    for at in range(start, len(module)):
        depth += {"{": 1, "}": -1}.get(module[at].text, 0)
        if depth == 0:
            return at + 1
    raise TranslationError(f"line {module[start].line}: a brace is not closed")
