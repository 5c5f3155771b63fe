"""The reference against torch's own attention in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support import TANH_ERROR, assert_lse
from torch import Tensor

from flash_attn2.reference import attention_reference


def qkv(
    seqlen_q: int = 23, seqlen_k: int = 37, num_heads: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    def tensor(seqlen: int) -> Tensor:
        return torch.randn(2, seqlen, num_heads, 16, dtype=torch.float64)

    return tensor(seqlen_q), tensor(seqlen_k), tensor(seqlen_k)


def torch_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first, attn_mask=bias).transpose(1, 2)


def position_difference(seqlen_q: int, seqlen_k: int) -> Tensor:
    """Of each query to each key, bottom-right aligned."""
    return torch.arange(seqlen_q)[:, None] + seqlen_k - seqlen_q - torch.arange(seqlen_k)


def test_plain() -> None:
    q, k, v = qkv()
    out, lse, probs = attention_reference(q, k, v)
    torch.testing.assert_close(out, torch_attention(q, k, v))
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 4, 23, dtype=torch.float64))
    s = torch.einsum("bihd,bjhd->bhij", q, k) / 4
    torch.testing.assert_close(lse, s.logsumexp(-1))


def test_causal_and_windows() -> None:
    q, k, v = qkv()
    difference = position_difference(23, 37)
    for options, visible in (
        ({"causal": True}, difference >= 0),
        ({"window_size": (5, 3)}, (difference <= 5) & (difference >= -3)),
        ({"window_size": (5, 3), "causal": True}, (difference <= 5) & (difference >= 0)),
        ({"window_size": (-1, 2)}, difference >= -2),
    ):
        out, _, probs = attention_reference(q, k, v, **options)
        torch.testing.assert_close(out, torch_attention(q, k, v, visible))
        assert torch.equal(probs != 0, visible.expand(probs.shape))


def test_causal_documented_example() -> None:
    """The mask of flash-attn's documentation for five queries and two keys."""
    q, k, v = qkv(5, 2)
    out, lse, probs = attention_reference(q, k, v, causal=True)
    visible = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0], [1, 1]], dtype=torch.bool)
    assert torch.equal(probs != 0, visible.expand(probs.shape))
    assert torch.equal(out[:, :3], torch.zeros(2, 3, 4, 16, dtype=torch.float64))
    assert (lse[..., :3] == -torch.inf).all()


def test_alibi() -> None:
    q, k, v = qkv()
    difference = position_difference(23, 37).abs()
    for slopes in (torch.rand(4), torch.rand(2, 4)):
        bias = -slopes.double()[..., None, None] * difference
        out, *_ = attention_reference(q, k, v, alibi_slopes=slopes)
        torch.testing.assert_close(out, torch_attention(q, k, v, bias.expand(2, 4, 23, 37)))


def test_softcap_bounds_scores_and_vanishes_in_the_limit() -> None:
    q, k, v = qkv()
    plain, *_ = attention_reference(q, k, v)
    torch.testing.assert_close(attention_reference(q, k, v, softcap=1e6)[0], plain)
    _, _, probs = attention_reference(100 * q, k, v, softcap=1.0)
    assert (probs.amax(-1) / probs.amin(-1)).max() <= torch.e**2 + 1e-9


@pytest.mark.parametrize("softcap", [0.5, 5.0, 50.0])
def test_what_a_devices_tanh_does_to_lse(softcap: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is seen by the rule for exact ones, and is within that for such a tanh."""
    q, k, v = (5 * x for x in qkv())
    exact = attention_reference(q, k, v, softcap=softcap)[1]

    def erring(x: Tensor, tanh: Callable[[Tensor], Tensor] = torch.tanh) -> Tensor:
        return tanh(x) * (1 + TANH_ERROR * torch.randn_like(x).sign())

    monkeypatch.setattr(torch, "tanh", erring)
    for _ in range(3):
        lse = attention_reference(q, k, v, softcap=softcap)[1].float()
        monkeypatch.delenv("FLASH_ATTN2_EMULATOR", raising=False)
        with pytest.raises(AssertionError, match="not close"):
            assert_lse(lse, exact, softcap)
        monkeypatch.setenv("FLASH_ATTN2_EMULATOR", "seed=1,approx=worst")
        assert_lse(lse, exact, softcap)
        with pytest.raises(AssertionError, match="not close"):
            assert_lse(lse + 2 * TANH_ERROR * softcap + 1e-4, exact, softcap)


def test_sink_is_a_key_whose_value_is_zero() -> None:
    q, k, v = qkv(num_heads=1)
    sink = torch.tensor([0.7])
    out, lse, _ = attention_reference(q, k, v, sink=sink)
    bias = torch.zeros(23, 38, dtype=torch.float64)
    bias[:, -1] = sink.double()
    with_zero = [torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v)]
    torch.testing.assert_close(out, torch_attention(q, *with_zero, bias))
    _, plain, _ = attention_reference(q, k, v)
    torch.testing.assert_close(lse, torch.logaddexp(plain, sink.double()))


def test_heads_are_grouped_in_order() -> None:
    q, k, v = qkv()
    shared_k, shared_v = k[:, :, :2], v[:, :, :2]
    repeated = (x.repeat_interleave(2, 2) for x in (shared_k, shared_v))
    out, *_ = attention_reference(q, shared_k, shared_v)
    torch.testing.assert_close(out, torch_attention(q, *repeated))


def test_dropout_is_applied_after_the_softmax() -> None:
    q, k, v = qkv()
    rng_state = torch.tensor([3, 4])
    out, lse, probs = attention_reference(q, k, v, dropout_p=0.25, rng_state=rng_state)
    _, plain_lse, plain_probs = attention_reference(q, k, v)
    assert torch.equal(lse, plain_lse)
    assert torch.equal(probs.abs(), plain_probs)
    kept = probs * (probs > 0) / 0.75
    torch.testing.assert_close(out, torch.einsum("bhij,bjhd->bihd", kept, v))
