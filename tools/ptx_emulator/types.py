"""PTX's types, and how values of one are read from and written to registers of another.

In the C++, a register is a variable of an unsigned type, ``f32``, ``f64`` or ``bool``; halves are
their bits. ``ptx/types.h`` gives the C++ types PTX's names.
"""

from __future__ import annotations

import struct

SIZES = {
    "pred": 1,
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
    "b128": 16,
}

FLOATS = ("f32", "f64")


def cpp_type(kind: str) -> str:
    """C++ type of a value: ``u32`` for ``b32`` or ``f16x2``."""
    if kind in FLOATS or kind == "pred" or kind[0] == "s":
        return kind
    return f"u{8 * SIZES[kind]}"


def register_type(kind: str) -> str:
    """C++ type of a register that is declared with this type."""
    return f"u{8 * SIZES[kind]}" if kind[0] == "s" else cpp_type(kind)


def _bits(size: int) -> str:
    return f"u{8 * size}"


def _size(cpp: str) -> int:
    return SIZES[cpp.replace("u128", "b128")]


def read_as(expression: str, have: str, want: str) -> str | None:
    """A C++ value of type ``have`` as one of ``want``; None where a register cannot be read so."""
    if have == want:
        return expression
    if "pred" in (have, want) or _size(have) < _size(want):
        return None
    if have in FLOATS:
        if _size(have) != _size(want):
            return None
        expression, have = f"as_{_bits(_size(have))}({expression})", _bits(_size(have))
        return expression if have == want else f"{want}({expression})"
    if want in FLOATS:
        bits = _bits(_size(want))
        return f"as_{want}({expression if have == bits else f'{bits}({expression})'})"
    return f"{want}({expression})"


def write_as(expression: str, value: str, register: str) -> str | None:
    """The same for a value that goes to a register, which may be wider."""
    if value == register:
        return expression
    if "pred" in (value, register) or _size(register) < _size(value):
        return None
    if value in FLOATS:
        if register in FLOATS:
            return None
        bits = _bits(_size(value))
        return f"as_{bits}({expression})"
    if register in FLOATS:
        if _size(register) != _size(value):
            return None
        return f"as_{register}({_bits(_size(value))}({expression}))"
    return f"{register}({value}({expression}))"


def integer_literal(number: int, want: str) -> str:
    """A C++ expression of an integer type, or of a float's bits."""
    if want == "pred":
        return "true" if number else "false"
    size = _size(want)
    wrapped = number & (1 << 8 * size) - 1
    if want in FLOATS:
        return f"as_{want}({_bits(size)}(0x{wrapped:x}u))"
    if want[0] == "s" and wrapped >> (8 * size - 1):
        wrapped -= 1 << 8 * size
    suffix = ("ll" if size == 8 else "") if want[0] == "s" else ("ull" if size >= 8 else "u")
    if wrapped == -(1 << 63):
        return "(-0x7fffffffffffffffll - 1)"
    return f"{want}({wrapped}{suffix})"


def float_literal(bits: int, size: int) -> str:
    """A C++ expression of ``f32`` or ``f64``."""
    value = struct.unpack("<f" if size == 4 else "<d", bits.to_bytes(size, "little"))[0]
    if value != value or value in (float("inf"), float("-inf")):
        return f"as_f{8 * size}({_bits(size)}(0x{bits:x}{'u' if size == 4 else 'ull'}))"
    return f"{value.hex()}{'f' if size == 4 else ''}"
