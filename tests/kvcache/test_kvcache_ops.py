"""The ops around a KV cache: torch.compile with caches updated in place, fakes, signature."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from cache_cases import CacheCase
from support import TORCH, Target, cumulative, lengths
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache, kvcache
from flash_attn2._impl import autograd
from flash_attn2._impl.forms import Form
from flash_attn2._impl.problem import Problem

CPU = Target("cpu", torch.float32)
APPEND = torch.ops.flash_attn2.kvcache_append_forward.default
FORWARD = torch.ops.flash_attn2.kvcache_forward.default
REQUIRED = inspect.Parameter.empty

CASES = {
    "dense": CacheCase(head_dim=16, new="neox"),
    "paged": CacheCase(head_dim=16, page_size=16, new="interleaved", leftpad=True),
    "packed": CacheCase(head_dim=16, page_size=16, packed=True, more_new=2),
    "rows_of_the_cache": CacheCase(head_dim=16, batch_idx=True, modifier="sink"),
    "int_lengths": CacheCase(head_dim=16, int_lengths=True, new="partial", mask="full"),
    "read_only": CacheCase(head_dim=16, page_size=48, new="none", modifier="alibi", num_splits=3),
}


def finite(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without the NaN, which tools that compare tensors take for differences."""
    for name in ("k_cache", "v_cache"):
        arguments[name] = arguments[name].nan_to_num_()
    return arguments


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def op_and_arguments(arguments: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The op of this call, and what it gets."""
    seen: list[Any] = []

    def record(form: Form, p: Problem) -> tuple[Tensor, Tensor]:
        seen.extend((form, p))
        return p.q, p.q

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvcache, "attend", record)
        flash_attn_with_kvcache(**arguments)
    form, p = seen
    return getattr(torch.ops.flash_attn2, form.op).default, form.signature.flatten(p)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_opcheck(case: CacheCase) -> None:
    torch.library.opcheck(*op_and_arguments(finite(case.arguments(CPU))))


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "aot_eager") for name in CASES), ("packed", "inductor")]
)
def test_compile(name: str, backend: str) -> None:
    torch._dynamo.reset()
    case = CASES[name]

    def layer(q: Tensor, **arguments: Any) -> Tensor:
        out, lse = flash_attn_with_kvcache(q * 2, **arguments, return_softmax_lse=True)
        return out.sum(-1) + lse.transpose(-1, -2)

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    eager = finite(case.arguments(CPU))
    traced = copied(eager)
    torch.testing.assert_close(compiled(**traced), layer(**eager))
    for cache in ("k_cache", "v_cache"):
        assert torch.equal(traced[cache], eager[cache])


@pytest.mark.skipif(
    TORCH < (2, 6),
    reason="Inductor of torch 2.4 and 2.5 reads wrongly where two ops write to views of one tensor",
)
def test_compiled_steps_do_not_recompile() -> None:
    """Two layers whose caches are views of one tensor, decoding token by token."""
    torch._dynamo.reset()

    def step(x: Tensor, caches: Tensor, held: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        for k_cache, v_cache in caches.unbind():
            q, k = torch.cat([x, x], 2), x.flip(1)
            x = x + flash_attn_with_kvcache(
                q, k_cache, v_cache, k, k * 2, cache_seqlens=held, block_table=table, causal=True
            ).unflatten(2, (2, -1)).sum(2)
        return x, held + x.shape[1]

    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    table = lengths(3, 1, 0, 2).view(2, 2)
    states = [(torch.randn(2, 1, 2, 16), torch.zeros(2, 2, 4, 8, 2, 16), lengths(0, 3))]
    states.append(tuple(x.clone() for x in states[0]))  # type: ignore[arg-type]
    for _ in range(5):
        new_states = []
        for function, (x, caches, held) in zip((step, compiled), states, strict=True):
            x, held = function(x, caches, held, table)
            new_states.append((x, caches, held))
        states = new_states
        for eager, traced in zip(*states, strict=True):
            torch.testing.assert_close(traced, eager)
    assert counter.frame_count == 1


def test_compile_varlen_over_pages() -> None:
    torch._dynamo.reset()
    q, k = torch.randn(8, 4, 16), torch.randn(12, 16, 2, 16)
    arguments = (q, k, k, cumulative(3, 5), cumulative(20, 35), 5, 35)
    options = {"block_table": lengths(3, 5, -1, 0, 7, 9).view(2, 3), "return_attn_probs": True}
    compiled = torch.compile(flash_attn_varlen_func, fullgraph=True, backend="aot_eager")
    for traced, eager in zip(
        compiled(*arguments, **options), flash_attn_varlen_func(*arguments, **options), strict=True
    ):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_fake_tensors(case: CacheCase) -> None:
    arguments = case.arguments(CPU)
    real = flash_attn_with_kvcache(**arguments, return_softmax_lse=True)
    with FakeTensorMode() as mode:
        fakes = {
            name: mode.from_tensor(x) if isinstance(x, Tensor) else x
            for name, x in arguments.items()
        }
        fake = flash_attn_with_kvcache(**fakes, return_softmax_lse=True)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


@pytest.mark.parametrize("name", ["dense", "packed", "read_only"])
def test_ops_agree_with_the_direct_call(name: str) -> None:
    """The profiler makes the call go through the dispatcher."""
    direct = CASES[name].arguments(CPU)
    dispatched = copied(direct)
    expected = flash_attn_with_kvcache(**direct)
    with torch.profiler.profile() as profile:
        actual = flash_attn_with_kvcache(**dispatched)
    seen = {event.name for event in profile.events()}
    op = "kvcache_forward" if name == "read_only" else "kvcache_append_forward"
    assert f"flash_attn2::{op}" in seen
    assert torch.equal(actual, expected)
    assert torch.equal(dispatched["k_cache"].nan_to_num(), direct["k_cache"].nan_to_num())


def test_eager_calls_skip_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "ops", None)
    flash_attn_with_kvcache(**CASES["dense"].arguments(CPU))


def test_append_counts_as_a_change_for_autograd() -> None:
    arguments = CASES["dense"].arguments(CPU)
    before = arguments["k_cache"]._version, arguments["v_cache"]._version
    flash_attn_with_kvcache(**arguments)
    assert arguments["k_cache"]._version > before[0]
    assert arguments["v_cache"]._version > before[1]
    weight = torch.ones(16, requires_grad=True)
    product = (arguments["k_cache"] * weight).sum()
    with torch.no_grad():
        flash_attn_with_kvcache(**arguments)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_mode() -> None:
    with torch.inference_mode():
        arguments = CASES["dense"].arguments(CPU)
        expected = flash_attn_with_kvcache(**copied(arguments))
        assert torch.equal(flash_attn_with_kvcache(**arguments), expected)


def test_autocast() -> None:
    """Queries and new keys get the dtype of the region, which is that of the cache."""
    half = CacheCase(new="neox").arguments(Target("cpu", torch.bfloat16))
    single = {
        name: x.float() if name in ("q", "k", "v", "rotary_cos", "rotary_sin") else x
        for name, x in copied(half).items()
    }
    expected = flash_attn_with_kvcache(**half)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flash_attn_with_kvcache(**copied(single)), expected)
        compiled = torch.compile(flash_attn_with_kvcache, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(**single), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["paged", "packed"])
def test_cuda_graph(name: str) -> None:
    """A captured step follows lengths and tables that change on the device."""
    arguments = CASES[name].arguments(Target("cuda", torch.bfloat16))
    expected = copied(arguments)
    lengths_before = arguments["cache_seqlens"].clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        flash_attn_with_kvcache(**arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = flash_attn_with_kvcache(**arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step in range(3):
        arguments["cache_seqlens"].copy_(lengths_before - step)
        expected["cache_seqlens"].copy_(lengths_before - step)
        graph.replay()
        assert torch.equal(out, flash_attn_with_kvcache(**expected))


def test_signature() -> None:
    """Names, order and defaults of flash-attn 2.8."""
    parameters = inspect.signature(flash_attn_with_kvcache).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == [
        ("q", REQUIRED),
        ("k_cache", REQUIRED),
        ("v_cache", REQUIRED),
        ("k", None),
        ("v", None),
        ("rotary_cos", None),
        ("rotary_sin", None),
        ("cache_seqlens", None),
        ("cache_batch_idx", None),
        ("cache_leftpad", None),
        ("block_table", None),
        ("softmax_scale", None),
        ("causal", False),
        ("window_size", (-1, -1)),
        ("softcap", 0.0),
        ("rotary_interleaved", True),
        ("alibi_slopes", None),
        ("num_splits", 0),
        ("return_softmax_lse", False),
    ]
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert own == {
        *("sink", "cu_seqlens_q", "max_seqlen_q", "cu_seqlens_k_new"),
        *("return_lse", "out", "k_descale", "v_descale"),
    }


def test_one_rotary_table_without_the_other() -> None:
    op, values = op_and_arguments(CASES["dense"].arguments(CPU))
    names = [argument.name for argument in op._schema.arguments]
    for name in ("rotary_cos", "rotary_sin"):
        given = dict(zip(names, values, strict=True)) | {name: None}
        with pytest.raises(ValueError, match=f"{name} must be given with rotary_"):
            op(**given)
