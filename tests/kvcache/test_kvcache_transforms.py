"""Differentiation and other transforms around a KV cache; tensors that are not what they seem.

Right, or an error that says what is wrong: never zeros, and never a cache half written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import cumulative, lengths
from torch import Tensor
from torch.autograd import forward_ad

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache

MODES = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "profiler": torch.profiler.profile,
}


def read_only() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 3, 4, 16),
        "k_cache": torch.randn(2, 20, 2, 16),
        "v_cache": torch.randn(2, 20, 2, 16),
        "cache_seqlens": lengths(5, 17),
        "sink": torch.rand(4),
    }


def appending() -> dict[str, Any]:
    return read_only() | {
        "k": torch.randn(2, 3, 2, 16),
        "v": torch.randn(2, 3, 2, 16),
        "rotary_cos": torch.rand(20, 4),
        "rotary_sin": torch.rand(20, 4),
    }


def paged_varlen() -> dict[str, Any]:
    return {
        "q": torch.randn(6, 4, 16),
        "k": torch.randn(6, 8, 2, 16),
        "v": torch.randn(6, 8, 2, 16),
        "cu_seqlens_q": cumulative(2, 4),
        "cu_seqlens_k": cumulative(7, 23),
        "max_seqlen_q": 4,
        "max_seqlen_k": 23,
        "block_table": lengths(4, -1, 99, 1, 0, 5).view(2, 3),
    }


CALLS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "read_only": (flash_attn_with_kvcache, read_only),
    "appending": (flash_attn_with_kvcache, appending),
    "paged_varlen": (flash_attn_varlen_func, paged_varlen),
}
FLOATING = [
    (name, argument)
    for name, (_, arguments) in CALLS.items()
    for argument, value in arguments().items()
    if isinstance(value, Tensor) and value.is_floating_point()
]


def caches_of(given: dict[str, Any]) -> dict[str, Tensor]:
    return {name: given[name].clone() for name in ("k_cache", "v_cache") if name in given}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "argument"), FLOATING)
def test_forward_mode(name: str, argument: str, mode: str) -> None:
    function, arguments = CALLS[name]
    given = arguments()
    before, x = caches_of(given), given[argument]

    def dual() -> None:
        with forward_ad.dual_level():
            given[argument] = forward_ad.make_dual(x, torch.ones_like(x))
            with MODES[mode]():
                function(**given)

    def jvp() -> None:
        with MODES[mode]():
            torch.func.jvp(lambda x: function(**given | {argument: x}), (x,), (x,))

    for derivative in (dual, jvp):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            derivative()
        given[argument] = x
        for cache, value in before.items():
            assert torch.equal(given[cache], value)


def test_levels_without_tangents() -> None:
    """Inside of forward-mode differentiation of something else."""
    given = appending()
    expected = flash_attn_with_kvcache(**given)
    with forward_ad.dual_level():
        assert torch.equal(flash_attn_with_kvcache(**given), expected)


@pytest.mark.parametrize("name", CALLS)
def test_reverse_mode_of_transforms(name: str) -> None:
    function, arguments = CALLS[name]
    given = arguments()
    before, q = caches_of(given), given.pop("q")
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.hessian):
        with pytest.raises(NotImplementedError, match=r"no (gradient|forward-mode)"):
            transform(lambda q: function(q, **given).sum())(q)
    for cache, value in before.items():
        assert torch.equal(given[cache], value)


@pytest.mark.parametrize("name", ["read_only", "paged_varlen"])
def test_backward_raises(name: str) -> None:
    function, arguments = CALLS[name]
    given = arguments()
    expected = function(**given)
    for compiled in (False, True):
        torch._dynamo.reset()
        call = torch.compile(function, backend="aot_eager") if compiled else function
        for argument in ("q", "k_cache" if "k_cache" in given else "k"):
            leaf = given[argument].clone().requires_grad_()
            out = call(**given | {argument: leaf})
            assert torch.equal(out, expected)
            with pytest.raises(NotImplementedError, match="no gradient"):
                out.sum().backward()


def test_vmap() -> None:
    given = read_only()
    q = torch.randn(3, *given.pop("q").shape)
    actual = torch.vmap(lambda q: flash_attn_with_kvcache(q, **given))(q)
    assert torch.equal(actual, torch.stack([flash_attn_with_kvcache(x, **given) for x in q]))
    if hasattr(torch.library, "register_vmap"):
        nothing = q[:0]
        out = torch.vmap(lambda q: flash_attn_with_kvcache(q, **given))(nothing)
        assert out.shape == nothing.shape
    given = appending()
    before, q = caches_of(given), given.pop("q")
    with pytest.raises(NotImplementedError, match=r"vmap does not map an append"):
        torch.vmap(lambda q: flash_attn_with_kvcache(q, **given))(torch.stack([q, q]))
    for cache, value in before.items():
        assert torch.equal(given[cache], value)


def test_functionalize() -> None:
    given = read_only()
    q = given.pop("q")
    actual = torch.func.functionalize(lambda q: flash_attn_with_kvcache(q, **given))(q)
    assert torch.equal(actual, flash_attn_with_kvcache(q, **given))
    given = appending()
    before, q = caches_of(given), given.pop("q")
    with pytest.raises(NotImplementedError, match="q must not be a functional tensor"):
        torch.func.functionalize(lambda q: flash_attn_with_kvcache(q, **given))(q)
    for cache, value in before.items():
        assert torch.equal(given[cache], value)


def zeros(x: Tensor) -> Tensor:
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)


def freed(x: Tensor) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "freed": freed,
    "sparse": lambda x: x.to_sparse(),
    "nested": lambda x: torch.nested.nested_tensor([x]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x], layout=torch.jagged),
    "complex": lambda x: x.to(torch.complex64),
    "meta": lambda x: x.to("meta"),
}
ACCEPTED: dict[str, Callable[[Tensor], Any]] = {
    "zeros": zeros,
    "negated": lambda x: torch._neg_view(x) if x.is_floating_point() else x,
    "functional": torch._to_functional_tensor,
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "subclass": lambda x: x.as_subclass(type("Sub", (Tensor,), {})),  # type: ignore[arg-type]
}
TENSORS = [name for name, value in appending().items() if isinstance(value, Tensor)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["read_only", "appending"])
def test_tensors_that_cannot_be_read(name: str, kind: str) -> None:
    for argument in TENSORS:
        function, arguments = CALLS[name]
        given = arguments()
        if argument not in given:
            continue
        before = caches_of(given)
        wrong = REFUSED[kind](given[argument])
        named = "k_cache" if (kind, argument) == ("meta", "q") else argument  # by whose device?
        with pytest.raises((TypeError, ValueError), match=f"{named} must"):
            function(**given | {argument: wrong})
        for cache, value in before.items():
            assert cache == argument or torch.equal(given[cache], value)


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("name", ["read_only", "appending"])
def test_tensors_that_are_not_what_they_seem(name: str, kind: str) -> None:
    for argument in TENSORS:
        function, arguments = CALLS[name]
        given = arguments()
        if argument not in given:
            continue
        before = caches_of(given)
        seeming = ACCEPTED[kind](given[argument])
        if name == "appending" and (
            kind == "functional"
            or (argument in ("k_cache", "v_cache") and kind in ("zeros", "negated"))
        ):  # nothing that can be written
            with pytest.raises((ValueError, RuntimeError), match=argument):
                function(**given | {argument: seeming})
            for cache, value in before.items():
                assert torch.equal(given[cache], value)
            continue
        functional = kind == "functional"
        ordinary = torch._from_functional_tensor(seeming) if functional else seeming
        ordinary = ordinary.as_subclass(Tensor).clone()
        expected = function(**given | before | {argument: ordinary})
        out = function(**given | {argument: seeming})
        out = torch._from_functional_tensor(out) if functional else out.as_subclass(Tensor)
        assert torch.equal(out, expected)
        if name == "appending" and argument == "k_cache":
            assert torch.equal(seeming.as_subclass(Tensor), ordinary)


def test_inference_tensors() -> None:
    with torch.inference_mode():
        given = appending()
        expected = flash_attn_with_kvcache(**given)
    assert torch.equal(flash_attn_with_kvcache(**given), expected)
