"""The rows in which flash_attn2 runs beside every other runtime that computes attention on CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import peers
from cpu_rows import MASKS, QUICK, THREADS, Goal, dense_case

from flash_attn2.bench.cases import DTYPES, Case
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.decode.contenders import SDPA_PACKED

SECTION = "peers"
# Threads of OpenMP that have nothing to do wait for a millisecond at most before they sleep: the
# default is many of them, in which others' threads would share the processors with them.
SHORT_WAITS = {"GOMP_SPINCOUNT": "10000"}
ENVIRONMENT = {
    SECTION: {
        **SHORT_WAITS,
        "JAX_PLATFORMS": "cpu",
        peers.XLA_THREADS: str(THREADS[-1]),
    }
}


@dataclass(frozen=True)
class PeerRow:
    """One problem, with all threads; the goal is over the fastest peer."""

    title: str
    case: Case | DecodeCase
    goal: Goal
    section: str = SECTION
    threads: tuple[int, ...] = THREADS[-1:]

    @property
    def name(self) -> str:
        return f"{self.title}: {self.case.name}"

    @property
    def contenders(self) -> tuple[str, ...]:
        """Beside flash_attn2."""
        decode = isinstance(self.case, DecodeCase)
        return (SDPA, *((SDPA_PACKED,) if decode else ()), *peers.NAMES)


_FP32, _BF16, _FP16 = DTYPES
_LEAST = Goal(1.0)
# (dtype, causal, seqlen, head_dim, num_heads_kv or 0) -> over the fastest
_FORWARD = {
    (_FP32, False, 512, 64, 0): Goal(1.10, 1.15),
    (_FP32, False, 2048, 64, 0): Goal(1.10, 1.15),
    (_FP32, False, 2048, 128, 0): Goal(1.07, 1.12),
    (_FP32, True, 2048, 64, 0): _LEAST,
    (_FP32, True, 2048, 128, 0): _LEAST,
    (_FP32, True, 4096, 128, 2): _LEAST,
    (_BF16, False, 512, 64, 0): Goal(1.25, 1.32),
    (_BF16, False, 2048, 64, 0): Goal(1.25, 1.32),
    (_BF16, False, 2048, 128, 0): Goal(1.2, 1.26),
    (_BF16, True, 2048, 64, 0): _LEAST,
    (_BF16, True, 2048, 128, 0): _LEAST,
    (_BF16, True, 4096, 128, 2): _LEAST,
    (_FP16, False, 2048, 64, 0): _LEAST,
    (_FP16, False, 2048, 128, 0): _LEAST,
    (_FP16, True, 4096, 128, 2): _LEAST,
}


def rows(quick: bool = False) -> list[PeerRow]:
    """All rows in the order in which they run; `quick`: of tiny problems, to try the script."""
    found = [*_forward(), *_decode()]
    return [_shorter(row) for row in found] if quick else found


def _forward() -> Iterator[PeerRow]:
    for (dtype, causal, seqlen, head_dim, num_heads_kv), goal in _FORWARD.items():
        case = dense_case(dtype, 1, 8, seqlen, head_dim, causal, num_heads_kv)
        yield PeerRow(f"peers, forward {DTYPES[dtype]}, {MASKS[causal]}", case, goal)


def _decode() -> Iterator[PeerRow]:
    for dtype in (_FP32, _BF16, _FP16):
        for batch in (1, 8):
            name = f"b{batch} h32/8 s4096 d128 {DTYPES[dtype]}"
            case = DecodeCase(name, "", dtype, batch, 4096, 32, 8, 128)
            yield PeerRow(f"peers, decoding {DTYPES[dtype]}", case, _LEAST)


def _shorter(row: PeerRow) -> PeerRow:
    case, name = row.case, f"{row.case.name} (1/{QUICK} of it)"
    if isinstance(case, DecodeCase):
        return replace(row, case=replace(case, name=name, seqlen_k=case.seqlen_k // QUICK))
    seqlens = tuple(seqlen // QUICK for seqlen in case.seqlens)
    return replace(row, case=replace(case, name=name, seqlens=seqlens))
