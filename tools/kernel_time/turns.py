"""What the parts of a CTA cost on an SM that is full of such CTAs: mean over the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tools.kernel_time.simulation import Run, Simulation

# Of the random hiccups and offsets of the simulator. Frozen: kernels are compared by these.
SEEDS = tuple(range(8))

_TURNS = 8  # of a short CTA
_MASKED_TURNS = 4
_WAVES = 3


@dataclass(frozen=True)
class CtaCost:
    """Cycles of a CTA with as many others as fit: ``fixed`` and those of each turn.

    ``alone[k]`` is a steady turn with k + 1 CTAs on the SM, the last one that of all slots.
    """

    fixed: float
    steady: float
    masked: float
    alone: tuple[float, ...]


@dataclass(frozen=True)
class Steady:
    """What the steady turns of a full SM take: shares of the time, by unit and by reason.

    ``cycles`` are those of a turn of every CTA.
    """

    cycles: float
    busy: dict[str, float]
    waits: dict[str, float]


class Turns:
    """Costs of a kernel's parts, by simulation."""

    def __init__(
        self,
        simulation: Simulation,
        warps: int,
        slots: int,
        policy: str,
        seeds: tuple[int, ...] = SEEDS,
    ) -> None:
        self.simulation, self.warps, self.slots = simulation, warps, slots
        self.policy, self.seeds = policy, seeds

    def cost(self) -> CtaCost:
        short = self._wave_cycles({"steady": _TURNS})
        steady = (self._wave_cycles({"steady": 3 * _TURNS}) - short) / (2 * _TURNS)
        masked = steady
        if self.simulation.has_masked:
            turns = {"steady": _TURNS, "masked": _MASKED_TURNS}
            masked = (self._wave_cycles(turns) - short) / _MASKED_TURNS
        fewer = [self._steady_cycles(slots) for slots in range(1, self.slots)]
        return CtaCost(short - _TURNS * steady, steady, masked, (*fewer, steady))

    def steady(self, turns: int = 12) -> Steady:
        """Longer and shorter runs apart, so that only steady turns count."""
        pairs = [self._pair(self.slots, turns, seed) for seed in self.seeds]
        sm = self.simulation.sm

        def mean(of: str, key: str | None = None) -> float:
            def value(run: Run) -> float:
                found = getattr(run, of)
                return float(found if key is None else found[key])

            return sum(value(long) - value(short) for short, long in pairs) / len(pairs)

        cycles = mean("cycles")
        issue_slots = 4 * cycles
        busy = {
            unit: mean("busy", unit) / issue_slots
            for unit in ("tensor", "special", "float", "integer")
        }
        busy["shared"] = mean("shared_busy") / cycles
        busy["issue"] = mean("issued") / issue_slots
        busy["registers"] = mean("register_reads") / issue_slots / sm.registers_per_cycle
        reduced = mean("busy", "reduce") * 128
        busy["reduce"] = reduced / sm.reduce_bytes_per_cycle / cycles
        warp_cycles = cycles * self.warps * self.slots
        reasons = pairs[0][0].waits
        waits = {reason: mean("waits", reason) / warp_cycles for reason in reasons}
        return Steady(cycles / (2 * turns), busy, waits)

    def _run(self, ctas: list[Mapping[str, int]], slots: int, seed: int) -> Run:
        return self.simulation.run(ctas, self.warps, slots, self.policy, seed)

    def _wave_cycles(self, turns: Mapping[str, int]) -> float:
        """Of as many CTAs as fit, in a row of such waves."""
        cta = {"prologue": 1, "epilogue": 1, **turns}
        ctas: list[Mapping[str, int]] = [cta] * (_WAVES * self.slots)
        cycles = [self._run(ctas, self.slots, seed).cycles for seed in self.seeds]
        return sum(cycles) / len(cycles) / _WAVES

    def _pair(self, slots: int, turns: int, seed: int) -> tuple[Run, Run]:
        """A run of few turns, and one with twice as many more."""
        runs = []
        for count in (turns, 3 * turns):
            cta = {"prologue": 1, "steady": count, "epilogue": 1}
            runs.append(self._run([cta] * slots, slots, seed))
        return runs[0], runs[1]

    def _steady_cycles(self, slots: int, turns: int = 12) -> float:
        pairs = [self._pair(slots, turns, seed) for seed in self.seeds]
        cycles = [long.cycles - short.cycles for short, long in pairs]
        return sum(cycles) / len(cycles) / (2 * turns)
