"""The rows of the CPU table: what is measured, against whom, and what is required and aimed at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from flash_attn2.bench.cases import DTYPES, PROFILES, Case, build_cases
from flash_attn2.bench.corpus import read_corpus
from flash_attn2.bench.modes import FORWARD, TRAINING, Mode

# What flash_attn2 is compared with; cpu_peers.py says how each runs.
SDPA = "SDPA"
LOOP = "SDPA, sequence by sequence"
BOOL_MASK = "SDPA with a bool mask"
BIAS = "SDPA with a prebuilt bias"
FLEX = "compiled flex_attention"
NESTED = "SDPA of nested tensors"
PEAK = "peak of the machine"
ONE_THREAD = "itself on one thread"


def thread_counts(torch_threads: int, allowed: int) -> tuple[int, ...]:
    """One thread, and as many as torch takes and the affinity mask has processors for."""
    most = max(min(torch_threads, allowed), 1)
    return (1, most) if most > 1 else (1,)


THREADS = thread_counts(torch.get_num_threads(), len(os.sched_getaffinity(0)))
QUICK = 16  # how many times shorter sequences are with --quick


@dataclass(frozen=True)
class Goal:
    """How many times as fast as a peer (of a peak: which share of it); None: nothing is asked."""

    must: float | None
    aim: float | None = None


@dataclass(frozen=True)
class Row:
    """One problem, timed with one thread and with all."""

    section: str  # rows of one section share a process
    title: str
    case: Case
    goals: Mapping[str, Goal]  # by peer
    mode: Mode = FORWARD
    alibi: bool = False
    threads: tuple[int, ...] = THREADS

    @property
    def name(self) -> str:
        return f"{self.title}: {self.case.name}"


@dataclass(frozen=True)
class ErrorRow:
    """The largest error beside SDPA's; `most` times as large is allowed."""

    case: Case
    most: float
    section: str = "accuracy"
    title: str = "error"

    @property
    def name(self) -> str:
        return f"{self.title}: {self.case.name}"


@dataclass(frozen=True)
class MemoryRow:
    """The peak extra memory beside SDPA's."""

    case: Case
    mode: Mode
    section: str = "memory"
    title: str = "extra memory"

    @property
    def name(self) -> str:
        return f"{self.title}, {self.mode.name}: {self.case.name}"


AnyRow = Row | ErrorRow | MemoryRow
_Row = TypeVar("_Row", Row, ErrorRow, MemoryRow)

# Everybody in a process: flash_attn2, torch's own kernels and the libraries that multiply for them.
HELD_TO_AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "FLASH_ATTN2_CPU_ISA": "x86-64-v3",
}
# Environment of the process that runs a section.
ENVIRONMENT = {"avx2": HELD_TO_AVX2}

_FP32, _BF16, _FP16 = DTYPES
_SHAPES = ((2, 8, 1024, 64), (1, 16, 2048, 128), (1, 4, 8192, 64))
# SDPA's backward pass in fp16 runs at 10 GFLOP/s.
_FP16_TRAINING_SHAPES = ((1, 4, 1024, 64), (1, 2, 2048, 128))
_VARLEN = tuple(range(100, 1501, 200))
MASKS = {False: "full", True: "causal"}
_FORWARD = {  # dtype -> goals of full and of causal attention
    _BF16: (Goal(2.2, 2.6), Goal(2.6, 3.2)),
    _FP16: (Goal(1.8, 2.2), Goal(2.2, 3.0)),
    _FP32: (Goal(1.2, 1.3), Goal(1.4, 1.7)),
}
_TRAINING = {_BF16: Goal(1.8, 2.3), _FP32: Goal(1.25, 1.6), _FP16: Goal(5, 8)}
_SCALING = Goal(1.85)


def rows(quick: bool = False) -> list[AnyRow]:
    """All rows in the order in which they run; `quick`: of tiny problems, to try the script."""
    found = [
        *_forward(),
        *_training(),
        *_gqa(),
        *_window(),
        *_alibi(),
        *_varlen(),
        *_dropout(),
        *_tiny(),
        *_share_of_peak(),
        *_avx2(),
        *_models(),
        *_accuracy(),
        *_memory(),
    ]
    return [shorter(row) for row in found] if quick else found


def timed_rows() -> list[Row]:
    """Those that time flash_attn2."""
    return [row for row in rows() if isinstance(row, Row) and row.section != "peak"]


def shorter(row: _Row) -> _Row:
    case = row.case
    seqlens = tuple(max(seqlen // QUICK, 16) for seqlen in case.seqlens)
    window = case.window_left // QUICK if case.window_left >= 0 else -1
    name = f"{case.name} (1/{QUICK} of it)"
    return replace(row, case=replace(case, name=name, seqlens=seqlens, window_left=window))


def dense_case(
    dtype: str,
    batch: int,
    num_heads: int,
    seqlen: int,
    head_dim: int,
    causal: bool = False,
    num_heads_kv: int = 0,
) -> Case:
    heads = f"{num_heads}/{num_heads_kv}" if num_heads_kv else str(num_heads)
    return Case(
        f"b{batch} h{heads} s{seqlen} d{head_dim} {MASKS[causal]} {DTYPES[dtype]}",
        "",
        dtype,
        num_heads,
        num_heads_kv or num_heads,
        head_dim,
        (seqlen,) * batch,
        packed=False,
        causal=causal,
    )


def _with_scaling(case: Case, goals: dict[str, Goal]) -> dict[str, Goal]:
    return goals | {ONE_THREAD: _SCALING} if case.seqlens[0] >= 2048 else goals


def _forward() -> Iterator[Row]:
    for dtype, goals in _FORWARD.items():
        for causal, mask in MASKS.items():
            for shape in _SHAPES:
                case = dense_case(dtype, *shape, causal)
                title = f"forward {DTYPES[dtype]}, {mask}"
                yield Row("forward", title, case, _with_scaling(case, {SDPA: goals[causal]}))


def _training() -> Iterator[Row]:
    for dtype, goal in _TRAINING.items():
        for causal in MASKS:
            for shape in _FP16_TRAINING_SHAPES if dtype == _FP16 else _SHAPES:
                case = dense_case(dtype, *shape, causal)
                title = f"forward + backward {DTYPES[dtype]}"
                goals = _with_scaling(case, {SDPA: goal})
                yield Row("training", title, case, goals, TRAINING)


def _gqa() -> Iterator[Row]:
    for causal, goal in ((False, Goal(2.2, 2.5)), (True, Goal(2.6, 3.0))):
        case = dense_case(_BF16, 1, 32, 2048, 128, causal, num_heads_kv=8)
        yield Row("gqa", f"GQA 32/8 bf16, {MASKS[causal]}", case, {SDPA: goal})


def _window() -> Iterator[Row]:
    for dtype, flex in ((_FP32, Goal(2, 3)), (_BF16, Goal(4, 7))):
        case = dense_case(dtype, 1, 4, 8192, 64, causal=True)
        case = replace(case, name=f"{case.name}, window 512", window_left=512)
        goals = {BOOL_MASK: Goal(20, 40), FLEX: flex}
        yield Row("window", f"window 512 at s8192, {DTYPES[dtype]}", case, goals)


def _alibi() -> Iterator[Row]:
    for shape in _SHAPES[:2]:
        for causal in MASKS:
            case = dense_case(_BF16, *shape, causal)
            yield Row("alibi", "ALiBi bf16", case, {BIAS: Goal(2.2, 3.0)}, alibi=True)


def _varlen() -> Iterator[Row]:
    for causal, mask in MASKS.items():
        name = f"h8 d64, 8 sequences of 100…1500, {mask} bf16"
        case = Case(name, "", _BF16, 8, 8, 64, _VARLEN, packed=True, causal=causal)
        goals = {LOOP: Goal(2.0, 2.5)}
        if not causal:  # nested tensors have no causal mask on the CPU
            goals[NESTED] = Goal(15, 30)
        yield Row("varlen", "varlen bf16", case, goals)


def _dropout() -> Iterator[Row]:
    for dtype in (_BF16, _FP32):
        case = replace(dense_case(dtype, *_SHAPES[0]), dropout_p=0.1)
        title = f"dropout 0.1, forward + backward {DTYPES[dtype]}"
        yield Row("dropout", title, case, {SDPA: Goal(4, 8)}, TRAINING)


def _tiny() -> Iterator[Row]:
    # At most 1.5 times SDPA's time.
    for dtype in (_FP32, _BF16):
        yield Row("tiny", "tiny call", dense_case(dtype, 1, 1, 16, 64), {SDPA: Goal(1 / 1.5, 1.0)})


def _share_of_peak() -> Iterator[Row]:
    for dtype, goal in ((_FP32, Goal(0.85, 0.92)), (_BF16, Goal(0.78, 0.88))):
        for shape in ((1, 16, 2048, 128), (1, 4, 8192, 128)):
            yield Row(
                "peak", f"share of peak {DTYPES[dtype]}", dense_case(dtype, *shape), {PEAK: goal}
            )


def _avx2() -> Iterator[Row]:
    for dtype in DTYPES:
        for causal in MASKS:
            for shape in _SHAPES[:2]:
                title = f"AVX2 forward {DTYPES[dtype]}"
                yield Row("avx2", title, dense_case(dtype, *shape, causal), {SDPA: Goal(1.0)})


def _models() -> Iterator[Row]:
    goals = {SDPA: Goal(1.0), FLEX: Goal(1.0)}
    for case in build_cases(PROFILES["cpu-demo"], read_corpus()):
        if case.group == "model":
            yield Row("models", "model shapes", case, goals, threads=THREADS[-1:])


def _accuracy() -> Iterator[ErrorRow]:
    for shape in _SHAPES:
        for causal in MASKS:
            yield ErrorRow(dense_case(_FP32, *shape, causal), most=4)


def _memory() -> Iterator[MemoryRow]:
    for mode in (FORWARD, TRAINING):
        for seqlen in (1024, 2048, 4096, 8192, 16384):
            yield MemoryRow(dense_case(_BF16, 1, 4, seqlen, 64, causal=True), mode)
