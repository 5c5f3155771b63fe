"""The flow of control through a kernel: blocks, loops, and ways through them.

A way is a list of blocks. No values are computed, so no branch is decided: a way is chosen by what
stands on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tools.cuda_check.sass import Instruction


@dataclass(frozen=True)
class Block:
    """Instructions ``first`` up to ``end`` of a kernel, of which none but the last branches."""

    first: int
    end: int
    successors: tuple[int, ...]

    @property
    def instructions(self) -> range:
        return range(self.first, self.end)


@dataclass(frozen=True)
class Loop:
    """A natural loop: ``blocks`` reach a latch, which branches to the header, without passing it.

    Blocks may stand anywhere in the code.
    """

    header: int
    latches: frozenset[int]
    blocks: frozenset[int]


@dataclass(frozen=True)
class Load:
    """What a block contributes to the choice of a way.

    ``mmas`` is what a way may be required to have, ``kept`` what it should have most of: what rare
    trips leave out. Of equals the way with the fewest instructions is taken.
    """

    mmas: int
    kept: int
    instructions: int


def _branch_target(instruction: Instruction) -> int | None:
    """Where a branch, or a call that is a far jump, may go to."""
    if instruction.branch_target is not None:
        return instruction.branch_target
    jumps = instruction.base_opcode == "JMP"
    jumps |= instruction.base_opcode == "CALL" and instruction.predicate != ""
    if not jumps:
        return None
    words = [word for word in instruction.operands.split() if word.startswith("0x")]
    return int(words[-1], 16) if words else None


class Flow:
    """The graph of a kernel's blocks; block 0 is the entry."""

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = instructions
        at = {instruction.address: index for index, instruction in enumerate(instructions)}
        after: list[tuple[int, ...]] = []
        for index, instruction in enumerate(instructions):
            next_ones = []
            if instruction.falls_through and index + 1 < len(instructions):
                next_ones.append(index + 1)
            target = at.get(_branch_target(instruction) or -1)
            if target is not None and target != index:  # traps branch to themselves
                next_ones.append(target)
            after.append(tuple(next_ones))
        self.blocks = _blocks(after)

    @cached_property
    def predecessors(self) -> list[list[int]]:
        before: list[list[int]] = [[] for _ in self.blocks]
        for index, block in enumerate(self.blocks):
            for successor in block.successors:
                before[successor].append(index)
        return before

    @property
    def exits(self) -> frozenset[int]:
        """Blocks behind which there is nothing."""
        return frozenset(
            index
            for index, block in enumerate(self.blocks)
            if not block.successors and self.instructions[block.end - 1].base_opcode == "EXIT"
        )

    def loops(self) -> list[Loop]:
        """All natural loops, one for each header."""
        latches: dict[int, set[int]] = {}
        for index, block in enumerate(self.blocks):
            for successor in block.successors:
                if successor <= index:
                    latches.setdefault(successor, set()).add(index)
        loops = []
        for header, ends in latches.items():
            blocks = self._reaching(ends, header)
            # Otherwise the entry gets there without the header: a jump back from a rare block.
            if 0 not in blocks or header == 0:
                loops.append(Loop(header, frozenset(ends), frozenset(blocks)))
        return loops

    def _reaching(self, ends: Iterable[int], header: int) -> set[int]:
        found, todo = {header}, list(ends)
        while todo:
            index = todo.pop()
            if index not in found:
                found.add(index)
                todo += self.predecessors[index]
        return found

    def best_way(
        self,
        start: int,
        goals: Collection[int],
        within: Collection[int],
        load: Callable[[int], Load],
        mmas: int | None = None,
    ) -> list[int] | None:
        """The way without repetitions from ``start`` to one of ``goals``, or None if there is none.

        It stays within the given blocks and ends at the first goal it meets. It has exactly as many
        MMAs as asked for, or as few as there may be; then as much as possible of what is kept; then
        as few instructions as possible.
        """
        # Of each block and number of MMAs from it to a goal: the best (kept, -instructions), and
        # the next block.
        best: dict[int, dict[int, tuple[tuple[int, int], int | None]]] = {}
        for index in self._from_the_end(start, goals, within):
            own = load(index)
            known = best.setdefault(index, {})
            if index in goals and own.mmas <= (own.mmas if mmas is None else mmas):
                known[own.mmas] = ((own.kept, -own.instructions), None)
            if index in goals and index != start:
                continue
            for successor in self.blocks[index].successors:
                if successor in (start, index) or successor not in best:
                    continue
                for count, (value, _) in best[successor].items():
                    total = count + own.mmas
                    if mmas is not None and total > mmas:
                        continue
                    candidate = (value[0] + own.kept, value[1] - own.instructions)
                    if total not in known or candidate > known[total][0]:
                        known[total] = (candidate, successor)
        choices = best[start]
        count = min(choices, default=-1) if mmas is None else mmas
        if count not in choices:
            return None
        way = []
        at: int | None = start
        while at is not None:
            way.append(at)
            following = best[at][count][1]
            count -= load(at).mmas
            at = following
        return way

    def _from_the_end(
        self, start: int, goals: Collection[int], within: Collection[int]
    ) -> list[int]:
        """Blocks that can be reached from ``start``, those behind a block before it.

        Branches back to what is on the way already count as not taken.
        """
        order: list[int] = []
        state: dict[int, bool] = {start: False}  # True: all behind it is in order
        stack = [(start, iter(self._next(start, start, goals, within)))]
        while stack:
            index, rest = stack[-1]
            successor = next((block for block in rest if block not in state), None)
            if successor is None:
                state[index] = True
                order.append(index)
                stack.pop()
            else:
                state[successor] = False
                stack.append((successor, iter(self._next(successor, start, goals, within))))
        return order

    def _next(
        self, index: int, start: int, goals: Collection[int], within: Collection[int]
    ) -> list[int]:
        if index in goals and index != start:
            return []
        return [block for block in self.blocks[index].successors if block in within]


def _blocks(after: Sequence[tuple[int, ...]]) -> list[Block]:
    """Blocks of instructions of which ``after`` tells what may come next."""
    starts = {0}
    for index, successors in enumerate(after):
        if successors != (index + 1,):
            starts |= {index + 1, *successors}
    firsts = sorted(start for start in starts if start < len(after))
    index_of = {first: index for index, first in enumerate(firsts)}
    ends = [*firsts[1:], len(after)]
    return [
        Block(first, end, tuple(index_of[successor] for successor in after[end - 1]))
        for first, end in zip(firsts, ends, strict=True)
    ]
