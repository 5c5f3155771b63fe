"""``cvt`` and ``cvta``."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import Body, form, operation
from tools.ptx_emulator.types import SIZES

_FLOATS = ("f16", "bf16", "f32", "f64")
_ROUNDINGS = ("rn", "rz", "rm", "rp", "rna")
_TO_INTEGER = {"rni": "nearest", "rzi": "toward_zero", "rmi": "down", "rpi": "up"}

# Two halves at once; the first operand becomes the upper one.
for half in ("f16", "bf16"):
    pair = f"{half}x2"
    form(f"cvt.rn.{pair}.f32", "b32 = f32 f32", f"pack_{half}({{a}}, {{b}})")
    form(f"cvt.rz.{pair}.f32", "b32 = f32 f32", f"pack_rz_{half}({{a}}, {{b}})")
    form(f"cvt.rn.relu.{pair}.f32", "b32 = f32 f32", f"pack_{half}(relu({{a}}), relu({{b}}))")
form("cvt.rna.tf32.f32", "b32 = f32", "round_tf32({a})")

form("cvta.<space:const|global|local|param>.<T:u32|u64>", "T = T", "{a}")
form("cvta.to.<space:const|global|local|param>.<T:u32|u64>", "T = T", "{a}")
form("cvta.shared.u64", "u64 = u64", "{a} + shared_window()")
form("cvta.to.shared.u64", "u64 = u64", "{a} - shared_window()")


def _wide(kind: str, value: str) -> str:
    return f"wide_{kind}({value})" if kind in ("f16", "bf16") else value


def _from_integer(body: Body, mode: str, to: str, value: str) -> str:
    if to in ("f16", "bf16"):
        if mode != "rn":
            raise body.fail("the table of instructions does not have it")
        return f"round_{to}(f64({value}))"
    if mode in ("", "rn"):
        return f"{to}({value})"
    return f"to_{to}_{mode}({value})"


def _between_floats(body: Body, mode: str, to: str, kind: str, value: str) -> str:
    value = _wide(kind, value)
    if mode in _TO_INTEGER:
        value = f"{_TO_INTEGER[mode]}({value})"
        return value if to in ("f32", "f64") else f"round_{to}({value})"
    if SIZES[to] >= SIZES[kind] and to == kind:
        return value if to in ("f32", "f64") else f"round_{to}({value})"
    if SIZES[to] > SIZES[kind]:
        return f"{to}({value})"
    if to in ("f16", "bf16"):
        return f"round_{to}({value})" if mode in ("", "rn") else f"round_{mode}_{to}({value})"
    return f"f32({value})" if mode in ("", "rn") else f"to_f32_{mode}({value})"


@operation("cvt")
def cvt(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``cvt[.rounding][.ftz][.sat][.relu].D.S d, a``."""
    *options, to, kind = modifiers
    mode = next((m for m in options if m in _ROUNDINGS or m in _TO_INTEGER), "")
    rest = [m for m in options if m != mode]
    known = set(rest) <= {"ftz", "sat", "relu"} and mode != "rna"
    if not known or to not in SIZES or kind not in SIZES or len(operands) != 2:
        raise body.fail("the table of instructions does not have it")
    source_bits = f"b{8 * SIZES[kind]}" if kind in ("f16", "bf16") else kind
    target_bits = f"b{8 * SIZES[to]}" if to in ("f16", "bf16") else to
    value = body.read(operands[1], source_bits)
    if "ftz" in rest and kind == "f32":
        value = f"flush({value})"
    if to in _FLOATS and kind in _FLOATS:
        if "relu" in rest:
            kind, value = "f32", f"relu({_wide(kind, value)})"
        value = _between_floats(body, mode, to, kind, value)
    elif to in _FLOATS:
        value = _from_integer(body, mode, to, value)
    elif kind in _FLOATS:
        if mode not in _TO_INTEGER:
            raise body.fail("the table of instructions does not have it")
        value = f"to_integer<{to}>({_TO_INTEGER[mode]}({_wide(kind, value)}))"
    elif "sat" in rest:
        value = f"clamp_to<{to}>({value})"
    else:
        value = f"{to}({value})"
    if to == "f32" and "ftz" in rest:
        value = f"flush({value})"
    if to in _FLOATS and "sat" in rest:
        value = f"saturate({value})" if to in ("f32", "f64") else f"saturate_{to}({value})"
    return body.write(operands[0], target_bits, value)
