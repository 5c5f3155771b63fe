"""Which calls the sm90 kernels serve, beside those of sm80: by options and layout, or as asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import Case
from support import (
    HALF,
    Target,
    check_dense,
    lengths,
    targets,
)

from flash_attn2 import flash_attn_func, flash_attn_with_kvcache, masks
from flash_attn2._impl import backends, env

BFLOAT16 = [Target("sm90-emulated", HALF[1])]


@pytest.fixture
def module(target: Target) -> Iterator[Any]:
    """The module, with its choice as it was afterwards."""
    module: Any = backends.load(target.backend).module
    module.reset_counters()
    yield module
    module.choose_family("sm90")


def runs_on_sm90(module: Any) -> bool:
    """Of the calls since the last question. Only kernels of sm90 have wgmma."""
    counters = module.counters()
    assert counters["launches"] > 0
    module.reset_counters()
    return bool(counters["wgmma"] > 0)


def over_cache(**options: Any) -> Callable[..., object]:
    return lambda q, k, v: flash_attn_with_kvcache(q, k, v, **options)


OTHERS: dict[str, Callable[..., object]] = {
    "cache": over_cache(cache_seqlens=lengths(50)),
    "cache_of_one_length": over_cache(cache_seqlens=50),
    "whole_cache": over_cache(),
    "narrow": lambda q, k, v: flash_attn_func(*(x[..., :32] for x in (q, k, v))),
}


@targets(BFLOAT16)
@pytest.mark.parametrize("name", OTHERS)
def test_the_rest_is_left_to_sm80(name: str, target: Target, module: Any) -> None:
    q, k, v = Case(128, 1, 70, 90, num_heads=2, num_heads_kv=1).qkv(target)
    OTHERS[name](q, k, v)
    assert not runs_on_sm90(module)
    flash_attn_func(q, k, v)
    assert runs_on_sm90(module)


# Options of a call, and the widest heads whose gradients sm90 has then.
GRADIENTS: dict[str, tuple[dict[str, Any], int]] = {
    "plain": ({}, 256),
    "softcap": ({"softcap": 2.0}, 192),
    "dropout": ({"dropout_p": 0.3}, 192),
    "block_mask": ({"block_mask": masks.causal().build(70, 90)}, 192),
}


@targets(BFLOAT16)
@pytest.mark.parametrize("width", [128, 192, 256])
@pytest.mark.parametrize("name", GRADIENTS)
def test_which_family_has_the_gradient(name: str, width: int, target: Target, module: Any) -> None:
    options, widest = GRADIENTS[name]
    q, k, v = Case(width, 1, 70, 90, num_heads=2, num_heads_kv=1).qkv(target)
    q.requires_grad_()
    out = flash_attn_func(q, k, v, **options)
    module.reset_counters()
    out.backward(torch.randn_like(out))
    assert runs_on_sm90(module) == (width <= widest)


@targets(BFLOAT16)
def test_gradients_of_both(target: Target, module: Any) -> None:
    """The backward pass of sm80 takes what a forward pass of sm90 leaves, and the other way round.

    Gradients that are the same for all rows are no boxes to be copied.
    """
    q, k, v = Case(128, 1, 70, 90, num_heads=2, num_heads_kv=1).qkv(target)
    grads = []
    for of_forward, of_backward in (("sm90", "sm80"), ("sm80", "sm90")):
        leaf = q.detach().requires_grad_()
        module.choose_family(of_forward)
        out = flash_attn_func(leaf, k, v, causal=True)
        module.choose_family(of_backward)
        module.reset_counters()
        out.backward(torch.ones_like(out))
        assert runs_on_sm90(module) == (of_backward == "sm90")
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, atol=2e-2, rtol=2e-2)
    leaf = q.detach().requires_grad_()
    out = flash_attn_func(leaf, k, v, causal=True)
    module.reset_counters()
    out.backward(torch.ones_like(out[0, 0]).expand(out.shape))
    assert not runs_on_sm90(module)
    torch.testing.assert_close(leaf.grad, grads[0], atol=2e-2, rtol=2e-2)


@targets(BFLOAT16)
@pytest.mark.parametrize(("choice", "expected"), [("sm80", False), ("auto", False), ("sm90", True)])
def test_choice(choice: str, expected: bool, target: Target, module: Any) -> None:
    module.choose_family(choice)
    check_dense(*Case(128, batch=1, seqlen_q=70).qkv(target))
    assert runs_on_sm90(module) == expected


@targets(BFLOAT16)
@pytest.mark.parametrize("device", ["sm80", "sm86"])
def test_devices_that_cannot_run_what_is_asked_for(
    device: str, target: Target, module: Any
) -> None:
    q, k, v = Case(128, batch=1).qkv(target)
    before = module.set_options(f"device={device}")
    try:
        with pytest.raises(RuntimeError, match=r"9\.0 are asked for, but the device is not of"):
            flash_attn_func(q, k, v)
        assert module.counters()["launches"] == 0
        module.choose_family("auto")
        check_dense(q, k, v)
    finally:
        module.set_options(before)


@targets(BFLOAT16)
def test_unknown_families(target: Target, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="auto, sm80 and sm90, got sm100"):
        module.choose_family("sm100")
    monkeypatch.setenv("FLASH_ATTN2_CUDA_FAMILY", "hopper")
    with pytest.raises(ValueError, match="must be one of auto, sm80, sm90, got 'hopper'"):
        env.cuda_family()
    monkeypatch.setenv("FLASH_ATTN2_CUDA_FAMILY", "")
    assert env.cuda_family() == "auto"
