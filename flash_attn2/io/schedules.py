"""The schedules that are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flash_attn2.io import bigbird, flash1, flash2, memory, standard
from flash_attn2.io.counts import Pass
from flash_attn2.io.problem import Attention

Direction = Callable[[Attention], Pass]


@dataclass(frozen=True)
class Schedule:
    name: str
    forward: Direction
    backward: Direction
    peak_bytes: Callable[[Attention], int]
    serves: Callable[[Attention], bool] = lambda problem: True

    def both(self, problem: Attention) -> Pass:
        """Forward and backward together."""
        return Pass(self.forward(problem).kernels + self.backward(problem).kernels)


STANDARD = Schedule("standard", standard.forward, standard.backward, memory.standard)
FLASH1 = Schedule(
    "FlashAttention-1",
    flash1.forward,
    flash1.backward,
    memory.flash1,
    flash1.serves,
)
FLASH2 = Schedule("FlashAttention-2", flash2.forward, flash2.backward, memory.flash2)
BIGBIRD = Schedule("BigBird", bigbird.forward, bigbird.backward, bigbird.peak_bytes, bigbird.serves)

# One that is added here is in all tables, pictures and records.
SCHEDULES = (STANDARD, FLASH1, FLASH2, BIGBIRD)
