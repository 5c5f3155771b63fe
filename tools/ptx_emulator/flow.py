"""Which registers a function may read before it has written them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Step:
    """One instruction or label: its C++, and what it does to registers and control flow."""

    code: str
    label: str = ""
    reads: set[str] = field(default_factory=set)
    writes: set[str] = field(default_factory=set)
    jumps: set[str] = field(default_factory=set)  # labels
    ends: bool = False  # never goes on to the next step
    is_guarded: bool = False  # by a predicate

    def goes_on(self) -> bool:
        return self.is_guarded or not (self.ends or self.jumps)


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


def read_before_written(steps: Sequence[Step]) -> set[str]:
    """Registers that some path reads before it writes them; those start as poison."""
    blocks = _blocks(steps)
    # What is written for certain on all paths to a block; None: none has come there yet.
    known: list[set[str] | None] = [None] * len(blocks)
    known[0] = set()
    pending = [0]
    while pending:
        index = pending.pop()
        written = set(known[index] or ())
        for step in blocks[index].steps:
            if not step.is_guarded:
                written |= step.writes
        for following in blocks[index].next_blocks:
            before = known[following]
            after = written if before is None else before & written
            if after != before:
                known[following] = set(after)
                pending.append(following)
    found: set[str] = set()
    for block, at_start in zip(blocks, known, strict=True):
        if at_start is None:
            continue
        written = set(at_start)
        for step in block.steps:
            found |= step.reads - written
            if not step.is_guarded:
                written |= step.writes
    return found
