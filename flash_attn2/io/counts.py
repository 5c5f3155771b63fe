"""What a kernel moves and computes, in the units that the kernel emulator counts in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SECTOR_BYTES = 32  # of global memory: the smallest piece that moves
WAVEFRONT_BYTES = 128  # of shared memory: one pass through its 32 banks
MMA_FLOP = 2 * 16 * 8 * 16  # of a tensor-core instruction of a warp, mma.m16n8k16


@dataclass(frozen=True)
class Traffic:
    """Bytes of global memory, in whole sectors.

    `asked` is what the CTAs ask for, all requests added up; `distinct` counts each sector once, as
    if everything that a launch touches again were in the L2 cache.
    """

    asked: int
    distinct: int

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.asked + other.asked, self.distinct + other.distinct)

    def __mul__(self, factor: int) -> Traffic:
        return Traffic(self.asked * factor, self.distinct * factor)


NOTHING = Traffic(0, 0)


def once(num_bytes: int) -> Traffic:
    """What is touched once."""
    return Traffic(num_bytes, num_bytes)


def total(parts: Mapping[str, Traffic]) -> Traffic:
    return sum(parts.values(), NOTHING)


@dataclass(frozen=True)
class Shared:
    """Wavefronts of shared memory. Copies of single numbers to a CTA's threads are left out."""

    cp_async: int = 0  # written by copies from global memory
    ldmatrix: int = 0  # read as operands of products
    stores: int = 0  # by plain stores and loads: exchanges between warps, staged results
    loads: int = 0

    @property
    def bytes(self) -> int:
        return WAVEFRONT_BYTES * (self.cp_async + self.ldmatrix + self.stores + self.loads)


@dataclass(frozen=True)
class Kernel:
    """One launch. Traffic goes by tensor; `adds` are atomic additions."""

    name: str
    ctas: int
    mma: int = 0
    reads: Mapping[str, Traffic] = field(default_factory=dict)
    writes: Mapping[str, Traffic] = field(default_factory=dict)
    adds: Mapping[str, Traffic] = field(default_factory=dict)
    shared: Shared = Shared()
    balance: float = 1.0  # time of the slowest multiprocessor over that of all alike

    @property
    def memory(self) -> Traffic:
        """All of it; what is added to is read and written."""
        return total(self.reads) + total(self.writes) + total(self.adds) * 2


@dataclass(frozen=True)
class Pass:
    """The launches of one direction."""

    kernels: tuple[Kernel, ...]

    @property
    def memory(self) -> Traffic:
        return sum((kernel.memory for kernel in self.kernels), NOTHING)

    @property
    def shared_bytes(self) -> int:
        return sum(kernel.shared.bytes for kernel in self.kernels)

    @property
    def mma(self) -> int:
        return sum(kernel.mma for kernel in self.kernels)

    @property
    def main(self) -> Kernel:
        """The one that computes most."""
        return max(self.kernels, key=lambda kernel: kernel.mma)
