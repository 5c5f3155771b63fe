"""The closed forms under block masks are what the kernel emulator counts, and little more than what
the masks need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import BUCKETS

from flash_attn2 import masks
from flash_attn2.io import bigbird, flash2, listed
from flash_attn2.io.compare import count_flash2, differences
from flash_attn2.io.counts import Pass
from flash_attn2.io.lists import Step, merged, rows_of
from flash_attn2.io.pieces import forward_ctas
from flash_attn2.io.problem import DEVICES, Attention, Device
from flash_attn2.masks import BlockMask

Direction = Callable[[Attention, BlockMask], Pass]


def drawn(seqlen: int, share: float, seed: int = 0) -> BlockMask:
    """Blocks of all kinds, among them whole rows and columns of none."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-seqlen // 64)
    some_blocks = torch.rand(blocks, blocks, generator=generator) < share
    some_blocks[blocks // 2] = some_blocks[:, blocks // 3] = False
    some = torch.rand(seqlen, seqlen, generator=generator) < 0.5
    partial = torch.rand(blocks, blocks, generator=generator) < 0.4

    def pairs(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(64, 0).repeat_interleave(64, 1)[:seqlen, :seqlen]

    return BlockMask.from_dense(pairs(some_blocks) & (some | ~pairs(partial)))


BIGBIRD = masks.bigbird()
GLOBAL = masks.global_tokens(80)  # in lists that are cut
CASES = {
    "bigbird-1k": (Attention(1024, heads=1), BIGBIRD.build(1024)),
    "bigbird-2k": (Attention(2048, heads=1), BIGBIRD.build(2048)),
    "causal-1k": (Attention(1024, heads=1), (BIGBIRD & masks.causal()).build(1024)),
    **{
        f"d{d}": (Attention(n, heads=2, head_dim=d), drawn(n, 0.5, d))
        for d in BUCKETS
        for n in [384 if d > 32 else 768]
    },
    **{
        f"d{d}/{d_v}": (Attention(384, heads=1, head_dim=d, head_dim_v=d_v), drawn(384, 0.5, d))
        for d, d_v in ((192, 128), (128, 64), (256, 64), (512, 512))
    },
    "ragged": (Attention(432, batch=2, heads=1), drawn(432, 0.4)),
    "cut-rows": (Attention(4352, heads=1, head_dim=32), GLOBAL.build(4352)),
    "cut-columns": (Attention(8448, heads=2, head_dim=32), GLOBAL.build(8448)),
}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("problem", "mask"), CASES.values(), ids=CASES)
def test_form(problem: Attention, mask: BlockMask) -> None:
    counted = count_flash2(problem, mask)
    assert differences(listed.forward(problem, mask), counted.forward) == []
    assert differences(listed.backward(problem, mask), counted.backward) == []


@pytest.mark.usefixtures("emulated")
def test_form_of_part_of_a_bucket() -> None:
    """Forward alone: where one lane copies an entry beside what all copy, the emulator counts
    columns past the head dim apart."""
    problem, mask = Attention(400, heads=1, head_dim=80), drawn(400, 0.6)
    assert differences(listed.forward(problem, mask), count_flash2(problem, mask).forward) == []


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
@pytest.mark.parametrize("head_dim", BUCKETS)
def test_little_more_than_needed(head_dim: int, device: Device) -> None:
    """Of BigBird. Warps rest whose rows or keys do not see a block, however many heads share keys.
    At 16k lists are cut, and pieces are added up."""
    for seqlen, most in ((2**11, 1.005), (2**14, 1.02)):
        problem = Attention(seqlen, heads=4, head_dim=head_dim, device=device)
        forward, backward = bigbird.forward(problem), bigbird.backward(problem)
        needs = bigbird.needs(problem)
        assert forward.memory.asked <= most * needs.forward_bytes
        assert forward.mma == needs.forward_mma
        assert backward.mma == needs.backward_mma


def test_all_blocks_listed_are_dense() -> None:
    problem = Attention(1024)
    mask = masks.window(None, None).build(1024)
    found, dense = listed.forward(problem, mask), flash2.forward(problem)
    assert (found.mma, found.main.ctas) == (dense.mma, dense.main.ctas)
    assert found.main.shared == dense.main.shared
    assert found.main.balance == dense.main.balance
    for name, traffic in dense.main.reads.items():
        assert found.main.reads[name] == traffic
    assert listed.backward(problem, mask).mma == flash2.backward(problem).mma


def test_nothing_listed_reads_nothing() -> None:
    problem = Attention(512)
    mask = masks.global_tokens(0).build(512)
    kernels = listed.forward(problem, mask).kernels + listed.backward(problem, mask).kernels
    read = {name for kernel in kernels for name, traffic in kernel.reads.items() if traffic.asked}
    assert sum(kernel.mma for kernel in kernels) == 0
    assert read == {"block_mask_offsets", "out", "grad_out", "lse", "workspace"}


@pytest.mark.parametrize("direction", [listed.forward, listed.backward])
@pytest.mark.parametrize(
    ("problem", "mask", "message"),
    [
        (Attention(1024, causal=True), BIGBIRD.build(1024), "must not be causal"),
        (Attention(1024), BIGBIRD.build(1024, 2048), "got seqlen_q=1024, seqlen_k=2048"),
        (Attention(512), masks.bigbird(heads=4).build(512, heads=4), "batch 1 and heads 4"),
    ],
)
def test_refused(direction: Direction, problem: Attention, mask: BlockMask, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        direction(problem, mask)


@pytest.mark.parametrize("rows_each", [1, 2])
def test_pieces_are_all_of_a_list(rows_each: int) -> None:
    rows = rows_of((GLOBAL | masks.random_blocks(30, seed=1)).build(64 * 301))
    whole = [merged(rows[i : i + rows_each], rows_each) for i in range(0, len(rows), rows_each)]
    found: list[list[Step]] = [[] for _ in whole]
    ctas = forward_ctas(rows, rows_each)
    for cta in ctas:
        found[cta.block] = [*cta.steps, *found[cta.block]]  # pieces come from the last keys on
    assert found == whole
    cut = [cta for cta in ctas if cta.pieces > 1]
    assert len(cut) >= 4
    sizes = [sum(step.listed for step in cta.steps) for cta in cut]
    assert max(sizes) <= 2 * min(sizes)


def test_long_lists_are_balanced() -> None:
    """64 global tokens at 64k, which one CTA for each head went through."""
    problem = Attention(2**16, heads=12)
    assert bigbird.forward(problem).main.balance <= 1.15
    assert bigbird.backward(problem).main.balance <= 1.15
