"""Attention over packed documents: no padding, and no document sees another.

Packs source files of Python's standard library into one batch of bytes, runs causal attention with
grouped heads over all of them at once, and checks every document against running it alone.

    python examples/packed_documents.py
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

from flash_attn2 import flash_attn_func, flash_attn_varlen_func

FILES = ("this.py", "keyword.py", "bisect.py", "colorsys.py", "stat.py", "sched.py")
NUM_HEADS, NUM_HEADS_KV, HEAD_DIM = 8, 2, 64


def read_documents() -> list[torch.Tensor]:
    """The bytes of each file, as int64 (seqlen,)."""
    library = Path(sysconfig.get_path("stdlib"))
    return [torch.tensor(list((library / name).read_bytes())) for name in FILES]


def main() -> None:
    torch.manual_seed(0)
    documents = read_documents()
    lengths = [len(document) for document in documents]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()

    # A first layer with random weights: every byte becomes its queries, keys and values.
    heads = NUM_HEADS + 2 * NUM_HEADS_KV
    embedding = torch.randn(256, heads, HEAD_DIM, dtype=torch.bfloat16)
    q, k, v = torch.split(
        embedding[torch.cat(documents)], [NUM_HEADS, NUM_HEADS_KV, NUM_HEADS_KV], dim=1
    )

    packed = flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max(lengths), max(lengths), causal=True
    )

    print(f"{'document':<18}{'bytes':>7}   largest difference to attention over it alone")
    for index, (name, length) in enumerate(zip(FILES, lengths, strict=True)):
        rows = slice(int(cu_seqlens[index]), int(cu_seqlens[index + 1]))
        alone = flash_attn_func(q[None, rows], k[None, rows], v[None, rows], causal=True)[0]
        difference = (packed[rows] - alone).abs().max().item()
        print(f"{name:<18}{length:>7}   {difference:g}")
        torch.testing.assert_close(packed[rows], alone, rtol=0, atol=0)

    padded = max(lengths) * len(lengths)
    print(f"{sum(lengths)} rows; padding to the longest document would make it {padded}")


if __name__ == "__main__":
    main()
