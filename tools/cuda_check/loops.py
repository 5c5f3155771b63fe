"""Main loops of a kernel, and what one trip through them costs.

A main loop is an innermost loop that holds tensor-core instructions (MMAs). Its cost is counted on
its *hot path*: of the ways from the loop's first instruction to its backward branch that execute
the most MMAs, the one with the fewest instructions. Blocks that most trips jump over, such as the
rescaling of the accumulators, are thereby left out; so are the loads that the last trips skip.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tools.cuda_check.sass import Instruction, Kernel


@dataclass(frozen=True)
class MainLoop:
    """An innermost loop with MMAs.

    ``body`` is all its instructions in address order, ``hot_path`` those of the shortest trip.
    """

    body: tuple[Instruction, ...]
    hot_path: tuple[Instruction, ...]

    @property
    def first(self) -> int:
        return self.body[0].address

    @property
    def last(self) -> int:
        return self.body[-1].address

    @property
    def mix(self) -> Counter[str]:
        """How many instructions of each kind the hot path has."""
        return Counter(instruction.kind for instruction in self.hot_path)

    @property
    def instructions_per_mma(self) -> float:
        return len(self.hot_path) / self.mix["mma"]

    @property
    def late_exponentials(self) -> int:
        """Of products that run asynchronously: how many exponentials come while none of them is
        under way, and overlap with none."""
        steps = self.hot_path
        first = next(i for i, step in enumerate(steps) if step.kind == "mma")
        count, under_way = 0, False
        for step in (*steps[first:], *steps[:first]):
            if step.kind == "mma":
                under_way = True
            elif step.opcode.startswith("WARPGROUP.DEPBAR") and step.operands.endswith("0x0"):
                under_way = False
            count += step.opcode.startswith("MUFU.EX2") and not under_way
        return count

    @property
    def local_accesses(self) -> int:
        """Local-memory accesses (spills) of the whole body, rare blocks included."""
        return sum(instruction.kind == "local" for instruction in self.body)


def hot_path(body: tuple[Instruction, ...]) -> tuple[Instruction, ...] | None:
    """The hot path of a loop from its first to its last instruction, or None if there is no way.

    Only forward branches are followed, so instructions in address order are already sorted
    topologically and one pass settles the best way to each of them.
    """
    index_of = {instruction.address: index for index, instruction in enumerate(body)}
    # Per instruction: (MMAs, -instructions) of the best way up to and including it, and the
    # instruction before it on that way.
    score: list[tuple[int, int] | None] = [None] * len(body)
    came_from = [-1] * len(body)
    score[0] = (int(body[0].kind == "mma"), -1)
    for index, instruction in enumerate(body):
        here = score[index]
        if here is None:
            continue
        successors = [index + 1] if instruction.falls_through and index + 1 < len(body) else []
        target = index_of.get(instruction.branch_target or -1, -1)
        if target > index:
            successors.append(target)
        for successor in successors:
            candidate = (here[0] + (body[successor].kind == "mma"), here[1] - 1)
            known = score[successor]
            if known is None or candidate > known:
                score[successor] = candidate
                came_from[successor] = index
    if score[-1] is None:
        return None
    path = [len(body) - 1]
    while path[-1] != 0:
        path.append(came_from[path[-1]])
    return tuple(body[index] for index in reversed(path))


def main_loops(kernel: Kernel) -> list[MainLoop]:
    """The kernel's main loops, the one with the fewest instructions per MMA first.

    That one is the steady loop; the others work on masked tiles.
    """
    spans = set()
    for branch in kernel.instructions:
        target = branch.branch_target
        if target is not None and target < branch.address:
            spans.add((target, branch.address))

    loops = []
    for first, last in spans:
        body = tuple(i for i in kernel.instructions if first <= i.address <= last)
        path = hot_path(body)
        if path is not None and any(instruction.kind == "mma" for instruction in path):
            loops.append(MainLoop(body, path))

    innermost = [
        loop
        for loop in loops
        if not any(
            other is not loop and loop.first <= other.first and other.last <= loop.last
            for other in loops
        )
    ]
    return sorted(innermost, key=lambda loop: loop.instructions_per_mma)
