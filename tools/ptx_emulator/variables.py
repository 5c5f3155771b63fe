"""Variables of a module: global, constant and shared memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.ptx_emulator import types
from tools.ptx_emulator.errors import TranslationError

_DECLARATION = re.compile(
    r"(?P<linkage>(?:\.(?:visible|extern|weak|common)\s+)*)\.(?P<space>global|const|shared)\s+"
    r"(?:\.attribute\(.*?\)\s*)?(?:\.align\s+(?P<align>\d+)\s+)?(?:\.v(?P<vector>\d)\s+)?"
    r"\.(?P<kind>\w+)\s+(?P<name>[\w$%]+)(?P<dims>(?:\[\d*\])*)\s*(?:=\s*(?P<initial>.*))?",
    re.DOTALL,
)
_FLOAT_ITEM = re.compile(r"0[fFdD]([0-9a-fA-F]+)")
_INTEGER_ITEM = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?")


def identifier(name: str) -> str:
    """A C++ identifier for a name of PTX."""
    return re.sub(r"\W", "_", name)


@dataclass(frozen=True)
class Variable:
    """``initial`` is None where memory starts as zeros; ``is_extern`` for what a launch sizes."""

    name: str
    space: str
    size: int
    align: int
    is_extern: bool
    initial: bytes | None

    @property
    def cpp(self) -> str:
        """Name of its C++ variable, or of its offset in shared memory."""
        return f"{self.space}_{identifier(self.name)}"


def parse_variable(text: str, where: str) -> Variable:
    """Of a declaration; ``where`` is for errors."""
    found = _DECLARATION.fullmatch(text)
    if found is None:
        raise TranslationError(f"{where}: cannot read {text!r}")
    kind = found["kind"]
    size = types.SIZES[kind] * int(found["vector"] or 1)
    count = 1
    for dim in re.findall(r"\[(\d*)\]", found["dims"]):
        count *= int(dim or 0)
    return Variable(
        name=found["name"],
        space=found["space"],
        size=size * count,
        align=int(found["align"] or size),
        is_extern=".extern" in found["linkage"],
        initial=None if found["initial"] is None else _initial(kind, found["initial"], where),
    )


def _initial(kind: str, text: str, where: str) -> bytes:
    data = bytearray()
    size = types.SIZES[kind]
    for item in re.findall(r"[^{},\s]+", text):
        number = _FLOAT_ITEM.fullmatch(item)
        if number:
            data += bytes.fromhex(number[1])[::-1]
        elif _INTEGER_ITEM.fullmatch(item):
            value = int(item.rstrip("U"), 0) & (1 << 8 * size) - 1
            data += value.to_bytes(size, "little")
        else:
            raise TranslationError(f"{where}: an initial value {item} is not supported")
    return bytes(data)


def shared_layout(
    variables: list[Variable], users: dict[str, set[str]]
) -> tuple[dict[str, int], dict[str, int]]:
    """Offsets of variables, and bytes of each kernel, from the kernels that use each variable.

    Those of different kernels may overlap.
    """
    offsets: dict[str, int] = {}
    ends: dict[str, int] = {}
    for variable in variables:
        kernels = users.get(variable.name, set())
        start = max((ends.get(kernel, 0) for kernel in kernels), default=0)
        start = -(-start // variable.align) * variable.align
        offsets[variable.name] = start
        ends.update(dict.fromkeys(kernels, start + variable.size))
    return offsets, ends
