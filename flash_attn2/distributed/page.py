"""The page of the documentation that the `plan` command writes."""

from __future__ import annotations

from flash_attn2.distributed.cluster import Cluster
from flash_attn2.distributed.masks_by_name import pattern_of
from flash_attn2.distributed.report import human
from flash_attn2.distributed.schemes import Attention, rows, seconds, table
from flash_attn2.io.report import markdown

_INTRODUCTION = """\
# Plans of context parallelism

<!-- Written by `python -m flash_attn2 plan --docs docs/plans.md`; do not edit. -->

How one attention of a long sequence could be divided among GPUs, by
`python -m flash_attn2 plan`. **Nothing on this page was measured.** Bytes, rows and work are
counted and exact; times and shares of ideal are predictions of a plain model:

- a GPU does its visible pairs at one speed, whatever the sizes (backward: 2.5 times the work);
- a ring sends keys and values, and backward also float32 sums of their gradients, beside kernels,
  and is hidden as far as kernels take as long; a gather likewise, but for its first slice of heads;
- the exchange of rows for heads waits for kernels, and they for it;
- a link has one bandwidth and no latency; nothing disturbs anything else.

What was not run yet: more than one GPU, NCCL, and any of this at these sizes. All schemes run on
processes with CPU tensors, by the CPU's kernels and by those for CUDA in an emulator.

*sent* and *held* are of the rank with most; held is what it needs beside its own rows in the
forward pass. *hidden* is the share of keys, values and gradients whose sending kernels hide.
`ring 64` is 64 ranks around which all heads go, `ring 8 x heads 8` a ring of 8 nodes within which
8 ranks share heads.
"""

_CASES = (
    ("One node, 128k tokens", 2**17, 8, "causal"),
    ("64 GPUs, 1M tokens", 2**20, 64, "causal"),
    ("2,048 GPUs, 1M tokens", 2**20, 2048, "causal"),
    ("64 GPUs, 1M tokens in 49 documents", 2**20, 64, "documents:49"),
    ("256 GPUs, 1M tokens, BigBird's mask", 2**20, 256, "bigbird"),
)

_PUBLISHED = """\
## Beside published figures

Measured by others on real machines, and what the model predicts for as many GPUs. It leaves out
what kernels lose on short pieces, launches, latencies and all that is not attention, so it should
be above them. 64k tokens are taken where a figure says no length.
"""

# What was published: by whom, on what, the scheme, forward and forward with backward, in percent.
_ZIGZAG, _GATHER = "ring 8", "gather 8"
_FIGURES = (
    ("ring-flash-attention", "8 x H800", "zigzag ring", "85.2% / 90.2%", 2**16, 8, _ZIGZAG, 170.0),
    ("ring-flash-attention", "8 x A100", "zigzag ring", "82% / 90%", 2**16, 8, _ZIGZAG, 250.0),
    ("ring-flash-attention", "8 x H800", "Llama-3 gather", "57% / 58%", 2**16, 8, _GATHER, 170.0),
    ("Llama 3 405B, prefill", "128 x H100", "ring of 16 nodes", "93% / -", 2**20, 128,
     "ring 16 x heads 8", 400.0),
)  # fmt: skip
_FLOPS = {"H800": 400e12, "A100": 200e12, "H100": 400e12}
_LLAMA_HEADS = 128


def about(attention: Attention, mask: str) -> str:
    """What a table is of."""
    a, cluster = attention, attention.cluster
    return (
        f"{a.seqlen} tokens, mask {mask}, {a.num_heads} heads of {a.head_dim} on "
        f"{a.num_heads_kv}, bfloat16; {a.ranks} GPUs of {human(cluster.flops, 'FLOP/s')}, "
        f"{cluster.node_size} a node, "
        f"{human(cluster.node_bandwidth, 'B/s')} within it and "
        f"{human(cluster.network_bandwidth, 'B/s')} to others."
    )


def docs() -> str:
    parts = [_INTRODUCTION]
    for title, seqlen, gpus, mask in _CASES:
        attention = Attention(seqlen, gpus, 32, 8, 128, pattern_of(mask, seqlen), Cluster())
        found = rows(attention)
        parts += [f"## {title}", "", about(attention, mask), "", table(found), ""]
    return "\n".join([*parts, _PUBLISHED, _published(), ""])


def _published() -> str:
    header = ("published by", "on", "scheme", "fwd / fwd+bwd", "predicted", "fwd")
    body = []
    for who, machine, scheme, figures, seqlen, gpus, name, link in _FIGURES:
        cluster = Cluster(_FLOPS[machine.split()[-1]], link * 1e9)
        heads = _LLAMA_HEADS if who.startswith("Llama") else 32
        attention = Attention(seqlen, gpus, heads, 8, 128, pattern_of("causal", seqlen), cluster)
        row = next(row for row in rows(attention) if row.scheme == name)
        predicted = f"{row.report.forward.share:.1%} / {row.report.both.share:.1%}"
        body.append((who, machine, scheme, figures, predicted, seconds(row.report.forward.total)))
    return markdown(header, body)
