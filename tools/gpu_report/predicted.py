"""What a model of the kernels predicted, beside what is measured.

A file of predictions is what `python -m tools.kernel_time -o` writes, or a JSON object of TFLOP/s
by kernel. There, a key names an instance as `make cuda-check` does, and may go on with the mask and
the length:

    {"fwd_hd128_plain_float16": 208.0, "fwd_hd128_plain_float16/causal/4096": 190.5}

The longest key that fits counts. Keys of no case, and entries that are no numbers, are left alone.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flash_attn2.bench.cases import Case
from tools.gpu_report.cases import mask

Predictions = Mapping[str, float]


def read(path: Path, machine: Mapping[str, Any]) -> Predictions:
    """Those for a machine (`machine.probe`). ValueError where the file is no JSON object."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object of TFLOP/s by kernel")
    if found.get("kind") == "kernel_time":
        return of_a_model(found, machine)
    return {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def of_a_model(found: Mapping[str, Any], machine: Mapping[str, Any]) -> Predictions:
    """By kernel, mask and length: the mean of its policies, for the GPU of this name, or else for
    one of its compute capability. Empty where the model has no such GPU."""
    arch = str(machine.get("compute_capability")).replace(".", "")
    known = found["machines"]
    named = [name for name in known if is_named(machine["gpu"], name)]
    names = named or [name for name in known if str(known[name]["arch"]) == arch]
    by_policy: dict[str, list[float]] = {}
    for one in found["predictions"]:
        if one["machine"] not in names[:1]:
            continue
        for which in ("full", "causal"):
            for seqlen, rate in zip(found["lengths"], one[which], strict=True):
                by_policy.setdefault(f"{one['instance']}/{which}/{seqlen}", []).append(rate)
    return {key: statistics.mean(rates) for key, rates in by_policy.items()}


def is_named(gpu: str, name: str) -> bool:
    """Whether `NVIDIA GeForce RTX 3090` is an RTX3090, and no A100 an A10."""
    pattern = re.sub(r"(?<=[A-Za-z])(?=\d)", " ?", name)
    return re.search(rf"\b{pattern}\b", gpu, flags=re.IGNORECASE) is not None


def of(predictions: Predictions, mode: str, case: Case) -> float | None:
    """TFLOP/s of a case of the sweep; None where nothing is said, as of both passes together."""
    kernel = f"{mode}_hd{case.head_dim}_plain_{case.dtype}"
    seqlen = case.seqlens[0]
    for end in (f"/{mask(case.causal)}/{seqlen}", f"/{seqlen}", f"/{mask(case.causal)}", ""):
        if kernel + end in predictions:
            return predictions[kernel + end]
    return None
