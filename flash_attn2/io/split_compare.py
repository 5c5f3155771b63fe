"""The form of decoding beside what the kernel emulator counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2._impl import backends
from flash_attn2.io.compare import traffic
from flash_attn2.io.counts import Pass
from flash_attn2.io.decoding import Decoding
from flash_attn2.io.emulated_standard import Counters


def count(problem: Decoding) -> Mapping[str, Counters]:
    """Runs it; counters by kernel. CPU tensors must go to the emulator."""
    module: Any = backends.load("sm80-emulated").module
    dtype = torch.float16 if problem.scales is None else torch.float8_e4m3fn
    rows = (problem.batch, problem.seqlen_k, problem.heads_kv)
    q = torch.randn(problem.batch, 1, problem.heads, problem.head_dim).half()
    k = torch.randn(*rows, problem.head_dim).to(dtype)
    v = k[..., : problem.width_v]
    if not problem.shared:
        v = torch.randn(*rows, problem.width_v).to(dtype)
    scales: dict[str, Any] = {}
    if problem.scales is not None:
        shape = rows if problem.scales == "row" else (problem.batch, problem.heads_kv)
        scales = {name: torch.ones(shape) for name in ("k_descale", "v_descale")}
    module.reset_counters()
    flash_attn_with_kvcache(q, k, v, **scales)
    counted: Mapping[str, Counters] = module.counters_by_kernel()
    return counted


def differences(expected: Pass, counted: Mapping[str, Counters]) -> list[str]:
    """Where the emulator counts something else than the form says; none: they are equal."""
    names = [kernel.name for kernel in expected.kernels]
    if sorted(names) != sorted(counted):
        return [f"kernels {names}, counted {sorted(counted)}"]
    found = []
    for kernel in expected.kernels:
        counters = counted[kernel.name]
        figures: list[tuple[str, object, object]] = [
            ("ctas", kernel.ctas, int(counters["ctas"])),
            ("mma", kernel.mma, int(counters["mma"])),
            *traffic(kernel, counters),
        ]
        found += [
            f"{kernel.name} {what}: form {form}, counted {count}"
            for what, form, count in figures
            if form != count
        ]
    return found
