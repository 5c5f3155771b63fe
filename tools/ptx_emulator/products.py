"""Registers of ``wgmma``, which are its own from its issue to the wait for it.

Which registers those are, and what else comes to them, is known from the PTX; how far the groups of
products are, when the kernel runs. So each list of registers, of sums or fragments of A, has a
``WgmmaRegisters`` (``ptx/wgmma_registers.h``), which all that comes to them asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tools.ptx_emulator.flow import Step


def product_checks(
    steps: Sequence[Step],
    site_of: Callable[[Step], str],
    name_of: Callable[[str], str],
) -> tuple[list[str], int]:
    """C++ that comes before each step, and how many lists of registers there are.

    ``site_of``: C++ pointer to where a step is; ``name_of``: a register's name in the PTX.
    """
    lists: dict[tuple[str, ...], int] = {}
    for step in steps:
        for registers in step.products:
            lists.setdefault(registers, len(lists))
    with_register: dict[str, list[int]] = {}
    for registers, index in lists.items():
        for register in registers:
            with_register.setdefault(register, []).append(index)

    checks = []
    known: set[int] = set()  # lists that have been asked since the last wgmma or label
    for step in steps:
        own = {lists[registers] for registers in step.products}
        used: dict[int, str] = {}
        for register in sorted(step.reads | step.writes):
            for index in with_register.get(register, ()):
                if index not in own | known:
                    used.setdefault(index, name_of(register))
        site = site_of(step) if used or own else ""
        calls = [f'use({site}, "{name}", wgmmas, products{i}); ' for i, name in used.items()]
        calls += [f"issue({site}, wgmmas, products{i}); " for i in sorted(own)]
        checks.append("".join(calls))
        if step.label or step.is_wgmma:
            known.clear()
        elif not step.guard:
            known |= used.keys()
    return checks, len(lists)
