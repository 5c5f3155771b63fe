"""Signatures, results and defaults of the public functions."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case
from support import ONE_DTYPE, Target, cumulative, lengths, require_backend, targets

import flash_attn2
from flash_attn2 import (
    build_info,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from flash_attn2._impl import backends

CPU = Target("cpu", torch.float32)
REQUIRED = inspect.Parameter.empty
# Names, order and defaults of flash-attn 2.8.
OPTIONS = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
VARLEN = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")


@pytest.mark.parametrize(
    ("function", "tensors", "after"),
    [
        (flash_attn_func, ("q", "k", "v"), {}),
        (flash_attn_kvpacked_func, ("q", "kv"), {}),
        (flash_attn_qkvpacked_func, ("qkv",), {}),
        (flash_attn_varlen_func, ("q", "k", "v", *VARLEN), {"block_table": None}),
        (flash_attn_varlen_kvpacked_func, ("q", "kv", *VARLEN), {}),
        (flash_attn_varlen_qkvpacked_func, ("qkv", "cu_seqlens", "max_seqlen"), {}),
    ],
)
def test_signature(
    function: Callable[..., Any], tensors: tuple[str, ...], after: dict[str, Any]
) -> None:
    parameters = inspect.signature(function).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    defaults = {x: None if x.startswith("max_seqlen") else REQUIRED for x in tensors}
    expected = defaults | OPTIONS | after
    assert list(positional.items()) == list(expected.items())
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    of_some = {"seqused_k", "out", "block_mask", "bias", "relative_bias"}
    assert own - of_some == {"sink", "return_lse", "seqused_q"}
    assert ("seqused_k" in own) == ("out" in own) == ("varlen" in function.__name__)
    assert ("block_mask" in own) == ("varlen" not in function.__name__)


def test_everything_public_is_documented() -> None:
    for name in flash_attn2.__all__:
        if name != "__version__":
            assert getattr(flash_attn2, name).__doc__


@pytest.mark.parametrize("name", [name for name in flash_attn2.__all__ if name.endswith("_func")])
def test_help_explains_every_option(name: str) -> None:
    """With its default; tensors with their shapes."""
    function = getattr(flash_attn2, name)
    text = " ".join(function.__doc__.split())
    options = [
        x for x in inspect.signature(function).parameters.values() if x.default is not x.empty
    ]
    assert len(options) >= 11
    for option in options:
        begin = text.index(f" {option.name} = {option.default}: ")
        if "Tensor" in str(option.annotation) and option.name not in ("out", "bias"):
            assert "(" in text[begin : begin + 120]


@targets(ONE_DTYPE)
def test_packed_forms_agree(target: Target) -> None:
    q, k, v = Case(num_heads=3, num_heads_kv=3, seqlen_q=60, seqlen_k=60).qkv(target)
    options = {"causal": True, "softcap": 2.0, "return_lse": True}
    expected = flash_attn_func(q, k, v, **options)
    kv, qkv = torch.stack([k, v], 2), torch.stack([q, k, v], 2)
    cu = cumulative(60, 60, device=target.device)
    flat_q, flat_k, flat_v, flat_kv, flat_qkv = (x.flatten(0, 1) for x in (q, k, v, kv, qkv))
    for actual in (
        flash_attn_kvpacked_func(q, kv, **options),
        flash_attn_qkvpacked_func(qkv, **options),
    ):
        assert all(map(torch.equal, actual, expected))
    for actual in (
        flash_attn_varlen_func(flat_q, flat_k, flat_v, cu, cu, 60, 60, **options),
        flash_attn_varlen_kvpacked_func(flat_q, flat_kv, cu, cu, 60, 60, **options),
        flash_attn_varlen_qkvpacked_func(flat_qkv, cu, 60, **options),
    ):
        out, lse = actual
        assert torch.equal(out, expected[0].flatten(0, 1))
        assert torch.equal(lse, expected[1].transpose(0, 1).flatten(1))


def test_positional_arguments() -> None:
    q, k, v = Case().qkv(CPU)
    slopes = torch.rand(4)
    by_position = flash_attn_func(q, k, v, 0.0, 0.3, True, (20, 5), 2.0, slopes, True, True)
    by_name = flash_attn_func(
        q,
        k,
        v,
        softmax_scale=0.3,
        window_size=(20, 0),
        softcap=2.0,
        alibi_slopes=slopes,
        return_attn_probs=True,
    )
    assert all(map(torch.equal, by_position, by_name))


@targets(ONE_DTYPE)
def test_results(target: Target) -> None:
    q, k, v = Case().qkv(target)
    only_out = flash_attn_func(q, k, v)
    out, lse, probs = flash_attn_func(q, k, v, return_attn_probs=True)
    assert torch.equal(only_out, out)
    assert out.dtype == q.dtype
    assert out.shape == q.shape
    assert out.is_contiguous()
    assert lse.dtype == torch.float32
    assert lse.shape == (2, 4, 113)
    assert probs.dtype == q.dtype
    assert probs.shape == (0,)
    assert all(map(torch.equal, flash_attn_func(q, k, v, return_lse=True), (out, lse)))
    _, _, probs = flash_attn_func(q, k, v, dropout_p=0.1, return_attn_probs=True)
    assert probs.dtype == q.dtype
    assert probs.shape == (2, 4, 113, 203)


def test_default_scale_is_that_of_the_given_head_dim() -> None:
    """Also where the backend pads head_dim."""
    q, k, v = Case(20).qkv(CPU)
    assert torch.equal(flash_attn_func(q, k, v), flash_attn_func(q, k, v, softmax_scale=20**-0.5))


def test_numbers_need_not_be_floats() -> None:
    q, k, v = Case().qkv(CPU)
    expected = flash_attn_func(q, k, v, softmax_scale=1.0, softcap=2.0, window_size=(9, 9))
    actual = flash_attn_func(
        q, k, v, 0, torch.tensor(1.0).numpy()[()], window_size=[9, 9], softcap=2
    )
    assert torch.equal(actual, expected)


def test_seqused_k_by_name() -> None:
    q, k, v = (x.flatten(0, 1) for x in Case(seqlen_q=40, seqlen_k=50).qkv(CPU))
    cu_q, cu_k = cumulative(40, 40), cumulative(50, 50)
    used = flash_attn_varlen_func(q, k, v, cu_q, cu_k, 40, 50, seqused_k=lengths(50, 7))
    short_k, short_v = (torch.cat([x[:50], x[50:57]]) for x in (k, v))
    short = flash_attn_varlen_func(q, short_k, short_v, cu_q, cumulative(50, 7), 40, 50)
    assert torch.equal(used, short)


@pytest.mark.parametrize("name", ["auto", "cpu", "sm80-emulated", "sm90-emulated"])
def test_environment_selects_the_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = "cpu" if name == "auto" else name
    require_backend(backend)
    monkeypatch.setenv("FLASH_ATTN2_BACKEND", name)
    monkeypatch.setattr(backends, "for_cpu_tensors", None)
    assert backends.serving(torch.empty(0)).name == backend


def test_build_info() -> None:
    info = build_info()
    assert info["version"] == flash_attn2.__version__
    assert info["torch"] == torch.__version__
    assert info["cpu"]["isa"] in info["cpu"]["isa_levels"]
    assert {"cuda", "sm80-emulated", "sm90-emulated"} <= info.keys()
    json.dumps(info)
