"""Matrices: ``ldmatrix``, ``stmatrix``, ``movmatrix`` and ``mma.sync``."""

from __future__ import annotations

import re

from tools.ptx_emulator.table.forms import Body, form, operation

form("movmatrix.sync.aligned.m8n8.trans.b16", "b32 = b32", "transpose_matrix({site}, {a})")


@operation("ldmatrix")
def ldmatrix(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """1, 2 or 4 matrices of 8 x 8 halves; with ``.trans``, their transposes."""
    targets = body.items(operands[0])
    transposed = _check_matrices(body, modifiers, len(targets))
    writes = (body.write(t, "b32", f"matrices[{i}]") for i, t in enumerate(targets))
    address = body.address(operands[1])
    return (
        f"load_matrices({body.site()}, {address}, matrices, {len(targets)}, {transposed}); "
        + " ".join(writes)
    )


@operation("stmatrix")
def stmatrix(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """The other way round."""
    sources = body.items(operands[1])
    transposed = _check_matrices(body, modifiers, len(sources))
    given = (f"matrices[{i}] = {body.read(source, 'b32')};" for i, source in enumerate(sources))
    address = body.address(operands[0])
    return (
        " ".join(given)
        + f" store_matrices({body.site()}, {address}, matrices, {len(sources)}, {transposed});"
    )


def _check_matrices(body: Body, modifiers: list[str], matrices: int) -> str:
    """C++: whether they are transposed."""
    count = next((m for m in ("x1", "x2", "x4") if m in modifiers), "x0")
    expected = {"sync", "aligned", "m8n8", "shared", "b16", count}
    if set(modifiers) - {"trans"} != expected or matrices != int(count[1]):
        raise body.fail("the table of instructions does not have it")
    return "true" if "trans" in modifiers else "false"


_MMA = re.compile(
    r"sync\.aligned\.m16n8k(?P<k>8|16)\.row\.col\.(?P<d>f32|f16)\."
    r"(?P<a>f16|bf16)\.(?P<b>f16|bf16)\.(?P<c>f32|f16)"
)


@operation("mma")
def mma(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """d = a * b + c, of halves into ``f32`` or ``f16``."""
    found = _MMA.fullmatch(".".join(modifiers))
    halves_sum = found is not None and found["d"] == "f16"
    if not found or found["a"] != found["b"] or found["c"] != found["d"]:
        raise body.fail("the table of instructions does not have it")
    if halves_sum and found["a"] != "f16":
        raise body.fail("the table of instructions does not have it")
    depth = int(found["k"])
    targets, a, b, c = (body.items(operand) for operand in operands)
    sums = 2 if halves_sum else 4
    if (len(targets), len(a), len(b), len(c)) != (sums, depth // 4, depth // 8, sums):
        raise body.fail("unexpected numbers of operands")
    kind = "b32" if halves_sum else "f32"
    sources = [f"a[{i}] = {body.read(x, 'b32')};" for i, x in enumerate(a)]
    sources += [f"b[{i}] = {body.read(x, 'b32')};" for i, x in enumerate(b)]
    sums_name = "h" if halves_sum else "c"
    sources += [f"{sums_name}[{i}] = {body.read(x, kind)};" for i, x in enumerate(c)]
    writes = [body.write(t, kind, f"mma.{sums_name}[{i}]") for i, t in enumerate(targets)]
    function = f"multiply_{found['a']}{'_f16' if halves_sum else ''}"
    return (
        f"{' '.join('mma.' + s for s in sources)} {function}({body.site()}, mma, {depth}); "
        f"{' '.join(writes)}"
    )
