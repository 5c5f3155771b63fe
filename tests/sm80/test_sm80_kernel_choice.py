"""Calls whose sequences go to different kernels, in the emulator: each to one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cache_cases import check_kvcache
from support import Target, cumulative, lengths

from flash_attn2._impl import backends

HEAD_DIM = 64
# Queries and keys: few queries; a tile of them or less, with keys that are worth splitting, and
# without; more than a tile.
SEQUENCES = {"few": (1, 90), "split": (20, 1100), "tile": (20, 200), "tiles": (150, 100)}

pytestmark = pytest.mark.usefixtures("emulated")


@pytest.mark.parametrize(
    ("num_splits", "written"),
    [
        (0, {"SplitKernel": ["few"], "CombineKernel": ["split"], "FwdKernel": ["tile", "tiles"]}),
        (1, {"SplitKernel": ["few"], "FwdKernel": ["split", "tile", "tiles"]}),
    ],
)
def test_each_sequence_goes_to_one_kernel(num_splits: int, written: dict[str, list[str]]) -> None:
    """Which writes all of its rows, and no other does."""
    target = Target("sm80-emulated", torch.float16)
    rows, keys = zip(*SEQUENCES.values(), strict=True)
    arguments: dict[str, Any] = {
        "q": target.tensor(sum(rows), 1, HEAD_DIM),
        "k_cache": target.tensor(len(keys), max(keys), 1, HEAD_DIM),
        "v_cache": target.tensor(len(keys), max(keys), 1, HEAD_DIM),
        "cu_seqlens_q": cumulative(*rows),
        "cache_seqlens": lengths(*keys),
        "causal": True,
        "num_splits": num_splits,
    }
    module = backends.load("sm80-emulated").module
    module.reset_counters()
    check_kvcache(**arguments)
    counted = module.counters_by_kernel()
    for name, row_bytes in (("out", 2 * HEAD_DIM), ("lse", 4)):
        found = {
            kernel: counters[f"write.{name}.bytes"] / row_bytes
            for kernel, counters in counted.items()
            if counters.get(f"write.{name}.bytes", 0) > 0
        }
        assert found == {
            kernel: sum(SEQUENCES[sequence][0] for sequence in sequences)
            for kernel, sequences in written.items()
        }
