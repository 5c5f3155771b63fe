"""Operations on bits."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import Body, form, operation

for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
    form(f"{name}.<T:pred|BITS>", "T = T T", f"{{a}} {sign} {{b}}")
form("not.pred", "pred = pred", "!{a}")
form("not.<T:BITS>", "T = T", "~{a}")
form("cnot.<T:BITS>", "T = T", "{a} == 0")
form("shl.<T:BITS>", "T = T u32", "shift_left({a}, {b})")
form("shr.<T:BITS|INT>", "T = T u32", "shift_right({a}, {b})")
form("shf.l.wrap.b32", "b32 = b32 b32 u32", "funnel_left({a}, {b}, {c} & 31u)")
form("shf.l.clamp.b32", "b32 = b32 b32 u32", "funnel_left({a}, {b}, {c} < 32u ? {c} : 32u)")
form("shf.r.wrap.b32", "b32 = b32 b32 u32", "funnel_right({a}, {b}, {c} & 31u)")
form("shf.r.clamp.b32", "b32 = b32 b32 u32", "funnel_right({a}, {b}, {c} < 32u ? {c} : 32u)")
form("prmt.b32", "b32 = b32 b32 b32", "permute_bytes({a}, {b}, {c})")
form(
    "prmt.b32.<mode:f4e|b4e|rc8|ecl|ecr|rc16>",
    "b32 = b32 b32 b32",
    "permute_bytes({a}, {b}, selector_{mode}({c}))",
)
form("bfe.<T:INT32_64>", "T = T u32 u32", "extract_bits({a}, {b}, {c})")
form("bfi.<T:b32|b64>", "T = T T u32 u32", "insert_bits({a}, {b}, {c}, {d})")
form("popc.<T:b32|b64>", "u32 = T", "__builtin_popcountll({a})")
form("clz.<T:b32|b64>", "u32 = T", "leading_zeros({a})")
form("brev.<T:b32|b64>", "T = T", "reverse_bits({a})")
form("bfind.<T:INT32_64>", "u32 = T", "find_top_bit({a})")
form("bfind.shiftamt.<T:INT32_64>", "u32 = T", "shift_to_top_bit({a})")
form("fns.b32", "b32 = b32 u32 s32", "find_nth_set({a}, {b}, {c})")


@operation("lop3")
def lop3(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """Any function of three bits, by its truth table: a sum of products."""
    if modifiers != ["b32"] or len(operands) != 5 or not operands[4].startswith(("0", "1", "2")):
        raise body.fail("only .b32 with a constant table")
    table = int(operands[4], 0)
    a, b, c = (body.read(operand, "b32") for operand in operands[1:4])
    products = [
        f"({a if i & 4 else f'~{a}'} & {b if i & 2 else f'~{b}'} & {c if i & 1 else f'~{c}'})"
        for i in range(8)
        if table >> i & 1
    ]
    return body.write(operands[0], "b32", " | ".join(products) or "0u")
