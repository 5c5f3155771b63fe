"""`io --emulate`: the forms beside the emulator's counters: dense, sparse, two widths, decoding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flash_attn2._impl import backends
from flash_attn2.io import bigbird, compare, emulated_standard, split, split_compare
from flash_attn2.io.decoding import Decoding
from flash_attn2.io.problem import Attention
from flash_attn2.io.schedules import BIGBIRD, FLASH1, FLASH2, STANDARD

PROBLEMS = tuple(
    Attention(seqlen, heads=1, causal=causal) for seqlen in (1024, 2048) for causal in (False, True)
)
WIDTHS = (
    Attention(512, heads=1, head_dim=192, head_dim_v=128, causal=True),
    Attention(512, heads=1, head_dim=512, causal=True),
)
_LATENTS = Decoding(1024, heads=16, heads_kv=1, head_dim=576, head_dim_v=512, shared=True)
DECODING = (
    Decoding(1024),
    Decoding(1024, scales="sequence"),
    Decoding(1024, scales="row"),
    _LATENTS,
    replace(_LATENTS, heads=128),
    replace(_LATENTS, scales="row"),
)
_OPTIONS = "races=off,poison=off"  # counts do not depend on them


def run() -> int:
    """Prints what differs; 1 if anything does. ImportError where nothing is built."""
    failed = 0
    for name, found in _all_differences():
        print(f"{name}: {'equal' if not found else '; '.join(found)}")
        failed += len(found)
    return 1 if failed else 0


def _all_differences() -> Iterator[tuple[str, list[str]]]:
    for problem in PROBLEMS:
        for name, found in _differences(problem):
            yield f"{name}, {problem}", found
    module: Any = backends.load("sm80-emulated").module
    with cpu_tensors_on("sm80-emulated"), emulator_options(module, _OPTIONS):
        for problem in WIDTHS:
            counted = compare.count_flash2(problem)
            for direction in ("forward", "backward"):
                form = getattr(FLASH2, direction)(problem)
                found = compare.differences(form, getattr(counted, direction))
                yield f"{FLASH2.name} {direction}, {problem}", found
        for decoding in DECODING:
            form = split.forward(decoding)
            yield (
                f"decoding, {decoding}",
                split_compare.differences(form, split_compare.count(decoding)),
            )


def _differences(problem: Attention) -> Iterator[tuple[str, list[str]]]:
    module: Any = backends.load("sm80-emulated").module
    with cpu_tensors_on("sm80-emulated"), emulator_options(module, _OPTIONS):
        flash2 = compare.count_flash2(problem)
        sparse = compare.count_flash2(bigbird.under_a_mask(problem), bigbird.mask_of(problem))
    with emulator_options(emulated_standard.load(), _OPTIONS):
        standard = compare.count_standard(problem)
    with emulator_options(compare.load_flash1(), _OPTIONS):
        flash1 = compare.count_flash1(problem)
    for schedule, counted in (
        (FLASH2, flash2),
        (BIGBIRD, sparse),
        (STANDARD, standard),
        (FLASH1, flash1),
    ):
        forward, backward = schedule.forward(problem), schedule.backward(problem)
        yield f"{schedule.name} forward", compare.differences(forward, counted.forward)
        yield f"{schedule.name} backward", compare.differences(backward, counted.backward)


@contextmanager
def emulator_options(module: Any, text: str) -> Iterator[None]:
    """Options of a module whose kernels run in the emulator, as in FLASH_ATTN2_EMULATOR."""
    before = module.set_options(text)
    try:
        yield
    finally:
        module.set_options(before)


@contextmanager
def cpu_tensors_on(backend: str) -> Iterator[None]:
    """Sends CPU tensors to a backend; "cuda" changes nothing."""
    before = backends.for_cpu_tensors
    if backend != "cuda":
        backends.select(backend)
    try:
        yield
    finally:
        backends.for_cpu_tensors = before
