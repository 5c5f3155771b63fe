"""KV caches of 8 bits around the kernels: errors, ops and torch.compile, PagedKVCache, nn."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cache_cases import CacheCase, bits
from code_cases import CODES, UNITS, quantised_arguments
from support import CPU_FLOAT32, TORCH, lengths
from torch import Tensor

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache, kvcache
from flash_attn2._impl.forms import Form
from flash_attn2._impl.problem import Problem
from flash_attn2.inference import PagedKVCache
from flash_attn2.nn import Attention, RotaryEmbedding
from flash_attn2.reference import dequantised

codes = pytest.mark.parametrize("code", CODES, ids=str)

Arguments = dict[str, Any]


def dense() -> Arguments:
    return {
        "q": torch.randn(2, 3, 4, 16),
        "k_cache": torch.zeros(3, 20, 2, 16).to(torch.int8),
        "v_cache": torch.zeros(3, 20, 2, 16).to(torch.int8),
        "k": torch.randn(2, 3, 2, 16),
        "v": torch.randn(2, 3, 2, 16),
        "k_descale": torch.ones(2, 2),
        "v_descale": torch.ones(3, 20, 2),
        "cache_seqlens": lengths(5, 17),
    }


def paged(pages: int = 6) -> Arguments:
    table = lengths(4, 0, 1, 3).view(2, 2)
    cache = torch.zeros(pages, 10, 2, 16).to(torch.int8)
    return (
        dense()
        | {"k_cache": cache, "v_cache": cache.clone(), "block_table": table}
        | {"v_descale": torch.ones(pages, 10, 2)}
    )


def at(x: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    x = x.clone()
    x[place] = value
    return x


ERRORS: dict[str, tuple[Callable[[], Arguments], Arguments, type[Exception], str]] = {
    "missing": (dense, {"v_descale": None}, ValueError, "v_descale must be given with a cache of"),
    "of_16_bits": (
        dense,
        {name: torch.zeros(3, 20, 2, 16) for name in ("k_cache", "v_cache")},
        ValueError,
        "k_descale must be None with a cache of torch.float32",
    ),
    "dtype": (
        dense,
        {"k_descale": torch.ones(2, 2).half()},
        TypeError,
        "k_descale must be float32",
    ),
    "device": (
        dense,
        {"k_descale": torch.ones(2, 2, device="meta")},
        ValueError,
        "k_descale must be on the device of q",
    ),
    "shape": (
        dense,
        {"k_descale": torch.ones(3, 2)},
        ValueError,
        r"be \(2, 2\) by sequences, \(3, 1, 2\) by rows of the cache, or \(3, 20, 2\) by tokens",
    ),
    "heads": (paged, {"v_descale": torch.ones(6, 10, 1)}, ValueError, "v_descale must be"),
    "pages": (
        lambda: paged(2) | {"block_table": lengths(0, 1).view(2, 1), "cache_seqlens": 5},
        {"v_descale": torch.ones(2, 2)},
        ValueError,
        "k_descale must say whether its scales are of sequences or pages, which are 2",
    ),
    "zero": (dense, {"k_descale": at(torch.ones(2, 2), (1, 0), 0.0)}, ValueError, "got 0.0"),
    "negative": (dense, {"k_descale": at(torch.ones(2, 2), (1, 1), -2.0)}, ValueError, "got -2.0"),
    "nan": (dense, {"k_descale": at(torch.ones(2, 2), (0, 1), torch.nan)}, ValueError, "got nan"),
    "infinite": (paged, {"k_descale": torch.full((2, 2), torch.inf)}, ValueError, "got inf"),
    "page_in_use": (
        paged,
        {"k_descale": at(torch.ones(6, 1, 2), (1, 0, 1), 0.0)},
        ValueError,
        "k_descale must hold positive numbers, got 0.0",
    ),
    "queries": (dense, {"q": torch.zeros(2, 3, 4, 16).double()}, TypeError, "q must be float16"),
    "fp8_queries": (
        dense,
        {"q": torch.zeros(2, 3, 4, 16).to(torch.float8_e5m2)},
        TypeError,
        "q must be float16, bfloat16, float32 or float64, got torch.float8_e5m2",
    ),
    "two_dtypes": (
        dense,
        {"v_cache": torch.zeros(3, 20, 2, 16).to(torch.float8_e5m2)},
        TypeError,
        "v_cache must have the dtype of k_cache",
    ),
    "other_dtype": (
        dense,
        {name: torch.zeros(3, 20, 2, 16).to(torch.uint8) for name in ("k_cache", "v_cache")},
        TypeError,
        "create the cache with dtype=torch.float32, or one of float8_e4m3fn",
    ),
    "new_codes": (dense, {"k": torch.zeros(2, 3, 2, 16).to(torch.int8)}, TypeError, "k must have"),
    "overlap": (
        dense,
        {"v_descale": torch.ones(3, 1, 2).expand(3, 20, 2)},
        ValueError,
        "v_descale must not overlap itself",
    ),
}


@pytest.mark.parametrize(("base", "bad", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(
    base: Callable[[], Arguments], bad: Arguments, error: type[Exception], message: str
) -> None:
    """And an untouched cache."""
    arguments = base() | bad
    written = ("k_cache", "v_cache", "v_descale")
    before = {x: arguments[x].clone() for x in written if arguments[x] is not None}
    with pytest.raises(error, match=message):
        flash_attn_with_kvcache(**arguments)
    for name, x in before.items():
        torch.testing.assert_close(arguments[name], x, rtol=0, atol=0, equal_nan=True)


def test_shared_scales() -> None:
    scales = torch.ones(3, 20, 2)
    arguments = dense() | {"k_descale": scales, "v_descale": scales}
    with pytest.raises(ValueError, match="k_descale and v_descale must not share memory"):
        flash_attn_with_kvcache(**arguments)
    arguments["v_cache"], arguments["v"] = arguments["k_cache"][..., :8], None
    flash_attn_with_kvcache(**arguments)
    with pytest.raises(ValueError, match="v_descale must be k_descale where v_cache is"):
        flash_attn_with_kvcache(**arguments | {"v_descale": scales.clone()})


def test_a_wrong_scale_of_a_token_is_seen() -> None:
    case = CacheCase(16, (2, 2), 1, new="none", mask="full")
    arguments = quantised_arguments(case, CPU_FLOAT32, torch.int8, "row")
    for value in (0.0, -1.0, torch.nan):
        scales = at(arguments["v_descale"], (1, 7, 0), value)
        out = flash_attn_with_kvcache(**arguments | {"v_descale": scales})
        assert out[1, :, 0].isnan().all()
        assert not out[[0, 2]].isnan().any()


def test_paged_varlen_keeps_to_one_dtype() -> None:
    k = torch.zeros(4, 8, 2, 16).to(torch.int8)
    cu = lengths(0, 3)
    with pytest.raises(TypeError, match="k must have the dtype of q"):
        flash_attn_varlen_func(
            torch.randn(3, 2, 16), k, k, cu, cu, 3, 3, block_table=lengths(0)[None]
        )


# Ops


def op_and_arguments(arguments: Arguments) -> tuple[Any, tuple[Any, ...]]:
    seen: list[Any] = []

    def record(form: Form, p: Problem) -> tuple[Tensor, Tensor]:
        seen.extend((form, p))
        return p.q, p.q

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kvcache, "attend", record)
        flash_attn_with_kvcache(**arguments)
    form, p = seen
    return getattr(torch.ops.flash_attn2, form.op).default, form.signature.flatten(p)


def int8_arguments(unit: str, new: str) -> Arguments:
    """Without NaN among scales, which tools that compare tensors take for differences."""
    case = CacheCase(16, page_size=16, new=new)
    arguments = quantised_arguments(case, CPU_FLOAT32, torch.int8, unit)
    for name in ("k_descale", "v_descale"):
        arguments[name] = arguments[name].nan_to_num(1.0)
    return arguments


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("new", ["none", "neox"])
def test_opcheck(new: str, unit: str) -> None:
    torch.library.opcheck(*op_and_arguments(int8_arguments(unit, new)))


@pytest.mark.parametrize("unit", ["sequence", "row"])
@pytest.mark.parametrize("new", ["none", "neox"])
def test_compile(new: str, unit: str) -> None:
    torch._dynamo.reset()

    def layer(q: Tensor, **arguments: Any) -> Tensor:
        return flash_attn_with_kvcache(q * 2, **arguments).sum(-1)

    eager = int8_arguments(unit, new)
    traced = {k: v.clone() if isinstance(v, Tensor) else v for k, v in eager.items()}
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**traced), layer(**eager))
    for name in ("k_cache", "v_cache", "k_descale", "v_descale"):
        assert torch.equal(traced[name], eager[name])


@pytest.mark.skipif(TORCH < (2, 6), reason="Inductor of torch 2.5 reads wrongly what ops write to")
def test_compiled_layers_of_a_paged_cache() -> None:
    """Views of one tensor, scales too."""
    torch._dynamo.reset()
    caches = [PagedKVCache(2, 4, 4, 2, 16, torch.int8) for _ in range(2)]
    q, k = torch.randn(5, 4, 16), torch.randn(5, 2, 16)

    def model(q: Tensor, k: Tensor, layers: Any, scales: Any, step: Any) -> Tensor:
        for caches, (k_descale, v_descale) in zip(layers, scales, strict=True):
            q = q + flash_attn_with_kvcache(
                q, *caches, k, k * 2, **step, causal=True, k_descale=k_descale, v_descale=v_descale
            )
        return q

    results = []
    for function, cache in zip((model, torch.compile(model, fullgraph=True)), caches, strict=True):
        step = cache.append([cache.allocate()], [5])._asdict()
        results.append(function(q, k, cache.layers, cache.descales, step))
    torch.testing.assert_close(*results)
    for a, b in zip(*(x.layers + x.descales for x in caches), strict=True):
        assert torch.equal(a[0].flatten(0, 1)[:5], b[0].flatten(0, 1)[:5])


# PagedKVCache and nn


@codes
def test_pages(code: torch.dtype) -> None:
    """Forks have scales of their own, copies too; attention is that over what codes stand for."""
    cache = PagedKVCache(2, 8, 4, 2, 24, code, head_dim_v=16)
    assert cache.dtype == code
    assert cache.usage().bytes_total == 2 * 8 * 4 * 2 * (24 + 16 + 2 * 4)
    k, v = torch.randn(9, 2, 24), torch.randn(9, 2, 16)
    write(cache, parent := cache.allocate(), k, v)
    child = cache.fork(parent, 6)
    write(cache, child, 100 * k[:1], 100 * v[:1])
    for sequence, expected in ((parent, k[6]), (child, 100 * k[0])):
        step = cache.append([sequence], [0])
        page = int(step.block_table[0, 1])
        (k_cache, _), (k_descale, _) = cache.layers[1], cache.descales[1]
        row = dequantised(k_cache[page, 2], k_descale[page, 2], torch.float32)
        assert (row - expected).abs().max() <= expected.abs().max() / 8
    copies = (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache)))
    for made in copies:
        assert len(made.descales) == 2
        for scales, others in zip(made.descales, cache.descales, strict=True):
            assert torch.equal(scales[1], others[1])
            assert scales[1].data_ptr() != others[1].data_ptr()
    first, *others = (write(made, child, k, v) for made in (cache, *copies))
    for other in others:
        assert torch.equal(first, other)


def write(cache: PagedKVCache, sequence: int, k: Tensor, v: Tensor) -> Tensor:
    """Of the last layer, against dense attention over what it holds."""
    step = cache.append([sequence], [k.shape[0]])
    q = torch.ones(k.shape[0], 4, 24)
    for caches, (k_descale, v_descale) in zip(cache.layers, cache.descales, strict=True):
        scales = {"k_descale": k_descale, "v_descale": v_descale}
        out = flash_attn_with_kvcache(q, *caches, k, v, causal=True, **scales, **step._asdict())
    numbers = [
        dequantised(x, scales, torch.float32)
        for x, scales in zip(caches, (k_descale, v_descale), strict=True)
    ]
    expected = flash_attn_with_kvcache(
        q,
        *numbers,
        causal=True,
        **step._replace(cache_seqlens=step.cache_seqlens + len(k))._asdict(),
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert isinstance(out, Tensor)
    return out


def test_shared_pages() -> None:
    cache = PagedKVCache(1, 8, 4, 1, 48, torch.int8, head_dim_v=32, shared_kv=True)
    (k_descale, v_descale), (k_cache, v_cache) = cache.descales[0], cache.layers[0]
    assert v_descale.data_ptr() == k_descale.data_ptr()
    step = cache.append([cache.allocate()], [5])._asdict()
    q, k = torch.randn(5, 16, 48), torch.randn(5, 1, 48)
    scales = {"k_descale": k_descale, "v_descale": v_descale}
    out = flash_attn_with_kvcache(q, k_cache, v_cache, k, causal=True, **scales, **step)
    numbers = dequantised(k_cache, k_descale, torch.float32)
    step["cache_seqlens"] = lengths(5)
    expected = flash_attn_with_kvcache(q, numbers, numbers[..., :32], causal=True, **step)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_other_dtypes_of_a_paged_cache() -> None:
    assert PagedKVCache(3, 2, 4, 1, 8).descales == ((), (), ())
    with pytest.raises(TypeError, match="or float8_e4m3fn, float8_e5m2, int8, got"):
        PagedKVCache(1, 2, 4, 1, 8, torch.uint8)


def test_nn_attention() -> None:
    layer = Attention(32, 4, 2, causal=True, rotary=RotaryEmbedding(8)).eval()
    x = torch.randn(7, 32)
    results = []
    for dtype in (torch.float32, torch.int8):
        cache = PagedKVCache(1, 4, 4, 2, 8, dtype)
        sequence = cache.allocate()
        with torch.no_grad():
            for part in (x[:5], x[5:6], x[6:]):
                step = cache.append([sequence], [len(part)])
                of_layer = (*cache.layers[0], *cache.descales[0])
                out = layer(part, cache=of_layer, step=step)
        results.append(out)
    torch.testing.assert_close(*results, rtol=0.02, atol=0.02)
    with pytest.raises(TypeError, match="k_cache, v_cache, k_descale, v_descale"):
        layer(x[:1], cache=of_layer[:3], step=step)


def test_token_by_token() -> None:
    """A cache that is appended to token by token is the one that takes all at once."""
    q, k, v = torch.randn(1, 6, 4, 16), *torch.randn(2, 1, 6, 2, 16)
    caches = [torch.zeros(1, 8, 2, 16).to(torch.float8_e4m3fn) for _ in range(4)]
    scales = [torch.ones(1, 8, 2) for _ in range(4)]

    def append(i: int, begin: int, end: int) -> None:
        flash_attn_with_kvcache(
            q[:, begin:end],
            *caches[i : i + 2],
            k[:, begin:end],
            v[:, begin:end],
            cache_seqlens=begin,
            k_descale=scales[i],
            v_descale=scales[i + 1],
        )

    append(0, 0, 6)
    for token in range(6):
        append(2, token, token + 1)
    for i in range(2):
        assert torch.equal(bits(caches[i]), bits(caches[i + 2]))
        assert torch.equal(scales[i], scales[i + 2])


def test_gradients_are_refused() -> None:
    arguments = dense()
    arguments["v_descale"].requires_grad_()
    with pytest.raises(NotImplementedError, match="no gradient"):
        flash_attn_with_kvcache(**arguments)
