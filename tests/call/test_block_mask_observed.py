"""Calls with `block_mask` that something observes, transforms or differentiates."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support import cumulative, mask_arguments
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vjp, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from flash_attn2 import flash_attn_func, flash_attn_varlen_func
from flash_attn2.masks import BlockMask
from flash_attn2.nn import Attention

SEQLEN_Q, SEQLEN_K = 70, 130


def drawn_pairs(batch: int = 1, heads: int = 1) -> Tensor:
    pairs = torch.rand(batch, heads, SEQLEN_Q, SEQLEN_K) < 0.3
    pairs[..., :64, 64:128] = False
    pairs[..., 64:, :64] = True
    return pairs


def drawn_mask(batch: int = 1, heads: int = 1) -> BlockMask:
    return BlockMask.from_dense(drawn_pairs(batch, heads))


def drawn_qkv(dtype: torch.dtype = torch.float32, head_dim: int = 8) -> list[Tensor]:
    q = torch.randn(2, SEQLEN_Q, 4, head_dim, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(2, SEQLEN_K, 2, head_dim, dtype=dtype, requires_grad=True) for _ in "kv")
    return [q, k, v]


def loss(q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask | None = None) -> Tensor:
    out, lse = flash_attn_func(q, k, v, softcap=5.0, block_mask=block_mask, return_lse=True)
    return out.square().sum() + lse.masked_fill(lse.isinf(), 0).sum()


def gradients(function: Any, qkv: list[Tensor], mask: BlockMask | None) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*qkv, block_mask=mask), qkv)


def test_gradcheck() -> None:
    pairs = torch.rand(1, 2, 6, 70) < 0.4
    pairs[0, 0, 2] = False
    q = torch.randn(1, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 70, 2, 2, dtype=torch.float64, requires_grad=True) for _ in "kv")
    sink = torch.randn(2)  # whose gradient is float32: too coarse for this
    attend = functools.partial(flash_attn_func, sink=sink, block_mask=BlockMask.from_dense(pairs))
    assert torch.autograd.gradcheck(attend, (q, k, v), atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 4)])
def test_opcheck(sizes: tuple[int, int]) -> None:
    given = mask_arguments(drawn_mask(*sizes))
    q, k, v = drawn_qkv()
    torch.library.opcheck(torch.ops.flash_attn2.forward.default, (q, k, v), given)
    q, k, v = (x.detach() for x in (q, k, v))
    out, lse, _ = torch.ops.flash_attn2.forward(q, k, v, **given)
    arguments = (torch.randn_like(out), None, q, k, v, out, lse, None)
    torch.library.opcheck(torch.ops.flash_attn2.backward.default, arguments, given)


def test_compiled() -> None:
    """With a mask for an argument, and one that is always the same."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    qkv, masks = drawn_qkv(), [drawn_mask(2, 2) for _ in range(2)]
    for mask in masks:
        expected, actual = (gradients(f, qkv, mask) for f in (loss, compiled))
        assert all(map(torch.equal, actual, expected))
    assert counter.frame_count <= 2  # the numbers of entries may become dynamic
    constant = functools.partial(loss, block_mask=masks[0])
    compiled = torch.compile(lambda *qkv: constant(*qkv), fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*qkv), qkv)
    assert all(map(torch.equal, actual, gradients(loss, qkv, masks[0])))


def test_compiled_errors_name_the_argument() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="eager")
    q, k, v = drawn_qkv()
    with pytest.raises(Exception, match="block_mask must be for the lengths"):
        compiled(q[:, 1:], k, v, block_mask=drawn_mask())


class Model(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask) -> Tensor:
        out: Any = flash_attn_func(q, k, v, block_mask=block_mask)
        return out  # type: ignore[no-any-return]


def test_exported() -> None:
    mask = drawn_mask(1, 2)
    qkv = tuple(x.detach() for x in drawn_qkv())
    program = torch.export.export(Model(), (*qkv, mask))
    expected = flash_attn_func(*qkv, block_mask=mask)
    assert torch.equal(program.module()(*qkv, mask), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    qkv, mask = drawn_qkv(), drawn_mask(2, 1)

    def recomputed(*qkv: Tensor, block_mask: BlockMask) -> Any:
        return checkpoint(lambda *x: loss(*x, block_mask=block_mask), *qkv, use_reentrant=reentrant)

    found = []
    for function in (recomputed, loss):
        function(*qkv, block_mask=mask).backward()
        found.append([x.grad for x in qkv])
        for x in qkv:
            x.grad = None
    assert all(map(torch.equal, *found))


def test_functional_gradients() -> None:
    qkv, mask = drawn_qkv(), drawn_mask(2, 2)
    expected = gradients(loss, qkv, mask)
    actual = grad(loss, (0, 1, 2))(*qkv, mask)
    assert all(map(torch.equal, actual, expected))
    _, pull = vjp(functools.partial(loss, block_mask=mask), *qkv)
    assert all(map(torch.equal, pull(torch.tensor(1.0)), expected))


def test_vmap() -> None:
    mask = drawn_mask(1, 2)
    several = [torch.randn(3, *x.shape) for x in drawn_qkv()]
    attend = functools.partial(flash_attn_func, block_mask=mask)
    out = vmap(attend)(*several)
    for i in range(3):
        assert torch.equal(out[i], attend(*(x[i] for x in several)))
    grads = vmap(grad(functools.partial(loss, block_mask=mask), (0, 1, 2)))(*several)
    for i in range(3):
        one = [x[i].requires_grad_() for x in several]
        assert all(map(torch.equal, (x[i] for x in grads), gradients(loss, one, mask)))


def test_vmap_does_not_map_masks() -> None:
    one = drawn_mask(1, 2)
    lists = [torch.stack([x, x]) for x in mask_arguments(one).values()]
    q, k, v = (x.detach() for x in drawn_qkv())

    def attend(*lists: Tensor) -> Any:
        names = mask_arguments(one)
        return torch.ops.flash_attn2.forward(q, k, v, **dict(zip(names, lists, strict=True)))

    with pytest.raises(ValueError, match=r"block_mask must be one for all that torch.vmap maps"):
        vmap(attend)(*lists)


def test_autocast() -> None:
    qkv, mask = [x.detach() for x in drawn_qkv()], drawn_mask()
    with torch.autocast("cpu", torch.bfloat16):
        out = flash_attn_func(*qkv, block_mask=mask)
    assert out.dtype == torch.bfloat16
    expected = flash_attn_func(*(x.bfloat16() for x in qkv), block_mask=mask)
    assert torch.equal(out, expected)


def test_flops_are_those_without() -> None:
    counts = []
    for mask in (None, drawn_mask()):
        with FlopCounterMode(display=False) as counter:
            gradients(loss, drawn_qkv(), mask)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_saved_tensors_may_move() -> None:
    """Hooks see the tensors of the mask as well."""
    qkv, mask = drawn_qkv(), drawn_mask(2, 4)
    expected = gradients(loss, qkv, mask)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        actual = gradients(loss, qkv, mask)
    assert all(map(torch.equal, actual, expected))


def test_documents_are_packed_sequences() -> None:
    """What the errors of the varlen functions advise."""
    seqlens = (40, 1, 65, 94)
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(seqlens))
    mask = BlockMask.from_dense(ids[:, None] == ids)
    rows = [torch.randn(200, heads, 8) for heads in (4, 2, 2)]
    cu = cumulative(*seqlens)
    expected = flash_attn_varlen_func(*rows, cu, cu, 94, 94)
    out = flash_attn_func(*(x[None] for x in rows), block_mask=mask)
    torch.testing.assert_close(out[0], expected)


def test_module() -> None:
    attention = Attention(32, 4, 2)
    x = torch.randn(2, SEQLEN_Q, 32)
    pairs = torch.rand(SEQLEN_Q, SEQLEN_Q) < 0.5
    out = attention(x, block_mask=BlockMask.from_dense(pairs))
    q, k, v = (t.transpose(1, 2) for t in attention.project(x))
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=pairs, enable_gqa=True
    )
    expected = attention.out_proj(expected.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(out, expected)
