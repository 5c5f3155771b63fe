"""flash_attn2.nn against plain PyTorch in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from support import ONE_DTYPE, Target, cumulative, targets
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from flash_attn2 import flash_attn_func
from flash_attn2.nn import Attention, RotaryEmbedding, alibi_slopes

SLOPES = [0.3, 0.1, 0.7, 1.1]
SEQLENS = (13, 0, 1, 24)
TOTAL = sum(SEQLENS)


def rotate(x: Tensor, rotary: RotaryEmbedding, offset: int = 0) -> Tensor:
    """(..., seqlen, num_heads, head_dim), by multiplication with complex numbers."""
    half = rotary.dim // 2
    frequency = rotary.base ** (-torch.arange(half, dtype=torch.float64) / half)
    position = (torch.arange(x.shape[-3]) + offset).double() / rotary.scaling_factor
    rotation = torch.exp(1j * position[:, None] * frequency)[:, None]
    turned, rest = x[..., : rotary.dim], x[..., rotary.dim :]
    if rotary.interleaved:
        pairs = turned.unflatten(-1, (half, 2))
    else:
        pairs = turned.unflatten(-1, (2, half)).mT
    pairs = torch.view_as_real(torch.complex(*pairs.unbind(-1)) * rotation)
    turned = pairs.flatten(-2) if rotary.interleaved else pairs.mT.flatten(-2)
    return torch.cat((turned, rest), -1)


def attend(layer: Attention, x: Tensor) -> Tensor:
    """What `layer` does to (batch, seqlen, embed_dim), from its parameters, without dropout."""
    heads, heads_kv, dim = layer.num_heads, layer.num_heads_kv, layer.head_dim
    weights = layer.qkv_proj.weight.split((heads * dim, heads_kv * dim, heads_kv * dim))
    biases: Any = (0, 0, 0)
    if layer.qkv_proj.bias is not None:
        biases = layer.qkv_proj.bias.split((heads * dim, heads_kv * dim, heads_kv * dim))
    q, k, v = ((x @ w.T + b).unflatten(-1, (-1, dim)) for w, b in zip(weights, biases, strict=True))
    if layer.rotary is not None:
        q, k = rotate(q, layer.rotary), rotate(k, layer.rotary)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(heads // heads_kv, 1) for t in (k, v))
    scores = q @ k.mT * (dim**-0.5 if layer.softmax_scale is None else layer.softmax_scale)
    if layer.softcap:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    row, col = torch.arange(x.shape[1])[:, None], torch.arange(x.shape[1])
    if layer.alibi_slopes is not None:
        scores = scores - layer.alibi_slopes.double()[:, None, None] * (row - col).abs()
    left, right = layer.window_size
    hidden = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    if left >= 0:
        hidden |= col < row - left
    if layer.causal or right >= 0:
        hidden |= col > row + (0 if layer.causal else right)
    scores = scores.masked_fill(hidden, -torch.inf)
    if layer.sink is not None:
        sink = layer.sink[:, None, None].double().expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, sink), -1)
    out = scores.softmax(-1)[..., : x.shape[1]] @ v
    return out.transpose(1, 2).flatten(-2) @ layer.out_proj.weight.T + (
        0 if layer.out_proj.bias is None else layer.out_proj.bias
    )


@dataclass
class Case:
    name: str
    num_heads_kv: int | None = None
    head_dim: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def layer(self, dtype: torch.dtype = torch.float64) -> Attention:
        layer = Attention(
            32, 4, self.num_heads_kv, self.head_dim, dtype=dtype, **copy.deepcopy(self.options)
        )
        if layer.sink is not None:
            torch.nn.init.normal_(layer.sink)
        return layer


CASES = [
    Case("plain"),
    Case("bias", options={"bias": True, "softmax_scale": 0.2}),
    Case("out_bias", options={"out_bias": True}),
    Case("gqa", 2, options={"causal": True}),
    Case("mqa", 1, 24, {"causal": True, "rotary": RotaryEmbedding(24)}),
    Case("rotary_interleaved", 2, options={"rotary": RotaryEmbedding(6, 500.0, True)}),
    Case("window", options={"window_size": (5, 2)}),
    Case("causal_window", options={"causal": True, "window_size": (5, -1)}),
    Case("softcap", options={"softcap": 0.7}),
    Case("alibi", options={"alibi": True, "causal": True}),
    Case("alibi_given", options={"alibi": torch.rand(4)}),
    Case("sink", 2, options={"sink": True, "causal": True, "rotary": RotaryEmbedding(8)}),
]
CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def gradients(out: Tensor, layer: Attention, x: Tensor) -> dict[str, Tensor]:
    """Of a sum over `out` with fixed weights, in x and in the parameters."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    named = {"x": x, **dict(layer.named_parameters())}
    found = torch.autograd.grad((out * weights).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


@CASE
def test_dense(case: Case) -> None:
    layer = case.layer()
    x = torch.randn(2, 19, 32, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), attend(layer, x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    actual_grads = gradients(out, layer, x)
    for name, grad in gradients(expected, layer, x).items():
        torch.testing.assert_close(actual_grads[name], grad, rtol=1e-4, atol=1e-5, msg=name)


@CASE
def test_packed_is_dense_by_document(case: Case) -> None:
    layer = case.layer()
    x = torch.randn(TOTAL, 32, dtype=torch.float64, requires_grad=True)
    packed = layer(x, cu_seqlens=cumulative(*SEQLENS), max_seqlen=30)
    assert torch.equal(layer(x, cu_seqlens=cumulative(*SEQLENS)), packed)
    alone = torch.cat([layer(document[None])[0] for document in x.split(SEQLENS)])
    torch.testing.assert_close(packed, alone)
    packed_grads = gradients(packed, layer, x)
    for name, grad in gradients(alone, layer, x).items():
        torch.testing.assert_close(packed_grads[name], grad, msg=name)


@targets(ONE_DTYPE)
def test_backends(target: Target) -> None:
    rotary = RotaryEmbedding(16)
    layer = Attention(32, 4, 2, 64, causal=True, sink=True, alibi=True, rotary=rotary)
    layer.to(target.device, target.dtype)
    x = target.tensor(TOTAL, 32).requires_grad_()
    cu_seqlens = cumulative(*SEQLENS, device=target.device)
    out = layer(x, cu_seqlens=cu_seqlens, max_seqlen=30)
    exact, exact_x = copy.deepcopy(layer).to("cpu", torch.float64), x.detach().cpu().double()
    exact_x.requires_grad_()
    documents = [document[None] for document in exact_x.split(SEQLENS) if document.shape[0]]
    expected = torch.cat([attend(exact, document)[0] for document in documents])
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0.02, atol=0.02)
    actual_grads = gradients(out.cpu(), layer, x)
    for name, grad in gradients(expected, exact, exact_x).items():
        actual, tolerance = actual_grads[name].cpu().double(), 0.02 * grad.abs().max().item()
        torch.testing.assert_close(actual, grad, rtol=0.02, atol=tolerance, msg=name)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [16, 10])
def test_rotary(interleaved: bool, dim: int) -> None:
    rotary = RotaryEmbedding(dim, 100.0, interleaved, scaling_factor=1.5)
    x = torch.randn(2, 37, 3, 16, dtype=torch.float64)
    for offset in (0, 5, 1000):
        torch.testing.assert_close(
            rotary(x, offset=offset), rotate(x, rotary, offset), rtol=0, atol=1e-6
        )
    packed = torch.randn(TOTAL + 3, 3, 16, dtype=torch.float64)
    actual = rotary(packed, offset=2, cu_seqlens=cumulative(*SEQLENS))
    documents = packed[:TOTAL].split(SEQLENS)
    expected = torch.cat([rotate(document, rotary, 2) for document in documents])
    torch.testing.assert_close(actual[:TOTAL], expected, rtol=0, atol=1e-6)
    assert actual[TOTAL:].isfinite().all()  # rows of no sequence


def test_rotary_gradient() -> None:
    rotary = RotaryEmbedding(4)
    x = torch.randn(2, 3, 2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotary, (x,))


def test_rotary_far_out_is_exact() -> None:
    rotary = RotaryEmbedding(64)
    x = torch.randn(1, 1, 1, 64, dtype=torch.float64)
    torch.testing.assert_close(
        rotary(x, offset=50_000), rotate(x, rotary, 50_000), rtol=0, atol=1e-6
    )


def test_rotary_table_serves_other_modes_and_dtypes() -> None:
    layer = Attention(32, 4, rotary=RotaryEmbedding(8))
    x = torch.randn(1, 50, 32)
    with torch.inference_mode():
        expected = layer(x)
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.equal(layer(x), expected)
    layer.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert layer.rotary is not None
    q = torch.randn(1, 3000, 4, 8, dtype=torch.bfloat16)
    exact = rotate(q.double(), layer.rotary)
    torch.testing.assert_close(layer.rotary(q).double(), exact, rtol=2**-8, atol=1e-6)
    assert not layer.rotary.state_dict()


def test_alibi_slopes() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    # As in the code of the paper: 2^-2 to 2^-8 for 4 heads, then every other one of 8 heads.
    assert alibi_slopes(6).tolist() == [2.0**-i for i in (2, 4, 6, 8, 1, 3)]
    assert alibi_slopes(1).tolist() == [2.0**-8]
    for wrong in (0, -1, 4.0, True, "4", None):
        with pytest.raises((TypeError, ValueError), match="num_heads must be"):
            alibi_slopes(wrong)  # type: ignore[arg-type]


def test_state_dict() -> None:
    options: dict[str, Any] = {"bias": True, "sink": True, "alibi": True}
    layer = Attention(32, 4, 2, rotary=RotaryEmbedding(8), **options)
    x = torch.randn(1, 9, 32)
    expected = layer(x)
    state = layer.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "sink": (4,),
        "qkv_proj.weight": (64, 32),
        "qkv_proj.bias": (64,),
        "out_proj.weight": (32, 32),
        "out_proj.bias": (32,),
    }
    with torch.device("meta"):
        other = Attention(32, 4, 2, rotary=RotaryEmbedding(8), **options)
    other.to_empty(device="cpu").reset_parameters()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("given", [SLOPES, torch.tensor(SLOPES), torch.tensor(SLOPES).double()])
def test_slopes_are_exact(given: Any) -> None:
    """Whatever happens to the module."""
    expected = torch.tensor(SLOPES)
    for change in (
        lambda layer: layer.bfloat16(),
        lambda layer: layer.half().double().float(),
        lambda layer: layer.to_empty(device="cpu"),
        lambda layer: layer.to("meta").to_empty(device="cpu"),
        lambda layer: layer.to("meta").to_empty(device="cpu").reset_parameters() or layer,
        lambda layer: layer.requires_grad_(False).share_memory(),
    ):
        layer = change(Attention(32, 4, alibi=given))
        assert layer.alibi_slopes is not None
        assert torch.equal(layer.alibi_slopes, expected)
        assert not dict(layer.named_buffers())
    layer = Attention(32, 4, alibi=given, dtype=torch.bfloat16)
    x = torch.randn(1, 9, 32, dtype=torch.bfloat16)
    q, k, v = layer.project(x)
    out = flash_attn_func(q, k, v, alibi_slopes=expected)
    assert torch.equal(layer(x), layer.out_proj(out.flatten(-2)))  # type: ignore[union-attr]


def test_sink_is_created_in_float32() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        layers = [Attention(32, 4, sink=True)]
    finally:
        torch.set_default_dtype(before)
    layers.append(Attention(32, 4, sink=True, dtype=torch.bfloat16))
    for layer in layers:
        assert layer.sink is not None
        assert layer.sink.dtype == torch.float32
        assert layer.qkv_proj.weight.dtype == torch.bfloat16
        layer(torch.randn(1, 5, 32, dtype=torch.bfloat16)).sum().backward()
        assert layer.sink.grad is not None
    layer.bfloat16()
    assert layer.sink.dtype == torch.bfloat16
    layer(torch.randn(1, 5, 32, dtype=torch.bfloat16)).sum().backward()


def test_dropout_in_training_only() -> None:
    layer = Attention(32, 4, dropout=0.5)
    x = torch.randn(1, 40, 32)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), attend(layer, x))


def test_autocast() -> None:
    layer = Attention(32, 4, 2, sink=True, alibi=True, rotary=RotaryEmbedding(8))
    x = torch.randn(2, 20, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.02)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_compile() -> None:
    torch._dynamo.reset()
    layer = Attention(32, 4, 2, causal=True, sink=True, alibi=True, rotary=RotaryEmbedding(8))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for seqlens in ((9, 20), (16, 3), (40, 31)):
        x = torch.randn(sum(seqlens), 32, requires_grad=True)
        packing: Any = {"cu_seqlens": cumulative(*seqlens), "max_seqlen": max(seqlens)}
        out, expected = compiled(x, **packing), layer(x, **packing)
        torch.testing.assert_close(out, expected)
        expected_grads = gradients(expected, layer, x)
        for name, grad in gradients(out, layer, x).items():
            torch.testing.assert_close(grad, expected_grads[name], msg=name)
        counts.append(counter.frame_count)
    assert counts[-1] == counts[0]
    x = torch.randn(2, 21, 32)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((30, 4), {}, ValueError, "embed_dim must be a multiple of num_heads"),
        ((32, 0), {}, ValueError, "num_heads must be positive, got 32 and 0"),
        ((32, 4, 3), {}, ValueError, "multiple of num_heads_kv, got 4 and 3"),
        ((2400, 4), {}, ValueError, "head_dim must be from 1 to 576, got 600"),
        ((2080, 4), {}, ValueError, "head_dim_v, or head_dim .* from 1 to 512, got 520"),
        ((64, 4), {"head_dim_v": 0}, ValueError, "head_dim_v, .* from 1 to 512, got 0"),
        ((32.0, 4), {}, TypeError, "embed_dim must be an int, got float"),
        ((32, "4"), {}, TypeError, "num_heads must be an int, got str"),
        ((32, True), {}, TypeError, "num_heads must be an int, got bool"),
        ((32, 4, 2.0), {}, TypeError, "num_heads_kv must be an int, got float"),
        ((32, 4, 4, 8.0), {}, TypeError, "head_dim must be an int, got float"),
        ((32, 4), {"dropout": 1.0}, ValueError, "dropout_p must be from 0 to"),
        ((32, 4), {"dropout": "0.1"}, TypeError, "dropout_p must be a number, got str"),
        ((32, 4), {"softcap": -1.0}, ValueError, "softcap"),
        ((32, 4), {"softmax_scale": "1"}, TypeError, "softmax_scale must be a number, got str"),
        ((32, 4), {"window_size": (-2, 0)}, ValueError, "window_size"),
        ((32, 4), {"window_size": 3}, TypeError, "window_size must be a pair"),
        ((32, 4), {"causal": "False"}, TypeError, "causal must be a bool, got str"),
        ((32, 4), {"deterministic": None}, TypeError, "deterministic must be a bool"),
        ((32, 4), {"bias": None}, TypeError, "bias must be a bool, got NoneType"),
        ((32, 4), {"out_bias": "no"}, TypeError, "out_bias must be a bool, got str"),
        ((32, 4), {"sink": torch.zeros(4)}, TypeError, "sink must be a bool, got Tensor"),
        ((32, 4), {"alibi": torch.rand(3)}, ValueError, r"alibi must be \(4,\), got shape \(3,\)"),
        ((32, 4), {"alibi": torch.rand(1, 4)}, ValueError, r"alibi must be \(4,\) .*\(1, 4\)"),
        ((32, 4), {"alibi": torch.rand(4, device="meta")}, ValueError, "alibi .* on meta"),
        ((32, 4), {"alibi": [1.0]}, ValueError, r"alibi must be \(4,\), got shape \(1,\)"),
        ((32, 4), {"alibi": 3}, TypeError, "alibi must be True, False, or the slopes .* got 3"),
        ((32, 4), {"alibi": None}, TypeError, "alibi must be True, False, or .* got None"),
        ((32, 4), {"alibi": "1234"}, TypeError, "alibi must be True, False, or"),
        ((32, 4), {"alibi": ["a"] * 4}, TypeError, "alibi must be a number, got str"),
        (
            (32, 4),
            {"rotary": RotaryEmbedding(10)},
            ValueError,
            "rotary must turn at most head_dim = 8, got 10",
        ),
        ((2**63, 4), {}, ValueError, "embed_dim .* at most 2147483647, got 9223372036854775808"),
        ((32, 4), {"rotary": 32}, TypeError, "rotary must be a RotaryEmbedding, .* got 32"),
        ((32, 4), {"rotary": True}, TypeError, "rotary must be a RotaryEmbedding, .* got True"),
    ],
)
def test_constructor_errors(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    before = torch.get_rng_state()
    with pytest.raises(error, match=message):
        Attention(*arguments, **options)
    assert torch.equal(torch.get_rng_state(), before)


def test_call_errors() -> None:
    layer = Attention(32, 4)
    cu_seqlens = cumulative(5)
    with pytest.raises(ValueError, match=r"\(batch, seqlen, 32\), .*got shape \(2, 5, 31\)"):
        layer(torch.randn(2, 5, 31))
    with pytest.raises(ValueError, match=r"\(total, 32\) with cu_seqlens, got shape \(5, 32\)"):
        layer(torch.randn(5, 32))
    with pytest.raises(ValueError, match=r"x must be .*got shape \(1, 5, 32\)"):
        layer(torch.randn(1, 5, 32), cu_seqlens=cu_seqlens, max_seqlen=5)
    with pytest.raises(ValueError, match="max_seqlen must come with cu_seqlens"):
        layer(torch.randn(1, 5, 32), max_seqlen=5)
    for dtype in (torch.float16, torch.float64, torch.int64, torch.complex64):
        x = torch.ones(1, 5, 32, dtype=dtype)
        with pytest.raises(TypeError, match=f"x must have the dtype .*float32, got {dtype}"):
            layer(x)
    with pytest.raises(ValueError, match=r"x must be on the device .* cpu, got meta"):
        layer(torch.empty(1, 5, 32, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 5, 32).bfloat16()).dtype == torch.bfloat16


def test_packed_call_errors() -> None:
    for layer in (Attention(32, 4), Attention(32, 4, rotary=RotaryEmbedding(8))):
        x = torch.randn(20, 32)
        for cu_seqlens in (*BAD_SEQUENCES, [0, 12, 20]):
            with pytest.raises((TypeError, ValueError), match="cu_seqlens must"):
                layer(x, cu_seqlens=cu_seqlens, max_seqlen=20)
        for longest in (1.5, "20", True, 3, -1, 2**63):
            with pytest.raises((TypeError, ValueError), match="max_seqlen"):
                layer(x, cu_seqlens=cumulative(12, 8), max_seqlen=longest)
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        Attention(32, 4)([[1.0]])


BAD_SEQUENCES = [
    torch.tensor([12, 8], dtype=torch.int32),  # lengths
    torch.tensor([5, 20], dtype=torch.int32),
    torch.tensor([0, 12, 40], dtype=torch.int32),
    torch.tensor([0, 12, 8, 20], dtype=torch.int32),
    torch.tensor([0, -3, 20], dtype=torch.int32),
    torch.tensor([0, 20]),
    torch.tensor([0.0, 20.0]),
    torch.tensor([], dtype=torch.int32),
    torch.tensor([[0, 20]], dtype=torch.int32),
    torch.tensor([0, 20], dtype=torch.int32, device="meta"),
]


def test_rotary_errors() -> None:
    for dim, error in ((7, ValueError), (0, ValueError), (-2, ValueError), (8.0, TypeError)):
        with pytest.raises(error, match="dim must be"):
            RotaryEmbedding(dim)
    for wrong in (0.0, -1.0, math.inf, math.nan, "1", None, True):
        for name in ("base", "scaling_factor"):
            with pytest.raises((TypeError, ValueError), match=f"{name} .*must be|{name} must be"):
                RotaryEmbedding(8, **{name: wrong})
    with pytest.raises(TypeError, match="interleaved must be a bool, got str"):
        RotaryEmbedding(8, interleaved="no")  # type: ignore[arg-type]
    rotary = RotaryEmbedding(8)
    with pytest.raises(ValueError, match="with cu_seqlens"):
        rotary(torch.randn(5, 4, 8))
    with pytest.raises(ValueError, match="head_dim of at least 8, got 6"):
        rotary(torch.randn(1, 5, 4, 6))
    with pytest.raises(ValueError, match="offset must not be negative"):
        rotary(torch.randn(1, 5, 4, 8), offset=-1)
    with pytest.raises(TypeError, match="offset must be an int, got float"):
        rotary(torch.randn(1, 5, 4, 8), offset=1.0)
    with pytest.raises(TypeError, match="x must be float16"):
        rotary(torch.ones(1, 5, 4, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        rotary([1.0])
    for cu_seqlens in (*BAD_SEQUENCES, [0, 20], 20):
        with pytest.raises((TypeError, ValueError), match="cu_seqlens must"):
            rotary(torch.randn(20, 4, 8), cu_seqlens=cu_seqlens)
    assert rotary(torch.randn(0, 4, 8), cu_seqlens=cumulative()).shape == (0, 4, 8)


def test_extra_repr() -> None:
    layer = Attention(64, 4, 2, causal=True, sink=True, rotary=RotaryEmbedding(16))
    assert "64, num_heads=4, num_heads_kv=2, head_dim=16, causal=True, sink=(4,)" in repr(layer)
    assert "RotaryEmbedding(16, base=10000)" in repr(layer)
