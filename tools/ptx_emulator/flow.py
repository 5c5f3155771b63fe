"""Which registers a function may read before it has written them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.ptx_emulator.places import Chain


@dataclass
class Step:
    """One instruction or label: its C++, and what it does to registers and control flow.

    ``line`` and ``place`` are where it stands in the PTX and in the sources. Under a predicate,
    ``guard`` is its register and ``condition`` the C++ of it; ``code`` is without either.
    ``products``: the lists of registers that a ``wgmma`` sums up in or multiplies.
    """

    code: str
    label: str = ""
    line: int = 0
    place: Chain = ()
    guard: str = ""
    condition: str = ""
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    jumps: set[str] = field(default_factory=set)  # labels
    ends: bool = False  # never goes on to the next step
    is_wgmma: bool = False
    products: list[tuple[str, ...]] = field(default_factory=list)

    def goes_on(self) -> bool:
        return bool(self.guard) or not (self.ends or self.jumps)


@dataclass
class _Block:
    steps: list[Step]
    next_blocks: list[int] = field(default_factory=list)


def _blocks(steps: Sequence[Step]) -> list[_Block]:
    blocks: list[_Block] = [_Block([])]
    for step in steps:
        if step.label and blocks[-1].steps:
            blocks.append(_Block([]))
        blocks[-1].steps.append(step)
        if step.jumps or step.ends:
            blocks.append(_Block([]))
    at_label = {s.label: i for i, block in enumerate(blocks) for s in block.steps if s.label}
    for i, block in enumerate(blocks):
        last = block.steps[-1] if block.steps else Step("")
        block.next_blocks = [at_label[label] for label in last.jumps]
        if last.goes_on() and i + 1 < len(blocks):
            block.next_blocks.append(i + 1)
    return blocks


def unwritten_reads(steps: Sequence[Step]) -> list[set[str]]:
    """Of each step: registers that it reads and some path to it has not written."""
    blocks = _blocks(steps)
    # What is written for certain on all paths to a block; None: none has come there yet.
    known: list[set[str] | None] = [None] * len(blocks)
    known[0] = set()
    pending = [0]
    while pending:
        index = pending.pop()
        written = set(known[index] or ())
        for step in blocks[index].steps:
            if not step.guard:
                written |= step.writes
        for following in blocks[index].next_blocks:
            before = known[following]
            after = written if before is None else before & written
            if after != before:
                known[following] = set(after)
                pending.append(following)
    found: list[set[str]] = []
    for block, at_start in zip(blocks, known, strict=True):
        written = set(at_start or ())
        for step in block.steps:
            found.append(set() if at_start is None else step.reads - written)
            if not step.guard:
                written |= step.writes
    return found
