"""What the `io` command prints, and the page of the documentation that it writes."""

from __future__ import annotations

from collections.abc import Sequence

from flash_attn2.io import decoding_report, report
from flash_attn2.io.claims import Claim
from flash_attn2.io.problem import Attention

_LEGEND = """\
Forward and backward pass of one attention, from closed forms over the plans of the kernels.

- *asked*: bytes of global memory that CTAs ask for, in sectors of 32, reads and writes; what is
  added to counts twice. *Perfect L2*: each sector once a launch.
- *shared*: 128 bytes for each pass through the banks of shared memory. *MMAs*: tensor-core
  instructions of a warp, m16n8k16.
- *balance*: time until the last CTA of the kernel with most MMAs ends, over that of all
  multiprocessors evenly filled.
- *peak memory*: in training. Standard: P, dP and dS with q, k, v, out, dO and dV; the others: q, k,
  v, out, lse, all gradients, and the workspace (sums of dQ in float32); BigBird: also the mask, and
  in the workspace its lists by keys, and what pieces of long lists leave.

*Standard* is products and softmax as kernels of their own (`csrc/sm80/standard`), in tiles of
128 x 128; a causal mask saves it nothing. *FlashAttention-1* is `csrc/sm80/flash1`, for heads of
64. *FlashAttention-2* is what this package runs. *BigBird* is the same under a block mask,
`masks.bigbird()`: 64 global tokens, 128 keys to each side and three random blocks of 64 for each
block of queries; the long lists of global tokens are cut into pieces, a CTA for each.
`io --emulate` runs all of them in the kernel emulator, where it is built, and compares its counters
with the forms.
"""

_NEEDS = """\
BigBird beside what its lists name: the bytes of Q, O, lse, the listed K and V, 16 for each listed
block that a CTA goes through and 512 for the bits of one that is seen in part; the MMAs of the
listed blocks of 64 x 64 pairs."""


def text(
    problems: Sequence[Attention], found: Sequence[report.Row], papers: Sequence[Claim]
) -> str:
    first = problems[0]
    mask = "causal" if first.causal else "no mask"
    return "\n".join(
        (
            f"Heads: {first.heads} of {first.widths}, {mask}, float16 or bfloat16, "
            f"{first.device.name} ({first.device.sm_count} multiprocessors).",
            "",
            report.traffic_table(found),
            "",
            report.work_table(found),
            "",
            _NEEDS,
            "",
            report.needs_table(problems, found),
            "",
            "What the papers say, and what is counted here:",
            "",
            report.claims_table(papers),
            "",
        )
    )


def docs(
    problems: Sequence[Attention], found: Sequence[report.Row], papers: Sequence[Claim]
) -> str:
    return "\n".join(
        (
            "# What one attention moves and stores",
            "",
            "<!-- Written by `make io-page`; do not edit. -->",
            "",
            _LEGEND,
            text(problems, found, papers),
            decoding_report.LEGEND,
            "",
            decoding_report.table(decoding_report.PAGES_PROBLEMS),
            "",
        )
    )
