"""What the papers claim, beside what is counted here."""

from __future__ import annotations

from dataclasses import dataclass

from flash_attn2.io.counts import Pass
from flash_attn2.io.problem import Attention
from flash_attn2.io.schedules import FLASH1, FLASH2, STANDARD

_GB = 1e9
# Elementwise passes of standard attention with dropout and a padding mask, each a kernel of its
# own: matrices read and written, and masks of dropout, which are a byte an entry.
_ELEMENTWISE_MATRICES = 2 + 2 + 2 + 2  # mask and dropout, forward and backward
_DROPOUT_MASKS = 2
_IN_TRAFFIC = "bytes that kernels ask global memory for; in brackets with a perfect L2 cache"


@dataclass(frozen=True)
class Claim:
    claim: str
    counted: str
    what: str  # is counted


def claims() -> list[Claim]:
    return [*_traffic(), *_memory(), *_schedules()]


def _gigabytes(total: Pass) -> str:
    return f"{total.memory.asked / _GB:.1f} ({total.memory.distinct / _GB:.1f}) GB"


def _traffic() -> list[Claim]:
    """Figure 2 of FlashAttention: GPT-2 medium, 1024 tokens, 16 heads of 64, batch 64."""
    layer = Attention(1024, batch=64, heads=16, head_dim=64)
    plain, first, flash = (x.both(layer) for x in (STANDARD, FLASH1, FLASH2))
    elementwise = _ELEMENTWISE_MATRICES * layer.square_bytes
    elementwise += _DROPOUT_MASKS * layer.square_bytes // 2
    whole = plain.memory.distinct + elementwise
    about = f"one attention, 1024 tokens, batch 64, 16 heads of 64, fwd + bwd: {_IN_TRAFFIC}"
    return [
        Claim(
            "standard: 40.3 GB (GPT-2 medium)",
            _gigabytes(plain),
            f"{about}; no mask, no dropout",
        ),
        Claim(
            "the same",
            f"({whole / _GB:.1f}) GB",
            "mask and dropout added, each a kernel of its own over S, P and their gradients",
        ),
        Claim("FlashAttention: 4.4 GB", _gigabytes(first), "FlashAttention-1, likewise"),
        Claim("the same", _gigabytes(flash), "FlashAttention-2"),
        Claim(
            "up to 9x fewer accesses",
            f"{whole / flash.memory.distinct:.1f}x",
            "the second line over the one before this, perfect caches; "
            f"without mask and dropout {plain.memory.distinct / flash.memory.distinct:.1f}x, and "
            f"{plain.memory.asked / flash.memory.asked:.1f}x as asked for",
        ),
    ]


def _memory() -> list[Claim]:
    found = []
    for factor, seqlen in ((10, 2048), (20, 4096)):
        problem = Attention(seqlen)
        plain, flash = STANDARD.peak_bytes(problem), FLASH2.peak_bytes(problem)
        what = "peak of one attention in training, heads of 64, inputs and gradients included"
        found.append(
            Claim(f"{factor}x less memory at {seqlen // 1024}k", f"{plain / flash:.1f}x", what)
        )
    return found


def _schedules() -> list[Claim]:
    """Where FlashAttention-2's twofold speed comes from: one sequence of 16 heads."""
    problem = Attention(8192)
    first, second = FLASH1.both(problem), FLASH2.both(problem)
    claim = "FlashAttention-2: 2x over FlashAttention-1"
    what = "FlashAttention-1 over FlashAttention-2, fwd + bwd, 8k tokens, 16 heads of 64, batch 1"
    ctas, blocks = FLASH1.forward(problem).main, FLASH2.forward(problem).main
    return [
        Claim(
            claim,
            f"{first.memory.asked / second.memory.asked:.1f}x",
            f"{what}: global memory as asked for (no time is counted)",
        ),
        Claim("the same", f"{first.shared_bytes / second.shared_bytes:.1f}x", "shared memory"),
        Claim(
            "the same",
            f"{ctas.balance / blocks.balance:.1f}x",
            f"time until the last of {ctas.ctas} CTAs ends, over that of {blocks.ctas}, by equal "
            f"work, forward, on {problem.device.sm_count} multiprocessors",
        ),
    ]
