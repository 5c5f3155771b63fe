"""NaN and infinity in the inputs come out where standard attention has them, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from cases import Case
from support import TARGETS, Target, targets
from torch import Tensor

from flash_attn2 import flash_attn_func
from flash_attn2.reference import attention_reference

SOME_TARGETS = [target for target in TARGETS if target.dtype is not torch.float64]
NAN, INF = float("nan"), float("inf")


def assert_same_specials(q: Tensor, k: Tensor, v: Tensor, **options: object) -> None:
    """NaN and infinities where the reference has them; the rest is near."""
    out, lse, _ = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    exact, exact_lse, _ = attention_reference(q.double(), k.double(), v.double(), **options)
    torch.testing.assert_close(out.double(), exact, atol=0.03, rtol=0.03, equal_nan=True)
    # An infinite score makes the row NaN; its lse may be NaN or infinite.
    lse = torch.where(exact_lse == INF, lse.nan_to_num(nan=INF), lse)
    torch.testing.assert_close(lse.double(), exact_lse, atol=1e-4, rtol=1e-4, equal_nan=True)


@targets(SOME_TARGETS)
@pytest.mark.parametrize("special", [NAN, INF, -INF], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_query(special: float, causal: bool, target: Target) -> None:
    q, k, v = Case().qkv(target)
    q[1, 50, 2, 7] = special
    assert_same_specials(q, k, v, causal=causal)


@targets(SOME_TARGETS)
@pytest.mark.parametrize("row", [0, 100, 202])
def test_nan_key_reaches_the_rows_that_see_it(row: int, target: Target) -> None:
    q, k, v = Case(seqlen_q=203, seqlen_k=203).qkv(target)
    k[1, row, 1, 7] = NAN
    assert_same_specials(q, k, v, causal=True)


@targets(SOME_TARGETS)
def test_key_of_minus_infinite_score_is_as_if_masked(target: Target) -> None:
    q, k, v = Case().qkv(target)
    q[..., 0] = 1
    k[1, 60, 1] = 0
    k[1, 60, 1, 0] = -INF
    q[:, :, :, 1:] = q[:, :, :, 1:].abs()
    assert_same_specials(q, k, v)


@targets(SOME_TARGETS)
@pytest.mark.parametrize("special", [NAN, INF, -INF], ids=str)
def test_value_reaches_its_column(special: float, target: Target) -> None:
    q, k, v = Case().qkv(target)
    v[0, 77, 1, 5] = special
    assert_same_specials(q, k, v)


@targets(SOME_TARGETS)
def test_infinities_of_both_signs_make_nan(target: Target) -> None:
    q, k, v = Case().qkv(target)
    v[0, 7, 0, 5] = INF
    v[0, 170, 0, 5] = -INF
    assert_same_specials(q, k, v)


@targets(SOME_TARGETS)
@pytest.mark.parametrize("special", [NAN, INF], ids=str)
def test_sink(special: float, target: Target) -> None:
    q, k, v = Case().qkv(target)
    sink = torch.tensor([0.0, special, 0.0, -INF], device=target.device)
    out, _, _ = flash_attn_func(q, k, v, return_attn_probs=True, sink=sink)
    plain = flash_attn_func(q, k, v)
    assert out[:, :, 1].isnan().all()
    assert torch.equal(out[:, :, 3], plain[:, :, 3])
    assert not out[:, :, [0, 2]].isnan().any()
