"""The rows of the limits: what of the processor's own speed is reached, and AVX2 among its like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from cpu_rows import HELD_TO_AVX2, PEAK, QUICK, SDPA, THREADS, Goal, Row, dense_case, shorter

from flash_attn2.bench.cases import DTYPES
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.modes import FORWARD, TRAINING

READING = "reading memory"  # a loop that does nothing else, cpu_peak.cpp

SECTION = "limits"
AVX2_SECTION = "limits, avx2"
ENVIRONMENT: Mapping[str, Mapping[str, str]] = {AVX2_SECTION: HELD_TO_AVX2}


@dataclass(frozen=True)
class DecodeRow:
    """One step of decoding over a full cache; the goal is a share of the speed of reading."""

    title: str
    case: DecodeCase
    goals: Mapping[str, Goal]
    section: str = SECTION
    threads: tuple[int, ...] = THREADS

    @property
    def name(self) -> str:
        return f"{self.title}: {self.case.name}"


LimitRow = Row | DecodeRow

_FP32, _BF16 = "float32", "bfloat16"
# (seqlen, head_dim) -> of the peak, in float32 and in bf16
_FORWARD = {
    (2048, 128): (Goal(0.90, 0.94), Goal(0.87, 0.92)),
    (2048, 64): (Goal(0.87, 0.91), Goal(0.83, 0.87)),
    (512, 64): (Goal(0.83, 0.87), Goal(0.76, 0.80)),
}
# (dtype, causal, seqlen, head_dim) -> over SDPA
_TRAINING = {
    (_FP32, False, 2048, 128): Goal(1.28, 1.38),
    (_FP32, True, 1024, 64): Goal(1.8, 1.95),
    (_BF16, False, 2048, 128): Goal(2.0, 2.3),
}
# (batch, page size or 0) -> of the speed of reading
_DECODE = {(8, 0): Goal(0.88, 0.95), (1, 0): Goal(0.80, 0.88), (8, 16): Goal(0.82, 0.90)}
_AVX2 = Goal(1.2, 1.5)


def rows(quick: bool = False) -> list[LimitRow]:
    """All rows in the order in which they run; `quick`: of tiny problems, to try the script."""
    found = [*_forward(), *_training(), *_decode(), *_avx2()]
    return [_shorter(row) for row in found] if quick else found


def _forward() -> Iterator[Row]:
    for (seqlen, head_dim), goals in _FORWARD.items():
        for dtype, goal in zip((_FP32, _BF16), goals, strict=True):
            case = dense_case(dtype, 1, 8, seqlen, head_dim)
            yield Row(SECTION, f"limits, forward {DTYPES[dtype]}", case, {PEAK: goal})


def _training() -> Iterator[Row]:
    for (dtype, causal, seqlen, head_dim), goal in _TRAINING.items():
        case = dense_case(dtype, 1, 8, seqlen, head_dim, causal)
        title = f"limits, forward + backward {DTYPES[dtype]}"
        yield Row(SECTION, title, case, {SDPA: goal, PEAK: Goal(None)}, TRAINING)


def _decode() -> Iterator[DecodeRow]:
    for dtype in (_FP32, _BF16):
        for (batch, page_size), goal in _DECODE.items():
            pages = f" in pages of {page_size}" if page_size else ""
            name = f"b{batch} h32/8 s8192 d128{pages} {DTYPES[dtype]}"
            case = DecodeCase(name, "", dtype, batch, 8192, 32, 8, 128, page_size)
            yield DecodeRow(f"limits, decoding {DTYPES[dtype]}", case, {READING: goal})


def _avx2() -> Iterator[Row]:
    for dtype in (_FP32, _BF16):
        for mode in (FORWARD, TRAINING):
            for head_dim in (128, 64):
                case = dense_case(dtype, 1, 8, 2048, head_dim)
                title = f"limits, AVX2 {mode.name} {DTYPES[dtype]}"
                yield Row(AVX2_SECTION, title, case, {SDPA: _AVX2}, mode)


def _shorter(row: LimitRow) -> LimitRow:
    if isinstance(row, Row):
        return shorter(row)
    case = replace(row.case, name=f"{row.case.name} (1/{QUICK} of it)")
    return replace(row, case=replace(case, seqlen_k=case.seqlen_k // QUICK))
