"""As much of the ELF format as says how a module is protected."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

_LOAD, _DYNAMIC, _STACK, _RELRO = 1, 2, 0x6474E551, 0x6474E552
_EXECUTE, _WRITE = 1, 2
_DYNSYM = 11
_RPATH, _RUNPATH, _TEXTREL, _BIND_NOW, _FLAGS, _FLAGS_1 = 15, 29, 22, 24, 30, 0x6FFFFFFB


@dataclass(frozen=True)
class Module:
    """What a shared library says of itself."""

    relro: bool
    bound_at_start: bool
    text_relocations: bool
    executable_stack: bool
    writable_code: bool
    search_path: bool
    exports: frozenset[str]
    imports: frozenset[str]


def read(path: Path) -> Module:
    """Of a 64-bit little-endian ELF file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
    programs_at, sections_at = struct.unpack_from("<QQ", data, 32)
    program_size, programs, section_size, sections = struct.unpack_from("<HHHH", data, 54)
    flags: dict[int, list[int]] = {}
    dynamic: dict[int, int] = {}
    for i in range(programs):
        kind, flag, offset, _, _, size = struct.unpack_from(
            "<IIQQQQ", data, programs_at + i * program_size
        )
        flags.setdefault(kind, []).append(flag)
        if kind == _DYNAMIC:
            dynamic = dict(struct.iter_unpack("<QQ", data[offset : offset + size]))
    exports: set[str] = set()
    imports: set[str] = set()
    for i in range(sections):
        header = struct.unpack_from("<IIQQQQIIQQ", data, sections_at + i * section_size)
        if header[1] == _DYNSYM:
            names = struct.unpack_from("<IIQQQQIIQQ", data, sections_at + header[6] * section_size)
            for name, defined in _symbols(data, header[4], header[5], names[4]):
                (exports if defined else imports).add(name)
    return Module(
        relro=_RELRO in flags,
        bound_at_start=_BIND_NOW in dynamic
        or bool(dynamic.get(_FLAGS, 0) & 8)
        or bool(dynamic.get(_FLAGS_1, 0) & 1),
        text_relocations=_TEXTREL in dynamic or bool(dynamic.get(_FLAGS, 0) & 4),
        executable_stack=any(flag & _EXECUTE for flag in flags.get(_STACK, [_EXECUTE])),
        writable_code=any(flag & _EXECUTE and flag & _WRITE for flag in flags[_LOAD]),
        search_path=_RPATH in dynamic or _RUNPATH in dynamic,
        exports=frozenset(exports),
        imports=frozenset(imports),
    )


def _symbols(data: bytes, offset: int, size: int, names: int) -> list[tuple[str, bool]]:
    """Names, and whether they are defined here."""
    symbols = []
    for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", data[offset : offset + size]):
        begin = names + name
        text = data[begin : data.index(b"\0", begin)].decode()
        if text:
            symbols.append((text, section != 0))
    return symbols
