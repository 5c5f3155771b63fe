"""The torch.library ops: torch.compile, export, fake tensors, transforms, autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Case
from support import Target, cumulative, lengths
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn2 import attention_probs, flash_attn_func, flash_attn_varlen_func
from flash_attn2._impl import autograd

CPU = Target("cpu", torch.float32)
DENSE = torch.ops.flash_attn2.forward.default
VARLEN = torch.ops.flash_attn2.varlen_forward.default
DENSE_BACKWARD = torch.ops.flash_attn2.backward.default
VARLEN_BACKWARD = torch.ops.flash_attn2.varlen_backward.default


def dense(seqlen_q: int = 9, seqlen_k: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    return Case(16, 2, seqlen_q, seqlen_k).qkv(CPU)


def required() -> list[Tensor]:
    return [x.requires_grad_() for x in dense()]


def packed() -> tuple[Any, ...]:
    q, k, v = (x.flatten(0, 1) for x in dense())
    return q, k, v, cumulative(5, 13), cumulative(20, 6), lengths(17, 6), 13, 20


OPTIONS: dict[str, tuple[Any, ...]] = {
    "default": (),
    "modified": (0.3, 5, 0, 2.0, torch.rand(4), torch.rand(4)),
    "dropout": (None, -1, -1, 0.0, None, None, 0.5, True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_opcheck(options: tuple[Any, ...]) -> None:
    torch.library.opcheck(DENSE, (*dense(), *options))
    torch.library.opcheck(VARLEN, (*packed(), *options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_opcheck_of_gradients(options: tuple[Any, ...]) -> None:
    for op, gradient_op, (q, k, v, *packing) in (
        (DENSE, DENSE_BACKWARD, dense()),
        (VARLEN, VARLEN_BACKWARD, packed()),
    ):
        results = op(q, k, v, *packing, *options)
        grads = [torch.randn_like(x) for x in results[:2]]
        torch.library.opcheck(gradient_op, (*grads, q, k, v, *results, *packing, *options))
        with_grad = [x.clone().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(op, (*with_grad, *packing, *options))


def test_opcheck_of_packed_inputs() -> None:
    q, k, v, cu_q, cu_k, *_ = packed()
    kv = torch.stack([k, v], 1).requires_grad_()
    torch.library.opcheck(VARLEN, (q, kv, None, cu_q, cu_k, None, 13, 20))
    qkv = torch.randn(2, 9, 3, 4, 16)
    torch.library.opcheck(DENSE, (qkv.requires_grad_(), None, None))
    out, lse, _ = DENSE(qkv.detach(), None, None)
    torch.library.opcheck(DENSE_BACKWARD, (out, None, qkv.detach(), None, None, out, lse, None))


def test_values_without_keys() -> None:
    q, k, v, cu_q, cu_k, *_ = packed()
    with pytest.raises(ValueError, match="k must be given with v"):
        DENSE(q[None], None, v[None])
    with pytest.raises(ValueError, match="k must be given with v"):
        VARLEN(q, None, v, cu_q, cu_k, None, 13, 20)
    out, lse, _ = DENSE(q[None], k[None], v[None])
    with pytest.raises(ValueError, match="k must be given with v"):
        DENSE_BACKWARD(out, None, q[None], None, v[None], out, lse, None)


@pytest.mark.parametrize(
    ("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", False)]
)
def test_compile(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = flash_attn_func(q * 2, k, v, causal=True, softcap=3.0, return_lse=True)
        probs = attention_probs(q, k, causal=True)
        return out.sum(-1) + lse.transpose(1, 2) + probs.square().sum(-1).transpose(1, 2)

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend=backend)
    for shape in ((9, 13), (11, 7), (40, 40)):
        q, k, v = dense(*shape)
        torch.testing.assert_close(compiled(q, k, v), layer(q, k, v))


def test_new_lengths_do_not_recompile() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(flash_attn_func, fullgraph=True, dynamic=True, backend=counter)
    compiled(*dense(9, 11))
    first = counter.frame_count
    for seqlen in (12, 31, 64):
        arguments = dense(seqlen, seqlen + 2)
        assert torch.equal(compiled(*arguments), flash_attn_func(*arguments))
    assert counter.frame_count == first


def test_new_packed_lengths_do_not_recompile() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for seqlens in ((5, 13), (9, 11), (30, 2)):
        q, k, v = (torch.randn(sum(seqlens), 4, 16) for _ in range(3))
        cu = cumulative(*seqlens)
        arguments = (q, k, v, cu, cu, max(seqlens), max(seqlens))
        assert torch.equal(compiled(*arguments), flash_attn_varlen_func(*arguments))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[0]


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_compile_varlen_with_lengths_from_data() -> None:
    """max_seqlen computed from cu_seqlens inside the graph, as model code does."""
    torch._dynamo.reset()

    def layer(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Tensor:
        longest = cu_seqlens.diff().max().item()
        return flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest)

    q, k, v = (torch.randn(18, 4, 16) for _ in range(3))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, cumulative(5, 13)), layer(q, k, v, cumulative(5, 13)))


def test_compiled_dropout_follows_the_generator() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn_func, fullgraph=True, backend="aot_eager")
    q, k, v = dense()
    torch.manual_seed(7)
    expected = flash_attn_func(q, k, v, 0.5)
    torch.manual_seed(7)
    assert torch.equal(compiled(q, k, v, 0.5), expected)
    assert not torch.equal(compiled(q, k, v, 0.5), expected)


def test_export() -> None:
    class Layer(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
            return flash_attn_func(q, k, v, causal=True)

    q, k, v = dense()
    exported = torch.export.export(Layer(), (q, k, v)).module()
    assert torch.equal(exported(q, k, v), flash_attn_func(q, k, v, causal=True))


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_modes_see_the_op() -> None:
    with Recorder() as recorder:
        flash_attn_func(*dense())
        flash_attn_varlen_func(*packed()[:5], 13, 20)
        flash_attn_func(*required()).sum().backward()
    assert {DENSE, VARLEN, DENSE_BACKWARD} <= set(recorder.seen)


def test_profiler_sees_the_op() -> None:
    with torch.profiler.profile() as profile:
        flash_attn_func(*required()).sum().backward()
    seen = {event.name for event in profile.events()}
    assert {"flash_attn2::forward", "flash_attn2::backward"} <= seen


def test_eager_calls_skip_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "ops", None)
    flash_attn_func(*dense())
    flash_attn_func(*required()).sum().backward()


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_fake_tensors(dropout_p: float) -> None:
    def results(*leaves: Tensor) -> tuple[Tensor, ...]:
        results = flash_attn_func(*leaves, dropout_p, return_attn_probs=True)
        return *results, *torch.autograd.grad(results[0].sum(), leaves)

    real = results(*required())
    with FakeTensorMode() as mode:
        fake = results(*(mode.from_tensor(x) for x in required()))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_meta_tensors() -> None:
    q, k, v = (x.to("meta") for x in dense())
    assert flash_attn_func(q, k, v).shape == q.shape
    with pytest.raises(ValueError, match="num_heads"):
        flash_attn_func(q[:, :, :3], k, v)


def test_vmap() -> None:
    stacked = [torch.stack([x, x + 1]) for x in dense()]
    out = torch.vmap(lambda q, k, v: flash_attn_func(q, k, v, causal=True))(*stacked)
    for i in range(2):
        assert torch.equal(out[i], flash_attn_func(*(x[i] for x in stacked), causal=True))


def test_negated_views_are_read_negated() -> None:
    q, k, v = dense()
    assert torch.equal(flash_attn_func(torch._neg_view(q), k, v), flash_attn_func(-q, k, v))
