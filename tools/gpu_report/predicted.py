"""What a model of the kernels predicted, beside what is measured.

A file of predictions is a JSON object of TFLOP/s by kernel. A key names an instance as
`make cuda-check` does, and may go on with the mask and the length:

    {"fwd_hd128_plain_float16": 208.0, "fwd_hd128_plain_float16/causal/4096": 190.5}

The longest key that fits counts. Keys of no case, and entries that are no numbers, are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flash_attn2.bench.cases import Case
from tools.gpu_report.cases import mask

Predictions = Mapping[str, float]


def read(path: Path) -> Predictions:
    """ValueError where the file is no JSON object."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object of TFLOP/s by kernel")
    return {
        key: float(value)
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def of(predictions: Predictions, mode: str, case: Case) -> float | None:
    """TFLOP/s of a case of the sweep; None where nothing is said, as of both passes together."""
    kernel = f"{mode}_hd{case.head_dim}_plain_{case.dtype}"
    seqlen = case.seqlens[0]
    for end in (f"/{mask(case.causal)}/{seqlen}", f"/{seqlen}", f"/{mask(case.causal)}", ""):
        if kernel + end in predictions:
            return predictions[kernel + end]
    return None
