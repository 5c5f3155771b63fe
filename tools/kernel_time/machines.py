"""Machines as data: one SM, and devices made of them.

Cycles are those of one of an SM's four partitions unless said otherwise. Each constant's comment
says where it is from: *sheet*, NVIDIA's data sheets, whitepapers and the throughput table of the
CUDA programming guide; *code*, distances that ptxas keeps between instructions; *measured*,
published microbenchmarks; *guess*.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Sm:
    """One SM. ``busy`` says how long an instruction of a warp occupies a unit."""

    tensor_busy: int = 8  # of HMMA.16816; sheet: 1024 products a cycle and SM
    tensor_latency: int = 26  # code, measured: 24 to 26
    float_busy: int = 2  # sheet: 16 lanes
    half_busy: int = 1  # sheet
    integer_busy: int = 2  # sheet: 16 lanes
    convert_busy: int = 2  # F2FP; measured
    uniform_busy: int = 2  # guess
    arithmetic_latency: int = 4  # code
    uniform_latency: int = 8  # guess
    special_busy: int = 8  # sheet: 16 results a cycle and SM
    special_latency: int = 18  # measured
    special_queue: int = 4  # guess
    shared_latency: int = 23  # LDS; measured
    matrix_latency: tuple[int, int, int] = (23, 25, 29)  # LDSM x1, x2, x4; measured
    shared_store_latency: int = 10  # guess
    shuffle_latency: int = 24  # measured
    local_latency: int = 33  # measured: a hit in L1
    constant_latency: int = 30  # guess
    memory_queue: int = 8  # guess
    memory_first: int = 2  # from issue to the address unit; guess
    address: int = 2  # of the address unit per access; guess
    accept: int = 1  # least cycles of shared memory's data path, 128 bytes each; sheet
    operand_read: int = 9  # from issue until operands may be overwritten; guess
    registers_per_cycle: float = 2  # operands that the register file delivers; measured: two banks
    register_slack: float = 2  # how many cycles of operands collectors hold; guess
    barrier: int = 20  # from the last arrival; guess
    barrier_slack: int = 0  # none: for what-ifs
    cta_start: int = 300  # guess
    slot_skew: int = 4000  # the first CTAs of an SM start within so many cycles; guess
    branch: int = 8  # of a branch that is taken; guess
    fetch_probability: float = 0.01  # of a hiccup of instruction fetch; guess
    fetch: int = 16  # its longest; guess
    l2_latency: int = 260  # measured: 200 to 270
    l2_jitter: int = 200  # its spread; guess
    l2_bytes_per_cycle: float = 47  # of an SM; measured
    reduce_bytes_per_cycle: float = 32  # of an SM; guess
    reduce_slack: int = 64  # reductions that may wait before others do, in cycles; guess

    def simulated(self) -> dict[str, float]:
        """The constants that the simulator itself reads; the others are costs of instructions."""
        names = (
            "special_queue memory_queue memory_first address accept operand_read "
            "registers_per_cycle register_slack barrier barrier_slack cta_start slot_skew branch "
            "fetch_probability fetch l2_latency l2_jitter l2_bytes_per_cycle "
            "reduce_bytes_per_cycle reduce_slack"
        )
        return {name: getattr(self, name) for name in names.split()}


@dataclass(frozen=True)
class Machine:
    """A device. Sheet, but for the share of its memory's speed that kernels reach."""

    name: str
    arch: str  # of the machine code that it runs
    sm: Sm
    sms: int
    clock: float  # hertz, boost
    memory: float  # bytes a second
    memory_share: float
    shared_bytes: int  # of an SM
    block_bytes: int  # most shared memory of a CTA
    warps: int  # most on an SM
    launch: float = 4e-6  # seconds; guess

    @property
    def peak(self) -> float:
        """FLOP a second of the tensor cores."""
        return 2 * 4 * (16 * 8 * 16) / self.sm.tensor_busy * self.sms * self.clock


_KIB = 1024
_AMPERE = Sm()
# 128 lanes of FP32 an SM; tensor cores of half the width, and of a quarter of it with FP32 sums on
# consumer's devices.
_GA102 = dataclasses.replace(_AMPERE, float_busy=1, tensor_busy=16)
_CONSUMER = dataclasses.replace(_GA102, tensor_busy=32)
# mma.sync reaches two thirds of what wgmma does.
_HOPPER = dataclasses.replace(_AMPERE, float_busy=1, tensor_busy=6, l2_bytes_per_cycle=48)

MACHINES = {
    machine.name: machine
    for machine in (
        Machine("A100", "80", _AMPERE, 108, 1.41e9, 2.04e12, 0.85, 164 * _KIB, 163 * _KIB, 64),
        Machine("A10", "80", _GA102, 72, 1.695e9, 0.6e12, 0.85, 100 * _KIB, 99 * _KIB, 48),
        Machine("RTX3090", "80", _CONSUMER, 82, 1.695e9, 0.936e12, 0.85, 100 * _KIB, 99 * _KIB, 48),
        Machine("RTX4090", "80", _CONSUMER, 128, 2.52e9, 1.008e12, 0.85, 100 * _KIB, 99 * _KIB, 48),
        Machine("H100", "90", _HOPPER, 132, 1.755e9, 3.35e12, 0.88, 228 * _KIB, 227 * _KIB, 64),
        Machine("H200", "90", _HOPPER, 132, 1.755e9, 4.8e12, 0.88, 228 * _KIB, 227 * _KIB, 64),
    )
}

# How a partition chooses among warps that may issue: in turn, or the one that issued last until it
# cannot, then the youngest. Which one hardware follows is not known, so that a difference between
# kernels counts where it holds under both.
POLICIES = ("in turn", "greedy")

_REGISTERS = 64 * _KIB  # of an SM
_REGISTER_UNIT = 256  # in which a warp gets them
_RESERVED_BYTES = _KIB  # of shared memory, for each CTA


def slots(machine: Machine, warps: int, registers: int, shared_bytes: int) -> int:
    """How many CTAs of so many warps fit an SM; 0 if a CTA asks for too much shared memory.

    ``registers`` are those of a thread.
    """
    if shared_bytes > machine.block_bytes:
        return 0
    of_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    return min(
        _REGISTERS // (of_warp * warps),
        machine.shared_bytes // (shared_bytes + _RESERVED_BYTES),
        machine.warps // warps,
    )
