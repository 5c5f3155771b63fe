"""What of a kernel's code runs how often: prologue, turns of the main loop, epilogue.

Loops are recognised by what stands in them, so every part is checked against the tile: a count that
differs is an error, since a time made of the wrong instructions is worse than none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tools.cuda_check.sass import Instruction
from tools.kernel_time.control import Coded
from tools.kernel_time.flow import Flow, Load
from tools.kernel_time.tiles import CALL_DRAWS, Counts, Tile, TileError


@dataclass(frozen=True)
class Step:
    """An instruction on a path, and whether it is a branch that is taken there."""

    coded: Coded
    taken: bool = False


@dataclass(frozen=True)
class Paths:
    """The instructions of one warp in each part of a kernel.

    ``masked`` is a turn on a tile that needs a mask where the kernel has a body of its own for
    those. ``peeled``: as many turns as the MMAs of prologue and epilogue make.
    """

    prologue: tuple[Step, ...]
    steady: tuple[Step, ...]
    masked: tuple[Step, ...] | None
    epilogue: tuple[Step, ...]
    peeled: float


def counts_of(instructions: Sequence[Instruction]) -> Counts:
    """What of a path is compared with the tile."""
    opcodes = [instruction.opcode for instruction in instructions]
    return Counts(
        mmas=sum(opcode.startswith("HMMA") for opcode in opcodes),
        copies=sum(opcode.startswith("LDGSTS") for opcode in opcodes),
        reductions=sum(is_sum(opcode) for opcode in opcodes),
        barriers=sum(opcode.startswith("BAR.") for opcode in opcodes),
        stores=sum(opcode.startswith("STG") and ".128" in opcode for opcode in opcodes),
        draws=sum(opcode.startswith(("IMAD.WIDE.U32", "IMAD.HI.U32")) for opcode in opcodes),
    )


def is_sum(opcode: str) -> bool:
    """Whether it adds floats in global memory; integers are semaphores of ordered sums."""
    return opcode.startswith("RED") and ".F32" in opcode


class _Recognition:
    """Finds the parts of one kernel."""

    def __init__(self, code: Sequence[Coded], tile: Tile) -> None:
        self.code, self.tile = code, tile
        self.flow = Flow([coded.instruction for coded in code])
        self.everything = range(len(self.flow.blocks))
        self.counts = [counts_of(self._instructions([index])) for index in self.everything]

    def _instructions(self, way: Collection[int]) -> list[Instruction]:
        return [
            self.code[at].instruction
            for index in way
            for at in self.flow.blocks[index].instructions
        ]

    def load(self, index: int) -> Load:
        counts = self.counts[index]
        kept = counts.copies + counts.reductions + counts.stores
        # With dropout ways lead through whole calls of Philox. Biases have fewer such products.
        if self.tile.turn.draws and counts.draws >= CALL_DRAWS:
            kept += counts.draws
        return Load(counts.mmas, kept, len(self.flow.blocks[index].instructions))

    def turns(self) -> tuple[list[int], list[int] | None]:
        """The steady turn and the masked one: ways around a loop with the MMAs of the tile.

        They have no MMA in common. The one with fewer instructions is the steady one.
        """
        ways = []
        loops = self.flow.loops()
        for loop in loops:
            # How often loops within it turn is not known: no turn goes through any.
            blocks = set(loop.blocks).difference(
                *(other.blocks for other in loops if loop.header not in other.blocks)
            )
            while way := self.flow.best_way(
                loop.header, loop.latches, blocks, self.load, self.tile.turn.mmas
            ):
                ways.append(way)
                blocks -= self._with_mmas(way) - {loop.header}
                if self.counts[loop.header].mmas:
                    break
        if not ways:
            raise TileError(f"no loop has a turn of {self.tile.turn.mmas} MMAs")
        ways.sort(key=lambda way: len(self._instructions(way)))
        steady = ways[0]
        own = self._with_mmas(steady)
        masked = next((way for way in ways if not own & self._with_mmas(way)), None)
        return steady, masked

    def _with_mmas(self, way: Collection[int]) -> set[int]:
        return {index for index in way if self.counts[index].mmas}

    def prologue(self, steady: list[int]) -> list[int]:
        way = self.flow.best_way(0, {steady[0]}, self.everything, self.load)
        if way is None:
            raise TileError("the main loop is not to be reached")
        return way[:-1]

    def epilogue(self, steady: list[int]) -> list[int]:
        """From the main loop to the end."""
        rest = set(self.everything) - set(steady)
        starts = {
            successor
            for index in steady
            for successor in self.flow.blocks[index].successors
            if successor in rest
        }
        ways = [
            way
            for start in starts
            if (way := self.flow.best_way(start, self.flow.exits & rest, rest, self.load))
        ]
        if not ways:
            raise TileError("no way leads from the main loop to an exit")

        def merit(way: list[int]) -> tuple[int, int, int]:
            counts = counts_of(self._instructions(way))
            return -counts.mmas, counts.stores, -len(self._instructions(way))

        return max(ways, key=merit)

    def check(
        self, part: str, way: Collection[int], expected: Counts, names: Sequence[str]
    ) -> None:
        found = counts_of(self._instructions(way))
        for name in names:
            has, wanted = getattr(found, name), getattr(expected, name)
            if has < wanted or (has > wanted and name != "draws"):
                raise TileError(f"the {part} has {has} {name}, the tile asks for {wanted}")

    def steps(self, way: Sequence[int], follows: int | None) -> tuple[Step, ...]:
        """The instructions of a way, which goes on with block ``follows``."""
        steps = []
        for index, after in zip(way, [*way[1:], follows], strict=True):
            block = self.flow.blocks[index]
            steps += [Step(self.code[at]) for at in block.instructions]
            taken = after is not None and self.flow.blocks[after].first != block.end
            steps[-1] = dataclasses.replace(steps[-1], taken=taken)
        return tuple(steps)


_OF_TURNS = [field.name for field in dataclasses.fields(Counts)]


def paths_of(code: Sequence[Coded], tile: Tile, peels: bool = False) -> Paths:
    """The parts of a kernel with such a tile. Raises ``TileError`` where they do not agree.

    ``peels`` allows for kernels whose first turns stand before the loop, with barriers that the
    tile does not tell.
    """
    found = _Recognition(code, tile)
    steady, masked = found.turns()
    prologue, epilogue = found.prologue(steady), found.epilogue(steady)
    if not peels:
        found.check("steady turn", steady, tile.turn, _OF_TURNS)
        if masked is not None:
            found.check("masked turn", masked, tile.turn, _OF_TURNS)
        found.check("prologue", prologue, tile.prologue, ("mmas", "copies"))
        found.check("epilogue", epilogue, tile.epilogue, ("mmas", "stores"))
    return Paths(
        prologue=found.steps(prologue, steady[0]),
        steady=found.steps(steady, steady[0]),
        masked=None if masked is None else found.steps(masked, masked[0]),
        epilogue=found.steps(epilogue, None),
        peeled=sum(found.counts[index].mmas for index in prologue + epilogue) / tile.turn.mmas,
    )
