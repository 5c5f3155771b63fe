"""The dropout mask, bit for bit, and what governs it."""

from __future__ import annotations

import pytest
import torch
from cases import Case
from support import ONE_DTYPE, Target, cumulative, drawn_rng_state, targets
from torch import Tensor

from flash_attn2 import flash_attn_func, flash_attn_varlen_func
from flash_attn2.reference import dropout_keep, philox

LOW_32 = 0xFFFFFFFF


def words(*values: int) -> list[Tensor]:
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
        ((LOW_32,) * 4, -1, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: int, expected: tuple[int, ...]
) -> None:
    """Philox4x32-7 test vectors of Random123 (Salmon et al., SC 2011)."""
    assert tuple(map(int, philox(words(*counter), torch.tensor(key)))) == expected


def kept_entries(target: Target, case: Case, **options: object) -> Tensor:
    """Which entries of P a kernel keeps: with equal scores and one-hot values they are the output.

    Values have one column per key, so keys are looked at head_dim at a time.
    """
    q, k, _ = case.qkv(target)
    seen = []
    for first in range(0, case.seqlen_k, case.head_dim):
        v = torch.zeros_like(k)
        count = min(case.head_dim, case.seqlen_k - first)
        v[:, first : first + count] = torch.eye(count, case.head_dim)[:, None]
        torch.manual_seed(99)
        out = flash_attn_func(torch.zeros_like(q), k, v, **options)
        seen.append(out[..., :count] != 0)
    return torch.cat(seen, -1).transpose(1, 2)


@targets()
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 192, 256])
def test_mask_is_the_reference_mask(head_dim: int, target: Target) -> None:
    case = Case(head_dim, seqlen_q=70, seqlen_k=200, num_heads=2, num_heads_kv=1)
    kept = kept_entries(target, case, dropout_p=0.4)
    q, k, v = case.qkv(target)
    torch.manual_seed(99)
    _, _, probs = flash_attn_func(q, k, v, dropout_p=0.4, return_attn_probs=True)
    assert torch.equal(kept, ~probs.signbit())


@targets(ONE_DTYPE)
def test_mask_follows_coordinates_not_tiles(target: Target) -> None:
    """Masked tiles, another batch size or another number of rows: the same entries are dropped."""
    options = {"dropout_p": 0.5}
    full = kept_entries(target, Case(64, 2, 90, 150), **options)
    causal = kept_entries(target, Case(64, 2, 90, 150), causal=True, **options)
    visible = torch.ones(90, 150, dtype=torch.bool, device=full.device).tril(60)
    assert torch.equal(causal, full & visible)
    assert torch.equal(kept_entries(target, Case(64, 1, 90, 150), **options), full[:1])
    assert torch.equal(kept_entries(target, Case(64, 2, 41, 77), **options), full[:, :, :41, :77])


@targets(ONE_DTYPE)
def test_packed_sequences_have_the_masks_of_a_batch(target: Target) -> None:
    q, k, v = Case(seqlen_q=80, seqlen_k=80).qkv(target)
    torch.manual_seed(3)
    dense = flash_attn_func(q, k, v, dropout_p=0.3)
    cu_seqlens = cumulative(80, 80, device=target.device)
    torch.manual_seed(3)
    packed = flash_attn_varlen_func(
        *(x.flatten(0, 1) for x in (q, k, v)), cu_seqlens, cu_seqlens, 80, 80, dropout_p=0.3
    )
    assert torch.equal(packed, dense.flatten(0, 1))


@targets(ONE_DTYPE)
def test_generator_governs_the_mask(target: Target) -> None:
    q, k, v = Case().qkv(target)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return flash_attn_func(q, k, v, dropout_p=0.5)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    first = run(1)
    assert not torch.equal(first, flash_attn_func(q, k, v, dropout_p=0.5))


def test_no_dropout_draws_nothing() -> None:
    q, k, v = Case().qkv(Target("cpu", torch.float32))
    before = torch.get_rng_state()
    flash_attn_func(q, k, v)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dropout_p", [1e-7, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_rate(dropout_p: float) -> None:
    shape = (2, 4, 256, 512)
    kept = dropout_keep(drawn_rng_state("cpu"), shape, dropout_p)
    dropped = max(round(dropout_p * 65536), 1) / 65536
    deviation = (dropped * (1 - dropped) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - dropped)) <= 4 * deviation


def test_mask_looks_random() -> None:
    """Rows, columns, heads and sequences are dropped independently of one another."""
    kept = dropout_keep(drawn_rng_state("cpu"), (2, 2, 256, 256), 0.5).double() * 2 - 1
    for shift, dim in ((1, 3), (2, 3), (8, 3), (16, 3), (1, 2), (1, 1), (1, 0)):
        correlation = (kept * kept.roll(shift, dim)).mean().item()
        assert abs(correlation) <= 4 / kept.numel() ** 0.5


@targets(ONE_DTYPE)
def test_mean_over_masks_is_attention(target: Target) -> None:
    q, k, v = Case(batch=1, seqlen_q=16, seqlen_k=64).qkv(target)
    plain = flash_attn_func(q, k, v).float()
    mean = sum(flash_attn_func(q, k, v, dropout_p=0.1).float() for _ in range(64)) / 64
    assert (mean - plain).abs().mean() < 0.2 * plain.abs().mean()
