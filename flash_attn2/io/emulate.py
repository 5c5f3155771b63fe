"""`io --emulate`: the forms beside the emulator's counters, at 1k and 2k tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flash_attn2._impl import backends
from flash_attn2.io import compare, emulated_standard, flash1, flash2, standard
from flash_attn2.io.problem import Attention

PROBLEMS = tuple(
    Attention(seqlen, heads=1, causal=causal) for seqlen in (1024, 2048) for causal in (False, True)
)
_OPTIONS = "races=off,poison=off"  # counts do not depend on them


def run() -> int:
    """Prints what differs; 1 if anything does. ImportError where nothing is built."""
    failed = 0
    for problem in PROBLEMS:
        for name, found in _differences(problem):
            print(f"{name}, {problem}: {'equal' if not found else '; '.join(found)}")
            failed += len(found)
    return 1 if failed else 0


def _differences(problem: Attention) -> Iterator[tuple[str, list[str]]]:
    module: Any = backends.load("sm80-emulated").module
    with _cpu_tensors_emulated(), emulator_options(module):
        counted = compare.count_flash2(problem)
    yield (
        "FlashAttention-2 forward",
        compare.differences(flash2.forward(problem), counted.forward),
    )
    yield (
        "FlashAttention-2 backward",
        compare.differences(flash2.backward(problem), counted.backward),
    )
    with emulator_options(emulated_standard.load()):
        counted = compare.count_standard(problem)
    yield "standard forward", compare.differences(standard.forward(problem), counted.forward)
    yield "standard backward", compare.differences(standard.backward(problem), counted.backward)
    with emulator_options(compare.load_flash1()):
        counted = compare.count_flash1(problem)
    yield (
        "FlashAttention-1 forward",
        compare.differences(flash1.forward(problem), counted.forward),
    )
    yield (
        "FlashAttention-1 backward",
        compare.differences(flash1.backward(problem), counted.backward),
    )


@contextmanager
def emulator_options(module: Any, text: str = _OPTIONS) -> Iterator[None]:
    before = module.set_options(text)
    try:
        yield
    finally:
        module.set_options(before)


@contextmanager
def _cpu_tensors_emulated() -> Iterator[None]:
    before = backends.for_cpu_tensors
    backends.select("sm80-emulated")
    try:
        yield
    finally:
        backends.for_cpu_tensors = before
