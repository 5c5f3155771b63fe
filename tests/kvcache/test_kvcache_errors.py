"""Bad input around a KV cache: an error that names the argument, and an untouched cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import Target, lengths, targets
from torch import Tensor

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache

META = torch.device("meta")
Bad = dict[str, Any]


def dense() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 3, 4, 16),
        "k_cache": torch.randn(3, 20, 2, 16),
        "v_cache": torch.randn(3, 20, 2, 16),
        "k": torch.randn(2, 3, 2, 16),
        "v": torch.randn(2, 3, 2, 16),
        "rotary_cos": torch.rand(20, 4),
        "rotary_sin": torch.rand(20, 4),
        "cache_seqlens": lengths(5, 17),
        "causal": True,
    }


def read_only() -> dict[str, Any]:
    new = {"k", "v", "rotary_cos", "rotary_sin"}
    return {name: value for name, value in dense().items() if name not in new}


def paged() -> dict[str, Any]:
    return dense() | {
        "k_cache": torch.randn(6, 8, 2, 16),
        "v_cache": torch.randn(6, 8, 2, 16),
        "block_table": lengths(4, -1, 99, 1, 0, 5).view(2, 3),
    }


def packed() -> dict[str, Any]:
    return paged() | {
        "q": torch.randn(6, 4, 16),
        "k": torch.randn(6, 2, 16),
        "v": torch.randn(6, 2, 16),
        "cu_seqlens_q": lengths(0, 2, 6),
    }


HEADS_FIRST = torch.randn(3, 2, 20, 16)
DENSE = [
    (
        {"k_cache": HEADS_FIRST, "v_cache": HEADS_FIRST},
        ValueError,
        r"pass k_cache.transpose\(1, 2\)",
    ),
    ({"k": torch.randn(2, 2, 3, 16)}, ValueError, r"got .* pass k.transpose\(1, 2\)"),
    ({"q": torch.randn(2, 4, 3, 16)}, ValueError, r"got 3 and 2: .* pass q.transpose\(1, 2\)"),
    ({"k_cache": torch.randn(3, 20, 2, 8)}, ValueError, r"k_cache must have the head_dim of q, 16"),
    ({"v_cache": torch.randn(3, 20, 1, 16)}, ValueError, r"v_cache must have the shape of k_cache"),
    ({"casual": True}, TypeError, r"no argument 'casual': use causal"),
    ({"is_causal": True}, TypeError, r"no argument 'is_causal': use causal"),
    ({"scale": 1.0}, TypeError, r"no argument 'scale': use softmax_scale"),
    ({"return_lse": "yes"}, TypeError, r"return_lse must be a bool, got str 'yes'"),
    ({"kcache": 1}, TypeError, r"no argument 'kcache': use k_cache"),
    ({"q": [1.0]}, TypeError, r"q must be a torch.Tensor, got list"),
    ({"v_cache": None}, TypeError, r"v_cache must be a torch.Tensor, got NoneType"),
    ({"k": 1.0}, TypeError, r"k must be a torch.Tensor, got float"),
    ({"q": torch.randn(3, 4, 16)}, ValueError, r"q must be \(batch, seqlen_q, .* got shape \(3, 4"),
    ({"q": torch.zeros(2, 3, 4, 16).int()}, TypeError, r"q must be float16, .* got torch.int32"),
    ({"q": torch.randn(2, 3, 3, 16)}, ValueError, r"num_heads of q .* k_cache .* got 3 and 2"),
    ({"q": torch.randn(2, 3, 4, 8)}, ValueError, r"k_cache must have the head_dim of q, 8, got 16"),
    ({"q": torch.randn(4, 3, 4, 16)}, ValueError, r"cache_seqlens must have shape \(4,\), got \(2"),
    ({"k_cache": torch.randn(3, 20, 16)}, ValueError, r"k_cache must be \(batch_cache, .* \(3, 20"),
    (
        {"k_cache": torch.randn(3, 20, 2, 16).half()},
        TypeError,
        r"k_cache .* of q, .*float32, got .*16",
    ),
    ({"v_cache": torch.randn(3, 20, 2, 16, device=META)}, ValueError, r"v_cache .* cpu, got meta"),
    ({"v_cache": torch.randn(3, 19, 2, 16)}, ValueError, r"v_cache must have .* k_cache .*\(3, 20"),
    ({"k": torch.randn(2, 3, 4, 16)}, ValueError, r"k must be \(2, seqlen_new, 2, 16\), .* \(2, 3"),
    ({"k": torch.randn(6, 2, 16)}, ValueError, r"k must be \(2, seqlen_new, .* got shape \(6, 2"),
    ({"k": torch.randn(2, 3, 2, 16).double()}, TypeError, r"k must have the dtype of q, torch.fl"),
    (
        {"v": torch.randn(2, 2, 2, 16)},
        ValueError,
        r"v must have the shape of k .*\(2, 3, 2, head_dim_v\), g",
    ),
    ({"v": None}, ValueError, r"v must be given with k, got v=None"),
    ({"k": None}, ValueError, r"k must be given with v, got k=None"),
    ({"rotary_sin": None}, ValueError, r"rotary_sin must be given with rotary_cos, got rotary_sin"),
    ({"rotary_cos": None}, ValueError, r"rotary_cos must be given with rotary_sin, got rotary_cos"),
    ({"k": None, "v": None}, ValueError, r"rotary_cos must come with k"),
    (
        {"rotary_cos": torch.rand(20, 9)},
        ValueError,
        r"rotary_cos must be \(positions, .* 16, .* 9\)",
    ),
    (
        {"rotary_cos": torch.rand(20, 0)},
        ValueError,
        r"rotary_cos must be \(positions, .* \(20, 0\)",
    ),
    ({"rotary_cos": torch.rand(0, 4)}, ValueError, r"rotary_cos must be \(positions, .* \(0, 4\)"),
    ({"rotary_cos": torch.rand(20)}, ValueError, r"rotary_cos must be \(positions, .* \(20,\)"),
    (
        {"rotary_sin": torch.rand(20, 5)},
        ValueError,
        r"rotary_sin must have the shape of rotary_cos",
    ),
    (
        {"rotary_sin": torch.rand(20, 4).half()},
        TypeError,
        r"rotary_sin must be float32 or have the dtype of q, torch.float32, got torch.float16",
    ),
    (
        {"rotary_cos": torch.rand(19, 4), "rotary_sin": torch.rand(19, 4)},
        ValueError,
        r"rotary_cos must have a row for each of 20 positions, got 19",
    ),
    ({"cache_seqlens": None}, ValueError, r"cache_seqlens must say where .* got None"),
    ({"cache_seqlens": 5.0}, TypeError, r"cache_seqlens must be an int or .* got float"),
    ({"cache_seqlens": [5, 17]}, TypeError, r"cache_seqlens must be an int or .* got list"),
    ({"cache_seqlens": lengths(5, 17).long()}, TypeError, r"cache_seqlens must be int32, got"),
    (
        {"cache_seqlens": lengths(5)},
        ValueError,
        r"cache_seqlens must have shape \(2,\), got \(1,\)",
    ),
    (
        {"cache_seqlens": lengths(5, 18)},
        ValueError,
        r"cache_seqlens .* 20 .* 18 and 3 new ones at 1",
    ),
    (
        {"cache_seqlens": lengths(-1, 7)},
        ValueError,
        r"cache_seqlens must be from 0 .* got -1 .*at 0",
    ),
    ({"cache_seqlens": 18}, ValueError, r"cache_seqlens must be from 0 .* 20 .* 18 and 3 new ones"),
    ({"cache_seqlens": -1}, ValueError, r"cache_seqlens must be from 0 to .* got -1"),
    ({"cache_leftpad": lengths(0, 21)}, ValueError, r"cache_leftpad .* got 21 of 20 rows at 1"),
    (
        {"cache_leftpad": lengths(-1, 0)},
        ValueError,
        r"cache_leftpad must be .* got -1 of 8 rows at 0",
    ),
    (
        {"cache_leftpad": lengths(1)},
        ValueError,
        r"cache_leftpad must have shape \(2,\), got \(1,\)",
    ),
    ({"cache_leftpad": 1}, TypeError, r"cache_leftpad must be a torch.Tensor, got int"),
    ({"cache_batch_idx": lengths(0, 3)}, ValueError, r"cache_batch_idx .* 0 to 2, .* got 3 at 1"),
    ({"cache_batch_idx": lengths(-1, 2)}, ValueError, r"cache_batch_idx .* got -1 at 0"),
    ({"cache_batch_idx": lengths(0, 2).short()}, TypeError, r"cache_batch_idx must be int32, got"),
    (
        {"cache_batch_idx": lengths(1, 1), "cache_seqlens": lengths(5, 7)},
        ValueError,
        r"cache_batch_idx .* sequences 0 and 1 in cache row 1 at 7",
    ),
    (
        {"block_table": lengths(0, 1)[:, None], "cache_batch_idx": lengths(0, 1)},
        ValueError,
        r"block_table and cache_batch_idx must not both be given",
    ),
    ({"cu_seqlens_k_new": lengths(0, 1, 2)}, ValueError, r"cu_seqlens_k_new must come with cu_seq"),
    ({"num_splits": -1}, ValueError, r"num_splits must be from 1 to 128, or 0 .* got -1"),
    ({"num_splits": 129}, ValueError, r"num_splits must be from 1 to 128, or 0 .* got 129"),
    ({"num_splits": 2.0}, TypeError, r"num_splits must be an int, got float"),
    ({"softcap": -1.0}, ValueError, r"softcap must be 0"),
    ({"window_size": 5}, TypeError, r"window_size must be a pair of integers"),
    ({"sink": torch.rand(2)}, ValueError, r"sink must have shape \(4,\), got \(2,\)"),
    ({"alibi_slopes": torch.rand(3, 4)}, ValueError, r"alibi_slopes .* \(2, 4\), got \(3, 4\)"),
]
PAGED = [
    ({"block_table": [[0]]}, TypeError, r"block_table must be a torch.Tensor, got list"),
    ({"block_table": lengths(0, 1)}, ValueError, r"block_table must be \(2, pages .* shape \(2,\)"),
    (
        {"block_table": lengths(0, 1)[None]},
        ValueError,
        r"block_table must be \(2, .* shape \(1, 2\)",
    ),
    (
        {"block_table": torch.zeros(2, 3)},
        TypeError,
        r"block_table must be int32, got torch.float32",
    ),
    (
        {"block_table": lengths(4, 2, 3, 1, 6, 5).view(2, 3)},
        ValueError,
        r"block_table must hold pages from 0 to 5 for the 20 rows of sequence 1, got 6 at \[1, 1\]",
    ),
    ({"cache_seqlens": lengths(5, 22)}, ValueError, r"cache_seqlens .* 24 rows, got 22 and 3 new"),
    ({"cache_seqlens": lengths(6, 17)}, ValueError, r"block_table .* 9 rows .* got -1 at \[0, 1\]"),
    (
        {"k_cache": torch.randn(6, 0, 2, 16)},
        ValueError,
        r"k_cache must have a page_size of at least",
    ),
    (
        {"block_table": lengths(5, -1, 99, 1, 0, 5).view(2, 3), "cache_seqlens": lengths(1, 17)},
        ValueError,
        r"block_table .* sequences 0 and 1 in page 5 at 1",
    ),
]
PACKED = [
    ({"q": torch.randn(2, 3, 4, 16)}, ValueError, r"q must be \(total_q, num_heads, .* got shape"),
    ({"k": torch.randn(2, 3, 2, 16)}, ValueError, r"k must be \(total_new, 2, 16\), got shape"),
    ({"cu_seqlens_q": [0, 2, 6]}, TypeError, r"cu_seqlens_q must be a torch.Tensor, got list"),
    ({"cu_seqlens_q": lengths()}, ValueError, r"cu_seqlens_q must have batch \+ 1 elements, got 0"),
    ({"cu_seqlens_q": lengths(0, 2, 6).long()}, TypeError, r"cu_seqlens_q must be int32"),
    ({"cu_seqlens_q": lengths(0, 2, 7)}, ValueError, r"cu_seqlens_q must end within the 6 rows"),
    ({"cu_seqlens_q": lengths(0, 5, 2)}, ValueError, r"cu_seqlens_q must not decrease, got 5 f"),
    ({"cu_seqlens_k_new": lengths(0, 2)}, ValueError, r"cu_seqlens_k_new must have shape \(3,\)"),
    ({"cu_seqlens_k_new": lengths(0, 2, 7)}, ValueError, r"cu_seqlens_k_new must end within the 6"),
    (
        {"cu_seqlens_k_new": lengths(1, 2, 3)},
        ValueError,
        r"cu_seqlens_k_new must start at 0, got 1",
    ),
    ({"max_seqlen_q": 3}, ValueError, r"max_seqlen_q must not be below .* 4, got 3"),
    ({"max_seqlen_q": -1}, ValueError, r"max_seqlen_q must be from 0 to \d+, got -1"),
    ({"max_seqlen_q": 4.0}, TypeError, r"max_seqlen_q must be an int, got float"),
    ({"cache_seqlens": lengths(5, 21)}, ValueError, r"cache_seqlens .* 21 and 4 new ones at 1"),
]


def profiled(**arguments: Any) -> Any:
    """The profiler makes the call go through the dispatcher."""
    with torch.profiler.profile():
        return flash_attn_with_kvcache(**arguments)


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in arguments.items()}


def assert_unchanged(arguments: dict[str, Any], before: dict[str, Any]) -> None:
    for name, value in before.items():
        if isinstance(value, Tensor) and not value.is_meta:
            assert torch.equal(arguments[name], value), f"{name} has changed"


@pytest.mark.parametrize(
    ("arguments", "bad", "error", "message"),
    [
        *((dense, *rest) for rest in DENSE),
        *((paged, *rest) for rest in PAGED),
        *((packed, *rest) for rest in PACKED),
    ],
)
def test_call(
    arguments: Callable[[], dict[str, Any]], bad: Bad, error: type[Exception], message: str
) -> None:
    given = arguments() | bad
    caches = {x: given[x] for x in ("k_cache", "v_cache") if given[x] is not None}
    before = {name: cache.clone() for name, cache in caches.items()}
    with pytest.raises(error, match=message):
        flash_attn_with_kvcache(**given)
    for name, cache in before.items():
        assert cache.is_meta or torch.equal(given[name], cache)


def test_cache_of_another_dtype_under_autocast() -> None:
    advice = r"k_cache .* got torch.float32: create the cache with dtype=torch.bfloat16"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=advice):
        flash_attn_with_kvcache(**dense())


@pytest.mark.parametrize("compiled", [False, True])
def test_integers_without_dimensions(compiled: bool) -> None:
    """Of NumPy and torch; when compiled, without an end of the graph."""
    torch._dynamo.reset()
    given = packed()
    for name in ("rotary_cos", "rotary_sin"):
        del given[name]
    before = copied(given)
    expected = flash_attn_with_kvcache(**given | {"cache_seqlens": 5, "max_seqlen_q": 4})
    call = flash_attn_with_kvcache
    integers: list[Any] = [torch.tensor, lambda x: torch.tensor(x, dtype=torch.int32)]
    if compiled:
        call = torch.compile(call, fullgraph=True, backend="aot_eager")
    else:
        integers += [np.int64, np.int32, np.array]
    for integer in integers:
        given = copied(before) | {"cache_seqlens": integer(5), "max_seqlen_q": integer(4)}
        assert torch.equal(call(**given), expected)
    for wrong in (2**40 + 5, -(2**40)):
        given = copied(before)
        with pytest.raises(ValueError, match="cache_seqlens must be from 0"):
            call(**given | {"cache_seqlens": torch.tensor(wrong)})
        assert_unchanged(given, before)


def test_pages_that_a_sequence_has_twice() -> None:
    arguments = paged() | {name: torch.randn(2, 10, 2, 16) for name in ("q", "k", "v")}
    arguments |= {
        "cache_seqlens": lengths(7, 0),
        "block_table": lengths(4, 4, 4, 1, 0, 5).view(2, 3),
    }
    with pytest.raises(ValueError, match=r"block_table .* sequences 0 and 0 in page 4 at 7"):
        flash_attn_with_kvcache(**arguments | {"q": torch.randn(2, 3, 4, 16)})


def test_one_page_may_take_rows_of_two_sequences_side_by_side() -> None:
    arguments = paged() | {"cache_seqlens": lengths(0, 3)}
    arguments["block_table"] = lengths(4, -1, -1, 4, -1, -1).view(2, 3)
    flash_attn_with_kvcache(**arguments)


def test_cache_with_too_few_rows() -> None:
    arguments = read_only() | {"k_cache": torch.randn(1, 20, 2, 16)}
    arguments["v_cache"] = arguments["k_cache"]
    with pytest.raises(
        ValueError, match=r"k_cache must have a row for each of the 2 .* got 1 rows"
    ):
        flash_attn_with_kvcache(**arguments)


def test_arguments_that_need_new_keys() -> None:
    cos = torch.rand(20, 4)
    for bad, message in (
        ({"rotary_cos": cos, "rotary_sin": cos}, r"rotary_cos must come with k"),
        ({"cu_seqlens_k_new": lengths(0, 3, 6)}, r"cu_seqlens_k_new must come with k"),
    ):
        with pytest.raises(ValueError, match=message):
            flash_attn_with_kvcache(**read_only() | bad)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache", "sink", "alibi_slopes", "k", "v"])
def test_no_gradient(name: str, observed: bool) -> None:
    """Forward runs unless the append would lose a gradient; only a backward pass complains."""
    options = {"sink": torch.rand(4), "alibi_slopes": torch.rand(4)}
    call = profiled if observed else flash_attn_with_kvcache
    if name not in ("k", "v"):
        arguments = read_only() | options
        expected = flash_attn_with_kvcache(**arguments)
        arguments[name].requires_grad_()
        out, lse = call(**arguments, return_softmax_lse=True)
        assert torch.equal(out, expected)
        for result in (out, lse):
            assert result.requires_grad
            with pytest.raises(NotImplementedError, match=r"no gradient.*torch.no_grad"):
                result.sum().backward(retain_graph=True)
    arguments = dense() | options
    arguments[name].requires_grad_()
    before = copied(arguments)
    if name in ("q", "sink", "alibi_slopes"):
        assert call(**arguments).requires_grad
    else:
        with pytest.raises(NotImplementedError, match=r"no gradient.*would lose.*torch.no_grad"):
            call(**arguments)
        assert_unchanged(arguments, before)
    with torch.no_grad():
        assert not call(**arguments).requires_grad


@pytest.mark.parametrize(
    "overlap",
    [
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:, :1].expand(x.shape),
        lambda x: x[:, :, :1].expand(x.shape),
    ],
    ids=["batch", "rows", "heads"],
)
def test_caches_that_overlap_themselves(overlap: Callable[[Tensor], Tensor]) -> None:
    for name in ("k_cache", "v_cache"):
        arguments = dense()
        arguments[name] = overlap(arguments[name])
        with pytest.raises(ValueError, match=rf"{name} must not overlap itself .* strides"):
            flash_attn_with_kvcache(**arguments)
        arguments = read_only()
        expected = flash_attn_with_kvcache(**arguments | {name: overlap(arguments[name]).clone()})
        arguments[name] = overlap(arguments[name])
        torch.testing.assert_close(flash_attn_with_kvcache(**arguments), expected)


def test_one_cache_for_keys_and_values() -> None:
    arguments = dense()
    with pytest.raises(ValueError, match=r"k_cache and v_cache must not be the same memory"):
        flash_attn_with_kvcache(**arguments | {"v_cache": arguments["k_cache"]})
    flash_attn_with_kvcache(**read_only() | {"v_cache": arguments["k_cache"]})


def test_last_stride() -> None:
    arguments = dense()
    arguments["v_cache"] = arguments["v_cache"].transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match=r"v_cache must have a last stride of 1.* strides \(640,"):
        flash_attn_with_kvcache(**arguments)


@targets([Target("sm80-emulated", torch.bfloat16)])
def test_layout_that_kernels_cannot_read(target: Target) -> None:
    q, cache = target.tensor(2, 1, 2, 64), target.tensor(2, 9, 2, 64)
    misaligned = target.tensor(2, 9, 2, 80)[..., 4:68]
    narrow = target.tensor(2, 9, 2, 68)[..., :64]
    for bad in (misaligned, narrow):
        with pytest.raises(ValueError, match=r"v_cache must have rows on 16-byte boundaries"):
            flash_attn_with_kvcache(q, cache, bad)
    odd = target.tensor(2, 9, 2, 20)
    with pytest.raises(ValueError, match=r"k_cache must have a head_dim .* multiple of 8.* got 20"):
        flash_attn_with_kvcache(q[..., :20], odd, odd)


def test_the_op_checks_too() -> None:
    """It may be called with anything."""
    given = dense()
    new = (given["k"], given["v"], given["rotary_cos"], given["rotary_sin"], True, True)
    cache = (lengths(5, 18), None, None, None, None, None, None, None, 3)
    tensors = (given["q"], given["k_cache"], given["v_cache"])
    with pytest.raises(ValueError, match=r"cache_seqlens .* 18 and 3 new ones"):
        torch.ops.flash_attn2.kvcache_append_forward(*tensors, *new, *cache, 0)
    with pytest.raises(ValueError, match=r"cache_seqlens .* 18 and 3 new ones"):
        torch.ops.flash_attn2.kvcache_forward(*tensors, *cache, 0)
    given["v"].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"no gradient"):
        torch.ops.flash_attn2.kvcache_append_forward(*tensors, *new, *cache, 0)


def varlen() -> dict[str, Any]:
    return {
        "q": torch.randn(6, 4, 16),
        "k": torch.randn(6, 8, 2, 16),
        "v": torch.randn(6, 8, 2, 16),
        "cu_seqlens_q": lengths(0, 2, 6),
        "cu_seqlens_k": lengths(0, 7, 30),
        "max_seqlen_q": 4,
        "max_seqlen_k": 24,
        "block_table": lengths(4, -1, 99, 1, 0, 5).view(2, 3),
    }


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"block_table": 1}, TypeError, r"block_table must be a torch.Tensor, got int"),
        ({"block_table": lengths(1, 2)}, ValueError, r"block_table must be \(2, pages"),
        (
            {"block_table": lengths(1, 2).view(2, 1)},
            ValueError,
            r"block_table .* 23 rows, got 1 pa",
        ),
        ({"block_table": lengths(4, 0, 0, 1, 0, 6).view(2, 3)}, ValueError, r"got 6 at \[1, 2\]"),
        (
            {"k": torch.randn(48, 2, 16)},
            ValueError,
            r"k must be \(num_pages, page_size, .* \(48, 2",
        ),
        (
            {"cu_seqlens_q": lengths(0, 2, 7)},
            ValueError,
            r"cu_seqlens_q must end within the 6 rows",
        ),
        ({"cu_seqlens_k": lengths(0, 30)}, ValueError, r"cu_seqlens_k must have shape \(3,\)"),
        (
            {"cu_seqlens_k": lengths(0, 30, 7)},
            ValueError,
            r"cu_seqlens_k must not decrease, got 30",
        ),
        ({"max_seqlen_k": 22}, ValueError, r"max_seqlen_k must not be below .* 23, got 22"),
        ({"max_seqlen_k": -1}, ValueError, r"max_seqlen_k must be from 0 to \d+, got -1"),
        ({"seqused_k": lengths(8, 1)}, ValueError, r"seqused_k must be from 0 .* got 8 of 7 rows"),
        ({"seqused_k": lengths(8)}, ValueError, r"seqused_k must have shape \(2,\)"),
        ({"dropout_p": 0.1}, NotImplementedError, r"dropout_p must be 0 with block_table, got 0.1"),
    ],
)
def test_varlen_over_pages(bad: Bad, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        flash_attn_varlen_func(**varlen() | bad)
