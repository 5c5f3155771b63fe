"""Queries of which only the first ones of each sequence count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import (
    ONE_DTYPE,
    Target,
    assert_lse,
    assert_within_rule,
    cumulative,
    drawn_rng_state,
    lengths,
    targets,
)
from torch import Tensor

from flash_attn2 import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_qkvpacked_func,
)
from flash_attn2.reference import Packing, attention_reference, varlen_attention_reference

USED = (70, 0, 33, 1)
SEQLEN_Q, SEQLEN_K, HEADS, HEADS_KV, HEAD_DIM = 70, 90, 4, 2, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window_size": (20, 3), "softcap": 5.0},
    "alibi": {"alibi_slopes": torch.tensor([0.1, 0.2, 0.3, 0.4]), "causal": True},
    "sink": {"sink": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "dropout": {"dropout_p": 0.3, "causal": True},
}
options_of = pytest.mark.parametrize("name", OPTIONS)


def beyond(device: str) -> Tensor:
    """(batch, seqlen_q): rows that do not count."""
    return torch.arange(SEQLEN_Q, device=device) >= lengths(*USED, device=device)[:, None]


def dense_inputs(target: Target) -> list[Tensor]:
    batch = len(USED)
    shapes = (SEQLEN_Q, HEADS), (SEQLEN_K, HEADS_KV), (SEQLEN_K, HEADS_KV), (SEQLEN_Q, HEADS)
    q, k, v, grad_out = (target.tensor(batch, *shape, HEAD_DIM) for shape in shapes)
    q[beyond(target.device)] = torch.nan  # whatever they hold
    grad_out[beyond(target.device)] = torch.nan
    return [q, k, v, grad_out]


def on(device: str, options: dict[str, Any]) -> dict[str, Any]:
    return {n: x.to(device) if isinstance(x, Tensor) else x for n, x in options.items()}


def gradients(
    out: Tensor, grad_out: Tensor, leaves: list[Tensor], where: Tensor | None = None
) -> list[Tensor]:
    """Of what counts of `out`."""
    if where is not None:
        out, grad_out = out[where], grad_out[where]
    return list(torch.autograd.grad(out, leaves, grad_out))


Results = tuple[Tensor, Tensor, list[Tensor]]  # out, lse, gradients


def assert_right(
    out: Tensor,
    lse: Tensor,
    grads: list[Tensor],
    expected: list[Results],
    counts: Tensor,
    softcap: float,
) -> None:
    """Against the reference in float64 and in the tensors' own dtype."""
    (exact, exact_lse, exact_grads), (low, _, low_grads) = expected
    assert_within_rule("out", out[counts], exact[counts], low[counts])
    assert_lse(lse, exact_lse, softcap)
    for what, *three in zip("qkv", grads, exact_grads, low_grads, strict=True):
        assert_within_rule(f"grad_{what}", *three, factor=3)


@targets()
@options_of
def test_dense(name: str, target: Target) -> None:
    q, k, v, grad_out = dense_inputs(target)
    options = on(target.device, OPTIONS[name])
    used, outside = lengths(*USED, device=target.device), beyond(target.device)
    state = drawn_rng_state(target.device) if "dropout_p" in options else None
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = flash_attn_func(*leaves, **options, seqused_q=used, return_lse=True)
    grads = gradients(out, grad_out, leaves)
    assert (out[outside] == 0).all()
    assert (lse.transpose(1, 2)[outside] == -torch.inf).all()
    assert (grads[0][outside] == 0).all()

    results = []
    for dtype in (torch.float64, target.dtype):
        copies = [x.detach().to(dtype).nan_to_num().requires_grad_() for x in (q, k, v)]
        ref, ref_lse, _ = attention_reference(
            *copies, **options, rng_state=state, lengths_q=used.long()
        )
        results.append((ref, ref_lse, gradients(ref, grad_out.to(dtype), copies, ~outside)))
    assert_right(out, lse, grads, results, ~outside, options.get("softcap", 0.0))


@targets()
@options_of
def test_varlen(name: str, target: Target) -> None:
    rows_q, rows_k, device = (75, 4, 40, 5), (80, 30, 64, 0), target.device
    options, used = on(device, OPTIONS[name]), lengths(*USED, device=device)
    cu_q, cu_k = cumulative(*rows_q, device=device), cumulative(*rows_k, device=device)
    q, k, v, grad_out = (
        target.tensor(sum(rows), heads, HEAD_DIM)
        for rows, heads in (
            (rows_q, HEADS),
            (rows_k, HEADS_KV),
            (rows_k, HEADS_KV),
            (rows_q, HEADS),
        )
    )
    counts = torch.cat([torch.arange(n) < m for n, m in zip(rows_q, USED, strict=True)]).to(device)
    q[~counts] = grad_out[~counts] = torch.nan
    state = drawn_rng_state(device) if "dropout_p" in options else None
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = flash_attn_varlen_func(
        *leaves, cu_q, cu_k, 75, 80, **options, seqused_q=used, return_lse=True
    )
    grads = gradients(out, grad_out, leaves)
    assert (out[~counts] == 0).all()
    assert (lse[:, ~counts] == -torch.inf).all()
    assert (grads[0][~counts] == 0).all()

    packing = Packing(cu_q, cu_k, None, 75, 80, used)
    results = []
    for dtype in (torch.float64, target.dtype):
        copies = [x.detach().to(dtype).nan_to_num().requires_grad_() for x in (q, k, v)]
        ref, ref_lse, _ = varlen_attention_reference(*copies, packing, rng_state=state, **options)
        results.append((ref, ref_lse, gradients(ref, grad_out.to(dtype), copies, counts)))
    assert_right(out, lse, grads, results, counts, options.get("softcap", 0.0))


@targets(ONE_DTYPE)
def test_the_same_bits_as_without_the_other_rows(target: Target) -> None:
    q, k, v, _ = dense_inputs(target)
    used = lengths(*USED, device=target.device)
    out = flash_attn_func(q, k, v, causal=True, seqused_q=used)
    for b, count in enumerate(USED):
        alone = flash_attn_func(q[b : b + 1, :count], k[b : b + 1], v[b : b + 1], causal=True)
        assert torch.equal(out[b : b + 1, :count], alone)


@targets(ONE_DTYPE)
def test_dropout_drops_the_same_entries(target: Target) -> None:
    q, k, v, _ = dense_inputs(target)
    q = q.nan_to_num()
    dropped = []
    for used in (None, lengths(*USED, device=target.device)):
        torch.manual_seed(5)
        _, _, probs = flash_attn_func(
            q, k, v, dropout_p=0.4, seqused_q=used, return_attn_probs=True
        )
        dropped.append(probs < 0)
    counts = ~beyond(target.device)[:, None, :, None]
    assert torch.equal(dropped[0] & counts, dropped[1])
    assert dropped[1].any()


@targets(ONE_DTYPE)
def test_packed_tensors(target: Target) -> None:
    q, k, v, _ = dense_inputs(target)
    used = lengths(*USED, device=target.device)
    expected = flash_attn_func(q, k, v, seqused_q=used)
    assert torch.equal(
        flash_attn_kvpacked_func(q, torch.stack([k, v], 2), seqused_q=used), expected
    )

    q = q.nan_to_num()
    qkv = torch.stack([q, q, q], 2)
    out = flash_attn_qkvpacked_func(qkv, causal=True, seqused_q=used)
    assert torch.equal(out, flash_attn_func(q, q, q, causal=True, seqused_q=used))
    cu_seqlens = torch.arange(5, device=target.device).int() * SEQLEN_Q
    packed = flash_attn_varlen_qkvpacked_func(
        qkv.flatten(0, 1), cu_seqlens, SEQLEN_Q, causal=True, seqused_q=used
    )
    assert (packed.unflatten(0, (4, -1))[beyond(target.device)] == 0).all()


STRIDED = torch.tensor([[3, 9], [5, 9]], dtype=torch.int32)[:, 0]
Q = torch.randn(2, 5, 2, 8)
CU = cumulative(5, 5)


def test_any_stride() -> None:
    expected = flash_attn_func(Q, Q, Q, seqused_q=STRIDED.contiguous())
    assert torch.equal(flash_attn_func(Q, Q, Q, seqused_q=STRIDED), expected)


@pytest.mark.parametrize(
    ("used", "error"),
    [
        ([3, 5], TypeError),
        (torch.tensor([3, 5]), TypeError),
        (lengths(3), ValueError),
        (lengths(3, 5).view(2, 1), ValueError),
        (lengths(3, 6), ValueError),
        (lengths(3, -1), ValueError),
        (lengths(3, 5).to("meta"), ValueError),
    ],
    ids=str,
)
def test_errors(used: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="seqused_q"):
        flash_attn_func(Q, Q, Q, seqused_q=used)
    packed = Q.flatten(0, 1)
    with pytest.raises(error, match="seqused_q"):
        flash_attn_varlen_func(packed, packed, packed, CU, CU, 5, 5, seqused_q=used)


def test_not_over_pages() -> None:
    cache = torch.randn(4, 16, 2, 8)
    table = lengths(0, 1).view(2, 1)
    with pytest.raises(NotImplementedError, match="seqused_q"):
        flash_attn_varlen_func(
            Q.flatten(0, 1), cache, cache, CU, CU, 5, 5, block_table=table, seqused_q=lengths(1, 2)
        )


@pytest.mark.parametrize("varlen", [False, True])
def test_op(varlen: bool) -> None:
    used = lengths(3, 5)
    q, k, v = (torch.randn(2, 5, 2, 8, requires_grad=True) for _ in range(3))
    if varlen:
        flat = [x.flatten(0, 1).detach().requires_grad_() for x in (q, k, v)]
        arguments = (*flat, CU, CU, None, 5, 5)
        torch.library.opcheck(
            torch.ops.flash_attn2.varlen_forward.default, arguments, {"seqused_q": used}
        )
    else:
        op = torch.ops.flash_attn2.forward.default
        torch.library.opcheck(op, (q, k, v), {"seqused_q": used})


def test_compiled() -> None:
    def loss(q: Tensor, used: Tensor) -> Tensor:
        return flash_attn_func(q, Q, Q, causal=True, seqused_q=used).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for used in (lengths(3, 5), lengths(0, 1)):
        leaves = [Q.clone().requires_grad_() for _ in range(2)]
        pairs = zip((loss, compiled), leaves, strict=True)
        grads = [torch.autograd.grad(function(q, used), q)[0] for function, q in pairs]
        assert torch.equal(*grads)
