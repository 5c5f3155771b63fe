"""Branches, calls and ends."""

from __future__ import annotations

import re

from tools.ptx_emulator.table.forms import Body, form, operation

form("trap", "=", "trap({site})")
form("brkpt", "=", "trap({site})")
form("pmevent", "= u32", "(void){a}")
form("nanosleep.u32", "= u32", "nanosleep({a})")


@operation("bra")
def bra(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """Also with ``.uni``, which promises what is not relied on."""
    return body.jump(operands[0])


@operation("brx")
def brx(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """A jump to one of a list of labels, by index."""
    labels = body.jump_targets(operands[1])
    jumps = " ".join(f"case {i}: {body.jump(label)}" for i, label in enumerate(labels))
    index = body.read(operands[0], "u32")
    return f"switch ({index}) {{ {jumps} default: bad_jump({body.site()}, {index}); }}"


@operation("ret")
def ret(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """From a device function, or the end of the thread."""
    return body.end(of_thread=False)


@operation("exit")
def exit_(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """The end of the thread, anywhere."""
    return body.end(of_thread=True)


@operation("call")
def call(body: Body, modifiers: list[str], operands: list[str]) -> str:
    """``call (result), name, (arguments)``; result and arguments may be missing."""
    operands = [o for o in operands if o]
    result = ""
    if operands[0].startswith("("):
        result = operands.pop(0)[1:-1].strip()
    name = operands.pop(0)
    if not re.fullmatch(r"[A-Za-z_$][\w$]*", name):
        raise body.fail("calls through pointers are not emulated")
    arguments = operands[0][1:-1].split(",") if operands and operands[0][0] == "(" else []
    return body.call(result, name, [a.strip() for a in arguments if a.strip()])
