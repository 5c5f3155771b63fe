"""`Attention` over a cache: prompts, pieces of them and single tokens as the whole at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import CPU_FLOAT32, ONE_DTYPE, Target, assert_within_rule, cpu_tensors_on, targets
from torch import Tensor, nn

from flash_attn2.inference import PagedKVCache, Step
from flash_attn2.nn import Attention, RotaryEmbedding

WIDTH = 32
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary": RotaryEmbedding(64)},
    "interleaved": {"rotary": RotaryEmbedding(32, 500.0, interleaved=True), "bias": True},
    "window": {"window_size": (9, 0), "rotary": RotaryEmbedding(64), "softcap": 3.0},
    "alibi": {"alibi": True, "sink": True},
}


class Layers(nn.Module):
    """Two layers with residual streams."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        make = lambda: Attention(WIDTH, 4, 2, 64, causal=True, **options)  # noqa: E731
        self.layers = nn.ModuleList([make(), make()])

    def forward(self, x: Tensor, cache: Any = None, step: Step | None = None) -> Tensor:
        for i, layer in enumerate(self.layers):
            kv = None if cache is None else cache.layers[i]
            x = x + layer(x, cache=kv, step=step)
        return x


def make(name: str, target: Target) -> Layers:
    model = Layers(**copy.deepcopy(OPTIONS[name]))
    for layer in model.layers:
        if layer.sink is not None:
            nn.init.normal_(layer.sink)
    return model.to(target.device, target.dtype)


@targets([CPU_FLOAT32, *ONE_DTYPE])
@pytest.mark.parametrize("name", OPTIONS)
@torch.inference_mode()
def test_like_the_whole_at_once(name: str, target: Target) -> None:
    model = make(name, target)
    cache = PagedKVCache(2, 16, 4, 2, 64, target.dtype, target.device)
    documents = [target.tensor(length, WIDTH) for length in (13, 9, 6)]
    sequences = [cache.allocate() for _ in documents]
    results: list[list[Tensor]] = [[] for _ in documents]
    done = [0] * 3
    # Prompts; a longer piece beside single tokens; a sequence that pauses; single tokens.
    for counts in ((5, 1, 4), (6, 1, 1), (1, 3, 0), (1, 3, 1), (0, 1, 0)):
        x = torch.cat([d[i : i + n] for d, i, n in zip(documents, done, counts, strict=True)])
        out = model(x, cache, cache.append(sequences, counts))
        for result, piece in zip(results, out.split(counts), strict=True):
            result.append(piece)
        done = [i + n for i, n in zip(done, counts, strict=True)]
    exact = copy.deepcopy(model).to("cpu", torch.float64)
    low = copy.deepcopy(model).cpu()
    with cpu_tensors_on("cpu"):
        for document, pieces in zip(documents, results, strict=True):
            whole = document.cpu()[None]
            expected = exact(whole.double())[0]
            assert_within_rule("out", torch.cat(pieces).cpu(), expected, low(whole)[0])


def test_compiled() -> None:
    torch._dynamo.reset()
    model = make("rotary", CPU_FLOAT32)
    cache = PagedKVCache(2, 16, 4, 2, 64)
    sequence, x = cache.allocate(), torch.randn(5, WIDTH)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        out = compiled(x, CacheLayers(cache), cache.append([sequence], [5]))
        torch.testing.assert_close(out, model(x[None])[0])


class CacheLayers:
    """What a model needs of a cache."""

    def __init__(self, cache: PagedKVCache) -> None:
        self.layers = cache.layers


def test_errors() -> None:
    layer = Attention(WIDTH, 4, causal=True, dropout=0.1)
    cache = PagedKVCache(1, 4, 4, 4, 8)
    step = cache.append([cache.allocate()], [3])
    x, kv = torch.randn(3, WIDTH), cache.layers[0]
    with pytest.raises(ValueError, match=r"cache must come without dropout, got 0.1 .* call eval"):
        layer(x, cache=kv, step=step)
    layer.eval()
    with pytest.raises(NotImplementedError, match=r"no gradient.* torch.no_grad\(\)"):
        layer(x, cache=kv, step=step)
    with torch.no_grad():
        layer(x, cache=kv, step=step)
        with pytest.raises(TypeError, match=r"step must be a Step, .* got NoneType"):
            layer(x, cache=kv)
        with pytest.raises(TypeError, match=r"cache must be .* beside step, got NoneType"):
            layer(x, step=step)
        with pytest.raises(TypeError, match=r"cache must be \(k_cache, v_cache\).*PagedKVCache"):
            layer(x, cache=cache, step=step)
        with pytest.raises(ValueError, match=r"cache\[1\] must be \(num_pages, .* got shape"):
            layer(x, cache=(kv[0], kv[1][0]), step=step)
        with pytest.raises(ValueError, match=r"\(total, 32\) with cu_seqlens, got shape \(1, 3"):
            layer(x[None], cache=kv, step=step)
        with pytest.raises(ValueError, match="bias must be None with cache"):
            layer(x, cache=kv, step=step, bias=torch.zeros(3))
        with pytest.raises(ValueError, match="cache must go with a layer that has causal=True"):
            Attention(WIDTH, 4)(x, cache=kv, step=step)
        with pytest.raises(ValueError, match=r"k_cache and v_cache, got 3 and 4"):
            Attention(24, 3, causal=True)(torch.randn(3, 24), cache=kv, step=step)
