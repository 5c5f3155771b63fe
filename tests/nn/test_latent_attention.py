"""`LatentAttention`: both of its forms, and the plain formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import CPU_FLOAT32, Target, assert_within_rule, cumulative
from torch import Tensor

from flash_attn2.inference import PagedKVCache
from flash_attn2.nn import LatentAttention, RotaryEmbedding

WIDTH, HEADS, RANK, NOPE, ROPE, DIM_V = 40, 3, 24, 16, 8, 12
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rotary": {"rotary": RotaryEmbedding(ROPE, interleaved=True), "q_lora_rank": 20},
    "all": {
        "rotary": RotaryEmbedding(ROPE - 2, 500.0),
        "q_lora_rank": 20,
        "bias": True,
        "softmax_scale": 0.3,
    },
}


def make(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> LatentAttention:
    torch.manual_seed(3)
    layer = LatentAttention(
        WIDTH,
        HEADS,
        kv_lora_rank=RANK,
        qk_nope_head_dim=NOPE,
        qk_rope_head_dim=ROPE,
        v_head_dim=DIM_V,
        **{"causal": True, **copy.deepcopy(OPTIONS[name]), **options},
    )
    torch.nn.init.normal_(layer.kv_a_layernorm.weight, 1, 0.2)
    return layer.to(dtype)


def cache_for(dtype: torch.dtype = torch.float32, layers: int = 1) -> PagedKVCache:
    return PagedKVCache(layers, 16, 4, 1, RANK + ROPE, dtype, head_dim_v=RANK, shared_kv=True)


def plain(layer: LatentAttention, x: Tensor) -> Tensor:
    """The formula, head by head, of one sequence (seqlen, embed_dim)."""
    if layer.q_lora_rank is None:
        q = layer.q_proj(x)
    else:
        q = layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(x)))
    down = layer.kv_a_proj_with_mqa(x)
    latent = layer.kv_a_layernorm(down[:, :RANK])
    rotate = layer.rotary or (lambda heads: heads)
    key = rotate(down[None, :, None, RANK:])[0, :, 0]
    up = layer.kv_b_proj.weight.view(HEADS, NOPE + DIM_V, RANK)
    scale = (NOPE + ROPE) ** -0.5 if layer.rotary is None or layer.rotary.dim == ROPE else 0.3
    hidden = torch.ones(len(x), len(x)).triu(1).bool()
    outs = []
    for head, q_of_head in zip(up, q.view(-1, HEADS, NOPE + ROPE).unbind(1), strict=True):
        q_rope = rotate(q_of_head[None, :, None, NOPE:])[0, :, 0]
        scores = q_of_head[:, :NOPE] @ (latent @ head[:NOPE].T).T + q_rope @ key.T
        probs = (scores * scale).masked_fill(hidden, -torch.inf).softmax(-1)
        outs.append(probs @ (latent @ head[NOPE:].T))
    return layer.o_proj(torch.cat(outs, -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", OPTIONS)
def test_the_formula_and_its_gradients(name: str) -> None:
    layer, twin = make(name, torch.float64), make(name, torch.float64)
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    y = x.detach().requires_grad_()
    out, expected = layer(x), torch.stack([plain(twin, sequence) for sequence in y])
    torch.testing.assert_close(out, expected)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for (which, mine), theirs in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, w=which: f"{w}: {m}")


@pytest.mark.parametrize("target", [CPU_FLOAT32, Target("cpu", torch.bfloat16)], ids=str)
@pytest.mark.parametrize("name", OPTIONS)
@torch.inference_mode()
def test_over_a_cache_like_the_whole_at_once(name: str, target: Target) -> None:
    layer = make(name, target.dtype)
    cache = cache_for(target.dtype)
    documents = [target.tensor(length, WIDTH) for length in (13, 9, 6)]
    sequences = [cache.allocate() for _ in documents]
    results: list[list[Tensor]] = [[] for _ in documents]
    done = [0] * 3
    for counts in ((5, 1, 4), (6, 1, 1), (1, 3, 0), (1, 4, 1)):
        x = torch.cat([d[i : i + n] for d, i, n in zip(documents, done, counts, strict=True)])
        out = layer(x, cache=cache.layers[0], step=cache.append(sequences, counts))
        for result, piece in zip(results, out.split(counts), strict=True):
            result.append(piece)
        done = [i + n for i, n in zip(done, counts, strict=True)]
    exact = copy.deepcopy(layer).double()
    for document, pieces in zip(documents, results, strict=True):
        expected, low = plain(exact, document.double()), plain(layer, document)
        assert_within_rule("out", torch.cat(pieces), expected, low)


def test_packed_sequences() -> None:
    layer = make("all")
    x = torch.randn(12, WIDTH)
    out = layer(x, cu_seqlens=cumulative(5, 7))
    for part, rows in zip(out.split((5, 7)), x.split((5, 7)), strict=True):
        torch.testing.assert_close(part, layer(rows[None])[0])


def test_parameters_have_the_names_of_checkpoints() -> None:
    names = {name.removesuffix(".weight") for name in make("rotary").state_dict()}
    assert names == {
        *("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm"),
        *("kv_b_proj", "o_proj"),
    }
    assert "q_proj.weight" in make("plain").state_dict()
    assert "kv_lora_rank=24, qk_nope_head_dim=16" in repr(make("plain"))


def test_dropout_in_training_alone() -> None:
    layer = make("plain", dropout=0.5)
    x = torch.randn(1, 9, WIDTH)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x)[0], plain(layer, x[0]))


def test_compiled() -> None:
    torch._dynamo.reset()
    layer = make("rotary")
    x = torch.randn(1, 9, WIDTH)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_errors() -> None:
    sizes = {"kv_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
    for name, value, message in (
        ("kv_lora_rank", 513, "kv_lora_rank must be from 1 to 512, got 513"),
        ("v_head_dim", 0, "v_head_dim must be from 1 to 512, got 0"),
        ("qk_nope_head_dim", 570, r"qk_nope_head_dim \+ .* must be at most 576, got 578"),
        ("qk_rope_head_dim", 553, r"kv_lora_rank \+ qk_rope_head_dim must be at most 576, got 577"),
        ("rotary", RotaryEmbedding(10), "rotary must turn at most qk_rope_head_dim = 8, got 10"),
    ):
        with pytest.raises(ValueError, match=message):
            LatentAttention(40, 3, **{**sizes, name: value})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"rotary must be a RotaryEmbedding, .* got 8"):
        LatentAttention(40, 3, **sizes, rotary=8)  # type: ignore[arg-type]
    layer, cache = make("plain"), cache_for()
    step, x = cache.append([cache.allocate()], 2), torch.randn(2, WIDTH)
    with pytest.raises(NotImplementedError, match="no gradient"):
        layer(x, cache=cache.layers[0], step=step)
    other = PagedKVCache(1, 4, 4, 1, RANK, head_dim_v=RANK)
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"cache must hold latents of one head, 32 wide"):
            layer(x, cache=other.layers[0], step=step)
        with pytest.raises(ValueError, match="cache must go with a layer that has causal=True"):
            make("plain", causal=False)(x, cache=cache.layers[0], step=step)
        with pytest.raises(ValueError, match="cu_seqlens must be None with cache"):
            layer(x, cache=cache.layers[0], step=step, cu_seqlens=cumulative(2))
    with pytest.raises(ValueError, match=r"x must be \(batch, seqlen, 40\)"):
        layer(torch.randn(2, 3, 41))
