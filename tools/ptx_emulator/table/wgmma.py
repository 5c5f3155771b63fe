"""``wgmma``: products of matrices in shared memory by four warps, of halves into ``f32``."""

from __future__ import annotations

import re

from tools.ptx_emulator.table.forms import Body, form, operation

form("wgmma.fence.sync.aligned", "=", "wgmma_fence({site}), wgmmas.fence()")
form("wgmma.commit_group.sync.aligned", "=", "wgmma_commit({site}), wgmmas.commit()")
form("wgmma.wait_group.sync.aligned", "= u32", "wgmma_wait({site}, {a}), wgmmas.wait({a})")

_MMA_ASYNC = re.compile(
    r"mma_async\.sync\.aligned\.m64n(?P<n>\d+)k16\.f32\.(?P<a>f16|bf16)\.(?P=a)"
)
_MAX_COLUMNS = 256


@operation("wgmma")
def mma_async(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``{d}, a, b, scale-d, imm-scale-a, imm-scale-b[, imm-trans-a], imm-trans-b``.

    a is a descriptor, and may be transposed, or four registers.
    """
    found = _MMA_ASYNC.fullmatch(".".join(modifiers))
    columns = int(found["n"]) if found else 0
    if not found or columns % 8 or not 8 <= columns <= _MAX_COLUMNS:
        raise body.fail("the table of instructions does not have it")
    in_registers = len(operands) > 1 and operands[1].startswith("{")
    if len(operands) != 8 - in_registers:
        raise body.fail(f"{len(operands)} operands")
    sums, a = body.items(operands[0]), body.items(operands[1])
    if len(sums) != columns // 2 or len(a) != (4 if in_registers else 1):
        raise body.fail("unexpected numbers of registers")
    flags = [_is(body, scale, "-1", "1") for scale in operands[4:6]]
    flags += ["false"] * in_registers + [_is(body, t, "1", "0") for t in operands[6:]]
    body.multiplies(sums, *([a] if in_registers else []))
    adds, b = body.read(operands[3], "pred"), body.read(operands[2], "u64")
    a_descriptor = "0" if in_registers else body.read(a[0], "u64")
    registers = ", ".join(body.read(x, "b32") for x in a) if in_registers else "0"
    given = ", ".join(body.read(x, "f32") for x in sums)
    writes = " ".join(body.write(x, "f32", f"sums[{i}]") for i, x in enumerate(sums))
    return (
        f"{{ f32 sums[] = {{{given}}}; [[maybe_unused]] u32 const a[] = {{{registers}}}; "
        f"wgmma_{found['a']}({body.site()}, "
        f"{{{columns}, {adds}, {', '.join(flags)}, {a_descriptor}, {b}}}, "
        f"{'a' if in_registers else 'nullptr'}, sums); {writes} }}"
    )


def _is(body: Body, operand: str, yes: str, no: str) -> str:
    """C++ of whether an immediate operand is one of its two values."""
    if operand not in (yes, no):
        raise body.fail(f"{operand}, where {yes} and {no} are possible")
    return "true" if operand == yes else "false"
