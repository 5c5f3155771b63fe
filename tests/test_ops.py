"""The torch.library ops: torch.compile, export, fake tensors, transforms, autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Case, Target, cumulative, lengths
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, ops

CPU = Target("cpu", torch.float32)
DENSE = torch.ops.flash_attn2.forward.default
VARLEN = torch.ops.flash_attn2.varlen_forward.default


def dense(seqlen_q: int = 9, seqlen_k: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    return Case(16, 2, seqlen_q, seqlen_k).qkv(CPU)


def packed() -> tuple[Any, ...]:
    q, k, v = (x.flatten(0, 1) for x in dense())
    return q, k, v, cumulative(5, 13), cumulative(20, 6), lengths(17, 6), 13, 20


OPTIONS = (
    (),
    (0.3, 5, 0, 2.0, torch.rand(4), torch.rand(4)),
    (None, -1, -1, 0.0, None, None, 0.5),
)


@pytest.mark.parametrize("options", OPTIONS, ids=["default", "modified", "dropout"])
def test_opcheck(options: tuple[Any, ...]) -> None:
    torch.library.opcheck(DENSE, (*dense(), *options))
    torch.library.opcheck(VARLEN, (*packed(), *options))


@pytest.mark.parametrize(
    ("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", False)]
)
def test_compile(backend: str, dynamic: bool) -> None:
    torch._dynamo.reset()

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse, probs = flash_attn_func(
            q * 2, k, v, causal=True, softcap=3.0, return_attn_probs=True
        )
        return out.sum(-1) + lse.transpose(1, 2) + probs.sum(-1).transpose(1, 2)

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


@pytest.mark.parametrize("which", range(3))
def test_gradients_are_refused(which: int) -> None:
    tensors = list(dense())
    tensors[which].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"flash_attn2::forward .* release 0.2"):
        flash_attn_func(*tensors)
    with torch.no_grad():
        assert not flash_attn_func(*tensors).requires_grad
    with torch.inference_mode():
        flash_attn_func(*tensors)


def test_gradients_of_other_inputs_are_refused() -> None:
    q, k, v = dense()
    with pytest.raises(NotImplementedError, match=r"release 0.2"):
        flash_attn_func(q, k, v, sink=torch.zeros(4, requires_grad=True))
    with pytest.raises(NotImplementedError, match=r"release 0.2"):
        flash_attn_func(q, k, v, alibi_slopes=torch.zeros(4, requires_grad=True))
    with pytest.raises(NotImplementedError, match=r"flash_attn2::varlen_forward .* release 0.2"):
        flash_attn_varlen_func(
            q[0].requires_grad_(), k[0], v[0], cumulative(9), cumulative(13), 9, 13
        )


def test_compiling_refuses_gradients() -> None:
    torch._dynamo.reset()
    q, k, v = dense()
    compiled = torch.compile(flash_attn_func, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"release 0.2"):
        compiled(q.requires_grad_(), k, v)


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
    assert DENSE in recorder.seen
    assert VARLEN in recorder.seen


def test_profiler_sees_the_op() -> None:
    with torch.profiler.profile() as profile:
        flash_attn_func(*dense())
    assert "flash_attn2::forward" in {event.name for event in profile.events()}


def test_eager_calls_skip_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_ops", None)
    flash_attn_func(*dense())


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_fake_tensors(dropout_p: float) -> None:
    real = flash_attn_func(*dense(), dropout_p, return_attn_probs=True)
    with FakeTensorMode() as mode:
        arguments = [mode.from_tensor(x) for x in dense()]
        fake = flash_attn_func(*arguments, dropout_p, return_attn_probs=True)
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
