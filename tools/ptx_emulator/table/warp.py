"""What the lanes of a warp, and the warps of a CTA, do together."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import Body, form, operation

form("activemask.b32", "u32 =", "active_mask()")
form("vote.sync.<how:any|all|uni>.pred", "pred = pred u32", "vote_{how}({site}, {a}, {b})")
form("vote.sync.ballot.b32", "u32 = pred u32", "vote_ballot({site}, {a}, {b})")
form("match.any.sync.<T:b32|b64>", "u32 = T u32", "match_any({site}, {a}, {b})")
form("bar.warp.sync", "= u32", "sync_warp({site}, {a})")
form("setmaxnreg.<how:inc|dec>.sync.aligned.u32", "= u32", "set_registers_{how}({site}, {a})")
for op in ("add", "min", "max"):
    form(f"redux.sync.{op}.<T:u32|s32>", "T = T u32", f"{{T}}(redux_{op}({{site}}, {{a}}, {{b}}))")
for op in ("and", "or", "xor"):
    form(f"redux.sync.{op}.b32", "b32 = b32 u32", f"redux_{op}({{site}}, {{a}}, {{b}})")


@operation("shfl")
def shfl(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``shfl.sync.mode.b32 d[|p], a, b, c, mask``; p says whether the source was in range."""
    modes = ("up", "down", "bfly", "idx")
    if len(modifiers) != 3 or modifiers[0] != "sync" or modifiers[1] not in modes:
        raise body.fail("the table of instructions does not have it")
    target, *in_range = (t.strip() for t in operands[0].split("|"))
    kinds = ("b32", "u32", "u32", "u32")
    given = ", ".join(body.read(o, k) for o, k in zip(operands[1:], kinds, strict=True))
    mode = f"Shuffle::k{modifiers[1].capitalize()}"
    found = f"shuffle({body.site()}, {mode}, {given})"
    if not in_range:
        return body.write(target, "b32", f"{found}.value")
    writes = [
        body.write(t, k, f"found.{member}")
        for t, k, member in ((target, "b32", "value"), (in_range[0], "pred", "in_range"))
        if t != "_"
    ]
    return f"{{ auto const found = {found}; {' '.join(writes)} }}"


@operation("elect")
def elect(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``elect.sync d|p, mask``; p says whether the thread's lane, of all in the mask, is d."""
    targets = [t.strip() for t in operands[0].split("|")]
    if modifiers != ["sync"] or len(targets) != 2 or len(operands) != 2:
        raise body.fail("the table of instructions does not have it")
    writes = [
        body.write(target, kind, value)
        for target, kind, value in zip(
            targets, ("u32", "pred"), ("leader", "leader == lane_id()"), strict=True
        )
        if target != "_"
    ]
    found = f"elect({body.site()}, {body.read(operands[1], 'u32')})"
    return f"{{ [[maybe_unused]] u32 const leader = {found}; {' '.join(writes)} }}"


@operation("match")
def match(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``match.all.sync.b32 d[|p], a, mask``; ``match.any`` is a form."""
    if modifiers[:2] != ["all", "sync"] or modifiers[2] not in ("b32", "b64"):
        raise body.fail("the table of instructions does not have it")
    target, *predicate = (t.strip() for t in operands[0].split("|"))
    value, mask = body.read(operands[1], modifiers[2]), body.read(operands[2], "u32")
    writes = [body.write(target, "u32", "found")] if target != "_" else []
    writes += [body.write(p, "pred", "found != 0") for p in predicate if p != "_"]
    call = f"match_all({body.site()}, {value}, {mask})"
    return f"{{ u32 const found = {call}; {' '.join(writes)} }}"


# ---- barriers of a CTA


@operation("bar", "barrier")
def bar(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``bar`` is ``barrier.aligned``: all lanes of a warp are at the same one."""
    plain = [m for m in modifiers if m not in ("cta", "aligned")]
    if plain[:1] == ["red"] and len(plain) == 3:
        return _reduction(body, plain[1], plain[2], operands)
    if plain not in (["sync"], ["arrive"]):
        raise body.fail("the table of instructions does not have it")
    number = body.read(operands[0], "u32")
    threads = body.read(operands[1], "u32") if len(operands) > 1 else "kWholeCta"
    return f"barrier_{plain[0]}({body.site()}, {number}, {threads});"


def _reduction(body: Body, op: str, kind: str, operands: list[str]) -> str:
    if (op, kind) not in (("popc", "u32"), ("and", "pred"), ("or", "pred")):
        raise body.fail("the table of instructions does not have it")
    target, number, *threads, predicate = operands
    count = body.read(threads[0], "u32") if threads else "kWholeCta"
    value = body.read(predicate, "pred")
    call = f"barrier_{op}({body.site()}, {body.read(number, 'u32')}, {count}, {value})"
    return body.write(target, kind, call)
