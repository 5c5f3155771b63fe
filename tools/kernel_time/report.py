"""Predictions as a table."""

from __future__ import annotations

from collections.abc import Sequence

from tools.kernel_time.predict import Prediction
from tools.kernel_time.published import LENGTHS

_HEAD = (
    *("kernel", "machine", "policy", "CTAs", "cycles", "tensor", "MUFU", "shared", "issue"),
    *("full", "causal", "error", "bottleneck"),
)


def _cells(prediction: Prediction) -> tuple[str, ...]:
    busy = prediction.steady.busy
    return (
        *(prediction.instance, prediction.machine, prediction.policy, str(prediction.slots)),
        f"{prediction.cycles_per_tile:.0f}",
        *(f"{busy[unit]:.0%}" for unit in ("tensor", "special", "shared", "issue")),
        "/".join(f"{value:.0f}" for value in prediction.full),
        "/".join(f"{value:.0f}" for value in prediction.causal),
        *(prediction.error, prediction.bottleneck),
    )


def table(predictions: Sequence[Prediction]) -> str:
    """A line for each prediction.

    ``cycles``: of an SM for one step of one CTA, all of its slots taken. Then how busy its units
    are meanwhile. ``full`` and ``causal``: TFLOP/s by the FlashAttention-2 paper's protocol, at
    ``LENGTHS``. ``error``: how far off they may be, going by what was published.
    """
    rows = [_HEAD, *map(_cells, predictions)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lengths = ", ".join(map(str, LENGTHS))
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, f"full, causal: TFLOP/s at {lengths} tokens"])
