"""From the cost of a CTA to the time of a launch: CTAs over the SMs, memory, launches."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from tools.kernel_time.machines import Machine
from tools.kernel_time.tiles import Tile
from tools.kernel_time.turns import CtaCost

GROUP = 4  # query heads of a KV head, in what is predicted of grouped heads


@dataclass(frozen=True)
class Problem:
    """Dense self-attention of equal sequences; ``group``: query heads of a KV head."""

    batch: int
    heads: int
    seqlen: int
    head_dim: int
    causal: bool
    group: int = 1

    def flop(self, kind: str) -> float:
        """What counts by the protocol of the FlashAttention-2 paper."""
        forward = 4.0 * self.batch * self.heads * self.seqlen**2 * self.head_dim
        return forward * (0.5 if self.causal else 1) * (1 if kind == "fwd" else 2.5)

    @property
    def elements(self) -> int:
        """Of Q."""
        return self.batch * self.heads * self.seqlen * self.head_dim

    def bytes_moved(self, kind: str) -> float:
        """Q and O; or Q, dO, and the sums of dQ in float32. K and V, and their gradients."""
        own, of_keys = (2 * 2, 2 * 2) if kind == "fwd" else (2 * 2 + 4, 2 * 4)
        return self.elements * (own + of_keys / self.group)


def protocol_problem(seqlen: int, head_dim: int, causal: bool, group: int = 1) -> Problem:
    """Of the paper: 16k tokens in all, a hidden size of 2048, or as much of it as groups make."""
    heads = 2048 // head_dim // group * group
    return Problem(16384 // seqlen, heads, seqlen, head_dim, causal, group)


@dataclass(frozen=True)
class Kernel:
    """A kernel's tile and what its CTAs cost.

    ``peeled`` turns are part of the prologue. ``last_first``: query blocks come from the last to
    the first, over all heads, as csrc/sm80/schedule.h has it; otherwise head by head.
    """

    tile: Tile
    cost: CtaCost
    peeled: float = 0.0
    last_first: bool = True

    @property
    def slots(self) -> int:
        return len(self.cost.alone)

    def cta_cycles(self, turns: int, masked: int) -> float:
        full = turns - masked - self.peeled
        cycles = self.cost.fixed + self.cost.steady * full + self.cost.masked * masked
        return max(cycles, self.cost.fixed / 2)

    def launch_seconds(self, machine: Machine, problem: Problem) -> float:
        cycles = makespan(self.ctas(problem), machine.sms, self.cost.alone)
        floor = problem.bytes_moved(self.tile.kind) / (machine.memory * machine.memory_share)
        return max(cycles / machine.clock, floor) + machine.launch

    def ctas(self, problem: Problem) -> list[float]:
        """Cycles of the CTAs in the order of their start."""
        one = [self.cta_cycles(*turns) for turns in self._turns(problem)]
        pairs = problem.batch * problem.heads
        if self.tile.kind == "bwd":
            pairs //= problem.group
        if not self.last_first:
            return one * pairs
        if self.tile.kind == "fwd":
            one.reverse()
        return [cycles for cycles in one for _ in range(pairs)]

    def _turns(self, problem: Problem) -> list[tuple[int, int]]:
        """Of each CTA of a sequence: turns, and how many of them are masked."""
        if self.tile.kind == "fwd":
            return [self._forward_turns(problem, at) for at in _starts(problem, self.tile.block_m)]
        return [self._backward_turns(problem, at) for at in _starts(problem, self.tile.block_n)]

    def _forward_turns(self, problem: Problem, first_row: int) -> tuple[int, int]:
        """Of the keys that rows see; masked are those that not all rows see."""
        keys = problem.seqlen
        seen_by_all = keys
        if problem.causal:
            keys = min(first_row + self.tile.block_m, keys)
            seen_by_all = first_row + 1
        turns = _ceil_div(keys, self.tile.block_n)
        return turns, turns - min(turns, seen_by_all // self.tile.block_n)

    def _backward_turns(self, problem: Problem, first_key: int) -> tuple[int, int]:
        """Of the queries of a group that see the keys; a mask has no body of its own there."""
        first = first_key // self.tile.block_m if problem.causal else 0
        return problem.group * (_ceil_div(problem.seqlen, self.tile.block_m) - first), 0


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _starts(problem: Problem, block: int) -> range:
    return range(0, problem.seqlen, block)


def row_kernels_seconds(machine: Machine, problem: Problem) -> float:
    """Of the two kernels around the backward one: read O and dO and clear the sums of dQ; read
    these and write dQ."""
    moved = problem.elements * (2 + 2 + 4 + 4 + 2)
    return moved / (machine.memory * machine.memory_share) + 2 * machine.launch


def teraflops(machine: Machine, kernel: Kernel, problem: Problem) -> float:
    """Of a pass by the paper's protocol, row kernels included."""
    seconds = kernel.launch_seconds(machine, problem)
    if kernel.tile.kind == "bwd":
        seconds += row_kernels_seconds(machine, problem)
    return problem.flop(kernel.tile.kind) / seconds / 1e12


class _Resident:
    """CTAs of one SM, which all progress at the rate that their number allows."""

    def __init__(self) -> None:
        self.left: list[float] = []
        self.since = 0.0

    def next_end(self, rates: Sequence[float]) -> float:
        return self.since + min(self.left) / rates[len(self.left)]

    def progress(self, to: float, rates: Sequence[float]) -> int:
        """How many end then."""
        done = (to - self.since) * rates[len(self.left)]
        left = [cycles - done for cycles in self.left]
        self.left = [cycles for cycles in left if cycles > 1e-6]
        self.since = to
        return len(left) - len(self.left)


def makespan(ctas: Sequence[float], sms: int, alone: Sequence[float]) -> float:
    """Cycles until CTAs are done which start in their order as slots become free.

    ``ctas`` are cycles on a full SM; ``alone[k]``, a turn with k + 1 CTAs there, says how much
    faster they are with fewer.
    """
    rates = [0.0, *(alone[-1] / cycles for cycles in alone)]
    residents = [_Resident() for _ in range(sms)]
    waiting = iter(ctas)
    for _ in alone:
        for resident in residents:
            if (cycles := next(waiting, None)) is not None:
                resident.left.append(cycles)
    ends = [(r.next_end(rates), sm) for sm, r in enumerate(residents) if r.left]
    heapq.heapify(ends)
    now = 0.0
    while ends:
        now, sm = heapq.heappop(ends)
        resident = residents[sm]
        for _ in range(resident.progress(now, rates)):
            if (cycles := next(waiting, None)) is not None:
                resident.left.append(cycles)
        if resident.left:
            heapq.heappush(ends, (resident.next_end(rates), sm))
    return now
