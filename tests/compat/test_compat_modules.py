"""What stands under the names of flash-attn computes what flash-attn says it does."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cache_cases import CacheCase
from code_cases import quantised_arguments
from support import CPU_FLOAT32, cumulative, lengths
from torch import Tensor

import flash_attn2
from flash_attn2 import compat, flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2.nn import RotaryEmbedding

OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": True, "softcap": 2.0},
    {"window_size": (3, 1), "alibi_slopes": torch.rand(4)},
    {"dropout_p": 0.3, "causal": True},
]
CU = (5, 0, 7)


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    compat.install()
    yield
    compat.uninstall()


def interface() -> Any:
    return importlib.import_module("flash_attn.flash_attn_interface")


def passes(options: dict[str, Any]) -> tuple[Any, ...]:
    """Their arguments in order, up to alibi_slopes."""
    left, right = options.get("window_size", (-1, -1))
    return (
        *(options.get("dropout_p", 0.0), 0.25, options.get("causal", False), left, right),
        *(options.get("softcap", 0.0), options.get("alibi_slopes")),
    )


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap", "window", "dropout"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_passes(options: dict[str, Any], wrapped: bool) -> None:
    module, prefix = interface(), "_wrapped" if wrapped else ""
    q, k, v = leaves((2, 9, 4, 16), (2, 11, 2, 16), (2, 11, 2, 16))
    torch.manual_seed(3)
    out, lse, probs = flash_attn_func(  # type: ignore[misc]
        q, k, v, **options, softmax_scale=0.25, return_attn_probs=True
    )
    dout = torch.randn_like(out)
    expected = torch.autograd.grad(out, (q, k, v), dout)
    plain = [x.detach() for x in (q, k, v)]
    torch.manual_seed(3)
    forward = getattr(module, f"{prefix}_flash_attn_forward")
    results = forward(*plain, *passes(options), probs.numel() > 0)
    for actual, wanted in zip(results[:3], (out, lse, probs), strict=True):
        assert torch.equal(actual, wanted)
    assert results[3].shape == (2,)
    grads = [torch.full_like(x, torch.nan) for x in plain]
    backward = getattr(module, f"{prefix}_flash_attn_backward")
    sums = backward(dout, *plain, *results[:2], *grads, *passes(options), False, results[3])
    for actual, wanted in zip(grads, expected, strict=True):
        assert torch.equal(actual, wanted)
    torch.testing.assert_close(sums, (dout * out).sum(-1).mT)
    only_k = [None, torch.empty_like(k), None]
    backward(dout, *plain, *results[:2], *only_k, *passes(options), True, results[3])
    torch.testing.assert_close(only_k[1], expected[1])


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "softcap", "window", "dropout"])
def test_varlen_passes(options: dict[str, Any]) -> None:
    module = interface()
    q, k, v = leaves((12, 4, 16), (12, 2, 16), (12, 2, 16))
    sizes = cumulative(*CU), cumulative(*CU), 7, 7
    torch.manual_seed(3)
    out, lse, probs = flash_attn_varlen_func(  # type: ignore[misc]
        q, k, v, *sizes, **options, softmax_scale=0.25, return_attn_probs=True
    )
    dout = torch.randn_like(out)
    expected = torch.autograd.grad(out, (q, k, v), dout)
    plain = [x.detach() for x in (q, k, v)]
    torch.manual_seed(3)
    more = passes(options)
    results = module._flash_attn_varlen_forward(*plain, *sizes, *more, probs.numel() > 0)
    for actual, wanted in zip(results[:3], (out, lse, probs), strict=True):
        assert torch.equal(actual, wanted)
    grads = [torch.empty_like(x) for x in plain]
    sums = module._wrapped_flash_attn_varlen_backward(
        dout, *plain, *results[:2], *grads, *sizes, *more, False, results[3], False
    )
    for actual, wanted in zip(grads, expected, strict=True):
        assert torch.equal(actual, wanted)
    assert sums.shape == lse.shape


def test_varlen_pass_of_pages() -> None:
    q, pages = torch.randn(8, 4, 16), torch.randn(4, 3, 2, 16)
    table, cu = lengths(0, 1, 2, 3).view(2, 2), cumulative(4, 4)
    expected = flash_attn_varlen_func(q, pages, pages, cu, cu, 4, 4, 0.0, 0.25, block_table=table)
    out, lse, _, _ = interface()._flash_attn_varlen_forward(
        q, pages, pages, cu, cu, 4, 4, 0.0, 0.25, False, block_table=table
    )
    assert torch.equal(out, expected)
    assert lse.shape == (4, 8)
    with pytest.raises(NotImplementedError, match="leftpad_k must be None"):
        interface()._flash_attn_varlen_forward(
            q, q, q, cu, cu, 4, 4, 0.0, 0.25, False, leftpad_k=lengths(0, 0)
        )


SCHEMAS = {
    "_flash_attn_forward": "(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, "
    "bool causal, SymInt window_size_left, SymInt window_size_right, float softcap, "
    "Tensor? alibi_slopes, bool return_softmax) -> (Tensor, Tensor, Tensor, Tensor)",
    "_flash_attn_backward": "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, "
    "Tensor softmax_lse, Tensor(a6!)? dq, Tensor(a7!)? dk, Tensor(a8!)? dv, float dropout_p, "
    "float softmax_scale, bool causal, SymInt window_size_left, SymInt window_size_right, "
    "float softcap, Tensor? alibi_slopes, bool deterministic, Tensor? rng_state=None) -> Tensor",
}


def test_ops() -> None:
    module = interface()
    for name in SCHEMAS:
        op = getattr(torch.ops.flash_attn, name)
        assert str(op.default._schema) == f"flash_attn::{name}{SCHEMAS[name]}"
        assert getattr(module, f"_wrapped{name}") is op
    for name in ("_flash_attn_varlen_forward", "_flash_attn_varlen_backward"):
        assert hasattr(torch.ops.flash_attn, name)


def test_ops_compile() -> None:
    torch._dynamo.reset()
    forward = interface()._wrapped_flash_attn_forward

    def attend(x: Tensor) -> Tensor:
        out, lse, _, _ = forward(x, x, x, 0.0, 0.25, True, -1, -1, 0.0, None, False)
        return out * lse.mT.unsqueeze(-1)  # type: ignore[no-any-return]

    x = torch.randn(1, 5, 2, 16)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), attend(x))


# FlashAttention-3.


def test_functions_of_3() -> None:
    three = importlib.import_module("flash_attn_interface")
    q, k, v = torch.randn(2, 9, 4, 16), torch.randn(2, 11, 2, 16), torch.randn(2, 11, 2, 16)
    options: dict[str, Any] = {"causal": True, "window_size": (4, 0), "softcap": 3.0}
    out, lse = flash_attn_func(q, k, v, softmax_scale=0.2, **options, return_lse=True)  # type: ignore[misc]
    assert torch.equal(three.flash_attn_func(q, k, v, 0.2, **options), out)
    both = three.flash_attn_func(q, k, v, 0.2, True, window_size=(4, 0), softcap=3.0)
    assert torch.equal(both, out)
    pair = three.flash_attn_func(q, k, v, 0.2, **options, num_splits=3, return_attn_probs=True)
    assert torch.equal(pair[1], lse)
    qkv = torch.cat([q[:, :, :4], *(x[:, :9] for x in (k, v))], 2)
    packed = three.flash_attn_qkvpacked_func(qkv, causal=True, num_heads_q=4)
    assert torch.equal(packed, flash_attn_func(q, k[:, :9], v[:, :9], causal=True))
    five = torch.randn(2, 9, 3, 2, 16)
    assert torch.equal(
        three.flash_attn_qkvpacked_func(five), flash_attn2.flash_attn_qkvpacked_func(five)
    )
    cu, rows = cumulative(*CU), torch.randn(12, 2, 16)
    used = lengths(3, 0, 6)
    expected = flash_attn_varlen_func(rows, rows, rows, cu, cu, 7, 7, seqused_k=used)
    actual = three.flash_attn_varlen_func(rows, rows, rows, cu, cu, 7, 7, None, used)
    assert torch.equal(actual, expected)


def test_cache_of_3() -> None:
    three = importlib.import_module("flash_attn_interface")
    given = CacheCase(page_size=16, new="neox").arguments(CPU_FLOAT32)
    again = {x: y.clone() if x.endswith("cache") else y for x, y in given.items()}
    expected = flash_attn_with_kvcache(**given, return_lse=True)
    again["page_table"] = again.pop("block_table")
    out, lse, *_ = three.flash_attn_with_kvcache(**again, return_softmax_lse=True)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    assert torch.equal(again["k_cache"].nan_to_num(), given["k_cache"].nan_to_num())
    metadata = three.get_scheduler_metadata(2, 1, 9, 4, 2, 16, lengths(3, 4))
    assert metadata.numel() == 0


@pytest.mark.parametrize("unit", ["sequence", "row"])
@pytest.mark.parametrize("page_size", [None, 16])
@pytest.mark.parametrize("code", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8], ids=str)
def test_cache_of_8_bits_of_3(code: torch.dtype, page_size: int | None, unit: str) -> None:
    three = importlib.import_module("flash_attn_interface")
    case = CacheCase(page_size=page_size, new="neox")
    given = quantised_arguments(case, CPU_FLOAT32, code, unit)
    again = {x: y.clone() if x.endswith(("cache", "descale")) else y for x, y in given.items()}
    expected = flash_attn_with_kvcache(**given)
    again["page_table"] = again.pop("block_table", None)
    assert torch.equal(three.flash_attn_with_kvcache(**again), expected)
    for name in ("k_cache", "v_cache"):  # rows were appended, and by the scales given
        assert torch.equal(again[name].view(torch.uint8), given[name].view(torch.uint8))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("code", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_scales_of_3_are_1_unless_they_are_given(code: torch.dtype, packed: bool) -> None:
    three = importlib.import_module("flash_attn_interface")
    q = torch.randn(6, 4, 16) if packed else torch.randn(2, 3, 4, 16)
    options: dict[str, Any] = {"cache_seqlens": lengths(9, 12)}
    if packed:
        options |= {"cu_seqlens_q": cumulative(2, 4), "max_seqlen_q": 4}
    k, v = (torch.randn(2, 12, 2, 16).to(code) for _ in range(2))
    scale = torch.full((2, 2), 3.0)
    both = flash_attn_with_kvcache(q, k, v, k_descale=torch.ones(2, 2), v_descale=scale, **options)
    assert torch.equal(three.flash_attn_with_kvcache(q, k, v, v_descale=scale, **options), both)
    neither = three.flash_attn_with_kvcache(q, k, v, **options)
    torch.testing.assert_close(neither * 3, both)
    assert neither.abs().max() > 0.1


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_8_bits_of_3_are_those_of_a_cache(name: str) -> None:
    three = importlib.import_module("flash_attn_interface")
    x = torch.randn(1, 4, 2, 16)
    cache = x.to(torch.float8_e4m3fn)
    rows = {"q": x, "k": x, "v": x} | {name: cache}
    message = f"^{name} must be float16, .*, got torch.float8_e4m3fn: only caches"
    with pytest.raises(NotImplementedError, match=message):
        three.flash_attn_func(**rows)
    with pytest.raises(NotImplementedError, match=message):
        three.flash_attn_with_kvcache(
            rows["q"],
            torch.cat([cache, cache], 1),
            torch.cat([cache, cache], 1),
            rows["k"],
            rows["v"],
            cache_seqlens=2,
        )
    with pytest.raises(NotImplementedError, match="qkv must be float16"):
        three.flash_attn_qkvpacked_func(torch.stack([cache] * 3, 2))


def test_scales_of_3_that_do_not_fit() -> None:
    three = importlib.import_module("flash_attn_interface")
    q, cache = torch.randn(1, 4, 2, 16), torch.zeros(1, 8, 2, 16)
    codes, ones = cache.to(torch.float8_e4m3fn), torch.ones(1, 2)
    with pytest.raises(NotImplementedError, match="q_descale must be None"):
        three.flash_attn_with_kvcache(q, codes, codes, q_descale=ones)
    with pytest.raises(ValueError, match=r"with a cache of torch\.float32"):
        three.flash_attn_with_kvcache(q, cache, cache, k_descale=ones)
    with pytest.raises(ValueError, match=r"^v_descale must be \(1, 2\) by sequences"):
        three.flash_attn_with_kvcache(q, codes, codes, v_descale=torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"k_descale must be given .* torch\.int8"):
        three.flash_attn_with_kvcache(q, codes.view(torch.int8), codes.view(torch.int8))


def test_combine() -> None:
    three = importlib.import_module("flash_attn_interface")
    q, k, v = torch.randn(2, 9, 4, 16), torch.randn(2, 12, 2, 16), torch.randn(2, 12, 2, 16)
    expected = flash_attn_func(q, k, v, return_lse=True)
    parts = [
        flash_attn_func(q, k[:, i : i + 4], v[:, i : i + 4], return_lse=True) for i in (0, 4, 8)
    ]
    outs, lses = torch.stack([x for x, _ in parts]), torch.stack([x.mT for _, x in parts])
    given = torch.empty_like(q)
    out, lse = three.flash_attn_combine(outs, lses, given)
    assert out is given
    torch.testing.assert_close((out, lse.mT), expected)
    assert three.flash_attn_combine(outs, lses, out_dtype=torch.bfloat16)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qv": torch.randn(1)}, "qv must be None"),
        ({"q_descale": torch.ones(1)}, "q_descale must be None"),
        ({"attention_chunk": 4}, "attention_chunk must be 0 .* use flash_attn2.masks"),
    ],
)
def test_what_3_does_and_this_does_not(options: dict[str, Any], message: str) -> None:
    three = importlib.import_module("flash_attn_interface")
    q = torch.randn(1, 4, 2, 8)
    with pytest.raises(NotImplementedError, match=message):
        three.flash_attn_func(q, q, q, **options)
    with pytest.raises(NotImplementedError, match=message):
        three.flash_attn_with_kvcache(q, q, q, **options)
    with pytest.raises(NotImplementedError, match="k_descale must be None"):  # without a cache
        three.flash_attn_func(q, q, q, k_descale=torch.ones(1))


# Rotary embedding and padding.


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved: bool) -> None:
    rotary = importlib.import_module("flash_attn.layers.rotary")
    theirs, ours = (
        rotary.RotaryEmbedding(12, 100.0, interleaved),
        RotaryEmbedding(12, 100.0, interleaved),
    )
    qkv = torch.randn(2, 7, 3, 4, 16)
    expected = ours(qkv, offset=3)
    given = qkv.clone()
    assert theirs(given, seqlen_offset=3) is given
    torch.testing.assert_close(given, expected)
    offsets = torch.tensor([3, 5])
    given = qkv.clone()
    torch.testing.assert_close(
        theirs(given, seqlen_offset=offsets, max_seqlen=20), ours(qkv, offset=offsets)
    )
    q, kv = qkv[:, :, 0].clone(), qkv[:, :, 1:].clone()
    turned_q, turned_kv = theirs(q, kv, 3)
    assert turned_q is q
    torch.testing.assert_close(torch.cat([turned_q[:, :, None], turned_kv], 2), expected)
    grouped = torch.cat([qkv[:, :, 0], qkv[:, :, 1, :2], qkv[:, :, 2, :2]], 2)
    turned = theirs(grouped.clone(), seqlen_offset=3, num_heads_q=4)
    torch.testing.assert_close(turned[:, :, :4], expected[:, :, 0])
    torch.testing.assert_close(turned[:, :, 4:6], expected[:, :, 1, :2])
    assert torch.equal(turned[:, :, 6:], grouped[:, :, 6:])
    assert not theirs.state_dict()
    assert theirs.inv_freq.shape == (6,)


def test_rotary_in_place_has_gradients() -> None:
    rotary = importlib.import_module("flash_attn.layers.rotary")
    cos, sin = RotaryEmbedding(16).tables(7)
    qkv = torch.randn(1, 7, 3, 2, 16, requires_grad=True)
    for function, x in (
        (rotary.apply_rotary_emb_qkv_, qkv),
        (rotary.apply_rotary_emb_kv_, qkv[:, :, 1:]),
    ):
        grad = torch.randn_like(x)
        (actual,) = torch.autograd.grad(function(x * 1, cos, sin), qkv, grad)
        assert not torch.equal(actual, torch.zeros_like(qkv))
        # Back by the opposite angle.
        whole = torch.zeros_like(qkv)
        whole[:, :, -x.shape[2] :] = grad
        expected = function(whole[:, :, -x.shape[2] :].clone(), cos, -sin)
        torch.testing.assert_close(actual[:, :, -x.shape[2] :], expected)


def test_xpos() -> None:
    """Products of turned queries and keys depend on the distance alone."""
    rotary = importlib.import_module("flash_attn.layers.rotary")
    module = rotary.RotaryEmbedding(16, scale_base=8)
    x = torch.randn(1, 1, 1, 1, 16).expand(1, 12, 3, 1, 16).clone()
    q, k, v = module(x.clone())[0].unbind(1)
    scores = q[:, 0] @ k[:, 0].mT
    for distance in (-2, 0, 3):
        diagonal = scores.diag(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert torch.equal(v, x[0, :, 2])


def test_rotary_errors() -> None:
    rotary = importlib.import_module("flash_attn.layers.rotary")
    cos, sin = RotaryEmbedding(16).tables(7)
    with pytest.raises(ValueError, match=r"qkv must be .* got shape .* and num_heads_q=None"):
        rotary.apply_rotary_emb_qkv_(torch.randn(1, 7, 6, 16), cos, sin)
    with pytest.raises(ValueError, match=r"kv must be .* got shape"):
        rotary.apply_rotary_emb_kv_(torch.randn(1, 7, 3, 2, 16), cos, sin)
    with pytest.raises(ValueError, match="max_seqlen must be given with a tensor"):
        rotary.RotaryEmbedding(16)(torch.randn(1, 7, 3, 2, 16), seqlen_offset=torch.tensor([1]))


def test_padding() -> None:
    padding = importlib.import_module("flash_attn.bert_padding")
    x, mask = torch.randn(3, 5, 2), torch.rand(3, 5) > 0.4
    packed, indices, *_ = padding.unpad_input(x, mask)
    flat = x.flatten(0, 1)
    assert torch.equal(padding.index_first_axis(flat, indices), packed)
    put = padding.index_put_first_axis(packed, indices, 15)
    assert torch.equal(put, padding.pad_input(packed, indices, 3, 5).flatten(0, 1))
    with pytest.raises(ValueError, match="values must have a row for each of"):
        padding.index_put_first_axis(packed[1:], indices, 15)
    with pytest.raises(ValueError, match="indices must be from 0 to first_axis_dim"):
        padding.index_put_first_axis(packed, indices, 2)


def test_signatures() -> None:
    """Of flash-attn 2.8.3 and FlashAttention-3, where they differ from this package's."""
    names = list(inspect.signature(interface()._flash_attn_varlen_forward._init_fn).parameters)
    assert names[-4:] == ["block_table", "leftpad_k", "seqused_k", "zero_tensors"]
    three = importlib.import_module("flash_attn_interface")
    names = list(inspect.signature(three.flash_attn_func).parameters)
    assert names[3:6] == ["softmax_scale", "causal", "qv"]
    assert names[-1] == "return_attn_probs"
