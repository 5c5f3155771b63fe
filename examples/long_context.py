"""Long sequences in linear memory: full causal attention, and a sliding window with a sink.

python examples/long_context.py [seqlen]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from flash_attn2 import flash_attn_func

NUM_HEADS, NUM_HEADS_KV, HEAD_DIM = 8, 2, 64
WINDOW = 1024


def main(seqlen: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(1, seqlen, NUM_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    k, v = torch.randn(2, 1, seqlen, NUM_HEADS_KV, HEAD_DIM, dtype=torch.bfloat16)
    # A logit per head that joins the softmax: how much a query may attend to nothing.
    sink = torch.zeros(NUM_HEADS)

    scores = NUM_HEADS * seqlen**2 * q.element_size()
    print(f"{seqlen} tokens; the matrix of scores would take {scores / 2**30:.1f} GiB")
    calls: dict[str, Callable[[], object]] = {
        "causal": lambda: flash_attn_func(q, k, v, causal=True),
        f"window of {WINDOW} and a sink": lambda: flash_attn_func(
            q, k, v, causal=True, window_size=(WINDOW - 1, 0), sink=sink
        ),
    }
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        print(f"{name:<26}{time.perf_counter() - start:7.3f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16384)
