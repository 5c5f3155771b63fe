"""Modules and caches after copies, and after whatever traces or transforms a call: each is followed
by real calls, of the copy and of the original.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2.inference import PagedKVCache
from flash_attn2.nn import Attention, RotaryEmbedding

SLOPES = [0.3, 0.1, 0.7, 1.1]
CU_SEQLENS = torch.tensor([0, 3, 10], dtype=torch.int32)


def attention(seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    layer = Attention(
        32, 4, 2, rotary=RotaryEmbedding(8), alibi=torch.tensor(SLOPES), sink=True, causal=True
    )
    assert layer.sink is not None
    torch.nn.init.normal_(layer.sink)
    return layer


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


X = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def fake(layer: Attention) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        layer(X)


def fake_parameters(layer: Attention) -> None:
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(x) for name, x in layer.named_parameters()}
        torch.func.functional_call(layer, fakes, (torch.ones(1, 4, 32),))


def functional(layer: Attention) -> None:
    layer(torch._to_functional_tensor(X))


def functionalize(layer: Attention) -> None:
    torch.testing.assert_close(torch.func.functionalize(lambda x: layer(x))(X), layer(X))


def fx(layer: Attention, **options: Any) -> None:
    graph = make_fx(lambda x: layer(x), **options)(X)
    torch.testing.assert_close(graph(X), layer(X))


def fx_symbolic(layer: Attention) -> None:
    fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)


def jit_trace(layer: Attention) -> None:
    traced = torch.jit.trace(layer, (X,))
    for rows in (3, 5, 90):
        x = torch.randn(2, rows, 32)
        torch.testing.assert_close(traced(x), layer(x))


def export(layer: Attention, strict: bool) -> None:
    rows = torch.export.Dim("rows", min=2, max=1024)
    exported = torch.export.export(layer, (X,), dynamic_shapes={"x": {1: rows}}, strict=strict)
    for count in (3, 90):
        x = torch.randn(2, count, 32)
        torch.testing.assert_close(exported.module()(x), layer(x))


def compiled(layer: Attention) -> None:
    torch._dynamo.reset()
    function = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(function(X), layer(X))


def reverse_mode(layer: Attention) -> None:
    torch.func.grad(lambda x: layer(x).sum())(X)


def forward_mode(layer: Attention) -> None:
    with pytest.raises(NotImplementedError):
        torch.func.jvp(lambda x: layer(x), (X,), (X,))


def vmap(layer: Attention) -> None:
    torch.testing.assert_close(torch.vmap(lambda x: layer(x[None])[0])(X), layer(X))


def inference_mode(layer: Attention) -> None:
    with torch.inference_mode():
        layer(X)


def meta_init(layer: Attention) -> Attention:
    with torch.device("meta"):
        other = Attention(32, 4, 2, rotary=RotaryEmbedding(8), alibi=SLOPES, sink=True, causal=True)
    assert other(X.to("meta")).is_meta
    junk = [torch.full((4,), torch.nan) for _ in range(64)]
    del junk
    other.to_empty(device="cpu").load_state_dict(layer.state_dict())
    return other


def meta_init_and_assign(layer: Attention) -> Attention:
    with torch.device("meta"):
        other = Attention(32, 4, 2, rotary=RotaryEmbedding(8), alibi=SLOPES, sink=True, causal=True)
    other.load_state_dict(layer.state_dict(), assign=True)
    return other


def to_empty(layer: Attention) -> None:
    state = {name: x.clone() for name, x in layer.state_dict().items()}
    layer.to_empty(device="cpu").load_state_dict(state)


def through_bfloat16(layer: Attention) -> None:
    state = {name: x.clone() for name, x in layer.state_dict().items()}
    layer.bfloat16()
    layer(X.bfloat16())
    layer.half().double().float().load_state_dict(state)


def profiler(layer: Attention) -> None:
    with torch.profiler.profile():
        layer(X)


WAYS: dict[str, Callable[[Attention], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "save": saved,
    "fx": fx,
    "export": lambda layer: export(layer, False),
    "export_strict": lambda layer: export(layer, True),
    **{
        function.__name__: function
        for function in (
            *(fake, fake_parameters, functional, functionalize, fx_symbolic, jit_trace, compiled),
            *(reverse_mode, forward_mode, vmap, inference_mode, profiler),
            *(meta_init, meta_init_and_assign, to_empty, through_bfloat16),
        )
    },
}


def agree(layer: Attention, other: Attention) -> None:
    """Real calls of both, dense and packed, longer than before, and with gradients."""
    torch.testing.assert_close(layer(X), other(X))
    packed: dict[str, Any] = {"cu_seqlens": CU_SEQLENS, "max_seqlen": 7}
    torch.testing.assert_close(layer(X.flatten(0, 1), **packed), other(X.flatten(0, 1), **packed))
    longer = torch.randn(1, 300, 32)
    grads = []
    for module in (layer, other):
        x = longer.clone().requires_grad_()
        grads.append(torch.autograd.grad(module(x).square().sum(), x)[0])
    torch.testing.assert_close(*grads)
    for module in (layer, other):
        slopes: Any = module.alibi_slopes
        assert type(slopes) is Tensor
        assert torch.equal(slopes, torch.tensor(SLOPES))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_modules(way: Callable[[Attention], Any], used: bool) -> None:
    layer, fresh = attention(), attention()
    if used:
        layer(X)
    other = way(layer)
    agree(layer, fresh)
    if other is not None:
        agree(other, fresh)


def step(cache: PagedKVCache, sequences: list[int], value: float) -> Tensor:
    """Attention of one more token of each sequence, with values `value`."""
    arguments = cache.append(sequences, 1)
    x = torch.full((len(sequences), 1, 8), value, dtype=cache.dtype)
    out = None
    for k_cache, v_cache in cache.layers:
        out = flash_attn_with_kvcache(
            x, k_cache, v_cache, torch.zeros_like(x), x, causal=True, **arguments._asdict()
        )
    assert isinstance(out, Tensor)
    return out[:, 0, 0]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "save": saved,
}


@pytest.mark.parametrize("max_batch", [None, 2])
@pytest.mark.parametrize("way", COPIES.values(), ids=COPIES.keys())
def test_caches(way: Callable[[Any], Any], max_batch: int | None) -> None:
    """The copy and the original go on from the same tokens, each in its own pages."""
    cache = PagedKVCache(2, 8, 4, 1, 8, max_batch=max_batch)
    for kv in cache.layers:
        for x in kv:
            x.fill_(torch.nan)
    parent = cache.allocate()
    for value in (1.0, 2.0):
        step(cache, [parent], value)
    other = way(cache)
    assert [x.shape for kv in other.layers for x in kv] == [
        x.shape for kv in cache.layers for x in kv
    ]
    for each, value in ((cache, 3.0), (other, 6.0)):
        child = each.fork(parent)
        assert child == parent + 1
        # A page that is shared: it is copied, and attention reads the copy.
        torch.testing.assert_close(step(each, [child], value), torch.tensor([(3 + value) / 3]))
        torch.testing.assert_close(step(each, [parent], value), torch.tensor([(3 + value) / 3]))
        assert each.layers[0][0].data_ptr() == each._storage.data_ptr()
    assert step(cache, [parent], 0.0) != step(other, [parent], 0.0)
    assert cache.usage() == other.usage()


def test_another_name_for_a_cache() -> None:
    cache = PagedKVCache(1, 8, 4, 1, 8)
    other = copy.copy(cache)
    ids = [cache.allocate(), other.allocate(), cache.allocate()]
    assert len(set(ids)) == 3
    step(other, ids[:2], 1.0)
    assert [cache.length(sequence) for sequence in ids] == [1, 1, 0]
    assert cache.layers[0][0].data_ptr() == other.layers[0][0].data_ptr()


def in_child(connection: Any, cache: PagedKVCache, layer: Attention) -> None:
    with torch.inference_mode():
        child = cache.fork(0)
        connection.send((step(cache, [child], 3.0).tolist(), layer(X).tolist()))


def test_spawn() -> None:
    cache, layer = PagedKVCache(1, 8, 4, 1, 8, max_batch=1), attention()
    parent = cache.allocate()
    for value in (1.0, 2.0):
        step(cache, [parent], value)
    expected = layer(X)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=in_child, args=(sender, cache, layer))
    process.start()
    assert receiver.poll(120)
    from_step, from_layer = receiver.recv()
    process.join()
    assert from_step == pytest.approx([2.0])
    torch.testing.assert_close(torch.tensor(from_layer), expected)
    assert step(cache, [parent], 6.0).item() == pytest.approx(3.0)


def test_fake_cache() -> None:
    with FakeTensorMode():
        cache = PagedKVCache(1, 8, 4, 1, 8)
        arguments = cache.append([cache.allocate()], 3)
        x = torch.ones(3, 1, 8)
        out: Any = flash_attn_with_kvcache(x, *cache.layers[0], x, x, **arguments._asdict())
    assert out.shape == (3, 1, 8)
