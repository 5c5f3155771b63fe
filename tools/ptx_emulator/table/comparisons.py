"""Comparisons and selections."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import Body, form, operation

# Of numbers; "unordered" ones hold for NaN, too.
_ORDERED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_UNSIGNED = {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
# The negation of each, which is where NaN compares false.
_UNORDERED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
_FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")

form("selp.<T:BITS|INT|FLOAT>", "T = T T pred", "{c} ? {a} : {b}")
form("slct.<T:BITS|INT|FLOAT>.<C:s32|f32>", "T = T T C", "{c} >= 0 ? {a} : {b}")
form("slct.ftz.<T:BITS|INT|FLOAT>.f32", "T = T T f32", "flush({c}) >= 0 ? {a} : {b}")


def _comparison(body: Body, name: str, kind: str, a: str, b: str) -> str:
    is_float = kind in _FLOATS
    if is_float and name == "ne":
        return f"({a} < {b} || {a} > {b})"
    if name in _ORDERED:
        return f"({a} {_ORDERED[name]} {b})"
    if is_float and name in _UNORDERED:
        if name == "equ":
            return f"!({a} < {b} || {a} > {b})"
        if name == "neu":
            return f"({a} != {b})"
        return f"!({a} {_UNORDERED[name]} {b})"
    if is_float and name in ("num", "nan"):
        return f"({a} == {a} && {b} == {b})" if name == "num" else f"({a} != {a} || {b} != {b})"
    if not is_float and name in _UNSIGNED:
        return f"({a} {_UNSIGNED[name]} {b})"
    raise body.fail(f"no comparison .{name} of .{kind}")


def _compare(body: Body, name: str, kind: str, flush: bool, operands: list[str]) -> str:
    if kind in ("f16", "bf16"):
        a, b = (f"wide_{kind}({body.read(o, 'b16')})" for o in operands)
    else:
        a, b = (body.read(o, kind) for o in operands)
    if flush:
        a, b = f"flush({a})", f"flush({b})"
    return _comparison(body, name, kind, a, b)


@operation("setp")
def setp(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``setp.CMP[.BOOL][.ftz].type p[|q], a, b[, [!]c]``: q is the comparison's opposite."""
    name, *between, kind = modifiers
    flush = "ftz" in between
    joins = [m for m in between if m != "ftz"]
    if kind in ("f16x2", "bf16x2") or joins not in ([], ["and"], ["or"], ["xor"]):
        raise body.fail("the table of instructions does not have it")
    targets = [t.strip() for t in operands[0].split("|")]
    holds = _compare(body, name, kind, flush, operands[1:3])
    values = [holds, f"!{holds}"]
    if joins:
        sign = {"and": "&&", "or": "||", "xor": "!="}[joins[0]]
        other = body.read(operands[3], "pred")
        values = [f"{value} {sign} {other}" for value in values]
    if len(targets) == 1:
        return body.write(targets[0], "pred", values[0])
    # Both before either is written: the targets may be among the sources.
    return (
        f"{{ bool const p = {values[0]}, q = {values[1]}; "
        f"{body.write(targets[0], 'pred', 'p')} {body.write(targets[1], 'pred', 'q')} }}"
    )


@operation("set")
def set_(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``set.CMP[.BOOL][.ftz].D.type d, a, b[, c]``: all ones, or 1.0, where it holds."""
    name, *between, result, kind = modifiers
    flush = "ftz" in between
    joins = [m for m in between if m != "ftz"]
    if result not in ("u32", "s32", "f32") or joins:
        raise body.fail("the table of instructions does not have it")
    holds = _compare(body, name, kind, flush, operands[1:3])
    yes = "1.f" if result == "f32" else f"{result}(-1)"
    return body.write(operands[0], result, f"{holds} ? {yes} : {result}(0)")
